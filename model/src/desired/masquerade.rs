//! Whether the source address is rewritten (kube-proxy.md 3.3, 5.5, 5.6).

use super::usable::Target;
use super::{Ground, Hairpins};
use crate::address::{Family, Protocol, SourceClass};
use crate::table::Masquerade;

/// The masquerade of connections to one backend, where no rule marks all packets of this class.
///
/// Then only a client that is itself the chosen backend is rewritten ("hairpin"). That is possible
/// where (a) the datapath has a hairpin rule for the backend: every endpoint, but in nftables mode
/// of 1.36+ only those that some Service calls local; and (b) a source of this class can have the
/// backend's address: for `node` an address of the node; for the others an address that is not the
/// node's and, with a detector by CIDR, lies inside it (`pod`) or not (`outside`). Detectors by
/// link, and none, say nothing about addresses.
///
/// What is read from the rules is judged by the same definition, so that both sides agree.
pub(super) fn unless_marked(
    ground: &Ground,
    hairpins: &Hairpins,
    source: SourceClass,
    protocol: Protocol,
    target: &Target,
) -> Masquerade {
    let ip = target.address.ip();
    let has_rule = !ground.rules.hairpin_local_only
        || target.local
        || hairpins.contains_key(&(ip, target.address.port(), protocol));
    let on_node = ground.on_node(ip);
    let can_be_source = match source {
        SourceClass::Node => on_node,
        _ if on_node => false,
        SourceClass::Pod | SourceClass::Outside => {
            match ground.profile.config.value.detector.cidr(Family::of(ip)) {
                Some(cidr) => cidr.contains(&ip) == (source == SourceClass::Pod),
                None => true,
            }
        }
    };
    if has_rule && can_be_source {
        Masquerade::Hairpin
    } else {
        Masquerade::Never
    }
}

/// Is every packet of this class to a cluster IP marked?
///
/// With `masqueradeAll` yes; else those that the detector does not call local; without a detector
/// there is no rule.
pub(super) fn marks_cluster_ip(ground: &Ground, family: Family, source: SourceClass) -> bool {
    ground.profile.config.value.masquerade_all
        || (ground.has_detector(family) && source != SourceClass::Pod)
}

//! What each destination gets: the one type that desired and observed share.

use crate::address::{Frontend, SourceClass};
use crate::finding::Evidence;
use crate::name::ServicePortName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// What happens to the first packet of a new connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "action", content = "why")]
pub enum Action {
    /// Sent to one of the backends.
    Forward,
    /// Refused with an ICMP error or a TCP reset.
    Reject,
    /// Thrown away in silence.
    Drop,
    /// Left alone: the datapath does nothing with it, the packet goes where routing sends it.
    None,
    /// What was read does not say; the reason in plain words.
    Unknown(Arc<str>),
}

impl Action {
    /// The contract's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Action::Forward => "forward",
            Action::Reject => "reject",
            Action::Drop => "drop",
            Action::None => "none",
            Action::Unknown(_) => "unknown",
        }
    }
}

/// Whether the source address is rewritten to the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Masquerade {
    /// No packet of this source class is.
    Never,
    /// Every packet is.
    Always,
    /// Only where the client is itself the chosen backend.
    Hairpin,
    /// Depends on something that was not understood.
    Unknown,
}

/// One place that traffic is sent to. One per distinct address and port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Address and port after translation.
    pub address: SocketAddr,
    /// Share of new connections without affinity, 0 to 1; the shares of a table row sum to 1.
    pub share: f64,
    /// Masquerade of the connections that this backend gets.
    pub masquerade: Masquerade,
}

/// Session affinity, as the datapath really keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Affinity {
    /// Each connection is balanced anew.
    None,
    /// A client stays with its backend for this many seconds after its last connection.
    ClientIp(u32),
    /// Parts of it are there; the reason in plain words (a check without an update, two timeouts).
    Broken(Arc<str>),
}

/// `loadBalancerSourceRanges` as the datapath applies them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceRanges {
    /// Inside these the row's action holds. Aggregated (no range contains another) and sorted.
    pub ranges: Vec<IpNet>,
    /// What clients outside get.
    pub otherwise: Action,
}

/// What one (frontend, source class) gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forwarding {
    /// Whose frontend it is; `None` for wildcards and for destinations no Service claims.
    pub service: Option<ServicePortName>,
    /// What happens.
    pub action: Action,
    /// Empty unless `action` is [`Action::Forward`]; sorted by address. Rows that forward alike share
    /// one list.
    pub backends: Arc<[Backend]>,
    /// Session affinity.
    pub affinity: Affinity,
    /// `None`: everybody.
    pub source_ranges: Option<SourceRanges>,
}

impl Forwarding {
    /// A row without backends.
    pub fn without_backends(service: Option<ServicePortName>, action: Action) -> Forwarding {
        Forwarding {
            service,
            action,
            backends: Arc::default(),
            affinity: Affinity::None,
            source_ranges: None,
        }
    }

    /// The row's one word for masquerading (contract of `table`): what all backends share;
    /// [`Masquerade::Hairpin`] where some are hairpin and the rest never; else unknown.
    pub fn masquerade(&self) -> Masquerade {
        let mut all = self.backends.iter().map(|b| b.masquerade);
        let Some(first) = all.next() else {
            return Masquerade::Never;
        };
        all.fold(first, |word, m| match (word, m) {
            (a, b) if a == b => a,
            (Masquerade::Never, Masquerade::Hairpin) | (Masquerade::Hairpin, Masquerade::Never) => {
                Masquerade::Hairpin
            }
            _ => Masquerade::Unknown,
        })
    }
}

/// Why several answers are legitimate (closed list, kube-proxy.md 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Exactly one answer.
    Certain,
    /// Two Services claim one address and port; which wins follows map order (3.9, 5.8).
    Conflict,
    /// One `ip:port` stands twice in the slices with other conditions (2.3).
    DuplicateEndpoint,
    /// The running version is not known, or not one whose rules are known.
    UnknownVersion,
    /// kube-proxy's configuration is not known.
    UnknownConfiguration,
    /// Written or read at a full sync only, so possibly up to two hours old (5.8).
    FullSyncOnly,
    /// A version, or a configuration that it read at its start, may be older than what the API says now.
    ReadAtStart,
}

/// One of several legitimate answers, usually of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneOf<T> {
    /// Never empty.
    pub any_of: Vec<T>,
    /// Why there is more than one; [`Because::Certain`] where there is not.
    pub because: Because,
}

impl<T: PartialEq> OneOf<T> {
    /// Exactly one answer.
    pub fn certain(answer: T) -> OneOf<T> {
        OneOf {
            any_of: vec![answer],
            because: Because::Certain,
        }
    }

    /// Adds a legitimate answer, with the reason; one that is there already adds nothing.
    pub fn or(&mut self, answer: T, because: Because) {
        if !self.any_of.contains(&answer) {
            self.any_of.push(answer);
            self.because = because;
        }
    }
}

/// A table row's key.
pub type Key = (Frontend, SourceClass);

/// What should be. A key that is not there should get [`Action::None`].
pub type DesiredTable = BTreeMap<Key, OneOf<Forwarding>>;

/// Who decided what happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecidedBy {
    /// A rule of the datapath that is in charge.
    Datapath,
    /// A rule of somebody else: it caught the packet before, or threw it away after.
    Foreign,
    /// No rule: the packet ran through all hooks.
    Nobody,
}

/// What is, for one (frontend, source class), with the objects that prove it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// What the kernel's state gives.
    pub forwarding: Forwarding,
    /// Who decided.
    pub decided_by: DecidedBy,
    /// The rules and elements that lead there, in the packet's order; at most
    /// [`crate::limits::EVIDENCE_PER_ROW`]. Rows with the same proof share it, as they do below.
    pub evidence: Arc<[Evidence]>,
    /// The backend's own evidence (rule or element that translates to it), parallel to
    /// `forwarding.backends`.
    pub backend_evidence: Arc<[Evidence]>,
}

/// What is: one datapath of one node as read in one pass. A key that is not there gets
/// [`Action::None`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForwardingTable {
    /// Every destination that the rules name or the desired table asks for.
    #[serde(skip)]
    pub rows: BTreeMap<Key, Observed>,
}

impl ForwardingTable {
    /// What a packet to `address`, `protocol`, `port` gets: the exact row, else the address's
    /// wildcard, else the longest prefix; `None`: the datapath leaves it alone.
    pub fn look_up(&self, frontend: Frontend, source: SourceClass) -> Option<&Observed> {
        self.rows.get(&(frontend, source)).or_else(|| {
            self.rows
                .get(&(Frontend::Address(frontend.address()), source))
                .or_else(|| {
                    self.rows
                        .iter()
                        .filter_map(|((f, s), o)| match f {
                            Frontend::Prefix(p)
                                if *s == source && p.contains(&frontend.address()) =>
                            {
                                Some((p.prefix_len(), o))
                            }
                            _ => None,
                        })
                        .max_by_key(|(len, _)| *len)
                        .map(|(_, o)| o)
                })
        })
    }
}

//! One look at the kernel, and one whole pass: read, desired, walk, examine.

use crate::clock;
use crate::world::Moment;
use agent::datapath;
use agent::host::links::Links;
use agent::kernel::Kernel;
use agent::netfilter::changes::Changes;
use model::capture::{Gap, Reading, Snapshot};
use model::compare::{Comparison, compare};
use model::desired::{DesiredState, Touched, desired};
use model::examine::{Examined, Pass, elsewhere, examine};
use model::name::{NodeName, ServiceName};
use model::profile::ProxyProfile;
use model::settle::Ledger;
use model::view::{LocalAddress, NodeView};
use std::borrow::Cow;
use std::sync::Arc;

/// What a pass was made from, and what it gave, to be used again where nothing changed.
struct Last {
    changes: u64,
    profile: ProxyProfile,
    node: NodeView,
    snapshot: Snapshot,
    compared: Option<Arc<Comparison>>,
}

/// Looks again and again at one node.
pub struct Looker {
    node: NodeName,
    ledger: Ledger,
    passes: u64,
    kernel: Option<Kernel>,
    links: Links,
    /// What the API asks for, brought up to date by the Services that it said something about.
    desired: DesiredState,
    /// What is needed to walk only what changed.
    walked: datapath::Kept,
    last: Option<Last>,
    /// Fetched again since the last pass.
    refreshed: Vec<ServiceName>,
}

/// What one pass gave.
pub struct Passed {
    /// The verdict.
    pub examined: Examined,
    /// Something of the node could not be read.
    pub unread: bool,
}

impl Looker {
    /// A new history.
    pub fn new(node: NodeName) -> Looker {
        Looker {
            node,
            ledger: Ledger::default(),
            passes: 0,
            kernel: None,
            links: Links::default(),
            desired: DesiredState::default(),
            walked: datapath::Kept::default(),
            last: None,
            refreshed: Vec::new(),
        }
    }

    /// Is what is made by parts in this pass held against the whole? In development builds it is in one
    /// of eight: in each it would be most of what passes cost there.
    fn proves(&self) -> bool {
        cfg!(debug_assertions) && self.passes.is_multiple_of(8)
    }

    /// Services that were fetched again.
    pub fn refreshed(&mut self, names: Vec<ServiceName>) {
        self.refreshed = names;
    }

    /// Takes in what the kernel tells of changes, between two passes that are far apart.
    pub fn listen(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            kernel.listen();
        }
    }

    /// Reads the kernel, then asks what is known of the API (in this order: what the kernel shows
    /// must not be newer than what the API is known to say), and compares.
    pub fn pass(&mut self, moment: impl FnOnce() -> Moment) -> Passed {
        let began = clock::now();
        self.passes += 1;
        let (kernel, fresh) = Kernel::read(self.kernel.take(), began);
        self.kernel = Some(kernel);
        let links = self.links.addresses();
        let mut moment = moment();
        if let Some(kernel) = &self.kernel
            && let Cow::Owned(profile) = datapath::learnt(&moment.profile, &kernel.ruleset)
        {
            moment.profile = profile;
        }
        let addresses: &[LocalAddress] = links.as_ref().map_or(&[], |known| known);
        let same = !fresh
            && self.last.as_ref().is_some_and(|l| {
                l.changes == moment.changes
                    && l.profile == moment.profile
                    && l.node.addresses == addresses
            });
        let mut touched_rows = None;
        if !same {
            let node = NodeView {
                name: self.node.clone(),
                addresses: addresses.to_vec(),
            };
            let (since, touched) = &moment.since;
            let follows = self.last.as_ref().is_some_and(|l| l.changes == *since);
            let anything = Touched::anything();
            let touched = if follows { touched } else { &anything };
            let (view, profile) = (&moment.view, &moment.profile);
            let updated = self.desired.update(view, &node, profile, touched);
            debug_assert!(
                *self.desired.table() == desired(view, &node, profile),
                "made by parts ({touched:?}), the desired table is another than made whole"
            );
            let failed = match &links {
                Err(error) => Some(Gap {
                    what: "links".into(),
                    why: format!("the node's addresses could not be read: {error}").into(),
                }),
                Ok(_) => elsewhere(&moment.view, &node),
            };
            let (nothing, all) = (Reading::Absent, Changes::all());
            let reading = self.kernel.as_ref().map_or(&nothing, |k| &k.ruleset);
            let refused = failed.map(Reading::Failed);
            let reading = refused.as_ref().unwrap_or(reading);
            let last = self.last.take();
            let compared = last.as_ref().and_then(|l| l.compared.clone());
            let again = datapath::again(updated, compared.as_deref());
            let (snapshot, rewalked) = self.walked.snapshot(
                last.map(|l| l.snapshot),
                (reading, self.kernel.as_ref().map_or(&all, |k| &k.changes)),
                (self.desired.frontends(), again.as_ref()),
                &node,
                profile,
            );
            if self.proves() {
                let whole = datapath::snapshot(reading, self.desired.frontends(), &node, profile);
                assert_eq!(
                    datapath::difference(&snapshot, &whole),
                    None,
                    "walked by parts, the rows are others than walked whole"
                );
            }
            touched_rows = datapath::touched(rewalked, again);
            let (changes, profile) = (moment.changes, profile.clone());
            self.last = Some(Last {
                changes,
                profile,
                node,
                snapshot,
                compared,
            });
        }
        let proves = self.proves();
        let Some(last) = &mut self.last else {
            unreachable!("made just above")
        };
        let refreshed = std::mem::take(&mut self.refreshed);
        let mut examined = examine(
            &Pass {
                now: self.kernel.as_ref().map_or(began, |k| k.at),
                number: self.passes,
                view: &moment.view,
                node: &last.node,
                profile: &last.profile,
                proxy: moment.proxy.as_ref(),
                desired: self.desired.table(),
                snapshot: &last.snapshot,
                refreshed: &refreshed,
                gaps: &moment.gaps,
                compared: last.compared.as_ref(),
                unchanged: same,
                touched: touched_rows.as_ref(),
            },
            &mut self.ledger,
        );
        if touched_rows.is_some() && proves {
            let whole = compare(
                self.desired.table(),
                &last.snapshot,
                &last.node,
                &last.profile,
                &moment.view,
                examined.compared.programmed_before,
                &[],
            );
            assert!(
                examined.compared.says_the_same(&whole),
                "carried on, the comparison says something else than made whole"
            );
        }
        examined.report.took_ms = clock::now().mono.since(began.mono);
        last.compared = Some(examined.compared.clone());
        let unread = last
            .snapshot
            .tables
            .values()
            .any(|t| matches!(t, Reading::Failed(_)));
        Passed { examined, unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::view::{ClusterView, Node};

    fn here(addresses: &[&str]) -> NodeView {
        NodeView {
            name: NodeName::from("n1"),
            addresses: addresses
                .iter()
                .map(|a| LocalAddress {
                    address: a.parse().unwrap(),
                    link: "eth0".into(),
                })
                .collect(),
        }
    }

    fn knows(internal: &[&str], external: &[&str]) -> ClusterView {
        let all = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        let node = Node {
            name: "n1".into(),
            internal_ips: all(internal),
            external_ips: all(external),
            zone: None,
            pod_cidrs: Vec::new(),
            going: false,
            created: None,
        };
        let mut view = ClusterView::default();
        view.nodes.insert(node.name.clone(), node);
        view
    }

    /// An agent in a Pod's network namespace would call every Service missing.
    #[test]
    fn another_network_namespace_is_told() {
        let view = knows(&["192.0.2.1"], &["203.0.113.1"]);
        let gap = elsewhere(&view, &here(&["10.244.1.5", "127.0.0.1"])).unwrap();
        assert!(
            gap.why.contains("192.0.2.1, 203.0.113.1") && gap.why.contains("n1"),
            "{}",
            gap.why
        );
        // Either kind of address is proof enough.
        assert_eq!(elsewhere(&view, &here(&["192.0.2.1"])), None);
        assert_eq!(elsewhere(&view, &here(&["203.0.113.1"])), None);
        // Nothing known is no proof of anything.
        assert_eq!(elsewhere(&knows(&[], &[]), &here(&["10.244.1.5"])), None);
        assert_eq!(elsewhere(&ClusterView::default(), &here(&[])), None);
    }
}

//! One look at the kernel, and one whole pass: read, desired, walk, examine.

use crate::clock;
use crate::world::Moment;
use agent::datapath;
use agent::host::netlink::{Family as Netfamily, Netlink, Question};
use agent::host::nf_tables::ReadError;
use agent::host::{files, links, nf_tables};
use agent::netfilter::nftables::{self, attributes::Attributes};
use agent::netfilter::ruleset::Ruleset;
use model::address::Frontend;
use model::capture::{Gap, Reading, Snapshot};
use model::compare::Comparison;
use model::desired::desired;
use model::examine::{Examined, Pass, elsewhere, examine};
use model::name::{NodeName, ServiceName, ServicePortName};
use model::profile::ProxyProfile;
use model::settle::Ledger;
use model::table::DesiredTable;
use model::time::Now;
use model::view::NodeView;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A whole reading proves every few minutes that nothing changed unseen.
const WHOLE: Duration = Duration::from_secs(180);

/// Readings tried again when kube-proxy wrote during each attempt of one; it writes in bursts.
const TORN: u32 = 3;

/// One reading of the kernel.
struct Kernel {
    ruleset: Reading<Ruleset>,
    /// What a later reading must match to be the same (generation, list of tables).
    mark: Option<Mark>,
    /// When it was read.
    at: Now,
}

/// Generation, and the list of tables: one with an owner can vanish without a new generation.
type Mark = (Vec<u8>, Vec<Vec<u8>>);

/// What a pass was made from, and what it gave, to be used again where nothing changed.
struct Last {
    changes: u64,
    profile: ProxyProfile,
    node: NodeView,
    desired: DesiredTable,
    snapshot: Snapshot,
    compared: Option<Arc<Comparison>>,
}

/// Looks again and again at one node.
pub struct Looker {
    node: NodeName,
    ledger: Ledger,
    passes: u64,
    kernel: Option<Kernel>,
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
            last: None,
            refreshed: Vec::new(),
        }
    }

    /// Services that were fetched again.
    pub fn refreshed(&mut self, names: Vec<ServiceName>) {
        self.refreshed = names;
    }

    /// Reads the kernel, then asks what is known of the API (in this order: what the kernel shows
    /// must not be newer than what the API is known to say), and compares.
    pub fn pass(&mut self, moment: impl FnOnce() -> Moment) -> Passed {
        let began = clock::now();
        self.passes += 1;
        let fresh = self.read();
        let links = links::addresses();
        let legacy = files::legacy_tables();
        let moment = moment();
        let node = NodeView {
            name: self.node.clone(),
            addresses: links.as_ref().cloned().unwrap_or_default(),
        };
        let same = !fresh
            && self.last.as_ref().is_some_and(|l| {
                l.changes == moment.changes && l.profile == moment.profile && l.node == node
            });
        if !same {
            let desired = desired(&moment.view, &node, &moment.profile);
            let mut frontends: BTreeMap<Frontend, Option<ServicePortName>> = BTreeMap::new();
            for ((frontend, _), answers) in &desired {
                let service = answers.any_of.iter().find_map(|f| f.service.clone());
                frontends.entry(*frontend).or_insert(service);
            }
            let failed = match &links {
                Err(error) => Some(Gap {
                    what: "links".into(),
                    why: format!("the node's addresses could not be read: {error}").into(),
                }),
                Ok(_) => elsewhere(&moment.view, &node),
            };
            let nothing = Reading::Absent;
            let reading = self.kernel.as_ref().map_or(&nothing, |k| &k.ruleset);
            let refused = failed.map(Reading::Failed);
            let reading = refused.as_ref().unwrap_or(reading);
            let snapshot = datapath::snapshot(reading, &frontends, &node, &moment.profile);
            let (changes, profile) = (moment.changes, moment.profile.clone());
            self.last = Some(Last {
                changes,
                profile,
                node,
                desired,
                snapshot,
                compared: None,
            });
        }
        let Some(last) = &mut self.last else {
            unreachable!("made just above")
        };
        let mut gaps = moment.gaps;
        gaps.extend(legacy_gap(legacy));
        let refreshed = std::mem::take(&mut self.refreshed);
        let mut examined = examine(
            &Pass {
                now: self.kernel.as_ref().map_or(began, |k| k.at),
                number: self.passes,
                view: &moment.view,
                node: &last.node,
                profile: &last.profile,
                proxy: moment.proxy.as_ref(),
                desired: &last.desired,
                snapshot: &last.snapshot,
                refreshed: &refreshed,
                gaps: &gaps,
                compared: last.compared.as_ref(),
            },
            &mut self.ledger,
        );
        examined.report.took_ms = clock::now().mono.since(began.mono);
        last.compared = Some(examined.compared.clone());
        let unread = last
            .snapshot
            .tables
            .values()
            .any(|t| matches!(t, Reading::Failed(_)));
        Passed { examined, unread }
    }

    /// Reads the rules, unless the kernel says that they are those of the last reading. True when
    /// they were read.
    fn read(&mut self) -> bool {
        let now = clock::now();
        let mark = mark();
        if let Some(kernel) = &mut self.kernel
            && mark.is_some()
            && kernel.mark == mark
            && now.mono.since(kernel.at.mono) < WHOLE.as_millis() as u64
        {
            // The same rules, seen to be the same now.
            kernel.at = now;
            return false;
        }
        // The old reading goes first: two of a large node need not be held at once.
        self.kernel = None;
        let gap = |why: String| {
            Reading::Failed(Gap {
                what: "nf_tables".into(),
                why: why.into(),
            })
        };
        let mut stamp = None;
        let mut read = nf_tables::read();
        for _ in 0..TORN {
            if matches!(read, Err(ReadError::Torn { .. })) {
                read = nf_tables::read();
            }
        }
        let ruleset = match read {
            Ok(capture) => {
                stamp = mark;
                Reading::Read(nftables::decode(&capture).ruleset)
            }
            // A node without nf_tables has its Services somewhere this program did not look.
            Err(ReadError::Absent) => {
                gap("the kernel has no nf_tables, and no other datapath is read".into())
            }
            Err(ReadError::Permission) => gap("reading nf_tables needs CAP_NET_ADMIN".into()),
            Err(error) => gap(error.to_string()),
        };
        // Time of the reading's start: what the API says later is newer than it.
        self.kernel = Some(Kernel {
            ruleset,
            mark: stamp,
            at: now,
        });
        true
    }
}

/// Two small questions that tell whether the rules may have changed.
fn mark() -> Option<Mark> {
    let mut netlink = Netlink::open(Netfamily::Netfilter).ok()?;
    let mut generation = Vec::new();
    netlink
        .ask(&Question::Generation, |message| {
            // NFTA_GEN_ID; the others name whoever asks.
            let mut all = Attributes::new(message.get(4..).unwrap_or_default());
            if let Some((_, id)) = all.find(|(kind, _)| *kind == 1) {
                generation = id.to_vec();
            }
            true
        })
        .ok()?;
    if generation.is_empty() {
        return None;
    }
    let mut tables = Vec::new();
    netlink
        .ask(&Question::Tables, |message| {
            tables.push(message.to_vec());
            true
        })
        .ok()?;
    Some((generation, tables))
}

/// Rules of iptables-legacy run besides those of nf_tables, and are not read.
fn legacy_gap(legacy: std::io::Result<Vec<String>>) -> Option<Gap> {
    let why = match legacy {
        Ok(tables) if tables.is_empty() => return None,
        Ok(tables) => format!(
            "tables of iptables-legacy are in use and not read: {}",
            tables.join(", ")
        ),
        Err(error) => format!("cannot tell whether iptables-legacy is in use: {error}"),
    };
    Some(Gap {
        what: "iptables-legacy".into(),
        why: why.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::view::{ClusterView, LocalAddress, Node};

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

    #[test]
    fn legacy_tables_are_a_gap_and_so_is_not_knowing() {
        assert_eq!(legacy_gap(Ok(Vec::new())), None);
        let used = legacy_gap(Ok(vec!["nat".into(), "filter".into()])).unwrap();
        assert!(used.why.contains("nat, filter"), "{}", used.why);
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(legacy_gap(Err(denied)).is_some());
    }
}

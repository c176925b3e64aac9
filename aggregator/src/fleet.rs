//! What the nodes last said. Pure: events and times go in, a state comes out.
//!
//! Events of different nodes may come in any order; of one node, only those of its newest connection
//! count, so that the last words of an old one cannot undo what a new one said.

use model::conntrack::ConntrackReading;
use model::flows::FlowsReading;
use model::name::{NodeName, ServiceName};
use model::report::Report;
use model::time::{Millis, Now};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nodes remembered: twice the largest cluster that Kubernetes supports (5,000). Beyond it new ones
/// are refused.
pub const NODES: usize = 10_000;
/// Without a word for this long a node is silent: three heartbeats of its agent.
pub const SILENT_AFTER_MS: u64 = 15_000;
/// Without a word for this long a node is forgotten: a day, so that last night's outage can still be
/// looked at, and nodes that autoscaling removed do not stay for ever.
pub const FORGOTTEN_AFTER_MS: u64 = 24 * 3600 * 1000;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An agent opened a stream. Connections are numbered upwards.
    Connected {
        /// Number of the connection.
        connection: u64,
        /// Its agent's version.
        agent_version: String,
    },
    /// A whole report.
    Report {
        /// Number of the connection.
        connection: u64,
        /// The report.
        report: Arc<Report>,
        /// The node's clock when it was sent.
        sent_at: Millis,
    },
    /// Nothing new but the time.
    Heartbeat {
        /// Number of the connection.
        connection: u64,
        /// The newest pass; 0: none yet.
        pass: u64,
        /// When that pass read the kernel.
        at: Millis,
        /// How long it took, milliseconds.
        took_ms: u64,
        /// Until when the view of the API was current then.
        api_as_of: Option<Millis>,
        /// What is new of connection tracking.
        conntrack: Option<Arc<ConntrackReading>>,
        /// What is new of the backends that answer.
        flows: Option<Arc<FlowsReading>>,
        /// The node's clock when it was sent.
        sent_at: Millis,
    },
    /// The stream ended.
    Disconnected {
        /// Number of the connection.
        connection: u64,
    },
}

impl Event {
    fn connection(&self) -> u64 {
        match self {
            Event::Connected { connection, .. }
            | Event::Report { connection, .. }
            | Event::Heartbeat { connection, .. }
            | Event::Disconnected { connection } => *connection,
        }
    }
}

/// Why an event changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A newer connection of the same node is there.
    #[error("a newer connection of this node is open")]
    Superseded,
    /// [`NODES`] are known already.
    #[error("{NODES} nodes are known already")]
    Full,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its newest connection.
    pub connection: u64,
    /// Is that one still open, as far as is known?
    pub open: bool,
    /// Its agent's version.
    pub agent_version: String,
    /// When the newest connection was opened.
    pub connected_at: Millis,
    /// When it last said anything.
    pub heard: Now,
    /// What it said last; `None`: nothing yet.
    pub said: Option<Said>,
}

/// A node's last words.
#[derive(Clone, Debug)]
pub struct Said {
    /// The last report, with pass and times of the newest pass that came to the same.
    pub report: Arc<Report>,
    /// Positions in `report.rows` of each Service, and Services that only findings name.
    pub services: Arc<BTreeMap<ServiceName, Vec<usize>>>,
    /// The newest pass.
    pub pass: u64,
    /// When it read the kernel, by the node's clock.
    pub at: Millis,
    /// Until when its view of the API was current, by the node's clock.
    pub api_as_of: Option<Millis>,
    /// How long the pass took, milliseconds.
    pub took_ms: u64,
    /// The newest reading of connection tracking; `None`: the agent says nothing of it.
    pub conntrack: Option<Arc<ConntrackReading>>,
    /// Which backends answer, as its newest connection said last; `None`: it says nothing of it.
    pub flows: Option<Arc<FlowsReading>>,
    /// When that was received.
    pub received: Now,
    /// The node's clock when it was sent.
    pub sent_at: Millis,
}

impl Said {
    /// Age of the kernel reading, milliseconds: its age when it was sent, plus the time since.
    pub fn age_ms(&self, now: Now) -> u64 {
        self.node_clock(now).saturating_sub(self.at.0)
    }

    /// Age of the view of the API, milliseconds.
    pub fn api_age_ms(&self, now: Now) -> Option<u64> {
        self.api_as_of
            .map(|m| self.node_clock(now).saturating_sub(m.0))
    }

    /// How long ago something was that the node saw at `then`, milliseconds.
    pub fn since_ms(&self, then: Millis, now: Now) -> u64 {
        self.node_clock(now).saturating_sub(then.0)
    }

    fn node_clock(&self, now: Now) -> u64 {
        self.sent_at
            .0
            .saturating_add(now.mono.since(self.received.mono))
    }
}

impl Member {
    /// Is its agent connected, and heard of lately?
    pub fn connected(&self, now: Now) -> bool {
        self.open && now.mono.since(self.heard.mono) < SILENT_AFTER_MS
    }

    /// Since when it has been silent; `None`: it is not.
    pub fn silent_since(&self, now: Now) -> Option<Millis> {
        (!self.connected(now)).then_some(self.heard.wall)
    }
}

/// Every node that said anything within [`FORGOTTEN_AFTER_MS`].
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// By name.
    pub nodes: BTreeMap<NodeName, Member>,
}

impl Fleet {
    /// Takes one event in.
    pub fn apply(&mut self, node: &NodeName, event: Event, now: Now) -> Result<(), Refused> {
        let number = event.connection();
        if let Some(m) = self.nodes.get(node)
            && number < m.connection
        {
            return Err(Refused::Superseded);
        }
        if let Event::Connected { agent_version, .. } = event {
            self.forget(now);
            if !self.nodes.contains_key(node) && self.nodes.len() >= NODES {
                return Err(Refused::Full);
            }
            let said = self.nodes.remove(node).and_then(|m| m.said);
            // The new one tells it anew, and an older agent not at all.
            let said = said.map(|said| Said {
                flows: None,
                ..said
            });
            self.nodes.insert(
                node.clone(),
                Member {
                    connection: number,
                    open: true,
                    agent_version,
                    connected_at: now.wall,
                    heard: now,
                    said,
                },
            );
            return Ok(());
        }
        let Some(member) = self.nodes.get_mut(node).filter(|m| m.connection == number) else {
            return Err(Refused::Superseded);
        };
        match event {
            Event::Connected { .. } => {}
            Event::Disconnected { .. } => member.open = false,
            Event::Report {
                report, sent_at, ..
            } => {
                member.heard = now;
                member.said = Some(Said {
                    services: services(&report, member.said.as_ref()),
                    pass: report.pass,
                    at: report.at,
                    api_as_of: report.api_as_of,
                    took_ms: report.took_ms,
                    conntrack: report.conntrack.clone(),
                    flows: report
                        .flows
                        .clone()
                        .or_else(|| member.said.as_ref().and_then(|s| s.flows.clone())),
                    received: now,
                    sent_at,
                    report,
                });
            }
            Event::Heartbeat {
                pass,
                at,
                took_ms,
                api_as_of,
                conntrack,
                flows,
                sent_at,
                ..
            } => {
                member.heard = now;
                if let Some(said) = &mut member.said
                    && pass > 0
                    && at >= said.at
                {
                    said.pass = pass;
                    said.at = at;
                    said.took_ms = took_ms;
                    said.api_as_of = api_as_of;
                    if conntrack.is_some() {
                        said.conntrack = conntrack;
                    }
                    if flows.is_some() {
                        said.flows = flows;
                    }
                    said.received = now;
                    said.sent_at = sent_at;
                }
            }
        }
        Ok(())
    }

    /// Drops nodes that have been silent for [`FORGOTTEN_AFTER_MS`].
    pub fn forget(&mut self, now: Now) {
        self.nodes
            .retain(|_, m| m.open || now.mono.since(m.heard.mono) < FORGOTTEN_AFTER_MS);
    }

    /// Every Service that any node reports.
    pub fn services(&self) -> BTreeSet<&ServiceName> {
        self.nodes
            .values()
            .filter_map(|m| m.said.as_ref())
            .flat_map(|s| s.services.keys())
            .collect()
    }
}

/// The index of a report; that of the report before it, where it is the same.
fn services(report: &Report, before: Option<&Said>) -> Arc<BTreeMap<ServiceName, Vec<usize>>> {
    if let Some(before) = before
        && is_index_of(report, before)
    {
        return before.services.clone();
    }
    let mut out: BTreeMap<ServiceName, Vec<usize>> = BTreeMap::new();
    for (i, row) in report.rows.iter().enumerate() {
        if let Some(s) = &row.service {
            out.entry(s.service.clone()).or_default().push(i);
        }
    }
    for f in report.findings.iter().chain(&report.converging) {
        if let Some(s) = &f.service {
            out.entry(s.service.clone()).or_default();
        }
    }
    Arc::new(out)
}

/// Most reports differ from the one before in a few rows, and an index of thousands is not made anew
/// for them.
fn is_index_of(report: &Report, before: &Said) -> bool {
    let (rows, old) = (&report.rows, &before.report.rows);
    let findings = || report.findings.iter().chain(&report.converging);
    rows.len() == old.len()
        && (rows.iter().zip(old.iter())).all(|(a, b)| Arc::ptr_eq(a, b) || a.service == b.service)
        && findings()
            .filter_map(|f| f.service.as_ref())
            .all(|s| before.services.contains_key(&s.service))
        // One that only a finding named is not named any more, perhaps.
        && before.services.values().all(|positions| !positions.is_empty())
}

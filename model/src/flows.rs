//! Which backends answer: the flows of connection tracking that began lately, and whether anything came
//! back.
//!
//! Read [`Entry`] first (what is read), then [`Meter`] (what successive walks make of it),
//! [`FlowsReading`] (what is reported).
//!
//! Facts of the kernel that this rests on (linux 6.x, net/netfilter):
//! - A packet of the other direction sets `IPS_SEEN_REPLY` (`nf_conntrack_in`). An ICMP error is none: a
//!   connection that is refused by it counts as unanswered.
//! - A RST ends an entry that is not assured at once (`nf_conntrack_tcp_packet`): a connection that is
//!   refused by it is never seen, neither as answered nor as unanswered.
//! - What lives on is the time since the last packet: each SYN that is sent again begins the timeout of
//!   `SYN_SENT` anew (`nf_conntrack_tcp_packet`). Timeout minus time left is what a flow has waited
//!   since its last SYN, never more than it has waited in all. Whole seconds, rounded down.
//! - `CTA_ID` is a hash over the entry's place and its tuple (`nf_ct_get_id`), on older kernels the place
//!   itself, which is used again: it tells flows apart only together with the tuple.
//! - A full table evicts flows without an answer first (`early_drop`), and makes no entry for new ones:
//!   fewer are seen then, and none that were not there.
//!
//! What cannot be told from it: who forbids a client whose flows are not answered (NetworkPolicy, a
//! firewall on the way), and flows that were over between two walks, which a RST makes within 10 s of one
//! that was assured.

use crate::address::{Frontend, Protocol};
use crate::capture::Reading;
use crate::conntrack::Timeout;
use crate::limits;
use crate::name::ServicePortName;
use crate::report::Row;
use crate::time::{Millis, Now};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// For how long new flows count, milliseconds.
pub const WINDOW_MS: u64 = 300_000;
/// An unanswered flow counts once its last packet is older than this, in seconds.
const WAITED_S: u32 = 2;

/// One entry of connection tracking whose destination was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// `CTA_ID`.
    pub id: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Who began: source of the original tuple.
    pub client: SocketAddr,
    /// What it connected to: destination of the original tuple.
    pub frontend: SocketAddr,
    /// Where it was sent: source of the reply tuple.
    pub backend: SocketAddr,
    /// `IPS_SEEN_REPLY`.
    pub answered: bool,
    /// `CTA_PROTOINFO_TCP_STATE`.
    pub tcp_state: Option<u8>,
    /// Seconds until the entry ends, rounded down; `None`: not told.
    pub left: Option<u32>,
}

/// `TCP_CONNTRACK_SYN_SENT` (linux/netfilter/nf_conntrack_tcp.h).
const SYN_SENT: u8 = 1;

impl Entry {
    /// The timeout of the state in which nothing has come back. `None`: not in such a state, or of a
    /// protocol of which nothing is claimed.
    fn waits_by(&self) -> Option<Timeout> {
        match self.protocol {
            Protocol::Tcp if self.tcp_state == Some(SYN_SENT) => Some(Timeout::TcpSynSent),
            Protocol::Udp => Some(Timeout::Udp),
            _ => None,
        }
    }
}

/// What one walk counted for one backend of one frontend.
#[derive(Clone, Debug, Default)]
struct Tally {
    answered: u32,
    unanswered: u32,
    /// Who was not answered, at most [`limits::FLOW_SOURCES`].
    sources: BTreeSet<IpAddr>,
}

type Key = (Protocol, SocketAddr, SocketAddr);

/// A walk that is under way.
#[derive(Debug)]
pub struct Walk<'a> {
    meter: &'a Meter,
    timeouts: &'a BTreeMap<Timeout, u32>,
    seen: HashSet<u64>,
    waiting: HashSet<u64>,
    tallies: HashMap<Key, Tally>,
    full: bool,
}

/// A walk that came to its end.
#[derive(Debug)]
pub struct Walked {
    seen: HashSet<u64>,
    waiting: HashSet<u64>,
    tallies: HashMap<Key, Tally>,
}

impl Walk<'_> {
    /// Takes one entry in; false: there are more than can be kept, and the walk is worth nothing.
    pub fn add(&mut self, entry: &Entry) -> bool {
        if self.seen.len() + self.waiting.len() >= limits::FLOW_ENTRIES
            || self.tallies.len() >= limits::FLOW_KEYS
        {
            self.full = true;
            return false;
        }
        let flow = self.meter.hash.hash_one((
            entry.id,
            entry.protocol,
            entry.client,
            entry.frontend,
            entry.backend,
        ));
        if self.meter.knows(flow) {
            self.seen.insert(flow);
            return true;
        }
        if !entry.answered {
            let Some(timeout) = entry.waits_by() else {
                self.seen.insert(flow);
                return true;
            };
            let waited = self.timeouts.get(&timeout).zip(entry.left);
            let waited = waited.map_or(0, |(whole, left)| whole.saturating_sub(left));
            // What waited in the walk before, too, has waited for as long as walks are apart.
            if waited <= WAITED_S && !self.meter.waiting.contains(&flow) {
                self.waiting.insert(flow);
                return true;
            }
        }
        self.seen.insert(flow);
        if entry.protocol == Protocol::Sctp {
            return true;
        }
        let key = (entry.protocol, entry.frontend, entry.backend);
        let tally = self.tallies.entry(key).or_default();
        if entry.answered {
            tally.answered = tally.answered.saturating_add(1);
        } else {
            tally.unanswered = tally.unanswered.saturating_add(1);
            if tally.sources.len() < limits::FLOW_SOURCES {
                tally.sources.insert(entry.client.ip());
            }
        }
        true
    }

    /// Did it reach a bound?
    pub fn full(&self) -> bool {
        self.full
    }

    /// The kernel gave all.
    pub fn done(self) -> Walked {
        Walked {
            seen: self.seen,
            waiting: self.waiting,
            tallies: self.tallies,
        }
    }
}

/// One walk of the window.
#[derive(Debug)]
struct Past {
    at: Now,
    /// What it counted began after this.
    since: Millis,
    tallies: HashMap<Key, Tally>,
}

/// Remembers walks, of which each tells what is new since the one before.
#[derive(Debug, Default)]
pub struct Meter {
    hash: RandomState,
    /// Flows of the last walk and of the one before it: a dump of a table that is resized meanwhile can
    /// lack entries, which are not new when they are back.
    seen: [HashSet<u64>; 2],
    /// Flows of the last walk that were too young to be called unanswered.
    waiting: HashSet<u64>,
    /// The last two walks.
    walked: [Option<Now>; 2],
    past: VecDeque<Past>,
}

impl Meter {
    fn knows(&self, flow: u64) -> bool {
        self.seen.iter().any(|s| s.contains(&flow))
    }

    /// Begins a walk. One that is not whole is dropped: what it missed would be new in the next.
    pub fn begin<'a>(&'a self, timeouts: &'a BTreeMap<Timeout, u32>) -> Walk<'a> {
        Walk {
            meter: self,
            timeouts,
            seen: HashSet::new(),
            waiting: HashSet::new(),
            tallies: HashMap::new(),
            full: false,
        }
    }

    /// Takes in a walk that began at `now`.
    pub fn take(&mut self, now: Now, walked: Walked) {
        let lately = |at: &Now| now.mono.since(at.mono) < WINDOW_MS;
        let last = self.walked[0].filter(lately);
        // Of the first walk, nobody knows when its flows began.
        if let Some(last) = last {
            // One that waited began before the last walk.
            let since = self.walked[1].filter(lately).unwrap_or(last).wall;
            self.past.push_back(Past {
                at: now,
                since,
                tallies: walked.tallies,
            });
        }
        self.past.retain(|p| now.mono.since(p.at.mono) < WINDOW_MS);
        self.seen.swap(0, 1);
        self.seen[0] = walked.seen;
        self.waiting = match last {
            Some(_) => walked.waiting,
            None => {
                // It may have begun long ago.
                self.seen[0].extend(walked.waiting);
                HashSet::new()
            }
        };
        self.walked = [Some(now), self.walked[0]];
    }

    /// What the window holds about backends of the frontends in `rows`, which are in
    /// [`Row::place`]'s order.
    pub fn flows(&self, rows: &[Arc<Row>]) -> Flows {
        type Of = (ServicePortName, Protocol, SocketAddr);
        let mut all: BTreeMap<Of, (Tally, Millis)> = BTreeMap::new();
        for past in &self.past {
            for ((protocol, frontend, backend), tally) in &past.tallies {
                let Some(service) = service_of(rows, *protocol, *frontend) else {
                    continue;
                };
                let (sum, oldest) = all
                    .entry((service.clone(), *protocol, *backend))
                    .or_insert_with(|| (Tally::default(), past.since));
                sum.answered = sum.answered.saturating_add(tally.answered);
                if tally.unanswered > 0 {
                    if sum.unanswered == 0 {
                        *oldest = past.since;
                    }
                    sum.unanswered = sum.unanswered.saturating_add(tally.unanswered);
                    sum.sources.extend(tally.sources.iter().copied());
                }
            }
        }
        let mut backends: Vec<BackendFlows> = all
            .into_iter()
            .map(
                |((service, protocol, backend), (sum, oldest))| BackendFlows {
                    service,
                    protocol,
                    backend,
                    answer: match sum.answered {
                        0 => BackendAnswer::None {
                            flows: sum.unanswered,
                            sources: sum.sources.len().min(limits::FLOW_SOURCES) as u32,
                            since: oldest,
                        },
                        _ => BackendAnswer::Some,
                    },
                },
            )
            .collect();
        // Silent ones first, those with most flows before the others; else in order.
        backends.sort_by_key(|b| match b.answer {
            BackendAnswer::None { flows, .. } => (0, u32::MAX - flows),
            BackendAnswer::Some => (1, 0),
        });
        let left_out = backends.len().saturating_sub(limits::FLOW_BACKENDS) as u64;
        backends.truncate(limits::FLOW_BACKENDS);
        Flows { backends, left_out }
    }
}

/// Whose frontend it is, by the rows of the report.
fn service_of(
    rows: &[Arc<Row>],
    protocol: Protocol,
    frontend: SocketAddr,
) -> Option<&ServicePortName> {
    let at = Frontend::port(frontend.ip(), protocol, frontend.port());
    let place = |r: &Row| (r.frontend.family(), r.frontend);
    let first = rows.partition_point(|r| place(r) < (at.family(), at));
    rows[first..]
        .iter()
        .take_while(|r| r.frontend == at)
        .find_map(|r| r.service.as_ref())
}

/// Did a backend answer flows that began lately?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendAnswer {
    /// At least one.
    Some,
    /// None of them.
    None {
        /// How many flows, at least one.
        flows: u32,
        /// From how many addresses, counted up to [`limits::FLOW_SOURCES`].
        sources: u32,
        /// All of them began after this, by the node's clock.
        since: Millis,
    },
}

/// New flows to one backend of one service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendFlows {
    /// Through which service port.
    pub service: ServicePortName,
    /// Transport protocol: TCP or UDP.
    pub protocol: Protocol,
    /// To where.
    pub backend: SocketAddr,
    /// What came back.
    pub answer: BackendAnswer,
}

/// New flows of one node to backends of Services, through their frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// Those that nothing came back from first; at most [`limits::FLOW_BACKENDS`].
    pub backends: Vec<BackendFlows>,
    /// Backends beyond that.
    pub left_out: u64,
}

/// What walks gave, and since when it has been so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowsReading {
    /// The first walk that gave this, by the node's clock. It stands until another is sent.
    pub at: Millis,
    /// What.
    pub reading: Reading<Flows>,
}

#[cfg(test)]
mod tests;

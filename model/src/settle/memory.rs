//! What the ledger remembers: which Services the kernel had fulfilled, and what healed and came back.

use super::{Context, Open};
use crate::address::{Family, Frontend, SourceClass};
use crate::finding::{Difference, Fact, FindingKind};
use crate::limits;
use crate::name::ServiceName;
use crate::table::{Action, Affinity, DesiredTable, Forwarding, Key, OneOf, SourceRanges};
use crate::time::{Mono, Now};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Recurrence is looked for in this window, milliseconds.
const WINDOW_MS: u64 = 600_000;
/// And this many episodes: what was wrong once or twice has healed.
const EPISODES: usize = 3;
/// And needs this much of it: 5 %.
const RECURRING_MS: u64 = WINDOW_MS / 20;

/// What is remembered of one Service. Its API objects are told apart by the view's stamp, and what
/// they ask of this node by a digest: that also changes with the node, the proxy's configuration
/// and other Services.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    stamp: Option<Mono>,
    digest: u64,
    /// When stamp or digest last changed, as passes saw it.
    moved: Mono,
    /// In an earlier pass the kernel agreed with exactly this.
    agreed: bool,
}

/// Which Services, and which absences, the kernel had fulfilled.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Services {
    seen: BTreeMap<ServiceName, Seen>,
    /// What each Service asks of this node.
    sums: BTreeMap<ServiceName, Sum>,
    /// Frontends asked for in the pass before.
    asked: BTreeSet<Frontend>,
    /// Frontends no longer asked for that the kernel has not dropped yet.
    withdrawn: BTreeSet<Frontend>,
    /// Families read in some earlier pass.
    read: BTreeSet<Family>,
    previous: Option<Mono>,
}

impl Services {
    /// Notes what moved; before the differences are taken in. True when the API's objects of some
    /// Service moved in a way that changes what they ask of this node.
    pub(super) fn observe(
        &mut self,
        now: Now,
        context: &Context,
        differences: &[Difference],
    ) -> bool {
        let mut api_moved = false;
        self.take_in(context);
        let accused = differences
            .iter()
            .filter_map(|d| d.fact.service.as_ref().map(|s| &s.service));
        let asks = self.sums.iter().map(|(name, sum)| (name, sum.digest()));
        let mut names: Vec<(&ServiceName, u64)> = asks.chain(accused.map(|n| (n, 0))).collect();
        // Stable: of one that asks for something and is accused, the digest comes first.
        names.sort_by_key(|(name, _)| *name);
        names.dedup_by_key(|(name, _)| *name);
        // All three are sorted: thousands of look-ups by name would be most of what a pass costs in
        // which little moved.
        let mut stamps = context.view.changed.iter().peekable();
        let mut before = std::mem::take(&mut self.seen).into_iter().peekable();
        let mut seen = Vec::with_capacity(names.len());
        for (name, digest) in names {
            while stamps.next_if(|(n, _)| *n < name).is_some() {}
            while before.next_if(|(n, _)| n < name).is_some() {}
            let stamp = stamps.next_if(|(n, _)| *n == name).map(|(_, t)| t.mono);
            let new = Seen {
                stamp,
                digest,
                moved: now.mono,
                agreed: false,
            };
            seen.push(match before.next_if(|(n, _)| n == name) {
                None => (name.clone(), new),
                Some((name, was)) if (was.stamp, was.digest) == (stamp, digest) => (name, was),
                Some((name, was)) => {
                    api_moved |= was.stamp != stamp && was.digest != digest;
                    (name, new)
                }
            });
        }
        self.seen = seen.into_iter().collect();
        let still: BTreeSet<Frontend> = differences
            .iter()
            .filter(|d| d.fact.kind == FindingKind::StaleFrontend)
            .filter_map(|d| d.fact.frontend)
            .collect();
        self.withdrawn.retain(|f| {
            !self.asked.contains(f) && (still.contains(f) || !context.read.contains(&f.family()))
        });
        while self.withdrawn.len() > limits::LEDGER_FACTS {
            self.withdrawn.pop_last();
        }
        api_moved
    }

    /// What is asked for now, and what is asked for no more.
    fn take_in(&mut self, context: &Context) {
        let Some((last, touched)) = context.since else {
            self.sums = sums(context.desired);
            let asked: BTreeSet<Frontend> = context.desired.keys().map(|(f, _)| *f).collect();
            self.withdrawn.extend(self.asked.difference(&asked));
            self.asked = asked;
            return;
        };
        for frontend in touched {
            for row in last.rows_of(*frontend) {
                if let Some(desired) = &row.desired {
                    let key = (row.frontend, row.source);
                    count(&mut self.sums, &key, desired, false);
                }
            }
            let now = SourceClass::ALL.map(|source| (*frontend, source));
            let now = now
                .iter()
                .filter_map(|k| Some((k, context.desired.get(k)?)));
            let mut asked = false;
            for (key, desired) in now {
                count(&mut self.sums, key, desired, true);
                asked = true;
            }
            if asked {
                self.asked.insert(*frontend);
            } else if self.asked.remove(frontend) {
                self.withdrawn.insert(*frontend);
            }
        }
        assert!(
            !cfg!(test)
                || (self.sums == sums(context.desired)
                    && context.desired.keys().all(|(f, _)| self.asked.contains(f))
                    && self.asked.iter().all(|f| SourceClass::ALL
                        .iter()
                        .any(|s| context.desired.contains_key(&(*f, *s))))),
            "brought up to date ({touched:?}), something else is asked for than taken whole"
        );
    }

    /// Notes what agrees; after the differences are decided on.
    pub(super) fn finish(&mut self, now: Now, context: &Context) {
        if !context.same {
            for (name, seen) in &mut self.seen {
                seen.agreed |= !context.unsettled.contains(name);
            }
        }
        self.read.extend(context.read);
        self.previous = Some(now.mono);
    }

    /// When the Service's objects, or what they ask for, last moved.
    pub(super) fn moved_at(&self, service: &ServiceName) -> Option<Mono> {
        self.seen.get(service).map(|s| s.moved)
    }

    /// Had the kernel fulfilled the fact in an earlier pass, with the API asking for the same?
    pub(super) fn had_fulfilled(&self, fact: &Fact) -> bool {
        let Some(previous) = self.previous else {
            return false;
        };
        let seen = fact
            .service
            .as_ref()
            .and_then(|s| self.seen.get(&s.service));
        if let Some(seen) = seen
            && seen.digest != 0
        {
            return seen.agreed;
        }
        // Something that nobody asks for: it was not there before, and nobody had asked for it.
        let Some(frontend) = fact.frontend else {
            return false;
        };
        let quiet = seen
            .and_then(|s| s.stamp)
            .is_none_or(|stamp| stamp < previous);
        quiet && self.read.contains(&frontend.family()) && !self.withdrawn.contains(&frontend)
    }
}

/// A digest of all rows that name a Service, in whatever order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    of_rows: u64,
    rows: u64,
}

impl Sum {
    /// Never 0.
    fn digest(&self) -> u64 {
        self.of_rows.max(1)
    }
}

/// What each Service asks of this node.
fn sums(desired: &DesiredTable) -> BTreeMap<ServiceName, Sum> {
    let mut sums = BTreeMap::new();
    for (key, answers) in desired {
        count(&mut sums, key, answers, true);
    }
    sums
}

/// Counts one row for each Service that it names, or counts it no more.
fn count(
    sums: &mut BTreeMap<ServiceName, Sum>,
    key: &Key,
    answers: &OneOf<Forwarding>,
    more: bool,
) {
    let mut hash = None;
    for answer in &answers.any_of {
        let Some(service) = &answer.service else {
            continue;
        };
        let hash = *hash.get_or_insert_with(|| {
            let mut h = DefaultHasher::new();
            key.hash(&mut h);
            answers.because.hash(&mut h);
            for a in &answers.any_of {
                digest(a, &mut h);
            }
            h.finish()
        });
        let name = &service.service;
        if more {
            let sum = match sums.get_mut(name) {
                Some(sum) => sum,
                None => sums.entry(name.clone()).or_default(),
            };
            sum.of_rows = sum.of_rows.wrapping_add(hash);
            sum.rows += 1;
        } else if let Some(sum) = sums.get_mut(name) {
            sum.of_rows = sum.of_rows.wrapping_sub(hash);
            sum.rows = sum.rows.saturating_sub(1);
            if sum.rows == 0 {
                sums.remove(name);
            }
        }
    }
}

fn digest(f: &Forwarding, h: &mut DefaultHasher) {
    // Named, so that a new field cannot be forgotten here.
    let Forwarding {
        service,
        action,
        backends,
        affinity,
        source_ranges,
    } = f;
    let _: (&Action, &Affinity, &Option<SourceRanges>) = (action, affinity, source_ranges);
    (service, action, affinity, source_ranges, backends.len()).hash(h);
    for b in backends.iter() {
        (b.address, b.share.to_bits(), b.masquerade).hash(h);
    }
}

/// Episodes of facts that healed, for ten minutes. Only those that lateness does not explain.
#[derive(Clone, Debug, Default)]
pub(super) struct Healed {
    facts: BTreeMap<Fact, Episodes>,
}

#[derive(Clone, Debug)]
struct Episodes {
    times: VecDeque<(Now, Mono)>,
    last: Difference,
}

impl Healed {
    /// The fact was contradicted from `from` until now.
    pub(super) fn remember(&mut self, from: Now, now: Now, last: &Difference) {
        if !self.facts.contains_key(&last.fact) && self.facts.len() >= limits::LEDGER_HEALED {
            return;
        }
        let e = self
            .facts
            .entry(last.fact.clone())
            .or_insert_with(|| Episodes {
                times: VecDeque::new(),
                last: last.clone(),
            });
        e.last = last.clone();
        e.times.push_back((from, now.mono));
        if e.times.len() > limits::LEDGER_EPISODES {
            e.times.pop_front();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.facts.len()
    }

    /// Drops what is older than the window.
    pub(super) fn forget(&mut self, now: Now) {
        self.facts.retain(|_, e| {
            while e
                .times
                .front()
                .is_some_and(|(_, to)| now.mono.since(*to) > WINDOW_MS)
            {
                e.times.pop_front();
            }
            !e.times.is_empty()
        });
    }

    /// How long the fact was wrong within the window, milliseconds, where that is more than 5 % of it
    /// and there were gaps. `open`: since when it is contradicted now, and whether lateness cannot
    /// explain that.
    pub(super) fn wrong_ms(
        &self,
        fact: &Fact,
        now: Now,
        open: Option<(Mono, bool)>,
    ) -> Option<u64> {
        let e = self.facts.get(fact)?;
        let start = Mono(now.mono.0.saturating_sub(WINDOW_MS));
        let closed: u64 = e
            .times
            .iter()
            .map(|(from, to)| to.since(from.mono.max(start)))
            .sum();
        let (current, episodes) = match open {
            Some((since, true)) => (now.mono.since(since.max(start)), 1),
            _ => (0, 0),
        };
        let gaps = e.times.len() + episodes >= EPISODES;
        (gaps && closed + current > RECURRING_MS).then_some(closed + current)
    }

    /// Facts that are not contradicted now and recur all the same, with the start of the first
    /// episode and how long they were wrong.
    pub(super) fn recurring(
        &self,
        now: Now,
        open: &BTreeMap<Fact, Open>,
    ) -> Vec<(Difference, Now, u64)> {
        self.facts
            .iter()
            .filter(|(fact, _)| !open.contains_key(fact))
            .filter_map(|(fact, e)| {
                let ms = self.wrong_ms(fact, now, None)?;
                Some((e.last.clone(), e.times.front()?.0, ms))
            })
            .collect()
    }
}

/// The node's own history.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeHistory {
    /// First pass.
    pub(crate) began: Option<Mono>,
    /// Rules of a datapath have been seen.
    pub(crate) programmed: bool,
    /// The Node object has been seen.
    pub(crate) registered: bool,
    /// Since when it is draining or gone.
    pub(crate) leaving: Option<Mono>,
}

//! What can be known of kube-proxy's syncs from outside, and what kube-proxy itself is accused of.

use super::WATCH_LAG_MS;
use crate::address::Family;
use crate::compare::clause;
use crate::finding::{Finding, FindingKind, Severity, WATCH_DEAD};
use crate::profile::{ProxyHealth, SyncTimes};
use crate::report::clock;
use crate::time::{Millis, Mono, Now};
use std::collections::BTreeMap;

/// "Recent" syncs are those of the last one to two of these, milliseconds.
const RECENT_MS: u64 = 600_000;
/// A wall clock that moved against the other by more than this between two scrapes has jumped.
const JUMP_MS: u64 = 250;
/// A queued change not synced for this long is stuck, milliseconds (kube-proxy.md 6.5).
const STUCK_MS: u64 = 60_000;
/// No answer for this long, milliseconds, and in two passes: not running.
const SILENT_MS: u64 = 10_000;
/// An API change is only held against counters that had stood still for this long before it: else
/// kube-proxy may have counted it before this program saw it.
const STILL_MS: u64 = 10_000;

#[derive(Clone, Debug)]
struct Scrape {
    at: Now,
    health: ProxyHealth,
}

/// What happened between two scrapes.
#[derive(Clone, Copy, Debug)]
struct Between {
    restarted: bool,
    jumped: bool,
    per_family: bool,
}

/// Did the wall clock move otherwise than the one that never goes back?
fn jumped(from: Now, to: Now) -> bool {
    let wall = i128::from(to.wall.0) - i128::from(from.wall.0);
    let mono = i128::from(to.mono.0) - i128::from(from.mono.0);
    (wall - mono).unsigned_abs() > u128::from(JUMP_MS)
}

/// The longest recent sync, in two buckets so that it is forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct Longest {
    began: Mono,
    current: u64,
    before: u64,
}

/// kube-proxy's syncs as two scrapes in a row show them.
#[derive(Clone, Debug, Default)]
pub(super) struct Syncs {
    /// Last scrape that was answered.
    last: Option<Scrape>,
    /// Latest start of a completed sync, at the earliest.
    started: BTreeMap<Family, Mono>,
    longest: Longest,
    /// Since when nobody answers, and the pass that saw it first.
    silent: Option<(Now, Option<u64>)>,
    /// Last time that the process was seen to be another.
    restarted: Option<Mono>,
    /// Per family: end of the last sync, and since when something is queued after it.
    queued: BTreeMap<Family, (u64, Now)>,
    /// Per family: the last queueing known when the wall clock jumped.
    before_jump: BTreeMap<Family, Option<u64>>,
    /// Since when the change counters stand still.
    still: Option<Mono>,
    /// Since when the API has moved on without their moving.
    unheard: Option<Now>,
    scrapes: u64,
}

impl Syncs {
    /// Takes in what kube-proxy said.
    pub(super) fn observe(&mut self, now: Now, proxy: Option<&ProxyHealth>) {
        let Some(health) = proxy else { return };
        if health.unreachable.is_some() {
            self.silent.get_or_insert((now, None));
            return;
        }
        self.silent = None;
        self.scrapes += 1;
        if now.mono.since(self.longest.began) > RECENT_MS {
            self.longest = Longest {
                began: now.mono,
                current: 0,
                before: self.longest.current,
            };
        }
        let last = self.last.take();
        let between = Between {
            restarted: last
                .as_ref()
                .is_some_and(|l| l.health.started != health.started),
            jumped: last.as_ref().is_some_and(|l| jumped(l.at, now)),
            per_family: health.per_family,
        };
        if between.restarted {
            self.restarted = Some(now.mono);
            self.queued.clear();
        }
        for (family, times) in &health.families {
            if between.jumped {
                self.before_jump.insert(*family, times.last_queued);
                self.queued.remove(family);
            }
            if let Some(last) = &last {
                let before = last
                    .health
                    .families
                    .get(family)
                    .copied()
                    .unwrap_or_default();
                self.one_family(now, *family, before, *times, between);
            }
        }
        for (family, times) in &health.families {
            self.waiting(now, *family, *times);
        }
        let same = last
            .as_ref()
            .is_some_and(|l| l.health.changes_total == health.changes_total);
        if !same || between.restarted || health.changes_total.is_none() {
            self.still = Some(now.mono);
            self.unheard = None;
        }
        self.last = Some(Scrape {
            at: now,
            health: health.clone(),
        });
    }

    fn one_family(
        &mut self,
        now: Now,
        family: Family,
        before: SyncTimes,
        times: SyncTimes,
        between: Between,
    ) {
        let (Some(end), Some(sum)) = (times.last_sync_end, times.duration_sum_ms) else {
            return;
        };
        // A new process counts from nothing: all that it counted is an upper bound.
        let growth = match before.duration_sum_ms {
            Some(old) if !between.restarted && old <= sum => sum - old,
            _ => sum,
        };
        let growth = growth.ceil().max(0.0) as u64;
        self.longest.current = self.longest.current.max(growth);
        if before.last_sync_end == Some(end) || !between.per_family {
            return;
        }
        // kube-proxy's times are of the wall clock. Where that jumped between the scrapes they say
        // nothing; the next sync will.
        if between.jumped || end > now.wall.0 {
            return;
        }
        let ended = now.mono.0.saturating_sub(now.wall.0 - end);
        let start = Mono(ended.saturating_sub(growth));
        let latest = self.started.entry(family).or_insert(start);
        *latest = (*latest).max(start);
    }

    fn waiting(&mut self, now: Now, family: Family, times: SyncTimes) {
        let (Some(end), Some(queued)) = (times.last_sync_end, times.last_queued) else {
            self.queued.remove(&family);
            return;
        };
        // Queued by a clock that has jumped since: not to be held against a sync by the new one.
        if self.before_jump.get(&family) == Some(&Some(queued)) {
            return;
        }
        match self.queued.get(&family) {
            Some((known, _)) if *known == end && queued > end => {}
            _ if queued > end => {
                self.queued.insert(family, (end, now));
            }
            _ => {
                self.queued.remove(&family);
            }
        }
    }

    /// Something that kube-proxy must have heard of changed in the API.
    pub(super) fn api_moved(&mut self, now: Now) {
        let still = self.still.is_some_and(|t| now.mono.since(t) >= STILL_MS);
        if still && self.silent.is_none() {
            self.unheard.get_or_insert(now);
        }
    }

    /// The latest start of a completed sync of a family, at the earliest; `None`: not known.
    pub(super) fn last_start(&self, family: Family) -> Option<Mono> {
        self.started.get(&family).copied()
    }

    /// The longest recent sync, milliseconds, at most.
    pub(super) fn longest_ms(&self) -> u64 {
        self.longest.current.max(self.longest.before)
    }

    /// It answered before and does not now, or is another process since a short while: its
    /// configuration may be about to change.
    pub(super) fn may_be_restarting(&self, now: Now) -> bool {
        (self.silent.is_some() && self.last.is_some())
            || self
                .restarted
                .is_some_and(|t| now.mono.since(t) < 2 * WATCH_LAG_MS)
    }

    /// What kube-proxy itself is accused of, and whether it lasted.
    pub(super) fn accuse(
        &mut self,
        now: Now,
        pass: u64,
        proxy: Option<&ProxyHealth>,
        deadline: u64,
    ) -> Vec<(Finding, bool)> {
        let mut out = Vec::new();
        let Some(health) = proxy else { return out };
        if let (Some((since, first)), Some(why)) = (&mut self.silent, &health.unreachable) {
            let first = *first.get_or_insert(pass);
            let silent = now.mono.since(since.mono);
            let f = accusation(
                FindingKind::ProxyNotRunning,
                *since,
                format!("kube-proxy should run on this node and does not answer: {why}"),
                why,
                format!("no answer for {} s", silent / 1_000),
            );
            out.push((f, pass > first && silent > SILENT_MS));
            return out;
        }
        // Until two scrapes were answered nothing is known of its progress.
        if self.scrapes < 2 {
            return out;
        }
        let patience = STUCK_MS.max(2 * self.longest_ms());
        for (family, (end, since)) in &self.queued {
            let waited = now.mono.since(since.mono);
            if waited > patience {
                let ended = clock(Millis(*end));
                let f = accusation(
                    FindingKind::ProxyStuck,
                    *since,
                    format!(
                        "kube-proxy was told of {family} changes and has not finished a sync since {ended}Z"
                    ),
                    &format!(
                        "sync_proxy_rules_last_queued_timestamp_seconds is later than sync_proxy_rules_last_timestamp_seconds ({ended}Z), {family}"
                    ),
                    format!("for {} s", waited / 1_000),
                );
                out.push((f, true));
            }
        }
        if let Some(since) = self.unheard {
            let waited = now.mono.since(since.mono);
            if waited > deadline {
                let f = accusation(
                    FindingKind::ProxyStuck,
                    since,
                    "The API moved on and kube-proxy's change counters stand still: its watch is dead".into(),
                    WATCH_DEAD,
                    format!("for {} s after a change that it must have heard of", waited / 1_000),
                );
                out.push((f, true));
            }
        }
        out
    }
}

fn accusation(
    kind: FindingKind,
    since: Now,
    says: String,
    proof: &str,
    because: String,
) -> Finding {
    Finding {
        kind,
        severity: Severity::Warning,
        service: None,
        frontend: None,
        sources: Vec::new(),
        backend: None,
        since: since.wall,
        evidence: vec![clause(proof)],
        says,
        absorbs: 0,
        recurring: false,
        because,
    }
}

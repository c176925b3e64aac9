//! Since when, and is it still only late? The only place where history enters a decision.
//!
//! A difference is *converging* until it has outlived what the datapath may legitimately need, and a
//! *finding* after that (design 6). Age runs per contradicted fact. Durations are differences of
//! [`Mono`], so a wall clock that jumps changes only the texts.

mod memory;
mod proxy;

use crate::address::{Family, Frontend};
use crate::compare::Comparison;
use crate::finding::{Difference, Fact, Finding, FindingKind};
use crate::limits;
use crate::name::ServiceName;
use crate::profile::{ProxyHealth, ProxyProfile};
use crate::report::clock;
use crate::table::DesiredTable;
use crate::time::{Mono, Now};
use crate::view::ClusterView;
use memory::{Healed, Services};
use proxy::Syncs;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// W: by how much kube-proxy's own watch may be behind this program's, milliseconds. Assumed, so it
/// is printed with every finding that rests on it.
pub const WATCH_LAG_MS: u64 = 5_000;

/// Margin of the hard deadline, milliseconds (design 6 b).
pub const DEADLINE_MARGIN_MS: u64 = 10_000;

/// A view of the API that was last known to be current longer ago than this is lost, milliseconds:
/// API servers send a bookmark about every minute.
pub const VIEW_LOST_MS: u64 = 90_000;

/// Two readings closer than this are one, milliseconds: a rewrite in two transactions lies between.
const CONFIRM_MS: u64 = 500;

/// A Service is not fetched again sooner than this, milliseconds.
const REFRESH_AGAIN_MS: u64 = 10_000;

/// What the ledger needs to know beside the differences.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Counts passes; the same number twice is the same reading.
    pub pass: u64,
    /// What the API said.
    pub view: &'a ClusterView,
    /// What should be.
    pub desired: &'a DesiredTable,
    /// Who programs the node.
    pub profile: &'a ProxyProfile,
    /// What kube-proxy said of itself; `None`: nothing is expected of it.
    pub proxy: Option<&'a ProxyHealth>,
    /// Services fetched again since the last pass.
    pub refreshed: &'a [ServiceName],
    /// Services of which something differs or could not be told.
    pub unsettled: &'a BTreeSet<ServiceName>,
    /// Families that were read in this pass.
    pub read: &'a BTreeSet<Family>,
    /// All of this, and the differences, are those of the last pass that was settled: nothing moved.
    pub same: bool,
    /// The comparison that was settled last, and the frontends of which what should be may be another
    /// than it says; `None`: any.
    pub since: Option<(&'a Comparison, &'a BTreeSet<Frontend>)>,
}

/// What the ledger makes of one pass's differences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// What lasted, with the fact where it is contradicted now.
    pub findings: Vec<(Option<Fact>, Finding)>,
    /// What is still given time.
    pub converging: Vec<(Option<Fact>, Finding)>,
    /// Contradicted against a view of the API that is too old to say so.
    pub untold: Vec<Fact>,
    /// Services to be fetched again.
    pub refresh: Vec<ServiceName>,
}

/// One fact that is contradicted now.
#[derive(Clone, Debug)]
struct Open {
    /// First pass that saw it so.
    known: Now,
    /// Last time its Service's objects moved since.
    steady: Mono,
    pass: u64,
    readings: u32,
    /// The kernel had fulfilled it, and the API has not changed its mind since (design 6 c).
    damage: bool,
    /// The Service was fetched again since, and had not changed.
    refreshed: bool,
    asked: Option<Mono>,
    /// Pass in which a sync of kube-proxy that should have mended it was seen.
    synced: Option<u64>,
    /// Why it is a finding; `None`: it is not yet.
    finding: Option<String>,
    last: Difference,
}

/// Facts and their ages, of one node. Empty after a restart of the agent: then ages start anew.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    open: BTreeMap<Fact, Open>,
    healed: Healed,
    services: Services,
    syncs: Syncs,
    pub(crate) node: memory::NodeHistory,
    /// Facts that found no room.
    forgotten: u64,
    /// What was settled last.
    pub(crate) settled: Option<Arc<Comparison>>,
}

impl Ledger {
    /// Facts that found no room in [`limits::LEDGER_FACTS`], so far.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Is the same remembered of each Service?
    #[cfg(test)]
    pub(crate) fn remembers_the_same(&self, other: &Ledger) -> bool {
        self.services == other.services
    }

    /// The hard deadline for a fact, milliseconds since it is known (design 6 b).
    pub fn deadline_ms(&self, profile: &ProxyProfile) -> u64 {
        2 * profile.config.value.sync_period_ms + self.syncs.longest_ms() + DEADLINE_MARGIN_MS
    }

    /// Takes in one pass's differences, and says which of them count.
    pub fn settle(&mut self, now: Now, differences: &[Difference], context: Context) -> Settled {
        self.syncs.observe(now, context.proxy);
        if !context.same && self.services.observe(now, &context, differences) {
            self.syncs.api_moved(now);
        }
        let mut current: Vec<&Difference> = differences.iter().collect();
        current.sort_by(|a, b| a.fact.cmp(&b.fact).then_with(|| a.says.cmp(&b.says)));
        current.dedup_by(|a, b| a.fact == b.fact);

        for d in &current {
            self.take_in(now, d, &context);
        }
        let facts: BTreeSet<&Fact> = current.iter().map(|d| &d.fact).collect();
        self.close(now, &facts, &context);
        let lost = !context.view.settled_facts
            && context
                .view
                .as_of
                .is_none_or(|t| now.mono.since(t.mono) > VIEW_LOST_MS);

        let mut out = Settled::default();
        for d in current {
            self.decide(now, d, &context, lost, &mut out);
        }
        for (last, since, wrong_ms) in self.healed.recurring(now, &self.open) {
            let mut f = finding(
                &last,
                since,
                format!(
                    "wrong for {} s of the last ten minutes, with gaps: it heals and comes back",
                    wrong_ms / 1_000
                ),
            );
            f.recurring = true;
            out.findings.push((None, f));
        }
        self.services.finish(now, &context);
        out.refresh.sort();
        out.refresh.dedup();
        out
    }

    /// What kube-proxy itself is accused of; call after [`Ledger::settle`] of the same pass.
    pub fn proxy(&mut self, now: Now, context: Context) -> Settled {
        let deadline = self.deadline_ms(context.profile);
        let mut out = Settled::default();
        for (f, lasted) in self
            .syncs
            .accuse(now, context.pass, context.proxy, deadline)
        {
            if lasted {
                &mut out.findings
            } else {
                &mut out.converging
            }
            .push((None, f));
        }
        out
    }

    fn take_in(&mut self, now: Now, d: &Difference, context: &Context) {
        let service = d.fact.service.as_ref().map(|s| &s.service);
        if let Some(open) = self.open.get_mut(&d.fact) {
            if open.pass < context.pass {
                open.readings = open.readings.saturating_add(1);
                open.pass = context.pass;
                open.refreshed |= service.is_some_and(|s| context.refreshed.contains(s));
            }
            if service.is_some_and(|s| self.services.moved_at(s) == Some(now.mono)) {
                open.steady = now.mono;
                open.damage = d.beyond_the_api;
                open.refreshed = false;
                open.synced = None;
            }
            open.last = d.clone();
            return;
        }
        if self.open.len() >= limits::LEDGER_FACTS {
            self.forgotten += 1;
            return;
        }
        let damage = d.beyond_the_api || self.services.had_fulfilled(&d.fact);
        self.open.insert(
            d.fact.clone(),
            Open {
                known: now,
                steady: now.mono,
                pass: context.pass,
                readings: 1,
                damage,
                refreshed: false,
                asked: None,
                synced: None,
                finding: None,
                last: d.clone(),
            },
        );
    }

    /// Facts that are contradicted no more. Of a family that was not read nothing is known.
    fn close(&mut self, now: Now, current: &BTreeSet<&Fact>, context: &Context) {
        let healed = &mut self.healed;
        let services = &self.services;
        self.open.retain(|fact, open| {
            let family = fact.frontend.map(|f| f.family()).or(fact.family);
            if current.contains(fact) || family.is_some_and(|f| !context.read.contains(&f)) {
                return true;
            }
            // A contradiction that ended together with a change of the API was a late view.
            let moved = fact
                .service
                .as_ref()
                .is_some_and(|s| services.moved_at(&s.service) == Some(now.mono));
            if open.damage && !(moved && open.finding.is_none()) {
                healed.remember(open.known, now, &open.last);
            }
            false
        });
        self.healed.forget(now);
    }

    fn decide(
        &mut self,
        now: Now,
        d: &Difference,
        context: &Context,
        lost: bool,
        out: &mut Settled,
    ) {
        let deadline = self.deadline_ms(context.profile);
        // A fact that found no room is still given time: nothing is known of its age.
        let Some(open) = self.open.get_mut(&d.fact) else {
            let f = finding(
                d,
                now,
                "too many facts are contradicted to follow the age of each".into(),
            );
            out.converging.push((Some(d.fact.clone()), f));
            return;
        };
        let wrong = self
            .healed
            .wrong_ms(&d.fact, now, Some((open.known.mono, open.damage)));
        if open.finding.is_none() && (d.beyond_the_api || !lost) {
            open.finding = verdict(now, open, context, &self.syncs, deadline);
            if open.finding.is_none()
                && let Some(ms) = wrong
            {
                open.finding = Some(format!(
                    "wrong for {} s of the last ten minutes, with gaps",
                    ms / 1_000
                ));
            }
        }
        let mut f = finding(d, open.known, open.finding.clone().unwrap_or_default());
        f.recurring = wrong.is_some();
        if open.finding.is_some() {
            if lost && let Some(t) = context.view.as_of {
                f.says
                    .push_str(&format!(" (against the API as of {}Z)", clock(t.wall)));
            }
            out.findings.push((Some(d.fact.clone()), f));
            return;
        }
        if lost && !d.beyond_the_api {
            // When the API is back the fact is as old as that.
            open.known = now;
            open.steady = now.mono;
            open.readings = 1;
            out.untold.push(d.fact.clone());
            return;
        }
        f.because = waits_for(now, open, deadline);
        out.converging.push((Some(d.fact.clone()), f));
        let Some(service) = d.fact.service.as_ref().map(|s| &s.service) else {
            return;
        };
        let due = open
            .asked
            .is_none_or(|t| now.mono.since(t) >= REFRESH_AGAIN_MS);
        if open.damage && !d.beyond_the_api && !open.refreshed && !context.view.settled_facts && due
        {
            let room = out.refresh.len() < limits::REFRESHES_PER_PASS;
            if room || out.refresh.contains(service) {
                open.asked = Some(now.mono);
                if !out.refresh.contains(service) {
                    out.refresh.push(service.clone());
                }
            }
        }
    }
}

/// Why a contradicted fact counts as a finding; `None`: not yet.
fn verdict(
    now: Now,
    open: &mut Open,
    context: &Context,
    syncs: &Syncs,
    deadline: u64,
) -> Option<String> {
    let fact = &open.last.fact;
    let age = now.mono.since(open.known.mono);
    let confirmed = open.readings >= 2 && age >= CONFIRM_MS;

    // (a) A sync that should have mended it was seen, and a later reading still disagrees.
    let family = fact.frontend.map(|f| f.family()).or(fact.family);
    let mending = family
        .and_then(|f| syncs.last_start(f))
        .filter(|start| start.0 >= open.steady.0.saturating_add(WATCH_LAG_MS));
    if mending.is_some() && open.synced.is_none() {
        open.synced = Some(context.pass);
    }
    if !confirmed {
        return None;
    }
    if open.last.beyond_the_api {
        return Some(match fact.kind {
            FindingKind::ApiConflict => "two readings of the API agree".into(),
            _ => {
                "two readings agree, and no object that the API could still send explains it".into()
            }
        });
    }
    if context.view.settled_facts {
        return Some("two readings agree, and the API's objects are not new".into());
    }
    // (c) The kernel had fulfilled this fact. A kube-proxy that may be starting with another
    // configuration is given the deadline.
    if open.damage && !syncs.may_be_restarting(now) {
        let fresh = match fact.service {
            Some(_) => open.refreshed,
            // Nothing to fetch: this program's own watch is given the time of kube-proxy's.
            None => age >= WATCH_LAG_MS,
        };
        if fresh {
            return Some(
                "the kernel had it right, the API has not changed since, and two readings agree"
                    .into(),
            );
        }
    }
    if open.synced.is_some_and(|pass| pass < context.pass) {
        return Some(format!(
            "kube-proxy completed a sync that started at least {} s after the fact was known (the assumed lag of its watch), and a later reading still disagrees",
            WATCH_LAG_MS / 1_000
        ));
    }
    // (b)
    (age >= deadline).then(|| {
        format!(
            "wrong for longer than {} s: two sync periods of kube-proxy, its longest recent sync and {} s",
            deadline / 1_000,
            DEADLINE_MARGIN_MS / 1_000
        )
    })
}

fn waits_for(now: Now, open: &Open, deadline: u64) -> String {
    let age = now.mono.since(open.known.mono);
    if open.readings < 2 {
        return "read once; a second reading must confirm it".into();
    }
    if open.damage && open.asked.is_some() && !open.refreshed {
        return "the kernel had it right before; its Service is being fetched from the API again"
            .into();
    }
    format!(
        "kube-proxy is given {} s at most, {} s of them are gone",
        deadline / 1_000,
        (age / 1_000).min(deadline / 1_000)
    )
}

fn finding(d: &Difference, since: Now, because: String) -> Finding {
    Finding {
        kind: d.fact.kind,
        severity: d.severity,
        service: d.fact.service.clone(),
        frontend: d.fact.frontend,
        sources: d.sources.clone(),
        backend: d.fact.backend,
        since: since.wall,
        evidence: d.evidence.clone(),
        says: d.says.clone(),
        absorbs: d.absorbs,
        recurring: false,
        because,
    }
}

#[cfg(test)]
mod tests;

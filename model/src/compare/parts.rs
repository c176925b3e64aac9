//! A comparison carried on: of an earlier one, only the frontends that were touched are compared anew.
//!
//! That will do while everything is the same that all pairs depend on ([`Ground`]), and while nothing is
//! wrong with the node as a whole, which absorbs what it finds in all pairs. Frontends of which something
//! differs are always compared anew: what is said of them rests on more of the view than the rows.

use super::{
    Charge, Collected, Comparison, Input, Rows, Wildcards, charge, has_rules, node, one_pair,
};
use crate::address::{Family, Frontend, Protocol, SourceClass};
use crate::capture::Reading;
use crate::finding::{Evidence, Fact};
use crate::name::ServiceName;
use crate::profile::ProxyProfile;
use crate::report::{Judged, Row};
use crate::table::ForwardingTable;
use crate::view::NodeView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a comparison leaves for the next one.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    ground: Option<Ground>,
    wildcards: BTreeMap<Family, Wildcards>,
    /// Frontends that count otherwise than usual: one judged pair for each row, all agreeing.
    unusual: BTreeMap<Frontend, Tally>,
}

/// What all pairs depend on.
#[derive(Clone, Debug, PartialEq)]
struct Ground {
    profile: ProxyProfile,
    node: NodeView,
    programmed_before: bool,
    /// Families that are asked for; of each other one there is no row that is looked at.
    families: Vec<Family>,
    unknown_in_own_rules: Vec<Evidence>,
}

impl Ground {
    /// `None` where the pairs cannot be looked at one by one.
    fn of(input: Input<'_>) -> Option<Ground> {
        let Input {
            desired,
            snapshot,
            node,
            profile,
            programmed_before,
            ..
        } = input;
        if charge(snapshot, profile, programmed_before) != Charge::Covered {
            return None;
        }
        let mut families = Vec::new();
        for family in Family::ALL {
            let table = match snapshot.tables.get(&family)? {
                Reading::Read(table) => Some(table),
                Reading::Absent => None,
                Reading::Failed(_) => return None,
            };
            if desired.keys().any(|(f, _)| f.family() == family) {
                let mut hooks = snapshot.hooks.iter().filter(|h| h.family == family);
                if !table.is_some_and(has_rules) || !hooks.all(|h| h.present) {
                    return None;
                }
                families.push(family);
            } else if table.is_some_and(|t| !t.rows.is_empty()) {
                return None;
            }
        }
        Some(Ground {
            profile: profile.clone(),
            node: node.clone(),
            programmed_before,
            families,
            unknown_in_own_rules: snapshot.coverage.unknown_in_own_rules.clone(),
        })
    }
}

/// What the pairs of one frontend come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub judged: Judged,
    pub unsettled: BTreeSet<ServiceName>,
}

impl Tally {
    fn usual(rows: usize) -> Tally {
        Tally {
            judged: Judged {
                pairs: rows as u64,
                ..Judged::default()
            },
            unsettled: BTreeSet::new(),
        }
    }
}

impl Parts {
    /// Would the next comparison find the same?
    pub(super) fn is_like(&self, other: &Parts) -> bool {
        (&self.ground, &self.wildcards, &self.unusual)
            == (&other.ground, &other.wildcards, &other.unusual)
    }

    /// Of a whole comparison that gave `out`.
    pub(super) fn of(input: Input<'_>, out: &mut Collected<'_>) -> Parts {
        let ground = Ground::of(input);
        if ground.is_none() {
            return Parts::default();
        }
        Parts {
            ground,
            wildcards: std::mem::take(&mut out.wildcards),
            unusual: std::mem::take(&mut out.unusual),
        }
    }
}

impl Collected<'_> {
    /// Every pair of a frontend was looked at; `rows` is how many rows there were before.
    pub(super) fn frontend_done(&mut self, frontend: Frontend, rows: usize) {
        let tally = std::mem::take(&mut self.tally);
        self.judged.add(&tally.judged);
        self.unsettled.extend(tally.unsettled.iter().cloned());
        if tally != Tally::usual(self.rows.len() - rows) {
            self.unusual.insert(frontend, tally);
        }
    }
}

/// Carries `earlier` on. `touched`: the frontends of which a row, desired or observed, may be another
/// than it was then. `None`: everything has to be compared.
pub(super) fn carry_on(
    input: Input<'_>,
    earlier: &Comparison,
    touched: &BTreeSet<Frontend>,
) -> Option<Comparison> {
    let ground = Ground::of(input)?;
    if earlier.parts.ground.as_ref() != Some(&ground) {
        return None;
    }
    let whole_node =
        |f: &Fact| f.frontend.is_none() && f.detail.as_deref() != Some(node::OWN_RULES);
    if earlier.pairs.keys().any(whole_node) {
        return None;
    }
    let mut these = touched.clone();
    these.extend(earlier.pairs.keys().filter_map(|f| f.frontend));
    if these.iter().any(|f| matches!(f, Frontend::Prefix(_))) {
        return None;
    }
    // What is asked of an address's other ports stands for those that have no row.
    let wildcards = these.iter().filter(|f| matches!(f, Frontend::Address(_)));
    let addresses: Vec<_> = wildcards.map(Frontend::address).collect();
    for address in addresses {
        let first = Frontend::port(address, Protocol::Tcp, 0);
        let last = (Frontend::Address(address), SourceClass::ALL[0]);
        let from = (first, SourceClass::ALL[0]);
        let asked = input.desired.range(from..=last).map(|(k, _)| k.0);
        these.extend(asked);
        if let Some(Reading::Read(table)) = input.snapshot.tables.get(&Family::of(address)) {
            these.extend(table.rows.range(from..=last).map(|(k, _)| k.0));
        }
    }

    let place = |f: &Frontend| (f.family(), *f);
    let mut these: Vec<Frontend> = these.into_iter().collect();
    these.sort_by_key(place);
    // The earlier rows of these, and between them what stays.
    let range = |f: &Frontend| {
        let at = |row: &Arc<Row>| (row.frontend.family(), row.frontend);
        let from = earlier.rows.partition_point(|r| at(r) < place(f));
        let to = earlier.rows[from..].partition_point(|r| at(r) <= place(f));
        from..from + to
    };
    let ranges: Vec<_> = these.iter().map(range).collect();
    let before: Vec<Arc<Row>> = ranges
        .iter()
        .flat_map(|r| earlier.rows[r.clone()].iter().cloned())
        .collect();

    let empty = ForwardingTable::default();
    let mut out = Collected {
        earlier: &before,
        ..Collected::default()
    };
    let mut judged = earlier.judged.clone();
    let mut unusual = earlier.parts.unusual.clone();
    let mut rows: Vec<Arc<Row>> = Vec::with_capacity(earlier.rows.len() + 3);
    let mut at = 0;
    for (frontend, range) in these.iter().zip(ranges) {
        let family = frontend.family();
        let was = unusual.remove(frontend);
        judged.sub(&was.unwrap_or_else(|| Tally::usual(range.len())).judged);
        rows.extend_from_slice(&earlier.rows[at..range.start]);
        at = range.end;
        if !ground.families.contains(&family) {
            continue;
        }
        let table = input.snapshot.tables.get(&family).and_then(Reading::read);
        let looked_at = Rows {
            family,
            table: table.unwrap_or(&empty),
            wildcards: earlier.parts.wildcards.get(&family)?,
        };
        let done = out.rows.len();
        for source in SourceClass::ALL {
            let key = (*frontend, source);
            if input.desired.contains_key(&key) || looked_at.table.rows.contains_key(&key) {
                one_pair(input, &looked_at, key, &mut out);
            }
        }
        out.frontend_done(*frontend, done);
        rows.extend_from_slice(&out.rows[done..]);
    }
    rows.extend_from_slice(&earlier.rows[at..]);
    node::unknown_own_rules(input, &mut out);
    judged.add(&out.judged);
    unusual.append(&mut out.unusual);
    let unsettled = unusual.values().flat_map(|t| t.unsettled.iter().cloned());
    let unsettled = unsettled.collect();
    let parts = Parts {
        ground: Some(ground),
        wildcards: earlier.parts.wildcards.clone(),
        unusual,
    };
    Some(Comparison {
        judged,
        rows: rows.into(),
        unsettled,
        programmed_before: input.programmed_before,
        parts,
        ..out.finish()
    })
}

#[cfg(test)]
mod tests;

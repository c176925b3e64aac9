//! The snapshot of one reading after the other, of which only what changed is looked at.

use super::{ask, finish, in_charge, snapshot};
use crate::netfilter::changes::Changes;
use crate::netfilter::ruleset::Ruleset;
use crate::netfilter::walk::{self, Ask, NotUnderstood, Rewalked};
use model::address::{Family, Frontend};
use model::capture::{Reading, Snapshot};
use model::compare::Comparison;
use model::desired::Updated;
use model::finding::Evidence;
use model::name::ServicePortName;
use model::profile::ProxyProfile;
use model::table::{ForwardingTable, Observed};
use model::view::NodeView;
use std::collections::{BTreeMap, BTreeSet};

/// The snapshot of one reading after the other, of which only what changed is walked.
#[derive(Debug, Default)]
pub struct Kept {
    walk: walk::Kept,
    not_understood: NotUnderstood,
}

impl Kept {
    /// [`snapshot`], from the one before: `last`, whose reading had become this one by `changes`.
    /// `again`: frontends that are to be walked in any case, those among them for which `desired` says
    /// something else than it did; `None`: all.
    pub fn snapshot(
        &mut self,
        last: Option<Snapshot>,
        (reading, changes): (&Reading<Ruleset>, &Changes),
        (desired, again): (
            &BTreeMap<Frontend, Option<ServicePortName>>,
            Option<&walk::Again>,
        ),
        node: &NodeView,
        profile: &ProxyProfile,
    ) -> (Snapshot, Rewalked) {
        let Reading::Read(ruleset) = reading else {
            *self = Kept::default();
            return (snapshot(reading, desired, node, profile), Rewalked::Whole);
        };
        let ask = ask(in_charge(ruleset, profile), desired, node, profile);
        let tables = last.map(|l| l.tables).unwrap_or_default();
        self.parts(tables, (ruleset, changes), &ask, again, profile)
    }

    fn parts(
        &mut self,
        mut tables: BTreeMap<Family, Reading<ForwardingTable>>,
        (ruleset, changes): (&Ruleset, &Changes),
        ask: &Ask<'_>,
        again: Option<&walk::Again>,
        profile: &ProxyProfile,
    ) -> (Snapshot, Rewalked) {
        let (datapath, desired) = (in_charge(ruleset, profile), ask.desired);
        // A family that is neither asked for nor programmed is not judged: see `finish`.
        let judged = |family| {
            desired.keys().any(|f| f.family() == family)
                || datapath.is_some_and(|d| d.has_family(ruleset, family))
        };
        let rules = (ruleset, changes);
        let walked = self.walk.walk(&mut tables, rules, ask, &judged, again);
        self.not_understood.update(ruleset, changes, ask.owner);
        let rows = (tables, &walked);
        let snapshot = finish(rows, &self.not_understood, ruleset, datapath, ask, profile);
        (snapshot, walked)
    }
}

/// What is walked again whatever changed in the kernel: what the API asks another thing of, and what
/// differed, so that its proof is as fresh as the verdict. `None`: everything.
pub fn again(updated: Updated, compared: Option<&Comparison>) -> Option<walk::Again> {
    let Updated::Frontends(mut these) = updated else {
        return None;
    };
    let pairs = compared
        .into_iter()
        .flat_map(|c| c.pairs.values().flatten());
    these.extend(pairs.map(|(frontend, _)| *frontend));
    Some(these)
}

/// The frontends of which a row, desired or observed, may be another than before; `None`: any.
pub fn touched(walked: Rewalked, again: Option<walk::Again>) -> Option<BTreeSet<Frontend>> {
    match (walked, again) {
        (Rewalked::Frontends(mut walked), Some(again)) => {
            walked.extend(again);
            Some(walked)
        }
        _ => None,
    }
}

/// The first thing in which two snapshots differ, if they do. Handles of rules are not compared: see
/// [`walk::Kept`].
pub fn difference(one: &Snapshot, other: &Snapshot) -> Option<String> {
    fn bare(evidence: &[Evidence]) -> Vec<Evidence> {
        let bare = |e: &Evidence| Evidence {
            handle: None,
            ..e.clone()
        };
        evidence.iter().map(bare).collect()
    }
    let row = |o: &Observed| {
        let (all, backends) = (bare(&o.evidence), bare(&o.backend_evidence));
        (o.forwarding.clone(), o.decided_by, all, backends)
    };
    for family in Family::ALL {
        let (Some(Reading::Read(a)), Some(Reading::Read(b))) =
            (one.tables.get(&family), other.tables.get(&family))
        else {
            continue;
        };
        for key in a.rows.keys().chain(b.rows.keys()) {
            let (a, b) = (a.rows.get(key).map(row), b.rows.get(key).map(row));
            if a != b {
                return Some(format!("{key:?}: {a:?}, not {b:?}"));
            }
        }
    }
    let rest = |s: &Snapshot| Snapshot {
        tables: s
            .tables
            .iter()
            .map(|(family, table)| match table {
                Reading::Read(_) => (*family, Reading::Read(ForwardingTable::default())),
                other => (*family, other.clone()),
            })
            .collect(),
        ..s.clone()
    };
    let (one, other) = (rest(one), rest(other));
    (one != other).then(|| format!("{one:?}, not {other:?}"))
}

//! What a comparison gathers, pair by pair.

use super::parts::Tally;
use super::{Comparison, Wildcards, words};
use crate::address::{Family, Frontend};
use crate::finding::{Difference, Fact, FindingKind};
use crate::limits::EVIDENCE_PER_ROW;
use crate::name::{ServiceName, ServicePortName};
use crate::report::{Judged, NotJudged, Row};
use crate::table::{Forwarding, Key, OneOf};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One contradicted fact while its sources are being collected.
#[derive(Clone, Debug)]
pub(super) struct Collecting {
    pub difference: Difference,
    pub keys: BTreeSet<Key>,
    /// Facts that follow from it.
    pub absorbed: BTreeSet<Fact>,
}

#[derive(Default)]
pub(super) struct Collected<'a> {
    pub facts: BTreeMap<Fact, Collecting>,
    pub judged: Judged,
    pub rows: Vec<Arc<Row>>,
    /// Of the earlier comparison, what is not passed yet.
    pub earlier: &'a [Arc<Row>],
    pub unsettled: BTreeSet<ServiceName>,
    /// What the pairs of the frontend at hand come to.
    pub tally: Tally,
    pub unusual: BTreeMap<Frontend, Tally>,
    pub wildcards: BTreeMap<Family, Wildcards>,
}

impl Collected<'_> {
    /// Adds a row; they come in [`Row::place`]'s order.
    pub fn row(
        &mut self,
        key: Key,
        service: Option<&ServicePortName>,
        desired: Option<&OneOf<Forwarding>>,
        observed: Option<&Forwarding>,
    ) {
        let place = (key.0.family(), key.0, key.1);
        while let Some((first, rest)) = self.earlier.split_first() {
            let at = first.place();
            if at > place {
                break;
            }
            self.earlier = rest;
            if at == place {
                let same = first.service.as_ref() == service
                    && first.desired.as_ref() == desired
                    && first.observed.as_ref() == observed;
                if same {
                    self.rows.push(first.clone());
                    return;
                }
                break;
            }
        }
        self.rows.push(Arc::new(Row {
            frontend: key.0,
            source: key.1,
            service: service.cloned(),
            desired: desired.cloned(),
            observed: observed.cloned(),
        }));
    }

    /// Adds what one source says about a fact.
    pub fn add(&mut self, difference: Difference, key: Option<Key>) -> &mut Collecting {
        let entry = self
            .facts
            .entry(difference.fact.clone())
            .or_insert_with(|| Collecting {
                difference: Difference {
                    sources: Vec::new(),
                    ..difference.clone()
                },
                keys: BTreeSet::new(),
                absorbed: BTreeSet::new(),
            });
        let have = &mut entry.difference;
        for e in difference.evidence {
            if have.evidence.len() < EVIDENCE_PER_ROW && !have.evidence.contains(&e) {
                have.evidence.push(e);
            }
        }
        have.severity = have.severity.max(difference.severity);
        if let Some(key) = key {
            entry.keys.insert(key);
            have.sources.push(key.1);
            have.sources.sort();
            have.sources.dedup();
        }
        entry
    }

    pub fn not(&mut self, why: NotJudged, service: Option<&ServicePortName>) {
        self.tally.judged.not(why, 1);
        // These two are so for good: the Service's other pairs still show whether it agrees.
        let for_good = matches!(why, NotJudged::UserSpaceProxy | NotJudged::SourceImpossible);
        if let Some(s) = service
            && !for_good
        {
            self.tally.unsettled.insert(s.service.clone());
        }
    }

    pub fn finish(mut self) -> Comparison {
        // What was not counted by frontends.
        let tally = std::mem::take(&mut self.tally);
        self.judged.add(&tally.judged);
        self.unsettled.extend(tally.unsettled);
        let mut c = Comparison {
            judged: self.judged,
            rows: self.rows.into(),
            unsettled: self.unsettled,
            ..Comparison::default()
        };
        for (fact, mut f) in self.facts {
            f.difference.absorbs = f.absorbed.len() as u64;
            if fact.frontend.is_some() && fact.kind != FindingKind::ApiConflict {
                f.difference
                    .says
                    .push_str(&words::from_where(&f.difference.sources));
            }
            c.differences.push(f.difference);
            c.pairs.insert(fact, f.keys.into_iter().collect());
        }
        c
    }
}

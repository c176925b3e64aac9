//! Conditions and statements that were not understood.

use super::Owner;
use crate::netfilter::changes::{At, Changes};
use crate::netfilter::ruleset::{Chain, NatTarget, Op, Ruleset, Table, TableFamily};
use model::finding::Evidence;
use std::collections::HashMap;

/// What was not understood, by chain: those of the datapath's own rules as evidence, and how many there
/// are in other rules. Kept, so that only chains that changed are looked at.
#[derive(Debug, Default)]
pub struct NotUnderstood {
    owner: &'static str,
    chains: HashMap<At, (Vec<Evidence>, u64)>,
}

impl NotUnderstood {
    /// Brings it up to date with a ruleset that became this one by `changes`.
    pub fn update(&mut self, ruleset: &Ruleset, changes: &Changes, owner: &dyn Owner) {
        let tables = || {
            let all = ruleset.tables.iter();
            all.filter(|t| !matches!(t.family, TableFamily::Other(_)))
        };
        if changes.all || self.owner != owner.name() {
            self.owner = owner.name();
            self.chains.clear();
            for table in tables() {
                for chain in &table.chains {
                    self.look(table, chain, owner);
                }
            }
            return;
        }
        for at in changes.chains.keys() {
            self.chains.remove(at);
            let holds =
                |t: &&Table| t.backend == at.backend && t.family == at.family && t.name == at.table;
            if let Some(table) = tables().find(holds)
                && let Some(chain) = table.chain(&at.name)
            {
                self.look(table, chain, owner);
            }
        }
    }

    fn look(&mut self, table: &Table, chain: &Chain, owner: &dyn Owner) {
        let (mut own, mut foreign) = (Vec::new(), 0);
        for rule in &chain.rules {
            for op in &rule.ops {
                let what = match op {
                    Op::UnknownMatch(what)
                    | Op::UnknownStatement(what)
                    | Op::Dnat(NatTarget::Unknown(what)) => what,
                    _ => continue,
                };
                if !owner.owns(table, chain) {
                    foreign += 1;
                    continue;
                }
                own.push(Evidence {
                    family: table.word().into(),
                    table: table.name.clone(),
                    chain: chain.name.clone(),
                    handle: Some(rule.handle),
                    element: None,
                    says: format!("not understood: {what}").into(),
                });
            }
        }
        if foreign > 0 || !own.is_empty() {
            self.chains
                .insert(At::of(table, &chain.name), (own, foreign));
        }
    }

    /// Evidence of own rules in order, and the number of others.
    pub fn all(&self) -> (Vec<Evidence>, u64) {
        let own = self
            .chains
            .values()
            .flat_map(|(own, _)| own.iter().cloned());
        let mut own: Vec<Evidence> = own.collect();
        own.sort_by(|a, b| {
            let place = |e: &Evidence| (e.family.clone(), e.table.clone(), e.chain.clone());
            place(a).cmp(&place(b)).then(a.handle.cmp(&b.handle))
        });
        (own, self.chains.values().map(|(_, n)| n).sum())
    }
}

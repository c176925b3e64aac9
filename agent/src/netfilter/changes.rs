//! What of the rules is another than at the reading before.

use super::ruleset::{Backend, Chain, Set, Table, TableFamily};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Names a chain or a set among all tables of both backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// The table's backend: iptables-legacy has tables of the same family and name as nf_tables.
    pub backend: Backend,
    /// The table's family.
    pub family: TableFamily,
    /// The table's name.
    pub table: Arc<str>,
    /// The chain's or set's name.
    pub name: Arc<str>,
}

impl At {
    /// A chain or set of a table.
    pub fn of(table: &Table, name: &Arc<str>) -> At {
        At {
            backend: table.backend,
            family: table.family,
            table: table.name.clone(),
            name: name.clone(),
        }
    }
}

/// What was replaced since the reading before, as it was then; what was not there is `None`. It may
/// have been replaced by the very same.
#[derive(Debug, Default)]
pub struct Changes {
    /// Anything may be another: what is listed besides says nothing.
    pub all: bool,
    /// Chains. No base chain came, went or moved.
    pub chains: HashMap<At, Option<Chain>>,
    /// Sets.
    pub sets: HashMap<At, Option<Set>>,
}

impl Changes {
    /// Anything may be another.
    pub fn all() -> Changes {
        Changes {
            all: true,
            ..Changes::default()
        }
    }

    /// Nothing was replaced.
    pub fn is_nothing(&self) -> bool {
        !self.all && self.chains.is_empty() && self.sets.is_empty()
    }

    /// A chain is replaced, or taken away; only the first of several times counts.
    pub fn chain(&mut self, table: &Table, was: Option<Chain>, name: &Arc<str>) {
        if let Entry::Vacant(entry) = self.chains.entry(At::of(table, name)) {
            entry.insert(was);
        }
    }

    /// A set is replaced, or taken away; only the first of several times counts.
    pub fn set(&mut self, table: &Table, was: Option<Set>, name: &Arc<str>) {
        if let Entry::Vacant(entry) = self.sets.entry(At::of(table, name)) {
            entry.insert(was);
        }
    }
}

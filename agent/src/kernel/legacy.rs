//! The tables of iptables-legacy. There is no generation: each is read whole every time, and decoded
//! again only if its bytes are others.

use super::gap;
use crate::host::xtables::{self, ReadError, TableName};
use crate::netfilter::ruleset::Table;
use crate::netfilter::xtables::legacy;
use crate::netfilter::xtables::legacy::capture::TableCapture;
use model::capture::Gap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// Readings of a table tried again when it changed during each attempt of one.
const TORN: u32 = 3;

/// The same for every hash of this process.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What has the tables: the kernel, or in a test whatever stands in its place.
pub(super) trait Tables {
    /// As [`xtables::names`].
    fn names(&mut self) -> Result<Vec<TableName>, ReadError>;

    /// As [`xtables::read`], of one table.
    fn read(
        &mut self,
        name: &TableName,
        each: &mut dyn FnMut(TableCapture),
    ) -> Result<(), ReadError>;
}

/// The kernel.
pub(super) struct Host;

impl Tables for Host {
    fn names(&mut self) -> Result<Vec<TableName>, ReadError> {
        xtables::names()
    }

    fn read(
        &mut self,
        name: &TableName,
        each: &mut dyn FnMut(TableCapture),
    ) -> Result<(), ReadError> {
        xtables::read(std::slice::from_ref(name), each)
    }
}

/// A table with the hash of what it was decoded from.
pub(super) struct Kept {
    pub name: TableName,
    pub hash: u64,
    pub table: Table,
}

/// Reads all tables. `last`: those of the reading before. `changed` becomes true when something is
/// another.
///
/// # Errors
/// Also where a table does not fit together: the part of it that is missing would look deleted.
pub(super) fn read(
    tables: &mut dyn Tables,
    mut last: Vec<Kept>,
    changed: &mut bool,
) -> Result<Vec<Kept>, Gap> {
    let failed = |error: ReadError| gap("iptables-legacy", error.to_string());
    let names = match tables.names() {
        Ok(names) => names,
        Err(ReadError::Absent) => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    let mut all = Vec::with_capacity(names.len());
    let mut torn = None;
    for name in &names {
        let mut take = |capture: TableCapture| {
            let mut hasher = HASHES.build_hasher();
            capture.feed(&mut hasher);
            let hash = hasher.finish();
            let before = last.iter().position(|k| k.name == *name);
            let before = before.map(|i| last.swap_remove(i));
            let table = match before {
                Some(kept) if kept.hash == hash => kept.table,
                other => {
                    drop(other);
                    *changed = true;
                    let decoded = legacy::decode(&capture);
                    // What is of no chain is of the table as a whole: the rest would look deleted.
                    if let Some(unknown) = decoded.unknown.iter().find(|u| u.name.is_empty()) {
                        let table = format!("{} {}", decoded.table.word(), decoded.table.name);
                        torn.get_or_insert(gap(&table, unknown.what.to_string()));
                    }
                    decoded.table
                }
            };
            all.push(Kept {
                name: name.clone(),
                hash,
                table,
            });
        };
        let mut tries = 0;
        loop {
            match tables.read(name, &mut take) {
                Ok(()) => break,
                Err(ReadError::Torn { .. }) if tries < TORN => tries += 1,
                Err(error) => return Err(failed(error)),
            }
        }
    }
    if let Some(torn) = torn {
        return Err(torn);
    }
    // Tables that are gone.
    *changed |= !last.is_empty();
    Ok(all)
}

#[cfg(test)]
mod tests;

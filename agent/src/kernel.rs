//! The rules that packets meet, those of nf_tables and those of iptables-legacy, read again only as
//! far as they changed.

mod marks;
pub mod steady;

use crate::host::nf_tables::ReadError;
use crate::host::xtables::{self, TableName};
use crate::netfilter::ruleset::{Ruleset, Table};
use crate::netfilter::xtables::legacy;
use model::capture::{Gap, Reading};
use model::time::Now;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;
use steady::Steady;

/// A whole reading proves every few minutes that nothing changed unseen.
const WHOLE: Duration = Duration::from_secs(180);

/// Readings of a table of iptables-legacy tried again when it changed during each attempt of one.
const TORN: u32 = 3;

/// One reading of the kernel.
pub struct Kernel {
    /// The rules. Tables of iptables-legacy come last, as many as `legacy` names.
    pub ruleset: Reading<Ruleset>,
    /// When it was read, or seen to be the same.
    pub at: Now,
    nft: NfTables,
    legacy: Vec<(TableName, u64)>,
}

/// How nf_tables is read.
enum NfTables {
    /// The kernel has none, or nothing was asked yet.
    Absent,
    /// As it changes; everything was read last at that time.
    Kept(Box<Steady>, Now),
}

/// A table of iptables-legacy with the hash of what it was decoded from.
struct Kept {
    name: TableName,
    hash: u64,
    table: Table,
}

/// The same for every hash of this process.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Kernel {
    /// Reads the rules, as far as they are not seen to be those of the last reading. True when
    /// something is, or may be, another.
    ///
    /// `at` is now, before the reading: what the API says later is newer than it.
    pub fn read(last: Option<Kernel>, at: Now) -> (Kernel, bool) {
        let (mut kept, mut nft, mut first) = (Vec::new(), NfTables::Absent, true);
        if let Some(last) = last {
            nft = last.nft;
            first = false;
            if let Reading::Read(mut ruleset) = last.ruleset {
                let own = ruleset.tables.len().saturating_sub(last.legacy.len());
                let tables = ruleset.tables.split_off(own);
                kept.extend(
                    last.legacy
                        .into_iter()
                        .zip(tables)
                        .map(|((name, hash), table)| Kept { name, hash, table }),
                );
                if let NfTables::Kept(steady, _) = &mut nft {
                    steady.take_back(ruleset);
                }
            } else {
                first = true;
            }
        }
        let mut changed = first;
        let (ruleset, legacy) = match read(&mut nft, kept, at, &mut changed) {
            Ok((ruleset, legacy)) => (Reading::Read(ruleset), legacy),
            Err(gap) => {
                changed = true;
                (Reading::Failed(gap), Vec::new())
            }
        };
        let kernel = Kernel {
            ruleset,
            at,
            nft,
            legacy,
        };
        (kernel, changed)
    }

    /// Takes in what the kernel tells of changes, between two readings that are far apart.
    pub fn listen(&mut self) {
        if let NfTables::Kept(steady, _) = &mut self.nft {
            steady.listen();
        }
    }
}

/// Both backends' rules together, and the tables of iptables-legacy among them.
type Both = (Ruleset, Vec<(TableName, u64)>);

fn read(nft: &mut NfTables, kept: Vec<Kept>, now: Now, changed: &mut bool) -> Result<Both, Gap> {
    let mut ruleset = read_nf_tables(nft, now, changed)?;
    let legacy = match read_legacy(kept, changed) {
        Ok(legacy) => legacy,
        Err(gap) => {
            if let NfTables::Kept(steady, _) = nft {
                steady.take_back(ruleset);
            }
            return Err(gap);
        }
    };
    if matches!(nft, NfTables::Absent) && legacy.is_empty() {
        // A node without either has its Services somewhere this program did not look.
        return Err(gap(
            "nf_tables",
            "the kernel has no nf_tables, and no other datapath is read".into(),
        ));
    }
    let mut names = Vec::with_capacity(legacy.len());
    for k in legacy {
        names.push((k.name, k.hash));
        ruleset.tables.push(k.table);
    }
    Ok((ruleset, names))
}

fn gap(what: &str, why: String) -> Gap {
    Gap {
        what: what.into(),
        why: why.into(),
    }
}

fn read_nf_tables(nft: &mut NfTables, now: Now, changed: &mut bool) -> Result<Ruleset, Gap> {
    let failed = |error: ReadError| match error {
        ReadError::Permission => gap(
            "nf_tables",
            "reading nf_tables needs CAP_NET_ADMIN".to_string(),
        ),
        error => gap("nf_tables", error.to_string()),
    };
    if let NfTables::Absent = nft {
        match Steady::open() {
            Ok(steady) => *nft = NfTables::Kept(Box::new(steady), now),
            Err(ReadError::Absent) => return Ok(Ruleset::default()),
            Err(error) => return Err(failed(error)),
        }
    }
    let NfTables::Kept(steady, whole) = nft else {
        return Ok(Ruleset::default());
    };
    if now.mono.since(whole.mono) >= WHOLE.as_millis() as u64 {
        steady.forget();
        *whole = now;
    }
    match steady.read() {
        Ok(read) => {
            *changed |= read.changed;
            Ok(read.ruleset)
        }
        Err(ReadError::Absent) => {
            *nft = NfTables::Absent;
            Ok(Ruleset::default())
        }
        Err(error) => Err(failed(error)),
    }
}

/// The tables of iptables-legacy. It has no generation: each is read whole every time, and decoded
/// again only if its bytes are others.
fn read_legacy(mut last: Vec<Kept>, changed: &mut bool) -> Result<Vec<Kept>, Gap> {
    use xtables::ReadError;
    let names = match xtables::names() {
        Ok(names) => names,
        Err(ReadError::Absent) => Vec::new(),
        Err(error) => return Err(gap("iptables-legacy", error.to_string())),
    };
    let mut all = Vec::with_capacity(names.len());
    let mut torn = None;
    for name in &names {
        let mut take = |capture: legacy::capture::TableCapture| {
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
            match xtables::read(std::slice::from_ref(name), &mut take) {
                Ok(()) => break,
                Err(ReadError::Torn { .. }) if tries < TORN => tries += 1,
                Err(error) => return Err(gap("iptables-legacy", error.to_string())),
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

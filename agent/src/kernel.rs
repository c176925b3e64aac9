//! The rules that packets meet, those of nf_tables and those of iptables-legacy, read again only as
//! far as they changed.

use crate::host::netlink::{Family as Netfamily, Netlink, Question};
use crate::host::xtables::TableName;
use crate::host::{nf_tables, xtables};
use crate::netfilter::nftables::{self, attributes::Attributes};
use crate::netfilter::ruleset::{Ruleset, Table};
use crate::netfilter::xtables::legacy;
use model::capture::{Gap, Reading};
use model::time::Now;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

/// A whole reading proves every few minutes that nothing changed unseen.
const WHOLE: Duration = Duration::from_secs(180);

/// Readings tried again when kube-proxy wrote during each attempt of one; it writes in bursts.
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

/// How nf_tables was read.
#[derive(Clone, PartialEq)]
enum NfTables {
    /// The kernel has none.
    Absent,
    /// What a later reading must match to be the same (`None`: nothing is), and when it was read.
    Read(Option<Mark>, Now),
}

/// Generation, and the list of tables: one with an owner can vanish without a new generation.
type Mark = (Vec<u8>, Vec<Vec<u8>>);

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
        let mut changed = false;
        let (ruleset, nft, legacy) = match read(last, at, &mut changed) {
            Ok((ruleset, nft, legacy)) => (Reading::Read(ruleset), nft, legacy),
            Err(gap) => {
                changed = true;
                (Reading::Failed(gap), NfTables::Read(None, at), Vec::new())
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
}

/// Both backends' rules together, and what each was read as.
type Both = (Ruleset, NfTables, Vec<(TableName, u64)>);

fn read(last: Option<Kernel>, now: Now, changed: &mut bool) -> Result<Both, Gap> {
    let mark = mark();
    // What changed goes before it is read again: two of a large node need not be held at once.
    let (mut before, mut kept, mut was_absent) = (None, Vec::new(), false);
    if let Some(last) = last
        && let Reading::Read(mut ruleset) = last.ruleset
    {
        let at = ruleset.tables.len().saturating_sub(last.legacy.len());
        let tables = ruleset.tables.split_off(at);
        kept.extend(
            last.legacy
                .into_iter()
                .zip(tables)
                .map(|((name, hash), table)| Kept { name, hash, table }),
        );
        match &last.nft {
            NfTables::Absent => was_absent = true,
            NfTables::Read(of, whole) => {
                let fresh = now.mono.since(whole.mono) < WHOLE.as_millis() as u64;
                if fresh && of.is_some() && *of == mark {
                    before = Some((ruleset, last.nft));
                }
            }
        }
    }
    let (mut ruleset, nft) = match before {
        Some(same) => same,
        None => {
            let read = read_nf_tables(mark, now)?;
            *changed |= !(was_absent && read.1 == NfTables::Absent);
            read
        }
    };
    let legacy = read_legacy(kept, changed)?;
    if nft == NfTables::Absent && legacy.is_empty() {
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
    Ok((ruleset, nft, names))
}

fn gap(what: &str, why: String) -> Gap {
    Gap {
        what: what.into(),
        why: why.into(),
    }
}

fn read_nf_tables(mark: Option<Mark>, now: Now) -> Result<(Ruleset, NfTables), Gap> {
    use nf_tables::ReadError;
    let mut read = nf_tables::read();
    for _ in 0..TORN {
        if matches!(read, Err(ReadError::Torn { .. })) {
            read = nf_tables::read();
        }
    }
    match read {
        Ok(capture) => Ok((
            nftables::decode(&capture).ruleset,
            NfTables::Read(mark, now),
        )),
        Err(ReadError::Absent) => Ok((Ruleset::default(), NfTables::Absent)),
        Err(ReadError::Permission) => Err(gap(
            "nf_tables",
            "reading nf_tables needs CAP_NET_ADMIN".into(),
        )),
        Err(error) => Err(gap("nf_tables", error.to_string())),
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
                    legacy::decode(&capture).table
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
    // Tables that are gone.
    *changed |= !last.is_empty();
    Ok(all)
}

/// Two small questions that tell whether the rules may have changed.
fn mark() -> Option<Mark> {
    let mut netlink = Netlink::open(Netfamily::Netfilter).ok()?;
    let mut generation = Vec::new();
    netlink
        .ask(&Question::Generation, |message| {
            // NFTA_GEN_ID; the others name whoever asks.
            let mut all = Attributes::new(message.get(4..).unwrap_or_default());
            if let Some((_, id)) = all.find(|(kind, _)| *kind == 1) {
                generation = id.to_vec();
            }
            true
        })
        .ok()?;
    if generation.is_empty() {
        return None;
    }
    let mut tables = Vec::new();
    netlink
        .ask(&Question::Tables, |message| {
            tables.push(message.to_vec());
            true
        })
        .ok()?;
    Some((generation, tables))
}

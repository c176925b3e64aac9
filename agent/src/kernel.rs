//! The rules that packets meet, those of nf_tables and those of iptables-legacy, read again only as
//! far as they changed, and IPVS, which is read whole every time: nothing tells of its changes.

mod legacy;
mod marks;
pub mod steady;

use crate::host::nf_tables::ReadError;
use crate::host::xtables::TableName;
use crate::ipvs::rules::Traces;
use crate::ipvs::{self, Ipvs};
use crate::netfilter::changes::Changes;
use crate::netfilter::ruleset::Ruleset;
use legacy::Kept;
use model::capture::{Gap, Reading};
use model::time::Now;
use std::time::Duration;
use steady::Steady;

/// A whole reading proves every few minutes that nothing changed unseen.
const WHOLE: Duration = Duration::from_secs(180);

/// One reading of the kernel.
pub struct Kernel {
    /// The rules. Tables of iptables-legacy come last, as many as `legacy` names.
    pub ruleset: Reading<Ruleset>,
    /// What of them is another than at the last reading.
    pub changes: Changes,
    /// When it was read, or seen to be the same.
    pub at: Now,
    nft: NfTables,
    legacy: Vec<(TableName, u64)>,
    /// Where the kernel has IPVS: the rules without it, and what it was.
    ipvs: Option<(Ruleset, Ipvs)>,
}

/// How nf_tables is read.
enum NfTables {
    /// The kernel has none, or nothing was asked yet.
    Absent,
    /// As it changes; everything was read last at that time.
    Kept(Box<Steady>, Now),
}

impl Kernel {
    /// Reads the rules, as far as they are not seen to be those of the last reading. True when
    /// something is, or may be, another.
    ///
    /// `at` is now, before the reading: what the API says later is newer than it.
    pub fn read(last: Option<Kernel>, at: Now) -> (Kernel, bool) {
        let (mut kept, mut nft, mut first) = (Vec::new(), NfTables::Absent, true);
        let mut among = None;
        if let Some(last) = last {
            nft = last.nft;
            first = false;
            let plain = match (last.ruleset, last.ipvs) {
                (Reading::Read(all), Some((plain, ipvs))) => {
                    among = Some((all, ipvs));
                    Reading::Read(plain)
                }
                (_, Some((plain, _))) => Reading::Read(plain),
                (ruleset, None) => ruleset,
            };
            if let Reading::Read(mut ruleset) = plain {
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
        let (ruleset, changes, legacy, ipvs) = match read(&mut nft, kept, at, &mut changed) {
            Ok((plain, changes, legacy)) => {
                let (ruleset, changes, ipvs) = put_among(plain, changes, among);
                (ruleset, changes, legacy, ipvs)
            }
            Err(gap) => {
                changed = true;
                (Reading::Failed(gap), Changes::all(), Vec::new(), None)
            }
        };
        let changes = if first { Changes::all() } else { changes };
        changed |= !changes.is_nothing();
        let kernel = Kernel {
            ruleset,
            changes,
            at,
            nft,
            legacy,
            ipvs,
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

/// Reads IPVS, and puts it among the rules where the kernel has it. `last`: the rules with it at the
/// reading before, and what it was. What is another with it is not told by parts: it is everything.
fn put_among(
    plain: Ruleset,
    changes: Changes,
    last: Option<(Ruleset, Ipvs)>,
) -> (Reading<Ruleset>, Changes, Option<(Ruleset, Ipvs)>) {
    let read = match ipvs::read(|| Traces::of(&plain)) {
        Ok(Some(captured)) => captured.decode().map(Some),
        Ok(None) => Ok(None),
        Err(gap) => Err(gap),
    };
    match (read, last) {
        (Ok(None), None) => (Reading::Read(plain), changes, None),
        (Ok(None), Some(_)) => (Reading::Read(plain), Changes::all(), None),
        (Ok(Some(ipvs)), Some((all, was))) if was.is_like(&ipvs) && changes.is_nothing() => {
            (Reading::Read(all), changes, Some((plain, ipvs)))
        }
        (Ok(Some(ipvs)), _) => {
            let all = ipvs.among(&plain);
            (Reading::Read(all), Changes::all(), Some((plain, ipvs)))
        }
        (Err(gap), _) => {
            let none = Ipvs::default();
            (Reading::Failed(gap), Changes::all(), Some((plain, none)))
        }
    }
}

/// Both backends' rules together, what of them changed, and the tables of iptables-legacy among them.
type Both = (Ruleset, Changes, Vec<(TableName, u64)>);

fn read(nft: &mut NfTables, kept: Vec<Kept>, now: Now, changed: &mut bool) -> Result<Both, Gap> {
    let (mut ruleset, mut changes) = read_nf_tables(nft, now, changed)?;
    let mut other = false;
    let legacy = match legacy::read(&mut legacy::Host, kept, &mut other) {
        Ok(legacy) => legacy,
        Err(gap) => {
            if let NfTables::Kept(steady, _) = nft {
                steady.take_back(ruleset);
            }
            return Err(gap);
        }
    };
    if other {
        *changed = true;
        changes = Changes::all();
    }
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
    Ok((ruleset, changes, names))
}

fn gap(what: &str, why: String) -> Gap {
    Gap {
        what: what.into(),
        why: why.into(),
    }
}

fn read_nf_tables(
    nft: &mut NfTables,
    now: Now,
    changed: &mut bool,
) -> Result<(Ruleset, Changes), Gap> {
    let none = || Ok((Ruleset::default(), Changes::default()));
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
            Err(ReadError::Absent) => return none(),
            Err(error) => return Err(failed(error)),
        }
    }
    let NfTables::Kept(steady, whole) = nft else {
        return none();
    };
    if now.mono.since(whole.mono) >= WHOLE.as_millis() as u64 {
        steady.forget();
        *whole = now;
    }
    match steady.read() {
        Ok(read) => {
            *changed |= read.changed;
            Ok((read.ruleset, read.changes))
        }
        Err(ReadError::Absent) => {
            *nft = NfTables::Absent;
            *changed = true;
            Ok((Ruleset::default(), Changes::all()))
        }
        Err(error) => Err(failed(error)),
    }
}

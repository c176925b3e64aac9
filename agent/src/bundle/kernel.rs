//! The kernel's rules, undecoded: read as one, and decoded as one.

use crate::host::{nf_tables, xtables};
use crate::ipvs::rules::Traces;
use crate::ipvs::{self, capture::Captured};
use crate::netfilter::nftables::{self, capture::Capture};
use crate::netfilter::ruleset::Ruleset;
use crate::netfilter::xtables::legacy::{self, capture::TableCapture};
use model::capture::{Gap, Reading};
use std::hash::{BuildHasher, Hasher, RandomState};

/// Readings tried again when kube-proxy wrote during each attempt of one; it writes in bursts.
const TORN: u32 = 3;

/// Both backends' rules of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captures {
    /// nf_tables; `None`: the kernel has none.
    pub nf_tables: Option<Capture>,
    /// Tables of iptables-legacy, sorted.
    pub legacy: Vec<TableCapture>,
    /// IPVS with its ipsets; `None`: the kernel has none.
    pub ipvs: Option<Captured>,
}

impl Captures {
    /// Reads both, of this thread's network namespace.
    ///
    /// # Errors
    /// What could not be read: then nothing of the other is of use either.
    pub fn read() -> Result<Captures, Gap> {
        let nf_tables = match again(nf_tables::read, |e| {
            matches!(e, nf_tables::ReadError::Torn { .. })
        }) {
            Ok(capture) => Some(capture),
            Err(nf_tables::ReadError::Absent) => None,
            Err(error) => return Err(gap("nf_tables", error.to_string())),
        };
        let names = match xtables::names() {
            Ok(names) => names,
            Err(xtables::ReadError::Absent) => Vec::new(),
            Err(error) => return Err(gap("iptables-legacy", error.to_string())),
        };
        let mut legacy = Vec::with_capacity(names.len());
        for name in &names {
            let one = std::slice::from_ref(name);
            let read = || xtables::read(one, |capture| legacy.push(capture));
            again(read, |e| matches!(e, xtables::ReadError::Torn { .. }))
                .map_err(|error| gap("iptables-legacy", error.to_string()))?;
        }
        if nf_tables.is_none() && legacy.is_empty() {
            // A node without either has its Services somewhere this program did not look.
            return Err(gap(
                "nf_tables",
                "the kernel has no nf_tables, and no other datapath is read".into(),
            ));
        }
        let mut captures = Captures {
            nf_tables,
            legacy,
            ipvs: None,
        };
        captures.ipvs = ipvs::read(|| match captures.rules() {
            Reading::Read(rules) => Traces::of(&rules),
            _ => Traces::default(),
        })?;
        Ok(captures)
    }

    /// As rules. Tables of iptables-legacy come last, and IPVS behind them.
    ///
    /// Failed as [`Captures::rules`] says, and where a virtual server was not understood.
    pub fn decode(&self) -> Reading<Ruleset> {
        let rules = match (self.rules(), &self.ipvs) {
            (Reading::Read(rules), Some(captured)) => (rules, captured),
            (rules, _) => return rules,
        };
        match rules.1.decode() {
            Ok(ipvs) => Reading::Read(ipvs.among(&rules.0)),
            Err(gap) => Reading::Failed(gap),
        }
    }

    /// Those of netfilter alone.
    ///
    /// Failed where a table of iptables-legacy is cut off, and where the lists of nf_tables do not fit
    /// together: an object that another one names is missing, or one is there twice. What is missing
    /// would look deleted.
    fn rules(&self) -> Reading<Ruleset> {
        let mut ruleset = Ruleset::default();
        if let Some(capture) = &self.nf_tables {
            let decoded = nftables::decode(capture);
            if let Some(unknown) = decoded.unknown.iter().find(|u| u.is_torn()) {
                return Reading::Failed(gap(
                    "nf_tables",
                    format!(
                        "the reading does not fit together: {} ({} {} {})",
                        unknown.what,
                        unknown.family.word(),
                        unknown.table,
                        unknown.name
                    ),
                ));
            }
            ruleset = decoded.ruleset;
        }
        for capture in &self.legacy {
            let decoded = legacy::decode(capture);
            // What is of no chain is of the table as a whole.
            if let Some(unknown) = decoded.unknown.iter().find(|u| u.name.is_empty()) {
                let table = format!("{} {}", decoded.table.word(), decoded.table.name);
                return Reading::Failed(gap(&table, unknown.what.to_string()));
            }
            ruleset.tables.push(decoded.table);
        }
        Reading::Read(ruleset)
    }
}

/// Are two readings of nf_tables the same, counters apart? Their generation tells, and the list of
/// tables: one with an owner can vanish without a new generation.
pub(super) fn same_nf_tables(one: &Capture, other: &Capture) -> bool {
    one.generation.is_some() && one.generation == other.generation && one.tables == other.tables
}

/// Are two readings of a table of iptables-legacy the same, counters apart?
pub(super) fn same_legacy(one: &TableCapture, other: &TableCapture) -> bool {
    let hashes = RandomState::new();
    let hash = |capture: &TableCapture| {
        let mut hasher = hashes.build_hasher();
        capture.feed(&mut hasher);
        hasher.finish()
    };
    hash(one) == hash(other)
}

/// Are two readings of IPVS the same, connections and statistics apart?
pub(super) fn same_ipvs(one: &Option<Captured>, other: &Option<Captured>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => match (one.decode(), other.decode()) {
            (Ok(one), Ok(other)) => one.is_like(&other),
            _ => one == other,
        },
        _ => false,
    }
}

fn again<T, E>(mut read: impl FnMut() -> Result<T, E>, torn: impl Fn(&E) -> bool) -> Result<T, E> {
    let mut tries = 0;
    loop {
        match read() {
            Err(error) if torn(&error) && tries < TORN => tries += 1,
            other => return other,
        }
    }
}

fn gap(what: &str, why: String) -> Gap {
    Gap {
        what: what.into(),
        why: why.into(),
    }
}

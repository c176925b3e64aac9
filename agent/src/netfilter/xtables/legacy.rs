//! Tables of iptables-legacy: one block of entries each, into the one representation of rules.
//!
//! An entry is a rule: conditions on the packet's header, matches, one target. A chain is a run of
//! entries: a base chain begins where `hook_entry` says, any other behind an entry whose target is
//! `ERROR` with the chain's name; each ends in an entry that returns, or is the policy. Jumps are
//! offsets of entries. (Linux: `ip_tables.h`, `x_tables.h`, `net/ipv4/netfilter/ip_tables.c`.)

pub mod capture;
mod packet;
#[cfg(test)]
mod tests;

use super::{Blob, decode_match, decode_target};
use crate::netfilter::nftables::Unknown;
use crate::netfilter::nftables::attributes::{c_string, text};
use crate::netfilter::ruleset::{
    Backend, Chain, ChainType, Hook, HookPoint, NatTarget, Op, Rule, Table, TableFamily, Verdict,
};
use capture::TableCapture;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// `struct xt_entry_match` and `xt_entry_target` before their data: size, name, revision.
const EXTENSION: usize = 32;

/// Hooks by number, and their chains' names.
pub(super) const HOOKS: [(HookPoint, &str); 5] = [
    (HookPoint::Prerouting, "PREROUTING"),
    (HookPoint::Input, "INPUT"),
    (HookPoint::Forward, "FORWARD"),
    (HookPoint::Output, "OUTPUT"),
    (HookPoint::Postrouting, "POSTROUTING"),
];

/// The tables that the kernel has, `security` included.
pub(super) const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// A decoded table.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The rules; their handles are positions in their chain, from 1.
    pub table: Table,
    /// Everything in it that was not understood.
    pub unknown: Vec<Unknown>,
}

/// Where an entry has what.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Size of the header part that looks at the packet.
    packet: usize,
    /// `target_offset`; `next_offset` is behind it.
    target: usize,
    /// `struct xt_counters`, 16 bytes.
    counters: usize,
    /// Size of the entry before its matches.
    header: usize,
}

impl Layout {
    fn of(family: TableFamily) -> Layout {
        match family {
            // struct ip6t_entry
            TableFamily::Ip6 => Layout {
                packet: 136,
                target: 140,
                counters: 152,
                header: 168,
            },
            // struct ipt_entry
            _ => Layout {
                packet: 84,
                target: 88,
                counters: 96,
                header: 112,
            },
        }
    }

    /// The first entry of `bytes`, and what is behind it. `None`: there is no whole one.
    fn split<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let b = Blob(bytes);
        let target = usize::from(b.u16(self.target)?);
        let next = usize::from(b.u16(self.target + 2)?);
        // Every entry has a target, so that a step is never 0.
        if target < self.header || next < target + EXTENSION {
            return None;
        }
        bytes.split_at_checked(next)
    }
}

/// An entry, and where it stands.
#[derive(Clone, Copy)]
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    /// Where its target begins.
    target: usize,
}

impl<'a> Entry<'a> {
    /// Name, revision and data of its target.
    fn target(&self) -> (&'a [u8], u8, &'a [u8]) {
        extension(&self.bytes[self.target..]).map_or((b"?", 0, &[]), |(name, revision, data, _)| {
            (name, revision, data)
        })
    }

    /// The name of the chain behind it, if its target is `ERROR`.
    fn head(&self) -> Option<&'a [u8]> {
        let (name, _, data) = self.target();
        (name == b"ERROR").then(|| c_string(data))
    }

    /// The verdict of a standard target.
    fn verdict(&self) -> Option<i32> {
        let (name, _, data) = self.target();
        let verdict = data.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b));
        if name.is_empty() { verdict } else { None }
    }

    /// Fits every packet.
    fn unconditional(&self, layout: &Layout) -> bool {
        self.target == layout.header && self.bytes[..layout.packet].iter().all(|b| *b == 0)
    }
}

/// Name, revision and data of a match or target, and its whole size.
fn extension(bytes: &[u8]) -> Option<(&[u8], u8, &[u8], usize)> {
    let size = usize::from(Blob(bytes).u16(0)?);
    if size < EXTENSION {
        return None;
    }
    let whole = bytes.get(..size)?;
    Some((
        c_string(&whole[2..31]),
        whole[31],
        &whole[EXTENSION..],
        size,
    ))
}

/// A chain's entries, before they are rules.
struct Run<'a> {
    name: Arc<str>,
    hook: Option<(usize, HookPoint)>,
    entries: Vec<Entry<'a>>,
    /// Something in it is not as it has to be.
    damaged: Option<&'static str>,
}

/// Decodes one table. Never panics, whatever the bytes.
pub fn decode(capture: &TableCapture) -> Decoded {
    let layout = Layout::of(capture.family);
    let info = Info::of(&capture.info);
    let mut unknown = Vec::new();
    let mut note = |chain: &Arc<str>, handle: u64, what: Arc<str>| {
        unknown.push(Unknown {
            family: capture.family,
            table: capture.name.as_str().into(),
            name: chain.clone(),
            handle,
            what,
        });
    };
    let (mut runs, whole) = runs(capture, &layout, &info);
    let starts = starts(&runs);
    if !whole {
        let none: Arc<str> = "".into();
        note(&none, 0, "entries cut off or damaged".into());
    }
    let mut table = Table {
        family: capture.family,
        name: capture.name.as_str().into(),
        backend: Backend::Legacy,
        dormant: false,
        chains: Vec::with_capacity(runs.len()),
        chain_index: HashMap::with_capacity(runs.len()),
        sets: HashMap::new(),
    };
    let names: Vec<Arc<str>> = runs.iter().map(|r| r.name.clone()).collect();
    let jumps = Jumps {
        starts: &starts,
        names: &names,
    };
    let mut ops = Vec::new();
    for run in &mut runs {
        let policy_drop = foot(run, &layout, &info);
        let hook = run.hook.map(|(_, point)| Hook {
            point,
            priority: priority(&capture.name, point),
            kind: kind(&capture.name, point),
            policy_drop,
        });
        let mut rules: Vec<Rule> =
            Vec::with_capacity(run.entries.len() + usize::from(run.damaged.is_some()));
        for entry in &run.entries {
            let handle = rules.len() as u64 + 1;
            let comment = rule(capture.family, &layout, entry, &jumps, &mut ops);
            for op in &ops {
                let (Op::UnknownMatch(what)
                | Op::UnknownStatement(what)
                | Op::Dnat(NatTarget::Unknown(what))
                | Op::Snat(NatTarget::Unknown(what))) = op
                else {
                    continue;
                };
                note(&run.name, handle, what.clone());
            }
            rules.push(Rule::of(handle, &mut ops, comment));
        }
        if let Some(what) = run.damaged {
            let handle = rules.len() as u64 + 1;
            note(&run.name, handle, what.into());
            rules.push(Rule {
                handle,
                ops: [Op::UnknownStatement(what.into())].into(),
                comment: None,
            });
        }
        table
            .chain_index
            .entry(run.name.clone())
            .or_insert(table.chains.len());
        table.chains.push(Chain {
            name: run.name.clone(),
            handle: 0,
            hook,
            rules,
        });
    }
    Decoded { table, unknown }
}

/// `struct ipt_getinfo`.
struct Info {
    valid: u32,
    hooks: [usize; 5],
    underflows: [usize; 5],
    entries: usize,
}

impl Info {
    /// What is missing is 0: then no hook is valid, or the count of entries does not fit.
    fn of(bytes: &[u8]) -> Info {
        let b = Blob(bytes);
        let at = |at: usize| b.u32(at).unwrap_or(0) as usize;
        Info {
            valid: b.u32(32).unwrap_or(0),
            hooks: std::array::from_fn(|i| at(36 + 4 * i)),
            underflows: std::array::from_fn(|i| at(56 + 4 * i)),
            entries: at(76),
        }
    }
}

/// The table's chains, base chains' and others', and whether everything was there.
fn runs<'a>(capture: &'a TableCapture, layout: &Layout, info: &Info) -> (Vec<Run<'a>>, bool) {
    let mut runs: Vec<Run<'a>> = Vec::new();
    let begin = |name: &[u8], hook| Run {
        name: text(name).into(),
        hook,
        entries: Vec::new(),
        damaged: None,
    };
    let hooks = || {
        let all = HOOKS.into_iter().enumerate();
        all.filter(|(number, _)| info.valid & (1 << number) != 0)
    };
    let (mut at, mut rest, mut count) = (0, capture.entries(), 0);
    let mut whole = true;
    while let Some((bytes, tail)) = layout.split(rest) {
        let target = usize::from(Blob(bytes).u16(layout.target).unwrap_or(0));
        let entry = Entry { at, bytes, target };
        count += 1;
        for (number, (point, name)) in hooks().filter(|(number, _)| info.hooks[*number] == at) {
            runs.push(begin(name.as_bytes(), Some((number, point))));
        }
        match entry.head() {
            // The last entry of a table is such a head, with no chain behind it.
            Some(_) if tail.is_empty() => {}
            Some(name) => runs.push(begin(name, None)),
            None => match runs.last_mut() {
                Some(run) => run.entries.push(entry),
                None => whole = false,
            },
        }
        at += bytes.len();
        rest = tail;
    }
    let ended = rest.is_empty() && count == info.entries && capture.info.len() >= capture::INFO;
    if !ended && let Some(last) = runs.last_mut() {
        last.damaged = Some("chain cut off");
    }
    // A base chain without entries still decides over every packet of its hook.
    runs.retain(|run| run.hook.is_none() || !run.entries.is_empty());
    for (number, (point, name)) in hooks() {
        let here = |run: &Run<'_>| run.hook.is_some_and(|(n, _)| n == number);
        if !runs.iter().any(here) {
            whole = false;
            let mut run = begin(name.as_bytes(), Some((number, point)));
            run.damaged = Some("chain not found");
            runs.push(run);
        }
    }
    if !TABLES.contains(&&*capture.name) {
        whole = false;
        for run in runs.iter_mut().filter(|run| run.hook.is_some()) {
            run.damaged = Some("a table of unknown priority");
            run.entries.clear();
        }
    }
    (runs, whole && ended)
}

/// Which entry each chain begins with. Of several chains of a name only the first can be jumped to
/// by it, so nothing may be said to lead to the others.
fn starts(runs: &[Run<'_>]) -> HashMap<usize, usize> {
    let mut starts = HashMap::with_capacity(runs.len());
    let mut names = HashSet::with_capacity(runs.len());
    for (i, run) in runs.iter().enumerate() {
        if let (true, Some(first)) = (names.insert(run.name.clone()), run.entries.first()) {
            starts.insert(first.at, i);
        }
    }
    starts
}

/// Takes the entry off a chain that ends it; true for a policy that drops.
fn foot(run: &mut Run<'_>, layout: &Layout, info: &Info) -> bool {
    if run.damaged.is_some() {
        return false;
    }
    let last = run.entries.last().copied();
    let verdict = last
        .filter(|e| e.unconditional(layout))
        .and_then(|e| e.verdict());
    let policy = match (run.hook, verdict.map(standard)) {
        (None, Some(Some(Verdict::Return))) => Some(false),
        (Some((hook, _)), Some(Some(v @ (Verdict::Accept | Verdict::Drop)))) => {
            let at = last.map(|e| e.at);
            (at == Some(info.underflows[hook])).then_some(v == Verdict::Drop)
        }
        _ => None,
    };
    if policy.is_some() {
        run.entries.pop();
    } else {
        run.damaged = Some("chain without an end");
    }
    policy.unwrap_or(false)
}

/// A verdict that is no jump.
fn standard(verdict: i32) -> Option<Verdict> {
    // -NF_DROP - 1, -NF_ACCEPT - 1, -NF_QUEUE - 1, XT_RETURN
    Some(match verdict {
        -1 => Verdict::Drop,
        -2 => Verdict::Accept,
        -4 => Verdict::Queue,
        -5 => Verdict::Return,
        _ => return None,
    })
}

/// What offsets lead to.
struct Jumps<'a> {
    starts: &'a HashMap<usize, usize>,
    names: &'a [Arc<str>],
}

fn rule(
    family: TableFamily,
    layout: &Layout,
    entry: &Entry<'_>,
    jumps: &Jumps<'_>,
    ops: &mut Vec<Op>,
) -> Option<Arc<str>> {
    let Some(goto) = packet::read(family, entry.bytes, ops) else {
        ops.clear();
        ops.push(Op::UnknownStatement("rule not understood".into()));
        return None;
    };
    let mut comment = None;
    let mut matches = &entry.bytes[layout.header..entry.target];
    while !matches.is_empty() {
        let Some((name, revision, data, size)) = extension(matches) else {
            ops.push(Op::UnknownMatch("damaged list of matches".into()));
            break;
        };
        let said = decode_match(family, &text(name), revision.into(), data, ops);
        if said.is_some() {
            comment = said;
        }
        matches = &matches[size..];
    }
    let (name, revision, data) = entry.target();
    if !name.is_empty() {
        ops.push(decode_target(family, &text(name), revision.into(), data));
        return comment;
    }
    let op = match entry.verdict() {
        None => Some(unknown("verdict cut off")),
        Some(v) if v < 0 => match standard(v) {
            Some(verdict) => Some(Op::Verdict(verdict)),
            None => Some(unknown(&format!("verdict {v}"))),
        },
        // A rule without a target leads to the next one.
        Some(v) if v as usize == entry.at + entry.bytes.len() => None,
        Some(v) => Some(match jumps.starts.get(&(v as usize)) {
            Some(&chain) => {
                let name = jumps.names[chain].clone();
                Op::Verdict(if goto {
                    Verdict::Goto(name)
                } else {
                    Verdict::Jump(name)
                })
            }
            None => unknown("jump into the middle of a chain"),
        }),
    };
    ops.extend(op);
    comment
}

fn unknown(what: &str) -> Op {
    Op::UnknownStatement(what.into())
}

/// `NF_IP_PRI_*`: where each table's hooks stand among those of nf_tables.
pub(super) fn priority(table: &str, point: HookPoint) -> i32 {
    match (table, point) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", HookPoint::Input | HookPoint::Postrouting) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    }
}

pub(super) fn kind(table: &str, point: HookPoint) -> ChainType {
    match (table, point) {
        ("nat", _) => ChainType::Nat,
        ("mangle", HookPoint::Output) => ChainType::Route,
        _ => ChainType::Filter,
    }
}

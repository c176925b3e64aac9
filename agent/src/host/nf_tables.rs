//! One whole reading of nf_tables: everything from the same generation, or an error that says why
//! not.

use super::events::{Events, Heard};
use super::netlink::{Family, Netlink, NetlinkError, Question};
use crate::netfilter::nftables::attributes::{Attributes, be16, be32, be64, c_string};
use crate::netfilter::nftables::capture::{Capture, Messages};
use std::collections::HashSet;
use std::time::Duration;

/// Above this many rules (upper bound by `NFTA_CHAIN_USE`) in a table one dump for each chain is
/// cheaper: the kernel walks the whole table again for every datagram of a table's dump.
const RULES_IN_ONE_DUMP: u64 = 25_000;
/// Attempts to read without a change in between.
const TRIES: u32 = 5;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_NEWGEN` (linux/netfilter/nf_tables.h).
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// Attempts to read everything without a change in between, on a node whose kube-proxy writes again and
/// again.
const READINGS: u32 = 12;
/// `NFT_SET_EVAL`: filled by packets.
const SET_DYNAMIC: u32 = 0x20;

/// What is asked: the kernel's netlink, or in a test whatever answers in its place.
pub trait Answers {
    /// As [`Netlink::ask`].
    ///
    /// # Errors
    /// As there.
    fn ask(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError>;
}

impl Answers for Netlink {
    fn ask(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        Netlink::ask(self, question, each)
    }
}

/// Why there is no reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables")]
    Absent,
    /// Refused.
    #[error("reading nf_tables needs CAP_NET_ADMIN")]
    Permission,
    /// The ruleset changed during each of the attempts: there is no moment that could be judged.
    #[error("torn: nf_tables changed during each of {tries} readings")]
    Torn {
        /// Attempts made.
        tries: u32,
    },
    /// Anything else.
    #[error("nf_tables: {0}")]
    Failed(NetlinkError),
}

/// Reads nf_tables of this thread's network namespace. Blocks for as long as the kernel takes
/// (about a second for 100,000 rules).
///
/// The number of a generation is there a moment before its rules are, and they a moment before its
/// events (`nf_tables_commit`); a writer may lose its turn in between. So a reading is torn, even if
/// its number was the same before and after, where a transaction up to that number is told of after
/// its beginning. What is told of later numbers was not there yet; where it moved what was, something
/// was given twice, and the reading is torn, too.
pub fn read() -> Result<Capture, ReadError> {
    let mut answers = open()?;
    let mut events = Events::open().map_err(refused)?;
    attempts(|| {
        events.hear(|_, _| {}).map_err(ReadError::Failed)?;
        let capture = read_once(&mut answers)?;
        wait_for_writer()?;
        let mut told = Told::after(capture.generation.unwrap_or(0));
        let heard = events.hear(|kind, message| told.note(kind, message));
        match heard.map_err(ReadError::Failed)? {
            Heard::All if !told.tears() => Ok(capture),
            _ => Err(ReadError::Torn { tries: 1 }),
        }
    })
}

/// Returns when every transaction that has its number has been told of.
///
/// A socket that is closed takes nf_tables' lock for a moment, to look for tables that it owns
/// (`nft_rcv_nl_event`, since Linux 5.12). A writer holds that lock from its first message until its
/// events are out. On older kernels this waits for nothing.
pub(crate) fn wait_for_writer() -> Result<(), ReadError> {
    open().map(drop)
}

/// What is told after a reading.
struct Told {
    /// The number that was read.
    generation: u32,
    /// A transaction up to that number was told of.
    within: bool,
    /// Objects of a transaction were told of, and not its number yet.
    unfinished: bool,
}

impl Told {
    fn after(generation: u32) -> Told {
        Told {
            generation,
            within: false,
            unfinished: false,
        }
    }

    /// Takes note of one event: the type of a netlink message, and the message.
    fn note(&mut self, kind: u16, message: &[u8]) {
        // NFT_MSG_NEWGEN: NFTA_GEN_ID
        self.unfinished = kind != NEW_GENERATION;
        if kind == NEW_GENERATION {
            // The number wraps around.
            self.within |= be32(find(message, 1))
                .is_none_or(|number| self.generation.wrapping_sub(number).cast_signed() >= 0);
        }
    }

    /// May what was read be of two generations?
    fn tears(&self) -> bool {
        self.within || self.unfinished
    }
}

/// A socket for the questions.
///
/// # Errors
/// [`ReadError::Permission`], [`ReadError::Absent`], [`ReadError::Failed`].
pub fn open() -> Result<Netlink, ReadError> {
    Netlink::open(Family::Netfilter).map_err(refused)
}

/// Why a socket could not be had.
pub(crate) fn refused(error: NetlinkError) -> ReadError {
    match error {
        NetlinkError::Permission => ReadError::Permission,
        NetlinkError::Absent => ReadError::Absent,
        other => ReadError::Failed(other),
    }
}

/// [`read`] from whatever answers.
///
/// # Errors
/// As there.
pub fn read_from(answers: &mut dyn Answers) -> Result<Capture, ReadError> {
    attempts(|| read_once(answers))
}

fn attempts(mut read: impl FnMut() -> Result<Capture, ReadError>) -> Result<Capture, ReadError> {
    for attempt in 1..=READINGS {
        match read() {
            Ok(capture) => return Ok(capture),
            Err(ReadError::Torn { .. }) if attempt < READINGS => {
                // A transaction is short; the writer may have several to make.
                std::thread::sleep(Duration::from_millis(u64::from(attempt) * 20));
            }
            Err(ReadError::Torn { .. }) => break,
            Err(other) => return Err(other),
        }
    }
    Err(ReadError::Torn { tries: READINGS })
}

/// A chain of the list, and an upper bound for its rules (`NFTA_CHAIN_USE`: jumps to it as well).
pub(crate) struct ChainAt {
    pub family: u8,
    pub table: Vec<u8>,
    pub name: Vec<u8>,
    pub rules: u64,
}

impl ChainAt {
    pub(crate) fn of(message: &[u8]) -> ChainAt {
        ChainAt {
            family: message.first().copied().unwrap_or(0),
            table: named(message, 1),
            name: named(message, 3),
            rules: number(message, 6).into(),
        }
    }
}

/// Family, table and name of a set whose elements are configuration; `None`: packets fill it, or its
/// family's packets are none of ours.
pub(crate) fn set_to_read(message: &[u8]) -> Option<(u8, Vec<u8>, Vec<u8>)> {
    let family = *message.first()?;
    let wanted = ip_family(family) && number(message, 3) & SET_DYNAMIC == 0;
    wanted.then(|| (family, named(message, 1), named(message, 2)))
}

/// The questions for all rules of one table.
pub(crate) fn rule_questions<'a>(
    family: u8,
    table: &'a [u8],
    chains: &'a [ChainAt],
) -> Vec<Question<'a>> {
    let here = || {
        chains
            .iter()
            .filter(move |c| c.family == family && c.table == table)
    };
    let of = |chain: Option<&'a [u8]>| Question::Rules {
        family,
        table,
        chain,
    };
    if here().map(|c| c.rules).sum::<u64>() < RULES_IN_ONE_DUMP {
        return vec![of(None)];
    }
    here()
        .filter(|c| c.rules > 0)
        .map(|c| of(Some(&c.name)))
        .collect()
}

fn read_once(netlink: &mut dyn Answers) -> Result<Capture, ReadError> {
    let mut capture = Capture::default();
    let (before, writer) = generation(netlink)?;
    capture.generation = Some(before);
    capture.last_writer = writer;
    let stamp = Some(before as u16);

    let mut tables: Vec<(u8, Vec<u8>)> = Vec::new();
    ask(netlink, &Question::Tables, stamp, |message| {
        tables.push((message[0], named(message, 1)));
        capture.tables.push(message);
    })?;

    let mut chains: Vec<ChainAt> = Vec::new();
    ask(netlink, &Question::Chains, stamp, |message| {
        chains.push(ChainAt::of(message));
        capture.chains.push(message);
    })?;

    let mut sets: Vec<(u8, Vec<u8>, Vec<u8>)> = Vec::new();
    ask(netlink, &Question::Sets, stamp, |message| {
        sets.extend(set_to_read(message));
        capture.sets.push(message);
    })?;

    for (family, table) in tables.iter().filter(|(family, _)| ip_family(*family)) {
        for question in rule_questions(*family, table, &chains) {
            rules(netlink, &question, stamp, |message| {
                capture.rules.push(message)
            })?;
        }
    }
    for (family, table, set) in &sets {
        let question = Question::Elements {
            family: *family,
            table,
            set,
        };
        capture
            .elements
            .append(elements(netlink, &question, stamp)?);
    }

    for list in [&capture.tables, &capture.chains, &capture.sets] {
        if names_twice(list) {
            return Err(ReadError::Torn { tries: 1 });
        }
    }
    // The stamp in each message is the generation's low 16 bits only.
    let (after, _) = generation(netlink)?;
    if after == before {
        Ok(capture)
    } else {
        Err(ReadError::Torn { tries: 1 })
    }
}

/// Rules of a table or a chain, each once; those before an error are given, too.
///
/// A dump goes on in each datagram from the position that it had come to, and counts what a writer
/// has added and not committed yet, though it does not show it (`__nf_tables_dump_rules`): one that
/// is caught by that gives some rules twice, of chains that need not be the writer's, and no number
/// and no event tells. A commit takes nothing out before it has its number. What a writer gives up,
/// is taken out again without a number: a dump that is caught by that misses rules.
///
/// # Errors
/// As [`ask`]; [`ReadError::Torn`] also where a rule came twice.
pub(crate) fn rules(
    netlink: &mut dyn Answers,
    question: &Question<'_>,
    stamp: Option<u16>,
    mut each: impl FnMut(&[u8]),
) -> Result<(), ReadError> {
    let mut seen = HashSet::new();
    let mut twice = false;
    ask(netlink, question, stamp, |message| {
        // NFTA_RULE_HANDLE, one for each rule of a table
        twice |= be64(find(message, 3)).is_some_and(|handle| !seen.insert(handle));
        each(message);
    })?;
    if twice {
        return Err(ReadError::Torn { tries: 1 });
    }
    Ok(())
}

/// Does a list of tables, chains or sets have one of them twice? It does where a writer adds some
/// while it is dumped, as with [`rules`].
pub(crate) fn names_twice(list: &Messages) -> bool {
    let mut seen = HashSet::new();
    // NFTA_TABLE_NAME; NFTA_CHAIN_TABLE and _NAME, whose _HANDLE is in between; NFTA_SET_TABLE and
    // _NAME, with a number behind.
    list.iter()
        .any(|m| !seen.insert((m.first(), find(m, 1), find(m, 2), find(m, 3))))
}

/// A set's content, each element once.
///
/// A set that grows or shrinks is hashed anew by a worker after the commit
/// (`net/netfilter/nft_set_hash.c`, `lib/rhashtable.c`): without a change of generation. A dump
/// goes on in each datagram from the *number* of elements it gave before, so one that is caught by
/// it gives some elements twice and misses others. As many are given as there are or more, so none
/// is missing where none came twice.
pub(crate) fn elements(
    netlink: &mut dyn Answers,
    question: &Question<'_>,
    stamp: Option<u16>,
) -> Result<Messages, ReadError> {
    for attempt in 1..=TRIES {
        let mut messages = Messages::default();
        let mut seen = HashSet::new();
        let mut twice = false;
        ask(netlink, question, stamp, |message| {
            for (_, element) in Attributes::new(find(message, 3)) {
                twice |= !seen.insert(identity(element));
            }
            messages.push(message);
        })?;
        if !twice {
            return Ok(messages);
        }
        if attempt < TRIES {
            std::thread::sleep(Duration::from_millis(u64::from(attempt) * 5));
        }
    }
    Err(ReadError::Torn { tries: 1 })
}

/// What makes an element of a set another one: key, end of key, and whether it ends an interval or
/// catches all (`NFTA_SET_ELEM_KEY`, `_KEY_END`, `_FLAGS`).
fn identity(element: &[u8]) -> (Vec<u8>, Vec<u8>, u32) {
    let mut identity = (Vec::new(), Vec::new(), 0);
    for (kind, value) in Attributes::new(element) {
        match kind {
            1 => identity.0 = value.to_vec(),
            3 => identity.2 = be32(value).unwrap_or(0) & 3,
            10 => identity.1 = value.to_vec(),
            _ => {}
        }
    }
    identity
}

/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub(crate) fn ip_family(family: u8) -> bool {
    matches!(family, 1 | 2 | 10)
}

/// Asks. Where a generation's stamp is given, all messages must carry it (`nfgenmsg.res_id`).
///
/// # Errors
/// [`ReadError::Torn`] also where the object that is asked for is gone.
pub(crate) fn ask(
    netlink: &mut dyn Answers,
    question: &Question<'_>,
    stamp: Option<u16>,
    mut each: impl FnMut(&[u8]),
) -> Result<(), ReadError> {
    let mut short = false;
    let result = netlink.ask(question, &mut |message| {
        if message.len() < 4 {
            short = true;
            return false;
        }
        if stamp.is_some_and(|stamp| be16(&message[2..4]) != stamp) {
            return false;
        }
        each(message);
        true
    });
    match result {
        Ok(()) => Ok(()),
        Err(_) if short => Err(ReadError::Failed(NetlinkError::Protocol(
            "message too short",
        ))),
        Err(NetlinkError::Permission) => Err(ReadError::Permission),
        // Something was deleted between the list and the question for its content.
        Err(NetlinkError::Interrupted | NetlinkError::Gone) => Err(ReadError::Torn { tries: 1 }),
        Err(other) => Err(ReadError::Failed(other)),
    }
}

/// The generation's number (`NFTA_GEN_ID`) and who wrote it (`NFTA_GEN_PROC_NAME`).
pub(crate) fn generation(netlink: &mut dyn Answers) -> Result<(u32, Option<String>), ReadError> {
    let mut found = None;
    let mut writer = None;
    let result = netlink.ask(&Question::Generation, &mut |message| {
        for (kind, value) in Attributes::new(message.get(4..).unwrap_or_default()) {
            match kind {
                1 => found = be32(value),
                3 => writer = Some(String::from_utf8_lossy(c_string(value)).into_owned()),
                _ => {}
            }
        }
        true
    });
    match result {
        Ok(()) => {}
        Err(NetlinkError::Permission) => return Err(ReadError::Permission),
        // nfnetlink answers EINVAL for a subsystem it does not have, after the check of rights.
        Err(NetlinkError::System {
            errno: libc::EINVAL | libc::EOPNOTSUPP,
            ..
        }) => {
            return Err(ReadError::Absent);
        }
        Err(other) => return Err(ReadError::Failed(other)),
    }
    match found {
        Some(id) => Ok((id, writer)),
        None => Err(ReadError::Failed(NetlinkError::Protocol(
            "generation without a number",
        ))),
    }
}

pub(crate) fn find(message: &[u8], wanted: u16) -> &[u8] {
    Attributes::new(message.get(4..).unwrap_or_default())
        .find(|(kind, _)| *kind == wanted)
        .map_or(&[], |(_, value)| value)
}

pub(crate) fn named(message: &[u8], wanted: u16) -> Vec<u8> {
    c_string(find(message, wanted)).to_vec()
}

fn number(message: &[u8], wanted: u16) -> u32 {
    be32(find(message, wanted)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_up_to_the_number_tears() {
        let number = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            (NEW_GENERATION, vec![0, 0, 0, 0, 8, 0, 1, 0, a, b, c, d])
        };
        // NFT_MSG_NEWRULE
        let rule = || (10 << 8 | 6, vec![2, 0, 0, 0]);
        let tears = |generation: u32, told: &[(u16, Vec<u8>)]| {
            let mut after = Told::after(generation);
            told.iter().for_each(|(kind, m)| after.note(*kind, m));
            after.tears()
        };
        assert!(!tears(7, &[]));
        assert!(tears(7, &[rule(), number(7)]));
        assert!(tears(7, &[rule(), number(7), rule(), number(8)]));
        // It had no number yet when the last of what was read was there.
        assert!(!tears(7, &[rule(), number(8), number(9)]));
        assert!(!tears(u32::MAX, &[rule(), number(1)]));
        assert!(tears(1, &[rule(), number(u32::MAX)]));
        // Of which number it is told is not known.
        assert!(tears(7, &[rule()]));
        assert!(tears(7, &[number(8), rule()]));
        assert!(tears(7, &[(NEW_GENERATION, vec![0, 0, 0, 0])]));
    }
}

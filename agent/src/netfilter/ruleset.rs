//! One representation for rules of iptables legacy, iptables-nft and nftables: all three are
//! programs in the same small language. The decoders write it, `walk` and `trace` read it.
//!
//! A rule is a list of [`Op`]s executed in order. An op that does not match ends the rule. Whatever
//! was not understood is [`Op::Unknown`] and is never skipped: it makes the rest of the rule
//! conditional on something unknown.

use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Everything netfilter holds in one network namespace, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    /// Tables of all families that see IP packets.
    pub tables: Vec<Table>,
    /// nf_tables generation (`NFTA_GEN_ID`); equal before and after the reading. iptables-legacy has
    /// none.
    pub generation: Option<u32>,
    /// `NFTA_GEN_PROC_NAME`: the command that wrote last.
    pub last_writer: Option<Arc<str>>,
}

/// Which packets a table sees (`NFPROTO_*`, linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    /// IPv4 (`ip`).
    Ip,
    /// IPv6 (`ip6`).
    Ip6,
    /// Both (`inet`).
    Inet,
    /// `arp`, `bridge`, `netdev`: not walked; named in the coverage.
    Other(u8),
}

impl TableFamily {
    /// As `nft` writes it.
    pub fn word(self) -> &'static str {
        match self {
            TableFamily::Ip => "ip",
            TableFamily::Ip6 => "ip6",
            TableFamily::Inet => "inet",
            TableFamily::Other(3) => "arp",
            TableFamily::Other(7) => "bridge",
            TableFamily::Other(5) => "netdev",
            TableFamily::Other(_) => "other",
        }
    }
}

/// Who wrote the table, as far as its content tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// x_tables by getsockopt.
    Legacy,
    /// nf_tables, in the dialect of iptables-nft (`xt` blobs) or native: told per rule, not here.
    NfTables,
    /// No table of netfilter's: virtual servers, which hang on the same hooks (`crate::ipvs`).
    Ipvs,
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Which packets it sees.
    pub family: TableFamily,
    /// Its name.
    pub name: Arc<str>,
    /// How it was read.
    pub backend: Backend,
    /// `NFT_TABLE_F_DORMANT`: its hooks are off.
    pub dormant: bool,
    /// In the kernel's order.
    pub chains: Vec<Chain>,
    /// Chain index by name.
    pub chain_index: HashMap<Arc<str>, usize>,
    /// Named and anonymous sets and maps, by name.
    pub sets: HashMap<Arc<str>, Set>,
}

impl Table {
    /// Its family as a report names it: iptables-legacy's tables exist beside those of the same
    /// family and name in nf_tables.
    pub fn word(&self) -> &'static str {
        match (self.backend, self.family) {
            (Backend::Legacy, TableFamily::Ip) => "iptables-legacy",
            (Backend::Legacy, TableFamily::Ip6) => "ip6tables-legacy",
            (Backend::Ipvs, _) => "ipvs",
            (_, family) => family.word(),
        }
    }

    /// The chain of that name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chain_index.get(name).map(|&i| &self.chains[i])
    }
}

/// Where a base chain hangs (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// 0.
    Prerouting,
    /// 1.
    Input,
    /// 2.
    Forward,
    /// 3.
    Output,
    /// 4.
    Postrouting,
    /// 5, `inet` only: before prerouting, bound to a device.
    Ingress,
}

/// A base chain's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Filters.
    Filter,
    /// Consulted for the first packet of a flow only, and only while no translation is set for
    /// that direction.
    Nat,
    /// Reroutes when mark or address changed (output only).
    Route,
    /// IPVS. What it translates to another node leaves at once by the output hook, from its first
    /// chain on, and does not meet IPVS again; what it translates to the node itself goes on where it is
    /// (`ip_vs_nat_send_or_cont`).
    VirtualServer,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    /// Where it hangs.
    pub point: HookPoint,
    /// Lower runs earlier; equal ones run in order of registration, unknown here: the order of
    /// tables and chains in the reading.
    pub priority: i32,
    /// Its type.
    pub kind: ChainType,
    /// Accept or drop at its end.
    pub policy_drop: bool,
}

/// One chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Its name.
    pub name: Arc<str>,
    /// Its handle, 0 for legacy.
    pub handle: u64,
    /// `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// nf_tables: the kernel's handle. Legacy: the position in its chain, from 1.
    pub handle: u64,
    /// Executed in order, [`Op::Nothing`] left out.
    pub ops: Box<[Op]>,
    /// iptables `-m comment` or nft `comment`. From strangers: escape before showing.
    pub comment: Option<Arc<str>>,
}

impl Rule {
    /// A rule of what is in `ops`, which is empty then, and can be used for the next rule.
    pub fn of(handle: u64, ops: &mut Vec<Op>, comment: Option<Arc<str>>) -> Rule {
        ops.retain(|op| *op != Op::Nothing);
        let ops = ops.drain(..).collect();
        Rule {
            handle,
            ops,
            comment,
        }
    }
}

/// A part of a packet or of what the kernel knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Source address.
    Saddr,
    /// Destination address.
    Daddr,
    /// Transport protocol number (also `ip protocol`, `ip6 nexthdr`).
    L4proto,
    /// Source port.
    Sport,
    /// Destination port.
    Dport,
    /// Network protocol family: 2 or 10 (`meta nfproto`).
    Nfproto,
    /// EtherType (`meta protocol`): 0x0800 or 0x86dd.
    EtherType,
    /// Packet mark.
    Mark,
    /// Name of the link it came in on; absent in output and postrouting of local packets.
    Iifname,
    /// Name of the link it leaves by.
    Oifname,
    /// conntrack state as the kernel's bit mask (`NF_CT_STATE_*`: 1 invalid, 2 established,
    /// 4 related, 8 new, 64 untracked).
    CtState,
    /// conntrack status bits (`IPS_*`: 0x10 src nat, 0x20 dst nat).
    CtStatus,
    /// conntrack's original destination address, before translation.
    CtOriginalDaddr,
    /// The port of the virtual server that took the packet (xt ipvs); absent where none did.
    VirtualPort,
    /// Type of the source address (`RTN_*`: 1 unicast, 2 local, 3 broadcast, 5 multicast).
    SaddrType,
    /// Type of the destination address.
    DaddrType,
    /// `meta pkttype`: 0 host, 1 broadcast, 2 multicast.
    PacketType,
    /// Something else; the text says what.
    Other(Arc<str>),
}

/// A constant that a field is compared with, in the field's own type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Addresses, as a prefix; a /32 or /128 for one.
    Prefix(IpNet),
    /// Addresses from first to last, both included, where no prefix says it.
    AddressRange(Box<(IpAddr, IpAddr)>),
    /// Numbers from first to last, both included (ports, protocols, types).
    Number(u64, u64),
    /// A link's name; with `true` a prefix of it (`eth*`).
    Name(Arc<str>, bool),
    /// Bytes that did not fit the field.
    Bytes(Arc<[u8]>),
}

impl Value {
    /// Addresses from first to last, both included.
    pub fn addresses(first: IpAddr, last: IpAddr) -> Value {
        Value::AddressRange(Box::new((first, last)))
    }
}

/// Constants, nearly always one: a large ruleset has a hundred thousand conditions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Values {
    /// One.
    One(Value),
    /// None, or several.
    Many(Box<[Value]>),
}

impl std::ops::Deref for Values {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        match self {
            Values::One(value) => std::slice::from_ref(value),
            Values::Many(values) => values,
        }
    }
}

impl From<Value> for Values {
    fn from(value: Value) -> Values {
        Values::One(value)
    }
}

impl From<Vec<Value>> for Values {
    fn from(mut values: Vec<Value>) -> Values {
        match values.len() {
            1 => values
                .pop()
                .map_or_else(|| Values::Many(Box::default()), Values::One),
            _ => Values::Many(values.into()),
        }
    }
}

impl FromIterator<Value> for Values {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Values {
        values.into_iter().collect::<Vec<Value>>().into()
    }
}

/// One condition: the field (masked where a mask is given) is one of the values, or none of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// What is looked at.
    pub field: Field,
    /// Applied to numbers before comparing (`ct state & 8`, `mark & 0x4000`). `None`: all bits.
    pub mask: Option<u64>,
    /// Any of them.
    pub any_of: Values,
    /// The condition is that none fits.
    pub negated: bool,
}

/// A set look-up with one or more fields as key.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    /// Fields, concatenated in this order.
    pub key: Vec<Field>,
    /// Name of the set or map in the same table (anonymous ones: `__set0`, `__map3`).
    pub set: Arc<str>,
    /// `!=`: matches when the key is not in the set. Never with a verdict map.
    pub negated: bool,
}

/// How a rule ends or goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Done with this base chain; later hooks still see the packet.
    Accept,
    /// Thrown away.
    Drop,
    /// Back to the rule behind the jump; in a base chain its policy.
    Return,
    /// Into another chain of the table, and back at its end.
    Jump(Arc<str>),
    /// Into another chain of the table, and at its end to where the last jump came from.
    Goto(Arc<str>),
    /// Handed to a program in user space; what becomes of it is unknown.
    Queue,
    /// Next rule.
    Continue,
}

/// Where a new destination comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum NatTarget {
    /// One address and/or port (`dnat to 10.0.0.1:80`); `None` keeps the packet's own.
    Fixed {
        /// New address.
        address: Option<IpAddr>,
        /// New port.
        port: Option<u16>,
    },
    /// `numgen random mod N map { … }`: one of the map's values, evenly by index.
    NumgenMap {
        /// Number of indices.
        modulus: u32,
        /// Added to each index.
        offset: u32,
        /// Name of the map: number to `address . port` (or address alone).
        map: Arc<str>,
        /// `numgen inc` instead of random: in turn.
        incremental: bool,
    },
    /// The map's value for a key of packet fields.
    Map(Lookup),
    /// A range, a hash, a prefix map: not understood; the text says what.
    Unknown(Arc<str>),
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Goes on if it matches.
    Match(Match),
    /// Goes on if the key is (not) in the set.
    Lookup(Lookup),
    /// `vmap`: the element's verdict; no element: goes on with the next *rule*… the kernel's
    /// `lookup` breaks out of the rule when the key is absent.
    VerdictMap(Lookup),
    /// `numgen random mod N vmap @map`: one of the verdicts, evenly by index.
    NumgenVerdictMap {
        /// Number of indices.
        modulus: u32,
        /// Added to each index.
        offset: u32,
        /// Name of the map: number to verdict.
        map: Arc<str>,
        /// `numgen inc`.
        incremental: bool,
    },
    /// Goes on with this probability: `numerator / 2^31` (xt statistic; nft `numgen random mod n < k`).
    Probability {
        /// Of 2^31.
        numerator: u32,
    },
    /// Goes on only for one packet in turn of `every` (`statistic --mode nth`): even over time.
    Nth {
        /// One of so many.
        every: u32,
    },
    /// mark = (mark & and) ^ xor.
    SetMark {
        /// Kept bits.
        and: u32,
        /// Flipped bits.
        xor: u32,
    },
    /// Goes on if this client was sent here before, at most `seconds` ago (xt recent `--rcheck`,
    /// nft look-up of saddr in a dynamic set with a timeout).
    AffinityCheck {
        /// Name of the list or set.
        list: Arc<str>,
        /// Age limit; `None`: the set's own timeout, or none.
        seconds: Option<u32>,
    },
    /// Remembers the client (xt recent `--set`, nft `update @set { ip saddr }`).
    AffinityUpdate {
        /// Name of the list or set.
        list: Arc<str>,
    },
    /// Destination translation; ends the rule's base chain as accept.
    Dnat(NatTarget),
    /// Destination translation to the link's own address (`REDIRECT`).
    Redirect {
        /// New port.
        port: Option<u16>,
    },
    /// Source translation to a given address; accept.
    Snat(NatTarget),
    /// Source translation to the outgoing link's address; accept.
    Masquerade,
    /// Refused with an error packet.
    Reject,
    /// A plain verdict.
    Verdict(Verdict),
    /// Does not change where the packet goes: counter, log, comment, trace, quota that only counts.
    Nothing,
    /// Takes the packet out of connection tracking: it is never translated.
    NoTrack,
    /// A condition that was not understood or cannot be decided (`limit`, `xt set`, …).
    UnknownMatch(Arc<str>),
    /// A statement that was not understood: may change the packet, may end its way.
    UnknownStatement(Arc<str>),
}

/// A set or map with its elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Its name.
    pub name: Arc<str>,
    /// The kernel's handle (`NFTA_SET_HANDLE`).
    pub handle: u64,
    /// It maps keys to something (`NFT_SET_MAP`).
    pub map: bool,
    /// Its elements come from packets (`NFT_SET_EVAL`); contents are traffic, not configuration.
    pub dynamic: bool,
    /// `NFT_SET_ANONYMOUS`.
    pub anonymous: bool,
    /// Default timeout, milliseconds.
    pub timeout_ms: Option<u64>,
    /// Width of each key field in bytes as the key type says, concatenations padded to 4 each.
    pub key_bytes: Vec<u8>,
    /// `NFTA_SET_KEY_TYPE`: six bits for each field, from nft's datatype table; 0 when not said.
    pub key_type: u32,
    /// Elements; for interval sets each is a range.
    pub elements: Vec<Element>,
    /// The elements were not read, or not understood; the reason.
    pub unread: Option<Arc<str>>,
}

/// One element.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// One value for each key field. Raw bytes turned into values by the width and the field that
    /// uses the set is the decoder's work: see `decode`.
    pub key: Vec<Value>,
    /// What it maps to.
    pub data: Option<Data>,
    /// Element comment.
    pub comment: Option<Arc<str>>,
    /// The catch-all element (`*`).
    pub catch_all: bool,
}

/// What a map's element maps to.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// A verdict.
    Verdict(Verdict),
    /// Address and, in a concatenation, port.
    Endpoint(IpAddr, Option<u16>),
    /// A number (mark, port).
    Number(u64),
    /// Bytes of another type.
    Bytes(Arc<[u8]>),
}

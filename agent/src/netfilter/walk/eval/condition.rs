//! Conditions: what a packet on its way has in each field, and what that decides.

use super::{Stage, State, Walker};
use crate::netfilter::ruleset::{Field, HookPoint, Lookup, Match, Value};
use crate::netfilter::walk::set::{Found, Key, NO_KEY, Part, value_fits};
use crate::netfilter::walk::source::{Prefixes, Truth, decide, range_prefixes, unknown_link};
use ipnet::IpNet;
use std::sync::Arc;

/// conntrack state bits (`NF_CT_STATE_*`).
const CT_NEW: u64 = 8;
const CT_UNTRACKED: u64 = 64;
/// conntrack status bits (`IPS_SRC_NAT`, `IPS_DST_NAT`).
const IPS_SRC_NAT: u64 = 0x10;
const IPS_DST_NAT: u64 = 0x20;
/// Address types (`RTN_UNICAST`, `RTN_LOCAL`).
const RTN_UNICAST: u64 = 1;
const RTN_LOCAL: u64 = 2;

impl<'a, 'p> Walker<'a, 'p> {
    pub(super) fn ranges(&self, st: &State<'a, 'p>) -> bool {
        st.frames
            .last()
            .is_some_and(|f| self.program.chain(f.chain).ranges)
    }

    pub(super) fn source_in(&self, st: &State<'a, 'p>, prefixes: &Prefixes) -> Truth {
        decide(
            &self.source,
            &st.constraints,
            &st.in_ranges,
            self.ranges(st),
            prefixes,
        )
    }

    /// Decides a condition.
    pub(super) fn matches(&self, st: &State<'a, 'p>, m: &'p Match) -> Truth {
        let truth = self.any_of(st, m);
        self.asks_match(st, m, &truth);
        match (truth, m.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (t, _) => t,
        }
    }

    pub(super) fn any_of(&self, st: &State<'a, 'p>, m: &Match) -> Truth {
        match m.field {
            Field::Saddr => {
                let mut prefixes: Vec<IpNet> = Vec::with_capacity(m.any_of.len());
                for v in m.any_of.iter() {
                    match v {
                        Value::Prefix(p) => prefixes.push(*p),
                        Value::AddressRange(range) => {
                            prefixes.extend(range_prefixes(range.0, range.1));
                        }
                        _ => return Truth::Unknown("a source address not understood".into()),
                    }
                }
                self.source_in(st, &prefixes.into())
            }
            Field::Iifname | Field::Oifname => self.link(st, m),
            Field::Sport if self.source.port.is_none() => {
                if m.any_of
                    .iter()
                    .any(|v| matches!(v, Value::Number(0, b) if *b >= 65_535))
                {
                    Truth::Yes
                } else {
                    Truth::Unknown("depends on the source port".into())
                }
            }
            _ => {
                let part = match self.field(st, &m.field) {
                    Ok(part) => part,
                    Err(why) => return Truth::Unknown(why),
                };
                if part == Part::None {
                    // Absent: it is none of the values.
                    return Truth::No;
                }
                let part = match (part, m.mask) {
                    (Part::Number(n), Some(mask)) => Part::Number(n & mask),
                    (part, None) => part,
                    _ => return Truth::Unknown("a masked field not understood".into()),
                };
                let mut unknown = false;
                for v in m.any_of.iter() {
                    match value_fits(v, &part) {
                        Some(true) => return Truth::Yes,
                        Some(false) => {}
                        None => unknown = true,
                    }
                }
                if unknown {
                    Truth::Unknown(format!("{:?} compared with bytes", m.field).into())
                } else {
                    Truth::No
                }
            }
        }
    }

    fn link(&self, st: &State<'a, 'p>, m: &Match) -> Truth {
        let mut unknown = None;
        for v in m.any_of.iter() {
            let Value::Name(name, prefix) = v else {
                return Truth::Unknown("a link's name not understood".into());
            };
            let known = st.links.iter().find(|(f, k, _)| *f == m.field && k == v);
            let truth = match known {
                Some((_, _, is)) => Truth::of(*is),
                None if m.field == Field::Iifname => {
                    let looped = matches!(st.stage, Stage::Again(_));
                    self.source.came_in_on(name, *prefix, looped)
                }
                None => self.leaves_by(st, name, *prefix),
            };
            match truth {
                Truth::Yes => return Truth::Yes,
                Truth::No => {}
                t => unknown = Some(t),
            }
        }
        unknown.unwrap_or(Truth::No)
    }

    fn leaves_by(&self, st: &State<'a, 'p>, name: &str, prefix: bool) -> Truth {
        let fits = |link: &str| {
            if prefix {
                link.starts_with(name)
            } else {
                link == name
            }
        };
        match st.stage {
            Stage::At(HookPoint::Output | HookPoint::Postrouting) if (self.local)(st.daddr) => {
                Truth::of(fits("lo"))
            }
            Stage::Delivered
            | Stage::At(HookPoint::Output | HookPoint::Postrouting | HookPoint::Forward) => {
                if !prefix && name == "lo" {
                    Truth::No
                } else {
                    unknown_link(name)
                }
            }
            _ => Truth::of(fits("")),
        }
    }

    /// The value of a field that is not the source's.
    fn field(&self, st: &State<'a, 'p>, field: &Field) -> Result<Part, Arc<str>> {
        let number = |n: u64| Ok(Part::Number(n));
        match field {
            Field::Daddr => Ok(Part::Address(st.daddr)),
            Field::CtOriginalDaddr => Ok(Part::Address(st.original)),
            Field::VirtualPort if st.by_ipvs => number(st.original_port.into()),
            Field::VirtualPort => Ok(Part::None),
            Field::L4proto => number(st.protocol.into()),
            Field::Dport => number(st.dport.into()),
            Field::Sport => match self.source.port {
                Some(p) => number(p.into()),
                None => Err("depends on the source port".into()),
            },
            Field::Nfproto => number(if st.daddr.is_ipv4() { 2 } else { 10 }),
            Field::EtherType => number(if st.daddr.is_ipv4() { 0x0800 } else { 0x86dd }),
            Field::Mark => number(st.mark.into()),
            Field::CtState => number(if st.untracked { CT_UNTRACKED } else { CT_NEW }),
            Field::CtStatus => {
                let dnat = if st.translated.is_some() {
                    IPS_DST_NAT
                } else {
                    0
                };
                let snat = if st.masquerade { IPS_SRC_NAT } else { 0 };
                number(dnat | snat)
            }
            Field::SaddrType => number(if self.source.from_node {
                RTN_LOCAL
            } else {
                RTN_UNICAST
            }),
            Field::DaddrType => number(if (self.local)(st.daddr) {
                RTN_LOCAL
            } else {
                RTN_UNICAST
            }),
            Field::PacketType => number(0),
            Field::Iifname if matches!(st.stage, Stage::Again(_)) => Ok(Part::Name("lo".into())),
            Field::Iifname if self.source.from_node => Ok(Part::Name("".into())),
            Field::Saddr | Field::Iifname | Field::Oifname => {
                Err(format!("depends on {field:?}").into())
            }
            Field::Other(what) => Err(format!("depends on {what}").into()),
        }
    }

    /// A look-up's key, and at which position the source address stands.
    pub(super) fn key(
        &self,
        st: &State<'a, 'p>,
        fields: &[Field],
    ) -> Result<(Key, Option<usize>), Arc<str>> {
        if fields.len() > NO_KEY.len() {
            return Err("a key of too many fields".into());
        }
        let mut key = NO_KEY;
        let mut source = None;
        for (i, f) in fields.iter().enumerate() {
            if *f == Field::Saddr {
                if source.replace(i).is_some() {
                    return Err("a key with the source twice".into());
                }
            } else {
                key[i] = self.field(st, f)?;
            }
        }
        Ok((key, source))
    }

    pub(super) fn looks_up(&self, st: &State<'a, 'p>, chain: usize, l: &'p Lookup) -> Truth {
        self.asks_lookup(st, chain, l);
        let Some(set) = self.set(chain, &l.set) else {
            return Truth::Unknown(format!("a set that was not read: {}", l.set).into());
        };
        let found = match self.key(st, &l.key) {
            Ok((key, source)) => set.find(&key, source),
            Err(why) => return Truth::Unknown(why),
        };
        let truth = match found {
            Found::Element(_) => Truth::Yes,
            Found::Missing => Truth::No,
            Found::BySource(all) => {
                let prefixes: Prefixes = all.iter().map(|(p, _)| *p).collect();
                self.source_in(st, &prefixes)
            }
            Found::Unknown(why) => Truth::Unknown(format!("{why}: {}", l.set).into()),
        };
        match (truth, l.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (t, _) => t,
        }
    }
}

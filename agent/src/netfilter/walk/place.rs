//! A place that a packet passes: a rule, an element of a map or a chain's policy, and how a proof
//! names it.

use super::hash::Map;
use super::source::is_host;
use crate::netfilter::ruleset::{
    Chain, Data, Element, Field, NatTarget, Op, Rule, Set, Table, Value, Verdict,
};
use model::finding::Evidence;
use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

/// A place that a packet passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'p> {
    pub table: &'p Table,
    pub chain: &'p Chain,
    /// `None`: the chain's policy.
    pub rule: Option<&'p Rule>,
    pub element: Option<(&'p Set, usize)>,
    /// The fields of the element's key.
    pub fields: &'p [Field],
    pub own: bool,
}

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.chain, other.chain)
            && self.rule.map(std::ptr::from_ref) == other.rule.map(std::ptr::from_ref)
            && self.element.map(|(s, i)| (std::ptr::from_ref(s), i))
                == other.element.map(|(s, i)| (std::ptr::from_ref(s), i))
    }
}

impl<'p> Place<'p> {
    /// The element, where it is one.
    pub fn element(&self) -> Option<&'p Element> {
        self.element.and_then(|(s, i)| s.elements.get(i))
    }

    /// As the proof that a report shows.
    pub fn evidence(&self) -> Evidence {
        self.evidence_in(self.table.word().into())
    }

    /// The same with the table's word for its family, which many share.
    fn evidence_in(&self, family: Arc<str>) -> Evidence {
        let text = self
            .element()
            .map(|e| Arc::from(element_text(e, self.fields)));
        // A named map is where the element stands; an anonymous one stands in its rule.
        let named = self.element.map(|(s, _)| s).filter(|s| !s.anonymous);
        Evidence {
            family,
            table: self.table.name.clone(),
            chain: named.map_or_else(|| self.chain.name.clone(), |s| s.name.clone()),
            handle: match named {
                Some(_) => None,
                // A virtual server without real ones has no entry.
                None => self.rule.map(|r| r.handle).filter(|h| *h != 0),
            },
            element: text,
            says: self.says().into(),
        }
    }

    fn says(&self) -> String {
        if let Some(data) = self.element().and_then(|e| e.data.as_ref()) {
            return match data {
                Data::Verdict(v) => verdict_says(v),
                Data::Endpoint(a, p) => translates(Some(*a), *p),
                _ => "maps to something else".to_string(),
            };
        }
        let Some(rule) = self.rule else {
            return "policy drop".to_string();
        };
        for op in rule.ops.iter().rev() {
            match op {
                Op::Verdict(v) => return verdict_says(v),
                Op::Reject => return "refuses the packet".to_string(),
                Op::Dnat(NatTarget::Fixed { address, port }) => return translates(*address, *port),
                Op::Dnat(_) => return "translates the destination".to_string(),
                Op::Redirect { .. } => return "redirects to the node itself".to_string(),
                Op::Masquerade | Op::Snat(_) => return "rewrites the source".to_string(),
                Op::NoTrack => return "takes the packet out of connection tracking".to_string(),
                Op::UnknownStatement(what) => return format!("not understood: {what}"),
                Op::VerdictMap(l) => return format!("looks up a verdict in {}", l.set),
                Op::NumgenVerdictMap { .. } => return "picks one of several by chance".to_string(),
                _ => {}
            }
        }
        "passes".to_string()
    }
}

/// Proofs that were written for other rows: one place is named by many.
#[derive(Default)]
pub(super) struct Proofs {
    /// By the addresses of chain, rule, set, and the element's number.
    written: RefCell<Map<[usize; 4], Evidence>>,
    /// By the table's address.
    families: RefCell<Map<usize, Arc<str>>>,
}

/// Proofs kept: those of a few frontends, and what is common to all.
const KEPT: usize = 4_096;

impl Proofs {
    /// [`Place::evidence`], written once.
    pub fn of(&self, place: &Place<'_>) -> Evidence {
        fn at<T>(thing: &T) -> usize {
            std::ptr::from_ref(thing).addr()
        }
        let key = [
            at(place.chain),
            place.rule.map_or(0, at),
            place.element.map_or(0, |(set, _)| at(set)),
            place.element.map_or(0, |(_, i)| i),
        ];
        let mut written = self.written.borrow_mut();
        if let Some(evidence) = written.get(&key) {
            return evidence.clone();
        }
        if written.len() >= KEPT {
            written.clear();
        }
        let mut families = self.families.borrow_mut();
        let family = families
            .entry(at(place.table))
            .or_insert_with(|| place.table.word().into());
        let evidence = place.evidence_in(family.clone());
        written.insert(key, evidence.clone());
        evidence
    }
}

fn verdict_says(v: &Verdict) -> String {
    match v {
        Verdict::Accept => "lets the packet pass; later rules of this chain do not see it".into(),
        Verdict::Drop => "drops the packet".into(),
        Verdict::Return => "returns".into(),
        Verdict::Jump(to) | Verdict::Goto(to) => format!("leads to {to}"),
        Verdict::Queue => "hands the packet to a program".into(),
        Verdict::Continue => "goes on".into(),
    }
}

fn translates(address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (Some(a), Some(p)) => format!("translates to {}", std::net::SocketAddr::new(a, p)),
        (Some(a), None) => format!("translates to {a}"),
        (None, Some(p)) => format!("translates to port {p}"),
        (None, None) => "translates the destination".into(),
    }
}

/// An element as `nft` shows it: `10.96.0.10 . tcp . 80 : goto service-…`.
pub(super) fn element_text(e: &Element, fields: &[Field]) -> String {
    let part = |i: usize, v: &Value| match v {
        Value::Prefix(p) if is_host(p) => p.addr().to_string(),
        Value::Prefix(p) => p.to_string(),
        Value::AddressRange(range) => format!("{}-{}", range.0, range.1),
        Value::Number(a, b) if a == b => match (fields.get(i), a) {
            (Some(Field::L4proto), 6) => "tcp".to_string(),
            (Some(Field::L4proto), 17) => "udp".to_string(),
            (Some(Field::L4proto), 132) => "sctp".to_string(),
            _ => a.to_string(),
        },
        Value::Number(a, b) => format!("{a}-{b}"),
        Value::Name(n, prefix) => format!("\"{n}{}\"", if *prefix { "*" } else { "" }),
        Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
    };
    let mut text = if e.catch_all {
        "*".to_string()
    } else {
        e.key
            .iter()
            .enumerate()
            .map(|(i, v)| part(i, v))
            .collect::<Vec<_>>()
            .join(" . ")
    };
    if let Some(c) = &e.comment {
        text.push_str(&format!(" comment \"{}\"", c.escape_debug()));
    }
    match &e.data {
        Some(Data::Verdict(v)) => text.push_str(&match v {
            Verdict::Accept => " : accept".to_string(),
            Verdict::Drop => " : drop".to_string(),
            Verdict::Return => " : return".to_string(),
            Verdict::Jump(to) => format!(" : jump {to}"),
            Verdict::Goto(to) => format!(" : goto {to}"),
            Verdict::Queue => " : queue".to_string(),
            Verdict::Continue => " : continue".to_string(),
        }),
        Some(Data::Endpoint(a, Some(p))) => text.push_str(&format!(" : {a} . {p}")),
        Some(Data::Endpoint(a, None)) => text.push_str(&format!(" : {a}")),
        Some(Data::Number(n)) => text.push_str(&format!(" : {n}")),
        Some(Data::Bytes(_)) | None => {}
    }
    text
}

//! What a walk found out, and how the answers of its branches become one.

use super::place::Place;
use super::source::{Prefixes, is_host};
use ipnet::IpNet;
use model::table::{DecidedBy, Masquerade};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// The end of one way through the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// Translated to this destination.
    Forward(SocketAddr),
    Reject,
    Drop,
    /// Left alone.
    None,
}

/// The places that a packet passed, the last one first.
#[derive(Debug)]
pub(super) struct Trail<'p> {
    pub place: Place<'p>,
    pub before: Option<Rc<Trail<'p>>>,
}

/// One end with its share of connections.
#[derive(Clone, Debug)]
pub(super) struct Leaf<'p> {
    pub end: End,
    pub weight: f64,
    pub masquerade: Masquerade,
    pub by: DecidedBy,
    pub trail: Option<Rc<Trail<'p>>>,
    /// Where it was translated.
    pub translated: Option<Place<'p>>,
    /// Lists that remember the client on this way.
    pub updates: Vec<Arc<str>>,
}

/// Ends without any condition but chance.
pub(super) type Plain<'p> = Vec<Leaf<'p>>;

/// The answer of a walk.
#[derive(Clone, Debug)]
pub(super) enum Answer<'p> {
    Plain(Plain<'p>),
    /// One answer for sources in the ranges, another for the rest.
    Ranged {
        ranges: Vec<IpNet>,
        inside: Plain<'p>,
        outside: Plain<'p>,
    },
    Unknown(Arc<str>),
}

const BY_SOURCE: &str = "depends on the source in a way that no list of ranges says";

impl<'p> Answer<'p> {
    pub fn unknown(why: impl Into<Arc<str>>) -> Self {
        Answer::Unknown(why.into())
    }

    /// Parts that chance decides between; the weights sum to 1.
    pub fn mix(parts: Vec<(f64, Answer<'p>)>) -> Self {
        let mut plain: Plain = Vec::new();
        let mut ranged: Option<(Vec<IpNet>, Plain, Plain)> = None;
        let mut count = 0;
        let mut ranged_count = 0;
        for (weight, part) in parts {
            // An answer that never happens does not count.
            if weight <= 1e-12 {
                continue;
            }
            count += 1;
            let scaled = |leaves: Plain<'p>| {
                leaves.into_iter().map(move |l| Leaf {
                    weight: l.weight * weight,
                    ..l
                })
            };
            match part {
                Answer::Unknown(why) => return Answer::Unknown(why),
                Answer::Plain(leaves) => plain.extend(scaled(leaves)),
                Answer::Ranged {
                    ranges,
                    inside,
                    outside,
                } => {
                    ranged_count += 1;
                    match &mut ranged {
                        None => {
                            ranged =
                                Some((ranges, scaled(inside).collect(), scaled(outside).collect()));
                        }
                        Some((known, all_in, all_out)) if *known == ranges => {
                            all_in.extend(scaled(inside));
                            all_out.extend(scaled(outside));
                        }
                        Some(_) => return Answer::unknown(BY_SOURCE),
                    }
                }
            }
        }
        match ranged {
            None => Answer::Plain(plain),
            Some((ranges, inside, outside)) if ranged_count == count => Answer::Ranged {
                ranges,
                inside,
                outside,
            },
            Some(_) => Answer::unknown(BY_SOURCE),
        }
    }

    /// Two answers of which an unknown condition picks one.
    pub fn either(why: Arc<str>, yes: Answer<'p>, no: Answer<'p>) -> Self {
        use Answer::{Plain, Ranged, Unknown};
        let differ =
            |a: Masquerade, b: Masquerade, _: &End| if a == b { a } else { Masquerade::Unknown };
        match (yes, no) {
            (Unknown(w), _) | (_, Unknown(w)) => Unknown(w),
            (Plain(a), Plain(b)) => merged(a, b, differ).map_or(Unknown(why), Plain),
            (
                Ranged {
                    ranges: r,
                    inside: a,
                    outside: x,
                },
                Ranged {
                    ranges: s,
                    inside: b,
                    outside: y,
                },
            ) if r == s => match (merged(a, b, differ), merged(x, y, differ)) {
                (Some(inside), Some(outside)) => Ranged {
                    ranges: r,
                    inside,
                    outside,
                },
                _ => Unknown(why),
            },
            _ => Unknown(why),
        }
    }

    /// Two answers, one for sources in the prefixes, one for the rest.
    pub fn by_source(prefixes: &Prefixes, yes: Answer<'p>, no: Answer<'p>) -> Self {
        use Answer::{Plain, Ranged, Unknown};
        let masquerade = |a: Masquerade, b: Masquerade, end: &End| match (a, b, end) {
            (a, b, _) if a == b => a,
            (Masquerade::Always, Masquerade::Never, End::Forward(to))
                if prefixes.iter().all(|p| is_host(p) && p.addr() == to.ip()) =>
            {
                Masquerade::Hairpin
            }
            _ => Masquerade::Unknown,
        };
        match (yes, no) {
            (Unknown(w), _) | (_, Unknown(w)) => Unknown(w),
            (Plain(a), Plain(b)) => {
                if same(&a, &b) {
                    return merged(a, b, masquerade).map_or(Answer::unknown(BY_SOURCE), Plain);
                }
                let own = |p: &Vec<Leaf>| p.iter().all(|l| l.by != DecidedBy::Foreign);
                let ranges = sorted(prefixes.to_vec());
                match (forwards(&a), forwards(&b)) {
                    (true, false) => Ranged {
                        ranges,
                        inside: a,
                        outside: b,
                    },
                    (false, false) if own(&a) && own(&b) => Ranged {
                        ranges,
                        inside: a,
                        outside: b,
                    },
                    // A list of those who are kept out: a firewall of somebody else's is not the
                    // Service's list of ranges.
                    (false, true) if own(&a) => Ranged {
                        ranges: complement(&ranges),
                        inside: b,
                        outside: a,
                    },
                    _ => Answer::unknown(by_rule(&a, &b)),
                }
            }
            (
                Plain(a),
                Ranged {
                    ranges,
                    inside,
                    outside,
                },
            ) => {
                if same(&a, &inside) {
                    let mut all = ranges;
                    all.extend(prefixes.iter().copied());
                    match merged(inside, a, |a, b, end| masquerade(b, a, end)) {
                        Some(inside) => Ranged {
                            ranges: sorted(all),
                            inside,
                            outside,
                        },
                        None => Answer::unknown(BY_SOURCE),
                    }
                } else if same(&a, &outside)
                    && ranges
                        .iter()
                        .all(|r| prefixes.iter().all(|p| !super::source::overlap(p, r)))
                {
                    Ranged {
                        ranges,
                        inside,
                        outside,
                    }
                } else {
                    Answer::unknown(BY_SOURCE)
                }
            }
            (
                Ranged {
                    ranges,
                    inside,
                    outside,
                },
                Plain(b),
            ) if same(&b, &outside) => {
                let mut both: Vec<IpNet> = Vec::new();
                for r in &ranges {
                    for p in prefixes.iter() {
                        if p.contains(r) {
                            both.push(*r);
                        } else if r.contains(p) {
                            both.push(*p);
                        }
                    }
                }
                Ranged {
                    ranges: sorted(both),
                    inside,
                    outside,
                }
            }
            (
                Ranged {
                    ranges: r,
                    inside: a,
                    outside: x,
                },
                Ranged {
                    ranges: s,
                    inside: b,
                    outside: y,
                },
            ) if r == s => match (merged(a, b, masquerade), merged(x, y, masquerade)) {
                (Some(inside), Some(outside)) => Ranged {
                    ranges: r,
                    inside,
                    outside,
                },
                _ => Answer::unknown(BY_SOURCE),
            },
            _ => Answer::unknown(BY_SOURCE),
        }
    }
}

fn by_rule(a: &Plain, b: &Plain) -> String {
    match a.iter().chain(b).find(|l| l.by == DecidedBy::Foreign) {
        Some(Leaf { trail: Some(t), .. }) => {
            format!("depends on the source: {}", t.place.evidence())
        }
        _ => BY_SOURCE.to_string(),
    }
}

fn forwards(p: &Plain) -> bool {
    p.iter().any(|l| matches!(l.end, End::Forward(_)))
}

/// One leaf for each end, sorted.
pub(super) fn tidy(mut leaves: Plain) -> Plain {
    if leaves.len() < 2 {
        return leaves;
    }
    leaves.sort_by_key(|l| l.end);
    let mut out: Plain = Vec::with_capacity(leaves.len());
    for leaf in leaves {
        match out.last_mut() {
            Some(last) if last.end == leaf.end => {
                last.weight += leaf.weight;
                last.masquerade = match (last.masquerade, leaf.masquerade) {
                    (a, b) if a == b => a,
                    (Masquerade::Never, Masquerade::Hairpin)
                    | (Masquerade::Hairpin, Masquerade::Never) => Masquerade::Hairpin,
                    _ => Masquerade::Unknown,
                };
                last.updates.retain(|u| leaf.updates.contains(u));
                if leaf.by == DecidedBy::Foreign {
                    last.by = DecidedBy::Foreign;
                    last.trail = leaf.trail;
                }
            }
            _ => out.push(leaf),
        }
    }
    out
}

/// The same ends in the same shares?
fn same(a: &Plain, b: &Plain) -> bool {
    if let ([a], [b]) = (&a[..], &b[..]) {
        return a.end == b.end;
    }
    let (a, b) = (tidy(a.clone()), tidy(b.clone()));
    a.len() == b.len()
        && a.iter()
            .zip(&b)
            .all(|(a, b)| a.end == b.end && (a.weight - b.weight).abs() < 1e-9)
}

/// Both as one, where they are the same but for masquerade.
fn merged<'p>(
    a: Plain<'p>,
    b: Plain<'p>,
    masquerade: impl Fn(Masquerade, Masquerade, &End) -> Masquerade,
) -> Option<Plain<'p>> {
    let (a, b) = (tidy(a), tidy(b));
    if a.len() != b.len() {
        return None;
    }
    let mut out = Vec::with_capacity(a.len());
    for (mut a, b) in a.into_iter().zip(b) {
        if a.end != b.end || (a.weight - b.weight).abs() >= 1e-9 {
            return None;
        }
        a.masquerade = masquerade(a.masquerade, b.masquerade, &a.end);
        a.updates.retain(|u| b.updates.contains(u));
        if b.by == DecidedBy::Foreign {
            a.by = b.by;
            a.trail = b.trail;
        }
        out.push(a);
    }
    Some(out)
}

/// Every address but these.
fn complement(ranges: &[IpNet]) -> Vec<IpNet> {
    let v4 = ranges.first().is_none_or(|r| r.addr().is_ipv4());
    let all: IpNet = if v4 {
        IpNet::V4(ipnet::Ipv4Net::default())
    } else {
        IpNet::V6(ipnet::Ipv6Net::default())
    };
    let mut left = vec![all];
    for r in ranges {
        let mut next = Vec::new();
        let mut todo = left;
        while let Some(p) = todo.pop() {
            if !super::source::overlap(&p, r) {
                next.push(p);
            } else if !r.contains(&p)
                && let Ok(halves) = p.subnets(p.prefix_len() + 1)
            {
                todo.extend(halves);
            }
        }
        left = next;
    }
    sorted(left)
}

/// Aggregated and in order.
fn sorted(prefixes: Vec<IpNet>) -> Vec<IpNet> {
    let mut all = IpNet::aggregate(&prefixes);
    all.sort();
    all
}

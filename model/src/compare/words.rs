//! The sentences.

use super::clause;
use super::pair::{SHARE_TOLERANCE, twin, wrong_masquerade};
use crate::address::{Family, Frontend, SourceClass};
use crate::finding::{Evidence, Fact, FindingKind};
use crate::report::NotJudged;
use crate::table::{Action, Affinity, Backend, Forwarding, Masquerade, SourceRanges};
use crate::view::ClusterView;
use std::net::SocketAddr;

/// Backends named in one sentence; the rest is counted.
const NAMED: usize = 3;

/// The reason in the closed list for a walker's reason in words.
pub(super) fn why_unknown(why: &str) -> NotJudged {
    if why.contains("fork") {
        NotJudged::TooManyForks
    } else {
        NotJudged::UnknownExpression
    }
}

/// The evidence that there is nothing.
pub(super) fn absent(family: Family, frontend: Frontend) -> Evidence {
    clause(format!(
        "no rule or element of the node's {family} rules names {frontend}"
    ))
}

/// ` (from pods and the node)`; nothing where it is so from everywhere.
pub(super) fn from_where(sources: &[SourceClass]) -> String {
    if sources.is_empty() || sources.len() == SourceClass::ALL.len() {
        return String::new();
    }
    let names: Vec<&str> = sources
        .iter()
        .map(|s| match s {
            SourceClass::Pod => "Pods",
            SourceClass::Node => "the node itself",
            SourceClass::Outside => "outside",
        })
        .collect();
    format!(" (for connections from {})", names.join(" and "))
}

/// `1/3`, or a percentage where it is no simple fraction.
pub(super) fn share(share: f64) -> String {
    for n in 1..=100u32 {
        let k = share * f64::from(n);
        if (k - k.round()).abs() < SHARE_TOLERANCE && k.round() >= 1.0 {
            return if k.round() as u32 == n {
                "all".into()
            } else {
                format!("{}/{n}", k.round())
            };
        }
    }
    format!("{:.2} %", share * 100.0)
}

fn list(backends: &[Backend]) -> String {
    let names: Vec<String> = backends
        .iter()
        .take(NAMED)
        .map(|b| b.address.to_string())
        .collect();
    let rest = backends.len() - names.len();
    match (names.is_empty(), rest) {
        (true, _) => "no backend".into(),
        (_, 0) => names.join(", "),
        (_, n) => format!("{} and {n} more", names.join(", ")),
    }
}

/// `forwards to 10.244.1.5:8080`, `refuses them`.
pub(super) fn does(f: &Forwarding) -> String {
    match &f.action {
        Action::Forward => format!("sends them to {}", list(&f.backends)),
        Action::Reject => "refuses them".into(),
        Action::Drop => "drops them".into(),
        Action::None => "leaves them alone".into(),
        Action::Unknown(why) => format!("does something unknown with them ({why})"),
    }
}

fn must(f: &Forwarding) -> String {
    match &f.action {
        Action::Forward => format!("must be sent to {}", list(&f.backends)),
        Action::Reject => "must be refused".into(),
        Action::Drop => "must be dropped".into(),
        Action::None => "must be left alone".into(),
        Action::Unknown(why) => format!("get something unknown ({why})"),
    }
}

fn affinity(a: &Affinity) -> String {
    match a {
        Affinity::None => "no session affinity".into(),
        Affinity::ClientIp(s) => format!("session affinity of {s} s"),
        Affinity::Broken(why) => format!("broken session affinity ({why})"),
    }
}

fn ranges(r: Option<&SourceRanges>) -> String {
    match r {
        None => "everybody".into(),
        Some(r) if r.ranges.is_empty() => "nobody".into(),
        Some(r) => {
            let names: Vec<String> = r
                .ranges
                .iter()
                .take(NAMED)
                .map(ToString::to_string)
                .collect();
            let rest = r.ranges.len() - names.len();
            let more = if rest > 0 {
                format!(" and {rest} more ranges")
            } else {
                String::new()
            };
            format!(
                "{}{more} (others: {})",
                names.join(", "),
                r.otherwise.word()
            )
        }
    }
}

fn masquerade(m: Masquerade) -> &'static str {
    match m {
        Masquerade::Never => "never rewritten",
        Masquerade::Always => "always rewritten to the node's",
        Masquerade::Hairpin => "rewritten only for a client that is its own backend",
        Masquerade::Unknown => "rewritten or not, which is unknown",
    }
}

/// What the EndpointSlices of the fact's Service say about a backend.
fn offer(view: &ClusterView, fact: &Fact, backend: SocketAddr) -> String {
    let Some(service) = &fact.service else {
        return "which no Service asks for".into();
    };
    if !view.services.contains_key(&service.service) {
        return "whose Service is gone".into();
    }
    let slices = view.slices_of(&service.service);
    let listed = slices
        .filter(|s| s.ports.iter().any(|p| p.port == Some(backend.port())))
        .find_map(|s| {
            let e = s
                .endpoints
                .iter()
                .find(|e| e.address == Some(backend.ip()))?;
            Some((s.name.name.clone(), e))
        });
    match listed {
        None => format!("which no EndpointSlice of {} offers", service.service),
        Some((slice, e)) => format!(
            "which is not to be used here (EndpointSlice {slice}: ready {}, serving {}, terminating {})",
            e.ready, e.serving, e.terminating
        ),
    }
}

/// What the API asks for, as the last piece of evidence.
pub(super) fn api_says(view: &ClusterView, fact: &Fact, d: &Forwarding) -> Evidence {
    let subject = match &fact.service {
        Some(s) => format!("Service {}", s.service),
        None => "the Services".into(),
    };
    clause(match fact.kind {
        FindingKind::StaleFrontend => match &fact.service {
            Some(s) if !view.services.contains_key(&s.service) => {
                format!("the API has no Service {}", s.service)
            }
            Some(s) => format!("Service {} does not ask for this frontend", s.service),
            None => "no Service asks for this frontend".into(),
        },
        FindingKind::StaleBackend => match fact.backend {
            Some(b) => format!("the API: {b}, {}", offer(view, fact, b)),
            None => "the API does not offer this backend".into(),
        },
        FindingKind::WrongAffinity => format!("{subject}: {}", affinity(&d.affinity)),
        FindingKind::WrongSourceRanges => {
            format!("{subject}: open to {}", ranges(d.source_ranges.as_ref()))
        }
        _ => format!("the API: connections {}", must(d)),
    })
}

/// One sentence for a person; [`from_where`] is added at the end.
pub(super) fn says(view: &ClusterView, fact: &Fact, d: &Forwarding, o: &Forwarding) -> String {
    let frontend = fact.frontend.map(|f| f.to_string()).unwrap_or_default();
    let what = match &fact.service {
        Some(s) => format!("{s} on {frontend}"),
        None => frontend,
    };
    match fact.kind {
        FindingKind::MissingFrontend => {
            format!(
                "{what}: connections {}, and the kernel leaves them alone",
                must(d)
            )
        }
        FindingKind::StaleFrontend => {
            let why = match &fact.service {
                Some(s) if !view.services.contains_key(&s.service) => "its Service is gone",
                Some(_) => "its Service does not ask for this frontend",
                None => "no Service asks for this frontend",
            };
            format!(
                "{what}: the kernel still takes connections and {}, but {why}",
                does(o)
            )
        }
        FindingKind::MissingBackend => {
            let b = fact.backend.map(|b| b.to_string()).unwrap_or_default();
            let part = fact
                .backend
                .and_then(|b| d.backends.iter().find(|x| x.address == b))
                .map(|b| share(b.share))
                .unwrap_or_default();
            format!("{what} sends no new connections to {b}, which should get {part} of them")
        }
        FindingKind::StaleBackend => {
            let Some(b) = fact.backend else { return what };
            let part = o
                .backends
                .iter()
                .find(|x| x.address == b)
                .map(|b| share(b.share))
                .unwrap_or_default();
            let offer = offer(view, fact, b);
            format!("{what} still sends {part} of new connections to {b}, {offer}")
        }
        FindingKind::WrongShare => {
            let worst = d
                .backends
                .iter()
                .filter_map(|b| twin(o, b).map(|t| (b, t)))
                .max_by(|x, y| {
                    (x.0.share - x.1.share)
                        .abs()
                        .total_cmp(&(y.0.share - y.1.share).abs())
                });
            match worst {
                Some((b, t)) => format!(
                    "{what} sends {} of new connections to {}, which should get {}",
                    share(t.share),
                    b.address,
                    share(b.share)
                ),
                None => format!("{what} spreads connections in wrong proportions"),
            }
        }
        FindingKind::WrongAffinity => format!(
            "{what} has {}, where the Service asks for {}",
            affinity(&o.affinity),
            affinity(&d.affinity)
        ),
        FindingKind::WrongSourceRanges => format!(
            "{what} is open to {}, where the Service asks for {}",
            ranges(o.source_ranges.as_ref()),
            ranges(d.source_ranges.as_ref())
        ),
        FindingKind::WrongMasquerade => {
            let wrong = d
                .backends
                .iter()
                .filter_map(|b| twin(o, b).map(|t| (b, t)))
                .find(|(b, t)| wrong_masquerade(b, t));
            match wrong {
                Some((b, t)) => format!(
                    "{what}: the source address of connections to {} is {}, and should be {}",
                    b.address,
                    masquerade(t.masquerade),
                    masquerade(b.masquerade)
                ),
                None => format!("{what}: source addresses are rewritten wrongly"),
            }
        }
        _ => format!(
            "{what}: connections {}, and the kernel {}",
            must(d),
            does(o)
        ),
    }
}

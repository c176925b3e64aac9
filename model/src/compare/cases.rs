//! For every kind one case that provokes it, and near misses that stay silent.

use super::*;
use crate::examine::kit::{
    A, B, WEB, World, evidence, forward, frontend, hook, observed, plain, web,
};
use crate::finding::Severity;
use crate::name::ServicePortName;
use crate::table::{Affinity, Masquerade, SourceRanges};
use std::sync::Arc;

pub(super) fn compared(w: &World) -> Comparison {
    compare(
        &w.desired,
        &w.snapshot,
        &w.node,
        &w.profile,
        &w.view,
        false,
        &[],
    )
}

fn kinds(w: &World) -> Vec<FindingKind> {
    compared(w)
        .differences
        .iter()
        .map(|d| d.fact.kind)
        .collect()
}

fn only(w: &World) -> Difference {
    let mut all = compared(w).differences;
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

fn ranges(text: &[&str], otherwise: Action) -> Option<SourceRanges> {
    Some(SourceRanges {
        ranges: text.iter().map(|r| r.parse().unwrap()).collect(),
        otherwise,
    })
}

#[test]
fn agreement_is_silent_and_counted() {
    let w = World::new();
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(
        (c.judged.pairs, c.judged.unknown, c.judged.not_comparable),
        (3, 0, 0)
    );
    assert!(c.unsettled.is_empty());
    assert_eq!(c.rows.len(), 3);
}

#[test]
fn missing_frontend() {
    let mut w = World::new();
    w.forget(WEB);
    let d = only(&w);
    assert_eq!(
        (d.fact.kind, d.severity),
        (FindingKind::MissingFrontend, Severity::Critical)
    );
    assert_eq!(d.sources, SourceClass::ALL);
    assert_eq!(d.fact.service, Some(web()));
    assert!(
        d.says.contains("shop/web:http on 10.96.0.10:80/TCP"),
        "{}",
        d.says
    );
    assert!(!d.beyond_the_api);

    // Near miss: left alone is one of the legitimate answers.
    for one_of in w.desired.values_mut() {
        one_of.or(plain(Action::None), Because::UnknownVersion);
    }
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(c.judged.multi_answer, 3);
}

#[test]
fn stale_frontend() {
    let mut w = World::new();
    w.kernel(
        "10.96.0.11:80/TCP",
        forward(ServicePortName::new("shop", "old", ""), &[A]),
    );
    let d = only(&w);
    assert_eq!(
        (d.fact.kind, d.severity),
        (FindingKind::StaleFrontend, Severity::Warning)
    );
    assert!(
        d.says.contains("shop/old on 10.96.0.11:80/TCP"),
        "{}",
        d.says
    );
    assert!(d.says.contains("its Service is gone"), "{}", d.says);

    // Near misses: somebody else's destination (a host port); one that nothing happens to.
    let mut w = World::new();
    w.kernel_by(
        "192.168.0.5:8443/TCP",
        forward(web(), &[A]),
        DecidedBy::Foreign,
    );
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(
        (c.judged.pairs, c.rows.len()),
        (3, 3),
        "a host port is not judged"
    );
    w.kernel_by("10.96.0.12:80/TCP", plain(Action::None), DecidedBy::Nobody);
    assert_eq!(kinds(&w), []);
}

#[test]
fn a_refusal_that_the_wildcard_gives_anyway_is_not_stale() {
    let mut w = World::new();
    w.both(
        "10.96.0.10:*/*",
        Forwarding::without_backends(None, Action::Reject),
    );
    w.kernel("10.96.0.10:81/TCP", plain(Action::Reject));
    assert_eq!(kinds(&w), []);
    w.kernel("10.96.0.10:81/TCP", forward(web(), &[A]));
    assert_eq!(kinds(&w), [FindingKind::StaleFrontend]);
    // The address's other ports are refused no more.
    w.forget("10.96.0.10:81/TCP");
    w.forget("10.96.0.10:*/*");
    assert_eq!(kinds(&w), [FindingKind::WrongAction]);
}

#[test]
fn an_unasked_range_is_not_comparable() {
    let mut w = World::new();
    w.kernel(
        "10.96.0.0/16:*/*",
        Forwarding::without_backends(None, Action::Reject),
    );
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(
        c.judged.not_comparable_reasons[&NotJudged::ServiceCidrUnknown],
        3
    );
    // An unasked address is stale.
    let mut w = World::new();
    w.kernel(
        "10.96.0.77:*/*",
        Forwarding::without_backends(None, Action::Reject),
    );
    assert_eq!(kinds(&w), [FindingKind::StaleFrontend]);
}

#[test]
fn missing_and_stale_backends_without_a_share() {
    let mut w = World::new();
    w.kernel(WEB, forward(web(), &[A]));
    let d = only(&w);
    assert_eq!(
        (d.fact.kind, d.fact.backend),
        (FindingKind::MissingBackend, B.parse().ok())
    );
    assert!(d.says.contains("should get 1/2"), "{}", d.says);

    w.kernel(WEB, forward(web(), &[A, B, "10.244.3.9:8080"]));
    let d = only(&w);
    assert_eq!(d.fact.kind, FindingKind::StaleBackend);
    assert_eq!(d.severity, Severity::Critical);
    assert_eq!(
        d.says,
        "shop/web:http on 10.96.0.10:80/TCP still sends 1/3 of new connections to 10.244.3.9:8080, \
         which no EndpointSlice of shop/web offers"
    );
    assert_eq!(
        &*d.evidence[0].says, "dnat to 10.244.3.9:8080",
        "the backend's own rule comes first"
    );

    // One source only.
    let mut w = World::new();
    let key = (frontend(WEB), SourceClass::Node);
    w.rows(Family::V4)
        .insert(key, observed(forward(web(), &[A]), DecidedBy::Datapath));
    let d = only(&w);
    assert_eq!(d.sources, [SourceClass::Node]);
    assert!(
        d.says.ends_with("(for connections from the node itself)"),
        "{}",
        d.says
    );
}

#[test]
fn wrong_share() {
    let shares = |a: f64, b: f64| {
        let mut f = forward(web(), &[A, B]);
        let backends = Arc::make_mut(&mut f.backends);
        (backends[0].share, backends[1].share) = (a, b);
        f
    };
    let mut w = World::new();
    w.kernel(WEB, shares(2.0 / 3.0, 1.0 / 3.0));
    assert_eq!(only(&w).fact.kind, FindingKind::WrongShare);
    // Near miss: the tenth digit of a probability.
    w.kernel(WEB, shares(0.5 + 3e-10, 0.5 - 3e-10));
    assert_eq!(kinds(&w), []);
}

#[test]
fn wrong_action() {
    let mut w = World::new();
    w.ask(WEB, plain(Action::Reject));
    let d = only(&w);
    assert_eq!(
        (d.fact.kind, d.severity),
        (FindingKind::WrongAction, Severity::Critical)
    );
    w.forget(WEB);
    assert_eq!(
        only(&w).fact.kind,
        FindingKind::WrongAction,
        "a reject that is gone"
    );
    w.ask(WEB, forward(web(), &[A]));
    w.kernel(WEB, plain(Action::Drop));
    assert_eq!(only(&w).fact.kind, FindingKind::WrongAction);
    // Near miss: what is asked for.
    w.ask(WEB, plain(Action::Drop));
    assert_eq!(kinds(&w), []);
}

#[test]
fn wrong_affinity() {
    let with = |affinity| {
        let mut f = forward(web(), &[A, B]);
        f.affinity = affinity;
        f
    };
    for (asked, is) in [
        (Affinity::None, Affinity::ClientIp(10)),
        (Affinity::ClientIp(10), Affinity::None),
        (Affinity::ClientIp(10), Affinity::ClientIp(20)),
        (
            Affinity::ClientIp(10),
            Affinity::Broken("a check without an update".into()),
        ),
    ] {
        let mut w = World::new();
        w.ask(WEB, with(asked));
        w.kernel(WEB, with(is));
        assert_eq!(only(&w).fact.kind, FindingKind::WrongAffinity);
    }
    let mut w = World::new();
    w.both(WEB, with(Affinity::ClientIp(10_800)));
    assert_eq!(kinds(&w), []);
}

#[test]
fn wrong_source_ranges() {
    let with = |ranges| {
        let mut f = forward(web(), &[A, B]);
        f.source_ranges = ranges;
        f
    };
    let mut w = World::new();
    w.ask(WEB, with(ranges(&["10.0.0.0/24"], Action::Drop)));
    for wrong in [
        None,
        ranges(&["10.0.0.0/23"], Action::Drop),
        ranges(&["10.0.0.0/24"], Action::None),
    ] {
        w.kernel(WEB, with(wrong));
        assert_eq!(only(&w).fact.kind, FindingKind::WrongSourceRanges);
    }
    // Near misses: merged and sorted otherwise; a range of the other family; everything.
    w.kernel(
        WEB,
        with(ranges(&["10.0.0.128/25", "10.0.0.0/25"], Action::Drop)),
    );
    assert_eq!(kinds(&w), []);
    w.ask(
        WEB,
        with(ranges(&["10.0.0.0/24", "fd00::/8"], Action::Drop)),
    );
    assert_eq!(kinds(&w), []);
    w.ask(
        WEB,
        with(ranges(&["10.0.0.0/24", "0.0.0.0/0"], Action::Drop)),
    );
    w.kernel(WEB, with(None));
    assert_eq!(kinds(&w), []);
}

#[test]
fn wrong_masquerade() {
    let with = |m| {
        let mut f = forward(web(), &[A, B]);
        Arc::make_mut(&mut f.backends)[0].masquerade = m;
        f
    };
    let mut w = World::new();
    w.ask(WEB, with(Masquerade::Hairpin));
    let d = only(&w);
    assert_eq!(
        (d.fact.kind, d.severity),
        (FindingKind::WrongMasquerade, Severity::Critical)
    );
    w.ask(WEB, with(Masquerade::Never));
    w.kernel(WEB, with(Masquerade::Always));
    assert_eq!(only(&w).severity, Severity::Warning);
    // Near miss: it could not be told. Then the pair is unknown, not right.
    w.kernel(WEB, with(Masquerade::Unknown));
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!((c.judged.pairs, c.judged.unknown), (0, 3));
}

#[test]
fn the_closest_answer_counts() {
    let mut w = World::new();
    for one_of in w.desired.values_mut() {
        one_of.or(forward(web(), &[A]), Because::DuplicateEndpoint);
    }
    w.kernel(WEB, forward(web(), &[A]));
    assert_eq!(kinds(&w), []);
    w.kernel(WEB, forward(web(), &[A, B, "10.244.3.9:8080"]));
    let d = only(&w);
    assert_eq!(d.fact.kind, FindingKind::StaleBackend);
}

#[test]
fn unknown_is_neither_right_nor_wrong() {
    let mut w = World::new();
    let why: Arc<str> = "an expression named xyz".into();
    w.kernel(WEB, plain(Action::Unknown(why)));
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(c.judged.unknown_reasons[&NotJudged::UnknownExpression], 3);
    assert!(c.unsettled.contains(&web().service));
    w.kernel(WEB, plain(Action::Unknown("more than 4096 forks".into())));
    assert_eq!(
        compared(&w).judged.unknown_reasons[&NotJudged::TooManyForks],
        3
    );
}

#[test]
fn a_foreign_rule_is_one_difference() {
    let mut w = World::new();
    w.both(
        "10.96.0.20:80/TCP",
        forward(ServicePortName::new("shop", "two", ""), &[B]),
    );
    for at in [WEB, "10.96.0.20:80/TCP"] {
        w.kernel_by(at, forward(web(), &["10.9.9.9:1"]), DecidedBy::Foreign);
        for o in w.rows(Family::V4).values_mut() {
            o.backend_evidence = Arc::new([evidence("evil", "dnat to 10.9.9.9:1")]);
        }
    }
    let d = only(&w);
    assert_eq!(
        (d.fact.kind, d.severity),
        (FindingKind::ForeignRule, Severity::Critical)
    );
    assert!(d.beyond_the_api);
    assert_eq!(&*d.evidence[0].chain, "evil");
    // Of the first two backends are missing and one is stale, of the second one is.
    assert_eq!(d.absorbs, 5);
    // Near miss: a foreign rule that does what the API asks for.
    let mut w = World::new();
    w.kernel_by(WEB, forward(web(), &[A, B]), DecidedBy::Foreign);
    assert_eq!(kinds(&w), []);
    assert_eq!(compared(&w).judged.pairs, 3);
}

#[test]
fn hooks_missing_absorbs_what_follows() {
    let mut w = World::new();
    w.snapshot.hooks[0] = hook("nat-prerouting -> services", false);
    for source in [SourceClass::Pod, SourceClass::Outside] {
        w.rows(Family::V4).insert(
            (frontend(WEB), source),
            observed(plain(Action::None), DecidedBy::Nobody),
        );
    }
    let c = compared(&w);
    let [d] = &c.differences[..] else {
        panic!("{:#?}", c.differences)
    };
    assert_eq!((d.fact.kind, d.absorbs), (FindingKind::HooksMissing, 1));
    assert_eq!(d.sources, [SourceClass::Pod, SourceClass::Outside]);
    assert!(
        d.beyond_the_api && d.says.contains("nat-prerouting -> services"),
        "{}",
        d.says
    );
    assert_eq!(c.pairs[&d.fact].len(), 2);
    assert!(c.unsettled.contains(&web().service));

    // What a lost hook cannot explain stays.
    w.kernel("10.96.0.99:80/TCP", forward(web(), &[A]));
    assert_eq!(
        kinds(&w),
        [FindingKind::StaleFrontend, FindingKind::HooksMissing]
    );

    // Near miss: no Service of the family.
    let mut w = World::new();
    w.snapshot.hooks.push(crate::capture::Hook {
        family: Family::V6,
        ..hook("nat-prerouting -> services", false)
    });
    assert_eq!(kinds(&w), []);
}

#[test]
fn a_table_that_is_gone_says_so() {
    let mut w = World::new();
    w.snapshot.tables.insert(Family::V4, Reading::Absent);
    w.snapshot.hooks.clear();
    w.snapshot.datapaths.clear();
    let d = only(&w);
    assert_eq!((d.fact.kind, d.absorbs), (FindingKind::HooksMissing, 1));
    assert!(d.says.contains("are gone"), "{}", d.says);
    // Near misses: only a hint says that kube-proxy is in charge here.
    for (mode, from) in [
        (ProxyMode::Nftables, LearntFrom::ConfigMap),
        (ProxyMode::Iptables, LearntFrom::ConfigMap),
    ] {
        w.profile.mode = Some(crate::profile::Learnt { value: mode, from });
        w.snapshot.datapaths = vec![crate::capture::DatapathFound {
            name: format!("kube-proxy/{mode}").into(),
            version: None,
            state: DatapathState::InCharge,
            why: "a hint".into(),
        }];
        let c = compared(&w);
        assert!(c.differences.is_empty());
        assert_eq!(c.judged.unknown_reasons[&NotJudged::NoDatapath], 3);
        // Unless they were seen before.
        let c = compare(
            &w.desired,
            &w.snapshot,
            &w.node,
            &w.profile,
            &w.view,
            true,
            &[],
        );
        assert_eq!(c.differences[0].fact.kind, FindingKind::HooksMissing);
    }
    w.snapshot.datapaths.clear();
    w.profile.mode = None;
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(c.judged.unknown_reasons[&NotJudged::NoDatapath], 3);
    // IPVS is like the others.
    w.profile.mode = Some(crate::profile::Learnt {
        value: ProxyMode::Ipvs,
        from: LearntFrom::Proxy,
    });
    let c = compared(&w);
    assert!(c.judged.not_comparable_reasons.is_empty());
    assert!(!c.differences.is_empty());
}

#[test]
fn unreadable() {
    let mut w = World::new();
    let gap = crate::capture::Gap {
        what: "nf_tables ip".into(),
        why: "EPERM".into(),
    };
    w.snapshot
        .tables
        .insert(Family::V4, Reading::Failed(gap.clone()));
    let c = compared(&w);
    assert_eq!(c.differences.len(), 1);
    assert_eq!(c.differences[0].fact.kind, FindingKind::Unreadable);
    assert_eq!(c.judged.unknown_reasons[&NotJudged::Unreadable], 3);
    // Near miss: a family that nobody asks for.
    let mut w = World::new();
    w.snapshot.tables.insert(Family::V6, Reading::Failed(gap));
    assert_eq!(kinds(&w), []);
    // Own rules that were not understood.
    w.snapshot.tables.insert(Family::V6, Reading::Absent);
    w.snapshot.coverage.unknown_in_own_rules = vec![evidence("services", "xyz")];
    assert_eq!(kinds(&w), [FindingKind::Unreadable]);
}

#[test]
fn ipv6_is_not_expected_on_a_node_without_it() {
    let mut w = World::new();
    let six = "[fd00::10]:80/TCP";
    w.ask(six, forward(web(), &["[fd01::5]:80"]));
    assert_eq!(kinds(&w), [FindingKind::HooksMissing], "the node has ::1");
    w.node.addresses.retain(|a| a.address.is_ipv4());
    let c = compared(&w);
    assert!(c.differences.is_empty());
    assert_eq!(
        c.judged.not_comparable_reasons[&NotJudged::SourceImpossible],
        3
    );
    w.kernel(six, forward(web(), &["[fd01::6]:80"]));
    assert_eq!(
        kinds(&w),
        [FindingKind::MissingBackend, FindingKind::StaleBackend]
    );
}

#[test]
fn api_conflict_is_worth_knowing() {
    let mut w = World::new();
    let other = ServicePortName::new("shop", "twin", "http");
    for one_of in w.desired.values_mut() {
        one_of.or(forward(other.clone(), &["10.244.7.7:1"]), Because::Conflict);
    }
    let c = compared(&w);
    let [d] = &c.differences[..] else {
        panic!("{:#?}", c.differences)
    };
    assert_eq!(
        (d.fact.kind, d.severity),
        (FindingKind::ApiConflict, Severity::Info)
    );
    assert!(c.unsettled.is_empty(), "the kernel does one of the two");
    // Near miss: two answers for another reason.
    for one_of in w.desired.values_mut() {
        one_of.because = Because::UnknownVersion;
    }
    assert_eq!(kinds(&w), []);
}

//! Lateness is never drift; damage is. The clocks are the tests' own.

use super::*;
use crate::compare::compare;
use crate::examine::kit::{
    A, B, WEB, World, converging, evidence, forward, hook, kinds, plain, service, web,
};
use crate::finding::Severity;
use crate::name::ServicePortName;
use crate::table::{Action, DecidedBy};
use crate::time::Millis;
use crate::view::Change;

/// Twice the sync period of 30 s, and 10 s; no sync was longer.
const DEADLINE_MS: u64 = 70_000;

const C: &str = "10.244.3.9:8080";

/// The API has taken B away and put C in its place; the kernel is late.
fn late() -> World {
    let mut w = World::new();
    w.pass();
    w.touch();
    w.ask(WEB, forward(web(), &[A, C]));
    w
}

/// The kernel agreed, and then somebody took a backend away from its rules.
fn damaged() -> World {
    let mut w = World::new();
    w.pass();
    w.pass();
    w.kernel(WEB, forward(web(), &[A]));
    w
}

#[test]
fn lateness_converges_until_the_deadline() {
    let mut w = late();
    let report = w.pass();
    assert_eq!(kinds(&report), []);
    assert_eq!(
        converging(&report),
        [FindingKind::StaleBackend, FindingKind::MissingBackend]
    );
    assert_eq!((report.judged.pairs, report.judged.converging), (3, 3));
    assert_eq!(crate::report::exit_code(&report), 2);
    let first = w.now;
    while w.now.mono.since(first.mono) + 2_000 < DEADLINE_MS {
        let report = w.pass();
        assert_eq!(kinds(&report), [], "{:#?}", report.findings);
    }
    let report = w.pass();
    assert_eq!(
        kinds(&report),
        [FindingKind::StaleBackend, FindingKind::MissingBackend]
    );
    assert_eq!(report.findings[0].since, first.wall);
    assert!(
        report.findings[0].because.contains("70 s"),
        "{}",
        report.findings[0].because
    );
    assert_eq!(crate::report::exit_code(&report), 1);
    // It clears by itself.
    w.kernel(WEB, forward(web(), &[A, C]));
    let report = w.pass();
    assert_eq!((kinds(&report), converging(&report)), (vec![], vec![]));
    assert_eq!(report.verdict, "All 3 judged pairs agree with the API.");
}

#[test]
fn a_service_that_changes_every_second_does_not_hide_a_wrong_backend() {
    let mut w = late();
    let mut at = None;
    for _ in 0..40 {
        w.touch();
        if kinds(&w.pass()).contains(&FindingKind::StaleBackend) {
            at = Some(w.now);
            break;
        }
    }
    assert!(at.is_some());
}

#[test]
fn a_completed_sync_that_started_later_convicts() {
    let mut w = late();
    w.pass();
    // Started too soon after the fact was known: kube-proxy's watch may have been behind.
    w.wait(2_000);
    w.synced(100);
    for _ in 0..3 {
        assert_eq!(kinds(&w.pass()), []);
    }
    // Long enough after it; the reading of the same pass does not count, the next one does.
    w.synced(100);
    assert_eq!(kinds(&w.pass()), []);
    let report = w.pass();
    assert_eq!(
        kinds(&report),
        [FindingKind::StaleBackend, FindingKind::MissingBackend]
    );
    assert!(
        report.findings[0].because.contains("at least 5 s"),
        "{}",
        report.findings[0].because
    );
}

#[test]
fn a_sync_that_was_long_under_way_does_not_convict() {
    let mut w = late();
    w.pass();
    for _ in 0..5 {
        w.pass();
    }
    // Ended now, and took 60 s: it started before the change.
    w.synced(60_000);
    for _ in 0..5 {
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn without_a_family_of_its_own_a_sync_convicts_nobody() {
    let mut w = late();
    w.proxy.as_mut().unwrap().per_family = false;
    for _ in 0..6 {
        w.pass();
    }
    w.synced(100);
    for _ in 0..5 {
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn the_longest_recent_sync_is_waited_for() {
    let mut w = World::new();
    w.pass();
    w.synced(300_000);
    w.pass();
    assert_eq!(w.ledger.deadline_ms(&w.profile), 370_000);
    w.wait(1_300_000);
    w.pass();
    w.wait(1_300_000);
    w.pass();
    assert_eq!(w.ledger.deadline_ms(&w.profile), 70_000, "it is forgotten");
}

#[test]
fn damage_is_found_in_two_readings() {
    let mut w = damaged();
    w.wait(2_000);
    let examined = w.look();
    assert_eq!(examined.refresh, [web().service]);
    assert_eq!(kinds(&examined.report), []);
    w.refreshed = examined.refresh;
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::MissingBackend]);
    assert!(report.findings[0].because.contains("had it right"));
    assert!(w.refreshed.is_empty(), "asked for once");
}

#[test]
fn the_kernel_ahead_of_the_view_is_not_damage() {
    let mut w = damaged();
    w.wait(2_000);
    let examined = w.look();
    // The fetch shows that the API had changed: kube-proxy was quicker than this program's watch.
    w.refreshed = examined.refresh;
    w.wait(2_000);
    w.touch();
    w.ask(WEB, forward(web(), &[A]));
    let report = w.look().report;
    assert_eq!((kinds(&report), converging(&report)), (vec![], vec![]));
    // Or it changed to something else that kube-proxy has not done yet.
    let mut w = damaged();
    w.wait(2_000);
    w.refreshed = w.look().refresh;
    w.wait(2_000);
    w.touch();
    for _ in 0..10 {
        let report = w.look().report;
        assert_eq!(kinds(&report), []);
        assert_eq!(converging(&report), [FindingKind::MissingBackend]);
        w.wait(2_000);
    }
}

#[test]
fn damage_that_cannot_be_fetched_waits_for_the_deadline() {
    let mut w = damaged();
    w.wait(2_000);
    w.look();
    for _ in 0..10 {
        w.wait(2_000);
        assert_eq!(kinds(&w.look().report), []);
    }
    w.wait(60_000);
    assert_eq!(kinds(&w.look().report), [FindingKind::MissingBackend]);
}

#[test]
fn nothing_is_damage_when_something_else_explains_it() {
    // After a restart of the agent nothing is known of before.
    let mut w = damaged();
    w.ledger = Ledger::default();
    for _ in 0..10 {
        assert_eq!(kinds(&w.pass()), []);
    }
    // The node's, the proxy's or another Service's change moved what is asked for.
    let mut w = damaged();
    w.kernel(WEB, forward(web(), &[A, B]));
    w.ask(WEB, forward(web(), &[A, C]));
    for _ in 0..10 {
        assert_eq!(kinds(&w.pass()), []);
    }
    // kube-proxy is being restarted, perhaps with another configuration.
    let mut w = damaged();
    w.proxy.as_mut().unwrap().unreachable = Some("connection refused".into());
    for _ in 0..4 {
        assert!(!kinds(&w.pass()).contains(&FindingKind::MissingBackend));
    }
}

#[test]
fn what_no_object_explains_needs_two_readings() {
    let mut w = World::new();
    w.pass();
    w.snapshot.hooks[1] = hook("nat-output -> services", false);
    let report = w.pass();
    assert_eq!(
        (kinds(&report), converging(&report)),
        (vec![], vec![FindingKind::HooksMissing])
    );
    // The same reading twice is one reading.
    w.pass -= 1;
    assert_eq!(kinds(&w.look().report), []);
    assert_eq!(kinds(&w.pass()), [FindingKind::HooksMissing]);
    w.snapshot.hooks[1] = hook("nat-output -> services", true);
    assert_eq!(kinds(&w.pass()), []);

    w.kernel_by(WEB, plain(Action::Drop), DecidedBy::Foreign);
    w.pass();
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::ForeignRule]);
    assert_eq!(report.findings[0].severity, Severity::Critical);
}

#[test]
fn manifests_are_old_facts() {
    let mut w = World::new();
    w.proxy = None;
    w.view.settled_facts = true;
    w.kernel(WEB, forward(web(), &[A]));
    assert_eq!(kinds(&w.pass()), []);
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::MissingBackend]);
    assert!(w.refreshed.is_empty());
    // However old the files are.
    w.wait_deaf(600_000);
    assert_eq!(kinds(&w.look().report), [FindingKind::MissingBackend]);
}

#[test]
fn a_deleted_service_is_late_and_an_added_frontend_is_not() {
    // Deleted: the kernel is given its time.
    let mut w = World::new();
    w.pass();
    w.wait(1_000);
    w.view.apply(Change::ServiceGone(web().service), w.now);
    w.counters(1);
    w.unask(WEB);
    for _ in 0..20 {
        let report = w.pass();
        assert_eq!(
            (kinds(&report), converging(&report)),
            (vec![], vec![FindingKind::StaleFrontend])
        );
    }
    w.wait(60_000);
    assert_eq!(kinds(&w.look().report), [FindingKind::StaleFrontend]);
    // Once gone from the kernel, its coming back is damage.
    w.forget(WEB);
    assert_eq!(kinds(&w.pass()), []);
    w.kernel(WEB, forward(web(), &[A]));
    assert_eq!(kinds(&w.pass()), []);
    assert_eq!(kinds(&w.pass()), [FindingKind::StaleFrontend]);

    // The same where the rules carry no Service's name: what was asked for a moment ago is late.
    let nameless = || crate::table::Forwarding {
        service: None,
        ..forward(web(), &[A, B])
    };
    let mut w = World::new();
    w.kernel(WEB, nameless());
    w.pass();
    w.wait(1_000);
    w.view.apply(Change::ServiceGone(web().service), w.now);
    w.counters(1);
    w.unask(WEB);
    for _ in 0..10 {
        assert_eq!(kinds(&w.pass()), []);
    }

    // Added by a stranger, with and without a Service's name on it.
    for name in [
        Some(web()),
        Some(ServicePortName::new("shop", "ghost", "")),
        None,
    ] {
        let mut w = World::new();
        w.pass();
        w.kernel(
            "10.96.0.99:80/TCP",
            crate::table::Forwarding {
                service: name.clone(),
                ..forward(web(), &[A])
            },
        );
        let found = (0..4).any(|_| kinds(&w.pass()) == [FindingKind::StaleFrontend]);
        assert!(found, "{name:?}");
    }
    // One whose Service this program has only just heard of, and that is gone again.
    let mut w = World::new();
    w.pass();
    let ghost = ServicePortName::new("shop", "ghost", "");
    w.wait(1_000);
    w.view
        .apply(Change::Service(service(&ghost.service)), w.now);
    w.view
        .apply(Change::ServiceGone(ghost.service.clone()), w.now);
    w.counters(2);
    w.kernel("10.96.0.99:80/TCP", forward(ghost, &[A]));
    for _ in 0..10 {
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn what_heals_and_comes_back_is_recurring() {
    let mut w = World::new();
    w.pass();
    let mut reported = false;
    for _ in 0..4 {
        w.kernel(WEB, forward(web(), &[A]));
        for _ in 0..5 {
            w.pass();
        }
        w.kernel(WEB, forward(web(), &[A, B]));
        for _ in 0..5 {
            let report = w.pass();
            reported |= report.findings.iter().any(|f| f.recurring);
        }
    }
    assert!(reported);
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::MissingBackend]);
    assert!(report.findings[0].because.contains("comes back"));
    // And is forgotten.
    w.wait(600_000);
    w.pass();
    assert_eq!(kinds(&w.pass()), []);

    // Near miss: wrong twice, for a minute each.
    let mut w = World::new();
    w.pass();
    for _ in 0..2 {
        w.kernel(WEB, forward(web(), &[A]));
        for _ in 0..30 {
            assert!(w.pass().findings.iter().all(|f| !f.recurring));
        }
        w.kernel(WEB, forward(web(), &[A, B]));
        assert_eq!(kinds(&w.pass()), []);
    }

    // Near miss: a Service that changes often, and a kernel that is a little late each time.
    let mut w = World::new();
    w.pass();
    for i in 0..60 {
        let backends = if i % 2 == 0 { [A, C] } else { [A, B] };
        w.touch();
        w.ask(WEB, forward(web(), &backends));
        assert_eq!(kinds(&w.pass()), []);
        assert_eq!(kinds(&w.pass()), []);
        w.kernel(WEB, forward(web(), &backends));
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn without_the_api_only_what_it_cannot_explain_is_new() {
    // A finding from before stays, with the time it was true against the API.
    let mut w = damaged();
    w.pass();
    assert_eq!(kinds(&w.pass()), [FindingKind::MissingBackend]);
    w.wait_deaf(VIEW_LOST_MS + 1_000);
    let report = w.look().report;
    assert_eq!(kinds(&report), [FindingKind::MissingBackend]);
    assert!(
        report.findings[0].says.contains("against the API as of "),
        "{}",
        report.findings[0].says
    );

    // A difference that came up since is unknown; a lost hook is not.
    let mut w = World::new();
    w.pass();
    w.wait_deaf(VIEW_LOST_MS + 1_000);
    w.kernel(WEB, forward(web(), &[A]));
    w.snapshot.hooks[0] = hook("nat-prerouting -> services", false);
    for pass in 0..50 {
        w.wait_deaf(2_000);
        let report = w.look().report;
        let expected: &[FindingKind] = if pass == 0 {
            &[]
        } else {
            &[FindingKind::HooksMissing]
        };
        assert_eq!(kinds(&report), expected);
        assert_eq!(
            report.judged.unknown_reasons[&crate::report::NotJudged::ApiView],
            3
        );
        assert_eq!(report.judged.pairs, 0);
    }
    // The API is back, and kube-proxy gets its time from then on.
    w.snapshot.hooks[0] = hook("nat-prerouting -> services", true);
    w.touch();
    for _ in 0..30 {
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn a_wall_clock_that_jumps_convicts_nobody() {
    let mut w = late();
    w.pass();
    for _ in 0..4 {
        w.pass();
    }
    // An hour forward: by the wall clock every deadline is over, and a sync that ended before the
    // jump looks as if it were long ago, one that ended after it as if it were new.
    w.now.wall.0 += 3_600_000;
    w.synced(100);
    assert_eq!(kinds(&w.pass()), []);
    assert_eq!(kinds(&w.pass()), []);
    w.now.wall.0 -= 7_200_000;
    w.synced(100);
    assert_eq!(kinds(&w.pass()), []);
    assert_eq!(kinds(&w.pass()), []);
    w.wait(60_000);
    assert_eq!(
        kinds(&w.look().report),
        [FindingKind::StaleBackend, FindingKind::MissingBackend]
    );
}

#[test]
fn order_and_repetition_do_not_matter() {
    let mut w = late();
    for i in 0..20u8 {
        let port = ServicePortName::new("shop", &format!("s{i}"), "");
        let at = format!("10.96.1.{i}:80/TCP");
        w.ask(&at, forward(port.clone(), &[A, B]));
        w.kernel(&at, forward(port, &[A, C]));
    }
    w.kernel_by("10.96.1.3:80/TCP", plain(Action::Drop), DecidedBy::Foreign);
    let mut straight = Ledger::default();
    let mut shuffled = Ledger::default();
    let read = Family::ALL.into_iter().collect();
    // A small generator with a fixed seed: the order is arbitrary and the same each time.
    let mut seed = 0x9e37_79b9_u64;
    for pass in 1..=50 {
        w.wait(2_000);
        let compared = compare(
            &w.desired,
            &w.snapshot,
            &w.node,
            &w.profile,
            &w.view,
            true,
            &[],
        );
        let context = Context {
            pass,
            view: &w.view,
            desired: &w.desired,
            profile: &w.profile,
            proxy: w.proxy.as_ref(),
            refreshed: &[],
            unsettled: &compared.unsettled,
            read: &read,
            same: false,
            since: None,
        };
        let mut mixed = compared.differences.clone();
        mixed.extend(compared.differences.iter().take(7).cloned());
        for i in (1..mixed.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            mixed.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let one = straight.settle(w.now, &compared.differences, context);
        let two = shuffled.settle(w.now, &mixed, context);
        assert_eq!(one, two, "pass {pass}");
        if pass == 50 {
            assert!(one.findings.len() > 20);
        }
    }
}

#[test]
fn a_family_that_was_not_read_neither_heals_nor_convicts() {
    let mut w = late();
    w.pass();
    let table = w.snapshot.tables.remove(&Family::V4).unwrap();
    let gap = crate::capture::Gap {
        what: "nf_tables ip".into(),
        why: "interrupted".into(),
    };
    w.snapshot
        .tables
        .insert(Family::V4, crate::capture::Reading::Failed(gap));
    for _ in 0..40 {
        let report = w.pass();
        assert!(!kinds(&report).contains(&FindingKind::StaleBackend));
    }
    w.snapshot.tables.insert(Family::V4, table);
    let report = w.pass();
    assert_eq!(
        kinds(&report),
        [FindingKind::StaleBackend, FindingKind::MissingBackend]
    );
}

#[test]
fn memory_is_bounded() {
    let mut ledger = Ledger::default();
    let w = World::new();
    let unsettled = BTreeSet::new();
    let read = Family::ALL.into_iter().collect();
    let context = Context {
        pass: 1,
        view: &w.view,
        desired: &w.desired,
        profile: &w.profile,
        proxy: None,
        refreshed: &[],
        unsettled: &unsettled,
        read: &read,
        same: false,
        since: None,
    };
    let many: Vec<Difference> = (0..limits::LEDGER_FACTS + 5)
        .map(|i| Difference {
            fact: Fact {
                kind: FindingKind::ForeignRule,
                service: None,
                frontend: None,
                backend: None,
                family: None,
                detail: Some(i.to_string().into()),
            },
            severity: Severity::Critical,
            sources: Vec::new(),
            evidence: vec![evidence("x", "y")],
            says: String::new(),
            beyond_the_api: true,
            absorbs: 0,
        })
        .collect();
    let settled = ledger.settle(w.now, &many, context);
    assert_eq!(ledger.forgotten(), 5);
    assert_eq!(settled.converging.len(), many.len(), "none is silent");
    let later = Now {
        mono: Mono(w.now.mono.0 + 1_000),
        wall: Millis(w.now.wall.0 + 1_000),
    };
    ledger.settle(later, &[], Context { pass: 2, ..context });
    assert!(ledger.open.is_empty());
    assert_eq!(ledger.healed.len(), limits::LEDGER_HEALED);
}

/// The stamp of a Service that is gone stays for a while, and hides none behind it.
#[test]
fn a_stamp_of_a_service_that_is_gone_hides_no_other() {
    let mut w = World::new();
    w.view.changed.insert(ServiceName::new("a", "gone"), w.now);
    w.pass();
    w.wait(2_000);
    w.touch();
    w.look();
    let moved = w.ledger.services.moved_at(&web().service);
    assert_eq!(moved, Some(w.now.mono));
}

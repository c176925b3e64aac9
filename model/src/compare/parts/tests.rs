//! What an untouched frontend depends on all the same. Each comparison that is carried on is held
//! against the whole (`compare_again`), in all tests of passes as well.

use crate::compare::cases::compared;
use crate::compare::{Comparison, compare_again};
use crate::examine::kit::{A, B, WEB, World, forward, frontend, web};
use crate::finding::FindingKind;
use crate::table::{Action, DecidedBy, Forwarding};

/// The comparison of a world of which `before` was another moment; only `touched` moved since.
fn carried_on(w: &World, before: &Comparison, touched: &[&str]) -> Comparison {
    let touched = touched.iter().map(|f| frontend(f)).collect();
    compare_again(
        &w.desired,
        &w.snapshot,
        &w.node,
        &w.profile,
        &w.view,
        false,
        (before, Some(&touched)),
    )
}

/// The answer for an address's other ports stands for a port that has no row: what becomes of the one is
/// told of the other, though only the one was touched.
#[test]
fn what_stands_for_a_port_moves_it() {
    const OTHERS: &str = "10.96.0.10:*/*";
    const PORT: &str = "10.96.0.10:81/TCP";
    let does = |action| Forwarding::without_backends(Some(web()), action);
    let mut w = World::new();
    w.ask(PORT, does(Action::Reject));
    w.both(OTHERS, does(Action::Reject));
    let before = compared(&w);
    assert_eq!((before.differences.len(), before.judged.pairs), (0, 9));
    w.kernel(OTHERS, does(Action::Drop));
    let after = carried_on(&w, &before, &[OTHERS]);
    let facts = after.differences.iter().map(|d| d.fact.frontend);
    assert!(
        facts.flatten().any(|f| f == frontend(PORT)),
        "{:?}",
        after.differences
    );
}

/// A rule that is not the datapath's stays told of, though none of the frontends that it hits is touched.
#[test]
fn a_foreign_rule_stays_while_something_else_moves() {
    let mut w = World::new();
    const OTHER: &str = "10.96.0.11:80/TCP";
    w.both(OTHER, forward(web(), &[A]));
    w.kernel_by(WEB, forward(web(), &["192.0.2.9:80"]), DecidedBy::Foreign);
    let before = compared(&w);
    let kinds = |c: &Comparison| -> Vec<_> { c.differences.iter().map(|d| d.fact.kind).collect() };
    assert_eq!(kinds(&before), [FindingKind::ForeignRule]);
    w.both(OTHER, forward(web(), &[B]));
    assert_eq!(
        kinds(&carried_on(&w, &before, &[OTHER])),
        [FindingKind::ForeignRule]
    );
    w.both(WEB, forward(web(), &[A, B]));
    assert_eq!(kinds(&carried_on(&w, &before, &[OTHER, WEB])), []);
}

/// So it is with a range that comes: it answers for every address in it.
#[test]
fn a_range_that_comes_answers_for_what_is_in_it() {
    const RANGE: &str = "10.96.0.0/16:*/*";
    const PORT: &str = "10.96.0.11:81/TCP";
    let does = |action| Forwarding::without_backends(Some(web()), action);
    let mut w = World::new();
    w.ask(PORT, does(Action::Reject));
    let before = compared(&w);
    assert_eq!(before.differences.len(), 1, "{:?}", before.differences);
    w.kernel(RANGE, does(Action::Reject));
    let after = carried_on(&w, &before, &[RANGE]);
    assert_eq!(after.differences, []);
}

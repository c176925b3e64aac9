//! What is walked again after a change, and what is not.

use super::*;
use crate::datapath::kube_proxy_iptables::Iptables;
use crate::netfilter::ruleset::{Op, Rule, Verdict};
use crate::netfilter::walk;
use crate::netfilter::walk::tests::{IPTABLES, cidr, node, text};

/// Walks one ruleset, then another by parts; both times the rows must be those of the whole.
struct Two {
    was: Ruleset,
    is: Ruleset,
}

impl Two {
    fn of(change: impl FnOnce(&mut Ruleset)) -> Two {
        let was = text::iptables(IPTABLES);
        let mut is = was.clone();
        change(&mut is);
        Two { was, is }
    }

    /// Each chain that is another is told of, as the reading does it.
    fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for (was, is) in self.was.tables.iter().zip(&self.is.tables) {
            for chain in was.chains.iter().chain(&is.chains) {
                let old = was.chain(&chain.name);
                if old != is.chain(&chain.name) {
                    changes.chain(is, old.cloned(), &chain.name);
                }
            }
        }
        changes
    }

    fn walked(&self) -> Rewalked {
        let (desired, node, detector) = (BTreeMap::new(), node(), cidr());
        let ask = Ask {
            desired: &desired,
            node: &node,
            detector: &detector,
            owner: &Iptables,
        };
        let judged = |family| family == Family::V4;
        let again = Again::new();
        let (mut kept, mut tables) = (Kept::default(), BTreeMap::new());
        let first = (&self.was, &Changes::all());
        kept.walk(&mut tables, first, &ask, &judged, None);
        let second = (&self.is, &self.changes());
        let walked = kept.walk(&mut tables, second, &ask, &judged, Some(&again));
        let whole = walk::walk(&self.is, &ask);
        assert_eq!(tables[&Family::V4], whole[&Family::V4]);
        walked
    }
}

fn chain<'r>(rules: &'r mut Ruleset, table: &str, name: &str) -> &'r mut Chain {
    let mut tables = rules.tables.iter_mut();
    let table = tables.find(|t| &*t.name == table).expect("the table");
    let at = table.chain_index[name];
    &mut table.chains[at]
}

fn frontends(list: &[&str]) -> Rewalked {
    Rewalked::Frontends(list.iter().map(|f| f.parse().unwrap()).collect())
}

#[test]
fn nothing_changed_nothing_is_walked() {
    assert_eq!(Two::of(|_| {}).walked(), frontends(&[]));
}

/// kube-proxy's iptables mode writes its largest chain anew at each sync, in another order.
#[test]
fn the_same_rules_in_another_order_concern_nobody() {
    let mut rules = text::iptables(IPTABLES);
    let was = chain(&mut rules, "nat", "KUBE-SERVICES");
    let mut is = was.clone();
    let more = |chain: &mut Chain| {
        let last = chain.rules.pop().expect("rules");
        for i in 0..40_u8 {
            let mut rule = chain.rules[0].clone();
            for op in &mut rule.ops {
                if let Op::Match(m) = op
                    && let crate::netfilter::ruleset::Field::Daddr = m.field
                {
                    let host = std::net::IpAddr::from([10, 96, 99, i]);
                    m.any_of = crate::netfilter::ruleset::Value::Prefix(host.into()).into();
                }
            }
            chain.rules.push(rule);
        }
        chain.rules.push(last);
    };
    more(was);
    more(&mut is);
    // The last one leads the rest to the node ports, and stays the last.
    let end = is.rules.len() - 1;
    is.rules[..end].reverse();
    let was = &*was;
    assert_eq!(
        ChainDiff::of(Some(was), Some(&is)).effect,
        Effect::Nothing,
        "another order among rules for other destinations"
    );
    // The last one first: everything is led away before it meets its rule.
    let last = is.rules.pop().expect("rules");
    is.rules.insert(0, last);
    assert_ne!(ChainDiff::of(Some(was), Some(&is)).effect, Effect::Nothing);
}

#[test]
fn numbers_of_rules_written_anew_concern_nobody() {
    let two = Two::of(|rules| {
        for rule in &mut chain(rules, "nat", "KUBE-SERVICES").rules {
            rule.handle += 1_000;
        }
    });
    assert!(!two.changes().is_nothing());
    // Only the proofs are those of before.
    let Two { was, is } = &two;
    let diff = |at: usize| {
        let chain = |r: &'_ Ruleset| r.tables[at].chain("KUBE-SERVICES").cloned();
        (chain(was), chain(is))
    };
    let at = was.tables.iter().position(|t| &*t.name == "nat").unwrap();
    let (a, b) = diff(at);
    assert_eq!(
        ChainDiff::of(a.as_ref(), b.as_ref()).effect,
        Effect::Nothing
    );
}

#[test]
fn a_rule_concerns_where_it_leads_from() {
    let gone = Two::of(|rules| {
        let services = chain(rules, "nat", "KUBE-SERVICES");
        let before = services.rules.len();
        services
            .rules
            .retain(|r| r.comment.as_deref() != Some("shop/web:http cluster IP"));
        assert_eq!(services.rules.len() + 1, before);
    });
    assert_eq!(gone.walked(), frontends(&["10.96.10.10:80/TCP"]));
    let share = Two::of(|rules| {
        let service = chain(rules, "nat", "KUBE-SVC-67NZLRHBNDSAWJRO");
        service.rules.remove(1);
    });
    assert_eq!(share.walked(), frontends(&["10.96.10.10:80/TCP"]));
}

#[test]
fn what_all_meet_concerns_all() {
    let two = Two::of(|rules| {
        let drop = Rule::of(9_999, &mut vec![Op::Verdict(Verdict::Drop)], None);
        chain(rules, "filter", "KUBE-FORWARD").rules.insert(0, drop);
    });
    let Rewalked::Frontends(walked) = two.walked() else {
        panic!("all")
    };
    assert!(walked.len() > 4, "{walked:?}");
}

/// Drops what goes to a backend of shop/web, behind the translation.
fn drop_backend(rules: &mut Ruleset, at: &str) {
    use crate::netfilter::ruleset::{Field, Value};
    let to: std::net::IpAddr = "10.244.2.20".parse().unwrap();
    let ops = &mut vec![
        text::matching(Field::Daddr, None, vec![Value::Prefix(to.into())], false),
        Op::Verdict(Verdict::Drop),
    ];
    let drop = Rule::of(9_999, ops, None);
    chain(rules, "filter", at).rules.insert(0, drop);
}

#[test]
fn a_rule_about_a_backend_concerns_who_sends_there() {
    let two = Two::of(|rules| drop_backend(rules, "FORWARD"));
    assert_eq!(two.walked(), frontends(&["10.96.10.10:80/TCP"]));
}

/// Dropped from everywhere, it is no backend of any row: that packets were sent there is remembered.
#[test]
fn so_it_does_where_the_backend_is_in_no_row() {
    let mut two = Two::of(|rules| drop_backend(rules, "OUTPUT"));
    two.was = two.is.clone();
    drop_backend(&mut two.was, "FORWARD");
    assert_eq!(two.walked(), frontends(&["10.96.10.10:80/TCP"]));
}

#[test]
fn a_chain_that_comes_or_goes_concerns_who_is_led_there() {
    let two = Two::of(|rules| {
        let table = rules.tables.iter_mut().find(|t| &*t.name == "nat").unwrap();
        let name = "KUBE-SEP-FZQ6KZLGXRSKN2AD";
        let at = table.chain_index.remove(name).expect("there");
        table.chains.remove(at);
        for index in table.chain_index.values_mut() {
            *index -= usize::from(*index > at);
        }
    });
    assert_eq!(two.walked(), frontends(&["10.96.10.10:80/TCP"]));
    // And back again.
    let back = Two {
        was: two.is,
        is: two.was,
    };
    assert_eq!(back.walked(), frontends(&["10.96.10.10:80/TCP"]));
}

/// What everything depends on.
#[test]
fn another_node_or_other_rules_of_order_are_another_walk() {
    let (desired, node, detector) = (BTreeMap::new(), node(), cidr());
    let ask = |node| Ask {
        desired: &desired,
        node,
        detector: &detector,
        owner: &Iptables,
    };
    let judged = |family| family == Family::V4;
    let again = Again::new();
    let rules = text::iptables(IPTABLES);
    let mut kept = Kept::default();
    let mut tables = BTreeMap::new();
    let mut walk = |node, changes: &Changes, again: Option<&Again>| {
        kept.walk(&mut tables, (&rules, changes), &ask(node), &judged, again)
    };
    assert_eq!(walk(&node, &Changes::all(), Some(&again)), Rewalked::Whole);
    assert_eq!(
        walk(&node, &Changes::default(), Some(&again)),
        frontends(&[])
    );
    assert_eq!(walk(&node, &Changes::default(), None), Rewalked::Whole);
    let mut other = node.clone();
    other.addresses.pop();
    assert_eq!(
        walk(&other, &Changes::default(), Some(&again)),
        Rewalked::Whole
    );
    assert_eq!(walk(&other, &Changes::all(), Some(&again)), Rewalked::Whole);
    let these = [("10.96.10.10:80/TCP".parse().unwrap())].into();
    assert_eq!(
        walk(&other, &Changes::default(), Some(&these)),
        frontends(&["10.96.10.10:80/TCP"])
    );
}

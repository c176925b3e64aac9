//! Foreign rules and damaged chains of every kind, each in front of one Service with one endpoint:
//! what a branch of the walk says of it.

use super::*;
use std::collections::HashMap;
use std::sync::Arc;

const FRONTEND: &str = "10.96.0.1:80/TCP";
const FORWARD: &str = "forward 10.244.1.7:8080=100%,never";
const BASE: &str = "*filter
    *nat
    -A PREROUTING -j KUBE-SERVICES
    -A OUTPUT -j KUBE-SERVICES
    -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
    -A KUBE-SERVICES -d 10.96.0.1 -p tcp --dport 80 -j KUBE-SVC-A
    -A KUBE-SVC-A -j KUBE-SEP-A
    -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.1.7:8080";

fn base() -> Ruleset {
    text::iptables(BASE)
}

fn rule(mut ops: Vec<Op>) -> Rule {
    Rule::of(99, &mut ops, None)
}

fn hook(point: HookPoint, priority: i32) -> Hook {
    Hook {
        point,
        priority,
        kind: ChainType::Filter,
        policy_drop: false,
    }
}

/// A chain's name, hook and rules.
type Parts<'a> = (&'a str, Option<Hook>, Vec<Vec<Op>>);

/// A table of somebody's.
fn table(family: TableFamily, chains: Vec<Parts<'_>>) -> Table {
    let chains: Vec<Chain> = chains
        .into_iter()
        .map(|(name, hook, rules)| Chain {
            name: name.into(),
            handle: 1,
            hook,
            rules: rules.into_iter().map(rule).collect(),
        })
        .collect();
    Table {
        family,
        name: "somebody".into(),
        backend: Backend::NfTables,
        dormant: false,
        chain_index: chains
            .iter()
            .enumerate()
            .map(|(i, c)| (c.name.clone(), i))
            .collect(),
        chains,
        sets: HashMap::new(),
    }
}

/// Somebody's one rule in front of prerouting.
fn before(ops: Vec<Op>) -> Ruleset {
    with(vec![("first", vec![ops])])
}

/// Somebody's chains; the first hangs in front of prerouting.
fn with(chains: Vec<(&str, Vec<Vec<Op>>)>) -> Ruleset {
    let mut rules = base();
    let chains = chains
        .into_iter()
        .enumerate()
        .map(|(i, (name, rules))| {
            let hook = (i == 0).then(|| hook(HookPoint::Prerouting, -300));
            (name, hook, rules)
        })
        .collect();
    rules.tables.push(table(TableFamily::Inet, chains));
    rules
}

fn line(rules: &Ruleset, class: SourceClass) -> String {
    see_with(rules, &Iptables, &cidr(), &[FRONTEND]).line(FRONTEND, class)
}

fn element(key: Vec<Value>, data: Option<Data>) -> Element {
    Element {
        key,
        data,
        comment: None,
        catch_all: false,
    }
}

fn a_set(name: &str, elements: Vec<Element>) -> Set {
    Set {
        name: name.into(),
        handle: 1,
        map: elements.iter().any(|e| e.data.is_some()),
        dynamic: false,
        anonymous: false,
        timeout_ms: None,
        key_bytes: vec![4],
        key_type: 0,
        elements,
        unread: None,
    }
}

fn outside(rules: &Ruleset) -> String {
    line(rules, SourceClass::Outside)
}

fn drop() -> Op {
    Op::Verdict(Verdict::Drop)
}

fn is(field: Field, n: u64) -> Op {
    text::matching(field, None, vec![Value::Number(n, n)], false)
}

#[test]
fn the_base_is_forwarded() {
    for class in SourceClass::ALL {
        assert_eq!(line(&base(), class), FORWARD, "{class}");
    }
}

#[test]
fn a_table_for_both_families_is_seen() {
    assert_eq!(outside(&before(vec![drop()])), "drop");
    // One for the other family is not.
    let mut rules = before(vec![drop()]);
    rules.tables.last_mut().unwrap().family = TableFamily::Ip6;
    assert_eq!(outside(&rules), FORWARD);
}

#[test]
fn goto_does_not_come_back_behind_itself_and_jump_does() {
    let to = |verdict: fn(Arc<str>) -> Verdict| {
        with(vec![
            (
                "first",
                vec![vec![Op::Verdict(verdict("second".into()))], vec![drop()]],
            ),
            ("second", vec![vec![is(Field::Dport, 1), drop()]]),
        ])
    };
    assert_eq!(outside(&to(Verdict::Jump)), "drop");
    assert_eq!(outside(&to(Verdict::Goto)), FORWARD);
    let mut back = to(Verdict::Jump);
    let first = &mut back.tables.last_mut().unwrap().chains[0];
    first
        .rules
        .insert(0, rule(vec![Op::Verdict(Verdict::Return)]));
    assert_eq!(outside(&back), FORWARD);
}

#[test]
fn chains_that_are_not_there_or_lead_in_a_circle_make_it_unknown() {
    let jump = |to: &str| vec![Op::Verdict(Verdict::Jump(to.into()))];
    assert_eq!(outside(&before(jump("gone"))), "unknown");
    let circle = with(vec![
        ("first", vec![jump("second")]),
        ("second", vec![jump("second")]),
    ]);
    assert_eq!(outside(&circle), "unknown");
}

#[test]
fn a_program_that_decides_makes_it_unknown() {
    assert_eq!(
        outside(&before(vec![Op::Verdict(Verdict::Queue)])),
        "unknown"
    );
    // Only for those that it is asked about.
    let other = before(vec![is(Field::Dport, 81), Op::Verdict(Verdict::Queue)]);
    assert_eq!(outside(&other), FORWARD);
}

#[test]
fn a_mark_that_is_taken_back_asks_for_nothing() {
    let set = |and: u32, xor: u32| vec![Op::SetMark { and, xor }];
    let marked = with(vec![("first", vec![set(!0x4000, 0x4000)])]);
    assert!(outside(&marked).ends_with(",always"));
    let cleared = with(vec![("first", vec![set(!0x4000, 0x4000), set(!0x4000, 0)])]);
    assert_eq!(outside(&cleared), FORWARD);
}

#[test]
fn one_in_four_in_turn_is_a_quarter() {
    let mut rules = base();
    let nat = rules.tables.last_mut().unwrap();
    let svc = nat.chain_index["KUBE-SVC-A"];
    nat.chains[svc].rules.insert(
        0,
        rule(vec![
            Op::Nth { every: 4 },
            Op::Dnat(NatTarget::Fixed {
                address: Some("10.244.1.8".parse().unwrap()),
                port: None,
            }),
        ]),
    );
    // Without a port the packet keeps its own.
    assert_eq!(
        outside(&rules),
        "forward 10.244.1.7:8080=75%,never 10.244.1.8:80=25%,never"
    );
}

#[test]
fn an_untracked_packet_is_not_new() {
    let state = |bits: u64| {
        Op::Match(Match {
            field: Field::CtState,
            mask: Some(bits),
            any_of: Value::Number(0, 0).into(),
            negated: true,
        })
    };
    // 64 untracked, 8 new (NF_CT_STATE_*).
    for (bits, expected) in [(64, "drop"), (8, "none")] {
        let mut rules = before(vec![Op::NoTrack]);
        let filter = table(
            TableFamily::Ip,
            vec![(
                "later",
                Some(hook(HookPoint::Forward, 0)),
                vec![vec![state(bits), drop()]],
            )],
        );
        rules.tables.push(filter);
        assert_eq!(outside(&rules), expected, "{bits}");
    }
}

/// Somebody's rule in forward, where the packet is translated already.
fn forwarded(ops: Vec<Op>) -> Ruleset {
    let mut rules = base();
    let chain = ("later", Some(hook(HookPoint::Forward, 0)), vec![ops]);
    rules.tables.push(table(TableFamily::Inet, vec![chain]));
    rules
}

#[test]
fn what_conntrack_knows_of_a_translated_packet() {
    let dnat = Op::Match(Match {
        field: Field::CtStatus,
        mask: Some(0x20),
        any_of: Value::Number(0, 0).into(),
        negated: true,
    });
    assert_eq!(outside(&forwarded(vec![dnat, drop()])), "drop");
    let of = |field: Field, address: &str| {
        let net: ipnet::IpNet = format!("{address}/32").parse().unwrap();
        let on = text::matching(field, None, vec![Value::Prefix(net)], false);
        outside(&forwarded(vec![on, drop()]))
    };
    assert_eq!(of(Field::CtOriginalDaddr, "10.96.0.1"), "drop");
    assert_eq!(of(Field::CtOriginalDaddr, "10.244.1.7"), FORWARD);
    assert_eq!(of(Field::Daddr, "10.244.1.7"), "drop");
    assert_eq!(of(Field::Daddr, "10.96.0.1"), FORWARD);
}

#[test]
fn a_filter_that_accepts_takes_nothing_away() {
    assert_eq!(
        outside(&before(vec![Op::Verdict(Verdict::Accept)])),
        FORWARD
    );
    // Nor does it where nothing translates: nobody decided.
    let mut rules = before(vec![Op::Verdict(Verdict::Accept)]);
    rules.tables[1].chains.iter_mut().for_each(|c| {
        if c.hook.is_some() {
            c.rules.clear();
        }
    });
    let seen = see_with(&rules, &Iptables, &cidr(), &[FRONTEND]);
    let row = seen.row(FRONTEND, SourceClass::Outside);
    assert_eq!(
        (row.forwarding.action.word(), row.decided_by),
        ("none", DecidedBy::Nobody)
    );
}

#[test]
fn a_value_that_is_not_understood_is_never_a_no() {
    let bytes = text::matching(
        Field::Dport,
        None,
        vec![Value::Bytes(vec![1, 2, 3].into())],
        false,
    );
    assert_eq!(outside(&before(vec![bytes, drop()])), "unknown");
    let link = text::matching(
        Field::Iifname,
        None,
        vec![Value::Name("eth0".into(), false)],
        false,
    );
    assert_eq!(outside(&before(vec![link, drop()])), "unknown");
}

/// Asked twice the same, the link is the same: one branch is not both.
#[test]
fn a_link_is_the_same_all_the_way() {
    let eth0 = |negated| {
        text::matching(
            Field::Iifname,
            None,
            vec![Value::Name("eth0".into(), false)],
            negated,
        )
    };
    let rules = before(vec![eth0(false), eth0(true), drop()]);
    assert_eq!(outside(&rules), FORWARD);
}

#[test]
fn sets_that_were_not_read_or_are_filled_by_traffic_make_it_unknown() {
    let lookup = |negated| {
        Op::Lookup(Lookup {
            key: vec![Field::Daddr],
            set: "s".into(),
            negated,
        })
    };
    let set = |elements: Vec<Element>| {
        let mut rules = before(vec![lookup(false), drop()]);
        rules
            .tables
            .last_mut()
            .unwrap()
            .sets
            .insert("s".into(), a_set("s", elements));
        rules
    };
    let element = |value: &str| element(vec![Value::Prefix(value.parse().unwrap())], None);
    assert_eq!(outside(&before(vec![lookup(false), drop()])), "unknown");
    assert_eq!(outside(&set(vec![])), FORWARD);
    assert_eq!(outside(&set(vec![element("10.96.0.1/32")])), "drop");
    assert_eq!(outside(&set(vec![element("10.96.0.0/16")])), "drop");
    let mut rules = set(vec![]);
    let table = rules.tables.last_mut().unwrap();
    table.chains[0].rules[0].ops[0] = lookup(true);
    assert_eq!(outside(&rules), "drop");
    let mut rules = set(vec![]);
    let table = rules.tables.last_mut().unwrap();
    table.sets.get_mut("s").unwrap().dynamic = true;
    assert_eq!(outside(&rules), "unknown");
    let mut rules = set(vec![Element {
        catch_all: true,
        ..self::element(Vec::new(), None)
    }]);
    assert_eq!(outside(&rules), "drop");
    // By source, a catch-all is not followed.
    let table = rules.tables.last_mut().unwrap();
    table.chains[0].rules[0].ops[0] = Op::Lookup(Lookup {
        key: vec![Field::Saddr],
        set: "s".into(),
        negated: false,
    });
    assert_eq!(outside(&rules), "unknown");
}

/// Hooks run by priority, whatever the order of tables.
#[test]
fn the_earlier_hook_decides() {
    for (priority, expected) in [(-200, "172.16.0.9:81"), (0, "10.244.1.7:8080")] {
        let mut rules = base();
        let mut nat = hook(HookPoint::Prerouting, priority);
        nat.kind = ChainType::Nat;
        let to = Op::Dnat(NatTarget::Fixed {
            address: Some("172.16.0.9".parse().unwrap()),
            port: Some(81),
        });
        let tcp = is(Field::L4proto, 6);
        rules.tables.push(table(
            TableFamily::Ip,
            vec![("nat", Some(nat), vec![vec![tcp, to]])],
        ));
        assert!(
            outside(&rules).contains(expected),
            "{priority} {}",
            outside(&rules)
        );
    }
}

/// A rule that does something before its destination is asked for is not found by its destination.
#[test]
fn what_stands_in_front_of_a_condition_happens() {
    let elsewhere = text::matching(
        Field::Daddr,
        None,
        vec![Value::Prefix("10.1.1.1/32".parse().unwrap())],
        false,
    );
    let set = Op::SetMark {
        and: !0x4000,
        xor: 0x4000,
    };
    assert!(outside(&before(vec![set, elsewhere])).ends_with(",always"));
}

/// The address of a link that comes in: only the node itself knows; another packet's answer is not
/// invented.
#[test]
fn redirected_from_outside_is_unknown() {
    let mut rules = base();
    let nat = rules.tables.last_mut().unwrap();
    let i = nat.chain_index["PREROUTING"];
    nat.chains[i]
        .rules
        .insert(0, rule(vec![Op::Redirect { port: Some(81) }]));
    let o = nat.chain_index["OUTPUT"];
    nat.chains[o]
        .rules
        .insert(0, rule(vec![Op::Redirect { port: Some(81) }]));
    assert_eq!(outside(&rules), "unknown");
    assert_eq!(
        line(&rules, SourceClass::Node),
        "forward 127.0.0.1:81=100%,never"
    );
}

/// IPVS puts every Service's address on `kube-ipvs0`: no packet is sent from there.
#[test]
fn no_packet_comes_from_the_addresses_of_ipvs() {
    let mut node = node();
    node.addresses.push(LocalAddress {
        address: "10.96.0.9".parse().unwrap(),
        link: "kube-ipvs0".into(),
    });
    let on = text::matching(
        Field::Saddr,
        None,
        vec![Value::Prefix("192.168.0.0/24".parse().unwrap())],
        true,
    );
    let mut rules = base();
    let chain = (
        "out",
        Some(hook(HookPoint::Output, -300)),
        vec![vec![on, drop()]],
    );
    rules.tables.push(table(TableFamily::Ip, vec![chain]));
    let desired = BTreeMap::from([(FRONTEND.parse().unwrap(), None)]);
    let ask = Ask {
        desired: &desired,
        node: &node,
        detector: &cidr(),
        owner: &Iptables,
    };
    let Some(Reading::Read(table)) = walk(&rules, &ask).remove(&Family::V4) else {
        panic!("no table")
    };
    assert_eq!(Seen(table).line(FRONTEND, SourceClass::Node), FORWARD);
}

/// No packet over a link has the node's own address or loopback as its source.
#[test]
fn own_addresses_are_nobody_elses() {
    for address in ["127.0.0.0/8", "192.168.0.2/32"] {
        let on = text::matching(
            Field::Saddr,
            None,
            vec![Value::Prefix(address.parse().unwrap())],
            false,
        );
        assert_eq!(outside(&before(vec![on, drop()])), FORWARD, "{address}");
    }
}

/// `numgen random mod 3 offset 10 vmap { 10-11 : goto A, 12 : goto B }`
#[test]
fn chance_by_a_map_with_ranges_and_an_offset() {
    let mut rules = base();
    let nat = rules.tables.last_mut().unwrap();
    nat.chain_index
        .insert("KUBE-SEP-B".into(), nat.chains.len());
    nat.chains.push(Chain {
        name: "KUBE-SEP-B".into(),
        handle: 50,
        hook: None,
        rules: vec![rule(vec![Op::Dnat(NatTarget::Fixed {
            address: Some("10.244.1.8".parse().unwrap()),
            port: Some(8080),
        })])],
    });
    let to = |a, b, chain: &str| {
        let goto = Data::Verdict(Verdict::Goto(chain.into()));
        element(vec![Value::Number(a, b)], Some(goto))
    };
    let map = a_set(
        "m",
        vec![to(10, 11, "KUBE-SEP-A"), to(12, 12, "KUBE-SEP-B")],
    );
    nat.sets.insert("m".into(), map);
    let svc = nat.chain_index["KUBE-SVC-A"];
    nat.chains[svc].rules = vec![rule(vec![Op::NumgenVerdictMap {
        modulus: 3,
        offset: 10,
        map: "m".into(),
        incremental: false,
    }])];
    assert_eq!(
        outside(&rules),
        "forward 10.244.1.7:8080=67%,never 10.244.1.8:8080=33%,never"
    );
}

/// A verdict by source: those that it lets pass are not asked again behind it.
#[test]
fn a_verdict_map_by_source_splits_the_clients() {
    let net: ipnet::IpNet = "198.51.100.0/24".parse().unwrap();
    let from = text::matching(Field::Saddr, None, vec![Value::Prefix(net)], false);
    assert_eq!(outside(&before(vec![from.clone(), drop()])), "unknown");
    let map = Op::VerdictMap(Lookup {
        key: vec![Field::Saddr],
        set: "m".into(),
        negated: false,
    });
    let mut rules = with(vec![("first", vec![vec![map], vec![from, drop()]])]);
    let accept = Some(Data::Verdict(Verdict::Accept));
    let map = a_set("m", vec![element(vec![Value::Prefix(net)], accept)]);
    let table = rules.tables.last_mut().unwrap();
    table.sets.insert("m".into(), map);
    assert_eq!(outside(&rules), FORWARD);
}

/// Delivered on the node, it never leaves by postrouting; only its marks are looked at there.
#[test]
fn a_packet_for_the_node_itself_does_not_pass_postrouting() {
    let mut rules = text::iptables(&BASE.replace("10.244.1.7", "192.168.0.2"));
    let chain = (
        "out",
        Some(hook(HookPoint::Postrouting, 0)),
        vec![vec![drop()]],
    );
    rules.tables.push(table(TableFamily::Ip, vec![chain]));
    assert_eq!(outside(&rules), "forward 192.168.0.2:8080=100%,never");
    assert_eq!(line(&rules, SourceClass::Node), "drop");
}

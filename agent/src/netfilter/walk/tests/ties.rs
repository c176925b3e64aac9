//! Base chains at the same hook and priority: the kernel's order of registration is not guessed.

use super::*;

/// The example's rules in iptables-legacy, and in nf_tables one rule for a Service's address.
fn both_backends(rule: &str) -> Ruleset {
    let mut rules = text::iptables(IPTABLES);
    for table in &mut rules.tables {
        table.backend = Backend::Legacy;
    }
    let foreign = text::iptables(&format!("*nat\n{rule}"));
    // As they are read: nf_tables first.
    rules.tables.splice(0..0, foreign.tables);
    rules
}

/// The chain that was registered last comes first, and nothing tells which that is.
#[test]
fn the_order_of_two_tables_at_one_priority_is_not_guessed() {
    let web = "10.96.10.10:80/TCP";
    let rule = "-A PREROUTING -d 10.96.10.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.9.9.9:80";
    let mut rules = text::iptables(IPTABLES);
    let mut foreign = text::iptables(&format!("*nat\n{rule}")).tables;
    for table in &mut foreign {
        table.name = "intruder".into();
    }
    rules.tables.extend(foreign);
    let seen = see(&rules, &Iptables);
    let row = |source| &seen.0.rows[&(web.parse().unwrap(), source)];
    let Action::Unknown(why) = &row(SourceClass::Pod).forwarding.action else {
        panic!("{:?}", row(SourceClass::Pod))
    };
    assert!(why.contains("the same hook and priority"), "{why}");
    assert_eq!(row(SourceClass::Node).forwarding.action, Action::Forward);
}

#[test]
fn the_order_of_two_backends_is_not_guessed() {
    let web = "10.96.10.10:80/TCP";
    let rule = "-A PREROUTING -d 10.96.10.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.9.9.9:80";
    let seen = see(&both_backends(rule), &Iptables);
    let row = |source| &seen.0.rows[&(web.parse().unwrap(), source)];
    let Action::Unknown(why) = &row(SourceClass::Pod).forwarding.action else {
        panic!("{:?}", row(SourceClass::Pod))
    };
    assert!(why.contains("the same hook and priority"), "{why}");
    // The node's own packets do not pass there.
    assert_eq!(row(SourceClass::Node).forwarding.action, Action::Forward);
    assert_eq!(row(SourceClass::Node).decided_by, DecidedBy::Datapath);
    // Where the rule is about something else the order does not matter.
    let other = rule.replace("10.96.10.10", "10.99.99.99");
    let seen = see(&both_backends(&other), &Iptables);
    let row = &seen.0.rows[&(web.parse().unwrap(), SourceClass::Pod)];
    assert_eq!(row.forwarding.action, Action::Forward);
    let first = row.evidence[0].to_string();
    assert!(
        first.starts_with("iptables-legacy nat PREROUTING rule "),
        "{first}"
    );
    // Where priority says it, it is not a question.
    let mut rules = both_backends(rule);
    for chain in &mut rules.tables[0].chains {
        if let Some(hook) = &mut chain.hook {
            hook.priority = -101;
        }
    }
    let seen = see(&rules, &Iptables);
    let row = &seen.0.rows[&(web.parse().unwrap(), SourceClass::Pod)];
    assert_eq!(row.decided_by, DecidedBy::Foreign);
    assert_eq!(
        row.forwarding.backends[0].address,
        "10.9.9.9:80".parse().unwrap()
    );
}

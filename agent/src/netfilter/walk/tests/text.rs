//! Rules for tests from the text that `iptables-save` and `nft list` print: as much of it as the
//! examples of kube-proxy.md need.

use crate::netfilter::ruleset::*;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

fn table(family: TableFamily, name: &str) -> Table {
    Table {
        family,
        name: name.into(),
        backend: Backend::NfTables,
        dormant: false,
        chains: Vec::new(),
        chain_index: HashMap::new(),
        sets: HashMap::new(),
    }
}

fn chain<'t>(t: &'t mut Table, name: &str) -> &'t mut Chain {
    let i = match t.chain_index.get(name) {
        Some(&i) => i,
        None => {
            let i = t.chains.len();
            t.chain_index.insert(name.into(), i);
            let hook = base_hook(&t.name, name);
            t.chains.push(Chain {
                name: name.into(),
                handle: i as u64 + 1,
                hook,
                rules: Vec::new(),
            });
            i
        }
    };
    &mut t.chains[i]
}

/// The built-in chains of iptables.
fn base_hook(table: &str, chain: &str) -> Option<Hook> {
    let point = match chain {
        "PREROUTING" => HookPoint::Prerouting,
        "INPUT" => HookPoint::Input,
        "FORWARD" => HookPoint::Forward,
        "OUTPUT" => HookPoint::Output,
        "POSTROUTING" => HookPoint::Postrouting,
        _ => return None,
    };
    let kind = if table == "nat" {
        ChainType::Nat
    } else {
        ChainType::Filter
    };
    let priority = match (table, point) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", HookPoint::Postrouting | HookPoint::Input) => 100,
        ("nat", _) => -100,
        _ => 0,
    };
    Some(Hook {
        point,
        priority,
        kind,
        policy_drop: false,
    })
}

fn number(field: Field, n: u64) -> Op {
    matching(field, None, vec![Value::Number(n, n)], false)
}

pub fn matching(field: Field, mask: Option<u64>, any_of: Vec<Value>, negated: bool) -> Op {
    Op::Match(Match {
        field,
        mask,
        any_of: any_of.into(),
        negated,
    })
}

fn prefix(s: &str) -> IpNet {
    s.parse()
        .unwrap_or_else(|_| IpNet::from(s.parse::<IpAddr>().expect(s)))
}

fn hex(s: &str) -> u64 {
    s.strip_prefix("0x").map_or_else(
        || s.parse().unwrap(),
        |h| u64::from_str_radix(h, 16).unwrap(),
    )
}

fn protocol(s: &str) -> u64 {
    match s {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        n => n.parse().unwrap(),
    }
}

fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut any) = (false, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                any = true;
            }
            c if c.is_whitespace() && !quoted => {
                if any {
                    out.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        out.push(word);
    }
    out
}

/// Tables of iptables from what `iptables-save` prints.
pub fn iptables(text: &str) -> Ruleset {
    iptables_of(TableFamily::Ip, text)
}

pub fn iptables_of(family: TableFamily, text: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(name) = line.strip_prefix('*') {
            if !ruleset.tables.iter().any(|t| &*t.name == name) {
                let mut t = table(family, name);
                for b in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
                    chain(&mut t, b);
                }
                ruleset.tables.push(t);
            }
            // The table that lines go to is the last one.
            let at = ruleset
                .tables
                .iter()
                .position(|t| &*t.name == name)
                .unwrap();
            let t = ruleset.tables.remove(at);
            ruleset.tables.push(t);
            continue;
        }
        let t = ruleset.tables.last_mut().expect("a *table line first");
        if let Some(policy) = line.strip_prefix(':') {
            let w = words(policy);
            let c = chain(t, &w[0]);
            if let Some(h) = &mut c.hook {
                h.policy_drop = w[1] == "DROP";
            }
            continue;
        }
        let w = words(line);
        assert_eq!(w[0], "-A", "{line}");
        let rule = xt_rule(&w[2..]);
        if let Some(Op::Verdict(Verdict::Jump(to))) = rule.ops.last() {
            let to = to.clone();
            chain(t, &to);
        }
        let c = chain(t, &w[1]);
        let handle = c.rules.len() as u64 + 1;
        c.rules.push(Rule { handle, ..rule });
    }
    ruleset
}

fn xt_rule(w: &[String]) -> Rule {
    let mut ops = Vec::new();
    let mut comment: Option<Arc<str>> = None;
    let mut negated = false;
    let (mut recent, mut seconds, mut list) = ("", None, None::<Arc<str>>);
    let mut i = 0;
    while i < w.len() {
        let arg = || w[i + 1].as_str();
        let mut used = 2;
        match w[i].as_str() {
            "!" => {
                negated = true;
                i += 1;
                continue;
            }
            "-s" => ops.push(matching(
                Field::Saddr,
                None,
                vec![Value::Prefix(prefix(arg()))],
                negated,
            )),
            "-d" => ops.push(matching(
                Field::Daddr,
                None,
                vec![Value::Prefix(prefix(arg()))],
                negated,
            )),
            "-p" => ops.push(number(Field::L4proto, protocol(arg()))),
            "-i" | "-o" => {
                let field = if w[i] == "-i" {
                    Field::Iifname
                } else {
                    Field::Oifname
                };
                let name = arg();
                let value = match name.strip_suffix('+') {
                    Some(p) => Value::Name(p.into(), true),
                    None => Value::Name(name.into(), false),
                };
                ops.push(matching(field, None, vec![value], negated));
            }
            "--dport" => ops.push(number(Field::Dport, arg().parse().unwrap())),
            "-m" => {}
            "--comment" => comment = Some(arg().into()),
            "--dst-type" => ops.push(number(Field::DaddrType, 2)),
            "--src-type" => ops.push(number(Field::SaddrType, 2)),
            "--ctstate" => {
                let mut bits = 0;
                let mut dnat = false;
                for s in arg().split(',') {
                    match s {
                        "NEW" => bits |= 8,
                        "RELATED" => bits |= 4,
                        "ESTABLISHED" => bits |= 2,
                        "INVALID" => bits |= 1,
                        "DNAT" => dnat = true,
                        s => panic!("{s}"),
                    }
                }
                let zero = || vec![Value::Number(0, 0)];
                ops.push(matching(Field::CtState, Some(bits), zero(), !negated));
                if dnat {
                    assert!(negated);
                    ops.push(matching(Field::CtStatus, Some(0x20), zero(), false));
                }
            }
            "--limit" => ops.push(Op::UnknownMatch(format!("limit {}", arg()).into())),
            "--mode" => {}
            "--probability" => {
                let p: f64 = arg().parse().unwrap();
                ops.push(Op::Probability {
                    numerator: (p * 2_147_483_648.0).round() as u32,
                });
            }
            "--rcheck" | "--set" | "--reap" | "--rsource" | "--random-fully" => {
                if w[i] == "--rcheck" || w[i] == "--set" {
                    recent = &w[i];
                }
                if w[i] == "--rsource" {
                    let list = list.clone().unwrap();
                    ops.push(if recent == "--rcheck" {
                        Op::AffinityCheck { list, seconds }
                    } else {
                        Op::AffinityUpdate { list }
                    });
                }
                used = 1;
            }
            "--seconds" => seconds = Some(arg().parse().unwrap()),
            "--name" => list = Some(arg().into()),
            "--mask" | "--reject-with" => {}
            "--mark" => {
                let (v, m) = arg().split_once('/').unwrap();
                let value = vec![Value::Number(hex(v), hex(v))];
                ops.push(matching(Field::Mark, Some(hex(m)), value, negated));
            }
            "--set-xmark" => {
                let (v, m) = arg().split_once('/').unwrap();
                ops.push(Op::SetMark {
                    and: !(hex(m) as u32),
                    xor: hex(v) as u32,
                });
            }
            "--to-destination" => {
                let to: SocketAddr = arg().parse().unwrap();
                ops.push(Op::Dnat(NatTarget::Fixed {
                    address: Some(to.ip()),
                    port: Some(to.port()),
                }));
            }
            "-j" => match arg() {
                "DNAT" | "MARK" => {}
                "RETURN" => ops.push(Op::Verdict(Verdict::Return)),
                "ACCEPT" => ops.push(Op::Verdict(Verdict::Accept)),
                "DROP" => ops.push(Op::Verdict(Verdict::Drop)),
                "REJECT" => ops.push(Op::Reject),
                "MASQUERADE" => ops.push(Op::Masquerade),
                "NOTRACK" => ops.push(Op::NoTrack),
                "STRANGE" => ops.push(Op::UnknownStatement("STRANGE".into())),
                to => ops.push(Op::Verdict(Verdict::Jump(to.into()))),
            },
            other => panic!("{other} in {w:?}"),
        }
        negated = false;
        i += used;
    }
    Rule::of(0, &mut ops, comment)
}

/// One table from what `nft list table` prints.
pub fn nft(text: &str) -> Ruleset {
    let mut t = table(TableFamily::Ip, "kube-proxy");
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .peekable();
    // Sets first: rules ask whether one is dynamic.
    let mut chains: Vec<(String, Vec<String>)> = Vec::new();
    while let Some(head) = lines.next() {
        let w = words(head);
        let mut body = Vec::new();
        let mut depth = head.matches('{').count() as i64 - head.matches('}').count() as i64;
        while depth > 0 {
            let line = lines.next().expect("a closing brace");
            depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
            if depth > 0 {
                body.push(line.to_string());
            }
        }
        match w[0].as_str() {
            "chain" => chains.push((w[1].clone(), body)),
            kind => {
                let set = nft_set(&w[1], kind == "map", &body.join(" "));
                t.sets.insert(set.name.clone(), set);
            }
        }
    }
    for (name, _) in &chains {
        chain(&mut t, name);
    }
    for (name, body) in chains {
        for line in body {
            if line.starts_with("comment") {
                continue;
            }
            if line.starts_with("type ") {
                chain(&mut t, &name).hook = Some(nft_hook(&line));
                continue;
            }
            let rule = nft_rule(&mut t, &line);
            let c = chain(&mut t, &name);
            let handle = c.rules.len() as u64 + 1;
            c.rules.push(Rule { handle, ..rule });
        }
    }
    Ruleset {
        tables: vec![t],
        ..Ruleset::default()
    }
}

fn nft_hook(line: &str) -> Hook {
    let w: Vec<&str> = line.split([' ', ';']).filter(|s| !s.is_empty()).collect();
    let at = |s: &str| w.iter().position(|x| *x == s).unwrap();
    let point = match w[at("hook") + 1] {
        "prerouting" => HookPoint::Prerouting,
        "input" => HookPoint::Input,
        "forward" => HookPoint::Forward,
        "output" => HookPoint::Output,
        _ => HookPoint::Postrouting,
    };
    let p = at("priority");
    let mut priority = match w[p + 1] {
        "dstnat" => -100,
        "srcnat" => 100,
        "filter" => 0,
        n => n.parse().unwrap(),
    };
    if w.get(p + 2) == Some(&"-") {
        priority -= w[p + 3].parse::<i32>().unwrap();
    }
    let kind = if w[1] == "nat" {
        ChainType::Nat
    } else {
        ChainType::Filter
    };
    Hook {
        point,
        priority,
        kind,
        policy_drop: w.contains(&"drop"),
    }
}

fn value(s: &str) -> Value {
    if let Ok(p) = s.parse::<IpNet>() {
        return Value::Prefix(p);
    }
    if let Ok(a) = s.parse::<IpAddr>() {
        return Value::Prefix(IpNet::from(a));
    }
    let n = protocol(s);
    Value::Number(n, n)
}

fn target(w: &[String]) -> Verdict {
    match w[0].as_str() {
        "goto" => Verdict::Goto(w[1].as_str().into()),
        "jump" => Verdict::Jump(w[1].as_str().into()),
        "drop" => Verdict::Drop,
        "accept" => Verdict::Accept,
        "return" => Verdict::Return,
        v => panic!("{v}"),
    }
}

fn elements(text: &str) -> Vec<Element> {
    text.split(',')
        .filter(|e| !e.trim().is_empty())
        .map(|e| {
            let (key, data) = match e.split_once(" : ") {
                Some((k, d)) => (k, Some(d)),
                None => (e, None),
            };
            let (key, comment) = match key.split_once("comment") {
                Some((k, c)) => (k, Some(Arc::from(c.trim().trim_matches('"')))),
                None => (key, None),
            };
            let data = data.map(|d| {
                let w = words(d);
                if let Ok(a) = w[0].parse::<IpAddr>() {
                    Data::Endpoint(a, w.get(2).map(|p| p.parse().unwrap()))
                } else {
                    Data::Verdict(target(&w))
                }
            });
            Element {
                key: key.split(" . ").map(|k| value(k.trim())).collect(),
                data,
                comment,
                catch_all: false,
            }
        })
        .collect()
}

fn nft_set(name: &str, map: bool, body: &str) -> Set {
    let inside = body
        .split_once("elements = {")
        .map_or("", |(_, e)| e.trim_end_matches('}'));
    let inside = inside.split('}').next().unwrap_or("");
    let timeout_ms = body.rsplit_once("timeout ").and_then(|(_, t)| {
        let t = t.split_whitespace().next()?;
        t.strip_suffix('h')
            .map(|h| h.parse::<u64>().unwrap() * 3_600_000)
    });
    Set {
        name: name.into(),
        handle: 1,
        map,
        dynamic: body.contains("dynamic"),
        anonymous: name.starts_with("__"),
        timeout_ms,
        key_bytes: Vec::new(),
        key_type: 0,
        elements: elements(inside),
        unread: None,
    }
}

fn anonymous(t: &mut Table, map: bool, body: &str) -> Arc<str> {
    let name: Arc<str> = format!("__set{}", t.sets.len()).into();
    let set = nft_set(&name, map, &format!("elements = {{{body}}}"));
    t.sets.insert(name.clone(), set);
    name
}

fn nft_rule(t: &mut Table, line: &str) -> Rule {
    let (line, comment) = match line.split_once(" comment \"") {
        Some((l, c)) => (l, Some(Arc::from(c.trim_end_matches('"')))),
        None => (line, None),
    };
    let mut ops = Vec::new();
    let mut key: Vec<Field> = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let take = |s: &str| rest.strip_prefix(s).map(str::trim_start);
        let word = |r: &str| r.split_whitespace().next().unwrap_or("").to_string();
        let fields = [
            ("ip daddr", Field::Daddr),
            ("ip saddr", Field::Saddr),
            ("meta l4proto", Field::L4proto),
            ("th dport", Field::Dport),
        ];
        if let Some((r, f)) = fields
            .iter()
            .find_map(|(s, f)| take(s).map(|r| (r, f.clone())))
        {
            key.push(f);
            rest = r;
            if let Some(r) = rest.strip_prefix(". ") {
                rest = r;
                continue;
            }
            let fields = std::mem::take(&mut key);
            if let Some(r) = rest.strip_prefix("vmap @") {
                let set = word(r);
                rest = r[set.len()..].trim_start();
                ops.push(Op::VerdictMap(Lookup {
                    key: fields,
                    set: set.into(),
                    negated: false,
                }));
                continue;
            }
            let negated = rest.starts_with("!= ");
            rest = rest.trim_start_matches("!= ");
            if let Some(r) = rest.strip_prefix('@') {
                let set = word(r);
                rest = r[set.len()..].trim_start();
                let dynamic = t.sets.get(set.as_str()).is_some_and(|s| s.dynamic);
                ops.push(if dynamic {
                    Op::AffinityCheck {
                        list: set.into(),
                        seconds: None,
                    }
                } else {
                    Op::Lookup(Lookup {
                        key: fields,
                        set: set.into(),
                        negated,
                    })
                });
            } else if let Some(r) = rest.strip_prefix('{') {
                let (body, r) = r.split_once('}').unwrap();
                rest = r.trim_start();
                let set = anonymous(t, false, body);
                ops.push(Op::Lookup(Lookup {
                    key: fields,
                    set,
                    negated,
                }));
            } else {
                let w = word(rest);
                rest = rest[w.len()..].trim_start();
                ops.push(matching(fields[0].clone(), None, vec![value(&w)], negated));
            }
            continue;
        }
        if let Some(r) = take("ct state new") {
            ops.push(matching(
                Field::CtState,
                Some(8),
                vec![Value::Number(0, 0)],
                true,
            ));
            rest = r;
        } else if let Some(r) = take("ct status dnat") {
            ops.push(matching(
                Field::CtStatus,
                Some(0x20),
                vec![Value::Number(0, 0)],
                true,
            ));
            rest = r;
        } else if let Some(r) = take("fib daddr type local") {
            ops.push(number(Field::DaddrType, 2));
            rest = r;
        } else if let Some(r) = take("fib saddr type local") {
            ops.push(number(Field::SaddrType, 2));
            rest = r;
        } else if let Some(r) = take("meta mark set meta mark ") {
            let w = words(r);
            let n = hex(&w[1]) as u32;
            ops.push(match w[0].as_str() {
                "|" => Op::SetMark { and: !n, xor: n },
                _ => Op::SetMark {
                    and: u32::MAX,
                    xor: n,
                },
            });
            rest = r[1..].trim_start()[w[1].len()..].trim_start();
        } else if let Some(r) = take("meta mark & ") {
            let w = words(r);
            ops.push(matching(
                Field::Mark,
                Some(hex(&w[0])),
                vec![Value::Number(hex(&w[2]), hex(&w[2]))],
                w[1] == "!=",
            ));
            rest = r.splitn(4, ' ').nth(3).unwrap_or("");
        } else if let Some(r) = take("numgen random mod ") {
            let n = word(r);
            let (_, body) = r.split_once('{').unwrap();
            let map = anonymous(t, true, body.trim_end_matches(['}', ' ']));
            ops.push(Op::NumgenVerdictMap {
                modulus: n.parse().unwrap(),
                offset: 0,
                map,
                incremental: false,
            });
            rest = "";
        } else if let Some(r) = take("dnat ip to numgen random mod ") {
            let n = word(r);
            let (_, body) = r.split_once('{').unwrap();
            let map = anonymous(t, true, body.trim_end_matches(['}', ' ']));
            ops.push(Op::Dnat(NatTarget::NumgenMap {
                modulus: n.parse().unwrap(),
                offset: 0,
                map,
                incremental: false,
            }));
            rest = "";
        } else if let Some(r) = take("dnat to ") {
            let to: SocketAddr = r.parse().unwrap();
            ops.push(Op::Dnat(NatTarget::Fixed {
                address: Some(to.ip()),
                port: Some(to.port()),
            }));
            rest = "";
        } else if let Some(r) = take("update @") {
            let set = word(r);
            ops.push(Op::AffinityUpdate { list: set.into() });
            rest = r.split_once('}').map_or("", |(_, r)| r.trim_start());
        } else if let Some(r) = take("masquerade fully-random") {
            ops.push(Op::Masquerade);
            rest = r;
        } else if let Some(r) = take("reject") {
            ops.push(Op::Reject);
            rest = r;
        } else {
            ops.push(Op::Verdict(target(&words(rest))));
            rest = "";
        }
    }
    Rule::of(0, &mut ops, comment)
}

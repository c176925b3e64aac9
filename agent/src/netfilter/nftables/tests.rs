//! Decoding of recorded captures: what nft 1.0.6 and iptables 1.8.9 wrote into a 6.18 kernel from
//! the rules in `tests/rules`.

use super::capture::{Capture, LoadError, Messages};
use super::{Decoded, decode};
use crate::netfilter::ruleset::{
    ChainType, Data, Field, HookPoint, Lookup, Match, NatTarget, Op, Set, Table, TableFamily,
    Value, Verdict,
};

const CAPTURES: [(&str, &[u8]); 4] = [
    (
        "1.35",
        include_bytes!("../../../tests/captures/kube-proxy-1.35.nfcapture"),
    ),
    (
        "1.37",
        include_bytes!("../../../tests/captures/kube-proxy-1.37.nfcapture"),
    ),
    (
        "iptables",
        include_bytes!("../../../tests/captures/kube-proxy-iptables.nfcapture"),
    ),
    (
        "others",
        include_bytes!("../../../tests/captures/others.nfcapture"),
    ),
];

fn capture(name: &str) -> Capture {
    let (_, bytes) = CAPTURES
        .iter()
        .find(|(n, _)| *n == name)
        .expect("a capture of that name");
    Capture::load(bytes).expect("a whole capture")
}

fn table<'a>(decoded: &'a Decoded, family: TableFamily, name: &str) -> &'a Table {
    let found = decoded
        .ruleset
        .tables
        .iter()
        .find(|t| t.family == family && &*t.name == name);
    found.expect("the table")
}

fn ops<'a>(table: &'a Table, chain: &str, rule: usize) -> &'a [Op] {
    &table.chain(chain).expect("the chain").rules[rule].ops
}

fn is(field: Field, value: Value) -> Op {
    Op::Match(Match {
        field,
        mask: None,
        any_of: value.into(),
        negated: false,
    })
}

fn not(field: Field, value: Value) -> Op {
    Op::Match(Match {
        field,
        mask: None,
        any_of: value.into(),
        negated: true,
    })
}

fn number(n: u64) -> Value {
    Value::Number(n, n)
}

fn prefix(text: &str) -> Value {
    Value::Prefix(text.parse().expect("a prefix"))
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

fn find<'a>(set: &'a Set, key: &[Value]) -> Option<&'a Data> {
    set.elements.iter().find(|e| e.key == key)?.data.as_ref()
}

const WEB: &str = "service-KHN6ECMT-shop/web/tcp/http";
const WEB_ENDPOINT: &str = "endpoint-CRLTNO23-shop/web/tcp/http__10.244.1.10/8080";

#[test]
fn kube_proxy_1_35() {
    let decoded = decode(&capture("1.35"));
    assert_eq!(decoded.unknown, []);
    let ip = table(&decoded, TableFamily::Ip, "kube-proxy");

    let prerouting = ip
        .chain("nat-prerouting")
        .expect("chain")
        .hook
        .expect("hook");
    assert_eq!(
        (
            prerouting.point,
            prerouting.priority,
            prerouting.kind,
            prerouting.policy_drop
        ),
        (HookPoint::Prerouting, -100, ChainType::Nat, false)
    );
    let early = ip
        .chain("filter-prerouting-pre-dnat")
        .expect("chain")
        .hook
        .expect("hook");
    assert_eq!((early.priority, early.kind), (-110, ChainType::Filter));

    let key = vec![Field::Daddr, Field::L4proto, Field::Dport];
    let lookup = Lookup {
        key,
        set: "service-ips".into(),
        negated: false,
    };
    assert_eq!(ops(ip, "services", 0), [Op::VerdictMap(lookup)]);
    let key = vec![Field::L4proto, Field::Dport];
    let lookup = Lookup {
        key,
        set: "service-nodeports".into(),
        negated: false,
    };
    assert_eq!(
        ops(ip, "services", 1),
        [
            is(Field::DaddrType, number(2)),
            not(Field::Daddr, prefix("127.0.0.0/8")),
            Op::VerdictMap(lookup)
        ]
    );

    let ips = &ip.sets["service-ips"];
    assert!(ips.map && !ips.anonymous && ips.unread.is_none());
    assert_eq!(ips.elements.len(), 8);
    let key = [prefix("10.96.10.10/32"), number(6), number(80)];
    assert_eq!(find(ips, &key), Some(&Data::Verdict(goto(WEB))));
    let none = &ip.sets["no-endpoint-services"];
    let dns = none
        .elements
        .iter()
        .find(|e| e.key[1] == number(17))
        .expect("element");
    assert_eq!(dns.data, Some(Data::Verdict(Verdict::Drop)));
    assert_eq!(dns.comment.as_deref(), Some("shop/itp:dns"));

    assert_eq!(
        ops(ip, WEB, 0),
        [
            is(Field::Daddr, prefix("10.96.10.10/32")),
            not(Field::Saddr, prefix("10.244.0.0/16")),
            Op::Verdict(Verdict::Jump("mark-for-masquerade".into()))
        ]
    );
    let [
        Op::NumgenVerdictMap {
            modulus: 2,
            offset: 0,
            map,
            incremental: false,
        },
    ] = ops(ip, WEB, 1)
    else {
        panic!("{:?}", ops(ip, WEB, 1));
    };
    assert_eq!(
        find(&ip.sets[map], &[number(0)]),
        Some(&Data::Verdict(goto(WEB_ENDPOINT)))
    );
    assert_eq!(
        ops(ip, WEB_ENDPOINT, 1),
        [
            is(Field::L4proto, number(6)),
            Op::Dnat(NatTarget::Fixed {
                address: Some("10.244.1.10".parse().expect("address")),
                port: Some(8080)
            })
        ]
    );

    let sticky = "YHBZ4TRD-shop/sticky/tcp/http__10.244.1.15/8080";
    let list: std::sync::Arc<str> = format!("affinity-{sticky}").into();
    assert_eq!(
        ops(ip, "service-G5HJIGAW-shop/sticky/tcp/http", 1),
        [
            Op::AffinityCheck {
                list: list.clone(),
                seconds: Some(10800)
            },
            Op::Verdict(goto(&format!("endpoint-{sticky}")))
        ]
    );
    assert_eq!(
        ops(ip, &format!("endpoint-{sticky}"), 1),
        [Op::AffinityUpdate { list: list.clone() }]
    );
    assert!(ip.sets[&list].dynamic && ip.sets[&list].unread.is_some());

    let firewall = ops(ip, "firewall-2ECW3NZX-shop/lb/tcp/https", 0);
    let [
        Op::Lookup(Lookup {
            key,
            set,
            negated: true,
        }),
        Op::Verdict(Verdict::Drop),
    ] = firewall
    else {
        panic!("{firewall:?}");
    };
    assert_eq!(*key, [Field::Saddr]);
    let ranges: Vec<_> = ip.sets[set]
        .elements
        .iter()
        .map(|e| e.key[0].clone())
        .collect();
    assert_eq!(
        ranges,
        [
            prefix("192.168.0.0/24"),
            prefix("198.51.100.0/24"),
            prefix("203.0.113.50/32")
        ]
    );

    let checked = &ip.chain("cluster-ips-check").expect("chain").rules[0];
    assert_eq!(
        checked.comment.as_deref(),
        Some("Reject traffic to invalid ports of ClusterIPs")
    );
    assert_eq!(checked.ops[1], Op::Reject);
    let any = |negated| {
        Op::Match(Match {
            field: Field::Mark,
            mask: Some(0x4000),
            any_of: number(0).into(),
            negated,
        })
    };
    assert_eq!(
        ops(ip, "masquerading", 0),
        [any(false), Op::Verdict(Verdict::Return)]
    );
    assert_eq!(
        ops(ip, "masquerading", 1),
        [Op::SetMark {
            and: !0,
            xor: 0x4000
        }]
    );
    assert_eq!(ops(ip, "masquerading", 2), [Op::Masquerade]);
    assert_eq!(
        ops(ip, "mark-for-masquerade", 0),
        [Op::SetMark {
            and: !0x4000,
            xor: 0x4000
        }]
    );
    let new = Op::Match(Match {
        field: Field::CtState,
        mask: Some(8),
        any_of: number(0).into(),
        negated: true,
    });
    assert_eq!(ops(ip, "filter-input", 0)[0], new);
}

#[test]
fn kube_proxy_1_37() {
    let decoded = decode(&capture("1.37"));
    assert_eq!(decoded.unknown, []);
    let ip = table(&decoded, TableFamily::Ip, "kube-proxy");
    let [
        tcp,
        Op::Dnat(NatTarget::NumgenMap {
            modulus: 2,
            offset: 0,
            map,
            incremental: false,
        }),
    ] = ops(ip, WEB, 0)
    else {
        panic!("{:?}", ops(ip, WEB, 0));
    };
    assert_eq!(*tcp, is(Field::L4proto, number(6)));
    let endpoint = |text: &str, port| Data::Endpoint(text.parse().expect("address"), Some(port));
    assert_eq!(
        find(&ip.sets[map], &[number(0)]),
        Some(&endpoint("10.244.1.10", 8080))
    );
    assert_eq!(
        find(&ip.sets[map], &[number(1)]),
        Some(&endpoint("10.244.2.20", 8080))
    );

    let hairpin = ops(ip, "masquerading", 1);
    let key = vec![Field::Saddr, Field::Daddr, Field::L4proto, Field::Dport];
    let lookup = Lookup {
        key,
        set: "hairpin-connections".into(),
        negated: false,
    };
    let dnat = Op::Match(Match {
        field: Field::CtStatus,
        mask: Some(0x20),
        any_of: number(0).into(),
        negated: true,
    });
    assert_eq!(hairpin, [dnat, Op::Lookup(lookup), Op::Masquerade]);

    let ip6 = table(&decoded, TableFamily::Ip6, "kube-proxy");
    let [_, Op::Dnat(NatTarget::NumgenMap { map, .. })] = ops(ip6, "service-A-ns/svc/tcp/", 0)
    else {
        panic!("{:?}", ops(ip6, "service-A-ns/svc/tcp/", 0));
    };
    assert_eq!(
        find(&ip6.sets[map], &[number(1)]),
        Some(&endpoint("fd00::2", 80))
    );
    assert_eq!(
        ops(ip6, "service-B-ns/one/tcp/", 0)[1],
        Op::Dnat(NatTarget::Fixed {
            address: Some("fd00::1".parse().expect("address")),
            port: Some(80)
        })
    );
    let key = [prefix("fd00:10:96::b/128"), number(6), number(80)];
    let one = Data::Verdict(goto("service-B-ns/one/tcp/"));
    assert_eq!(find(&ip6.sets["service-ips"], &key), Some(&one));
}

fn told(ops: &[Op]) -> Vec<&Op> {
    ops.iter().filter(|op| **op != Op::Nothing).collect()
}

#[test]
fn kube_proxy_iptables() {
    let decoded = decode(&capture("iptables"));
    assert_eq!(decoded.unknown, []);
    let nat = table(&decoded, TableFamily::Ip, "nat");
    let web = nat.chain("KUBE-SVC-67NZLRHBNDSAWJRO").expect("chain");
    assert_eq!(
        web.rules[1].comment.as_deref(),
        Some("shop/web:http -> 10.244.1.10:8080")
    );
    assert_eq!(
        told(&web.rules[0].ops),
        [
            &is(Field::L4proto, number(6)),
            &not(Field::Saddr, prefix("10.244.0.0/16")),
            &is(Field::Daddr, prefix("10.96.10.10/32")),
            &is(Field::Dport, number(80)),
            &Op::Verdict(Verdict::Jump("KUBE-MARK-MASQ".into()))
        ]
    );
    assert_eq!(
        told(&web.rules[1].ops),
        [
            &Op::Probability { numerator: 1 << 30 },
            &Op::Verdict(Verdict::Jump("KUBE-SEP-FZQ6KZLGXRSKN2AD".into()))
        ]
    );
    let to = Op::Dnat(NatTarget::Fixed {
        address: Some("10.244.1.10".parse().expect("address")),
        port: Some(8080),
    });
    assert_eq!(
        told(ops(nat, "KUBE-SEP-FZQ6KZLGXRSKN2AD", 1)),
        [&is(Field::L4proto, number(6)), &to]
    );
    let list: std::sync::Arc<str> = "KUBE-SEP-7EATZAJNPCVGBTTR".into();
    assert_eq!(
        told(ops(nat, "KUBE-SVC-25FJTMN2OLOPNGWS", 1)),
        [
            &Op::AffinityCheck {
                list: list.clone(),
                seconds: Some(10800)
            },
            &Op::Verdict(Verdict::Jump(list.clone()))
        ]
    );
    assert!(ops(nat, &list, 1).contains(&Op::AffinityUpdate { list: list.clone() }));
    let local = told(ops(nat, "KUBE-EXT-F3GRYTE7HT6BGIBF", 1));
    assert_eq!(local[0], &is(Field::SaddrType, number(2)));
    assert_eq!(
        told(ops(nat, "KUBE-MARK-MASQ", 0)),
        [&Op::SetMark {
            and: !0x4000,
            xor: 0x4000
        }]
    );
    assert_eq!(told(ops(nat, "KUBE-POSTROUTING", 2)), [&Op::Masquerade]);
    let filter = table(&decoded, TableFamily::Ip, "filter");
    let refused = filter.chain("KUBE-EXTERNAL-SERVICES").expect("chain");
    assert!(
        refused
            .rules
            .iter()
            .any(|r| r.ops.last() == Some(&Op::Reject))
    );
    let ip6 = table(&decoded, TableFamily::Ip6, "nat");
    let to = Op::Dnat(NatTarget::Fixed {
        address: Some("fd00:10:244::5".parse().expect("address")),
        port: Some(8080),
    });
    assert_eq!(ops(ip6, "KUBE-SEP-X", 1).last(), Some(&to));
}

#[test]
fn intervals_concatenations_and_byte_orders() {
    let decoded = decode(&capture("others"));
    let inet = table(&decoded, TableFamily::Inet, "others");
    let keys = |set: &str| {
        let mut keys: Vec<_> = inet.sets[set]
            .elements
            .iter()
            .map(|e| e.key.clone())
            .collect();
        keys.sort_by_key(|k| format!("{k:?}"));
        keys
    };
    let range = |a: &str, b: &str| {
        Value::addresses(a.parse().expect("address"), b.parse().expect("address"))
    };
    assert_eq!(
        keys("nets"),
        [
            vec![range("192.168.1.5", "192.168.1.9")],
            vec![prefix("10.0.0.0/8")],
            vec![prefix("255.255.255.0/24")]
        ]
    );
    assert_eq!(keys("nets6"), [vec![prefix("fd00::/8")]]);
    assert_eq!(
        keys("ports"),
        [vec![Value::Number(1000, 2000)], vec![number(80)]]
    );
    assert_eq!(
        keys("marks"),
        [vec![Value::Number(16, 32)], vec![number(0x4000)]]
    );
    assert_eq!(keys("plainmarks"), [vec![number(16)], vec![number(0x4000)]]);
    assert_eq!(
        keys("pairs"),
        [
            vec![range("172.16.0.1", "172.16.0.9"), Value::Number(1000, 2000)],
            vec![prefix("10.0.0.0/8"), number(80)]
        ]
    );
    assert_eq!(keys("links")[0], [Value::Name("cali1".into(), false)]);
    // A hash decides: nothing may be claimed about where this goes.
    let hashed = ops(inet, "pre", 4);
    assert!(
        hashed.contains(&Op::UnknownMatch("hash".into())),
        "{hashed:?}"
    );
    assert!(
        matches!(hashed.last(), Some(Op::Dnat(NatTarget::Unknown(_)))),
        "{hashed:?}"
    );
}

#[test]
fn sctp_ports_behind_the_chunk_map() {
    // struct xt_sctp_info: dpts 0, spts 4, chunkmap 8 (256 bytes), flags 284, invflags 288
    let mut blob = vec![0u8; 296];
    blob[0..2].copy_from_slice(&9999u16.to_ne_bytes());
    blob[2..4].copy_from_slice(&9999u16.to_ne_bytes());
    blob[284..288].copy_from_slice(&2u32.to_ne_bytes());
    let decode = |blob: &[u8]| {
        let mut ops = Vec::new();
        crate::netfilter::xtables::decode_match(TableFamily::Ip, "sctp", 0, blob, &mut ops);
        ops
    };
    let ops = decode(&blob);
    assert_eq!(told(&ops), [&is(Field::Dport, number(9999))]);
    let ops = decode(&blob[..284]);
    assert_eq!(ops, [Op::UnknownMatch("xt match sctp.0".into())]);
}

/// A small generator; the seed is in the message of a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % n.max(1)
    }
}

fn damaged(messages: &Messages, random: &mut Random) -> Messages {
    let mut out = Messages::default();
    for message in messages.iter() {
        let mut message = message.to_vec();
        match random.below(8) {
            0 => message.truncate(random.below(message.len())),
            1 | 2 if !message.is_empty() => {
                let at = random.below(message.len());
                message[at] ^= 1 << random.below(8);
            }
            3 if !message.is_empty() => {
                let at = random.below(message.len());
                message[at] = u8::try_from(random.below(256)).unwrap_or(0);
            }
            _ => {}
        }
        out.push(&message);
    }
    out
}

#[test]
fn damaged_bytes_never_panic() {
    for (name, bytes) in CAPTURES {
        let whole = Capture::load(bytes).expect("a whole capture");
        for seed in 1..=150u64 {
            println!("{name}, seed {seed}");
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let capture = Capture {
                generation: whole.generation,
                last_writer: whole.last_writer.clone(),
                tables: damaged(&whole.tables, &mut random),
                chains: damaged(&whole.chains, &mut random),
                rules: damaged(&whole.rules, &mut random),
                sets: damaged(&whole.sets, &mut random),
                elements: damaged(&whole.elements, &mut random),
            };
            decode(&capture);
            // The file itself: an error, or a capture; never a panic.
            let mut file = bytes.to_vec();
            let at = random.below(file.len());
            file[at] ^= 1 << random.below(8);
            let _ = Capture::load(&file).map(|c| decode(&c));
            file.truncate(random.below(bytes.len()));
            assert!(Capture::load(&file).is_err());
        }
    }
}

#[test]
fn a_rule_cut_off_is_unknown_and_not_shorter() {
    let whole = capture("1.37");
    let before = decode(&whole);
    let mut cut = whole.clone();
    cut.rules = Messages::default();
    for message in whole.rules.iter() {
        cut.rules.push(&message[..message.len() - 4]);
    }
    let after = decode(&cut);
    let rules = |d: &Decoded| -> usize {
        d.ruleset
            .tables
            .iter()
            .flat_map(|t| &t.chains)
            .map(|c| c.rules.len())
            .sum()
    };
    assert_eq!(rules(&before), rules(&after));
    assert!(after.unknown.len() >= rules(&after));
}

#[test]
fn other_files_are_refused() {
    assert_eq!(Capture::load(b""), Err(LoadError::NotACapture));
    assert_eq!(
        Capture::load(b"nfcapt\r\n\x09\x01"),
        Err(LoadError::Version(9))
    );
    let mut saved = Capture::default().save();
    saved.push(0);
    assert_eq!(Capture::load(&saved), Err(LoadError::Damaged));
}

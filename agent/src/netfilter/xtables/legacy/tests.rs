//! Recorded tables, whole and damaged.

use super::capture::{INFO, TableCapture};
use super::*;
use crate::netfilter::nftables::capture::LoadError;
use crate::netfilter::ruleset::{Field, Match, Value};
use std::hash::{DefaultHasher, Hasher};

const KUBE_PROXY: &[u8] =
    include_bytes!("../../../../tests/captures/kube-proxy-1.37-ip-nat.xtcapture");
const KUBE_PROXY_V6: &[u8] =
    include_bytes!("../../../../tests/captures/kube-proxy-1.37-ip6-nat.xtcapture");
const OTHERS: &[u8] = include_bytes!("../../../../tests/captures/others-ip-filter.xtcapture");
const OTHERS_V6: &[u8] = include_bytes!("../../../../tests/captures/others-ip6-filter.xtcapture");

const ALL: [(&str, &[u8]); 4] = [
    ("kube-proxy", KUBE_PROXY),
    ("kube-proxy, IPv6", KUBE_PROXY_V6),
    ("others", OTHERS),
    ("others, IPv6", OTHERS_V6),
];

fn load(bytes: &[u8]) -> TableCapture {
    TableCapture::load(bytes).expect("a whole capture")
}

/// The capture with other entries.
fn with(capture: &TableCapture, entries: Vec<u8>) -> TableCapture {
    TableCapture::new(
        capture.family,
        capture.name.clone(),
        capture.info.clone(),
        entries,
        0,
    )
}

fn rules<'a>(decoded: &'a Decoded, chain: &str) -> &'a [Rule] {
    &decoded.table.chain(chain).expect("the chain").rules
}

fn told(rule: &Rule) -> Vec<&Op> {
    rule.ops.iter().filter(|op| **op != Op::Nothing).collect()
}

fn is(field: Field, value: Value, negated: bool) -> Op {
    Op::Match(Match {
        field,
        mask: None,
        any_of: value.into(),
        negated,
    })
}

fn net(text: &str) -> Value {
    Value::Prefix(text.parse().expect("a prefix"))
}

#[test]
fn a_table_of_kube_proxy() {
    let decoded = decode(&load(KUBE_PROXY));
    assert_eq!(decoded.unknown, []);
    assert_eq!(decoded.table.backend, Backend::Legacy);
    assert_eq!(decoded.table.word(), "iptables-legacy");
    let services = rules(&decoded, "KUBE-SERVICES");
    let web = services
        .iter()
        .find(|r| r.comment.as_deref() == Some("shop/web:http cluster IP"))
        .expect("the rule");
    let Some(Op::Verdict(Verdict::Jump(to))) = web.ops.last() else {
        panic!("{web:?}")
    };
    assert_eq!(
        told(web),
        [
            &is(Field::Daddr, net("10.96.10.10/32"), false),
            &is(Field::L4proto, Value::Number(6, 6), false),
            &is(Field::Dport, Value::Number(80, 80), false),
            &Op::Verdict(Verdict::Jump(to.clone())),
        ]
    );
    // By chance to one of two, the other one gets the rest.
    let backends = rules(&decoded, to);
    assert_eq!(backends.len(), 3);
    assert!(backends[1].ops.contains(&Op::Probability {
        numerator: 1_073_741_824
    }));
    let Some(Op::Verdict(Verdict::Jump(endpoint))) = backends[2].ops.last() else {
        panic!("{backends:?}")
    };
    let endpoint = rules(&decoded, endpoint);
    assert!(matches!(
        endpoint.last().and_then(|r| r.ops.last()),
        Some(Op::Dnat(NatTarget::Fixed {
            address: Some(_),
            port: Some(8080)
        }))
    ));
    let hook = |name: &str| decoded.table.chain(name).and_then(|c| c.hook);
    let pre = hook("PREROUTING").expect("a base chain");
    assert_eq!(
        (pre.point, pre.priority, pre.kind, pre.policy_drop),
        (HookPoint::Prerouting, -100, ChainType::Nat, false)
    );
    assert_eq!(hook("POSTROUTING").map(|h| h.priority), Some(100));
    assert_eq!(hook("KUBE-SERVICES"), None);
    let v6 = decode(&load(KUBE_PROXY_V6));
    assert_eq!(v6.unknown, []);
    assert_eq!(v6.table.word(), "ip6tables-legacy");
}

#[test]
fn rules_of_others() {
    let decoded = decode(&load(OTHERS));
    assert!(
        decoded
            .table
            .chain("INPUT")
            .and_then(|c| c.hook)
            .expect("base")
            .policy_drop
    );
    let input = rules(&decoded, "INPUT");
    let name = |text: &str, prefix| Value::Name(text.into(), prefix);
    let accept = Op::Verdict(Verdict::Accept);
    assert_eq!(
        told(&input[0]),
        [&is(Field::Iifname, name("lo", false), false), &accept]
    );
    assert_eq!(
        told(&input[1])[0],
        &is(Field::Iifname, name("eth", true), false)
    );
    assert_eq!(
        told(&input[2]),
        [
            &is(Field::Iifname, name("cali", true), true),
            &Op::Verdict(Verdict::Goto("CHECKS".into()))
        ]
    );
    assert_eq!(rules(&decoded, "EMPTY"), []);
    let forward = rules(&decoded, "FORWARD");
    assert_eq!(
        told(&forward[0]),
        [
            &is(Field::Iifname, name("br-0123456789ab", false), false),
            &is(Field::Oifname, name("eth0", false), false),
            &accept
        ]
    );
    assert_eq!(
        told(&forward[2])[..3],
        [
            &is(Field::Saddr, net("10.1.0.0/16"), true),
            &is(Field::Daddr, net("10.2.3.4/32"), true),
            &is(Field::L4proto, Value::Number(17, 17), true),
        ]
    );
    // Without a target: it does nothing, and the next rule sees the packet.
    assert!(matches!(told(&forward[4])[..], [Op::Match(_)]));
    assert_eq!(forward[4].comment.as_deref(), Some("a range"));
    let checks = rules(&decoded, "CHECKS");
    // The last one is the administrator's own, not the chain's end.
    assert_eq!(told(&checks[5]), [&Op::Verdict(Verdict::Return)]);
    assert_eq!(checks.len(), 6);
}

/// Rules of all chains, those that only say that something is damaged left out.
fn count(decoded: &Decoded) -> usize {
    decoded.table.chains.iter().map(|c| c.rules.len()).sum()
}

/// Each base chain has rules to the end, or says that it has not.
fn base_chains(decoded: &Decoded) -> usize {
    let all = decoded.table.chains.iter().filter(|c| c.hook.is_some());
    all.count()
}

#[test]
fn every_truncation_says_so() {
    for (name, bytes) in ALL {
        let whole = load(bytes);
        let before = decode(&whole);
        let length = whole.entries().len();
        // All of the small ones; of the large ones every cut near an entry's end, and some others.
        let step = if length > 20_000 { 61 } else { 1 };
        for cut in (0..length).step_by(step) {
            let after = decode(&with(&whole, whole.entries()[..cut].to_vec()));
            assert!(!after.unknown.is_empty(), "{name} cut at {cut}");
            assert_eq!(
                base_chains(&after),
                base_chains(&before),
                "{name} cut at {cut}"
            );
            assert!(count(&after) <= count(&before) + base_chains(&before) + 1);
        }
        for cut in 0..INFO {
            let mut capture = whole.clone();
            capture.info.truncate(cut);
            assert!(
                !decode(&capture).unknown.is_empty(),
                "{name}, info cut at {cut}"
            );
        }
        for cut in 0..bytes.len().min(5_000) {
            assert!(TableCapture::load(&bytes[..cut]).is_err());
        }
    }
}

#[test]
fn a_rule_cut_off_ends_its_chain_as_unknown() {
    let whole = load(OTHERS);
    let at = whole.entries().len() / 2;
    let after = decode(&with(&whole, whole.entries()[..at].to_vec()));
    let last = after.table.chains.iter().filter(|c| !c.rules.is_empty());
    let told = last.filter_map(|c| c.rules.last()).any(|r| {
        r.ops
            .iter()
            .any(|op| matches!(op, Op::UnknownStatement(what) if &**what == "chain cut off"))
    });
    assert!(told, "{:#?}", after.table.chains);
}

/// A small generator; the seed is printed before each use.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % n.max(1)
    }
}

#[test]
fn damaged_bytes_never_panic() {
    for (name, bytes) in ALL {
        let whole = load(bytes);
        for seed in 1..=400u64 {
            println!("{name}, seed {seed}");
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut entries = whole.entries().to_vec();
            let mut info = whole.info.clone();
            for _ in 0..=random.below(20) {
                let at = random.below(entries.len());
                entries[at] = u8::try_from(random.below(256)).unwrap_or(0);
            }
            for _ in 0..random.below(3) {
                let at = random.below(info.len());
                info[at] ^= 1 << random.below(8);
            }
            if random.below(4) == 0 {
                entries.truncate(random.below(entries.len()));
            }
            let start = random.below(3) * random.below(entries.len() + 9);
            let name = whole.name.clone();
            let capture = TableCapture::new(whole.family, name, info, entries, start);
            let decoded = decode(&capture);
            // Every jump leads to a chain of the table.
            for rule in decoded.table.chains.iter().flat_map(|c| &c.rules) {
                if let Some(Op::Verdict(Verdict::Jump(to) | Verdict::Goto(to))) = rule.ops.last() {
                    assert!(decoded.table.chain(to).is_some());
                }
            }
            capture.feed(&mut DefaultHasher::new());
        }
    }
}

#[test]
fn the_hash_sees_everything_but_counters() {
    let hash = |capture: &TableCapture| {
        let mut hasher = DefaultHasher::new();
        capture.feed(&mut hasher);
        hasher.finish()
    };
    for (name, bytes) in [ALL[2], ALL[3]] {
        let whole = load(bytes);
        let layout = Layout::of(whole.family);
        let mut counters = vec![false; whole.entries().len()];
        let (mut at, mut rest) = (0, whole.entries());
        while let Some((entry, tail)) = layout.split(rest) {
            let from = at + layout.counters;
            counters[from..from + 16].fill(true);
            at += entry.len();
            rest = tail;
        }
        let before = hash(&whole);
        for (at, counter) in counters.iter().enumerate() {
            let mut entries = whole.entries().to_vec();
            entries[at] ^= 0x40;
            let same = hash(&with(&whole, entries)) == before;
            assert_eq!(same, *counter, "{name}, byte {at}");
        }
    }
}

#[test]
fn a_table_that_is_not_known_is_not_walked() {
    let mut whole = load(OTHERS);
    whole.name = "later".into();
    let decoded = decode(&whole);
    for chain in decoded.table.chains.iter().filter(|c| c.hook.is_some()) {
        assert!(matches!(chain.rules[0].ops[..], [Op::UnknownStatement(_)]));
    }
}

#[test]
fn two_chains_of_a_name_are_not_mixed_up() {
    let whole = load(OTHERS);
    let mut entries = whole.entries().to_vec();
    let at = |entries: &[u8], name: &[u8]| {
        let mut head = b"ERROR".to_vec();
        head.resize(30, 0);
        head.extend_from_slice(name);
        let found = entries.windows(head.len()).position(|w| w == head);
        found.expect("the chain's head") + 30
    };
    let empty = at(&entries, b"EMPTY\0");
    entries[empty..empty + 7].copy_from_slice(b"CHECKS\0");
    let decoded = decode(&with(&whole, entries));
    // What led to the second one leads nowhere, and says so.
    let input = rules(&decoded, "INPUT");
    assert_eq!(
        input[3].ops.last(),
        Some(&Op::UnknownStatement(
            "jump into the middle of a chain".into()
        ))
    );
}

#[test]
fn other_files_are_refused() {
    assert_eq!(TableCapture::load(b""), Err(LoadError::NotACapture));
    let mut saved = load(OTHERS).save();
    saved.push(0);
    assert_eq!(TableCapture::load(&saved), Err(LoadError::Damaged));
    saved[8] = 9;
    assert_eq!(TableCapture::load(&saved), Err(LoadError::Version(9)));
}

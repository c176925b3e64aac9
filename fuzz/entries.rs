//! What is fuzzed: one function for each decoder, from bytes to what the rules do. They must not panic
//! and must end, whatever the bytes. `fuzz/fuzz_targets` gives them to libFuzzer; `agent/tests/damage.rs`
//! runs them over the corpora with seeded damage in every run of the tests.

use agent::bundle::{Limits, Step, read};
use agent::datapath::snapshot;
use agent::ipvs::capture::Captured;
use agent::ipvs::rules::lookup;
use agent::netfilter::nftables::{self, capture::Capture, json};
use agent::netfilter::ruleset::{
    Backend, Chain, ChainType, Hook, HookPoint, Op, Rule, Ruleset, Table, TableFamily, Verdict,
};
use agent::netfilter::xtables::legacy::{self, capture::TableCapture};
use agent::netfilter::xtables::save;
use agent::replay::collected;
use model::capture::Reading;
use model::name::NodeName;
use model::profile::{Learnt, LearntFrom, LocalDetector, ProxyConfig, ProxyProfile};
use model::view::{LocalAddress, NodeView};
use std::collections::BTreeMap;

/// Follows packets through the rules, whoever's they are.
fn walk(ruleset: Ruleset) {
    let node = NodeView {
        name: NodeName::from("node"),
        addresses: ["127.0.0.1", "10.77.0.16", "fd77::10", "::1"]
            .iter()
            .filter_map(|a| a.parse().ok())
            .map(|address| LocalAddress {
                address,
                link: "eth0".into(),
            })
            .collect(),
    };
    let profile = ProxyProfile {
        mode: None,
        version: None,
        config: Learnt {
            value: ProxyConfig {
                detector: LocalDetector::Cidr("10.244.0.0/16".parse().into_iter().collect()),
                ..ProxyConfig::default()
            },
            from: LearntFrom::Default,
        },
    };
    snapshot(&Reading::Read(ruleset), &BTreeMap::new(), &node, &profile);
}

/// A capture of IPVS and its ipsets.
pub fn ipvs(bytes: &[u8]) {
    if let Ok(captured) = Captured::load(bytes)
        && let Ok(ipvs) = captured.decode()
    {
        let lookups = (0..8).map(|number| lookup(number, &[false, number % 2 == 1, true], false));
        walk(ipvs.among(&looking_up(lookups)));
    }
}

/// One chain with a rule for each look-up.
fn looking_up(lookups: impl Iterator<Item = Op>) -> Ruleset {
    let rules = lookups.zip(1..).map(|(op, handle)| {
        let mut ops = vec![op, Op::Verdict(Verdict::Drop)];
        Rule::of(handle, &mut ops, None)
    });
    let chain = Chain {
        name: "INPUT".into(),
        handle: 0,
        hook: Some(Hook {
            point: HookPoint::Input,
            priority: 0,
            kind: ChainType::Filter,
            policy_drop: false,
        }),
        rules: rules.collect(),
    };
    let table = Table {
        family: TableFamily::Ip,
        name: "filter".into(),
        backend: Backend::Legacy,
        dormant: false,
        chain_index: [(chain.name.clone(), 0)].into(),
        chains: vec![chain],
        sets: Default::default(),
    };
    Ruleset {
        tables: vec![table],
        ..Ruleset::default()
    }
}

/// A capture of nf_tables.
pub fn nf_tables(bytes: &[u8]) {
    if let Ok(capture) = Capture::load(bytes) {
        walk(nftables::decode(&capture).ruleset);
    }
}

/// A table of iptables-legacy.
pub fn legacy_table(bytes: &[u8]) {
    if let Ok(capture) = TableCapture::load(bytes) {
        let tables = vec![legacy::decode(&capture).table];
        walk(Ruleset {
            tables,
            ..Ruleset::default()
        });
    }
}

/// A text of `iptables-save`.
pub fn iptables_save(bytes: &[u8]) {
    if let Ok(saved) = save::parse(&String::from_utf8_lossy(bytes)) {
        walk(Ruleset {
            tables: saved.tables,
            ..Ruleset::default()
        });
    }
}

/// What `nft -j list ruleset` prints.
pub fn nft_json(bytes: &[u8]) {
    if let Ok(ruleset) = json::parse(&String::from_utf8_lossy(bytes)) {
        walk(ruleset);
    }
}

/// What `ip -j address` prints.
pub fn addresses(bytes: &[u8]) {
    let _ = collected::addresses(&String::from_utf8_lossy(bytes));
}

/// A bundle, within small limits.
pub fn bundle(bytes: &[u8]) {
    let limits = Limits {
        entry: 1 << 20,
        total: 4 << 20,
        captures: 16,
        passes: 16,
    };
    let _ = read(bytes, limits, |step| {
        if let Step::Pass(_, Some(captures)) = step
            && let Reading::Read(ruleset) = captures.decode()
        {
            walk(ruleset);
        }
    });
}

//! The worked examples of kube-proxy.md 3.12 and 5.10, loaded into a real kernel, read back and
//! walked: three writers, one table.

mod namespace;

use agent::datapath;
use agent::host::nf_tables;
use agent::netfilter::nftables;
use model::address::{Family, Frontend, SourceClass};
use model::capture::{DatapathState, Reading, Snapshot};
use model::name::NodeName;
use model::profile::{Learnt, LearntFrom, LocalDetector, ProxyConfig, ProxyProfile};
use model::table::{Affinity, DecidedBy, ForwardingTable};
use model::view::{LocalAddress, NodeView};
use namespace::{in_namespace, run};
use std::collections::BTreeMap;

const IPTABLES: &str = include_str!("../src/netfilter/walk/tests/iptables.txt");
const NFT_135: &str = include_str!("../src/netfilter/walk/tests/nft-1.35.txt");
const NFT_137: &str = include_str!("../src/netfilter/walk/tests/nft-1.37.txt");

/// Loads rules in a network namespace of this thread's own, and reads them there.
fn in_kernel(program: &'static str, arguments: &'static [&str], rules: String) -> Option<Snapshot> {
    in_namespace(|| {
        run(program, arguments, &rules);
        let capture = nf_tables::read().unwrap();
        let decoded = nftables::decode(&capture);
        assert_eq!(decoded.unknown, []);
        let at = |address: &str, link: &str| LocalAddress {
            address: address.parse().unwrap(),
            link: link.into(),
        };
        let node = NodeView {
            name: NodeName::from("node"),
            addresses: vec![
                at("127.0.0.1", "lo"),
                at("10.244.1.1", "cni0"),
                at("192.168.0.2", "eth0"),
            ],
        };
        let profile = ProxyProfile {
            mode: None,
            version: None,
            config: Learnt {
                value: ProxyConfig {
                    detector: LocalDetector::Cidr(vec!["10.244.0.0/16".parse().unwrap()]),
                    ..ProxyConfig::default()
                },
                from: LearntFrom::Default,
            },
        };
        let reading = Reading::Read(decoded.ruleset);
        datapath::snapshot(&reading, &BTreeMap::new(), &node, &profile)
    })
}

fn line(table: &ForwardingTable, frontend: &str, source: SourceClass) -> String {
    let frontend: Frontend = frontend.parse().unwrap();
    let row = table
        .rows
        .get(&(frontend, source))
        .unwrap_or_else(|| panic!("no row {frontend}"));
    assert_eq!(row.decided_by, DecidedBy::Datapath, "{frontend}");
    let f = &row.forwarding;
    let mut text = f.action.word().to_string();
    for b in f.backends.iter() {
        text.push_str(&format!(
            " {}={:.0}%,{:?}",
            b.address,
            b.share * 100.0,
            b.masquerade
        ));
    }
    if let Affinity::ClientIp(t) = f.affinity {
        text.push_str(&format!(" sticky {t}"));
    }
    if let Some(r) = &f.source_ranges {
        text.push_str(&format!(" from {:?} else {}", r.ranges, r.otherwise.word()));
    }
    text
}

/// Pod, node, outside.
fn all(table: &ForwardingTable, frontend: &str) -> [String; 3] {
    SourceClass::ALL.map(|source| line(table, frontend, source))
}

fn examples(shot: &Snapshot, datapath: &str, remote: &str) {
    assert_eq!(shot.datapaths.len(), 1);
    assert_eq!(&*shot.datapaths[0].name, datapath);
    assert_eq!(shot.datapaths[0].state, DatapathState::InCharge);
    assert_eq!(
        shot.hooks.iter().filter(|h| !h.present).count(),
        0,
        "{:#?}",
        shot.hooks
    );
    assert_eq!(shot.coverage.unknown_in_own_rules, []);
    assert_eq!(shot.gaps, []);
    let Some(Reading::Read(table)) = shot.tables.get(&Family::V4) else {
        panic!("no table")
    };
    let web = |local: &str, remote: &str| {
        format!("forward 10.244.1.10:8080=50%,{local} 10.244.2.20:8080=50%,{remote}")
    };
    assert_eq!(
        all(table, "10.96.10.10:80/TCP"),
        [
            web("Hairpin", remote),
            web("Always", "Always"),
            web("Always", "Always")
        ]
    );
    let lb = "forward 10.244.2.22:8443=100%,Always from \
              [192.168.0.0/24, 198.51.100.0/24, 203.0.113.50/32] else drop";
    assert_eq!(all(table, "203.0.113.50:443/TCP"), [lb, lb, lb]);
    let np = "forward 10.244.1.11:8080=33%,Always 10.244.2.21:8080=33%,Always \
              10.244.3.31:8080=33%,Always";
    assert_eq!(all(table, "192.168.0.2:30080/TCP"), [np, np, np]);
    assert_eq!(
        all(table, "192.168.0.2:30091/TCP"),
        [
            format!("forward 10.244.2.24:8080=100%,{remote}"),
            "forward 10.244.2.24:8080=100%,Always".to_string(),
            "drop".to_string()
        ]
    );
    let sticky =
        format!("forward 10.244.1.15:8080=50%,Hairpin 10.244.2.25:8080=50%,{remote} sticky 10800");
    assert_eq!(all(table, "10.96.10.15:80/TCP")[0], sticky);
    assert_eq!(
        all(table, "10.96.10.16:80/TCP"),
        ["reject", "reject", "reject"]
    );
    assert_eq!(all(table, "10.96.10.17:53/UDP"), ["drop", "drop", "drop"]);
    if datapath.ends_with("nftables") {
        assert_eq!(
            all(table, "10.96.10.10:*/*"),
            ["reject", "reject", "reject"]
        );
        assert_eq!(all(table, "10.96.0.0/12:*/*"), ["drop", "drop", "drop"]);
    }
}

/// As it has to be written: `nft list` leaves out what kind of map it is.
fn nft_input(listed: &str) -> String {
    let body = listed.replace("dnat ip to numgen", "dnat ip addr . port to numgen");
    format!("table ip kube-proxy {{\n{body}}}\n")
}

#[test]
fn nftables_of_both_generations() {
    for (text, remote) in [(NFT_135, "Hairpin"), (NFT_137, "Never")] {
        if let Some(shot) = in_kernel("nft", &["-f", "-"], nft_input(text)) {
            examples(&shot, "kube-proxy/nftables", remote);
        }
    }
}

/// What `iptables-restore` wants around the rules: chains first, one block for each table.
fn restore_input(saved: &str) -> String {
    let mut tables: BTreeMap<&str, (Vec<String>, Vec<&str>)> = BTreeMap::new();
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
            continue;
        }
        let (chains, rules) = tables.entry(table).or_default();
        let target = line
            .rsplit_once(" -j ")
            .map(|(_, t)| t.split(' ').next().unwrap_or(""));
        for chain in line.split(' ').nth(1).into_iter().chain(target) {
            if chain.starts_with("KUBE-") && !chains.iter().any(|c| c == chain) {
                chains.push(chain.to_string());
            }
        }
        rules.push(line);
    }
    let mut text = String::new();
    for (table, (chains, rules)) in tables {
        text.push_str(&format!("*{table}\n"));
        for chain in chains {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        text.push_str(&rules.join("\n"));
        text.push_str("\nCOMMIT\n");
    }
    text
}

#[test]
fn iptables_over_nf_tables() {
    let rules = restore_input(IPTABLES);
    if let Some(shot) = in_kernel("iptables-nft-restore", &[], rules) {
        examples(&shot, "kube-proxy/iptables-nft", "Hairpin");
    }
}

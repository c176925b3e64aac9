//! Which datapath is there, which is in charge, and which of its hooks are missing.

use super::*;
use crate::netfilter::walk::tests::{IPTABLES, NFT_135, NFT_137, node, text};
use model::profile::{LocalDetector, ProxyConfig};

fn profile(mode: Option<ProxyMode>) -> ProxyProfile {
    ProxyProfile {
        mode: mode.map(|value| Learnt {
            value,
            from: LearntFrom::Proxy,
        }),
        version: None,
        config: Learnt {
            value: ProxyConfig {
                detector: LocalDetector::Cidr(vec!["10.244.0.0/16".parse().unwrap()]),
                ..ProxyConfig::default()
            },
            from: LearntFrom::Default,
        },
    }
}

fn shot(ruleset: Ruleset, mode: Option<ProxyMode>) -> Snapshot {
    let mut desired = BTreeMap::new();
    desired.insert("10.96.10.10:80/TCP".parse().unwrap(), None);
    snapshot(&Reading::Read(ruleset), &desired, &node(), &profile(mode))
}

fn missing(s: &Snapshot) -> Vec<&str> {
    s.hooks
        .iter()
        .filter(|h| !h.present)
        .map(|h| &*h.name)
        .collect()
}

fn states(s: &Snapshot) -> Vec<(&str, DatapathState)> {
    s.datapaths.iter().map(|d| (&*d.name, d.state)).collect()
}

#[test]
fn iptables_in_charge() {
    let s = shot(text::iptables(IPTABLES), None);
    assert_eq!(
        states(&s),
        [("kube-proxy/iptables-nft", DatapathState::InCharge)]
    );
    assert_eq!(s.hooks.len(), 12);
    assert_eq!(missing(&s), Vec::<&str>::new());
    assert_eq!(s.coverage.families, [Family::V4]);
    assert_eq!(s.tables[&Family::V6], Reading::Absent);
    let without: String = IPTABLES
        .lines()
        .filter(|l| !l.starts_with("-A PREROUTING") && !l.contains("load balancer firewall"))
        .map(|l| format!("{l}\n"))
        .collect();
    let s = shot(text::iptables(&without), None);
    assert_eq!(
        missing(&s),
        [
            "filter INPUT -> KUBE-PROXY-FIREWALL",
            "filter OUTPUT -> KUBE-PROXY-FIREWALL",
            "filter FORWARD -> KUBE-PROXY-FIREWALL",
            "nat PREROUTING -> KUBE-SERVICES"
        ]
    );
    let gone = s
        .hooks
        .iter()
        .find(|h| &*h.name == "nat PREROUTING -> KUBE-SERVICES")
        .unwrap();
    assert!(gone.essential);
    assert_eq!(
        gone.evidence.to_string(),
        "ip nat PREROUTING: no rule leads to KUBE-SERVICES"
    );
}

#[test]
fn kubelet_chains_prove_nothing() {
    let rules = text::iptables(
        "*mangle\n:KUBE-IPTABLES-HINT -\n:KUBE-KUBELET-CANARY -\n*filter\n-A INPUT -j KUBE-FIREWALL\n\
         -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
    );
    let s = shot(rules.clone(), None);
    assert_eq!(s.datapaths, []);
    assert_eq!(s.hooks, []);
    // Known to be in charge, and nothing of it there: every hook is missing.
    let s = shot(rules, Some(ProxyMode::Iptables));
    assert_eq!(s.datapaths[0].state, DatapathState::InCharge);
    assert_eq!(missing(&s).len(), 12);
}

#[test]
fn nftables_layouts() {
    for text in [NFT_135, NFT_137] {
        let s = shot(text::nft(text), None);
        assert_eq!(
            states(&s),
            [("kube-proxy/nftables", DatapathState::InCharge)]
        );
        assert_eq!(missing(&s), Vec::<&str>::new());
        assert_eq!(s.hooks.len(), 11);
    }
    // The older layout.
    let older = NFT_135
        .replace("filter-prerouting-pre-dnat", "filter-prerouting")
        .replace("filter-output-pre-dnat", "filter-output-post-dnat")
        .replace("ct state new jump firewall-check\n\t}\n\tchain filter-input", "ct state new jump cluster-ips-check\n\t}\n\tchain filter-input")
        .replace("\t\tct state new jump service-endpoints-check\n\t\tct state new jump cluster-ips-check\n\t}\n\tchain nat-prerouting",
            "\t\tct state new jump service-endpoints-check\n\t\tct state new jump firewall-check\n\t}\n\tchain nat-prerouting");
    let s = shot(text::nft(&older), None);
    assert_eq!(missing(&s), Vec::<&str>::new());
    assert!(
        s.hooks
            .iter()
            .any(|h| &*h.name == "filter-output-post-dnat -> cluster-ips-check")
    );
    let s = shot(text::nft(&NFT_137.replace("\t\tjump services\n", "")), None);
    assert_eq!(
        missing(&s),
        ["nat-prerouting -> services", "nat-output -> services"]
    );
}

#[test]
fn a_deleted_table() {
    let s = shot(Ruleset::default(), Some(ProxyMode::Nftables));
    assert_eq!(missing(&s), ["table ip kube-proxy"]);
    assert!(s.hooks[0].essential);
    assert_eq!(
        states(&s),
        [("kube-proxy/nftables", DatapathState::InCharge)]
    );
    let Some(Reading::Read(table)) = s.tables.get(&Family::V4) else {
        panic!()
    };
    assert_eq!(table.rows.len(), 3);
    assert!(
        table
            .rows
            .values()
            .all(|r| r.forwarding.action == model::table::Action::None)
    );
}

#[test]
fn residue_of_an_earlier_mode() {
    let mut rules = text::iptables(IPTABLES);
    rules.tables.extend(text::nft(NFT_137).tables);
    let s = shot(rules.clone(), Some(ProxyMode::Iptables));
    assert_eq!(
        states(&s),
        [
            ("kube-proxy/iptables-nft", DatapathState::InCharge),
            ("kube-proxy/nftables", DatapathState::Residue)
        ]
    );
    let s = shot(rules, Some(ProxyMode::Nftables));
    assert_eq!(s.datapaths[0].name.as_ref(), "kube-proxy/nftables");
}

#[test]
fn what_failed_to_read_is_not_judged() {
    let gap = Gap {
        what: "nf_tables".into(),
        why: "no permission".into(),
    };
    let s = snapshot(
        &Reading::Failed(gap.clone()),
        &BTreeMap::new(),
        &node(),
        &profile(Some(ProxyMode::Nftables)),
    );
    assert_eq!(s.tables[&Family::V4], Reading::Failed(gap.clone()));
    assert_eq!(s.gaps, [gap]);
    assert_eq!(s.hooks, []);
}

#[test]
fn legacy_is_a_backend_of_its_own() {
    let legacy = |mut rules: Ruleset| {
        for table in &mut rules.tables {
            table.backend = Backend::Legacy;
        }
        rules
    };
    let s = shot(legacy(text::iptables(IPTABLES)), None);
    assert_eq!(
        states(&s),
        [("kube-proxy/iptables-legacy", DatapathState::InCharge)]
    );
    assert_eq!(missing(&s), Vec::<&str>::new());
    assert_eq!(&*s.hooks[0].evidence.family, "iptables-legacy");
    // Both at once: both are named, and that packets meet both.
    let mut rules = legacy(text::iptables(IPTABLES));
    rules.tables.extend(text::iptables(IPTABLES).tables);
    let s = shot(rules, Some(ProxyMode::Iptables));
    assert_eq!(
        states(&s),
        [
            ("kube-proxy/iptables-legacy", DatapathState::InCharge),
            ("kube-proxy/iptables-nft", DatapathState::Residue)
        ]
    );
    for found in &s.datapaths {
        assert!(
            found.why.contains("packets meet those of the other"),
            "{}",
            found.why
        );
    }
}

/// Where nothing answers, the evidence is where kube-proxy would answer, in the mode's own words.
#[test]
fn an_absence_is_placed() {
    let places = |ruleset: Ruleset, frontend: &str| -> Vec<String> {
        let key: Frontend = frontend.parse().unwrap();
        let desired = BTreeMap::from([(key, None)]);
        let s = snapshot(&Reading::Read(ruleset), &desired, &node(), &profile(None));
        let table = s.tables[&Family::V4].read().unwrap();
        let row = &table.rows[&(key, model::address::SourceClass::Outside)];
        assert_eq!(row.forwarding.action, Action::None, "{frontend}");
        row.evidence.iter().map(ToString::to_string).collect()
    };
    let own = node().addresses[2].address;
    let cluster = places(text::iptables(IPTABLES), "198.51.100.7:80/TCP");
    assert!(
        cluster[0].starts_with("ip nat KUBE-SERVICES"),
        "{cluster:?}"
    );
    let node_port = places(text::iptables(IPTABLES), &format!("{own}:31999/TCP"));
    assert!(
        node_port[0].starts_with("ip nat KUBE-NODEPORTS"),
        "{node_port:?}"
    );
    let mapped = places(text::nft(NFT_137), "198.51.100.7:80/TCP");
    assert!(mapped[0].contains("map service-ips"), "{mapped:?}");
    let mapped = places(text::nft(NFT_137), &format!("{own}:31999/TCP"));
    assert!(
        mapped[1].contains("map no-endpoint-nodeports"),
        "{mapped:?}"
    );
}

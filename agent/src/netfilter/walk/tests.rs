//! The worked examples of kube-proxy.md 3.12 and 5.10, and what may happen to them.

mod branches;
mod large;
mod tails;
pub(crate) mod text;
mod ties;

use super::*;
use crate::datapath::kube_proxy_iptables::Iptables;
use crate::datapath::kube_proxy_nftables::Nftables;
use crate::netfilter::ruleset::*;
use model::name::NodeName;
use model::table::{Action, Affinity, DecidedBy, Masquerade, Observed};
use model::view::LocalAddress;

pub(crate) const IPTABLES: &str = include_str!("tests/iptables.txt");
pub(crate) const NFT_135: &str = include_str!("tests/nft-1.35.txt");
pub(crate) const NFT_137: &str = include_str!("tests/nft-1.37.txt");

pub(crate) fn node() -> NodeView {
    let at = |address: &str, link: &str| LocalAddress {
        address: address.parse().unwrap(),
        link: link.into(),
    };
    NodeView {
        name: NodeName::from("node"),
        addresses: vec![
            at("127.0.0.1", "lo"),
            at("10.244.1.1", "cni0"),
            at("192.168.0.2", "eth0"),
            at("::1", "lo"),
        ],
    }
}

pub(crate) fn cidr() -> LocalDetector {
    LocalDetector::Cidr(vec!["10.244.0.0/16".parse().unwrap()])
}

struct Seen(ForwardingTable);

fn see_with(
    ruleset: &Ruleset,
    owner: &dyn Owner,
    detector: &LocalDetector,
    desired: &[&str],
) -> Seen {
    let desired = desired.iter().map(|f| (f.parse().unwrap(), None)).collect();
    let ask = Ask {
        desired: &desired,
        node: &node(),
        detector,
        owner,
    };
    let tables = walk_all(ruleset, &ask, true);
    // What follows a translation is the same whether it is walked once or for each backend.
    assert_eq!(tables, walk_all(ruleset, &ask, false));
    match { tables }.remove(&Family::V4) {
        Some(Reading::Read(table)) => Seen(table),
        other => panic!("{other:?}"),
    }
}

fn see(ruleset: &Ruleset, owner: &dyn Owner) -> Seen {
    see_with(ruleset, owner, &cidr(), &[])
}

impl Seen {
    fn row(&self, frontend: &str, class: SourceClass) -> &Observed {
        self.0
            .rows
            .get(&(frontend.parse().unwrap(), class))
            .unwrap_or_else(|| panic!("no row {frontend} {class}"))
    }

    /// The row in one line: action, backends with share in percent and masquerade, the rest.
    fn line(&self, frontend: &str, class: SourceClass) -> String {
        let row = self.row(frontend, class);
        let f = &row.forwarding;
        let mut text = f.action.word().to_string();
        for b in f.backends.iter() {
            let m = match b.masquerade {
                Masquerade::Never => "never",
                Masquerade::Always => "always",
                Masquerade::Hairpin => "hairpin",
                Masquerade::Unknown => "unknown",
            };
            text.push_str(&format!(" {}={:.0}%,{m}", b.address, b.share * 100.0));
        }
        match &f.affinity {
            Affinity::None => {}
            Affinity::ClientIp(t) => text.push_str(&format!(" sticky {t}")),
            Affinity::Broken(why) => text.push_str(&format!(" broken: {why}")),
        }
        if let Some(r) = &f.source_ranges {
            let all: Vec<String> = r.ranges.iter().map(ToString::to_string).collect();
            text.push_str(&format!(
                " from {} else {}",
                all.join(","),
                r.otherwise.word()
            ));
        }
        text
    }

    fn all(&self, frontend: &str) -> [String; 3] {
        SourceClass::ALL.map(|c| self.line(frontend, c))
    }
}

/// Rows that are the same in every mode: frontend, pod, node, outside.
fn common(seen: &Seen, hairpin_remote: &str, what: &str) {
    let web = |local: &str, remote: &str| {
        format!("forward 10.244.1.10:8080=50%,{local} 10.244.2.20:8080=50%,{remote}")
    };
    assert_eq!(
        seen.all("10.96.10.10:80/TCP"),
        [
            web("hairpin", hairpin_remote),
            web("always", "always"),
            web("always", "always")
        ],
        "{what}"
    );
    let np = "forward 10.244.1.11:8080=33%,always 10.244.2.21:8080=33%,always \
              10.244.3.31:8080=33%,always";
    assert_eq!(seen.all("192.168.0.2:30080/TCP"), [np, np, np], "{what}");
    let lb = "forward 10.244.2.22:8443=100%,always from \
              192.168.0.0/24,198.51.100.0/24,203.0.113.50/32 else drop";
    assert_eq!(seen.all("203.0.113.50:443/TCP"), [lb, lb, lb], "{what}");
    let both = |local: &str, remote: &str| {
        format!("forward 10.244.1.13:8080=50%,{local} 10.244.2.23:8080=50%,{remote}")
    };
    assert_eq!(
        seen.all("203.0.113.51:80/TCP"),
        [
            both("hairpin", hairpin_remote),
            both("always", "always"),
            "forward 10.244.1.13:8080=100%,never".to_string()
        ],
        "{what}"
    );
    assert_eq!(
        seen.all("192.168.0.2:30091/TCP"),
        [
            format!("forward 10.244.2.24:8080=100%,{hairpin_remote}"),
            "forward 10.244.2.24:8080=100%,always".to_string(),
            "drop".to_string()
        ],
        "{what}"
    );
    let sticky = |local: &str, remote: &str| {
        format!("forward 10.244.1.15:8080=50%,{local} 10.244.2.25:8080=50%,{remote} sticky 10800")
    };
    assert_eq!(
        seen.all("10.96.10.15:80/TCP"),
        [
            sticky("hairpin", hairpin_remote),
            sticky("always", "always"),
            sticky("always", "always")
        ],
        "{what}"
    );
    for f in ["10.96.10.16:80/TCP", "192.168.0.2:30092/TCP"] {
        assert_eq!(seen.all(f), ["reject", "reject", "reject"], "{what} {f}");
    }
    assert_eq!(
        seen.all("10.96.10.17:53/UDP"),
        ["drop", "drop", "drop"],
        "{what}"
    );
    for (f, s) in [
        ("10.96.10.10:80/TCP", "shop/web:http"),
        ("192.168.0.2:30080/TCP", "shop/np"),
        ("203.0.113.50:443/TCP", "shop/lb:https"),
        ("10.96.10.16:80/TCP", "shop/empty:http"),
        ("10.96.10.17:53/UDP", "shop/itp:dns"),
    ] {
        for class in SourceClass::ALL {
            let row = seen.row(f, class);
            let name = row.forwarding.service.as_ref().map(ToString::to_string);
            assert_eq!(name.as_deref(), Some(s), "{what} {f} {class}");
            assert_eq!(row.decided_by, DecidedBy::Datapath, "{what} {f}");
            assert!(!row.evidence.is_empty(), "{what} {f}");
            assert_eq!(row.backend_evidence.len(), row.forwarding.backends.len());
        }
    }
}

#[test]
fn iptables_examples() {
    let seen = see(&text::iptables(IPTABLES), &Iptables);
    common(&seen, "hairpin", "iptables");
    // Node ports are served on loopback too; nothing else is named.
    assert!(
        seen.line("127.0.0.1:30080/TCP", SourceClass::Node)
            .starts_with("forward")
    );
    assert!(!seen.0.rows.keys().any(|(f, _)| f.is_wildcard()));
    assert!(
        !seen
            .0
            .rows
            .keys()
            .any(|(f, _)| f.to_string().ends_with(":31000/TCP"))
    );
    let row = seen.row("10.96.10.10:80/TCP", SourceClass::Pod);
    let way: Vec<String> = row.evidence.iter().map(ToString::to_string).collect();
    assert_eq!(
        way,
        [
            "ip nat PREROUTING handle 1: leads to KUBE-SERVICES",
            "ip nat KUBE-SERVICES handle 1: leads to KUBE-SVC-67NZLRHBNDSAWJRO"
        ]
    );
    assert_eq!(
        row.backend_evidence[0].to_string(),
        "ip nat KUBE-SEP-FZQ6KZLGXRSKN2AD handle 2: translates to 10.244.1.10:8080"
    );
}

#[test]
fn nftables_examples_to_1_35() {
    let seen = see(&text::nft(NFT_135), &Nftables);
    common(&seen, "hairpin", "1.35");
    nftables_wildcards(&seen);
}

#[test]
fn nftables_examples_from_1_36() {
    let seen = see(&text::nft(NFT_137), &Nftables);
    common(&seen, "never", "1.37");
    nftables_wildcards(&seen);
    let row = seen.row("10.96.10.10:80/TCP", SourceClass::Outside);
    assert_eq!(
        row.evidence[1].to_string(),
        "ip kube-proxy service-ips { 10.96.10.10 . tcp . 80 : goto \
         service-KHN6ECMT-shop/web/tcp/http }: leads to service-KHN6ECMT-shop/web/tcp/http"
    );
    assert_eq!(
        row.backend_evidence[1].element.as_deref(),
        Some("1 : 10.244.2.20 . 8080")
    );
    // `nodeport-ips` holds one address: no node port elsewhere.
    assert!(
        !seen
            .0
            .rows
            .keys()
            .any(|(f, _)| f.to_string() == "10.244.1.1:30080/TCP")
    );
}

fn nftables_wildcards(seen: &Seen) {
    assert_eq!(seen.all("10.96.10.10:*/*"), ["reject", "reject", "reject"]);
    assert_eq!(seen.all("10.96.0.0/12:*/*"), ["drop", "drop", "drop"]);
    assert_eq!(
        seen.row("10.96.10.10:*/*", SourceClass::Pod)
            .forwarding
            .service,
        None
    );
}

/// The examples with other lines in front of and behind them.
fn changed(before: &str, drop_lines: &[&str], after: &str) -> Ruleset {
    let kept: Vec<&str> = IPTABLES
        .lines()
        .filter(|l| !drop_lines.iter().any(|d| l.contains(d)))
        .collect();
    text::iptables(&format!("{before}\n{}\n{after}", kept.join("\n")))
}

const WEB: &str = "10.96.10.10:80/TCP";

#[test]
fn a_foreign_translation_in_front() {
    let rules = changed(
        "*nat\n-A PREROUTING -d 10.96.10.10 -p tcp -m tcp --dport 80 -j DNAT \
         --to-destination 172.16.0.9:81",
        &[],
        "",
    );
    let seen = see(&rules, &Iptables);
    let row = seen.row(WEB, SourceClass::Outside);
    assert_eq!(row.decided_by, DecidedBy::Foreign);
    assert_eq!(
        row.forwarding.backends[0].address,
        "172.16.0.9:81".parse().unwrap()
    );
    // The node's own packets do not pass prerouting.
    assert_eq!(
        seen.row(WEB, SourceClass::Node).decided_by,
        DecidedBy::Datapath
    );
}

#[test]
fn a_foreign_rule_that_takes_the_packet_away() {
    let rules = changed("*nat\n-A PREROUTING -d 10.96.0.0/16 -j ACCEPT", &[], "");
    let seen = see_with(&rules, &Iptables, &cidr(), &[WEB]);
    let row = seen.row(WEB, SourceClass::Pod);
    assert_eq!(
        (row.forwarding.action.word(), row.decided_by),
        ("none", DecidedBy::Foreign)
    );
    assert!(
        row.evidence[0].says.contains("lets the packet pass"),
        "{:?}",
        row.evidence
    );
    let rules = changed("*raw\n-A PREROUTING -d 10.96.0.0/16 -j NOTRACK", &[], "");
    let seen = see_with(&rules, &Iptables, &cidr(), &[WEB]);
    let row = seen.row(WEB, SourceClass::Pod);
    assert_eq!(
        (row.forwarding.action.word(), row.decided_by),
        ("none", DecidedBy::Foreign)
    );
}

#[test]
fn a_foreign_drop_after_translation() {
    let rules = changed("*filter\n:FORWARD DROP", &["KUBE-FORWARD -m"], "");
    let seen = see(&rules, &Iptables);
    let row = seen.row(WEB, SourceClass::Outside);
    assert_eq!(
        (row.forwarding.action.word(), row.decided_by),
        ("drop", DecidedBy::Foreign)
    );
    assert_eq!(row.evidence.last().unwrap().says.as_ref(), "policy drop");
    // One backend only: the other still gets traffic, and the loss is told.
    let rules = changed("*filter\n-A FORWARD -d 10.244.2.20 -j DROP", &[], "");
    let seen = see(&rules, &Iptables);
    let row = seen.row(WEB, SourceClass::Pod);
    assert_eq!(
        seen.line(WEB, SourceClass::Pod),
        "forward 10.244.1.10:8080=100%,hairpin"
    );
    assert_eq!(row.decided_by, DecidedBy::Foreign);
    assert!(
        row.evidence[0]
            .says
            .starts_with("50.0 % of new connections are dropped")
    );
}

#[test]
fn a_removed_jump() {
    let rules = changed("", &["-A PREROUTING"], "");
    let seen = see_with(&rules, &Iptables, &cidr(), &[WEB]);
    assert_eq!(seen.line(WEB, SourceClass::Pod), "none");
    assert_eq!(
        seen.row(WEB, SourceClass::Pod).decided_by,
        DecidedBy::Nobody
    );
    assert!(seen.line(WEB, SourceClass::Node).starts_with("forward"));
    // Refused ones are refused by the filter table all the same.
    assert_eq!(seen.line("10.96.10.16:80/TCP", SourceClass::Pod), "reject");
    let rules = changed("", &["-A POSTROUTING"], "");
    let seen = see(&rules, &Iptables);
    assert!(seen.line(WEB, SourceClass::Outside).contains("=50%,never"));
}

#[test]
fn what_is_not_understood_matters_only_where_it_decides() {
    // Counts or accepts what would pass anyway.
    let rules = changed(
        "*nat\n-A PREROUTING -m limit --limit 2/s",
        &[],
        "*filter\n-A FORWARD -m limit --limit 1/s -j ACCEPT",
    );
    let seen = see(&rules, &Iptables);
    common(&seen, "hairpin", "harmless");
    // In front of the firewall for load balancers the same rule decides: it may let clients in.
    let rules = changed(
        "*filter\n-A FORWARD -m limit --limit 1/s -j ACCEPT",
        &[],
        "",
    );
    let seen = see(&rules, &Iptables);
    assert_eq!(
        seen.line("203.0.113.50:443/TCP", SourceClass::Outside),
        "unknown"
    );
    let rules = changed("*filter\n-A FORWARD -m limit --limit 1/s -j DROP", &[], "");
    let seen = see(&rules, &Iptables);
    let row = seen.row(WEB, SourceClass::Outside);
    match &row.forwarding.action {
        Action::Unknown(why) => assert!(
            why.contains("limit 1/s") && why.contains("FORWARD"),
            "{why}"
        ),
        other => panic!("{other:?}"),
    }
    // Packets of the node do not meet it.
    assert!(seen.line(WEB, SourceClass::Node).starts_with("forward"));
    let rules = changed("*mangle\n-A PREROUTING -d 10.96.10.10 -j STRANGE", &[], "");
    let seen = see(&rules, &Iptables);
    assert_eq!(seen.line(WEB, SourceClass::Pod), "unknown");
    assert!(
        seen.line("10.96.10.11:80/TCP", SourceClass::Pod)
            .starts_with("forward")
    );
}

#[test]
fn shares_are_exact() {
    // One endpoint twice, and a wrong probability.
    let rules = text::iptables(
        "*nat
        -A PREROUTING -j KUBE-SERVICES
        -A KUBE-SERVICES -d 10.96.0.1 -p tcp --dport 80 -j KUBE-SVC-A
        -A KUBE-SVC-A -m statistic --mode random --probability 0.25 -j KUBE-SEP-A
        -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-B
        -A KUBE-SVC-A -j KUBE-SEP-A
        -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.1.1:80
        -A KUBE-SEP-B -p tcp -j DNAT --to-destination 10.244.1.2:80",
    );
    let seen = see(&rules, &Iptables);
    let row = seen.row("10.96.0.1:80/TCP", SourceClass::Pod);
    let shares: Vec<f64> = row.forwarding.backends.iter().map(|b| b.share).collect();
    assert_eq!(shares, [0.625, 0.375]);
    // A chain that lost its rules hands the packet to the next rule, and behind the last to nobody.
    let rules = text::iptables(
        "*nat
        -A PREROUTING -j KUBE-SERVICES
        -A KUBE-SERVICES -d 10.96.0.1 -p tcp --dport 80 -j KUBE-SVC-A
        -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
        -A KUBE-SVC-A -j KUBE-SEP-B
        -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.1.1:80",
    );
    let row = see(&rules, &Iptables);
    let row = row.row("10.96.0.1:80/TCP", SourceClass::Pod);
    assert_eq!(row.forwarding.backends.len(), 1);
    assert_eq!(
        row.evidence[0].says.as_ref(),
        "50.0 % of new connections are left alone"
    );
}

#[test]
fn affinity_that_is_half_there() {
    let line = |drop: &[&str]| {
        see(&changed("", drop, ""), &Iptables).line("10.96.10.15:80/TCP", SourceClass::Pod)
    };
    assert!(line(&[]).ends_with("sticky 10800"));
    assert!(line(&["--rcheck"]).contains("broken: clients of 10.244.1.15:8080 are remembered"));
    let gone = "KUBE-SVC-25FJTMN2OLOPNGWS -m comment --comment \"shop/sticky:http -> 10.244.2.25:8080\" -m recent";
    assert!(line(&[gone]).contains("broken: clients of 10.244.2.25:8080 are remembered"));
    let rules = IPTABLES.replacen("--seconds 10800", "--seconds 60", 1);
    let seen = see(&text::iptables(&rules), &Iptables);
    assert!(
        seen.line("10.96.10.15:80/TCP", SourceClass::Pod)
            .contains("broken: two timeouts")
    );
}

#[test]
fn detectors() {
    // Without one, a Pod is as anybody outside, and any client may be the backend.
    let text = IPTABLES
        .replace("! -s 10.244.0.0/16 -d 10.96", "-d 172.31")
        .replace(
            "-A KUBE-EXT-F3GRYTE7HT6BGIBF -s 10.244.0.0/16",
            "-A KUBE-EXT-F3GRYTE7HT6BGIBF -s 172.31.0.0/32",
        );
    let seen = see_with(&text::iptables(&text), &Iptables, &LocalDetector::None, &[]);
    let [pod, node, outside] = seen.all(WEB);
    assert_eq!(pod, outside);
    assert!(pod.contains("10.244.1.10:8080=50%,hairpin"), "{pod}");
    assert!(node.contains("10.244.1.10:8080=50%,never"), "{node}");
    // By link.
    for (detector, word) in [
        (LocalDetector::Bridge("br0".into()), "br0"),
        (LocalDetector::InterfacePrefix("veth".into()), "veth+"),
    ] {
        let text = IPTABLES
            .replace("! -s 10.244.0.0/16", &format!("! -i {word}"))
            .replace("-s 10.244.0.0/16", &format!("-i {word}"));
        let seen = see_with(&text::iptables(&text), &Iptables, &detector, &[]);
        let [pod, node, outside] = seen.all(WEB);
        assert!(pod.contains("10.244.1.10:8080=50%,hairpin"), "{pod}");
        assert!(node.contains("10.244.1.10:8080=50%,always"), "{node}");
        assert!(outside.contains("10.244.1.10:8080=50%,always"), "{outside}");
        assert_eq!(seen.all("192.168.0.2:30091/TCP")[2], "drop");
        assert!(seen.all("192.168.0.2:30091/TCP")[0].starts_with("forward"));
    }
}

#[test]
fn a_source_range_that_is_the_pod_network() {
    let text = IPTABLES.replace("-s 198.51.100.0/24", "-s 10.244.0.0/16");
    let seen = see(&text::iptables(&text), &Iptables);
    for line in seen.all("203.0.113.50:443/TCP") {
        assert!(
            line.contains("from 10.244.0.0/16,192.168.0.0/24,203.0.113.50/32 else drop"),
            "{line}"
        );
    }
}

#[test]
fn a_backend_on_the_node_itself() {
    let text = IPTABLES.replace("10.244.1.10", "192.168.0.2");
    let seen = see(&text::iptables(&text), &Iptables);
    let [pod, node, outside] = seen.all(WEB);
    assert!(pod.contains("192.168.0.2:8080=50%,never"), "{pod}");
    assert!(node.contains("192.168.0.2:8080=50%,always"), "{node}");
    assert!(outside.contains("192.168.0.2:8080=50%,always"), "{outside}");
}

#[test]
fn a_dormant_table_and_a_wrong_set() {
    let mut rules = text::nft(NFT_137);
    rules.tables[0].dormant = true;
    let seen = see_with(&rules, &Nftables, &cidr(), &[WEB]);
    assert_eq!(seen.line(WEB, SourceClass::Pod), "none");
    let mut rules = text::nft(NFT_137);
    rules.tables[0].sets.get_mut("service-ips").unwrap().unread = Some("cut short".into());
    let seen = see_with(&rules, &Nftables, &cidr(), &[WEB]);
    assert_eq!(seen.line(WEB, SourceClass::Pod), "unknown");
}

#[test]
fn a_concrete_packet() {
    use crate::netfilter::trace::{Packet, trace};
    let rules = text::iptables(IPTABLES);
    let desired = BTreeMap::new();
    let ask = Ask {
        desired: &desired,
        node: &node(),
        detector: &cidr(),
        owner: &Iptables,
    };
    let packet = |source: &str| Packet {
        source: source.parse().unwrap(),
        source_port: Some(40_000),
        link: Some("eth0".into()),
        destination: "203.0.113.50".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 443,
    };
    let path = trace(&rules, &ask, &packet("198.51.100.7"));
    assert_eq!(path.end.forwarding.action, Action::Forward);
    assert!(path.end.forwarding.source_ranges.is_none());
    let says: Vec<String> = path.steps.iter().map(|s| s.place.to_string()).collect();
    assert!(
        says.iter()
            .any(|s| s.contains("KUBE-FW-Z2VHYKJU5HB5LLV6 handle 1")),
        "{says:#?}"
    );
    let path = trace(&rules, &ask, &packet("198.51.101.7"));
    assert_eq!(path.end.forwarding.action, Action::Drop);
    assert!(
        path.steps
            .last()
            .unwrap()
            .place
            .to_string()
            .contains("KUBE-PROXY-FIREWALL")
    );
}

//! IPVS as a kernel gave it, and what the walk makes of it.

use super::capture::{Capture, Captured, Server, SetCapture};
use super::decode::{self, Method, name};
use super::ipset::{self, Ipsets};
use super::rules::lookup;
use super::*;
use crate::datapath::snapshot;
use crate::netfilter::ruleset::{Op, Ruleset, TableFamily};
use crate::netfilter::walk::tests::{cidr, text};
use crate::netfilter::xtables::decode_match;
use model::address::{Frontend, SourceClass};
use model::capture::{DatapathState, Reading, Snapshot};
use model::name::NodeName;
use model::profile::{Learnt, LearntFrom, ProxyConfig, ProxyMode, ProxyProfile};
use model::table::{Action, Affinity, Masquerade, Observed};
use model::view::{LocalAddress, NodeView};
use std::collections::BTreeMap;

/// What user-mode-linux gave: see the file.
const RECORDED: &str = include_str!("recorded/linux-6.1.txt");

fn lines(kind: &str) -> impl Iterator<Item = Vec<&'static str>> {
    RECORDED
        .lines()
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .filter(move |words| words[0] == kind)
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

pub(crate) fn recorded() -> Captured {
    let mut servers = Vec::new();
    let mut sets = Vec::new();
    for line in RECORDED.lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "service" => servers.push(Server {
                service: bytes(words[1]),
                destinations: Vec::new(),
            }),
            "destination" => {
                let server: &mut Server = servers.last_mut().unwrap();
                server.destinations.push(bytes(words[1]));
            }
            "set" => sets.push(SetCapture {
                messages: vec![bytes(words[1])],
                listed: true,
            }),
            _ => {}
        }
    }
    Captured {
        servers: Capture { servers },
        sets,
    }
}

#[test]
fn virtual_servers_of_a_kernel() {
    let ipvs = recorded().decode().unwrap();
    let shown: Vec<String> = ipvs
        .servers
        .iter()
        .map(|s| {
            let real = s.real.iter();
            let real: Vec<String> = real
                .map(|r| format!("{} {}", r.address, r.weight))
                .collect();
            let kept = s.persistence.map_or(0, |p| p.seconds);
            format!(
                "{} {} {kept} [{}]",
                name(&s.front),
                s.scheduler,
                real.join(", ")
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "mark 7 rr 0 []",
            "tcp 10.96.0.10:80 rr 0 [10.244.1.10:8080 1, 10.244.1.11:8080 0]",
            "udp 10.96.0.10:53 wrr 10800 [10.244.1.12:53 3]",
            "tcp 10.96.0.11:80 rr 0 []",
            "tcp [fd00:96::10]:80 rr 0 [[fd00:244::10]:8080 1]",
        ]
    );
    let real = ipvs.servers.iter().flat_map(|s| &s.real);
    assert!(
        real.clone()
            .all(|r| r.method == Method::Masquerade && r.upper_threshold == 0)
    );
    assert!(
        ipvs.servers
            .iter()
            .all(|s| s.persistence.is_none_or(|p| p.whole_address))
    );
    let family = bytes(lines("family").next().unwrap()[1]);
    assert_eq!(decode::family(&family), Some(28));
}

/// A service is asked about with the attributes that name it, and no others.
#[test]
fn a_service_is_named_as_the_kernel_named_it() {
    let service = &recorded().servers.servers[0].service;
    let key = decode::key(service).unwrap();
    // AF 8, protocol 8, address 20, port 8
    assert_eq!(key.len(), 44);
    assert_eq!(key[..], service[8..52]);
}

#[test]
fn sets_of_a_kernel() {
    let sets = Ipsets::of(&recorded().sets);
    let shown: Vec<String> = sets
        .0
        .iter()
        .map(|(number, s)| {
            let first = s.set.elements.first().map(|e| format!("{:?}", e.key));
            format!(
                "{number} {} {} {} {:?}",
                s.name,
                s.set.elements.len(),
                first.unwrap_or_default(),
                s.set.unread
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "0 KUBE-CLUSTER-IP 2 [Prefix(10.96.0.10/32), Number(17, 17), Number(53, 53)] None",
            "1 KUBE-6-CLUSTER-IP 1 [Prefix(fd00:96::10/128), Number(6, 6), Number(80, 80)] None",
            "2 KUBE-LOOP-BACK 1 [Prefix(10.244.1.10/32), Number(6, 6), Number(8080, 8080), \
             Prefix(10.244.1.10/32)] None",
            "3 KUBE-LOAD-BALANCER-SOURCE-CIDR 1 [Prefix(203.0.113.50/32), Number(6, 6), \
             Number(443, 443), Prefix(198.51.100.0/24)] None",
            "4 KUBE-NODE-PORT-TCP 2 [Number(30080, 30080)] None",
            "5 KUBE-IPVS-IPS 1 [Prefix(10.96.0.10/32)] None",
            // `nomatch`: not understood, so nothing of the set is believed.
            "6 plain 0  Some(\"an element was not understood\")",
            "7 EMPTY 0  None",
        ]
    );
    assert!(ipset::is_whole(&recorded().sets[0].messages));
}

/// A set that lost an element on the way is told from one that never had it.
#[test]
fn a_set_that_says_more_elements_than_it_shows_is_not_read() {
    let mut set = recorded().sets[0].clone();
    // The second element, 32 bytes, is the end of the nest of 68 at the end.
    let message = &mut set.messages[0];
    let nest = message.len() - 68;
    message.truncate(nest + 36);
    message[nest..nest + 2].copy_from_slice(&36u16.to_ne_bytes());
    assert!(!ipset::is_whole(&set.messages));
    let sets = Ipsets::of(&[set]);
    assert_eq!(
        sets.0[&0].set.unread.as_deref(),
        Some("it changed during every reading")
    );
}

#[test]
fn captures_are_the_same_after_a_file() {
    let captured = recorded();
    let saved = captured.save();
    assert_eq!(Captured::load(&saved).unwrap(), captured);
    for end in 0..saved.len() {
        let cut = Captured::load(&saved[..end]);
        assert!(cut.is_err() || cut.unwrap() != captured, "{end}");
    }
}

#[test]
fn matches_of_a_kernel() {
    let decoded = |words: &[&str]| {
        let mut ops = Vec::new();
        let revision = words[2].parse().unwrap();
        decode_match(
            TableFamily::Ip,
            words[1],
            revision,
            &bytes(words[3]),
            &mut ops,
        );
        ops
    };
    let all: Vec<Vec<Op>> = lines("match").map(|words| decoded(&words)).collect();
    assert_eq!(all[0], [lookup(0, &[false, false], false)]);
    assert_eq!(all[1], [lookup(2, &[false, false, true], true)]);
    let shown: Vec<String> = all[2].iter().map(|op| format!("{op:?}")).collect();
    assert!(
        shown[0].contains("VirtualPort") && shown[0].contains("Number(443, 443)"),
        "{shown:?}"
    );
    assert!(shown[1].contains("CtOriginalDaddr") && shown[1].contains("203.0.113.50/32"));
    // Understood, and not to be decided.
    let bridged = format!("{:?}", all[3]);
    assert!(bridged.contains("port of a bridge") && bridged.contains("negated: true"));
}

fn node() -> NodeView {
    let address = |address: &str, link: &str| LocalAddress {
        address: address.parse().unwrap(),
        link: link.into(),
    };
    NodeView {
        name: NodeName::from("n1"),
        addresses: vec![
            address("10.96.0.10", "kube-ipvs0"),
            address("10.96.0.11", "kube-ipvs0"),
            address("192.168.0.2", "eth0"),
        ],
    }
}

/// kube-proxy's rules as far as they matter to a cluster IP, with sets by number.
fn rules() -> Ruleset {
    let mut ruleset = text::iptables(
        "*nat\n\
         :PREROUTING ACCEPT [0:0]\n\
         :OUTPUT ACCEPT [0:0]\n\
         :POSTROUTING ACCEPT [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-NODE-PORT - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n\
         -A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MASQUERADE\n\
         -A KUBE-SERVICES ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ\n\
         -A KUBE-SERVICES -j ACCEPT\n",
    );
    let chains = &mut ruleset.tables[0].chains;
    let mut insert = |chain: &str, rule: usize, op: Op| {
        let chain = chains.iter_mut().find(|c| &*c.name == chain).unwrap();
        let mut ops = chain.rules[rule].ops.to_vec();
        ops.insert(0, op);
        chain.rules[rule].ops = ops.into();
    };
    insert(
        "KUBE-POSTROUTING",
        0,
        lookup(2, &[false, false, true], false),
    );
    insert("KUBE-SERVICES", 0, lookup(0, &[false, false], false));
    insert("KUBE-SERVICES", 1, lookup(0, &[false, false], false));
    ruleset
}

fn shot(ipvs: &Ipvs) -> Snapshot {
    let desired = [
        "10.96.0.10:80/TCP",
        "10.96.0.11:80/TCP",
        "10.96.0.10:53/UDP",
    ];
    let desired: BTreeMap<Frontend, _> =
        desired.iter().map(|f| (f.parse().unwrap(), None)).collect();
    let profile = ProxyProfile {
        mode: Some(Learnt {
            value: ProxyMode::Ipvs,
            from: LearntFrom::Proxy,
        }),
        version: None,
        config: Learnt {
            value: ProxyConfig {
                detector: cidr(),
                ..ProxyConfig::default()
            },
            from: LearntFrom::Default,
        },
    };
    let all = Reading::Read(ipvs.among(&rules()));
    snapshot(&all, &desired, &node(), &profile)
}

fn row<'s>(s: &'s Snapshot, frontend: &str, source: SourceClass) -> &'s Observed {
    let frontend: Frontend = frontend.parse().unwrap();
    let table = s.tables[&frontend.family()].read().unwrap();
    &table.rows[&(frontend, source)]
}

#[test]
fn packets_meet_virtual_servers_between_the_rules() {
    let ipvs = recorded().decode().unwrap();
    let s = shot(&ipvs);
    assert_eq!(&*s.datapaths[0].name, "kube-proxy/ipvs");
    assert_eq!(s.datapaths[0].state, DatapathState::InCharge);
    for (source, masquerade) in [
        // The one backend is local and may be the client itself.
        (SourceClass::Pod, Masquerade::Hairpin),
        (SourceClass::Outside, Masquerade::Always),
        (SourceClass::Node, Masquerade::Always),
    ] {
        let web = &row(&s, "10.96.0.10:80/TCP", source).forwarding;
        assert_eq!(web.action, Action::Forward, "{source:?}");
        // Weight 0 gets no new connection.
        let backends: Vec<_> = web.backends.iter().map(|b| b.address.to_string()).collect();
        assert_eq!(backends, ["10.244.1.10:8080"]);
        assert_eq!(web.backends[0].masquerade, masquerade, "{source:?}");
        assert_eq!(web.affinity, Affinity::None);
        let dns = &row(&s, "10.96.0.10:53/UDP", source).forwarding;
        assert_eq!(dns.affinity, Affinity::ClientIp(10_800));
        // No real server: the client is told so.
        let empty = &row(&s, "10.96.0.11:80/TCP", source).forwarding;
        assert_eq!(empty.action, Action::Reject);
    }
    let proof = &row(&s, "10.96.0.10:80/TCP", SourceClass::Pod).backend_evidence[0];
    assert_eq!(
        proof.to_string(),
        "ipvs ip_vs tcp 10.96.0.10:80 entry 1: translates to 10.244.1.10:8080"
    );
}

#[test]
fn shares_follow_the_scheduler() {
    let shares = |scheduler: &str, weights: [u32; 2]| {
        let mut ipvs = recorded().decode().unwrap();
        let web = &mut ipvs.servers[1];
        web.scheduler = scheduler.into();
        for (real, weight) in web.real.iter_mut().zip(weights) {
            real.weight = weight;
        }
        let s = shot(&ipvs);
        let row = &row(&s, "10.96.0.10:80/TCP", SourceClass::Outside).forwarding;
        match &row.action {
            Action::Forward => {
                let all = row.backends.iter();
                Ok(all
                    .map(|b| (b.share * 100.0).round() as u32)
                    .collect::<Vec<_>>())
            }
            other => Err(other.word()),
        }
    };
    assert_eq!(shares("rr", [1, 1]), Ok(vec![50, 50]));
    // Round robin only asks whether a weight is 0.
    assert_eq!(shares("rr", [1, 3]), Ok(vec![50, 50]));
    assert_eq!(shares("wrr", [1, 3]), Ok(vec![25, 75]));
    assert_eq!(shares("wlc", [0, 3]), Ok(vec![100]));
    assert_eq!(shares("sh", [1, 1]), Ok(vec![50, 50]));
    assert_eq!(shares("sh", [0, 1]), Ok(vec![100]));
    assert_eq!(shares("dh", [1, 1]), Err("unknown"));
    assert_eq!(shares("something", [1, 1]), Err("unknown"));
}

#[test]
fn what_is_not_understood_is_unknown() {
    type Change = fn(&mut decode::VirtualServer);
    let changes: [Change; 4] = [
        |s| s.real[0].method = Method::Other(3),
        |s| s.real[0].upper_threshold = 5,
        |s| s.one_packet = true,
        |s| {
            s.persistence = Some(decode::Persistence {
                seconds: 60,
                whole_address: false,
            });
        },
    ];
    for change in changes {
        let mut ipvs = recorded().decode().unwrap();
        change(&mut ipvs.servers[1]);
        let s = shot(&ipvs);
        let row = row(&s, "10.96.0.10:80/TCP", SourceClass::Outside);
        assert_eq!(row.forwarding.action.word(), "unknown");
    }
    // So is what is decided by a set that was not read.
    let mut captured = recorded();
    captured.sets[0].listed = false;
    let s = shot(&captured.decode().unwrap());
    let web = &row(&s, "10.96.0.10:80/TCP", SourceClass::Outside).forwarding;
    assert_eq!(web.backends[0].masquerade, Masquerade::Unknown);
    // A virtual server that is cut off makes the reading no reading.
    let mut captured = recorded();
    captured.servers.servers[0].service.truncate(40);
    assert!(captured.decode().is_err());
}

/// Nobody says which mode it is: the chains of IPVS mode with virtual servers do.
#[test]
fn the_kernel_shows_the_mode_where_nobody_says_it() {
    let silent = ProxyProfile {
        mode: None,
        version: None,
        config: Learnt {
            value: ProxyConfig::default(),
            from: LearntFrom::Default,
        },
    };
    let ipvs = recorded().decode().unwrap();
    let learnt = |reading: &Reading<Ruleset>| {
        let profile = crate::datapath::learnt(&silent, reading);
        profile.mode.as_ref().map(|m| (m.value, m.from))
    };
    let all = Reading::Read(ipvs.among(&rules()));
    assert_eq!(learnt(&all), Some((ProxyMode::Ipvs, LearntFrom::Kernel)));
    // Virtual servers alone may be anybody's.
    let alone = Reading::Read(ipvs.among(&Ruleset::default()));
    assert_eq!(learnt(&alone), None);
}

/// Packets from elsewhere reach a virtual server only while its address is the node's.
#[test]
fn an_address_that_is_on_no_link_is_passed_by() {
    let ipvs = recorded().decode().unwrap();
    let all = Reading::Read(ipvs.among(&rules()));
    let mut node = node();
    node.addresses.remove(0);
    let profile = ProxyProfile {
        mode: Some(Learnt {
            value: ProxyMode::Ipvs,
            from: LearntFrom::Proxy,
        }),
        version: None,
        config: Learnt {
            value: ProxyConfig::default(),
            from: LearntFrom::Default,
        },
    };
    let desired = BTreeMap::from([("10.96.0.10:80/TCP".parse().unwrap(), None)]);
    let s = snapshot(&all, &desired, &node, &profile);
    let pod = row(&s, "10.96.0.10:80/TCP", SourceClass::Pod);
    assert_eq!(pod.forwarding.action, Action::None);
    assert!(
        pod.evidence[0].says.contains("kube-ipvs0"),
        "{:?}",
        pod.evidence
    );
    let own = row(&s, "10.96.0.10:80/TCP", SourceClass::Node);
    assert_eq!(own.forwarding.action, Action::Forward);
}

/// Connections and statistics are no change of the rules.
#[test]
fn connections_are_no_change() {
    let mut ipvs = recorded().decode().unwrap();
    let before = ipvs.clone();
    ipvs.servers[1].real[0].connections.active = 7;
    assert!(before.is_like(&ipvs));
    ipvs.servers[1].real[0].weight = 7;
    assert!(!before.is_like(&ipvs));
}

/// IPVS may be loaded with nothing in it: the rules say whether that is what a node lost.
#[test]
fn rules_tell_whether_ipvs_matters() {
    let traces = Traces::of(&rules());
    assert_eq!((traces.sets, traces.mode), (true, false));
    let filter = "*filter\n:KUBE-IPVS-FILTER - [0:0]\n-A INPUT -j KUBE-IPVS-FILTER\n";
    let traces = Traces::of(&text::iptables(filter));
    assert_eq!((traces.sets, traces.mode), (false, true));
}

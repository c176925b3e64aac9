//! iptables-legacy against the real kernel, each test in a network namespace of its own thread.
//! Needs root; without it each test says so and is skipped.

mod namespace;

use agent::datapath;
use agent::host::xtables::{self, ReadError, TableName};
use agent::kernel::Kernel;
use agent::netfilter::ruleset::{Backend, Op, Ruleset, TableFamily};
use agent::netfilter::xtables::legacy::{self, capture::TableCapture};
use model::address::{Family, Frontend, SourceClass};
use model::capture::{DatapathState, Reading, Snapshot};
use model::name::NodeName;
use model::profile::{Learnt, LearntFrom, LocalDetector, ProxyConfig, ProxyProfile};
use model::table::{Action, DecidedBy, Forwarding};
use model::time::Now;
use model::view::{LocalAddress, NodeView};
use namespace::{in_namespace, run};
use std::collections::{BTreeMap, BTreeSet};

fn name(family: TableFamily, name: &str) -> TableName {
    TableName {
        family,
        name: name.into(),
    }
}

fn captures() -> Vec<TableCapture> {
    let mut all = Vec::new();
    xtables::read(&xtables::names().expect("names"), |table| all.push(table)).expect("read");
    all
}

fn now() -> Now {
    Now::default()
}

fn ruleset() -> Ruleset {
    match Kernel::read(None, now()).0.ruleset {
        Reading::Read(ruleset) => ruleset,
        other => panic!("{other:?}"),
    }
}

/// With RECORD_CAPTURES set, writes what was read as fixtures of the unit tests.
fn record(prefix: &str, table: &str) {
    if std::env::var_os("RECORD_CAPTURES").is_some() {
        for table in captures().into_iter().filter(|t| t.name == table) {
            let path = format!(
                "{}/tests/captures/{prefix}-{}-{}.xtcapture",
                env!("CARGO_MANIFEST_DIR"),
                table.family.word(),
                table.name
            );
            std::fs::write(path, table.save()).expect("write the capture");
        }
    }
}

#[test]
fn absent_empty_and_read_are_three_things() {
    in_namespace(|| {
        // The modules may not be loaded yet: then there is no list either.
        let before = xtables::names();
        assert!(
            before == Ok(vec![]) || before == Err(ReadError::Absent),
            "{before:?}"
        );
        assert!(ruleset().tables.is_empty());
        // Reading created nothing.
        assert_eq!(xtables::names(), before);
        run("iptables-legacy", &["-t", "nat", "-S"], "");
        run(
            "ip6tables-legacy",
            &["-t", "filter", "-P", "INPUT", "DROP"],
            "",
        );
        let names = xtables::names().expect("names");
        let (nat, filter) = (
            name(TableFamily::Ip, "nat"),
            name(TableFamily::Ip6, "filter"),
        );
        assert_eq!(names, [nat, filter]);
        let read = ruleset();
        assert_eq!(read.tables.len(), 2);
        let chains = |i: usize| -> Vec<_> {
            read.tables[i]
                .chains
                .iter()
                .map(|c| {
                    let hook = c.hook.expect("a base chain");
                    assert_eq!(c.rules, []);
                    (&*c.name, hook.priority, hook.policy_drop)
                })
                .collect()
        };
        assert_eq!(
            chains(0),
            [
                ("PREROUTING", -100, false),
                ("INPUT", 100, false),
                ("OUTPUT", -100, false),
                ("POSTROUTING", 100, false)
            ]
        );
        assert_eq!(
            chains(1),
            [
                ("INPUT", 0, true),
                ("FORWARD", 0, false),
                ("OUTPUT", 0, false)
            ]
        );
        // A table that the kernel does not have is left out.
        let none = [name(TableFamily::Ip, "vipwitness-none")];
        xtables::read(&none, |t| panic!("{t:?}")).expect("nothing");
    });
}

#[test]
fn without_the_right_it_says_so() {
    in_namespace(|| {
        run("iptables-legacy", &["-t", "nat", "-S"], "");
        // SAFETY: the raw call changes this thread only, which ends with the test.
        let dropped = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(dropped, 0, "setresuid");
        let nat = [name(TableFamily::Ip, "nat")];
        let error = xtables::read(&nat, |_| ()).expect_err("refused");
        assert!(matches!(error, ReadError::Permission { .. }), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        let kernel = Kernel::read(None, now()).0;
        assert!(matches!(kernel.ruleset, Reading::Failed(_)));
    });
}

/// What a recorded kube-proxy wrote, IPv4 and IPv6.
fn recording(version: &str) -> [String; 2] {
    ["iptables.rules", "ip6tables.rules"].map(|file| {
        let path = format!(
            "{}/../tests/recordings/{version}-iptables-nft/{file}",
            env!("CARGO_MANIFEST_DIR")
        );
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    })
}

fn load(backend: &str, rules: &[String; 2]) {
    let counters: BTreeSet<&str> = rules
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.split_once("--nfacct-name "))
        .filter_map(|(_, rest)| rest.split_whitespace().next())
        .collect();
    for counter in counters {
        run("nfacct", &["add", counter], "");
    }
    run(&format!("iptables-{backend}-restore"), &[], &rules[0]);
    run(&format!("ip6tables-{backend}-restore"), &[], &rules[1]);
}

fn snapshot(ruleset: Ruleset) -> Snapshot {
    let at = |address: &str, link: &str| LocalAddress {
        address: address.parse().expect("address"),
        link: link.into(),
    };
    let node = NodeView {
        name: NodeName::from("node"),
        addresses: vec![
            at("127.0.0.1", "lo"),
            at("10.244.1.1", "cni0"),
            at("192.168.0.2", "eth0"),
            at("::1", "lo"),
            at("fd00:192:168::2", "eth0"),
        ],
    };
    let nets = ["10.244.0.0/16", "fd00:10:244::/56"];
    let profile = ProxyProfile {
        mode: None,
        version: None,
        config: Learnt {
            value: ProxyConfig {
                detector: LocalDetector::Cidr(nets.map(|n| n.parse().expect("net")).to_vec()),
                ..ProxyConfig::default()
            },
            from: LearntFrom::Default,
        },
    };
    datapath::snapshot(&Reading::Read(ruleset), &BTreeMap::new(), &node, &profile)
}

/// The rows without their evidence, which names another backend.
fn rows(
    shot: &Snapshot,
    family: Family,
) -> BTreeMap<(Frontend, SourceClass), (Forwarding, DecidedBy)> {
    match &shot.tables[&family] {
        Reading::Read(table) => table
            .rows
            .iter()
            .map(|(key, row)| (*key, (row.forwarding.clone(), row.decided_by)))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// The ops of each chain's rules, in a form that both backends have in common: conditions of one
/// rule in any order.
fn program(ruleset: &Ruleset) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut all = BTreeMap::new();
    for table in &ruleset.tables {
        for chain in &table.chains {
            let rules = chain.rules.iter().map(|rule| {
                let ops = rule.ops.iter().filter(|op| **op != Op::Nothing);
                let mut ops: Vec<String> = ops.map(|op| format!("{op:?}")).collect();
                ops.sort();
                ops.dedup();
                ops.push(format!("{:?}", rule.comment));
                ops
            });
            let key = format!("{} {} {}", table.family.word(), table.name, chain.name);
            all.insert(format!("{key} {:?}", chain.hook), rules.collect());
        }
    }
    all
}

#[test]
fn the_same_rules_give_the_same_table_in_both_backends() {
    for version in ["1.34", "1.36", "1.37"] {
        let rules = recording(version);
        let Some(nft) = in_namespace(|| {
            load("nft", &rules);
            ruleset()
        }) else {
            return;
        };
        let legacy = in_namespace(|| {
            load("legacy", &rules);
            if version == "1.37" {
                record("kube-proxy-1.37", "nat");
            }
            for table in captures() {
                assert_eq!(legacy::decode(&table).unknown, []);
                let loaded = TableCapture::load(&table.save()).expect("load");
                assert_eq!(legacy::decode(&loaded), legacy::decode(&table));
            }
            ruleset()
        })
        .expect("as above");
        assert!(legacy.tables.iter().all(|t| t.backend == Backend::Legacy));
        let (a, b) = (program(&nft), program(&legacy));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (chain, rules) in &a {
            assert_eq!(rules, &b[chain], "{version}: {chain}");
        }
        let (nft, legacy) = (snapshot(nft), snapshot(legacy));
        let mut count = 0;
        for family in Family::ALL {
            let (a, b) = (rows(&nft, family), rows(&legacy, family));
            count += a.len();
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
            for (key, row) in &a {
                assert_eq!(row, &b[key], "{version}: {key:?}");
            }
        }
        println!("{version}: {count} rows are the same");
        assert!(count > 100);
        let found: Vec<_> = legacy
            .datapaths
            .iter()
            .map(|d| (&*d.name, d.state))
            .collect();
        assert_eq!(
            found,
            [("kube-proxy/iptables-legacy", DatapathState::InCharge)]
        );
        assert_eq!(legacy.gaps, []);
        assert_eq!(legacy.hooks.len(), nft.hooks.len());
        assert!(
            legacy.hooks.iter().all(|h| h.present),
            "{:#?}",
            legacy.hooks
        );
    }
}

/// Rules of each chain, as `iptables-legacy-save` prints them.
fn saved(family: &str, program: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut table = String::new();
    for line in run(program, &[], "").lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_owned();
        } else if let Some(chain) = line.strip_prefix(':') {
            let chain = chain.split(' ').next().unwrap_or_default();
            counts.insert(format!("{family} {table} {chain}"), 0);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split(' ').next().unwrap_or_default();
            *counts
                .entry(format!("{family} {table} {chain}"))
                .or_default() += 1;
        }
    }
    counts
}

#[test]
fn as_many_rules_as_iptables_legacy_save_prints() {
    for version in ["1.34", "1.36", "1.37"] {
        in_namespace(|| {
            load("legacy", &recording(version));
            let mut counts = saved("ip", "iptables-legacy-save");
            counts.extend(saved("ip6", "ip6tables-legacy-save"));
            let mut read = BTreeMap::new();
            for table in &ruleset().tables {
                for chain in &table.chains {
                    let key = format!("{} {} {}", table.family.word(), table.name, chain.name);
                    read.insert(key, chain.rules.len());
                    for (i, rule) in chain.rules.iter().enumerate() {
                        assert_eq!(rule.handle, i as u64 + 1);
                    }
                }
            }
            assert_eq!(read, counts);
        });
    }
}

/// What an administrator and other programs write, IPv4.
const OTHERS: &str = "\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CT --notrack
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A OUTPUT -m mark --mark 0x1/0xf -j MARK --set-xmark 0x2/0xff
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.0.0.0/8 -j SNAT --to-source 198.51.100.7
-A POSTROUTING -s 10.0.0.0/8 -j SNAT --to-source 198.51.100.7-198.51.100.9
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -p tcp -m tcp --dport 8081 -j REDIRECT --to-ports 81
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:CHECKS - [0:0]
:EMPTY - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -i eth+ -p tcp -m multiport --dports 22,80,443:445 -j ACCEPT
-A INPUT ! -i cali+ -g CHECKS
-A INPUT -j EMPTY
-A FORWARD -i br-0123456789ab -o eth0 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD ! -s 10.1.0.0/16 ! -d 10.2.3.4/32 ! -p udp -j CHECKS
-A FORWARD -p tcp -m tcp --dport 1000:2000 ! --sport 5 -j REJECT --reject-with tcp-reset
-A FORWARD -m iprange --src-range 10.9.0.1-10.9.0.77 -m comment --comment \"a range\"
-A FORWARD -m limit --limit 5/min -j LOG --log-prefix \"dropped \"
-A FORWARD -m statistic --mode nth --every 3 --packet 0 -j ACCEPT
-A CHECKS -s 10.0.0.0/255.0.255.0 -j RETURN
-A CHECKS -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A CHECKS -m state --state INVALID -j DROP
-A CHECKS -m recent --name seen --rcheck --seconds 60 --rsource -j ACCEPT
-A CHECKS -j DROP
-A CHECKS -j RETURN
COMMIT
";

const OTHERS_V6: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:MORE - [0:0]
-A INPUT -s fe80::/10 -i eth+ -p udp -m udp --dport 546 -j ACCEPT
-A INPUT ! -s fd00::/8 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -g MORE
-A FORWARD -d fd00::1/128 ! -o lo -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp6-port-unreachable
-A MORE ! -p tcp -j DROP
COMMIT
";

#[test]
fn rules_of_others_decode_as_in_iptables_nft() {
    let rules = [OTHERS.to_owned(), OTHERS_V6.to_owned()];
    let Some(nft) = in_namespace(|| {
        load("nft", &rules);
        ruleset()
    }) else {
        return;
    };
    let (legacy, unknown) = in_namespace(|| {
        load("legacy", &rules);
        record("others", "filter");
        let unknown = captures()
            .iter()
            .flat_map(|t| legacy::decode(t).unknown)
            .map(|u| format!("{} {} {}: {}", u.table, u.name, u.handle, u.what))
            .collect::<Vec<_>>();
        (ruleset(), unknown)
    })
    .expect("as above");
    let (a, b) = (program(&nft), program(&legacy));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (chain, rules) in &a {
        for (i, (x, y)) in rules.iter().zip(&b[chain]).enumerate() {
            // The words for what is not understood are each decoder's own.
            let unknown = |ops: &[String]| {
                let mut all = ops.iter();
                all.any(|op| op.contains("Unknown") || op.contains("Other("))
            };
            if !(unknown(x) && unknown(y)) {
                assert_eq!(x, y, "{chain} rule {}", i + 1);
            }
        }
        assert_eq!(rules.len(), b[chain].len(), "{chain}");
    }
    assert_eq!(
        unknown,
        [
            "filter FORWARD 6: xt match limit.0",
            "filter CHECKS 1: source address by a mask",
            "filter CHECKS 2: xt match icmp.0",
            "mangle FORWARD 1: tcp flags",
            "nat POSTROUTING 3: nat to a range",
            "filter INPUT 2: xt match icmp6.0",
        ]
    );
}

#[test]
fn fragments_are_a_condition_not_understood() {
    in_namespace(|| {
        let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -f -j DROP\n-A FORWARD ! -f -j ACCEPT\nCOMMIT\n";
        run("iptables-legacy-restore", &[], rules);
        let read = ruleset();
        let chain = read.tables[0].chain("FORWARD").expect("chain");
        for rule in &chain.rules {
            assert_eq!(rule.ops[0], Op::UnknownMatch("fragments".into()));
        }
    });
}

#[test]
fn unchanged_tables_are_seen_to_be_unchanged() {
    in_namespace(|| {
        let rules = |port: u16, counter: u32| {
            format!(
                "*nat\n:OUTPUT ACCEPT [0:0]\n[{counter}:{counter}] -A OUTPUT -d 10.0.0.1/32 -p tcp -m tcp \
                 --dport 80 -j DNAT --to-destination 10.0.0.2:{port}\nCOMMIT\n"
            )
        };
        let restore = |port, counter| {
            run("iptables-legacy-restore", &["-c"], &rules(port, counter));
        };
        restore(80, 1);
        let (kernel, changed) = Kernel::read(None, now());
        assert!(changed);
        // Packets count.
        restore(80, 7);
        let (kernel, changed) = Kernel::read(Some(kernel), now());
        assert!(!changed);
        let Reading::Read(first) = &kernel.ruleset else {
            panic!("not read")
        };
        assert_eq!(first, &ruleset());
        // Same size, another port.
        restore(81, 7);
        let (kernel, changed) = Kernel::read(Some(kernel), now());
        assert!(changed);
        let Reading::Read(second) = &kernel.ruleset else {
            panic!("not read")
        };
        assert_eq!(second, &ruleset());
        assert_eq!(second.tables.len(), 1);
        // Only nf_tables changes: the legacy table stays as it was decoded.
        run("nft", &["-f", "-"], "add table ip other");
        let (kernel, changed) = Kernel::read(Some(kernel), now());
        assert!(changed);
        let (kernel, again) = Kernel::read(Some(kernel), now());
        assert!(!again);
        let Reading::Read(both) = &kernel.ruleset else {
            panic!("not read")
        };
        assert_eq!(both, &ruleset());
        assert_eq!(both.tables.len(), 2);
    });
}

/// A writer replaces a table all the time by one of another size. Each reading is of one of them.
#[test]
fn a_reading_is_never_of_two_tables() {
    in_namespace(|| {
        let table = |rules: usize| {
            let mut text = String::from("*nat\n:OUTPUT ACCEPT [0:0]\n:N - [0:0]\n");
            for i in 0..rules {
                text += &format!("-A N -s 10.0.{}.{}/32 -j RETURN\n", i / 256, i % 256);
            }
            text + "COMMIT\n"
        };
        run("iptables-legacy-restore", &[], &table(300));
        let done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            // A new thread is in the namespace of the one that made it.
            let writer = scope.spawn(|| {
                while !done.load(order) {
                    run("iptables-legacy-restore", &[], &table(900));
                    run("iptables-legacy-restore", &[], &table(300));
                }
            });
            let (mut seen, mut torn) = (BTreeMap::<usize, u32>::new(), 0);
            let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while seen.len() < 2 || seen.values().sum::<u32>() < 300 {
                assert!(std::time::Instant::now() < end, "{seen:?}, {torn} torn");
                let nat = [name(TableFamily::Ip, "nat")];
                let mut take = |table| {
                    let decoded = legacy::decode(&table);
                    assert_eq!(decoded.unknown, []);
                    let rules = decoded.table.chain("N").expect("chain").rules.len();
                    *seen.entry(rules).or_default() += 1;
                };
                match xtables::read(&nat, &mut take) {
                    Ok(()) => {}
                    Err(ReadError::Torn { .. }) => torn += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            done.store(true, order);
            writer.join().expect("writer");
            println!("{seen:?}, {torn} torn");
            assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [300, 900]);
        });
    });
}

/// Packets meet the rules of both backends, in the order of priority.
#[test]
fn both_backends_at_once() {
    in_namespace(|| {
        load("legacy", &recording("1.37"));
        let service: Frontend = "10.96.10.10:80/TCP".parse().expect("frontend");
        let row = || {
            let shot = snapshot(ruleset());
            let Some(Reading::Read(table)) = shot.tables.get(&Family::V4) else {
                panic!("no table")
            };
            table.rows[&(service, SourceClass::Outside)].clone()
        };
        assert_eq!(row().decided_by, DecidedBy::Datapath);
        let rule = |priority: &str| {
            format!(
                "table ip other\ndelete table ip other\ntable ip other {{ chain pre {{ type nat hook prerouting \
                 priority {priority}\nip daddr 10.96.10.10 tcp dport 80 dnat to 10.9.9.9:80\n}}\n}}\n"
            )
        };
        run("nft", &["-f", "-"], &rule("-101"));
        assert_eq!(row().decided_by, DecidedBy::Foreign);
        run("nft", &["-f", "-"], &rule("-99"));
        assert_eq!(row().decided_by, DecidedBy::Datapath);
        run("nft", &["-f", "-"], &rule("-100"));
        assert!(matches!(row().forwarding.action, Action::Unknown(_)));
        run("nft", &["-f", "-"], "delete table ip other");
        // And what one backend drops is dropped, whatever the other one says.
        run("iptables-nft", &["-P", "FORWARD", "DROP"], "");
        assert_eq!(row().forwarding.action, Action::Drop);
        assert_eq!(row().decided_by, DecidedBy::Foreign);
    });
}

#[test]
fn reading_changes_nothing() {
    in_namespace(|| {
        load("legacy", &recording("1.36"));
        let all = || {
            let text = run("iptables-legacy-save", &["-c"], "");
            let text = text + &run("ip6tables-legacy-save", &["-c"], "");
            text.lines()
                .filter(|l| !l.starts_with('#'))
                .map(|l| l.to_owned() + "\n")
                .collect::<String>()
        };
        let (before, names) = (all(), xtables::names());
        for _ in 0..20 {
            ruleset();
        }
        assert_eq!(all(), before);
        assert_eq!(xtables::names(), names);
    });
}

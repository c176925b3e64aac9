//! The reader against the real kernel, each test in a network namespace of its own thread. Needs
//! root; without it each test says so and is skipped.

mod namespace;

use agent::host::{links, nf_tables, xtables};
use agent::netfilter::nftables::{Decoded, capture::Capture, decode};
use agent::netfilter::ruleset::{Data, Op};
use namespace::{Ended, in_namespace, run};

fn read() -> (Capture, Decoded) {
    let capture = nf_tables::read().expect("read");
    let loaded = Capture::load(&capture.save()).expect("load");
    assert_eq!(loaded, capture);
    let decoded = decode(&capture);
    (capture, decoded)
}

/// With RECORD_CAPTURES set, writes what was read as a fixture of the unit tests.
fn record(name: &str, capture: &Capture) {
    if std::env::var_os("RECORD_CAPTURES").is_some() {
        let path = format!(
            "{}/tests/captures/{name}.nfcapture",
            env!("CARGO_MANIFEST_DIR")
        );
        std::fs::write(path, capture.save()).expect("write the capture");
    }
}

#[test]
fn empty_namespace_is_an_empty_ruleset() {
    in_namespace(|| {
        let (_, decoded) = read();
        assert!(decoded.ruleset.tables.is_empty());
        assert!(decoded.ruleset.generation.is_some());
        let mut kept = links::Links::default();
        assert_eq!(links::addresses().expect("addresses"), []);
        assert_eq!(kept.addresses().expect("addresses"), []);
        run("ip", &["addr", "add", "127.0.0.1/8", "dev", "lo"], "");
        run("ip", &["addr", "add", "fd00::1/128", "dev", "lo"], "");
        let found = links::addresses().expect("addresses");
        assert_eq!(kept.addresses().expect("addresses"), found);
        // A link's new name, an address that goes, and nothing at all.
        run(
            "ip",
            &[
                "link", "add", "eth9", "type", "veth", "peer", "name", "peer9",
            ],
            "",
        );
        run("ip", &["addr", "add", "192.0.2.1/32", "dev", "eth9"], "");
        for change in [
            &["link", "set", "eth9", "name", "eth8"][..],
            &["addr", "del", "192.0.2.1/32", "dev", "eth8"],
            &["link", "del", "eth8"],
            &["link", "show"],
        ] {
            run("ip", change, "");
            let now = links::addresses().expect("addresses");
            assert_eq!(kept.addresses().expect("addresses"), now, "{change:?}");
        }
        let words: Vec<_> = found
            .iter()
            .map(|a| format!("{} {}", a.address, a.link))
            .collect();
        assert_eq!(words, ["127.0.0.1 lo", "fd00::1 lo"]);
        assert_eq!(xtables::names(), Ok(Vec::new()));
    });
}

#[test]
fn kube_proxy_nftables_as_of_1_35() {
    in_namespace(|| {
        run(
            "nft",
            &["-f", "-"],
            include_str!("rules/kube-proxy-1.35.nft"),
        );
        let (capture, decoded) = read();
        record("kube-proxy-1.35", &capture);
        assert_eq!(decoded.unknown, []);
    });
}

#[test]
fn kube_proxy_nftables_as_of_1_37() {
    in_namespace(|| {
        run(
            "nft",
            &["-f", "-"],
            include_str!("rules/kube-proxy-1.37.nft"),
        );
        let (capture, decoded) = read();
        record("kube-proxy-1.37", &capture);
        assert_eq!(decoded.unknown, []);
    });
}

#[test]
fn kube_proxy_iptables_nft() {
    in_namespace(|| {
        run(
            "iptables-nft-restore",
            &[],
            include_str!("rules/kube-proxy-iptables.v4"),
        );
        run(
            "ip6tables-nft-restore",
            &[],
            include_str!("rules/kube-proxy-iptables.v6"),
        );
        let (capture, decoded) = read();
        record("kube-proxy-iptables", &capture);
        assert_eq!(decoded.unknown, []);
    });
}

#[test]
fn rules_of_others() {
    in_namespace(|| {
        run("nft", &["-f", "-"], include_str!("rules/others.nft"));
        let (capture, decoded) = read();
        record("others", &capture);
        // Every statement that is not understood is named; nothing else is.
        let mut what: Vec<_> = decoded.unknown.iter().map(|u| u.what.to_string()).collect();
        what.sort();
        assert_eq!(
            what,
            [
                "ct 17 set",
                "exthdr",
                "hash",
                "limit",
                "look-up with a key not understood: __map0",
                "mark set from another field",
                "nat to a range",
                "nat to an address not understood",
                "objref",
                "payload write",
            ]
        );
    });
}

#[test]
fn without_the_right_it_says_so() {
    in_namespace(|| {
        // SAFETY: the raw call changes this thread only, which ends with the test.
        let dropped = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(dropped, 0, "setresuid");
        let error = nf_tables::read().expect_err("refused");
        assert_eq!(error, nf_tables::ReadError::Permission);
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

/// A writer replaces rules and elements all the time, each time all of them in one transaction to
/// the same number. A reading is of one number only, or there is none.
#[test]
fn a_reading_is_never_of_two_generations() {
    in_namespace(|| {
        let mut script = String::new();
        for n in [1, 2] {
            script += &format!("cat > \"$D/{n}\" <<'END'\n");
            for chain in 0..300 {
                script += &format!("flush chain ip t c{chain}\n");
                script += &format!("add rule ip t c{chain} meta mark set {n}\n");
            }
            script += "flush map ip t m\n";
            for key in 0..300 {
                script += &format!("add element ip t m {{ {} : {n} }}\n", key + 1);
            }
            script += "END\n";
        }
        let mut first = String::from("table ip t {\nmap m { type inet_service : mark; }\n");
        for chain in 0..300 {
            first += &format!("chain c{chain} {{ }}\n");
        }
        first += "}\n";
        run("nft", &["-f", "-"], &first);
        script += "while :; do nft -f $D/1 || exit 1; nft -f $D/2 || exit 1; done\n";
        let folder = std::env::temp_dir().join(format!("kernel-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let writer = Ended::shell(&script, &[("D", &folder)]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let (mut whole, mut torn) = (0, 0);
        while whole < 200 && std::time::Instant::now() < deadline {
            let capture = match nf_tables::read() {
                Ok(capture) => capture,
                Err(nf_tables::ReadError::Torn { .. }) => {
                    torn += 1;
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            let decoded = decode(&capture);
            assert_eq!(decoded.unknown, []);
            let table = &decoded.ruleset.tables[0];
            let mut marks: Vec<u64> = Vec::new();
            for rule in table.chains.iter().flat_map(|c| &c.rules) {
                match &rule.ops[..] {
                    [Op::SetMark { and: 0, xor }] => marks.push((*xor).into()),
                    other => panic!("{other:?}"),
                }
            }
            for element in &table.sets["m"].elements {
                match element.data {
                    Some(Data::Number(mark)) => marks.push(mark),
                    ref other => panic!("{other:?}"),
                }
            }
            if marks.is_empty() {
                continue; // before the writer's first transaction
            }
            assert_eq!(marks.len(), 600);
            assert!(marks.iter().all(|m| *m == marks[0]), "of two generations");
            whole += 1;
        }
        drop(writer);
        let _ = std::fs::remove_dir_all(&folder);
        println!("{whole} whole readings, {torn} given up as torn");
        assert!(whole > 0, "no whole reading within the deadline");
    });
}

/// A set that grows and shrinks is hashed anew by the kernel, after the commit and while it is
/// read: whatever is read, each element is there, and once.
#[test]
fn a_set_that_is_hashed_anew_is_whole() {
    const ELEMENTS: usize = 4000;
    in_namespace(|| {
        let folder = std::env::temp_dir().join(format!("kernel-hashed-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let elements: Vec<String> = (0..ELEMENTS).map(|n| n.to_string()).collect();
        let fill = format!("add element ip t s {{ {} }}\n", elements.join(", "));
        std::fs::write(folder.join("fill"), fill).expect("write");
        run(
            "nft",
            &["add table ip t; add set ip t s { type mark; }"],
            "",
        );
        let writer = Ended::shell(
            "while :; do nft -f $D/fill || exit 1; nft flush set ip t s || exit 1; done",
            &[("D", &folder)],
        );
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let (mut full, mut empty, mut torn) = (0, 0, 0);
        while full < 40 && std::time::Instant::now() < deadline {
            let capture = match nf_tables::read() {
                Ok(capture) => capture,
                Err(nf_tables::ReadError::Torn { .. }) => {
                    torn += 1;
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            let decoded = decode(&capture);
            let set = &decoded.ruleset.tables[0].sets["s"];
            let mut keys: Vec<_> = set
                .elements
                .iter()
                .map(|element| format!("{:?}", element.key))
                .collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), set.elements.len(), "some came twice");
            assert!([0, ELEMENTS].contains(&keys.len()), "{} came", keys.len());
            *(if keys.is_empty() {
                &mut empty
            } else {
                &mut full
            }) += 1;
        }
        drop(writer);
        let _ = std::fs::remove_dir_all(&folder);
        println!("{full} full and {empty} empty readings, {torn} given up as torn");
        assert!(full > 0, "never read full");
    });
}

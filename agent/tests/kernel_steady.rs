//! Reading only what changed, against the real kernel: whatever is done to the rules, and in whatever
//! order it is seen, the result is what reading everything gives. Needs root; without it each test
//! says so and is skipped.

#![allow(
    clippy::disallowed_types,
    reason = "tests may run programs, the agent may not"
)]

mod namespace;

use agent::host::nf_tables;
use agent::kernel::Kernel;
use agent::netfilter::nftables::decode;
use agent::netfilter::ruleset::{Data, Op, Ruleset, Table};
use model::capture::Reading;
use model::time::{Millis, Mono, Now};
use namespace::{Ended, in_namespace, run};
use std::fmt::Write as _;

fn now(ms: u64) -> Now {
    Now {
        mono: Mono(ms),
        wall: Millis(ms),
    }
}

fn rules(kernel: &Kernel) -> &Ruleset {
    match &kernel.ruleset {
        Reading::Read(ruleset) => ruleset,
        other => panic!("{other:?}"),
    }
}

/// Numbers that follow from a seed (xorshift; any will do).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Without what says nothing: the order of chains and tables, and of elements in a hash.
fn sorted(ruleset: &Ruleset) -> Vec<Table> {
    let mut tables = ruleset.tables.clone();
    for table in &mut tables {
        table.chains.sort_by(|a, b| a.name.cmp(&b.name));
        for (at, chain) in table.chains.iter().enumerate() {
            table.chain_index.insert(chain.name.clone(), at);
        }
        for set in table.sets.values_mut() {
            set.elements.sort_by_key(|e| format!("{:?}", e.key));
        }
    }
    tables.sort_by_key(|t| (t.family, t.name.clone()));
    tables
}

fn same(kernel: &Kernel, after: &str) {
    let whole = decode(&nf_tables::read().expect("a whole reading")).ruleset;
    let kept = rules(kernel);
    assert_eq!(kept.generation, whole.generation, "after: {after}");
    for (kept, whole) in sorted(kept).iter().zip(&sorted(&whole)) {
        for (k, w) in kept.chains.iter().zip(&whole.chains) {
            assert_eq!(k, w, "after: {after}");
        }
        assert_eq!(kept.sets, whole.sets, "after: {after}");
    }
    assert_eq!(sorted(kept), sorted(&whole), "after: {after}");
}

/// One command of nft, most of which succeed.
fn command(random: &mut Random) -> String {
    let family = ["ip", "ip6", "inet", "bridge"][random.below(4) as usize];
    let table = format!("{family} t{}", random.below(2));
    let chain = format!("c{}", random.below(6));
    let other = format!("c{}", random.below(6));
    let set = format!("s{}", random.below(3));
    let map = format!("m{}", random.below(3));
    let n = 1 + random.below(20);
    let there = format!("add table {table}; add chain {table} {chain}; add chain {table} {other}");
    let there = match random.below(3) {
        0 => String::new(),
        1 => format!("{there}; "),
        _ => format!("{there}; add set {table} {set} {{ type inet_service; }}; "),
    };
    there
        + &match random.below(24) {
            0 => format!("add table {table}"),
            1 => format!("delete table {table}"),
            2 => format!("delete table {table}; add table {table}; add chain {table} {chain}"),
            3 | 4 => format!("add chain {table} {chain}"),
            5 => format!("add chain {table} {chain} {{ type filter hook input priority {n}; }}"),
            6 => format!("delete chain {table} {chain}"),
            7 => format!("rename chain {table} {chain} r{n}"),
            8 => format!("flush chain {table} {chain}"),
            9 => format!("flush table {table}"),
            10 | 11 => format!(
                "add rule {table} {chain} tcp dport {n} meta mark set {n} comment \"no {n}\""
            ),
            12 => format!("insert rule {table} {chain} jump {other}"),
            13 => format!(
                "add rule {table} {chain} tcp dport {{ {n}, {} }} accept",
                n + 30
            ),
            14 => format!(
                "add rule {table} {chain} tcp dport vmap {{ {n} : drop, {} : accept }}",
                n + 30
            ),
            15 => format!("add set {table} {set} {{ type inet_service; }}"),
            16 => format!("add set {table} {set} {{ typeof meta mark; }}"),
            17 => format!("add element {table} {set} {{ {n}, {} }}", n + 1),
            18 => format!("delete element {table} {set} {{ {n} }}"),
            19 => format!("flush set {table} {set}; delete set {table} {set}"),
            20 => format!(
                "add map {table} {map} {{ type inet_service : verdict; }}; add element {table} {map} {{ {n} : jump {chain} }}"
            ),
            21 => format!("add rule {table} {chain} tcp dport vmap @{map}"),
            22 => format!("add rule {table} {chain} tcp dport @{set} drop"),
            _ => format!("delete map {table} {map}"),
        }
}

/// Scripts of one or several commands, one to five between two readings.
#[test]
fn what_is_kept_is_what_is_there() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or(20_251_125);
    let scripts = std::env::var("SCRIPTS").ok().and_then(|s| s.parse().ok());
    println!("seed {seed}");
    in_namespace(move || {
        let mut random = Random(seed);
        let (mut kernel, _) = Kernel::read(None, now(0));
        let (mut done, mut refused, mut unchanged) = (0, 0, 0);
        for _ in 0..scripts.unwrap_or(200) {
            let mut log = String::new();
            for _ in 0..1 + random.below(5) {
                let mut script = String::new();
                for _ in 0..1 + random.below(3) {
                    let _ = writeln!(script, "{}", command(&mut random).replace("; ", "\n"));
                }
                if apply(&script) {
                    done += 1;
                    log += &script;
                } else {
                    refused += 1;
                }
            }
            let before = sorted(rules(&kernel));
            let changed;
            (kernel, changed) = Kernel::read(Some(kernel), now(1));
            same(&kernel, &log);
            if !changed {
                assert_eq!(before, sorted(rules(&kernel)), "unseen: {log}");
                unchanged += 1;
            }
        }
        println!("{done} scripts applied, {refused} refused, {unchanged} readings unchanged");
        assert!(done > 100 && unchanged > 0);
    });
}

fn apply(script: &str) -> bool {
    use std::io::Write as _;
    let mut child = std::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("nft");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(script.as_bytes()).expect("write");
    drop(stdin);
    child.wait().expect("wait").success()
}

/// A writer replaces a few of many rules and elements all the time, each time all of these in one
/// transaction to the same number: every reading is whole, and of one number.
#[test]
fn a_writer_that_never_rests_is_kept_up_with() {
    in_namespace(|| {
        let folder = std::env::temp_dir().join(format!("kernel-steady-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let mut first = String::from("table ip t {\nmap m { type inet_service : mark; }\n");
        for chain in 0..3000 {
            let _ = writeln!(
                first,
                "chain c{chain} {{ counter; counter; counter; accept; }}"
            );
        }
        first += "}\n";
        run("nft", &["-f", "-"], &first);
        for n in [1, 2] {
            let mut script = String::from("flush map ip t m\n");
            for key in 0..100 {
                let _ = writeln!(script, "flush chain ip t c{key}");
                let _ = writeln!(script, "add rule ip t c{key} meta mark set {n}");
                let _ = writeln!(script, "add element ip t m {{ {} : {n} }}", key + 1);
            }
            std::fs::write(folder.join(n.to_string()), script).expect("write");
        }
        let writer = Ended::shell(
            "while :; do nft -f $D/1 || exit 1; nft -f $D/2 || exit 1; done",
            &[("D", &folder)],
        );
        let (mut kernel, _) = Kernel::read(None, now(0));
        let mut seen = [0, 0, 0];
        let mut last = None;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while seen[1] + seen[2] < 100 {
            assert!(std::time::Instant::now() < deadline, "{seen:?} seen");
            (kernel, _) = Kernel::read(Some(kernel), now(1));
            if last == rules(&kernel).generation {
                continue;
            }
            last = rules(&kernel).generation;
            let table = &rules(&kernel).tables[0];
            assert_eq!(table.chains.len(), 3000);
            let mut marks: Vec<u64> = Vec::new();
            for rule in table.chains.iter().flat_map(|c| &c.rules) {
                match &rule.ops[..] {
                    [Op::SetMark { and: 0, xor }] => marks.push((*xor).into()),
                    [] | [Op::Verdict(_)] => {}
                    other => panic!("{other:?}"),
                }
            }
            for element in &table.sets["m"].elements {
                match element.data {
                    Some(Data::Number(mark)) => marks.push(mark),
                    ref other => panic!("{other:?}"),
                }
            }
            let mark = marks.first().copied().unwrap_or(0);
            assert!(marks.iter().all(|m| *m == mark), "of two generations");
            assert!([0, 200].contains(&marks.len()), "{} marks", marks.len());
            seen[usize::try_from(mark).expect("1 or 2")] += 1;
        }
        drop(writer);
        let _ = std::fs::remove_dir_all(&folder);
        println!("{seen:?} readings of neither, the first, the second number");
        // The last command of the writer may still be at work.
        loop {
            let before = nf_tables::read().expect("read").generation;
            (kernel, _) = Kernel::read(Some(kernel), now(2));
            let whole = decode(&nf_tables::read().expect("read")).ruleset;
            if before == whole.generation {
                assert_eq!(sorted(rules(&kernel)), sorted(&whole));
                break;
            }
            assert!(std::time::Instant::now() < deadline, "it never rests");
        }
    });
}

/// More events than the socket holds, and rules that are gone with their owner, without an event.
#[test]
fn what_no_event_tells_is_seen() {
    in_namespace(|| {
        let (kernel, _) = Kernel::read(None, now(0));
        let mut script = String::from("table ip t {\n");
        for chain in 0..200 {
            let _ = writeln!(script, "chain c{chain} {{");
            for _ in 0..100 {
                script += "ip saddr 192.0.2.1 tcp dport 1 counter accept\n";
            }
            script += "}\n";
        }
        script += "}\n";
        for _ in 0..8 {
            run("nft", &["-f", "-"], &script);
            run("nft", &["flush", "table", "ip", "t"], "");
        }
        run("nft", &["-f", "-"], &script);
        let (kernel, changed) = Kernel::read(Some(kernel), now(1));
        assert!(changed);
        same(&kernel, "a flood");
        // nft's interactive mode keeps its socket, and with that the table, until its input ends.
        let owned = "table ip owned { flags owner; chain c { accept; }; }\n";
        let mut child = std::process::Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("nft");
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, owned.as_bytes()).expect("write");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut kernel = kernel;
        loop {
            (kernel, _) = Kernel::read(Some(kernel), now(2));
            if rules(&kernel).tables.iter().any(|t| &*t.name == "owned") {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "no table with an owner"
            );
            std::thread::yield_now();
        }
        same(&kernel, "an owner");
        drop(stdin);
        child.wait().expect("nft ends");
        let (kernel, changed) = Kernel::read(Some(kernel), now(3));
        assert!(changed);
        assert!(rules(&kernel).tables.iter().all(|t| &*t.name != "owned"));
        same(&kernel, "an owner that ended");
        // Every few minutes everything is read.
        let (kernel, changed) = Kernel::read(Some(kernel), now(4));
        assert!(!changed);
        let (_, changed) = Kernel::read(Some(kernel), now(200_000));
        assert!(changed);
    });
}

/// Rules of both backends, settings and the structure of counters are byte for byte what they were,
/// after a thousand readings, of which every tenth is a whole one.
#[test]
fn a_thousand_readings_change_nothing() {
    in_namespace(|| {
        run(
            "iptables-nft-restore",
            &[],
            include_str!("rules/kube-proxy-iptables.v4"),
        );
        run(
            "iptables-legacy-restore",
            &[],
            include_str!("rules/kube-proxy-iptables.v4"),
        );
        run(
            "nft",
            &["-f", "-"],
            include_str!("rules/kube-proxy-1.37.nft"),
        );
        run("nft", &["-f", "-"], include_str!("rules/others.nft"));
        let all = || {
            let mut text = run("nft", &["-a", "list", "ruleset"], "");
            for save in [
                "iptables-legacy-save",
                "iptables-nft-save",
                "ip6tables-nft-save",
            ] {
                let saved = run(save, &["-c"], "");
                text.extend(
                    saved
                        .lines()
                        .filter(|l| !l.starts_with('#'))
                        .flat_map(|l| [l, "\n"]),
                );
            }
            let generation = nf_tables::read().expect("read").generation;
            text += &format!("{generation:?}\n");
            text + &settings(std::path::Path::new("/proc/sys/net"))
        };
        let before = all();
        let mut kernel = None;
        for reading in 0..1_000 {
            // Every three minutes.
            kernel = Some(Kernel::read(kernel, now(reading * 18_000)).0);
        }
        let after = all();
        assert_eq!(before.len(), after.len());
        for (b, a) in before.lines().zip(after.lines()) {
            assert_eq!(b, a);
        }
        println!(
            "{} lines of rules and settings are the same",
            after.lines().count()
        );
    });
}

/// Every setting below a folder, with its value.
fn settings(folder: &std::path::Path) -> String {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder of settings")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    let mut text = String::new();
    for path in names {
        // How much is in use now, and what only root of the machine reads, is no setting.
        if path.is_dir() {
            text += &settings(&path);
        } else if let Ok(value) = std::fs::read_to_string(&path)
            && !path.ends_with("nf_conntrack_count")
        {
            text += &format!("{} {}\n", path.display(), value.trim());
        }
    }
    text
}

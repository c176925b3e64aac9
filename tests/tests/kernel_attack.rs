//! The built agent against a node and an API that do not play along: no right to read, no nf_tables,
//! names made to hurt, rules that change under the reading, an API server that vanishes, files that
//! are none, and a kill in the middle. Never a crash, never an invented finding, and never a control
//! character on a terminal.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agents::{AGGREGATOR_GRPC, AGGREGATOR_HTTP, Aggregator, Programs};
use tests::cache::Version;
use tests::cleanup::Folder;
use tests::http;
use tests::netns::Netns;
use tests::process::Process;
use tests::proxy::Mode;
use tests::recording::Recording;
use tests::topology::{HUB_V4, Hub, Node};

static PROGRAMS: LazyLock<Programs> = LazyLock::new(|| Programs::build().unwrap());

/// The rights of the DaemonSet's container.
const MAY_READ: &str = "--bounding-set=-all,+net_admin";
const MAY_NOTHING: &str = "--bounding-set=-all";
/// For what should take a second or two, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A node as a real kube-proxy left it.
struct Loaded {
    node: Node,
    recording: Recording,
    hub: Hub,
}

impl Loaded {
    /// `None` without root.
    fn new(version: Version, mode: Mode) -> Option<Loaded> {
        if !tests::packages::is_root() {
            println!("network namespaces need root: not run");
            return None;
        }
        let hub = Hub::create().unwrap();
        let recording = Recording::of(version, mode);
        let place = recording.place().unwrap();
        let node = hub.add_node_at(&place.name, place.index).unwrap();
        recording.load(node.netns()).unwrap();
        Some(Loaded {
            node,
            recording,
            hub,
        })
    }

    fn netns(&self) -> &Netns {
        self.node.netns()
    }

    /// A command of the agent on this node; `source` says where it learns what the API asks.
    fn agent(&self, rights: &str, command: &str, source: [&str; 2], more: &[&str]) -> Command {
        let agent = PROGRAMS.agent.to_string_lossy();
        let configuration = self.recording.configuration();
        let configuration = configuration.to_string_lossy();
        let mut all = vec![
            rights,
            "--inh-caps=-all",
            "--ambient-caps=-all",
            "--no-new-privs",
        ];
        all.extend([&*agent, command, "--node", self.node.name()]);
        all.extend(source);
        all.extend(["--kube-proxy-config", &configuration]);
        all.extend(["--proxy-version", self.recording.version.minor()]);
        all.extend(more);
        self.netns().command("setpriv", all)
    }

    fn check_with(&self, manifests: &Path, more: &[&str]) -> Asked {
        let source = ["--manifests", &manifests.to_string_lossy()];
        Asked::of(self.agent(MAY_READ, "check", source, more))
    }

    fn check(&self, more: &[&str]) -> Asked {
        self.check_with(&self.recording.manifests(), more)
    }

    fn aggregator(&self) -> Aggregator {
        let flags = ["--insecure-agents", "--insecure-readers"];
        Aggregator::start(&PROGRAMS, &self.hub, &flags).unwrap()
    }

    /// `run`, reporting to the hub.
    fn run(&self, source: [&str; 2], more: &[&str], log: &Path) -> Process {
        let to = AGGREGATOR_GRPC.to_string();
        let socket = log.with_extension("sock");
        let socket = socket.to_string_lossy();
        let mut all = vec!["--aggregator", &to, "--socket", &socket];
        all.extend(more);
        let command = self.agent(MAY_READ, "run", source, &all);
        Process::start("vipwitness-agent", command, log).unwrap()
    }

    /// What the aggregator knows of the node.
    fn told(&self) -> anyhow::Result<Value> {
        let path = format!("/nodes/{}", self.node.name());
        let answer = http::get_in(self.hub.netns(), AGGREGATOR_HTTP, &path)?;
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// Waits until what the aggregator knows is as wanted, and looks at each finding on the way.
    fn until(&self, process: &mut Process, what: &str, wanted: impl Fn(&Value) -> bool) {
        let told = process.until(what, LIMIT, || {
            let told = self.told()?;
            for kind in kinds(&told) {
                // No kube-proxy runs here, and where one is expected that is true.
                assert_eq!(kind, "proxy_not_running", "invented: {told:#}");
            }
            anyhow::ensure!(wanted(&told), "{told:#}");
            Ok(Some(()))
        });
        told.unwrap_or_else(|e| panic!("{e:#}"));
    }
}

/// Everything is judged and nothing differs.
fn agrees(told: &Value) -> bool {
    let connected = told["data"]["connected"] == true;
    connected && told["coverage"]["pairs"].as_u64() > Some(0) && !gap(told, "API")
}

/// A gap of that name is told.
fn gap(told: &Value, what: &str) -> bool {
    let gaps = told["gap_list"].as_array();
    gaps.is_some_and(|all| all.iter().any(|gap| gap.to_string().contains(what)))
}

/// What `check` gave.
#[derive(Debug)]
struct Asked {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Asked {
    /// Runs it to its end.
    fn of(mut command: Command) -> Asked {
        Asked::from(tests::command::attempt(&mut command).unwrap())
    }

    fn from(output: Output) -> Asked {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        // A panic exits with 101, a signal gives no code.
        let code = output
            .status
            .code()
            .unwrap_or_else(|| panic!("{}: {stderr}", output.status));
        assert!([0, 1, 2, 64].contains(&code), "{code}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        Asked {
            code,
            stdout,
            stderr,
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn is_plain(&self) {
        assert_plain(&self.stdout);
        assert_plain(&self.stderr);
    }
}

fn assert_plain(text: &str) {
    let bad = text
        .chars()
        .find(|c| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c));
    assert_eq!(bad, None, "a character that steers a terminal: {text:?}");
}

fn kinds(json: &Value) -> Vec<&str> {
    let findings = json["findings"].as_array();
    findings
        .into_iter()
        .flatten()
        .map(|f| f["kind"].as_str().unwrap())
        .collect()
}

/// Nothing was judged, for a reason that is said in both outputs.
fn judged_nothing(asked: &Asked, why: &str) {
    let json = asked.json();
    assert_eq!(asked.code, 2, "{json:#}");
    assert_eq!(json["judged"]["pairs"], 0, "{json:#}");
    assert!(
        kinds(&json).iter().all(|kind| *kind == "unreadable"),
        "{json:#}"
    );
    assert_eq!(json["converging"], json!([]));
    assert!(json["gaps"].to_string().contains(why), "{json:#}");
    assert!(asked.stderr.contains(why), "{}", asked.stderr);
}

#[test]
fn without_cap_net_admin_nothing_is_judged_on_a_node_full_of_rules() {
    for mode in Mode::ALL {
        let Some(node) = Loaded::new(Version::V1_37, mode) else {
            return;
        };
        let manifests = node.recording.manifests();
        let source = ["--manifests", &manifests.to_string_lossy()];
        let more = ["--output", "json", "--wait", "5s"];
        let asked = Asked::of(node.agent(MAY_NOTHING, "check", source, &more));
        judged_nothing(&asked, "CAP_NET_ADMIN");
    }
}

/// A kernel without nf_tables has no NETLINK_NETFILTER; a filter of system calls stands for it.
#[test]
fn without_nf_tables_nothing_is_judged() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let manifests = node.recording.manifests();
    let source = ["--manifests", &manifests.to_string_lossy()];
    let more = ["--output", "json", "--wait", "5s"];
    let mut command = node.agent(MAY_READ, "check", source, &more);
    // SAFETY: the hook calls only prctl, with a program on its own stack.
    unsafe { command.pre_exec(no_netfilter) };
    judged_nothing(&Asked::of(command), "no nf_tables");
}

/// From now on socket(AF_NETLINK, _, NETLINK_NETFILTER) gives EPROTONOSUPPORT (linux/filter.h,
/// linux/seccomp.h).
fn no_netfilter() -> std::io::Result<()> {
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    // Offsets in struct seccomp_data: the number, and the low halves of arguments 0 and 2.
    let mut filter = [
        op(load, 0, 0),
        op(equal, 5, libc::SYS_socket as u32),
        op(load, 0, 16),
        op(equal, 3, libc::AF_NETLINK as u32),
        op(load, 0, 32),
        op(equal, 1, libc::NETLINK_NETFILTER as u32),
        op(give, 0, refused),
        op(give, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its length are those of the array above; the kernel copies both.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A comment as nobody writes it who means well; nft takes 127 bytes.
const HOSTILE: &str = "<script>alert('1')</script> \"quoted\" \\n %s \u{1b}[2J\u{1b}]0;title\u{7} \u{7f}\u{9b}31m \r\u{202e}desrever\u{202c} end";

/// The text-mode answer and the JSON of a node whose rules hold hostile words: both plain, and the
/// finding is the foreign rule and nothing else.
fn foreign_rule_is_found_and_plain(node: &Loaded) {
    let text = node.check(&["--output", "text", "--wait", "10s"]);
    let asked = node.check(&["--output", "json", "--wait", "10s"]);
    text.is_plain();
    asked.is_plain();
    let json = asked.json();
    assert_eq!((text.code, asked.code), (1, 1), "{json:#}\n{text:?}");
    assert_eq!(kinds(&json), ["foreign_rule"], "{json:#}");
    let says = json["findings"][0].to_string();
    assert!(says.contains("10.244.66.6:6666"), "{says}");
    assert!(text.stdout.contains("10.244.66.6:6666"), "{}", text.stdout);
}

#[test]
fn hostile_names_of_foreign_tables_reach_no_terminal() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    // nft's grammar refuses such names; its JSON form hands them to the kernel as they are.
    let (table, chain) = ("\u{1b}[31mx<script>\u{7}", "pre\"\r\u{9b}2J\u{202e}");
    let matches = |protocol: &str, field: &str, right: Value| json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}});
    let rules = json!({"nftables": [
        {"add": {"table": {"family": "ip", "name": table}}},
        {"add": {"chain": {"family": "ip", "table": table, "name": chain, "type": "nat",
            "hook": "prerouting", "prio": -150, "policy": "accept"}}},
        {"add": {"rule": {"family": "ip", "table": table, "chain": chain, "comment": HOSTILE, "expr": [
            matches("ip", "daddr", json!("10.96.10.10")), matches("tcp", "dport", json!(80)),
            {"dnat": {"addr": "10.244.66.6", "port": 6666}}]}}},
    ]});
    node.netns()
        .run_with_input("nft", ["-j", "-f", "-"], &rules.to_string())
        .unwrap();
    foreign_rule_is_found_and_plain(&node);
}

#[test]
fn hostile_comments_of_iptables_rules_reach_no_terminal() {
    let Some(node) = Loaded::new(Version::V1_36, Mode::IptablesNft) else {
        return;
    };
    // 253 bytes, all that xt_comment holds with a little room.
    let mut comment = HOSTILE.to_owned();
    while comment.len() < 253 {
        comment.push('\u{1b}');
    }
    let rule = [
        "-t",
        "nat",
        "-I",
        "PREROUTING",
        "1",
        "-d",
        "10.96.10.10/32",
        "-p",
        "tcp",
        "--dport",
        "80",
    ];
    let mut all: Vec<&str> = rule.to_vec();
    all.extend([
        "-m",
        "comment",
        "--comment",
        &comment,
        "-j",
        "DNAT",
        "--to-destination",
        "10.244.66.6:6666",
    ]);
    node.netns().run("iptables-nft", all).unwrap();
    foreign_rule_is_found_and_plain(&node);
    let remove = ["-t", "nat", "-D", "PREROUTING", "1"];
    node.netns().run("iptables-nft", remove).unwrap();

    // In kube-proxy's own chain the comment names the Service: a name that no Service can have, and
    // that steers terminals, must not become one.
    let rules = node
        .netns()
        .run("iptables-nft-save", ["-t", "nat"])
        .unwrap();
    let own = rules
        .lines()
        .find(|line| line.starts_with("-A KUBE-SERVICES -d 10.96.10.10/32 "))
        .unwrap();
    let chain = own.split_once(" -j ").unwrap().1;
    let comment = "\u{1b}[2J<b>/\u{9b}31mweb:\u{202e}http cluster IP";
    let stale =
        "-t nat -I KUBE-SERVICES 1 -d 10.96.10.99/32 -p tcp --dport 80 -m comment --comment";
    let mut all: Vec<&str> = stale.split(' ').collect();
    all.extend([comment, "-j", chain]);
    node.netns().run("iptables-nft", all).unwrap();
    let text = node.check(&["--output", "text", "--wait", "10s"]);
    let asked = node.check(&["--output", "json", "--wait", "10s"]);
    text.is_plain();
    asked.is_plain();
    let json = asked.json();
    assert_eq!((text.code, asked.code), (1, 1), "{json:#}\n{text:?}");
    let findings = json["findings"].as_array().unwrap();
    assert!(!findings.is_empty());
    for finding in findings {
        assert_eq!(finding["kind"], "stale_frontend", "{json:#}");
        assert_eq!(finding["frontend"], "10.96.10.99:80/TCP", "{json:#}");
        // By the chain that is jumped to.
        assert_eq!(finding["service"], "shop/web:http", "{json:#}");
    }
}

/// Another program gives a Service's rules to another chain and sends its address there, in one
/// transaction, and back again, a hundred times a second: at every moment the rules are right, and
/// every reading that mixes two moments sends the address to a chain without rules.
#[test]
fn rules_that_change_under_the_reading_give_no_finding() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let chains = [
        "service-KHN6ECMT-shop/web/tcp/http",
        "service-ZZZZZZZZ-shop/web/tcp/http",
    ];
    let swap = |from: &str, to: &str| {
        let (at, rule) = (
            "10.96.10.10 . tcp . 80",
            "meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.100.10 . 8080 , 1 : 10.244.100.20 . 8080 }",
        );
        [
            format!("flush chain ip kube-proxy {from}"),
            format!("add rule ip kube-proxy {to} {rule}"),
            format!("delete element ip kube-proxy service-ips {{ {at} }}"),
            format!("add element ip kube-proxy service-ips {{ {at} : goto {to} }}"),
        ]
        .join("; ")
    };
    // Many rules between the chains and the map: a whole reading takes longer than a transaction.
    let mut more = format!("add chain ip kube-proxy {}\n", chains[1]);
    for i in 0..200 {
        more += &format!("add chain ip kube-proxy unused{i}\n");
        for j in 0..50 {
            more += &format!("add rule ip kube-proxy unused{i} ip daddr 192.0.2.{j} drop\n");
        }
    }
    let netns = node.netns();
    netns.run_with_input("nft", ["-f", "-"], &more).unwrap();

    // Each line that nft is given in this way is one transaction.
    let home = Folder::create("writer").unwrap();
    let mut writer = netns.command("nft", ["-i"]);
    writer.env("HOME", home.path()).stdin(Stdio::piped());
    writer.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let mut lines = writer.stdin.take().unwrap();
    let stop = AtomicBool::new(false);
    let (mut judged, mut torn) = (0, 0);
    let writes = std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut writes = 0;
            while !stop.load(Ordering::Relaxed) {
                let to = (writes + 1) % 2;
                writeln!(lines, "{}", swap(chains[writes % 2], chains[to])).unwrap();
                writes += 1;
                // A whole reading takes longer, and reading once more what was changed does not.
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(lines);
            writes
        });
        let all: Vec<Asked> = (0..8)
            .map(|_| node.check(&["--output", "json", "--wait", "0s"]))
            .collect();
        stop.store(true, Ordering::Relaxed);
        for asked in all {
            let json = asked.json();
            assert_eq!(json["converging"], json!([]), "{json:#}");
            if asked.code == 0 {
                judged += 1;
                assert_eq!(json["findings"], json!([]), "{json:#}");
                assert!(json["judged"]["pairs"].as_u64().unwrap() > 0, "{json:#}");
            } else {
                torn += 1;
                assert!(kinds(&json).iter().all(|k| *k == "unreadable"), "{json:#}");
                assert_eq!(asked.code, 2, "{json:#}");
                assert!(json["gaps"].to_string().contains("torn"), "{json:#}");
            }
        }
        writes.join().unwrap()
    });
    let said = writer.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stderr), "");
    println!("{writes} transactions: {judged} checks judged, {torn} said torn");
    assert!(writes > 200 && judged > 0, "nothing was put to the proof");
    let asked = node.check(&["--output", "json"]);
    assert_eq!(asked.code, 0, "after the storm: {}", asked.stdout);
}

#[test]
fn two_checks_at_once_agree() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::IptablesNft) else {
        return;
    };
    node.netns()
        .run("iptables-nft", ["-t", "nat", "-D", "OUTPUT", "1"])
        .unwrap();
    let both: Vec<Asked> = std::thread::scope(|scope| {
        let check = || node.check(&["--output", "json", "--wait", "10s"]);
        let threads = [scope.spawn(check), scope.spawn(check)];
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let answers = [&both[0], &both[1]].map(|asked| {
        let json = asked.json();
        let what: Vec<[Value; 3]> = json["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| ["kind", "frontend", "says"].map(|k| f[k].clone()))
            .collect();
        (asked.code, json["judged"].clone(), what)
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, 1, "{answers:#?}");
}

/// Names of the API made to hurt: the findings about them are true, and all that is printed is plain.
#[test]
fn hostile_names_of_the_api_reach_no_terminal() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let folder = Folder::create("hostile").unwrap();
    let manifests = copy_of(&node.recording, &folder);
    let long = "x".repeat(253);
    let names = [
        &*long,
        "<script>alert('1')</script>",
        "a\u{1b}[2J\u{7}\u{9b}31m\u{202e}b",
    ];
    let services: Vec<Value> = (0..).zip(names).map(|(i, name)| json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "<b>\u{1b}]0;title\u{7}"},
        "spec": {"clusterIP": format!("10.96.77.{i}"), "ports": [{"name": "p\r\n", "port": 80}]},
    })).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": services});
    std::fs::write(manifests.join("hostile.json"), list.to_string()).unwrap();
    let text = node.check_with(&manifests, &["--wait", "10s"]);
    let asked = node.check_with(&manifests, &["--output", "json", "--wait", "10s"]);
    text.is_plain();
    asked.is_plain();
    let json = asked.json();
    assert_eq!((text.code, asked.code), (1, 1), "{json:#}\n{text:?}");
    // Nothing answers for these addresses, so kube-proxy's rule drops what is sent to them.
    assert!(
        kinds(&json).iter().all(|kind| *kind == "wrong_action"),
        "{json:#}"
    );
    for service in &services {
        let address = service["spec"]["clusterIP"].as_str().unwrap();
        let named = json["findings"].as_array().unwrap().iter().any(|finding| {
            finding["frontend"] == format!("{address}:80/TCP")
                && finding["service"].as_str().is_some_and(|name| {
                    name.contains(service["metadata"]["name"].as_str().unwrap())
                })
        });
        assert!(named, "no finding names the Service of {address}: {json:#}");
    }
    assert!(asked.stdout.contains(&long) && text.stdout.contains("<script>"));

    // The aggregator's pages for people, and what it hands to programs.
    let _aggregator = node.aggregator();
    let source = ["--manifests", &manifests.to_string_lossy()];
    let mut process = node.run(source, &[], &folder.join("agent.log"));
    let get = |path: &str| http::get_in(node.hub.netns(), AGGREGATOR_HTTP, path);
    let lines = process.until("the findings", LIMIT, || {
        let answer = get("/drift")?;
        let json: Value = serde_json::from_str(&answer.body)?;
        Ok((answer.body.matches("wrong_action").count() >= 3).then_some(json))
    });
    lines.unwrap();
    let of_node = format!("/nodes/{}", node.node.name());
    for path in ["/nodes", "/drift", &of_node] {
        let answer = get(&format!("{path}?output=text")).unwrap();
        assert_eq!(answer.status, 200, "{path}");
        assert_plain(&answer.body);
    }
    process.stop().unwrap();
    let said = std::fs::read_to_string(folder.join("agent.log")).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    assert_plain(&said);
}

/// Ends within seconds with code 64 and names the file.
#[test]
fn manifests_that_are_none_are_refused() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let folder = Folder::create("manifests").unwrap();
    let noise: Vec<u8> = (0..200_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let laughs = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |all, i| {
        let before = i - 1;
        all + &format!("a{i}: &a{i} [*a{before}, *a{before}, *a{before}, *a{before}]\n")
    });
    let bad =
        "kind: Service\nmetadata: {name: \"\\e[2J\"}\nspec: {ports: [{port: \"\\e]0;x\\a\"}]}\n";
    let files: [(&str, Vec<u8>); 8] = [
        ("noise.yaml", noise),
        ("deep.yaml", "[".repeat(200_000).into_bytes()),
        ("deep.json", "[".repeat(200_000).into_bytes()),
        ("map.yaml", "{a: ".repeat(1_000).into_bytes()),
        ("laughs.yaml", laughs.into_bytes()),
        (
            "page.yaml",
            b"<html><body>502 Bad Gateway</body></html>\n".to_vec(),
        ),
        ("bad.yaml", bad.as_bytes().to_vec()),
        ("nothing.yaml", Vec::new()),
    ];
    let mut paths: Vec<PathBuf> = Vec::new();
    for (name, bytes) in files {
        paths.push(folder.join(name));
        std::fs::write(paths.last().unwrap(), bytes).unwrap();
    }
    // Can be read once only, and a second reading would find that every Service is gone.
    let pipe = folder.join("pipe.yaml");
    tests::command::run("mkfifo", [&pipe]).unwrap();
    paths.push(pipe);
    // Nothing was learnt of any Service: on a node full of rules that must not look like none.
    for directory in ["empty-directory", "directory-with-prose"] {
        paths.push(folder.join(directory));
        std::fs::create_dir(paths.last().unwrap()).unwrap();
    }
    std::fs::write(
        folder.join("directory-with-prose/README.md"),
        "kind: List\n",
    )
    .unwrap();
    paths.push(folder.join("not-there-yet"));
    let socket = folder.join("agent.sock");
    let socket = socket.to_string_lossy();
    for path in paths {
        let log = folder.join("log");
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let source = ["--manifests", &path.to_string_lossy()];
        for (command, more) in [("check", ["--wait", "2s"]), ("run", ["--socket", &socket])] {
            let command = node.agent(MAY_READ, command, source, &more);
            let mut process = Process::start("check", command, &log).unwrap();
            let status = tests::wait::until(&name, Duration::from_secs(20), || process.ended())
                .unwrap_or_else(|e| panic!("{e}: {}", process.log_tail()));
            let said = std::fs::read_to_string(&log).unwrap();
            std::fs::remove_file(&log).unwrap();
            assert_eq!(status.code(), Some(64), "{name}: {said}");
            assert!(said.contains(&name), "{name}: {said}");
            assert_plain(&said);
        }
    }
}

/// That there is no Service has to be said; then every rule is a stale one.
#[test]
fn an_empty_list_says_that_there_is_no_service() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let folder = Folder::create("none").unwrap();
    let list = "apiVersion: v1\nitems: []\nkind: List\nmetadata:\n  resourceVersion: \"\"\n";
    std::fs::write(folder.join("list.yaml"), list).unwrap();
    let asked = node.check_with(folder.path(), &["--output", "json", "--wait", "10s"]);
    let json = asked.json();
    assert_eq!(asked.code, 1, "{json:#}");
    assert!(kinds(&json).contains(&"stale_frontend"), "{json:#}");
    assert!(
        kinds(&json).iter().all(|kind| *kind == "stale_frontend"),
        "{json:#}"
    );
}

/// The manifests of a recording in a directory that may be changed.
fn copy_of(recording: &Recording, folder: &Folder) -> PathBuf {
    let manifests = folder.join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for entry in std::fs::read_dir(recording.manifests()).unwrap().flatten() {
        std::fs::copy(entry.path(), manifests.join(entry.file_name())).unwrap();
    }
    manifests
}

/// `run` outlives a directory that vanishes, is empty and comes back, and a kill -9. What changes in
/// the kernel meanwhile may be what the missing files ask for, and is no finding.
#[test]
fn run_outlives_vanished_manifests_and_a_kill() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let folder = Folder::create("run").unwrap();
    let (manifests, away) = (copy_of(&node.recording, &folder), folder.join("away"));
    let state = folder.join("state");
    let state_text = state.to_string_lossy();
    let source = ["--manifests", &manifests.to_string_lossy()];
    let more = ["--state-dir", &*state_text];
    let _aggregator = node.aggregator();
    let log = folder.join("first.log");
    let mut process = node.run(source, &more, &log);
    node.until(&mut process, "a pass that agrees", agrees);

    std::fs::rename(&manifests, &away).unwrap();
    let lost = |told: &Value| gap(told, "API: Services");
    node.until(&mut process, "word of the vanished directory", lost);
    std::fs::create_dir(&manifests).unwrap();
    let empty = |told: &Value| gap(told, "there is no .json, .yaml or .yml file");
    node.until(&mut process, "word of the empty directory", empty);

    let map = ["ip", "kube-proxy", "service-ips"];
    let key = "10.96.10.10 . tcp . 80";
    let listed = node
        .netns()
        .run("nft", ["list", "map", map[0], map[1], map[2]])
        .unwrap();
    let at = listed.find(key).unwrap();
    let element = listed[at..].split([',', '}']).next().unwrap().trim();
    let nft = |verb: &str, element: &str| {
        let script = format!("{verb} element {} {{ {element} }}\n", map.join(" "));
        node.netns()
            .run_with_input("nft", ["-f", "-"], &script)
            .unwrap();
    };
    nft("delete", key);
    let passes = node.told().unwrap()["pass"].as_u64().unwrap();
    let later = |told: &Value| told["pass"].as_u64() > Some(passes + 5) && empty(told);
    node.until(&mut process, "six more passes without a finding", later);
    assert_eq!(node.told().unwrap()["converging_total"], 1);
    nft("add", element);

    std::fs::remove_dir(&manifests).unwrap();
    std::fs::rename(&away, &manifests).unwrap();
    node.until(&mut process, "agreement with what is back", agrees);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("panicked"), "{said}");

    process.kill().unwrap();
    let gone = |told: &Value| told["data"]["connected"] == false;
    tests::wait::until("word of the killed agent", LIMIT, || {
        Ok(gone(&node.told()?).then_some(()))
    })
    .unwrap();
    let began = Instant::now();
    let mut process = node.run(source, &more, &folder.join("second.log"));
    node.until(&mut process, "agreement after a kill -9", agrees);
    println!("back {:?} after a kill -9", began.elapsed());
    process.stop().unwrap();
    // Manifests have no API server whose addresses could be kept; above all no half-written file.
    let left = std::fs::read_dir(&state).map_or(0, Iterator::count);
    assert_eq!(left, 0, "files in the state directory");
}

/// What the API server of [`Server`] does.
const SERVES: u8 = 0;
/// It closes the connection before the second page of a list.
const BREAKS_OFF: u8 = 1;
/// It closes every connection.
const GONE: u8 = 2;
/// [`BREAKS_OFF`] in the list of Services only.
const HALF_OF_SERVICES: u8 = 3;
/// [`BREAKS_OFF`] in the list of EndpointSlices only.
const HALF_OF_SLICES: u8 = 4;

/// An API server with the objects of a recording that vanishes when it is told to. As old as such
/// that cannot stream a list.
struct Server {
    mood: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    address: SocketAddr,
}

impl Server {
    /// In the hub. Its threads end with the process.
    fn start(node: &Loaded) -> Server {
        let at = SocketAddr::new(HUB_V4.into(), 0);
        let listener = node
            .hub
            .netns()
            .enter(|| TcpListener::bind(at).unwrap())
            .unwrap();
        let server = Server {
            mood: Arc::default(),
            open: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let text = std::fs::read_to_string(node.recording.manifests().join("objects.yaml"));
        let objects: Value = serde_yaml_ng::from_str(&text.unwrap()).unwrap();
        let (mood, open) = (server.mood.clone(), server.open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mood, objects) = (mood.clone(), objects.clone());
                open.lock().unwrap().push(stream.try_clone().unwrap());
                std::thread::spawn(move || serve(stream, &mood, &objects));
            }
        });
        server
    }

    fn becomes(&self, mood: u8) {
        self.mood.store(mood, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn kubeconfig(&self, folder: &Folder) -> PathBuf {
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        let path = folder.join("kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }
}

/// One connection, to its end.
fn serve(mut stream: TcpStream, mood: &AtomicU8, objects: &Value) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    loop {
        let request = lines.next()?.ok()?;
        while !lines.next()?.ok()?.is_empty() {}
        let mood = mood.load(Ordering::SeqCst);
        let url = request.split(' ').nth(1)?.to_owned();
        let kind = match &url {
            url if url.contains("/services?") => "Service",
            url if url.contains("/endpointslices?") => "EndpointSlice",
            url if url.contains("/nodes?") => "Node",
            _ => "",
        };
        let second = url.contains("continue=");
        let gone = match mood {
            GONE => true,
            BREAKS_OFF => second,
            HALF_OF_SERVICES => second && kind == "Service",
            HALF_OF_SLICES => second && kind == "EndpointSlice",
            _ => false,
        };
        if gone {
            return stream.shutdown(Shutdown::Both).ok();
        }
        let (status, body) = if url.contains("sendInitialEvents=true") {
            ("400 Bad Request", status(400))
        } else if kind.is_empty() {
            ("404 Not Found", status(404))
        } else if url.contains("watch=true") {
            // Headers of a stream on which nothing is said; the client may end it.
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).ok()?;
            lines.next()?.ok()?;
            return Some(());
        } else {
            let mut items = objects["items"].as_array()?.clone();
            let node = url
                .split_once("metadata.name%3D")
                .map(|(_, name)| name.split('&').next().unwrap_or_default().to_owned());
            items.retain(|o| o["kind"] == kind);
            items.retain(|o| {
                node.as_ref()
                    .is_none_or(|name| o["metadata"]["name"] == **name)
            });
            let half = items.len() / 2;
            let mut meta = json!({"resourceVersion": "7"});
            // Two pages of each list.
            if url.contains("continue=") {
                items.drain(..half);
            } else if half > 0 {
                items.truncate(half);
                meta["continue"] = json!("more");
            }
            (
                "200 OK",
                json!({"metadata": meta, "items": items}).to_string(),
            )
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()?;
    }
}

fn status(code: u16) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": "BadRequest", "code": code})
    .to_string()
}

/// It vanishes in the middle of the first lists, of one of them, then altogether: nothing may be
/// judged.
#[test]
fn half_a_list_judges_nothing() {
    let Some(node) = Loaded::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let folder = Folder::create("half").unwrap();
    let server = Server::start(&node);
    let kubeconfig = server.kubeconfig(&folder);
    let source = ["--kubeconfig", &kubeconfig.to_string_lossy()];
    let more = ["--output", "json", "--wait", "5s"];
    let check = || Asked::of(node.agent(MAY_READ, "check", source, &more));
    for (mood, lost) in [
        (BREAKS_OFF, "API: Services"),
        (HALF_OF_SERVICES, "API: Services"),
        (HALF_OF_SLICES, "API: EndpointSlices"),
        (GONE, "API: Services"),
    ] {
        server.becomes(mood);
        judged_nothing(&check(), lost);
    }
    server.becomes(SERVES);
    let json = check().json();
    assert!(json["judged"]["pairs"].as_u64() > Some(0), "{json:#}");
}

/// It vanishes under a running agent and comes back. Meanwhile what it said last counts.
#[test]
fn run_outlives_an_api_server_that_vanishes() {
    let Some(node) = Loaded::new(Version::V1_36, Mode::IptablesNft) else {
        return;
    };
    let folder = Folder::create("vanish").unwrap();
    let server = Server::start(&node);
    let kubeconfig = server.kubeconfig(&folder);
    let source = ["--kubeconfig", &kubeconfig.to_string_lossy()];
    let _aggregator = node.aggregator();
    let log = folder.join("agent.log");
    let mut process = node.run(source, &[], &log);
    node.until(&mut process, "a pass that agrees", agrees);
    let before = node.told().unwrap()["coverage"]["pairs"].clone();
    server.becomes(GONE);
    let lost = |told: &Value| {
        // A difference would be given time before it becomes a finding.
        for late in told["converging"].as_array().unwrap() {
            assert_eq!(late["kind"], "proxy_not_running", "invented: {told:#}");
        }
        assert_eq!(told["coverage"]["pairs"], before, "{told:#}");
        gap(told, "API: Services") && gap(told, "API: EndpointSlices")
    };
    node.until(&mut process, "word of the vanished API server", lost);
    let passes = node.told().unwrap()["pass"].as_u64().unwrap();
    let later = |told: &Value| told["pass"].as_u64() > Some(passes + 5) && lost(told);
    node.until(&mut process, "six more passes without a finding", later);
    server.becomes(SERVES);
    node.until(&mut process, "agreement with what is back", agrees);
    process.stop().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("panicked"), "{said}");
}

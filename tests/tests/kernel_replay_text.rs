//! The same rules by netlink (or getsockopt) and by what `iptables-save` and `nft -j` print of them: the
//! same forwarding table. Where the text says less, the row is unknown, and nothing else.

use std::collections::BTreeMap;

use serde_json::Value;
use tests::agents::Programs;
use tests::cache::{self, Version};
use tests::cleanup::Folder;
use tests::command;
use tests::proxy::Mode;
use tests::recording::Recording;
use tests::topology::{Hub, Node};

/// What others write beside kube-proxy, as they write it (Docker 28, ufw 0.36, firewalld over
/// iptables, Calico 3.29, Flannel 0.26), with conditions that are understood and some that are not.
const OTHERS: &str = r#"*filter
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:ufw-before-input - [0:0]
:ufw-user-limit - [0:0]
:FLANNEL-FWD - [0:0]
:cali-FORWARD - [0:0]
:INPUT_direct - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j INPUT_direct
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p tcp -m tcp --dport 9999 -m limit --limit 3/min --limit-burst 10 -j ufw-user-limit
-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable
-A DOCKER-USER -i docker0 -o eth9 -j RETURN
-A DOCKER-USER -s 172.17.0.0/16 ! -d 172.17.0.0/16 -p tcp -m multiport --dports 81,82,1000:2000 -j ACCEPT
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -i cali+ -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A INPUT_direct -p tcp -m tcp --dport 23 --tcp-flags SYN,RST,ACK,FIN SYN -j DROP
-A INPUT_direct -m iprange --src-range 192.0.2.1-192.0.2.9 -p udp -m udp ! --dport 1:1023 -j DROP
-A INPUT_direct -m pkttype --pkt-type broadcast -j DROP
COMMIT
*nat
:DOCKER - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.17.0.2:80
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"#;

struct Place {
    node: Node,
    recording: Recording,
    programs: Programs,
    folder: Folder,
    _hub: Hub,
}

/// Rows by frontend and source.
type Rows = BTreeMap<(String, String), Value>;

fn rows(json: &Value) -> Rows {
    let all = json["rows"].as_array().unwrap();
    let key = |row: &Value| {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        (text("frontend"), text("source"))
    };
    all.iter().map(|row| (key(row), row.clone())).collect()
}

impl Place {
    fn new(version: Version, mode: Mode) -> Option<Place> {
        if !tests::packages::is_root() {
            println!("network namespaces need root: not run");
            return None;
        }
        let hub = Hub::create().unwrap();
        let recording = Recording::of(version, mode);
        let at = recording.place().unwrap();
        let node = hub.add_node_at(&at.name, at.index).unwrap();
        recording.load(node.netns()).unwrap();
        Some(Place {
            node,
            recording,
            programs: Programs::build().unwrap(),
            folder: Folder::create("text").unwrap(),
            _hub: hub,
        })
    }

    fn source(&self) -> Vec<String> {
        [
            "--node".into(),
            self.recording.place().unwrap().name,
            "--manifests".into(),
            self.recording.manifests().display().to_string(),
            "--kube-proxy-config".into(),
            self.recording.configuration().display().to_string(),
            "--proxy-version".into(),
            self.recording.version.minor().to_owned(),
        ]
        .into()
    }

    /// What a program prints on the node, in a file.
    fn collect(&self, program: &str, arguments: &[&str]) -> String {
        let text = self.node.netns().run(program, arguments).unwrap();
        let path = self.folder.join(program);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn by_kernel(&self) -> Rows {
        let agent = self.programs.agent.display().to_string();
        let mut all = vec!["table".to_owned()];
        all.extend(self.source());
        all.extend(["--output", "json"].map(str::to_owned));
        let output = command::attempt(&mut self.node.netns().command(&agent, all)).unwrap();
        rows(&serde_json::from_slice(&output.stdout).unwrap())
    }

    fn replay(&self, more: &[&str]) -> (Option<i32>, Value) {
        let mut run = std::process::Command::new(&self.programs.agent);
        run.arg("replay").args(self.source());
        run.arg("--addresses")
            .arg(self.collect("ip", &["-j", "address"]));
        run.args(more).args(["--output", "json"]);
        let output = command::attempt(&mut run).unwrap();
        let json = serde_json::from_slice(&output.stdout);
        let json =
            json.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), json)
    }

    fn saved(&self) -> [String; 4] {
        let backend = self.recording.mode.iptables_backend().unwrap();
        let file = |family: &str| self.collect(&format!("{family}-{backend}-save"), &[]);
        let word = || "--iptables-save".to_owned();
        [word(), file("iptables"), word(), file("ip6tables")]
    }

    fn listed(&self) -> [String; 2] {
        let file = self.collect("nft", &["-j", "list", "ruleset"]);
        ["--nft-json".into(), file]
    }
}

/// The rows that differ. They may differ by being unknown in the text's table, in no other way.
fn differing(name: &str, kernel: &Rows, text: &Rows) -> usize {
    let mut differ = 0;
    for (key, row) in kernel {
        let other = text.get(key);
        if other == Some(row) {
            continue;
        }
        differ += 1;
        let action = other.map(|row| row["action"].clone());
        assert_eq!(
            action,
            Some("unknown".into()),
            "{name} {key:?}:\nkernel {row}\ntext {other:?}"
        );
    }
    for key in text.keys() {
        assert!(kernel.contains_key(key), "{name}: {key:?} by text only");
    }
    println!(
        "{name}: {differ} of {} rows are unknown by text alone",
        kernel.len()
    );
    differ
}

/// What differs, converging or not; that something could not be read is no difference.
fn findings(json: &Value) -> Vec<&Value> {
    let lists = ["findings", "converging"].map(|list| json[list].as_array().unwrap());
    let all = lists.into_iter().flatten();
    all.filter(|f| f["kind"] != "unreadable").collect()
}

fn strings<const N: usize>(all: &[String; N]) -> [&str; N] {
    std::array::from_fn(|i| all[i].as_str())
}

#[test]
fn text_gives_the_same_table() {
    let all = ["--table", "observed", "--nothing-else"];
    for version in Version::ALL {
        for mode in [Mode::IptablesNft, Mode::IptablesLegacy, Mode::Nftables] {
            let Some(place) = Place::new(version, mode) else {
                return;
            };
            let name = format!("{version:?} {mode:?}");
            let by_text = |place: &Place| {
                let given: Vec<String> = if mode == Mode::Nftables {
                    place.listed().into()
                } else {
                    place.saved().into()
                };
                let mut given: Vec<&str> = given.iter().map(String::as_str).collect();
                given.extend(all);
                rows(&place.replay(&given).1)
            };
            let (kernel, text) = (place.by_kernel(), by_text(&place));
            assert!(kernel.len() > 100, "{name}: {} rows", kernel.len());
            assert_eq!(differing(&name, &kernel, &text), 0, "{name}");

            // With others' rules beside kube-proxy's.
            let netns = place.node.netns();
            if let Some(backend) = mode.iptables_backend() {
                let restore = format!("iptables-{backend}-restore");
                netns
                    .run_with_input(&restore, ["-w", "60", "--noflush"], OTHERS)
                    .unwrap();
            } else {
                let rules = cache::workspace().join("agent/tests/rules/others.nft");
                let rules = std::fs::read_to_string(rules).unwrap();
                netns.run_with_input("nft", ["-f", "-"], &rules).unwrap();
            }
            let (kernel, text) = (place.by_kernel(), by_text(&place));
            let name = format!("{name} beside others");
            let differ = differing(&name, &kernel, &text);
            // Unknown by either; the reasons are worded otherwise.
            assert!(differ == 0 || mode == Mode::Nftables, "{name}");

            // What nft prints of iptables-nft's rules is less than half.
            if mode == Mode::IptablesNft {
                let listed = place.listed();
                let [word, file] = strings(&listed);
                let (_, json) = place.replay(&[&[word, file][..], &all].concat());
                differing(&format!("{name} by nft -j"), &kernel, &rows(&json));
                // With both, iptables-save's word counts.
                let saved = place.saved();
                let both = [&[word, file][..], &strings(&saved), &all].concat();
                assert_eq!(rows(&place.replay(&both).1), kernel, "{name}");
            }
        }
    }
}

#[test]
fn what_was_not_collected_is_no_finding() {
    let Some(place) = Place::new(Version::V1_36, Mode::IptablesNft) else {
        return;
    };
    let saved = place.saved();
    let [word, v4, _, v6] = strings(&saved);
    let verdict = |given: &[&str]| {
        let (code, json) = place.replay(given);
        assert_eq!(findings(&json), [] as [&Value; 0], "{given:?}");
        (code, json["judged"]["pairs"].as_u64().unwrap())
    };
    let (code, all) = verdict(&[word, v4, word, v6, "--nothing-else"]);
    assert_eq!(code, Some(0));
    // Other tables may be there: everything agrees, but who knows.
    assert_eq!(verdict(&[word, v4, word, v6]), (Some(2), all));
    let (code, one) = verdict(&[word, v4]);
    assert!(code == Some(2) && 0 < one && one < all, "{one} of {all}");
    let nat = place.collect("iptables-nft-save", &["-t", "nat"]);
    assert_eq!(verdict(&[word, &nat]), (Some(2), 0));

    let Some(place) = Place::new(Version::V1_36, Mode::Nftables) else {
        return;
    };
    let v4 = place.collect("iptables-nft-save", &[]);
    let (code, json) = place.replay(&["--iptables-save", &v4]);
    assert_eq!((code, findings(&json)), (Some(2), Vec::new()));
    assert_eq!(json["judged"]["pairs"], 0);
}

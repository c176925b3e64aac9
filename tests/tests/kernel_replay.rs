//! A verdict carried away: `bundle` on a node, `replay` from the file alone, for what kube-proxies of
//! every version and mode wrote, undamaged and damaged.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::agents::Programs;
use tests::cache::Version;
use tests::cleanup::Folder;
use tests::command;
use tests::proxy::Mode;
use tests::recording::Recording;
use tests::topology::{Hub, Node};

/// A node with the rules of a real kube-proxy, and a place for files.
struct Place {
    node: Node,
    recording: Recording,
    programs: Programs,
    folder: Folder,
    _hub: Hub,
}

/// What a program said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {:?} {}\n{}", self.code, self.out, self.err))
    }
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
            folder: Folder::create("replay").unwrap(),
            _hub: hub,
        })
    }

    fn source(&self) -> Vec<String> {
        let path = |p: PathBuf| p.display().to_string();
        [
            "--node".into(),
            self.recording.place().unwrap().name,
            "--manifests".into(),
            path(self.recording.manifests()),
            "--kube-proxy-config".into(),
            path(self.recording.configuration()),
            "--proxy-version".into(),
            self.recording.version.minor().to_owned(),
            // What the recording's own node never had.
            "--proxy-metrics=127.0.0.1:1".into(),
            "--proxy-healthz=127.0.0.1:1".into(),
        ]
        .into()
    }

    /// Runs a command of the agent on the node.
    fn on_node(&self, name: &str, more: &[&str]) -> Said {
        let mut all = vec![name.to_owned()];
        all.extend(self.source());
        all.extend(more.iter().map(|word| (*word).to_owned()));
        let agent = self.programs.agent.display().to_string();
        said(&mut self.node.netns().command(&agent, all))
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn shell(&self, script: &str) {
        self.node.netns().run("sh", ["-c", script]).unwrap();
    }
}

fn said(run: &mut std::process::Command) -> Said {
    let output = command::attempt(run).unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Replays with no right to anything: as another user, where there is no network namespace to read.
fn replay(programs: &Programs, arguments: &[&str]) -> Said {
    let mut run = std::process::Command::new(&programs.agent);
    said(run.arg("replay").args(arguments))
}

/// The answer without its moment: times differ between two runs.
fn timeless(mut json: Value) -> Value {
    json["at"] = Value::Null;
    json["api_as_of"] = Value::Null;
    for list in ["findings", "converging"] {
        for finding in json[list].as_array_mut().unwrap() {
            finding["since"] = Value::Null;
        }
    }
    json
}

const MODES: [Mode; 3] = [Mode::IptablesNft, Mode::IptablesLegacy, Mode::Nftables];

/// One Service's rules damaged, another's gone, a foreign rule in front.
fn damage(place: &Place) {
    let rules = match place.recording.mode {
        Mode::Nftables => {
            "nft delete element ip kube-proxy service-ips '{ 10.96.10.10 . tcp . 80 }'
             nft flush chain ip6 kube-proxy services"
        }
        Mode::IptablesNft => {
            "iptables-nft -t nat -F KUBE-NODEPORTS
             iptables-nft -t nat -I PREROUTING -p tcp --dport 80 -j ACCEPT
             ip6tables-nft -t nat -F KUBE-SERVICES"
        }
        Mode::IptablesLegacy => {
            "iptables-legacy -w 60 -t nat -F KUBE-NODEPORTS
             iptables-legacy -w 60 -t nat -I PREROUTING -p tcp --dport 80 -j ACCEPT
             ip6tables-legacy -w 60 -t nat -F KUBE-SERVICES"
        }
    };
    place.shell(&format!("set -e\n{rules}"));
}

fn same_verdict(version: Version) {
    for mode in MODES {
        let Some(place) = Place::new(version, mode) else {
            return;
        };
        for damaged in [false, true] {
            let name = format!("{version:?} {mode:?} damaged: {damaged}");
            if damaged {
                damage(&place);
            }
            let file = place.file("a.bundle");
            let made = place.on_node("bundle", &["--output", &file, "--report", "json"]);
            assert_eq!(made.code, Some(0), "{name}: {}", made.err);
            let again = replay(&place.programs, &[&file, "--output", "json"]);
            assert_eq!(made.out, again.out, "{name}");
            let checked = place.on_node("check", &["--output", "json"]);
            assert_eq!(checked.code, again.code, "{name}");
            assert_eq!(timeless(checked.json()), timeless(again.json()), "{name}");
            let findings = again.json()["findings"].as_array().unwrap().len();
            assert_eq!(again.code, Some(u8::from(damaged).into()), "{name}");
            assert_eq!(findings > 0, damaged, "{name}");
            // The table as well.
            let table = place.on_node("table", &["--output", "json"]);
            let rows = replay(
                &place.programs,
                &[&file, "--table=observed", "--output=json"],
            );
            assert_eq!(table.json(), rows.json(), "{name}");
            let size = std::fs::metadata(&file).unwrap().len();
            println!("{name}: {findings} findings, {size} bytes");

            let file = place.file("pseudonyms.bundle");
            let made = place.on_node("bundle", &["--output", &file, "--pseudonyms"]);
            assert_eq!(made.code, Some(0), "{name}: {}", made.err);
            let hidden = replay(&place.programs, &[&file, "--output", "json"]);
            assert_eq!(hidden.code, again.code, "{name}");
            assert_eq!(
                kinds(&hidden.json()),
                kinds(&again.json()),
                "{name}: with pseudonyms"
            );
            nothing_told(&place, &file);
        }
    }
}

/// Kind and place of each finding, sorted.
fn kinds(json: &Value) -> Vec<String> {
    let mut all: Vec<String> = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            format!(
                "{} {} {} {}",
                f["kind"], f["frontend"], f["backend"], f["absorbs"]
            )
        })
        .collect();
    all.sort();
    all
}

/// No name of the cluster is anywhere in the bundle.
fn nothing_told(place: &Place, file: &str) {
    let unpacked = place.folder.join("unpacked");
    std::fs::create_dir_all(&unpacked).unwrap();
    let unpack = format!("tar --zstd -xf {file} -C {}", unpacked.display());
    command::run("sh", ["-c", &unpack]).unwrap();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&unpacked).unwrap() {
        all.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    let all = String::from_utf8_lossy(&all).into_owned();
    let manifests = place.recording.manifests().join("objects.yaml");
    let objects: Value =
        serde_yaml_ng::from_str(&std::fs::read_to_string(manifests).unwrap()).unwrap();
    let mut names = 0;
    for object in objects["items"].as_array().unwrap() {
        let (kind, name) = (
            &object["kind"],
            object["metadata"]["name"].as_str().unwrap(),
        );
        if name == "kubernetes" {
            continue;
        }
        // As it stands in JSON and in rules; a short name may be a part of another word.
        let forms = match kind.as_str().unwrap() {
            "Service" => vec![
                format!(":\"{name}\""),
                format!("/{name}/"),
                format!("/{name}:"),
                format!("shop/{name}"),
            ],
            _ => vec![format!(":\"{name}\""), format!("[\"{name}\"")],
        };
        for form in forms {
            assert!(!all.contains(&form), "{file} tells {form}");
            names += 1;
        }
    }
    assert!(names > 20, "{names} names looked for");
    std::fs::remove_dir_all(unpacked).unwrap();
}

#[test]
fn a_bundle_repeats_the_verdict_of_1_34() {
    same_verdict(Version::V1_34);
}

#[test]
fn a_bundle_repeats_the_verdict_of_1_36() {
    same_verdict(Version::V1_36);
}

#[test]
fn a_bundle_repeats_the_verdict_of_1_37() {
    same_verdict(Version::V1_37);
}

#[test]
fn what_is_no_whole_bundle_is_refused() {
    let Some(place) = Place::new(Version::V1_37, Mode::Nftables) else {
        return;
    };
    let file = place.file("a.bundle");
    let made = place.on_node("bundle", &["--output", &file]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    let bytes = std::fs::read(&file).unwrap();
    // Wherever it was cut. (Flipped bits: `bundle/tests.rs`.)
    let refused = |name: &str, bytes: &[u8]| {
        let other = place.file("other.bundle");
        std::fs::write(&other, bytes).unwrap();
        let said = replay(&place.programs, &[&other]);
        assert_eq!(said.code, Some(64), "{name}: {}{}", said.out, said.err);
        assert!(said.out.is_empty(), "{name}");
        said.err
    };
    for at in (0..bytes.len()).step_by(bytes.len() / 20) {
        let text = refused("cut", &bytes[..at]);
        let says = if at < 4 { "not a bundle" } else { "cut off" };
        assert!(text.contains(says), "{at}: {text}");
    }
    let mut longer = bytes.clone();
    longer.extend_from_slice(b"more");
    refused("longer", &longer);
    assert!(refused("garbage", b"#!/bin/sh\n").contains("not a bundle"));
    assert!(refused("empty", b"").contains("not a bundle"));
    // An archive of something else.
    let script = "cd \"$1\" && echo '{\"format\": 7, \"agent\": \"9.9\"}' > about.json && tar --zstd -cf other.bundle about.json";
    let here = place.folder.path().display().to_string();
    command::run("sh", ["-c", script, "sh", &here]).unwrap();
    let said = replay(&place.programs, &[&place.file("other.bundle")]);
    assert_eq!(said.code, Some(64));
    assert!(
        said.err.contains("format 7, written by agent 9.9"),
        "{}",
        said.err
    );
    // A directory that is not there, found before anything is looked at.
    let made = place.on_node("bundle", &["--output", "/nonexistent/a.bundle"]);
    assert_eq!(made.code, Some(64), "{}", made.err);
    // Standard output, and standard input.
    let agent = place.programs.agent.display().to_string();
    let piped = format!(
        "{agent} bundle {} --output - | {agent} replay -",
        place.source().join(" ")
    );
    let out = place.node.netns().run("sh", ["-c", &piped]).unwrap();
    assert!(out.contains("agree with the API"), "{out}");
    assert!(Path::new(&file).exists());
}

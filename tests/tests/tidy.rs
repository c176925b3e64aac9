//! Invariants of the tree that no compiler checks. Each names what it protects.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
        .to_path_buf()
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Lines of a crate's sources (`src` only) that hold one of the words, as `file:line: text`.
fn lines_with(krate: &str, words: &[&str], except: &[&str]) -> Vec<String> {
    let base = root();
    let mut files = Vec::new();
    rust_files(&base.join(krate).join("src"), &mut files);
    assert!(!files.is_empty(), "{krate} has no sources");
    let mut found = Vec::new();
    for file in files {
        let shown = file
            .strip_prefix(&base)
            .expect("inside")
            .display()
            .to_string();
        if except.iter().any(|e| shown.contains(e)) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("readable source");
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if words.iter().any(|w| code.contains(w)) {
                found.push(format!("{shown}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    found
}

/// The section of a manifest, up to the next one.
fn dependencies(krate: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
    text.lines()
        .skip_while(|l| l.trim() != "[dependencies]")
        .skip(1)
        .take_while(|l| !l.starts_with('['))
        .filter_map(|l| l.split(['.', '=', ' ']).next())
        .filter(|n| !n.is_empty() && !n.starts_with('#'))
        .map(str::to_string)
        .collect()
}

/// Invariant 3: the model has no I/O, no async, no log; its manifest proves it.
#[test]
fn the_model_depends_on_data_crates_only() {
    for name in dependencies("model") {
        assert!(
            ["serde", "ipnet"].contains(&name.as_str()),
            "model depends on {name}"
        );
    }
}

/// Cargo enforces the arrows; this says which they are.
#[test]
fn the_arrows_between_crates_hold() {
    let ours = ["model", "cluster", "proto", "agent", "aggregator", "tests"];
    for (krate, allowed) in [
        ("model", &[][..]),
        ("cluster", &["model"]),
        ("proto", &["model"]),
        ("agent", &["model", "cluster", "proto"]),
        ("aggregator", &["model", "cluster", "proto"]),
    ] {
        for name in dependencies(krate) {
            if ours.contains(&name.as_str()) {
                assert!(
                    allowed.contains(&name.as_str()),
                    "{krate} depends on {name}"
                );
            }
        }
    }
}

/// Invariant 10: Kubernetes' types stay in `cluster`, wire types in `proto`, `uplink`, `ingest`.
#[test]
fn foreign_types_stay_behind_their_door() {
    let mut found = Vec::new();
    for krate in ["model", "proto"] {
        found.extend(lines_with(krate, &["k8s_openapi", "kube::"], &[]));
    }
    found.extend(lines_with("agent", &["k8s_openapi", "kube::"], &[]));
    found.extend(lines_with(
        "aggregator",
        &["k8s_openapi", "kube::"],
        &["auth"],
    ));
    found.extend(lines_with("agent", &["tonic::", "prost::"], &["uplink"]));
    found.extend(lines_with(
        "aggregator",
        &["tonic::", "prost::"],
        &["ingest", "main.rs"],
    ));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Invariant 1 and 2: the agent has no message that writes to netfilter, and runs no program.
#[test]
fn the_agent_cannot_write_and_runs_nothing() {
    let found = lines_with(
        "agent",
        &[
            "process::Command",
            "NFT_MSG_NEW",
            "NFT_MSG_DEL",
            "IPSET_CMD_ADD",
            "SO_SET_REPLACE)",
            "NLM_F_CREATE",
            "BPF_MAP_UPDATE",
            "BPF_MAP_DELETE",
            "BPF_PROG_LOAD",
        ],
        &["seccomp"],
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Files tell one story. Generated code and tests are not counted.
#[test]
fn no_file_grows_beyond_reading() {
    let base = root();
    let mut long = Vec::new();
    for krate in ["model", "cluster", "proto", "agent", "aggregator", "tests"] {
        let mut files = Vec::new();
        rust_files(&base.join(krate).join("src"), &mut files);
        for file in files {
            let shown = file
                .strip_prefix(&base)
                .expect("inside")
                .display()
                .to_string();
            let text = fs::read_to_string(&file).expect("readable source");
            let lines = text
                .lines()
                .take_while(|l| l.trim() != "#[cfg(test)]")
                .count();
            if lines > 800 && !shown.contains("generated") {
                long.push(format!("{shown}: {lines} lines"));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Every dependency is pinned in one place: crates only say `workspace = true`.
#[test]
fn dependencies_are_pinned_in_the_workspace_only() {
    let mut found = Vec::new();
    for krate in ["model", "cluster", "proto", "agent", "aggregator", "tests"] {
        let text = fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
            } else if inside
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("workspace")
            {
                found.push(format!("{krate}: {line}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The quoted words of a list in deny.toml.
fn deny_list(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    text.lines()
        .skip_while(|l| *l != format!("{name} = ["))
        .skip(1)
        .take_while(|l| *l != "]")
        .filter(|l| !l.trim().starts_with('#'))
        .filter_map(|l| l.split('"').nth(1).map(str::to_string))
        .collect()
}

/// Is a licence expression satisfied by what is allowed? Brackets are not nested in practice.
fn licensed(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut flat = String::new();
    let mut rest = expression.as_str();
    // What stands in brackets first: it becomes a word that is allowed, or one that is not.
    while let Some((before, after)) = rest.split_once('(') {
        let Some((inner, tail)) = after.split_once(')') else {
            return false;
        };
        flat.push_str(before);
        flat.push_str(match (licensed(inner, allowed), allowed.first()) {
            (true, Some(word)) => word,
            _ => "nothing",
        });
        rest = tail;
    }
    flat.push_str(rest);
    // AND binds tighter than OR (SPDX 2.3, annex D).
    flat.split(" OR ").any(|one| {
        one.split(" AND ")
            .all(|l| allowed.iter().any(|a| a == l.trim()))
    })
}

/// What deny.toml says holds also where cargo-deny is not installed: sources, licences, bans.
#[test]
fn dependencies_come_from_the_registry_under_allowed_licences() {
    let allowed = deny_list("allow");
    let banned = deny_list("deny");
    for word in ["aws-lc-sys", "openssl-sys"] {
        assert!(banned.iter().any(|b| b == word), "deny.toml bans {word}");
    }
    assert!(licensed("(MIT OR GPL-3.0) AND MIT", &allowed));
    assert!(!licensed("MIT AND GPL-3.0", &allowed));
    assert!(!licensed("(GPL-3.0 OR AGPL-3.0) AND MIT", &allowed));
    // Only what is built here: crates of other platforms were never fetched on a fresh machine.
    let version = std::process::Command::new("rustc").arg("-vV").output();
    let version = String::from_utf8(version.expect("rustc runs").stdout).expect("text");
    let host = version.lines().find_map(|l| l.strip_prefix("host: "));
    let out = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--offline",
            "--locked",
            "--all-features",
            "--format-version=1",
            "--filter-platform",
            host.expect("rustc names its host"),
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let mut found = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        // The workspace's own have no source.
        if let Some(source) = package["source"].as_str()
            && source != "registry+https://github.com/rust-lang/crates.io-index"
        {
            found.push(format!("{name} comes from {source}"));
        }
        let license = package["license"].as_str().unwrap_or_default();
        if !licensed(license, &allowed) {
            found.push(format!("{name} has the licence {license:?}"));
        }
        if banned.iter().any(|b| b == name) {
            found.push(format!("{name} is banned"));
        }
    }
    assert!(
        packages.len() > 100,
        "{} packages are not all",
        packages.len()
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
}

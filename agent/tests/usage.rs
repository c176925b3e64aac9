//! The built program, where it needs no right and no cluster: exit codes, messages, no crash.

#![expect(
    clippy::disallowed_types,
    reason = "the agent runs no program; its tests do"
)]

use std::path::Path;
use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vipwitness-agent"))
        .args(arguments)
        .env_remove("NODE_NAME")
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

fn refused(arguments: &[&str], says: &str) {
    let output = agent(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{arguments:?}: {text}");
    assert!(text.contains(says), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}], selector: {app: web}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.5]}]
"#;

#[test]
fn wrong_usage_is_64() {
    let dir = tempfile::tempdir().unwrap();
    let web = write(dir.path(), "web.yaml", WEB);
    refused(&[], "Usage");
    refused(&["bogus"], "bogus");
    refused(&["check", "--manifests", &web], "--node");
    refused(
        &["check", "--node", "Not A Name", "--manifests", &web],
        "not the name of a Node",
    );
    refused(
        &[
            "check",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--wait",
            "soon",
        ],
        "not a duration",
    );
    refused(
        &[
            "check",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--proxy-version",
            "x",
        ],
        "not a version",
    );
    refused(
        &[
            "check",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--output",
            "xml",
        ],
        "xml",
    );
    refused(
        &[
            "check",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--kubeconfig",
            "k",
        ],
        "cannot be used",
    );
    refused(
        &[
            "table",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--side",
            "both",
        ],
        "both",
    );
    refused(&["check", "--node", "n1"], "no way to the API server");
    refused(
        &[
            "check",
            "--node",
            "n1",
            "--kubeconfig",
            "/nonexistent/config",
        ],
        "/nonexistent/config",
    );
    assert_eq!(agent(&["--help"]).status.code(), Some(0));
}

#[test]
fn files_that_cannot_be_used_are_64_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let web = write(dir.path(), "web.yaml", WEB);
    let check = |file: &str, says: &str| {
        refused(&["check", "--node", "n1", "--manifests", file], says);
        refused(&["table", "--node", "n1", "--manifests", file], says);
    };
    check(
        &write(dir.path(), "bad.yaml", "a: ["),
        "bad.yaml: document 1 is not YAML",
    );
    check(
        &write(dir.path(), "prose.yaml", "<html>\u{1b}[31m"),
        "prose.yaml: document 1 is not YAML",
    );
    check("/nonexistent", "/nonexistent");
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: web}]}\n";
    check(
        &write(dir.path(), "object.yaml", bad),
        "Service x: spec.ports[0].port",
    );
    let config = write(dir.path(), "proxy.conf", "mode: userspace\n");
    refused(
        &[
            "check",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--kube-proxy-config",
            &config,
        ],
        "userspace",
    );
    let hostile = format!(
        "kind: {}\n",
        "\u{7}".escape_default().to_string().repeat(300)
    );
    let output = agent(&[
        "check",
        "--node",
        "n1",
        "--manifests",
        &write(dir.path(), "h.yaml", &hostile),
    ]);
    assert!(
        !output.stderr.contains(&7u8),
        "a control character reached the terminal"
    );
}

/// What is desired needs no right and no kernel.
#[test]
fn the_desired_table_of_manifests() {
    let dir = tempfile::tempdir().unwrap();
    let web = write(dir.path(), "web.yaml", WEB);
    let config = write(
        dir.path(),
        "proxy.yaml",
        "mode: nftables\nclusterCIDR: 10.244.0.0/16\n",
    );
    let output = agent(&[
        "table",
        "--node",
        "n1",
        "--manifests",
        &web,
        "--side",
        "desired",
        "--output",
        "json",
        "--kube-proxy-config",
        &config,
        "--proxy-version",
        "1.34",
        // Whatever runs on the machine of the test is not asked.
        "--proxy-metrics",
        "127.0.0.1:1",
        "--proxy-healthz",
        "127.0.0.1:1",
    ]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let row = rows
        .iter()
        .find(|r| r["frontend"] == "10.96.0.10:80/TCP" && r["source"] == "pod")
        .unwrap_or_else(|| panic!("{json:#}"));
    let text = row.to_string();
    assert!(
        text.contains("10.244.1.5:8080") && text.contains("shop/web:http"),
        "{text}"
    );
}

/// The kernel does not let the program look: that is never an empty table.
#[test]
fn without_the_right_to_read_nothing_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let web = write(dir.path(), "web.yaml", WEB);
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
        .arg(env!("CARGO_BIN_EXE_vipwitness-agent"))
        .args([
            "check",
            "--node",
            "n1",
            "--manifests",
            &web,
            "--wait",
            "1s",
            "--output",
            "json",
        ])
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: setpriv is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.contains("setpriv:") {
        eprintln!("skipped: {text}");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["judged"]["pairs"], 0, "{json:#}");
}

//! `deploy/chart`: the plain manifests of `deploy/` are rendered from it, and an API server takes whatever it
//! renders.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cache::{self, Version};
use crate::laboratory::Laboratory;
use crate::{agents, command};

/// Templates that are committed as plain manifests, of the same name, in `deploy/`.
const RENDERED: [&str; 2] = ["agent.yaml", "aggregator.yaml"];

/// The chart.
fn folder() -> PathBuf {
    cache::workspace().join("deploy/chart")
}

/// What `helm template` gives, by default values and those of `--set`.
fn template(flags: &[&str]) -> Result<String> {
    let mut helm = Command::new(cache::helm()?);
    helm.args(["template", "vipwitness"])
        .arg(folder())
        .args(["--namespace", "vipwitness"])
        .args(["--kube-version", Version::V1_34.full()])
        .args(flags);
    command::output(&mut helm)
}

/// One template as the plain manifest that it becomes.
fn plain(name: &str) -> Result<String> {
    let text = template(&["--show-only", &format!("templates/{name}")])?;
    let mut out =
        String::from("# Rendered from deploy/chart by `cargo lab chart`: change it there.\n");
    let mut lines = text.lines().skip_while(|line| *line == "---");
    out.extend(
        lines
            .by_ref()
            .filter(|line| !line.starts_with("# Source: "))
            .flat_map(|line| [line, "\n"]),
    );
    Ok(out)
}

/// Writes the plain manifests.
pub fn write() -> Result<()> {
    for name in RENDERED {
        let path = cache::workspace().join("deploy").join(name);
        std::fs::write(&path, plain(name)?)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The plain manifests are what the chart renders; every switch of the chart renders what an API server takes, save
/// the Prometheus Operator's kinds, which it does not know; and the schema refuses what cannot be meant.
pub(crate) fn chart_is_the_manifests(laboratory: &mut Laboratory) -> Result<String> {
    for name in RENDERED {
        let committed = std::fs::read_to_string(cache::workspace().join("deploy").join(name))?;
        ensure!(
            committed == plain(name)?,
            "deploy/{name} is not what the chart renders: `cargo lab chart` writes it"
        );
    }
    let variants: [&[&str]; 3] = [
        &[],
        &[
            "--set=podMonitor.enabled=true,prometheusRule.enabled=true,dashboards.enabled=true",
            "--set=podMonitor.labels.release=monitoring,prometheusRule.labels.release=monitoring",
            "--set-json=networkPolicy.agentCidrs=[\"10.77.0.0/16\",\"fd77::/64\"]",
            "--set-json=networkPolicy.scrapeFrom=[{\"namespaceSelector\":{\"matchLabels\":{\"a\":\"b\"}}}]",
            "--set-json=images.pullSecrets=[\"registry\"]",
            "--set=images.agent.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "--set-json=agent.extraArgs=[\"--cpu-budget=5\"]",
            "--set-json=aggregator.tolerations=[{\"operator\":\"Exists\"}]",
        ],
        &[
            "--set=aggregator.replicas=1,networkPolicy.enabled=false,podDisruptionBudget.enabled=false",
        ],
    ];
    let namespace = "/api/v1/namespaces/vipwitness";
    if laboratory.cluster.api.find(namespace)?.is_none() {
        laboratory.cluster.create_namespace("vipwitness")?;
    }
    let mut taken = 0;
    let mut operators = Vec::new();
    for flags in variants {
        let text = template(flags)?;
        let objects = agents::documents(&text).with_context(|| format!("{flags:?}"))?;
        ensure!(objects.len() >= 9, "{flags:?} renders {}", objects.len());
        for object in objects {
            if object["apiVersion"] == "monitoring.coreos.com/v1" {
                operators.push(object);
            } else {
                laboratory.cluster.api.dry_run(&object)?;
                taken += 1;
            }
        }
    }
    operators_are_right(&operators)?;
    for wrong in [
        "--set=aggregator.replica=3",
        "--set=aggregator.replicas=0",
        "--set=agent.extraArgs={cpu-budget}",
        "--set=images.agent.digest=latest",
        "--set=networkPolicy.agentCidrs={nodes}",
    ] {
        if template(&[wrong]).is_ok() {
            bail!("the schema lets {wrong} through");
        }
    }
    let mut lint = Command::new(cache::helm()?);
    lint.args(["lint", "--strict", "--kube-version", Version::V1_34.full()]);
    command::output(lint.arg(folder()))?;
    Ok(format!(
        "{} manifests are rendered from the chart; the API server takes {taken} objects of {} sets of values",
        RENDERED.len(),
        variants.len()
    ))
}

/// The PodMonitor keeps the labels of the series, and the PrometheusRule is the rules file.
fn operators_are_right(objects: &[Value]) -> Result<()> {
    let of = |kind: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind);
        found.with_context(|| format!("the chart renders no {kind}"))
    };
    let endpoint = &of("PodMonitor")?["spec"]["podMetricsEndpoints"][0];
    ensure!(
        endpoint["honorLabels"] == true && endpoint["port"] == "scrape",
        "{endpoint:#}"
    );
    let file = std::fs::read_to_string(crate::monitoring::rules_file())?;
    let file: Value = serde_yaml_ng::from_str(&file)?;
    let spec = &of("PrometheusRule")?["spec"];
    ensure!(*spec == file, "the PrometheusRule is not the rules file");
    Ok(())
}

//! kube-proxy's own sync time on a large node, with the agent beside it and without.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Size;
use super::inside::median;
use super::report::{Report, Target};
use crate::agents::{Agent, Programs, Source, Spec};
use crate::api;
use crate::cluster::User;
use crate::http;
use crate::laboratory::{Laboratory, Station};
use crate::proxy::METRICS;
use crate::wait;

const NAMESPACE: &str = "bench";
/// Syncs with, and as many without, by turns.
const SYNCS: usize = 20;
/// Thousands of Services, posted and programmed for the first time.
const FIRST: Duration = Duration::from_secs(600);
/// One change of one Service, until it was synced.
const SYNCED: Duration = Duration::from_secs(120);

/// Measures both modes over nf_tables, one after the other.
pub(super) fn measure(agent: &Path, size: &Size, report: &mut Report) -> Result<()> {
    let mut laboratory = Laboratory::start_small()?;
    let programs = Programs {
        agent: agent.to_path_buf(),
        aggregator: agent.to_path_buf(),
    };
    // What is not measured would only take time from what is.
    laboratory
        .stations
        .retain(|station| station.proxy.spec().mode.iptables_backend() != Some("legacy"));
    laboratory.cluster.create_namespace(NAMESPACE)?;
    let objects: Vec<Value> = (0..size.services)
        .flat_map(|n| service(n, size.endpoints))
        .collect();
    for some in objects.chunks(1_000) {
        laboratory.cluster.api.create_all(some)?;
    }
    let words = [format!("{NAMESPACE}/s{}", size.services - 1)];
    laboratory.wait_programmed(&words, FIRST)?;
    let stations = laboratory.stations.len();
    for at in 0..stations {
        for (other, station) in laboratory.stations.iter().enumerate() {
            if other != at {
                station.proxy.freeze()?;
            }
        }
        let measured = one(&laboratory, at, &programs, size);
        for (other, station) in laboratory.stations.iter().enumerate() {
            if other != at {
                station.proxy.thaw()?;
            }
        }
        let (without, with) = measured?;
        let name = laboratory.stations[at].node.name();
        report.line(
            &format!("kube-proxy's sync, agent beside it ({name})"),
            with / without,
            "x without",
            Target::AtMost(1.15),
            &format!("median {with:.0} ms with, {without:.0} ms without, {SYNCS} syncs each"),
        );
    }
    Ok(())
}

fn one(laboratory: &Laboratory, at: usize, programs: &Programs, size: &Size) -> Result<(f64, f64)> {
    let station = &laboratory.stations[at];
    let mut spec = Spec::new(Source::Kubeconfig(
        laboratory.cluster.kubeconfig(User::Admin)?,
    ));
    spec.aggregator.clear();
    let mut agent = Agent::start(programs, &station.node, &spec)?;
    // Its first reading is not what is compared.
    let state = agent.state().join("agent.log");
    agent.process().until("a first pass", FIRST, || {
        let log = std::fs::read_to_string(&state)?;
        Ok(log.contains("judged pairs").then_some(()))
    })?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for number in 0..2 * SYNCS {
        let beside = number % 2 == 0;
        agent
            .process()
            .signal(if beside { libc::SIGCONT } else { libc::SIGSTOP })?;
        let took = sync(laboratory, station, number % size.services, number)?;
        if beside { &mut with } else { &mut without }.push(took);
    }
    agent.process().signal(libc::SIGCONT)?;
    Ok((median(without), median(with)))
}

/// Changes one Service; how long kube-proxy's sync of it took, milliseconds.
fn sync(laboratory: &Laboratory, station: &Station, service: usize, number: usize) -> Result<f64> {
    let (count, sum) = syncs(station)?;
    let mut slice = self::service(service, 1 + number % 5);
    let slice = slice.pop().context("a slice")?;
    let endpoints = json!({"endpoints": slice["endpoints"]});
    laboratory
        .cluster
        .api
        .patch(&api::path(&slice)?, &endpoints)?;
    let (count, sum) = wait::until("a sync", SYNCED, || {
        let (now, total) = syncs(station)?;
        Ok((now > count).then_some((now - count, total - sum)))
    })?;
    Ok(sum * 1_000.0 / count)
}

/// Syncs of IPv4 so far, and the seconds that they took.
fn syncs(station: &Station) -> Result<(f64, f64)> {
    let body = http::get_in(station.node.netns(), METRICS, "/metrics")?.body;
    let value = |what: &str| -> Option<f64> {
        let name = format!("kubeproxy_sync_proxy_rules_duration_seconds_{what}");
        let mut lines = body.lines().filter(|l| l.starts_with(&name));
        let line = lines.find(|l| !l.contains("IPv6"))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    match (value("count"), value("sum")) {
        (Some(count), Some(sum)) => Ok((count, sum)),
        _ => bail!("kube-proxy tells nothing of its syncs"),
    }
}

/// A Service and its slice.
fn service(number: usize, endpoints: usize) -> Vec<Value> {
    let name = format!("s{number}");
    let endpoints: Vec<Value> = (0..endpoints)
        .map(|e| {
            let n = number * 16 + e;
            json!({
                "addresses": [format!("10.{}.{}.{}", 128 + n / 62_500, n / 250 % 250, 1 + n % 250)],
                "nodeName": "elsewhere",
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        })
        .collect();
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }),
    ]
}

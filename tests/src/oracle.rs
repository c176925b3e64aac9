//! The real kube-proxy as the oracle: hundreds of generated Services, nine kube-proxies side by
//! side, and not one finding.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agents::Asked;
use crate::cleanup::Folder;
use crate::coverage::Coverage;
use crate::generate::{self, Generated, NAMESPACES, Place};
use crate::laboratory::{Laboratory, Station, patch_all};
use crate::proxy;

/// How long nine kube-proxies may take to program hundreds of Services on a busy machine.
const PROGRAMMED_LIMIT: Duration = Duration::from_secs(180);
/// Of all pairs of frontend and source, so many have to be judged.
const JUDGED_SHARE: f64 = 0.999;
/// Of the judged pairs, at most so many against several legitimate answers.
const MULTI_SHARE: f64 = 0.02;
/// `check` commands at once: as many as a small machine has cores.
const PARALLEL: usize = 2;
/// Findings of one node that are printed before the rest is only counted.
const SHOWN: usize = 12;

/// Endpoints of the Service that is posted last, by which the rules show that all is programmed.
const MARKER_V4: &str = "10.244.254.254";
const MARKER_V6: &str = "fd00:244::fefe:fefe";

/// A number from the environment, for trying other seeds and sizes.
pub(crate) fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(otherwise)
}

/// Where the generated Services are: posts them unless an earlier check did, and waits until every
/// kube-proxy has programmed them.
pub fn prepare(laboratory: &mut Laboratory) -> Result<Generated> {
    let places: Vec<Place> = laboratory.nodes().into_iter().map(Place::of).collect();
    let seed = setting("LAB_SEED", generate::SEED);
    let count = usize::try_from(setting("LAB_SERVICES", 500))?;
    let generated = generate::generate(seed, count, &places);
    let first = format!("/api/v1/namespaces/{}", NAMESPACES[0]);
    if laboratory.cluster.api.find(&first)?.is_some() {
        return Ok(generated);
    }
    println!(
        "\nseed {seed}: {count} Services, {} slices",
        generated.slices.len()
    );
    let start = Instant::now();
    for namespace in NAMESPACES {
        laboratory.cluster.create_namespace(namespace)?;
    }
    post(laboratory, &generated.services)?;
    patch_all(&laboratory.cluster.api, generated.statuses.clone())?;
    post(laboratory, &generated.slices)?;
    post(laboratory, &marker())?;
    let posted = start.elapsed();
    laboratory.wait_programmed(
        &[MARKER_V4.to_owned(), MARKER_V6.to_owned()],
        PROGRAMMED_LIMIT,
    )?;
    for Station { proxy, node, .. } in &mut laboratory.stations {
        proxy.wait_synced(node, PROGRAMMED_LIMIT)?;
    }
    println!(
        "posted in {:.1} s, programmed on every node after {:.1} s",
        posted.as_secs_f32(),
        start.elapsed().as_secs_f32()
    );
    Ok(generated)
}

/// Creates objects, and names every one that the API server did not take.
fn post(laboratory: &Laboratory, objects: &[Value]) -> Result<()> {
    post_to(&laboratory.cluster.api, objects)
}

/// The same to any API server.
pub(crate) fn post_to(api: &crate::api::Api, objects: &[Value]) -> Result<()> {
    let calls: Result<Vec<crate::api::Call>> = objects
        .iter()
        .map(|object| {
            Ok(crate::api::Call {
                method: hyper::Method::POST,
                path: crate::api::collection(object)?,
                body: Some(object.clone()),
            })
        })
        .collect();
    let answers = api.call_all(calls?);
    let refused: Vec<String> = objects
        .iter()
        .zip(answers)
        .filter_map(|(object, answer)| {
            let error = answer.err()?;
            Some(format!("{}: {error:#}", object["metadata"]["name"]))
        })
        .collect();
    if !refused.is_empty() {
        let shown = refused[..refused.len().min(SHOWN)].join("\n");
        bail!("the API server refused {} objects:\n{shown}", refused.len());
    }
    Ok(())
}

/// A watch gives objects in the order in which they were written, so once these are programmed,
/// everything posted before them was seen.
pub(crate) fn marker() -> Vec<Value> {
    let namespace = NAMESPACES[0];
    let slice = |family: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("marker-{}", family.to_lowercase()), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": "marker"},
            },
            "addressType": family, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        })
    };
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "marker", "namespace": namespace},
            "spec": {
                "clusterIP": "10.96.250.250", "clusterIPs": ["10.96.250.250", "fd00:96::fafa"],
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": 80}],
            },
        }),
        slice("IPv4", MARKER_V4),
        slice("IPv6", MARKER_V6),
    ]
}

/// Removes what [`prepare`] posted.
pub fn clear(laboratory: &Laboratory) -> Result<()> {
    for namespace in NAMESPACES {
        laboratory.empty_namespace(namespace)?;
        laboratory
            .cluster
            .api
            .delete(&format!("/api/v1/namespaces/{namespace}"))?;
    }
    Ok(())
}

/// One node's answer.
struct Line {
    node: String,
    asked: Asked,
    manifests: Asked,
    seconds: f32,
}

/// The check: coverage, then every node through the API server and through manifests.
pub fn proxies_are_the_oracle(laboratory: &mut Laboratory) -> Result<String> {
    prepare(laboratory)?;
    let objects = every_object(laboratory)?;
    let places: Vec<Place> = laboratory.nodes().into_iter().map(Place::of).collect();
    let of_kind = |kind: &str| -> Vec<Value> {
        objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .filter(|object| {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                NAMESPACES.contains(&namespace)
            })
            .cloned()
            .collect()
    };
    let coverage = Coverage::count(&of_kind("Service"), &of_kind("EndpointSlice"), &places);
    println!("{}", coverage.table());

    let folder = Folder::create("oracle")?;
    let manifests = folder.join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(&manifests, serde_json::to_vec(&list)?)?;
    let lines = ask_all(laboratory, &folder, &manifests)?;

    let mut wrong = Vec::new();
    if let Err(error) = coverage.enough() {
        wrong.push(format!("coverage: {error:#}"));
    }
    let mut total = 0;
    println!(
        "{:<18} {:>4} {:>8} {:>8} {:>6} {:>6} {:>8} {:>8} {:>6} | {:>4} {:>8} {:>8}",
        "node",
        "exit",
        "pairs",
        "judged",
        "multi",
        "unkn.",
        "not comp",
        "findings",
        "s",
        "exit",
        "pairs",
        "findings"
    );
    for line in &lines {
        let judged = &line.asked.json["judged"];
        let number = |name: &str| judged[name].as_u64().unwrap_or_default();
        let (pairs, unknown, aside) =
            (number("pairs"), number("unknown"), number("not_comparable"));
        let all = (pairs + unknown).max(1);
        let share = pairs as f64 / all as f64;
        let multi = number("multi_answer") as f64 / pairs.max(1) as f64;
        total += pairs;
        println!(
            "{:<18} {:>4} {:>8} {:>7.2}% {:>5.2}% {:>6} {:>8} {:>8} {:>6.1} | {:>4} {:>8} {:>8}",
            line.node,
            line.asked.code,
            pairs,
            share * 100.0,
            multi * 100.0,
            unknown,
            aside,
            weighty(&line.asked).len(),
            line.seconds,
            line.manifests.code,
            line.manifests.json["judged"]["pairs"],
            weighty(&line.manifests).len(),
        );
        for reasons in ["unknown_reasons", "not_comparable_reasons"] {
            if judged[reasons]
                .as_object()
                .is_some_and(|map| !map.is_empty())
            {
                println!("    {reasons}: {}", judged[reasons]);
            }
        }
        wrong.extend(complaints(line, share, multi));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(format!(
        "{total} pairs of frontend and source judged on {} nodes, no finding, through the API server and through manifests",
        lines.len()
    ))
}

/// What of one node's answers does not hold.
fn complaints(line: &Line, share: f64, multi: f64) -> Vec<String> {
    let mut wrong = Vec::new();
    let judged = &line.asked.json["judged"];
    if judged["pairs"].as_u64().unwrap_or_default() == 0 {
        wrong.push(format!(
            "{}: nothing was judged\n{}",
            line.node, line.asked.stderr
        ));
    }
    for (how, asked) in [("API server", &line.asked), ("manifests", &line.manifests)] {
        let list = ["findings", "converging"].map(|name| (name, serious(asked, name)));
        if asked.code != 0 {
            wrong.push(format!(
                "{} ({how}): check gives {}: {} {}",
                line.node,
                asked.code,
                asked.json["verdict"],
                asked.stderr.trim()
            ));
        }
        for (name, list) in list {
            for finding in list.iter().take(SHOWN) {
                wrong.push(format!("{} ({how}) {name}: {}", line.node, brief(finding)));
            }
            if list.len() > SHOWN {
                wrong.push(format!(
                    "{} ({how}) {name}: and {} more",
                    line.node,
                    list.len() - SHOWN
                ));
            }
        }
    }
    if share < JUDGED_SHARE {
        wrong.push(format!(
            "{}: only {:.3} % of pairs judged",
            line.node,
            share * 100.0
        ));
    }
    if multi > MULTI_SHARE {
        wrong.push(format!(
            "{}: {:.2} % against several answers",
            line.node,
            multi * 100.0
        ));
    }
    if judged["unknown_reasons"]["unknown_expression"]
        .as_u64()
        .unwrap_or_default()
        > 0
    {
        wrong.push(format!(
            "{}: unknown expressions in kube-proxy's own rules",
            line.node
        ));
    }
    let pairs = |asked: &Asked| asked.json["judged"]["pairs"].as_u64();
    if pairs(&line.asked) != pairs(&line.manifests) {
        wrong.push(format!(
            "{}: {:?} pairs through the API server, {:?} through manifests",
            line.node,
            pairs(&line.asked),
            pairs(&line.manifests)
        ));
    }
    if weighty(&line.asked) != weighty(&line.manifests) {
        wrong.push(format!("{}: other findings through manifests", line.node));
    }
    wrong
}

/// A finding in one line.
pub(crate) fn brief(finding: &Value) -> String {
    let text = |name: &str| match &finding[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!(
        "{} {} {} {} {}: {}",
        text("kind"),
        text("service"),
        text("frontend"),
        text("sources"),
        text("backend"),
        text("says")
    )
}

/// Entries of `findings` or `converging` of severity warning or above.
pub(crate) fn serious(asked: &Asked, list: &str) -> Vec<Value> {
    asked.json[list]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finding| finding["severity"] != "info")
        .cloned()
        .collect()
}

/// Findings of severity warning or above, without what differs from run to run.
fn weighty(asked: &Asked) -> BTreeSet<String> {
    serious(asked, "findings")
        .iter()
        .map(|finding| {
            ["kind", "service", "frontend", "sources", "backend"]
                .map(|name| finding[name].to_string())
                .join(" ")
        })
        .collect()
}

/// Asks every node both ways, [`PARALLEL`] at a time.
fn ask_all(
    laboratory: &Laboratory,
    folder: &Folder,
    manifests: &std::path::Path,
) -> Result<Vec<Line>> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Line)>> {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(station) = laboratory.stations.get(index) else {
                return Ok(done);
            };
            let line = ask_one(laboratory, folder, manifests, station)
                .with_context(|| format!("on {}", station.node.name()))?;
            done.push((index, line));
        }
    };
    let mut lines: Vec<(usize, Line)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    lines.sort_by_key(|(index, _)| *index);
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

fn ask_one(
    laboratory: &Laboratory,
    folder: &Folder,
    manifests: &std::path::Path,
    station: &Station,
) -> Result<Line> {
    let start = Instant::now();
    let asked = laboratory.ask(station, &["check", "--wait", "90s"])?;
    let seconds = start.elapsed().as_secs_f32();
    let configuration = folder.join(format!("{}.configz", station.node.name()));
    std::fs::write(&configuration, proxy::configz(&station.node)?)?;
    let version = station.proxy.spec().version.minor();
    let manifests = laboratory.programs()?.ask(
        station.node.netns(),
        &[
            "check",
            "--node",
            station.node.name(),
            "--manifests",
            &manifests.to_string_lossy(),
            "--kube-proxy-config",
            &configuration.to_string_lossy(),
            "--proxy-version",
            version,
            "--wait",
            "90s",
        ],
    )?;
    Ok(Line {
        node: station.node.name().to_owned(),
        asked,
        manifests,
        seconds,
    })
}

/// Everything that an agent watches, as the API server has it, each with its apiVersion and kind.
fn every_object(laboratory: &Laboratory) -> Result<Vec<Value>> {
    objects_of(&laboratory.cluster.api)
}

/// The same of any API server.
pub(crate) fn objects_of(api: &crate::api::Api) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (path, version, kind) in [
        ("/api/v1/services", "v1", "Service"),
        (
            "/apis/discovery.k8s.io/v1/endpointslices",
            "discovery.k8s.io/v1",
            "EndpointSlice",
        ),
        ("/api/v1/nodes", "v1", "Node"),
        (
            "/apis/networking.k8s.io/v1/servicecidrs",
            "networking.k8s.io/v1",
            "ServiceCIDR",
        ),
    ] {
        let list = api.get(path)?;
        for item in list["items"].as_array().context("a list has items")? {
            let mut object = item.clone();
            object["apiVersion"] = json!(version);
            object["kind"] = json!(kind);
            objects.push(object);
        }
    }
    Ok(objects)
}

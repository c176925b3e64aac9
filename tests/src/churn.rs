//! Churn: endpoints change many times a second over hundreds of Services, kube-proxies follow, and
//! no agent reports a difference that is none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hyper::Method;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::api::{self, Call};
use crate::faults::{agents, findings};
use crate::laboratory::Laboratory;
use crate::oracle::{self, brief, setting};

/// Changes a second.
const RATE: u64 = 20;
/// Of all pairs of frontend and source, so many are judged in every pass.
const JUDGED_SHARE: f64 = 0.99;

/// What the passes of one node were like.
#[derive(Debug, Default)]
struct Passes {
    last: Value,
    count: u64,
    least_judged: f64,
    most_converging: u64,
    pairs: u64,
}

/// The check: `LAB_CHURN_SECONDS` seconds, by default 180.
pub fn churn_is_not_drift(laboratory: &mut Laboratory) -> Result<String> {
    let generated = oracle::prepare(laboratory)?;
    agents(laboratory)?;
    let seed = setting("LAB_SEED", generated.seed);
    let time = Duration::from_secs(setting("LAB_CHURN_SECONDS", 180));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Slices that Services of kube-proxy use, with an endpoint at least.
    let slices: Vec<&Value> = generated
        .slices
        .iter()
        .filter(|slice| slice["addressType"] != "FQDN")
        .filter(|slice| {
            slice["endpoints"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        })
        .collect();
    let nodes: Vec<String> = laboratory
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    let mut passes: BTreeMap<String, Passes> = nodes
        .iter()
        .map(|node| {
            (
                node.clone(),
                Passes {
                    least_judged: 1.0,
                    ..Passes::default()
                },
            )
        })
        .collect();
    let mut wrong: Vec<String> = Vec::new();
    println!(
        "\nseed {seed}: {RATE} changes a second for {} s",
        time.as_secs()
    );
    let start = Instant::now();
    let (mut sent, mut late) = (0, Duration::ZERO);
    while start.elapsed() < time {
        let due = u64::try_from(start.elapsed().as_millis())? * RATE / 1000;
        let calls: Vec<Call> = (sent..due)
            .filter_map(|_| {
                let slice = slices.choose(&mut random)?;
                Some(Call {
                    method: Method::PATCH,
                    path: api::path(slice).ok()?,
                    body: Some(json!({"endpoints": changed(&mut random, &slice["endpoints"])})),
                })
            })
            .collect();
        sent = due;
        let before = Instant::now();
        for answer in laboratory.cluster.api.call_all(calls) {
            answer?;
        }
        late = late.max(before.elapsed());
        for node in &nodes {
            let Some(seen) = passes.get_mut(node) else {
                continue;
            };
            watch(laboratory, node, seen, &mut wrong)?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{sent} changes; the slowest batch took {:.1} s",
        late.as_secs_f32()
    );
    println!(
        "{:<18} {:>7} {:>8} {:>13} {:>16}",
        "node", "passes", "pairs", "least judged", "most converging"
    );
    for (node, seen) in &passes {
        println!(
            "{node:<18} {:>7} {:>8} {:>12.2}% {:>7} ({:.2}%)",
            seen.count,
            seen.pairs,
            seen.least_judged * 100.0,
            seen.most_converging,
            seen.most_converging as f64 * 100.0 / seen.pairs.max(1) as f64
        );
        if seen.least_judged < JUDGED_SHARE {
            wrong.push(format!(
                "{node}: {:.2} % judged in a pass",
                seen.least_judged * 100.0
            ));
        }
        if seen.count < 3 {
            wrong.push(format!("{node}: only {} passes", seen.count));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    oracle::clear(laboratory)?;
    Ok(format!(
        "{sent} changes in {} s, no finding on {} nodes",
        time.as_secs(),
        nodes.len()
    ))
}

/// Takes in a node's newest report.
fn watch(
    laboratory: &Laboratory,
    node: &str,
    seen: &mut Passes,
    wrong: &mut Vec<String>,
) -> Result<()> {
    let report = laboratory.aggregated(&format!("/nodes/{node}"))?;
    let stamp = json!([report["at"], report["pass"]]);
    if stamp != seen.last {
        seen.last = stamp;
        seen.count += 1;
        let number = |name: &str| report["coverage"][name].as_u64().unwrap_or_default();
        let all = number("pairs") + number("unknown");
        seen.pairs = seen.pairs.max(number("pairs"));
        seen.least_judged = seen
            .least_judged
            .min(number("pairs") as f64 / all.max(1) as f64);
        seen.most_converging = seen.most_converging.max(number("converging"));
    }
    for finding in findings(laboratory, node)? {
        let reason = format!("{node}: {}", brief(&finding));
        if !wrong.contains(&reason) && wrong.len() < 30 {
            wrong.push(reason);
        }
    }
    Ok(())
}

/// The same endpoints with one taken away, made unready, or made to terminate; now and then as
/// they were generated.
fn changed(random: &mut ChaCha8Rng, endpoints: &Value) -> Value {
    let mut list = endpoints.as_array().cloned().unwrap_or_default();
    let index = random.random_range(0..list.len().max(1));
    match random.random_range(0..4) {
        0 if list.len() > 1 => {
            list.remove(index);
        }
        1 => {
            list[index]["conditions"] =
                json!({"ready": false, "serving": false, "terminating": false})
        }
        2 => {
            list[index]["conditions"] =
                json!({"ready": false, "serving": true, "terminating": true})
        }
        _ => (),
    }
    json!(list)
}

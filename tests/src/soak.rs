//! `cargo lab soak`: a small laboratory in which everything changes for as long as one likes: endpoints
//! come and go, are scaled, rolled over and flap, Services come and go, kube-proxies are restarted and
//! change their version, Nodes change their zone; and rules are damaged meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use hyper::Method;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::api::{self, Call};
use crate::cache::Version;
use crate::churn::{self, FAULT_LIMIT, Watching, changed, steadily};
use crate::faults::{self, DURING_CHURN, agents};
use crate::laboratory::Laboratory;
use crate::oracle;
use crate::proxy::{Proxy, Spec};

/// How long, how fast, and with which seed.
#[derive(Args, Debug, Clone, Copy)]
pub struct Soak {
    /// Minutes
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Changes of endpoints and Services a second
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// Where the changes start from
    #[arg(long, default_value_t = 20_251_125)]
    seed: u64,
}

/// Between two changes of a kube-proxy or a Node.
const SEGMENT: Duration = Duration::from_secs(90);
/// A kube-proxy that was restarted has synced within this.
const SYNC: Duration = Duration::from_secs(120);
/// Services that come and go, at most.
const COMING_AND_GOING: u64 = 40;

/// Runs it.
pub fn soak(how: Soak) -> Result<String> {
    let mut laboratory = Laboratory::start_small()?;
    let generated = oracle::prepare(&mut laboratory)?;
    faults::prepare(&mut laboratory)?;
    agents(&mut laboratory)?;
    let mut random = ChaCha8Rng::seed_from_u64(how.seed);
    println!(
        "\nseed {}: {} changes a second for {} min",
        how.seed, how.rate, how.minutes
    );
    let mut watching = Watching::new(&laboratory, FAULT_LIMIT);
    let mut change = Change {
        slices: generated
            .slices
            .iter()
            .filter(|slice| slice["addressType"] == "IPv4")
            .filter(|slice| slice["endpoints"].as_array().is_some_and(|l| !l.is_empty()))
            .cloned()
            .collect(),
        random: ChaCha8Rng::seed_from_u64(random.random()),
        made: Vec::new(),
        number: 0,
    };
    let end = Instant::now() + Duration::from_secs(how.minutes * 60);
    let mut round = 0;
    while Instant::now() < end {
        // One at a time, and each again after minutes only: what was wrong for more than a twentieth of
        // ten minutes is reported as recurring, although it is healed.
        let damage = DURING_CHURN[round % DURING_CHURN.len()];
        let mut coming = churn::lasting(&laboratory, &[damage])?;
        let left = end.saturating_duration_since(Instant::now());
        watching.segment(&laboratory, SEGMENT.min(left), &mut coming, |over| {
            steadily(&laboratory.cluster.api, how.rate, over, || change.next())
        })?;
        let at = random.random_range(0..laboratory.stations.len());
        println!("{}", between(&mut laboratory, at, round)?);
        round += 1;
    }
    watching.end()
}

/// What is done to one node between two segments.
fn between(laboratory: &mut Laboratory, at: usize, round: usize) -> Result<String> {
    let name = laboratory.stations[at].node.name().to_owned();
    let cluster = &laboratory.cluster;
    let station = &mut laboratory.stations[at];
    let says = match round % 3 {
        0 => {
            station.proxy.restart()?;
            format!("{name}: kube-proxy restarted")
        }
        1 => {
            let zone = ["a", "b", "c"][round / 3 % 3];
            let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
            cluster
                .api
                .patch(&format!("/api/v1/nodes/{name}"), &labels)?;
            format!("{name}: in zone {zone} now")
        }
        _ => {
            let all = Version::ALL;
            let now = station.proxy.spec().version;
            let next = all.iter().position(|v| *v == now).unwrap_or(0) + 1;
            let spec = Spec::new(all[next % all.len()], station.proxy.spec().mode);
            let says = format!("{name}: kube-proxy {} from now on", spec.version.minor());
            station.proxy.stop()?;
            station.proxy = Proxy::start(cluster, &station.node, spec)?;
            says
        }
    };
    station
        .proxy
        .wait_synced(&station.node, SYNC)
        .with_context(|| says.clone())?;
    Ok(says)
}

/// The next change of an object.
struct Change {
    slices: Vec<Value>,
    random: ChaCha8Rng,
    /// Services that came, by number.
    made: Vec<u64>,
    number: u64,
}

impl Change {
    fn next(&mut self) -> Option<Call> {
        match self.random.random_range(0..100) {
            0..4 => self.service(),
            4..12 => self.endpoints(|random, all| {
                // Scaled, down to nothing at times.
                let left = random.random_range(0..=all.len());
                all[..left].to_vec()
            }),
            12..24 => self.endpoints(|random, all| {
                // Rolled over: a new one is ready, an old one terminates.
                let mut all = all.to_vec();
                let at = random.random_range(0..all.len());
                let mut new = all[at].clone();
                let (a, b) = (random.random_range(200..220), random.random_range(1..250));
                new["addresses"] = json!([format!("10.244.{a}.{b}")]);
                all[at]["conditions"] =
                    json!({"ready": false, "serving": true, "terminating": true});
                if all.iter().all(|e| e["addresses"] != new["addresses"]) {
                    all.push(new);
                }
                all
            }),
            _ => {
                let slice = self.slices.choose(&mut self.random)?;
                patch(slice, changed(&mut self.random, &slice["endpoints"]))
            }
        }
    }

    fn endpoints(
        &mut self,
        how: impl FnOnce(&mut ChaCha8Rng, &[Value]) -> Vec<Value>,
    ) -> Option<Call> {
        let slice = self.slices.choose(&mut self.random)?;
        let all = slice["endpoints"].as_array()?;
        let endpoints = how(&mut self.random, all);
        patch(slice, json!(endpoints))
    }

    /// One comes, or the oldest goes. Some have no endpoint at all.
    fn service(&mut self) -> Option<Call> {
        let collection = "/api/v1/namespaces/faults/services";
        if self.made.len() as u64 >= COMING_AND_GOING || self.random.random_range(0..3) == 0 {
            if self.made.is_empty() {
                return None;
            }
            let number = self.made.remove(0);
            return Some(Call {
                method: Method::DELETE,
                path: format!("{collection}/soak-{number}"),
                body: None,
            });
        }
        self.number += 1;
        self.made.push(self.number);
        let kind = ["ClusterIP", "NodePort"][self.random.random_range(0..2)];
        Some(Call {
            method: Method::POST,
            path: collection.to_owned(),
            body: Some(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("soak-{}", self.number), "namespace": "faults"},
                "spec": {"type": kind, "ports": [{"port": 80, "targetPort": 8080}]},
            })),
        })
    }
}

fn patch(slice: &Value, endpoints: Value) -> Option<Call> {
    Some(Call {
        method: Method::PATCH,
        path: api::path(slice).ok()?,
        body: Some(json!({"endpoints": endpoints})),
    })
}

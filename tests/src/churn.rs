//! Churn: endpoints change many times a second over hundreds of Services, kube-proxies follow, and
//! no agent reports a difference that is none. Meanwhile rules are damaged: what kube-proxy does not
//! repair is found.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper::Method;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::api::{self, Api, Call};
use crate::faults::{self, DURING_CHURN, Damage, Fault, agents, findings, on_all};
use crate::faults_plant::Lasting;
use crate::laboratory::Laboratory;
use crate::oracle::{self, brief, setting};

/// Changes a second.
const RATE: u64 = 20;
/// Of all pairs of frontend and source, so many are judged in every pass.
const JUDGED_SHARE: f64 = 0.99;

/// Damage is planted from here on, one after the other; some time to see that nothing is reported.
const FIRST_FAULT: Duration = Duration::from_secs(20);
/// Damage is a finding, and healing clears it, within this: all that runs here shares two cores with
/// kube-proxies that sync without a pause. (Within 10 s where they do not: see [`crate::faults`].)
pub(crate) const FAULT_LIMIT: Duration = Duration::from_secs(30);
/// Time between two looks at whether kube-proxy has repaired it.
const LOOK: Duration = Duration::from_secs(1);
/// Whoever has not said so after this does not.
const FAULT_PATIENCE: Duration = Duration::from_secs(45);

/// A fault that is planted on all nodes.
struct Planted {
    fault: &'static Fault,
    since: Instant,
    /// When the rules were looked at last: that costs the machine more than the agents do.
    looked: Instant,
    /// By node, in the order of the stations.
    nodes: Vec<OnNode>,
    healed: Option<Instant>,
}

/// How it goes on one node.
struct OnNode {
    name: String,
    damage: Lasting,
    found: Option<Duration>,
    /// kube-proxy put it right itself.
    repaired: Option<Duration>,
    cleared: Option<Duration>,
}

impl Planted {
    fn on(laboratory: &Laboratory, fault: &'static Fault, damage: Vec<Lasting>) -> Result<Planted> {
        let mut nodes = Vec::new();
        for (station, damage) in laboratory.stations.iter().zip(damage) {
            // kube-proxy may write a rule anew between the look for it and its removal.
            let mut tries = 0;
            while let Err(error) = damage.plant(station) {
                tries += 1;
                if tries == 5 {
                    return Err(error);
                }
            }
            nodes.push(OnNode {
                name: station.node.name().to_owned(),
                damage,
                found: None,
                repaired: None,
                cleared: None,
            });
        }
        Ok(Planted {
            fault,
            since: Instant::now(),
            looked: Instant::now(),
            nodes,
            healed: None,
        })
    }

    /// Looks at all nodes once. True when there is nothing left to see.
    fn step(
        &mut self,
        laboratory: &Laboratory,
        limit: Duration,
        wrong: &mut Vec<String>,
    ) -> Result<bool> {
        let (fault, since) = (self.fault, self.since);
        let needed: Vec<bool> = {
            let look = self.healed.is_none() && self.looked.elapsed() > LOOK;
            if look {
                self.looked = Instant::now();
            }
            let nodes = &self.nodes;
            on_all(laboratory, |station| {
                let of = |n: &&OnNode| n.name == station.node.name();
                match nodes.iter().find(of) {
                    Some(n) if look && n.found.is_none() && n.repaired.is_none() => {
                        n.damage.is_needed(station)
                    }
                    _ => Ok(true),
                }
            })?
        };
        for (node, needed) in self.nodes.iter_mut().zip(needed) {
            let all = findings(laboratory, &node.name)?;
            let seen = all.iter().any(|finding| fault.expects(finding));
            if seen {
                node.found.get_or_insert(since.elapsed());
            }
            if self.healed.is_none() && !needed {
                node.repaired.get_or_insert(since.elapsed());
            }
            if (self.healed.is_some() || node.repaired.is_some()) && !seen {
                node.cleared
                    .get_or_insert(self.healed.unwrap_or(since).elapsed());
            } else if seen {
                node.cleared = None;
            }
        }
        let Some(healed) = self.healed else {
            let done = |n: &OnNode| n.found.is_some() || n.repaired.is_some();
            if self.nodes.iter().all(done) || since.elapsed() > FAULT_PATIENCE {
                let nodes = &self.nodes;
                on_all(laboratory, |station| {
                    let of = |n: &&OnNode| n.name == station.node.name();
                    match nodes.iter().find(of) {
                        Some(n) if n.damage.is_needed(station)? => n.damage.undo(station),
                        _ => Ok(()),
                    }
                })?;
                self.healed = Some(Instant::now());
            }
            return Ok(false);
        };
        let cleared = self.nodes.iter().all(|n| n.cleared.is_some());
        if !cleared && healed.elapsed() <= FAULT_PATIENCE {
            return Ok(false);
        }
        for node in &self.nodes {
            let how = match (node.found, node.repaired) {
                (Some(found), _) => format!("found after {:.1} s", found.as_secs_f32()),
                (None, Some(lasted)) => {
                    format!(
                        "repaired by kube-proxy within {:.1} s",
                        lasted.as_secs_f32()
                    )
                }
                (None, None) => "not found".to_owned(),
            };
            let cleared = match (node.found, node.cleared) {
                (None, _) => String::new(),
                (_, Some(time)) => format!(", cleared after {:.1} s", time.as_secs_f32()),
                (_, None) => ", not cleared".to_owned(),
            };
            println!("{:<24} {:<18} {how}{cleared}", fault.name, node.name);
            let late = |time: Option<Duration>| time.is_some_and(|t| t > limit);
            if (node.found.is_none() && node.repaired.is_none())
                || late(node.found)
                || (node.found.is_some() && (node.cleared.is_none() || late(node.cleared)))
            {
                wrong.push(format!("{}, {}: {how}{cleared}", fault.name, node.name));
            }
        }
        Ok(true)
    }

    /// Is the finding owed to this fault?
    fn explains(&self, node: &str, finding: &Value) -> bool {
        self.fault.expects(finding) && self.nodes.iter().any(|n| n.name == node)
    }
}

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
    faults::prepare(laboratory)?;
    agents(laboratory)?;
    let seed = setting("LAB_SEED", generated.seed);
    let time = Duration::from_secs(setting("LAB_CHURN_SECONDS", 180));
    println!(
        "\nseed {seed}: {RATE} changes a second for {} s",
        time.as_secs()
    );
    let mut watching = Watching::new(laboratory, FAULT_LIMIT);
    let mut coming = lasting(laboratory, &DURING_CHURN)?;
    let random = ChaCha8Rng::seed_from_u64(seed);
    watching.segment(laboratory, time, &mut coming, |over| {
        change(laboratory, &generated.slices, random, over)
    })?;
    if !coming.is_empty() {
        let seconds = time.as_secs();
        watching
            .wrong
            .push(format!("{seconds} s were too short for all faults"));
    }
    let says = watching.end()?;
    faults::clear(laboratory)?;
    oracle::clear(laboratory)?;
    Ok(says)
}

/// A damage made ready for every node.
pub(crate) type Coming = VecDeque<(&'static Fault, Vec<Lasting>)>;

/// Everything that can be planted while kube-proxies write.
pub(crate) fn lasting(laboratory: &Laboratory, of: &[Damage]) -> Result<Coming> {
    let mut coming = Coming::new();
    for &damage in of {
        let fault = Fault::of(damage).context("a line of the table of faults")?;
        coming.push_back((
            fault,
            on_all(laboratory, |station| Lasting::of(station, damage))?,
        ));
    }
    Ok(coming)
}

/// What is seen of all nodes while things change.
pub(crate) struct Watching {
    passes: BTreeMap<String, Passes>,
    pub(crate) wrong: Vec<String>,
    found: usize,
    repaired: usize,
    sent: u64,
    slowest: Duration,
    watched: Duration,
    /// Damage is a finding, and healing clears it, within this.
    limit: Duration,
}

impl Watching {
    pub(crate) fn new(laboratory: &Laboratory, limit: Duration) -> Watching {
        let whole = || Passes {
            least_judged: 1.0,
            ..Passes::default()
        };
        let nodes = laboratory.nodes().into_iter();
        Watching {
            passes: nodes
                .map(|node| (node.name().to_owned(), whole()))
                .collect(),
            wrong: Vec::new(),
            found: 0,
            repaired: 0,
            sent: 0,
            slowest: Duration::ZERO,
            watched: Duration::ZERO,
            limit,
        }
    }

    /// Looks at all nodes for `time`, while `write` changes things, and plants what is coming.
    pub(crate) fn segment(
        &mut self,
        laboratory: &Laboratory,
        time: Duration,
        coming: &mut Coming,
        write: impl FnOnce(&AtomicBool) -> Result<(u64, Duration)> + Send,
    ) -> Result<()> {
        let start = Instant::now();
        let over = AtomicBool::new(false);
        let mut planted: Option<Planted> = None;
        let (sent, slowest) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&over));
            let looked = (|| -> Result<()> {
                // What is planted is seen to its end.
                while !writer.is_finished() && (start.elapsed() < time || planted.is_some()) {
                    for (node, seen) in &mut self.passes {
                        watch(laboratory, node, seen, planted.as_ref(), &mut self.wrong)?;
                    }
                    let done = match &mut planted {
                        Some(now) => now.step(laboratory, self.limit, &mut self.wrong)?,
                        None => false,
                    };
                    match &planted {
                        None if start.elapsed() > FIRST_FAULT && start.elapsed() < time => {
                            if let Some((fault, damage)) = coming.pop_front() {
                                planted = Some(Planted::on(laboratory, fault, damage)?);
                            }
                        }
                        Some(now) if done => {
                            let found = now.nodes.iter().filter(|n| n.found.is_some()).count();
                            self.found += found;
                            self.repaired += now.nodes.len() - found;
                            planted = None;
                        }
                        _ => {}
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            })();
            over.store(true, Ordering::Relaxed);
            let written = match writer.join() {
                Ok(written) => written?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            looked.map(|()| written)
        })?;
        self.sent += sent;
        self.slowest = self.slowest.max(slowest);
        self.watched += start.elapsed();
        Ok(())
    }

    /// Prints the table, and says whether anything was wrong.
    pub(crate) fn end(mut self) -> Result<String> {
        println!(
            "{} changes; the slowest batch took {:.1} s",
            self.sent,
            self.slowest.as_secs_f32()
        );
        println!(
            "{:<22} {:>7} {:>8} {:>13} {:>16}",
            "node", "passes", "pairs", "least judged", "most converging"
        );
        for (node, seen) in &self.passes {
            println!(
                "{node:<22} {:>7} {:>8} {:>12.2}% {:>7} ({:.2}%)",
                seen.count,
                seen.pairs,
                seen.least_judged * 100.0,
                seen.most_converging,
                seen.most_converging as f64 * 100.0 / seen.pairs.max(1) as f64
            );
            if seen.least_judged < JUDGED_SHARE {
                self.wrong.push(format!(
                    "{node}: {:.2} % judged in a pass",
                    seen.least_judged * 100.0
                ));
            }
            if seen.count < 3 {
                self.wrong
                    .push(format!("{node}: only {} passes", seen.count));
            }
        }
        if !self.wrong.is_empty() {
            bail!("{}", self.wrong.join("\n"));
        }
        Ok(format!(
            "{} changes in {} s, no false finding on {} nodes; {} faults found, {} repaired by \
             kube-proxy first",
            self.sent,
            self.watched.as_secs(),
            self.passes.len(),
            self.found,
            self.repaired
        ))
    }
}

/// Changes endpoints until it is over; how many changes were made, and how long the slowest batch of
/// them took.
fn change(
    laboratory: &Laboratory,
    slices: &[Value],
    mut random: ChaCha8Rng,
    over: &AtomicBool,
) -> Result<(u64, Duration)> {
    // Slices that Services of kube-proxy use, with an endpoint at least.
    let slices: Vec<&Value> = slices
        .iter()
        .filter(|slice| slice["addressType"] != "FQDN")
        .filter(|slice| {
            slice["endpoints"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        })
        .collect();
    steadily(&laboratory.cluster.api, RATE, over, || {
        let slice = slices.choose(&mut random)?;
        Some(Call {
            method: Method::PATCH,
            path: api::path(slice).ok()?,
            body: Some(json!({"endpoints": changed(&mut random, &slice["endpoints"])})),
        })
    })
}

/// Takes in a node's newest report.
fn watch(
    laboratory: &Laboratory,
    node: &str,
    seen: &mut Passes,
    planted: Option<&Planted>,
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
        if planted.is_some_and(|p| p.explains(node, &finding)) {
            continue;
        }
        let reason = format!("{node}: {}", brief(&finding));
        if !wrong.contains(&reason) && wrong.len() < 30 {
            wrong.push(reason);
        }
    }
    Ok(())
}

/// Sends changes at a steady rate until it is over: how many, and how long the slowest batch took.
pub(crate) fn steadily(
    api: &Api,
    rate: u64,
    over: &AtomicBool,
    mut next: impl FnMut() -> Option<Call>,
) -> Result<(u64, Duration)> {
    let start = Instant::now();
    let (mut sent, mut slowest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let due = u64::try_from(start.elapsed().as_millis())? * rate / 1000;
        let calls: Vec<Call> = (sent..due).filter_map(|_| next()).collect();
        sent = due;
        let before = Instant::now();
        for answer in api.call_all(calls) {
            answer?;
        }
        slowest = slowest.max(before.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((sent, slowest))
}

/// The same endpoints with one taken away, made unready, or made to terminate; now and then as
/// they were generated.
pub(crate) fn changed(random: &mut ChaCha8Rng, endpoints: &Value) -> Value {
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

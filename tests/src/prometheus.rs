//! Rules and dashboards under Prometheus' own programs: `promtool`, and a real Prometheus that scrapes two real
//! replicas of the aggregator while real agents find real damage.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::agents::{Agent, Aggregator, Programs, Source, Spec};
use crate::cache::Version;
use crate::cleanup::Folder;
use crate::monitoring::{self, Rules, dashboards};
use crate::process::Process;
use crate::proxy::Mode;
use crate::recording::Recording;
use crate::topology::{HUB_V4, Hub, Node};
use crate::{command, http, packages, wait};

/// Nodes: both modes, and enough for a majority.
const NODES: [(Version, Mode); 3] = [
    (Version::V1_37, Mode::Nftables),
    (Version::V1_34, Mode::Nftables),
    (Version::V1_36, Mode::IptablesNft),
];

/// For an alert to fire or to clear: a silent agent is one after 15 s; the rest is the loaded machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Where the two listen.
const PLAIN: u16 = 19_290;
const LABELLED: u16 = 19_291;

/// `promtool` takes the rules, and each alert fires and stays silent where it should.
pub(crate) fn alerts_are_tested() -> Result<String> {
    packages::ensure(packages::MONITORING)?;
    let folder = monitoring::folder();
    let rules = monitoring::rules_file();
    command::run("promtool", ["check", "rules", &rules.to_string_lossy()])?;
    let cases = folder.join("vipwitness.rules.test.yml");
    command::run("promtool", ["test", "rules", &cases.to_string_lossy()])?;
    let alerts = Rules::read()?.alerts().count();
    Ok(format!(
        "promtool: {alerts} alerts fire and stay silent as their cases say"
    ))
}

/// A damage, and the alert that it must set off.
struct Fault {
    alert: &'static str,
    /// Which node of [`NODES`].
    node: usize,
    /// A shell line in the node's namespace.
    plant: &'static str,
    /// What the alert's text must name besides the node.
    names: &'static [&'static str],
}

const FAULTS: [Fault; 5] = [
    Fault {
        alert: "VipwitnessStaleRules",
        node: 0,
        plant: "nft delete element ip kube-proxy service-ips '{ 10.96.10.10 . tcp . 80 }'",
        // The address stays in cluster-ips, so what it has no port for is rejected.
        names: &["wrong_action", "shop/web"],
    },
    Fault {
        alert: "VipwitnessNodeDiffers",
        node: 1,
        plant: "nft delete element ip kube-proxy service-ips '{ 10.96.10.10 . tcp . 80 }'",
        names: &["shop/web"],
    },
    Fault {
        alert: "VipwitnessForeignRule",
        node: 1,
        plant: "nft 'add table ip intruder; add chain ip intruder pre { type nat hook prerouting priority -150; }; \
                add rule ip intruder pre ip daddr 10.96.10.10 tcp dport 80 dnat to 10.244.66.6:6666'",
        names: &[],
    },
    Fault {
        alert: "VipwitnessHooksMissing",
        node: 2,
        plant: "iptables-nft -t nat -F PREROUTING && iptables-nft -t nat -F OUTPUT",
        names: &[],
    },
    Fault {
        alert: "VipwitnessJudgedShareLow",
        node: 0,
        plant: "nft 'add table inet odd; \
                add chain inet odd pre { type filter hook prerouting priority -310; }; add rule inet odd pre meta rtclassid 7 drop; \
                add chain inet odd out { type filter hook output priority -310; }; add rule inet odd out meta rtclassid 7 drop'",
        names: &[],
    },
];

/// Each fault sets its alert off in a plain Prometheus and in one with the target labels of the Prometheus Operator,
/// once however many replicas say so; the text names node and Service; healing clears it. Every query of every
/// dashboard has an answer meanwhile, and `promtool` has nothing to say against the metrics.
pub(crate) fn alerts_fire() -> Result<String> {
    packages::ensure(packages::MONITORING)?;
    let start = Instant::now();
    let mut stage = Stage::create()?;
    stage.metrics_are_clean()?;
    let mut fired = Vec::new();
    for fault in &FAULTS {
        let (recording, node, _) = &stage.nodes[fault.node];
        node.netns().run("sh", ["-c", fault.plant])?;
        let mut names = vec![node.name()];
        names.extend(fault.names);
        stage.fires(fault.alert, &names)?;
        stage.metrics_are_clean()?;
        node.netns().run("nft", ["flush", "ruleset"])?;
        recording.load(node.netns())?;
        stage.clears(fault.alert)?;
        fired.push(fault.alert);
    }
    fired.push(stage.agent_missing()?);
    fired.push(stage.api_never_seen()?);
    fired.push(stage.aggregator_blind()?);
    let queries = stage.dashboards_answer(start)?;
    fired.push(stage.aggregator_down()?);
    Ok(format!(
        "{} alerts fired and cleared in both Prometheus; {queries} queries of dashboards had an answer",
        fired.len()
    ))
}

/// Nodes with agents, two replicas, two Prometheus.
struct Stage {
    programs: Programs,
    hub: Hub,
    replicas: Vec<Aggregator>,
    nodes: Vec<(Recording, Node, Option<Agent>)>,
    watchers: [Prometheus; 2],
}

fn spec(recording: &Recording) -> Spec {
    let mut spec = Spec::new(Source::Manifests(recording.manifests()));
    spec.kube_proxy_config = Some(recording.configuration());
    spec.proxy_version = Some(recording.version.minor().to_owned());
    spec.aggregator = uplinks();
    spec
}

/// Both replicas.
fn uplinks() -> Vec<String> {
    [0, 1]
        .map(|number| format!("--aggregator={}", crate::agents::listeners(number).1))
        .into()
}

impl Stage {
    fn create() -> Result<Stage> {
        let programs = Programs::build()?;
        let hub = Hub::create()?;
        let flags = ["--insecure-agents", "--insecure-readers"].map(str::to_owned);
        let replicas: Vec<Aggregator> = [0, 1]
            .into_iter()
            .map(|number| Aggregator::start_replica(&programs, &hub, number, &flags))
            .collect::<Result<_>>()?;
        let mut nodes = Vec::new();
        for (version, mode) in NODES {
            let recording = Recording::of(version, mode);
            let place = recording.place()?;
            let node = hub.add_node_at(&place.name, place.index)?;
            recording.load(node.netns())?;
            let agent = Agent::start(&programs, &node, &spec(&recording))?;
            nodes.push((recording, node, Some(agent)));
        }
        let watchers = [
            Prometheus::start(&hub, PLAIN, "")?,
            Prometheus::start(
                &hub,
                LABELLED,
                ", namespace: vipwitness, service: vipwitness-aggregator",
            )?,
        ];
        let stage = Stage {
            programs,
            hub,
            replicas,
            nodes,
            watchers,
        };
        let heard = format!("cluster:vipwitness_agent_connected:sum == {}", NODES.len());
        for watcher in &stage.watchers {
            wait::until("every node in Prometheus", LIMIT, || {
                Ok((!watcher.query(&stage.hub, &heard)?.is_empty()).then_some(()))
            })?;
        }
        // Quiet before anything is planted.
        for watcher in &stage.watchers {
            wait::until("no alert", LIMIT, || {
                Ok(watcher.alerts(&stage.hub)?.is_empty().then_some(()))
            })?;
        }
        Ok(stage)
    }

    /// `promtool check metrics` has nothing to say about what the replicas export.
    fn metrics_are_clean(&self) -> Result<()> {
        for replica in &self.replicas {
            let text = replica.get(&self.hub, "/metrics")?.body;
            let mut check = std::process::Command::new("promtool");
            check.args(["check", "metrics"]);
            let said = command::output_with_input(&mut check, text.as_bytes())?;
            ensure!(said.trim().is_empty(), "promtool check metrics: {said}");
        }
        Ok(())
    }

    /// Waits until each Prometheus has exactly this alert firing once, with these words in its text.
    fn fires(&self, name: &str, names: &[&str]) -> Result<()> {
        for (watcher, what) in self.watchers.iter().zip(["plain", "labelled"]) {
            let found = wait::until(&format!("{name} ({what})"), LIMIT, || {
                let mut firing = watcher.firing(&self.hub, name)?;
                Ok(firing.pop().map(|last| (last, firing.len())))
            });
            let (alert, more) = match found {
                Ok(found) => found,
                Err(error) => {
                    let all = watcher.alerts(&self.hub)?;
                    bail!("{error:#}; there are {all:#?}")
                }
            };
            ensure!(more == 0, "{name} ({what}) fires {} times", more + 1);
            let texts = format!(
                "{} {}",
                alert["annotations"]["summary"], alert["annotations"]["description"]
            );
            for word in names {
                ensure!(
                    texts.contains(word),
                    "{name} ({what}) names no {word}: {texts}"
                );
            }
        }
        println!("  {name} fires");
        Ok(())
    }

    /// Waits until the alert is gone from each Prometheus.
    fn clears(&self, name: &str) -> Result<()> {
        for watcher in &self.watchers {
            wait::until(&format!("{name} to clear"), LIMIT, || {
                Ok(watcher.firing(&self.hub, name)?.is_empty().then_some(()))
            })?;
        }
        Ok(())
    }

    fn agent_missing(&mut self) -> Result<&'static str> {
        let alert = "VipwitnessAgentMissing";
        let name = self.nodes[1].1.name().to_owned();
        drop(self.nodes[1].2.take());
        self.fires(alert, &[&name])?;
        let (recording, node, agent) = &mut self.nodes[1];
        *agent = Some(Agent::start(&self.programs, node, &spec(recording))?);
        self.clears(alert)?;
        Ok(alert)
    }

    /// An agent whose API server has never answered.
    fn api_never_seen(&mut self) -> Result<&'static str> {
        let alert = "VipwitnessApiViewOld";
        let folder = Folder::create("kubeconfig")?;
        let file = folder.join("nobody");
        // Nobody listens on the discard port of the hub.
        let nobody = "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n\
            clusters: [{name: x, cluster: {server: 'http://10.77.0.1:9'}}]\nusers: [{name: x, user: {token: x}}]\n";
        std::fs::write(&file, nobody)?;
        let mut without = Spec::new(Source::Kubeconfig(file));
        without.aggregator = uplinks();
        let name = self.nodes[2].1.name().to_owned();
        drop(self.nodes[2].2.take());
        let node = &self.nodes[2].1;
        // A name of its own: the replicas remember what the other one said.
        let lost = Agent::start_as(&self.programs, node, "lost", &without)?;
        self.fires(alert, &["lost"])?;
        drop(lost);
        self.clears(alert)?;
        let (recording, node, agent) = &mut self.nodes[2];
        *agent = Some(Agent::start(&self.programs, node, &spec(recording))?);
        let heard = format!("node:vipwitness_agent_connected:max{{node=\"{name}\"}} == 1");
        wait::until("the agent again", LIMIT, || {
            let found = self.watchers[0].query(&self.hub, &heard)?;
            Ok((!found.is_empty()).then_some(()))
        })?;
        Ok(alert)
    }

    /// One replica is cut off from the agents.
    fn aggregator_blind(&mut self) -> Result<&'static str> {
        let alert = "VipwitnessAggregatorBlind";
        let (http, grpc) = crate::agents::listeners(1);
        let cut = format!(
            "add table inet cut; add chain inet cut in {{ type filter hook input priority 0; }}; \
             add rule inet cut in tcp dport {} drop",
            grpc.port()
        );
        let hub = self.hub.netns();
        hub.run("nft", [&*cut])?;
        self.fires(alert, &[&http.to_string()])?;
        hub.run("nft", ["delete table inet cut"])?;
        self.clears(alert)?;
        Ok(alert)
    }

    fn aggregator_down(&mut self) -> Result<&'static str> {
        let alert = "VipwitnessAggregatorDown";
        self.replicas.pop();
        let one = self.watchers[0].firing(&self.hub, alert)?;
        ensure!(one.is_empty(), "{alert} fires while one replica is left");
        self.replicas.clear();
        self.fires(alert, &[])?;
        let flags = ["--insecure-agents", "--insecure-readers"].map(str::to_owned);
        let again = Aggregator::start_replica(&self.programs, &self.hub, 0, &flags)?;
        self.replicas.push(again);
        self.clears(alert)?;
        Ok(alert)
    }

    /// Every panel has an answer for the time since `start`, about the nodes and the Service that were damaged. How
    /// many queries.
    fn dashboards_answer(&self, start: Instant) -> Result<usize> {
        let mut queries = 0;
        for (_, dashboard) in dashboards::all() {
            for panel in dashboard["panels"].as_array().into_iter().flatten() {
                let mut empty = Vec::new();
                for target in panel["targets"].as_array().into_iter().flatten() {
                    let query = target["expr"].as_str().unwrap_or_default();
                    let query = query
                        .replace("$cluster", ".*")
                        .replace("$node", self.nodes[0].1.name())
                        .replace("$namespace", "shop")
                        .replace("$service", "web");
                    queries += 1;
                    for watcher in &self.watchers {
                        if watcher.since(&self.hub, &query, start)?.is_empty() {
                            empty.push(query.clone());
                        }
                    }
                }
                let place = format!("{}: {}", dashboard["title"], panel["title"]);
                ensure!(empty.is_empty(), "{place} stays empty: {empty:#?}");
            }
        }
        Ok(queries)
    }
}

/// A running Prometheus. Killed when dropped.
struct Prometheus {
    at: SocketAddr,
    _process: Process,
    _folder: Folder,
}

impl Prometheus {
    /// Starts one in the hub that scrapes both replicas every second, with these further target labels, and waits
    /// until it answers. Alerts wait for 3 s instead of minutes.
    fn start(hub: &Hub, port: u16, labels: &str) -> Result<Prometheus> {
        let folder = Folder::create("prometheus")?;
        let rules = std::fs::read_to_string(monitoring::rules_file())?;
        let hasty: Vec<String> = rules
            .lines()
            .map(|line| match line.trim_start().strip_prefix("for: ") {
                Some(time) => line.replace(time, "3s"),
                None => line.to_owned(),
            })
            .collect();
        std::fs::write(folder.join("rules.yml"), hasty.join("\n"))?;
        let targets: String = [0, 1]
            .map(|number| {
                let (http, _) = crate::agents::listeners(number);
                format!(
                    "      - {{targets: ['{http}'], labels: {{pod: replica-{number}{labels}}}}}\n"
                )
            })
            .concat();
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yml]\nscrape_configs:\n  \
             - job_name: vipwitness\n    honor_labels: true\n    static_configs:\n{targets}"
        );
        std::fs::write(folder.join("prometheus.yml"), configuration)?;
        let at = SocketAddr::new(IpAddr::V4(HUB_V4), port);
        let arguments = [
            format!("--config.file={}", folder.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={at}"),
        ];
        let mut process = Process::start(
            "prometheus",
            hub.netns().command("prometheus", arguments),
            &folder.join("prometheus.log"),
        )?;
        process.until("Prometheus answers", Duration::from_secs(30), || {
            let answer = http::get_in(hub.netns(), at, "/-/ready")?;
            Ok((answer.status == 200).then_some(()))
        })?;
        Ok(Prometheus {
            at,
            _process: process,
            _folder: folder,
        })
    }

    fn ask(&self, hub: &Hub, path: &str) -> Result<Value> {
        let answer = http::get_in(hub.netns(), self.at, path)?;
        ensure!(answer.status == 200, "GET {path}: {}", answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// What an expression gives now.
    fn query(&self, hub: &Hub, expression: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/query?query={}", encoded(expression));
        list(&self.ask(hub, &path)?["data"]["result"])
    }

    /// What it gave at any second since then.
    fn since(&self, hub: &Hub, expression: &str, start: Instant) -> Result<Vec<Value>> {
        let now = wall_seconds()?;
        let path = format!(
            "/api/v1/query_range?query={}&start={}&end={now}&step=1",
            encoded(expression),
            now - start.elapsed().as_secs_f64(),
        );
        list(&self.ask(hub, &path)?["data"]["result"])
    }

    /// Alerts, pending ones included.
    fn alerts(&self, hub: &Hub) -> Result<Vec<Value>> {
        list(&self.ask(hub, "/api/v1/alerts")?["data"]["alerts"])
    }

    fn firing(&self, hub: &Hub, name: &str) -> Result<Vec<Value>> {
        let mut all = self.alerts(hub)?;
        all.retain(|a| a["labels"]["alertname"] == name && a["state"] == "firing");
        Ok(all)
    }
}

fn list(value: &Value) -> Result<Vec<Value>> {
    value.as_array().cloned().context("Prometheus gave no list")
}

/// Seconds since 1970, as Prometheus counts.
fn wall_seconds() -> Result<f64> {
    let now = std::time::SystemTime::now();
    Ok(now.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
}

/// For a query string.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

//! The debugging flow against the real slice controller: steps are made to fail for real, each is
//! named, and the others stay right. A rolling update gives no finding.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::laboratory::Laboratory;
use crate::wait;

const NAMESPACE: &str = "flow";
const SERVICE: &str = "/api/v1/namespaces/flow/services/web";
const PODS: &str = "/api/v1/namespaces/flow/pods";
/// For what needs a slice, a sync of every kube-proxy and a report of every agent.
const SOON: Duration = Duration::from_secs(90);
/// For what is given time (`model::flow::limits::LAG_MS`), as seen by watches that may have a bookmark
/// a minute only.
const LATE: Duration = Duration::from_secs(240);

/// What one step must answer.
type Want<'a> = (usize, &'a str);

struct Flow<'a> {
    laboratory: &'a Laboratory,
    measured: Vec<String>,
}

impl Flow<'_> {
    fn ask(&self) -> Result<Value> {
        self.laboratory.aggregated("/svc/flow/web")
    }

    fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        self.laboratory.cluster.api.patch(path, patch).map(drop)
    }

    /// Waits until these steps answer so; where a check is named, until the first of them finds it.
    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wants: &[Want],
        check: Option<&str>,
    ) -> Result<()> {
        let start = std::time::Instant::now();
        let mut last = Value::Null;
        let found = wait::until(what, limit, || {
            last = self.ask()?;
            let answers = wants
                .iter()
                .all(|(step, answer)| last["steps"][step - 1]["answer"] == *answer);
            let named = check.is_none_or(|check| {
                let step = &last["steps"][wants[0].0 - 1];
                step["found"][0]["check"] == check
            });
            Ok((answers && named).then_some(()))
        });
        if let Err(error) = found {
            let short: Vec<String> = last["steps"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|s| format!("{} {} {}", s["number"], s["answer"], s["says"]))
                .collect();
            bail!("{error:#}\n{}\n{}", last["verdict"], short.join("\n"));
        }
        self.measured
            .push(format!("{what} {:.1} s", start.elapsed().as_secs_f64()));
        Ok(())
    }

    fn right(&mut self, what: &str) -> Result<()> {
        self.until(what, SOON, &RIGHT, None)
    }
}

const RIGHT: [Want; 7] = [
    (1, "pass"),
    (2, "pass"),
    (3, "pass"),
    (4, "pass"),
    (6, "pass"),
    (7, "not_applicable"),
    (8, "pass"),
];

fn pod(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web",
            "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

fn status(address: &str, ready: bool) -> Value {
    let word = if ready { "True" } else { "False" };
    json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": word}],
        "containerStatuses": [{"name": "web", "image": "web", "imageID": "", "ready": ready,
            "restartCount": 0, "started": true, "state": {"running": {}}}]}})
}

/// Selector, Pods, port name, slices, a foreign rule, a claimed address; then a rolling update.
pub fn the_flow_names_the_step(laboratory: &mut Laboratory) -> Result<String> {
    if laboratory.installation.is_none() {
        laboratory.start_agents()?;
    }
    let cluster = &laboratory.cluster;
    cluster.create_namespace(NAMESPACE)?;
    cluster.api.put_all(&[json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "slice-controller", "namespace": NAMESPACE},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "system:controller:endpointslice-controller",
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "User",
            "name": "system:kube-controller-manager",
        }],
    })])?;
    let nodes: Vec<String> = laboratory
        .nodes()
        .iter()
        .map(|n| n.name().to_owned())
        .collect();
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.10.77",
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    cluster.api.create(&service)?;
    let address = |n: usize| format!("10.244.{}.{}", 200 + n / 250, 1 + n % 250);
    let start = |n: usize, ready: bool| -> Result<()> {
        let name = format!("web-{n}");
        cluster.api.create(&pod(&name, &nodes[n % nodes.len()]))?;
        let path = format!("{PODS}/{name}/status");
        cluster.api.patch(&path, &status(&address(n), ready))?;
        Ok(())
    };
    for n in 0..3 {
        start(n, true)?;
    }
    let mut flow = Flow {
        laboratory,
        measured: Vec::new(),
    };
    flow.right("right")?;

    flow.patch(SERVICE, &json!({"spec": {"selector": {"app": "frontend"}}}))?;
    let wants = [
        (1, "fail"),
        (2, "not_applicable"),
        (3, "fail"),
        (4, "pass"),
        (6, "pass"),
        (7, "not_applicable"),
        (8, "pass"),
    ];
    flow.until("selector", SOON, &wants, Some("selector_matches_nothing"))?;
    let told = flow.ask()?;
    let says = "app=frontend matches none of the 3 Pods in flow; 3 Pods have app=web";
    if told["steps"][0]["says"] != says || told["steps"][2]["found"][0]["follows_from"] != 1 {
        bail!("the selector is told of otherwise: {told:#}");
    }
    flow.patch(SERVICE, &json!({"spec": {"selector": {"app": "web"}}}))?;
    flow.right("selector healed")?;

    for n in 0..3 {
        let path = format!("{PODS}/web-{n}/status");
        flow.patch(&path, &status(&address(n), false))?;
    }
    let wants = [
        (2, "fail"),
        (1, "pass"),
        (3, "fail"),
        (4, "pass"),
        (6, "pass"),
        (7, "not_applicable"),
        (8, "pass"),
    ];
    flow.until("Pods not ready", SOON, &wants, Some("no_ready_pod"))?;
    for n in 0..3 {
        let path = format!("{PODS}/web-{n}/status");
        flow.patch(&path, &status(&address(n), true))?;
    }
    flow.right("Pods ready again")?;

    let port = |target: &str| json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": target}]}});
    flow.patch(SERVICE, &port("web"))?;
    flow.until("port name", SOON, &wants, Some("target_port_unknown"))?;
    flow.patch(SERVICE, &port("http"))?;
    flow.right("port name healed")?;

    cluster.freeze_controllers(true)?;
    let wants = [
        (3, "fail"),
        (1, "pass"),
        (2, "pass"),
        (4, "pass"),
        (6, "pass"),
        (7, "not_applicable"),
        (8, "pass"),
    ];
    let path = format!("{PODS}/web-0/status");
    let result = flow
        .patch(&path, &status(&address(0), false))
        .and_then(|()| flow.until("slices behind", LATE, &wants, Some("slices_behind_pods")));
    cluster.freeze_controllers(false)?;
    result?;
    flow.right("controller again")?;
    flow.patch(&format!("{PODS}/web-0/status"), &status(&address(0), true))?;
    flow.right("all ready")?;

    let node = &laboratory.stations[0].node;
    node.netns()
        .run("nft", ["add", "table", "ip", "flowtest"])?;
    let rules = "add chain ip flowtest in { type filter hook prerouting priority -150 ; }\n\
                 add rule ip flowtest in ip daddr 10.96.10.77 tcp dport 80 drop\n";
    let planted = node.netns().run_with_input("nft", ["-f", "-"], rules);
    let wants = [
        (4, "fail"),
        (1, "pass"),
        (2, "pass"),
        (3, "pass"),
        (6, "pass"),
        (7, "not_applicable"),
        (8, "fail"),
    ];
    let result = planted
        .context("the foreign rule")
        .and_then(|_| flow.until("foreign rule", SOON, &wants, Some("nodes_differ")));
    node.netns()
        .run("nft", ["delete", "table", "ip", "flowtest"])?;
    result?;
    flow.right("rule gone")?;

    flow.patch(SERVICE, &json!({"spec": {"externalIPs": ["192.0.2.77"]}}))?;
    let other = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "other", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "none"}, "externalIPs": ["192.0.2.77"],
            "ports": [{"name": "http", "port": 80}]}});
    cluster.api.create(&other)?;
    let wants = [
        (7, "fail"),
        (1, "pass"),
        (2, "pass"),
        (3, "pass"),
        (6, "pass"),
    ];
    flow.until("claimed twice", SOON, &wants, Some("address_claimed_twice"))?;
    cluster
        .api
        .delete("/api/v1/namespaces/flow/services/other")?;
    flow.patch(SERVICE, &json!({"spec": {"externalIPs": null}}))?;
    flow.right("one claim")?;

    let mut asked = 0;
    let mut look = |when: &str| -> Result<()> {
        asked += 1;
        let told = flow.ask()?;
        for step in [0, 1, 2] {
            for found in told["steps"][step]["found"]
                .as_array()
                .into_iter()
                .flatten()
            {
                if found["weight"] == "fault" {
                    bail!("{when}: {found:#}");
                }
            }
        }
        Ok(())
    };
    for n in 3..53 {
        start(n, false)?;
        look("a Pod was made")?;
        let path = format!("{PODS}/web-{n}/status");
        cluster.api.patch(&path, &status(&address(n), true))?;
        look("it is ready")?;
        cluster.api.delete(&format!("{PODS}/web-{}", n - 3))?;
        look("an old one is gone")?;
    }
    flow.right("after the rolling update")?;
    let measured = flow.measured.join(", ");
    laboratory.empty_namespace(NAMESPACE)?;
    let paths: Vec<String> = (50..53).map(|n| format!("{PODS}/web-{n}")).collect();
    laboratory.cluster.api.delete_all(&paths)?;
    Ok(format!(
        "{measured}; {asked} answers during a rolling update of 50 Pods, no fault on the API's side"
    ))
}

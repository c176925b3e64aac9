//! The dashboards as code: from the fleet to a node or a Service, and conntrack. `cargo lab dashboards` writes
//! them to `dashboards/`, where they are committed, and a test holds both together.
//!
//! They ask for what the rules of `dashboards/vipwitness.rules.yml` record, so that two replicas count once.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::folder;
use super::panels::{Panel, dashboard, lines, stat, table, variable};

/// Every dashboard with the file that holds it.
pub fn all() -> Vec<(PathBuf, Value)> {
    [fleet(), node(), service(), conntrack()]
        .into_iter()
        .map(|dashboard| {
            let name = dashboard["uid"].as_str().unwrap_or_default().to_owned();
            (folder().join(format!("{name}.json")), dashboard)
        })
        .collect()
}

/// Writes them.
pub fn write() -> Result<()> {
    for (path, dashboard) in all() {
        let text = serde_json::to_string_pretty(&dashboard)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Where a click on a row of a table leads: variables that stay, and columns that become variables.
fn to(dashboard: &str, columns: &[(&str, &str)]) -> String {
    let columns: String = columns
        .iter()
        .map(|(variable, column)| {
            format!("&var-{variable}=${{__data.fields.{column}:percentencode}}")
        })
        .collect();
    format!(
        "/d/vipwitness-{dashboard}?${{__url_time_range}}&var-datasource=${{datasource:percentencode}}&var-cluster=${{cluster:percentencode}}{columns}"
    )
}

fn to_node(panel: Panel) -> Panel {
    panel.link("Node", "This node", to("node", &[("node", "Node")]))
}

fn to_service(panel: Panel) -> Panel {
    let columns = [("namespace", "Namespace"), ("service", "Service")];
    panel.link("Service", "This Service", to("service", &columns))
}

const JUDGED: &str = "Silence is worth something only with this beside it.";

fn fleet() -> Value {
    let serious = r#"cluster=~"$cluster", severity=~"warning|critical""#;
    let panels = [
        stat(
            "Nodes with findings",
            "Severity warning or above.",
            &format!("count(max by (cluster, node) (node:vipwitness_node_findings:max{{{serious}}})) or vector(0)"),
        )
        .bad_from(1.0)
        .width(5),
        stat(
            "Nodes heard",
            "An agent reports to at least one replica.",
            r#"sum(node:vipwitness_agent_connected:max{cluster=~"$cluster"}) or vector(0)"#,
        )
        .good_from(1.0)
        .width(5),
        stat(
            "Nodes without an agent",
            "Known, and heard by no replica.",
            r#"count(node:vipwitness_agent_connected:max{cluster=~"$cluster"} == 0) or vector(0)"#,
        )
        .bad_from(1.0)
        .width(5),
        stat(
            "Least judged",
            "Of the pairs of frontend and source that can be compared, on the worst node. Silence is worth something only with this beside it.",
            r#"min(node:vipwitness_pairs_judged:ratio{cluster=~"$cluster"})"#,
        )
        .unit("percentunit")
        .good_from(0.9)
        .or_nothing("-")
        .width(5),
        stat(
            "Pairs judged",
            JUDGED,
            r#"sum(node:vipwitness_pairs_judged:max{cluster=~"$cluster"})"#,
        )
        .or_nothing("0")
        .width(4),
        to_node(table(
            "Nodes with findings",
            "Worst first. A click on a node leads to it.",
            &format!("sort_desc(max by (cluster, node, kind, severity) (node:vipwitness_node_findings:max{{{serious}}}))"),
            &[("cluster", "Cluster"), ("node", "Node"), ("severity", "Severity"), ("kind", "Kind"), ("Value", "Findings")],
        ))
        .width(12),
        to_service(table(
            "Services with findings",
            "On how many nodes. A click on a Service leads to it.",
            r#"sort_desc(count by (cluster, namespace, service, kind) (node:vipwitness_service_finding:max{cluster=~"$cluster"}))"#,
            &[("cluster", "Cluster"), ("namespace", "Namespace"), ("service", "Service"), ("kind", "Kind"), ("Value", "Nodes")],
        ))
        .width(12),
        lines(
            "Findings by kind",
            "Over all nodes.",
            &[(r#"sum by (kind) (node:vipwitness_node_findings:max{cluster=~"$cluster"})"#, "{{kind}}")],
        ),
        lines(
            "Converging",
            "Differences that are still given time. A hill after each rollout is the rule.",
            &[(r#"sum(node:vipwitness_node_converging:max{cluster=~"$cluster"})"#, "converging")],
        ),
        lines(
            "Not judged, by reason",
            "Unknown, and not to be compared.",
            &[
                (r#"sum by (reason) (node:vipwitness_pairs_unknown:max{cluster=~"$cluster"})"#, "unknown: {{reason}}"),
                (r#"sum by (reason) (node:vipwitness_pairs_not_comparable:max{cluster=~"$cluster"})"#, "not comparable: {{reason}}"),
            ],
        ),
        lines(
            "Agents heard by each replica",
            "Each should hear all.",
            &[(r#"vipwitness_agents{cluster=~"$cluster", state="connected"}"#, "{{instance}}")],
        ),
        lines(
            "Oldest kernel reading",
            "Age of the newest reading that any replica has, of the worst ten nodes.",
            &[(r#"topk(10, node:vipwitness_report_age_seconds:min{cluster=~"$cluster"})"#, "{{node}}")],
        )
        .unit("s"),
        lines(
            "Oldest view of the API",
            "Of the worst ten nodes.",
            &[(r#"topk(10, node:vipwitness_api_view_age_seconds:min{cluster=~"$cluster"})"#, "{{node}}")],
        )
        .unit("s"),
        lines(
            "Longest passes",
            "Reading, decoding and judging, of the slowest ten nodes.",
            &[(r#"topk(10, node:vipwitness_pass_duration_seconds:max{cluster=~"$cluster"})"#, "{{node}}")],
        )
        .unit("s"),
        lines(
            "Gaps",
            "Things that could not be read, of the worst ten nodes.",
            &[(r#"topk(10, node:vipwitness_gaps:max{cluster=~"$cluster"})"#, "{{node}}")],
        ),
    ];
    dashboard("fleet", "vipwitness / Fleet", Vec::new(), &panels)
}

fn node_variable() -> Value {
    variable(
        "node",
        r#"label_values(vipwitness_agent_connected{cluster=~"$cluster"}, node)"#,
    )
}

fn node() -> Value {
    let this = r#"cluster=~"$cluster", node="$node""#;
    let of = |series: &str| format!("{series}{{{this}}}");
    let panels = [
        stat(
            "Findings",
            "Severity warning or above.",
            &format!(r#"sum(node:vipwitness_node_findings:max{{{this}, severity=~"warning|critical"}}) or vector(0)"#),
        )
        .bad_from(1.0)
        .width(4),
        stat("Converging", "Differences that are still given time.", &of("node:vipwitness_node_converging:max"))
            .or_nothing("-")
            .width(4),
        stat("Judged", JUDGED, &of("node:vipwitness_pairs_judged:ratio"))
            .unit("percentunit")
            .good_from(0.9)
            .or_nothing("-")
            .width(4),
        stat("Agent", "1: heard by a replica.", &of("node:vipwitness_agent_connected:max"))
            .good_from(1.0)
            .or_nothing("-")
            .width(4),
        stat("Kernel read", "How long ago.", &of("node:vipwitness_report_age_seconds:min"))
            .unit("s")
            .bad_from(60.0)
            .or_nothing("-")
            .width(4),
        stat("View of the API", "How old.", &of("node:vipwitness_api_view_age_seconds:min"))
            .unit("s")
            .bad_from(300.0)
            .or_nothing("-")
            .width(4),
        table(
            "Findings now",
            "By kind. What, since when and the proof: /nodes/NODE?output=text of the aggregator.",
            &format!("sort_desc(max by (kind, severity) ({}))", of("node:vipwitness_node_findings:max")),
            &[("severity", "Severity"), ("kind", "Kind"), ("Value", "Findings")],
        )
        .width(12),
        to_service(table(
            "Services with findings",
            "A click on a Service leads to it on all nodes.",
            &format!("sort_desc(max by (namespace, service, kind, severity) ({}))", of("node:vipwitness_service_finding:max")),
            &[("namespace", "Namespace"), ("service", "Service"), ("severity", "Severity"), ("kind", "Kind"), ("Value", "Findings")],
        ))
        .width(12),
        lines(
            "Findings by kind",
            "All severities.",
            &[(&format!("sum by (kind) ({})", of("node:vipwitness_node_findings:max")), "{{kind}}")],
        ),
        lines(
            "Pairs of frontend and source",
            JUDGED,
            &[
                (&of("node:vipwitness_pairs_judged:max"), "judged"),
                (&of("node:vipwitness_pairs_unknown:max"), "unknown: {{reason}}"),
                (&of("node:vipwitness_pairs_not_comparable:max"), "not comparable: {{reason}}"),
            ],
        ),
        lines(
            "Ages",
            "Of the newest reading of the kernel, and of the view of the API.",
            &[
                (&of("node:vipwitness_report_age_seconds:min"), "kernel"),
                (&of("node:vipwitness_api_view_age_seconds:min"), "API"),
            ],
        )
        .unit("s"),
        lines(
            "Passes",
            "How long the newest took.",
            &[(&of("node:vipwitness_pass_duration_seconds:max"), "pass")],
        )
        .unit("s"),
        lines(
            "kube-proxy stands still",
            "Its syncs, or its watch of the API.",
            &[(&format!("{} or vector(0)", of("node:vipwitness_proxy_stuck:max")), "{{reason}}")],
        ),
        lines("Gaps", "Things that could not be read.", &[(&of("node:vipwitness_gaps:max"), "gaps")]),
        lines(
            "State of the node",
            "By its agent's last words: ready, starting, draining or gone.",
            &[(&of("node:vipwitness_node_state:max"), "{{state}}")],
        ),
        lines("Agent", "1 while a replica hears it.", &[(&of("node:vipwitness_agent_connected:max"), "heard")]),
    ];
    dashboard("node", "vipwitness / Node", vec![node_variable()], &panels)
}

fn service() -> Value {
    let this = r#"cluster=~"$cluster", namespace="$namespace", service="$service""#;
    let of = format!("node:vipwitness_service_finding:max{{{this}}}");
    let panels = [
        stat(
            "Nodes with findings",
            "On which this Service is wrong. A Service without findings has no series: then everything here is empty, and the fleet's dashboard says how much was judged.",
            &format!("count(max by (cluster, node) ({of})) or vector(0)"),
        )
        .bad_from(1.0),
        stat(
            "Share of the fleet",
            "Of the nodes that are heard.",
            &format!(r#"count(max by (cluster, node) ({of})) / sum(node:vipwitness_agent_connected:max{{cluster=~"$cluster"}}) or vector(0)"#),
        )
        .unit("percentunit"),
        stat(
            "Critical",
            "Findings by which traffic goes wrong.",
            &format!(r#"sum(node:vipwitness_service_finding:max{{{this}, severity="critical"}}) or vector(0)"#),
        )
        .bad_from(1.0),
        stat(
            "Nodes heard",
            "An agent reports to at least one replica.",
            r#"sum(node:vipwitness_agent_connected:max{cluster=~"$cluster"}) or vector(0)"#,
        )
        .good_from(1.0),
        lines(
            "Nodes by kind of finding",
            "One node alone: look at the node. Many: look at the Service and at what was rolled out.",
            &[(&format!("count by (kind) (max by (cluster, node, kind) ({of}))"), "{{kind}}")],
        )
        .width(24),
        to_node(table(
            "Nodes with findings",
            "A click on a node leads to it. What the nodes do: /svc/NAMESPACE/NAME?output=text of the aggregator.",
            &format!("sort_desc(max by (cluster, node, kind, severity) ({of}))"),
            &[("cluster", "Cluster"), ("node", "Node"), ("severity", "Severity"), ("kind", "Kind"), ("Value", "Findings")],
        )),
    ];
    let variables = vec![
        variable(
            "namespace",
            r#"label_values(vipwitness_service_finding{cluster=~"$cluster"}, namespace)"#,
        ),
        variable(
            "service",
            r#"label_values(vipwitness_service_finding{cluster=~"$cluster", namespace="$namespace"}, service)"#,
        ),
    ];
    let mut out = dashboard("service", "vipwitness / Service", variables, &panels);
    // A link leads here with a Service that has healed meanwhile: it may be typed in.
    for variable in out["templating"]["list"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        if variable["name"] == "namespace" || variable["name"] == "service" {
            variable["allowCustomValue"] = json!(true);
        }
    }
    out
}

fn conntrack() -> Value {
    let this = r#"cluster=~"$cluster", node=~"$node""#;
    let of = |series: &str| format!("{series}{{{this}}}");
    let worst = |series: &str| format!("topk(10, {})", of(series));
    let panels = [
        stat(
            "Fullest table",
            "Entries against the limit, on the worst node.",
            &format!("max({})", of("node:vipwitness_conntrack_entries:ratio")),
        )
        .unit("percentunit")
        .bad_from(0.9)
        .or_nothing("-"),
        stat(
            "Nodes that drop packets",
            "In the last five minutes. Lost insert races count as drops, too.",
            &format!("count({} > 0) or vector(0)", of("node:vipwitness_conntrack_drop:rate5m")),
        )
        .bad_from(1.0),
        stat(
            "Nodes full within an hour",
            "If the last minutes go on.",
            &format!("count({} < 3600) or vector(0)", of("node:vipwitness_conntrack_full_seconds:min")),
        )
        .bad_from(1.0),
        stat(
            "Nodes that cannot be read",
            "Whose connection tracking the agent cannot read.",
            &format!("count({} == 0) or vector(0)", of("node:vipwitness_conntrack_readable:max")),
        )
        .bad_from(1.0),
        to_node(table(
            "Tables",
            "Fullest first. A click on a node leads to it.",
            &format!("sort_desc({})", of("node:vipwitness_conntrack_entries:ratio")),
            &[("cluster", "Cluster"), ("node", "Node"), ("Value", "Used")],
        ))
        .unit("percentunit")
        .width(12),
        lines(
            "Used",
            "Entries against the limit, of the fullest ten.",
            &[(&worst("node:vipwitness_conntrack_entries:ratio"), "{{node}}")],
        )
        .unit("percentunit"),
        lines(
            "Entries and limits",
            "Of the fullest ten tables.",
            &[
                (&worst("node:vipwitness_conntrack_entries:max"), "{{node}}"),
                (&format!("min({})", of("node:vipwitness_conntrack_entries_limit:max")), "lowest limit"),
            ],
        ),
        lines(
            "Time until full",
            "By the robust trend of the last minutes, and the lower end of its interval; no line: no growth towards the limit.",
            &[
                (&format!("{} or vector(NaN)", of("node:vipwitness_conntrack_full_seconds:min")), "{{node}}"),
                (&format!("{} or vector(NaN)", of("node:vipwitness_conntrack_full_seconds_earliest:min")), "{{node}}, at the earliest"),
            ],
        )
        .unit("s"),
        lines(
            "Packets dropped",
            "For want of an entry; lost insert races included.",
            &[(&worst("node:vipwitness_conntrack_drop:rate5m"), "{{node}}")],
        )
        .unit("pps"),
        lines(
            "Evicted early",
            "Entries that saw no answer yet and made room in a full table.",
            &[(&worst("node:vipwitness_conntrack_early_drop:rate5m"), "{{node}}")],
        )
        .unit("ops"),
        lines(
            "Insert races lost",
            "Two packets raced for one entry: the later one is dropped.",
            &[(&worst("node:vipwitness_conntrack_insert_failed:rate5m"), "{{node}}")],
        )
        .unit("ops"),
        lines(
            "Insert races settled",
            "clash_resolve; it costs nothing.",
            &[(&worst("node:vipwitness_conntrack_clash_resolve:rate5m"), "{{node}}")],
        )
        .unit("ops"),
        lines(
            "Chains too long",
            "A bucket was full: too few buckets, or somebody who aims at one.",
            &[(&worst("node:vipwitness_conntrack_chain_toolong:rate5m"), "{{node}}")],
        )
        .unit("ops"),
        lines(
            "Invalid",
            "Packets that belong to no flow: often a way back that is another than the way there.",
            &[(&worst("node:vipwitness_conntrack_invalid:rate5m"), "{{node}}")],
        )
        .unit("pps"),
    ];
    let mut variable = node_variable();
    variable["includeAll"] = json!(true);
    variable["allValue"] = json!(".*");
    variable["multi"] = json!(true);
    variable["current"] = json!({"text": "All", "value": "$__all"});
    dashboard(
        "conntrack",
        "vipwitness / Conntrack",
        vec![variable],
        &panels,
    )
}

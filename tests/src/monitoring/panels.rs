//! Panels of Grafana, as far as the dashboards need them. Kept plain: what a panel asks, in which unit, and
//! where a click leads.

use serde_json::{Value, json};

/// A panel without its place.
#[derive(Debug, Clone)]
pub(super) struct Panel {
    kind: &'static str,
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    /// Expression and legend.
    queries: Vec<(String, &'static str)>,
    /// Values from which on the colour is another.
    steps: Vec<(Value, &'static str)>,
    no_value: Option<&'static str>,
    /// Columns of a table: label and what stands above it, in order.
    columns: Vec<(&'static str, &'static str)>,
    /// Of a table: in which column, what for, where to.
    links: Vec<(&'static str, &'static str, String)>,
    width: u32,
    height: u32,
}

/// The data source that is chosen above.
fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// One number.
pub(super) fn stat(title: &'static str, description: &'static str, query: &str) -> Panel {
    Panel {
        kind: "stat",
        title,
        description,
        unit: "short",
        queries: vec![(query.to_owned(), "")],
        steps: vec![(Value::Null, "blue")],
        no_value: None,
        columns: Vec::new(),
        links: Vec::new(),
        width: 6,
        height: 4,
    }
}

/// Lines over time.
pub(super) fn lines(
    title: &'static str,
    description: &'static str,
    queries: &[(&str, &'static str)],
) -> Panel {
    let queries = queries.iter().map(|(q, legend)| (q.to_string(), *legend));
    Panel {
        kind: "timeseries",
        queries: queries.collect(),
        steps: Vec::new(),
        width: 12,
        height: 8,
        ..stat(title, description, "")
    }
}

/// A table of what is now; the columns are labels.
pub(super) fn table(
    title: &'static str,
    description: &'static str,
    query: &str,
    columns: &[(&'static str, &'static str)],
) -> Panel {
    Panel {
        kind: "table",
        columns: columns.to_vec(),
        steps: Vec::new(),
        width: 24,
        height: 8,
        ..stat(title, description, query)
    }
}

impl Panel {
    /// Its unit, by Grafana's name.
    pub(super) fn unit(mut self, unit: &'static str) -> Panel {
        self.unit = unit;
        self
    }

    /// Its width in columns, of 24.
    pub(super) fn width(mut self, width: u32) -> Panel {
        self.width = width;
        self
    }

    /// Green, and from this value on red.
    pub(super) fn bad_from(mut self, value: f64) -> Panel {
        self.steps = vec![(Value::Null, "green"), (json!(value), "red")];
        self
    }

    /// Red, and from this value on green.
    pub(super) fn good_from(mut self, value: f64) -> Panel {
        self.steps = vec![(Value::Null, "red"), (json!(value), "green")];
        self
    }

    /// What stands there when no series answers.
    pub(super) fn or_nothing(mut self, text: &'static str) -> Panel {
        self.no_value = Some(text);
        self
    }

    /// A click on this column of a table leads there.
    pub(super) fn link(mut self, column: &'static str, title: &'static str, url: String) -> Panel {
        self.links.push((column, title, url));
        self
    }

    fn target(&self, number: usize) -> Value {
        let (query, legend) = &self.queries[number];
        let table = self.kind == "table";
        let letter = char::from(b'A' + number as u8);
        json!({
            "datasource": source(),
            "expr": query,
            "legendFormat": legend,
            "refId": letter.to_string(),
            "format": if table { "table" } else { "time_series" },
            "instant": self.kind != "timeseries",
            "range": self.kind == "timeseries",
        })
    }

    fn json(&self, id: usize, x: u32, y: u32) -> Value {
        let mut defaults = json!({"unit": self.unit});
        if !self.steps.is_empty() {
            let steps = self.steps.iter();
            let steps: Vec<Value> = steps
                .map(|(value, color)| json!({"value": value, "color": color}))
                .collect();
            defaults["thresholds"] = json!({"mode": "absolute", "steps": steps});
        }
        if let Some(text) = self.no_value {
            defaults["noValue"] = json!(text);
        }
        if self.kind == "timeseries" {
            defaults["min"] = json!(0);
        }
        let overrides: Vec<Value> = self
            .links
            .iter()
            .map(|(column, title, url)| {
                json!({
                    "matcher": {"id": "byName", "options": column},
                    "properties": [{"id": "links", "value": [{"title": title, "url": url}]}],
                })
            })
            .collect();
        let mut panel = json!({
            "id": id,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": source(),
            "targets": (0..self.queries.len()).map(|n| self.target(n)).collect::<Vec<_>>(),
            "fieldConfig": {"defaults": defaults, "overrides": overrides},
        });
        match self.kind {
            "table" => {
                let order = self.columns.iter().enumerate();
                let order: serde_json::Map<String, Value> = order
                    .map(|(n, (label, _))| ((*label).to_owned(), json!(n)))
                    .collect();
                let names: serde_json::Map<String, Value> = self
                    .columns
                    .iter()
                    .map(|(label, name)| ((*label).to_owned(), json!(name)))
                    .collect();
                panel["transformations"] = json!([{
                    "id": "organize",
                    "options": {
                        "excludeByName": {"Time": true},
                        "indexByName": order,
                        "renameByName": names,
                    },
                }]);
            }
            "stat" => {
                panel["options"] =
                    json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"});
            }
            _ => {
                panel["options"] = json!({
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                    "tooltip": {"mode": "multi", "sort": "desc"},
                });
            }
        }
        panel
    }
}

/// A variable whose values are those of a label.
pub(super) fn variable(name: &'static str, query: &str) -> Value {
    json!({
        "name": name,
        "type": "query",
        "datasource": source(),
        "query": {"query": query, "refId": name},
        // When the time range changes.
        "refresh": 2,
        "sort": 1,
    })
}

/// A dashboard: variables for data source and cluster first, then these; panels from left to right, then down.
pub(super) fn dashboard(
    name: &'static str,
    title: &'static str,
    variables: Vec<Value>,
    panels: &[Panel],
) -> Value {
    let mut all = vec![
        json!({"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}),
    ];
    let mut cluster = variable("cluster", "label_values(vipwitness_build_info, cluster)");
    // Also where no series has such a label.
    cluster["includeAll"] = json!(true);
    cluster["allValue"] = json!(".*");
    cluster["current"] = json!({"text": "All", "value": "$__all"});
    all.push(cluster);
    all.extend(variables);
    let (mut x, mut y, mut below) = (0, 0, 0);
    let mut placed = Vec::new();
    for (number, panel) in panels.iter().enumerate() {
        if x + panel.width > 24 {
            (x, y) = (0, below);
        }
        placed.push(panel.json(number + 1, x, y));
        x += panel.width;
        below = below.max(y + panel.height);
    }
    json!({
        "uid": format!("vipwitness-{name}"),
        "title": title,
        "tags": ["vipwitness"],
        "schemaVersion": 39,
        "version": 1,
        "editable": false,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": all},
        "links": [{
            "type": "dashboards", "title": "vipwitness", "tags": ["vipwitness"],
            "asDropdown": true, "includeVars": true, "keepTime": true,
        }],
        "panels": placed,
    })
}

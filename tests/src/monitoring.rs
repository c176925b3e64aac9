//! What Prometheus and Grafana are given: rules with alerts and runbooks, and dashboards. Here they are read as
//! far as tests need it: which series an expression uses, and whether the aggregator exports them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::cache;

pub mod dashboards;
mod panels;
pub mod promql;

use promql::Expression;

/// The folder with rules, runbooks and dashboards.
pub fn folder() -> PathBuf {
    cache::workspace().join("dashboards")
}

/// The rules file.
pub fn rules_file() -> PathBuf {
    folder().join("vipwitness.rules.yml")
}

/// Labels that a series gets from Prometheus' scrape configuration, never from the aggregator.
pub const TARGET_LABELS: [&str; 4] = ["cluster", "instance", "pod", "job"];

/// The rules file, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

/// A recording rule or an alert.
#[derive(Debug, Clone, Deserialize)]
pub struct Rule {
    /// Name of a recorded series.
    pub record: Option<String>,
    /// Name of an alert.
    pub alert: Option<String>,
    /// What is evaluated.
    pub expr: String,
    /// How long an alert waits.
    pub r#for: Option<String>,
    /// Labels of an alert.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Texts of an alert.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Rules {
    /// Those of the repository.
    pub fn read() -> Result<Rules> {
        let path = rules_file();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_yaml_ng::from_str(&text)?)
    }

    /// Every rule, in the order of the file.
    pub fn all(&self) -> impl Iterator<Item = &Rule> {
        self.groups.iter().flat_map(|group| &group.rules)
    }

    /// Every alert, with its name.
    pub fn alerts(&self) -> impl Iterator<Item = (&str, &Rule)> {
        self.all()
            .filter_map(|rule| Some((rule.alert.as_deref()?, rule)))
    }
}

/// Names of series with their labels: what there is to be asked for.
#[derive(Debug, Clone, Default)]
pub struct Series(BTreeMap<String, BTreeSet<String>>);

impl Series {
    /// Of an answer of `/metrics` in Prometheus' text format.
    pub fn exposed(text: &str) -> Result<Series> {
        let mut series = Series::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if line.trim().is_empty() {
                continue;
            }
            let expression = Expression::parse(&line[..line.rfind(' ').context("no value")?])?;
            for used in expression.selectors {
                series.0.entry(used.metric).or_default().extend(used.labels);
            }
        }
        Ok(series)
    }

    /// With the series that rules record from these. An error where a rule asks for what does not exist.
    pub fn recorded_by(mut self, rules: &Rules) -> Result<Series> {
        for rule in rules.all() {
            let Some(name) = &rule.record else { continue };
            let labels = self
                .check(&rule.expr)
                .with_context(|| format!("record {name}"))?;
            self.0.insert(name.clone(), labels);
        }
        Ok(self)
    }

    /// An error where an expression asks for a series or a label that does not exist; the labels that its result can
    /// have, besides [`TARGET_LABELS`].
    pub fn check(&self, expression: &str) -> Result<BTreeSet<String>> {
        let parsed = Expression::parse(expression)?;
        ensure!(
            !parsed.selectors.is_empty(),
            "{expression:?} asks for no series"
        );
        let mut all: BTreeSet<String> = BTreeSet::new();
        for used in &parsed.selectors {
            let Some(labels) = self.0.get(&used.metric) else {
                bail!("there is no series {}", used.metric);
            };
            if let Some(label) = used.labels.iter().find(|label| !exists(label, labels)) {
                bail!("{} has no label {label}", used.metric);
            }
            all.extend(labels.iter().cloned());
        }
        if let Some(label) = parsed.grouping().find(|label| !exists(label, &all)) {
            bail!("{expression:?} groups by {label}, which none of its series has");
        }
        if !parsed.by.is_empty() {
            all.retain(|label| parsed.by.contains(label) || parsed.joined.contains(label));
        }
        all.retain(|label| !parsed.without.contains(label));
        Ok(all)
    }
}

fn exists(label: &str, labels: &BTreeSet<String>) -> bool {
    TARGET_LABELS.contains(&label) || labels.contains(label)
}

//! `GET /nodes/{node}`: one node.

use super::nodes::NodeLine;
use super::words::{clean, count, few, thousands};
use super::{NotFound, Shown, View, member};
use crate::fleet::Fleet;
use model::capture::{DatapathFound, Gap};
use model::report::Judged;
use model::time::Now;
use serde::Serialize;

/// Findings shown of one node; `/drift?node=` pages through all.
const SHOWN: usize = 200;

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// One sentence, the agent's.
    pub verdict: String,
    /// What the list of nodes says of it.
    #[serde(flatten)]
    pub line: NodeSummary,
    /// Datapaths found, and how they were told.
    pub datapaths: Vec<DatapathFound>,
    /// How much was judged, and why the rest was not.
    pub coverage: Option<Judged>,
    /// What could not be read.
    pub gap_list: Vec<Gap>,
    /// One sentence about its table of connections; `/nodes/{node}/conntrack` says more.
    pub conntrack: String,
    /// All findings, of which [`Self::findings`] shows the worst.
    pub findings_total: usize,
    /// The worst findings.
    pub findings: Vec<Shown>,
    /// All differences that are still given time.
    pub converging_total: usize,
    /// The first of them.
    pub converging: Vec<Shown>,
    /// Services that it reports; ask for one with `/nodes/{node}/svc/{namespace}/{name}`.
    pub services: usize,
}

/// Name, age and pass of a node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeSummary {
    /// Its name.
    pub node: String,
    /// Its own state.
    pub state: Option<model::report::NodeState>,
    /// The newest pass.
    pub pass: Option<u64>,
    /// How long that took, milliseconds.
    pub pass_took_ms: Option<u64>,
    /// How old all this is.
    pub data: super::Data,
    /// The agent's version.
    pub agent_version: String,
}

/// One node.
pub fn node(fleet: &Fleet, name: &str, now: Now) -> Result<NodeView, NotFound> {
    let (name, member) = member(fleet, name)?;
    let line = NodeLine::of(name, member, now);
    let said = member.said.as_ref();
    let shown = |list: &[model::finding::Finding]| -> Vec<Shown> {
        said.map_or(Vec::new(), |s| {
            list.iter()
                .take(SHOWN)
                .map(|f| Shown::of(name, s, f, now))
                .collect()
        })
    };
    let report = said.map(|s| &*s.report);
    Ok(NodeView {
        verdict: line
            .verdict
            .unwrap_or_else(|| "its agent is connected and has not finished a pass yet".into()),
        line: NodeSummary {
            node: line.node,
            state: line.state,
            pass: said.map(|s| s.pass),
            pass_took_ms: said.map(|s| s.took_ms),
            data: line.data,
            agent_version: line.agent_version,
        },
        datapaths: report.map_or(Vec::new(), |r| r.datapaths.clone()),
        coverage: report.map(|r| r.judged.clone()),
        gap_list: report.map_or(Vec::new(), |r| r.gaps.clone()),
        conntrack: super::conntrack::reading(said).2,
        findings_total: report.map_or(0, |r| r.findings.len()),
        findings: report.map_or(Vec::new(), |r| shown(&r.findings)),
        converging_total: report.map_or(0, |r| r.converging.len()),
        converging: report.map_or(Vec::new(), |r| shown(&r.converging)),
        services: said.map_or(0, |s| s.services.len()),
    })
}

impl View for NodeView {
    fn text(&self) -> String {
        let mut out = format!("{}: {}\n", clean(&self.line.node), clean(&self.verdict));
        out += &format!("{}\n", self.line.data.text());
        for d in &self.datapaths {
            let state = match d.state {
                model::capture::DatapathState::InCharge => "in charge",
                model::capture::DatapathState::Residue => "residue",
            };
            let version = d
                .version
                .as_deref()
                .map(|v| format!(" {}", clean(v)))
                .unwrap_or_default();
            out += &format!(
                "datapath  {}{version}, {state}: {}\n",
                clean(&d.name),
                clean(&d.why)
            );
        }
        if let Some(j) = &self.coverage {
            out += &format!(
                "judged    {} of frontend and source, {} of them converging; {} unknown{}; {} not comparable{}\n",
                count(j.pairs, "pair", "pairs"),
                thousands(j.converging),
                thousands(j.unknown),
                reasons(&j.unknown_reasons),
                thousands(j.not_comparable),
                reasons(&j.not_comparable_reasons),
            );
        }
        for g in &self.gap_list {
            out += &format!("gap       {}: {}\n", clean(&g.what), clean(&g.why));
        }
        out += &format!("conntrack {}\n", clean(&self.conntrack));
        for (title, total, list) in [
            ("Findings", self.findings_total, &self.findings),
            (
                "Converging: differs, and is still given time",
                self.converging_total,
                &self.converging,
            ),
        ] {
            if total > 0 {
                out += &format!(
                    "\n{title} ({total}{})\n",
                    if list.len() < total {
                        format!(", {} shown", list.len())
                    } else {
                        String::new()
                    }
                );
                for f in list {
                    out += &f.text();
                }
            }
        }
        out
    }
}

fn reasons(r: &std::collections::BTreeMap<model::report::NotJudged, u64>) -> String {
    if r.is_empty() {
        return String::new();
    }
    let words: Vec<String> = r
        .iter()
        .map(|(why, n)| format!("{} {}", crate::metrics::reason(*why), thousands(*n)))
        .collect();
    format!(" ({})", few(&words, 20))
}

//! What one node says after one pass.

use crate::address::{Family, Frontend, SourceClass};
use crate::capture::{DatapathFound, Gap};
use crate::conntrack::ConntrackReading;
use crate::finding::Finding;
use crate::flows::FlowsReading;
use crate::name::{NodeName, ServicePortName};
use crate::table::{Action, Forwarding, OneOf};
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

mod json;
pub mod service;
mod text;
pub mod words;

pub(crate) use json::clock;
pub use json::{
    AnswerJson, BackendJson, CheckJson, FindingJson, JudgedJson, RowJson, Side, TableJson,
    check_json, rfc3339, table_json,
};
pub use text::{check_text, finding_text, table_text};
pub(crate) use words::thousands;

/// Why a pair was not judged (closed list).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotJudged {
    /// Unknown: the family's kernel state could not be read.
    Unreadable,
    /// Unknown: the packet's way depends on an expression that is not understood.
    UnknownExpression,
    /// Unknown: the rules depend on too much that differs from packet to packet.
    TooManyForks,
    /// Unknown: the API has not been read whole yet, or its view is too old.
    ApiView,
    /// Unknown: which datapath is in charge is not known.
    NoDatapath,
    /// Not comparable: the datapath in charge is not one this program covers.
    DatapathNotCovered,
    /// Not comparable: the rule in question follows ServiceCIDRs, which are not known here.
    ServiceCidrUnknown,
    /// Not comparable: the address is on no link of the node and cannot be reached from this source.
    SourceImpossible,
    /// Not comparable: handled by kube-proxy in user space (1.37 localhost node ports).
    UserSpaceProxy,
    /// Not comparable: nothing is expected of a running kube-proxy (manifests).
    ProxyNotExpected,
    /// Not comparable: kube-proxy's configuration is not known well enough to say.
    ConfigurationUnknown,
    /// Not comparable: the node is starting, draining or gone.
    NodeState,
}

impl NotJudged {
    /// The reason's word on the wire, in JSON and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            NotJudged::Unreadable => "unreadable",
            NotJudged::UnknownExpression => "unknown_expression",
            NotJudged::TooManyForks => "too_many_forks",
            NotJudged::ApiView => "api_view",
            NotJudged::NoDatapath => "no_datapath",
            NotJudged::DatapathNotCovered => "datapath_not_covered",
            NotJudged::ServiceCidrUnknown => "service_cidr_unknown",
            NotJudged::SourceImpossible => "source_impossible",
            NotJudged::UserSpaceProxy => "user_space_proxy",
            NotJudged::ProxyNotExpected => "proxy_not_expected",
            NotJudged::ConfigurationUnknown => "configuration_unknown",
            NotJudged::NodeState => "node_state",
        }
    }

    /// The reason in plain words.
    pub fn sentence(self) -> &'static str {
        match self {
            NotJudged::Unreadable => "the kernel's state could not be read",
            NotJudged::UnknownExpression => {
                "the packets' way depends on expressions that are not understood"
            }
            NotJudged::TooManyForks => {
                "the rules depend on too much that differs from packet to packet"
            }
            NotJudged::ApiView => "the API has not been read whole, or too long ago",
            NotJudged::NoDatapath => "no datapath for Services was found on this node",
            NotJudged::DatapathNotCovered => {
                "the datapath in charge is not one that this program covers"
            }
            NotJudged::ServiceCidrUnknown => "the ServiceCIDRs are not known",
            NotJudged::SourceImpossible => "no packet of that kind can reach this node",
            NotJudged::UserSpaceProxy => "kube-proxy handles it in user space",
            NotJudged::ProxyNotExpected => "no running kube-proxy is expected",
            NotJudged::ConfigurationUnknown => "kube-proxy's configuration is not known",
            NotJudged::NodeState => "the node is starting, draining or gone",
        }
    }

    /// Is the pair unknown (against: not comparable)?
    pub fn is_unknown(self) -> bool {
        self <= NotJudged::NoDatapath
    }
}

/// How much was judged, in pairs of frontend and source class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Compared, converging ones included.
    pub pairs: u64,
    /// Of them, compared against more than one legitimate answer.
    pub multi_answer: u64,
    /// Of them, converging: they differ, and are still given time.
    pub converging: u64,
    /// Could not be told.
    pub unknown: u64,
    /// Why not.
    pub unknown_reasons: BTreeMap<NotJudged, u64>,
    /// Not to be compared.
    pub not_comparable: u64,
    /// Why not.
    pub not_comparable_reasons: BTreeMap<NotJudged, u64>,
}

impl Judged {
    /// Counts pairs that were not judged, under the reason's heading.
    pub fn not(&mut self, why: NotJudged, pairs: u64) {
        if pairs == 0 {
            return;
        }
        let (sum, reasons) = if why.is_unknown() {
            (&mut self.unknown, &mut self.unknown_reasons)
        } else {
            (&mut self.not_comparable, &mut self.not_comparable_reasons)
        };
        *sum += pairs;
        *reasons.entry(why).or_default() += pairs;
    }

    /// Counts those of others as well.
    pub(crate) fn add(&mut self, other: &Judged) {
        self.combine(other, u64::saturating_add);
    }

    /// Counts those no more that were counted by [`Judged::add`].
    pub(crate) fn sub(&mut self, other: &Judged) {
        self.combine(other, u64::saturating_sub);
    }

    fn combine(&mut self, other: &Judged, of: fn(u64, u64) -> u64) {
        // Named, so that a new field cannot be forgotten here.
        let Judged {
            pairs,
            multi_answer,
            converging,
            unknown,
            unknown_reasons,
            not_comparable,
            not_comparable_reasons,
        } = other;
        self.pairs = of(self.pairs, *pairs);
        self.multi_answer = of(self.multi_answer, *multi_answer);
        self.converging = of(self.converging, *converging);
        self.unknown = of(self.unknown, *unknown);
        self.not_comparable = of(self.not_comparable, *not_comparable);
        for (own, reasons) in [
            (&mut self.unknown_reasons, unknown_reasons),
            (&mut self.not_comparable_reasons, not_comparable_reasons),
        ] {
            for (why, n) in reasons {
                let have = own.entry(*why).or_default();
                *have = of(*have, *n);
            }
            own.retain(|_, n| *n > 0);
        }
    }
}

/// The exit code of `check` (contract): 1 with a finding of severity warning or above; else 2 when
/// something is converging, unknown or could not be read; else 0.
pub fn exit_code(report: &Report) -> u8 {
    use crate::finding::{FindingKind, Severity};
    let serious = |f: &Finding| f.severity >= Severity::Warning;
    if report.findings.iter().any(serious) {
        1
    } else if report.converging.iter().any(serious)
        || report.judged.unknown > 0
        || !report.gaps.is_empty()
        || report
            .findings
            .iter()
            .chain(&report.converging)
            .any(|f| f.kind == FindingKind::Unreadable)
    {
        2
    } else {
        0
    }
}

/// A node's own state, where it explains differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Nothing special.
    Ready,
    /// The datapath has not been programmed for the first time yet.
    Starting,
    /// Being drained or deleted.
    Draining,
    /// Its Node object is gone.
    Gone,
}

/// One row of a report: what one (frontend, source) should get and gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Where.
    pub frontend: Frontend,
    /// From where.
    pub source: SourceClass,
    /// Whose.
    pub service: Option<ServicePortName>,
    /// What should be; `None`: nothing is asked for.
    pub desired: Option<OneOf<Forwarding>>,
    /// What is; `None`: could not be read.
    pub observed: Option<Forwarding>,
}

/// One pass of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which node.
    pub node: NodeName,
    /// Counts passes since the agent started.
    pub pass: u64,
    /// When the kernel was read.
    pub at: Millis,
    /// How long reading, decoding and judging took, milliseconds.
    pub took_ms: u64,
    /// Until when the view of the API is known to be current; `None`: never was.
    pub api_as_of: Option<Millis>,
    /// The node's own state.
    pub state: NodeState,
    /// One sentence.
    pub verdict: String,
    /// Datapaths found.
    pub datapaths: Vec<DatapathFound>,
    /// How much was judged.
    pub judged: Judged,
    /// What could not be read.
    pub gaps: Vec<Gap>,
    /// What lasted, worst first.
    pub findings: Vec<Finding>,
    /// What differs and is still given time.
    pub converging: Vec<Finding>,
    /// Every row, in [`Row::place`]'s order. One that is the same as in the last report is the very
    /// same.
    pub rows: Arc<[Arc<Row>]>,
    /// The newest reading of connection tracking, which has its own time and is no part of the verdict;
    /// `None`: nobody looked.
    pub conntrack: Option<Arc<ConntrackReading>>,
    /// Which backends answer new flows, with its own time as well, and no part of the verdict either;
    /// `None`: nobody looked.
    pub flows: Option<Arc<FlowsReading>>,
}

impl Row {
    /// Its place among the rows of a report, which no other row has.
    pub fn place(&self) -> (Family, Frontend, SourceClass) {
        (self.frontend.family(), self.frontend, self.source)
    }

    /// The action that is observed, if it was read.
    pub fn action(&self) -> Option<&Action> {
        self.observed.as_ref().map(|o| &o.action)
    }
}

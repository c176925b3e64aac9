//! Bounds of what is taken from the wire, each with its reason. Beyond one a message is refused, with
//! an error that names the field; the sender keeps to them by cutting text and leaving out rows.

/// Bytes of one message, decompressed: 5,000 Services in three source classes take about 5 MB.
pub const MESSAGE_BYTES: usize = 64 << 20;
/// Rows of one report: 20,000 Services with five frontends in three source classes.
pub const ROWS: usize = 300_000;
/// Findings of one report: what the agent may send.
pub const FINDINGS: usize = model::limits::FINDINGS_PER_REPORT;
/// Gaps of one report: one per family, table and endpoint of kube-proxy is far fewer.
pub const GAPS: usize = 1_000;
/// Datapaths of one node.
pub const DATAPATHS: usize = 32;
/// Backends of one row: the API server keeps 1,000 endpoints in one slice, large Services have some
/// slices.
pub const BACKENDS: usize = 50_000;
/// Legitimate answers of one row.
pub const ANSWERS: usize = 64;
/// Source ranges of one row.
pub const RANGES: usize = 10_000;
/// Pieces of evidence of one finding.
pub const EVIDENCE: usize = 256;
/// Bytes of a name (RFC 1123 subdomain: 253).
pub const NAME_BYTES: usize = 253;
/// Bytes of one text: a sentence with some names in it.
pub const TEXT_BYTES: usize = 8 << 10;
/// Backends whose flows one node tells of: what the agent may send.
pub const FLOW_BACKENDS: usize = model::limits::FLOW_BACKENDS;

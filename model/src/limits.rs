//! Every bound, with its reason. Reaching one is a gap and a metric, never silence.

/// Stamps kept of Services that are gone: enough to time staleness of what a busy cluster deletes
/// in two hours, small enough to forget.
pub const GONE_STAMPS: usize = 10_000;

/// Pieces of evidence in one row: the packet's way through a node's rules is shorter than this.
pub const EVIDENCE_PER_ROW: usize = 16;

/// Forks that one (frontend, source class) may cause while walking the rules. More means that the
/// rules depend on too much that is unknown to be worth an answer.
pub const FORKS_PER_ROW: usize = 4_096;

/// Depth of jumps. The kernel's own limit is 16 for nf_tables (`NFT_JUMP_STACK_SIZE`).
pub const JUMP_DEPTH: usize = 64;

/// Findings of one report; beyond it the rest is counted.
pub const FINDINGS_PER_REPORT: usize = 20_000;

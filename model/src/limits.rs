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

/// Services made anew one by one; with more of them touched at once, making the whole table is cheaper.
pub const TOUCHED_SERVICES: usize = 1_000;

/// Findings of one report; beyond it the rest is counted.
pub const FINDINGS_PER_REPORT: usize = 20_000;

/// Contradicted facts whose age is kept. A node of which more is wrong is wrong as a whole.
pub const LEDGER_FACTS: usize = 50_000;

/// Facts that healed and may come back, remembered for ten minutes.
pub const LEDGER_HEALED: usize = 10_000;

/// Times that one fact came and went within ten minutes: passes are seconds apart.
pub const LEDGER_EPISODES: usize = 64;

/// Services fetched again from the API server after one pass (design 6 c). Damage to more Services
/// at once takes more passes; the API server must not pay for it.
pub const REFRESHES_PER_PASS: usize = 20;

/// Replicas of the aggregator that an agent reports to. Two or three are what anybody runs; each
/// costs every agent a stream, and every report one more encoding.
pub const REPLICAS: usize = 16;

/// Addresses of one replica: a Pod has one of each family.
pub const REPLICA_ADDRESSES: usize = 2;

/// Readings of connection tracking that are remembered: one every 5 s for the forecast's longest window
/// of four hours, and some.
pub const CONNTRACK_READINGS: usize = 3_000;

/// Flows of Services that one walk of connection tracking keeps, as 8 bytes each, twice. A table of more
/// is not walked to its end.
pub const FLOW_ENTRIES: usize = 262_144;

/// Pairs of frontend and backend that one walk counts for; the window holds ten such walks.
pub const FLOW_KEYS: usize = 16_384;

/// Addresses counted that one backend left without an answer. More say nothing more.
pub const FLOW_SOURCES: usize = 16;

/// Backends of one node that are reported, those first that answered nothing.
pub const FLOW_BACKENDS: usize = 512;

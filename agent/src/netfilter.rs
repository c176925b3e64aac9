//! Netfilter: one representation of rules, the decoders that write it, the walk that reads it.

pub mod changes;
pub mod nftables;
pub mod ruleset;
pub mod trace;
pub mod walk;
pub mod xtables;

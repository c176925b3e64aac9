//! The wire between agent and aggregator: one gRPC stream, opened by the agent.
//!
//! [`v1`] is generated from `proto/vipwitness.v1.proto` and committed; [`encode`] and [`decode`]
//! turn the model's types into it and back; [`limits`] bounds what is taken in.

mod conntrack;
pub mod decode;
pub mod encode;
mod flows;
pub mod limits;

/// Generated from `proto/vipwitness.v1.proto` by `examples/generate.rs`.
#[expect(missing_docs, clippy::all, reason = "generated")]
pub mod v1 {
    include!("generated/vipwitness.v1.rs");
}

/// Version of the protocol that this crate speaks ([`v1::Hello::wire_version`]).
pub const WIRE_VERSION: u32 = 1;

/// The metadata key of the agent's ServiceAccount token (`Bearer …`).
pub const AUTHORIZATION: &str = "authorization";

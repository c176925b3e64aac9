//! What the Kubernetes API says, from the API server or from manifests.
//!
//! The only crate that knows Kubernetes' types. Reading order: [`trim`] (an object as the API
//! writes it, to the model's types), [`manifests`] and [`api`] (the two sources), [`said`] (what
//! both of them say); [`objects`] (what only the aggregator follows). [`yaml`] keeps a file from taking the parser's time.

pub mod api;
pub mod door;
pub mod field;
pub mod kept;
pub mod manifests;
pub mod objects;
pub mod said;
pub mod trim;
pub mod yaml;

//! The agent of vipwitness: reads one node and says what differs.

pub mod bundle;
pub mod conntrack;
pub mod datapath;
pub mod flows;
pub mod fresh;
pub mod host;
pub mod ipvs;
pub mod kernel;
pub mod local;
pub mod netfilter;
pub mod replay;
pub mod uplink;

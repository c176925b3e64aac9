//! The agent of vipwitness: reads one node and says what differs.

pub mod datapath;
pub mod host;
pub mod netfilter;
pub mod uplink;

//! The node: everything that is read from the kernel, and nothing that is written to it.
//!
//! There is no read-only right for netfilter (`CAP_NET_ADMIN` covers both), so the guarantee is
//! this module's: no request in it changes anything.

pub mod conntrack;
pub mod events;
pub mod files;
pub mod flows;
pub mod ipset;
pub mod ipvs;
pub mod links;
pub mod netlink;
pub mod nf_tables;
pub mod xtables;

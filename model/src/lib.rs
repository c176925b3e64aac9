//! What a node's Service datapath should be, what it is, and how they differ.
//!
//! Pure: no I/O, no async, no clock, no log. Time comes in as a value ([`time::Millis`]).
//!
//! Reading order: [`name`], [`address`] (what is talked about); [`service`], [`endpoint`], [`view`]
//! (what the API said); [`profile`] (who programs the node); [`table`] (what each destination gets);
//! [`desired`] (what should be); [`capture`] (what could be read); [`compare`], [`finding`],
//! [`settle`] (how they differ, and since when); [`examine`] (one whole pass), [`report`]; [`flow`]
//! (the debugging flow for one Service, on the whole cluster); and by itself [`conntrack`] (how full
//! the node's table of connections is, and what its counters say) and [`flows`] (which backends answer).

pub mod address;
pub mod capture;
pub mod compare;
pub mod conntrack;
pub mod desired;
pub mod endpoint;
pub mod examine;
pub mod finding;
pub mod flow;
pub mod flows;
pub mod limits;
pub mod name;
pub mod profile;
pub mod report;
pub mod service;
pub mod settle;
pub mod table;
pub mod time;
pub mod view;

//! The wire between agent and aggregator.

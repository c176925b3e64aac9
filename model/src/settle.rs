//! The ledger: the only place where history enters a decision.

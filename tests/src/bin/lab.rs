//! `cargo lab`: the laboratory.
fn main() {}

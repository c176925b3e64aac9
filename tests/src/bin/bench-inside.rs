//! The part of `cargo lab bench` that runs inside a namespace, in a process of its own, so that
//! memory and first readings are those of a fresh process.

use std::process::ExitCode;

use clap::Parser;
use tests::bench::inside::{self, Job};

fn main() -> ExitCode {
    match inside::run(&Job::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-inside: {error:#}");
            ExitCode::FAILURE
        }
    }
}

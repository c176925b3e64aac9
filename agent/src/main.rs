//! The agent: flags and wiring.

mod ask;
mod bundle_command;
mod check;
mod clock;
mod config;
mod pass;
mod proxy;
mod replay_command;
mod run;
mod seccomp;
mod world;

use clap::Parser;
use config::{Command, Flags};
use std::process::ExitCode;

/// Wrong usage (contract of `check` and `table`).
const USAGE: u8 = 64;
/// Could not be told.
const UNKNOWN: u8 = 2;

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let help = !error.use_stderr();
            // Nothing can be done about a terminal that is gone.
            let _ = error.print();
            return if help {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(USAGE)
            };
        }
    };
    match start(flags) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vipwitness-agent: {}", plain(&format!("{error:#}")));
            let usage = error.downcast_ref::<world::Usage>().is_some();
            ExitCode::from(if usage { USAGE } else { UNKNOWN })
        }
    }
}

fn start(flags: Flags) -> anyhow::Result<u8> {
    let runs = matches!(flags.command, Command::Run(_));
    // What the client says about connections is said by the watches, once and with the reason.
    let level = if runs {
        "info,kube_client=off"
    } else {
        "error,kube_client=off"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let output = match &flags.command {
        Command::Bundle(flags) => Some(bundle_command::Output::open(&flags.output)?),
        _ => None,
    };
    seccomp::install(!runs)?;
    // One provider for all of TLS; the only error is that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        match flags.command {
            Command::Run(flags) => run::run(flags).await,
            Command::Check(flags) => check::check(flags).await,
            Command::Table(flags) => check::table(flags).await,
            Command::Bundle(flags) => {
                let output = output.unwrap_or(bundle_command::Output::Stdout);
                bundle_command::bundle(flags, output).await
            }
            Command::Replay(flags) => replay_command::replay(&flags),
            Command::Ask(flags) => ask::ask(flags).await,
        }
    });
    // Watches are still open and a dump may be running; neither has anything left to say.
    runtime.shutdown_background();
    code
}

/// Control characters, as strangers may put them into names, do not reach the terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

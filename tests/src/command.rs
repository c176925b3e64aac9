//! Running a program to its end, with errors that show what it said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// `cargo`, as a person would start it. `cargo run` gives what it runs variables about the package
/// (`CARGO_MANIFEST_DIR` and the like), and build scripts that look at them (ring's does) would be
/// run anew, with all that depends on them, each time one cargo is started by another.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::cache::workspace());
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_NAME",
            "CARGO_PRIMARY_PACKAGE",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// What `program` with `arguments` wrote to stdout. An error when it cannot be started or exits
/// with another status than 0; the error holds what it wrote to stderr.
pub fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    output(Command::new(program).args(arguments))
}

/// The same for a prepared command.
pub fn output(command: &mut Command) -> Result<String> {
    let output = attempt(command)?;
    checked(command, output)
}

/// The same, with `input` on stdin.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", words(command)))?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    // Written from a thread: a program that answers before it has read everything would block both.
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let written = writer.join();
    let text = checked(command, output)?;
    written
        .map_err(|_| anyhow::anyhow!("the thread that wrote the input panicked"))?
        .context("writing its input")?;
    Ok(text)
}

/// Runs a prepared command whatever its exit status will be.
pub fn attempt(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", words(command)))
}

/// The command line as a person would type it, for messages.
pub fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn checked(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{}: {}\n{}",
            words(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

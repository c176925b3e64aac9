//! `ask`: a question to the agent that runs on this node.

use crate::config::{AskFlags, Output};
use crate::world::Usage;
use agent::local::client;
use std::io::Write;
use std::time::Duration;

/// For an answer: the agent itself waits 20 s for a fresh pass.
const LONGEST: Duration = Duration::from_secs(30);

/// Runs `ask`; gives its exit code: 0 when the question was answered, 64 when it was wrong, 2 when
/// nobody could answer it.
pub async fn ask(flags: AskFlags) -> anyhow::Result<u8> {
    let target = target(&flags)?;
    let (status, body) = client::get(&flags.socket, &target, LONGEST).await?;
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    let written = match status {
        200 => out.write_all(body.as_bytes()),
        _ => err.write_all(body.as_bytes()),
    };
    match written {
        // Whoever read has read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(match status {
        200 => 0,
        300..500 => crate::USAGE,
        _ => crate::UNKNOWN,
    })
}

fn target(flags: &AskFlags) -> anyhow::Result<String> {
    let question = flags.question.trim_start_matches('/');
    let good = |c: char| c.is_ascii_graphic() && c != '#';
    if !question.chars().all(good) {
        return Err(Usage(format!(
            "{question:?} is not a question: svc/web, svc/shop/web, node, findings, conntrack, healthz"
        ))
        .into());
    }
    let first = if question.contains('?') { '&' } else { '?' };
    let output = match flags.output {
        Output::Text => "text",
        Output::Json => "json",
    };
    let fresh = if flags.fresh { "&fresh=wait" } else { "" };
    Ok(format!("/{question}{first}output={output}{fresh}"))
}

//! The client of the socket: one question, one answer.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// The longest answer: a node on which nothing is right.
const BYTES: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Silent {
    /// Nobody listens.
    #[error("no agent answers on {0} ({1}): does `vipwitness-agent run` run on this node?")]
    Nobody(PathBuf, io::Error),
    /// This user may not ask.
    #[error("{0} is for root only ({1})")]
    Forbidden(PathBuf, io::Error),
    /// Whoever listens could say anything.
    #[error("who answers on {0} is neither root nor this user, but user {1}: not believed")]
    Stranger(PathBuf, u32),
    /// It did not answer in time.
    #[error("the agent on {0} did not answer within {1:?}")]
    Slow(PathBuf, Duration),
    /// It broke off.
    #[error("the agent on {0} gave no whole answer: {1}")]
    Broken(PathBuf, String),
}

/// GETs `target` (path and query) from the agent on `socket`: status and body.
///
/// # Errors
/// See [`Silent`].
pub async fn get(socket: &Path, target: &str, longest: Duration) -> Result<(u16, String), Silent> {
    match tokio::time::timeout(longest, exchange(socket, target)).await {
        Ok(answer) => answer,
        Err(_) => Err(Silent::Slow(socket.into(), longest)),
    }
}

async fn exchange(socket: &Path, target: &str) -> Result<(u16, String), Silent> {
    let at = || socket.to_path_buf();
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Silent::Forbidden(at(), error),
            _ => Silent::Nobody(at(), error),
        })?;
    let peer = stream
        .peer_cred()
        .map_err(|error| Silent::Nobody(at(), error))?
        .uid();
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    let own = unsafe { libc::geteuid() };
    if peer != 0 && peer != own {
        return Err(Silent::Stranger(at(), peer));
    }
    let broken = |why: String| Silent::Broken(at(), why);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| broken(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get(target)
        .header(hyper::header::HOST, "agent")
        .body(Empty::new())
        .map_err(|error| broken(error.to_string()))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(error.to_string()))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), BYTES)
        .collect()
        .await
        .map_err(|error| broken(error.to_string()))?
        .to_bytes();
    driver.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

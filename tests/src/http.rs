//! The smallest HTTP client: one GET over a plain connection, for listeners inside namespaces
//! (kube-proxy's, the aggregator's). HTTP/1.0, so that the answer ends with the connection.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, as they came.
    pub head: String,
    /// Body, as text.
    pub body: String,
}

/// GETs `path` (with query) from `address`, in the namespace of the calling thread, within 10 s.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    get_with(address, path, &[])
}

/// The same with header lines such as `Accept: text/plain`.
pub fn get_with(address: SocketAddr, path: &str, headers: &[&str]) -> Result<Answer> {
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("reading http://{address}{path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of headers")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("the answer has no status")?;
    Ok(Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// GETs from inside a namespace.
pub fn get_in(netns: &Netns, address: SocketAddr, path: &str) -> Result<Answer> {
    netns.enter(|| get(address, path))?
}

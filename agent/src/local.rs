//! The same questions on the node itself: HTTP/1 on a unix socket that only root can open.
//!
//! No TCP port, because every Pod on the host's network can reach those. What is answered is the last
//! report, or with `?fresh=wait` that of a pass which began after the question; a question never stops
//! the thread that looks.

pub mod answer;
pub mod client;
mod socket;

pub use socket::{Refused, Socket};

use crate::fresh::{Asker, Look};
use answer::{Answer, Asked};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::time::Millis;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Where the socket is, unless a flag says otherwise: on the host, and gone with the next boot.
pub const PATH: &str = "/run/vipwitness/agent.sock";

/// Connections served at once; people and scripts on one node. More wait to be accepted.
const CONNECTIONS: usize = 16;
/// Bytes of a request's line and headers; curl needs 200.
const HEAD: usize = 16 << 10;
/// For a request's headers to arrive.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// For a fresh pass: the longest pause between two, and one of a large node.
const FRESH: Duration = Duration::from_secs(20);
/// For a whole connection, which carries one question: a client that does not read is let go.
const CONNECTION: Duration = Duration::from_secs(60);
/// Between attempts to accept, when the process has no descriptor left.
const RETRY: Duration = Duration::from_secs(1);

/// Answers until the runtime ends. `now` is the node's clock.
pub async fn serve(socket: Arc<Socket>, asker: Asker, now: fn() -> Millis) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed: an error cannot come.
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let stream = match socket.accept().await {
            Ok(stream) => stream,
            Err(why) => {
                tracing::warn!(%why, "cannot accept on the unix socket");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let asker = asker.clone();
        tokio::spawn(async move {
            let answering = service_fn(|request| {
                let asker = asker.clone();
                async move { Ok::<_, Infallible>(respond(&request, &asker, now).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answering);
            // What is no HTTP was answered with 400 by then; whoever went away needs no answer.
            if let Ok(Err(why)) = tokio::time::timeout(CONNECTION, connection).await {
                tracing::debug!(%why, "a connection on the unix socket ended early");
            }
            drop(permit);
        });
    }
}

async fn respond(
    request: &Request<Incoming>,
    asker: &Asker,
    now: fn() -> Millis,
) -> Response<Full<Bytes>> {
    let text = request
        .headers()
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.trim_start().starts_with("text/plain"));
    let get = request.method() == Method::GET;
    let answer = if get {
        match Asked::parse(request.uri().path(), request.uri().query(), text) {
            Ok(asked) => {
                let look = if asked.wait {
                    asker.fresh(FRESH).await
                } else {
                    Look {
                        report: asker.newest(),
                        fresh: false,
                    }
                };
                answer::answer(&asked, &look, now())
            }
            Err(answer) => *answer,
        }
    } else {
        Answer::problem(405, "only GET is answered", Vec::new(), text)
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !get {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

//! Sends what the passes found to every replica of the aggregator.
//!
//! One connection each, opened from here and opened again with back-off. What is sent is always the
//! newest report: a slow or absent aggregator costs no memory, since nothing queues. A pass that came
//! to the same as the last one sent is told by a heartbeat.

use model::name::NodeName;
use model::report::Report;
use model::time::Millis;
use proto::v1;
use proto::v1::witness_client::WitnessClient;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;

/// The newest report; `None` before the first pass.
pub type Reports = watch::Receiver<Option<Arc<Report>>>;

/// Between heartbeats. The aggregator calls a node silent after three of them.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// For one message to be taken off our hands: 64 MiB over a bad link.
const SEND: Duration = Duration::from_secs(30);
/// Back-off between attempts: from here, doubled,
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// to here. Short: an aggregator that is back wants its fleet back.
const RETRY_LAST: Duration = Duration::from_secs(20);
/// A connection that lived this long was a good one: the back-off starts anew.
const GOOD: Duration = Duration::from_secs(30);

/// Where to send, and as whom.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// `host:port` of each replica of the aggregator.
    pub aggregators: Vec<String>,
    /// The node reported on.
    pub node: NodeName,
    /// File with the ServiceAccount token for the aggregator's audience, read again at each connect.
    pub token_file: Option<PathBuf>,
    /// This agent's version.
    pub version: String,
}

/// Sends reports until the sender of `reports` is dropped. Failures are logged and tried again.
pub async fn uplink(config: UplinkConfig, reports: Reports) {
    let mut tasks = JoinSet::new();
    for aggregator in config.aggregators.clone() {
        tasks.spawn(keep_connected(config.clone(), aggregator, reports.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

async fn keep_connected(config: UplinkConfig, aggregator: String, mut reports: Reports) {
    let mut pause = RETRY_FIRST;
    loop {
        let start = tokio::time::Instant::now();
        let Err(why) = session(&config, &aggregator, &mut reports).await else {
            return;
        };
        if start.elapsed() >= GOOD {
            pause = RETRY_FIRST;
        }
        let wait = pause.mul_f64(0.5 + 0.5 * random());
        tracing::warn!(aggregator, %why, retry_ms = wait.as_millis() as u64, "not connected");
        sleep(wait).await;
        pause = (pause * 2).min(RETRY_LAST);
        if reports.has_changed().is_err() {
            return;
        }
    }
}

/// Why a session ended, for the log.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("token file {0}: {1}")]
    Token(PathBuf, String),
    #[error("{0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the aggregator closed the stream")]
    Closed,
    #[error("the aggregator takes nothing")]
    Stuck,
}

impl From<tonic::Status> for Ended {
    fn from(s: tonic::Status) -> Ended {
        Ended::Refused(format!("{}: {}", s.code(), s.message()))
    }
}

/// One connection. `Ok` when no more reports will come.
async fn session(
    config: &UplinkConfig,
    aggregator: &str,
    reports: &mut Reports,
) -> Result<(), Ended> {
    let channel = Endpoint::from_shared(format!("http://{aggregator}"))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(HEARTBEAT)
        .keep_alive_timeout(2 * HEARTBEAT)
        .connect()
        .await?;
    let mut client = WitnessClient::new(channel)
        .send_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_encoding_message_size(proto::limits::MESSAGE_BYTES);
    let (up, outgoing) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    if let Some(file) = &config.token_file {
        request
            .metadata_mut()
            .insert(proto::AUTHORIZATION, bearer(file).await?);
    }
    send(
        &up,
        v1::agent_message::Message::Hello(v1::Hello {
            node: config.node.0.to_string(),
            agent_version: config.version.clone(),
            wire_version: proto::WIRE_VERSION,
        }),
    )
    .await?;
    let mut answers = client.stream(request).await?.into_inner();
    tracing::info!(aggregator, "connected");

    let mut sent: Option<Arc<Report>> = None;
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    reports.mark_changed();
    loop {
        tokio::select! {
            changed = reports.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let Some(newest) = reports.borrow_and_update().clone() else { continue };
                let message = match &sent {
                    Some(last) if same(last, &newest) => heartbeat(Some(&newest)),
                    _ => {
                        let message = proto::encode::message(&newest, now());
                        sent = Some(newest);
                        message
                    }
                };
                deliver(&up, message).await?;
                beat.reset();
            }
            _ = beat.tick() => {
                // What was read since the last report is said by it only once it was sent.
                let newest = sent.is_some().then(|| reports.borrow().clone()).flatten();
                let newest = newest.filter(|n| sent.as_ref().is_some_and(|s| same(s, n)));
                deliver(&up, heartbeat(newest.as_deref().or(sent.as_deref()))).await?;
            }
            answer = answers.message() => match answer? {
                // Acknowledgements need nothing done; questions that this version does not know
                // are left unanswered, and the aggregator shows what it has.
                Some(_) => {}
                None => return Err(Ended::Closed),
            },
        }
    }
}

/// Do two passes say the same, but for when?
fn same(a: &Report, b: &Report) -> bool {
    a.verdict == b.verdict
        && a.state == b.state
        && a.judged == b.judged
        && a.datapaths == b.datapaths
        && a.gaps == b.gaps
        && a.findings == b.findings
        && a.converging == b.converging
        && (Arc::ptr_eq(&a.rows, &b.rows) || a.rows == b.rows)
}

fn heartbeat(newest: Option<&Report>) -> v1::AgentMessage {
    v1::AgentMessage {
        message: Some(v1::agent_message::Message::Heartbeat(match newest {
            None => v1::Heartbeat::default(),
            Some(r) => v1::Heartbeat {
                pass: r.pass,
                at_ms: r.at.0,
                took_ms: r.took_ms,
                api_as_of_ms: r.api_as_of.map(|m| m.0),
            },
        })),
        sent_at_ms: now().0,
    }
}

async fn send(
    up: &mpsc::Sender<v1::AgentMessage>,
    message: v1::agent_message::Message,
) -> Result<(), Ended> {
    deliver(
        up,
        v1::AgentMessage {
            message: Some(message),
            sent_at_ms: now().0,
        },
    )
    .await
}

async fn deliver(
    up: &mpsc::Sender<v1::AgentMessage>,
    message: v1::AgentMessage,
) -> Result<(), Ended> {
    match timeout(SEND, up.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::Closed),
        Err(_) => Err(Ended::Stuck),
    }
}

async fn bearer(file: &Path) -> Result<MetadataValue<Ascii>, Ended> {
    let wrong = |why: String| Ended::Token(file.to_path_buf(), why);
    let token = tokio::fs::read_to_string(file)
        .await
        .map_err(|e| wrong(e.to_string()))?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| wrong("holds characters that no token has".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis(since.as_millis() as u64)
}

/// 0 to 1, from the randomness that hash maps are seeded with: enough for jitter.
fn random() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

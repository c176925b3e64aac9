//! Sends what the passes found to every replica of the aggregator.
//!
//! One connection each, opened from here and opened again with back-off, in a task of its own: a
//! replica that is slow or gone delays neither the others nor the passes. What is sent is always the
//! newest report: a slow or absent aggregator costs no memory, since nothing queues. A pass that came
//! to the same as the last one sent is told by a heartbeat, one that came to nearly the same by what is
//! different.
//!
//! Which replicas there are is decided in [`replicas`]; this file does it.

pub mod replicas;

use crate::fresh::{Asker, Reports};
use cluster::kept;
use model::conntrack::ConntrackReading;
use model::flows::FlowsReading;
use model::name::NodeName;
use model::name::ServicePortName;
use model::report::Report;
use model::time::Millis;
use proto::v1;
use proto::v1::aggregator_message::Message as Question;
use proto::v1::witness_client::WitnessClient;
use replicas::Replica;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// For a look that the aggregator asks for: the longest pause between two, and one of a large node.
const LOOK: Duration = Duration::from_secs(20);
/// Looks that one replica waits for at once; it has one question under way.
const LOOKS: usize = 4;
/// The replicas that the API names now; empty while it names none.
pub type Named = watch::Receiver<Vec<Replica>>;

/// Between heartbeats. The aggregator calls a node silent after three of them.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two heartbeats for passes that came to the same.
const OFTEN: Duration = Duration::from_secs(1);
/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// For the aggregator to accept the stream: it may have to ask the API server about the token.
const ANSWER: Duration = Duration::from_secs(30);
/// For one message to be taken off our hands: 64 MiB over a bad link.
const SEND: Duration = Duration::from_secs(30);
/// Back-off between attempts: from here, doubled,
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// to here. Short: an aggregator that is back wants its fleet back.
const RETRY_LAST: Duration = Duration::from_secs(20);
/// A connection that lived this long was a good one: the back-off starts anew.
const GOOD: Duration = Duration::from_secs(30);

/// How the aggregator proves that it is the aggregator.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By a certificate of the authorities in this PEM file, which is read again at each connect.
    Authority(PathBuf),
    /// Not at all: in plain text, and whoever answers at the address gets reports and token.
    Anybody,
}

/// The Service whose replicas are reported to.
#[derive(Clone, Debug)]
pub struct AggregatorService {
    /// The Service and its port.
    pub port: ServicePortName,
    /// Where the addresses of its replicas are kept, so that a restart on a node that does not reach
    /// the API server still reaches them.
    pub kept: Option<PathBuf>,
}

/// Where to send, and as whom.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// `host:port` of replicas that are always reported to.
    pub aggregators: Vec<String>,
    /// Whose replicas are reported to besides.
    pub service: Option<AggregatorService>,
    /// The node reported on.
    pub node: NodeName,
    /// File with the ServiceAccount token for the aggregator's audience, read again at each connect.
    pub token_file: Option<PathBuf>,
    /// How the aggregator proves itself.
    pub trust: Trust,
    /// This agent's version.
    pub version: String,
}

/// One replica, as something to connect to.
struct Target {
    /// For the log.
    name: String,
    /// `host:port`, tried in turn.
    addresses: Vec<String>,
    /// The name that must be in its certificate.
    tls_name: String,
}

/// Sends the reports that `asker` has until no more come, and has the node looked at when the
/// aggregator asks. Failures are logged and tried again.
pub async fn uplink(config: UplinkConfig, mut named: Named, asker: Asker) {
    let config = Arc::new(config);
    let mut tasks = JoinSet::new();
    for aggregator in &config.aggregators {
        let host = aggregator.rsplit_once(':').map_or("", |(host, _)| host);
        let target = Target {
            name: aggregator.clone(),
            addresses: vec![aggregator.clone()],
            tls_name: host.trim_matches(['[', ']']).into(),
        };
        tasks.spawn(keep_connected(config.clone(), target, asker.clone()));
    }
    if let Some(service) = &config.service {
        let mut held = service.kept.as_ref().map_or_else(Vec::new, |file| {
            replicas::from_text(&service.port, &kept::read(file))
        });
        let mut written = held.clone();
        let mut open: BTreeMap<Replica, AbortHandle> = BTreeMap::new();
        loop {
            held = replicas::hold(&held, &named.borrow_and_update());
            open.retain(|replica, task| {
                let stays = held.contains(replica);
                if !stays {
                    tracing::info!(aggregator = replica.name, "is no replica any more");
                    task.abort();
                }
                stays
            });
            for replica in &held {
                open.entry(replica.clone()).or_insert_with(|| {
                    let target = Target {
                        name: replica.name.clone(),
                        addresses: replica.addresses.iter().map(ToString::to_string).collect(),
                        tls_name: tls_name(&service.port),
                    };
                    tasks.spawn(keep_connected(config.clone(), target, asker.clone()))
                });
            }
            if held != written {
                keep(service, &held).await;
                written.clone_from(&held);
            }
            // What was aborted has ended by now, or soon will.
            while tasks.try_join_next().is_some() {}
            if named.changed().await.is_err() {
                break;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// The name in the certificate of every replica of a Service: addresses of Pods come and go.
fn tls_name(of: &ServicePortName) -> String {
    format!("{}.{}.svc", of.service.name, of.service.namespace)
}

async fn keep(service: &AggregatorService, held: &[Replica]) {
    let Some(file) = service.kept.clone() else {
        return;
    };
    let text = replicas::to_text(&service.port, held);
    // A disk that hangs must not hold up a thread that others need.
    let written = tokio::task::spawn_blocking(move || {
        kept::write(&file, &text).map_err(|e| format!("{}: {e}", file.display()))
    });
    if let Ok(Err(why)) = written.await {
        tracing::warn!(why, "cannot keep the aggregator's addresses");
    }
}

async fn keep_connected(config: Arc<UplinkConfig>, target: Target, asker: Asker) {
    let mut reports = asker.reports();
    let mut pause = RETRY_FIRST;
    let mut turn = 0;
    loop {
        let start = tokio::time::Instant::now();
        let address = &target.addresses[turn % target.addresses.len()];
        let Err(why) = session(&config, &target, address, &asker, &mut reports).await else {
            return;
        };
        if start.elapsed() >= GOOD {
            pause = RETRY_FIRST;
        } else {
            turn += 1;
        }
        let wait = pause.mul_f64(0.5 + 0.5 * random());
        tracing::warn!(aggregator = target.name, address, %why, retry_ms = wait.as_millis() as u64, "not connected");
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
    #[error("authorities in {0}: {1}")]
    Authority(PathBuf, std::io::Error),
    #[error("{}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the aggregator closed the stream")]
    Closed,
    #[error("the aggregator takes nothing")]
    Stuck,
    #[error("the aggregator does not answer")]
    Silent,
}

/// An error with its causes: tonic's own text is "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<tonic::Status> for Ended {
    fn from(s: tonic::Status) -> Ended {
        Ended::Refused(format!("{}: {}", s.code(), s.message()))
    }
}

/// One connection. `Ok` when no more reports will come.
async fn session(
    config: &UplinkConfig,
    target: &Target,
    address: &str,
    asker: &Asker,
    reports: &mut Reports,
) -> Result<(), Ended> {
    let endpoint = match &config.trust {
        Trust::Anybody => Endpoint::from_shared(format!("http://{address}"))?,
        Trust::Authority(file) => {
            let authorities = tokio::fs::read(file)
                .await
                .map_err(|e| Ended::Authority(file.clone(), e))?;
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(authorities))
                .domain_name(&target.tls_name);
            Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?
        }
    };
    let channel = endpoint
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
    let mut answers = match timeout(ANSWER, client.stream(request)).await {
        Ok(answer) => answer?.into_inner(),
        Err(_) => return Err(Ended::Silent),
    };
    tracing::info!(aggregator = target.name, address, "connected");

    let mut sent = Sent::default();
    let mut looks = JoinSet::new();
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    reports.mark_changed();
    loop {
        tokio::select! {
            changed = reports.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                // Passes that come to the same are many; a fleet's aggregator need not hear of each.
                let newest = reports.borrow_and_update().clone();
                let nothing_new = newest.zip(sent.last.as_ref()).is_some_and(|(n, s)| same(s, &n));
                let wait = sent.at.map(|at| OFTEN.saturating_sub(at.elapsed()));
                match wait.filter(|wait| nothing_new && !wait.is_zero()) {
                    Some(wait) => beat.reset_after(wait),
                    None => {
                        tell(&up, reports, &mut sent).await?;
                        beat.reset();
                    }
                }
            }
            _ = beat.tick() => {
                // What was read since the last report is said by it only once it was sent.
                let last = sent.last.clone();
                let last = last.as_deref();
                let newest = last.is_some().then(|| reports.borrow().clone()).flatten();
                let newest = newest.filter(|n| last.is_some_and(|s| same(s, n)));
                let beat = sent.heartbeat(newest.as_deref().or(last));
                deliver(&up, beat).await?;
                sent.at = Some(tokio::time::Instant::now());
            }
            answer = answers.message() => match answer? {
                Some(v1::AggregatorMessage { message: Some(Question::Inspect(question)) })
                    if looks.len() < LOOKS =>
                {
                    tracing::debug!(service = ?question.name, "the aggregator asks");
                    let asker = asker.clone();
                    looks.spawn(async move { (question.id, asker.fresh(LOOK).await.fresh) });
                }
                Some(v1::AggregatorMessage { message: Some(Question::Welcome(welcome)) }) => {
                    sent.takes_deltas = welcome.takes_deltas;
                }
                // Acknowledgements need nothing done; questions that this version does not know
                // are left unanswered, and the aggregator shows what it has.
                Some(_) => {}
                None => return Err(Ended::Closed),
            },
            Some(looked) = looks.join_next() => {
                let Ok((id, fresh)) = looked else { continue };
                // What was seen goes first: whoever reads the answer knows it already.
                let pass = tell(&up, reports, &mut sent).await?;
                let answer = v1::InspectAnswer { id, pass, fresh };
                send(&up, v1::agent_message::Message::InspectAnswer(answer)).await?;
            }
        }
    }
}

/// What this connection's aggregator has.
#[derive(Default)]
struct Sent {
    last: Option<Arc<Report>>,
    /// It has the rows of the last one, too: they were not too many.
    with_rows: bool,
    takes_deltas: bool,
    /// What it knows of connection tracking.
    conntrack: Option<Arc<ConntrackReading>>,
    /// What it knows of the backends that answer.
    flows: Option<Arc<FlowsReading>>,
    /// When it was last told anything by a pass.
    at: Option<tokio::time::Instant>,
}

impl Sent {
    /// The message that brings the aggregator from what it has to `newest`.
    fn message(&mut self, newest: Arc<Report>) -> v1::AgentMessage {
        let known = self.flows == newest.flows;
        self.flows.clone_from(&newest.flows);
        let mut message = self.whole(newest);
        // Backends that answer are many, and change seldom.
        if known {
            use v1::agent_message::Message;
            match &mut message.message {
                Some(Message::Report(report)) => report.flows = None,
                Some(Message::ReportDelta(delta)) => {
                    if let Some(report) = &mut delta.report {
                        report.flows = None;
                    }
                }
                _ => {}
            }
        }
        message
    }

    fn whole(&mut self, newest: Arc<Report>) -> v1::AgentMessage {
        use v1::agent_message::Message;
        self.conntrack.clone_from(&newest.conntrack);
        let base = self.last.replace(newest.clone());
        let base = base.filter(|_| self.takes_deltas && self.with_rows);
        if let Some(delta) = base.and_then(|base| proto::encode::delta(&base, &newest, now())) {
            return delta;
        }
        let message = proto::encode::message(&newest, now());
        self.with_rows = matches!(
            &message.message,
            Some(Message::Report(wire)) if wire.rows.len() == newest.rows.len()
        );
        message
    }

    /// Tells that `newest` came to the same as the last one, with what is new of connection tracking:
    /// that is another every few seconds, and a report with all its findings would be much for it.
    fn heartbeat(&mut self, newest: Option<&Report>) -> v1::AgentMessage {
        let newer = newest.and_then(|r| r.conntrack.as_ref());
        let newer = newer.filter(|n| self.conntrack.as_ref() != Some(*n));
        if newer.is_some() {
            self.conntrack = newer.cloned();
        }
        let flows = newest.and_then(|r| r.flows.as_ref());
        let flows = flows.filter(|n| self.flows.as_ref() != Some(*n));
        if flows.is_some() {
            self.flows = flows.cloned();
        }
        let beat = newest.map_or_else(v1::Heartbeat::default, |r| v1::Heartbeat {
            pass: r.pass,
            at_ms: r.at.0,
            took_ms: r.took_ms,
            api_as_of_ms: r.api_as_of.map(|m| m.0),
            conntrack: newer.map(|c| proto::encode::conntrack(c)),
            flows: flows.map(|f| proto::encode::flows(f)),
        });
        v1::AgentMessage {
            message: Some(v1::agent_message::Message::Heartbeat(beat)),
            sent_at_ms: now().0,
        }
    }
}

/// Sends the newest report, or a heartbeat when it came to the same as the one `sent` last; gives its
/// pass, 0 when there is none.
async fn tell(
    up: &mpsc::Sender<v1::AgentMessage>,
    reports: &mut Reports,
    sent: &mut Sent,
) -> Result<u64, Ended> {
    let Some(newest) = reports.borrow_and_update().clone() else {
        return Ok(0);
    };
    let pass = newest.pass;
    let message = match &sent.last {
        Some(last) if same(last, &newest) => sent.heartbeat(Some(&newest)),
        _ => sent.message(newest),
    };
    deliver(up, message).await?;
    sent.at = Some(tokio::time::Instant::now());
    Ok(pass)
}

/// Do two passes say the same, but for when, and for connection tracking?
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

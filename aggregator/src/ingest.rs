//! Takes agents' streams in: proves who speaks, decodes, and tells the fleet.

use crate::SharedFleet;
use crate::auth::{AuthError, Tokens};
use crate::fleet::Event;
use crate::inspect::{Ask, Inspector};
use model::name::NodeName;
use model::report::Report;
use model::time::Millis;
use proto::v1;
use proto::v1::agent_message::Message;
use proto::v1::witness_server::{Witness, WitnessServer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

/// For the next message of an agent, which sends a heartbeat every 5 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// A stream whose agent had to show a token lives this long; then it must show a fresh one.
const SESSION: Duration = Duration::from_secs(30 * 60);
/// Streams at once: every node of the fleet, and as many that reconnect.
const STREAMS: usize = 2 * crate::fleet::NODES;

/// The gRPC service.
pub struct Ingest {
    fleet: SharedFleet,
    inspector: Inspector,
    tokens: Option<Tokens>,
    next: AtomicU64,
    streams: Arc<Semaphore>,
}

impl Ingest {
    /// `inspector`: what connected agents are to be asked. `tokens`: how agents prove their node;
    /// `None`: they are believed.
    pub fn new(fleet: SharedFleet, inspector: Inspector, tokens: Option<Tokens>) -> Ingest {
        let streams = Arc::new(Semaphore::new(STREAMS));
        Ingest {
            fleet,
            inspector,
            tokens,
            next: AtomicU64::new(1),
            streams,
        }
    }

    /// As a server of tonic, with compression and bounds.
    pub fn server(self) -> WitnessServer<Ingest> {
        WitnessServer::new(self)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(proto::limits::MESSAGE_BYTES)
    }

    async fn proven(
        &self,
        request: &Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Option<String>, Status> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let token = request
            .metadata()
            .get(proto::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .unwrap_or_default();
        match tokens.node(token).await {
            Ok(node) => Ok(Some(node)),
            Err(why) => {
                let said = why.to_string();
                tracing::warn!(
                    peer = request.remote_addr().map(tracing::field::display),
                    why = ?said,
                    "an agent was refused"
                );
                Err(match why {
                    AuthError::Unavailable(_) => Status::unavailable(said),
                    AuthError::OtherAccount { .. } => Status::permission_denied(said),
                    _ => Status::unauthenticated(said),
                })
            }
        }
    }
}

#[tonic::async_trait]
impl Witness for Ingest {
    type StreamStream = ReceiverStream<Result<v1::AggregatorMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let permit = self
            .streams
            .clone()
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many streams are open"))?;
        let proven = self.proven(&request).await?;
        let (down, answers) = mpsc::channel(4);
        let session = Session {
            fleet: self.fleet.clone(),
            inspector: self.inspector.clone(),
            connection: self.next.fetch_add(1, Ordering::Relaxed),
            ends: proven.is_some().then(|| Instant::now() + SESSION),
            proven,
            down,
            _permit: permit,
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// One agent's stream.
struct Session {
    fleet: SharedFleet,
    inspector: Inspector,
    connection: u64,
    proven: Option<String>,
    ends: Option<Instant>,
    down: mpsc::Sender<Result<v1::AggregatorMessage, Status>>,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    async fn run(self, mut up: Streaming<v1::AgentMessage>) {
        let node = match self.greet(&mut up).await {
            Ok(node) => node,
            Err(status) => return self.refuse(None, status).await,
        };
        tracing::info!(node = ?&*node.0, connection = self.connection, "an agent connected");
        let asks = self.inspector.connected(&node, self.connection);
        let end = self.listen(&node, &mut up, asks).await;
        self.inspector.gone(&node, self.connection);
        let _ = self.tell(
            &node,
            Event::Disconnected {
                connection: self.connection,
            },
        );
        match end {
            Ok(()) => {
                tracing::info!(node = ?&*node.0, connection = self.connection, "an agent left")
            }
            Err(status) => self.refuse(Some(&node), status).await,
        }
    }

    async fn refuse(&self, node: Option<&NodeName>, status: Status) {
        let node = node.map(|n| &*n.0).unwrap_or_default();
        tracing::warn!(?node, connection = self.connection, why = ?status.message(), "a stream ended");
        let _ = timeout(PATIENCE, self.down.send(Err(status))).await;
    }

    async fn greet(&self, up: &mut Streaming<v1::AgentMessage>) -> Result<NodeName, Status> {
        let first = timeout(PATIENCE, up.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(v1::AgentMessage {
            message: Some(Message::Hello(hello)),
            ..
        }) = first
        else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        if hello.wire_version != proto::WIRE_VERSION {
            return Err(Status::failed_precondition(format!(
                "wire version {} is not spoken here, {} is",
                hello.wire_version,
                proto::WIRE_VERSION
            )));
        }
        let node = proto::decode::node(&hello.node).map_err(wrong)?;
        if let Some(proven) = &self.proven
            && **proven != *node.0
        {
            return Err(Status::permission_denied(format!(
                "the token is bound to node {proven:?}, the report is about {:?}",
                &*node.0
            )));
        }
        if hello.agent_version.len() > proto::limits::NAME_BYTES {
            return Err(Status::invalid_argument("hello.agent_version is too long"));
        }
        let connection = self.connection;
        self.tell(
            &node,
            Event::Connected {
                connection,
                agent_version: hello.agent_version,
            },
        )?;
        self.answer(v1::aggregator_message::Message::Welcome(v1::Welcome {
            aggregator_version: env!("CARGO_PKG_VERSION").into(),
            wire_version: proto::WIRE_VERSION,
            takes_deltas: true,
        }))
        .await?;
        Ok(node)
    }

    async fn listen(
        &self,
        node: &NodeName,
        up: &mut Streaming<v1::AgentMessage>,
        mut asks: mpsc::Receiver<Ask>,
    ) -> Result<(), Status> {
        let connection = self.connection;
        let mut heard = Instant::now();
        // What the next delta builds on.
        let mut last: Option<Arc<Report>> = None;
        loop {
            if self.ends.is_some_and(|end| Instant::now() >= end) {
                return Err(Status::unauthenticated("show a fresh token"));
            }
            let next = tokio::select! {
                // Closed when a newer connection of the node is there: nothing is asked here then.
                Some(ask) = asks.recv() => {
                    self.answer(inspect(ask)).await?;
                    continue;
                }
                next = timeout_at(heard + PATIENCE, up.message()) => {
                    next.map_err(|_| Status::deadline_exceeded("no heartbeat came"))??
                }
            };
            heard = Instant::now();
            let Some(v1::AgentMessage {
                message,
                sent_at_ms,
            }) = next
            else {
                return Ok(());
            };
            let sent_at = Millis(sent_at_ms);
            match message {
                Some(message @ (Message::Report(_) | Message::ReportDelta(_))) => {
                    let report: Report = match message {
                        Message::Report(wire) => wire.try_into().map_err(wrong)?,
                        Message::ReportDelta(delta) => {
                            let Some(base) = last.take() else {
                                return Err(Status::invalid_argument("a delta of no report"));
                            };
                            proto::decode::delta(&base, delta).map_err(wrong)?
                        }
                        _ => continue,
                    };
                    if report.node != *node {
                        return Err(Status::permission_denied("a report about another node"));
                    }
                    let pass = report.pass;
                    let report = Arc::new(report);
                    last = Some(report.clone());
                    self.tell(
                        node,
                        Event::Report {
                            connection,
                            report,
                            sent_at,
                        },
                    )?;
                    self.answer(v1::aggregator_message::Message::Ack(v1::Ack { pass }))
                        .await?;
                }
                Some(Message::Heartbeat(h)) => self.tell(
                    node,
                    Event::Heartbeat {
                        connection,
                        pass: h.pass,
                        at: Millis(h.at_ms),
                        took_ms: h.took_ms,
                        api_as_of: h.api_as_of_ms.map(Millis),
                        conntrack: h
                            .conntrack
                            .map(proto::decode::conntrack)
                            .transpose()
                            .map_err(wrong)?
                            .map(Arc::new),
                        flows: h
                            .flows
                            .map(proto::decode::flows)
                            .transpose()
                            .map_err(wrong)?
                            .map(Arc::new),
                        sent_at,
                    },
                )?,
                Some(Message::Hello(_)) => {
                    return Err(Status::invalid_argument("a second Hello"));
                }
                Some(Message::InspectAnswer(a)) => {
                    self.inspector.answered(node, connection, a.id, a.fresh);
                }
                // Of a later version.
                None => {}
            }
        }
    }

    fn tell(&self, node: &NodeName, event: Event) -> Result<(), Status> {
        let mut fleet = self.fleet.write().unwrap_or_else(|e| e.into_inner());
        fleet
            .apply(node, event, crate::now())
            .map_err(|why| match why {
                crate::fleet::Refused::Superseded => Status::aborted(why.to_string()),
                crate::fleet::Refused::Full => Status::resource_exhausted(why.to_string()),
            })
    }

    async fn answer(&self, message: v1::aggregator_message::Message) -> Result<(), Status> {
        let message = v1::AggregatorMessage {
            message: Some(message),
        };
        match timeout(PATIENCE, self.down.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Status::cancelled("the agent takes no answers")),
        }
    }
}

fn inspect(ask: Ask) -> v1::aggregator_message::Message {
    v1::aggregator_message::Message::Inspect(v1::Inspect {
        id: ask.id,
        namespace: ask.service.namespace.to_string(),
        name: ask.service.name.to_string(),
    })
}

fn wrong(e: proto::decode::WireError) -> Status {
    Status::invalid_argument(e.to_string())
}

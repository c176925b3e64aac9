//! The API server as a source: a list, then a watch with bookmarks, for each collection.
//!
//! A list is streamed by the watch itself where the server can (`sendInitialEvents`), so that no
//! list of megabytes is ever held; older servers get a paged list. A watch resumes where it ended.
//! When the server no longer knows that place (410), the list is made again after a random delay.
//! A connection that says nothing, not even a bookmark, for [`SILENCE`] is opened again.

use crate::door::Door;
use crate::said::{Collection, Said};
use crate::trim;
use futures::TryStreamExt;
use http::Request;
use kube::core::WatchEvent;
use model::endpoint::{EndpointSlice, SliceName};
use model::name::{NodeName, ServiceName};
use model::service::Service;
use model::view::{Change, ClusterView};
use rand::Rng;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Bookmarks come about once a minute; a stream that is silent for longer may be dead. Where
/// nothing changes and etcd does not report its progress, a healthy one is silent too: a watch
/// cache sends no bookmark at or before the version that the watch began with
/// (`cacheWatcher.process`). So a silent watch is opened again where it was: the server gives what
/// was missed first, or does not answer.
pub const SILENCE: Duration = Duration::from_secs(75);
/// How long one watch may last; the server ends it then, and it is resumed.
pub(crate) const WATCH_SECONDS: u32 = 290;
/// Objects of one page, where lists cannot be streamed.
pub(crate) const PAGE: u32 = 500;
/// One page, or one object, must be there by then.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);
/// Back-off after failures: first, and longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A collection that may not exist or may not be read is asked for again after this.
pub(crate) const REFUSED: Duration = Duration::from_secs(300);
/// Annotation of the bookmark that ends a streamed list.
pub(crate) const LIST_END: &str = "k8s.io/initial-events-end";

/// The server does not know streamed lists, or its storage cannot give them.
pub(crate) fn cannot_stream(status: &kube::core::Status) -> bool {
    [400, 422].contains(&status.code)
        || (status.code == 500 && status.message.contains("storage feature"))
}

/// Follows the API server until nobody listens any more.
pub async fn follow(door: Arc<Door>, node: NodeName, said: mpsc::Sender<Said>) {
    follow_with(door, node, said, SILENCE).await;
}

async fn follow_with(door: Arc<Door>, node: NodeName, said: mpsc::Sender<Said>, silence: Duration) {
    let listed = Arc::new(AtomicU8::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for collection in Collection::ALL {
        let follower = Follower {
            door: door.clone(),
            collection,
            node: node.clone(),
            said: said.clone(),
            listed: listed.clone(),
            known: BTreeMap::new(),
            streams: true,
            silence,
        };
        tasks.spawn(follower.run());
    }
    while tasks.join_next().await.is_some() {}
}

/// One Service and its slices, fetched at once (design 6 c).
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// Which.
    pub name: ServiceName,
    /// `None`: there is no such Service.
    pub service: Option<Service>,
    /// All its slices.
    pub slices: Vec<EndpointSlice>,
}

impl Fetched {
    /// What changes in a view by it, objects that are gone included.
    pub fn changes(self, view: &ClusterView) -> Vec<Change> {
        let mut changes: Vec<Change> = view
            .slices_of(&self.name)
            .filter(|old| !self.slices.iter().any(|s| s.name == old.name))
            .map(|old| Change::SliceGone(old.name.clone()))
            .collect();
        changes.extend(self.slices.into_iter().map(Change::Slice));
        changes.push(match self.service {
            Some(service) => Change::Service(service),
            None => Change::ServiceGone(self.name),
        });
        changes
    }
}

/// Fetches one Service and its slices from the API server, past every cache (no resource version
/// is asked for, so the answer is as new as etcd).
///
/// # Errors
/// The server could not be asked, refused, or gave something that cannot be understood.
pub async fn get_service(door: &Door, name: &ServiceName) -> Result<Fetched, String> {
    fetch(door, name).await.map_err(|trouble| {
        if matches!(trouble, Trouble::Unreachable(_)) {
            door.failed();
        }
        trouble.text().to_string()
    })
}

async fn fetch(door: &Door, name: &ServiceName) -> Result<Fetched, Trouble> {
    let client = door.client().map_err(|e| Trouble::Busy(e.to_string()))?;
    let bad = |e: crate::field::BadObject| Trouble::Expired(e.to_string());
    let path = format!(
        "/api/v1/namespaces/{}/services/{}",
        name.namespace, name.name
    );
    let request = get(&path).map_err(Trouble::Busy)?;
    let service = match timeout(ANSWER, client.request::<Value>(request)).await {
        Err(_) => return Err(Trouble::Unreachable(no_answer())),
        Ok(Ok(value)) => Some(trim::service(&value).map_err(bad)?),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => None,
        Ok(Err(error)) => return Err(error.into()),
    };
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{}",
        name.namespace, name.name
    );
    let request = get(&path).map_err(Trouble::Busy)?;
    let page = match timeout(ANSWER, client.request::<Page>(request)).await {
        Err(_) => return Err(Trouble::Unreachable(no_answer())),
        Ok(page) => page?,
    };
    let slices = page.items.iter().map(trim::slice).collect::<Result<_, _>>();
    Ok(Fetched {
        name: name.clone(),
        service,
        slices: slices.map_err(bad)?,
    })
}

/// Why a collection could not be read or followed on.
pub(crate) enum Trouble {
    /// No connection, or one that broke or fell silent: another address may do better.
    Unreachable(String),
    /// The server does not know the place to resume at, or sent nonsense: list again.
    Expired(String),
    /// The server does not have it or does not allow it.
    Refused(String),
    /// The server is busy or ill.
    Busy(String),
    /// Nobody listens any more.
    Over,
}

impl Trouble {
    pub(crate) fn text(&self) -> &str {
        match self {
            Trouble::Unreachable(t)
            | Trouble::Expired(t)
            | Trouble::Refused(t)
            | Trouble::Busy(t) => t,
            Trouble::Over => "over",
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Trouble {
        match error {
            kube::Error::Api(status) => status_trouble(&status),
            kube::Error::SerdeError(e) => Trouble::Expired(format!("not understood: {e}")),
            other => Trouble::Unreachable(chain(&other)),
        }
    }
}

pub(crate) fn status_trouble(status: &kube::core::Status) -> Trouble {
    let text = format!("{} ({})", status.message, status.code);
    match status.code {
        410 => Trouble::Expired(text),
        401 | 403 | 404 | 405 => Trouble::Refused(text),
        _ => Trouble::Busy(text),
    }
}

/// An error with its causes, which say what really happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

#[derive(Deserialize)]
pub(crate) struct Page {
    pub(crate) metadata: PageMeta,
    #[serde(default)]
    pub(crate) items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PageMeta {
    #[serde(default)]
    pub(crate) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(crate) next: Option<String>,
}

pub(crate) fn get(path: &str) -> Result<Request<Vec<u8>>, String> {
    Request::get(path)
        .body(Vec::new())
        .map_err(|e| format!("{path}: {e}"))
}

pub(crate) fn no_answer() -> String {
    format!("no answer within {} s", ANSWER.as_secs())
}

/// Path and query of a collection, ending in `?` or `&`.
fn path(collection: Collection, node: &NodeName) -> String {
    match collection {
        Collection::Services => "/api/v1/services?".into(),
        Collection::Slices => "/apis/discovery.k8s.io/v1/endpointslices?".into(),
        Collection::Node => format!("/api/v1/nodes?fieldSelector=metadata.name%3D{node}&"),
        Collection::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs?".into(),
        Collection::ProxyConfigMap => {
            "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dkube-proxy&"
                .into()
        }
    }
}

/// A paged list: all objects, and the version to watch from.
async fn list(
    door: &Door,
    collection: Collection,
    node: &NodeName,
) -> Result<(Vec<Value>, String), Trouble> {
    let client = door
        .client()
        .map_err(|e| Trouble::Unreachable(e.to_string()))?;
    let mut all = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut url = format!("{}limit={PAGE}", path(collection, node));
        if let Some(token) = &next {
            url.push_str("&continue=");
            url.push_str(&escape(token));
        }
        let request = get(&url).map_err(Trouble::Busy)?;
        let page = match timeout(ANSWER, client.request::<Page>(request)).await {
            Err(_) => return Err(Trouble::Unreachable(no_answer())),
            Ok(page) => page?,
        };
        all.extend(page.items);
        next = page.metadata.next.filter(|n| !n.is_empty());
        if next.is_none() {
            return Ok((all, page.metadata.resource_version));
        }
    }
}

/// Percent-encodes what a query value may not hold.
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// What is kept of an object to know later what is gone: ServiceCIDRs keep their ranges.
type Known = BTreeMap<(Arc<str>, Arc<str>), Vec<ipnet::IpNet>>;

struct Follower {
    door: Arc<Door>,
    collection: Collection,
    node: NodeName,
    said: mpsc::Sender<Said>,
    /// Bit 1: Services listed, bit 2: EndpointSlices listed, bit 4: said so.
    listed: Arc<AtomicU8>,
    known: Known,
    /// The server can stream lists, as far as is known.
    streams: bool,
    /// [`SILENCE`]; shorter in tests.
    silence: Duration,
}

impl Follower {
    async fn run(mut self) {
        let mut failures = 0u32;
        let mut version: Option<String> = None;
        loop {
            let result = self.turn(&mut version, &mut failures).await;
            let pause = match result {
                // The server ended the watch in good order: resume at once, a little apart.
                Ok(()) => Duration::from_millis(rand::rng().random_range(0..200)),
                Err(Trouble::Over) => return,
                Err(trouble) => {
                    failures = failures.saturating_add(1);
                    if self
                        .say(Said::Lost(self.collection, trouble.text().to_string()))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    match trouble {
                        Trouble::Refused(_) => {
                            version = None;
                            if self.collection.is_required() {
                                back_off(failures)
                            } else {
                                jitter(REFUSED)
                            }
                        }
                        Trouble::Expired(_) => {
                            version = None;
                            back_off(failures)
                        }
                        Trouble::Unreachable(_) => {
                            self.door.failed();
                            back_off(failures)
                        }
                        Trouble::Busy(_) | Trouble::Over => back_off(failures),
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.said.closed() => return,
            }
        }
    }

    /// One list where one is needed, then one watch until it ends.
    async fn turn(
        &mut self,
        version: &mut Option<String>,
        failures: &mut u32,
    ) -> Result<(), Trouble> {
        if version.is_none() && !self.streams {
            let (items, at) = list(&self.door, self.collection, &self.node).await?;
            let mut seen = Known::new();
            for item in items {
                self.take(&item, &mut seen).await?;
            }
            self.list_ends(seen).await?;
            *version = Some(at);
            *failures = 0;
        }
        let streaming = version.is_none();
        let seconds = WATCH_SECONDS - rand::rng().random_range(0..30);
        let mut url = format!(
            "{}watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}",
            path(self.collection, &self.node)
        );
        match &*version {
            Some(at) => {
                url.push_str("&resourceVersion=");
                url.push_str(at);
            }
            None => url.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        }
        let client = self
            .door
            .client()
            .map_err(|e| Trouble::Unreachable(e.to_string()))?;
        let request = get(&url).map_err(Trouble::Busy)?;
        let opened = match timeout(ANSWER, client.request_events::<Value>(request)).await {
            Err(_) => return Err(Trouble::Unreachable(no_answer())),
            Ok(opened) => opened,
        };
        let stream = match opened {
            Ok(stream) => stream,
            // 500 with "RequestWatchProgress is disabled": an API server over etcd older than 3.5.
            Err(kube::Error::Api(status)) if streaming && cannot_stream(&status) => {
                self.streams = false;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if !streaming {
            *failures = 0;
            self.say(Said::Alive(self.collection)).await?;
        }
        futures::pin_mut!(stream);
        // Objects of the streamed list, until its end.
        let mut seen = streaming.then(Known::new);
        loop {
            let event = tokio::select! {
                event = timeout(self.silence, stream.try_next()) => event,
                () = self.said.closed() => return Err(Trouble::Over),
            };
            let event = match event {
                Err(_) if seen.is_none() => return Ok(()),
                Err(_) => {
                    // A server that does not know streamed lists never ends one.
                    self.streams = false;
                    return Err(Trouble::Unreachable(format!(
                        "silent for {} s",
                        self.silence.as_secs()
                    )));
                }
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(None)) if seen.is_some() => {
                    self.streams = false;
                    return Err(Trouble::Unreachable("the streamed list broke off".into()));
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(event))) => event,
            };
            match event {
                WatchEvent::Added(value) | WatchEvent::Modified(value) => match &mut seen {
                    Some(seen) => self.take(&value, seen).await?,
                    None => {
                        let mut known = std::mem::take(&mut self.known);
                        let taken = self.take(&value, &mut known).await;
                        self.known = known;
                        taken?;
                        self.cidrs().await?;
                        self.advance(&value, version).await?;
                    }
                },
                WatchEvent::Deleted(value) => {
                    let name = match trim::name_of(&value) {
                        Ok(name) => name,
                        Err(bad) => return Err(Trouble::Expired(bad.to_string())),
                    };
                    if let Some(seen) = &mut seen {
                        seen.remove(&name);
                    }
                    self.known.remove(&name);
                    self.gone(name).await?;
                    self.cidrs().await?;
                    if seen.is_none() {
                        self.advance(&value, version).await?;
                    }
                }
                WatchEvent::Bookmark(mark) => {
                    if mark.metadata.annotations.contains_key(LIST_END)
                        && let Some(all) = seen.take()
                    {
                        self.list_ends(all).await?;
                        *failures = 0;
                    }
                    if seen.is_none() {
                        *version = Some(mark.metadata.resource_version);
                        self.say(Said::Alive(self.collection)).await?;
                    }
                }
                // A watch cache says it as the first event of a stream that it opened (`newErrWatcher`).
                WatchEvent::Error(status) if seen.is_some() && cannot_stream(&status) => {
                    self.streams = false;
                    return Ok(());
                }
                WatchEvent::Error(status) => return Err(status_trouble(&status)),
            }
        }
    }

    async fn advance(&self, value: &Value, version: &mut Option<String>) -> Result<(), Trouble> {
        let at = value
            .get("metadata")
            .and_then(|m| m.get("resourceVersion"))
            .and_then(Value::as_str);
        if let Some(at) = at {
            *version = Some(at.to_string());
        }
        self.say(Said::Alive(self.collection)).await
    }

    async fn say(&self, said: Said) -> Result<(), Trouble> {
        self.said.send(said).await.map_err(|_| Trouble::Over)
    }

    /// One object that exists.
    async fn take(&self, value: &Value, known: &mut Known) -> Result<(), Trouble> {
        let name = match trim::name_of(value) {
            Ok(name) => name,
            Err(bad) => return self.say(Said::Bad(bad.to_string())).await,
        };
        let mut ranges = Vec::new();
        let said = match self.collection {
            Collection::Services => trim::service(value).map(|s| Said::Change(Change::Service(s))),
            Collection::Slices => trim::slice(value).map(|s| {
                self.door.learn(&s);
                Said::Change(Change::Slice(s))
            }),
            Collection::Node => trim::node(value).map(|n| Said::Change(Change::Node(n))),
            Collection::ServiceCidrs => match trim::service_cidr(value) {
                Ok((_, all)) => {
                    ranges = all;
                    known.insert(name, ranges);
                    return Ok(());
                }
                Err(bad) => Err(bad),
            },
            Collection::ProxyConfigMap => {
                trim::proxy_config(value).map(|c| Said::ProxyConfig(c.flatten()))
            }
        };
        known.insert(name, ranges);
        self.say(said.unwrap_or_else(|bad| Said::Bad(bad.to_string())))
            .await
    }

    async fn gone(&self, (namespace, name): (Arc<str>, Arc<str>)) -> Result<(), Trouble> {
        self.say(match self.collection {
            Collection::Services => {
                Said::Change(Change::ServiceGone(ServiceName { namespace, name }))
            }
            Collection::Slices => {
                if &*namespace == "default" {
                    self.door.forget(&name);
                }
                Said::Change(Change::SliceGone(SliceName { namespace, name }))
            }
            Collection::Node => Said::Change(Change::NodeGone(NodeName(name))),
            Collection::ServiceCidrs => return Ok(()),
            Collection::ProxyConfigMap => Said::ProxyConfig(None),
        })
        .await
    }

    async fn cidrs(&self) -> Result<(), Trouble> {
        if self.collection != Collection::ServiceCidrs {
            return Ok(());
        }
        let all = self.known.values().flatten().copied().collect();
        self.say(Said::Change(Change::ServiceCidrs(all))).await
    }

    /// The list is whole: what is not in it is gone.
    async fn list_ends(&mut self, seen: Known) -> Result<(), Trouble> {
        let old = std::mem::replace(&mut self.known, seen);
        for name in old.into_keys() {
            if !self.known.contains_key(&name) {
                self.gone(name).await?;
            }
        }
        self.cidrs().await?;
        self.say(Said::Alive(self.collection)).await?;
        let bit = match self.collection {
            Collection::Services => 1,
            Collection::Slices => 2,
            _ => return Ok(()),
        };
        let before = self.listed.fetch_or(bit, Ordering::AcqRel);
        if before | bit == 3 && before != 3 {
            self.say(Said::Change(Change::Complete)).await?;
        }
        Ok(())
    }
}

pub(crate) fn back_off(failures: u32) -> Duration {
    jitter(
        BACK_OFF
            .0
            .saturating_mul(1 << failures.saturating_sub(1).min(7))
            .min(BACK_OFF.1),
    )
}

/// Between half and all of it, so that a thousand agents do not come at once.
pub(crate) fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
#[path = "api_tests.rs"]
pub(crate) mod tests;

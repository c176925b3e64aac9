//! What only the aggregator follows: Services, EndpointSlices, Pods and Nodes for the debugging flow
//! (`model::flow`).
//!
//! A list, then a watch with bookmarks, as in [`crate::api`]. Each object is trimmed as it comes: where
//! lists cannot be streamed, one page of [`PAGE`] objects is the most that is ever held as the API
//! wrote it.

use crate::api::{
    ANSWER, LIST_END, PAGE, Page, REFUSED, SILENCE, Trouble, WATCH_SECONDS, back_off,
    cannot_stream, escape, get, jitter, no_answer, status_trouble,
};
use crate::door::Door;
use crate::trim::{name_of, objects as trim};
use futures::TryStreamExt;
use kube::core::WatchEvent;
use model::endpoint::SliceName;
use model::flow::store::{Change, Kind};
use model::name::{NodeName, ServiceName};
use rand::Rng;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Follows the API server until nobody listens any more.
pub async fn follow(door: Arc<Door>, said: mpsc::Sender<Change>) {
    let mut tasks = tokio::task::JoinSet::new();
    for kind in Kind::ALL {
        let follower = Follower {
            door: door.clone(),
            kind,
            said: said.clone(),
            known: BTreeSet::new(),
            streams: true,
        };
        tasks.spawn(follower.run());
    }
    while tasks.join_next().await.is_some() {}
}

/// Path of a collection, ending in `?`.
fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Services => "/api/v1/services?",
        Kind::Slices => "/apis/discovery.k8s.io/v1/endpointslices?",
        Kind::Pods => "/api/v1/pods?",
        Kind::Nodes => "/api/v1/nodes?",
    }
}

/// Namespace and name, shared with the object that was said.
type Name = (Arc<str>, Arc<str>);

/// An object that exists, and its name. One that makes no sense is a name and nothing else: what was
/// known of it stays.
fn read(kind: Kind, value: &Value) -> Result<(Name, Option<Change>), Trouble> {
    let taken = match kind {
        Kind::Services => trim::service_object(value).map(|o| {
            let name = &o.service.name;
            let key = (name.namespace.clone(), name.name.clone());
            (key, Change::Service(o))
        }),
        Kind::Slices => trim::slice_object(value).map(|o| {
            let name = &o.slice.name;
            let key = (name.namespace.clone(), name.name.clone());
            (key, Change::Slice(o))
        }),
        Kind::Pods => trim::pod(value).map(|o| {
            let key = (o.namespace.clone(), o.name.clone());
            (key, Change::Pod(o))
        }),
        Kind::Nodes => trim::node_object(value).map(|o| {
            let key = (Arc::from(""), o.node.name.0.clone());
            (key, Change::Node(o))
        }),
    };
    match taken {
        Ok((name, change)) => Ok((name, Some(change))),
        Err(why) => {
            tracing::warn!(why = ?why.to_string(), "an object makes no sense");
            match name(kind, value) {
                Ok(name) => Ok((name, None)),
                Err(why) => Err(Trouble::Expired(why)),
            }
        }
    }
}

fn name(kind: Kind, value: &Value) -> Result<Name, String> {
    let (namespace, name) = name_of(value).map_err(|e| e.to_string())?;
    Ok(match kind {
        Kind::Nodes => ("".into(), name),
        _ => (namespace, name),
    })
}

fn gone(kind: Kind, (namespace, name): Name) -> Change {
    match kind {
        Kind::Services => Change::ServiceGone(ServiceName { namespace, name }),
        Kind::Slices => Change::SliceGone(SliceName { namespace, name }),
        Kind::Pods => Change::PodGone(namespace, name),
        Kind::Nodes => Change::NodeGone(NodeName(name)),
    }
}

struct Follower {
    door: Arc<Door>,
    kind: Kind,
    said: mpsc::Sender<Change>,
    /// What exists, to know after another list what is gone.
    known: BTreeSet<Name>,
    /// The server can stream lists, as far as is known.
    streams: bool,
}

impl Follower {
    async fn run(mut self) {
        let mut failures = 0u32;
        let mut version: Option<String> = None;
        loop {
            let pause = match self.turn(&mut version, &mut failures).await {
                Ok(()) => Duration::from_millis(rand::rng().random_range(0..200)),
                Err(Trouble::Over) => return,
                Err(trouble) => {
                    failures = failures.saturating_add(1);
                    let why = trouble.text().to_string();
                    tracing::warn!(kind = self.kind.word(), ?why, "lost");
                    if self.say(Change::Lost(self.kind, why)).await.is_err() {
                        return;
                    }
                    match trouble {
                        // No permission: somebody may give it.
                        Trouble::Refused(_) => {
                            version = None;
                            back_off(failures).max(jitter(REFUSED / 10))
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
            *version = Some(self.pages().await?);
            *failures = 0;
        }
        let seconds = WATCH_SECONDS - rand::rng().random_range(0..30);
        let mut url = format!(
            "{}watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}",
            path(self.kind)
        );
        let streaming = version.is_none();
        match &*version {
            Some(at) => url.push_str(&format!("&resourceVersion={}", escape(at))),
            None => url.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        }
        let client = self
            .door
            .client()
            .map_err(|e| Trouble::Unreachable(e.to_string()))?;
        let request = get(&url).map_err(Trouble::Busy)?;
        let stream = match timeout(ANSWER, client.request_events::<Value>(request)).await {
            Err(_) => return Err(Trouble::Unreachable(no_answer())),
            Ok(Ok(stream)) => stream,
            Ok(Err(kube::Error::Api(status))) if streaming && cannot_stream(&status) => {
                self.streams = false;
                return Ok(());
            }
            Ok(Err(error)) => return Err(error.into()),
        };
        if !streaming {
            *failures = 0;
            self.say(Change::Alive(self.kind)).await?;
        }
        futures::pin_mut!(stream);
        // Names of the streamed list, until its end.
        let mut seen = streaming.then(BTreeSet::new);
        loop {
            let event = tokio::select! {
                event = timeout(SILENCE, stream.try_next()) => event,
                () = self.said.closed() => return Err(Trouble::Over),
            };
            let event = match event {
                // Silent, which a healthy one may be (see `api::SILENCE`): opened again where it was.
                Err(_) if seen.is_none() => return Ok(()),
                Err(_) | Ok(Ok(None)) if seen.is_some() => {
                    self.streams = false;
                    return Err(Trouble::Unreachable("the streamed list broke off".into()));
                }
                Err(_) | Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(Some(event))) => event,
            };
            match event {
                WatchEvent::Added(value) | WatchEvent::Modified(value) => {
                    let (name, change) = read(self.kind, &value)?;
                    seen.as_mut().unwrap_or(&mut self.known).insert(name);
                    if let Some(change) = change {
                        self.say(change).await?;
                    }
                    self.advance(&value, &seen, version).await?;
                }
                WatchEvent::Deleted(value) => {
                    let name = name(self.kind, &value).map_err(Trouble::Expired)?;
                    if let Some(seen) = &mut seen {
                        seen.remove(&name);
                    }
                    self.known.remove(&name);
                    self.say(gone(self.kind, name)).await?;
                    self.advance(&value, &seen, version).await?;
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
                        self.say(Change::Alive(self.kind)).await?;
                    }
                }
                WatchEvent::Error(status) if seen.is_some() && cannot_stream(&status) => {
                    self.streams = false;
                    return Ok(());
                }
                WatchEvent::Error(status) => return Err(status_trouble(&status)),
            }
        }
    }

    /// A paged list, each page said and dropped before the next; gives the version to watch from.
    async fn pages(&mut self) -> Result<String, Trouble> {
        let client = self
            .door
            .client()
            .map_err(|e| Trouble::Unreachable(e.to_string()))?;
        let mut seen = BTreeSet::new();
        let mut next: Option<String> = None;
        loop {
            let mut url = format!("{}limit={PAGE}", path(self.kind));
            if let Some(token) = &next {
                url.push_str(&format!("&continue={}", escape(token)));
            }
            let request = get(&url).map_err(Trouble::Busy)?;
            let page = match timeout(ANSWER, client.request::<Page>(request)).await {
                Err(_) => return Err(Trouble::Unreachable(no_answer())),
                Ok(page) => page?,
            };
            for value in page.items {
                let (name, change) = read(self.kind, &value)?;
                seen.insert(name);
                if let Some(change) = change {
                    self.say(change).await?;
                }
            }
            next = page.metadata.next.filter(|n| !n.is_empty());
            if next.is_none() {
                self.list_ends(seen).await?;
                return Ok(page.metadata.resource_version);
            }
        }
    }

    /// The list is whole: what is not in it is gone.
    async fn list_ends(&mut self, seen: BTreeSet<Name>) -> Result<(), Trouble> {
        let old = std::mem::replace(&mut self.known, seen);
        for name in old {
            if !self.known.contains(&name) {
                self.say(gone(self.kind, name)).await?;
            }
        }
        self.say(Change::Alive(self.kind)).await
    }

    /// After one event of the watch itself: resume behind it.
    async fn advance(
        &self,
        value: &Value,
        seen: &Option<BTreeSet<Name>>,
        version: &mut Option<String>,
    ) -> Result<(), Trouble> {
        if seen.is_some() {
            return Ok(());
        }
        let at = value
            .get("metadata")
            .and_then(|m| m.get("resourceVersion"))
            .and_then(Value::as_str);
        if let Some(at) = at {
            *version = Some(at.to_string());
        }
        self.say(Change::Alive(self.kind)).await
    }

    async fn say(&self, change: Change) -> Result<(), Trouble> {
        self.said.send(change).await.map_err(|_| Trouble::Over)
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;

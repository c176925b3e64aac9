//! What the agent knows besides the kernel: the API's objects and kube-proxy's own word.

use crate::clock;
use crate::config::SourceFlags;
use crate::proxy::{self, Listeners, Scrape, Sources};
use cluster::door::{Door, DoorConfig};
use cluster::said::{Collection, Said};
use cluster::{api, manifests};
use futures::StreamExt;
use model::capture::Gap;
use model::desired::Touched;
use model::name::{NodeName, ServiceName};
use model::profile::{ProxyHealth, ProxyProfile};
use model::time::Now;
use model::view::{Change, ClusterView};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Said things that wait to be taken in; the source waits when it is full.
const WAITING: usize = 1_024;
/// Between two looks at kube-proxy's metrics.
const HEALTH: Duration = Duration::from_secs(2);
/// Services fetched again: at once, in one pass, and how long a pass waits for them.
const FETCH: (usize, usize, Duration) = (8, 64, Duration::from_secs(3));
/// Objects that made no sense: how many are kept for the report, and for how long.
const BAD: (usize, u64) = (20, 600_000);

/// Something a person has to put right before anything can be looked at (exit code 64).
#[derive(Debug)]
pub struct Usage(pub String);

impl Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Shared by the tasks that listen and the thread that looks.
pub struct World {
    node: NodeName,
    by_manifests: bool,
    /// Pods are among the manifests.
    pub has_pods: bool,
    /// A running kube-proxy is expected.
    expects_proxy: bool,
    door: Option<Arc<Door>>,
    inner: Mutex<Inner>,
}

struct Inner {
    view: Arc<ClusterView>,
    /// Counts changes of the view.
    changes: u64,
    /// `changes` when a moment was last given.
    given: u64,
    /// What was said since.
    touched: Touched,
    alive: BTreeMap<Collection, Now>,
    lost: BTreeMap<Collection, String>,
    bad: VecDeque<(Now, String)>,
    sources: Sources,
    scraped: bool,
}

/// What one pass looks at.
pub struct Moment {
    /// The API's objects.
    pub view: Arc<ClusterView>,
    /// Changes whenever the view does.
    pub changes: u64,
    /// What was said since the moment before: the one with these `changes`.
    pub since: (u64, Touched),
    /// Who programs the node.
    pub profile: ProxyProfile,
    /// kube-proxy's health, where one is expected.
    pub proxy: Option<ProxyHealth>,
    /// What cannot be learnt at present.
    pub gaps: Vec<Gap>,
}

impl World {
    /// Reads what flags name, and starts the tasks that listen. Must run inside the runtime.
    ///
    /// # Errors
    /// [`Usage`] for files that cannot be used. With manifests that is any error in them: what is
    /// left out would look stale, and an empty directory like the end of every Service. (Once `run`
    /// follows them, a broken file leaves the last good content in place.)
    pub async fn start(flags: &SourceFlags) -> anyhow::Result<Arc<World>> {
        let by_manifests = !flags.manifests.is_empty();
        let mut sources = Sources {
            version: flags.proxy_version,
            ..Sources::default()
        };
        if let Some(path) = &flags.kube_proxy_config {
            let text = std::fs::read_to_string(path)
                .map_err(|e| Usage(format!("--kube-proxy-config {}: {e}", path.display())))?;
            let parsed = proxy::config::parse(&text)
                .map_err(|e| Usage(format!("--kube-proxy-config {}: {e}", path.display())))?;
            sources.file = Some(parsed);
        }
        if !by_manifests {
            sources.host_name = agent::host::files::hostname().ok();
        }
        let (said, hears) = mpsc::channel(WAITING);
        let mut door = None;
        let mut has_pods = false;
        if by_manifests {
            let paths = flags.manifests.clone();
            let found = tokio::task::spawn_blocking(move || manifests::read(&paths)).await?;
            if !found.errors.is_empty() {
                let all: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
                return Err(Usage(all.join("\n")).into());
            }
            has_pods = found.has_pods;
            tokio::spawn(manifests::follow(flags.manifests.clone(), found, said));
        } else {
            let opened = Door::open(DoorConfig {
                kubeconfig: flags.kubeconfig.clone(),
                api_server: flags.api_server.clone(),
                state_dir: flags.state_dir.clone(),
            });
            let opened = opened.await.map_err(|e| Usage(e.to_string()))?;
            // A certificate that cannot be used is found now, not in a log an hour later.
            opened.client().map_err(|e| Usage(e.to_string()))?;
            tokio::spawn(api::follow(opened.clone(), flags.node.clone(), said));
            door = Some(opened);
        }
        let view = ClusterView {
            settled_facts: by_manifests,
            ..ClusterView::default()
        };
        let world = Arc::new(World {
            node: flags.node.clone(),
            by_manifests,
            has_pods,
            expects_proxy: !by_manifests || flags.expect_proxy,
            door,
            inner: Mutex::new(Inner::new(view, sources)),
        });
        tokio::spawn(world.clone().listen(hears));
        let listeners = Listeners {
            metrics: flags.proxy_metrics,
            healthz: flags.proxy_healthz,
        };
        tokio::spawn(world.clone().watch_proxy(listeners));
        Ok(world)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the first list is complete and kube-proxy was asked once, or time is up.
    pub async fn ready(&self, longest: Duration) -> bool {
        let wait = async {
            loop {
                {
                    let inner = self.lock();
                    if inner.view.complete && inner.scraped {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(longest, wait).await.is_ok()
    }

    /// What is known now, and what was said since the last call.
    pub fn moment(&self) -> Moment {
        let now = clock::now();
        let mut inner = self.lock();
        while inner
            .bad
            .front()
            .is_some_and(|(at, _)| now.mono.since(at.mono) > BAD.1)
        {
            inner.bad.pop_front();
        }
        let own = inner.view.nodes.get(&self.node);
        let profile = inner.sources.profile(&self.node, own);
        let mut gaps: Vec<Gap> = inner
            .lost
            .iter()
            .filter(|(collection, _)| collection.is_required())
            .map(|(collection, why)| Gap {
                what: format!("API: {collection}").into(),
                why: why.as_str().into(),
            })
            .collect();
        gaps.extend(inner.bad.iter().map(|(_, why)| Gap {
            what: "API object".into(),
            why: why.as_str().into(),
        }));
        let health = || {
            inner
                .sources
                .scrape
                .as_ref()
                .map(|s| s.health.clone())
                .unwrap_or_default()
        };
        let proxy = self.expects_proxy.then(health);
        Moment {
            view: inner.view.clone(),
            changes: inner.changes,
            since: inner.give(),
            profile,
            proxy,
            gaps,
        }
    }

    /// Fetches Services from the API server and takes them in; gives those that were fetched. With
    /// manifests nothing has to be fetched: what the files say is all there is, while they can be
    /// read. Passes wait for it, so it ends soon whatever the API server does; the rest is asked for
    /// again.
    pub async fn refresh(&self, names: Vec<ServiceName>) -> Vec<ServiceName> {
        let Some(door) = &self.door else {
            let current = self.lock().view.settled_facts;
            return if current { names } else { Vec::new() };
        };
        let mut done = Vec::new();
        let answers = futures::stream::iter(names.into_iter().take(FETCH.1))
            .map(|name| async move { (api::get_service(door, &name).await, name) })
            .buffer_unordered(FETCH.0)
            .take_until(tokio::time::sleep(FETCH.2));
        futures::pin_mut!(answers);
        while let Some((answer, name)) = answers.next().await {
            match answer {
                Ok(found) => {
                    let mut inner = self.lock();
                    for change in found.changes(&inner.view.clone()) {
                        inner.take(change);
                    }
                    inner.count_alive();
                    done.push(name);
                }
                Err(why) => tracing::info!(%name, %why, "cannot fetch the Service again"),
            }
        }
        done
    }

    async fn listen(self: Arc<World>, mut hears: mpsc::Receiver<Said>) {
        while let Some(said) = hears.recv().await {
            let now = clock::now();
            let mut inner = self.lock();
            match said {
                Said::Change(change) => inner.take(change),
                Said::Alive(collection) => {
                    inner.alive.insert(collection, now);
                    inner.lost.remove(&collection);
                    inner.settle(self.by_manifests);
                }
                Said::Lost(collection, why) => {
                    if inner.lost.get(&collection) != Some(&why) {
                        if collection.is_required() {
                            tracing::warn!(%collection, why = ?why, "lost");
                        } else {
                            tracing::debug!(%collection, why = ?why, "cannot be read");
                        }
                    }
                    inner.lost.insert(collection, why);
                    inner.settle(self.by_manifests);
                }
                Said::Bad(why) => {
                    tracing::warn!(why = ?why, "an object makes no sense");
                    inner.bad.push_back((now, why));
                    if inner.bad.len() > BAD.0 {
                        inner.bad.pop_front();
                    }
                }
                Said::ProxyConfig(text) => {
                    inner.sources.config_map = text.and_then(|t| match proxy::config::parse(&t) {
                        Ok(parsed) => Some(parsed),
                        Err(why) => {
                            tracing::warn!(why = ?why, "ConfigMap kube-system/kube-proxy");
                            None
                        }
                    });
                }
            }
            inner.count_alive();
        }
    }

    async fn watch_proxy(self: Arc<World>, at: Listeners) {
        loop {
            let fresh = proxy::scrape(at).await;
            {
                let mut inner = self.lock();
                inner.scraped = true;
                let known = inner.sources.scrape.get_or_insert_default();
                // A kube-proxy that is gone was still the one that programmed the node.
                // What one answer lacks (a listener that was slow) was said by an earlier one.
                *known = Scrape {
                    mode: fresh.mode.or(known.mode),
                    version: fresh.version.or(known.version),
                    gates: if fresh.gates.is_empty() {
                        std::mem::take(&mut known.gates)
                    } else {
                        fresh.gates
                    },
                    config: fresh.config.or_else(|| known.config.take()),
                    health: fresh.health,
                    runs: fresh.runs,
                };
            }
            tokio::time::sleep(HEALTH).await;
        }
    }
}

impl Inner {
    fn new(view: ClusterView, sources: Sources) -> Inner {
        Inner {
            view: Arc::new(view),
            changes: 0,
            given: 0,
            touched: Touched::nothing(),
            alive: BTreeMap::new(),
            lost: BTreeMap::new(),
            bad: VecDeque::new(),
            sources,
            scraped: false,
        }
    }

    /// What was said since this was last asked, and how many changes of the view there were then.
    fn give(&mut self) -> (u64, Touched) {
        let given = std::mem::replace(&mut self.given, self.changes);
        (
            given,
            std::mem::replace(&mut self.touched, Touched::nothing()),
        )
    }

    fn take(&mut self, change: Change) {
        // A watch may still tell of an object's past when the object was fetched in between.
        if let Change::Service(new) = &change
            && let Some(old) = self.view.services.get(&new.name)
            && old.uid == new.uid
            && is_older(&new.resource_version, &old.resource_version)
        {
            return;
        }
        if let Change::Slice(new) = &change
            && let Some(old) = self.view.slices.get(&new.name)
            && is_older(&new.resource_version, &old.resource_version)
        {
            return;
        }
        self.touched.note(&change, &self.view);
        Arc::make_mut(&mut self.view).apply(change, clock::now());
        self.changes += 1;
    }

    /// Manifests tell old facts. While they cannot be read, what they said last is no longer one:
    /// it ages like the view of an API server that is lost.
    fn settle(&mut self, by_manifests: bool) {
        let settled = by_manifests && !self.lost.keys().any(|c| c.is_required());
        if self.view.settled_facts != settled {
            Arc::make_mut(&mut self.view).settled_facts = settled;
        }
    }

    /// The view is as current as the collection that was heard of longest ago.
    fn count_alive(&mut self) {
        let required = [Collection::Services, Collection::Slices];
        let all: Option<Vec<Now>> = required
            .iter()
            .map(|c| self.alive.get(c).copied())
            .collect();
        let as_of = all.and_then(|all| all.into_iter().min());
        if self.view.as_of != as_of {
            Arc::make_mut(&mut self.view).as_of = as_of;
        }
    }
}

/// Resource versions of one collection are comparable numbers (KEP-5504); what is no number is not
/// compared.
fn is_older(new: &str, old: &str) -> bool {
    match (new.parse::<u128>(), old.parse::<u128>()) {
        (Ok(new), Ok(old)) => new < old,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A pass that brings the desired table up to date by what was touched must be told of
    /// everything since the pass before, once, and know which pass that was.
    #[test]
    fn what_was_touched_is_given_once() {
        let mut inner = Inner::new(ClusterView::default(), Sources::default());
        let (a, b) = (ServiceName::new("shop", "a"), ServiceName::new("shop", "b"));
        assert_eq!(inner.give(), (0, Touched::nothing()));
        inner.take(Change::ServiceGone(a.clone()));
        inner.take(Change::ServiceGone(b.clone()));
        let (since, touched) = inner.give();
        assert_eq!(since, 0);
        assert_eq!(touched.services(), Some(&BTreeSet::from([a.clone(), b])));
        assert_eq!(inner.give(), (2, Touched::nothing()));
        inner.take(Change::ServiceGone(a));
        inner.take(Change::Replace {
            services: Vec::new(),
            slices: Vec::new(),
        });
        assert_eq!(inner.give(), (2, Touched::anything()));
        assert_eq!(inner.give(), (4, Touched::nothing()));
    }
}

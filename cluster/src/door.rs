//! The way to the API server, one that a node with broken Service rules still finds.
//!
//! In the cluster the API server has a Service address, which is exactly what may be broken. So the
//! addresses in the EndpointSlices of `default/kubernetes` are kept in a small file, and tried as
//! soon as another address fails (or first, where the only other one is the Service address).

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use model::endpoint::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Name in the certificate of every API server (kubeadm, and what `kube-controller-manager` signs).
const TLS_NAME: &str = "kubernetes.default.svc";
/// A connection that is not there by then is tried at another address.
const CONNECT: Duration = Duration::from_secs(5);
/// Addresses kept; clusters have three to five API servers.
const KEPT: usize = 16;

/// How to find the API server.
#[derive(Clone, Debug, Default)]
pub struct DoorConfig {
    /// `--kubeconfig`; else `KUBECONFIG`, else in-cluster.
    pub kubeconfig: Option<PathBuf>,
    /// `--api-server`: `https://host:port`, used instead of every other address.
    pub api_server: Option<String>,
    /// Directory of the small file with addresses; `None`: nothing is kept.
    pub state_dir: Option<PathBuf>,
}

/// Why there is no way to an API server at all.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Neither kubeconfig nor in-cluster configuration, or one that is wrong.
    #[error("no way to the API server: {0}")]
    Config(String),
    /// The client could not be built.
    #[error("no client for the API server: {0}")]
    Client(#[from] kube::Error),
}

/// Clients for the API server's addresses, of which one is in use.
pub struct Door {
    base: Config,
    /// The base address is a Service address (in-cluster), so kept addresses come first.
    base_is_service: bool,
    fixed: bool,
    state_file: Option<PathBuf>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Addresses by the slice that named them.
    learnt: BTreeMap<Arc<str>, BTreeSet<SocketAddr>>,
    kept: Vec<SocketAddr>,
    /// Which candidate is in use; counts on and wraps.
    turn: usize,
    client: Option<Client>,
}

impl Door {
    /// Reads the configuration and the kept addresses.
    ///
    /// # Errors
    /// There is no configuration, or it is wrong.
    pub async fn open(config: DoorConfig) -> Result<Arc<Door>, DoorError> {
        let wrong = |e: &dyn std::fmt::Display| DoorError::Config(e.to_string());
        let (mut base, base_is_service) = match &config.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .map_err(|e| DoorError::Config(format!("{}: {e}", path.display())))?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(file, &options).await;
                (config.map_err(|e| wrong(&e))?, false)
            }
            None => match Config::incluster_env() {
                // KUBECONFIG said by a person counts more than where the process runs.
                Ok(c) if std::env::var_os("KUBECONFIG").is_none() => (c, true),
                _ => (Config::infer().await.map_err(|e| wrong(&e))?, false),
            },
        };
        if let Some(server) = &config.api_server {
            base.cluster_url = server
                .parse()
                .map_err(|e| DoorError::Config(format!("{server:?}: {e}")))?;
        }
        base.connect_timeout = Some(CONNECT);
        base.read_timeout = None;
        base.default_retry = false;
        let state_file = config.state_dir.map(|d| d.join("api-server"));
        let kept = state_file.as_ref().map_or_else(Vec::new, |f| {
            crate::kept::read(f)
                .lines()
                .filter_map(|l| l.trim().parse().ok())
                .take(KEPT)
                .collect()
        });
        Ok(Arc::new(Door {
            base,
            base_is_service,
            fixed: config.api_server.is_some(),
            state_file,
            inner: Mutex::new(Inner {
                learnt: BTreeMap::new(),
                kept,
                turn: 0,
                client: None,
            }),
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The client in use.
    ///
    /// # Errors
    /// The configuration holds something no client can be built from (a broken certificate).
    pub fn client(&self) -> Result<Client, DoorError> {
        let mut inner = self.lock();
        if let Some(client) = &inner.client {
            return Ok(client.clone());
        }
        let candidates = self.candidates(&inner);
        let config = match candidates[inner.turn % candidates.len()] {
            None => self.base.clone(),
            Some(address) => self.config_for(address)?,
        };
        tracing::debug!(url = %config.cluster_url, "API server");
        let client = Client::try_from(config)?;
        inner.client = Some(client.clone());
        Ok(client)
    }

    /// The address in use did not answer: the next one is tried from now on.
    pub fn failed(&self) {
        let mut inner = self.lock();
        inner.turn = inner.turn.wrapping_add(1);
        inner.client = None;
    }

    /// Where the client in use goes, for people.
    pub fn url(&self) -> String {
        let inner = self.lock();
        let candidates = self.candidates(&inner);
        match candidates[inner.turn % candidates.len()] {
            None => self.base.cluster_url.to_string(),
            Some(address) => format!("https://{address}/"),
        }
    }

    /// `None` is the configured address.
    fn candidates(&self, inner: &Inner) -> Vec<Option<SocketAddr>> {
        if self.fixed {
            return vec![None];
        }
        let kept = inner.kept.iter().copied().map(Some);
        if self.base_is_service {
            kept.chain([None]).collect()
        } else {
            [None].into_iter().chain(kept).collect()
        }
    }

    fn config_for(&self, address: SocketAddr) -> Result<Config, DoorError> {
        let mut config = self.base.clone();
        config.cluster_url = format!("https://{address}/")
            .parse()
            .map_err(|e| DoorError::Config(format!("{address}: {e}")))?;
        config.tls_server_name = Some(TLS_NAME.into());
        config.proxy_url = None;
        Ok(config)
    }

    /// Takes in an EndpointSlice of `default/kubernetes`; any other changes nothing.
    pub fn learn(&self, slice: &EndpointSlice) {
        if &*slice.name.namespace != "default" || slice.service.as_deref() != Some("kubernetes") {
            return;
        }
        let addresses: BTreeSet<SocketAddr> = slice
            .endpoints
            .iter()
            .filter(|e| e.ready)
            .filter_map(|e| e.address)
            .flat_map(|ip| {
                let ports = slice
                    .ports
                    .iter()
                    .filter(|p| p.name.as_deref() == Some("https"));
                ports.filter_map(move |p| Some(SocketAddr::new(ip, p.port?)))
            })
            .collect();
        let mut inner = self.lock();
        inner.learnt.insert(slice.name.name.clone(), addresses);
        self.keep(&mut inner);
    }

    /// An EndpointSlice of namespace `default` is gone.
    pub fn forget(&self, slice: &str) {
        let mut inner = self.lock();
        if inner.learnt.remove(slice).is_some() {
            self.keep(&mut inner);
        }
    }

    fn keep(&self, inner: &mut Inner) {
        let all: BTreeSet<SocketAddr> = inner.learnt.values().flatten().copied().collect();
        let mut all: Vec<SocketAddr> = all.into_iter().take(KEPT).collect();
        let mut old = inner.kept.clone();
        old.sort();
        // An empty list is a cluster in trouble; the last known addresses are better than none.
        if all.is_empty() || all == old {
            return;
        }
        // The order of candidates must not move what is in use; a new order starts a new count.
        let in_use = {
            let candidates = self.candidates(inner);
            candidates[inner.turn % candidates.len()]
        };
        std::mem::swap(&mut inner.kept, &mut all);
        let candidates = self.candidates(inner);
        match candidates.iter().position(|c| *c == in_use) {
            Some(turn) => inner.turn = turn,
            // In use and no longer named: stays until it fails.
            None => inner.turn = 0,
        }
        if let Some(file) = &self.state_file
            && let Err(error) = crate::kept::write(file, &to_text(&inner.kept))
        {
            tracing::warn!(file = %file.display(), %error, "cannot keep the API server's addresses");
        }
    }
}

fn to_text(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|a| format!("{a}\n")).collect()
}

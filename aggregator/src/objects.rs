//! What the API server says of Services, slices, Pods and Nodes, for the debugging flow. Only with
//! `--watch-objects`; everything else is answered without.

use crate::api_drift::{self, ApiDrift};
use cluster::door::{Door, DoorConfig, DoorError};
use model::flow::{Api, Objects, store::Change};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use tokio::sync::mpsc;

/// Said things that wait to be taken in; the source waits when it is full.
const WAITING: usize = 1_024;
/// Taken in under one lock: a reader waits for a few milliseconds at most.
const BATCH: usize = 256;
/// Why there is nothing.
const OFF: &str = "the aggregator runs without --watch-objects and does not read them from the API";

/// The objects as all tasks share them; nothing where they are not followed.
#[derive(Clone, Default)]
pub struct SharedObjects(Option<Shared>);

#[derive(Clone)]
struct Shared {
    objects: Arc<RwLock<Objects>>,
    drift: Arc<RwLock<Arc<ApiDrift>>>,
}

impl SharedObjects {
    /// Follows the API server of `kubeconfig`, else of KUBECONFIG, else the one of this Pod. Must run
    /// inside the runtime.
    ///
    /// # Errors
    /// There is no way to an API server.
    pub async fn follow(kubeconfig: Option<PathBuf>) -> Result<SharedObjects, DoorError> {
        let config = DoorConfig {
            kubeconfig,
            ..DoorConfig::default()
        };
        let door = Door::open(config).await?;
        // A certificate that cannot be used is found now, not in a log an hour later.
        door.client()?;
        let (said, hears) = mpsc::channel(WAITING);
        let objects = SharedObjects::of(Objects::default());
        tokio::spawn(cluster::objects::follow(door, said));
        tokio::spawn(objects.clone().listen(hears));
        if let Some(shared) = &objects.0 {
            let (objects, drift) = (shared.objects.clone(), shared.drift.clone());
            tokio::spawn(api_drift::follow(objects, drift));
        }
        Ok(objects)
    }

    /// Objects that nobody changes, or somebody else does.
    pub fn of(objects: Objects) -> SharedObjects {
        SharedObjects(Some(Shared {
            objects: Arc::new(RwLock::new(objects)),
            drift: Arc::new(RwLock::new(Arc::new(ApiDrift::not_yet()))),
        }))
    }

    /// What the API alone says is wrong, as of the last walk through all Services.
    pub fn drift(&self) -> Arc<ApiDrift> {
        match &self.0 {
            None => Arc::new(ApiDrift::off(OFF)),
            Some(shared) => shared
                .drift
                .read()
                .unwrap_or_else(|e| e.into_inner())
                .clone(),
        }
    }

    /// Walks through all Services now.
    pub fn walk(&self) {
        if let Some(shared) = &self.0 {
            api_drift::walk(&shared.objects, &shared.drift);
        }
    }

    async fn listen(self, mut hears: mpsc::Receiver<Change>) {
        let Some(shared) = self.0 else { return };
        let mut batch = Vec::with_capacity(BATCH);
        while hears.recv_many(&mut batch, BATCH).await > 0 {
            let now = crate::now();
            let mut objects = shared.objects.write().unwrap_or_else(|e| e.into_inner());
            for change in batch.drain(..) {
                objects.apply(change, now);
            }
        }
    }

    /// Asks something of what is known now.
    pub fn look<T>(&self, f: impl FnOnce(Api) -> T) -> T {
        match &self.0 {
            None => f(Api::NotKnown(OFF)),
            Some(shared) => f(Api::Known(
                &shared.objects.read().unwrap_or_else(|e| e.into_inner()),
            )),
        }
    }
}

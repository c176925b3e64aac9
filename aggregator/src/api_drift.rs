//! What the API alone says is wrong, of every Service, kept from one walk through them to the next.

use model::flow::{ApiFinding, Check, Objects, Sweep, Weight};
use model::name::ServiceName;
use model::time::Now;
use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Between two walks: what is found is given a minute and more anyway.
const REST: Duration = Duration::from_secs(15);
/// And so many times as long as the last one took: with 10,000 Services of one namespace it is seconds.
const REST_FACTOR: u32 = 20;
/// Services looked at under one lock: whoever takes in what the API says waits for milliseconds.
const AT_ONCE: usize = 32;
/// Findings kept. Each has a few lines of evidence.
const KEPT: usize = 10_000;

/// A finding, and since when it has been one.
#[derive(Clone, Debug)]
pub struct Lasting {
    /// What.
    pub finding: ApiFinding,
    /// The first walk that found it, without a walk since that did not.
    pub since: Now,
}

impl Lasting {
    fn key(&self) -> (&ServiceName, u8, Check) {
        let f = &self.finding;
        (&f.service, f.step, f.finding.check)
    }
}

/// What one walk gave.
#[derive(Clone, Debug, Default)]
pub struct ApiDrift {
    /// The API's objects are followed.
    pub followed: bool,
    /// When it ended; `None`: there was none yet.
    pub at: Option<Now>,
    /// Faults and hints, in the order of the Services' names, the first [`KEPT`]; what is still given
    /// time is left out.
    pub found: Vec<Lasting>,
    /// How many more there are.
    pub more: usize,
    /// Why there is nothing newer; `found` is what was known last.
    pub unknown: Option<String>,
}

impl ApiDrift {
    /// Before the first walk.
    pub fn not_yet() -> ApiDrift {
        ApiDrift {
            followed: true,
            unknown: Some("the API's objects have not been looked through yet".into()),
            ..ApiDrift::default()
        }
    }

    /// There will be none, for this reason.
    pub fn off(why: &str) -> ApiDrift {
        ApiDrift {
            unknown: Some(why.into()),
            ..ApiDrift::default()
        }
    }

    /// What follows this by what a walk gave.
    pub fn next(&self, walk: Result<Vec<ApiFinding>, String>, now: Now) -> ApiDrift {
        let all = match walk {
            Ok(all) => all,
            Err(why) => {
                return ApiDrift {
                    unknown: Some(why),
                    ..self.clone()
                };
            }
        };
        let known: HashMap<_, Now> = self.found.iter().map(|l| (l.key(), l.since)).collect();
        let lasts = all.into_iter();
        let mut lasts = lasts.filter(|f| f.finding.weight != Weight::Converging);
        let mut found: Vec<Lasting> = Vec::new();
        for finding in lasts.by_ref().take(KEPT) {
            let mut lasting = Lasting {
                finding,
                since: now,
            };
            lasting.since = known.get(&lasting.key()).copied().unwrap_or(now);
            found.push(lasting);
        }
        ApiDrift {
            followed: true,
            at: Some(now),
            found,
            more: lasts.count(),
            unknown: None,
        }
    }
}

/// Walks through the objects for ever.
pub async fn follow(objects: Arc<RwLock<Objects>>, drift: Arc<RwLock<Arc<ApiDrift>>>) {
    loop {
        let (from, to) = (objects.clone(), drift.clone());
        let start = Instant::now();
        let walked = tokio::task::spawn_blocking(move || walk(&from, &to));
        if let Err(error) = walked.await {
            tracing::error!(%error, "looking for what the API says is wrong");
        }
        tokio::time::sleep(REST.max(start.elapsed() * REST_FACTOR)).await;
    }
}

/// One walk.
pub fn walk(objects: &RwLock<Objects>, drift: &RwLock<Arc<ApiDrift>>) {
    let look =
        || -> RwLockReadGuard<'_, Objects> { objects.read().unwrap_or_else(|e| e.into_inner()) };
    let mut sweep = Sweep::begin(&look());
    let walked = loop {
        match sweep.step(&look(), crate::now(), AT_ONCE) {
            Ok(true) => {}
            Ok(false) => break Ok(sweep.found()),
            Err(why) => break Err(why),
        }
    };
    let last = drift.read().unwrap_or_else(|e| e.into_inner()).clone();
    let next = Arc::new(last.next(walked, crate::now()));
    *drift.write().unwrap_or_else(|e| e.into_inner()) = next;
}

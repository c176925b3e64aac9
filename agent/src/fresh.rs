//! A fresh look, for whoever asks: the unix socket, and the aggregator.
//!
//! Those who ask never look themselves and never stop the thread that looks. They wish for a pass and
//! wait for its report; all that wished before a pass began are answered by that one pass.

use model::report::Report;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The newest report; `None` before the first pass.
pub type Reports = watch::Receiver<Option<Arc<Report>>>;

/// Shortest time between the end of a pass and the beginning of one that somebody wished for.
const SOONEST: Duration = Duration::from_millis(200);
/// A pass that was wished for comes no sooner than this many times the CPU time of the last one: asking
/// in a loop costs a large node at most a fifth of a core, and a small one next to nothing.
const REST_FOR_WORK: u32 = 4;

/// How many passes were wished for. A lock of the standard library, because the thread that looks is
/// no part of the runtime; it is held for a moment only.
#[derive(Default)]
struct Wished {
    count: Mutex<u64>,
    more: Condvar,
}

impl Wished {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of those who ask. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    reports: Reports,
    wished: Arc<Wished>,
    granted: watch::Receiver<u64>,
}

/// The side of the thread that looks.
pub struct Wishes {
    wished: Arc<Wished>,
    granted: watch::Sender<u64>,
    /// Wishes made before the pass at hand began.
    answering: u64,
}

/// What a wish came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// The newest report; `None`: there is none yet.
    pub report: Option<Arc<Report>>,
    /// Its pass began after the wish was made.
    pub fresh: bool,
}

/// Both sides. `reports` gets the reports of the thread that looks.
pub fn wishes(reports: Reports) -> (Asker, Wishes) {
    let wished = Arc::new(Wished::default());
    let (granted, waits) = watch::channel(0);
    let asker = Asker {
        reports,
        wished: wished.clone(),
        granted: waits,
    };
    let wishes = Wishes {
        wished,
        granted,
        answering: 0,
    };
    (asker, wishes)
}

impl Asker {
    /// The reports, as they come.
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// The newest report, whenever it was made.
    pub fn newest(&self) -> Option<Arc<Report>> {
        self.reports.borrow().clone()
    }

    /// Wishes for a pass and waits for it, at most `longest`; gives the newest report in any case.
    pub async fn fresh(&self, longest: Duration) -> Look {
        let mine = {
            let mut count = self.wished.lock();
            *count += 1;
            *count
        };
        self.wished.more.notify_all();
        let mut granted = self.granted.clone();
        let came = tokio::time::timeout(longest, granted.wait_for(|all| *all >= mine)).await;
        // Not `fresh` when the thread that looks is gone, either.
        let fresh = matches!(came, Ok(Ok(_)));
        Look {
            report: self.newest(),
            fresh,
        }
    }
}

impl Wishes {
    /// A pass begins: what was wished so far is answered by it.
    pub fn begin(&mut self) {
        self.answering = *self.wished.lock();
    }

    /// The report of the pass that began last is there for everybody.
    pub fn granted(&self) {
        // Nobody waits when it does not change, or when it cannot be sent.
        self.granted.send_replace(self.answering);
    }

    /// Blocks until the next pass: for `pause`, or less when somebody wishes for one, but never less
    /// than `soonest`. Meanwhile does `chore` once in every `often`.
    pub fn rest(
        &self,
        soonest: Duration,
        pause: Duration,
        often: Duration,
        mut chore: impl FnMut(),
    ) {
        let began = Instant::now();
        let soonest = soonest.min(pause);
        loop {
            let left = soonest.saturating_sub(began.elapsed());
            std::thread::sleep(left.min(often));
            if left <= often {
                break;
            }
            chore();
        }
        loop {
            let left = pause.saturating_sub(began.elapsed());
            let wished = self.wished.lock();
            let nobody = |count: &mut u64| *count == self.answering;
            let waited = self
                .wished
                .more
                .wait_timeout_while(wished, left.min(often), nobody);
            let (count, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            drop(count);
            if !waited.timed_out() || left <= often {
                break;
            }
            chore();
        }
    }
}

/// The earliest time for a pass that is wished for, after one that took `cpu`; `pause` is what the
/// budget allows passes that nobody wished for.
pub fn soonest(cpu: Duration, pause: Duration) -> Duration {
    SOONEST.max(cpu * REST_FOR_WORK).min(pause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    const LONG: Duration = Duration::from_secs(3_600);

    fn report(pass: u64) -> Option<Arc<Report>> {
        Some(Arc::new(Report {
            node: "n1".into(),
            pass,
            at: model::time::Millis(pass * 1_000),
            took_ms: 1,
            api_as_of: None,
            state: model::report::NodeState::Ready,
            verdict: String::new(),
            datapaths: Vec::new(),
            judged: model::report::Judged::default(),
            gaps: Vec::new(),
            findings: Vec::new(),
            converging: Vec::new(),
            rows: [].into(),
            conntrack: None,
            flows: None,
        }))
    }

    /// Polls once: no clock runs, so what is not ready waits for something else.
    fn now<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn one_pass_answers_all_who_asked_before_it_began() {
        let (tell, reports) = watch::channel(None);
        let (asker, mut wishes) = wishes(reports);
        let (other, late) = (asker.clone(), asker.clone());
        let mut first = pin!(asker.fresh(LONG));
        let mut second = pin!(other.fresh(LONG));
        let mut third = pin!(late.fresh(LONG));
        assert!(now(first.as_mut()).is_none() && now(second.as_mut()).is_none());
        wishes.begin();
        // The kernel may have been read by now: this one needs the next pass.
        assert!(now(third.as_mut()).is_none());
        tell.send_replace(report(1));
        wishes.granted();
        for look in [now(first.as_mut()), now(second.as_mut())] {
            assert_eq!(
                look,
                Some(Look {
                    report: report(1),
                    fresh: true
                })
            );
        }
        assert!(now(third.as_mut()).is_none());
        wishes.begin();
        tell.send_replace(report(2));
        wishes.granted();
        assert_eq!(
            now(third.as_mut()).map(|l| (l.report, l.fresh)),
            Some((report(2), true))
        );
    }

    #[tokio::test]
    async fn who_has_waited_long_enough_gets_the_last_known() {
        let (tell, reports) = watch::channel(report(1));
        let (asker, wishes) = wishes(reports);
        let look = asker.fresh(Duration::ZERO).await;
        assert_eq!((look.report, look.fresh), (report(1), false));
        // The same when nobody looks any more.
        drop((tell, wishes));
        let look = asker.fresh(LONG).await;
        assert_eq!((look.report, look.fresh), (report(1), false));
    }

    #[test]
    fn a_wish_ends_the_pause_whenever_it_came() {
        let (_tell, reports) = watch::channel(None);
        let (asker, mut wishes) = wishes(reports);
        let wish = move || {
            *asker.wished.lock() += 1;
            asker.wished.more.notify_all();
        };
        wishes.begin();
        // During the pass: an hour's rest would be seen.
        wish();
        wishes.rest(Duration::ZERO, LONG, LONG, || {});
        wishes.begin();
        // During the rest, if the other thread is slow.
        let other = std::thread::spawn(wish);
        wishes.rest(Duration::ZERO, LONG, LONG, || {});
        other.join().unwrap();
        wishes.begin();
        // Nobody: the pause is kept.
        wishes.rest(Duration::ZERO, Duration::from_millis(1), LONG, || {});
        // What has to be done meanwhile is, in both parts of the pause.
        let ms = Duration::from_millis;
        for (soonest, pause) in [(ms(30), ms(30)), (ms(0), ms(30))] {
            let mut done = 0;
            wishes.rest(soonest, pause, ms(5), || done += 1);
            assert!((1..=6).contains(&done), "{done}");
        }
    }

    #[test]
    fn a_wish_waits_for_the_cost_of_the_last_pass_and_no_longer_than_without() {
        let ms = Duration::from_millis;
        assert_eq!(soonest(ms(3), ms(1_000)), ms(200));
        assert_eq!(soonest(ms(300), ms(15_000)), ms(1_200));
        assert_eq!(soonest(ms(300), ms(1_000)), ms(1_000));
        assert_eq!(soonest(ms(3), ms(50)), ms(50));
    }
}

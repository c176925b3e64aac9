//! Fresh looks: asks a node's agent, over the stream that the agent opened, to look now.
//!
//! One question is under way per node, and there is a shortest time between two, so that a loop of
//! `curl` cannot make a node read its rules over and over; whoever asks in between gets the last known,
//! with its age. A node that is silent, slow or gone is never an error: the last known is the answer.
//!
//! [`Desk`] decides, and is pure; [`Inspector`] sends and waits. What the agent sees comes on its
//! stream like every report, before its answer does, so that the fleet holds it when the wait ends.

use model::name::{NodeName, ServiceName};
use model::time::Mono;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

/// Shortest time between two questions to one node, milliseconds.
const INTERVAL_MS: u64 = 1_000;
/// An answer that has not come by then will not come, milliseconds: an agent gives up after 20 s.
const LOST_MS: u64 = 25_000;
/// A reader who did not ask to wait gets an answer within a second.
const SHORT: Duration = Duration::from_millis(800);
/// For `?fresh=wait`.
const LONG: Duration = Duration::from_secs(30);
/// Questions that wait to be sent to one node; one is under way, the others were lost.
const WAITING: usize = 4;

/// A question to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its number on this connection.
    pub id: u64,
    /// Which Service; an empty namespace stands for any.
    pub service: ServiceName,
}

/// Whether an answer rests on a look that was taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Freshness {
    /// The node looked after the question was asked, or at the same time for somebody else.
    pub fresh: bool,
    /// Why, or why not; one clause.
    pub says: String,
}

impl Freshness {
    fn fresh() -> Freshness {
        Freshness {
            fresh: true,
            says: "the node looked just now".into(),
        }
    }

    fn last_known(why: &str) -> Freshness {
        Freshness {
            fresh: false,
            says: format!("last known: {why}"),
        }
    }
}

/// One node's questions.
#[derive(Debug, Default)]
pub struct Desk {
    /// The last question: its number, and when it was asked.
    asked: Option<(u64, Mono)>,
    /// It has not been answered.
    open: bool,
}

/// What may be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Ask, with this number.
    Ask(u64),
    /// This question is under way since then.
    Join(u64, Mono),
    /// Not for so many milliseconds.
    Later(u64),
}

impl Desk {
    /// Somebody wants a fresh look.
    pub fn turn(&mut self, now: Mono) -> Turn {
        let mut next = 1;
        if let Some((id, at)) = self.asked {
            let since = now.since(at);
            if self.open && since < LOST_MS {
                return Turn::Join(id, at);
            }
            if since < INTERVAL_MS {
                return Turn::Later(INTERVAL_MS - since);
            }
            next = id + 1;
        }
        self.asked = Some((next, now));
        self.open = true;
        Turn::Ask(next)
    }

    /// The agent answered. False: not the question that is under way.
    pub fn answered(&mut self, id: u64) -> bool {
        let mine = self.open && self.asked.is_some_and(|(asked, _)| asked == id);
        if mine {
            self.open = false;
        }
        mine
    }
}

/// What came last of a connection: number of the question, and whether the agent had looked.
type Landed = (u64, bool);

/// The way to one connected agent.
struct Line {
    connection: u64,
    desk: Desk,
    asks: mpsc::Sender<Ask>,
    landed: watch::Sender<Landed>,
}

/// Every connected agent's way. Cheap to clone.
#[derive(Clone, Default)]
pub struct Inspector {
    lines: Arc<Mutex<HashMap<NodeName, Line>>>,
}

impl Inspector {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent connected: gives what it is to be asked. An older connection of the node is let go.
    pub fn connected(&self, node: &NodeName, connection: u64) -> mpsc::Receiver<Ask> {
        let (asks, asked) = mpsc::channel(WAITING);
        let line = Line {
            connection,
            desk: Desk::default(),
            asks,
            landed: watch::Sender::new((0, false)),
        };
        let mut lines = self.lock();
        if lines.get(node).is_none_or(|l| l.connection < connection) {
            lines.insert(node.clone(), line);
        }
        asked
    }

    /// A connection ended: nobody waits for it any more.
    pub fn gone(&self, node: &NodeName, connection: u64) {
        let mut lines = self.lock();
        if lines.get(node).is_some_and(|l| l.connection == connection) {
            lines.remove(node);
        }
    }

    /// An agent answered.
    pub fn answered(&self, node: &NodeName, connection: u64, id: u64, fresh: bool) {
        let mut lines = self.lock();
        if let Some(line) = lines.get_mut(node)
            && line.connection == connection
            && line.desk.answered(id)
        {
            line.landed.send_replace((id, fresh));
        }
    }

    /// Has a node look at a Service, if it may be asked now; returns when it has, or when the last
    /// known is what there is to say. `wait`: until it may be asked, and longer.
    pub async fn look(&self, node: &NodeName, service: &ServiceName, wait: bool) -> Freshness {
        let began = crate::now().mono;
        let until = Instant::now() + if wait { LONG } else { SHORT };
        loop {
            let (id, since, mut landed) = match self.step(node, service) {
                Step::Wait(id, since, landed) => (id, since, landed),
                Step::Later(pause) if wait && Instant::now() + pause < until => {
                    sleep(pause).await;
                    continue;
                }
                Step::Later(_) => {
                    return Freshness::last_known(
                        "the node was asked less than a second ago; ?fresh=wait waits",
                    );
                }
                Step::Silent => return Freshness::last_known("no agent of the node is connected"),
            };
            // Asked before, and no answer within the time that this reader has.
            if !wait && crate::now().mono.since(since) > SHORT.as_millis() as u64 {
                return Freshness::last_known("the node has not answered the last question yet");
            }
            match timeout_at(until, landed.wait_for(|(last, _)| *last >= id)).await {
                Err(_) => return Freshness::last_known("the node did not answer in time"),
                Ok(Err(_)) => return Freshness::last_known("the agent's connection ended"),
                Ok(Ok(landed)) if !landed.1 => {
                    return Freshness::last_known("the agent could not look in time");
                }
                // Who waits wants what is true after the question; a look that somebody else asked
                // for may have been taken before.
                Ok(Ok(_)) if wait && since < began => {}
                Ok(Ok(_)) => return Freshness::fresh(),
            }
        }
    }

    fn step(&self, node: &NodeName, service: &ServiceName) -> Step {
        let mut lines = self.lock();
        let Some(line) = lines.get_mut(node) else {
            return Step::Silent;
        };
        let now = crate::now().mono;
        let waiter = line.landed.subscribe();
        match line.desk.turn(now) {
            Turn::Later(ms) => Step::Later(Duration::from_millis(ms)),
            Turn::Join(id, since) => Step::Wait(id, since, waiter),
            Turn::Ask(id) => {
                let service = service.clone();
                // A full line is that of an agent which takes nothing: the wait ends by time.
                match line.asks.try_send(Ask { id, service }) {
                    Err(mpsc::error::TrySendError::Closed(_)) => Step::Silent,
                    _ => Step::Wait(id, now, waiter),
                }
            }
        }
    }
}

/// What one look at the line gave.
enum Step {
    /// This question was asked then: wait for it.
    Wait(u64, Mono, watch::Receiver<Landed>),
    /// Not yet.
    Later(Duration),
    /// Nobody is there.
    Silent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ServiceName {
        ServiceName::new("shop", "web")
    }

    #[test]
    fn one_question_is_under_way_and_the_next_waits_for_the_interval() {
        let mut desk = Desk::default();
        assert_eq!(desk.turn(Mono(5_000)), Turn::Ask(1));
        assert_eq!(desk.turn(Mono(5_400)), Turn::Join(1, Mono(5_000)));
        assert!(!desk.answered(2), "never asked");
        assert!(desk.answered(1));
        assert!(!desk.answered(1), "answered already");
        assert_eq!(desk.turn(Mono(5_700)), Turn::Later(300));
        assert_eq!(desk.turn(Mono(6_000)), Turn::Ask(2));
        // A slow node is not asked again meanwhile.
        assert_eq!(desk.turn(Mono(9_000)), Turn::Join(2, Mono(6_000)));
        // An answer that never came does not silence the node for ever, and comes too late then.
        assert_eq!(desk.turn(Mono(6_000 + LOST_MS)), Turn::Ask(3));
        assert!(!desk.answered(2));
        assert!(desk.answered(3));
    }

    #[tokio::test]
    async fn an_answer_ends_the_wait_of_all() {
        let (inspector, node) = (Inspector::default(), NodeName::from("n1"));
        let mut asked = inspector.connected(&node, 1);
        let look = || {
            let (inspector, node) = (inspector.clone(), node.clone());
            tokio::spawn(async move { inspector.look(&node, &web(), false).await })
        };
        let (one, two) = (look(), look());
        let ask = asked.recv().await.unwrap();
        assert_eq!(
            ask,
            Ask {
                id: 1,
                service: web()
            }
        );
        // Both wait before the answer comes.
        while inspector.lock()[&node].landed.receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
        inspector.answered(&node, 1, 1, true);
        assert!(one.await.unwrap().fresh && two.await.unwrap().fresh);
        assert!(asked.try_recv().is_err(), "one question for both");
        let soon = inspector.look(&node, &web(), false).await;
        assert!(!soon.fresh && soon.says.contains("?fresh=wait"), "{soon:?}");
    }

    #[tokio::test]
    async fn who_is_not_there_is_no_error() {
        let (inspector, node) = (Inspector::default(), NodeName::from("n1"));
        let says = inspector.look(&node, &web(), true).await;
        assert!(!says.fresh && says.says.contains("no agent"), "{says:?}");
        // The connection ends while somebody waits.
        let mut asked = inspector.connected(&node, 1);
        let waits = {
            let (inspector, node) = (inspector.clone(), node.clone());
            tokio::spawn(async move { inspector.look(&node, &web(), true).await })
        };
        asked.recv().await.unwrap();
        inspector.gone(&node, 1);
        let says = waits.await.unwrap();
        assert!(!says.fresh && says.says.contains("ended"), "{says:?}");
    }

    #[tokio::test]
    async fn only_the_newest_connection_of_a_node_counts() {
        let (inspector, node) = (Inspector::default(), NodeName::from("n1"));
        let _first = inspector.connected(&node, 1);
        let mut second = inspector.connected(&node, 2);
        // Late words of the first.
        inspector.gone(&node, 1);
        let _late = inspector.connected(&node, 1);
        let waits = {
            let (inspector, node) = (inspector.clone(), node.clone());
            tokio::spawn(async move { inspector.look(&node, &web(), false).await })
        };
        let id = second.recv().await.unwrap().id;
        inspector.answered(&node, 1, id, true);
        inspector.answered(&node, 2, id, false);
        let says = waits.await.unwrap();
        assert!(
            !says.fresh && says.says.contains("could not look"),
            "{says:?}"
        );
    }
}

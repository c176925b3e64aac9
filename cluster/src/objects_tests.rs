//! Against an API server made of one closure.

use super::*;
use crate::api::tests::{bookmark, door, refused, server, stream, whole};
use model::flow::Objects;
use model::time::Now;
use serde_json::json;

fn pod(name: &str, version: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": version,
                        "labels": {"app": "web"}},
           "status": {"phase": "Running"}})
}

/// What is said, taken in until `enough`.
async fn until(mut said: mpsc::Receiver<Change>, enough: impl Fn(&Objects) -> bool) -> Objects {
    let mut objects = Objects::default();
    let wait = async {
        while !enough(&objects) {
            let change = said.recv().await.expect("the source ended");
            objects.apply(change, Now::default());
        }
    };
    timeout(Duration::from_secs(20), wait)
        .await
        .expect("it is said in time");
    objects
}

fn start(door: Arc<Door>) -> mpsc::Receiver<Change> {
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(follow(door, tx));
    rx
}

fn pods(objects: &Objects) -> Vec<String> {
    objects
        .pods("shop")
        .map(|k| k.pod.name.to_string())
        .collect()
}

#[tokio::test]
async fn a_streamed_list_and_a_watch_are_taken_in() {
    let (dir, _) = server(Box::new(|url| match url {
        u if u.starts_with("/api/v1/pods?") => stream(
            &[
                json!({"type": "ADDED", "object": pod("web-1", "3")}),
                json!({"type": "ADDED", "object": pod("web-2", "4")}),
                bookmark("5", true),
                json!({"type": "DELETED", "object": pod("web-1", "6")}),
                json!({"type": "ADDED", "object": pod("web-3", "7")}),
            ],
            false,
        ),
        u if u.contains("sendInitialEvents") => stream(&[bookmark("5", true)], false),
        _ => refused(404),
    }))
    .await;
    let said = start(door(&dir).await);
    let objects = until(said, |o| {
        o.complete().is_some() && pods(o) == ["web-2", "web-3"]
    })
    .await;
    assert!(objects.as_of().is_some());
}

#[tokio::test]
async fn pages_are_said_one_by_one_and_what_another_list_lacks_is_gone() {
    let round = Arc::new(std::sync::Mutex::new(0));
    let count = round.clone();
    let (dir, asked) = server(Box::new(move |url| match url {
        u if u.contains("sendInitialEvents") => refused(422),
        u if u.starts_with("/api/v1/pods?limit") && u.contains("continue=a%2Fb") => whole(
            200,
            &json!({"metadata": {"resourceVersion": "5"}, "items": [pod("web-2", "4")]}),
        ),
        u if u.starts_with("/api/v1/pods?limit") => {
            let mut round = count.lock().unwrap();
            *round += 1;
            if *round == 1 {
                whole(
                    200,
                    &json!({"metadata": {"resourceVersion": "5", "continue": "a/b"},
                                   "items": [pod("web-1", "3")]}),
                )
            } else {
                whole(
                    200,
                    &json!({"metadata": {"resourceVersion": "9"}, "items": [pod("web-3", "8")]}),
                )
            }
        }
        u if u.starts_with("/api/v1/pods?") && u.contains("resourceVersion=5") => refused(410),
        u if u.contains("?limit") => whole(
            200,
            &json!({"metadata": {"resourceVersion": "5"}, "items": []}),
        ),
        _ => stream(&[], false),
    }))
    .await;
    let said = start(door(&dir).await);
    let objects = until(said, |o| pods(o) == ["web-3"]).await;
    assert!(objects.complete().is_some());
    let asked = asked.lock().unwrap();
    assert!(
        asked
            .iter()
            .filter(|u| u.contains("limit="))
            .all(|u| u.contains("limit=500")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn what_may_not_be_read_is_said_with_the_reason_and_the_rest_is_followed() {
    let (dir, _) = server(Box::new(|url| match url {
        u if u.starts_with("/api/v1/pods?") => refused(403),
        u if u.contains("sendInitialEvents") => stream(&[bookmark("5", true)], false),
        _ => refused(404),
    }))
    .await;
    let said = start(door(&dir).await);
    let objects = until(said, |o| o.lost().next().is_some()).await;
    let lost: Vec<_> = objects.lost().collect();
    assert_eq!(lost, [(Kind::Pods, "no (403)")]);
    assert!(objects.complete().is_none());
}

#[tokio::test]
async fn an_object_that_makes_no_sense_leaves_what_was_known_of_it() {
    let mut broken = pod("web-1", "6");
    broken["spec"] = json!({"containers": "none"});
    let lines = [
        json!({"type": "ADDED", "object": pod("web-1", "3")}),
        bookmark("5", true),
        json!({"type": "MODIFIED", "object": broken}),
        json!({"type": "ADDED", "object": pod("web-2", "7")}),
    ];
    let (dir, _) = server(Box::new(move |url| match url {
        u if u.starts_with("/api/v1/pods?") => stream(&lines, false),
        _ => refused(404),
    }))
    .await;
    let said = start(door(&dir).await);
    until(said, |o| pods(o) == ["web-1", "web-2"]).await;
}

//! Against an API server made of one closure: what it is asked, and what it answers.

use super::*;
use crate::door::DoorConfig;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Mutex;

pub(crate) type Body = BoxBody<Bytes, Infallible>;
pub(crate) type Answer = Box<dyn Fn(&str) -> Response<Body> + Send + Sync>;

/// A kubeconfig for a server that answers with `answer`, and what it was asked.
pub(crate) async fn server(answer: Answer) -> (tempfile::TempDir, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (log, answer) = (log.clone(), answer.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
                    let _: &hyper::body::Incoming = request.body();
                    let url = request.uri().to_string();
                    let response = answer(&url);
                    log.lock().unwrap().push(url);
                    async move { Ok::<_, Infallible>(response) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    std::fs::write(dir.path().join("config"), config.to_string()).unwrap();
    (dir, asked)
}

pub(crate) async fn door(dir: &tempfile::TempDir) -> Arc<Door> {
    let config = DoorConfig {
        kubeconfig: Some(dir.path().join("config")),
        api_server: None,
        state_dir: Some(dir.path().join("state")),
    };
    Door::open(config).await.unwrap()
}

pub(crate) fn whole(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// Lines of a watch; the stream ends after them when `end`, else it stays open.
pub(crate) fn stream(lines: &[Value], end: bool) -> Response<Body> {
    let lines: Vec<_> = lines
        .iter()
        .map(|l| Ok(Frame::data(Bytes::from(format!("{l}\n")))))
        .collect();
    let first = futures::stream::iter(lines);
    if end {
        Response::new(StreamBody::new(first).boxed())
    } else {
        use futures::StreamExt;
        let open = first.chain(futures::stream::pending());
        Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(
            Box::pin(open),
        )))))
    }
}

type Frames =
    std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
struct SyncStream(Mutex<Frames>);
impl futures::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.lock().unwrap().as_mut().poll_next(context)
    }
}

pub(crate) fn refused(code: u16) -> Response<Body> {
    whole(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                        "reason": "No", "code": code}),
    )
}

fn web(version: &str, port: u16) -> Value {
    json!({"kind": "Service", "apiVersion": "v1",
           "metadata": {"namespace": "shop", "name": "web", "resourceVersion": version},
           "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]}})
}

fn kubernetes() -> Value {
    json!({"metadata": {"namespace": "default", "name": "kubernetes", "resourceVersion": "3",
                        "labels": {"kubernetes.io/service-name": "kubernetes"}},
           "addressType": "IPv4", "ports": [{"name": "https", "port": 6443}],
           "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"]}]})
}

pub(crate) fn bookmark(version: &str, end: bool) -> Value {
    let annotations = if end {
        json!({LIST_END: "true"})
    } else {
        json!({})
    };
    json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1",
           "metadata": {"resourceVersion": version, "annotations": annotations}}})
}

async fn until(rx: &mut mpsc::Receiver<Said>, mut what: impl FnMut(&Said) -> bool) -> Vec<Said> {
    let mut all = Vec::new();
    // For all together: something that is said again and again is not what is waited for.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let Ok(said) = tokio::time::timeout_at(deadline, rx.recv()).await else {
            panic!("never came; so far {all:?}")
        };
        let said = said.expect("the source ended");
        let found = what(&said);
        all.push(said);
        if found {
            return all;
        }
    }
}

fn start(door: Arc<Door>) -> mpsc::Receiver<Said> {
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(follow(door, "n1".into(), tx));
    rx
}

#[tokio::test]
async fn a_streamed_list_is_followed_by_a_watch_that_resumes_at_the_last_bookmark() {
    let (dir, asked) = server(Box::new(|url| match url {
        u if u.starts_with("/api/v1/services") && u.contains("sendInitialEvents") => stream(
            &[
                json!({"type": "ADDED", "object": web("5", 80)}),
                bookmark("7", true),
                bookmark("9", false),
            ],
            true,
        ),
        u if u.starts_with("/api/v1/services") && u.contains("resourceVersion=9") => stream(
            &[json!({"type": "DELETED", "object": web("12", 80)})],
            false,
        ),
        u if u.contains("endpointslices") && u.contains("sendInitialEvents") => stream(
            &[
                json!({"type": "ADDED", "object": kubernetes()}),
                bookmark("7", true),
            ],
            false,
        ),
        _ => refused(403),
    }))
    .await;
    let door = door(&dir).await;
    let mut rx = start(door);
    let said = until(&mut rx, |s| {
        matches!(s, Said::Change(Change::ServiceGone(_)))
    })
    .await;
    let at = |what: &dyn Fn(&Said) -> bool| said.iter().position(what);
    let complete = at(&|s| *s == Said::Change(Change::Complete));
    assert!(at(&|s| matches!(s, Said::Change(Change::Service(_)))) < complete);
    assert!(said.contains(&Said::Alive(Collection::Services)));
    assert_eq!(
        said.iter()
            .filter(|s| **s == Said::Change(Change::Complete))
            .count(),
        1
    );
    assert!(
        said.iter()
            .any(|s| matches!(s, Said::Lost(Collection::ServiceCidrs, _)))
    );
    assert!(
        asked
            .lock()
            .unwrap()
            .iter()
            .any(|u| u.contains("resourceVersion=9"))
    );
    // The addresses of default/kubernetes are kept for the next start.
    let kept = std::fs::read_to_string(dir.path().join("state/api-server")).unwrap();
    assert_eq!(kept, "192.0.2.1:6443\n192.0.2.2:6443\n");
}

#[tokio::test]
async fn an_old_server_gets_paged_lists_and_410_lists_again_and_tells_what_is_gone() {
    let round = Arc::new(Mutex::new(0));
    let count = round.clone();
    let (dir, asked) = server(Box::new(move |url| match url {
        u if u.contains("sendInitialEvents") => refused(422),
        u if u.starts_with("/api/v1/services?limit") && u.contains("continue=a%2Fb") => {
            whole(200, &json!({"metadata": {"resourceVersion": "5"}, "items": [
                {"metadata": {"namespace": "shop", "name": "second", "resourceVersion": "4"}, "spec": {}}]}))
        }
        u if u.starts_with("/api/v1/services?limit") => {
            let mut round = count.lock().unwrap();
            *round += 1;
            if *round == 1 {
                whole(200, &json!({"metadata": {"resourceVersion": "5", "continue": "a/b"}, "items": [web("3", 80)]}))
            } else {
                whole(200, &json!({"metadata": {"resourceVersion": "20"}, "items": [web("19", 81)]}))
            }
        }
        u if u.starts_with("/api/v1/services") && u.contains("resourceVersion=5") => stream(
            &[json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                     "message": "too old resource version", "reason": "Expired", "code": 410}})],
            true,
        ),
        u if u.starts_with("/api/v1/services") => stream(&[bookmark("21", false)], false),
        u if u.contains("endpointslices?limit") => {
            whole(200, &json!({"metadata": {"resourceVersion": "5"}, "items": []}))
        }
        u if u.contains("endpointslices") => stream(&[], false),
        _ => refused(404),
    }))
    .await;
    let mut rx = start(door(&dir).await);
    let said = until(&mut rx, |s| {
        matches!(s, Said::Change(Change::ServiceGone(_)))
    })
    .await;
    let services = said.iter().filter_map(|s| match s {
        Said::Change(Change::Service(s)) => {
            Some((s.name.to_string(), s.ports.first().map(|p| p.port)))
        }
        _ => None,
    });
    assert_eq!(
        services.collect::<Vec<_>>(),
        [
            ("shop/web".into(), Some(80)),
            ("shop/second".into(), None),
            ("shop/web".into(), Some(81))
        ]
    );
    assert_eq!(
        said.last(),
        Some(&Said::Change(Change::ServiceGone(ServiceName::new(
            "shop", "second"
        ))))
    );
    assert!(
        said.iter()
            .any(|s| matches!(s, Said::Lost(Collection::Services, why) if why.contains("410")))
    );
    assert_eq!(*round.lock().unwrap(), 2, "{:?}", asked.lock().unwrap());
}

#[tokio::test]
async fn an_object_that_makes_no_sense_is_said_and_the_rest_goes_on() {
    let (dir, _) = server(Box::new(|url| match url {
        u if u.starts_with("/api/v1/services") => stream(
            &[
                json!({"type": "ADDED", "object": {"metadata": {"namespace": "shop", "name": "bad"},
                                                   "spec": {"ports": "none"}}}),
                json!({"type": "ADDED", "object": web("5", 80)}),
                bookmark("7", true),
            ],
            false,
        ),
        _ => refused(403),
    }))
    .await;
    let mut rx = start(door(&dir).await);
    let said = until(&mut rx, |s| *s == Said::Alive(Collection::Services)).await;
    assert!(said.contains(&Said::Bad(
        "Service shop/bad: spec.ports: \"none\" is not a list".into()
    )));
    assert!(
        said.iter()
            .any(|s| matches!(s, Said::Change(Change::Service(_))))
    );
}

#[tokio::test]
async fn one_service_is_fetched_with_its_slices() {
    let (dir, _) = server(Box::new(|url| match url {
        "/api/v1/namespaces/shop/services/web" => whole(200, &web("5", 80)),
        u if u.contains(
            "/namespaces/shop/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D",
        ) =>
        {
            whole(200, &json!({"metadata": {}, "items": []}))
        }
        _ => refused(404),
    }))
    .await;
    let door = door(&dir).await;
    let found = get_service(&door, &ServiceName::new("shop", "web"))
        .await
        .unwrap();
    assert_eq!(found.service.as_ref().unwrap().ports[0].port, 80);
    let absent = get_service(&door, &ServiceName::new("shop", "gone"))
        .await
        .unwrap();
    assert_eq!(
        absent.changes(&ClusterView::default()),
        [Change::ServiceGone(ServiceName::new("shop", "gone"))]
    );
}

#[tokio::test]
async fn kept_addresses_are_tried_when_the_configured_one_fails() {
    let (dir, _) = server(Box::new(|_| refused(403))).await;
    std::fs::create_dir_all(dir.path().join("state")).unwrap();
    std::fs::write(
        dir.path().join("state/api-server"),
        "192.0.2.7:6443\nnonsense\n",
    )
    .unwrap();
    let door = door(&dir).await;
    assert!(door.url().starts_with("http://127.0.0.1"));
    door.failed();
    assert_eq!(door.url(), "https://192.0.2.7:6443/");
    assert!(door.client().is_ok());
    door.failed();
    assert!(door.url().starts_with("http://127.0.0.1"));
}

#[tokio::test]
async fn storage_that_cannot_stream_lists_says_so_within_the_stream_and_gets_paged_lists() {
    let (dir, _) = server(Box::new(move |url| match url {
        // A watch cache over etcd 3.4 opens the stream, and its first event is the refusal.
        u if u.contains("sendInitialEvents") => stream(
            &[json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                     "message": "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled",
                     "code": 500}})],
            true,
        ),
        u if u.starts_with("/api/v1/services?limit") => {
            whole(200, &json!({"metadata": {"resourceVersion": "5"}, "items": [web("3", 80)]}))
        }
        u if u.contains("endpointslices?limit") => {
            whole(200, &json!({"metadata": {"resourceVersion": "5"}, "items": []}))
        }
        u if u.contains("watch=true") => stream(&[], false),
        _ => refused(404),
    }))
    .await;
    let mut rx = start(door(&dir).await);
    let said = until(&mut rx, |s| matches!(s, Said::Change(Change::Complete))).await;
    assert!(
        !said
            .iter()
            .any(|s| matches!(s, Said::Lost(c, _) if c.is_required())),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_silent_watch_is_opened_again_where_it_was_and_nothing_is_called_lost() {
    let (dir, asked) = server(Box::new(move |url| match url {
        u if u.contains("sendInitialEvents") => refused(422),
        u if u.starts_with("/api/v1/services?limit") => whole(
            200,
            &json!({"metadata": {"resourceVersion": "5"}, "items": [web("3", 80)]}),
        ),
        u if u.contains("endpointslices?limit") => whole(
            200,
            &json!({"metadata": {"resourceVersion": "5"}, "items": []}),
        ),
        // Healthy, and without a bookmark for as long as nothing changes.
        u if u.contains("watch=true") => stream(&[], false),
        _ => refused(404),
    }))
    .await;
    let (tx, mut rx) = mpsc::channel(64);
    let silence = Duration::from_millis(200);
    tokio::spawn(follow_with(door(&dir).await, "n1".into(), tx, silence));
    let mut alive = 0;
    let said = until(&mut rx, |s| {
        alive += usize::from(*s == Said::Alive(Collection::Services));
        // Of the list, of the watch, and of the watch that was opened again, twice.
        alive == 4
    })
    .await;
    assert!(
        !said
            .iter()
            .any(|s| matches!(s, Said::Lost(c, _) if c.is_required())),
        "{said:?}"
    );
    let asked = asked.lock().unwrap();
    let count = |what: &str| {
        let services = asked.iter().filter(|u| u.starts_with("/api/v1/services?"));
        services.filter(|u| u.contains(what)).count()
    };
    assert!(count("resourceVersion=5") >= 3, "{asked:?}");
    assert_eq!(count("limit="), 1, "{asked:?}");
}

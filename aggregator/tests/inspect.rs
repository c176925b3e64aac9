//! A reader of the aggregator gets what the node's kernel does now; where the node does not say it,
//! what was last known.

mod reports;

use agent::fresh::{Asker, wishes};
use agent::uplink::{Trust, UplinkConfig, uplink};
use aggregator::{SharedFleet, fleet::Fleet, http, ingest::Ingest, inspect::Inspector};
use model::name::NodeName;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

const HOUR: Duration = Duration::from_secs(3_600);
const WEB: &str = "/nodes/n17/svc/shop/web";

/// A node that looks when somebody wishes, and else once an hour.
#[derive(Default)]
struct Node {
    drifted: AtomicBool,
    passes: AtomicU64,
    /// Held by a test that lets the reading hang.
    reading: Mutex<()>,
}

impl Node {
    fn start(self: &Arc<Node>) -> Asker {
        let (tell, reports) = watch::channel(None);
        let (asker, mut wishes) = wishes(reports);
        let node = self.clone();
        std::thread::spawn(move || {
            loop {
                wishes.begin();
                drop(node.reading.lock().unwrap());
                let pass = node.passes.fetch_add(1, Ordering::SeqCst) + 1;
                let mut report = match node.drifted.load(Ordering::SeqCst) {
                    true => reports::drifted("n17"),
                    false => reports::named("n17", &[("shop", "web")]),
                };
                report.pass = pass;
                report.at.0 += pass;
                tell.send_replace(Some(Arc::new(report)));
                wishes.granted();
                wishes.rest(Duration::ZERO, HOUR, HOUR, || {});
            }
        });
        asker
    }
}

async fn get(at: SocketAddr, path: &str) -> (u16, Value) {
    let mut s = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    s.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"));
    (head[9..12].parse().unwrap(), body)
}

fn fresh(answer: &(u16, Value)) -> (bool, &str) {
    let (status, body) = answer;
    assert_eq!(*status, 200, "{body:#}");
    let freshness = &body["freshness"];
    (
        freshness["fresh"].as_bool().unwrap(),
        freshness["says"].as_str().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_what_the_node_does_now_or_the_last_known() {
    let fleet: SharedFleet = Arc::new(RwLock::new(Fleet::default()));
    let inspector = Inspector::default();
    let readers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, grpc) = (readers.local_addr().unwrap(), agents.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(Ingest::new(fleet.clone(), inspector.clone(), None).server())
        .serve_with_incoming(TcpListenerStream::new(agents));
    tokio::spawn(server);
    tokio::spawn(async move {
        axum::serve(readers, http::router(fleet, inspector, Default::default())).await
    });

    let node = Arc::new(Node::default());
    let config = UplinkConfig {
        aggregators: vec![grpc.to_string()],
        node: NodeName::from("n17"),
        service: None,
        token_file: None,
        trust: Trust::Anybody,
        version: "0.1.0".into(),
    };
    let agent = tokio::spawn(uplink(config, watch::channel(Vec::new()).1, node.start()));
    let end = Instant::now() + Duration::from_secs(20);
    while get(at, WEB).await.0 != 200 {
        assert!(Instant::now() < end, "the node never reported");
        sleep(Duration::from_millis(20)).await;
    }

    // The kernel changes; nothing but the question makes the node look.
    node.drifted.store(true, Ordering::SeqCst);
    let waited = get(at, &format!("{WEB}?fresh=wait")).await;
    assert_eq!(fresh(&waited), (true, "the node looked just now"));
    assert_eq!(waited.1["findings"][0]["kind"], "stale_backend");
    // A loop of questions does not make it look again and again.
    let before = node.passes.load(Ordering::SeqCst);
    node.drifted.store(false, Ordering::SeqCst);
    let soon = get(at, "/nodes/n17/svc/web").await;
    let (is_fresh, says) = fresh(&soon);
    assert!(!is_fresh && says.contains("?fresh=wait waits"), "{says}");
    assert_eq!(
        soon.1["findings"][0]["kind"], "stale_backend",
        "with its age"
    );
    assert!(soon.1["data"]["age_seconds"].is_number());
    let all: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { get(at, "/nodes/n17/svc/web?fresh=wait").await }))
        .collect();
    for one in all {
        let one = one.await.unwrap();
        assert!(fresh(&one).0);
        assert_eq!(one.1["findings"], serde_json::json!([]));
    }
    let made = node.passes.load(Ordering::SeqCst) - before;
    assert!((1..=3).contains(&made), "{made} passes for 11 questions");
    let (status, body) = get(at, &format!("{WEB}?fresh=maybe")).await;
    assert_eq!((status, &body["exists"][0]), (400, &Value::from("wait")));

    // A node that is slow: an answer within a second all the same, and it is the last known.
    {
        let hang = node.reading.lock().unwrap();
        let slow = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                loop {
                    let answer = get(at, WEB).await;
                    // The shortest interval may not be over yet.
                    if !fresh(&answer).1.contains("less than a second ago") {
                        return answer;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            })
        });
        let (is_fresh, says) = fresh(&slow);
        assert!(
            !is_fresh && says.contains("did not answer in time"),
            "{says}"
        );
        drop(hang);
    }

    // A node that is gone.
    agent.abort();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let gone = get(at, &format!("{WEB}?fresh=wait")).await;
        let (is_fresh, says) = fresh(&gone);
        if !is_fresh && says.contains("no agent of the node is connected") {
            break;
        }
        assert!(Instant::now() < end, "{says}");
        sleep(Duration::from_millis(20)).await;
    }
}

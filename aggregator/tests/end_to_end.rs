//! An agent's uplink reports to an aggregator over loopback, and curl's questions are answered.

#[expect(dead_code, reason = "the other reports are for tests/fleet.rs")]
mod reports;

use agent::fresh::wishes;
use agent::uplink::{Trust, UplinkConfig, uplink};
use aggregator::{SharedFleet, fleet::Fleet, http, ingest::Ingest, inspect::Inspector};
use model::capture::Reading;
use model::conntrack::{ConntrackReading, Meter, Sample};
use model::name::NodeName;
use model::time::Mono;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

async fn get(at: SocketAddr, path: &str, accept: &str) -> (u16, String) {
    let mut s = TcpStream::connect(at).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    s.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_string())
}

/// Asks until the answer holds the word.
async fn until(at: SocketAddr, path: &str, word: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, body) = get(at, path, "*/*").await;
        if body.contains(word) {
            return body;
        }
        assert!(Instant::now() < end, "{path} never said {word:?}:\n{body}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_reports_is_what_curl_reads() {
    let fleet: SharedFleet = Arc::new(RwLock::new(Fleet::default()));
    let inspector = Inspector::default();
    let readers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, grpc) = (readers.local_addr().unwrap(), agents.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(Ingest::new(fleet.clone(), inspector.clone(), None).server())
        .serve_with_incoming(TcpListenerStream::new(agents));
    tokio::spawn(server);
    tokio::spawn(async move { axum::serve(readers, http::router(fleet, inspector)).await });

    assert!(
        get(at, "/nodes", "*/*")
            .await
            .1
            .contains("no agent has reported yet")
    );

    let (send, reports) = watch::channel(None);
    let config = UplinkConfig {
        // One replica is dead: the other must not suffer.
        aggregators: vec!["127.0.0.1:1".into(), grpc.to_string()],
        service: None,
        node: NodeName::from("n17"),
        token_file: None,
        trust: Trust::Anybody,
        version: "0.1.0".into(),
    };
    let agent = tokio::spawn(uplink(
        config,
        watch::channel(Vec::new()).1,
        wishes(reports).0,
    ));
    until(at, "/nodes/n17", "has not finished a pass").await;

    send.send(Some(Arc::new(reports::drifted("n17")))).unwrap();
    let body = until(at, "/nodes/n17/svc/web", "10.244.9.9:8080").await;
    assert!(
        body.starts_with("{\n  \"verdict\": \"shop/web on n17: sends to"),
        "{body}"
    );
    let (status, text) = get(at, "/nodes/n17/svc/shop/web", "text/plain").await;
    assert!(
        status == 200 && text.contains("difference   sends nothing to 10.244.2.6:8080"),
        "{text}"
    );
    for path in [
        "/nodes/n17/svc/shop%2Fweb",
        "/nodes/n17/svc/web?namespace=shop",
        "/drift?kind=stale_backend&age=5s&severity=warning",
        "/svc/shop/web?output=text",
    ] {
        let (status, body) = get(at, path, "*/*").await;
        assert!(
            status == 200 && body.contains("10.244.9.9:8080"),
            "{path} {status}\n{body}"
        );
    }
    until(
        at,
        "/metrics",
        "vipwitness_node_findings{kind=\"stale_backend\",node=\"n17\",severity=\"critical\"} 1",
    )
    .await;
    assert_eq!(get(at, "/healthz", "*/*").await, (200, "ok\n".into()));

    // A pass that came to the same is told by a heartbeat; its number is seen.
    let mut again = reports::drifted("n17");
    again.pass = 8;
    again.at.0 += 1000;
    send.send(Some(Arc::new(again))).unwrap();
    until(at, "/nodes/n17", "\"pass\": 8").await;

    // Another reading of connection tracking comes with a heartbeat as well, and the next leaves it.
    let looked = |pass: u64, entries| {
        let mut report = reports::drifted("n17");
        report.pass = pass;
        report.at.0 += pass * 1000;
        let sample = Sample {
            entries,
            limit: 1_000,
            ..Sample::default()
        };
        report.conntrack = Some(Arc::new(ConntrackReading {
            at: report.at,
            reading: Reading::Read(Meter::default().take(Mono(0), sample)),
        }));
        Some(Arc::new(report))
    };
    send.send(looked(9, 421)).unwrap();
    until(at, "/conntrack", "\"entries\": 421").await;
    send.send(looked(10, 422)).unwrap();
    until(at, "/nodes/n17/conntrack", "\"entries\": 422").await;
    let series = "vipwitness_conntrack_entries{node=\"n17\"} 422";
    until(at, "/metrics", series).await;
    let (_, text) = get(at, "/conntrack", "text/plain").await;
    assert!(text.contains("n17   42.2 %"), "{text}");

    // Healed: the finding clears by itself.
    send.send(Some(Arc::new(reports::named(
        "n17",
        &[("shop", "web"), ("test", "web")],
    ))))
    .unwrap();
    until(at, "/drift", "\"findings\": []").await;
    let (status, body) = get(at, "/nodes/n17/svc/web", "*/*").await;
    assert!(
        status == 300 && body.contains("/nodes/n17/svc/test/web"),
        "{status}\n{body}"
    );

    for (path, status, says) in [
        ("/nodez", 404, "/nodes/{node}/svc/{name}"),
        ("/nodes/n18", 404, "/nodes/n17"),
        ("/nodes/n18/conntrack", 404, "/nodes/n17"),
        ("/conntrack?limit=0", 400, "1 to 500"),
        ("/nodes/n17/svc/shop/wbe", 404, "/nodes/n17/svc/shop/web"),
        ("/svc/shop/wbe", 404, "/svc/shop/web"),
        ("/drift?knd=x", 400, "\"kind\""),
        ("/drift?kind=x", 400, "stale_backend"),
        ("/drift?age=soon", 400, "30s"),
        ("/nodes?output=xml", 400, "\"text\""),
        ("/nodes?limit=0", 400, "1 to 500"),
    ] {
        let (got, body) = get(at, path, "*/*").await;
        assert!(got == status && body.contains(says), "{path} {got}\n{body}");
        assert!(body.contains("\"type\": \"about:blank\""), "{body}");
    }

    drop(send);
    agent.await.unwrap();
    until(at, "/nodes", "\"connected\": false").await;
}

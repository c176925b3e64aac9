//! An agent reports to every replica of the aggregator that is named, and to none that does not
//! prove itself.

mod reports;

use agent::fresh::wishes;
use agent::uplink::replicas::Replica;
use agent::uplink::{AggregatorService, Trust, UplinkConfig, uplink};
use aggregator::{SharedFleet, fleet::Fleet, ingest::Ingest, inspect::Inspector, tls};
use model::name::NodeName;
use model::report::Report;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

struct Aggregator {
    fleet: SharedFleet,
    at: SocketAddr,
    _server: JoinHandle<()>,
}

async fn aggregator(files: Option<tls::Files>) -> Aggregator {
    let fleet: SharedFleet = Arc::new(RwLock::new(Fleet::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(Ingest::new(fleet.clone(), Inspector::default(), None).server());
    let server = tokio::spawn(async move {
        match files {
            Some(files) => {
                let incoming = tls::accept(listener, files).unwrap();
                server.serve_with_incoming(incoming).await.unwrap();
            }
            None => {
                let incoming = TcpListenerStream::new(listener);
                server.serve_with_incoming(incoming).await.unwrap();
            }
        }
    });
    Aggregator {
        fleet,
        at,
        _server: server,
    }
}

impl Aggregator {
    /// The number of the pass last reported by n17; `None` without an open connection.
    fn pass(&self) -> Option<u64> {
        let fleet = self.fleet.read().unwrap();
        let member = fleet.nodes.get(&NodeName::from("n17"))?;
        let said = member.said.as_ref()?;
        member.open.then_some(said.pass)
    }

    async fn until(&self, what: &str, good: impl Fn(Option<u64>) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !good(self.pass()) {
            assert!(Instant::now() < end, "{what}: {:?}", self.pass());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn report(pass: u64) -> Option<Arc<Report>> {
    let mut report = reports::drifted("n17");
    report.pass = pass;
    report.at.0 += pass;
    Some(Arc::new(report))
}

fn replica(name: &str, addresses: &[SocketAddr]) -> Replica {
    Replica {
        name: name.into(),
        addresses: addresses.to_vec(),
    }
}

fn config(kept: Option<PathBuf>, trust: Trust) -> UplinkConfig {
    UplinkConfig {
        aggregators: Vec::new(),
        service: Some(AggregatorService {
            port: "vipwitness/vipwitness-aggregator:grpc".parse().unwrap(),
            kept,
        }),
        node: NodeName::from("n17"),
        token_file: None,
        trust,
        version: "0.1.0".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_that_is_named_gets_every_report() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("aggregator");
    let (a, b) = (aggregator(None).await, aggregator(None).await);
    // Takes connections and never answers.
    let stuck = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck = replica("stuck", &[stuck.local_addr().unwrap()]);
    let gone = "127.0.0.1:1".parse().unwrap();

    let (name, named) = watch::channel(Vec::new());
    let (send, reported) = watch::channel(report(1));
    let config = config(Some(kept.clone()), Trust::Anybody);
    let agent = tokio::spawn(uplink(config.clone(), named, wishes(reported).0));
    name.send(vec![replica("a", &[a.at]), stuck.clone()])
        .unwrap();
    a.until("a is told", |pass| pass == Some(1)).await;
    assert_eq!(b.pass(), None);

    // Of two addresses of one replica the one that answers is used; a slow one holds up nobody.
    let began = Instant::now();
    let b_named = replica("b", &[gone, b.at]);
    name.send(vec![replica("a", &[a.at]), stuck.clone(), b_named.clone()])
        .unwrap();
    send.send(report(2)).unwrap();
    a.until("a is told", |pass| pass == Some(2)).await;
    b.until("b is told", |pass| pass == Some(2)).await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );

    // No name at all changes nothing; another name does.
    name.send(Vec::new()).unwrap();
    send.send(report(3)).unwrap();
    a.until("a is told", |pass| pass == Some(3)).await;
    name.send(vec![b_named]).unwrap();
    a.until("a is left", |pass| pass.is_none()).await;
    b.until("b stays", |pass| pass == Some(3)).await;
    drop((name, send));
    tokio::time::timeout(Duration::from_secs(10), agent)
        .await
        .expect("it ends with the reports")
        .unwrap();
    b.until("b is left", |pass| pass.is_none()).await;

    // Started again where nothing names a replica: those that were kept are used.
    let (_name, named) = watch::channel(Vec::new());
    let (_send, reported) = watch::channel(report(4));
    tokio::spawn(uplink(config, named, wishes(reported).0));
    b.until("b is told again", |pass| pass == Some(4)).await;
    assert_eq!(a.pass(), None);
}

fn certificate(name: &str) -> (PathBuf, PathBuf) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certs");
    (
        folder.join(format!("{name}.crt")),
        folder.join(format!("{name}.key")),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_certificate_is_reported_to_and_a_new_one_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |name: &str| {
        let (certificate, key) = certificate(name);
        std::fs::copy(certificate, at("tls.crt")).unwrap();
        std::fs::copy(key, at("tls.key")).unwrap();
    };
    let files = |name: &str| {
        let (certificate, key) = certificate(name);
        Some(tls::Files { certificate, key })
    };
    put("elsewhere");
    let renewed = aggregator(Some(tls::Files {
        certificate: at("tls.crt"),
        key: at("tls.key"),
    }))
    .await;
    let (good, forged) = (
        aggregator(files("server")).await,
        aggregator(files("forged")).await,
    );
    let plain = aggregator(None).await;
    let all = [&renewed, &good, &forged, &plain];
    let named = all.map(|a| replica(&a.at.to_string(), &[a.at])).to_vec();
    let (_name, named) = watch::channel(named);
    let (_send, reported) = watch::channel(report(1));
    let trust = Trust::Authority(certificate("authority").0);
    tokio::spawn(uplink(config(None, trust), named, wishes(reported).0));
    good.until("the right one is told", |pass| pass == Some(1))
        .await;

    put("server");
    // The agent's back-off is at most 20 s by now.
    let end = Instant::now() + Duration::from_secs(60);
    while renewed.pass().is_none() {
        assert!(Instant::now() < end, "the new certificate is not in use");
        sleep(Duration::from_millis(50)).await;
    }
    for wrong in [forged, plain] {
        let fleet = wrong.fleet.read().unwrap();
        assert!(fleet.nodes.is_empty(), "told somebody else");
    }
}

#[tokio::test]
async fn a_key_of_another_certificate_is_refused_at_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let files = tls::Files {
        certificate: certificate("server").0,
        key: certificate("forged").1,
    };
    let Err(why) = tls::accept(listener, files) else {
        panic!("taken")
    };
    assert!(format!("{why:#}").contains("server.crt"), "{why:#}");
}

//! The laboratory's own network does what the other tests lean on: connections from each kind of
//! source reach a backend through rules that a real kube-proxy wrote, and come back.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tests::cache::Version;
use tests::netns::Netns;
use tests::proxy::Mode;
use tests::recording::Recording;
use tests::topology::Hub;

/// Stands for every Pod: tells each client which address it reached and from which it came.
fn serve(hub: &Netns, any: &str) {
    let listener = hub.enter(|| TcpListener::bind(any).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let line = format!(
                "{} {}",
                client.local_addr().unwrap(),
                client.peer_addr().unwrap()
            );
            let _ = client.write_all(line.as_bytes());
        }
    });
}

/// Backend and peer as the server saw them, or `None` when the connection was refused.
fn connect(from: &Netns, to: SocketAddr) -> Option<(SocketAddr, IpAddr)> {
    from.enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (backend, peer) = text.split_once(' ').unwrap();
        Some((
            backend.parse().unwrap(),
            peer.parse::<SocketAddr>().unwrap().ip(),
        ))
    })
    .unwrap()
}

#[test]
fn connections_from_each_source_reach_backends_and_come_back() {
    if !tests::packages::is_root() {
        println!("network namespaces need root: not run");
        return;
    }
    for (version, mode) in [
        (Version::V1_37, Mode::Nftables),
        (Version::V1_36, Mode::IptablesNft),
    ] {
        let hub = Hub::create().unwrap();
        let recording = Recording::of(version, mode);
        let place = recording.place().unwrap();
        let node = hub.add_node_at(&place.name, place.index).unwrap();
        recording.load(node.netns()).unwrap();
        serve(hub.netns(), "0.0.0.0:8080");
        serve(hub.netns(), "[::]:9090");

        let web: SocketAddr = "10.96.10.10:80".parse().unwrap();
        let backends: [SocketAddr; 2] = [
            "10.244.100.10:8080".parse().unwrap(),
            "10.244.100.20:8080".parse().unwrap(),
        ];
        for (source, peer) in [
            // A Pod keeps its address; everybody else is masqueraded at a ClusterIP.
            (node.pod().netns(), node.pod().v4()),
            (node.netns(), node.v4()),
            (node.outside().netns(), node.v4()),
        ] {
            let (backend, seen) = connect(source, web).unwrap();
            assert!(backends.contains(&backend), "{mode:?}: {backend}");
            assert_eq!(seen, IpAddr::from(peer), "{mode:?}");
        }

        // Dual stack, over IPv6.
        let (backend, peer) =
            connect(node.pod().netns(), "[fd00:96::1018]:9090".parse().unwrap()).unwrap();
        assert!(
            ["[fd00:244::100:21]:9090", "[fd00:244::100:22]:9090"]
                .contains(&backend.to_string().as_str())
        );
        assert_eq!(peer, IpAddr::from(node.pod().v6()));

        // A node port with externalTrafficPolicy Local reaches the local endpoint with the client's own address.
        let (backend, peer) = connect(
            node.outside().netns(),
            SocketAddr::new(node.v4().into(), 30081),
        )
        .unwrap();
        assert_eq!(backend, SocketAddr::new(node.pod_v4(15).into(), 8080));
        assert_eq!(peer, IpAddr::from(node.outside().v4()));

        // A Service without endpoints is refused.
        assert_eq!(
            connect(node.pod().netns(), "10.96.10.16:80".parse().unwrap()),
            None
        );
    }
}

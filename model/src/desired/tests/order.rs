//! Order, repetition and splitting of what the API says do not change the table.

use super::*;

/// xorshift64*; its seed is printed.
pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }
}

fn random_service(r: &mut Random, n: usize) -> (Service, Vec<EndpointSlice>) {
    let cluster_ip = format!("10.96.{}.{}", n / 250, n % 250 + 1);
    let mut service = if r.one_in(2) {
        balanced(|_| ())
    } else {
        web(|_| ())
    };
    service.name = ServiceName::new("shop", &format!("s{n}"));
    service.cluster_ips = vec![cluster_ip.parse().unwrap()];
    service.cluster_ip = cluster_ip.into();
    service.internal_local = r.one_in(4);
    service.external_local = r.one_in(3);
    service.affinity_seconds = r.one_in(5).then_some(600);
    service.headless_label = r.one_in(12);
    for ingress in &mut service.ingress {
        // Few addresses, so that Services collide.
        ingress.address = format!("203.0.113.{}", r.below(6)).parse().unwrap();
        ingress.proxy_mode = r.one_in(6);
    }
    if let Some(port) = &mut service.ports[0].node_port {
        *port = 30000 + r.below(40) as u16;
    }
    if r.one_in(4) {
        service.external_ips = vec![format!("198.51.100.{}", r.below(4)).parse().unwrap()];
    }
    if r.one_in(4) {
        service.source_ranges = vec![
            "192.168.0.0/24".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ];
    }
    let slices = (0..r.below(4))
        .map(|m| {
            let endpoints: Vec<String> = (0..r.below(5))
                .map(|_| {
                    let node = 1 + r.below(3);
                    let state = ["", " unready", " leaving", " dead"][r.below(8).min(3)];
                    let zones = ["", " zones=a", " zones=b"][r.below(3)];
                    format!("10.244.{node}.{}@n{node}{state}{zones}", r.below(9))
                })
                .collect();
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let mut slice = slice(&format!("s{n}"), &m.to_string(), &endpoints);
            slice.family = Some(Family::V4);
            slice
        })
        .collect();
    (service, slices)
}

#[test]
fn shuffled_doubled_and_split_input_gives_the_same_table() {
    for seed in [1, 2, 3, 0x7069_7777] {
        #[expect(clippy::disallowed_macros, reason = "a failing test shows its seed")]
        {
            println!("seed {seed}");
        }
        let mut r = Random(seed);
        let mut changes = Vec::new();
        let mut earlier = Vec::new();
        for n in 0..60 {
            let (service, slices) = random_service(&mut r, n);
            // Something else that was said before, and is replaced or taken back.
            earlier.push(Change::Service(Service {
                external_local: true,
                ..service.clone()
            }));
            earlier.extend(slices.iter().map(|s| {
                let mut other = s.clone();
                other.endpoints.truncate(1);
                other.service = Some("s0".into());
                Change::Slice(other)
            }));
            changes.push(Change::Service(service));
            changes.extend(slices.into_iter().map(Change::Slice));
        }
        for n in 60..70 {
            let (service, slices) = random_service(&mut r, n);
            changes.push(Change::ServiceGone(service.name.clone()));
            changes.extend(slices.iter().map(|s| Change::SliceGone(s.name.clone())));
            earlier.push(Change::Service(service));
            earlier.extend(slices.into_iter().map(Change::Slice));
        }
        for (mode, minor) in [(IPTABLES, 34), (NFTABLES, 33), (NFTABLES, 37)] {
            let empty = world(mode, minor);
            let mut plain = empty.clone();
            for change in &changes {
                plain.say(change.clone());
            }
            let expected = plain.table();
            assert!(expected.len() > 200, "{}", expected.len());
            for _ in 0..5 {
                let mut world = empty.clone();
                r.shuffle(&mut earlier);
                for change in &earlier {
                    world.say(change.clone());
                }
                let mut again = changes.clone();
                again.extend(changes.iter().filter(|_| r.one_in(3)).cloned());
                r.shuffle(&mut again);
                for change in again {
                    world.say(change);
                }
                assert_eq!(world.table(), expected, "seed {seed} {mode} 1.{minor}");
            }
            let mut replaced = empty.clone();
            for change in &earlier {
                replaced.say(change.clone());
            }
            let services = plain.view.services.values().cloned().collect();
            let slices = plain.view.slices.values().cloned().collect();
            replaced.say(Change::Replace { services, slices });
            assert_eq!(replaced.table(), expected, "seed {seed} replaced");
        }
    }
}

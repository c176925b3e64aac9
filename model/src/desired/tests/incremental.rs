//! A table that is kept up to date is the table that is made anew.

use super::order::{Random, random_service};
use super::*;
use crate::desired::{DesiredState, Updated, touched};
use std::collections::BTreeSet;

/// One thing the API may say next.
fn random_change(r: &mut Random, world: &World) -> Change {
    let services: Vec<_> = world.view.services.keys().cloned().collect();
    let slices: Vec<_> = world.view.slices.values().cloned().collect();
    let n = r.below(24);
    let (service, mut fresh) = random_service(r, n);
    match r.below(16) {
        0..5 => Change::Service(service),
        5 if !services.is_empty() => Change::ServiceGone(services[r.below(services.len())].clone()),
        6 if !slices.is_empty() => Change::SliceGone(slices[r.below(slices.len())].name.clone()),
        7 if !slices.is_empty() => {
            // A slice that changes hands.
            let mut slice = slices[r.below(slices.len())].clone();
            slice.service = Some(format!("s{}", r.below(24)).into());
            Change::Slice(slice)
        }
        8 if r.one_in(4) => Change::ServiceCidrs(vec!["10.96.0.0/16".parse().unwrap()]),
        9 if r.one_in(4) => Change::Node(Node {
            name: NodeName::from("n1"),
            internal_ips: vec!["192.168.0.2".parse().unwrap()],
            external_ips: vec![],
            zone: Some(["a", "b"][r.below(2)].into()),
            pod_cidrs: vec![],
            going: false,
            created: None,
        }),
        10 if r.one_in(6) => Change::Replace {
            services: world.view.services.values().take(9).cloned().collect(),
            slices: slices.into_iter().take(15).collect(),
        },
        _ => match fresh.pop() {
            Some(slice) => Change::Slice(slice),
            None => Change::Service(service),
        },
    }
}

#[test]
fn a_table_kept_up_to_date_is_the_table_made_anew() {
    for seed in [1, 2, 3, 0x6465_7369_7265] {
        #[expect(clippy::disallowed_macros, reason = "a failing test shows its seed")]
        {
            println!("seed {seed}");
        }
        for (mode, minor) in [
            (IPTABLES, 34),
            (NFTABLES, 33),
            (NFTABLES, 34),
            (NFTABLES, 37),
        ] {
            let mut r = Random(seed);
            let mut world = world(mode, minor);
            let mut state = DesiredState::default();
            state.update(&world.view, &world.node, &world.profile, None);
            let mut parts = 0;
            for step in 0..400 {
                // Several changes may be said between two updates.
                let mut names = Some(BTreeSet::new());
                for _ in 0..=r.below(3) {
                    let change = random_change(&mut r, &world);
                    match (touched(&change, &world.view), &mut names) {
                        (Some(more), Some(names)) => names.extend(more),
                        _ => names = None,
                    }
                    world.say(change);
                }
                let before = state.table().clone();
                let World {
                    view,
                    node,
                    profile,
                } = &world;
                let updated = state.update(view, node, profile, names.as_ref());
                let whole = world.table();
                assert_eq!(
                    *state.table(),
                    whole,
                    "seed {seed} {mode} 1.{minor} step {step}"
                );
                if let Updated::Frontends(frontends) = updated {
                    parts += 1;
                    // Whoever uses the rows of these only must not miss one.
                    let keys: BTreeSet<_> = before.keys().chain(whole.keys()).collect();
                    for key in keys {
                        assert!(
                            frontends.contains(&key.0) || before.get(key) == whole.get(key),
                            "seed {seed} {mode} 1.{minor} step {step}: {key:?} changed untold"
                        );
                    }
                }
            }
            assert!(parts > 200, "{parts} updates by parts");
        }
    }
}

#[test]
fn rules_that_are_not_known_are_merged_as_a_whole() {
    let mut world = world(NFTABLES, 34).with(web(|_| ()), &["10.244.2.1"]);
    world.profile.version = None;
    let mut state = DesiredState::default();
    let none = BTreeSet::new();
    for touched in [None, Some(&none)] {
        let World {
            view,
            node,
            profile,
        } = &world;
        let updated = state.update(view, node, profile, touched);
        assert_eq!(updated, Updated::Whole);
        assert_eq!(*state.table(), world.table());
    }
}

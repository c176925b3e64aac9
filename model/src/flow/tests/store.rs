//! What is remembered of the API's objects.

use super::super::limits::GONE_PODS;
use super::super::store::Change;
use super::*;

#[test]
fn labels_and_ports_of_neighbours_are_kept_once() {
    let mut objects = Objects::default();
    for n in [2, 1, 3] {
        objects.apply(Change::Pod(pod(n)), at(0));
    }
    let pods: Vec<_> = objects.pods("shop").map(|k| &k.pod).collect();
    assert!(Arc::ptr_eq(&pods[0].labels, &pods[1].labels));
    assert!(Arc::ptr_eq(&pods[1].ports, &pods[2].ports));
}

#[test]
fn only_what_makes_endpoints_moves_a_pods_stamp() {
    let mut objects = Objects::default();
    objects.apply(Change::Pod(pod(1)), at(1));
    let stamp = |o: &Objects| o.pod("shop", "web-1").unwrap().changed;
    // An update that no endpoint follows.
    let mut pending = pod(1);
    pending.phase = Phase::Pending;
    objects.apply(Change::Pod(pending), at(2));
    assert_eq!(stamp(&objects), Mono(1));
    objects.apply(Change::Pod(not_ready(pod(1), NotReady::default())), at(3));
    assert_eq!(stamp(&objects), Mono(3));
}

#[test]
fn stamps_of_pods_that_are_gone_are_bounded_and_the_oldest_go_first() {
    let mut objects = Objects::default();
    let name = |n: usize| -> Arc<str> { format!("web-{n}").into() };
    let shop: Arc<str> = "shop".into();
    for n in 0..=GONE_PODS {
        let mut pod = pod(1);
        pod.name = name(n);
        objects.apply(Change::Pod(pod), at(1));
        objects.apply(Change::PodGone(shop.clone(), name(n)), at(2));
    }
    assert_eq!(objects.absent_since(&shop, &name(0)), None);
    assert_eq!(objects.absent_since(&shop, &name(1)), Some(Mono(2)));
    // One that comes back is not absent.
    let mut back = pod(1);
    back.name = name(1);
    objects.apply(Change::Pod(back), at(3));
    assert_eq!(objects.absent_since(&shop, &name(1)), None);
}

#[test]
fn it_is_complete_when_every_kind_was_listed_and_as_current_as_the_oldest() {
    let mut objects = Objects::default();
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(objects.complete(), None);
        objects.apply(Change::Alive(kind), at(i as u64 * 10));
    }
    assert_eq!(objects.complete(), Some(Mono(30)));
    assert_eq!(objects.as_of(), Some(at(0)));
    objects.apply(Change::Alive(Kind::Services), at(50));
    assert_eq!(objects.as_of(), Some(at(10)));
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut objects = Objects::default();
    objects.apply(Change::Slice(slice("web-1", &[pod(1)])), at(0));
    let (web, other) = (
        ServiceName::new("shop", "web"),
        ServiceName::new("shop", "other"),
    );
    assert_eq!(objects.slices_of(&web).count(), 1);
    let mut moved = slice("web-1", &[pod(1)]);
    moved.slice.service = Some("other".into());
    objects.apply(Change::Slice(moved), at(1));
    assert_eq!(
        (
            objects.slices_of(&web).count(),
            objects.slices_of(&other).count()
        ),
        (0, 1)
    );
    assert_eq!(objects.orphaned_since(&web), None);
    assert_eq!(objects.orphaned_since(&other), Some(Mono(1)));
}

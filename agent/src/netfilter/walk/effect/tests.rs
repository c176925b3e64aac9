//! Sets: which look-ups a change of elements concerns.

use super::*;
use crate::netfilter::ruleset::{Data, Verdict};
use std::net::IpAddr;
use std::sync::Arc;

fn element(address: &str, port: u64, to: &str) -> Element {
    let address: IpAddr = address.parse().unwrap();
    Element {
        key: vec![
            Value::Prefix(address.into()),
            Value::Number(6, 6),
            Value::Number(port, port),
        ],
        data: Some(Data::Verdict(Verdict::Goto(Arc::from(to)))),
        comment: None,
        catch_all: false,
    }
}

fn set(elements: Vec<Element>) -> Set {
    Set {
        name: "service-ips".into(),
        handle: 1,
        map: true,
        dynamic: false,
        anonymous: false,
        timeout_ms: None,
        key_bytes: vec![4, 4, 4],
        key_type: 0,
        elements,
        unread: None,
    }
}

const FIELDS: [Field; 3] = [Field::Daddr, Field::L4proto, Field::Dport];

fn effect(was: &Set, is: &Set) -> Effect {
    let mut effect = Effect::Nothing;
    SetDiff::of(Some(was), Some(is)).effect(&FIELDS, &mut effect);
    effect
}

#[test]
fn elements_concern_their_keys() {
    let (a, b) = (element("10.96.0.1", 80, "a"), element("10.96.0.2", 80, "b"));
    let was = set(vec![a.clone(), b.clone()]);
    // A hash gives its elements in any order.
    assert_eq!(
        effect(&was, &set(vec![b.clone(), a.clone()])),
        Effect::Nothing
    );
    let other = element("10.96.0.2", 80, "c");
    for is in [set(vec![a.clone()]), set(vec![a.clone(), other])] {
        let effect = effect(&was, &is);
        let [first, second]: [IpAddr; 2] = ["10.96.0.1", "10.96.0.2"].map(|a| a.parse().unwrap());
        assert!(!effect.concerns(first, 6, 80), "{effect:?}");
        assert!(effect.concerns(second, 6, 80), "{effect:?}");
        assert!(!effect.concerns(second, 17, 80), "{effect:?}");
        assert!(!effect.concerns(second, 6, 81), "{effect:?}");
    }
}

#[test]
fn a_set_that_is_another_concerns_all() {
    let was = set(vec![element("10.96.0.1", 80, "a")]);
    let unread = Set {
        unread: Some("why".into()),
        ..was.clone()
    };
    let dynamic = Set {
        dynamic: true,
        ..was.clone()
    };
    for is in [&unread, &dynamic] {
        assert_eq!(effect(&was, is), Effect::All);
    }
    let handle = Set {
        handle: 2,
        ..was.clone()
    };
    assert_eq!(effect(&was, &handle), Effect::Nothing);
    let mut all = Effect::Nothing;
    SetDiff::of(None, Some(&was)).effect(&FIELDS, &mut all);
    assert_eq!(all, Effect::All);
    // An element for every key that has none of its own.
    let mut catch_all = element("10.96.0.1", 80, "rest");
    catch_all.key.clear();
    catch_all.catch_all = true;
    let is = set(vec![element("10.96.0.1", 80, "a"), catch_all]);
    assert_eq!(effect(&was, &is), Effect::All);
}

/// Of two ranges that hold a key, the first counts.
#[test]
fn the_order_of_ranges_concerns_all() {
    let range = |net: &str, to: &str| Element {
        key: vec![Value::Prefix(net.parse().unwrap())],
        ..element("10.96.0.1", 80, to)
    };
    let (a, b) = (range("10.0.0.0/8", "a"), range("10.96.0.0/16", "b"));
    let was = set(vec![a.clone(), b.clone()]);
    assert_eq!(
        effect(&was, &set(vec![a.clone(), b.clone()])),
        Effect::Nothing
    );
    assert_eq!(effect(&was, &set(vec![b, a])), Effect::All);
}

/// What a look-up with other fields concerns, such as one by the source alone.
#[test]
fn a_key_without_the_destination_concerns_all() {
    let was = set(vec![element("10.96.0.1", 80, "a")]);
    let is = set(Vec::new());
    let mut effect = Effect::Nothing;
    SetDiff::of(Some(&was), Some(&is)).effect(&[Field::Saddr], &mut effect);
    assert_eq!(effect, Effect::All);
    let mut by_chance = Effect::Nothing;
    SetDiff::of(Some(&was), Some(&is)).effect(&[], &mut by_chance);
    assert_eq!(by_chance, Effect::All);
}

//! What follows a translation is shared by backends only where the rules treat them alike. [`see`]
//! compares with a walk that shares nothing.

use super::*;

/// Two backends of one Service, and rules that stand after the translation: the masquerade of each.
fn masqueraded(backends: [&str; 2], after: &str) -> [Masquerade; 2] {
    let [first, second] = backends;
    let rules = format!(
        "*nat
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --comment \"ns/a cluster IP\" --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -j DNAT --to-destination {first}
-A KUBE-SEP-2 -p tcp -j DNAT --to-destination {second}
{after}
"
    );
    let seen = see(&text::iptables(&rules), &Iptables);
    let row = seen.row("10.96.0.1:80/TCP", SourceClass::Outside);
    let of = |address: &str| {
        let address = address.parse().unwrap();
        let mut all = row.forwarding.backends.iter();
        all.find(|b| b.address == address)
            .unwrap_or_else(|| panic!("{address} of {row:?}"))
            .masquerade
    };
    backends.map(of)
}

#[test]
fn rules_for_one_backend_are_not_the_other_ones() {
    use Masquerade::{Always, Never};
    let (one, two) = ("10.244.0.1:8080", "10.244.0.2:8080");
    for (backends, after, expected) in [
        ([one, two], "-A POSTROUTING -j MASQUERADE", [Always, Always]),
        // Found by the address, and by a range that holds it.
        (
            [one, two],
            "-A POSTROUTING -d 10.244.0.2/32 -j MASQUERADE",
            [Never, Always],
        ),
        (
            [one, two],
            "-A POSTROUTING -d 10.244.0.1/32 -j MASQUERADE",
            [Always, Never],
        ),
        (
            [one, two],
            "-A POSTROUTING -d 10.244.0.2/31 -j MASQUERADE",
            [Never, Always],
        ),
        // By the port.
        (
            [one, "10.244.0.2:9090"],
            "-A POSTROUTING -p tcp --dport 9090 -j MASQUERADE",
            [Never, Always],
        ),
        // The node itself does not send on what is for it.
        (
            [one, "192.168.0.2:8080"],
            "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
*filter
-A FORWARD -j MARK --set-xmark 0x4000/0x4000",
            [Always, Never],
        ),
    ] {
        assert_eq!(
            masqueraded(backends, after),
            expected,
            "{backends:?} {after}"
        );
    }
}

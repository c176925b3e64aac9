//! 5,000 Services with 10 endpoints each are walked; what that costs, `cargo lab bench` measures.

use super::*;
use std::fmt::Write;
use std::time::Instant;

fn ip(base: u32, i: u32) -> std::net::Ipv4Addr {
    (base + i).into()
}

fn rules() -> String {
    let mut t = String::from("*nat\n-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n");
    t.push_str(
        "-A POSTROUTING -j KUBE-POSTROUTING\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n",
    );
    t.push_str("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MASQUERADE\n");
    for s in 0..5_000u32 {
        let cip = ip(0x0a60_0100, s);
        writeln!(t, "-A KUBE-SERVICES -d {cip} -p tcp --comment \"ns/s{s} cluster IP\" --dport 80 -j KUBE-SVC-{s}").unwrap();
        writeln!(
            t,
            "-A KUBE-SVC-{s} ! -s 10.244.0.0/16 -d {cip} -p tcp --dport 80 -j KUBE-MARK-MASQ"
        )
        .unwrap();
        for e in 0..10u32 {
            let to = ip(0x0af4_0000, s * 10 + e);
            if e < 9 {
                writeln!(t, "-A KUBE-SVC-{s} -m statistic --mode random --probability {:.11} -j KUBE-SEP-{s}-{e}", 1.0 / f64::from(10 - e)).unwrap();
            } else {
                writeln!(t, "-A KUBE-SVC-{s} -j KUBE-SEP-{s}-{e}").unwrap();
            }
            writeln!(t, "-A KUBE-SEP-{s}-{e} -s {to} -j KUBE-MARK-MASQ").unwrap();
            writeln!(
                t,
                "-A KUBE-SEP-{s}-{e} -p tcp -j DNAT --to-destination {to}:8080"
            )
            .unwrap();
        }
    }
    t.push_str(
        "*filter
        -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
        -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
        -A FORWARD -j KUBE-FORWARD
        -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
        -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
        -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
        -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
        -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
        -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    );
    t
}

#[test]
fn five_thousand_services() {
    let ruleset = text::iptables(&rules());
    let start = Instant::now();
    let (desired, node, detector) = (BTreeMap::new(), node(), cidr());
    let ask = Ask {
        desired: &desired,
        node: &node,
        detector: &detector,
        owner: &Iptables,
    };
    let Some(Reading::Read(table)) = walk(&ruleset, &ask).remove(&Family::V4) else {
        panic!("no table")
    };
    let seen = Seen(table);
    let took = start.elapsed();
    println!("{} rows in {took:?}", seen.0.rows.len());
    assert_eq!(seen.0.rows.len(), 15_000);
    let row = seen.row("10.96.1.7:80/TCP", SourceClass::Pod);
    assert_eq!(row.forwarding.backends.len(), 10);
    assert!(
        row.forwarding
            .backends
            .iter()
            .all(|b| (b.share - 0.1).abs() < 1e-9)
    );
}

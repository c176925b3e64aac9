//! kube-proxy-like rulesets (iptables-save text for both back ends; nft text in
//! kube-proxy's nftables layout). Deterministic.
use crate::Args;
use std::io::{BufWriter, Write};

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d049bb133111eb);
    x ^ (x >> 31)
}
fn b32(x: u64, n: usize) -> String {
    const A: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut v = mix(x);
    (0..n)
        .map(|i| {
            if i % 12 == 11 {
                v = mix(v);
            }
            let c = A[(v & 31) as usize] as char;
            v >>= 5;
            c
        })
        .collect()
}
pub fn svc_ip(s: usize) -> String {
    let n = (10u32 << 24) + (96 << 16) + 10 + s as u32;
    std::net::Ipv4Addr::from(n).to_string()
}
pub fn ep_ip(s: usize, e: usize, eps: usize) -> String {
    let n = (10u32 << 24) + (128 << 16) + 2 + (s * eps + e) as u32;
    std::net::Ipv4Addr::from(n).to_string()
}

pub fn iptables(a: &Args) {
    let svcs: usize = a.get("svcs", 5000);
    let eps: usize = a.get("eps", 10);
    let mut w = BufWriter::new(std::io::stdout().lock());
    let o = &mut w;
    writeln!(o, "*filter").unwrap();
    for c in ["INPUT", "FORWARD", "OUTPUT"] {
        writeln!(o, ":{c} ACCEPT [0:0]").unwrap();
    }
    for c in ["KUBE-EXTERNAL-SERVICES", "KUBE-FIREWALL", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL", "KUBE-SERVICES"] {
        writeln!(o, ":{c} - [0:0]").unwrap();
    }
    write!(o, "-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
").unwrap();
    // a few services with no endpoints
    for s in 0..svcs / 100 {
        writeln!(o, "-A KUBE-SERVICES -d {}/32 -p tcp -m comment --comment \"ns{}/empty-{s}:http has no endpoints\" -m tcp --dport 81 -j REJECT --reject-with icmp-port-unreachable", svc_ip(s), s % 50).unwrap();
    }
    writeln!(o, "COMMIT\n*nat").unwrap();
    for c in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
        writeln!(o, ":{c} ACCEPT [0:0]").unwrap();
    }
    for c in ["KUBE-MARK-MASQ", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-SERVICES"] {
        writeln!(o, ":{c} - [0:0]").unwrap();
    }
    let np = |s: usize| s % 10 == 0;
    let aff = |s: usize| s % 100 == 7;
    let svch = |s: usize| b32(s as u64 ^ 0x5151, 16);
    let seph = |s: usize, e: usize| b32(((s * eps + e) as u64) ^ 0xabcdef0000, 16);
    for s in 0..svcs {
        writeln!(o, ":KUBE-SVC-{} - [0:0]", svch(s)).unwrap();
        if np(s) {
            writeln!(o, ":KUBE-EXT-{} - [0:0]", svch(s)).unwrap();
        }
        for e in 0..eps {
            writeln!(o, ":KUBE-SEP-{} - [0:0]", seph(s, e)).unwrap();
        }
    }
    write!(o, "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
").unwrap();
    for s in 0..svcs {
        let name = format!("ns{}/service-{s}:http", s % 50);
        let (sv, ip) = (svch(s), svc_ip(s));
        writeln!(o, "-A KUBE-SERVICES -d {ip}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{sv}").unwrap();
        if np(s) {
            writeln!(o, "-A KUBE-NODEPORTS -p tcp -m comment --comment \"{name}\" -m tcp --dport {} -j KUBE-EXT-{sv}", 30000 + s / 10).unwrap();
            writeln!(o, "-A KUBE-EXT-{sv} -m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ").unwrap();
            writeln!(o, "-A KUBE-EXT-{sv} -j KUBE-SVC-{sv}").unwrap();
        }
        writeln!(o, "-A KUBE-SVC-{sv} ! -s 10.128.0.0/14 -d {ip}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ").unwrap();
        if aff(s) {
            for e in 0..eps {
                writeln!(o, "-A KUBE-SVC-{sv} -m comment --comment \"{name} -> {}:8080\" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-{1} --mask 255.255.255.255 --rsource -j KUBE-SEP-{1}", ep_ip(s, e, eps), seph(s, e)).unwrap();
            }
        }
        for e in 0..eps {
            let left = eps - e;
            let se = seph(s, e);
            let ep = ep_ip(s, e, eps);
            if left > 1 {
                writeln!(o, "-A KUBE-SVC-{sv} -m comment --comment \"{name} -> {ep}:8080\" -m statistic --mode random --probability {:.11} -j KUBE-SEP-{se}", 1.0 / left as f64).unwrap();
            } else {
                writeln!(o, "-A KUBE-SVC-{sv} -m comment --comment \"{name} -> {ep}:8080\" -j KUBE-SEP-{se}").unwrap();
            }
            writeln!(o, "-A KUBE-SEP-{se} -s {ep}/32 -m comment --comment \"{name}\" -j KUBE-MARK-MASQ").unwrap();
            let rec = if aff(s) { format!("-m recent --set --name KUBE-SEP-{se} --mask 255.255.255.255 --rsource ") } else { String::new() };
            writeln!(o, "-A KUBE-SEP-{se} -p tcp -m comment --comment \"{name}\" {rec}-m tcp -j DNAT --to-destination {ep}:8080").unwrap();
        }
    }
    writeln!(o, "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS").unwrap();
    writeln!(o, "COMMIT").unwrap();
}

pub fn nft(a: &Args) {
    let svcs: usize = a.get("svcs", 5000);
    let eps: usize = a.get("eps", 10);
    let mut w = BufWriter::new(std::io::stdout().lock());
    let o = &mut w;
    write!(o, "add table ip kube-proxy {{ comment \"rules for kube-proxy\" ; }}
add set ip kube-proxy cluster-ips {{ type ipv4_addr ; comment \"Active ClusterIPs\" ; }}
add set ip kube-proxy nodeport-ips {{ type ipv4_addr ; comment \"IPs that accept NodePort traffic\" ; }}
add map ip kube-proxy firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; comment \"destinations that are subject to LoadBalancerSourceRanges\" ; }}
add map ip kube-proxy no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to service nodeports with no endpoints\" ; }}
add map ip kube-proxy no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to services with no endpoints\" ; }}
add map ip kube-proxy service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; comment \"ClusterIP, ExternalIP and LoadBalancer IP traffic\" ; }}
add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; comment \"NodePort traffic\" ; }}
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110 ; }}
add chain ip kube-proxy filter-output-pre-dnat {{ type filter hook output priority -110 ; }}
add chain ip kube-proxy filter-forward {{ type filter hook forward priority 0 ; }}
add chain ip kube-proxy filter-input {{ type filter hook input priority 0 ; }}
add chain ip kube-proxy filter-output {{ type filter hook output priority 0 ; }}
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output {{ type nat hook output priority -100 ; }}
add chain ip kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}
add chain ip kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy reject-chain {{ comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\" ; }}
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
add rule ip kube-proxy cluster-ips-check ip daddr {{ 10.96.0.0/14 }} drop comment \"Drop traffic to unallocated ClusterIPs\"
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add element ip kube-proxy nodeport-ips {{ 192.168.0.2 }}
").unwrap();
    for s in 0..svcs {
        let sname = format!("ns{}/service-{s}/tcp/http", s % 50);
        let sc = format!("service-{}-{sname}", b32(s as u64 ^ 0x7777, 8));
        let ec: Vec<String> = (0..eps)
            .map(|e| format!("endpoint-{}-{sname}__{}/8080", b32((s * eps + e) as u64 ^ 0x123456789, 8), ep_ip(s, e, eps)))
            .collect();
        let ip = svc_ip(s);
        let aff = s % 100 == 7;
        writeln!(o, "add chain ip kube-proxy {sc}").unwrap();
        for (e, c) in ec.iter().enumerate() {
            writeln!(o, "add chain ip kube-proxy {c}").unwrap();
            if aff {
                writeln!(o, "add set ip kube-proxy affinity-{} {{ type ipv4_addr ; flags dynamic,timeout ; timeout 10800s ; }}", &c["endpoint-".len()..]).unwrap();
            }
            let ep = ep_ip(s, e, eps);
            writeln!(o, "add rule ip kube-proxy {c} ip saddr {ep} jump mark-for-masquerade").unwrap();
            if aff {
                writeln!(o, "add rule ip kube-proxy {c} update @affinity-{} {{ ip saddr }}", &c["endpoint-".len()..]).unwrap();
            }
            writeln!(o, "add rule ip kube-proxy {c} meta l4proto tcp dnat to {ep}:8080").unwrap();
        }
        writeln!(o, "add rule ip kube-proxy {sc} ip daddr {ip} ip saddr != 10.128.0.0/14 jump mark-for-masquerade").unwrap();
        if aff {
            for c in &ec {
                writeln!(o, "add rule ip kube-proxy {sc} ip saddr @affinity-{} goto {c}", &c["endpoint-".len()..]).unwrap();
            }
        }
        write!(o, "add rule ip kube-proxy {sc} numgen random mod {eps} vmap {{").unwrap();
        for (e, c) in ec.iter().enumerate() {
            write!(o, "{} {e} : goto {c}", if e == 0 { "" } else { " ," }).unwrap();
        }
        writeln!(o, " }}").unwrap();
        writeln!(o, "add element ip kube-proxy cluster-ips {{ {ip} }}").unwrap();
        writeln!(o, "add element ip kube-proxy service-ips {{ {ip} . tcp . 80 : goto {sc} }}").unwrap();
        if s % 10 == 0 {
            // As kube-proxy does: what comes by a node port is masqueraded first.
            let xc = format!("external-{}", &sc["service-".len()..]);
            writeln!(o, "add chain ip kube-proxy {xc}").unwrap();
            writeln!(o, "add rule ip kube-proxy {xc} jump mark-for-masquerade").unwrap();
            writeln!(o, "add rule ip kube-proxy {xc} goto {sc}").unwrap();
            writeln!(o, "add element ip kube-proxy service-nodeports {{ tcp . {} : goto {xc} }}", 30000 + s / 10).unwrap();
        }
    }
}

//! The rows: each is one rule, or one outcome of a rule, of kube-proxy.md 2.1 to 2.7.

/// Rows: section of kube-proxy.md and name, and what it is about.
pub const ROWS: &[(&str, &str)] = &[
    (
        "2.1 service-proxy-name",
        "Service with the label service-proxy-name: nothing",
    ),
    (
        "2.1 service-proxy-name slice",
        "slice with the label service-proxy-name: counts from 1.36 on",
    ),
    (
        "2.1 headless label",
        "Service with cluster IP and the label headless: served from 1.36 on",
    ),
    (
        "2.1 headless slice",
        "slice with the label headless: left out",
    ),
    ("2.2 ExternalName", "type ExternalName: nothing"),
    ("2.2 headless", "cluster IP None, with selector: nothing"),
    (
        "2.2 headless selectorless",
        "cluster IP None, without selector: nothing",
    ),
    ("2.2 selector", "Service with selector"),
    ("2.2 selectorless", "Service without selector"),
    ("2.2 ClusterIP", "type ClusterIP"),
    ("2.2 NodePort", "type NodePort"),
    ("2.2 LoadBalancer", "type LoadBalancer"),
    ("2.2 IPv4", "IPv4 only"),
    ("2.2 IPv6", "IPv6 only"),
    ("2.2 IPv4, IPv6", "dual stack, IPv4 first"),
    ("2.2 IPv6, IPv4", "dual stack, IPv6 first"),
    ("2.2 one unnamed port", "one unnamed port"),
    ("2.2 ports", "several ports"),
    ("2.2 TCP", "a TCP port"),
    ("2.2 UDP", "a UDP port"),
    ("2.2 SCTP", "an SCTP port"),
    ("2.2 number twice", "one number with two protocols"),
    ("2.2 nodePort twice", "one node port with two protocols"),
    ("2.2 externalIPs", "externalIPs"),
    (
        "2.2 externalIPs other family",
        "externalIPs of a family that the Service does not have: ignored",
    ),
    (
        "2.2 externalIPs several",
        "several externalIPs of one family",
    ),
    ("2.2 ranges", "source ranges of this family"),
    ("2.2 ranges zero", "source ranges with a /0: count as none"),
    (
        "2.2 ranges other family",
        "source ranges of the other family only: everybody",
    ),
    (
        "2.2 ranges both families",
        "source ranges of both families in one list",
    ),
    (
        "2.2 ranges with node",
        "source ranges that hold the node's own address",
    ),
    ("2.2 ranges padded", "source ranges with spaces"),
    (
        "2.2 ranges overlapping",
        "source ranges that hold each other",
    ),
    ("2.2 VIP", "load balancer address, ipMode VIP"),
    ("2.2 VIPs", "several load balancer addresses of one family"),
    ("2.2 Proxy", "load balancer address, ipMode Proxy: ignored"),
    ("2.2 hostname", "load balancer with host name only: ignored"),
    ("2.2 pending", "load balancer without status"),
    (
        "2.2 VIP other family",
        "load balancer address of a family that the Service does not have: ignored",
    ),
    ("2.2 nodePort", "a node port"),
    ("2.2 no nodePort", "load balancer without node ports"),
    (
        "2.2 eTP Local NodePort",
        "externalTrafficPolicy Local, NodePort",
    ),
    (
        "2.2 eTP Local LoadBalancer",
        "externalTrafficPolicy Local, LoadBalancer",
    ),
    (
        "2.2 eTP Local ClusterIP",
        "externalTrafficPolicy Local, ClusterIP with externalIPs",
    ),
    (
        "2.2 iTP Local inside",
        "internalTrafficPolicy Local, not accessible from outside",
    ),
    (
        "2.2 iTP Local outside",
        "internalTrafficPolicy Local, accessible from outside",
    ),
    ("2.2 both Local", "both traffic policies Local"),
    ("2.2 affinity default", "session affinity, 10800 s"),
    ("2.2 affinity other", "session affinity, another timeout"),
    ("2.3 namespace", "Services of one name in two namespaces"),
    ("2.3 no slices", "no slices"),
    ("2.3 empty slice", "a slice without endpoints, and no other"),
    ("2.3 slices", "endpoints from several slices"),
    ("2.3 FQDN", "a slice with address type FQDN: left out"),
    (
        "2.3 other family",
        "a slice of a family that the Service does not have: left out",
    ),
    ("2.3 nil port", "slice port without number: left out"),
    ("2.3 no ports", "slice without ports: left out"),
    ("2.3 name", "Service port whose name no slice has"),
    (
        "2.3 protocol",
        "Service port whose protocol differs from the slice's",
    ),
    ("2.3 two numbers", "one port name with two numbers"),
    (
        "2.3 several addresses",
        "endpoint with several addresses: the first counts",
    ),
    ("2.3 ready nil", "condition ready not given: true"),
    ("2.3 serving nil", "condition serving not given: true"),
    (
        "2.3 terminating nil",
        "condition terminating not given: false",
    ),
    ("2.3 no node", "endpoint without node name: not local"),
    ("2.3 duplicate across", "one ip:port in two slices, equal"),
    (
        "2.3 duplicate inside",
        "one ip:port twice in a slice, equal",
    ),
    (
        "2.3 duplicate conflicting",
        "one ip:port twice with other conditions",
    ),
    (
        "2.3 text order",
        "text order of endpoints differs from order of numbers",
    ),
    ("2.4 ready", "all endpoints ready"),
    ("2.4 some ready", "ready and unready endpoints"),
    (
        "2.4 unready",
        "serving, not ready, not terminating: never used",
    ),
    (
        "2.4 ready hides terminating",
        "a ready endpoint hides serving and terminating ones",
    ),
    (
        "2.4 cluster fallback",
        "none ready: serving and terminating ones are used",
    ),
    (
        "2.4 terminating not serving",
        "terminating and not serving only: refused",
    ),
    ("2.4 local", "Local with ready local endpoints"),
    (
        "2.4 local fallback",
        "Local, local endpoints terminating, others ready",
    ),
    (
        "2.4 local fallback alone",
        "Local, all endpoints terminating",
    ),
    ("2.4 no local", "Local without local endpoints"),
    (
        "2.4 local unready",
        "Local, local endpoints unready, others ready",
    ),
    ("2.4 many", "twenty or more endpoints"),
    ("2.5 zone", "zone hints, complete, some for this zone"),
    ("2.5 zone incomplete", "zone hints, one missing: no filter"),
    (
        "2.5 zone elsewhere",
        "zone hints, complete, none for this zone: no filter",
    ),
    ("2.5 zones", "endpoints hinted for several zones"),
    (
        "2.5 unready without hint",
        "an unready endpoint without hint breaks nothing",
    ),
    ("2.5 node", "node hints, complete, some for this node"),
    (
        "2.5 node incomplete",
        "node hints, one missing: zone hints decide",
    ),
    (
        "2.5 node elsewhere",
        "node hints, none for this node: zone hints decide",
    ),
    ("2.5 Local and hints", "Local ignores hints"),
    (
        "2.6 cluster IP, forward",
        "cluster IP, policy Cluster: forward",
    ),
    (
        "2.6 cluster IP, reject",
        "cluster IP, policy Cluster: reject",
    ),
    (
        "2.6 cluster IP Local, forward",
        "cluster IP, policy Local: forward",
    ),
    (
        "2.6 cluster IP Local, reject",
        "cluster IP, policy Local: reject",
    ),
    (
        "2.6 cluster IP Local, drop",
        "cluster IP, policy Local: drop",
    ),
    (
        "2.6 external IP, forward",
        "external IP, policy Cluster: forward",
    ),
    (
        "2.6 external IP, reject",
        "external IP, policy Cluster: reject",
    ),
    (
        "2.6 external IP Local, forward",
        "external IP, policy Local: forward",
    ),
    (
        "2.6 external IP Local, reject",
        "external IP, policy Local: reject",
    ),
    (
        "2.6 external IP Local, drop",
        "external IP, policy Local: drop from outside, forward from inside",
    ),
    (
        "2.6 VIP, forward",
        "load balancer address, policy Cluster: forward",
    ),
    (
        "2.6 VIP, reject",
        "load balancer address, policy Cluster: reject",
    ),
    (
        "2.6 VIP Local, forward",
        "load balancer address, policy Local: forward",
    ),
    (
        "2.6 VIP Local, reject",
        "load balancer address, policy Local: reject",
    ),
    (
        "2.6 VIP Local, drop",
        "load balancer address, policy Local: drop from outside, forward from inside",
    ),
    (
        "2.6 node port, forward",
        "node port, policy Cluster: forward",
    ),
    ("2.6 node port, reject", "node port, policy Cluster: reject"),
    (
        "2.6 node port Local, forward",
        "node port, policy Local: forward",
    ),
    (
        "2.6 node port Local, reject",
        "node port, policy Local: reject",
    ),
    (
        "2.6 node port Local, drop",
        "node port, policy Local: drop from outside, forward from inside",
    ),
    ("2.6 hairpin", "the client Pod is itself an endpoint"),
    (
        "2.6 host network",
        "an endpoint with the node's own address",
    ),
    (
        "2.7 health check",
        "healthCheckNodePort, local endpoints ready",
    ),
    (
        "2.7 health check none",
        "healthCheckNodePort, no local endpoint ready",
    ),
];

//! The laboratory's network: a hub, nodes on its bridge, and two clients behind each node.
//!
//! ```text
//! hub            br0 10.77.0.1/24 fd77::1/64; answers for every Pod address (AnyIP)
//!  ├─ node 0     eth0 10.77.0.11 fd77::b, default route via the hub, forwarding on
//!  │   ├─ pod      10.244.1.200 fd00:244::1:c8   a client with an address of the node's Pod range
//!  │   └─ outside  10.88.1.2    fd88:0:0:1::2    a client that is neither Pod nor node
//!  └─ node 1     10.77.0.12 …, 10.244.2.200 …, 10.88.2.2 …
//! ```
//!
//! - The hub holds `local` routes for the whole Pod range, so one server on `0.0.0.0:8080` stands for
//!   every Pod, on whatever node an EndpointSlice says it is; what it sees as its own address tells
//!   which backend a kernel chose, and its peer tells whether it was masqueraded. The routes stand in
//!   table main, not in table local, so that those of the client Pods, more specific, go first.
//! - Replies to clients go back through their node: the hub routes both client addresses via it.
//! - Both clients use their node as default gateway, so any Service address (ClusterIP, external,
//!   load balancer, the node's own with a node port) can simply be connected to from them.
//! - The node itself is the third kind of source: connect from inside [`Node::netns`].

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, bail};

use crate::cleanup;
use crate::netns::Netns;

/// The cluster's Pod ranges, as kube-proxy's `--cluster-cidr` wants them.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:244::/64";
/// The ranges of ClusterIPs, as kube-apiserver wants them.
pub const SERVICE_CIDR: &str = "10.96.0.0/16,fd00:96::/112";
/// The hub's address on its bridge.
pub const HUB_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The hub's address on its bridge.
pub const HUB_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// The node addresses 10.77.0.11 to 10.77.0.250 bound the nodes of one hub.
const NODES_MAX: u8 = 240;

/// The middle of a laboratory: a bridge to which nodes connect, and the place of API server and
/// aggregator. Several can live side by side.
#[derive(Debug)]
pub struct Hub {
    netns: Netns,
    number: u32,
    nodes: AtomicU8,
}

impl Hub {
    /// Makes the hub's namespace with its bridge and the routes that make it answer for every Pod.
    pub fn create() -> Result<Hub> {
        let number = cleanup::number();
        let netns = Netns::create(&format!("hub{number}"))?;
        netns.sysctl(&[
            "net/ipv4/ip_forward=1",
            "net/ipv6/conf/all/forwarding=1",
            "net/ipv4/conf/all/rp_filter=0",
            "net/ipv4/conf/default/rp_filter=0",
        ])?;
        in_netns(&netns, "link add br0 type bridge")?;
        in_netns(&netns, "link set br0 up")?;
        in_netns(&netns, "addr add 10.77.0.1/24 dev br0")?;
        in_netns(&netns, "addr add fd77::1/64 dev br0 nodad")?;
        in_netns(&netns, "route add local 10.244.0.0/16 dev lo table main")?;
        in_netns(&netns, "-6 route add local fd00:244::/64 dev lo table main")?;
        Ok(Hub {
            netns,
            number,
            nodes: AtomicU8::new(0),
        })
    }

    /// The hub's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Makes a node's namespace with both of its clients. `name` is what the Node object will be
    /// called.
    pub fn add_node(&self, name: &str) -> Result<Node> {
        self.add_node_at(name, self.nodes.fetch_add(1, Ordering::Relaxed))
    }

    /// The same at a given place, which decides its addresses: node 0 has 10.77.0.11. For recordings, whose rules
    /// hold the addresses of the node they come from. Not to be mixed with [`Hub::add_node`].
    pub fn add_node_at(&self, name: &str, index: u8) -> Result<Node> {
        if index >= NODES_MAX {
            bail!("a hub has room for {NODES_MAX} nodes");
        }
        let label = format!("{name}-{}", self.number);
        let netns = Netns::create(&label)?;
        netns.sysctl(&[
            "net/ipv4/ip_forward=1",
            "net/ipv6/conf/all/forwarding=1",
            "net/ipv4/conf/all/rp_filter=0",
            "net/ipv4/conf/default/rp_filter=0",
        ])?;
        let v4 = Ipv4Addr::new(10, 77, 0, 11 + index);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 11 + u16::from(index));
        let port = format!("n{index}");
        in_netns(
            &self.netns,
            &format!(
                "link add {port} type veth peer name eth0 netns {}",
                netns.name()
            ),
        )?;
        in_netns(&self.netns, &format!("link set {port} master br0 up"))?;
        in_netns(&netns, "link set eth0 up")?;
        in_netns(&netns, &format!("addr add {v4}/24 dev eth0"))?;
        in_netns(&netns, &format!("addr add {v6}/64 dev eth0 nodad"))?;
        in_netns(&netns, &format!("route add default via {HUB_V4}"))?;
        in_netns(&netns, &format!("-6 route add default via {HUB_V6}"))?;

        let range = index + 1;
        let mut node = Node {
            name: name.to_owned(),
            index,
            netns,
            v4,
            v6,
            clients: Vec::new(),
        };
        let pod = self.add_client(
            &node,
            "pod",
            &label,
            Ipv4Addr::new(10, 244, range, 200),
            Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, u16::from(range), 200),
        )?;
        node.clients.push(pod);
        let outside = self.add_client(
            &node,
            "outside",
            &label,
            Ipv4Addr::new(10, 88, range, 2),
            Ipv6Addr::new(0xfd88, 0, 0, u16::from(range), 0, 0, 0, 2),
        )?;
        node.clients.push(outside);
        Ok(node)
    }

    /// A client behind a node: point to point, so that the node needs no further address.
    fn add_client(
        &self,
        node: &Node,
        kind: &str,
        label: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> Result<Client> {
        let netns = Netns::create(&format!("{kind}-{label}"))?;
        in_netns(
            &node.netns,
            &format!(
                "link add {kind} type veth peer name eth0 netns {}",
                netns.name()
            ),
        )?;
        in_netns(&node.netns, &format!("link set {kind} up"))?;
        in_netns(&netns, "link set eth0 up")?;
        in_netns(&netns, &format!("addr add {v4}/32 dev eth0"))?;
        in_netns(&netns, &format!("addr add {v6}/128 dev eth0 nodad"))?;
        // The node answers ARP for any of its addresses on any link; neighbour discovery does not, so
        // IPv6 gets a link-local gateway.
        in_netns(&netns, &format!("route add {} dev eth0", node.v4))?;
        in_netns(&netns, &format!("route add default via {}", node.v4))?;
        in_netns(
            &node.netns,
            &format!("addr add fe80::1/64 dev {kind} nodad"),
        )?;
        in_netns(&netns, "-6 route add default via fe80::1 dev eth0")?;
        in_netns(&node.netns, &format!("route add {v4}/32 dev {kind}"))?;
        in_netns(&node.netns, &format!("-6 route add {v6}/128 dev {kind}"))?;
        in_netns(&self.netns, &format!("route add {v4}/32 via {}", node.v4))?;
        in_netns(
            &self.netns,
            &format!("-6 route add {v6}/128 via {}", node.v6),
        )?;
        Ok(Client { netns, v4, v6 })
    }
}

/// One node: a namespace on the hub's bridge.
#[derive(Debug)]
pub struct Node {
    name: String,
    index: u8,
    netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// Pod, then outside.
    clients: Vec<Client>,
}

impl Node {
    /// The name of its Node object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place, from 0: what [`Hub::add_node_at`] takes.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Its namespace: what a `hostNetwork` Pod on it would see.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its IPv4 address (InternalIP).
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address (InternalIP).
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// An IPv4 Pod address of this node's range; `number` from 1 to 254, 200 is the client's.
    pub fn pod_v4(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.index + 1, number)
    }

    /// An IPv6 Pod address of this node's range; `number` 200 is the client's.
    pub fn pod_v6(&self, number: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, u16::from(self.index) + 1, number)
    }

    /// The node's Pod ranges (`spec.podCIDRs`).
    pub fn pod_ranges(&self) -> [String; 2] {
        let range = self.index + 1;
        [
            format!("10.244.{range}.0/24"),
            format!("fd00:244::{range:x}:0/112"),
        ]
    }

    /// A client with an address of the node's Pod range.
    pub fn pod(&self) -> &Client {
        &self.clients[0]
    }

    /// A client that is neither Pod nor node.
    pub fn outside(&self) -> &Client {
        &self.clients[1]
    }
}

/// A client behind a node.
#[derive(Debug)]
pub struct Client {
    netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Client {
    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }
}

fn in_netns(netns: &Netns, arguments: &str) -> Result<()> {
    netns
        .run("ip", arguments.split(' '))
        .with_context(|| format!("in namespace {}", netns.name()))?;
    Ok(())
}

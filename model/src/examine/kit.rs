//! A small node for tests: one Service, one kernel that obeys, and clocks that tests move.

use super::{Examined, Pass, examine};
use crate::address::{Family, Frontend, SourceClass};
use crate::capture::{Coverage, DatapathFound, DatapathState, Hook, Reading, Snapshot};
use crate::compare::Comparison;
use crate::finding::{Evidence, FindingKind};
use crate::name::{ServiceName, ServicePortName};
use crate::profile::{
    Learnt, LearntFrom, ProxyConfig, ProxyHealth, ProxyMode, ProxyProfile, SyncTimes, Version,
};
use crate::report::Report;
use crate::service::{Service, ServiceType};
use crate::settle::Ledger;
use crate::table::{
    Action, Affinity, Backend, DecidedBy, DesiredTable, Forwarding, ForwardingTable, Masquerade,
    Observed, OneOf,
};
use crate::time::{Millis, Mono, Now};
use crate::view::{Change, ClusterView, LocalAddress, Node, NodeView};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const WEB: &str = "10.96.0.10:80/TCP";
pub(crate) const A: &str = "10.244.1.5:8080";
pub(crate) const B: &str = "10.244.2.6:8080";

pub(crate) fn web() -> ServicePortName {
    ServicePortName::new("shop", "web", "http")
}

pub(crate) fn frontend(text: &str) -> Frontend {
    text.parse().unwrap()
}

pub(crate) fn forward(service: ServicePortName, backends: &[&str]) -> Forwarding {
    let share = 1.0 / backends.len() as f64;
    let mut backends: Vec<Backend> = backends
        .iter()
        .map(|b| Backend {
            address: b.parse().unwrap(),
            share,
            masquerade: Masquerade::Never,
        })
        .collect();
    backends.sort_by_key(|b| b.address);
    Forwarding {
        service: Some(service),
        action: Action::Forward,
        backends: backends.into(),
        affinity: Affinity::None,
        source_ranges: None,
    }
}

pub(crate) fn plain(action: Action) -> Forwarding {
    Forwarding::without_backends(Some(web()), action)
}

pub(crate) fn evidence(chain: &str, says: &str) -> Evidence {
    Evidence {
        family: "ip".into(),
        table: "kube-proxy".into(),
        chain: chain.into(),
        handle: Some(7),
        element: None,
        says: says.into(),
    }
}

pub(crate) fn observed(forwarding: Forwarding, decided_by: DecidedBy) -> Observed {
    let backend_evidence = forwarding
        .backends
        .iter()
        .map(|b| evidence("endpoint", &format!("dnat to {}", b.address)))
        .collect();
    Observed {
        evidence: Arc::new([evidence("service-ips", "the way there")]),
        backend_evidence,
        decided_by,
        forwarding,
    }
}

pub(crate) struct World {
    pub desired: DesiredTable,
    pub snapshot: Snapshot,
    pub node: NodeView,
    pub profile: ProxyProfile,
    pub view: ClusterView,
    pub proxy: Option<ProxyHealth>,
    pub refreshed: Vec<ServiceName>,
    pub now: Now,
    pub pass: u64,
    pub ledger: Ledger,
    pub compared: Option<Arc<Comparison>>,
    /// What `compared` was made of.
    pub before: (DesiredTable, Snapshot),
}

impl World {
    /// Everything agrees; kube-proxy answers.
    pub(crate) fn new() -> World {
        let now = Now {
            mono: Mono(1_000_000),
            wall: Millis(1_800_000_000_000),
        };
        let mut view = ClusterView::default();
        view.apply(Change::Service(service(&web().service)), now);
        view.apply(Change::Node(own_node()), now);
        view.apply(Change::Complete, now);
        let datapath = DatapathFound {
            name: "kube-proxy/nftables".into(),
            version: Some("v1.36.3".into()),
            state: DatapathState::InCharge,
            why: "table ip kube-proxy".into(),
        };
        let snapshot = Snapshot {
            datapaths: vec![datapath],
            tables: Family::ALL
                .into_iter()
                .map(|f| (f, Reading::Read(ForwardingTable::default())))
                .collect(),
            hooks: vec![
                hook("nat-prerouting -> services", true),
                hook("nat-output -> services", true),
            ],
            coverage: Coverage::default(),
            gaps: Vec::new(),
            generation: None,
            last_writer: None,
        };
        let mut world = World {
            desired: DesiredTable::new(),
            snapshot,
            node: NodeView {
                name: "node-a".into(),
                addresses: ["127.0.0.1", "192.168.0.5", "::1"]
                    .iter()
                    .map(|a| LocalAddress {
                        address: a.parse().unwrap(),
                        link: "eth0".into(),
                    })
                    .collect(),
            },
            profile: ProxyProfile {
                mode: Some(Learnt {
                    value: ProxyMode::Nftables,
                    from: LearntFrom::Proxy,
                }),
                version: Some(Learnt {
                    value: Version {
                        major: 1,
                        minor: 36,
                        patch: Some(3),
                    },
                    from: LearntFrom::Proxy,
                }),
                config: Learnt {
                    value: ProxyConfig::default(),
                    from: LearntFrom::Proxy,
                },
            },
            view,
            proxy: None,
            refreshed: Vec::new(),
            now,
            pass: 0,
            ledger: Ledger::default(),
            compared: None,
            before: (DesiredTable::new(), empty_snapshot()),
        };
        let times = SyncTimes {
            last_sync_end: Some(now.wall.0 - 600_000),
            last_queued: Some(now.wall.0 - 600_100),
            duration_sum_ms: Some(1_000.0),
            duration_count: Some(10),
            failures: Some(0),
        };
        world.proxy = Some(ProxyHealth {
            unreachable: None,
            families: Family::ALL.into_iter().map(|f| (f, times)).collect(),
            per_family: true,
            healthz: Some(200),
            changes_total: Some(100),
            started: Some(now.wall.0 - 3_600_000),
        });
        world.both(WEB, forward(web(), &[A, B]));
        world
    }

    /// Desired, from every source.
    pub(crate) fn ask(&mut self, at: &str, f: Forwarding) {
        for source in SourceClass::ALL {
            self.desired
                .insert((frontend(at), source), OneOf::certain(f.clone()));
        }
    }

    /// Observed, from every source, by the datapath's rules.
    pub(crate) fn kernel(&mut self, at: &str, f: Forwarding) {
        self.kernel_by(at, f, DecidedBy::Datapath);
    }

    pub(crate) fn kernel_by(&mut self, at: &str, f: Forwarding, by: DecidedBy) {
        for source in SourceClass::ALL {
            let row = observed(f.clone(), by);
            self.rows(frontend(at).family())
                .insert((frontend(at), source), row);
        }
    }

    pub(crate) fn both(&mut self, at: &str, f: Forwarding) {
        self.ask(at, f.clone());
        self.kernel(at, f);
    }

    pub(crate) fn forget(&mut self, at: &str) {
        self.rows(frontend(at).family())
            .retain(|k, _| k.0 != frontend(at));
    }

    pub(crate) fn unask(&mut self, at: &str) {
        self.desired.retain(|k, _| k.0 != frontend(at));
    }

    pub(crate) fn rows(&mut self, family: Family) -> &mut BTreeMap<crate::table::Key, Observed> {
        match self.snapshot.tables.get_mut(&family).unwrap() {
            Reading::Read(t) => &mut t.rows,
            _ => panic!("not read"),
        }
    }

    /// The API's objects of the Service changed, and kube-proxy heard of it.
    pub(crate) fn touch(&mut self) {
        self.view.changed.insert(web().service, self.now);
        self.view.last_change = Some(self.now);
        self.counters(1);
    }

    pub(crate) fn counters(&mut self, by: u64) {
        if let Some(total) = self.proxy.as_mut().and_then(|p| p.changes_total.as_mut()) {
            *total += by;
        }
    }

    /// kube-proxy completed a sync just now that took so long.
    pub(crate) fn synced(&mut self, took_ms: u64) {
        let end = self.now.wall.0;
        for times in self.proxy.as_mut().unwrap().families.values_mut() {
            times.last_sync_end = Some(end);
            times.duration_sum_ms = times.duration_sum_ms.map(|s| s + took_ms as f64);
        }
    }

    /// Both clocks move; the API is still heard.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.wait_deaf(ms);
        self.view.as_of = Some(self.now);
    }

    /// Both clocks move; the API is silent.
    pub(crate) fn wait_deaf(&mut self, ms: u64) {
        self.now.mono.0 += ms;
        self.now.wall.0 += ms;
    }

    /// The frontends of which a row is another than it was when this looked last.
    fn touched(&self) -> BTreeSet<Frontend> {
        let (desired, snapshot) = &self.before;
        let keys = self.desired.keys().chain(desired.keys());
        let asked = keys.filter(|k| self.desired.get(k) != desired.get(k));
        let mut touched: BTreeSet<Frontend> = asked.map(|(f, _)| *f).collect();
        for family in Family::ALL {
            let rows = |s: &Snapshot| {
                let table = s.tables.get(&family).and_then(Reading::read);
                table.map(|t| t.rows.clone()).unwrap_or_default()
            };
            let (was, is) = (rows(snapshot), rows(&self.snapshot));
            let keys = was.keys().chain(is.keys());
            touched.extend(keys.filter(|k| was.get(k) != is.get(k)).map(|(f, _)| *f));
        }
        touched
    }

    pub(crate) fn look(&mut self) -> Examined {
        self.pass += 1;
        let touched = self.touched();
        let refreshed = std::mem::take(&mut self.refreshed);
        let pass = Pass {
            now: self.now,
            number: self.pass,
            view: &self.view,
            node: &self.node,
            profile: &self.profile,
            proxy: self.proxy.as_ref(),
            desired: &self.desired,
            snapshot: &self.snapshot,
            refreshed: &refreshed,
            gaps: &[],
            compared: self.compared.as_ref(),
            unchanged: false,
            touched: Some(&touched),
        };
        // Whoever uses the comparison again gets the same.
        let mut ledger = self.ledger.clone();
        let examined = examine(&pass, &mut self.ledger);
        let again = Pass {
            compared: Some(&examined.compared),
            unchanged: true,
            ..pass
        };
        let mut other = ledger.clone();
        assert_eq!(examine(&again, &mut ledger).report, examined.report);
        // And so does whoever has none.
        let anew = Pass {
            compared: None,
            ..pass
        };
        assert_eq!(examine(&anew, &mut other).report, examined.report);
        // A pass in which nothing moved is not gone through for each Service, and gives the same.
        let later = Pass {
            number: pass.number + 1,
            refreshed: &[],
            ..again
        };
        let (mut quick, mut slow) = (self.ledger.clone(), self.ledger.clone());
        slow.settled = None;
        let (one, two) = (examine(&later, &mut quick), examine(&later, &mut slow));
        assert_eq!((one.report, one.refresh), (two.report, two.refresh));
        assert!(quick.remembers_the_same(&slow));
        self.compared = Some(examined.compared.clone());
        self.before = (self.desired.clone(), self.snapshot.clone());
        examined
    }

    /// Two seconds later, one pass; what it asks to be fetched is fetched and has not changed.
    pub(crate) fn pass(&mut self) -> Report {
        self.wait(2_000);
        let examined = self.look();
        self.refreshed = examined.refresh;
        examined.report
    }
}

fn empty_snapshot() -> Snapshot {
    Snapshot {
        datapaths: Vec::new(),
        tables: BTreeMap::new(),
        hooks: Vec::new(),
        coverage: Coverage::default(),
        gaps: Vec::new(),
        generation: None,
        last_writer: None,
    }
}

pub(crate) fn service(name: &ServiceName) -> Service {
    Service {
        name: name.clone(),
        uid: "".into(),
        resource_version: "1".into(),
        kind: ServiceType::ClusterIP,
        cluster_ip: "10.96.0.10".into(),
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        ip_families: vec![Family::V4],
        external_ips: Vec::new(),
        ingress: Vec::new(),
        ingress_hostnames: 0,
        source_ranges: Vec::new(),
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
        ports: Vec::new(),
        proxy_name_label: false,
        headless_label: false,
        topology_annotation: None,
        selectorless: false,
    }
}

pub(crate) fn own_node() -> Node {
    Node {
        name: "node-a".into(),
        internal_ips: vec!["192.168.0.5".parse().unwrap()],
        external_ips: Vec::new(),
        zone: None,
        pod_cidrs: Vec::new(),
        going: false,
        created: None,
    }
}

pub(crate) fn hook(name: &str, present: bool) -> Hook {
    Hook {
        family: Family::V4,
        name: name.into(),
        present,
        essential: true,
        evidence: evidence(name, if present { "is there" } else { "is not there" }),
    }
}

pub(crate) fn kinds(report: &Report) -> Vec<FindingKind> {
    report.findings.iter().map(|f| f.kind).collect()
}

pub(crate) fn converging(report: &Report) -> Vec<FindingKind> {
    report.converging.iter().map(|f| f.kind).collect()
}

//! Who programs Service traffic on this node, told by what the kernel holds, and what one reading
//! of its rules shows.

mod kept;
pub mod kube_proxy_iptables;
pub mod kube_proxy_ipvs;
pub mod kube_proxy_nftables;

use crate::netfilter::changes::Changes;
use crate::netfilter::ruleset::{Backend, Chain, HookPoint, Op, Ruleset, Table, Verdict};
use crate::netfilter::walk::{self, Ask, NotUnderstood, Owner, Rewalked};
pub use kept::{Kept, again, difference, touched};
use model::address::{Family, Frontend, SourceClass};
use model::capture::{Coverage, DatapathFound, DatapathState, Gap, Hook, Reading, Snapshot};
use model::finding::Evidence;
use model::name::ServicePortName;
use model::profile::{Learnt, LearntFrom, ProxyMode, ProxyProfile};
use model::table::{Action, ForwardingTable, Observed};
use model::view::NodeView;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was found of a datapath: enough to say it is there, not that it is in charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The datapath's full name, the backend included (`kube-proxy/iptables-nft`).
    pub name: Arc<str>,
    /// How it could be told, one sentence.
    pub why: String,
    /// Packets reach its rules: at least one of its hooks is there.
    pub hooked: bool,
}

/// One datapath of kube-proxy's that lives in netfilter, or in IPVS beside it.
pub trait Datapath: Owner + Sync {
    /// The mode that programs it.
    fn mode(&self) -> ProxyMode;

    /// Its signatures, one for each backend that holds some (kube-proxy.md 1.4).
    fn detect(&self, ruleset: &Ruleset) -> Vec<Signature>;

    /// The hooks of a family, present or not (kube-proxy.md 3.2, 5.3).
    fn hooks(&self, ruleset: &Ruleset, family: Family) -> Vec<Hook>;

    /// Where it answers for a destination: table and chain, with the map where there is one.
    /// `own`: the address is one of the node's, so it is a node port.
    fn places(&self, own: bool) -> &'static [Place];

    /// Why nothing answers for a destination, where that is not for want of a rule.
    fn absence(&self, _: &Ruleset, _: &NodeView, _: &Frontend) -> Option<Evidence> {
        None
    }

    /// Rows for what it answers for without a rule.
    fn others(&self, _: &NodeView) -> Vec<(Frontend, Observed)> {
        Vec::new()
    }

    /// Does a family have anything of it?
    fn has_family(&self, ruleset: &Ruleset, family: Family) -> bool;

    /// As an [`Owner`]: which chains are its own.
    fn owner(&self) -> &dyn Owner;
}

/// A place where a datapath keeps its rules or elements for destinations.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Table.
    pub table: &'static str,
    /// Chain.
    pub chain: &'static str,
    /// The map that the chain looks destinations up in.
    pub map: Option<&'static str>,
}

/// Names the places where an answer should be, where packets to a destination that is asked for
/// meet none.
fn name_absence(
    tables: &mut BTreeMap<Family, Reading<ForwardingTable>>,
    ruleset: &Ruleset,
    datapath: &dyn Datapath,
    desired: &BTreeMap<Frontend, Option<ServicePortName>>,
    node: &NodeView,
    walked: &Rewalked,
) {
    for (family, table) in tables {
        let word = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let Reading::Read(table) = table else {
            continue;
        };
        // The same place may be in either backend.
        let holder = |place: &Place| {
            let mut all = ruleset.tables.iter();
            all.find(|t| {
                t.family.word() == word && *t.name == *place.table && t.chain(place.chain).is_some()
            })
        };
        let name = |frontend: &Frontend, observed: &mut Observed| {
            if observed.forwarding.action != Action::None || !desired.contains_key(frontend) {
                return;
            }
            if let Some(why) = datapath.absence(ruleset, node, frontend) {
                observed.evidence = Arc::new([why]);
                return;
            }
            if !observed.evidence.is_empty() {
                return;
            }
            let places = datapath.places(node.is_local(frontend.address()));
            observed.evidence = places
                .iter()
                .map(|place| {
                    let map = place.map.map_or(String::new(), |m| format!("map {m}: "));
                    Evidence {
                        family: holder(place).map_or(word, Table::word).into(),
                        table: place.table.into(),
                        chain: place.chain.into(),
                        handle: None,
                        element: None,
                        says: format!("{map}nothing that packets reach answers for {frontend}")
                            .into(),
                    }
                })
                .collect();
        };
        match walked {
            Rewalked::Whole => {
                for ((frontend, _), observed) in &mut table.rows {
                    name(frontend, observed);
                }
            }
            Rewalked::Frontends(these) => {
                for frontend in these {
                    for source in SourceClass::ALL {
                        if let Some(observed) = table.rows.get_mut(&(*frontend, source)) {
                            name(frontend, observed);
                        }
                    }
                }
            }
        }
    }
}

/// Adds what a datapath answers for without a rule, where nobody asks for it and no rule says more.
fn add_others(
    tables: &mut BTreeMap<Family, Reading<ForwardingTable>>,
    datapath: &dyn Datapath,
    desired: &BTreeMap<Frontend, Option<ServicePortName>>,
    node: &NodeView,
) {
    for (frontend, row) in datapath.others(node) {
        if desired.contains_key(&frontend) {
            continue;
        }
        if let Some(Reading::Read(table)) = tables.get_mut(&frontend.family()) {
            for source in SourceClass::ALL {
                let known = table.rows.entry((frontend, source));
                known.or_insert_with(|| row.clone());
            }
        }
    }
}

/// The datapaths that are looked for in netfilter and in IPVS.
pub const ALL: [&dyn Datapath; 3] = [
    &kube_proxy_nftables::Nftables,
    &kube_proxy_iptables::Iptables,
    &kube_proxy_ipvs::Ipvs,
];

/// No datapath: nothing is anybody's own.
struct Nobody;

impl Owner for Nobody {
    fn name(&self) -> &'static str {
        "nobody"
    }

    fn owns(&self, _: &Table, _: &Chain) -> bool {
        false
    }

    fn filters_sources(&self, _: &str) -> bool {
        false
    }

    fn service_of(&self, _: &walk::Names<'_>) -> Option<ServicePortName> {
        None
    }
}

/// The names under which chains are the datapath's in charge; for callers that walk by themselves.
pub fn owner(datapath: Option<&'static dyn Datapath>) -> &'static dyn Owner {
    datapath.map_or(&Nobody, |d| d.owner())
}

/// The datapath in charge: the mode that the profile knows, else what the kernel shows.
pub fn in_charge(ruleset: &Ruleset, profile: &ProxyProfile) -> Option<&'static dyn Datapath> {
    if let Some(mode) = &profile.mode {
        return ALL.into_iter().find(|d| d.mode() == mode.value);
    }
    let hooked = |d: &&dyn Datapath| d.detect(ruleset).iter().any(|s| s.hooked);
    ALL.into_iter()
        .find(hooked)
        .or_else(|| ALL.into_iter().find(|d| !d.detect(ruleset).is_empty()))
}

/// The profile, with the mode by what the kernel shows where nobody says it and that is IPVS: what is
/// right differs too much from the other modes to accept either.
pub fn learnt<'a>(
    profile: &'a ProxyProfile,
    reading: &Reading<Ruleset>,
) -> std::borrow::Cow<'a, ProxyProfile> {
    use std::borrow::Cow;
    let Reading::Read(ruleset) = reading else {
        return Cow::Borrowed(profile);
    };
    let seen = in_charge(ruleset, profile).map(|d| d.mode());
    if profile.mode.is_some() || seen != Some(ProxyMode::Ipvs) {
        return Cow::Borrowed(profile);
    }
    Cow::Owned(ProxyProfile {
        mode: Some(Learnt {
            value: ProxyMode::Ipvs,
            from: LearntFrom::Kernel,
        }),
        ..profile.clone()
    })
}

/// Every datapath found, the one in charge first.
pub fn found(ruleset: &Ruleset, profile: &ProxyProfile) -> Vec<DatapathFound> {
    let charge = in_charge(ruleset, profile).map(|d| d.mode());
    let mut all: Vec<DatapathFound> = Vec::new();
    let version = profile.version.as_ref().map(|v| v.value.to_string());
    for datapath in ALL {
        let mut signatures = datapath.detect(ruleset);
        // Of two backends of one mode, the one that packets reach is in charge.
        signatures.sort_by_key(|s| !s.hooked);
        for (i, s) in signatures.into_iter().enumerate() {
            let first = i == 0 && charge == Some(datapath.mode());
            all.push(DatapathFound {
                name: s.name,
                version: version.clone().filter(|_| first),
                state: if first {
                    DatapathState::InCharge
                } else {
                    DatapathState::Residue
                },
                why: match &profile.mode {
                    Some(mode) if first => {
                        format!("kube-proxy's mode is {}, and {}", mode.value, s.why)
                    }
                    _ => s.why,
                },
            });
        }
    }
    if let Some(mode) = &profile.mode
        && !all.iter().any(|f| f.state == DatapathState::InCharge)
    {
        all.push(DatapathFound {
            name: format!("kube-proxy/{}", mode.value).into(),
            version,
            state: DatapathState::InCharge,
            why: format!(
                "kube-proxy's mode is {}, but none of its rules are there",
                mode.value
            ),
        });
    }
    all.sort_by_key(|f| f.state);
    all
}

/// What one reading of netfilter shows: tables, hooks, coverage.
///
/// `desired` holds the frontends that must have rows, and whose they are.
pub fn snapshot(
    reading: &Reading<Ruleset>,
    desired: &BTreeMap<Frontend, Option<ServicePortName>>,
    node: &NodeView,
    profile: &ProxyProfile,
) -> Snapshot {
    let empty = Ruleset::default();
    let ruleset = match reading {
        Reading::Failed(gap) => return failed(gap),
        Reading::Absent => &empty,
        Reading::Read(ruleset) => ruleset,
    };
    let datapath = in_charge(ruleset, profile);
    let ask = ask(datapath, desired, node, profile);
    let tables = walk::walk(ruleset, &ask);
    let mut not_understood = NotUnderstood::default();
    not_understood.update(ruleset, &Changes::all(), ask.owner);
    let rows = (tables, &Rewalked::Whole);
    finish(rows, &not_understood, ruleset, datapath, &ask, profile)
}

fn ask<'a>(
    datapath: Option<&'static dyn Datapath>,
    desired: &'a BTreeMap<Frontend, Option<ServicePortName>>,
    node: &'a NodeView,
    profile: &'a ProxyProfile,
) -> Ask<'a> {
    Ask {
        desired,
        node,
        detector: &profile.config.value.detector,
        owner: owner(datapath),
    }
}

/// What is to be said of a ruleset besides its rows.
fn finish(
    (mut tables, walked): (BTreeMap<Family, Reading<ForwardingTable>>, &Rewalked),
    not_understood: &NotUnderstood,
    ruleset: &Ruleset,
    datapath: Option<&'static dyn Datapath>,
    ask: &Ask<'_>,
    profile: &ProxyProfile,
) -> Snapshot {
    let (desired, node) = (ask.desired, ask.node);
    if let Some(datapath) = datapath {
        name_absence(&mut tables, ruleset, datapath, desired, node, walked);
        add_others(&mut tables, datapath, desired, node);
    }
    let mut hooks = Vec::new();
    let mut families = Vec::new();
    for family in Family::ALL {
        let wanted = desired.keys().any(|f| f.family() == family);
        let there = datapath.is_some_and(|d| d.has_family(ruleset, family));
        if let Some(datapath) = datapath
            && (wanted || there)
        {
            hooks.extend(datapath.hooks(ruleset, family));
        }
        if !wanted && !there {
            // Neither asked for nor programmed: not judged.
            tables.insert(family, Reading::Absent);
            continue;
        }
        families.push(family);
    }
    let (unknown_in_own_rules, unknown_in_foreign_rules) = not_understood.all();
    let mut gaps: Vec<Gap> = Vec::new();
    for table in &ruleset.tables {
        // What packets fill is traffic, not configuration: it is not read on purpose, so no gap.
        for set in table.sets.values().filter(|set| !set.dynamic) {
            if let Some(why) = &set.unread {
                gaps.push(Gap {
                    what: format!("set {} {} {}", table.word(), table.name, set.name).into(),
                    why: why.clone(),
                });
            }
        }
    }
    gaps.sort();
    Snapshot {
        datapaths: found(ruleset, profile),
        tables,
        hooks,
        coverage: Coverage {
            families,
            unknown_in_own_rules,
            unknown_in_foreign_rules,
        },
        gaps,
        generation: ruleset.generation.map(u64::from),
        last_writer: ruleset.last_writer.clone(),
    }
}

/// A reading that failed: nothing may be judged.
fn failed(gap: &Gap) -> Snapshot {
    Snapshot {
        datapaths: Vec::new(),
        tables: Family::ALL
            .into_iter()
            .map(|f| (f, Reading::Failed(gap.clone())))
            .collect(),
        hooks: Vec::new(),
        coverage: Coverage::default(),
        gaps: vec![gap.clone()],
        generation: None,
        last_writer: None,
    }
}

/// A base chain that jumps unconditionally enough to `to`: the rule's place, or where it should be.
/// Conditions on the connection's state do not keep new connections away.
fn jump_hook(
    family: Family,
    table: Option<&Table>,
    missing: (&str, &str),
    from: &str,
    to: &str,
    essential: bool,
) -> Hook {
    let name: Arc<str> = format!("{} {from} -> {to}", missing.1).into();
    let found = table
        .filter(|t| !t.dormant)
        .and_then(|t| t.chain(from))
        .and_then(|chain| {
            chain.hook?;
            chain
                .rules
                .iter()
                .find(|r| leads_to(r, to))
                .map(|r| (chain, r))
        });
    let says = match (table, found) {
        (_, Some(_)) => format!("leads to {to}"),
        (None, None) => "the table is not there".to_string(),
        (Some(t), None) if t.dormant => "the table is dormant: its hooks are off".to_string(),
        (Some(t), None) if t.chain(from).is_none_or(|c| c.hook.is_none()) => {
            "the base chain is not there".to_string()
        }
        _ => format!("no rule leads to {to}"),
    };
    Hook {
        family,
        name,
        present: found.is_some(),
        essential,
        evidence: Evidence {
            family: table.map_or(missing.0, |t| t.word()).into(),
            table: table.map_or_else(|| missing.1.into(), |t| t.name.clone()),
            chain: from.into(),
            handle: found.map(|(_, r)| r.handle),
            element: None,
            says: says.into(),
        },
    }
}

/// Does the rule lead every new connection to the chain? A condition on anything but the state of
/// the connection makes it lead only some there.
fn leads_to(rule: &crate::netfilter::ruleset::Rule, to: &str) -> bool {
    use crate::netfilter::ruleset::Field;
    let mut leads = false;
    for op in &rule.ops {
        match op {
            Op::Nothing => {}
            Op::Match(m) if matches!(m.field, Field::CtState | Field::Nfproto) => {}
            Op::Verdict(Verdict::Jump(t) | Verdict::Goto(t)) => leads = **t == *to,
            _ => return false,
        }
    }
    leads
}

/// The name of a backend, as part of a datapath's name.
fn backend_word(backend: Backend) -> &'static str {
    match backend {
        Backend::Legacy => "legacy",
        Backend::NfTables => "nft",
        Backend::Ipvs => "ipvs",
    }
}

/// Does the chain hang on the hook?
fn hangs_on(chain: &Chain, point: HookPoint) -> bool {
    chain.hook.is_some_and(|h| h.point == point)
}

#[cfg(test)]
mod tests;

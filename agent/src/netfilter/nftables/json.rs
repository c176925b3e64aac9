//! What `nft -j list ruleset` prints, as somebody collected it.
//!
//! It is not the whole truth, and where it is not, the rule is unknown: matches and targets of
//! iptables-nft come without their content (`{"xt": {"type": "match", "name": "tcp"}}`; there
//! `iptables-save` is the better source), sets that packets fill lose the flag that says so (they are
//! known by the rules that fill them), and the conditions that nft adds by itself (a port implies its
//! protocol) are left out and put in again here.

mod rules;
mod values;

use crate::netfilter::ruleset::{
    Backend, Chain, ChainType, Hook, HookPoint, Rule, Ruleset, Set, Table, TableFamily,
};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Text that is no such output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or cut off.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// JSON, but of something else.
    #[error("not the output of nft -j list ruleset: {0}")]
    Other(String),
}

/// Reads it.
///
/// # Errors
/// It is something else or was cut off. What is in it and is not understood is no error: it becomes
/// an unknown of the rule or set it stands in.
pub fn parse(text: &str) -> Result<Ruleset, JsonError> {
    let other = |why: &str| JsonError::Other(why.into());
    let all: Json = serde_json::from_str(text).map_err(|e| JsonError::Syntax(e.to_string()))?;
    let objects = all["nftables"]
        .as_array()
        .ok_or_else(|| other("there is no \"nftables\""))?;
    let mut ruleset = Ruleset::default();
    let mut filled: HashSet<(usize, Arc<str>)> = HashSet::new();
    let of = |kind: &'static str| objects.iter().filter_map(move |o| o.get(kind));
    for table in of("table") {
        let name = text_of(table, "name").ok_or_else(|| other("a table without a name"))?;
        let family = family(table).ok_or_else(|| other("a table without a family"))?;
        if find(&ruleset, table, "name").is_some() {
            return Err(other("a table twice"));
        }
        ruleset.tables.push(Table {
            family,
            name: name.into(),
            backend: Backend::NfTables,
            dormant: flags(table).any(|f| f == "dormant"),
            chains: Vec::new(),
            chain_index: HashMap::new(),
            sets: HashMap::new(),
        });
    }
    for chain in of("chain") {
        let at = find(&ruleset, chain, "table").ok_or_else(|| other("a chain of no table"))?;
        let name = text_of(chain, "name").ok_or_else(|| other("a chain without a name"))?;
        let hook = match chain.get("hook") {
            None => None,
            Some(_) => match hook(chain) {
                None if !matches!(ruleset.tables[at].family, TableFamily::Other(_)) => {
                    return Err(other(&format!("chain {name} has a hook that is not known")));
                }
                found => found,
            },
        };
        let table = &mut ruleset.tables[at];
        let name: Arc<str> = name.into();
        table.chain_index.insert(name.clone(), table.chains.len());
        table.chains.push(Chain {
            name,
            handle: handle(chain),
            hook,
            rules: Vec::new(),
        });
    }
    for (map, set) in of("set")
        .map(|s| (false, s))
        .chain(of("map").map(|s| (true, s)))
    {
        let at = find(&ruleset, set, "table").ok_or_else(|| other("a set of no table"))?;
        let name = text_of(set, "name").ok_or_else(|| other("a set without a name"))?;
        let found = values::set(set, name, map);
        ruleset.tables[at].sets.insert(name.into(), found);
    }
    for rule in of("rule") {
        let at = find(&ruleset, rule, "table").ok_or_else(|| other("a rule of no table"))?;
        let chain = text_of(rule, "chain").unwrap_or_default();
        let table = &mut ruleset.tables[at];
        let chain = *table
            .chain_index
            .get(chain)
            .ok_or_else(|| other(&format!("a rule of chain {chain}, which is not there")))?;
        let mut reader = rules::Reader::new(table);
        let none = Vec::new();
        for expression in rule["expr"].as_array().unwrap_or(&none) {
            reader.statement(expression);
        }
        let (mut ops, sets, fills) = reader.finish();
        table
            .sets
            .extend(sets.into_iter().map(|s| (s.name.clone(), s)));
        filled.extend(fills.into_iter().map(|name| (at, name)));
        let comment = text_of(rule, "comment").map(Arc::from);
        let rule = Rule::of(handle(rule), &mut ops, comment);
        table.chains[chain].rules.push(rule);
    }
    for (at, name) in filled {
        let table = &mut ruleset.tables[at];
        if let Some(set) = table.sets.get_mut(&name) {
            set.dynamic = true;
            set.elements.clear();
        }
        // A look-up of the source in such a set asks whether this client was here before.
        let timeout = table.sets.get(&name).and_then(|s| s.timeout_ms);
        rules::remembered(table, &name, timeout);
    }
    Ok(ruleset)
}

fn text_of<'a>(object: &'a Json, field: &str) -> Option<&'a str> {
    object.get(field)?.as_str()
}

fn handle(object: &Json) -> u64 {
    object["handle"].as_u64().unwrap_or(0)
}

fn family(object: &Json) -> Option<TableFamily> {
    Some(match text_of(object, "family")? {
        "ip" => TableFamily::Ip,
        "ip6" => TableFamily::Ip6,
        "inet" => TableFamily::Inet,
        "arp" => TableFamily::Other(3),
        "bridge" => TableFamily::Other(7),
        "netdev" => TableFamily::Other(5),
        _ => return None,
    })
}

/// The table that an object names.
fn find(ruleset: &Ruleset, object: &Json, field: &str) -> Option<usize> {
    let (family, name) = (family(object)?, text_of(object, field)?);
    ruleset
        .tables
        .iter()
        .position(|t| t.family == family && *t.name == *name)
}

/// `"flags"`: one word or a list.
fn flags(object: &Json) -> impl Iterator<Item = &str> {
    let flags = object.get("flags");
    let list = flags.and_then(Json::as_array).into_iter().flatten();
    list.filter_map(Json::as_str)
        .chain(flags.and_then(Json::as_str))
}

fn hook(chain: &Json) -> Option<Hook> {
    Some(Hook {
        point: match text_of(chain, "hook")? {
            "prerouting" => HookPoint::Prerouting,
            "input" => HookPoint::Input,
            "forward" => HookPoint::Forward,
            "output" => HookPoint::Output,
            "postrouting" => HookPoint::Postrouting,
            "ingress" => HookPoint::Ingress,
            _ => return None,
        },
        priority: i32::try_from(chain["prio"].as_i64()?).ok()?,
        kind: match text_of(chain, "type")? {
            "filter" => ChainType::Filter,
            "nat" => ChainType::Nat,
            "route" => ChainType::Route,
            _ => return None,
        },
        policy_drop: text_of(chain, "policy") == Some("drop"),
    })
}

/// A set that nobody can look into.
fn unread(name: &str, map: bool, why: &str) -> Set {
    Set {
        name: name.into(),
        handle: 0,
        map,
        dynamic: false,
        anonymous: false,
        timeout_ms: None,
        key_bytes: Vec::new(),
        key_type: 0,
        elements: Vec::new(),
        unread: Some(why.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::ruleset::{NatTarget, Op};

    fn with(expressions: &str) -> Ruleset {
        parse(&format!(
            r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t", "handle": 1}}}},
            {{"chain": {{"family": "inet", "table": "t", "name": "c", "handle": 1}}}},
            {{"set": {{"family": "inet", "table": "t", "name": "s", "type": "ipv4_addr", "handle": 3, "flags": ["timeout"], "timeout": 60}}}},
            {{"rule": {{"family": "inet", "table": "t", "chain": "c", "handle": 2, "expr": [{expressions}]}}}}]}}"#
        ))
        .unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn what_is_not_known_is_never_skipped() {
        for expression in [
            r#"{"xt": {"type": "match", "name": "tcp"}}"#,
            r#"{"xt": {"type": "target", "name": "DNAT"}}"#,
            r#"{"xt": null}"#,
            r#"{"limit": {"rate": 5, "per": "second"}}"#,
            r#"{"quota": "much"}"#,
            r#"{"match": {"op": "==", "left": {"meta": {"key": "skuid"}}, "right": 0}}"#,
            r#"{"match": {"op": "==", "left": {"payload": {"base": "nh", "offset": 8, "len": 8}}, "right": 64}}"#,
            r#"{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": "@nothere"}}"#,
            r#"{"match": {"op": "in", "left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": "syn"}}"#,
            r#"{"match": {"op": "??", "left": {"meta": {"key": "mark"}}, "right": 5}}"#,
            r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}"#,
            r#"{"mangle": {"key": {"payload": {"protocol": "ip", "field": "daddr"}}, "value": "10.0.0.1"}}"#,
            r#"{"dnat": {"addr": {"range": ["10.0.0.1", "10.0.0.9"]}}}"#,
            r#"{"dnat": {"addr": "10.0.0.1", "port": {"range": [1, 2]}}}"#,
            r#"{"dnat": {"addr": {"map": {"key": {"jhash": {"mod": 2}}, "data": {"set": [[0, "10.0.0.1"]]}}}}}"#,
            r#"{"tproxy": {"port": 5}}"#,
            r#"{"vmap": {"key": {"symhash": {"mod": 2}}, "data": "@s"}}"#,
            r#"{"set": {"op": "delete", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "set": "@s"}}"#,
            r#"5"#,
        ] {
            let ruleset = with(expression);
            let known = |op: &Op| match op {
                Op::UnknownMatch(_) | Op::UnknownStatement(_) => false,
                Op::Dnat(NatTarget::Unknown(_)) => false,
                Op::Match(m) => !matches!(m.field, crate::netfilter::ruleset::Field::Other(_)),
                Op::Lookup(l) => ruleset.tables[0].sets.contains_key(&l.set),
                _ => true,
            };
            let ops = &ruleset.tables[0].chains[0].rules[0].ops;
            assert!(!ops.iter().all(known), "{expression}: {ops:?}");
        }
    }

    #[test]
    fn a_set_that_packets_fill_is_known_by_its_rule() {
        let ruleset = with(
            r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@s"}},
               {"set": {"op": "update", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "set": "@s"}}"#,
        );
        let table = &ruleset.tables[0];
        assert!(table.sets["s"].dynamic);
        let ops = &table.chains[0].rules[0].ops;
        let check = Op::AffinityCheck {
            list: "s".into(),
            seconds: Some(60),
        };
        assert!(ops.contains(&check), "{ops:?}");
        assert!(
            ops.contains(&Op::AffinityUpdate { list: "s".into() }),
            "{ops:?}"
        );
    }

    #[test]
    fn what_is_something_else_is_refused() {
        for (text, why) in [
            ("", "not JSON"),
            ("{\"nftables\": [", "not JSON"),
            ("{}", "no \"nftables\""),
            (
                r#"{"nftables": [{"chain": {"family": "ip", "table": "x", "name": "c"}}]}"#,
                "of no table",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

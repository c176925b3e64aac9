//! How each fault is done to a node's rules, with the tools of its mode, and undone.

use std::net::IpAddr;

use agent::kernel::Kernel;
use agent::netfilter::ruleset::{self as rs, ChainType, HookPoint, Op, TableFamily, Verdict};
use anyhow::{Context, Result, bail};
use model::capture::Reading;
use model::time::Now;

use crate::faults::Damage;
use crate::laboratory::Station;
use crate::netns::Netns;
use crate::proxy::Mode;

/// The addresses of `faults/web`, `faults/sticky` and `faults/node`, and that of the load balancer
/// of `faults/ranges`.
const WEB: &str = "10.96.200.1";
const STICKY: &str = "10.96.200.2";
const NODE: &str = "10.96.200.6";
const RANGES: &str = "198.18.200.3";

/// Somebody else's translation, before kube-proxy's.
const INTRUDER: &str = "table ip intruder {\n chain pre {\n type nat hook prerouting priority -150; policy accept;\n\
                        ip daddr 10.96.200.1 tcp dport 80 dnat to 10.244.66.6:6666\n }\n}\n";

/// The rules of a node before a fault, to be put back afterwards.
#[derive(Debug)]
pub(crate) struct Snapshot {
    text: String,
}

impl Snapshot {
    /// Saves the IPv4 rules of the node's kube-proxy.
    pub(crate) fn take(station: &Station) -> Result<Snapshot> {
        let netns = station.node.netns();
        let text = match station.proxy.spec().mode.iptables_backend() {
            Some(backend) => netns.run(&format!("iptables-{backend}-save"), [""; 0])?,
            None => netns.run("nft", ["list", "table", "ip", "kube-proxy"])?,
        };
        Ok(Snapshot { text })
    }

    /// Puts them back, in one transaction, and removes what is foreign.
    pub(crate) fn restore(self, station: &Station) -> Result<()> {
        let netns = station.node.netns();
        netns.run_with_input(
            "nft",
            ["-f", "-"],
            "add table ip intruder; delete table ip intruder\n",
        )?;
        match station.proxy.spec().mode.iptables_backend() {
            Some(backend) => netns.run_with_input(
                &format!("iptables-{backend}-restore"),
                ["-w", "60"],
                &self.text,
            )?,
            None => {
                let text = format!(
                    "add table ip kube-proxy\ndelete table ip kube-proxy\n{}",
                    self.text
                );
                netns.run_with_input("nft", ["-f", "-"], &text)?
            }
        };
        Ok(())
    }
}

/// A damage while kube-proxies go on writing: what does it, whether it is still there, and what undoes
/// it without touching what was written since.
#[derive(Debug)]
pub(crate) struct Lasting {
    damage: Damage,
    /// For `nft -f`, or for `iptables-restore --noflush` of that backend.
    backend: Option<&'static str>,
    plant: String,
    undo: String,
}

impl Lasting {
    /// Has to be made while nobody writes: what lists rules begins again at every change of them.
    pub(crate) fn of(station: &Station, damage: Damage) -> Result<Lasting> {
        let netns = station.node.netns();
        let backend = station.proxy.spec().mode.iptables_backend();
        let iptables = |chain: &str, words: &str, backend| -> Result<(String, String)> {
            let nat = Iptables::read(netns, backend, "nat")?;
            let rule = nat.of(chain, &[words])?[0];
            let with = |how: &str| rule.replacen(&format!("-A {chain}"), how, 1);
            Ok((
                format!("*nat\n{}\nCOMMIT\n", with(&format!("-D {chain}"))),
                format!("*nat\n{}\nCOMMIT\n", with(&format!("-I {chain}1 "))),
            ))
        };
        let (backend, (plant, undo)) = match (damage, backend) {
            (Damage::ForeignDnat, _) => {
                let undo = "delete table ip intruder\n".to_owned();
                (None, (INTRUDER.to_owned(), undo))
            }
            (Damage::PreroutingJumpRemoved, Some(name)) => {
                (backend, iptables("PREROUTING ", "-j KUBE-SERVICES", name)?)
            }
            (Damage::OutputJumpRemoved, Some(name)) => {
                (backend, iptables("OUTPUT ", "-j KUBE-SERVICES", name)?)
            }
            (Damage::FrontendDeleted, Some(name)) => (
                backend,
                iptables("KUBE-SERVICES ", "-d 10.96.200.1/32 ", name)?,
            ),
            (Damage::PreroutingJumpRemoved | Damage::OutputJumpRemoved, None) => {
                let chain = match damage {
                    Damage::OutputJumpRemoved => "ip kube-proxy nat-output",
                    _ => "ip kube-proxy nat-prerouting",
                };
                let undo = format!("add rule {chain} jump services\n");
                (None, (format!("flush chain {chain}\n"), undo))
            }
            (Damage::FrontendDeleted, None) => {
                let table = Nftables::read(netns)?;
                let chain = table.chain("service-", "web")?;
                let (map, key) = ("ip kube-proxy service-ips", "10.96.200.1 . tcp . 80");
                let undo = format!("add element {map} {{ {key} : goto {chain} }}\n");
                (None, (format!("delete element {map} {{ {key} }}\n"), undo))
            }
            _ => bail!("{damage:?} is not planted during churn"),
        };
        Ok(Lasting {
            damage,
            backend,
            plant,
            undo,
        })
    }

    /// Does it.
    pub(crate) fn plant(&self, station: &Station) -> Result<()> {
        self.run(station, &self.plant)
    }

    /// Undoes it.
    pub(crate) fn undo(&self, station: &Station) -> Result<()> {
        self.run(station, &self.undo)
    }

    fn run(&self, station: &Station, text: &str) -> Result<()> {
        let netns = station.node.netns();
        match self.backend {
            Some(backend) => netns.run_with_input(
                &format!("iptables-{backend}-restore"),
                ["-w", "60", "--noflush"],
                text,
            )?,
            None => netns.run_with_input("nft", ["-f", "-"], text)?,
        };
        Ok(())
    }

    /// Has nobody repaired it?
    ///
    /// Read with the agent's own reader: `nft list` begins again at every change, and never comes to an
    /// end while kube-proxy writes several times a second.
    pub(crate) fn is_needed(&self, station: &Station) -> Result<bool> {
        let ruleset = station.node.netns().enter(|| {
            let (kernel, _) = Kernel::read(None, Now::default());
            kernel.ruleset
        })?;
        let Reading::Read(ruleset) = ruleset else {
            bail!("{ruleset:?}");
        };
        let web: IpAddr = WEB.parse()?;
        let is_web = |value: &rs::Value| matches!(value, rs::Value::Prefix(p) if p.addr() == web);
        // Those of IPv6 are left alone.
        let tables = || {
            ruleset
                .tables
                .iter()
                .filter(|t| t.family == TableFamily::Ip)
        };
        let mut chains = tables().flat_map(|t| &t.chains);
        let mut sets = tables().flat_map(|t| t.sets.values());
        let leads = |chain: &rs::Chain, to: &str| {
            let mut ops = chain.rules.iter().flat_map(|r| &r.ops);
            ops.any(
                |op| matches!(op, Op::Verdict(Verdict::Jump(t) | Verdict::Goto(t)) if **t == *to),
            )
        };
        let there = match self.damage {
            Damage::ForeignDnat => {
                return Ok(ruleset.tables.iter().any(|t| &*t.name == "intruder"));
            }
            Damage::PreroutingJumpRemoved | Damage::OutputJumpRemoved => chains.any(|c| {
                let point = match self.damage {
                    Damage::OutputJumpRemoved => HookPoint::Output,
                    _ => HookPoint::Prerouting,
                };
                let at = |h: rs::Hook| (h.point, h.kind) == (point, ChainType::Nat);
                let nat = c.hook.is_some_and(at);
                nat && (leads(c, "KUBE-SERVICES") || leads(c, "services"))
            }),
            _ => {
                let rule = |rule: &rs::Rule| {
                    let matches = |op: &Op| match op {
                        Op::Match(m) => m.any_of.iter().any(is_web),
                        _ => false,
                    };
                    let jumps = |op: &Op| matches!(op, Op::Verdict(Verdict::Jump(_)));
                    rule.ops.iter().any(matches) && rule.ops.iter().any(jumps)
                };
                chains.any(|c| &*c.name == "KUBE-SERVICES" && c.rules.iter().any(rule))
                    || sets.any(|s| {
                        let mut keys = s.elements.iter().flat_map(|e| &e.key);
                        &*s.name == "service-ips" && keys.any(is_web)
                    })
            }
        };
        Ok(!there)
    }
}

/// Does the damage.
pub(crate) fn plant(station: &Station, damage: Damage) -> Result<()> {
    let netns = station.node.netns();
    let mode = station.proxy.spec().mode;
    if damage == Damage::ForeignDnat && mode != Mode::IptablesLegacy {
        netns.run_with_input("nft", ["-f", "-"], INTRUDER)?;
        return Ok(());
    }
    match mode.iptables_backend() {
        Some(backend) => iptables(netns, backend, damage),
        None => nftables(netns, damage),
    }
}

/// The rules of an iptables table as `iptables-save` prints them, and changes to it.
struct Iptables<'a> {
    netns: &'a Netns,
    backend: &'static str,
    table: &'static str,
    lines: Vec<String>,
}

impl Iptables<'_> {
    fn read<'a>(
        netns: &'a Netns,
        backend: &'static str,
        table: &'static str,
    ) -> Result<Iptables<'a>> {
        let text = netns.run(&format!("iptables-{backend}-save"), ["-t", table])?;
        let lines = text
            .lines()
            .filter(|line| line.starts_with("-A "))
            .map(str::to_owned)
            .collect();
        Ok(Iptables {
            netns,
            backend,
            table,
            lines,
        })
    }

    /// The rules of the chain that starts with `chain` and belongs to a Service.
    fn of(&self, chain: &str, words: &[&str]) -> Result<Vec<&str>> {
        let found: Vec<&str> = self
            .lines
            .iter()
            .map(String::as_str)
            .filter(|line| line.starts_with(&format!("-A {chain}")))
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .collect();
        if found.is_empty() {
            bail!("no rule of {chain} has {words:?}");
        }
        Ok(found)
    }

    /// Runs rule commands, each as `iptables-restore` takes it.
    fn change(&self, commands: &[String]) -> Result<()> {
        let text = format!("*{}\n{}\nCOMMIT\n", self.table, commands.join("\n"));
        self.netns
            .run_with_input(
                &format!("iptables-{}-restore", self.backend),
                ["--noflush", "-w", "60"],
                &text,
            )
            .with_context(|| text)?;
        Ok(())
    }

    fn delete(&self, rules: &[&str]) -> Result<()> {
        let commands: Vec<String> = rules
            .iter()
            .map(|rule| rule.replacen("-A ", "-D ", 1))
            .collect();
        self.change(&commands)
    }

    /// The place of a rule in its chain, from 1.
    fn place(&self, rule: &str) -> usize {
        let chain = chain(rule);
        let own = self.lines.iter().filter(|line| self::chain(line) == chain);
        own.take_while(|line| line.as_str() != rule).count() + 1
    }
}

/// The chain a rule stands in.
fn chain(rule: &str) -> &str {
    rule.split(' ').nth(1).unwrap_or_default()
}

/// What a rule jumps to.
fn target(rule: &str) -> &str {
    rule.split_once(" -j ")
        .map(|(_, rest)| rest.split(' ').next().unwrap_or(rest))
        .unwrap_or_default()
}

fn iptables(netns: &Netns, backend: &'static str, damage: Damage) -> Result<()> {
    let nat = Iptables::read(netns, backend, "nat")?;
    let filter = Iptables::read(netns, backend, "filter")?;
    // Not by comments: above 1,000 endpoints kube-proxy writes none.
    let service = |address: &str| -> Result<String> {
        let rule = nat.of("KUBE-SERVICES ", &[&format!("-d {address}/32 ")])?[0];
        Ok(format!("{} ", target(rule)))
    };
    let backends = |address: &str| nat.of(&service(address)?, &["-j KUBE-SEP-"]);
    match damage {
        Damage::BackendDeleted => nat.delete(&backends(WEB)?[..1]),
        Damage::EndpointEmptied => {
            let endpoint = target(backends(STICKY)?[0]).to_owned();
            nat.change(&[format!("-F {endpoint}")])
        }
        Damage::BackendAdded => {
            let first = backends(WEB)?[0];
            let other = target(backends(NODE)?[0]);
            nat.change(&[format!(
                "-I {} {} -m statistic --mode random --probability 0.2 -j {other}",
                chain(first),
                nat.place(first)
            )])
        }
        Damage::FrontendDeleted => nat.delete(&nat.of("KUBE-SERVICES ", &["-d 10.96.200.1/32 "])?),
        Damage::FrontendAdded => {
            let rule = nat.of("KUBE-SERVICES ", &["-d 10.96.200.1/32 "])?[0];
            let rule = rule.replacen("-A KUBE-SERVICES ", "-I KUBE-SERVICES 1 ", 1);
            nat.change(&[rule.replace("10.96.200.1/32", "10.96.200.77/32")])
        }
        Damage::ShareChanged => {
            let first = backends(WEB)?[0];
            let words: Vec<&str> = first.split(' ').collect();
            let at = words
                .iter()
                .position(|word| *word == "--probability")
                .context("the first of three endpoints has a probability")?;
            let mut changed: Vec<&str> = words;
            changed[at + 1] = "0.90000000000";
            let (chain, rest) = (chain(first), changed[2..].join(" "));
            nat.change(&[format!("-R {chain} {} {rest}", nat.place(first))])
        }
        Damage::AffinityRemoved => nat.delete(&nat.of(&service(STICKY)?, &["-m recent --rcheck"])?),
        Damage::RangeWidened => {
            let rule = nat.of(&service(RANGES)?, &["-s 203.0.113.0/24"])?[0];
            let wider = rule
                .replacen("-A ", "-I ", 1)
                .replace("203.0.113.0/24", "192.0.2.0/24");
            nat.change(&[wider])
        }
        Damage::MasqueradeDeleted => {
            let node_port = nat.of("KUBE-NODEPORTS ", &["--dport 32106 "])?[0];
            let external = format!("{} ", target(node_port));
            nat.delete(&nat.of(&external, &["-j KUBE-MARK-MASQ"])?)
        }
        Damage::RejectRemoved => {
            filter.delete(&filter.of("KUBE-EXTERNAL-SERVICES ", &["--dport 32104 "])?)
        }
        Damage::DropRemoved => {
            filter.delete(&filter.of("KUBE-EXTERNAL-SERVICES ", &["--dport 32105 "])?)
        }
        Damage::PreroutingJumpRemoved => nat.delete(&nat.of("PREROUTING ", &["-j KUBE-SERVICES"])?),
        Damage::OutputJumpRemoved => nat.delete(&nat.of("OUTPUT ", &["-j KUBE-SERVICES"])?),
        // A table of x_tables stays as long as its namespace; it can only be emptied.
        Damage::TableDeleted if backend == "legacy" => {
            netns.run_with_input("iptables-legacy-restore", ["-w", "60"], "*nat\nCOMMIT\n")?;
            Ok(())
        }
        Damage::TableDeleted => {
            netns.run("nft", ["delete", "table", "ip", "nat"])?;
            Ok(())
        }
        Damage::ForeignDnat => nat.change(&[format!(
            "-I PREROUTING 1 -d {WEB}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.66.6:6666"
        )]),
        Damage::KilledEndpointRemoved
        | Damage::KilledServiceDeleted
        | Damage::FrozenEndpointsChanged => bail!("{damage:?} is not done with iptables"),
    }
}

/// kube-proxy's chains in nftables mode.
struct Nftables<'a> {
    netns: &'a Netns,
    chains: Vec<String>,
}

impl Nftables<'_> {
    fn read(netns: &Netns) -> Result<Nftables<'_>> {
        let text = netns.run("nft", ["--terse", "list", "table", "ip", "kube-proxy"])?;
        let chains = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"))
            .map(str::to_owned)
            .collect();
        Ok(Nftables { netns, chains })
    }

    fn chain(&self, kind: &str, service: &str) -> Result<&str> {
        let part = format!("-faults/{service}/tcp/");
        self.chains
            .iter()
            .find(|chain| chain.starts_with(kind) && chain.contains(&part))
            .map(String::as_str)
            .with_context(|| format!("no chain {kind} of {service}"))
    }

    /// Handles and texts of the rules of a chain.
    fn rules(&self, chain: &str) -> Result<Vec<(String, String)>> {
        let text = self
            .netns
            .run("nft", ["-a", "list", "chain", "ip", "kube-proxy", chain])?;
        Ok(text
            .lines()
            .filter(|line| {
                !line.trim_start().starts_with("chain ") && !line.trim_start().starts_with("type ")
            })
            .filter_map(|line| {
                let (rule, handle) = line.trim().rsplit_once(" # handle ")?;
                Some((handle.to_owned(), rule.to_owned()))
            })
            .collect())
    }

    fn change(&self, commands: &str) -> Result<()> {
        self.netns
            .run_with_input("nft", ["-f", "-"], &format!("{commands}\n"))
            .with_context(|| commands.to_owned())?;
        Ok(())
    }

    fn delete_rules(&self, chain: &str, words: &str) -> Result<()> {
        let commands: Vec<String> = self
            .rules(chain)?
            .iter()
            .filter(|(_, rule)| rule.contains(words))
            .map(|(handle, _)| format!("delete rule ip kube-proxy {chain} handle {handle}"))
            .collect();
        if commands.is_empty() {
            bail!("no rule of {chain} has {words}");
        }
        self.change(&commands.join("\n"))
    }

    /// Changes the list of endpoints in a Service's `numgen` rule.
    fn endpoints(&self, service: &str, change: impl Fn(&mut Vec<String>)) -> Result<()> {
        let chain = self.chain("service-", service)?;
        let (handle, rule) = self
            .rules(chain)?
            .into_iter()
            .find(|(_, rule)| rule.contains("numgen random mod"))
            .context("a Service with several endpoints has a numgen rule")?;
        let (head, rest) = rule
            .split_once("numgen random mod ")
            .context("found above")?;
        let (_, rest) = rest.split_once(' ').context("a map follows")?;
        let (map, list) = rest.split_once(" { ").context("a map has elements")?;
        let mut values: Vec<String> = list
            .trim_end_matches(" }")
            .split(", ")
            .filter_map(|element| Some(element.split_once(" : ")?.1.to_owned()))
            .collect();
        change(&mut values);
        let elements: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(index, value)| format!("{index} : {value}"))
            .collect();
        self.change(&format!(
            "replace rule ip kube-proxy {chain} handle {handle} {head}numgen random mod {} {map} {{ {} }}",
            values.len(),
            elements.join(", ")
        ))
    }
}

fn nftables(netns: &Netns, damage: Damage) -> Result<()> {
    let table = Nftables::read(netns)?;
    let flush = |chain: &str| table.change(&format!("flush chain ip kube-proxy {chain}"));
    match damage {
        Damage::BackendDeleted => table.endpoints("web", |values| {
            values.pop();
        }),
        Damage::EndpointEmptied => flush(table.chain("endpoint-", "sticky")?),
        Damage::BackendAdded => {
            // To 1.35 an endpoint is a chain, from 1.36 on an address.
            let other = table
                .chain("endpoint-", "node")
                .map(|chain| format!("goto {chain}"));
            table.endpoints("web", |values| {
                let other = other.as_deref().unwrap_or("10.244.230.41 . 8080");
                values.push(other.to_owned());
            })
        }
        Damage::FrontendDeleted => {
            table.change("delete element ip kube-proxy service-ips { 10.96.200.1 . tcp . 80 }")
        }
        Damage::FrontendAdded => table.change(&format!(
            "add element ip kube-proxy service-ips {{ 10.96.200.77 . tcp . 80 : goto {} }}",
            table.chain("service-", "web")?
        )),
        Damage::ShareChanged => table.endpoints("web", |values| values.push(values[0].clone())),
        Damage::AffinityRemoved => {
            table.delete_rules(table.chain("service-", "sticky")?, "ip saddr @affinity-")
        }
        Damage::RangeWidened => {
            let chain = table.chain("firewall-", "ranges")?;
            let (handle, rule) = table
                .rules(chain)?
                .into_iter()
                .next()
                .context("it has a rule")?;
            let wider = rule.replace("203.0.113.0/24", "203.0.112.0/23");
            table.change(&format!(
                "replace rule ip kube-proxy {chain} handle {handle} {wider}"
            ))
        }
        Damage::MasqueradeDeleted => {
            let chain = table.chain("external-", "node")?;
            let (handle, _) = table
                .rules(chain)?
                .into_iter()
                .next()
                .context("it has a rule")?;
            table.change(&format!(
                "delete rule ip kube-proxy {chain} handle {handle}"
            ))
        }
        Damage::RejectRemoved => {
            table.change("delete element ip kube-proxy no-endpoint-nodeports { tcp . 32104 }")
        }
        Damage::DropRemoved => {
            table.change("delete element ip kube-proxy no-endpoint-nodeports { tcp . 32105 }")
        }
        Damage::PreroutingJumpRemoved => flush("nat-prerouting"),
        Damage::OutputJumpRemoved => flush("nat-output"),
        Damage::TableDeleted => table.change("delete table ip kube-proxy"),
        Damage::ForeignDnat
        | Damage::KilledEndpointRemoved
        | Damage::KilledServiceDeleted
        | Damage::FrozenEndpointsChanged => bail!("{damage:?} is not done with nft"),
    }
}

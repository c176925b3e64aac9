//! How each fault is done to a node's rules, with the tools of its mode, and undone.

use anyhow::{Context, Result, bail};

use crate::faults::Damage;
use crate::laboratory::Station;
use crate::netns::Netns;

/// The addresses of `faults/web`, `faults/sticky` and `faults/node`, and that of the load balancer
/// of `faults/ranges`.
const WEB: &str = "10.96.200.1";
const STICKY: &str = "10.96.200.2";
const NODE: &str = "10.96.200.6";
const RANGES: &str = "198.18.200.3";

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

/// What a damage does when kube-proxies go on writing: whether it is still there, and how it is undone
/// without touching what was written since.
pub(crate) struct Repair {
    /// What undoes it, for `nft -f` or `iptables-restore --noflush`.
    text: String,
    damage: Damage,
}

impl Repair {
    /// Has to be made before the damage.
    pub(crate) fn of(station: &Station, damage: Damage) -> Result<Repair> {
        let netns = station.node.netns();
        let text = match (damage, station.proxy.spec().mode.iptables_backend()) {
            (Damage::ForeignDnat, _) => "delete table ip intruder\n".to_owned(),
            (Damage::PreroutingJumpRemoved, Some(backend)) => {
                let nat = Iptables::read(netns, backend, "nat")?;
                let rule = nat.of("PREROUTING ", &["-j KUBE-SERVICES"])?[0];
                let rule = rule.replacen("-A PREROUTING ", "-I PREROUTING 1 ", 1);
                format!("*nat\n{rule}\nCOMMIT\n")
            }
            (Damage::FrontendDeleted, Some(backend)) => {
                let nat = Iptables::read(netns, backend, "nat")?;
                let rule = nat.of("KUBE-SERVICES ", &["-d 10.96.200.1/32 "])?[0];
                let rule = rule.replacen("-A KUBE-SERVICES ", "-I KUBE-SERVICES 1 ", 1);
                format!("*nat\n{rule}\nCOMMIT\n")
            }
            (Damage::PreroutingJumpRemoved, None) => {
                let text = netns.run(
                    "nft",
                    ["list", "chain", "ip", "kube-proxy", "nat-prerouting"],
                )?;
                if !text.contains("jump services") {
                    bail!("nat-prerouting does not lead to services:\n{text}");
                }
                "add rule ip kube-proxy nat-prerouting jump services\n".to_owned()
            }
            (Damage::FrontendDeleted, None) => {
                let table = Nftables::read(netns)?;
                let chain = table.chain("service-", "web")?;
                format!(
                    "add element ip kube-proxy service-ips {{ 10.96.200.1 . tcp . 80 : goto {chain} }}\n"
                )
            }
            _ => bail!("{damage:?} is not planted during churn"),
        };
        Ok(Repair { text, damage })
    }

    /// Has nobody repaired it?
    pub(crate) fn is_needed(&self, station: &Station) -> Result<bool> {
        let netns = station.node.netns();
        let backend = station.proxy.spec().mode.iptables_backend();
        Ok(match (self.damage, backend) {
            (Damage::ForeignDnat, _) => netns.run("nft", ["list", "tables"])?.contains("intruder"),
            (Damage::PreroutingJumpRemoved, Some(backend)) => {
                Iptables::read(netns, backend, "nat")?
                    .of("PREROUTING ", &["-j KUBE-SERVICES"])
                    .is_err()
            }
            (_, Some(backend)) => Iptables::read(netns, backend, "nat")?
                .of("KUBE-SERVICES ", &["-d 10.96.200.1/32 "])
                .is_err(),
            (Damage::PreroutingJumpRemoved, None) => !netns
                .run(
                    "nft",
                    ["list", "chain", "ip", "kube-proxy", "nat-prerouting"],
                )?
                .contains("jump services"),
            (_, None) => !netns
                .run("nft", ["list", "map", "ip", "kube-proxy", "service-ips"])?
                .contains("10.96.200.1 . tcp . 80"),
        })
    }

    /// Undoes it.
    pub(crate) fn undo(&self, station: &Station) -> Result<()> {
        let netns = station.node.netns();
        let foreign = self.damage == Damage::ForeignDnat;
        match station.proxy.spec().mode.iptables_backend() {
            Some(backend) if !foreign => netns.run_with_input(
                &format!("iptables-{backend}-restore"),
                ["-w", "60", "--noflush"],
                &self.text,
            )?,
            _ => netns.run_with_input("nft", ["-f", "-"], &self.text)?,
        };
        Ok(())
    }
}

/// Does the damage.
pub(crate) fn plant(station: &Station, damage: Damage) -> Result<()> {
    let netns = station.node.netns();
    if damage == Damage::ForeignDnat {
        let rules = "table ip intruder {\n chain pre {\n type nat hook prerouting priority -150; policy accept;\n\
                     ip daddr 10.96.200.1 tcp dport 80 dnat to 10.244.66.6:6666\n }\n}\n";
        netns.run_with_input("nft", ["-f", "-"], rules)?;
        return Ok(());
    }
    match station.proxy.spec().mode.iptables_backend() {
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
        Damage::ForeignDnat
        | Damage::KilledEndpointRemoved
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

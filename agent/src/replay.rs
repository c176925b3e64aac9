//! A verdict from what was recorded or collected, with no kernel and no cluster: always whole, never
//! by halves from the pass before. So it also proves what a running agent says, which reads and
//! judges only what changed.

pub mod collected;

use crate::bundle::{self, About, Captures, KernelRead, Limits, LoadError, Recorded, Step};
use crate::datapath;
use crate::netfilter::ruleset::Ruleset;
use model::capture::{Gap, Reading};
use model::desired::{desired, frontends};
use model::examine::{Examined, Pass, elsewhere, examine};
use model::name::{NodeName, ServiceName};
use model::profile::{ProxyHealth, ProxyProfile};
use model::report::Report;
use model::settle::Ledger;
use model::time::Now;
use model::view::{ClusterView, LocalAddress, NodeView};
use std::io::BufRead;

/// Everything that one pass is made from.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// When the kernel was read.
    pub at: Now,
    /// The rules.
    pub reading: &'a Reading<Ruleset>,
    /// Addresses on the node's links, or why they could not be read.
    pub addresses: &'a Result<Vec<LocalAddress>, String>,
    /// The API's objects.
    pub view: &'a ClusterView,
    /// Who programs the node.
    pub profile: &'a ProxyProfile,
    /// kube-proxy's health, where one is expected.
    pub proxy: Option<&'a ProxyHealth>,
    /// What could not be learnt.
    pub gaps: &'a [Gap],
    /// Services fetched again since the pass before.
    pub refreshed: &'a [ServiceName],
    /// The rules were collected by others, and may not be all there are.
    pub partial: bool,
}

/// Judges one pass after the other.
#[derive(Debug)]
pub struct Judge {
    node: NodeName,
    ledger: Ledger,
    passes: u64,
}

impl Judge {
    /// A new history.
    pub fn new(node: NodeName) -> Judge {
        Judge {
            node,
            ledger: Ledger::default(),
            passes: 0,
        }
    }

    /// One pass.
    pub fn pass(&mut self, seen: Seen<'_>) -> Examined {
        self.passes += 1;
        let profile = datapath::learnt(seen.profile, seen.reading);
        let seen = Seen {
            profile: &profile,
            ..seen
        };
        let node = NodeView {
            name: self.node.clone(),
            addresses: seen.addresses.as_ref().cloned().unwrap_or_default(),
        };
        let desired = desired(seen.view, &node, seen.profile);
        let frontends = frontends(&desired);
        let failed = match seen.addresses {
            Err(error) => Some(Gap {
                what: "links".into(),
                why: format!("the node's addresses could not be read: {error}").into(),
            }),
            Ok(_) => elsewhere(seen.view, &node),
        };
        let failed = failed.map(Reading::Failed);
        let reading = failed.as_ref().unwrap_or(seen.reading);
        let mut snapshot = datapath::snapshot(reading, &frontends, &node, seen.profile);
        if seen.partial {
            collected::not_collected(&mut snapshot, reading, frontends.keys(), seen.profile);
        }
        examine(
            &Pass {
                now: seen.at,
                number: self.passes,
                view: seen.view,
                node: &node,
                profile: seen.profile,
                proxy: seen.proxy,
                desired: &desired,
                snapshot: &snapshot,
                refreshed: seen.refreshed,
                gaps: seen.gaps,
                compared: None,
                unchanged: false,
                touched: None,
            },
            &mut self.ledger,
        )
    }
}

/// Plays bundles' passes, in order.
struct Player {
    judge: Judge,
    view: ClusterView,
    reading: Reading<Ruleset>,
    report: Option<Report>,
}

impl Player {
    fn pass(&mut self, pass: Recorded, captures: Option<&Captures>) {
        match (&pass.kernel, captures) {
            (KernelRead::Failed(gap), _) => self.reading = Reading::Failed(gap.clone()),
            (KernelRead::Read { .. }, Some(captures)) => self.reading = captures.decode(),
            // The rules of the pass before.
            (KernelRead::Read { .. }, None) => {}
        }
        pass.view.apply(&mut self.view);
        let examined = self.judge.pass(Seen {
            at: pass.at,
            reading: &self.reading,
            addresses: &pass.addresses,
            view: &self.view,
            profile: &pass.profile,
            proxy: pass.proxy.as_ref(),
            gaps: &pass.gaps,
            refreshed: &pass.refreshed,
            partial: false,
        });
        self.report = Some(examined.report);
    }
}

/// Replays a bundle: its last report, and what it is about.
///
/// # Errors
/// The file is no bundle, or cannot be used.
pub fn play(input: impl BufRead, limits: Limits) -> Result<(About, Report), LoadError> {
    let mut player: Option<Player> = None;
    let about = bundle::read(input, limits, |step| match step {
        Step::About(about) => {
            player = Some(Player {
                judge: Judge::new(about.node.clone()),
                view: ClusterView::default(),
                reading: Reading::Absent,
                report: None,
            });
        }
        Step::Pass(pass, captures) => {
            if let Some(player) = &mut player {
                player.pass(*pass, captures);
            }
        }
    })?;
    let report = player.and_then(|p| p.report);
    let report = report.ok_or_else(|| LoadError::Damaged("it holds no pass".into()))?;
    Ok((about, report))
}

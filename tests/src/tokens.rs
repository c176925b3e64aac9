//! An aggregator that verifies tokens believes only the agent of the node that it claims.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::agents::{self, AGGREGATOR_GRPC, Agent, Source, Spec};
use crate::laboratory::Laboratory;
use crate::wait;

/// To start, connect and be refused, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Somebody who reports about a node.
struct Guest {
    /// The node that it claims.
    name: &'static str,
    token: Option<PathBuf>,
    /// What its log says of the aggregator's answer.
    says: &'static str,
}

/// Agents with another node's token, with that of another ServiceAccount, without one, and with one for
/// another audience are refused: their nodes do not appear. The rightful one appears.
pub(crate) fn tokens_are_verified(laboratory: &mut Laboratory) -> Result<String> {
    if laboratory.installation.is_none() {
        laboratory.start_agents()?;
    }
    let guests = guests(laboratory)?;
    let folder = crate::cleanup::Folder::create("guests")?;
    // What they report does not matter here.
    let nothing = json!({"apiVersion": "v1", "kind": "List", "items": []});
    std::fs::write(folder.join("nothing.json"), nothing.to_string())?;
    let programs = laboratory.programs()?;
    let node = &laboratory.stations[0].node;
    let mut running = Vec::new();
    for guest in &guests {
        let mut spec = Spec::new(Source::Manifests(folder.path().to_owned()));
        spec.aggregator = vec![
            "--aggregator".into(),
            AGGREGATOR_GRPC.to_string(),
            agents::authority(&laboratory.cluster),
        ];
        spec.token_file.clone_from(&guest.token);
        // One core is enough for all.
        spec.flags = vec!["--interval".into(), "5s".into()];
        running.push(Agent::start_as(programs, node, guest.name, &spec)?);
    }
    for (guest, agent) in guests.iter().zip(&mut running) {
        let log = agent.process().log().to_owned();
        let what = format!("{} to be told {:?}", guest.name, guest.says);
        agent.process().until(&what, LIMIT, || {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.contains(guest.says).then_some(()))
        })?;
    }
    wait::until("the rightful one to appear", LIMIT, || {
        let path = format!("/nodes/{RIGHTFUL}");
        let node = laboratory.aggregated(&path)?;
        Ok((node["data"]["connected"] == true).then_some(()))
    })?;
    let nodes = laboratory.aggregated("/nodes")?.to_string();
    for guest in guests.iter().filter(|guest| guest.name != RIGHTFUL) {
        if nodes.contains(guest.name) {
            bail!("{} was believed: {nodes}", guest.name);
        }
    }
    Ok(format!(
        "{} agents with wrong tokens were refused, the rightful one was believed",
        guests.len() - 1
    ))
}

const RIGHTFUL: &str = "guest-rightful";

fn guests(laboratory: &Laboratory) -> Result<Vec<Guest>> {
    let cluster = &laboratory.cluster;
    let installation = laboratory.installation.as_ref();
    let installation = installation.context("deploy/ was applied")?;
    let audience = installation.audience()?;
    let pod = |name: &str| installation.agent_pod(cluster, name);
    let token = |pod: &str, audiences: &[&str]| installation.agent_token(cluster, pod, audiences);

    let station = format!("vipwitness-agent-{}", laboratory.stations[1].node.name());
    let rightful = token(&pod(RIGHTFUL)?, &[audience])?;
    let other_audience = token(&pod("guest-audience")?, &[])?;

    let namespace = installation.namespace();
    cluster.api.create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": namespace},
        "spec": {
            "nodeName": "guest-account", "serviceAccountName": "default",
            "containers": [{"name": "stranger", "image": "stranger"}],
        },
    }))?;
    let other_account = cluster.token(namespace, "default", &[audience], Some("stranger"))?;
    let other_account = agents::write_token(cluster, &other_account)?;
    Ok(vec![
        Guest {
            name: "guest-node",
            token: Some(token(&station, &[audience])?),
            says: "the token is bound to node",
        },
        Guest {
            name: "guest-account",
            token: Some(other_account),
            says: "not of system:serviceaccount:",
        },
        Guest {
            name: "guest-none",
            token: None,
            says: "no bearer token",
        },
        Guest {
            name: "guest-audience",
            token: Some(other_audience),
            says: "the API server does not accept the token",
        },
        Guest {
            name: RIGHTFUL,
            token: Some(rightful),
            says: "uplink: connected aggregator=",
        },
    ])
}

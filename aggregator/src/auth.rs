//! Which node an agent speaks for: its ServiceAccount token, verified by the API server.

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A verified token is not asked about again for this long.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Tokens remembered; each node has one or two.
const TOKENS: usize = 20_000;
/// Questions to the API server at once: a fleet that reconnects must not be a flood.
const AT_ONCE: usize = 16;
/// For the API server's answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a token; real ones have about 1,200.
const TOKEN_BYTES: usize = 16 << 10;
/// The node claim of a token bound to a Pod (Kubernetes 1.30 and later, on by default since 1.32).
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No `authorization: Bearer` in the metadata.
    #[error("no bearer token in the metadata")]
    NoToken,
    /// The API server says no.
    #[error("the API server does not accept the token: {0}")]
    NotAccepted(String),
    /// A valid token of somebody else: any Pod can have one with our audience.
    #[error("the token is that of {got}, not of {wanted}")]
    OtherAccount {
        /// Whose it is.
        got: String,
        /// Whose it should be.
        wanted: String,
    },
    /// Valid, but names no node.
    #[error(
        "the token carries no node claim; it must be bound to a Pod, by Kubernetes 1.32 or later"
    )]
    NoNode,
    /// The API server could not be asked.
    #[error("the API server could not be asked: {0}")]
    Unavailable(String),
}

/// Verifies agents' tokens with TokenReview.
pub struct Tokens {
    client: kube::Client,
    audience: String,
    account: String,
    at_once: Semaphore,
    known: Mutex<HashMap<[u8; 32], (String, Instant)>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Review {
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    audiences: Vec<String>,
    user: User,
    error: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: HashMap<String, Vec<String>>,
}

impl Tokens {
    /// Asks the API server of `kubeconfig`, else of KUBECONFIG, else the one of this Pod. `account` is
    /// the agents' user name, `system:serviceaccount:<namespace>:<name>`.
    pub async fn new(
        kubeconfig: Option<&std::path::Path>,
        audience: String,
        account: String,
    ) -> anyhow::Result<Tokens> {
        let mut config = match kubeconfig {
            Some(file) => {
                let read = kube::config::Kubeconfig::read_from(file)?;
                kube::Config::from_custom_kubeconfig(read, &Default::default()).await?
            }
            None => kube::Config::infer().await?,
        };
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        Ok(Tokens {
            client: kube::Client::try_from(config)?,
            audience,
            account,
            at_once: Semaphore::new(AT_ONCE),
            known: Mutex::new(HashMap::new()),
        })
    }

    /// The node that a token proves.
    pub async fn node(&self, token: &str) -> Result<String, AuthError> {
        if token.is_empty() || token.len() > TOKEN_BYTES {
            return Err(AuthError::NoToken);
        }
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(node) = self.remembered(&key) {
            return Ok(node);
        }
        let review = self.review(token).await?;
        let node = judge(review, &self.audience, &self.account)?;
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        known.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
        if known.len() < TOKENS {
            known.insert(key, (node.clone(), Instant::now()));
        }
        Ok(node)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        let (node, at) = known.get(key)?;
        (at.elapsed() < REMEMBERED).then(|| node.clone())
    }

    async fn review(&self, token: &str) -> Result<Review, AuthError> {
        let unavailable = |e: String| AuthError::Unavailable(e);
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [self.audience] },
        });
        let request = axum::http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|e| unavailable(e.to_string()))?;
        let _turn = self
            .at_once
            .acquire()
            .await
            .map_err(|e| unavailable(e.to_string()))?;
        match tokio::time::timeout(PATIENCE, self.client.request::<Review>(request)).await {
            Ok(answer) => answer.map_err(|e| unavailable(e.to_string())),
            Err(_) => Err(unavailable(format!(
                "no answer within {} s",
                PATIENCE.as_secs()
            ))),
        }
    }
}

fn judge(review: Review, audience: &str, account: &str) -> Result<String, AuthError> {
    let status = review.status;
    if !status.authenticated {
        return Err(AuthError::NotAccepted(status.error));
    }
    // An API server that knows no audiences ignores them, and accepts everybody's tokens.
    if !status.audiences.iter().any(|a| a == audience) {
        return Err(AuthError::NotAccepted(format!(
            "it is not meant for {audience:?}"
        )));
    }
    if status.user.username != account {
        return Err(AuthError::OtherAccount {
            got: status.user.username,
            wanted: account.into(),
        });
    }
    match status.user.extra.get(NODE_CLAIM).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.clone()),
        _ => Err(AuthError::NoNode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:vipwitness:vipwitness-agent";

    fn review(change: impl FnOnce(&mut Status)) -> Result<String, AuthError> {
        let mut status = Status {
            authenticated: true,
            audiences: vec!["vipwitness".into()],
            user: User {
                username: ACCOUNT.into(),
                extra: [(NODE_CLAIM.to_string(), vec!["node-a".to_string()])].into(),
            },
            error: String::new(),
        };
        change(&mut status);
        judge(Review { status }, "vipwitness", ACCOUNT)
    }

    #[test]
    fn only_the_agents_token_for_us_proves_a_node() {
        assert_eq!(review(|_| ()), Ok("node-a".into()));
        assert!(matches!(
            review(|s| s.authenticated = false),
            Err(AuthError::NotAccepted(_))
        ));
        assert!(matches!(
            review(|s| s.audiences.clear()),
            Err(AuthError::NotAccepted(_))
        ));
        assert!(matches!(
            review(|s| s.user.username = "system:serviceaccount:tenant:default".into()),
            Err(AuthError::OtherAccount { .. })
        ));
        assert_eq!(review(|s| s.user.extra.clear()), Err(AuthError::NoNode));
    }
}

//! What kube-proxy itself says: which mode, which version, configured how, and how its syncs go.
//!
//! Its two listeners are plain HTTP/1 on loopback (kube-proxy.md 1.1, 1.8, 6.4). Nothing they say
//! proves anything about the kernel; it only tells what to expect and how late it may be.

pub mod config;
pub mod metrics;

use config::Parsed;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use model::name::NodeName;
use model::profile::{
    Learnt, LearntFrom, ProxyConfig, ProxyHealth, ProxyMode, ProxyProfile, Version,
};
use model::view::Node;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// One answer must be there by then; kube-proxy is on the same node.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest answer; the metrics of a busy kube-proxy are below 1 MB.
const BYTES: usize = 16 << 20;

/// Where kube-proxy listens.
#[derive(Clone, Copy, Debug)]
pub struct Listeners {
    /// `metricsBindAddress`.
    pub metrics: SocketAddr,
    /// `healthzBindAddress`.
    pub healthz: SocketAddr,
}

/// Everything one look at a running kube-proxy gave.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// `/proxyMode`.
    pub mode: Option<ProxyMode>,
    /// `kubernetes_build_info`.
    pub version: Option<Version>,
    /// `kubernetes_feature_enabled`.
    pub gates: BTreeMap<String, bool>,
    /// `/configz`.
    pub config: Option<Parsed>,
    /// Sync times and health.
    pub health: ProxyHealth,
    /// A process answered at the metrics listener.
    pub runs: bool,
}

/// Asks both listeners.
pub async fn scrape(at: Listeners) -> Scrape {
    let (mode, metrics, configz, healthz) = tokio::join!(
        get(at.metrics, "/proxyMode"),
        get(at.metrics, "/metrics"),
        get(at.metrics, "/configz"),
        get(at.healthz, "/healthz"),
    );
    let mut found = Scrape::default();
    if let Ok((200, text)) = &mode {
        found.mode = config::mode(text.trim());
    }
    match &metrics {
        Ok((200, text)) => {
            let parsed = metrics::parse(text);
            found.version = parsed.version;
            found.gates = parsed.gates;
            found.health = parsed.health;
            found.runs = parsed.is_kube_proxy;
        }
        Ok((code, _)) => tracing::debug!(code, "kube-proxy /metrics"),
        Err(_) => {}
    }
    if let Ok((200, text)) = &configz {
        match config::parse(text) {
            Ok(parsed) => found.config = Some(parsed),
            Err(why) => tracing::warn!(%why, "kube-proxy /configz is not understood"),
        }
    }
    found.runs |= found.mode.is_some();
    found.health.healthz = healthz.as_ref().ok().map(|(code, _)| *code);
    if let (Err(why), Err(health)) = (&metrics, &healthz) {
        found.health.unreachable = Some(format!("/metrics: {why}; /healthz: {health}").into());
    }
    found
}

async fn get(at: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let socket = tokio::net::TcpStream::connect(at)
            .await
            .map_err(|e| format!("{at}: {e}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .map_err(text)?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header("host", at.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(text)?;
        let response = sender.send_request(request).await.map_err(text)?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), BYTES)
            .collect()
            .await
            .map_err(text)?;
        connection.abort();
        Ok((code, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::time::timeout(ANSWER, ask)
        .await
        .unwrap_or_else(|_| Err(format!("{at}: no answer within {} s", ANSWER.as_secs())))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Everything that may tell who programs the node, the strongest last (design 2).
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMap `kube-system/kube-proxy`.
    pub config_map: Option<Parsed>,
    /// `--kube-proxy-config`.
    pub file: Option<Parsed>,
    /// `--proxy-version`.
    pub version: Option<Version>,
    /// kube-proxy itself.
    pub scrape: Option<Scrape>,
    /// The host's name, where it is the node's (`None` with manifests).
    pub host_name: Option<String>,
}

impl Sources {
    /// The profile, without what the kernel shows.
    pub fn profile(&self, node: &NodeName, own: Option<&Node>) -> ProxyProfile {
        let scraped = self.scrape.as_ref().and_then(|s| s.config.as_ref());
        let parsed = [
            (scraped, LearntFrom::Proxy),
            (self.file.as_ref(), LearntFrom::Flag),
            (self.config_map.as_ref(), LearntFrom::ConfigMap),
        ];
        let chosen = parsed.iter().find_map(|(p, from)| p.map(|p| (p, *from)));
        let mode = self
            .scrape
            .as_ref()
            .and_then(|s| s.mode)
            .map(|value| Learnt {
                value,
                from: LearntFrom::Proxy,
            })
            .or_else(|| {
                parsed.iter().find_map(|(p, from)| {
                    p.and_then(|p| p.mode)
                        .map(|value| Learnt { value, from: *from })
                })
            });
        let version = self
            .scrape
            .as_ref()
            .and_then(|s| s.version)
            .map(|value| Learnt {
                value,
                from: LearntFrom::Proxy,
            })
            .or(self.version.map(|value| Learnt {
                value,
                from: LearntFrom::Flag,
            }));
        let mut config = match chosen {
            Some((parsed, from)) => Learnt {
                value: parsed.resolve(mode.as_ref().map(|m| m.value), own),
                from,
            },
            None => Learnt {
                value: ProxyConfig::default(),
                from: LearntFrom::Default,
            },
        };
        if let Some(scrape) = &self.scrape {
            config::apply_gates(&mut config.value, &scrape.gates);
        }
        // A kube-proxy that says it has no override calls the node by the host's name. With nothing
        // known of it, the Node's own name is the better assumption.
        config.value.node_name = match (
            &config.value.hostname_override,
            config.from,
            &self.host_name,
        ) {
            (Some(name), _, _) => Some(name.clone()),
            (None, LearntFrom::Proxy, Some(host)) => Some(host.trim().to_lowercase().into()),
            _ => Some(node.0.clone()),
        };
        ProxyProfile {
            mode,
            version,
            config,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxys_own_word_beats_the_file_and_the_file_beats_the_config_map() {
        let file = config::parse("mode: iptables\nclusterCIDR: 10.1.0.0/16\n").unwrap();
        let map = config::parse("mode: ipvs\n").unwrap();
        let mut sources = Sources {
            config_map: Some(map),
            file: Some(file),
            version: Some("1.34".parse().unwrap()),
            host_name: Some("Host".into()),
            ..Sources::default()
        };
        let profile = sources.profile(&"n1".into(), None);
        assert_eq!(
            profile.mode,
            Some(Learnt {
                value: ProxyMode::Iptables,
                from: LearntFrom::Flag
            })
        );
        assert_eq!(profile.config.from, LearntFrom::Flag);
        assert_eq!(profile.config.value.node_name.as_deref(), Some("n1"));
        assert_eq!(
            profile.version.as_ref().map(|v| v.from),
            Some(LearntFrom::Flag)
        );
        sources.scrape = Some(Scrape {
            mode: Some(ProxyMode::Nftables),
            version: Some("v1.36.3".parse().unwrap()),
            gates: BTreeMap::from([("AllowServiceExternalIPs".into(), false)]),
            config: Some(
                config::parse(r#"{"kubeproxy.config.k8s.io": {"mode": "nftables"}}"#).unwrap(),
            ),
            ..Scrape::default()
        });
        let profile = sources.profile(&"n1".into(), None);
        assert_eq!(
            profile.mode,
            Some(Learnt {
                value: ProxyMode::Nftables,
                from: LearntFrom::Proxy
            })
        );
        assert_eq!(profile.config.value.node_name.as_deref(), Some("host"));
        assert!(!profile.config.value.allow_external_ips);
        assert_eq!(profile.version.unwrap().value.to_string(), "v1.36.3");
    }

    #[tokio::test]
    async fn a_kube_proxy_that_is_not_there_is_said_to_be_unreachable() {
        // A port that was just free; nothing listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let found = scrape(Listeners {
            metrics: free,
            healthz: free,
        })
        .await;
        assert!(!found.runs && found.mode.is_none());
        assert!(found.health.unreachable.unwrap().contains("/healthz"));
    }
}

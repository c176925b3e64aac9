//! Flags and wiring of the aggregator.

use aggregator::{
    SharedFleet, auth::Tokens, fleet::Fleet, http, ingest::Ingest, inspect::Inspector,
    objects::SharedObjects, tls,
};
use anyhow::{Context, bail};
use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// Remembers what each node's agent said, and shows it.
#[derive(Debug, Parser)]
#[command(name = "vipwitness-aggregator", version)]
struct Flags {
    /// Where readers are answered. Loopback (which `kubectl port-forward` reaches) needs nothing more;
    /// another address needs --insecure-readers.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where only /metrics, /healthz and /readyz are answered, to everybody; for Prometheus and the
    /// kubelet.
    #[arg(long, value_name = "ADDR:PORT")]
    scrape: Option<SocketAddr>,
    /// Where agents report.
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDR:PORT")]
    grpc: SocketAddr,
    /// Certificate that agents are shown (PEM); read again when it changes. Without one agents are
    /// listened to in plain text.
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Answer every reader who reaches --listen, though it is not loopback.
    #[arg(long)]
    insecure_readers: bool,
    /// Believe every agent about its node, without a token.
    #[arg(long)]
    insecure_agents: bool,
    /// Follow Services, EndpointSlices, Pods and Nodes in the API, for the debugging flow of
    /// `/svc/{namespace}/{name}`. Needs the right to list and watch them; without it those steps are
    /// unknown.
    #[arg(long)]
    watch_objects: bool,
    /// How to reach the API server that verifies tokens and is followed; else KUBECONFIG, else this Pod's.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Audience that agents' tokens must have.
    #[arg(long, default_value = "vipwitness", value_name = "NAME")]
    audience: String,
    /// User that agents' tokens must be of: any Pod can have a token with our audience.
    #[arg(
        long,
        default_value = "system:serviceaccount:vipwitness:vipwitness-agent",
        value_name = "USER"
    )]
    agent_account: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if !flags.listen.ip().is_loopback() && !flags.insecure_readers {
        bail!(
            "--listen {} is not loopback, and readers are not authenticated yet: listen on loopback \
             and use kubectl port-forward, or add --insecure-readers to answer everybody",
            flags.listen
        );
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let tokens = if flags.insecure_agents {
        tracing::warn!("agents are believed without a token");
        None
    } else {
        Some(
            Tokens::new(
                flags.kubeconfig.as_deref(),
                flags.audience,
                flags.agent_account,
            )
            .await
            .context(
                "finding the API server that verifies agents' tokens (or --insecure-agents)",
            )?,
        )
    };
    let objects = if flags.watch_objects {
        SharedObjects::follow(flags.kubeconfig)
            .await
            .context("--watch-objects")?
    } else {
        SharedObjects::default()
    };
    let fleet: SharedFleet = Arc::new(RwLock::new(Fleet::default()));
    let inspector = Inspector::default();
    let bind = async |what: &str, at: SocketAddr| {
        TcpListener::bind(at)
            .await
            .with_context(|| format!("{what} {at}"))
    };
    let readers = bind("--listen", flags.listen).await?;
    let agents = bind("--grpc", flags.grpc).await?;
    let scrape = match flags.scrape {
        Some(at) => Some(bind("--scrape", at).await?),
        None => None,
    };
    tracing::info!(readers = %readers.local_addr()?, agents = %agents.local_addr()?, "listening");

    let grpc = tonic::transport::Server::builder()
        .add_service(Ingest::new(fleet.clone(), inspector.clone(), tokens).server());
    let grpc = async {
        match flags.tls_cert.zip(flags.tls_key) {
            Some((certificate, key)) => {
                let files = tls::Files { certificate, key };
                let incoming = tls::accept(agents, files).context("--tls-cert, --tls-key")?;
                grpc.serve_with_incoming(incoming).await?;
            }
            None => {
                if !flags.grpc.ip().is_loopback() {
                    tracing::warn!("agents are listened to in plain text, no --tls-cert");
                }
                let incoming = TcpListenerStream::new(agents);
                grpc.serve_with_incoming(incoming).await?;
            }
        }
        anyhow::Ok(())
    };
    let scraped = async {
        match scrape {
            Some(listener) => {
                let router = http::scrape_router(fleet.clone(), objects.clone());
                axum::serve(listener, router).await
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        end = grpc => end.context("serving agents"),
        end = axum::serve(readers, http::router(fleet.clone(), inspector, objects.clone())) => end.context("serving readers"),
        end = scraped => end.context("serving metrics"),
        end = stopped() => end,
    }
}

/// Ends on SIGTERM and Ctrl-C. Agents reconnect, and nothing is kept on disk: there is nothing to save.
async fn stopped() -> anyhow::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        end = tokio::signal::ctrl_c() => end?,
        _ = term.recv() => {}
    }
    Ok(())
}

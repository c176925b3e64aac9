//! TLS for agents: the certificate comes from files, which are read again when they change.
//!
//! Agents are known by their tokens, so no certificate is asked of them; they must know the
//! aggregator before they show the token.

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// Between looks at the files. A certificate is renewed days before it ends.
const LOOK: Duration = Duration::from_secs(10);
/// For a client to finish its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once: a fleet that reconnects, and no more memory than that for strangers.
const HANDSHAKES: usize = 1_024;
/// After an accept that failed (no more file descriptors), for something to be closed.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Where the certificate is.
#[derive(Clone, Debug)]
pub struct Files {
    /// Certificate, then those that lead to its authority (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// What both files hold.
type Content = (Vec<u8>, Vec<u8>);

impl Files {
    fn read(&self) -> anyhow::Result<Content> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        Ok((read(&self.certificate)?, read(&self.key)?))
    }

    fn parse(&self, content: &Content) -> anyhow::Result<Arc<ServerConfig>> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&content.0)
            .collect::<Result<_, _>>()
            .with_context(|| self.certificate.display().to_string())?;
        let key = PrivateKeyDer::from_pem_slice(&content.1)
            .with_context(|| self.key.display().to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            // Refuses a key that does not belong to the certificate.
            .with_single_cert(chain, key)
            .with_context(|| self.certificate.display().to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Streams of clients that have finished their handshake.
///
/// # Errors
/// The files cannot be read or used at the start. Later the last good ones stay in use.
pub fn accept(
    listener: TcpListener,
    files: Files,
) -> anyhow::Result<ReceiverStream<std::io::Result<TlsStream<TcpStream>>>> {
    let content = files.read()?;
    let current = Arc::new(RwLock::new(files.parse(&content)?));
    tokio::spawn(follow(files, content, current.clone()));
    let (give, taken) = mpsc::channel(16);
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        while let Ok(turn) = turns.clone().acquire_owned().await {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an agent's connection");
                    sleep(EXHAUSTED).await;
                    continue;
                }
            };
            if give.is_closed() {
                return;
            }
            let config = current.read().unwrap_or_else(|e| e.into_inner()).clone();
            let give = give.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
                    Ok(Ok(stream)) => {
                        drop(turn);
                        let _ = give.send(Ok(stream)).await;
                    }
                    Ok(Err(error)) => tracing::info!(%peer, %error, "no TLS handshake"),
                    Err(_) => tracing::info!(%peer, "no TLS handshake in time"),
                }
            });
        }
    });
    Ok(ReceiverStream::new(taken))
}

async fn follow(files: Files, mut seen: Content, current: Arc<RwLock<Arc<ServerConfig>>>) {
    let mut unreadable = false;
    loop {
        sleep(LOOK).await;
        let content = match files.read() {
            Ok(content) => content,
            Err(why) => {
                if !unreadable {
                    tracing::warn!("the certificate in use stays: {why:#}");
                }
                unreadable = true;
                continue;
            }
        };
        unreadable = false;
        if content == seen {
            continue;
        }
        match files.parse(&content) {
            Ok(config) => {
                *current.write().unwrap_or_else(|e| e.into_inner()) = config;
                tracing::info!(file = %files.certificate.display(), "a new certificate is in use");
            }
            // Perhaps one of the two files is not written yet.
            Err(why) => tracing::warn!("the certificate in use stays: {why:#}"),
        }
        seen = content;
    }
}

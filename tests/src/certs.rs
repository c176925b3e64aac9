//! The laboratory's certificate authority and keys, made with openssl for one run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command;

/// A certificate authority with its folder.
#[derive(Debug, Clone)]
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes `ca.crt` and `ca.key` in `folder`, valid for two days.
    pub fn create(folder: &Path) -> Result<Authority> {
        let authority = Authority {
            folder: folder.to_owned(),
        };
        let mut arguments = words(
            "req -x509 -days 2 -subj /CN=vipwitness-laboratory -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes",
        );
        arguments.extend([
            "-keyout".into(),
            text(&folder.join("ca.key")),
            "-out".into(),
            text(&authority.certificate()),
        ]);
        command::run("openssl", arguments)?;
        Ok(authority)
    }

    /// The authority's own certificate (PEM).
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The authority's own certificate (PEM), as text.
    pub fn certificate_pem(&self) -> Result<String> {
        std::fs::read_to_string(self.certificate()).context("reading ca.crt")
    }

    /// Makes a certificate `NAME.crt` with its key `NAME.key` for a server. `names` as openssl writes them:
    /// `DNS:kubernetes.default.svc`, `IP:10.77.0.1`.
    pub fn issue(&self, name: &str, names: &[&str]) -> Result<Pair> {
        let path = |end: &str| self.folder.join(format!("{name}.{end}"));
        let pair = Pair {
            certificate: path("crt"),
            key: path("key"),
        };
        let mut request = words("req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes");
        request.extend([
            "-subj".into(),
            format!("/CN={name}"),
            "-addext".into(),
            format!("subjectAltName={}", names.join(",")),
            "-keyout".into(),
            text(&pair.key),
            "-out".into(),
            text(&path("csr")),
        ]);
        command::run("openssl", request)?;
        let mut sign = words("x509 -req -days 2 -copy_extensions copy -CAcreateserial");
        sign.extend([
            "-in".into(),
            text(&path("csr")),
            "-CA".into(),
            text(&self.certificate()),
            "-CAkey".into(),
            text(&self.folder.join("ca.key")),
            "-out".into(),
            text(&pair.certificate),
        ]);
        command::run("openssl", sign)?;
        Ok(pair)
    }
}

/// A certificate and its key, both PEM files.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Makes `sa.key` and `sa.pub` in `folder`: what ServiceAccount tokens are signed and checked with.
pub fn token_keys(folder: &Path) -> Result<()> {
    let key = text(&folder.join("sa.key"));
    command::run(
        "openssl",
        [
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
            &key,
        ],
    )?;
    command::run(
        "openssl",
        [
            "pkey",
            "-in",
            &key,
            "-pubout",
            "-out",
            &text(&folder.join("sa.pub")),
        ],
    )?;
    Ok(())
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

//! Kubernetes' own programs and Helm, built from their Go modules into a cache outside the checkout.
//!
//! `tests/kubernetes/<minor>/` pins one version each, `tests/helm/` that of Helm, with checksums of every
//! module. What was
//! built stays in the user's cache folder under a name that holds the version and a hash of
//! `go.mod` and `go.sum`, so a fresh clone builds nothing that an earlier one has built.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::packages;

/// A Kubernetes version that the laboratory can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.34.4
    V1_34,
    /// 1.36.3
    V1_36,
    /// 1.37.2
    V1_37,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 3] = [Version::V1_34, Version::V1_36, Version::V1_37];

    /// `1.34.4`.
    pub fn full(self) -> &'static str {
        match self {
            Version::V1_34 => "1.34.4",
            Version::V1_36 => "1.36.3",
            Version::V1_37 => "1.37.2",
        }
    }

    /// `1.34`, as `--proxy-version` takes it and as the folder in `tests/kubernetes` is called.
    pub fn minor(self) -> &'static str {
        match self {
            Version::V1_34 => "1.34",
            Version::V1_36 => "1.36",
            Version::V1_37 => "1.37",
        }
    }
}

/// The path of a Kubernetes command such as `kube-proxy`, which is built first if the cache does
/// not have it. Only 1.34 has kube-apiserver and kube-controller-manager.
pub fn kubernetes(program: &str, version: Version) -> Result<PathBuf> {
    let module = workspace().join("tests/kubernetes").join(version.minor());
    let path = folder()?.join(format!(
        "{program}-{}-{}",
        version.full(),
        module_hash(&module)?
    ));
    if !path.exists() {
        let minor = version.minor().trim_start_matches("1.");
        let full = version.full();
        let set = "k8s.io/component-base/version.git";
        Program {
            name: format!("{program} {full}"),
            module: &module,
            package: &format!("k8s.io/kubernetes/cmd/{program}"),
            variables: &format!("-X {set}Version=v{full} -X {set}Major=1 -X {set}Minor={minor}"),
        }
        .build(&path)?;
    }
    Ok(path)
}

/// The version of Helm that `tests/helm/` pins.
const HELM: &str = "3.19.5";

/// The path of `helm`, which is built first if the cache does not have it.
pub fn helm() -> Result<PathBuf> {
    let module = workspace().join("tests/helm");
    let path = folder()?.join(format!("helm-{HELM}-{}", module_hash(&module)?));
    if !path.exists() {
        Program {
            name: format!("helm {HELM}"),
            module: &module,
            package: "helm.sh/helm/v3/cmd/helm",
            variables: "",
        }
        .build(&path)?;
    }
    Ok(path)
}

/// Builds what the cache lacks of all programs, which takes as long as it takes: no limit of a check
/// counts it.
pub fn all() -> Result<()> {
    for version in Version::ALL {
        for program in programs(version) {
            kubernetes(program, version)?;
        }
    }
    Ok(())
}

/// Why [`kubernetes`] could not build what is missing, or `None` when it can or nothing is.
pub fn obstacle() -> Option<String> {
    let missing = Version::ALL
        .iter()
        .flat_map(|&version| {
            programs(version)
                .iter()
                .map(move |program| (version, *program))
        })
        .any(|(version, program)| {
            let module = workspace().join("tests/kubernetes").join(version.minor());
            let path = || {
                Ok::<_, anyhow::Error>(folder()?.join(format!(
                    "{program}-{}-{}",
                    version.full(),
                    module_hash(&module)?
                )))
            };
            !path().is_ok_and(|path| path.exists())
        });
    (missing && packages::find("go").is_none())
        .then(|| "Go is not installed, and the Kubernetes programs are not built yet".to_owned())
}

/// What `tests/kubernetes/<minor>/tools.go` names.
pub fn programs(version: Version) -> &'static [&'static str] {
    match version {
        Version::V1_34 => &["kube-proxy", "kube-apiserver", "kube-controller-manager"],
        Version::V1_36 | Version::V1_37 => &["kube-proxy"],
    }
}

/// The root of the checkout that this program was built from.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// `$XDG_CACHE_HOME/vipwitness/bin`, by default under `~/.cache`.
pub fn folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(
            std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?,
        )
        .join(".cache"),
    };
    Ok(base.join("vipwitness/bin"))
}

fn module_hash(module: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = module.join(file);
        hash.update(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    Ok(HEXLOWER.encode(&hash.finalize()[..6]))
}

/// A command of a Go module.
struct Program<'a> {
    /// Name and version, for people.
    name: String,
    /// The folder with `go.mod`.
    module: &'a Path,
    /// Its import path.
    package: &'a str,
    /// Further words for `-ldflags`.
    variables: &'a str,
}

impl Program<'_> {
    /// Builds with low priority: something else may be being measured.
    fn build(&self, path: &Path) -> Result<()> {
        let name = &self.name;
        self.try_build(path)
            .with_context(|| format!("building {name}"))
    }

    fn try_build(&self, path: &Path) -> Result<()> {
        let go = packages::find("go").context(
            "Go is not installed (1.26 or later is needed to build Kubernetes' programs)",
        )?;
        let parent = path.parent().context("the cache has a folder")?;
        std::fs::create_dir_all(parent)?;
        let name = &self.name;
        println!("building {name} from its Go module (minutes, once)");
        let start = Instant::now();
        // To another name first: an interrupted build must not look like a finished one.
        let unfinished = path.with_extension(format!("unfinished-{}", std::process::id()));
        let status = Command::new("nice")
            .arg(go)
            .args(["build", "-trimpath", "-ldflags"])
            .arg(format!("-s -w {}", self.variables))
            .arg("-o")
            .arg(&unfinished)
            .arg(self.package)
            .env("CGO_ENABLED", "0")
            .current_dir(self.module)
            .status()
            .context("starting go")?;
        if !status.success() {
            bail!("go build: {status}");
        }
        std::fs::rename(&unfinished, path)?;
        println!(
            "built {name} in {} s: {}",
            start.elapsed().as_secs(),
            path.display()
        );
        Ok(())
    }
}

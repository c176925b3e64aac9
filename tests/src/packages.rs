//! What the laboratory needs of Debian.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// A Debian package, known by one program of it.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Name for apt-get.
    pub name: &'static str,
    /// A program that it brings.
    pub program: &'static str,
}

/// For namespaces and rules: the demonstration needs no more.
pub const KERNEL: &[Package] = &[
    Package {
        name: "iproute2",
        program: "ip",
    },
    Package {
        name: "nftables",
        program: "nft",
    },
    Package {
        name: "iptables",
        program: "iptables-nft",
    },
    // kube-proxy's rules count with objects of nfnetlink_acct, which must be there before them.
    Package {
        name: "nfacct",
        program: "nfacct",
    },
    Package {
        name: "util-linux",
        program: "setpriv",
    },
    // Second witness of what the agent reads of connection tracking.
    Package {
        name: "conntrack",
        program: "conntrack",
    },
];

/// For a cluster of its own, besides those of [`KERNEL`].
pub const CLUSTER: &[Package] = &[
    Package {
        name: "etcd-server",
        program: "etcd",
    },
    Package {
        name: "openssl",
        program: "openssl",
    },
    Package {
        name: "kmod",
        program: "modprobe",
    },
    // kube-proxy looks for both at start-up in every mode.
    Package {
        name: "ipset",
        program: "ipset",
    },
    Package {
        name: "ipvsadm",
        program: "ipvsadm",
    },
];

/// For rules and dashboards.
pub const MONITORING: &[Package] = &[Package {
    name: "prometheus",
    program: "promtool",
}];

/// Sees to it that `packages` are installed: installs the missing ones when this is root and
/// apt-get exists, and otherwise gives an error that names them.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| find(package.program).is_none())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() || find("apt-get").is_none() {
        bail!(
            "missing Debian packages: {} (as root: apt-get install {})",
            missing.join(", "),
            missing.join(" ")
        );
    }
    println!("installing Debian packages: {}", missing.join(" "));
    install(&missing).with_context(|| format!("installing {}", missing.join(" ")))?;
    let still: Vec<&str> = packages
        .iter()
        .filter(|package| find(package.program).is_none())
        .map(|package| package.program)
        .collect();
    if !still.is_empty() {
        bail!("still not there after installing: {}", still.join(", "));
    }
    Ok(())
}

/// Whether this process is root, as namespaces need.
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes nothing, cannot fail and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// Where a program is: PATH, and the folders of administrators that a user's PATH may lack.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/sbin", "/sbin", "/usr/local/go/bin"]
                .iter()
                .map(|folder| Path::new(folder).to_owned()),
        )
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn install(names: &[&str]) -> Result<()> {
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        command::output(&mut apt)
    };
    // The services that these packages would start listen outside namespaces: policy-rc.d forbids
    // that on a machine that has none yet, and is taken away again.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        command::run("chmod", ["755", "/usr/sbin/policy-rc.d"])?;
    }
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(names);
    let result = apt(&install).or_else(|_| {
        apt(&["update"])?;
        apt(&install)
    });
    if ours {
        std::fs::remove_file(policy)?;
    }
    result.map(|_| ())
}

//! A kernel of its own: Debian's user-mode-linux, an ordinary program, for what the machine's kernel may
//! lack. The laboratory needs it for IPVS.
//!
//! The guest's root is the host's file system (hostfs), so it runs the host's programs, the agent under
//! test too. It is driven by its console: a line names a script, and the guest answers with what the
//! script wrote and its exit status.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cleanup::Folder;
use crate::command;
use crate::packages::{self, Package};
use crate::process::Process;
use crate::topology::{HUB_V4, HUB_V6, Hub, Node};

/// What it needs of Debian, besides the packages of a cluster.
pub const PACKAGES: &[Package] = &[
    Package {
        name: "user-mode-linux",
        program: "linux.uml",
    },
    Package {
        name: "kmod",
        program: "depmod",
    },
];

/// Where the package has the kernel's modules.
const MODULES: &str = "/usr/lib/uml/modules";
/// The kernel boots in seconds; a busy machine gets more.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// What kube-proxy in IPVS mode needs.
const LOADED: &str = "ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_sh nf_conntrack nf_nat ip_set \
    ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportip ip_set_hash_ipportnet ip_set_hash_net \
    ip_set_bitmap_port xt_set xt_comment xt_mark xt_conntrack xt_addrtype xt_MASQUERADE xt_nat \
    xt_tcpudp xt_ipvs xt_statistic xt_recent xt_physdev xt_multiport ip_tables iptable_nat \
    iptable_filter iptable_mangle ip6table_nat ip6table_filter ip6table_mangle ipt_REJECT ip6t_REJECT \
    nf_tables dummy veth nf_conntrack_netlink";

/// A running guest. Its kernel is killed when dropped.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    console: ChildStdin,
    folder: Folder,
    scripts: u32,
}

/// What a script in the guest gave.
#[derive(Debug, Clone)]
pub struct Done {
    /// Exit status.
    pub code: i32,
    /// stdout.
    pub stdout: String,
    /// stderr.
    pub stderr: String,
}

impl Guest {
    /// Boots a guest in the place of `node`: with its addresses, on the hub's bridge. The node's own
    /// namespace loses its link.
    pub fn boot(hub: &Hub, node: &Node) -> Result<Guest> {
        packages::ensure(PACKAGES)?;
        let folder = Folder::create("uml")?;
        let version = modules(&folder)?;
        let ip = |words: &str| hub.netns().run("ip", words.split_whitespace());
        ip(&format!("link delete n{}", node.index()))?;
        let tap = format!("uml{}", node.index());
        ip(&format!("tuntap add {tap} mode tap"))?;
        ip(&format!("link set {tap} master br0 up"))?;
        let init = folder.join("init");
        std::fs::write(&init, init_script(&folder, node, &version))?;
        command::run("chmod", ["755", &init.to_string_lossy()])?;
        let kernel = packages::find("linux.uml").context("linux.uml is not installed")?;
        let arguments = [
            "mem=1500M".to_owned(),
            "root=/dev/root".into(),
            "rootfstype=hostfs".into(),
            "rootflags=/".into(),
            "rw".into(),
            "quiet".into(),
            format!("init={}", init.display()),
            "con=null".into(),
            "con0=fd:0,fd:1".into(),
            format!("vec0:transport=tap,ifname={tap},depth=128,gro=1"),
        ];
        let command = hub.netns().command(&kernel.to_string_lossy(), arguments);
        let (process, console) =
            Process::start_with_input("linux.uml", command, &folder.join("console.log"))?;
        let mut guest = Guest {
            process,
            console,
            folder,
            scripts: 0,
        };
        guest.said("GUEST READY", BOOT_LIMIT)?;
        Ok(guest)
    }

    /// The folder that guest and host share like all others; for files of a test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a shell script in the guest.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Done> {
        self.scripts += 1;
        // A name that the guest has not looked for yet: hostfs remembers what was not there.
        let at = |end: &str| self.folder.join(format!("{}.{end}", self.scripts));
        let (path, out, err) = (at("sh"), at("out"), at("err"));
        std::fs::write(&path, script)?;
        let number = self.scripts;
        writeln!(self.console, "{number}").context("writing to the guest's console")?;
        self.console.flush()?;
        let line = self.said(&format!("GUEST DID {number} "), limit)?;
        let code = line
            .trim()
            .parse()
            .with_context(|| format!("a status: {line}"))?;
        let read = |path: PathBuf| -> Result<String> {
            Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
        };
        Ok(Done {
            code,
            stdout: read(out)?,
            stderr: read(err)?,
        })
    }

    /// The same, where anything but status 0 is an error; gives stdout.
    pub fn must(&mut self, script: &str, limit: Duration) -> Result<String> {
        let done = self.run(script, limit)?;
        if done.code != 0 {
            bail!(
                "in the guest, status {}:\n{script}\n{}{}",
                done.code,
                done.stdout,
                done.stderr
            );
        }
        Ok(done.stdout)
    }

    /// Waits until the console shows a line that starts so; gives the rest of it.
    fn said(&mut self, start: &str, limit: Duration) -> Result<String> {
        let log = self.process.log().to_owned();
        self.process.until(start, limit, || {
            let text = std::fs::read(&log)?;
            let text = String::from_utf8_lossy(&text);
            let mut lines = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            Ok(lines.find_map(|line| line.trim_end().strip_prefix(start).map(str::to_owned)))
        })
    }
}

/// Copies the modules and says which belongs to which; gives the kernel's version.
fn modules(folder: &Folder) -> Result<String> {
    let versions: Vec<String> = std::fs::read_dir(MODULES)
        .with_context(|| format!("listing {MODULES}"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let [version] = &versions[..] else {
        bail!("{MODULES} has modules of {} kernels", versions.len());
    };
    let lib = folder.join("lib/modules");
    std::fs::create_dir_all(&lib)?;
    let from = format!("{MODULES}/{version}");
    command::run("cp", ["-r", &from, &lib.to_string_lossy()])?;
    let depmod = packages::find("depmod").context("depmod is not installed")?;
    let root = folder.path().to_string_lossy();
    command::run(&depmod.to_string_lossy(), ["-b", &root, version])?;
    Ok(version.clone())
}

fn init_script(folder: &Folder, node: &Node, version: &str) -> String {
    let root = folder.path().display();
    let mut script = String::from(
        "#!/bin/bash\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         stty -echo 2>/dev/null\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t tmpfs tmp /run\n",
    );
    // Writing to a String cannot fail.
    let _ = writeln!(script, "hostname {}", node.name());
    let _ = writeln!(script, "modprobe -d {root} -S {version} -a {LOADED}");
    for line in [
        "ip link set lo up".to_owned(),
        "ip link set vec0 up".into(),
        format!("ip addr add {}/24 dev vec0", node.v4()),
        format!("ip addr add {}/64 dev vec0 nodad", node.v6()),
        format!("ip route add default via {HUB_V4}"),
        format!("ip -6 route add default via {HUB_V6}"),
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1".into(),
        format!("cd {root}"),
        "echo GUEST READY".into(),
        "while read -r number; do".into(),
        "  bash ./$number.sh >$number.out 2>$number.err </dev/null".into(),
        "  echo GUEST DID $number $?".into(),
        "done".into(),
        "sync; halt -f".into(),
    ] {
        script.push_str(&line);
        script.push('\n');
    }
    script
}

//! Network namespaces, made with `ip netns`, gone when dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cleanup, command};

/// A named network namespace. Deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with loopback up. Its full name holds this process' id, so it collides
    /// with nobody's.
    pub fn create(label: &str) -> Result<Netns> {
        let name = cleanup::namespace_name(label);
        command::run("ip", ["netns", "add", &name])?;
        cleanup::add_namespace(&name);
        let netns = Netns { name };
        netns.run("ip", ["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn xtables_lock(&self) -> String {
        format!("/run/xtables-{}.lock", self.name)
    }

    /// A command that will run inside. The process id of what is spawned is the program's own.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, program])
            .args(arguments)
            // A node has a lock of its own: with one for all, kube-proxies of other nodes give up
            // after 5 s ("Can't lock /run/xtables.lock") and try again half a minute later.
            .env("XTABLES_LOCKFILE", self.xtables_lock());
        command
    }

    /// Runs a program inside and gives what it wrote to stdout.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        command::output(&mut self.command(program, arguments))
    }

    /// The same with `input` on stdin, for `nft -f -` and `iptables-restore`.
    pub fn run_with_input<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        command::output_with_input(&mut self.command(program, arguments), input.as_bytes())
    }

    /// Sets sysctls of the namespace, given as `net/ipv4/ip_forward=1`.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        let owned: Vec<(String, String)> = settings
            .iter()
            .filter_map(|setting| setting.split_once('='))
            .map(|(path, value)| (format!("/proc/sys/{path}"), value.to_owned()))
            .collect();
        self.enter(move || {
            for (path, value) in &owned {
                std::fs::write(path, value)
                    .with_context(|| format!("writing {value} to {path}"))?;
            }
            Ok(())
        })?
    }

    /// Runs `work` on a thread of its own that stands inside: sockets it opens belong to the
    /// namespace for as long as they live, wherever they are used later.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let name = &self.name;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_this_thread(name)?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = command::run("ip", ["netns", "delete", &self.name]);
        let _ = std::fs::remove_file(self.xtables_lock());
        cleanup::forget_namespace(&self.name);
    }
}

/// Moves the calling thread into the namespace called `name`, for good.
pub(crate) fn move_this_thread(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| format!("opening {path}"))?;
    // SAFETY: setns(2) takes an open descriptor and a flag; it changes this thread only and touches no memory.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("entering {path}"));
    }
    Ok(())
}

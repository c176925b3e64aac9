//! A program that runs beside the test, with its log, and that ends with it.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::{cleanup, command, wait};

/// How long a program gets between SIGTERM and SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both outputs go to the file `log`. The program is killed by the kernel
    /// when this process dies, however it dies.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        command.stdin(Stdio::null());
        Process::launch(name, command, log)
    }

    /// The same with a pipe to its standard input.
    pub fn start_with_input(
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<(Process, ChildStdin)> {
        command.stdin(Stdio::piped());
        let mut process = Process::launch(name, command, log)?;
        let input = process.child.stdin.take().context("it has no input")?;
        Ok((process, input))
    }

    fn launch(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let words = command::words(&command);
        command.stdout(file.try_clone()?).stderr(file);
        let child = spawn_for_life(command).with_context(|| format!("starting {words}"))?;
        cleanup::add_process(child.id());
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id. `ip netns exec`, `nice` and `setpriv` replace themselves by what they
    /// start, so the id is that of the program itself.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with both of its outputs.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Its exit status when it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Polls `look` until it gives something; an error with the log's tail after `limit`, and at
    /// once when the program ends meanwhile.
    pub fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut end = None;
        let child = &mut self.child;
        let found = wait::until(what, limit, || {
            if let Some(found) = look()? {
                return Ok(Some(Some(found)));
            }
            end = child.try_wait()?;
            Ok(end.map(|_| None))
        });
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(anyhow!(
                "{} ended ({}) before {what}:\n{}",
                self.name,
                end.map(|status| status.to_string()).unwrap_or_default(),
                self.log_tail()
            )),
            Err(error) => Err(error.context(format!("{}:\n{}", self.name, self.log_tail()))),
        }
    }

    /// Sends a signal (`libc::SIGSTOP` and the like).
    pub fn signal(&self, signal: i32) -> Result<()> {
        send(self.id(), signal).with_context(|| format!("sending signal {signal} to {}", self.name))
    }

    /// SIGTERM, then SIGKILL after ten seconds; gone when this returns.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            self.signal(libc::SIGTERM)?;
            let child = &mut self.child;
            if wait::until("its end", STOP_LIMIT, || Ok(child.try_wait()?)).is_err() {
                self.child.kill()?;
                self.child.wait()?;
            }
        }
        cleanup::forget_process(self.child.id());
        Ok(())
    }

    /// SIGKILL; gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        // Once it is gone its number may be another's.
        if self.child.try_wait()?.is_none() {
            kill_now(self.id());
        }
        self.child.kill()?;
        self.child.wait()?;
        cleanup::forget_process(self.child.id());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Kills a process that may be gone already, with those of its group: each program is started as the
/// leader of one, and user-mode-linux has helpers that do not end with it.
pub(crate) fn kill_now(id: u32) {
    if let Ok(group) = libc::pid_t::try_from(id) {
        // SAFETY: kill(2) takes two integers and touches no memory of ours; a negative number names the
        // group of a program that this process started.
        let _ = unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    let _ = send(id, libc::SIGKILL);
}

fn send(id: u32, signal: i32) -> std::io::Result<()> {
    let id = libc::pid_t::try_from(id).map_err(std::io::Error::other)?;
    // SAFETY: kill(2) takes two integers and touches no memory of ours; id is a positive process id.
    if unsafe { libc::kill(id, signal) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// The thread that starts every program. PR_SET_PDEATHSIG fires when the *thread* that forked
/// ends, so it has to be one that lives as long as the process.
static STARTER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, answer) in receiver {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(sender)
});

fn spawn_for_life(mut command: Command) -> std::io::Result<Child> {
    // A group of its own: Ctrl-C in the terminal reaches the laboratory, which stops its programs in order.
    command.process_group(0);
    // SAFETY: prctl(PR_SET_PDEATHSIG) is async-signal-safe and touches no memory; nothing else runs in the hook.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let (sender, receiver) = mpsc::channel();
    STARTER
        .lock()
        .map_err(|_| std::io::Error::other("the starting thread's lock is poisoned"))?
        .send((command, sender))
        .map_err(std::io::Error::other)?;
    receiver.recv().map_err(std::io::Error::other)?
}

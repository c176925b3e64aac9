//! Nothing outlives the laboratory: not when it ends, not when it panics, not on a signal, and
//! not when it was killed, because the next one looks for what the dead left behind.
//!
//! Processes, namespaces and folders register here while they exist. Each is removed by the
//! `Drop` of its owner; [`everything`] removes the rest, on a signal. Names of namespaces and
//! folders hold the process id of their owner, so that [`of_the_dead`] can tell whose they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::command;

/// How names of the laboratory's namespaces begin; the owner's process id follows.
const NAMESPACE_PREFIX: &str = "vw-";
/// How names of its folders begin, in the folders of [`folder_bases`].
const FOLDER_PREFIX: &str = "vipwitness-lab-";

struct Registered {
    processes: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
    folders: BTreeSet<PathBuf>,
}

static REGISTERED: Mutex<Registered> = Mutex::new(Registered {
    processes: BTreeSet::new(),
    namespaces: BTreeSet::new(),
    folders: BTreeSet::new(),
});

/// Counts what this process named, so that several laboratories fit into one process.
static NAMED: AtomicU32 = AtomicU32::new(0);

fn registered<T>(change: impl FnOnce(&mut Registered) -> T) -> T {
    let mut guard = match REGISTERED.lock() {
        Ok(guard) => guard,
        // Plain sets stay valid whatever panicked while it held them.
        Err(poisoned) => poisoned.into_inner(),
    };
    change(&mut guard)
}

/// A number that this process has not given out yet, for names.
pub fn number() -> u32 {
    NAMED.fetch_add(1, Ordering::Relaxed)
}

/// A name for a network namespace that says who owns it.
pub fn namespace_name(label: &str) -> String {
    format!("{NAMESPACE_PREFIX}{}-{label}", std::process::id())
}

pub(crate) fn add_process(id: u32) {
    registered(|all| all.processes.insert(id));
}

pub(crate) fn forget_process(id: u32) {
    registered(|all| all.processes.remove(&id));
}

pub(crate) fn add_namespace(name: &str) {
    registered(|all| all.namespaces.insert(name.to_owned()));
}

pub(crate) fn forget_namespace(name: &str) {
    registered(|all| all.namespaces.remove(name));
}

/// A folder that goes away with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes a folder for `label` under the system's folder for temporary files.
    pub fn create(label: &str) -> Result<Folder> {
        Folder::create_in(&std::env::temp_dir(), label)
    }

    /// Makes a folder for `label` in memory where the system has such a place: for etcd, whose
    /// data need not survive anything.
    pub fn create_in_memory(label: &str) -> Result<Folder> {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            Folder::create_in(memory, label)
        } else {
            Folder::create(label)
        }
    }

    fn create_in(base: &Path, label: &str) -> Result<Folder> {
        let path = base.join(format!(
            "{FOLDER_PREFIX}{}-{}-{label}",
            std::process::id(),
            number()
        ));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        registered(|all| all.folders.insert(path.clone()));
        Ok(Folder(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // LAB_KEEP leaves logs for somebody who looks for the reason of a failure.
        if std::env::var_os("LAB_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
        registered(|all| all.folders.remove(&self.0));
    }
}

/// Removes whatever this process still owns: kills its processes, deletes its namespaces and
/// folders. For the way out; nothing works afterwards.
pub fn everything() {
    let (processes, namespaces, folders) = registered(|all| {
        (
            std::mem::take(&mut all.processes),
            std::mem::take(&mut all.namespaces),
            std::mem::take(&mut all.folders),
        )
    });
    for id in processes {
        crate::process::kill_now(id);
    }
    for name in namespaces {
        let _ = command::run("ip", ["netns", "delete", &name]);
    }
    for folder in folders {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Set once a signal has begun to remove everything.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// For the way out of `main`: when a signal is removing everything, whatever failed meanwhile
/// failed because of that; waits for the end instead of talking about it.
pub fn wait_if_stopping() {
    while STOPPING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// From now on, SIGINT and SIGTERM remove [`everything`] and end this process with status 130.
pub fn on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => (),
                    _ = terminate.recv() => (),
                }
            });
            eprintln!("\nstopping: removing namespaces and processes");
            everything();
            std::process::exit(130);
        })?;
    Ok(())
}

/// Removes namespaces and folders of laboratories whose process is gone, with the processes that
/// still run in those namespaces. Never touches what a living process owns.
pub fn of_the_dead() -> Result<()> {
    for name in command::run("ip", ["netns", "list"])?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        if owner(name, NAMESPACE_PREFIX).is_some_and(dead) {
            for id in command::run("ip", ["netns", "pids", name])?
                .lines()
                .filter_map(|line| line.trim().parse().ok())
            {
                crate::process::kill_now(id);
            }
            command::run("ip", ["netns", "delete", name])?;
        }
    }
    for base in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let Ok(entries) = std::fs::read_dir(&base) else {
            continue;
        };
        for entry in entries.flatten() {
            if owner(&entry.file_name().to_string_lossy(), FOLDER_PREFIX).is_some_and(dead) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
    Ok(())
}

/// The process id in a name of the form prefix, id, dash, label.
fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split_once('-')?.0.parse().ok()
}

fn dead(id: u32) -> bool {
    !Path::new("/proc").join(id.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner("vw-4711-hub0", NAMESPACE_PREFIX), Some(4711));
        assert_eq!(owner("vw-hub0", NAMESPACE_PREFIX), None);
        assert_eq!(owner("production", NAMESPACE_PREFIX), None);
        assert_eq!(
            owner(&namespace_name("node"), NAMESPACE_PREFIX),
            Some(std::process::id())
        );
        assert!(!dead(std::process::id()));
    }
}

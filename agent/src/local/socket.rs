//! The socket's file: who may open it, and whose it is.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that wait to be accepted.
const WAITING: u32 = 16;

/// A listening socket. Its path is this agent's for as long as the lock beside it is held, and the
/// kernel lets go of that when the agent dies, however it dies.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Somebody listens there.
    #[error(
        "another agent{} answers on {}: stop it, or give this one a --socket of its own",
        .process.as_ref().map(|p| format!(" (process {p})")).unwrap_or_default(),
        .path.display()
    )]
    Living {
        /// Where.
        path: PathBuf,
        /// Its process, as it said itself.
        process: Option<u32>,
    },
    /// Something is in the way that no agent made.
    #[error("{0} is not a socket: it is left as it is")]
    NotASocket(PathBuf),
    /// Others could put a socket of their own there.
    #[error("others than its owner may write to {0}: no socket there")]
    Open(PathBuf),
    /// The path names no file in a folder.
    #[error("{0} is not the path of a file")]
    NoFile(PathBuf),
    /// The file system says no.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

impl Socket {
    /// Listens at `path` with mode 0600. The folder is made where it is missing, with mode 0700. A
    /// socket that a dead agent left is replaced.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn open(path: &Path) -> Result<Socket, Refused> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Refused::NoFile(path.into()));
        };
        prepare(folder)?;
        let mut lock_name = name.to_os_string();
        lock_name.push(".lock");
        let lock_path = folder.join(lock_name);
        let io = |at: &Path| {
            let at = at.to_path_buf();
            move |error| Refused::Io(at, error)
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        let living = |process| Refused::Living {
            path: path.into(),
            process,
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut says = String::new();
                let _ = (&lock).take(16).read_to_string(&mut says);
                return Err(living(says.trim().parse().ok()));
            }
            Err(TryLockError::Error(error)) => return Err(Refused::Io(lock_path, error)),
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Refused::Io(path.into(), error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Refused::NotASocket(path.into()));
            }
            // No agent holds the lock; another program may listen all the same.
            Ok(_) => match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(io(path))?;
                }
                _ => return Err(living(None)),
            },
        }
        let _ = lock.set_len(0);
        let _ = write!(lock, "{}", std::process::id());
        let socket = UnixSocket::new_stream().map_err(io(path))?;
        socket.bind(path).map_err(io(path))?;
        // Before `listen`, so that nobody can have connected while the file was open to more.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io(path))?;
        Ok(Socket {
            listener: socket.listen(WAITING).map_err(io(path))?,
            path: path.into(),
            _lock: lock,
        })
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Takes the file away, at the agent's end.
    pub fn remove(&self) {
        // One that is left is replaced by the next agent.
        let _ = fs::remove_file(&self.path);
    }
}

/// The folder: made for its owner only, and never one in which others may write.
fn prepare(folder: &Path) -> Result<(), Refused> {
    let wrong = |error| Refused::Io(folder.into(), error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(wrong)?;
    // Ours by its name; the kubelet makes it with mode 0755.
    if Some(folder) == Path::new(super::PATH).parent() {
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(wrong)?;
    }
    let mode = fs::metadata(folder).map_err(wrong)?.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(Refused::Open(folder.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn the_file_is_for_its_owner_and_a_dead_agents_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/agent.sock");
        let first = Socket::open(&path).await.unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let second = Socket::open(&path).await.err().unwrap();
        let own = std::process::id();
        assert!(
            matches!(second, Refused::Living { process: Some(p), .. } if p == own),
            "{second}"
        );
        assert!(second.to_string().contains("--socket"), "{second}");
        // As after kill -9: the file stays.
        drop(first);
        assert!(path.exists());
        let third = Socket::open(&path).await.unwrap();
        third.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_no_agent_made_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::open(&path).await,
            Err(Refused::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        // Another program's, which holds no lock.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(
            Socket::open(&path).await,
            Err(Refused::Living { process: None, .. })
        ));
        drop(other);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Socket::open(&path).await, Err(Refused::Open(_))));
    }
}

//! What the agent gives up at its start: capabilities it does not need, and system calls with which
//! it could change the node or run another program.
//!
//! The filter cannot look inside netlink messages. That nothing is written there is the promise of
//! `host`, which has no message that writes.

use anyhow::Context;
use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;

/// Denied whatever the arguments. `io_uring` goes around every filter.
const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
];

/// Options of `setsockopt` that write tables, by level: `IPT_SO_SET_*` and `IP6T_SO_SET_*` (64, 65),
/// `ARPT_SO_SET_*` (96, 97), `EBT_SO_SET_*` (128, 129), `IP_VS_SO_SET_*` (1152 to 1215).
const WRITES: &[(libc::c_int, u64, u64)] = &[
    (libc::SOL_IP, 64, 65),
    (libc::SOL_IP, 96, 97),
    (libc::SOL_IP, 128, 129),
    (libc::SOL_IP, 1152, 1215),
    (libc::SOL_IPV6, 64, 65),
];

/// Installs both. `reads_files` keeps the right to read files of other users: a person runs
/// `sudo vipwitness-agent check --kubeconfig` with a file that is their own.
pub fn install(reads_files: bool) -> anyhow::Result<()> {
    drop_capabilities(reads_files).context("giving up capabilities")?;
    let program = filter().context("building the seccomp filter")?;
    // Before any thread is started, so that all have it.
    seccompiler::apply_filter(&program).context("installing the seccomp filter")
}

fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let mut writes = Vec::new();
    for (level, first, last) in WRITES {
        use SeccompCmpArgLen::Dword;
        writes.push(SeccompRule::new(vec![
            SeccompCondition::new(1, Dword, SeccompCmpOp::Eq, *level as u64)?,
            SeccompCondition::new(2, Dword, SeccompCmpOp::Ge, *first)?,
            SeccompCondition::new(2, Dword, SeccompCmpOp::Le, *last)?,
        ])?);
    }
    rules.insert(libc::SYS_setsockopt, writes);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

fn drop_capabilities(reads_files: bool) -> anyhow::Result<()> {
    let mut kept = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
    if reads_files {
        kept.insert(Capability::CAP_DAC_READ_SEARCH);
    }
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)? {
            if !kept.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    // Kernels without ambient capabilities have nothing to give up.
    let _ = caps::clear(None, CapSet::Ambient);
    let permitted: CapsHashSet = caps::read(None, CapSet::Permitted)?
        .intersection(&kept)
        .copied()
        .collect();
    caps::set(None, CapSet::Effective, &permitted)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Permitted, &permitted)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Making the unix socket of `local`, and answering on it, needs no exception.
    #[test]
    fn the_filter_lets_a_unix_socket_through() {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::net::{UnixListener, UnixStream};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        std::thread::spawn(move || {
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            let lock = std::fs::File::create(path.with_extension("lock")).unwrap();
            lock.try_lock().unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let _client = UnixStream::connect(&path).unwrap();
            listener.accept().unwrap();
            std::fs::remove_file(&path).unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_filter_denies_programs_and_table_writes_and_lets_reads_through() {
        // In a thread of its own: a filter stays for the life of the thread, and is not inherited
        // by its siblings.
        std::thread::spawn(|| {
            let program = filter().unwrap();
            seccompiler::apply_filter(&program).unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
            let set = |level, option| {
                let value: libc::c_int = 1;
                // SAFETY: the descriptor is open, and the value is read for its own size only.
                let result = unsafe {
                    libc::setsockopt(
                        fd,
                        level,
                        option,
                        (&raw const value).cast(),
                        size_of_val(&value) as libc::socklen_t,
                    )
                };
                if result == 0 {
                    0
                } else {
                    std::io::Error::last_os_error().raw_os_error().unwrap()
                }
            };
            assert_eq!(set(libc::SOL_SOCKET, libc::SO_REUSEADDR), 0);
            assert_eq!(set(libc::SOL_IP, libc::IP_TTL), 0);
            assert_eq!(set(libc::SOL_IP, 64), libc::EPERM);
            assert_eq!(set(libc::SOL_IPV6, 65), libc::EPERM);
            // IPT_SO_GET_INFO and IP6T_SO_GET_ENTRIES have the same numbers and are let through: the
            // kernel itself says what is wrong.
            for (level, option) in [(libc::SOL_IP, 64), (libc::SOL_IPV6, 65)] {
                let nowhere: *mut libc::c_void = std::ptr::null_mut();
                // SAFETY: no memory is passed.
                let result =
                    unsafe { libc::getsockopt(fd, level, option, nowhere, nowhere.cast()) };
                let errno = std::io::Error::last_os_error().raw_os_error();
                assert_eq!(result, -1);
                assert_ne!(errno, Some(libc::EPERM));
            }
            // SAFETY: no pointer is passed; the filter answers before the kernel looks at them.
            let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, 0) };
            assert_eq!(result, -1);
            assert_eq!(
                std::io::Error::last_os_error().raw_os_error(),
                Some(libc::EPERM)
            );
            let path = c"/bin/true";
            let none: [*const libc::c_char; 1] = [std::ptr::null()];
            // SAFETY: a valid path and two empty, terminated lists.
            let result = unsafe { libc::execve(path.as_ptr(), none.as_ptr(), none.as_ptr()) };
            assert_eq!(result, -1);
            assert_eq!(
                std::io::Error::last_os_error().raw_os_error(),
                Some(libc::EPERM)
            );
        })
        .join()
        .unwrap();
    }
}

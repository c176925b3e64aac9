//! What the kernel tests share: a network namespace for a thread, and programs that run in it.

#![allow(
    dead_code,
    clippy::disallowed_types,
    reason = "each test target uses a part; tests may run programs, the agent may not"
)]

use std::io::Write;
use std::process::{Child, Command, Stdio};

/// Runs on a new thread in a new network namespace, which ends with it. `None` without root.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
    // SAFETY: plain system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: needs root for a network namespace");
        return None;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: gives this thread alone a new network namespace.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "unshare");
            test()
        });
        match thread.join() {
            Ok(done) => Some(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What a program says, with `input` on its stdin. A child of this thread is in this thread's
/// namespace. iptables-legacy has one lock for all.
pub fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    if program.contains("legacy") && !program.ends_with("save") {
        command.args(["-w", "60"]);
    }
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("write");
    let output = child.wait_with_output().expect("wait");
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A child that ends with the test, whether or not it passes: one that lives on keeps the
/// outputs of the test open, and whoever reads those waits for ever.
pub struct Ended(Child);

impl Ended {
    /// Starts a shell script that runs beside the test, in this thread's namespace.
    pub fn shell(script: &str, variables: &[(&str, &std::path::Path)]) -> Ended {
        let child = Command::new("sh")
            .args(["-c", script])
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        Ended(child)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! Small files of the node.

use std::io;

/// The node's own name, as the kernel has it.
pub fn hostname() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?
        .trim()
        .to_owned())
}

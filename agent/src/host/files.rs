//! Small files of the node.

use std::io;

/// The node's own name, as the kernel has it.
pub fn hostname() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?
        .trim()
        .to_owned())
}

/// Names of the iptables-legacy tables that exist in this thread's network namespace, with their
/// family's command (`ip nat`, `ip6 filter`). Only names: asking the kernel for a table's content
/// would create the table. No file means no legacy iptables.
pub fn legacy_tables() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (family, path) in [
        ("ip", "/proc/thread-self/net/ip_tables_names"),
        ("ip6", "/proc/thread-self/net/ip6_tables_names"),
    ] {
        match std::fs::read_to_string(path) {
            Ok(names) => found.extend(names.lines().map(|name| format!("{family} {name}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}

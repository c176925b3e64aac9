//! Small files that outlive a restart: addresses that a node with broken Service rules could not
//! learn again.

use std::io::{Read, Result};
use std::path::Path;

/// Bytes that are read: some addresses and names. What is longer was not written here.
const BYTES: u64 = 64 << 10;

/// What the file holds; empty where there is none, or none that can be read.
pub fn read(file: &Path) -> String {
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(BYTES).read_to_string(&mut text));
    if let Err(error) = read {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(file = %file.display(), %error, "cannot read what was kept");
        }
        return String::new();
    }
    text
}

/// Replaces the file, or leaves it whole.
///
/// # Errors
/// The folder cannot be made or written to.
pub fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_its_absence_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made/addresses");
        assert_eq!(read(&file), "");
        write(&file, "10.0.0.1:6443\n").unwrap();
        write(&file, "10.0.0.2:6443\n").unwrap();
        assert_eq!(read(&file), "10.0.0.2:6443\n");
        let names: Vec<_> = std::fs::read_dir(file.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["addresses"]);
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(read(&file), "");
    }
    /// What was kept is worth more than what could not be written.
    #[test]
    fn a_full_disk_and_a_kill_leave_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("addresses");
        write(&file, "10.0.0.1:6443\n").unwrap();
        // Killed in the middle of the next writing.
        let unfinished = dir.path().join("addresses.new");
        std::fs::write(&unfinished, "10.0.0.2:64").unwrap();
        assert_eq!(read(&file), "10.0.0.1:6443\n");
        write(&file, "10.0.0.3:6443\n").unwrap();
        assert_eq!(read(&file), "10.0.0.3:6443\n");
        // No room for anything.
        std::os::unix::fs::symlink("/dev/full", &unfinished).unwrap();
        let error = write(&file, "10.0.0.4:6443\n").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(read(&file), "10.0.0.3:6443\n");
        // A folder that cannot be made.
        assert!(write(&file.join("below"), "x").is_err());
        assert_eq!(read(&file.join("below")), "");
    }
}

//! How times, names and tables are written.

pub use model::report::words::{ago, clean, few, harmless, steers, thousands};
use model::time::Millis;

/// RFC 3339, UTC, with milliseconds; the bare number where no calendar holds it.
pub fn stamp(m: Millis) -> String {
    i64::try_from(m.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{} ms", m.0), |t| format!("{t:.3}"))
}

/// JSON, two-space indented, with a line feed, and without a character that steers a terminal: a
/// person reads it there.
pub fn json(value: &impl serde::Serialize) -> Result<String, serde_json::Error> {
    Ok(harmless(&serde_json::to_string_pretty(value)?) + "\n")
}

/// One segment of a path, percent-encoded (RFC 3986 unreserved characters stay).
pub fn path(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                (b as char).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// `1 node`, `2,997 nodes`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(n), if n == 1 { one } else { many })
}

/// Columns aligned with two spaces between; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line += &" ".repeat(width - cell.chars().count() + 2);
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_text_cannot_drive_a_terminal() {
        assert_eq!(clean("web"), "web");
        assert_eq!(
            clean("a\u{1b}[2Jb\n\u{9b}\u{202e}"),
            "a\\u{1b}[2Jb\\u{a}\\u{9b}\\u{202e}"
        );
        let written = json(&serde_json::json!({ "x": "\u{1b}[2J\u{9b}31m\u{202e}é" })).unwrap();
        assert!(
            !written.chars().any(|c| steers(c) && c != '\n'),
            "{written:?}"
        );
        let back: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(back["x"], "\u{1b}[2J\u{9b}31m\u{202e}é");
    }

    #[test]
    fn times_and_numbers_read_well() {
        assert_eq!(ago(0.42), "0.4 s");
        assert_eq!(ago(185.0), "3 min 5 s");
        assert_eq!(ago(7800.0), "2 h 10 min");
        assert_eq!(thousands(2997), "2,997");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(stamp(Millis(1_700_000_000_000)), "2023-11-14T22:13:20.000Z");
        assert_eq!(stamp(Millis(u64::MAX)), format!("{} ms", u64::MAX));
    }
}

//! How times, names and tables are written.

use model::time::Millis;

/// A duration in seconds for a person: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`.
pub fn ago(seconds: f64) -> String {
    let s = seconds.max(0.0);
    if s < 10.0 {
        return format!("{s:.1} s");
    }
    let s = s as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}

/// RFC 3339, UTC, with milliseconds; the bare number where no calendar holds it.
pub fn stamp(m: Millis) -> String {
    i64::try_from(m.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{} ms", m.0), |t| format!("{t:.3}"))
}

/// Is it a character that a terminal or an editor acts on rather than shows? Control characters, and
/// those that change the direction of text (Unicode TR 36).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{061c}')
}

/// A stranger's text on one line, with what a terminal would act on written as `\u{1b}`.
pub fn clean(s: &str) -> String {
    if !s.chars().any(acts) {
        return s.to_string();
    }
    s.chars()
        .flat_map(|c| {
            let shown: Box<dyn Iterator<Item = char>> = if acts(c) {
                Box::new(c.escape_unicode())
            } else {
                Box::new(std::iter::once(c))
            };
            shown
        })
        .collect()
}

/// JSON, two-space indented, with a line feed. The same characters as in [`clean`] are written as
/// `\u001b`: a person reads it on a terminal.
pub fn json(value: &impl serde::Serialize) -> Result<String, serde_json::Error> {
    let plain = serde_json::to_string_pretty(value)?;
    let mut out = String::with_capacity(plain.len() + 1);
    for c in plain.chars() {
        // Outside strings the only such character is the line feed; inside, serde_json has escaped it.
        if acts(c) && c != '\n' {
            out += &format!("\\u{:04x}", c as u32);
        } else {
            out.push(c);
        }
    }
    out.push('\n');
    Ok(out)
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

/// `2,997`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The first few of a list of names: `n17, n22 and 3 more`.
pub fn few(names: &[String], show: usize) -> String {
    let shown = names
        .iter()
        .take(show)
        .map(|n| clean(n))
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(show) {
        0 => shown,
        more => format!("{shown} and {} more", thousands(more as u64)),
    }
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
            !written.chars().any(|c| acts(c) && c != '\n'),
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

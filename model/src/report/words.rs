//! How durations, numbers and strangers' text are written for a person.

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

/// Is it a character that a terminal or an editor acts on rather than shows? Control characters, and
/// those that change the direction of text (Unicode TR 36).
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{061c}')
}

/// A stranger's text on one line, with what a terminal would act on written as `\u{1b}`.
pub fn clean(s: &str) -> String {
    if !s.chars().any(steers) {
        return s.to_string();
    }
    s.chars()
        .flat_map(|c| {
            let shown: Box<dyn Iterator<Item = char>> = if steers(c) {
                Box::new(c.escape_unicode())
            } else {
                Box::new(std::iter::once(c))
            };
            shown
        })
        .collect()
}

/// JSON in which no character steers a terminal. JSON itself escapes only those below U+0020; the
/// others stand inside strings, where `\u` may stand for any character (RFC 8259, 7).
pub fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside strings the only such character is the line feed; inside, JSON has escaped it.
        if steers(c) && c != '\n' {
            out += &format!("\\u{:04x}", c as u32);
        } else {
            out.push(c);
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\u{a}");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [thousands(7), thousands(1_204), thousands(1_000_000)],
            ["7", "1,204", "1,000,000"]
        );
    }
}

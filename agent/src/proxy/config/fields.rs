//! Fields of a configuration, read with an error that names the field; durations as Go writes them.

use serde_json::{Map, Value};

pub(super) fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => Err(format!("{key}: {other} is not text")),
    }
}

pub(super) fn words<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Vec<&'a str>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(all)) => all
            .iter()
            .map(|w| w.as_str().ok_or_else(|| format!("{key}: {w} is not text")))
            .collect(),
        Some(other) => Err(format!("{key}: {other} is not a list")),
    }
}

pub(super) fn boolean(map: &Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(format!("{key}: {other} is not true or false")),
    }
}

/// metav1.Duration: text as Go writes it (`1m30s`); a bare number of nanoseconds is read too.
pub(super) fn duration(map: &Map<String, Value>, key: &str) -> Result<Option<u64>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => go_duration(s)
            .map(Some)
            .ok_or_else(|| format!("{key}: {s:?} is no duration (30s)")),
        Some(Value::Number(n)) => Ok(n.as_u64().map(|ns| ns / 1_000_000)),
        Some(Value::Object(inner)) => duration(inner, "duration"),
        Some(other) => Err(format!("{key}: {other} is no duration (30s)")),
    }
}

/// Milliseconds of a duration as Go writes it (`time.Duration.String`): `1h2m3.5s`, `250ms`, `0s`.
pub fn go_duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut ms = 0.0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let length = unit
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(unit.len());
        ms += number
            * match &unit[..length] {
                "ns" => 1e-6,
                "us" | "µs" | "μs" => 1e-3,
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                "h" => 3_600e3,
                _ => return None,
            };
        rest = &unit[length..];
    }
    (!text.is_empty() && ms.is_finite() && ms < 1e15).then_some(ms as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, ms) in [
            ("30s", 30_000),
            ("1m0s", 60_000),
            ("1h2m3.5s", 3_723_500),
            ("250ms", 250),
            ("0s", 0),
            ("0", 0),
        ] {
            assert_eq!(go_duration(text), Some(ms), "{text}");
        }
        for text in ["", "30", "s", "1x", "-1s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}

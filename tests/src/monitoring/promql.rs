//! Which series and labels an expression of PromQL names. No grammar: words, and where they stand.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::CharIndices;

use anyhow::{Result, bail};

/// A series that an expression asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Its name.
    pub metric: String,
    /// Labels that its matchers name.
    pub labels: Vec<String>,
}

/// What an expression names.
#[derive(Debug, Clone, Default)]
pub struct Expression {
    /// The series, in order.
    pub selectors: Vec<Selector>,
    /// Labels of `by (…)`.
    pub by: BTreeSet<String>,
    /// Labels of `without (…)`.
    pub without: BTreeSet<String>,
    /// Labels of `on (…)`, `ignoring (…)`, `group_left (…)` and `group_right (…)`.
    pub joined: BTreeSet<String>,
}

/// Operators and modifiers that are words, and are followed by no labels.
const WORDS: [&str; 9] = [
    "and", "or", "unless", "bool", "offset", "inf", "nan", "atan2", "start",
];

const AGGREGATIONS: [&str; 12] = [
    "sum",
    "min",
    "max",
    "avg",
    "group",
    "stddev",
    "stdvar",
    "count",
    "count_values",
    "bottomk",
    "topk",
    "quantile",
];

impl Expression {
    /// Reads an expression. An error where it does not end, or a matcher stands without a name.
    pub fn parse(text: &str) -> Result<Expression> {
        let mut reader = Reader {
            text,
            chars: text.char_indices().peekable(),
        };
        let mut out = Expression::default();
        while let Some(&(at, c)) = reader.chars.peek() {
            match c {
                '"' | '\'' | '`' => reader.string()?,
                '[' => {
                    reader.until(']')?;
                }
                '{' => bail!("a matcher without a name at {:?}", &text[at..]),
                _ if c.is_ascii_digit() => {
                    reader.word();
                }
                _ if is_word(c) => {
                    let word = reader.word();
                    out.take(word, &mut reader)?;
                }
                _ => {
                    reader.chars.next();
                }
            }
        }
        Ok(out)
    }

    /// Labels that it groups or joins by.
    pub fn grouping(&self) -> impl Iterator<Item = &String> {
        self.by.iter().chain(&self.without).chain(&self.joined)
    }

    fn take(&mut self, word: &str, reader: &mut Reader<'_>) -> Result<()> {
        match word {
            "by" => self.by.extend(reader.labels()?),
            "without" => self.without.extend(reader.labels()?),
            "on" | "ignoring" | "group_left" | "group_right" => {
                self.joined.extend(reader.labels()?)
            }
            _ if is_keyword(word) => {}
            _ => match reader.next_visible() {
                // A function.
                Some('(') => {}
                Some('{') => {
                    let labels = reader.matchers()?;
                    let metric = word.to_owned();
                    self.selectors.push(Selector { metric, labels });
                }
                _ => self.selectors.push(Selector {
                    metric: word.to_owned(),
                    labels: Vec::new(),
                }),
            },
        }
        Ok(())
    }
}

fn is_keyword(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    WORDS.contains(&&*word) || AGGREGATIONS.contains(&&*word)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

struct Reader<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> &'a str {
        let from = self.chars.peek().map_or(self.text.len(), |&(at, _)| at);
        while self.chars.next_if(|&(_, c)| is_word(c)).is_some() {}
        let to = self.chars.peek().map_or(self.text.len(), |&(at, _)| at);
        &self.text[from..to]
    }

    fn next_visible(&mut self) -> Option<char> {
        while self.chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        self.chars.peek().map(|&(_, c)| c)
    }

    fn string(&mut self) -> Result<()> {
        let Some((at, quote)) = self.chars.next() else {
            return Ok(());
        };
        while let Some((_, c)) = self.chars.next() {
            match c {
                '\\' if quote != '`' => {
                    self.chars.next();
                }
                _ if c == quote => return Ok(()),
                _ => {}
            }
        }
        bail!("a string does not end: {:?}", &self.text[at..])
    }

    fn until(&mut self, end: char) -> Result<&'a str> {
        let from = self.chars.peek().map_or(self.text.len(), |&(at, _)| at);
        for (at, c) in self.chars.by_ref() {
            if c == end {
                return Ok(&self.text[from..at]);
            }
        }
        bail!("no {end:?} after {:?}", &self.text[from..])
    }

    fn labels(&mut self) -> Result<Vec<String>> {
        if self.next_visible() != Some('(') {
            bail!("labels in brackets are missing");
        }
        let inside = self.until(')')?;
        let names = inside.trim_start_matches('(').split(',').map(str::trim);
        Ok(names.filter(|n| !n.is_empty()).map(str::to_owned).collect())
    }

    fn matchers(&mut self) -> Result<Vec<String>> {
        self.chars.next();
        let mut names = Vec::new();
        loop {
            match self.next_visible() {
                Some('}') => {
                    self.chars.next();
                    return Ok(names);
                }
                Some('"' | '\'' | '`') => self.string()?,
                Some(c) if is_word(c) => names.push(self.word().to_owned()),
                Some(_) => {
                    self.chars.next();
                }
                None => bail!("a matcher does not end"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_and_labels_are_told_from_functions_strings_and_operators() {
        let text = r#"topk by (cluster) (10, max without (instance) (rate(a_total{x="by (y) }", z=~'q'}[5m])) > 1e3)
            and on (node) b:c:d == bool 0 or clamp_min(e, 1) offset 5m or vector(NaN)"#;
        let e = Expression::parse(text).unwrap();
        let selector = |metric: &str, labels: &[&str]| Selector {
            metric: metric.into(),
            labels: labels.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(
            e.selectors,
            [
                selector("a_total", &["x", "z"]),
                selector("b:c:d", &[]),
                selector("e", &[])
            ]
        );
        assert_eq!(
            e.grouping().collect::<Vec<_>>(),
            ["cluster", "instance", "node"]
        );
        assert!(Expression::parse("{x=\"y\"}").is_err());
        assert!(Expression::parse("a{x=\"y}").is_err());
    }
}

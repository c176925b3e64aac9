//! The eight answers for a person, at 80 columns.

use super::{Answer, ApiFinding, Evidence, Finding, Flow, Weight};
use crate::report::words::{clean, thousands};

/// Columns of a terminal.
const WIDTH: usize = 80;

/// A stranger's text in lines of at most [`WIDTH`] columns: the first after `first`, the others after
/// as many spaces as `rest` says. A word that is longer stands on a line of its own.
pub fn wrapped(first: &str, rest: usize, text: &str) -> String {
    let mut out = String::new();
    let mut line = first.to_string();
    let mut bare = true;
    for word in clean(text).split(' ').filter(|w| !w.is_empty()) {
        let width = line.chars().count() + usize::from(!bare) + word.chars().count();
        if !bare && width > WIDTH {
            out += line.trim_end();
            out.push('\n');
            line = " ".repeat(rest);
            bare = true;
        }
        if !bare {
            line.push(' ');
        }
        line += word;
        bare = false;
    }
    out += line.trim_end();
    out.push('\n');
    out
}

/// `- Pod shop/web-1: …`, indented.
fn evidence_text(indent: usize, e: &Evidence) -> String {
    let first = format!("{}- ", " ".repeat(indent));
    wrapped(&first, indent + 2, &format!("{}: {}", e.object, e.says))
}

/// Where the answers stand.
const INDENT: usize = 11;

impl Flow {
    /// The steps, without the verdict.
    pub fn steps_text(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            let mut answer = step.answer.word().to_string();
            if step.answer == Answer::Unknown
                && step.found.iter().any(|f| f.weight == Weight::Converging)
            {
                answer = "wait".into();
            }
            let head = format!("{}  {answer:<8}", step.number);
            out += &wrapped(&head, INDENT, step.asks);
            let pad = " ".repeat(INDENT);
            out += &wrapped(&pad, INDENT, &step.says);
            for f in &step.found {
                // The first fault is the step's own sentence.
                if f.says != step.says {
                    let first = format!("{pad}{}: ", weight(f));
                    out += &wrapped(&first, INDENT + 2, &f.says);
                }
                out += &objects(f, INDENT);
            }
            for e in &step.evidence {
                out += &evidence_text(INDENT, e);
            }
            for line in &step.run {
                // One line, to be copied.
                out += &format!("{pad}$ {}\n", clean(line));
            }
        }
        out
    }
}

/// Several lines: whose, which step, what, the objects.
pub fn finding_text(f: &ApiFinding) -> String {
    let head = format!("{}: step {}, {}: ", f.service, f.step, weight(&f.finding));
    wrapped("  ", 4, &format!("{head}{}", f.finding.says)) + &objects(&f.finding, 4)
}

/// The lines of what [`ApiFinding::finding`] rests on, indented by 4.
pub fn evidence_lines(f: &Finding) -> String {
    objects(f, 4)
}

fn weight(f: &Finding) -> &'static str {
    match f.weight {
        Weight::Fault => "fault",
        Weight::Converging => "converging",
        Weight::Hint => "hint",
    }
}

fn objects(f: &Finding, indent: usize) -> String {
    let all = f.evidence.iter();
    let mut out: String = all.map(|e| evidence_text(indent, e)).collect();
    let more = f.evidence_total - f.evidence.len();
    if more > 0 {
        let pad = " ".repeat(indent);
        out += &format!("{pad}- and {} more\n", thousands(more as u64));
    }
    out
}

//! The table that `cargo lab bench` prints, line by line.

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// Not more than this.
    AtMost(f64),
    /// Only told.
    None,
}

/// Prints lines as they come, and remembers what was missed.
#[derive(Debug, Default)]
pub(super) struct Report {
    lines: usize,
    missed: Vec<String>,
}

impl Report {
    pub fn line(&mut self, what: &str, figure: f64, unit: &str, target: Target, detail: &str) {
        let figure = number(figure);
        let (wanted, met) = match target {
            Target::AtMost(most) => {
                self.lines += 1;
                let met = figure.parse::<f64>().is_ok_and(|f| f <= most);
                if !met {
                    self.missed.push(what.to_owned());
                }
                (format!("<= {most}"), if met { "met" } else { "NOT MET" })
            }
            Target::None => (String::new(), "-"),
        };
        println!("{what:<52} {figure:>8} {unit:<14} {wanted:<8} {met:<8} {detail}");
    }

    pub fn note(&mut self, text: &str) {
        println!("  {text}");
    }

    pub fn close(&self) {
        println!(
            "\n{} of {} targets met",
            self.lines - self.missed.len(),
            self.lines
        );
        for missed in &self.missed {
            println!("  not met: {missed}");
        }
    }
}

/// Three digits are enough.
fn number(figure: f64) -> String {
    match figure {
        f if f >= 100.0 => format!("{f:.0}"),
        f if f >= 10.0 => format!("{f:.1}"),
        f => format!("{f:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_decides_whether_a_target_is_met() {
        let mut report = Report::default();
        report.line("as shown", 1.304, "x", Target::AtMost(1.3), "");
        report.line("more", 1.31, "x", Target::AtMost(1.3), "");
        report.line("told", 9.0, "x", Target::None, "");
        assert_eq!((report.lines, report.missed), (2, vec!["more".to_owned()]));
    }
}

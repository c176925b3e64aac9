//! The text, at 80 columns.

use super::super::store::Change;
use super::super::wrapped;
use super::*;

#[test]
fn lines_are_broken_between_words_and_a_long_word_stands_alone() {
    let text = wrapped(
        "x  ",
        3,
        &format!("{} {} end", "word ".repeat(20), "y".repeat(90)),
    );
    for line in text.lines() {
        let long = line.contains('y');
        assert!(line.chars().count() <= 80 || long, "{line}");
    }
    assert!(
        text.lines()
            .skip(1)
            .all(|l| l.starts_with("   ") && !l.starts_with("    "))
    );
}

#[test]
fn what_a_stranger_wrote_cannot_steer_the_terminal() {
    let evil = "x\u{1b}[2J\nFAKE\u{202e}";
    let mut service = web();
    service.selector = [(Arc::from(evil), Arc::from(evil))].into();
    service.target_ports = vec![TargetPort::Name(evil.into())];
    let mut stray = pod(1);
    (stray.labels, stray.name) = ([(Arc::from(evil), Arc::from("y"))].into(), evil.into());
    let world = World::of(vec![Change::Service(service), Change::Pod(stray)]);
    let text = world.flow().steps_text();
    let bad = text
        .chars()
        .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
    assert_eq!(bad, None, "{text}");
    assert!(
        !text.lines().any(|l| l.trim_start().starts_with("FAKE")),
        "{text}"
    );
    let commands: Vec<&str> = text.lines().filter(|l| l.contains("$ ")).collect();
    assert!(!commands.iter().any(|l| l.contains("FAKE")), "{text}");
}

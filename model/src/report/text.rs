//! The text of `check` and `table`: aligned columns for a person.

use super::json::{AnswerJson, RowJson, Side, rfc3339, table_json};
use super::words::{clean, thousands};
use super::{Report, Row};
use crate::finding::Finding;
use std::fmt::Write;
use std::sync::Arc;

fn aligned(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &[&str]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let pad = width - cell.chars().count() + 2;
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', pad));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(header);
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out
}

/// Several lines: what, since when, the proof, why it counts.
pub fn finding_text(f: &Finding) -> String {
    let mut out = String::new();
    let recurring = if f.recurring { ", recurring" } else { "" };
    let _ = writeln!(
        out,
        "  {} ({}, since {}{recurring}): {}",
        f.kind,
        match f.severity {
            crate::finding::Severity::Info => "info",
            crate::finding::Severity::Warning => "warning",
            crate::finding::Severity::Critical => "critical",
        },
        rfc3339(f.since),
        clean(&f.says)
    );
    for e in &f.evidence {
        let _ = writeln!(out, "    {}", clean(&e.to_string()));
    }
    if f.absorbs > 0 {
        let _ = writeln!(
            out,
            "    {} differences of Services follow from it",
            thousands(f.absorbs)
        );
    }
    let _ = writeln!(out, "    {}", clean(&f.because));
    out
}

/// What `check --output text` prints.
pub fn check_text(report: &Report) -> String {
    let mut out = String::new();
    let j = &report.judged;
    let _ = writeln!(out, "{}", clean(&report.verdict));
    let _ = writeln!(
        out,
        "node {}, read at {}",
        clean(&report.node.0),
        rfc3339(report.at)
    );
    for d in &report.datapaths {
        let version = d
            .version
            .as_deref()
            .map(|v| format!(" {v}"))
            .unwrap_or_default();
        let state = match d.state {
            crate::capture::DatapathState::InCharge => "in charge",
            crate::capture::DatapathState::Residue => "residue",
        };
        let _ = writeln!(
            out,
            "datapath {}{version} ({state}): {}",
            d.name,
            clean(&d.why)
        );
    }
    let _ = writeln!(
        out,
        "pairs of frontend and source: {} judged ({} with several answers, {} converging), {} unknown, {} not comparable",
        thousands(j.pairs),
        thousands(j.multi_answer),
        thousands(j.converging),
        thousands(j.unknown),
        thousands(j.not_comparable)
    );
    for (why, n) in j.unknown_reasons.iter().chain(&j.not_comparable_reasons) {
        let _ = writeln!(out, "  {}: {}", why.word(), thousands(*n));
    }
    for gap in &report.gaps {
        let _ = writeln!(out, "gap: {}: {}", clean(&gap.what), clean(&gap.why));
    }
    for (title, list) in [
        ("findings", &report.findings),
        ("converging", &report.converging),
    ] {
        if !list.is_empty() {
            let _ = writeln!(out, "{title}:");
            for f in list {
                out.push_str(&finding_text(f));
            }
        }
    }
    out
}

fn answer_cells(a: &AnswerJson) -> [String; 5] {
    let action = match a.why {
        Some(why) => format!("{} ({})", a.action, clean(why)),
        None => a.action.to_string(),
    };
    let backends: Vec<String> = a
        .backends
        .iter()
        .map(|b| format!("{} {:.1}%", b.address, b.share * 100.0))
        .collect();
    let dash = || "-".to_string();
    [
        action,
        if backends.is_empty() {
            dash()
        } else {
            backends.join(", ")
        },
        match a.masquerade {
            crate::table::Masquerade::Never => "never",
            crate::table::Masquerade::Always => "always",
            crate::table::Masquerade::Hairpin => "hairpin",
            crate::table::Masquerade::Unknown => "unknown",
        }
        .to_string(),
        match (a.affinity_seconds, a.affinity_broken) {
            (Some(s), _) => format!("{s}s"),
            (None, Some(why)) => format!("broken ({})", clean(why)),
            (None, None) => dash(),
        },
        match (a.source_ranges, a.otherwise) {
            (Some(ranges), Some(otherwise)) => {
                let all: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                format!("{} else {otherwise}", all.join(","))
            }
            _ => dash(),
        },
    ]
}

/// What `table --output text` prints.
pub fn table_text(rows: &[Arc<Row>], side: Side) -> String {
    let table = table_json(rows, side);
    let header = [
        "FRONTEND",
        "SOURCE",
        "SERVICE",
        "ACTION",
        "BACKENDS",
        "MASQUERADE",
        "AFFINITY",
        "SOURCES",
    ];
    let mut cells = Vec::new();
    for RowJson {
        frontend,
        source,
        service,
        answer,
        any_of,
        ..
    } in &table.rows
    {
        let answers = any_of.as_deref().unwrap_or(std::slice::from_ref(answer));
        for (i, a) in answers.iter().enumerate() {
            let head = if i == 0 {
                [
                    frontend.to_string(),
                    source.to_string(),
                    service
                        .map(|s| clean(&s.to_string()))
                        .unwrap_or_else(|| "-".into()),
                ]
            } else {
                [String::new(), "or".into(), String::new()]
            };
            cells.push(head.into_iter().chain(answer_cells(a)).collect());
        }
    }
    aligned(&header, &cells)
}

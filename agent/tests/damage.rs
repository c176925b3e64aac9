//! Seeded damage of everything that is decoded: no panic, and no finding that was not there.
//!
//! What is damaged how decides what may be expected.
//! - Any bytes: no decoder panics or hangs. A flipped bit in a port is another port, and a rule message
//!   that is gone whole is a rule that is gone: those would be findings by right, so nothing more can
//!   be asked.
//! - What a reading can suffer and a decoder can see (a message that was cut, a list that lacks an
//!   object that another list names, a table or chain twice; a text cut anywhere): nothing of it may
//!   become a finding.
//!
//! The seed is printed where one fails. `SEEDS=100000` tries more.

#[path = "../../fuzz/entries.rs"]
mod entries;
mod seeded;

use agent::bundle::Recorded;
use agent::netfilter::nftables::capture::{Capture, Messages};
use agent::netfilter::ruleset::Ruleset;
use agent::netfilter::xtables::legacy::capture::TableCapture;
use agent::replay::collected::Collected;
use agent::replay::{Judge, Seen};
use model::capture::Reading;
use model::finding::FindingKind;
use model::view::ClusterView;
use seeded::{Random, bundle, corpus, seeds, with_seeds};
use std::io::Read as _;

impl Random {
    /// Up to four times: a bit, a byte, a cut, a piece gone, twice or elsewhere, a number.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + self.below(64)).min(bytes.len());
            let piece = bytes.get(at..end).unwrap_or_default().to_vec();
            match self.below(8) {
                0 | 1 => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|b| *b ^= 1 << self.below(8)),
                2 => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|b| *b = self.next() as u8),
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..end)),
                5 => drop(bytes.splice(at..at, piece)),
                6 => {
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => {
                    let number = [0, 1, 0xff, 0x7f, 0x80][self.below(5)];
                    let four = bytes.iter_mut().skip(at & !3).take(4);
                    four.for_each(|b| *b = number);
                }
            }
        }
        bytes
    }
}

/// What a pass over these rules finds, converging or not, besides what could not be read.
fn findings(reading: &Reading<Ruleset>, pass: &Recorded, partial: bool) -> Vec<String> {
    let mut view = ClusterView::default();
    pass.view.clone().apply(&mut view);
    let node = view.nodes.keys().find(|name| {
        let own = &view.nodes[*name].internal_ips;
        let here = pass.addresses.as_ref().unwrap();
        own.iter().all(|ip| here.iter().any(|a| a.address == *ip))
    });
    let mut judge = Judge::new(node.unwrap().clone());
    let report = judge
        .pass(Seen {
            at: pass.at,
            reading,
            addresses: &pass.addresses,
            view: &view,
            profile: &pass.profile,
            proxy: None,
            gaps: &[],
            refreshed: &[],
            partial,
        })
        .report;
    let all = report.findings.into_iter().chain(report.converging);
    all.filter(|f| f.kind != FindingKind::Unreadable)
        .map(|f| f.says)
        .collect()
}

#[test]
fn no_decoder_panics_whatever_the_bytes() {
    type Try = (fn(&[u8]), Vec<u8>);
    let mut all: Vec<Try> = Vec::new();
    for name in ["iptables-nft", "iptables-legacy", "nftables", "others"] {
        let file = format!("{name}.bundle");
        let (captures, _) = bundle(&file);
        all.extend(captures.nf_tables.iter().map(|c| {
            let entry: fn(&[u8]) = entries::nf_tables;
            (entry, c.save())
        }));
        for table in &captures.legacy {
            all.push((entries::legacy_table, table.save()));
        }
        // The archive within: damage to what is around it fails its checksum.
        let mut tar = Vec::new();
        let mut decoder = zstd::Decoder::new(std::io::Cursor::new(corpus(&file))).unwrap();
        decoder.read_to_end(&mut tar).unwrap();
        all.push((packed, tar));
    }
    all.push((entries::ipvs, corpus("linux-6.1.ipvs")));
    for name in ["iptables.save", "ip6tables.save"] {
        all.push((entries::iptables_save, corpus(name)));
    }
    for name in ["nft.json", "others.json"] {
        all.push((entries::nft_json, corpus(name)));
    }
    all.push((entries::addresses, corpus("addresses.json")));
    for (entry, bytes) in &all {
        entry(bytes);
    }
    with_seeds(10_000, |random, seed| {
        let (entry, bytes) = &all[seed as usize % all.len()];
        entry(&random.damage(bytes));
    });
}

fn packed(tar: &[u8]) {
    entries::bundle(&zstd::encode_all(tar, 1).unwrap());
}

/// The lists of a capture.
fn lists(capture: &mut Capture) -> [&mut Messages; 5] {
    [
        &mut capture.tables,
        &mut capture.chains,
        &mut capture.sets,
        &mut capture.rules,
        &mut capture.elements,
    ]
}

/// A list with one of its messages replaced by what `change` makes of it.
fn change(list: &mut Messages, at: usize, change: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let mut new = Messages::default();
    for (i, message) in list.iter().enumerate() {
        if i == at {
            change(message).iter().for_each(|m| new.push(m));
        } else {
            new.push(message);
        }
    }
    *list = new;
}

/// Where a message's outermost attributes begin and end.
fn borders(message: &[u8]) -> Vec<usize> {
    let mut all = vec![4];
    let mut at = 4;
    while let Some(head) = message.get(at..).and_then(|m| m.first_chunk::<2>()) {
        at += usize::from(u16::from_ne_bytes(*head))
            .max(4)
            .next_multiple_of(4);
        all.push(at);
    }
    all
}

#[test]
fn what_a_reading_of_nf_tables_can_suffer_is_no_finding() {
    let all = ["iptables-nft.bundle", "nftables.bundle"].map(bundle);
    for (captures, pass) in &all {
        assert_eq!(findings(&captures.decode(), pass, false), [] as [&str; 0]);
    }
    let mut unread = 0;
    with_seeds(1_000, |random, seed| {
        let (captures, pass) = &all[seed as usize % all.len()];
        let mut captures = captures.clone();
        let capture = captures.nf_tables.as_mut().unwrap();
        let kind = random.below(3);
        // A rule that is gone is gone; an object that other lists name is missed.
        let list = random.below(if kind == 0 { 5 } else { 3 });
        let list = &mut *lists(capture)[list];
        let count = list.iter().count();
        if count == 0 {
            return;
        }
        let at = random.below(count);
        let what = match kind {
            0 => {
                let cut = random.next() as usize;
                change(list, at, |m| {
                    let mut end = 4 + cut % (m.len() - 4);
                    while borders(m).contains(&end) {
                        end += 1;
                    }
                    vec![m[..end.min(m.len() - 1)].to_vec()]
                });
                "cut"
            }
            1 => {
                change(list, at, |_| Vec::new());
                "gone"
            }
            _ => {
                change(list, at, |m| vec![m.to_vec(), m.to_vec()]);
                "twice"
            }
        };
        let reading = captures.decode();
        unread += u64::from(matches!(reading, Reading::Failed(_)));
        assert_eq!(findings(&reading, pass, false), [] as [&str; 0], "{what}");
    });
    println!("{unread} of {} not read at all", seeds(1_000));
}

#[test]
fn a_table_of_iptables_legacy_that_was_cut_is_no_finding() {
    let (captures, pass) = bundle("iptables-legacy.bundle");
    assert_eq!(findings(&captures.decode(), &pass, false), [] as [&str; 0]);
    with_seeds(500, |random, _| {
        let mut captures = captures.clone();
        let at = random.below(captures.legacy.len());
        let table = &mut captures.legacy[at];
        let entries = table.entries();
        let end = random.below(entries.len());
        *table = TableCapture::new(
            table.family,
            table.name.clone(),
            table.info.clone(),
            entries[..end].to_vec(),
            0,
        );
        assert_eq!(findings(&captures.decode(), &pass, false), [] as [&str; 0]);
    });
}

#[test]
fn a_text_that_was_cut_is_refused_or_no_finding() {
    let (_, iptables) = bundle("iptables-nft.bundle");
    let (_, nftables) = bundle("nftables.bundle");
    let text = |name: &str| String::from_utf8(corpus(name)).unwrap();
    let (v4, v6, json) = (
        text("iptables.save"),
        text("ip6tables.save"),
        text("nft.json"),
    );
    let judged = |v4: &str, v6: &str| {
        let mut all = Collected::default();
        all.iptables_save(v4).ok()?;
        all.iptables_save(v6).ok()?;
        let (ruleset, _) = all.finish(false);
        Some(findings(&Reading::Read(ruleset), &iptables, true))
    };
    assert_eq!(judged(&v4, &v6), Some(Vec::new()));
    let mut listed = Collected::default();
    listed.nft_json(&json).unwrap();
    let (ruleset, _) = listed.finish(false);
    assert_eq!(
        findings(&Reading::Read(ruleset), &nftables, true),
        [] as [&str; 0]
    );
    let mut refused = 0;
    with_seeds(500, |random, _| {
        let cut = |text: &str, end: usize| text[..end].to_owned();
        let short = match random.below(3) {
            0 => judged(&cut(&v4, random.below(v4.len())), &v6),
            1 => judged(&v4, &cut(&v6, random.below(v6.len()))),
            _ => {
                let end = random.below(json.trim_end().len());
                assert!(Collected::default().nft_json(&json[..end]).is_err());
                None
            }
        };
        refused += u64::from(short.is_none());
        assert_eq!(short.unwrap_or_default(), [] as [&str; 0]);
    });
    assert!(refused > seeds(500) / 2, "{refused} refused");
}

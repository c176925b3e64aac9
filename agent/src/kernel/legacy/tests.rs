//! A kernel that has recorded tables, changes them between two questions, and fails: what is read was
//! there, and a table that does not fit together is refused.

use super::*;
use crate::netfilter::ruleset::TableFamily;
use std::collections::BTreeMap;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn recorded() -> Vec<TableCapture> {
    let files: [&[u8]; 4] = [
        include_bytes!("../../../tests/captures/kube-proxy-1.37-ip-nat.xtcapture"),
        include_bytes!("../../../tests/captures/kube-proxy-1.37-ip6-nat.xtcapture"),
        include_bytes!("../../../tests/captures/others-ip-filter.xtcapture"),
        include_bytes!("../../../tests/captures/others-ip6-filter.xtcapture"),
    ];
    files
        .map(|f| TableCapture::load(f).expect("a capture"))
        .into()
}

fn name_of(capture: &TableCapture) -> TableName {
    TableName {
        family: capture.family,
        name: capture.name.clone(),
    }
}

fn with_entries(capture: &TableCapture, entries: Vec<u8>) -> TableCapture {
    TableCapture::new(
        capture.family,
        capture.name.clone(),
        capture.info.clone(),
        entries,
        0,
    )
}

/// A table that fits together, with another number somewhere in its rules.
fn another(random: &mut Random, capture: &TableCapture) -> TableCapture {
    loop {
        let mut entries = capture.entries().to_vec();
        let at = random.below(entries.len());
        entries[at] = random.next() as u8;
        let other = with_entries(capture, entries);
        let decoded = legacy::decode(&other);
        if decoded.unknown.iter().all(|u| !u.name.is_empty()) {
            return other;
        }
    }
}

#[derive(Default)]
struct Fake {
    random: u64,
    tables: BTreeMap<TableName, TableCapture>,
    /// Every content that a table had, in order.
    truths: Vec<(TableName, Option<Table>)>,
    /// One in so many, 0 for never.
    changes: usize,
    errors: usize,
    /// Entries end early.
    cuts: usize,
    cut: usize,
}

impl Fake {
    fn draw<T>(&mut self, with: impl FnOnce(&mut Random, &mut Fake) -> T) -> T {
        let mut random = Random(self.random);
        let drawn = with(&mut random, self);
        self.random = random.0;
        drawn
    }

    fn set(&mut self, name: TableName, capture: Option<TableCapture>) {
        let truth = capture.as_ref().map(|c| legacy::decode(c).table);
        self.truths.push((name.clone(), truth));
        match capture {
            Some(capture) => self.tables.insert(name, capture),
            None => self.tables.remove(&name),
        };
    }

    fn moment(&mut self) {
        self.draw(|random, fake| {
            if fake.changes == 0 || !random.one_in(fake.changes) {
                return;
            }
            let all = recorded();
            let one = &all[random.below(all.len())];
            let other = match random.below(6) {
                0 => None,
                1 => Some(one.clone()),
                _ => Some(another(random, one)),
            };
            fake.set(name_of(one), other);
        });
    }

    fn error(&mut self, table: &str) -> Option<ReadError> {
        self.draw(|random, fake| {
            if fake.errors == 0 || !random.one_in(fake.errors) {
                return None;
            }
            Some(match random.below(4) {
                0 => ReadError::Permission { what: table.into() },
                1 => ReadError::Failed {
                    what: table.into(),
                    errno: libc::EINTR,
                },
                _ => ReadError::Torn {
                    table: table.into(),
                    tries: 5,
                },
            })
        })
    }
}

impl Tables for Fake {
    fn names(&mut self) -> Result<Vec<TableName>, ReadError> {
        self.moment();
        match self.error("names") {
            Some(error) => Err(error),
            None => Ok(self.tables.keys().cloned().collect()),
        }
    }

    fn read(
        &mut self,
        name: &TableName,
        each: &mut dyn FnMut(TableCapture),
    ) -> Result<(), ReadError> {
        self.moment();
        if let Some(error) = self.error(&name.name) {
            return Err(error);
        }
        let Some(capture) = self.tables.get(name).cloned() else {
            return Ok(());
        };
        let cut = self.cuts > 0 && self.draw(|random, fake| random.one_in(fake.cuts));
        if cut {
            self.cut += 1;
            let end = self.draw(|random, _| random.below(capture.entries().len()));
            let entries = capture.entries()[..end].to_vec();
            each(with_entries(&capture, entries));
        } else {
            each(capture);
        }
        self.moment();
        Ok(())
    }
}

fn seeds(usual: u64) -> u64 {
    let asked = std::env::var("SEEDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn fake(seed: u64) -> Fake {
    let mut fake = Fake {
        random: seed,
        ..Fake::default()
    };
    for capture in recorded() {
        fake.set(name_of(&capture), Some(capture));
    }
    fake
}

#[test]
fn what_is_read_is_what_was_there() {
    let (mut right, mut refused, mut moved, mut cut) = (0, 0, 0, 0);
    for seed in 0..seeds(1_000) {
        let mut fake = fake(seed);
        fake.changes = 6;
        fake.errors = [0, 12][seed as usize % 2];
        fake.cuts = [0, 0, 20][seed as usize % 3];
        let mut kept = Vec::new();
        for reading in 0..4 {
            // Of each table the content at the beginning, and each that it had from then on.
            let mut moments: BTreeMap<TableName, Vec<Option<Table>>> = BTreeMap::new();
            for (name, truth) in &fake.truths {
                moments.insert(name.clone(), vec![truth.clone()]);
            }
            let from = fake.truths.len();
            let before: Vec<(TableName, Table)> = kept
                .iter()
                .map(|k: &Kept| (k.name.clone(), k.table.clone()))
                .collect();
            let mut changed = false;
            let read = read(&mut fake, std::mem::take(&mut kept), &mut changed);
            for (name, truth) in &fake.truths[from..] {
                moments.entry(name.clone()).or_default().push(truth.clone());
            }
            match read {
                Ok(all) => {
                    right += 1;
                    kept = all;
                }
                Err(_) => {
                    refused += 1;
                    continue;
                }
            }
            for (name, possible) in &moments {
                let seen = kept.iter().find(|k| k.name == *name).map(|k| &k.table);
                assert!(
                    possible.iter().any(|p| p.as_ref() == seen),
                    "seed {seed}, reading {reading}: {name:?} is of no moment"
                );
            }
            let now = kept.iter().map(|k| (k.name.clone(), k.table.clone()));
            let same = now.eq(before);
            assert!(changed || same, "seed {seed}, reading {reading}: untold");
            moved += u64::from(!same && reading > 0);
        }
        cut += fake.cut;
    }
    assert!(right > seeds(1_000) && refused > seeds(1_000) / 4);
    assert!(
        moved > seeds(1_000) / 2 && cut > 0,
        "{moved} moved, {cut} cut"
    );
}

/// Cut anywhere, no table is read as one that has fewer rules; and what was refused once is not taken
/// for known the next time.
#[test]
fn a_table_that_is_cut_is_refused() {
    let nat = TableName {
        family: TableFamily::Ip,
        name: "nat".into(),
    };
    for seed in 0..seeds(300) {
        let mut fake = fake(seed);
        let mut changed = false;
        let kept = read(&mut fake, Vec::new(), &mut changed).expect("whole");
        assert!(changed && kept.len() == 4);
        let whole = fake.tables[&nat].clone();
        let end = fake.draw(|random, _| random.below(whole.entries().len()));
        let cut = with_entries(&whole, whole.entries()[..end].to_vec());
        fake.tables.insert(nat.clone(), cut);
        for _ in 0..2 {
            let Err(gap) = read(&mut fake, Vec::new(), &mut changed) else {
                panic!("seed {seed}: cut at {end}, and judged")
            };
            assert_eq!(&*gap.what, "iptables-legacy nat");
            assert_eq!(&*gap.why, "entries cut off or damaged");
        }
        assert!(read(&mut fake, kept, &mut changed).is_err(), "seed {seed}");
        fake.tables.insert(nat.clone(), whole);
        assert!(read(&mut fake, Vec::new(), &mut changed).is_ok());
    }
}

//! Rows that are walked again only where what they depend on changed, against all of them walked anew:
//! after each of many changes both must say the same.
//!
//! The seed is printed where one fails; `SEED=17` runs that one, `SEEDS=100000` tries more.

mod fake_kernel;
mod seeded;

use agent::datapath::{self, Kept};
use agent::kernel::steady::Steady;
use agent::netfilter::walk::Rewalked;
use fake_kernel::{Asked, Faults, Kernel};
use model::capture::{Reading, Snapshot};
use seeded::{seeds, with_seeds};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn by_parts_the_rows_are_those_of_the_whole() {
    let all = ["nftables.bundle", "iptables-nft.bundle"].map(Asked::of);
    let (mut parts, mut whole, mut walked, mut rows, mut moved) = (0, 0, 0, 0, 0);
    with_seeds(400, |random, seed| {
        let asked = &all[seed as usize % all.len()];
        let kernel = Kernel::new(seed, &asked.content, Faults::default());
        let mut steady = Steady::of(Box::new(kernel.clone()), Box::new(kernel.clone()));
        let mut kept = Kept::default();
        let mut last: Option<Snapshot> = None;
        let mut wanted = asked.frontends.clone();
        for pass in 0..8 {
            let read = steady.read().expect("nothing fails");
            let reading = Reading::Read(read.ruleset);
            // The API asks for less, or for what it asked for before.
            let mut again = BTreeSet::new();
            for _ in 0..random.below(3) {
                let at = random.below(asked.frontends.len());
                let (frontend, name) = asked.frontends.iter().nth(at).expect("below");
                again.insert(*frontend);
                if wanted.remove(frontend).is_none() {
                    wanted.insert(*frontend, name.clone());
                }
            }
            let before = last.as_ref().map(rows_of);
            let (snapshot, rewalked) = kept.snapshot(
                last.take(),
                (&reading, &read.changes),
                (&wanted, (!random.one_in(20)).then_some(&again)),
                &asked.node,
                &asked.pass.profile,
            );
            let anew = datapath::snapshot(&reading, &wanted, &asked.node, &asked.pass.profile);
            if let Some(difference) = datapath::difference(&snapshot, &anew) {
                let log = &kernel.lock().log;
                panic!(
                    "pass {pass}, {rewalked:?}: {difference}\n{}",
                    log.join("\n")
                );
            }
            let now = rows_of(&snapshot);
            if let Rewalked::Frontends(these) = &rewalked {
                parts += 1;
                walked += these.len();
                rows += wanted.len();
                let before = before.expect("there was one before");
                let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
                for key in keys {
                    if before.get(key) != now.get(key) {
                        moved += 1;
                        assert!(these.contains(&key.0), "{key:?} moved and is not told");
                    }
                }
            } else {
                whole += 1;
            }
            last = Some(snapshot);
            let Reading::Read(ruleset) = reading else {
                unreachable!("it was read")
            };
            steady.take_back(ruleset);
            let mut fake = kernel.lock();
            for _ in 0..random.below(3) {
                fake.begin();
                fake.finish();
            }
        }
    });
    println!(
        "{parts} passes by parts, {whole} whole; by parts {walked} of {rows} frontends walked, \
         {moved} rows moved"
    );
    // It would be no use if everything were walked each time, and no test if nothing moved.
    let n = seeds(400) as usize;
    assert!(parts > 4 * n && walked * 3 < rows && moved > n);
}

type Rows = BTreeMap<model::table::Key, model::table::Forwarding>;

fn rows_of(snapshot: &Snapshot) -> Rows {
    let tables = snapshot.tables.values().filter_map(Reading::read);
    let rows = tables.flat_map(|t| &t.rows);
    rows.map(|(k, o)| (*k, o.forwarding.clone())).collect()
}

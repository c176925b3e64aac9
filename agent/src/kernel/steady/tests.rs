use super::*;
use crate::netfilter::nftables::capture::Capture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// What a recording may lack or tell while it is read.
#[derive(Clone, Copy, PartialEq)]
enum While {
    /// Nothing happens.
    Still,
    /// The list of chains has a damaged one.
    Damaged,
    /// A transaction makes a chain and its rules after each list of chains, while rules are read.
    Growing,
}

/// A kernel that holds what was recorded. Its transactions are told by [`Tells`].
struct Recorded(Capture, While, Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    generation: u32,
    /// Events that nobody has heard yet: the type of a netlink message, and the message.
    events: Vec<(u16, Vec<u8>)>,
    /// How hearing ends from now on, and whether a table is told of before; else all is heard.
    ends: VecDeque<(bool, Result<Heard, NetlinkError>)>,
    /// How often something was waited for in vain.
    waits: usize,
    /// How often the list of chains was asked for.
    lists: usize,
}

impl Recorded {
    /// The last of the chains with rules: the one that a transaction makes.
    fn newest(&self) -> Place {
        let last = self.0.rules.iter().last().expect("rules");
        Place {
            family: last[0],
            table: c_string(find(last, 1)).to_vec(),
            name: c_string(find(last, 2)).to_vec(),
        }
    }

    fn is_newest(&self, chain: &[u8]) -> bool {
        let newest = self.newest();
        (chain[0], c_string(find(chain, 1)), c_string(find(chain, 3)))
            == (newest.family, &*newest.table, &*newest.name)
    }
}

impl Answers for Recorded {
    fn ask(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        let told = self.2.clone();
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let all = match question {
            Question::Generation => {
                let [a, b, c, d] = told.generation.to_be_bytes();
                each(&[0, 0, 0, 0, 8, 0, 1, 0, a, b, c, d]);
                return Ok(());
            }
            Question::Tables => &self.0.tables,
            Question::Chains | Question::Chain { .. } => &self.0.chains,
            Question::Sets => &self.0.sets,
            Question::Rules { .. } => &self.0.rules,
            Question::Elements { .. } => &self.0.elements,
            other => panic!("{other:?}"),
        };
        told.lists += usize::from(matches!(question, Question::Chains));
        let is_asked = |m: &[u8]| match *question {
            Question::Rules {
                family,
                table,
                chain,
            } => {
                (m[0], c_string(find(m, 1))) == (family, table)
                    && chain.is_none_or(|chain| c_string(find(m, 2)) == chain)
            }
            Question::Chain {
                family,
                table,
                chain,
            } => (m[0], c_string(find(m, 1)), c_string(find(m, 3))) == (family, table, chain),
            Question::Elements { family, table, set } => {
                (m[0], c_string(find(m, 1)), c_string(find(m, 2))) == (family, table, set)
            }
            Question::Chains => self.1 != While::Growing || !self.is_newest(m),
            _ => true,
        };
        let is_list = matches!(question, Question::Chains);
        let newest = self.newest();
        let is_table = matches!(
            *question,
            Question::Rules { family, table, chain: None }
                if (family, table) == (newest.family, &*newest.table)
        );
        let cut = self.1 == While::Damaged && is_list;
        for (at, message) in all.iter().filter(|m| is_asked(m)).enumerate() {
            let end = if cut && at == 1 { 30 } else { message.len() };
            each(&message[..end]);
        }
        if self.1 == While::Growing && is_table {
            told.generation += 1;
            let [a, b, c, d] = told.generation.to_be_bytes();
            let made = self.0.chains.iter().find(|m| self.is_newest(m));
            // NFT_MSG_NEWCHAIN, NFT_MSG_NEWGEN
            told.events
                .push((10 << 8 | 3, made.expect("a chain").to_vec()));
            told.events
                .push((10 << 8 | 15, vec![0, 0, 0, 0, 8, 0, 1, 0, a, b, c, d]));
        }
        Ok(())
    }
}

struct Tells(Arc<Mutex<Told>>);

impl Hears for Tells {
    fn hear(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> Result<Heard, NetlinkError> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, message) in told.events.drain(..) {
            each(kind, &message);
        }
        let (table, end) = told.ends.pop_front().unwrap_or((false, Ok(Heard::All)));
        if table {
            // NFT_MSG_NEWTABLE
            each(10 << 8, &[2, 0, 0, 0]);
        }
        end
    }

    fn wait(&mut self, _: Duration) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.waits += usize::from(told.events.is_empty());
        !told.events.is_empty()
    }
}

fn capture() -> Capture {
    let file = include_bytes!("../../../tests/captures/kube-proxy-iptables.nfcapture");
    Capture::load(file).expect("a whole capture")
}

fn steady(meanwhile: While) -> Steady {
    told(meanwhile).0
}

fn told(meanwhile: While) -> (Steady, Arc<Mutex<Told>>) {
    let told = Arc::new(Mutex::new(Told {
        generation: 7,
        ..Told::default()
    }));
    let answers = Recorded(capture(), meanwhile, told.clone());
    let steady = Steady::of(Box::new(answers), Box::new(Tells(told.clone())));
    (steady, told)
}

/// The recording, as it is decoded in one go.
fn is_what_was_recorded(read: &Ruleset) {
    let mut decoded = crate::netfilter::nftables::decode(&capture()).ruleset;
    assert_eq!(read.tables.len(), decoded.tables.len());
    decoded.tables.sort_by_key(|t| (t.family, t.name.clone()));
    for (kept, decoded) in read.tables.iter().zip(&mut decoded.tables) {
        let mut chains = kept.chains.clone();
        chains.sort_by(|a, b| a.name.cmp(&b.name));
        decoded.chains.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(chains, decoded.chains);
    }
}

/// A chain that is left out because its message is damaged would look deleted.
#[test]
fn what_does_not_fit_together_is_no_reading() {
    is_what_was_recorded(&steady(While::Still).read().expect("whole").ruleset);
    let Err(error) = steady(While::Damaged).read() else {
        panic!("judged")
    };
    assert!(
        error.to_string().contains("does not fit together"),
        "{error}"
    );
}

/// Rules that came before the chain that they are in, because it was made meanwhile, are read again
/// with it: nothing is torn, however often that happens.
#[test]
fn what_was_read_again_fits_together() {
    is_what_was_recorded(&steady(While::Growing).read().expect("whole").ruleset);
}

/// A table is told of, and while the list of tables is read again for it, events are lost: everything
/// is read, not only what was told of.
#[test]
fn events_lost_within_a_reading_of_what_changed() {
    let (mut steady, told) = told(While::Still);
    let first = steady.read().expect("whole");
    steady.take_back(first.ruleset);
    let lists = {
        let mut told = told.lock().expect("no thread panicked");
        // As the list of tables is read, behind it, and as it is read again.
        let ends = [
            (false, Ok(Heard::All)),
            (true, Ok(Heard::All)),
            (false, Ok(Heard::Lost)),
        ];
        told.ends.extend(ends);
        told.lists
    };
    is_what_was_recorded(&steady.read().expect("whole").ruleset);
    assert_eq!(told.lock().expect("no thread panicked").lists, lists + 1);
}

/// Events are lost as everything is read, and then hearing fails: the next reading still waits for
/// those of a transaction that may be under way.
#[test]
fn lost_events_are_waited_for_after_an_error() {
    let (mut steady, told) = told(While::Still);
    let ends = [
        (false, Ok(Heard::All)),
        (false, Ok(Heard::All)),
        (false, Ok(Heard::Lost)),
        (false, Err(NetlinkError::Protocol("deaf"))),
    ];
    told.lock().expect("no thread panicked").ends.extend(ends);
    assert!(steady.read().is_err());
    assert_eq!(told.lock().expect("no thread panicked").waits, 1);
    is_what_was_recorded(&steady.read().expect("whole").ruleset);
    assert_eq!(told.lock().expect("no thread panicked").waits, 2);
}

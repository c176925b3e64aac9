//! A kernel of nf_tables that holds what was recorded, changes it while it is read, and fails as it is
//! told to. Everything follows from one seed.
//!
//! What it copies of the real one (`net/netfilter/nf_tables_api.c`):
//! - A transaction has four steps: rules that it adds take their place and are not shown, its number is
//!   there, then what it changed, then the events, objects before the number. Anything may be asked
//!   between them. None is given up.
//! - A dump goes on by position in each datagram, over what is there then. That its number is another
//!   than at its beginning is told at its end (`NLM_F_DUMP_INTR`); what changed under one number is not.
//! - A chain or a set that is used cannot be deleted: what uses it goes in the same transaction.
//! - A table with an owner goes without event and without number.
//! - Events that do not fit are dropped from there on until the reader has read what is left.

mod asked;
mod changes;
mod content;

use super::seeded::Random;
use agent::host::events::Heard;
use agent::host::netlink::{NetlinkError, Question};
use agent::host::nf_tables::Answers;
use agent::kernel::steady::Hears;
pub use asked::Asked;
use changes::told;
pub use content::Content;
use content::{Hidden, Message, attribute, chain_of};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The type of a netlink message, and the message.
type Event = (u16, Vec<u8>);

/// What goes wrong: one in so many times, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A question fails, after none, some or all of its answers.
    pub errors: usize,
    /// Events of a transaction do not fit.
    pub overflows: usize,
    /// Hearing fails.
    pub deaf: usize,
    /// A message of an answer is damaged, and nothing says so.
    pub damage: usize,
    /// Which damage.
    pub kind: Damage,
    /// A writer begins a transaction, at each moment that it can.
    pub writes: usize,
    /// A table goes without event and number.
    pub vanishes: usize,
}

/// Damage that nothing tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(dead_code, reason = "each test file uses a part")]
pub enum Damage {
    /// A message ends within an attribute.
    #[default]
    Cut,
    /// One of a list comes twice.
    Twice,
    /// A byte is another one.
    Flipped,
}

enum Writing {
    Nothing,
    /// What it adds is in its place, and not shown.
    Prepared(Content, Vec<Event>, Hidden),
    /// Its number is there.
    Counted(Content, Vec<Event>),
    /// What it changed, too.
    Shown(Vec<Event>),
}

/// The kernel.
pub struct Fake {
    pub random: Random,
    pub faults: Faults,
    /// All that was recorded: what is deleted comes back from here.
    recorded: Content,
    content: Content,
    number: u32,
    writing: Writing,
    handles: u64,
    queue: VecDeque<Event>,
    overflowed: bool,
    /// The reader has nothing to hold on to yet: its first reading.
    blind: bool,
    /// Each content that ever was, with its number.
    pub truths: Vec<(u32, Content)>,
    pub questions: usize,
    pub damaged: usize,
    pub failed: usize,
    pub transactions: usize,
    /// What was done, for whoever has to understand a failure.
    pub log: Vec<String>,
}

/// The kernel as its two sides share it.
#[derive(Clone)]
pub struct Kernel(Arc<Mutex<Fake>>);

impl Kernel {
    pub fn new(seed: u64, recorded: &Content, faults: Faults) -> Kernel {
        let mut random = Random(seed);
        let number = match random.below(4) {
            // It wraps around.
            0 => u32::MAX - random.below(4) as u32,
            _ => 1 + random.below(1_000) as u32,
        };
        Kernel(Arc::new(Mutex::new(Fake {
            random,
            faults,
            recorded: recorded.clone(),
            content: recorded.clone(),
            number,
            writing: Writing::Nothing,
            handles: 1 << 20,
            queue: VecDeque::new(),
            overflowed: false,
            blind: true,
            truths: vec![(number, recorded.clone())],
            questions: 0,
            damaged: 0,
            failed: 0,
            transactions: 0,
            log: Vec::new(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().expect("no thread panicked")
    }
}

impl Answers for Kernel {
    fn ask(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        self.lock().answer(question, each)
    }
}

impl Hears for Kernel {
    fn hear(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> Result<Heard, NetlinkError> {
        self.lock().tell(each)
    }

    fn wait(&mut self, _: Duration) -> bool {
        // The writer is at work on what is waited for, and it may have more to do.
        let mut fake = self.lock();
        fake.finish();
        for _ in 0..fake.random.below(4) {
            fake.moment();
        }
        !fake.queue.is_empty() || fake.overflowed
    }
}

impl Fake {
    /// A moment passes.
    fn moment(&mut self) {
        match self.writing {
            Writing::Nothing if self.random.one_in(self.faults.vanishes) => {
                let at = self.random.below(self.content.tables.len());
                if at < self.content.tables.len() {
                    let gone = self.content.tables.remove(at);
                    self.log
                        .push(format!("vanished {}", String::from_utf8_lossy(&gone.name)));
                    self.truths.push((self.number, self.content.clone()));
                }
            }
            Writing::Nothing if self.random.one_in(self.faults.writes) => self.begin(),
            Writing::Nothing => {}
            _ if self.random.one_in(3) => self.go_on(),
            _ => {}
        }
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        self.transactions += 1;
        let mut content = self.content.clone();
        let mut events = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            self.change(&mut content, &mut events);
        }
        let mut hidden = Hidden::new();
        for (_, rule) in events.iter().filter(|(kind, _)| *kind == told::NEW_RULE) {
            *hidden.entry(chain_of(rule)).or_default() += 1;
        }
        self.log.push("prepared".into());
        self.writing = Writing::Prepared(content, events, hidden);
    }

    fn go_on(&mut self) {
        match std::mem::replace(&mut self.writing, Writing::Nothing) {
            Writing::Nothing => {}
            Writing::Prepared(content, events, _) => {
                // 0 is none (`nf_tables_commit`).
                self.number = self.number.wrapping_add(1).max(1);
                self.log.push(format!("{} counted", self.number));
                self.writing = Writing::Counted(content, events);
            }
            Writing::Counted(content, events) => {
                self.content = content;
                self.truths.push((self.number, self.content.clone()));
                self.log.push(format!("{} shown", self.number));
                self.writing = Writing::Shown(events);
            }
            Writing::Shown(mut events) => {
                let mut message = vec![0, 0, 0, 0];
                message.extend(attribute(1, &self.number.to_be_bytes()));
                events.push((told::NEW_GENERATION, message));
                if self.overflowed {
                    events.clear();
                } else if self.random.one_in(self.faults.overflows) {
                    self.log.push(format!("{} does not fit", self.number));
                    events.truncate(self.random.below(events.len()));
                    self.overflowed = true;
                }
                self.log.push(format!("{} told", self.number));
                let mark = |(kind, message)| (10 << 8 | kind, message);
                self.queue.extend(events.into_iter().map(mark));
            }
        }
    }

    /// Ends a transaction that is at work.
    pub fn finish(&mut self) {
        while !matches!(self.writing, Writing::Nothing) {
            self.go_on();
        }
    }

    /// The fault that a question suffers, and after how many answers.
    fn fault(&mut self, question: &Question<'_>) -> Option<(usize, NetlinkError)> {
        if !self.random.one_in(self.faults.errors) {
            return None;
        }
        let system = |errno| NetlinkError::System {
            doing: "recv",
            errno,
            extended: String::new(),
        };
        let dump = !matches!(
            question,
            Question::Generation | Question::Chain { .. } | Question::Set { .. }
        );
        let error = match self.random.below(8) {
            0 | 1 => NetlinkError::Interrupted,
            2 => system(libc::ENOBUFS),
            3 => system(libc::ENOMEM),
            4 => NetlinkError::Protocol("message longer than its datagram"),
            5 => NetlinkError::Permission,
            // Of one object it would be the truth.
            6 if dump => NetlinkError::Gone,
            _ => system(libc::EINTR),
        };
        let after = [0, 1, 5, usize::MAX][self.random.below(4)];
        Some((after, error))
    }

    fn answer(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        self.questions += 1;
        self.moment();
        let fault = self.fault(question);
        if let Some((_, error)) = &fault {
            self.failed += 1;
            self.log.push(format!("{question:?}: {error}"));
        }
        if let Some((0, error)) = fault {
            return Err(error);
        }
        let one = match *question {
            Question::Generation => {
                if self.blind {
                    // That a transaction may be at work at the very first number is known of, and
                    // the next reading sees it: see `kernel::steady`.
                    self.finish();
                    self.blind = false;
                }
                let mut message = vec![0, 0, 0, 0];
                message.extend(attribute(1, &self.number.to_be_bytes()));
                message.extend(attribute(3, b"fake\0"));
                self.log
                    .push(format!("asked for the number: {}", self.number));
                Some(Message::from(message))
            }
            Question::Chain {
                family,
                table,
                chain,
            } => {
                let table = self.content.table(family, table);
                let found = table.and_then(|t| t.chains.iter().find(|c| c.name == chain));
                let found = found.ok_or(NetlinkError::Gone)?;
                Some(found.message.clone())
            }
            Question::Set { family, table, set } => {
                let table = self.content.table(family, table);
                let found = table.and_then(|t| t.sets.iter().find(|s| s.name == set));
                let found = found.ok_or(NetlinkError::Gone)?;
                Some(found.message.clone())
            }
            _ => None,
        };
        if let Some(message) = one {
            let goes_on = self.give(question, &message, each);
            self.moment();
            return match fault {
                Some((_, error)) => Err(error),
                None if goes_on => Ok(()),
                None => Err(NetlinkError::Interrupted),
            };
        }
        self.dump(question, fault, each)
    }

    fn dump(
        &mut self,
        question: &Question<'_>,
        fault: Option<(usize, NetlinkError)>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        if let Question::Elements { family, table, set } = *question {
            let table = self.content.table(family, table);
            if !table.is_some_and(|t| t.sets.iter().any(|s| s.name == set)) {
                return Err(NetlinkError::Gone);
            }
        }
        let began = self.number;
        let mut interrupted = false;
        let mut given = 0;
        let mut position = 0;
        loop {
            let none = Hidden::new();
            let hidden = match &self.writing {
                Writing::Prepared(_, _, hidden) => hidden,
                _ => &none,
            };
            let Some(message) = self.content.dumped(question, position, hidden) else {
                break;
            };
            position += 1;
            let Some(message) = message else { continue };
            interrupted |= self.number != began;
            if !self.give(question, &message, each) {
                return Err(NetlinkError::Interrupted);
            }
            given += 1;
            if let Some((after, error)) = &fault
                && *after == given
            {
                return Err(error.clone());
            }
            // A datagram holds several, and all tables.
            if self.random.one_in(4) && !matches!(question, Question::Tables) {
                self.moment();
            }
        }
        // The last datagram says that it is done.
        self.moment();
        interrupted |= self.number != began;
        match fault {
            Some((_, error)) => Err(error),
            None if interrupted => Err(NetlinkError::Interrupted),
            None => Ok(()),
        }
    }

    /// Gives one message, with its stamp, and with the damage that it suffers.
    fn give(
        &mut self,
        question: &Question<'_>,
        message: &[u8],
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        let mut message = message.to_vec();
        message[2..4].copy_from_slice(&(self.number as u16).to_be_bytes());
        if !self.random.one_in(self.faults.damage) {
            return each(&message);
        }
        let in_list = matches!(
            question,
            Question::Tables | Question::Chains | Question::Sets
        );
        match self.faults.kind {
            Damage::Twice if !in_list => return each(&message),
            Damage::Twice => {
                each(&message);
                each(&message);
            }
            Damage::Cut => {
                let mut end = 4 + self.random.below(message.len() - 4);
                while borders(&message).contains(&end) {
                    end += 1;
                }
                message.truncate(end.min(message.len() - 1));
                each(&message);
            }
            Damage::Flipped => {
                for _ in 0..=self.random.below(3) {
                    let at = self.random.below(message.len());
                    message[at] = self.random.next() as u8;
                }
                each(&message);
            }
        }
        self.damaged += 1;
        self.log
            .push(format!("{:?} in {question:?}", self.faults.kind));
        true
    }

    fn tell(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> Result<Heard, NetlinkError> {
        self.moment();
        if self.random.one_in(self.faults.deaf) {
            self.failed += 1;
            self.log.push("deaf".into());
            return Err(NetlinkError::System {
                doing: "recv",
                errno: libc::ENOMEM,
                extended: String::new(),
            });
        }
        while let Some((kind, message)) = self.queue.pop_front() {
            each(kind, &message);
        }
        let lost = std::mem::take(&mut self.overflowed);
        self.log.push(format!("heard, lost: {lost}"));
        Ok(if lost { Heard::Lost } else { Heard::All })
    }
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

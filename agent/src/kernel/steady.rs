//! nf_tables, read again only as far as it changed.
//!
//! The kernel's events mark objects; marked ones are read again. The reading is whole when the number
//! of the generation was asked for *after* the last object was read, all events up to that number
//! were heard, and none of them marked anything: each object was then read after the last change of
//! it, up to that generation. A writer that never rests costs only what it changes, and never makes
//! the rest be read again.
//!
//! A number is there a moment before what it stands for is (`nf_tables_commit` counts first, and tells
//! last), so reading between two equal numbers alone would not do. The very first reading has no earlier
//! event to hold on to: before it, a transaction that is under way is waited for. Where that cannot be
//! (kernels before 5.12), the reading after it sees it whole, and no finding comes from one reading.
//!
//! Before it has its number, a transaction moves positions: see `nf_tables::rules`.
//!
//! Events are heard in both of kube-proxy's modes. In iptables mode each of its syncs rewrites chains
//! that all Services share (8 MB of events among 5,000 Services), which is still a tenth of what a
//! whole reading costs; where more comes than the socket holds, everything is read, as without it.

mod questions;

use super::marks::{Marks, Parts};
use crate::host::events::{Events, Heard};
use crate::host::netlink::{NetlinkError, Question};
use crate::host::nf_tables::{
    self, Answers, ChainAt, ReadError, elements, find, generation, ip_family, rule_questions,
    set_to_read,
};
use crate::netfilter::changes::Changes;
use crate::netfilter::nftables::attributes::c_string;
use crate::netfilter::nftables::capture::Messages;
use crate::netfilter::nftables::mirror::{Mirror, Place, RuleState};
use crate::netfilter::ruleset::Ruleset;
use questions::{PAUSE, hear_until, list, one, settle};
use std::time::Duration;

/// Rounds of reading what changed during the last one.
const ROUNDS: u32 = 20;

/// What tells that something changed: the kernel's events, or those of a test.
pub trait Hears {
    /// As [`Events::hear`].
    ///
    /// # Errors
    /// As there.
    fn hear(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> Result<Heard, NetlinkError>;

    /// As [`Events::wait`].
    fn wait(&mut self, longest: Duration) -> bool;
}

impl Hears for Events {
    fn hear(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> Result<Heard, NetlinkError> {
        Events::hear(self, each)
    }

    fn wait(&mut self, longest: Duration) -> bool {
        Events::wait(self, longest)
    }
}

/// The rules of nf_tables of one network namespace, kept up to date.
pub struct Steady {
    answers: Box<dyn Answers + Send>,
    events: Box<dyn Hears + Send>,
    marks: Marks,
    mirror: Mirror,
}

/// What one reading gave.
pub struct Refreshed {
    /// The rules; they go back with [`Steady::take_back`].
    pub ruleset: Ruleset,
    /// Something is, or may be, another than at the last reading.
    pub changed: bool,
    /// What.
    pub changes: Changes,
}

impl Steady {
    /// Begins to hear of changes in this thread's network namespace; reads nothing yet.
    ///
    /// # Errors
    /// As [`nf_tables::open`].
    pub fn open() -> Result<Steady, ReadError> {
        let mut answers = nf_tables::open()?;
        let events = Events::open().map_err(nf_tables::refused)?;
        // What has its number now is over when the wait is, and what comes later is told of.
        let (now, _) = generation(&mut answers)?;
        nf_tables::wait_for_writer()?;
        let mut steady = Steady::of(Box::new(answers), Box::new(events));
        steady.marks.heard = Some(now);
        Ok(steady)
    }

    /// Over anything that answers and tells.
    pub fn of(answers: Box<dyn Answers + Send>, events: Box<dyn Hears + Send>) -> Steady {
        let mut marks = Marks::default();
        marks.everything();
        Steady {
            answers,
            events,
            marks,
            mirror: Mirror::default(),
        }
    }

    /// Lets the next reading read everything.
    pub fn forget(&mut self) {
        self.marks.everything();
    }

    /// Takes in what waits to be heard, so that the socket does not overflow between two readings
    /// that are far apart.
    pub fn listen(&mut self) {
        let marks = &mut self.marks;
        match self
            .events
            .hear(&mut |kind, message| marks.note(kind, message))
        {
            Ok(Heard::All) => {}
            Ok(Heard::Lost) | Err(_) => marks.lost(),
        }
    }

    /// Takes the rules back for the next reading.
    pub fn take_back(&mut self, ruleset: Ruleset) {
        self.mirror.take_back(ruleset);
    }

    /// Reads what changed. The rules of the last reading must have been given back; where they were
    /// not, everything is read.
    ///
    /// # Errors
    /// [`ReadError`]; the next call goes on where this one ended.
    pub fn read(&mut self) -> Result<Refreshed, ReadError> {
        let mut changed = false;
        if self.mirror.is_lent() {
            self.mirror = Mirror::default();
            self.marks.everything();
        }
        let mut anew = false;
        for round in 0..ROUNDS {
            if round > 2 {
                self.events.wait(PAUSE * round);
            }
            changed |= self.tables()?;
            let (now, writer) = generation(&mut *self.answers)?;
            hear_until(&mut *self.events, &mut self.marks, now)?;
            if self.marks.is_clean() {
                if self.mirror.is_torn() {
                    // An object came before what it belongs to, and again after it; or one is damaged,
                    // and left out it would look deleted. Everything, read once more, tells.
                    self.marks.everything();
                    if anew {
                        return Err(ReadError::Failed(NetlinkError::Protocol(
                            "what was read does not fit together",
                        )));
                    }
                    anew = true;
                    changed = true;
                    self.everything()?;
                    continue;
                }
                self.mirror.forget_notes();
                let (mut ruleset, changes) = self.mirror.lend();
                ruleset.generation = Some(now);
                ruleset.last_writer = writer.as_deref().map(Into::into);
                return Ok(Refreshed {
                    ruleset,
                    changed,
                    changes,
                });
            }
            changed = true;
            if self.marks.all {
                self.everything()?;
            } else {
                self.marked()?;
            }
        }
        Err(ReadError::Torn { tries: ROUNDS })
    }

    /// The list of tables, in every reading: one whose owner is gone vanishes without an event and
    /// without a new generation.
    fn tables(&mut self) -> Result<bool, ReadError> {
        let list = list(
            &mut *self.answers,
            &mut *self.events,
            &mut self.marks,
            &Question::Tables,
        )?;
        self.marks.tables = false;
        Ok(self.mirror.tables(list.iter()))
    }

    fn everything(&mut self) -> Result<(), ReadError> {
        self.mirror = Mirror::default();
        self.marks.everything();
        // What is told while everything is read marks what was read before.
        let mut marks = Marks {
            heard: self.marks.heard,
            ..Marks::default()
        };
        let read = self.read_everything(&mut marks);
        if let Ok(true) = read {
            self.marks = marks;
        } else {
            self.marks.heard = marks.heard;
            self.marks.lost = marks.lost;
        }
        read.map(|_| ())
    }

    /// False: it has to be read once more.
    fn read_everything(&mut self, marks: &mut Marks) -> Result<bool, ReadError> {
        settle(&mut *self.answers, &mut *self.events, marks)?;
        // What was told of up to here, and what was lost, is in what is read now.
        marks.clear();
        let mut list =
            |question: &Question<'_>| list(&mut *self.answers, &mut *self.events, marks, question);
        let tables = list(&Question::Tables)?;
        let chains = list(&Question::Chains)?;
        let sets = list(&Question::Sets)?;
        let after = list(&Question::Tables)?;
        self.mirror.tables(tables.iter());
        if self.mirror.tables(after.iter()) {
            // A table whose owner ended went without a number: what stood behind it in the lists may
            // have been left out.
            return Ok(false);
        }
        for message in chains.iter() {
            self.mirror.chain(message);
        }
        let chains: Vec<ChainAt> = chains.iter().map(ChainAt::of).collect();
        for message in sets.iter() {
            self.mirror.set(message);
        }
        let mut tables: Vec<(u8, &[u8])> = chains
            .iter()
            .filter(|c| ip_family(c.family))
            .map(|c| (c.family, &*c.table))
            .collect();
        tables.sort_unstable();
        tables.dedup();
        for (family, table) in tables {
            for question in rule_questions(family, table, &chains) {
                self.rules(&question, &chains, marks)?;
            }
        }
        for message in sets.iter() {
            let place = Place {
                family: message.first().copied().unwrap_or(0),
                table: c_string(find(message, 1)).to_vec(),
                name: c_string(find(message, 2)).to_vec(),
            };
            if !self.elements(&place, set_to_read(message).is_some())? {
                marks.set(place, CONTENT);
            }
        }
        Ok(true)
    }

    /// Rules of one table or chain, of which the mirror has none. A table whose dump is torn is read
    /// chain by chain: each is then marked only when itself is torn.
    fn rules(
        &mut self,
        question: &Question<'_>,
        chains: &[ChainAt],
        marks: &mut Marks,
    ) -> Result<(), ReadError> {
        let Question::Rules {
            family,
            table,
            chain,
        } = *question
        else {
            return Ok(());
        };
        let mut state = RuleState::default();
        let mirror = &mut self.mirror;
        // What becomes of one chain is told; a table's rules go on by position in all its chains.
        let before = match chain {
            Some(_) => None,
            None => Some(settle(&mut *self.answers, &mut *self.events, marks)?),
        };
        let read = nf_tables::rules(&mut *self.answers, question, None, |message| {
            mirror.rule(message, &mut state);
        });
        let same = match (&read, before) {
            (Ok(()), Some(before)) => generation(&mut *self.answers)?.0 == before,
            _ => true,
        };
        match read {
            Ok(()) if same => Ok(()),
            Ok(()) | Err(ReadError::Torn { .. }) => {
                let torn = chains.iter().filter(|c| {
                    (c.family, &*c.table) == (family, table)
                        && chain.is_none_or(|chain| chain == &*c.name)
                });
                for c in torn {
                    let place = Place {
                        family,
                        table: table.to_vec(),
                        name: c.name.clone(),
                    };
                    marks.chain(place, CONTENT);
                }
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// The elements of one set; false if the set has to be read again.
    fn elements(&mut self, place: &Place, wanted: bool) -> Result<bool, ReadError> {
        let messages = if wanted {
            let question = Question::Elements {
                family: place.family,
                table: &place.table,
                set: &place.name,
            };
            match elements(&mut *self.answers, &question, None) {
                Ok(messages) => messages,
                Err(ReadError::Torn { .. }) => return Ok(false),
                Err(other) => return Err(other),
            }
        } else {
            Messages::default()
        };
        self.mirror.elements(place, messages.iter());
        Ok(true)
    }

    /// Reads what is marked. What is torn or gone meanwhile stays marked.
    fn marked(&mut self) -> Result<(), ReadError> {
        if self.marks.tables {
            // A chain of a table that is not known would be thrown away.
            self.tables()?;
            if self.marks.all {
                // Events were lost meanwhile: what is marked is no longer all that changed.
                return self.everything();
            }
        }
        let mut marks = std::mem::take(&mut self.marks);
        self.marks.heard = marks.heard;
        let read = self.read_marked(&mut marks);
        // Those that were not reached, too, after an error.
        for (place, parts) in marks.chains {
            self.marks.chain(place, parts);
        }
        for (place, parts) in marks.sets {
            self.marks.set(place, parts);
        }
        read
    }

    fn read_marked(&mut self, marks: &mut Marks) -> Result<(), ReadError> {
        // What has to be read once more is marked at once: an error may end this.
        let (mut new, mut gone) = (Messages::default(), Vec::new());
        for (place, _) in marks.chains.iter().filter(|(_, p)| p.definition) {
            let question = Question::Chain {
                family: place.family,
                table: &place.table,
                chain: &place.name,
            };
            match one(&mut *self.answers, &question)? {
                Some(message) => new.push(&message),
                None => gone.push(place.clone()),
            }
        }
        if self.mirror.renames(new.iter()) {
            marks.clear();
            self.marks.everything();
            return Ok(());
        }
        for place in gone {
            self.mirror.without_chain(&place);
            marks.chains.remove(&place);
        }
        for message in new.iter() {
            self.mirror.chain(message);
        }
        for parts in marks.chains.values_mut() {
            parts.definition = false;
        }
        for (place, parts) in marks.sets.iter_mut().filter(|(_, p)| p.definition) {
            let question = Question::Set {
                family: place.family,
                table: &place.table,
                set: &place.name,
            };
            match one(&mut *self.answers, &question)? {
                Some(message) => {
                    parts.content |= self.mirror.set(&message);
                    if set_to_read(&message).is_none() {
                        self.elements(place, false)?;
                        parts.content = false;
                    }
                }
                None => {
                    self.mirror.without_set(place);
                    parts.content = false;
                }
            }
            parts.definition = false;
        }
        let mut learnt = Vec::new();
        let contents = marks.chains.iter_mut().filter(|(_, p)| p.content);
        for (place, parts) in contents.filter(|(place, _)| ip_family(place.family)) {
            let question = Question::Rules {
                family: place.family,
                table: &place.table,
                chain: Some(&place.name),
            };
            let mut messages = Messages::default();
            let asked = nf_tables::rules(&mut *self.answers, &question, None, |message| {
                messages.push(message);
            });
            match asked {
                Ok(()) => self.mirror.rules(place, messages.iter(), &mut learnt),
                Err(ReadError::Torn { .. }) => self.marks.chain(place.clone(), BOTH),
                Err(other) => {
                    for place in learnt {
                        self.marks.set(place, CONTENT);
                    }
                    return Err(other);
                }
            }
            parts.content = false;
        }
        for place in learnt {
            marks.set(place, CONTENT);
        }
        let contents = marks.sets.iter_mut().filter(|(_, p)| p.content);
        for (place, parts) in contents.filter(|(place, _)| ip_family(place.family)) {
            let wanted = self.mirror.has_elements(place);
            if !self.elements(place, wanted)? {
                self.marks.set(place.clone(), BOTH);
            }
            parts.content = false;
        }
        marks.clear();
        Ok(())
    }
}

const CONTENT: Parts = Parts {
    definition: false,
    content: true,
};
const BOTH: Parts = Parts {
    definition: true,
    content: true,
};

#[cfg(test)]
mod tests;

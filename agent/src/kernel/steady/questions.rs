//! Questions of which the answer holds on to a number: what was told up to it is heard, and nothing moved
//! while it was answered.

use super::{Hears, Marks};
use crate::host::events::Heard;
use crate::host::netlink::{NetlinkError, Question};
use crate::host::nf_tables::{self, Answers, ReadError, generation};
use crate::netfilter::nftables::capture::Messages;
use std::time::{Duration, Instant};

/// Attempts to read a list, or a table's rules, without a change in between.
const TRIES: u32 = 12;
/// What a writer adds is in the way before it is told of; waited so long for its end, times the attempt.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// The number of a generation is there before its events are; a transaction is over within this.
const EVENTS_FOLLOW: Duration = Duration::from_millis(500);

/// Hears everything up to a generation.
pub(super) fn hear_until(
    events: &mut dyn Hears,
    marks: &mut Marks,
    generation: u32,
) -> Result<(), ReadError> {
    let until = Instant::now() + EVENTS_FOLLOW;
    let mut over = false;
    loop {
        match events.hear(&mut |kind, message| marks.note(kind, message)) {
            Ok(Heard::All) => {}
            Ok(Heard::Lost) => marks.lost(),
            Err(error) => return Err(ReadError::Failed(error)),
        }
        if marks.all && marks.heard.is_none() && !marks.lost {
            // What follows is read after this, and later events count from here.
            marks.heard = Some(generation);
        }
        if marks.has_heard(generation) {
            return Ok(());
        }
        if over {
            // A generation without events is nothing that is known of, or its events were lost;
            // whatever it was is read.
            marks.everything();
            marks.heard = Some(generation);
            marks.lost = false;
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        over = left.is_zero() || !events.wait(left);
    }
}

/// Hears every transaction that has a number to its end; gives the number of the last.
pub(super) fn settle(
    answers: &mut dyn Answers,
    events: &mut dyn Hears,
    marks: &mut Marks,
) -> Result<u32, ReadError> {
    let (now, _) = generation(answers)?;
    hear_until(events, marks, now)?;
    Ok(now)
}

/// A list, tried again when something changed under it.
///
/// A dump goes on by position: what goes away before it makes it leave out something else, of which
/// no event tells. It says so itself only where its number was another at its beginning; a transaction
/// that was under way then had its number already. So none may have been, from before to after.
pub(super) fn list(
    answers: &mut dyn Answers,
    events: &mut dyn Hears,
    marks: &mut Marks,
    question: &Question<'_>,
) -> Result<Messages, ReadError> {
    for attempt in 0..TRIES {
        if attempt > 0 {
            events.wait(PAUSE * attempt);
        }
        let before = settle(answers, events, marks)?;
        let mut messages = Messages::default();
        match nf_tables::ask(answers, question, None, |m| messages.push(m)) {
            Ok(()) if generation(answers)?.0 == before && !nf_tables::names_twice(&messages) => {
                return Ok(messages);
            }
            Ok(()) | Err(ReadError::Torn { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Err(ReadError::Torn { tries: TRIES })
}

/// The one answer about one object; `None`: it is gone.
pub(super) fn one(
    answers: &mut dyn Answers,
    question: &Question<'_>,
) -> Result<Option<Vec<u8>>, ReadError> {
    for _ in 0..TRIES {
        let mut found = None;
        let asked = answers.ask(question, &mut |message| {
            found = Some(message.to_vec());
            true
        });
        match asked {
            Ok(()) => return Ok(found),
            Err(NetlinkError::Gone) => return Ok(None),
            Err(NetlinkError::Interrupted) => {}
            Err(NetlinkError::Permission) => return Err(ReadError::Permission),
            Err(other) => return Err(ReadError::Failed(other)),
        }
    }
    Err(ReadError::Torn { tries: TRIES })
}

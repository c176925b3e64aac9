//! YAML that is nested too deep, refused before it is parsed.
//!
//! The parser's time grows with the square of the depth of `[` and `{`: 100,000 of them take more
//! than half a minute. serde's own bound of 128 levels comes too late, since a document is read
//! whole before it is looked at.

use std::mem::MaybeUninit;

/// Levels that a document may have. Objects of the API have some twenty, and serde takes 128.
pub const LEVELS: usize = 256;

/// Reads the text's structure, event by event, as far as it is YAML.
///
/// # Errors
/// A document has more than [`LEVELS`] levels: its number, from 1, and the reason.
pub fn shallow(text: &str) -> Result<(), (usize, String)> {
    // Levels in brackets need as many brackets; those of indentation cost no time.
    let brackets = text.bytes().filter(|b| matches!(b, b'[' | b'{')).count();
    if brackets <= LEVELS {
        return Ok(());
    }
    let Some(mut events) = Events::of(text) else {
        return Err((1, "no memory for a parser".into()));
    };
    let (mut document, mut levels) = (0, 0_usize);
    while let Some(event) = events.next() {
        match event {
            unsafe_libyaml::YAML_DOCUMENT_START_EVENT => document += 1,
            unsafe_libyaml::YAML_SEQUENCE_START_EVENT
            | unsafe_libyaml::YAML_MAPPING_START_EVENT => levels += 1,
            unsafe_libyaml::YAML_SEQUENCE_END_EVENT | unsafe_libyaml::YAML_MAPPING_END_EVENT => {
                levels = levels.saturating_sub(1);
            }
            _ => {}
        }
        if levels > LEVELS {
            return Err((document, format!("more than {LEVELS} levels")));
        }
    }
    Ok(())
}

/// The events of a text, to its end or its first error (which serde then describes).
struct Events<'a> {
    /// In a box: libyaml keeps pointers into it.
    parser: Box<unsafe_libyaml::yaml_parser_t>,
    text: std::marker::PhantomData<&'a str>,
}

impl<'a> Events<'a> {
    fn of(text: &'a str) -> Option<Events<'a>> {
        let mut parser = Box::new(MaybeUninit::<unsafe_libyaml::yaml_parser_t>::uninit());
        // SAFETY: initialize writes the whole of the struct that it is given, or fails.
        if unsafe { unsafe_libyaml::yaml_parser_initialize(parser.as_mut_ptr()) }.fail {
            return None;
        }
        // SAFETY: it was initialized just above.
        let mut parser = unsafe { parser.assume_init() };
        // SAFETY: the parser is initialized and was given no input yet; the text outlives it, by the
        // lifetime of `Events`, and its length is that of its bytes.
        unsafe {
            unsafe_libyaml::yaml_parser_set_input_string(
                &raw mut *parser,
                text.as_ptr(),
                text.len() as u64,
            );
        }
        Some(Events {
            parser,
            text: std::marker::PhantomData,
        })
    }

    fn next(&mut self) -> Option<unsafe_libyaml::yaml_event_type_t> {
        let mut event = MaybeUninit::<unsafe_libyaml::yaml_event_t>::uninit();
        // SAFETY: the parser is initialized and has its input; parse writes the whole event first.
        if unsafe { unsafe_libyaml::yaml_parser_parse(&raw mut *self.parser, event.as_mut_ptr()) }
            .fail
        {
            return None;
        }
        // SAFETY: written by the call above, which succeeded.
        let mut event = unsafe { event.assume_init() };
        let kind = event.type_;
        // SAFETY: an event that parse gave, deleted once; its type was copied before.
        unsafe { unsafe_libyaml::yaml_event_delete(&raw mut event) };
        // After the end parse gives empty events without end.
        let over = [
            unsafe_libyaml::YAML_NO_EVENT,
            unsafe_libyaml::YAML_STREAM_END_EVENT,
        ];
        (!over.contains(&kind)).then_some(kind)
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: initialized in `of`, deleted only here.
        unsafe { unsafe_libyaml::yaml_parser_delete(&raw mut *self.parser) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_depth_counts() {
        // Many brackets that are closed, or stand in text.
        let flat = "a: [1, {b: []}]\n".repeat(1_000);
        let words = format!(
            "a: |\n  {}\nb: '{}'\n",
            "[".repeat(1_000),
            "{".repeat(1_000)
        );
        let within = format!("{}{}", "[".repeat(LEVELS), "]".repeat(LEVELS));
        for text in [&flat, &words, &within, &"- ".repeat(2_000)] {
            assert_eq!(shallow(text), Ok(()), "{}", &text[..20]);
        }
        let many = LEVELS + 1;
        for open in ["[", "{a: ", "[\"]\", ", "[a, ']', "] {
            let text = format!("kind: List\n---\n{}", open.repeat(many));
            let (document, why) = shallow(&text).unwrap_err();
            assert_eq!((document, &*why), (2, "more than 256 levels"), "{open}");
        }
        // What is no YAML is left to the parser, which says why.
        assert_eq!(shallow(&format!("]{}", "[".repeat(1_000))), Ok(()));
    }
}

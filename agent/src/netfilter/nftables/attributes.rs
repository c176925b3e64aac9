//! Netlink attributes: type, length, value. Every function takes any bytes and never panics.

use std::borrow::Cow;

/// Rounded up to four bytes.
pub fn align4(n: usize) -> usize {
    n.saturating_add(3) & !3
}

/// Walks over attributes. Ends at the first that does not fit; see [`Attributes::broken`].
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    broken: bool,
}

impl<'a> Attributes<'a> {
    /// Over the attributes in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Attributes {
            rest: bytes,
            broken: false,
        }
    }

    /// Did the walk end at bytes that are no attribute?
    pub fn broken(&self) -> bool {
        self.broken
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let header = self.rest.first_chunk::<4>();
        let parsed = header.and_then(|h| {
            let length = u16::from_ne_bytes([h[0], h[1]]) as usize;
            // NLA_TYPE_MASK: without the flags for nested and byte order
            let kind = u16::from_ne_bytes([h[2], h[3]]) & 0x3fff;
            self.rest.get(4..length).map(|value| (kind, value, length))
        });
        let Some((kind, value, length)) = parsed else {
            self.broken = true;
            self.rest = &[];
            return None;
        };
        // The kernel pads every attribute, the last one too (`nla_put`): one whose padding is not
        // there was followed by something.
        let rest = self.rest.get(align4(length)..);
        self.broken = rest.is_none();
        self.rest = rest.unwrap_or_default();
        Some((kind, value))
    }
}

/// The attributes of a nest by number, up to 15; the last of each wins. `None` if the nest is
/// broken.
pub fn table(bytes: &[u8]) -> Option<[&[u8]; 16]> {
    let mut found: [&[u8]; 16] = [&[]; 16];
    let mut attributes = Attributes::new(bytes);
    for (kind, value) in &mut attributes {
        if let Some(slot) = found.get_mut(usize::from(kind)) {
            *slot = value;
        }
    }
    if attributes.broken() {
        None
    } else {
        Some(found)
    }
}

/// 16 bits in network order; 0 if too short.
pub fn be16(bytes: &[u8]) -> u16 {
    bytes
        .first_chunk::<2>()
        .map_or(0, |b| u16::from_be_bytes(*b))
}

/// 32 bits in network order.
pub fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

/// 64 bits in network order.
pub fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk::<8>().map(|b| u64::from_be_bytes(*b))
}

/// Up to the first NUL.
pub fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A C string as text; bytes that are not UTF-8 become `\xNN`, so that different names stay
/// different.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = c_string(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.escape_ascii().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cut within the padding of an attribute, what followed it is missed and the attribute is whole.
    #[test]
    fn an_attribute_without_its_padding_is_the_end_of_something_longer() {
        let message = [5, 0, 1, 0, 7, 0, 0, 0, 5, 0, 2, 0, 8, 0, 0, 0];
        for end in 0..=message.len() {
            let mut attributes = Attributes::new(&message[..end]);
            let found = attributes.by_ref().count();
            assert_eq!(found, usize::from(end >= 5) + usize::from(end >= 13));
            assert_eq!(attributes.broken(), !end.is_multiple_of(8), "{end}");
            assert_eq!(table(&message[..end]).is_none(), !end.is_multiple_of(8));
        }
    }
}

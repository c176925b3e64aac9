//! Blobs of x_tables' matches and targets, as they occur in iptables-nft rules and in legacy
//! tables. Structures are those of linux/netfilter/xt_*.h on a 64-bit kernel.

pub mod legacy;
mod matches;
pub mod save;
mod targets;

pub use matches::decode_match;
pub use targets::decode_target;

/// Numbers in a blob, in host order; `None` behind its end.
struct Blob<'a>(&'a [u8]);

impl Blob<'_> {
    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.0
            .get(at..)?
            .first_chunk::<2>()
            .map(|b| u16::from_ne_bytes(*b))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.0
            .get(at..)?
            .first_chunk::<4>()
            .map(|b| u32::from_ne_bytes(*b))
    }

    fn be16(&self, at: usize) -> Option<u16> {
        self.u16(at).map(u16::from_be)
    }

    fn bytes(&self, at: usize, length: usize) -> Option<&[u8]> {
        self.0.get(at..at.checked_add(length)?)
    }
}

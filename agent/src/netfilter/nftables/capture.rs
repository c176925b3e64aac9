//! The kernel's own messages of one reading: what the reader gets, what the decoder takes, what is
//! recorded and replayed.

use thiserror::Error;

/// Messages one after the other, each with its length before it. Each is `struct nfgenmsg` and
/// attributes, without the netlink header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    bytes: Vec<u8>,
}

impl Messages {
    /// Adds one.
    pub fn push(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(message);
    }

    /// Adds all of `more`.
    pub fn append(&mut self, more: Messages) {
        self.bytes.extend_from_slice(&more.bytes);
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            // Only bytes that `push` or a checked `load` put there get here; a shorter rest ends it.
            let (message, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = tail;
            Some(message)
        })
    }

    /// Each of them, to be changed in place.
    pub fn each_mut(&mut self, mut each: impl FnMut(&mut [u8])) {
        let mut rest = self.bytes.as_mut_slice();
        while let Some((length, tail)) = rest.split_first_chunk_mut::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some((message, tail)) = tail.split_at_mut_checked(length) else {
                return;
            };
            each(message);
            rest = tail;
        }
    }

    /// Bytes held, lengths included.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    fn well_formed(&self) -> bool {
        self.iter().map(|m| m.len() + 4).sum::<usize>() == self.bytes.len()
    }
}

/// One whole reading of nf_tables, undecoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// `NFTA_GEN_ID`, the same before and after.
    pub generation: Option<u32>,
    /// `NFTA_GEN_PROC_NAME`.
    pub last_writer: Option<String>,
    /// `NFT_MSG_NEWTABLE`, all families.
    pub tables: Messages,
    /// `NFT_MSG_NEWCHAIN`, all families.
    pub chains: Messages,
    /// `NFT_MSG_NEWRULE` of `ip`, `ip6`, `inet`, in order within each chain.
    pub rules: Messages,
    /// `NFT_MSG_NEWSET`, all families.
    pub sets: Messages,
    /// `NFT_MSG_NEWSETELEM` of `ip`, `ip6`, `inet`; not of sets that packets fill.
    pub elements: Messages,
}

const MAGIC: &[u8; 8] = b"nfcapt\r\n";
const VERSION: u8 = 1;
/// Attribute headers are in the byte order of the machine that was read.
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };

/// A file that is no capture.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoadError {
    /// It starts with something else.
    #[error("not a capture of nf_tables")]
    NotACapture,
    /// Written by another version.
    #[error("capture of version {0}, not {VERSION}")]
    Version(u8),
    /// Taken on a machine of the other byte order.
    #[error("capture taken on a machine of another byte order")]
    ByteOrder,
    /// It ends in the middle, or goes on behind its end.
    #[error("capture cut off or damaged")]
    Damaged,
}

impl Capture {
    /// As bytes for a file: magic, version, byte order, then seven parts, each with its length
    /// (32 bits, little-endian).
    pub fn save(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, BYTE_ORDER]);
        let generation = self.generation.map(u32::to_le_bytes);
        let parts: [&[u8]; 7] = [
            generation.as_ref().map_or(&[], |g| g.as_slice()),
            self.last_writer.as_deref().unwrap_or_default().as_bytes(),
            &self.tables.bytes,
            &self.chains.bytes,
            &self.rules.bytes,
            &self.sets.bytes,
            &self.elements.bytes,
        ];
        for part in parts {
            out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// From the bytes of a file.
    pub fn load(file: &[u8]) -> Result<Capture, LoadError> {
        let rest = file.strip_prefix(MAGIC).ok_or(LoadError::NotACapture)?;
        let (head, mut rest) = rest.split_first_chunk::<2>().ok_or(LoadError::Damaged)?;
        if head[0] != VERSION {
            return Err(LoadError::Version(head[0]));
        }
        if head[1] != BYTE_ORDER {
            return Err(LoadError::ByteOrder);
        }
        let mut part = || -> Result<Vec<u8>, LoadError> {
            let (length, tail) = rest.split_first_chunk::<4>().ok_or(LoadError::Damaged)?;
            let (bytes, tail) = tail
                .split_at_checked(u32::from_le_bytes(*length) as usize)
                .ok_or(LoadError::Damaged)?;
            rest = tail;
            Ok(bytes.to_vec())
        };
        let generation = part()?;
        let writer = part()?;
        let capture = Capture {
            generation: generation
                .first_chunk::<4>()
                .map(|b| u32::from_le_bytes(*b)),
            last_writer: if writer.is_empty() {
                None
            } else {
                Some(String::from_utf8_lossy(&writer).into_owned())
            },
            tables: Messages { bytes: part()? },
            chains: Messages { bytes: part()? },
            rules: Messages { bytes: part()? },
            sets: Messages { bytes: part()? },
            elements: Messages { bytes: part()? },
        };
        let whole = [
            &capture.tables,
            &capture.chains,
            &capture.rules,
            &capture.sets,
            &capture.elements,
        ]
        .into_iter()
        .all(Messages::well_formed);
        if whole && rest.is_empty() {
            Ok(capture)
        } else {
            Err(LoadError::Damaged)
        }
    }
}

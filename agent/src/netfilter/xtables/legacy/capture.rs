//! The kernel's own bytes of one iptables-legacy table: what the reader gets, what the decoder
//! takes, what is recorded and replayed.

use crate::netfilter::nftables::capture::LoadError;
use crate::netfilter::ruleset::TableFamily;
use std::hash::Hasher;

/// Size of `struct ipt_getinfo`, the same for both families.
pub const INFO: usize = 84;

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableCapture {
    /// [`TableFamily::Ip`] or [`TableFamily::Ip6`].
    pub family: TableFamily,
    /// Its name.
    pub name: String,
    /// `struct ipt_getinfo`.
    pub info: Vec<u8>,
    /// The entries, behind `start` bytes that are none.
    bytes: Vec<u8>,
    start: usize,
}

const MAGIC: &[u8; 8] = b"xtcapt\r\n";
const VERSION: u8 = 1;
/// Numbers in it are in the byte order of the machine that was read.
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };

impl TableCapture {
    /// The entries are what stands behind the first `start` of `bytes`.
    pub fn new(
        family: TableFamily,
        name: String,
        info: Vec<u8>,
        bytes: Vec<u8>,
        start: usize,
    ) -> TableCapture {
        let start = start.min(bytes.len());
        TableCapture {
            family,
            name,
            info,
            bytes,
            start,
        }
    }

    /// The entries one after the other (`struct ipt_entry`, `struct ip6t_entry`).
    pub fn entries(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The same, to be changed in place.
    pub fn entries_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).unwrap_or_default()
    }

    /// Takes in everything that decides what the table does: not the counters, which every packet
    /// changes.
    pub fn feed(&self, hasher: &mut impl Hasher) {
        hasher.write_u8(match self.family {
            TableFamily::Ip => 4,
            _ => 6,
        });
        hasher.write(self.name.as_bytes());
        hasher.write(&self.info);
        let layout = super::Layout::of(self.family);
        let mut rest = self.entries();
        while let Some((entry, tail)) = layout.split(rest) {
            let (before, after) = entry.split_at(layout.counters);
            hasher.write(before);
            hasher.write(after.get(16..).unwrap_or_default());
            rest = tail;
        }
        hasher.write(rest);
    }

    /// As bytes for a file: magic, version, byte order, family, then three parts (name, info,
    /// entries), each with its length (32 bits, little-endian).
    pub fn save(&self) -> Vec<u8> {
        let family = match self.family {
            TableFamily::Ip => 4,
            _ => 6,
        };
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&[VERSION, BYTE_ORDER, family]);
        for part in [self.name.as_bytes(), &self.info, self.entries()] {
            out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// From the bytes of a file.
    ///
    /// # Errors
    /// The file is none of these, is of another machine's kind, or is cut off.
    pub fn load(file: &[u8]) -> Result<TableCapture, LoadError> {
        let rest = file.strip_prefix(MAGIC).ok_or(LoadError::NotACapture)?;
        let (head, mut rest) = rest.split_first_chunk::<3>().ok_or(LoadError::Damaged)?;
        if head[0] != VERSION {
            return Err(LoadError::Version(head[0]));
        }
        if head[1] != BYTE_ORDER {
            return Err(LoadError::ByteOrder);
        }
        let family = match head[2] {
            4 => TableFamily::Ip,
            6 => TableFamily::Ip6,
            _ => return Err(LoadError::Damaged),
        };
        let mut part = || -> Result<Vec<u8>, LoadError> {
            let (length, tail) = rest.split_first_chunk::<4>().ok_or(LoadError::Damaged)?;
            let (bytes, tail) = tail
                .split_at_checked(u32::from_le_bytes(*length) as usize)
                .ok_or(LoadError::Damaged)?;
            rest = tail;
            Ok(bytes.to_vec())
        };
        let name = String::from_utf8(part()?).map_err(|_| LoadError::Damaged)?;
        let (info, entries) = (part()?, part()?);
        if rest.is_empty() {
            Ok(TableCapture::new(family, name, info, entries, 0))
        } else {
            Err(LoadError::Damaged)
        }
    }
}

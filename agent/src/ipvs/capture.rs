//! What the kernel gave, undecoded: messages without their netlink headers.

use crate::netfilter::nftables::capture::LoadError;

/// IPVS and ipsets of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// IPVS.
    pub servers: Capture,
    /// ipsets; empty where no rule refers to one.
    pub sets: Vec<SetCapture>,
}

/// All virtual servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// In the kernel's order.
    pub servers: Vec<Server>,
}

/// One virtual server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// `IPVS_CMD_NEW_SERVICE`.
    pub service: Vec<u8>,
    /// `IPVS_CMD_NEW_DEST`, one for each real server.
    pub destinations: Vec<Vec<u8>>,
}

/// One ipset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetCapture {
    /// `IPSET_CMD_LIST`, as many as the kernel needed.
    pub messages: Vec<Vec<u8>>,
    /// Its elements were asked for.
    pub listed: bool,
}

const MAGIC: &[u8; 8] = b"vscapt\r\n";
const VERSION: u8 = 1;
/// Attribute headers are in the byte order of the machine that was read.
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };

/// What a message in a file is.
const SERVICE: u8 = 1;
const DESTINATION: u8 = 2;
/// The first message of a set whose elements were asked for.
const SET: u8 = 3;
/// The first message of one whose elements were not.
const HEADER: u8 = 4;
/// A further message of the set before.
const MORE: u8 = 5;

impl Captured {
    /// As bytes for a file: magic, version, byte order, then each message with its kind and its length
    /// (32 bits, little-endian).
    pub fn save(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&[VERSION, BYTE_ORDER]);
        let mut put = |kind: u8, message: &[u8]| {
            out.push(kind);
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(message);
        };
        for server in &self.servers.servers {
            put(SERVICE, &server.service);
            for message in &server.destinations {
                put(DESTINATION, message);
            }
        }
        for set in &self.sets {
            let first = if set.listed { SET } else { HEADER };
            for (i, message) in set.messages.iter().enumerate() {
                put(if i == 0 { first } else { MORE }, message);
            }
        }
        out
    }

    /// From the bytes of a file.
    ///
    /// # Errors
    /// The file is none of these, is of another machine's kind, or is cut off.
    pub fn load(file: &[u8]) -> Result<Captured, LoadError> {
        let rest = file.strip_prefix(MAGIC).ok_or(LoadError::NotACapture)?;
        let (head, mut rest) = rest.split_first_chunk::<2>().ok_or(LoadError::Damaged)?;
        if head[0] != VERSION {
            return Err(LoadError::Version(head[0]));
        }
        if head[1] != BYTE_ORDER {
            return Err(LoadError::ByteOrder);
        }
        let mut captured = Captured::default();
        while let Some((head, tail)) = rest.split_first_chunk::<5>() {
            let [kind, length @ ..] = *head;
            let (message, tail) = tail
                .split_at_checked(u32::from_le_bytes(length) as usize)
                .ok_or(LoadError::Damaged)?;
            rest = tail;
            let message = message.to_vec();
            let servers = &mut captured.servers.servers;
            match kind {
                SERVICE => servers.push(Server {
                    service: message,
                    destinations: Vec::new(),
                }),
                DESTINATION => {
                    let server = servers.last_mut().ok_or(LoadError::Damaged)?;
                    server.destinations.push(message);
                }
                SET | HEADER => captured.sets.push(SetCapture {
                    messages: vec![message],
                    listed: kind == SET,
                }),
                MORE => {
                    let set = captured.sets.last_mut().ok_or(LoadError::Damaged)?;
                    set.messages.push(message);
                }
                _ => return Err(LoadError::Damaged),
            }
        }
        if rest.is_empty() {
            Ok(captured)
        } else {
            Err(LoadError::Damaged)
        }
    }
}

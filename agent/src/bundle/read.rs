//! Reading a bundle, which a stranger may have written: everything is bounded, and nothing of it is
//! written anywhere.

use super::{About, Captures, FORMAT, KernelRead, Recorded};
use crate::ipvs::capture::Captured;
use crate::netfilter::nftables::capture::{self, Capture};
use crate::netfilter::xtables::legacy::capture::TableCapture;
use serde::Deserialize;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

/// `ZSTD_MAGICNUMBER`, little-endian (RFC 8878 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What a bundle may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one entry: a table of iptables-legacy at 5,000 Services of ten endpoints is 97 MB.
    pub entry: u64,
    /// Bytes altogether, decompressed.
    pub total: u64,
    /// Captures in use at once: nf_tables, and five tables of two families of iptables-legacy.
    pub captures: usize,
    /// Passes.
    pub passes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entry: 1 << 30,
            total: 8 << 30,
            captures: 16,
            passes: 10_000,
        }
    }
}

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is something else.
    #[error("not a bundle")]
    NotABundle,
    /// Written by another version of the format.
    #[error("bundle of format {found}, written by agent {agent}; this agent reads format {FORMAT}")]
    Format {
        /// The file's.
        found: u32,
        /// The agent that wrote it, as the file says.
        agent: String,
    },
    /// It ends too soon.
    #[error("bundle cut off: it ends in the middle")]
    CutOff,
    /// It holds more than this program takes.
    #[error("bundle too large: {0}")]
    TooLarge(String),
    /// Its content does not make sense.
    #[error("bundle damaged: {0}")]
    Damaged(String),
    /// One of its captures cannot be used.
    #[error("bundle damaged: {entry}: {why}")]
    Capture {
        /// Which.
        entry: String,
        /// Why.
        why: capture::LoadError,
    },
    /// The file could not be read.
    #[error(transparent)]
    Io(io::Error),
}

/// What reading comes across.
#[derive(Debug)]
pub enum Step<'a> {
    /// First of all.
    About(&'a About),
    /// A pass, with the rules that it saw where they are others than those of the pass before.
    Pass(Box<Recorded>, Option<&'a Captures>),
}

/// Reads a bundle and hands over what it holds. No more than the captures of one pass are held.
///
/// # Errors
/// As [`LoadError`] says. What was handed over before is of no use then: the checksum stands at the
/// end.
pub fn read(
    mut input: impl BufRead,
    limits: Limits,
    mut each: impl FnMut(Step<'_>),
) -> Result<About, LoadError> {
    if !input.fill_buf().map_err(LoadError::Io)?.starts_with(&ZSTD) {
        return Err(LoadError::NotABundle);
    }
    let left = Rc::new(Cell::new(limits.total));
    let bounded = Bounded {
        inner: zstd::Decoder::with_buffer(input).map_err(LoadError::Io)?,
        left: left.clone(),
    };
    let mut archive = tar::Archive::new(bounded);
    let bad = |error: io::Error| match error.kind() {
        _ if left.get() == 0 => {
            LoadError::TooLarge(format!("more than {} bytes, decompressed", limits.total))
        }
        io::ErrorKind::UnexpectedEof => LoadError::CutOff,
        _ => LoadError::Damaged(error.to_string()),
    };
    let mut about: Option<About> = None;
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    let mut last: Option<KernelRead> = None;
    let mut passes = 0;
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        if size > limits.entry {
            return Err(LoadError::TooLarge(format!("{name:?} has {size} bytes")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(bad)?;
        if bytes.len() as u64 != size {
            return Err(LoadError::CutOff);
        }
        let Some(about) = &about else {
            if name != "about.json" {
                return Err(LoadError::NotABundle);
            }
            let found = about_of(&bytes)?;
            each(Step::About(&found));
            about = Some(found);
            continue;
        };
        let _ = about;
        if name.ends_with(".capture") {
            files.insert(name, bytes);
            if files.len() > 2 * limits.captures {
                return Err(LoadError::TooLarge("too many captures in one pass".into()));
            }
            continue;
        }
        passes += 1;
        if name != format!("{passes}-pass.json") {
            return Err(LoadError::Damaged(format!("{name:?} is not expected here")));
        }
        if passes > limits.passes {
            return Err(LoadError::TooLarge(format!("more than {passes} passes")));
        }
        let pass: Recorded = serde_json::from_slice(&bytes)
            .map_err(|e| LoadError::Damaged(format!("{name}: {e}")))?;
        drop(bytes);
        let captures = if last.as_ref() == Some(&pass.kernel) {
            None
        } else {
            captures(&pass.kernel, &mut files, limits)?
        };
        last = Some(pass.kernel.clone());
        each(Step::Pass(Box::new(pass), captures.as_ref()));
    }
    // Up to the checksum, and to what may stand behind the end.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(bad)?;
    let about = about.ok_or(LoadError::NotABundle)?;
    if passes == 0 {
        return Err(LoadError::Damaged("it holds no pass".into()));
    }
    Ok(about)
}

/// The rules that a pass names; what it does not name is not kept for the next.
fn captures(
    kernel: &KernelRead,
    files: &mut HashMap<String, Vec<u8>>,
    limits: Limits,
) -> Result<Option<Captures>, LoadError> {
    let KernelRead::Read {
        nf_tables,
        legacy,
        ipvs,
    } = kernel
    else {
        return Ok(None);
    };
    if legacy.len() > limits.captures {
        return Err(LoadError::TooLarge("too many captures in one pass".into()));
    }
    files.retain(|name, _| {
        nf_tables.as_ref() == Some(name) || ipvs.as_ref() == Some(name) || legacy.contains(name)
    });
    let file = |name: &String| {
        files
            .get(name)
            .ok_or_else(|| LoadError::Damaged(format!("{name:?} is named, but is not there")))
    };
    let wrong = |name: &String| {
        let entry = name.clone();
        move |why| LoadError::Capture { entry, why }
    };
    Ok(Some(Captures {
        nf_tables: match nf_tables {
            Some(name) => Some(Capture::load(file(name)?).map_err(wrong(name))?),
            None => None,
        },
        legacy: legacy
            .iter()
            .map(|name| TableCapture::load(file(name)?).map_err(wrong(name)))
            .collect::<Result<_, _>>()?,
        ipvs: match ipvs {
            Some(name) => Some(Captured::load(file(name)?).map_err(wrong(name))?),
            None => None,
        },
    }))
}

fn about_of(bytes: &[u8]) -> Result<About, LoadError> {
    /// What every format has.
    #[derive(Deserialize)]
    struct Any {
        format: u32,
        #[serde(default)]
        agent: String,
    }
    let any: Any = serde_json::from_slice(bytes).map_err(|_| LoadError::NotABundle)?;
    if any.format != FORMAT {
        return Err(LoadError::Format {
            found: any.format,
            agent: any.agent.chars().take(64).collect(),
        });
    }
    serde_json::from_slice(bytes).map_err(|e| LoadError::Damaged(format!("about.json: {e}")))
}

/// No more than so many bytes.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("too large"));
        }
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

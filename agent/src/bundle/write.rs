//! Writing a bundle.

use super::{About, Recorded};
use std::io::{self, Write};

/// Compression: 19 takes ten times as long for a tenth less.
const LEVEL: i32 = 6;
/// Two captures of one node are nearly the same: the window is large enough to see it, bits.
const WINDOW: u32 = 27;

/// Writes a bundle, entry by entry.
pub struct Writer<W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, W>>,
    /// Time of all entries, seconds.
    time: u64,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with what it is about.
    ///
    /// # Errors
    /// Of writing.
    pub fn new(out: W, about: &About) -> io::Result<Writer<W>> {
        let mut encoder = zstd::Encoder::new(out, LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.long_distance_matching(true)?;
        encoder.window_log(WINDOW)?;
        let mut writer = Writer {
            tar: tar::Builder::new(encoder),
            time: about.made.0 / 1_000,
            written: 0,
        };
        writer.json("about.json", about)?;
        Ok(writer)
    }

    /// Adds a capture.
    ///
    /// # Errors
    /// Of writing.
    pub fn capture(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        self.written += bytes.len() as u64;
        self.tar.append_data(&mut header, name, bytes)
    }

    /// Adds a pass, behind the captures that it is the first to use. Numbers are from 1.
    ///
    /// # Errors
    /// Of writing.
    pub fn pass(&mut self, number: u64, pass: &Recorded) -> io::Result<()> {
        self.json(&format!("{number}-pass.json"), pass)
    }

    /// Bytes so far, before compression.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Ends it.
    ///
    /// # Errors
    /// Of writing.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()?.finish()
    }

    fn json(&mut self, name: &str, value: &impl serde::Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(value).map_err(io::Error::other)?;
        self.capture(name, &text)
    }
}

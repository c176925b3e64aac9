//! Putting passes into a bundle: what did not change since the pass before is named, not repeated.

use super::kernel::{same_ipvs, same_legacy, same_nf_tables};
use super::pseudonyms::Pseudonyms;
use super::{About, Captures, KernelRead, Recorded, ViewChange, Writer};
use model::capture::Gap;
use model::name::ServiceName;
use model::profile::{ProxyHealth, ProxyProfile};
use model::time::Now;
use model::view::{ClusterView, LocalAddress};
use std::io::{self, Write};
use std::sync::Arc;

/// Bytes, before compression, above which no more is recorded: what is there already is enough to
/// repeat a verdict, if not the last one.
const ENOUGH: u64 = 4 << 30;

/// Writes passes one after the other.
pub struct Recorder<W: Write> {
    writer: Writer<W>,
    pseudonyms: Option<Pseudonyms>,
    passes: u64,
    /// What the pass before saw, with the entries that hold it.
    captures: Captures,
    nf_tables: Option<String>,
    legacy: Vec<String>,
    ipvs: Option<String>,
    view: Arc<ClusterView>,
}

/// What one pass looked at.
pub struct Looked {
    /// When the kernel was read.
    pub at: Now,
    /// Its rules, or why there are none.
    pub kernel: Result<Captures, Gap>,
    /// Addresses on the node's links.
    pub addresses: Result<Vec<LocalAddress>, String>,
    /// The API's objects.
    pub view: Arc<ClusterView>,
    /// Who programs the node.
    pub profile: ProxyProfile,
    /// kube-proxy's health.
    pub proxy: Option<ProxyHealth>,
    /// What could not be learnt.
    pub gaps: Vec<Gap>,
    /// Services fetched again.
    pub refreshed: Vec<ServiceName>,
}

impl<W: Write> Recorder<W> {
    /// Begins. With `pseudonyms` every name is replaced on its way into the file.
    ///
    /// # Errors
    /// Of writing.
    pub fn new(
        out: W,
        mut about: About,
        mut pseudonyms: Option<Pseudonyms>,
    ) -> io::Result<Recorder<W>> {
        if let Some(names) = &mut pseudonyms {
            about.node = names.node_name(&about.node);
        }
        about.pseudonyms = pseudonyms.is_some();
        Ok(Recorder {
            writer: Writer::new(out, &about)?,
            pseudonyms,
            passes: 0,
            captures: Captures::default(),
            nf_tables: None,
            legacy: Vec::new(),
            ipvs: None,
            view: Arc::default(),
        })
    }

    /// Adds a pass. False: that is enough, nothing more should be recorded.
    ///
    /// # Errors
    /// Of writing.
    pub fn pass(&mut self, looked: Looked) -> io::Result<bool> {
        self.passes += 1;
        let kernel = match looked.kernel {
            Ok(captures) => self.captures(captures)?,
            Err(gap) => KernelRead::Failed(gap),
        };
        let mut pass = Recorded {
            at: looked.at,
            kernel,
            addresses: looked.addresses,
            view: ViewChange::between(&self.view, &looked.view),
            profile: looked.profile,
            proxy: looked.proxy,
            gaps: looked.gaps,
            refreshed: looked.refreshed,
        };
        self.view = looked.view;
        if let Some(names) = &mut self.pseudonyms {
            names.pass(&mut pass);
        }
        self.writer.pass(self.passes, &pass)?;
        Ok(self.writer.written() < ENOUGH)
    }

    /// Ends the file; gives it back with the names that were replaced.
    ///
    /// # Errors
    /// Of writing.
    pub fn finish(self) -> io::Result<(W, Option<Pseudonyms>)> {
        Ok((self.writer.finish()?, self.pseudonyms))
    }

    fn captures(&mut self, new: Captures) -> io::Result<KernelRead> {
        let number = self.passes;
        let same = match (&new.nf_tables, &self.captures.nf_tables) {
            (Some(new), Some(old)) => same_nf_tables(new, old),
            (new, old) => new.is_none() && old.is_none(),
        };
        if !same {
            self.nf_tables = match &new.nf_tables {
                Some(capture) => {
                    let name = format!("{number}-nf_tables.capture");
                    let mut capture = capture.clone();
                    if let Some(names) = &mut self.pseudonyms {
                        names.nf_tables(&mut capture);
                    }
                    self.writer.capture(&name, &capture.save())?;
                    Some(name)
                }
                None => None,
            };
        }
        let mut legacy = Vec::with_capacity(new.legacy.len());
        for table in &new.legacy {
            let old = self.captures.legacy.iter().zip(&self.legacy);
            let old = old
                .filter(|(old, _)| old.family == table.family && old.name == table.name)
                .find(|(old, _)| same_legacy(old, table));
            if let Some((_, name)) = old {
                legacy.push(name.clone());
                continue;
            }
            let family = table.family.word();
            let name = format!("{number}-iptables-legacy-{family}-{}.capture", table.name);
            match &mut self.pseudonyms {
                Some(names) => {
                    let mut table = table.clone();
                    names.legacy(&mut table);
                    self.writer.capture(&name, &table.save())?;
                }
                None => self.writer.capture(&name, &table.save())?,
            }
            legacy.push(name);
        }
        if !same_ipvs(&new.ipvs, &self.captures.ipvs) {
            self.ipvs = match &new.ipvs {
                Some(captured) => {
                    let name = format!("{number}-ipvs.capture");
                    self.writer.capture(&name, &captured.save())?;
                    Some(name)
                }
                None => None,
            };
        }
        self.captures = new;
        self.legacy = legacy.clone();
        Ok(KernelRead::Read {
            nf_tables: self.nf_tables.clone(),
            legacy,
            ipvs: self.ipvs.clone(),
        })
    }
}

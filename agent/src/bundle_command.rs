//! `bundle`: looks as `check` does, and writes down everything it looked at.

use crate::check::{LISTED, Patience, print_report};
use crate::clock;
use crate::config::BundleFlags;
use crate::world::{Usage, World};
use agent::bundle::pseudonyms::Pseudonyms;
use agent::bundle::{About, Captures, FORMAT, Limits, LoadError, Looked, Recorder};
use agent::host::links;
use agent::replay::{Judge, Seen, play};
use anyhow::Context;
use model::capture::Reading;
use model::examine::Examined;
use model::finding::Finding;
use model::name::ServiceName;
use model::report::Report;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Where the bundle goes.
pub enum Output {
    /// A file.
    File(File),
    /// Standard output.
    Stdout,
}

impl Output {
    /// Opens it, before rights are given up: the directory may be another user's. Only its owner can
    /// read it; it names everything in the cluster.
    pub fn open(path: &Path) -> anyhow::Result<Output> {
        if path == Path::new("-") {
            return Ok(Output::Stdout);
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options
            .open(path)
            .map_err(|e| Usage(format!("--output {}: {e}", path.display())))?;
        Ok(Output::File(file))
    }

    fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Output::File(mut file) => {
                file.write_all(bytes)?;
                file.sync_all()
            }
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
        }
    }
}

/// Runs `bundle`; gives its exit code.
pub async fn bundle(flags: BundleFlags, output: Output) -> anyhow::Result<u8> {
    let mut patience = Patience::new(flags.wait);
    let world = World::start(&flags.source).await?;
    let ready = world
        .ready(LISTED.min(flags.wait.max(Duration::from_secs(5))))
        .await;
    let about = About {
        format: FORMAT,
        agent: env!("CARGO_PKG_VERSION").into(),
        node: flags.source.node.clone(),
        made: clock::now().wall,
        pseudonyms: flags.pseudonyms,
    };
    let pseudonyms = flags.pseudonyms.then(Pseudonyms::new);
    let mut recorder = Recorder::new(Vec::new(), about, pseudonyms)?;
    let mut judge = Judge::new(flags.source.node.clone());
    let mut refreshed = Vec::new();
    let mut passes = 0;
    let report = loop {
        let fetched = std::mem::take(&mut refreshed);
        let (examined, unread, room);
        (examined, unread, room, recorder, judge) = look(&world, fetched, recorder, judge).await?;
        passes += 1;
        let report = examined.report;
        if patience.ends(&report, unread) || !ready || !room {
            break report;
        }
        if !examined.refresh.is_empty() {
            refreshed = world.refresh(examined.refresh).await;
        }
        tokio::time::sleep(crate::check::APART).await;
    };
    let (bytes, pseudonyms) = recorder.finish()?;
    // Nothing is written that does not give the same verdict again.
    let (_, again) = play(bytes.as_slice(), Limits::default()).map_err(unfit)?;
    if let Some(difference) = differs(&report, &again, pseudonyms) {
        anyhow::bail!("not written: replaying it would say something else: {difference}");
    }
    output.write(&bytes).context("writing the bundle")?;
    if let Some(form) = flags.report {
        print_report(form, &report)?;
    }
    eprintln!(
        "vipwitness-agent: {passes} passes in {} kB: {}",
        bytes.len().div_ceil(1_000),
        report.verdict.escape_debug()
    );
    Ok(0)
}

fn unfit(error: LoadError) -> anyhow::Error {
    anyhow::anyhow!("not written: it could not be read again: {error}")
}

type Done = (Examined, bool, bool, Recorder<Vec<u8>>, Judge);

/// One pass, on a thread that may block: judged, whether something could not be read, and whether
/// there is room for another.
async fn look(
    world: &Arc<World>,
    refreshed: Vec<ServiceName>,
    mut recorder: Recorder<Vec<u8>>,
    mut judge: Judge,
) -> anyhow::Result<Done> {
    let world = world.clone();
    let done = tokio::task::spawn_blocking(move || -> io::Result<Done> {
        let at = clock::now();
        let kernel = Captures::read();
        let addresses = links::addresses().map_err(|e| e.to_string());
        // In this order: what the kernel shows must not be newer than what the API is known to say.
        let moment = world.moment();
        let reading = match &kernel {
            Ok(captures) => captures.decode(),
            Err(gap) => Reading::Failed(gap.clone()),
        };
        let examined = judge.pass(Seen {
            at,
            reading: &reading,
            addresses: &addresses,
            view: &moment.view,
            profile: &moment.profile,
            proxy: moment.proxy.as_ref(),
            gaps: &moment.gaps,
            refreshed: &refreshed,
            partial: false,
        });
        let unread = kernel.is_err() || addresses.is_err();
        let room = recorder.pass(Looked {
            at,
            kernel,
            addresses,
            view: moment.view,
            profile: moment.profile,
            proxy: moment.proxy,
            gaps: moment.gaps,
            refreshed,
        })?;
        Ok((examined, unread, room, recorder, judge))
    });
    match done.await {
        Ok(done) => Ok(done?),
        // A panic in a pass is a fault of this program, not an answer.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What a replay says otherwise. With pseudonyms, the names in it are translated first; sentences
/// are not compared then.
fn differs(said: &Report, again: &Report, pseudonyms: Option<Pseudonyms>) -> Option<String> {
    let Some(mut names) = pseudonyms else {
        let mut said = said.clone();
        said.took_ms = again.took_ms;
        return (said != *again).then(|| again.verdict.clone());
    };
    if said.judged != again.judged {
        return Some(format!("{:?} judged, not {:?}", again.judged, said.judged));
    }
    let mut facts = |findings: &[Finding], translated: bool| {
        let mut all: Vec<String> = findings
            .iter()
            .map(|f| {
                let mut service = f.service.clone();
                if let Some(name) = service.as_mut().filter(|_| !translated) {
                    name.service = names.service_name(&name.service);
                }
                format!(
                    "{:?} {:?} {service:?} {:?} {:?} {:?} {:?} {} {}",
                    f.kind,
                    f.severity,
                    f.frontend,
                    f.sources,
                    f.backend,
                    f.since,
                    f.absorbs,
                    f.recurring
                )
            })
            .collect();
        all.sort();
        all
    };
    for (said, again) in [
        (&said.findings, &again.findings),
        (&said.converging, &again.converging),
    ] {
        let (said, again) = (facts(said, false), facts(again, true));
        if said != again {
            return Some(format!("{again:?}, not {said:?}"));
        }
    }
    None
}

//! Questions to an agent on its own node, through the unix socket: who may ask, what is answered at
//! once after damage, and what the socket survives.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::agents::{Agent, Programs, Source, Spec};
use tests::cache::Version;
use tests::cleanup::Folder;
use tests::command;
use tests::proxy::Mode;
use tests::recording::Recording;
use tests::topology::{Hub, Node};

/// A machine that is busy with other tests is slow; nothing here waits this long by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A node with the rules of a real kube-proxy, and a place for sockets.
struct Place {
    hub: Hub,
    node: Node,
    recording: Recording,
    programs: Programs,
    folder: Folder,
}

/// What `ask` gave.
struct Asked {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Asked {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {:?} {}\n{}", self.code, self.out, self.err))
    }

    /// `state` of every row.
    fn states(&self) -> Vec<String> {
        let all = self.json();
        let rows = all["rows"].as_array().unwrap();
        rows.iter()
            .map(|row| row["state"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Place {
    fn new() -> Option<Place> {
        if !tests::packages::is_root() {
            println!("network namespaces need root: not run");
            return None;
        }
        let programs = Programs::build().unwrap();
        let hub = Hub::create().unwrap();
        let recording = Recording::of(Version::V1_37, Mode::Nftables);
        let place = recording.place().unwrap();
        let node = hub.add_node_at(&place.name, place.index).unwrap();
        recording.load(node.netns()).unwrap();
        Some(Place {
            hub,
            node,
            recording,
            programs,
            folder: Folder::create("ask").unwrap(),
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("run/agent.sock")
    }

    /// An agent that looks on its own once an hour: whatever is seen sooner was asked for.
    fn agent(&self) -> Agent {
        let mut spec = Spec::new(Source::Manifests(self.recording.manifests()));
        spec.kube_proxy_config = Some(self.recording.configuration());
        spec.proxy_version = Some(self.recording.version.minor().to_owned());
        spec.flags = ["--interval", "1h", "--socket"].map(str::to_owned).into();
        spec.flags.push(self.socket().display().to_string());
        Agent::start(&self.programs, &self.node, &spec).unwrap()
    }

    fn ask(&self, arguments: &[&str]) -> Asked {
        let mut ask = std::process::Command::new(&self.programs.agent);
        ask.arg("ask").args(arguments);
        ask.arg("--socket").arg(self.socket());
        let output = command::attempt(&mut ask).unwrap();
        Asked {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Waits until a fresh look at `shop/web` gives rows of which all, or not all, agree.
    fn until_agrees(&self, agent: &mut Agent) {
        let what = "shop/web to agree with the API";
        let looked = agent.process().until(what, LIMIT, || {
            let asked = self.ask(&["svc/shop/web", "--fresh", "--output", "json"]);
            if asked.code != Some(0) {
                return Ok(None);
            }
            let states = asked.states();
            let all = !states.is_empty() && states.iter().all(|state| state == "agrees");
            Ok(all.then_some(()))
        });
        looked.unwrap();
    }
}

/// Sends bytes and gives what comes back, if anybody listens.
fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // The other side may have hung up before all was written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What connecting gives to another user: the kernel judges by the thread's own ids, and only this
/// thread's are changed.
fn connect_as(user: libc::c_long, socket: &Path) -> Result<(), ErrorKind> {
    let socket = socket.to_owned();
    let thread = std::thread::spawn(move || {
        for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
            // SAFETY: both take three integers; called directly they change this thread only.
            assert_eq!(unsafe { libc::syscall(call, user, user, user) }, 0);
        }
        UnixStream::connect(socket).map(drop).map_err(|e| e.kind())
    });
    thread.join().unwrap()
}

#[test]
fn a_fresh_question_sees_damage_at_once() {
    let Some(place) = Place::new() else { return };
    let mut agent = place.agent();
    place.until_agrees(&mut agent);

    let plant = "nft delete element ip kube-proxy service-ips '{ 10.96.10.10 . tcp . 80 }'";
    place.node.netns().run("sh", ["-c", plant]).unwrap();
    let before = place.ask(&["svc/web", "--output", "json"]);
    assert_eq!(before.json()["data"]["fresh"], false);
    assert!(
        before.states().iter().all(|state| state == "agrees"),
        "the last look was before the damage: {}",
        before.out
    );
    let start = Instant::now();
    let after = place.ask(&["svc/web", "--fresh", "--output", "json"]);
    println!("a fresh answer took {:?}", start.elapsed());
    let all = after.json();
    assert_eq!(all["data"]["fresh"], true, "{}", after.out);
    assert!(
        after.states().iter().any(|state| state == "converging"),
        "{}",
        after.out
    );
    // kube-proxy refuses addresses of the Service range that it has no element for.
    assert_eq!(all["converging"][0]["kind"], "wrong_action");
    assert_eq!(all["converging"][0]["frontend"], "10.96.10.10:80/TCP");
    // A second reading, half a second later, confirms it.
    let confirmed = agent.process().until("the finding", LIMIT, || {
        let text = place.ask(&["svc/web", "--fresh"]);
        Ok((text.code == Some(0) && text.out.contains("DIFFERS")).then_some(()))
    });
    confirmed.unwrap();
    assert!(place.ask(&["findings"]).out.contains("wrong_action"));

    place.node.netns().run("nft", ["flush", "ruleset"]).unwrap();
    place.recording.load(place.node.netns()).unwrap();
    place.until_agrees(&mut agent);

    // Many who ask at once share passes.
    let passes = || {
        let node = place.ask(&["node", "--output", "json"]).json();
        node["data"]["pass"].as_u64().unwrap()
    };
    let first = passes();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| exchange(&place.socket(), b"GET /node?fresh=wait HTTP/1.0\r\n\r\n"));
        }
    });
    let made = passes() - first;
    assert!((1..=6).contains(&made), "{made} passes for 12 questions");
    drop(place.hub);
}

#[test]
fn the_socket_is_for_root_and_survives_what_comes() {
    let Some(place) = Place::new() else { return };
    let socket = place.socket();
    assert_eq!(place.ask(&["node"]).code, Some(2), "nobody answers yet");
    let mut agent = place.agent();
    place.until_agrees(&mut agent);

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    assert_eq!(connect_as(0, &socket), Ok(()));
    assert_eq!(
        connect_as(65_534, &socket),
        Err(ErrorKind::PermissionDenied)
    );
    // By the file's own mode, too.
    std::fs::set_permissions(
        socket.parent().unwrap(),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(
        connect_as(65_534, &socket),
        Err(ErrorKind::PermissionDenied)
    );

    // Questions that are wrong.
    for (question, code, says) in [
        ("svc/nothing", 64, "/svc/shop/web"),
        ("svc/shop/nothing", 64, "/svc/shop/"),
        ("bogus", 64, "/findings"),
        ("node?fresh=now", 64, "fresh=wait"),
    ] {
        let asked = place.ask(&[question]);
        assert_eq!(asked.code, Some(code), "{question}: {}", asked.err);
        assert!(asked.err.contains(says), "{question}: {}", asked.err);
        assert!(asked.out.is_empty(), "{question}");
    }
    let healthy = "GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n";
    assert!(exchange(&socket, healthy.as_bytes()).starts_with("HTTP/1.1 200"));
    assert!(exchange(&socket, b"POST /node HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 405"));
    // What is no question at all.
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01 hello\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /node HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
    ] {
        let answer = exchange(&socket, garbage);
        assert!(answer.starts_with("HTTP/1.1 400"), "{garbage:?}: {answer}");
    }
    let long = format!("GET /node HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = exchange(&socket, long.as_bytes());
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    // Connections that say nothing are let go of, and others get their turn.
    let silent: Vec<UnixStream> = (0..16)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert!(exchange(&socket, healthy.as_bytes()).starts_with("HTTP/1.1 200"));
    drop(silent);
    assert!(agent.process().ended().unwrap().is_none());

    // A second agent on the same socket says so, and the first goes on.
    let mut second = place.agent();
    let process = second.process();
    let end = tests::wait::until("the second agent's end", LIMIT, || process.ended()).unwrap();
    assert_eq!(end.code(), Some(64));
    let log = second.process().log_tail();
    let says = format!(
        "another agent (process {}) answers on",
        agent.process().id()
    );
    assert!(log.contains(&says), "{log}");
    assert_eq!(place.ask(&["healthz"]).code, Some(0));

    // Killed without a chance to clean up: the file stays, and the next agent replaces it.
    agent.process().kill().unwrap();
    assert!(
        std::fs::symlink_metadata(&socket)
            .unwrap()
            .file_type()
            .is_socket()
    );
    assert_eq!(place.ask(&["healthz"]).code, Some(2));
    let mut next = place.agent();
    place.until_agrees(&mut next);
    // Ended as it should be: nothing is left to connect to.
    next.process().stop().unwrap();
    assert!(!socket.exists());
    drop(place.hub);
}

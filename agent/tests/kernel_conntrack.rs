//! Statistics of connection tracking against the real kernel, with the package `conntrack` as second
//! witness; each test in a network namespace of its own thread. Needs root; without it each test says
//! so and is skipped.
//!
//! The kernel's limit belongs to the machine and is read-only in a namespace (laboratory), so a table is
//! filled up to that limit instead of the limit being lowered to the table.

mod namespace;

use agent::conntrack::Watch;
use agent::host::conntrack::{ReadError, Reader};
use caps::{CapSet, Capability};
use model::capture::Reading;
use model::conntrack::{Counter, Counters, Forecast, Meter, Sample, Timeout, hints};
use model::time::{Millis, Mono, Now};
use namespace::{in_namespace, run};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// Above it the machine's table is too large to be filled here.
const FILLABLE: u32 = 600_000;
/// Entries that one message to the kernel makes.
const BATCH: u32 = 200;

/// A link to nobody: what is sent to 192.0.2.2 leaves by one end of a veth pair and ends at the other.
/// The rule has the kernel track connections in this namespace.
fn tracked_link() {
    run(
        "sh",
        &["-ec", "
            ip link set lo up
            ip link add out0 type veth peer name in0
            ip addr add 192.0.2.1/24 dev out0
            ip link set out0 up
            ip link set in0 up
            ip neigh add 192.0.2.2 lladdr $(ip -o link show in0 | sed 's/.*ether \\([^ ]*\\).*/\\1/') dev out0 nud permanent
        "],
        "",
    );
    run(
        "nft",
        &["-f", "-"],
        "table ip track {\n chain out {\n type filter hook output priority 0\n ct state new counter\n }\n }\n",
    );
}

/// Sends one datagram from each of so many ports; gives how many the kernel refused.
fn send_from_new_ports(number: u32) -> u32 {
    let mut refused = 0;
    for _ in 0..number {
        let socket = UdpSocket::bind("192.0.2.1:0").expect("bind");
        if socket.send_to(b"x", "192.0.2.2:9").is_err() {
            refused += 1;
        }
    }
    refused
}

fn read(reader: &mut Reader) -> Sample {
    reader.read().expect("read")
}

fn sums(sample: &Sample) -> Counters<u64> {
    let sum = |c| -> Option<u64> {
        let each = sample
            .cpus
            .iter()
            .map(|cpu| cpu.counters.get(c).map(u64::from));
        each.sum()
    };
    Counter::ALL
        .into_iter()
        .filter_map(|c| Some((c, sum(c)?)))
        .collect()
}

/// What `conntrack -S` prints, summed over its CPUs, and how many those are.
fn witness() -> (Counters<u64>, usize) {
    let text = run("conntrack", &["-S"], "");
    let mut sums = Counters::default();
    for pair in text.split_whitespace() {
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let word = if name == "chaintoolong" {
            "chain_toolong"
        } else {
            name
        };
        if let Some(c) = Counter::ALL.into_iter().find(|c| c.word() == word) {
            let before = sums.get(c).unwrap_or(0);
            sums.set(c, before + value.parse::<u64>().expect("a number"));
        }
    }
    (sums, text.lines().count())
}

fn witness_entries() -> u32 {
    let text = run("conntrack", &["-C"], "");
    text.trim().parse().expect("a number")
}

/// Makes entries of UDP flows, as `conntrack -I` does, many at once. `assured`: the kernel may not evict
/// them. Numbers tell flows apart.
fn make(numbers: std::ops::Range<u32>, assured: bool) {
    fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
        out.extend((4 + value.len() as u16).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    fn nest(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut inner = Vec::new();
        for (kind, value) in parts {
            attribute(&mut inner, *kind, value);
        }
        let mut out = Vec::new();
        attribute(&mut out, kind | 0x8000, &inner);
        out
    }
    fn tuple(kind: u16, from: (u32, u16), to: (u32, u16)) -> Vec<u8> {
        let ip = nest(1, &[(1, &from.0.to_be_bytes()), (2, &to.0.to_be_bytes())]);
        let (source, target) = (from.1.to_be_bytes(), to.1.to_be_bytes());
        let port = nest(2, &[(1, &[17]), (2, &source), (3, &target)]);
        let mut out = Vec::new();
        attribute(&mut out, kind | 0x8000, &[ip, port].concat());
        out
    }
    // SAFETY: a plain system call.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_NETFILTER,
        )
    };
    assert!(fd >= 0, "socket");
    // SAFETY: the descriptor was just opened and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut next = numbers.start;
    while next < numbers.end {
        let end = (next + BATCH).min(numbers.end);
        let mut batch = Vec::new();
        for n in next..end {
            let client = (0x0a80_0000 + n / 50_000, 1_024 + (n % 50_000) as u16);
            let server = (0x0a60_000a, 53);
            // IPS_CONFIRMED; with IPS_SEEN_REPLY and IPS_ASSURED (nf_conntrack_common.h).
            let status: u32 = if assured { 0x0e } else { 0x08 };
            let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
            body.extend(tuple(1, client, server));
            body.extend(tuple(2, server, client));
            attribute(&mut body, 3, &status.to_be_bytes());
            attribute(&mut body, 7, &86_400u32.to_be_bytes());
            // IPCTNL_MSG_CT_NEW; request, create, exclusive, and an acknowledgement of the last.
            let flags: u16 = 0x1 | 0x400 | 0x200 | if n + 1 == end { 0x4 } else { 0 };
            batch.extend((16 + body.len() as u32).to_ne_bytes());
            batch.extend((1u16 << 8).to_ne_bytes());
            batch.extend(flags.to_ne_bytes());
            batch.extend([0; 8]);
            batch.extend(body);
        }
        let mut answer = [0u8; 4_096];
        // SAFETY: pointers and lengths are those of live buffers.
        let got = unsafe {
            assert!(libc::send(socket.as_raw_fd(), batch.as_ptr().cast(), batch.len(), 0) >= 0);
            libc::recv(
                socket.as_raw_fd(),
                answer.as_mut_ptr().cast(),
                answer.len(),
                0,
            )
        };
        assert!(got >= 20, "recv");
        let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        assert_eq!(errno, 0, "entry of {next}..{end}");
        next = end;
    }
}

#[test]
fn counters_and_entries_are_those_that_conntrack_shows() {
    in_namespace(|| {
        let mut reader = Reader::default();
        let empty = read(&mut reader);
        assert_eq!(empty.entries, 0);
        assert!(
            empty
                .cpus
                .iter()
                .all(|c| c.counters.iter().all(|(_, n)| n == 0))
        );
        tracked_link();
        assert_eq!(send_from_new_ports(100), 0);
        let sent = read(&mut reader);
        assert_eq!((sent.entries, witness_entries()), (100, 100));
        // Packets make entries, and the kernel counts no insert for them.
        assert_eq!(sums(&sent).get(Counter::Insert), Some(0));
        make(0..500, true);
        let made = read(&mut reader);
        assert_eq!((made.entries, witness_entries()), (600, 600));
        assert_eq!(sums(&made).get(Counter::Insert), Some(500));
        let (witnessed, cpus) = witness();
        assert_eq!(sums(&made), witnessed);
        assert_eq!(made.cpus.len(), cpus);
        // Nothing of it is another namespace's.
        let elsewhere = in_namespace(|| read(&mut Reader::default())).expect("root");
        assert_eq!(elsewhere.entries, 0);
        assert_eq!(sums(&elsewhere).get(Counter::Insert), Some(0));
        // The limit and the table's size are.
        assert_eq!(
            (elsewhere.limit, elsewhere.buckets),
            (made.limit, made.buckets)
        );
        let sysctl = |name: &str| -> u32 {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            let text = std::fs::read_to_string(path).expect(name);
            text.trim().parse().expect(name)
        };
        assert_eq!(made.limit, sysctl("max"));
        assert_eq!(made.buckets, Some(sysctl("buckets")));
        assert_eq!(made.timeouts.len(), Timeout::ALL.len());
        // A timeout is the namespace's own.
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "17").expect("sysctl");
        assert_eq!(read(&mut reader).timeouts.get(&Timeout::Udp), Some(&17));
        assert_ne!(elsewhere.timeouts.get(&Timeout::Udp), Some(&17));
        let start = Instant::now();
        for _ in 0..100 {
            read(&mut reader);
        }
        println!("a reading takes {:?}", start.elapsed() / 100);
    });
}

/// Filled up to the machine's limit: told beforehand, real drops counted, and over when it is over. The
/// clock of the forecast is the test's: 5 s pass between two readings, in which as many entries are made
/// as a steady rate makes.
#[test]
fn a_table_that_fills_is_told_before_it_drops() {
    in_namespace(|| {
        tracked_link();
        let mut reader = Reader::default();
        let limit = read(&mut reader).limit;
        if limit == 0 || limit > FILLABLE {
            println!("not run: the machine's limit is {limit}");
            return;
        }
        let mut meter = Meter::default();
        let mut now = Mono(1_000_000);
        let mut look = |reader: &mut Reader, ms: u64| {
            now.0 += ms;
            meter.take(now, reader.read().expect("read"))
        };
        // Full after 40 readings: 200 s.
        let step = limit / 40;
        let mut told = None;
        for n in 0..38 {
            make(n * step..(n + 1) * step, true);
            let seen = look(&mut reader, 5_000);
            assert_eq!(seen.entries, (n + 1) * step);
            if let Forecast::Filling(f) = seen.forecast {
                let truth = f64::from(limit - seen.entries) / f64::from(step) * 5.0;
                assert!(
                    (f.seconds - truth).abs() <= 0.05 * truth + 1.0,
                    "{f:?}, truth {truth}"
                );
                assert!(
                    f.earliest <= truth + 1.0 && truth <= f.latest + 1.0,
                    "{f:?}"
                );
                told.get_or_insert(truth);
            }
        }
        let told = told.expect("a forecast before the table was full");
        println!("told {told:.0} s before it was full");
        assert!(told >= 60.0);
        make(38 * step..limit, true);
        let full = look(&mut reader, 5_000);
        assert_eq!((full.entries, full.forecast), (limit, Forecast::Full));
        assert_eq!(full.lately(Counter::Drop), 0);
        // Nothing can be evicted: each first packet of a flow is dropped, and counted.
        assert_eq!(send_from_new_ports(50), 50);
        let dropping = look(&mut reader, 5_000);
        assert_eq!(dropping.lately(Counter::Drop), 50);
        let words = |c| -> Vec<&str> { hints(c).iter().map(|h| h.hint).collect() };
        assert_eq!(words(&dropping)[..2], ["table_full", "drop"]);
        assert!(hints(&dropping)[1].says.starts_with("50 packets dropped"));
        let (witnessed, _) = witness();
        assert_eq!(witnessed.get(Counter::Drop), Some(50));

        // Emptied, it is no longer full, and counters stay what they were.
        run("conntrack", &["-F"], "");
        assert_eq!(send_from_new_ports(10), 0);
        let over = look(&mut reader, 5_000);
        assert_eq!(over.entries, 10);
        assert!(!matches!(
            over.forecast,
            Forecast::Full | Forecast::Filling(_)
        ));
        assert_eq!(over.totals.get(Counter::Drop), Some(50));

        // Full of flows without an answer: those are evicted, and packets get through.
        run("conntrack", &["-F"], "");
        make(0..limit, false);
        let before = look(&mut reader, 5_000);
        let refused = send_from_new_ports(50);
        let after = look(&mut reader, 5_000);
        let evicted = after.lately(Counter::EarlyDrop) - before.lately(Counter::EarlyDrop);
        println!("{evicted} evicted for 50 packets, {refused} refused");
        assert!(evicted >= u64::from(50 - refused) && refused < 50);
        assert!(words(&after).contains(&"early_drop"));
        assert_eq!(
            after.totals.get(Counter::EarlyDrop),
            witness().0.get(Counter::EarlyDrop)
        );
        run("conntrack", &["-F"], "");
    });
}

#[test]
fn without_the_right_it_is_a_failure_and_not_an_empty_table() {
    in_namespace(|| {
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).expect("drop");
        assert_eq!(Reader::default().read(), Err(ReadError::Permission));
        let now = Now {
            mono: Mono(1),
            wall: Millis(1),
        };
        let said = Watch::default().look(now);
        let Reading::Failed(gap) = &said.reading else {
            panic!("{said:?}")
        };
        assert!(gap.why.contains("CAP_NET_ADMIN"), "{gap:?}");
    });
}

/// A client, a Service with two backends of which one drops SYNs: the agent says exactly that, with the
/// numbers that `conntrack -L` shows.
#[test]
fn a_backend_that_drops_is_told_from_one_that_answers() {
    use agent::host::flows::{End, Reader as Flows};
    use model::address::SourceClass;
    use model::flows::{BackendAnswer, Entry, Meter as FlowMeter};
    use model::name::ServicePortName;
    use model::report::Row;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    const FLOWS: u32 = 4;
    in_namespace(|| {
        run(
            "sh",
            &[
                "-ec",
                "
                ip link set lo up
                for a in 10.244.1.2 10.244.1.3 10.244.1.4; do ip addr add $a/32 dev lo; done
                ip route add 10.96.0.0/24 dev lo
            ",
            ],
            "",
        );
        // The ports stand for the choice of a backend: 81 always leads to the one that drops, 82 to
        // one where nobody listens.
        run(
            "nft",
            &["-f", "-"],
            "table ip t {
                chain out {
                    type nat hook output priority -100
                    ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.2:8080
                    ip daddr 10.96.0.10 tcp dport 81 dnat to 10.244.1.3:8080
                    ip daddr 10.96.0.10 tcp dport 82 dnat to 10.244.1.4:8080
                }
                chain in {
                    type filter hook input priority 0
                    ip daddr 10.244.1.3 tcp dport 8080 drop
                }
            }",
        );
        let _listener = TcpListener::bind("10.244.1.2:8080").expect("listen");
        let mut reader = Flows::default();
        let mut entries = || {
            let mut all: Vec<Entry> = Vec::new();
            let end = reader.walk(|e| {
                all.push(*e);
                true
            });
            assert_eq!(end, Ok(End::Whole));
            all
        };
        let row = |port: u16| {
            Arc::new(Row {
                frontend: format!("10.96.0.10:{port}/TCP").parse().expect("frontend"),
                source: SourceClass::Node,
                service: Some(ServicePortName::new("shop", "web", "http")),
                desired: None,
                observed: None,
            })
        };
        let rows = [row(80), row(81), row(82)];
        let timeouts = read(&mut Reader::default()).timeouts;
        let whole = timeouts[&Timeout::TcpSynSent];
        let mut meter = FlowMeter::default();
        let mut take = |ms: u64, all: &[Entry]| {
            let mut walk = meter.begin(&timeouts);
            assert!(all.iter().all(|e| walk.add(e)));
            let walked = walk.done();
            let now = Now {
                mono: Mono(1_000_000 + ms),
                wall: Millis(ms),
            };
            meter.take(now, walked);
            meter.flows(&rows)
        };
        assert_eq!(take(0, &entries()).backends, []);
        let mut open = Vec::new();
        for _ in 0..FLOWS {
            let to = |port: u16| SocketAddr::from(([10, 96, 0, 10], port));
            let soon = Duration::from_millis(50);
            open.push(TcpStream::connect_timeout(&to(80), Duration::from_secs(5)).expect("80"));
            assert!(TcpStream::connect_timeout(&to(81), soon).is_err());
            assert!(TcpStream::connect_timeout(&to(82), soon).is_err());
        }
        let waits = |e: &&Entry| !e.answered;
        let begun = entries();
        // Refused by a RST: the kernel keeps no entry.
        assert!(begun.iter().all(|e| e.frontend.port() != 82));
        // Until the last SYN of each is old enough.
        let deadline = Instant::now() + Duration::from_secs(30);
        let later = loop {
            let all = entries();
            let old = |e: &Entry| e.left.is_some_and(|left| whole - left > 2);
            if all.iter().filter(waits).all(old) {
                break all;
            }
            assert!(Instant::now() < deadline, "{all:?}");
            std::thread::sleep(Duration::from_millis(50));
        };
        let flows = take(30_000, &later);
        let answers: Vec<(String, BackendAnswer)> = flows
            .backends
            .iter()
            .map(|b| (b.backend.ip().to_string(), b.answer))
            .collect();
        let silent = BackendAnswer::None {
            flows: FLOWS,
            sources: 1,
            since: Millis(0),
        };
        assert_eq!(
            answers,
            [
                ("10.244.1.3".into(), silent),
                ("10.244.1.2".into(), BackendAnswer::Some)
            ]
        );
        let shown = run("conntrack", &["-L", "--dst-nat"], "");
        let lines = |end: &str, word: &str| {
            let line = |l: &&str| l.contains(&format!("src={end}")) && l.contains(word);
            shown.lines().filter(line).count()
        };
        assert_eq!(lines("10.244.1.3", "[UNREPLIED]"), FLOWS as usize);
        assert_eq!(lines("10.244.1.2", "ESTABLISHED"), FLOWS as usize);
        assert_eq!(shown.lines().count(), later.len());
    });
}

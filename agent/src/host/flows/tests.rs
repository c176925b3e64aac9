use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nest(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
    let inner: Vec<u8> = parts.iter().flat_map(|(k, v)| attribute(*k, v)).collect();
    attribute(kind | 0x8000, &inner)
}

fn tuple_of(kind: u16, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let ip = nest(1, &[(1, &from.0), (2, &to.0)]);
    let ports = (from.1.to_be_bytes(), to.1.to_be_bytes());
    let port = nest(2, &[(1, &[6]), (2, &ports.0), (3, &ports.1)]);
    attribute(kind | 0x8000, &[ip, port].concat())
}

/// An entry as the kernel writes it.
fn message(status: u32) -> Vec<u8> {
    let client = ([10, 1, 0, 1], 40_000);
    let mut out = vec![2, 0, 0, 0];
    out.extend(tuple_of(1, client, ([10, 96, 0, 10], 80)));
    out.extend(tuple_of(2, ([10, 244, 1, 3], 8080), client));
    out.extend(attribute(3, &status.to_be_bytes()));
    let tcp = nest(1, &[(1, &[1]), (2, &[7])]);
    out.extend(attribute(4 | 0x8000, &tcp));
    out.extend(attribute(7, &117u32.to_be_bytes()));
    out.extend(attribute(12, &0xdead_beefu32.to_be_bytes()));
    out
}

#[test]
fn an_entry_is_read_as_the_kernel_writes_it() {
    let expected = Entry {
        id: 0xdead_beef,
        protocol: Protocol::Tcp,
        client: "10.1.0.1:40000".parse().unwrap(),
        frontend: "10.96.0.10:80".parse().unwrap(),
        backend: "10.244.1.3:8080".parse().unwrap(),
        answered: false,
        tcp_state: Some(1),
        left: Some(117),
    };
    assert_eq!(entry(&message(DST_NAT | 8)), Ok(Some(expected)));
    let answered = Entry {
        answered: true,
        ..expected
    };
    assert_eq!(entry(&message(DST_NAT | SEEN_REPLY)), Ok(Some(answered)));
    // Not translated: of kernels that do not filter.
    assert_eq!(entry(&message(8 | SEEN_REPLY)), Ok(None));
}

/// Cut anywhere it is broken, or without what a kernel need not tell.
#[test]
fn a_message_that_was_cut_is_no_other_entry() {
    let whole = message(DST_NAT);
    let read = entry(&whole).unwrap().unwrap();
    for at in 0..whole.len() {
        assert_eq!(entry(&whole[..at]), Err(Broken), "{at}: {read:?}");
    }
}

#[test]
fn any_bytes_are_read_or_refused() {
    let mut read = 0;
    for seed in 0..50_000u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |end: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % end.max(1) as u64) as usize
        };
        let mut bytes = message(DST_NAT);
        for _ in 0..=below(3) {
            let at = below(bytes.len());
            match below(3) {
                0 => bytes.truncate(at),
                1 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = !*b),
                _ => bytes
                    .iter_mut()
                    .skip(at & !3)
                    .take(4)
                    .for_each(|b| *b = 0xff),
            }
        }
        read += usize::from(matches!(entry(&bytes), Ok(Some(_))));
    }
    assert!(read > 100, "damage that changes only numbers is read");
}

struct Said(Vec<Vec<u8>>);

impl Answers for Said {
    fn ask(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        assert!(matches!(question, Question::ConntrackTranslated));
        match self.0.iter().all(|m| each(m)) {
            true => Ok(()),
            false => Err(NetlinkError::Interrupted),
        }
    }
}

#[test]
fn a_walk_that_is_not_whole_says_so() {
    let good = message(DST_NAT);
    let mut said = Said(vec![good.clone(), good.clone()]);
    assert_eq!(walk(&mut said, |_| true), Ok(End::Whole));
    let mut left = 1;
    let enough = |_: &Entry| {
        left -= 1;
        left > 0
    };
    assert_eq!(walk(&mut said, enough), Ok(End::TooMany));
    said.0.push(good[..40].to_vec());
    assert!(matches!(
        walk(&mut said, |_| true),
        Err(ReadError::Failed(NetlinkError::Protocol(_)))
    ));
}

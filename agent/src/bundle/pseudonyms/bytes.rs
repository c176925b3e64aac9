//! Where names stand in captures: in these attributes and structures, and nowhere else.

use super::Pseudonyms;
use crate::netfilter::nftables::attributes::c_string;
use crate::netfilter::nftables::capture::Capture;
use crate::netfilter::ruleset::TableFamily;
use crate::netfilter::xtables::legacy::capture::TableCapture;

/// Calls `each` with every attribute's type and value (`struct nlattr`), to be changed in place.
fn attributes(mut rest: &mut [u8], mut each: impl FnMut(u16, &mut [u8])) {
    while let Some(head) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type.
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        if length < 4 || length > rest.len() {
            return;
        }
        let (this, tail) = rest.split_at_mut(length.next_multiple_of(4).min(rest.len()));
        each(kind, &mut this[4..length]);
        rest = tail;
    }
}

/// A string up to its NUL.
fn string(bytes: &mut [u8]) -> &mut [u8] {
    let length = c_string(bytes).len();
    &mut bytes[..length]
}

impl Pseudonyms {
    /// Messages of nf_tables.
    pub fn nf_tables(&mut self, capture: &mut Capture) {
        capture
            .chains
            .each_mut(|message| self.chain_message(message));
        capture.rules.each_mut(|message| self.rule_message(message));
        capture.sets.each_mut(|message| self.set_message(message));
        capture
            .elements
            .each_mut(|message| self.elements_message(message));
    }

    /// `NFTA_CHAIN_NAME` 3, `NFTA_CHAIN_USERDATA` 12.
    fn chain_message(&mut self, message: &mut [u8]) {
        attributes(behind(message), |kind, value| match kind {
            3 => self.chain(string(value)),
            12 => self.userdata(value),
            _ => {}
        });
    }

    /// `NFTA_RULE_CHAIN` 2, `_EXPRESSIONS` 4, `_USERDATA` 7.
    fn rule_message(&mut self, message: &mut [u8]) {
        attributes(behind(message), |kind, value| match kind {
            2 => self.chain(string(value)),
            4 => attributes(value, |_, one| self.expression(one)),
            7 => self.userdata(value),
            _ => {}
        });
    }

    /// `NFTA_EXPR_NAME` 1, `_DATA` 2.
    fn expression(&mut self, bytes: &mut [u8]) {
        let mut name = Vec::new();
        attributes(bytes, |kind, value| match kind {
            1 => name = c_string(value).to_vec(),
            2 => match name.as_slice() {
                // NFTA_IMMEDIATE_DATA
                b"immediate" => attributes(value, |kind, value| {
                    if kind == 2 {
                        self.data(value);
                    }
                }),
                // NFTA_LOOKUP_SET, NFTA_DYNSET_SET_NAME
                b"lookup" | b"dynset" => attributes(value, |kind, value| {
                    if kind == 1 {
                        self.chain(string(value));
                    }
                }),
                // NFTA_MATCH_NAME 1, _INFO 3
                b"match" => {
                    let mut which = Vec::new();
                    attributes(value, |kind, value| match kind {
                        1 => which = c_string(value).to_vec(),
                        3 => self.blob(&which, value),
                        _ => {}
                    });
                }
                // NFTA_LOG_PREFIX
                b"log" => attributes(value, |kind, value| {
                    if kind == 2 {
                        self.comment(string(value));
                    }
                }),
                _ => {}
            },
            _ => {}
        });
    }

    /// `NFTA_DATA_VERDICT` 2 with `NFTA_VERDICT_CHAIN` 2.
    fn data(&mut self, bytes: &mut [u8]) {
        attributes(bytes, |kind, value| {
            if kind == 2 {
                attributes(value, |kind, value| {
                    if kind == 2 {
                        self.chain(string(value));
                    }
                });
            }
        });
    }

    /// `NFTA_SET_NAME` 2, `NFTA_SET_USERDATA` 13.
    fn set_message(&mut self, message: &mut [u8]) {
        attributes(behind(message), |kind, value| match kind {
            2 => self.chain(string(value)),
            13 => self.userdata(value),
            _ => {}
        });
    }

    /// `NFTA_SET_ELEM_LIST_SET` 2, `_ELEMENTS` 3; `NFTA_SET_ELEM_DATA` 2, `_USERDATA` 6.
    fn elements_message(&mut self, message: &mut [u8]) {
        attributes(behind(message), |kind, value| match kind {
            2 => self.chain(string(value)),
            3 => attributes(value, |_, element| {
                attributes(element, |kind, value| match kind {
                    2 => self.data(value),
                    6 => self.userdata(value),
                    _ => {}
                });
            }),
            _ => {}
        });
    }

    /// nft's own: type, length, value, one byte each for type and length. Texts are all that is
    /// touched: no number looks like `namespace/name`.
    fn userdata(&mut self, mut bytes: &mut [u8]) {
        while let Some((head, tail)) = bytes.split_first_chunk_mut::<2>() {
            let Some((value, rest)) = tail.split_at_mut_checked(usize::from(head[1])) else {
                return;
            };
            let text = string(value);
            if text.iter().all(|b| (0x20..0x7f).contains(b)) {
                self.comment(text);
            }
            bytes = rest;
        }
    }

    /// The data of a match of x_tables: `struct xt_comment_info`, `struct xt_recent_mtinfo`.
    fn blob(&mut self, name: &[u8], data: &mut [u8]) {
        match name {
            b"comment" => self.comment(string(data)),
            b"recent" => {
                if let Some(list) = data.get_mut(10..210) {
                    self.chain(string(list));
                }
            }
            _ => {}
        }
    }

    /// A table of iptables-legacy: comments, lists of `recent`, and the heads of chains.
    pub fn legacy(&mut self, table: &mut TableCapture) {
        // struct ipt_entry, ip6t_entry: target_offset and next_offset, size.
        let (offsets, header) = match table.family {
            TableFamily::Ip6 => (140, 168),
            _ => (88, 112),
        };
        let mut rest = table.entries_mut();
        while let (Some(target), Some(next)) = (number(rest, offsets), number(rest, offsets + 2)) {
            if target < header || next < target + 32 || next > rest.len() {
                return;
            }
            let (entry, tail) = rest.split_at_mut(next);
            let (matches, goal) = entry.split_at_mut(target);
            let mut matches = &mut matches[header..];
            // struct xt_entry_match: size, name, revision, data.
            while let Some(size) = number(matches, 0) {
                if size < 32 || size > matches.len() {
                    break;
                }
                let (one, others) = matches.split_at_mut(size);
                let (head, data) = one.split_at_mut(32);
                self.blob(c_string(&head[2..31]), data);
                matches = others;
            }
            if c_string(&goal[2..31]) == b"ERROR" {
                self.chain(string(&mut goal[32..]));
            }
            rest = tail;
        }
    }
}

/// What is behind `struct nfgenmsg`.
fn behind(message: &mut [u8]) -> &mut [u8] {
    message.get_mut(4..).unwrap_or_default()
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let two = bytes.get(at..)?.first_chunk::<2>()?;
    Some(usize::from(u16::from_ne_bytes(*two)))
}

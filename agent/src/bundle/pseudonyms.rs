//! Names replaced by pseudonyms, the same one for the same name wherever it stands: in API objects, in
//! comments of rules and elements, in names of chains and sets.
//!
//! A pseudonym has the length of the name. So nothing in a capture moves, and what kube-proxy cuts
//! off (chain names of nftables at 128 bytes, comments at 255) is cut off at the same place. Hashes in
//! names of chains are replaced as well: kube-proxy makes them from names, and who guesses a name could
//! prove it by its hash.
//!
//! Replaced: namespaces, Services, slices, Nodes, Pods, zones, uids. Kept: addresses, ports and their
//! names, names of links, tables and other people's chains, other words in comments, `default`,
//! `kube-system` and the Service `kubernetes`, which every cluster has.

mod bytes;

use super::Recorded;
use model::endpoint::EndpointSlice;
use model::name::{NodeName, ServiceName};
use model::service::Service;
use model::view::Node;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What a name is the name of. The same word gets another pseudonym in another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Namespace,
    Service,
    Slice,
    Node,
    Pod,
    Zone,
    Uid,
    Hash,
}

/// In every cluster, and so no secret.
const KEPT: [&str; 3] = ["default", "kube-system", "kubernetes"];
/// Attempts to find a pseudonym that nobody has yet: there are 36 of one letter.
const TRIES: u64 = 10_000;

/// The replacements made so far.
pub struct Pseudonyms {
    /// Keyed anew for each file: a pseudonym tells nothing of the name, not even by guessing.
    key: RandomState,
    known: HashMap<(Kind, String), Arc<str>>,
    taken: HashSet<(Kind, Arc<str>)>,
}

impl Default for Pseudonyms {
    fn default() -> Self {
        Pseudonyms::new()
    }
}

impl Pseudonyms {
    /// None so far.
    pub fn new() -> Pseudonyms {
        Pseudonyms {
            key: RandomState::new(),
            known: HashMap::new(),
            taken: HashSet::new(),
        }
    }

    fn of(&mut self, kind: Kind, name: &str) -> Arc<str> {
        if name.is_empty() || KEPT.contains(&name) {
            return name.into();
        }
        if let Some(known) = self.known.get(&(kind, name.to_owned())) {
            return known.clone();
        }
        let free = |found: &Arc<str>| {
            !self.taken.contains(&(kind, found.clone())) && !KEPT.contains(&&**found)
        };
        // A name of one letter may find all others taken; then it is as good a pseudonym as any.
        let found = (0..TRIES)
            .map(|attempt| self.candidate(kind, name, attempt))
            .find(free)
            .unwrap_or_else(|| name.into());
        self.taken.insert((kind, found.clone()));
        self.known.insert((kind, name.to_owned()), found.clone());
        found
    }

    fn candidate(&self, kind: Kind, name: &str, attempt: u64) -> Arc<str> {
        let alphabet: &[u8] = match kind {
            Kind::Hash => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
            _ => b"abcdefghijklmnopqrstuvwxyz0123456789",
        };
        let text: String = name
            .char_indices()
            .map(|(at, c)| {
                // Dots part the labels of a node's name, dashes the groups of a uid.
                let keeps = c == '.' || c == '-' && kind == Kind::Uid;
                if keeps || !c.is_ascii() {
                    return c;
                }
                let random = self.key.hash_one((kind, name, attempt, at));
                // A Service's name begins with a letter; one that does not is a namespace's.
                let letters = if at == 0 && attempt < 100 && kind != Kind::Hash {
                    &alphabet[..26]
                } else {
                    alphabet
                };
                letters[(random % letters.len() as u64) as usize] as char
            })
            .collect();
        text.into()
    }

    /// Of a Node.
    pub fn node_name(&mut self, name: &NodeName) -> NodeName {
        NodeName(self.of(Kind::Node, &name.0))
    }

    /// Of a Service.
    pub fn service_name(&mut self, name: &ServiceName) -> ServiceName {
        ServiceName {
            namespace: self.of(Kind::Namespace, &name.namespace),
            name: self.of(Kind::Service, &name.name),
        }
    }

    /// Everything in a pass but its captures.
    pub fn pass(&mut self, pass: &mut Recorded) {
        let view = &mut pass.view;
        for service in &mut view.services {
            self.service(service);
        }
        for slice in &mut view.slices {
            self.slice(slice);
        }
        for node in &mut view.nodes {
            self.node(node);
        }
        let stamps = view.changed.iter_mut().map(|(name, _)| name);
        let gone = view.services_gone.iter_mut();
        let names = stamps.chain(gone).chain(&mut view.changed_gone);
        for name in names.chain(&mut pass.refreshed) {
            *name = self.service_name(name);
        }
        for name in &mut view.slices_gone {
            name.namespace = self.of(Kind::Namespace, &name.namespace);
            name.name = self.of(Kind::Slice, &name.name);
        }
        for name in &mut view.nodes_gone {
            *name = self.node_name(name);
        }
        let config = &mut pass.profile.config.value;
        for name in [&mut config.hostname_override, &mut config.node_name] {
            *name = name.as_ref().map(|n| self.of(Kind::Node, n));
        }
        for gap in &mut pass.gaps {
            // What an object that makes no sense is called stands in the text.
            gap.why = self.sentence(&gap.why);
        }
    }

    fn service(&mut self, service: &mut Service) {
        service.name = self.service_name(&service.name);
        service.uid = self.of(Kind::Uid, &service.uid);
    }

    fn slice(&mut self, slice: &mut EndpointSlice) {
        slice.name.namespace = self.of(Kind::Namespace, &slice.name.namespace);
        slice.name.name = self.of(Kind::Slice, &slice.name.name);
        slice.service = slice.service.as_ref().map(|s| self.of(Kind::Service, s));
        for endpoint in &mut slice.endpoints {
            let (node, pod) = (&mut endpoint.node, &mut endpoint.pod);
            *node = node.as_ref().map(|n| self.of(Kind::Node, n));
            *pod = pod.as_ref().map(|p| self.of(Kind::Pod, p));
            for zone in &mut endpoint.zone_hints {
                *zone = self.of(Kind::Zone, zone);
            }
            for node in &mut endpoint.node_hints {
                *node = self.of(Kind::Node, node);
            }
        }
    }

    fn node(&mut self, node: &mut Node) {
        node.name = self.node_name(&node.name);
        node.zone = node.zone.as_ref().map(|z| self.of(Kind::Zone, z));
    }

    fn sentence(&mut self, text: &str) -> Arc<str> {
        let mut bytes = text.as_bytes().to_vec();
        self.comment(&mut bytes);
        String::from_utf8_lossy(&bytes).into()
    }

    /// Replaces `namespace/name` wherever it stands in a text, and hashes of kube-proxy's chains.
    fn comment(&mut self, text: &mut [u8]) {
        let label = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let mut at = 0;
        while let Some(slash) = text[at..].iter().position(|b| *b == b'/') {
            let slash = at + slash;
            let before = text[..slash].iter().rev().take_while(|b| label(b)).count();
            let behind = text[slash + 1..].iter().take_while(|b| label(b)).count();
            at = slash + 1 + behind;
            // `10.0.0.0/8` is no name; neither is anything that has no letter.
            let start = slash - before;
            let inside = start > 0 && matches!(text[start - 1], b'.' | b':');
            let is_name = |part: &[u8]| part.iter().any(u8::is_ascii_lowercase);
            if inside || before == 0 || behind == 0 || !is_name(&text[start..slash]) {
                continue;
            }
            self.put(Kind::Namespace, &mut text[start..slash]);
            self.put(Kind::Service, &mut text[slash + 1..at]);
        }
    }

    /// Replaces what kube-proxy writes into names of chains and sets.
    fn chain(&mut self, name: &mut [u8]) {
        // iptables mode: `KUBE-SVC-` and sixteen characters of a hash (kube-proxy.md 3.1).
        if let Some(rest) = name.strip_prefix(b"KUBE-") {
            let dash = rest.iter().position(|b| *b == b'-');
            if let Some(dash) = dash
                && rest.len() - dash - 1 == 16
            {
                let start = 5 + dash + 1;
                self.put(Kind::Hash, &mut name[start..]);
            }
            return;
        }
        // nftables mode: `service-HASH-namespace/name/tcp/port` and more behind (5.2).
        let Some(first) = name.iter().position(|b| *b == b'-') else {
            return;
        };
        let hash = first + 1..first + 9;
        if name.get(hash.end) != Some(&b'-') || !name[hash.end..].contains(&b'/') {
            return;
        }
        self.put(Kind::Hash, &mut name[hash.clone()]);
        let start = hash.end + 1;
        let mut parts = name[start..].split_mut(|b| *b == b'/');
        if let (Some(namespace), Some(service)) = (parts.next(), parts.next()) {
            self.put(Kind::Namespace, namespace);
            self.put(Kind::Service, service);
        }
    }

    fn put(&mut self, kind: Kind, bytes: &mut [u8]) {
        let Ok(name) = std::str::from_utf8(bytes) else {
            return;
        };
        let found = self.of(kind, name);
        if found.len() == bytes.len() {
            bytes.copy_from_slice(found.as_bytes());
        }
    }
}

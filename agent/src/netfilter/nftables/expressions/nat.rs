//! Translations: to what a packet's addresses and ports are changed.

use super::RuleReader;
use crate::netfilter::nftables::attributes::{be16, be32};
use crate::netfilter::nftables::registers::{Held, MapValue};
use crate::netfilter::nftables::values::address;
use crate::netfilter::ruleset::{NatTarget, Op};
use std::sync::Arc;

impl RuleReader<'_> {
    pub(super) fn nat(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let target = self.nat_target(a).unwrap_or_else(NatTarget::Unknown);
        self.ops.push(match n(1) {
            0 => Op::Snat(target),
            1 => Op::Dnat(target),
            _ => Op::UnknownStatement("nat of unknown type".into()),
        });
    }

    fn nat_target(&self, a: &[&[u8]; 16]) -> Result<NatTarget, Arc<str>> {
        let register = |i: usize| if a[i].is_empty() { None } else { be32(a[i]) };
        let (address_min, address_max) = (register(3), register(4));
        let (port_min, port_max) = (register(5), register(6));
        // NF_NAT_RANGE_PROTO_OFFSET 0x20, NF_NAT_RANGE_NETMAP 0x40
        if register(7).unwrap_or(0) & 0x60 != 0 {
            return Err("nat by offset or netmap".into());
        }
        let held = |r: u32| self.registers.get(r).map(|load| &load.held);
        let same = |min: Option<u32>, max: Option<u32>| match (min, max) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(min), Some(max)) => {
                min == max
                    || matches!((held(min), held(max)), (Some(Held::Data(a)), Some(Held::Data(b))) if a == b)
            }
        };
        if !same(address_min, address_max) || !same(port_min, port_max) {
            return Err("nat to a range".into());
        }
        let width = match register(2) {
            Some(2) => 4,
            Some(10) => 16,
            _ => return Err("nat of unknown family".into()),
        };
        if let Some(from) = address_min
            && let Some(Held::Map(map)) = held(from)
        {
            if port_min.is_some_and(|port| !self.registers.is_inside(port, from, width)) {
                return Err("nat to a map's address and another port".into());
            }
            return Ok(match map {
                MapValue::Lookup(lookup) => NatTarget::Map(lookup.clone()),
                MapValue::Numgen(numgen, map) => NatTarget::NumgenMap {
                    modulus: numgen.modulus,
                    offset: numgen.offset,
                    map: map.clone(),
                    incremental: numgen.incremental,
                },
            });
        }
        let new_address = match address_min.map(held) {
            None => None,
            Some(Some(Held::Data(bytes))) => {
                let bytes = bytes.get(..width).ok_or("nat to a shorter address")?;
                Some(address(bytes).ok_or("nat to no address")?)
            }
            Some(_) => return Err("nat to an address not understood".into()),
        };
        let port = match port_min.map(held) {
            None => None,
            Some(Some(Held::Data(bytes))) if bytes.len() >= 2 => Some(be16(bytes)),
            Some(_) => return Err("nat to a port not understood".into()),
        };
        Ok(NatTarget::Fixed {
            address: new_address,
            port,
        })
    }

    pub(super) fn redir(&mut self, a: &[&[u8]; 16]) {
        let port = |i: usize| match be32(a[i]).and_then(|r| self.registers.get(r)) {
            Some(load) => match &load.held {
                Held::Data(bytes) if bytes.len() >= 2 => Some(be16(bytes)),
                _ => None,
            },
            None => None,
        };
        let op = match (a[1].is_empty(), port(1), a[2].is_empty(), port(2)) {
            (true, ..) => Op::Redirect { port: None },
            (false, Some(min), true, _) => Op::Redirect { port: Some(min) },
            (false, Some(min), false, Some(max)) if min == max => Op::Redirect { port: Some(min) },
            _ => Op::UnknownStatement("redirect to a port not understood".into()),
        };
        self.ops.push(op);
    }
}

//! Look-ups in sets and maps, and the lists that packets fill.

use super::RuleReader;
use crate::netfilter::nftables::attributes::{be32, c_string};
use crate::netfilter::nftables::registers::{Held, MapValue, Numgen};
use crate::netfilter::nftables::sets::{Described, Use};
use crate::netfilter::ruleset::{Field, Lookup, Op};

/// What a look-up's registers hold.
enum Key {
    Fields(Vec<Field>, Vec<Use>),
    Numgen(Numgen),
}

impl RuleReader<'_> {
    pub(super) fn lookup(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let set_name = self.names.get(c_string(a[1]));
        let (source, negated) = (n(2), n(5) & 1 != 0);
        let target = if a[3].is_empty() { None } else { Some(n(3)) };
        let Some(set) = self.sets.get(&set_name) else {
            return self.condition(format!("look-up in a set that is not there: {set_name}"));
        };
        let key = self.key(source, set);
        let used = match &key {
            Some(Key::Fields(_, uses)) => Some(uses.clone()),
            Some(Key::Numgen(_)) => Some(vec![Use::Numgen]),
            None => None,
        };
        if let Some(used) = used {
            self.uses.learn(&set_name, used);
        }
        match (key, target) {
            (Some(Key::Fields(fields, _)), None) if set.dynamic() => {
                if fields == [Field::Saddr] && !negated {
                    let seconds = set.timeout_seconds();
                    self.ops.push(Op::AffinityCheck {
                        list: set_name,
                        seconds,
                    });
                } else {
                    self.condition(format!("look-up in a set that packets fill: {set_name}"));
                }
            }
            (Some(_), Some(_)) if set.dynamic() => {
                self.condition(format!("look-up in a map that packets fill: {set_name}"));
                self.forget(target, set);
            }
            (Some(Key::Fields(key, _)), None) => {
                self.ops.push(Op::Lookup(Lookup {
                    key,
                    set: set_name,
                    negated,
                }));
            }
            (Some(Key::Fields(key, _)), Some(0)) => {
                self.ops.push(Op::VerdictMap(Lookup {
                    key,
                    set: set_name,
                    negated,
                }));
            }
            (Some(Key::Numgen(numgen)), Some(0)) => self.ops.push(Op::NumgenVerdictMap {
                modulus: numgen.modulus,
                offset: numgen.offset,
                map: set_name,
                incremental: numgen.incremental,
            }),
            (Some(Key::Fields(key, _)), Some(register)) => {
                let lookup = Lookup {
                    key,
                    set: set_name,
                    negated: false,
                };
                let length = set.data_length();
                self.store(register, length, Held::Map(MapValue::Lookup(lookup)));
            }
            (Some(Key::Numgen(numgen)), Some(register)) => {
                let length = set.data_length();
                self.store(
                    register,
                    length,
                    Held::Map(MapValue::Numgen(numgen, set_name)),
                );
            }
            (Some(Key::Numgen(_)), None) => {
                self.condition(format!("numgen in a set: {set_name}"));
            }
            (None, target) => {
                if target == Some(0) {
                    self.statement(format!("verdict map with a key not understood: {set_name}"));
                } else {
                    self.condition(format!("look-up with a key not understood: {set_name}"));
                    self.forget(target, set);
                }
            }
        }
    }

    fn forget(&mut self, target: Option<u32>, set: &Described) {
        match target {
            Some(0) => self.statement("verdict from a map not understood"),
            Some(register) => {
                self.store(
                    register,
                    set.data_length(),
                    Held::Opaque("a map's value".into()),
                );
            }
            None => {}
        }
    }

    /// The fields in the registers from `source` on, as far as the set's key reaches.
    fn key(&self, source: u32, set: &Described) -> Option<Key> {
        let loads = self.registers.run(source, set.key_length())?;
        if let [load] = loads.as_slice()
            && let Held::Numgen(numgen) = load.held
        {
            return Some(Key::Numgen(numgen));
        }
        let mut fields = Vec::new();
        let mut uses = Vec::new();
        for load in loads {
            let Held::Parts {
                parts,
                masked: None,
            } = &load.held
            else {
                return None;
            };
            for part in parts {
                if part.size != part.whole {
                    return None;
                }
                fields.push(part.field.clone());
                uses.push(Use::Field(part.field.clone(), part.whole));
            }
        }
        // A set that says its fields must have as many.
        let said = set.field_count();
        (said == 0 || said == fields.len()).then_some(Key::Fields(fields, uses))
    }

    pub(super) fn dynset(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let set_name = self.names.get(c_string(a[1]));
        let key = self.sets.get(&set_name).and_then(|set| self.key(n(4), set));
        // NFT_DYNSET_OP_ADD 0, UPDATE 1; an expression (limit, connlimit) may end the rule.
        let plain = n(3) <= 1 && a[7].is_empty() && a[10].is_empty() && n(9) == 0;
        match key {
            Some(Key::Fields(fields, _)) if plain && fields == [Field::Saddr] => {
                self.ops.push(Op::AffinityUpdate { list: set_name });
            }
            _ => self.condition(format!("dynset {set_name}")),
        }
    }
}

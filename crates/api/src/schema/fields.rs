//! The fields of an object by name: what every walk by a schema asks for each member of each object.
//!
//! They stand in order of names, and beside them a table from a name's hash to its place. The hash looks at a name's length and
//! three of its bytes; what it leads to is compared, so that it need not be a good one.

use super::Field;
use std::ops::Deref;

/// So few fields are looked through one by one.
const SEARCHED_MAX: usize = 4;
const NOBODY: u16 = u16::MAX;

/// Fields in order of names.
#[derive(Debug, Default)]
pub struct Fields {
    fields: Box<[Field]>,
    /// Places in `fields` by hash, twice as many as there are fields at least; empty for few fields and for far too many.
    table: Box<[u16]>,
    /// The places of the fields that are always shown.
    always: Box<[u16]>,
}

fn hash(name: &str) -> usize {
    let bytes = name.as_bytes();
    let at = |i: usize| u32::from(bytes.get(i).copied().unwrap_or_default());
    let length = bytes.len();
    let mixed = (length as u32) | at(0) << 8 | at(length / 2) << 16 | at(length.saturating_sub(1)) << 24;
    (mixed.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

impl From<Vec<Field>> for Fields {
    fn from(mut fields: Vec<Field>) -> Fields {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let mut table = vec![];
        if fields.len() > SEARCHED_MAX && fields.len() < usize::from(NOBODY) {
            table = vec![NOBODY; (fields.len() * 2).next_power_of_two()];
            for (i, field) in fields.iter().enumerate() {
                let mut slot = hash(&field.name) & (table.len() - 1);
                while table[slot] != NOBODY {
                    slot = (slot + 1) & (table.len() - 1);
                }
                table[slot] = i as u16;
            }
        }
        let always = (fields.iter().enumerate()).filter(|(_, field)| field.always.is_some()).map(|(i, _)| i as u16).collect();
        Fields { fields: fields.into(), table: table.into(), always }
    }
}

impl Fields {
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.place(name).map(|place| &self.fields[place])
    }

    /// Where in the order of names a field is.
    pub fn place(&self, name: &str) -> Option<usize> {
        if self.table.is_empty() {
            return if self.fields.len() <= SEARCHED_MAX {
                self.fields.iter().position(|field| field.name == name)
            } else {
                self.fields.binary_search_by(|field| field.name.as_ref().cmp(name)).ok()
            };
        }
        let most = self.table.len() - 1;
        let mut slot = hash(name) & most;
        loop {
            // At least half of the table leads nowhere, so this ends.
            let field = self.fields.get(usize::from(self.table[slot]))?;
            if field.name == name {
                return Some(usize::from(self.table[slot]));
            }
            slot = (slot + 1) & most;
        }
    }

    /// The fields that are shown even when nobody has set them.
    pub fn always_shown(&self) -> impl Iterator<Item = &Field> {
        self.always.iter().map(|place| &self.fields[usize::from(*place)])
    }
}

impl Deref for Fields {
    type Target = [Field];
    fn deref(&self) -> &[Field] {
        &self.fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Link, PatchStrategy, Schema};
    use std::sync::Arc;

    fn fields(names: impl Iterator<Item = String>) -> Fields {
        let schema = Arc::new(Schema::default());
        let field = |name: String| Field {
            name: name.into(),
            schema: Link::Inline(schema.clone()),
            required: false,
            omit_zero: false,
            always: None,
            patch: PatchStrategy::default(),
            atomic: None,
        };
        Fields::from(names.map(field).collect::<Vec<_>>())
    }

    #[test]
    fn every_field_is_found_and_no_other() {
        for count in [0, 1, 4, 5, 300, usize::from(NOBODY) + 2] {
            // Many of them have the same hash.
            let fields = fields((0..count).map(|i| format!("a{i:05}z")));
            for i in [0, 1, 3, 4, 77, 299, 65_000].into_iter().filter(|i| *i < count) {
                let name = format!("a{i:05}z");
                assert_eq!(fields.place(&name), Some(i), "{name} of {count}");
                assert_eq!(fields.get(&name).map(|field| field.name.as_ref()), Some(name.as_str()));
            }
            for other in ["", "a", "a00000", "a99999z", "é"] {
                assert!(fields.get(other).is_none(), "{other} of {count}");
            }
        }
    }
}

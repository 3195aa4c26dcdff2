//! The list of kinds, one line each, and the ways to look one up.

use crate::kind::Kind;
use std::{collections::BTreeMap, sync::Arc};

/// An immutable set of kinds. Joining a CRD makes a new one.
#[derive(Clone, Default)]
pub struct Catalogue {
    by_resource: BTreeMap<(String, String), Arc<Kind>>,
}

impl Catalogue {
    /// Every kind that Regent is built with.
    pub fn built_in() -> Catalogue {
        let mut catalogue = Catalogue::default();
        for kind in Self::built_in_kinds() {
            catalogue.insert(kind);
        }
        catalogue
    }
    /// One line per kind.
    fn built_in_kinds() -> Vec<Kind> {
        vec![]
    }
    pub fn insert(&mut self, kind: Kind) {
        self.by_resource.insert((kind.group.clone(), kind.resource.clone()), Arc::new(kind));
    }
    /// By group and plural.
    pub fn resource(&self, group: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(&(group.to_string(), resource.to_string()))
    }
    /// By group and kind.
    pub fn kind(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.iter().find(|k| k.group == group && k.kind == kind)
    }
    /// In order of group, then resource.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.by_resource.values()
    }
}

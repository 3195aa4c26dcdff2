//! One nftables table as a typed model: what each owner (a Service, a pod) wants in it, and the text that gets it there.
//!
//! Pure: no I/O. An owner's whole wish is a [`Fragment`]; [`Table::set`] replaces it; [`Table::changes`] is the transaction
//! from what the kernel has to what is wished, [`Table::whole`] the one from nothing. Who applied a transaction says so
//! with [`Table::committed`]; until then the difference stays, so that a failed transaction loses nothing.
//!
//! What must stay true: chains and sets belong to one owner (their names carry it); an element (a map's key) may be wished
//! by several owners, and then the first owner in order has it, and the next one gets it in the same transaction in which
//! the first lets go. So no two owners' wishes can make a transaction that the kernel refuses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::Arc;

/// What one owner wishes to have in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Named sets of this owner alone, by name, with their declaration (`type ipv4_addr; flags dynamic,timeout; ...`).
    /// A set whose declaration stays is left as it is, with what packets have put in it.
    pub sets: BTreeMap<String, String>,
    /// Chains of this owner alone, by name, with their rules in order.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Elements of the table's shared maps and sets: the value is `None` for a set's.
    pub elements: BTreeMap<Element, Option<String>>,
}

impl Fragment {
    /// Wishes for an element of a map.
    pub fn map(&mut self, container: &'static str, key: impl Into<String>, value: impl Into<String>) {
        self.elements.insert(Element { container, key: key.into() }, Some(value.into()));
    }

    /// Wishes for an element of a set.
    pub fn member(&mut self, container: &'static str, key: impl Into<String>) {
        self.elements.insert(Element { container, key: key.into() }, None);
    }
}

/// An element of one of the table's shared containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The map or set it is in.
    pub container: &'static str,
    /// Its key as nft writes it.
    pub key: String,
}

type Value = Option<String>;

/// A table: its fixed base, every owner's fragment, and what the kernel does not have yet.
#[derive(Debug)]
pub struct Table<O> {
    name: &'static str,
    base: String,
    wished: BTreeMap<O, Arc<Fragment>>,
    claims: HashMap<Element, BTreeMap<O, Value>>,
    /// What the kernel has, for the owners whose fragment differs from it.
    kernel_fragments: BTreeMap<O, Option<Arc<Fragment>>>,
    /// What the kernel has, for the elements that may differ from it.
    kernel_elements: BTreeMap<Element, Option<Value>>,
}

impl<O: Ord + Clone> Table<O> {
    /// A table of family `ip` with this name and these fixed declarations (the text between the table's braces).
    pub fn new(name: &'static str, base: impl Into<String>) -> Table<O> {
        Table {
            name,
            base: base.into(),
            wished: BTreeMap::new(),
            claims: HashMap::new(),
            kernel_fragments: BTreeMap::new(),
            kernel_elements: BTreeMap::new(),
        }
    }

    /// The table's name in family `ip`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Every owner that has a fragment.
    pub fn owners(&self) -> impl Iterator<Item = &O> {
        self.wished.keys()
    }

    /// Replaces the owner's fragment; `None` takes it away. Says whether anything changed.
    pub fn set(&mut self, owner: &O, fragment: Option<Fragment>) -> bool {
        let old = self.wished.get(owner).cloned();
        if old.as_deref() == fragment.as_ref() {
            return false;
        }
        let empty = BTreeMap::new();
        let old_elements = old.as_ref().map_or(&empty, |f| &f.elements);
        let new_elements = fragment.as_ref().map_or(&empty, |f| &f.elements);
        for (element, value) in old_elements {
            if new_elements.get(element) != Some(value) {
                self.note_kernel_element(element);
                if let Some(owners) = self.claims.get_mut(element) {
                    owners.remove(owner);
                    if owners.is_empty() {
                        self.claims.remove(element);
                    }
                }
            }
        }
        for (element, value) in new_elements {
            if old_elements.get(element) != Some(value) {
                self.note_kernel_element(element);
                self.claims.entry(element.clone()).or_default().insert(owner.clone(), value.clone());
            }
        }
        self.kernel_fragments.entry(owner.clone()).or_insert_with(|| old.clone());
        match fragment {
            Some(fragment) => self.wished.insert(owner.clone(), Arc::new(fragment)),
            None => self.wished.remove(owner),
        };
        true
    }

    /// The transaction from what the kernel has to what is wished; `None` when there is nothing to do.
    pub fn changes(&self) -> Option<String> {
        let empty = Fragment::default();
        let mut script = Script::new(self.name);
        for (owner, kernel) in &self.kernel_fragments {
            let old = kernel.as_deref().unwrap_or(&empty);
            let new = self.wished.get(owner).map_or(&empty, |f| f.as_ref());
            script.fragment(old, new);
        }
        for (element, kernel) in &self.kernel_elements {
            let wished = self.resolved(element);
            if *kernel != wished {
                if let Some(value) = kernel {
                    script.delete_element(element, value);
                }
                if let Some(value) = &wished {
                    script.add_element(element, value);
                }
            }
        }
        script.text()
    }

    /// The transaction that makes the table what is wished whatever the kernel has.
    pub fn whole(&self) -> String {
        let empty = Fragment::default();
        let mut script = Script::new(self.name);
        for fragment in self.wished.values() {
            script.fragment(&empty, fragment);
        }
        let mut elements: Vec<&Element> = self.claims.keys().collect();
        elements.sort();
        for element in elements {
            if let Some(value) = self.resolved(element) {
                script.add_element(element, &value);
            }
        }
        let name = self.name;
        let mut text = format!("add table ip {name}\ndelete table ip {name}\ntable ip {name} {{\n{}\n}}\n", self.base.trim_end());
        text.push_str(&script.text().unwrap_or_default());
        text
    }

    /// The kernel now has what is wished.
    pub fn committed(&mut self) {
        self.kernel_fragments.clear();
        self.kernel_elements.clear();
    }

    fn resolved(&self, element: &Element) -> Option<Value> {
        self.claims.get(element).and_then(|owners| owners.values().next().cloned())
    }

    fn note_kernel_element(&mut self, element: &Element) {
        if !self.kernel_elements.contains_key(element) {
            let resolved = self.resolved(element);
            self.kernel_elements.insert(element.clone(), resolved);
        }
    }
}

/// The statements of one transaction, by the order in which the kernel must see them: sets and chains before the rules
/// that name them, rules before the map elements that lead to them, and deletions last, when nothing leads there any more.
struct Script {
    table: &'static str,
    declare: String,
    fill: String,
    delete_elements: BTreeMap<&'static str, BTreeSet<String>>,
    add_elements: BTreeMap<&'static str, BTreeSet<String>>,
    flush_gone: String,
    delete_gone: String,
    delete_sets: String,
}

impl Script {
    fn new(table: &'static str) -> Script {
        Script {
            table,
            declare: String::new(),
            fill: String::new(),
            delete_elements: BTreeMap::new(),
            add_elements: BTreeMap::new(),
            flush_gone: String::new(),
            delete_gone: String::new(),
            delete_sets: String::new(),
        }
    }

    fn fragment(&mut self, old: &Fragment, new: &Fragment) {
        let table = self.table;
        let mut remade: BTreeSet<&str> = BTreeSet::new();
        for (name, declaration) in &new.sets {
            match old.sets.get(name) {
                Some(known) if known == declaration => {}
                // A set cannot be declared anew while rules use it, so its name carries what its declaration depends on.
                Some(_) => {
                    remade.insert(name);
                }
                None => line(&mut self.declare, format_args!("add set ip {table} {name} {{ {declaration} }}")),
            }
        }
        debug_assert!(remade.is_empty(), "a set's name must change with its declaration: {remade:?}");
        for (name, rules) in &new.chains {
            let known = old.chains.get(name);
            if known == Some(rules) {
                continue;
            }
            match known {
                Some(_) => line(&mut self.declare, format_args!("flush chain ip {table} {name}")),
                None => line(&mut self.declare, format_args!("add chain ip {table} {name}")),
            }
            for rule in rules {
                line(&mut self.fill, format_args!("add rule ip {table} {name} {rule}"));
            }
        }
        for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
            line(&mut self.flush_gone, format_args!("flush chain ip {table} {name}"));
            line(&mut self.delete_gone, format_args!("delete chain ip {table} {name}"));
        }
        for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
            line(&mut self.delete_sets, format_args!("delete set ip {table} {name}"));
        }
    }

    fn add_element(&mut self, element: &Element, value: &Value) {
        self.add_elements.entry(element.container).or_default().insert(element_text(element, value));
    }

    fn delete_element(&mut self, element: &Element, value: &Value) {
        self.delete_elements.entry(element.container).or_default().insert(element_text(element, value));
    }

    fn text(self) -> Option<String> {
        let table = self.table;
        let mut text = self.declare;
        text.push_str(&self.fill);
        for (verb, by_container) in [("delete", &self.delete_elements), ("add", &self.add_elements)] {
            for (container, elements) in by_container {
                let list = elements.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                line(&mut text, format_args!("{verb} element ip {table} {container} {{ {list} }}"));
            }
        }
        text.push_str(&self.flush_gone);
        text.push_str(&self.delete_gone);
        text.push_str(&self.delete_sets);
        (!text.is_empty()).then_some(text)
    }
}

fn element_text(element: &Element, value: &Value) -> String {
    match value {
        Some(value) => format!("{} : {}", element.key, value),
        None => element.key.clone(),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(chain: &str, rules: &[&str], elements: &[(&'static str, &str, Option<&str>)]) -> Fragment {
        let mut fragment = Fragment::default();
        fragment.chains.insert(chain.into(), rules.iter().map(|r| r.to_string()).collect());
        for (container, key, value) in elements {
            fragment.elements.insert(Element { container, key: key.to_string() }, value.map(str::to_owned));
        }
        fragment
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut table: Table<&str> = Table::new("t", "  map m { type ipv4_addr : verdict; }");
        table.set(&"a", Some(fragment("a", &["accept"], &[("m", "1.1.1.1", Some("goto a"))])));
        assert_eq!(
            table.whole(),
            "add table ip t\ndelete table ip t\ntable ip t {\n  map m { type ipv4_addr : verdict; }\n}\n\
             add chain ip t a\nadd rule ip t a accept\nadd element ip t m { 1.1.1.1 : goto a }\n"
        );
        table.committed();
        assert_eq!(table.changes(), None);
        table.set(&"a", Some(fragment("a", &["drop"], &[("m", "1.1.1.1", Some("goto a"))])));
        assert_eq!(table.changes().as_deref(), Some("flush chain ip t a\nadd rule ip t a drop\n"));
        table.set(&"a", None);
        assert_eq!(table.changes().as_deref(), Some("delete element ip t m { 1.1.1.1 : goto a }\nflush chain ip t a\ndelete chain ip t a\n"));
    }

    #[test]
    fn there_and_back_before_the_kernel_saw_it_is_nothing() {
        let mut table: Table<&str> = Table::new("t", "");
        table.set(&"a", Some(fragment("a", &["accept"], &[("m", "k", Some("v"))])));
        table.set(&"a", None);
        assert_eq!(table.changes(), None);
    }

    #[test]
    fn an_element_wished_twice_goes_to_the_first_owner_and_then_to_the_next() {
        let mut table: Table<&str> = Table::new("t", "");
        table.set(&"b", Some(fragment("b", &[], &[("m", "k", Some("goto b"))])));
        table.committed();
        table.set(&"a", Some(fragment("a", &[], &[("m", "k", Some("goto a"))])));
        assert_eq!(table.changes().as_deref(), Some("add chain ip t a\ndelete element ip t m { k : goto b }\nadd element ip t m { k : goto a }\n"));
        table.committed();
        table.set(&"a", None);
        assert_eq!(
            table.changes().as_deref(),
            Some(
                "delete element ip t m { k : goto a }\nadd element ip t m { k : goto b }\n\
                 flush chain ip t a\ndelete chain ip t a\n"
            )
        );
    }
}

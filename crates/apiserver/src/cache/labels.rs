//! Which objects have which label: so that a list of one in a hundred objects does not look at a hundred.
//!
//! A label that very many objects share is only counted: who selects by it wants so many objects that looking at all of them
//! costs no more than sending those. What must stay true: a list that is there names every object with the label.

use super::entry::Entry;
use api::selector::{LabelSelector, Operator};
use std::{collections::HashMap, sync::Arc};

/// Objects listed per label; more are only counted, until all of them are gone.
const LISTED_MAX: usize = 4096;

/// The objects with one label, by place and in order.
#[derive(Default)]
struct Places {
    count: usize,
    /// Whether there were ever too many to list.
    crowded: bool,
    listed: Vec<Arc<str>>,
}

impl Places {
    fn add(&mut self, place: &Arc<str>) {
        self.count += 1;
        if self.count > LISTED_MAX && !self.crowded {
            self.crowded = true;
            self.listed = Vec::new();
        }
        if !self.crowded
            && let Err(at) = self.listed.binary_search(place)
        {
            self.listed.insert(at, place.clone());
        }
    }

    /// Answers whether nothing is left.
    fn remove(&mut self, place: &str) -> bool {
        self.count = self.count.saturating_sub(1);
        if let Ok(at) = self.listed.binary_search_by(|listed| (**listed).cmp(place)) {
            self.listed.remove(at);
            if self.listed.capacity() > 16 && self.listed.len() * 4 < self.listed.capacity() {
                self.listed.shrink_to(self.listed.len() * 2);
            }
        }
        self.count == 0
    }
}

/// The labels of all objects of one resource.
#[derive(Default)]
pub(super) struct Labels {
    by_key: HashMap<Box<str>, HashMap<Box<str>, Places>>,
}

impl Labels {
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Labels {
        let mut labels = Labels::default();
        entries.for_each(|entry| labels.change(None, Some(entry)));
        labels
    }

    /// An object comes, goes or changes.
    pub(super) fn change(&mut self, before: Option<&Entry>, after: Option<&Entry>) {
        let of = |entry: Option<&'_ Entry>| -> *const [(Box<str>, Box<str>)] { entry.map_or(&[], |entry| &*entry.labels) };
        // An unchanged set of labels is shared by both states.
        if std::ptr::eq(of(before), of(after)) {
            return;
        }
        let kept = |entry: Option<&Entry>, key: &str, value: &str| entry.and_then(|entry| entry.label(key)) == Some(value);
        for (key, value) in before.into_iter().flat_map(|entry| entry.labels.iter()).filter(|(key, value)| !kept(after, key, value)) {
            let Some(values) = self.by_key.get_mut(key) else { continue };
            let Some(places) = values.get_mut(value) else { continue };
            if places.remove(before.map_or("", |entry| &entry.place)) {
                values.remove(value);
                if values.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        let Some(after) = after else { return };
        for (key, value) in after.labels.iter().filter(|(key, value)| !kept(before, key, value)) {
            if !self.by_key.contains_key(key) {
                self.by_key.insert(key.clone(), HashMap::new());
            }
            let Some(values) = self.by_key.get_mut(key) else { continue };
            match values.get_mut(value) {
                Some(places) => places.add(&after.place),
                None => {
                    let mut places = Places::default();
                    places.listed.reserve_exact(1);
                    places.add(&after.place);
                    values.insert(value.clone(), places);
                }
            }
        }
    }

    /// The places among which all objects of a selection are, if it names a label that is listed: the shortest such list.
    pub(super) fn candidates(&self, selector: &LabelSelector) -> Option<&[Arc<str>]> {
        let exact = selector.requirements.iter().filter(|requirement| {
            matches!(requirement.operator, Operator::Equals | Operator::DoubleEquals | Operator::In) && requirement.values.len() == 1
        });
        exact
            .filter_map(|requirement| {
                let places = self.by_key.get(requirement.key.as_str()).and_then(|values| values.get(requirement.values.first()?.as_str()));
                match places {
                    None => Some(&[][..]),
                    Some(places) if places.crowded => None,
                    Some(places) => Some(&places.listed[..]),
                }
            })
            .min_by_key(|places| places.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::encode_stored;
    use serde_json::json;
    use store::Revision;

    fn entry(place: &str, labels: serde_json::Value) -> Arc<Entry> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": place, "labels": labels}});
        Arc::new(Entry::read(place, &encode_stored(&object).into(), Revision(1), None).unwrap())
    }
    fn found(labels: &Labels, selector: &str) -> Option<Vec<String>> {
        let selector = LabelSelector::parse(selector).unwrap();
        labels.candidates(&selector).map(|places| places.iter().map(|place| place.to_string()).collect())
    }

    #[test]
    fn candidates_follow_the_labels() {
        let mut labels = Labels::default();
        let (a, b) = (entry("a", json!({"app": "x", "tier": "1"})), entry("b", json!({"app": "x", "tier": "2"})));
        labels.change(None, Some(&b));
        labels.change(None, Some(&a));
        assert_eq!(found(&labels, "app=x"), Some(vec!["a".into(), "b".into()]));
        assert_eq!(found(&labels, "app=x,tier=2"), Some(vec!["b".into()]));
        assert_eq!(found(&labels, "app in (x)"), Some(vec!["a".into(), "b".into()]));
        assert_eq!(found(&labels, "app=y"), Some(vec![]));
        assert_eq!((found(&labels, "app"), found(&labels, "app!=x"), found(&labels, "app in (x,y)")), (None, None, None));
        let moved = entry("a", json!({"app": "y"}));
        labels.change(Some(&a), Some(&moved));
        assert_eq!(found(&labels, "app=x"), Some(vec!["b".into()]));
        assert_eq!(found(&labels, "tier=1"), Some(vec![]));
        labels.change(Some(&moved), None);
        labels.change(Some(&b), None);
        assert!(labels.by_key.is_empty());
    }

    #[test]
    fn a_label_of_very_many_is_counted_until_all_are_gone() {
        let all: Vec<_> = (0..=LISTED_MAX).map(|i| entry(&format!("{i:05}"), json!({"app": "x"}))).collect();
        let mut labels = Labels::of(all[..LISTED_MAX].iter());
        assert_eq!(found(&labels, "app=x").unwrap().len(), LISTED_MAX);
        labels.change(None, Some(&all[LISTED_MAX]));
        assert_eq!(found(&labels, "app=x"), None);
        all.iter().skip(1).for_each(|entry| labels.change(Some(entry), None));
        assert_eq!(found(&labels, "app=x"), None);
        labels.change(Some(&all[0]), None);
        assert_eq!(found(&labels, "app=x"), Some(vec![]));
        labels.change(None, Some(&all[1]));
        assert_eq!(found(&labels, "app=x"), Some(vec!["00001".into()]));
    }
}

//! What ResourceSlices offer: devices, each with where it can be used.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::placement::NodeTerms;
use serde_json::Value;

use super::terms;
use crate::snapshot::NodeInfo;

/// A device of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

impl DeviceId {
    /// As a claim's allocation names it.
    pub fn of_result(result: &Value) -> Option<DeviceId> {
        let text = |key: &str| result[key].as_str().map(str::to_owned);
        Some(DeviceId { driver: text("driver")?, pool: text("pool")?, device: text("device")? })
    }
}

/// From where a device can be used.
#[derive(Clone, Debug)]
enum Reach {
    Everywhere,
    Node(String),
    Nodes(Value, NodeTerms),
}

impl Reach {
    fn of(object: &Value) -> Option<Reach> {
        if object["allNodes"] == true {
            return Some(Reach::Everywhere);
        }
        if let Some(name) = object["nodeName"].as_str().filter(|name| !name.is_empty()) {
            return Some(Reach::Node(name.to_owned()));
        }
        terms(&object["nodeSelector"]).map(|terms| Reach::Nodes(object["nodeSelector"].clone(), terms))
    }
}

/// A device with all that it tells.
#[derive(Clone, Debug)]
pub struct Device {
    pub id: DeviceId,
    /// As the slice has it.
    pub told: Value,
    reach: Reach,
}

impl Device {
    /// Whether it can be used on the node.
    pub fn reaches(&self, node: &NodeInfo) -> bool {
        match &self.reach {
            Reach::Everywhere => true,
            Reach::Node(name) => *name == node.name,
            Reach::Nodes(_, terms) => terms.matches(&node.name, node.labels()),
        }
    }

    /// Whether it can be used on one node only.
    pub fn is_local(&self) -> bool {
        matches!(self.reach, Reach::Node(_))
    }

    /// The selector of the nodes on which it can be used, if these are some.
    pub fn selector(&self) -> Option<&Value> {
        if let Reach::Nodes(selector, _) = &self.reach { Some(selector) } else { None }
    }

    /// The value of an attribute, by its name with its domain.
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        let attributes = self.told["attributes"].as_object()?;
        let own = name.strip_prefix(self.id.driver.as_str()).and_then(|rest| rest.strip_prefix('/'));
        attributes.get(name).or_else(|| attributes.get(own?))
    }

    /// What this part of the cluster does not model: such a device is given to nobody, rather than to too many.
    fn is_understood(&self) -> bool {
        ["consumesCounters", "bindingConditions"].iter().all(|key| self.told[*key].as_array().is_none_or(Vec::is_empty))
    }
}

/// One slice, read.
#[derive(Clone, Debug)]
pub struct Slice {
    driver: String,
    pool: String,
    generation: i64,
    /// How many slices the pool has in this generation.
    count: usize,
    devices: Vec<Device>,
}

impl Slice {
    /// Of the spec of a ResourceSlice.
    pub fn of(spec: &Value) -> Option<Slice> {
        let (driver, pool) = (spec["driver"].as_str()?.to_owned(), spec["pool"]["name"].as_str()?.to_owned());
        let each = spec["perDeviceNodeSelection"] == true;
        let whole = Reach::of(spec);
        let devices = spec["devices"].as_array().into_iter().flatten().filter_map(|told| {
            let reach = if each { Reach::of(told) } else { whole.clone() }?;
            let id = DeviceId { driver: driver.clone(), pool: pool.clone(), device: told["name"].as_str()?.to_owned() };
            Some(Device { id, told: told.clone(), reach }).filter(Device::is_understood)
        });
        Some(Slice {
            generation: spec["pool"]["generation"].as_i64().unwrap_or_default(),
            count: usize::try_from(spec["pool"]["resourceSliceCount"].as_i64().unwrap_or(1)).unwrap_or(1),
            devices: devices.collect(),
            driver,
            pool,
        })
    }
}

/// The devices of all pools that are whole, in order.
#[derive(Debug, Default)]
pub struct Pools {
    pub devices: Vec<Device>,
}

impl Pools {
    /// Of slices: of each pool those of its newest generation, if all of them are there.
    pub fn of<'a>(slices: impl Iterator<Item = &'a Arc<Slice>>) -> Pools {
        let mut pools: BTreeMap<(&str, &str), Vec<&Slice>> = BTreeMap::new();
        for slice in slices {
            let pool = pools.entry((&slice.driver, &slice.pool)).or_default();
            match pool.first().map(|first| first.generation) {
                Some(generation) if generation > slice.generation => continue,
                Some(generation) if generation < slice.generation => pool.clear(),
                _ => {}
            }
            pool.push(slice);
        }
        let whole = pools.into_values().filter(|pool| pool.first().is_some_and(|first| pool.len() >= first.count));
        Pools { devices: whole.flatten().flat_map(|slice| slice.devices.iter().cloned()).collect() }
    }
}

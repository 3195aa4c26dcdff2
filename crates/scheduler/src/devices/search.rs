//! Which devices a claim gets on a node: those that its requests select, under its constraints, found by trying.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::kinds::resource::devices::Selector;
use serde_json::{Value, json};

use super::offer::{Device, DeviceId, Pools};
use crate::snapshot::NodeInfo;

/// Devices that are tried for one claim on one node before it is given up.
const STEPS_MAX: usize = 20_000;

/// One request, or one of its alternatives.
#[derive(Debug)]
pub struct Alternative {
    /// `request` or `request/alternative`.
    name: String,
    class: Arc<Value>,
    selectors: Vec<Selector>,
    /// How many; `None` for all.
    count: Option<usize>,
    admin: bool,
    tolerations: Vec<Value>,
}

/// One request: the first alternative that can be had is given.
#[derive(Debug)]
pub struct Request {
    alternatives: Vec<Alternative>,
}

/// The requests of a claim, with what their classes say; or why they make no sense now.
pub fn requests(claim: &Value, classes: &HashMap<String, Arc<Value>>) -> Result<Vec<Request>, String> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let compiled = |selectors: Vec<Value>| -> Result<Vec<Selector>, String> {
        selectors.iter().filter_map(|selector| selector["cel"]["expression"].as_str()).map(Selector::compile).collect()
    };
    let read = |name: String, wanted: &Value| -> Result<Alternative, String> {
        let class_name = wanted["deviceClassName"].as_str().unwrap_or_default();
        let class = classes.get(class_name).ok_or_else(|| format!("request {name}: device class {class_name} does not exist"))?;
        let mut selectors = compiled(list(&class["spec"], "selectors"))?;
        selectors.extend(compiled(list(wanted, "selectors"))?);
        let all = wanted["allocationMode"] == "All";
        let count = (!all).then(|| wanted["count"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(1));
        Ok(Alternative {
            name,
            class: class.clone(),
            selectors,
            count,
            admin: wanted["adminAccess"] == true,
            tolerations: list(wanted, "tolerations"),
        })
    };
    let request = |request: &Value| -> Result<Request, String> {
        let name = request["name"].as_str().unwrap_or_default();
        let alternatives = if request["exactly"].is_object() {
            vec![read(name.to_owned(), &request["exactly"])?]
        } else {
            let all = list(request, "firstAvailable");
            all.iter().map(|each| read(format!("{name}/{}", each["name"].as_str().unwrap_or_default()), each)).collect::<Result<_, _>>()?
        };
        Ok(Request { alternatives })
    };
    list(&claim["spec"]["devices"], "requests").iter().map(request).collect()
}

impl Alternative {
    fn selects(&self, device: &Device) -> Result<bool, String> {
        for selector in &self.selectors {
            if !selector.selects(&device.id.driver, &device.told)? {
                return Ok(false);
            }
        }
        Ok(self.tolerates(device))
    }

    fn tolerates(&self, device: &Device) -> bool {
        let says = |toleration: &Value, key: &str, taint: &Value| toleration[key].as_str().is_none_or(|text| text.is_empty() || taint[key] == text);
        let tolerates = |toleration: &Value, taint: &Value| {
            let value =
                toleration["operator"] == "Exists" || toleration["value"].as_str().unwrap_or_default() == taint["value"].as_str().unwrap_or_default();
            says(toleration, "key", taint) && says(toleration, "effect", taint) && value
        };
        let taints = device.told["taints"].as_array().into_iter().flatten();
        let mut forbidding = taints.filter(|taint| taint["effect"] != "None");
        forbidding.all(|taint| self.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
    }

    /// Whether a constraint or configuration for these requests is for this one.
    fn is_meant(&self, requests: &[Value]) -> bool {
        let whole = self.name.split('/').next().unwrap_or_default();
        requests.is_empty() || requests.iter().any(|name| name == self.name.as_str() || name == whole)
    }
}

/// A device for a request.
#[derive(Clone, Debug)]
pub struct Choice<'a> {
    pub id: DeviceId,
    pub admin: bool,
    device: &'a Device,
    alternative: &'a Alternative,
}

struct Search<'a> {
    requests: &'a [Request],
    constraints: &'a [Value],
    /// What can be used on the node.
    devices: Vec<&'a Device>,
    taken: &'a HashSet<DeviceId>,
    /// What selectors have said: by request, alternative and device.
    known: HashMap<(usize, usize, usize), bool>,
    chosen: Vec<Choice<'a>>,
    steps: usize,
}

/// Devices for all requests; `None` if there are none on this node. The error is that of a selector.
pub fn search<'a>(
    requests: &'a [Request],
    claim: &'a Value,
    pools: &'a Pools,
    node: &NodeInfo,
    taken: &'a HashSet<DeviceId>,
) -> Result<Option<Vec<Choice<'a>>>, String> {
    let devices = pools.devices.iter().filter(|device| device.reaches(node)).collect();
    let constraints = claim["spec"]["devices"]["constraints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut search = Search { requests, constraints, devices, taken, known: HashMap::new(), chosen: Vec::new(), steps: 0 };
    Ok(search.request(0)?.then_some(search.chosen))
}

impl<'a> Search<'a> {
    /// Finds devices for this request and all after it.
    fn request(&mut self, index: usize) -> Result<bool, String> {
        let requests = self.requests;
        let Some(request) = requests.get(index) else { return Ok(true) };
        for (number, alternative) in request.alternatives.iter().enumerate() {
            let before = self.chosen.len();
            let found = match alternative.count {
                Some(count) => self.some(index, number, alternative, count, 0)?,
                None => self.all(index, number, alternative)?,
            };
            if found {
                return Ok(true);
            }
            self.chosen.truncate(before);
        }
        Ok(false)
    }

    /// Finds `left` more devices from this place on, and then those for what comes after.
    fn some(&mut self, index: usize, number: usize, alternative: &'a Alternative, left: usize, from: usize) -> Result<bool, String> {
        if left == 0 {
            return self.request(index + 1);
        }
        for place in from..self.devices.len() {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Ok(false);
            }
            if !self.is_free(alternative, place) || !self.selects(index, number, alternative, place)? || !self.take(alternative, place) {
                continue;
            }
            if self.some(index, number, alternative, left - 1, place + 1)? {
                return Ok(true);
            }
            self.chosen.pop();
        }
        Ok(false)
    }

    /// Takes all devices that are selected: every one must be free.
    fn all(&mut self, index: usize, number: usize, alternative: &'a Alternative) -> Result<bool, String> {
        let before = self.chosen.len();
        for place in 0..self.devices.len() {
            if self.selects(index, number, alternative, place)? && !(self.is_free(alternative, place) && self.take(alternative, place)) {
                return Ok(false);
            }
        }
        if self.chosen.len() == before { Ok(false) } else { self.request(index + 1) }
    }

    fn selects(&mut self, index: usize, number: usize, alternative: &Alternative, place: usize) -> Result<bool, String> {
        if let Some(known) = self.known.get(&(index, number, place)) {
            return Ok(*known);
        }
        let selects = alternative.selects(self.devices[place])?;
        self.known.insert((index, number, place), selects);
        Ok(selects)
    }

    fn is_free(&self, alternative: &Alternative, place: usize) -> bool {
        let id = &self.devices[place].id;
        alternative.admin || !(self.taken.contains(id) || self.chosen.iter().any(|choice| !choice.admin && choice.id == *id))
    }

    /// Chooses a device if the constraints allow it beside those that are chosen.
    fn take(&mut self, alternative: &'a Alternative, place: usize) -> bool {
        let device = self.devices[place];
        for constraint in self.constraints {
            let requests = constraint["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
            if !alternative.is_meant(requests) {
                continue;
            }
            let others = || self.chosen.iter().filter(|choice| choice.alternative.is_meant(requests));
            let allowed = if let Some(name) = constraint["matchAttribute"].as_str() {
                let own = device.attribute(name);
                own.is_some() && others().all(|choice| choice.device.attribute(name) == own)
            } else if let Some(name) = constraint["distinctAttribute"].as_str() {
                let own = device.attribute(name);
                own.is_some() && others().all(|choice| choice.device.attribute(name) != own)
            } else {
                false
            };
            if !allowed {
                return false;
            }
        }
        self.chosen.push(Choice { id: device.id.clone(), admin: alternative.admin, device, alternative });
        true
    }
}

/// What is written into the claim's status.
pub fn allocation(chosen: &[Choice<'_>], requests: &[Request], claim: &Value, node: &NodeInfo) -> Value {
    let results: Vec<Value> = chosen
        .iter()
        .map(|choice| {
            let mut result =
                json!({"request": choice.alternative.name, "driver": choice.id.driver, "pool": choice.id.pool, "device": choice.id.device});
            if choice.admin {
                result["adminAccess"] = json!(true);
            }
            if !choice.alternative.tolerations.is_empty() {
                result["tolerations"] = json!(choice.alternative.tolerations);
            }
            result
        })
        .collect();
    let given = |alternative: &Alternative| chosen.iter().any(|choice| choice.alternative.name == alternative.name);
    let mut configurations = Vec::new();
    for alternative in requests.iter().flat_map(|request| &request.alternatives).filter(|alternative| given(alternative)) {
        for configuration in alternative.class["spec"]["config"].as_array().into_iter().flatten() {
            let mut configuration = configuration.clone();
            configuration["source"] = json!("FromClass");
            configuration["requests"] = json!([alternative.name]);
            configurations.push(configuration);
        }
    }
    for configuration in claim["spec"]["devices"]["config"].as_array().into_iter().flatten() {
        let requests = configuration["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
        if chosen.iter().any(|choice| choice.alternative.is_meant(requests)) {
            let mut configuration = configuration.clone();
            configuration["source"] = json!("FromClaim");
            configurations.push(configuration);
        }
    }
    let mut allocation = json!({"devices": {"results": results}});
    if !configurations.is_empty() {
        allocation["devices"]["config"] = json!(configurations);
    }
    if chosen.iter().any(|choice| choice.device.is_local()) {
        let field = json!({"key": "metadata.name", "operator": "In", "values": [node.name]});
        allocation["nodeSelector"] = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
    } else {
        let mut selectors = chosen.iter().filter_map(|choice| choice.device.selector());
        if let Some(first) = selectors.next() {
            let same = selectors.all(|other| other == first);
            // Where devices reach different nodes, this one is among those that all reach.
            let field = json!({"key": "metadata.name", "operator": "In", "values": [node.name]});
            allocation["nodeSelector"] = if same { first.clone() } else { json!({"nodeSelectorTerms": [{"matchFields": [field]}]}) };
        }
    }
    allocation
}

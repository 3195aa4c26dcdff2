//! ServiceCIDR of networking.k8s.io: a range of addresses for Services.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{made, strings},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs").status_alone().status_open().hooks(ServiceCidrs)
}

struct ServiceCidrs;

impl Hooks for ServiceCidrs {
    fn default(&self, range: &mut Value) {
        made(range, "status");
    }
    fn validate(&self, range: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("cidrs");
        let cidrs = ranges(range);
        let Some(before) = old.map(ranges) else { return validate_ranges(&cidrs, &path, errors) };
        let changed = |i: usize, errors: &mut Errors| {
            if cidrs[i] != before[i] {
                errors.invalid(path.index(i), cidrs[i], checks::IMMUTABLE);
            }
        };
        match (before.len(), cidrs.len()) {
            (before, now) if before == now => (0..now).for_each(|i| changed(i, errors)),
            // A second family may join the first.
            (1, 2) => {
                changed(0, errors);
                validate_ranges(&cidrs, &path, errors);
            }
            _ => errors.invalid(path.clone(), cidrs.clone(), checks::IMMUTABLE),
        }
    }
    fn cells(&self, range: &Value, now_unix_s: i64) -> Vec<Value> {
        let cidrs: Vec<&str> = strings(workload::spec(range), "cidrs").collect();
        vec![table::name(range), json!(cidrs.join(",")), table::age(range, now_unix_s)]
    }
}

fn ranges(range: &Value) -> Vec<&str> {
    strings(workload::spec(range), "cidrs").collect()
}

fn validate_ranges(cidrs: &[&str], path: &Path, errors: &mut Errors) {
    match cidrs.len() {
        0 => return errors.required(path.clone(), "at least one CIDR required"),
        1 | 2 => {}
        _ => return errors.invalid(path.clone(), json!({"CIDRs": cidrs}), "may only hold up to 2 values"),
    }
    for (i, cidr) in cidrs.iter().enumerate() {
        errors.invalid_all(&path.index(i), *cidr, checks::canonical_cidr(cidr));
    }
    let families: Vec<bool> = cidrs.iter().filter_map(|c| checks::parse_cidr(c)).map(|(ip, _)| ip.is_ipv4()).collect();
    if families.len() == 2 && families[0] == families[1] {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(path.clone(), cidrs.to_vec(), why);
    }
}

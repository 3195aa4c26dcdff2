//! ServiceCIDR of networking.k8s.io: a range of addresses for Services.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{list, put, strings},
        workload,
    },
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs").status().hooks(ServiceCidrs)
}

struct ServiceCidrs;

impl Hooks for ServiceCidrs {
    fn prepare_create(&self, range: &mut Value) {
        put(range, "status", json!({}));
    }
    fn validate(&self, range: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(range), Path::new("spec").child("cidrs"));
        let cidrs: Vec<&str> = strings(spec, "cidrs").collect();
        if cidrs.is_empty() {
            errors.required(path, "at least one CIDR required");
            return;
        }
        if let Some(old) = old {
            let before: Vec<&str> = strings(workload::spec(old), "cidrs").collect();
            for (i, cidr) in cidrs.iter().enumerate() {
                if before.get(i).is_some_and(|b| b != cidr) {
                    errors.invalid(path.index(i), *cidr, checks::IMMUTABLE);
                }
            }
        }
        let families: Vec<bool> = cidrs.iter().filter_map(|c| checks::parse_cidr(c)).map(|(ip, _)| ip.is_ipv4()).collect();
        if cidrs.len() > 2 {
            errors.invalid(path.clone(), json!({"CIDRs": cidrs}), "may only hold up to 2 values");
        } else if families.len() == 2 && families[0] == families[1] {
            errors.invalid(
                path.clone(),
                Value::from(list(spec, "cidrs").to_vec()),
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            );
        }
        for (i, cidr) in cidrs.iter().enumerate() {
            let problems = checks::cidr(cidr);
            let canonical = checks::parse_cidr(cidr).map(|(ip, length)| format!("{ip}/{length}"));
            if let (true, Some(canonical)) = (problems.is_empty(), canonical.filter(|c| c != cidr)) {
                errors.invalid(path.index(i), *cidr, &format!("must be in canonical form ({canonical:?})"));
            }
            errors.invalid_all(&path.index(i), *cidr, problems);
        }
    }
    fn cells(&self, range: &Value, now_unix_s: i64) -> Vec<Value> {
        let cidrs: Vec<&str> = strings(workload::spec(range), "cidrs").collect();
        vec![table::name(range), json!(cidrs.join(",")), table::age(range, now_unix_s)]
    }
}

//! StorageClass of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::warnings,
        values::{fill_absent, list, map, strings, text},
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "StorageClass", "storageclasses").short(&["sc"]).hooks(StorageClasses)
}

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

struct StorageClasses;

/// Whether a class is the one for claims that name none.
pub fn is_default(class: &Value) -> bool {
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|key| class.annotation(key) == Some("true"))
}

impl Hooks for StorageClasses {
    fn default(&self, class: &mut Value) {
        fill_absent(class, "reclaimPolicy", "Delete");
        fill_absent(class, "volumeBindingMode", "Immediate");
    }
    fn validate(&self, class: &Value, old: Option<&Value>, errors: &mut Errors) {
        let root = Path::root();
        provisioner(class, "provisioner", errors);
        parameters(class, errors);
        if !text(class, "reclaimPolicy").is_empty() {
            checks::one_of(class, "reclaimPolicy", &["Delete", "Retain"], &root, errors);
        }
        checks::one_of(class, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &root, errors);
        let terms = list(class, "allowedTopologies");
        // Kubernetes compares each term with those before it and with as many that say nothing.
        let mut known: HashMap<Topology, usize> = HashMap::from([(Topology::new(), terms.len())]);
        for (i, term) in terms.iter().enumerate() {
            for (j, expression, again) in checks::distinct(list(term, "matchLabelExpressions"), |expression| text(expression, "key")) {
                let path = root.child("allowedTopologies").index(i).child("matchLabelExpressions").index(j);
                let key = text(expression, "key");
                let values = list(expression, "values");
                if values.is_empty() {
                    errors.required(path.child("values"), "");
                }
                for (i, value, _) in checks::distinct(values, |value| value).filter(|(.., again)| *again) {
                    errors.duplicate(path.child("values").index(i), value.clone());
                }
                errors.invalid_all(&path.child("key"), key, names::qualified_name(key));
                if again {
                    errors.duplicate(path.child("key"), key);
                }
            }
            let count = known.entry(topology(term)).or_default();
            for _ in 0..*count {
                if errors.is_full() {
                    break;
                }
                errors.duplicate(root.child("allowedTopologies").index(i).child("matchLabelExpressions"), "");
            }
            *count += 1;
        }
        if let Some(old) = old {
            for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
                checks::immutable(class.get(key), old.get(key), &root.child(key), errors);
            }
        }
    }
    fn warnings(&self, class: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut all = vec![];
        for (i, term) in list(class, "allowedTopologies").iter().enumerate() {
            for (j, expression) in list(term, "matchLabelExpressions").iter().enumerate() {
                let path = Path::new("allowedTopologies").index(i).child("matchLabelExpressions").index(j).child("key");
                all.extend(warnings::old_label(text(expression, "key")).map(|old| format!("{path}: {old}")));
            }
        }
        all
    }
    fn cells(&self, class: &Value, now_unix_s: i64) -> Vec<Value> {
        let name = if is_default(class) { format!("{} (default)", class.name()) } else { class.name().to_string() };
        vec![
            json!(name),
            json!(text(class, "provisioner")),
            json!(text(class, "reclaimPolicy")),
            json!(text(class, "volumeBindingMode")),
            json!(crate::kinds::values::flag(class, "allowVolumeExpansion")),
            table::age(class, now_unix_s),
        ]
    }
}

/// What a term says: values by key, in whatever order; of several about one key, the last.
type Topology<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn topology(term: &Value) -> Topology<'_> {
    list(term, "matchLabelExpressions").iter().map(|expression| (text(expression, "key"), strings(expression, "values").collect())).collect()
}

/// Who makes volumes of a class: a qualified name, in whatever case.
pub fn provisioner(class: &Value, key: &str, errors: &mut Errors) {
    if checks::required(class, key, &Path::root(), errors) {
        let name = text(class, key).to_lowercase();
        errors.invalid_all(&Path::new(key), name.as_str(), names::qualified_name(&name));
    }
}

/// Parameters of a class: not too many, none without a name.
pub fn parameters(class: &Value, errors: &mut Errors) {
    let path = Path::new("parameters");
    let Some(parameters) = map(class, "parameters") else { return };
    if parameters.len() > PARAMETERS_MAX {
        errors.too_long(path.clone(), "", PARAMETERS_MAX);
        return;
    }
    let mut bytes = 0;
    for (key, value) in parameters {
        if key.is_empty() {
            errors.invalid(path.clone(), "", "field can not be empty.");
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > PARAMETERS_BYTES_MAX {
        errors.too_long(path, "", PARAMETERS_BYTES_MAX);
    }
}

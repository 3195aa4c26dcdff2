//! DefaultStorageClass: a claim that names no class gets the default one; of several, the newest.

use super::{AdmissionContext, Operation, Plugin};
use api::{Status, Value, object::ObjectExt};

const MARK: &str = "storageclass.kubernetes.io/is-default-class";

pub(super) struct DefaultStorageClass;

#[async_trait::async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        let named = object.at("spec.storageClassName").is_some_and(Value::is_string)
            || object.annotation("volume.beta.kubernetes.io/storage-class").is_some();
        if !cx.is(Operation::Create, "", "persistentvolumeclaims") || named {
            return Ok(());
        }
        if let Some(class) = newest_default(cx.objects("storage.k8s.io", "storageclasses", None)?, MARK) {
            object.set("spec.storageClassName", class.name());
        }
        Ok(())
    }
}

/// The newest class with the mark; of those made at once, the first by name.
pub(super) fn newest_default(classes: Vec<Value>, mark: &str) -> Option<Value> {
    let made = |class: &Value| class.creation_timestamp().unwrap_or_default().to_string();
    let marked = classes.into_iter().filter(|class| class.annotation(mark) == Some("true"));
    marked.max_by(|a, b| made(a).cmp(&made(b)).then_with(|| b.name().cmp(a.name())))
}

//! DefaultIngressClass: an ingress that names no class gets the default one.

use super::{AdmissionContext, Operation, Plugin, default_storage_class::newest_default};
use api::{Status, Value, object::ObjectExt};

const GROUP: &str = "networking.k8s.io";

pub(super) struct DefaultIngressClass;

#[async_trait::async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        let named = object.at("spec.ingressClassName").is_some_and(Value::is_string) || object.annotation("kubernetes.io/ingress.class").is_some();
        if !cx.is(Operation::Create, GROUP, "ingresses") || named {
            return Ok(());
        }
        if let Some(class) = newest_default(cx.objects(GROUP, "ingressclasses", None)?, "ingressclass.kubernetes.io/is-default-class") {
            object.set("spec.ingressClassName", class.name());
        }
        Ok(())
    }
}

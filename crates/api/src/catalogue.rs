//! The list of kinds, one line each, and the ways to look one up.

use crate::kind::Kind;
use crate::kinds::{
    admissionregistration, apiextensions, apiregistration, apps, authentication, authorization, autoscaling, batch, certificates, coordination, core,
    discovery, events, flowcontrol, metrics, networking, node, policy, rbac, resource, scheduling, storage,
};
use std::{collections::BTreeMap, sync::Arc};

/// An immutable set of kinds. Joining a CRD makes a new one.
#[derive(Clone, Default)]
pub struct Catalogue {
    /// Group, then plural: looked up on every request, so without making strings.
    by_resource: BTreeMap<String, BTreeMap<String, Arc<Kind>>>,
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
        vec![
            core::bindings::kind(),
            core::componentstatuses::kind(),
            core::configmaps::kind(),
            core::endpoints::kind(),
            core::events::kind(),
            core::limitranges::kind(),
            core::namespaces::kind(),
            core::nodes::kind(),
            core::persistentvolumeclaims::kind(),
            core::persistentvolumes::kind(),
            core::pods::kind(),
            core::podtemplates::kind(),
            core::replicationcontrollers::kind(),
            core::resourcequotas::kind(),
            core::secrets::kind(),
            core::serviceaccounts::kind(),
            core::services::kind(),
            apiregistration::apiservices::kind(),
            apps::controllerrevisions::kind(),
            apps::daemonsets::kind(),
            apps::deployments::kind(),
            apps::replicasets::kind(),
            apps::statefulsets::kind(),
            events::events::kind(),
            authentication::selfsubjectreviews::kind(),
            authentication::tokenreviews::kind(),
            authorization::localsubjectaccessreviews::kind(),
            authorization::selfsubjectaccessreviews::kind(),
            authorization::selfsubjectrulesreviews::kind(),
            authorization::subjectaccessreviews::kind(),
            autoscaling::horizontalpodautoscalers::kind(),
            batch::cronjobs::kind(),
            batch::jobs::kind(),
            certificates::certificatesigningrequests::kind(),
            networking::ingressclasses::kind(),
            networking::ingresses::kind(),
            networking::ipaddresses::kind(),
            networking::networkpolicies::kind(),
            networking::servicecidrs::kind(),
            policy::poddisruptionbudgets::kind(),
            rbac::clusterrolebindings::kind(),
            rbac::clusterroles::kind(),
            rbac::rolebindings::kind(),
            rbac::roles::kind(),
            storage::csidrivers::kind(),
            storage::csinodes::kind(),
            storage::csistoragecapacities::kind(),
            storage::storageclasses::kind(),
            storage::volumeattachments::kind(),
            storage::volumeattributesclasses::kind(),
            admissionregistration::mutatingadmissionpolicies::kind(),
            admissionregistration::mutatingadmissionpolicybindings::kind(),
            admissionregistration::mutatingwebhookconfigurations::kind(),
            admissionregistration::validatingadmissionpolicies::kind(),
            admissionregistration::validatingadmissionpolicybindings::kind(),
            admissionregistration::validatingwebhookconfigurations::kind(),
            apiextensions::customresourcedefinitions::kind(),
            scheduling::priorityclasses::kind(),
            coordination::leases::kind(),
            node::runtimeclasses::kind(),
            discovery::endpointslices::kind(),
            resource::deviceclasses::kind(),
            resource::resourceclaims::kind(),
            resource::resourceclaimtemplates::kind(),
            resource::resourceslices::kind(),
            flowcontrol::flowschemas::kind(),
            flowcontrol::prioritylevelconfigurations::kind(),
        ]
    }
    /// Kinds that are measured when somebody asks. They join the catalogue where nobody else serves their group.
    pub fn measured() -> Vec<Arc<Kind>> {
        vec![Arc::new(metrics::nodes::kind()), Arc::new(metrics::pods::kind())]
    }
    pub fn insert(&mut self, kind: Kind) {
        self.by_resource.entry(kind.group.clone()).or_default().insert(kind.resource.clone(), Arc::new(kind));
    }
    /// The same for a record that others hold too.
    pub fn insert_shared(&mut self, kind: Arc<Kind>) {
        self.by_resource.entry(kind.group.clone()).or_default().insert(kind.resource.clone(), kind);
    }
    /// By group and plural.
    pub fn resource(&self, group: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(group)?.get(resource)
    }
    /// By group and kind.
    pub fn kind(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(group)?.values().find(|k| k.kind == kind)
    }
    /// In order of group, then resource.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.by_resource.values().flat_map(BTreeMap::values)
    }
}

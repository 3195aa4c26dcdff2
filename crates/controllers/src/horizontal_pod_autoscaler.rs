//! HorizontalPodAutoscalers: the number of replicas follows what the pods use.
//!
//! ```text
//! scale, pods, metrics --replicas (pure)--> wanted --behavior (pure)--> how fast --> scale, status, events
//! ```
//!
//! Looked at every 15 seconds. What pods use is asked of `metrics.k8s.io`. Where
//! metrics cannot be had nothing is scaled, and the condition `ScalingActive` says why.
//!
//! What must stay true: an autoscaler never scales on part of its metrics downwards; what is remembered of the past is kept
//! in memory alone, so a new leader is calm for a window before it scales down.

mod behavior;
mod metrics;
mod replicas;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity};
use api::selector::LabelSelector;
use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{EventType, Recorder};
use client::{Change, Clock, ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricIdentifier, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource;
use kube::core::Selector;
use parking_lot::Mutex;
use serde_json::Value;

use self::behavior::Memory;
use self::replicas::{Question, Readings, Target, Tolerance, propose, propose_for_average, propose_for_value};
use crate::Context;
use crate::common::discovery::{self, Discovered, Resource};
use crate::common::owner::labels_of;
use crate::common::patch;
use crate::common::pod_state::is_ready;

/// `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);
/// `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Autoscalers {
        client: context.client.clone(),
        autoscalers: context.informers.all(),
        pods: context.informers.all(),
        recorder: context.recorder_for("horizontal-pod-autoscaler"),
        clock: context.clock.clone(),
        memory: Mutex::default(),
        discovered: Mutex::default(),
    })
}

struct Autoscalers {
    client: kube::Client,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    recorder: Recorder,
    clock: Clock,
    memory: Mutex<HashMap<Key, Memory>>,
    discovered: Mutex<Arc<Discovered>>,
}

/// Why a metric asks for nothing: a condition's reason, and the message.
type Failure = (&'static str, String);

/// What one metric asks for.
struct Answer {
    replicas: i32,
    name: String,
    status: MetricStatus,
}

/// What is scaled, as it is now.
struct Scaled<'a> {
    namespace: &'a str,
    selector: &'a str,
    current: i32,
    tolerance: Tolerance,
    pods: &'a [&'a Pod],
    now: Timestamp,
}

#[async_trait]
impl Controller for Autoscalers {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        // A status that this controller wrote is no reason to look again before the time has come.
        inputs.mapped(&self.autoscalers, |change| match change {
            Change::Applied { old: Some(old), new } if old.spec == new.spec => Vec::new(),
            change => vec![Key::of(&**change.object())],
        });
        inputs.read(&self.pods);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(autoscaler) = self.autoscalers.get(key) else {
            self.memory.lock().remove(key);
            return Ok(Next::Done);
        };
        let mut status = autoscaler.status.clone().unwrap_or_default();
        status.observed_generation = autoscaler.metadata.generation;
        let outcome = self.scale(key, &autoscaler, &mut status).await;
        patch::write_status(&self.autoscalers, &autoscaler, autoscaler.status.as_ref(), &status).await?;
        outcome?;
        Ok(Next::After(PERIOD))
    }
}

impl Autoscalers {
    /// The resource of a kind; what the API serves is asked anew where a kind is not known yet.
    async fn resource(&self, api_version: &str, kind: &str) -> Result<Option<Arc<Resource>>, Error> {
        let known = self.discovered.lock().of_kind(api_version, kind).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let found = Arc::new(discovery::discover(&self.client).await?);
        let resource = found.of_kind(api_version, kind).cloned();
        *self.discovered.lock() = found;
        Ok(resource)
    }

    fn tell(&self, autoscaler: &HorizontalPodAutoscaler, type_: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.about(autoscaler, type_, reason, message);
    }

    async fn scale(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler, status: &mut HorizontalPodAutoscalerStatus) -> Result<(), Error> {
        let now = self.clock.now();
        let spec = &autoscaler.spec;
        let target = &spec.scale_target_ref;
        let found = match self.resource(target.api_version.as_deref().unwrap_or("v1"), &target.kind).await? {
            Some(resource) => match discovery::scale(&self.client, &resource, &key.namespace, &target.name).await {
                Ok(Some(scale)) => Ok((resource, scale)),
                Ok(None) => Err(format!("{} \"{}\" not found", resource.group_resource().trim_end_matches('.'), target.name)),
                Err(error) => Err(error.short()),
            },
            None => Err(format!("unable to determine resource for scale target reference: no matches for kind \"{}\"", target.kind)),
        };
        let (resource, scale) = match found {
            Ok(found) => found,
            Err(message) => {
                let message = format!("the HPA controller was unable to get the target's current scale: {message}");
                self.tell(autoscaler, EventType::Warning, "FailedGetScale", message.clone());
                set(status, "AbleToScale", "False", "FailedGetScale", message, now);
                return Ok(());
            }
        };
        set(status, "AbleToScale", "True", "SucceededGetScale", "the HPA controller was able to get the target's current scale", now);
        let number = |place: &str| scale.pointer(place).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok()).unwrap_or(0);
        let current = number("/spec/replicas");
        status.current_replicas = Some(number("/status/replicas"));
        let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        let (desired, why) = if current == 0 && least != 0 {
            set(status, "ScalingActive", "False", "ScalingDisabled", "scaling is disabled since the replica count of the target is zero", now);
            status.desired_replicas = 0;
            return Ok(());
        } else if current > most {
            (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let selector = scale.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default();
            let computed = self.wanted(key, autoscaler, current, selector, status, now).await;
            let (wanted, metric) = match computed {
                Ok(computed) => computed,
                Err((reason, message)) => {
                    self.tell(autoscaler, EventType::Warning, reason, message.clone());
                    self.tell(autoscaler, EventType::Warning, "FailedComputeMetricsReplicas", message.clone());
                    let message = format!("the HPA was unable to compute the replica count: {message}");
                    set(status, "ScalingActive", "False", reason, message, now);
                    status.desired_replicas = current;
                    return Ok(());
                }
            };
            let why = if wanted > current { format!("{metric} above target") } else { "All metrics below target".to_owned() };
            (self.calmed(key, spec.behavior.as_ref(), (current, wanted), (least, most), status, now), why)
        };
        status.desired_replicas = desired;
        if desired == current {
            return Ok(());
        }
        let mut changed = scale;
        changed["spec"]["replicas"] = desired.into();
        if let Err(error) = discovery::set_scale(&self.client, &resource, &key.namespace, &target.name, &changed).await {
            let message = format!("New size: {desired}; reason: {why}; error: {}", error.short());
            self.tell(autoscaler, EventType::Warning, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {}", error.short());
            set(status, "AbleToScale", "False", "FailedUpdateScale", message, now);
            return Err(error.into());
        }
        set(status, "AbleToScale", "True", "SucceededRescale", format!("the HPA controller was able to update the target scale to {desired}"), now);
        self.tell(autoscaler, EventType::Normal, "SuccessfulRescale", format!("New size: {desired}; reason: {why}"));
        self.memory.lock().entry(key.clone()).or_default().changed(current, desired, now);
        status.last_scale_time = Some(self.clock.time());
        Ok(())
    }

    /// Stabilizes and bounds what is wanted, and says so in the conditions.
    fn calmed(
        &self,
        key: &Key,
        behavior: Option<&k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior>,
        (current, wanted): (i32, i32),
        bounds: (i32, i32),
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> i32 {
        let mut all = self.memory.lock();
        let memory = all.entry(key.clone()).or_default();
        let steady = match memory.stabilize(behavior, current, wanted, now) {
            Some((steady, reason, message)) => {
                set(status, "AbleToScale", "True", reason, message, now);
                steady
            }
            None => {
                set(status, "AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size", now);
                wanted
            }
        };
        match memory.bound(behavior, current, steady, bounds, now) {
            Ok(desired) => {
                set(status, "ScalingLimited", "False", "DesiredWithinRange", "the desired count is within the acceptable range", now);
                desired
            }
            Err((desired, reason, message)) => {
                set(status, "ScalingLimited", "True", reason, message, now);
                desired
            }
        }
    }

    /// The most that any of the metrics asks for, with that metric's name.
    async fn wanted(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        current: i32,
        selector: &str,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> Result<(i32, String), Failure> {
        if selector.is_empty() {
            return Err(("InvalidSelector", "the HPA target's scale is missing a selector".to_owned()));
        }
        let parsed = LabelSelector::parse(selector).map_err(|error| ("InvalidSelector", error.message))?;
        let all = self.pods.in_namespace(&key.namespace);
        let pods: Vec<&Pod> =
            all.iter().map(|pod| &**pod).filter(|pod| parsed.matches(|label| labels_of(*pod).get(label).map(String::as_str))).collect();
        let behavior = autoscaler.spec.behavior.as_ref();
        let tolerance = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
            let own = rules.and_then(|rules| rules.tolerance.as_ref()).and_then(|text| Quantity::parse(&text.0).ok());
            own.map_or(TOLERANCE, |own| own.as_f64())
        };
        let tolerance = Tolerance {
            up: tolerance(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
            down: tolerance(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
        };
        let scaled = Scaled { namespace: &key.namespace, selector, current, tolerance, pods: &pods, now };
        let specs = autoscaler.spec.metrics.clone().unwrap_or_default();
        let (mut best, mut statuses, mut failures): (Option<(i32, String)>, Vec<MetricStatus>, Vec<Failure>) = (None, Vec::new(), Vec::new());
        for spec in &specs {
            match self.answer(&scaled, spec).await {
                Ok(answer) => {
                    if best.as_ref().is_none_or(|(replicas, _)| answer.replicas > *replicas) {
                        best = Some((answer.replicas, answer.name));
                    }
                    statuses.push(answer.status);
                }
                Err(failure) => failures.push(failure),
            }
        }
        let failed = failures.len();
        if let Some((reason, first)) = failures.into_iter().next() {
            // Part of the metrics may ask for more, never for less.
            if best.as_ref().is_none_or(|(replicas, _)| *replicas < current) {
                let message = if failed == 1 && specs.len() == 1 {
                    first
                } else {
                    format!("invalid metrics ({failed} invalid out of {}), first error is: {first}", specs.len())
                };
                return Err((reason, message));
            }
        }
        let Some((replicas, name)) = best else { return Err(("InvalidMetricSourceType", "the HPA has no metrics".to_owned())) };
        status.current_metrics = Some(statuses);
        set(
            status,
            "ScalingActive",
            "True",
            "ValidMetricFound",
            format!("the HPA was able to successfully calculate a replica count from {name}"),
            now,
        );
        Ok((replicas, name))
    }

    async fn answer(&self, scaled: &Scaled<'_>, spec: &MetricSpec) -> Result<Answer, Failure> {
        match (&spec.resource, &spec.container_resource, &spec.pods, &spec.object, &spec.external) {
            (Some(source), ..) => self.resource_metric(scaled, &source.name, None, &source.target).await,
            (_, Some(source), ..) => self.resource_metric(scaled, &source.name, Some(&source.container), &source.target).await,
            (_, _, Some(source), ..) => {
                let failed = |message: String| ("FailedGetPodsMetric", format!("failed to get pods metric value: {message}"));
                let labels = labels_text(&source.metric);
                let readings = metrics::of_pods(&self.client, scaled.namespace, scaled.selector, &source.metric.name, &labels, scaled.now).await;
                let target = milli(source.target.average_value.as_ref()).ok_or_else(|| failed("it has no averageValue".into()))?;
                let proposal = ask(scaled, Target::Average(target), None, None, &readings.map_err(failed)?).map_err(failed)?;
                let current = MetricValueStatus { average_value: Some(text(proposal.average)), ..MetricValueStatus::default() };
                let status = PodsMetricStatus { current, metric: source.metric.clone() };
                let status = MetricStatus { type_: "Pods".into(), pods: Some(status), ..MetricStatus::default() };
                Ok(Answer { replicas: proposal.replicas, name: format!("pods metric {}", source.metric.name), status })
            }
            (_, _, _, Some(source), _) => {
                let failed = |message: String| ("FailedGetObjectMetric", format!("failed to get object metric value: {message}"));
                let object = &source.described_object;
                let resource =
                    self.resource(object.api_version.as_deref().unwrap_or("v1"), &object.kind).await.map_err(|error| failed(error.to_string()))?;
                let resource = resource.ok_or_else(|| failed(format!("no matches for kind \"{}\"", object.kind)))?.group_resource();
                let (resource, labels) = (resource.trim_end_matches('.'), labels_text(&source.metric));
                let value = metrics::of_object(&self.client, scaled.namespace, resource, &object.name, &source.metric.name, &labels).await;
                let (replicas, current) = whole(scaled, value.map_err(failed)?, &source.target);
                let status = ObjectMetricStatus { current, described_object: object.clone(), metric: source.metric.clone() };
                let status = MetricStatus { type_: "Object".into(), object: Some(status), ..MetricStatus::default() };
                Ok(Answer { replicas, name: format!("{} metric {}", object.kind, source.metric.name), status })
            }
            (.., Some(source)) => {
                let failed = |message: String| ("FailedGetExternalMetric", format!("failed to get external metric value: {message}"));
                let value = metrics::external(&self.client, scaled.namespace, &source.metric.name, &labels_text(&source.metric)).await;
                let (replicas, current) = whole(scaled, value.map_err(failed)?, &source.target);
                let status = ExternalMetricStatus { current, metric: source.metric.clone() };
                let status = MetricStatus { type_: "External".into(), external: Some(status), ..MetricStatus::default() };
                Ok(Answer { replicas, name: format!("external metric {}", source.metric.name), status })
            }
            _ => Err(("InvalidMetricSourceType", format!("unknown metric source type \"{}\"", spec.type_))),
        }
    }

    async fn resource_metric(&self, scaled: &Scaled<'_>, name: &str, container: Option<&str>, target: &MetricTarget) -> Result<Answer, Failure> {
        let reason = if container.is_some() { "FailedGetContainerResourceMetric" } else { "FailedGetResourceMetric" };
        let failed = |message: String| {
            let what = if target.average_utilization.is_some() { "utilization" } else { "resource metric value" };
            (reason, format!("failed to get {name} {what}: unable to get metrics for resource {name}: {message}"))
        };
        let aim = match (target.average_utilization, milli(target.average_value.as_ref())) {
            (Some(percent), _) => Target::Utilization(i64::from(percent)),
            (None, Some(average)) => Target::Average(average),
            (None, None) => {
                return Err((reason, format!("invalid resource metric source: neither an average utilization target nor an average value ({name})")));
            }
        };
        let readings = metrics::of_resource(&self.client, scaled.namespace, scaled.selector, name, container, scaled.now).await.map_err(failed)?;
        if readings.is_empty() {
            return Err(failed("no metrics returned from resource metrics API".to_owned()));
        }
        let proposal = ask(scaled, aim, Some(name), container, &readings).map_err(failed)?;
        let current = MetricValueStatus { average_utilization: proposal.utilization, average_value: Some(text(proposal.average)), value: None };
        let status = match container {
            None => MetricStatus {
                type_: "Resource".into(),
                resource: Some(ResourceMetricStatus { current, name: name.to_owned() }),
                ..MetricStatus::default()
            },
            Some(container) => MetricStatus {
                type_: "ContainerResource".into(),
                container_resource: Some(ContainerResourceMetricStatus { container: container.to_owned(), current, name: name.to_owned() }),
                ..MetricStatus::default()
            },
        };
        let share = if target.average_utilization.is_some() { " utilization (percentage of request)" } else { "" };
        Ok(Answer { replicas: proposal.replicas, name: format!("{name} resource{share}"), status })
    }
}

fn ask(
    scaled: &Scaled<'_>,
    target: Target,
    resource: Option<&str>,
    container: Option<&str>,
    readings: &Readings,
) -> Result<replicas::Proposal, String> {
    let question = Question { current: scaled.current, target, resource, container, tolerance: scaled.tolerance, pods: scaled.pods, now: scaled.now };
    propose(&question, readings)
}

/// What a metric of the whole asks for, by its value or by each replica's share of it.
fn whole(scaled: &Scaled<'_>, value: i64, target: &MetricTarget) -> (i32, MetricValueStatus) {
    let question = Question {
        current: scaled.current,
        target: Target::Average(0),
        resource: None,
        container: None,
        tolerance: scaled.tolerance,
        pods: scaled.pods,
        now: scaled.now,
    };
    match (milli(target.value.as_ref()), milli(target.average_value.as_ref())) {
        (Some(aim), _) => {
            let ready = scaled.pods.iter().filter(|pod| is_ready(pod)).count();
            (propose_for_value(&question, value, aim, ready), MetricValueStatus { value: Some(text(value)), ..MetricValueStatus::default() })
        }
        (None, aim) => {
            let replicas = propose_for_average(&question, value, aim.unwrap_or(0));
            let share = value / i64::from(scaled.current.max(1));
            (replicas, MetricValueStatus { average_value: Some(text(share)), ..MetricValueStatus::default() })
        }
    }
}

fn milli(quantity: Option<&resource::Quantity>) -> Option<i64> {
    Quantity::parse(&quantity?.0).ok().map(|quantity| quantity.milli())
}

fn text(milli: i64) -> resource::Quantity {
    resource::Quantity(Quantity::from_milli(milli, Format::DecimalSi).to_string())
}

fn labels_text(metric: &MetricIdentifier) -> String {
    let selector = metric.selector.clone().and_then(|selector| Selector::try_from(selector).ok());
    selector.map(|selector| selector.to_string()).unwrap_or_default()
}

/// Sets a condition; its time changes with its status alone.
fn set(status: &mut HorizontalPodAutoscalerStatus, type_: &str, value: &str, reason: &str, message: impl Into<String>, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let since = conditions.iter().find(|each| each.type_ == type_ && each.status == value).and_then(|each| each.last_transition_time.clone());
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(client::clock::whole_seconds(now));
    let condition = HorizontalPodAutoscalerCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_transition_time: Some(since.unwrap_or(now)),
    };
    match conditions.iter_mut().find(|each| each.type_ == type_) {
        Some(there) => *there = condition,
        None => conditions.push(condition),
    }
}

//! Keeps the flows in line with the FlowSchemas and PriorityLevelConfigurations, and the limits with the demand.
//!
//! Levels keep their queues while their objects change. A schema that names a level that is not there leads to `catch-all`, and
//! its condition `Dangling` says so. The mandatory objects are made again if they are missing.

use super::{
    Bound, Config, Level, Marks, Plan,
    queues::{Queues, Shape},
    schema::Schema,
    shares::{self, Share},
    wake, work,
};
use crate::{
    Error, Identity, Server, User, body,
    bootstrap::{ensure_same, first_objects},
    cache::{From, Selection, Watch},
};
use api::{Value, object::ObjectExt};
use http::{Request, header};
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
/// The level of what leads nowhere else, and the name of the schema that matches everybody.
const CATCH_ALL: &str = "catch-all";
const EXEMPT: &str = "exempt";
/// Under which name conditions are written.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// Whether an object follows what this server comes with.
const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// After how many rounds of lending the first objects are looked at.
const KEEP_ROUNDS: u64 = 6;
/// How often the levels' limits are set anew by what they want.
const BORROW_EVERY: Duration = Duration::from_secs(10);
/// The widest request of a level is this part of its own seats, in percent.
const WIDTH_PERCENT: usize = 15;

fn first_of(resource: &str) -> Result<&'static [Value], Error> {
    first_objects(&format!("apis/{GROUP}/v1/{resource}"))
}

/// The objects of a resource, with the mandatory ones if they are missing; all first ones if there are none yet.
fn with_mandatory(mut objects: Vec<Value>, resource: &str) -> Result<Vec<Value>, Error> {
    let none = objects.is_empty();
    for first in first_of(resource)? {
        let wanted = none || [CATCH_ALL, EXEMPT].contains(&first.name());
        if wanted && !objects.iter().any(|object| object.name() == first.name()) {
            objects.push(first.clone());
        }
    }
    Ok(objects)
}

/// What holds before the objects are known.
pub(super) fn first(config: &Config) -> Result<Plan, Error> {
    plan(config, 0.0, vec![], vec![], &Plan { schemas: vec![], levels: vec![] })
}

fn share(level: &Value) -> Share {
    let exempt = level.str_at("spec.type") == Some("Exempt");
    let part = if exempt { "exempt" } else { "limited" };
    let number = |name: &str| level.i64_at(&format!("spec.{part}.{name}")).and_then(|n| u32::try_from(n).ok());
    Share {
        shares: number("nominalConcurrencyShares").unwrap_or(if exempt { 0 } else { 30 }),
        lendable_percent: number("lendablePercent").unwrap_or(0),
        borrowing_percent: number("borrowingLimitPercent"),
        exempt,
    }
}

fn shape(level: &Value) -> Shape {
    let number =
        |name: &str| level.i64_at(&format!("spec.limited.limitResponse.queuing.{name}")).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match level.str_at("spec.limited.limitResponse.type") {
        Some("Queue") => Shape {
            queues: number("queues").unwrap_or(64),
            hand: number("handSize").unwrap_or(8),
            queue_length: number("queueLengthLimit").unwrap_or(50),
        },
        _ => Shape { queues: 0, hand: 0, queue_length: 0 },
    }
}

/// Makes schemas and levels of the objects. What was there before goes on: queues, limits, counters.
fn plan(config: &Config, now_s: f64, schemas: Vec<Value>, levels: Vec<Value>, before: &Plan) -> Result<Plan, Error> {
    let mut objects = with_mandatory(levels, LEVELS)?;
    objects.sort_by(|a, b| a.name().cmp(b.name()));
    let shares: Vec<Share> = objects.iter().map(share).collect();
    let bounds = shares::bounds(config.seats(), &shares);
    let mut levels = Vec::new();
    for ((object, share), bounds) in objects.iter().zip(&shares).zip(&bounds) {
        let limit = if share.exempt { usize::MAX } else { bounds.nominal };
        let shape = shape(object);
        let known = before.levels.iter().find(|level| level.name == object.name() && level.exempt == share.exempt);
        let level = match known.filter(|level| level.uid == object.uid()) {
            Some(level) => level.clone(),
            // The requests that wait in one of another uid stay there; it is gone when they are.
            None => Arc::new(Level {
                name: object.name().into(),
                uid: object.uid().into(),
                exempt: share.exempt,
                share: Mutex::new(*share),
                nominal: AtomicUsize::new(bounds.nominal),
                width_max: AtomicUsize::new(0),
                queues: Mutex::new(Queues::new(shape, limit)),
            }),
        };
        *level.share.lock() = *share;
        level.width_max.store((bounds.nominal * WIDTH_PERCENT).div_ceil(100).clamp(1, work::SEATS_MAX), Relaxed);
        let mut queues = level.queues.lock();
        if level.nominal.swap(bounds.nominal, Relaxed) != bounds.nominal && !share.exempt {
            queues.set_limit(now_s, limit, wake);
        }
        if queues.shape() != shape {
            queues.reshape(shape);
        }
        drop(queues);
        levels.push(level);
    }
    let catch_all = levels.iter().find(|level| level.name == CATCH_ALL).cloned();
    let catch_all = catch_all.ok_or_else(|| Error::Bootstrap("the facts name no priority level `catch-all`".into()))?;
    let mut read: Vec<Schema> = with_mandatory(schemas, SCHEMAS)?.iter().map(Schema::read).collect();
    read.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
    let schemas = read
        .into_iter()
        .map(|schema| {
            let level = levels.iter().find(|level| level.name == schema.level).unwrap_or(&catch_all).clone();
            let same = before.schemas.iter().find(|bound| bound.schema == schema && Arc::ptr_eq(&bound.level, &level));
            same.cloned().unwrap_or_else(|| {
                let marks = Marks::new(&schema.uid, &level.uid);
                Arc::new(Bound {
                    schema,
                    level,
                    marks,
                    dispatched: Default::default(),
                    rejected_full: Default::default(),
                    rejected_busy: Default::default(),
                    rejected_late: Default::default(),
                    waited: Default::default(),
                })
            })
        })
        .collect();
    Ok(Plan { schemas, levels })
}

/// Follows the objects from now on.
pub(crate) fn start(server: &Arc<Server>) {
    if server.flow.config.enabled {
        take(server);
        tokio::spawn(follow(Arc::downgrade(server)));
    }
}

fn objects(server: &Server, resource: &str) -> Vec<Value> {
    server.cache.resource(GROUP, resource).snapshot().entries(None).map(|entry| entry.value()).collect()
}

/// Takes in the objects as they are now.
fn take(server: &Server) {
    let flow = &server.flow;
    match plan(&flow.config, flow.now_s(), objects(server, SCHEMAS), objects(server, LEVELS), &flow.plan.load()) {
        Ok(plan) => flow.plan.store(Arc::new(plan)),
        Err(error) => tracing::error!(%error, "flow control goes on as it was"),
    }
}

async fn follow(server: Weak<Server>) {
    let mut wanted: BTreeMap<String, f64> = BTreeMap::new();
    let mut rounds = 0u64;
    let mut ticks = tokio::time::interval(BORROW_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut schemas, mut levels): (Option<Watch>, Option<Watch>) = (None, None);
    loop {
        let Some(strong) = server.upgrade() else { return };
        let shutdown = strong.config.shutdown.clone();
        for (watch, resource) in [(&mut schemas, SCHEMAS), (&mut levels, LEVELS)] {
            if watch.is_none() {
                let reached = strong.cache.reached();
                // A watch from now on cannot be too old.
                *watch = strong.cache.resource(GROUP, resource).watch(Selection::default(), From::Now, reached).ok();
            }
        }
        take(&strong);
        say(&strong).await;
        drop(strong);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = change(&mut schemas) => {}
            () = change(&mut levels) => {}
            _ = ticks.tick() => {
                let Some(strong) = server.upgrade() else { return };
                borrow(&strong.flow, &mut wanted);
                rounds += 1;
                if rounds.is_multiple_of(KEEP_ROUNDS) && strong.health.is_bootstrapped() {
                    keep(&strong).await;
                }
            }
        }
    }
}

/// Waits for a change of what is watched, and takes all that have come. A watch that ended is begun anew.
async fn change(watch: &mut Option<Watch>) {
    let Some(running) = watch else { return std::future::pending().await };
    if running.live.recv().await.is_none() {
        *watch = None;
        return;
    }
    while running.live.take().is_some() {}
}

/// Sets the levels' limits by what they wanted lately.
fn borrow(flow: &super::Flow, wanted: &mut BTreeMap<String, f64>) {
    let plan = flow.plan.load();
    let levels: Vec<&Arc<Level>> = plan.levels.iter().collect();
    let shares: Vec<Share> = levels.iter().map(|level| *level.share.lock()).collect();
    let bounds = shares::bounds(flow.config.seats(), &shares);
    let demand: Vec<usize> = levels
        .iter()
        .map(|level| {
            let before = wanted.get(&level.name).copied().unwrap_or_default();
            let smoothed = shares::smooth(before, level.queues.lock().take_watermark());
            wanted.insert(level.name.clone(), smoothed);
            smoothed.ceil() as usize
        })
        .collect();
    wanted.retain(|name, _| levels.iter().any(|level| level.name == *name));
    let limits = shares::limits(flow.config.seats(), &bounds, &demand);
    for (level, limit) in levels.iter().zip(limits).filter(|(level, _)| !level.exempt) {
        level.queues.lock().set_limit(flow.now_s(), limit, wake);
    }
}

/// Makes the first objects again if somebody has deleted them, and brings back what they say: always for the mandatory ones, for the
/// others unless their annotation says that they are somebody's own.
async fn keep(server: &Arc<Server>) {
    for resource in [LEVELS, SCHEMAS] {
        for first in first_of(resource).unwrap_or_default() {
            let mandatory = [CATCH_ALL, EXEMPT].contains(&first.name());
            let own = |object: &Value| match object.annotation(AUTOUPDATE) {
                Some(text) => text != "true",
                None => object.generation() > 1,
            };
            let shall = |stored: &Value| if !mandatory && own(stored) { stored.clone() } else { first.clone() };
            if let Err(status) = ensure_same(server, GROUP, resource, first.clone(), &["spec"], shall).await {
                tracing::debug!(%status, name = first.name(), "a first object of flow control could not be made");
            }
        }
    }
}

/// What `Dangling` shall say.
fn dangling(schema: &Value, levels: &[Value]) -> (&'static str, &'static str, String) {
    let level = schema.str_at("spec.priorityLevelConfiguration.name").unwrap_or_default();
    let references = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    if levels.iter().any(|known| known.name() == level) {
        ("False", "Found", format!("{references} and it exists"))
    } else {
        ("True", "NotFound", format!("{references} but there is no such object"))
    }
}

/// Writes the condition of every schema where it is not so yet.
async fn say(server: &Arc<Server>) {
    let levels = objects(server, LEVELS);
    for schema in objects(server, SCHEMAS) {
        let (status, reason, message) = dangling(&schema, &levels);
        let standing = schema.list_at("status.conditions").iter().find(|condition| condition.str_at("type") == Some("Dangling"));
        if standing.is_some_and(|standing| standing.str_at("status") == Some(status) && standing.str_at("message") == Some(&message)) {
            continue;
        }
        let since = standing.filter(|standing| standing.str_at("status") == Some(status)).and_then(|standing| standing.str_at("lastTransitionTime"));
        let condition = json!({
            "type": "Dangling", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since.map_or_else(crate::write::now, String::from),
        });
        let applied = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema", "metadata": {"name": schema.name()}, "status": {"conditions": [condition]},
        });
        let uri = format!("/apis/{GROUP}/v1/{SCHEMAS}/{}/status?fieldManager={MANAGER}&force=true", schema.name());
        let request = Request::patch(uri).header(header::CONTENT_TYPE, "application/apply-patch+yaml").body(body::full(applied.to_string()));
        let Ok(request) = request else { continue };
        let answer = server.handle(request, Identity::Local(Arc::new(User::system()))).await;
        if !answer.status().is_success() && answer.status() != http::StatusCode::NOT_FOUND {
            tracing::debug!(code = answer.status().as_u16(), name = schema.name(), "the condition of a FlowSchema could not be written yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(name: &str, shares: i64) -> Value {
        json!({"metadata": {"name": name, "uid": name}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "limitResponse": {"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 5}}}}})
    }

    fn leads(name: &str, level: &str) -> Value {
        json!({"metadata": {"name": name, "uid": name}, "spec": {"matchingPrecedence": 5, "priorityLevelConfiguration": {"name": level}}})
    }

    #[test]
    fn a_plan_is_whole_whatever_there_is() {
        let config = Config::default();
        let first = first(&config).unwrap();
        assert_eq!((first.levels.len(), first.schemas.len()), (8, 11));
        assert_eq!(first.schemas.last().unwrap().schema.name, CATCH_ALL);
        let plan = plan(&config, 0.0, vec![leads("a", "x"), leads("b", "nowhere")], vec![level("x", 10)], &first).unwrap();
        let names: Vec<_> = plan.levels.iter().map(|level| level.name.as_str()).collect();
        assert_eq!(names, [CATCH_ALL, EXEMPT, "x"], "the mandatory ones are there");
        let led = |name: &str| plan.schemas.iter().find(|bound| bound.schema.name == name).unwrap().level.name.clone();
        assert_eq!((led("a").as_str(), led("b").as_str()), ("x", CATCH_ALL));
        let same = super::plan(&config, 1.0, vec![leads("a", "x")], vec![level("x", 10)], &plan).unwrap();
        assert!(Arc::ptr_eq(&same.levels[2], &plan.levels[2]), "what has not changed goes on");
    }

    #[test]
    fn dangling_says_what_is_missing() {
        assert_eq!(dangling(&leads("a", "x"), &[level("x", 1)]).0, "False");
        let (status, reason, message) = dangling(&leads("a", "y"), &[level("x", 1)]);
        assert_eq!((status, reason), ("True", "NotFound"));
        assert!(message.ends_with("\"y\" but there is no such object"));
    }
}

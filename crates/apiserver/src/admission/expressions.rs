//! Computing expressions of policies and match conditions on one request.

use super::{AdmissionContext, review};
use crate::{
    User,
    authorization::{self, Decision},
};
use api::{
    Value,
    cel::{
        self, Program, Val,
        eval::Variables,
        value::{Authorizer, Opaque, Question},
    },
    object::ObjectExt,
    request::RequestInfo,
};
use std::rc::Rc;

/// What expressions see of a request: everything in the version that the policy asked for.
pub struct Input {
    pub object: Value,
    pub old: Value,
    pub request: Value,
    pub namespace: Value,
    pub params: Value,
}

impl Input {
    pub fn of(cx: &AdmissionContext<'_>, object: &Value, version: &str, params: Value) -> Input {
        let namespace = cx.server.lookup("", "namespaces", "", cx.namespace).ok().flatten().filter(|_| !cx.namespace.is_empty());
        Input {
            object: cx.shown(object, version),
            old: cx.old.map(|old| cx.shown(old, version)).unwrap_or_default(),
            request: with_defaults(review::request(cx, "", version, object)),
            namespace: namespace.map(|entry| entry.value()).unwrap_or_default(),
            params,
        }
    }
}

/// Expressions see texts that are empty where reviews leave them out.
fn with_defaults(mut request: Value) -> Value {
    for key in ["subResource", "requestSubResource", "name", "namespace"] {
        request.set_default(key, "");
    }
    request.set_default("userInfo.uid", "");
    request.set_default("userInfo.extra", serde_json::json!({}));
    request
}

/// Who asks, for the authorizer's functions.
pub struct Asker<'a> {
    cx: &'a AdmissionContext<'a>,
}

impl<'a> Asker<'a> {
    pub fn new(cx: &'a AdmissionContext<'a>) -> Asker<'a> {
        Asker { cx }
    }
    fn own_resource(&self) -> Question {
        Question {
            group: self.cx.kind.group.clone(),
            resource: self.cx.kind.resource.clone(),
            subresource: self.cx.subresource.into(),
            namespace: self.cx.namespace.into(),
            name: self.cx.name.into(),
            ..Question::default()
        }
    }
}

impl Authorizer for Asker<'_> {
    fn check(&self, question: &Question) -> (bool, String) {
        let account;
        let user = match &question.account {
            None => self.cx.user,
            Some((namespace, name)) => {
                let group = format!("system:serviceaccounts:{namespace}");
                account =
                    User::new(&format!("system:serviceaccount:{namespace}:{name}"), &["system:serviceaccounts", &group, "system:authenticated"]);
                &account
            }
        };
        let mut info = RequestInfo { verb: question.verb.clone(), ..RequestInfo::default() };
        if question.path.is_empty() {
            info.is_resource = true;
            info.api_prefix = if question.group.is_empty() { "api" } else { "apis" }.into();
            info.version = "*".into();
            info.group = question.group.clone();
            info.resource = question.resource.clone();
            info.subresource = question.subresource.clone();
            info.namespace = question.namespace.clone();
            info.name = question.name.clone();
        } else {
            info.path = question.path.clone();
        }
        match authorization::authorize(self.cx.server, user, &info) {
            Decision::Allow(reason) => (true, reason),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => (false, reason),
        }
    }
}

/// The names that all expressions may use. `asker` is there where the authorizer is.
pub fn variables<'a>(input: &'a Input, asker: Option<&'a Asker<'a>>) -> Variables<'a> {
    let names = Variables::new()
        .with("object", Val::json(&input.object, None))
        .with("oldObject", Val::json(&input.old, None))
        .with("request", Val::json(&input.request, None))
        .with("namespaceObject", Val::json(&input.namespace, None))
        .with("params", Val::json(&input.params, None));
    match asker {
        None => names,
        Some(asker) => names
            .with("authorizer", Val::opaque(Opaque::Authorizer(asker, Question::default())))
            .with("authorizer.requestResource", Val::opaque(Opaque::Authorizer(asker, asker.own_resource()))),
    }
}

/// Adds a policy's own variables, each of which may use those before it. One that fails is an error only for who uses it.
pub fn with_computed<'a>(names: Variables<'a>, programs: &'a [(String, Option<Program>)], budget: &mut u64) -> Variables<'a> {
    let mut computed: Vec<(Val<'a>, Val<'a>)> = Vec::with_capacity(programs.len());
    for (name, program) in programs {
        let seen = names.clone().with("variables", Val::Map(Rc::new(computed.clone())));
        let value = match program {
            Some(program) => run(program, &seen, budget).unwrap_or_else(|why| Val::Failed(why.into())),
            None => Val::Failed(format!("the variable {name} cannot be computed").into()),
        };
        computed.push((Val::string(name.as_str()), value));
    }
    names.with("variables", Val::Map(Rc::new(computed)))
}

/// Computes one expression within its own bound and that of the whole.
pub fn run<'a>(program: &'a Program, names: &Variables<'a>, budget: &mut u64) -> Result<Val<'a>, String> {
    let given = cel::limits::CALL_COST_MAX.min(*budget);
    let mut left = given;
    let outcome = program.run(names, &mut left);
    *budget -= given - left;
    outcome.map_err(|error| error.to_string())
}

/// Whether all match conditions hold. `Err` names the first that failed, if none is false.
pub fn conditions_hold<'a>(conditions: &'a [(String, Option<Program>)], names: &Variables<'a>, budget: &mut u64) -> Result<bool, String> {
    let mut failure = None;
    for (name, program) in conditions {
        let outcome = match program {
            Some(program) => run(program, names, budget).map(|value| matches!(value, Val::Bool(true))),
            None => Err("it cannot be compiled".to_string()),
        };
        match outcome {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => failure = failure.or_else(|| Some(format!("matchCondition {name:?} failed: {why}"))),
        }
    }
    failure.map_or(Ok(true), Err)
}

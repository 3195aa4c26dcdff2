//! What expressions of admission may speak of: policies, their bindings' parameters, and webhooks' match conditions.

use super::{Fields, Libraries, Program, Type, checker::named_type};
use std::{collections::BTreeMap, sync::Arc};

/// What is there to speak of, beside `object`, `oldObject` and `request`.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The type of `object` and `oldObject`, where it is known.
    pub object: Option<Type>,
    pub params: bool,
    /// The type of `params`, where it is known.
    pub params_type: Option<Type>,
    pub authorizer: bool,
    pub namespace_object: bool,
    /// Whether what it makes changes objects: then it may build some.
    pub mutation: bool,
    /// The policy's own variables.
    pub variables: Declared,
}

const VARIABLES: &str = "kubernetes.variables";

/// Variables of a policy: one object that grows with each, for each sees those before it and there may be many.
#[derive(Clone, Debug, Default)]
pub struct Declared(Arc<Fields>);

impl Declared {
    /// One more. What has the type of all variables together is of any type: the object MUST NOT contain itself.
    pub fn push(&mut self, (name, type_): (String, Type)) {
        fn holds_all(type_: &Type) -> bool {
            match type_ {
                Type::Object(fields) => fields.name == VARIABLES,
                Type::List(inner) | Type::Optional(inner) | Type::Kind(inner) => holds_all(inner),
                Type::Map(key, value) => holds_all(key) || holds_all(value),
                _ => false,
            }
        }
        let type_ = if holds_all(&type_) { Type::Dyn } else { type_ };
        let all = Arc::make_mut(&mut self.0);
        all.name = VARIABLES.into();
        all.fields.insert(name, type_);
    }
    fn is_empty(&self) -> bool {
        self.0.fields.is_empty()
    }
}

fn object(name: &str, fields: &[(&str, Type)]) -> Type {
    let fields: BTreeMap<String, Type> = fields.iter().map(|(name, type_)| (name.to_string(), type_.clone())).collect();
    Type::Object(Arc::new(Fields { name: name.into(), fields }))
}

/// The type of `request`.
fn request() -> Type {
    let kind = object("kubernetes.GroupVersionKind", &[("group", Type::String), ("version", Type::String), ("kind", Type::String)]);
    let resource = object("kubernetes.GroupVersionResource", &[("group", Type::String), ("version", Type::String), ("resource", Type::String)]);
    let extra = Type::Map(Box::new(Type::String), Box::new(Type::List(Box::new(Type::String))));
    let user = object(
        "kubernetes.UserInfo",
        &[("username", Type::String), ("uid", Type::String), ("groups", Type::List(Box::new(Type::String))), ("extra", extra)],
    );
    object(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", Type::String),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            ("namespace", Type::String),
            ("operation", Type::String),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
            ("uid", Type::String),
        ],
    )
}

impl Scope {
    /// Compiles an expression. The error is without the words that say whose expression it is.
    pub fn compile(&self, source: &str) -> Result<Program, String> {
        let or_any = |type_: &Option<Type>| type_.clone().unwrap_or(Type::Dyn);
        let mut names = vec![("object", or_any(&self.object)), ("oldObject", or_any(&self.object)), ("request", request())];
        if self.params {
            names.push(("params", or_any(&self.params_type)));
        }
        if self.namespace_object {
            names.push(("namespaceObject", Type::Dyn));
        }
        if self.authorizer {
            names.push(("authorizer", Type::Opaque("kubernetes.authorization.Authorizer")));
            names.push(("authorizer.requestResource", Type::Opaque("kubernetes.authorization.ResourceCheck")));
        }
        if !self.variables.is_empty() {
            names.push(("variables", Type::Object(self.variables.0.clone())));
        }
        Program::compile_with(source, &names, Libraries { mutation: self.mutation, ..Libraries::default() })
    }

    /// The same for one that must be of a type; the error is in the words of validation.
    pub fn check(&self, source: &str, wanted: &[Type]) -> Result<Program, String> {
        let program = self.compile(source).map_err(|why| format!("compilation failed: {why}"))?;
        let fits = matches!(program.type_, Type::Dyn | Type::Param(_)) || wanted.contains(&program.type_);
        if fits {
            return Ok(program);
        }
        let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let wanted = match names.as_slice() {
            [one] => one.clone(),
            several => format!("one of [{}]", several.join(" ").replace("null", "null_type")),
        };
        Err(format!("must evaluate to {wanted} but got {}", program.type_))
    }
}

/// Whether a name can be that of a variable.
pub fn is_identifier(name: &str) -> bool {
    let shaped = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    shaped && super::types::escape(name).is_some_and(|escaped| escaped == name) && named_type(name).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_checked_in_their_scope() {
        let scope = Scope { authorizer: true, ..Scope::default() };
        assert!(scope.check("object.spec.x == 1 && authorizer.requestResource.check('get').allowed()", &[Type::Bool]).is_ok());
        assert_eq!(scope.check("'text'", &[Type::Bool]).unwrap_err(), "must evaluate to bool but got string");
        assert!(scope.check("variables.a", &[Type::Bool]).unwrap_err().contains("undeclared reference to 'variables'"));
        assert!(scope.check("request.nothing == 1", &[Type::Bool]).unwrap_err().contains("undefined field 'nothing'"));
        let mut scope = Scope::default();
        scope.variables.push(("a".into(), Type::Bool));
        assert!(scope.check("variables.a", &[Type::Bool]).is_ok());
        for i in 0..10_000 {
            let type_ = scope.compile("[variables]").unwrap().type_;
            scope.variables.push((format!("v{i}"), type_));
        }
        assert!(scope.check("variables.v9999[0].a", &[Type::Bool]).is_ok());
        assert!(is_identifier("a1") && !is_identifier("1x") && !is_identifier("in"));
    }
}

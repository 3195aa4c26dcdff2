//! From an issuer's claims to a user: which claims are needed, which name the user, what expressions say. Pure.

use crate::User;
use api::{
    Value,
    cel::{Fields, Program, Type, Val, eval::Variables},
    object::ObjectExt,
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

/// What all expressions about one token may cost.
const COST_MAX: u64 = 1_000_000;

/// Where one part of the user comes from.
pub enum Source {
    Claim { name: String, prefix: String },
    Expression(Program),
}

/// What must hold.
pub enum Rule {
    Claim { name: String, value: String },
    Expression { program: Program, source: String, message: String },
}

/// How an issuer's claims are read.
pub struct Mapping {
    pub audiences: Vec<String>,
    pub claim_rules: Vec<Rule>,
    pub username: Source,
    pub groups: Option<Source>,
    pub uid: Option<Source>,
    pub extra: Vec<(String, Program)>,
    pub user_rules: Vec<Rule>,
}

/// Compiles an expression about `claims`.
pub fn about_claims(source: &str) -> Result<Program, String> {
    Program::compile(source, &[("claims", Type::Dyn)])
}

/// Compiles an expression about `user`.
pub fn about_user(source: &str) -> Result<Program, String> {
    let texts = || Type::List(Box::new(Type::String));
    let fields = BTreeMap::from([
        ("username".to_string(), Type::String),
        ("uid".to_string(), Type::String),
        ("groups".to_string(), texts()),
        ("extra".to_string(), Type::Map(Box::new(Type::String), Box::new(texts()))),
    ]);
    Program::compile(source, &[("user", Type::Object(Arc::new(Fields { name: "kubernetes.UserInfo".into(), fields })))])
}

fn value(program: &Program, name: &'static str, of: &Value, budget: &mut u64) -> Result<Value, String> {
    let names = Variables::new().with(name, Val::json(of, None));
    let result = program.run(&names, budget).map_err(|error| error.to_string())?;
    result.to_json().ok_or_else(|| "its result is no value".into())
}

impl Mapping {
    /// Whom the claims of a token are about; the error says why it is nobody.
    pub fn user(&self, claims: &Value) -> Result<User, String> {
        self.check_audience(claims)?;
        let mut budget = COST_MAX;
        for rule in &self.claim_rules {
            check(rule, "claims", claims, &mut budget)?;
        }
        let name = self.username(claims, &mut budget)?;
        if name.is_empty() {
            return Err("the token names no user".into());
        }
        let uid = match &self.uid {
            None => String::new(),
            Some(Source::Claim { name, .. }) => {
                claims.get(name).and_then(Value::as_str).ok_or_else(|| format!("the claim {name:?} is missing"))?.into()
            }
            Some(Source::Expression(program)) => text(value(program, "claims", claims, &mut budget)?, "uid")?,
        };
        let groups = match &self.groups {
            None => vec![],
            Some(Source::Claim { name, prefix }) => {
                texts(claims.get(name).unwrap_or(&Value::Null), name)?.into_iter().map(|group| format!("{prefix}{group}")).collect()
            }
            Some(Source::Expression(program)) => texts(&value(program, "claims", claims, &mut budget)?, "groups")?,
        };
        let mut extra = BTreeMap::new();
        for (key, program) in &self.extra {
            let values = texts(&value(program, "claims", claims, &mut budget)?, key)?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let user = User { name, uid, groups, extra };
        if !self.user_rules.is_empty() {
            let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
            for rule in &self.user_rules {
                check(rule, "user", &shown, &mut budget)?;
            }
        }
        Ok(user)
    }

    fn check_audience(&self, claims: &Value) -> Result<(), String> {
        let of = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        if of.iter().any(|audience| self.audiences.iter().any(|own| own == audience)) {
            return Ok(());
        }
        Err(format!("the token is for {of:?} and not for this cluster"))
    }

    fn username(&self, claims: &Value, budget: &mut u64) -> Result<String, String> {
        match &self.username {
            Source::Expression(program) => text(value(program, "claims", claims, budget)?, "username"),
            Source::Claim { name, prefix } => {
                let found = claims.get(name).and_then(Value::as_str).ok_or_else(|| format!("the claim {name:?} is missing"))?;
                // An address that the issuer has not verified is anybody's.
                if name == "email" && claims.get("email_verified").is_some_and(|verified| verified != &Value::Bool(true)) {
                    return Err("the e-mail address is not verified".into());
                }
                Ok(format!("{prefix}{found}"))
            }
        }
    }
}

fn check(rule: &Rule, name: &'static str, of: &Value, budget: &mut u64) -> Result<(), String> {
    match rule {
        Rule::Claim { name, value } => match of.get(name).and_then(Value::as_str) {
            Some(found) if found == value => Ok(()),
            Some(_) => Err(format!("the claim {name:?} is not {value:?}")),
            None => Err(format!("the claim {name:?} is missing")),
        },
        Rule::Expression { program, source, message } => match value(program, name, of, budget) {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(_) if message.is_empty() => Err(format!("the rule {source:?} does not hold")),
            Ok(_) => Err(message.clone()),
            Err(why) => Err(format!("the rule {source:?} cannot be computed: {why}")),
        },
    }
}

fn text(value: Value, of: &str) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("{of}: {other} is no text")),
    }
}

/// A text, a list of texts, or nothing.
fn texts(value: &Value, of: &str) -> Result<Vec<String>, String> {
    match value {
        Value::Null => Ok(vec![]),
        Value::String(one) if one.is_empty() => Ok(vec![]),
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(all) => {
            let read = |item: &Value| item.as_str().map(String::from).ok_or_else(|| format!("{of}: {item} is no text"));
            all.iter().filter(|item| item.as_str() != Some("")).map(read).collect()
        }
        other => Err(format!("{of}: {other} is neither a text nor a list of texts")),
    }
}

/// Whether expressions that speak of the address also see to it that it is verified.
pub fn checks_email(username: &str, others: &[&str]) -> bool {
    !username.contains("claims.email")
        || username.contains("claims.email_verified")
        || others.iter().any(|other| other.contains("claims.email_verified"))
}

/// A part of a configuration as text.
pub fn text_at(value: &Value, path: &str) -> String {
    value.str_at(path).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Mapping {
        Mapping {
            audiences: vec!["kubernetes".into()],
            claim_rules: vec![],
            username: Source::Claim { name: "sub".into(), prefix: "oidc:".into() },
            groups: Some(Source::Claim { name: "groups".into(), prefix: "oidc:".into() }),
            uid: None,
            extra: vec![],
            user_rules: vec![],
        }
    }

    #[test]
    fn claims_name_the_user() {
        let user = plain().user(&json!({"aud": ["kubernetes", "x"], "sub": "jane", "groups": ["a", "b"]})).unwrap();
        assert_eq!((user.name.as_str(), user.groups.as_slice()), ("oidc:jane", ["oidc:a".to_string(), "oidc:b".to_string()].as_slice()));
        assert_eq!(plain().user(&json!({"aud": "kubernetes", "sub": "jane", "groups": "one"})).unwrap().groups, ["oidc:one"]);
        assert!(plain().user(&json!({"aud": "other", "sub": "jane"})).unwrap_err().contains("not for this cluster"));
        assert!(plain().user(&json!({"aud": "kubernetes"})).unwrap_err().contains("sub"));
        let email = Mapping { username: Source::Claim { name: "email".into(), prefix: String::new() }, ..plain() };
        assert!(email.user(&json!({"aud": "kubernetes", "email": "a@b", "email_verified": false})).is_err());
        assert_eq!(email.user(&json!({"aud": "kubernetes", "email": "a@b"})).unwrap().name, "a@b");
    }

    #[test]
    fn expressions_name_the_user_and_refuse_others() {
        let rule = |program: Program, source: &str| Rule::Expression { program, source: source.into(), message: "no".into() };
        let mapping = Mapping {
            claim_rules: vec![
                Rule::Claim { name: "hd".into(), value: "example.com".into() },
                rule(about_claims("claims.exp - claims.iat <= 3600").unwrap(), "life"),
            ],
            username: Source::Expression(about_claims("'dex:' + claims.email.split('@')[0]").unwrap()),
            groups: Some(Source::Expression(about_claims("claims.roles.split(',')").unwrap())),
            uid: Some(Source::Claim { name: "sub".into(), prefix: String::new() }),
            extra: vec![("example.com/tenant".into(), about_claims("has(claims.tenant) ? claims.tenant : ''").unwrap())],
            user_rules: vec![rule(
                about_user("!user.username.startsWith('system:') && user.groups.all(g, !g.startsWith('system:'))").unwrap(),
                "own",
            )],
            ..plain()
        };
        let claims =
            json!({"aud": "kubernetes", "hd": "example.com", "exp": 3600, "iat": 0, "email": "jane@x", "roles": "a,b", "sub": "7", "tenant": "t"});
        let user = mapping.user(&claims).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("dex:jane", "7"));
        assert_eq!((user.groups, user.extra["example.com/tenant"].clone()), (vec!["a".to_string(), "b".to_string()], vec!["t".to_string()]));
        let mut other = claims.clone();
        other.set("hd", "elsewhere");
        assert!(mapping.user(&other).unwrap_err().contains("hd"));
        let mut long = claims.clone();
        long.set("exp", 9999);
        assert_eq!(mapping.user(&long).unwrap_err(), "no");
        let mut masters = claims.clone();
        masters.set("roles", "system:masters");
        assert_eq!(mapping.user(&masters).unwrap_err(), "no");
        let mut odd = claims;
        odd.remove("email");
        assert!(mapping.user(&odd).is_err());
        assert!(!checks_email("claims.email", &["claims.hd == 'x'"]) && checks_email("claims.email", &["claims.email_verified"]));
    }
}

//! Which issuers are trusted: Kubernetes' `--oidc-*` flags, or an AuthenticationConfiguration.

use super::mapping::{Mapping, Rule, Source, about_claims, about_user, checks_email, text_at};
use api::{
    Value,
    object::ObjectExt,
    structure::{self, Encoding},
};
use pki::oidc::SigningAlgorithms;

/// Issuers that one configuration may name.
const ISSUERS_MAX: usize = 64;

/// One issuer, as configured.
pub struct IssuerSettings {
    /// The claim `iss` of its tokens, and where its discovery document is found unless that is said.
    pub url: String,
    /// Where it is found, if not there.
    pub discovery_url: String,
    /// What its server's certificate is checked by (PEM); empty: what the machine trusts.
    pub authorities_pem: String,
    pub algorithms: SigningAlgorithms,
    pub mapping: Mapping,
}

/// Kubernetes' flags for one issuer.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub issuer_url: String,
    pub client_id: String,
    pub username_claim: String,
    /// `None` if it was not said.
    pub username_prefix: Option<String>,
    pub groups_claim: String,
    pub groups_prefix: String,
    pub authorities_pem: String,
    /// `claim=value`.
    pub required_claims: Vec<String>,
    pub signing_algorithms: Vec<String>,
}

/// What a configuration says of who may come without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub enabled: bool,
    /// The only paths that are open; empty: all.
    pub paths: Vec<String>,
}

fn check_url(url: &str) -> Result<(), String> {
    if url.starts_with("https://") && url.len() > 8 { Ok(()) } else { Err(format!("the issuer {url:?} must be a URL that begins with https://")) }
}

impl Flags {
    /// Reads the flags; the error names the one that cannot be used.
    pub fn settings(&self) -> Result<IssuerSettings, String> {
        check_url(&self.issuer_url).map_err(|why| format!("--oidc-issuer-url: {why}"))?;
        if self.client_id.is_empty() {
            return Err("--oidc-client-id must be said along with --oidc-issuer-url".into());
        }
        let claim = if self.username_claim.is_empty() { "sub" } else { &self.username_claim };
        let prefix = match self.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) if !prefix.is_empty() => prefix.to_string(),
            _ if claim == "email" => String::new(),
            _ => format!("{}#", self.issuer_url),
        };
        let required = self.required_claims.iter().map(|claim| {
            let (name, value) = claim.split_once('=').ok_or_else(|| format!("--oidc-required-claim {claim}: say it as CLAIM=VALUE"))?;
            Ok(Rule::Claim { name: name.into(), value: value.into() })
        });
        let algorithms = if self.signing_algorithms.is_empty() { vec!["RS256".to_string()] } else { self.signing_algorithms.clone() };
        let groups = Some(&self.groups_claim).filter(|claim| !claim.is_empty());
        Ok(IssuerSettings {
            url: self.issuer_url.clone(),
            discovery_url: String::new(),
            authorities_pem: self.authorities_pem.clone(),
            algorithms: SigningAlgorithms::parse(&algorithms).map_err(|name| format!("--oidc-signing-algs: {name} is not known"))?,
            mapping: Mapping {
                audiences: vec![self.client_id.clone()],
                claim_rules: required.collect::<Result<_, String>>()?,
                username: Source::Claim { name: claim.into(), prefix },
                groups: groups.map(|claim| Source::Claim { name: claim.clone(), prefix: self.groups_prefix.clone() }),
                uid: None,
                extra: vec![],
                user_rules: vec![],
            },
        })
    }
}

/// Reads an AuthenticationConfiguration of apiserver.config.k8s.io (v1, v1beta1).
pub fn parse(text: &str) -> Result<(Vec<IssuerSettings>, Option<Anonymous>), String> {
    let configuration = structure::parse_object(text.as_bytes(), Encoding::Yaml)?;
    if configuration.kind() != "AuthenticationConfiguration" || !configuration.api_version().starts_with("apiserver.config.k8s.io/") {
        return Err("it is no AuthenticationConfiguration of apiserver.config.k8s.io/v1".into());
    }
    let listed = configuration.list_at("jwt");
    if listed.len() > ISSUERS_MAX {
        return Err(format!("jwt: it names more than {ISSUERS_MAX} issuers"));
    }
    let read = |(i, jwt): (usize, &Value)| issuer(jwt).map_err(|why| format!("jwt[{i}]: {why}"));
    let issuers: Vec<IssuerSettings> = listed.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    for (i, one) in issuers.iter().enumerate() {
        if issuers[..i].iter().any(|other| other.url == one.url) {
            return Err(format!("jwt[{i}]: the issuer {:?} is named twice", one.url));
        }
    }
    let anonymous = configuration.get("anonymous").map(|anonymous| Anonymous {
        enabled: anonymous.bool_at("enabled").unwrap_or(false),
        paths: anonymous.list_at("conditions").iter().map(|condition| text_at(condition, "path")).collect(),
    });
    Ok((issuers, anonymous))
}

fn issuer(jwt: &Value) -> Result<IssuerSettings, String> {
    let url = text_at(jwt, "issuer.url");
    check_url(&url)?;
    let discovery_url = text_at(jwt, "issuer.discoveryURL");
    if !discovery_url.is_empty() {
        check_url(&discovery_url)?;
    }
    let audiences: Vec<String> = jwt.list_at("issuer.audiences").iter().filter_map(|text| text.as_str().map(String::from)).collect();
    if audiences.is_empty() {
        return Err("issuer.audiences: at least one is needed".into());
    }
    if audiences.len() > 1 && text_at(jwt, "issuer.audienceMatchPolicy") != "MatchAny" {
        return Err("issuer.audienceMatchPolicy must be MatchAny where there are several audiences".into());
    }
    let mut speaks_of: Vec<String> = Vec::new();
    let mut claim_rules = Vec::new();
    for rule in jwt.list_at("claimValidationRules") {
        let expression = text_at(rule, "expression");
        claim_rules.push(if expression.is_empty() {
            Rule::Claim { name: text_at(rule, "claim"), value: text_at(rule, "requiredValue") }
        } else {
            speaks_of.push(expression.clone());
            Rule::Expression { program: about_claims(&expression)?, source: expression, message: text_at(rule, "message") }
        });
    }
    let mut user_rules = Vec::new();
    for rule in jwt.list_at("userValidationRules") {
        let expression = text_at(rule, "expression");
        user_rules.push(Rule::Expression { program: about_user(&expression)?, source: expression, message: text_at(rule, "message") });
    }
    let source = |part: &str, prefixed: bool| -> Result<Option<Source>, String> {
        let of = |name: &str| text_at(jwt, &format!("claimMappings.{part}.{name}"));
        match (of("claim").as_str(), of("expression").as_str()) {
            ("", "") => Ok(None),
            ("", expression) => {
                about_claims(expression).map(|program| Some(Source::Expression(program))).map_err(|why| format!("claimMappings.{part}: {why}"))
            }
            (claim, "") => {
                if prefixed && jwt.at(&format!("claimMappings.{part}.prefix")).is_none() {
                    return Err(format!("claimMappings.{part}.prefix must be said where there is a claim; it may be empty"));
                }
                Ok(Some(Source::Claim { name: claim.into(), prefix: of("prefix") }))
            }
            _ => Err(format!("claimMappings.{part} has both a claim and an expression")),
        }
    };
    let username = source("username", true)?.ok_or("claimMappings.username: a claim or an expression is needed")?;
    let mut extra = Vec::new();
    for entry in jwt.list_at("claimMappings.extra") {
        let (key, expression) = (text_at(entry, "key"), text_at(entry, "valueExpression"));
        if key.is_empty() || key != key.to_lowercase() || !key.contains('/') {
            return Err(format!("claimMappings.extra: the key {key:?} must be lower-case and begin with a domain, as example.com/key"));
        }
        speaks_of.push(expression.clone());
        extra.push((key, about_claims(&expression)?));
    }
    let others: Vec<&str> = speaks_of.iter().map(String::as_str).collect();
    if !checks_email(&text_at(jwt, "claimMappings.username.expression"), &others) {
        return Err("claimMappings.username.expression speaks of claims.email, so claims.email_verified must be looked at as well".into());
    }
    Ok(IssuerSettings {
        url,
        discovery_url,
        authorities_pem: text_at(jwt, "issuer.certificateAuthority"),
        algorithms: SigningAlgorithms::all(),
        mapping: Mapping { audiences, claim_rules, username, groups: source("groups", true)?, uid: source("uid", false)?, extra, user_rules },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flags_mean_what_they_mean_in_kubernetes() {
        let flags = Flags { issuer_url: "https://i".into(), client_id: "k".into(), required_claims: vec!["hd=x".into()], ..Flags::default() };
        let name =
            |flags: &Flags| flags.settings().unwrap().mapping.user(&json!({"aud": "k", "sub": "jane", "email": "j@x", "hd": "x"})).unwrap().name;
        assert_eq!(name(&flags), "https://i#jane");
        assert_eq!(name(&Flags { username_prefix: Some("-".into()), ..flags.clone() }), "jane");
        assert_eq!(name(&Flags { username_claim: "email".into(), ..flags.clone() }), "j@x");
        assert!(flags.settings().unwrap().mapping.user(&json!({"aud": "k", "sub": "jane"})).is_err(), "a claim that is required");
        for wrong in [
            Flags { issuer_url: "http://i".into(), ..flags.clone() },
            Flags { client_id: String::new(), ..flags.clone() },
            Flags { required_claims: vec!["x".into()], ..flags.clone() },
            Flags { signing_algorithms: vec!["HS256".into()], ..flags.clone() },
        ] {
            assert!(wrong.settings().err().unwrap().contains("--oidc-"));
        }
    }

    #[test]
    fn a_configuration_is_read_and_its_mistakes_are_named() {
        let of = |jwt: &str| parse(&format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: [{jwt}]"));
        let (issuers, anonymous) = parse(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {url: 'https://a', audiences: [k]}\n  claimMappings: {username: {claim: sub, prefix: 'a:'}, groups: {expression: 'claims.roles'}}\n  claimValidationRules: [{claim: hd, requiredValue: x}, {expression: 'claims.x == 1', message: m}]\n  userValidationRules: [{expression: \"!user.username.startsWith('system:')\"}]\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n",
        )
        .unwrap();
        assert_eq!(anonymous, Some(Anonymous { enabled: true, paths: vec!["/livez".into()] }));
        let user = issuers[0].mapping.user(&json!({"aud": "k", "sub": "j", "hd": "x", "x": 1, "roles": ["r"]})).unwrap();
        assert_eq!((user.name.as_str(), user.groups.len()), ("a:j", 1));
        for (jwt, why) in [
            ("{issuer: {url: 'http://a'}}", "https://"),
            ("{issuer: {url: 'https://a'}}", "audiences"),
            ("{issuer: {url: 'https://a', audiences: [a, b]}}", "MatchAny"),
            ("{issuer: {url: 'https://a', audiences: [a]}}", "username"),
            ("{issuer: {url: 'https://a', audiences: [a]}, claimMappings: {username: {claim: sub}}}", "prefix"),
            ("{issuer: {url: 'https://a', audiences: [a]}, claimMappings: {username: {expression: 'claims.'}}}", "username"),
            ("{issuer: {url: 'https://a', audiences: [a]}, claimMappings: {username: {expression: 'claims.email'}}}", "email_verified"),
        ] {
            assert!(of(jwt).err().unwrap().contains(why), "{jwt}");
        }
        let one = "{issuer: {url: 'https://a', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}";
        assert!(of(&format!("{one}, {one}")).err().unwrap().contains("twice"));
    }
}

//! Bootstrap tokens: `<id>.<secret>`, each a Secret `bootstrap-token-<id>` in kube-system, with which machines join.

use crate::{Server, User};
use api::{Value, object::ObjectExt};
use base64::{Engine, engine::general_purpose::STANDARD};
use pki::JoinToken;
use pki::join::BOOTSTRAPPERS_GROUP;

/// Who holds a bootstrap token.
pub(super) fn authenticate(server: &Server, token: &str) -> Option<User> {
    let token = JoinToken::parse(token).ok().filter(|token| token.fingerprint.is_none())?;
    let secret = server.lookup("", "secrets", "kube-system", &token.secret_name()).ok()??.value();
    user(&token, &secret, pki::now_unix_s())
}

/// What a Secret says of the token that names it.
fn user(token: &JoinToken, secret: &Value, now_unix_s: i64) -> Option<User> {
    let data = |key: &str| -> Option<String> {
        let encoded = secret.map_at("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let good = secret.str_at("type") == Some("bootstrap.kubernetes.io/token")
        && secret.deletion_timestamp().is_none()
        && data("token-id").as_deref() == Some(token.id.as_str())
        && same(data("token-secret")?.as_bytes(), token.secret.as_bytes())
        && data("usage-bootstrap-authentication").as_deref() == Some("true");
    let expired = match data("expiration").filter(|text| !text.is_empty()) {
        // An unreadable time counts as over.
        Some(text) => text.parse::<jiff::Timestamp>().map_or(true, |until| until.as_second() <= now_unix_s),
        None => false,
    };
    if !good || expired {
        return None;
    }
    let mut groups = vec![BOOTSTRAPPERS_GROUP.to_string()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').filter(|group| !group.is_empty()) {
        if !well_formed(group) {
            return None;
        }
        groups.push(group.into());
    }
    Some(User { name: format!("system:bootstrap:{}", token.id), groups, ..User::default() })
}

/// Extra groups may only be below that of bootstrappers.
fn well_formed(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b':' | b'-');
    rest.len() <= 256 && rest.bytes().all(allowed) && rest.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// Comparison whose duration does not depend on where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_is_what_its_secret_says() {
        let token = JoinToken::parse("abcdef.0123456789abcdef").unwrap();
        let secret = token.to_secret("test", Some("2027-01-01T00:00:00Z"));
        let before = 1_790_000_000;
        let known = user(&token, &secret, before).unwrap();
        assert_eq!(known.name, "system:bootstrap:abcdef");
        assert_eq!(known.groups, ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"]);
        assert!(user(&token, &secret, 1_900_000_000).is_none(), "expired");
        let wrong = JoinToken::parse("abcdef.0123456789abcdee").unwrap();
        assert!(user(&wrong, &secret, before).is_none());
        let mut other = secret.clone();
        other["data"]["auth-extra-groups"] = json!(STANDARD.encode("system:masters"));
        assert!(user(&token, &other, before).is_none(), "no group beyond bootstrappers");
        let mut other = secret.clone();
        other["type"] = json!("Opaque");
        assert!(user(&token, &other, before).is_none());
    }
}

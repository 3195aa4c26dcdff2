//! Service account tokens over the API: TokenRequest (`serviceaccounts/NAME/token`) makes one, TokenReview asks whose one is.

use crate::Server;
use crate::admission::connections;
use crate::authentication::{authenticate_token, prepare_token};
use crate::connect::{Answer, Call};
use crate::reviews::{now, time_text, user_info};
use api::{Status, Value, field, object::ObjectExt};
use http::StatusCode;
use pki::jwt::{KubernetesClaims, Reference};
use serde_json::json;

const GROUP: &str = "authentication.k8s.io";
/// How long a token lives if the request does not say.
const LIFE_DEFAULT_S: i64 = 3600;
const LIFE_MIN_S: i64 = 600;
const LIFE_MAX_S: i64 = 1 << 32;
/// A pod's own token is asked for with this life. It really lives for [`LIFE_EXTENDED_S`], so that a client that never
/// reads its file again, and a node that cannot reach a server, go on; the claim `warnafter` says when it should have been replaced.
const LIFE_OF_PODS_S: i64 = 3607;
const LIFE_EXTENDED_S: i64 = 365 * 86_400;

/// Makes a token for a service account.
pub async fn request(mut call: Call) -> Answer {
    let mut request = call.object(GROUP, "v1", "TokenRequest").await?;
    request.set_default("spec.expirationSeconds", LIFE_DEFAULT_S);
    call.book(GROUP, "v1", "TokenRequest", &mut request)?;
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    match request.namespace() {
        "" => request.set("metadata.namespace", namespace.as_str()),
        given if given == namespace => {}
        _ => return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request")),
    }
    let server = &call.server;
    // It passes admission as any create: the namespace must be there, and a node may only ask for its pods.
    connections::admit_posted(&call, &mut request, call.write_options()?.dry_run).await?;
    // It may have been made a moment ago, by another server.
    server.cache.fresh().await?;
    let account = server.lookup("", "serviceaccounts", &namespace, &name)?.ok_or_else(|| Status::not_found(("", "serviceaccounts"), &name))?;
    match request.name() {
        "" => request.set("metadata.name", name.as_str()),
        given if given == name => {}
        given => {
            let mut errors = field::Errors::default();
            errors.invalid(field::Path::new("metadata").child("name"), given, "must match the service account name if specified");
            return Err(Status::invalid(GROUP, "TokenRequest", &name, &errors));
        }
    }
    let life_s = life(&request)?;
    if request.list_at("spec.audiences").is_empty() {
        request.set("spec.audiences", json!(server.authenticators.service_accounts.audiences()));
    }
    request.set("spec.expirationSeconds", life_s);
    request.set_default("spec.boundObjectRef", Value::Null);
    let audiences: Vec<String> = request.list_at("spec.audiences").iter().filter_map(Value::as_str).map(String::from).collect();

    let mut claims = KubernetesClaims {
        namespace,
        node: None,
        pod: None,
        secret: None,
        serviceaccount: Reference { name, uid: account.uid.to_string() },
        warnafter: None,
    };
    bind(server, &request, &mut claims)?;
    let (now_unix_s, mut real_life_s) = (pki::now_unix_s(), life_s);
    if life_s == LIFE_OF_PODS_S
        && claims.pod.is_some()
        && audiences.iter().all(|audience| server.authenticators.service_accounts.audiences().contains(audience))
    {
        claims.warnafter = Some(now_unix_s + life_s);
        real_life_s = LIFE_EXTENDED_S;
    }
    let token = server.authenticators.service_accounts.issue(claims, audiences, now_unix_s, real_life_s).map_err(Status::internal)?;
    request.set("metadata.uid", &*account.uid);
    request.set("metadata.creationTimestamp", now());
    request.set("status", json!({"token": token, "expirationTimestamp": time_text(now_unix_s + life_s)}));
    Ok(call.answer(StatusCode::CREATED, &request))
}

fn life(request: &Value) -> Result<i64, Status> {
    let life_s = request.i64_at("spec.expirationSeconds").unwrap_or(LIFE_DEFAULT_S);
    let detail = match life_s {
        ..LIFE_MIN_S => "may not specify a duration less than 10 minutes",
        LIFE_MIN_S..=LIFE_MAX_S => return Ok(life_s),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let mut errors = field::Errors::default();
    errors.invalid(field::Path::new("spec").child("expirationSeconds"), life_s, detail);
    Err(Status::invalid(GROUP, "TokenRequest", "", &errors))
}

/// Writes into the claims what the token shall die with.
fn bind(server: &Server, request: &Value, claims: &mut KubernetesClaims) -> Result<(), Status> {
    let Some(bound) = request.at("spec.boundObjectRef").filter(|bound| !bound.is_null()) else { return Ok(()) };
    let text = |key| bound.str_at(key).unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let (resource, namespace) = match (text("apiVersion"), kind) {
        ("v1" | "", "Pod") => ("pods", claims.namespace.as_str()),
        ("v1" | "", "Secret") => ("secrets", claims.namespace.as_str()),
        ("v1" | "", "Node") => ("nodes", ""),
        (version, kind) => {
            // Group and version as Go prints them: the core group is empty, and its slash stays.
            let core = if version.contains('/') || version.is_empty() { "" } else { "/" };
            return Err(Status::bad_request(format!("cannot bind token to object of type {core}{version}, Kind={kind}")));
        }
    };
    let entry = server.lookup("", resource, namespace, name)?.ok_or_else(|| Status::not_found(("", resource), name))?;
    let uid = text("uid");
    if !uid.is_empty() && uid != &*entry.uid {
        let detail = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(("", kind), name, &detail));
    }
    let reference = Some(Reference { name: name.into(), uid: entry.uid.to_string() });
    match resource {
        "secrets" => claims.secret = reference,
        "nodes" => claims.node = reference,
        _ => {
            let pod = entry.value();
            if pod.str_at("spec.serviceAccountName").unwrap_or_default() != claims.serviceaccount.name {
                let message = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    claims.serviceaccount.name
                );
                return Err(Status::bad_request(message));
            }
            claims.pod = reference;
            if let Some(node) = pod.str_at("spec.nodeName").filter(|node| !node.is_empty()) {
                let uid = server.lookup("", "nodes", "", node)?.map(|entry| entry.uid.to_string()).unwrap_or_default();
                claims.node = Some(Reference { name: node.into(), uid });
            }
        }
    }
    Ok(())
}

/// Whose is this token?
pub async fn review(mut call: Call) -> Answer {
    let mut review = call.review(GROUP, "v1", "TokenReview").await?;
    let token = review.str_at("spec.token").unwrap_or_default().to_string();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = review.list_at("spec.audiences").iter().filter_map(Value::as_str).map(String::from).collect();
    let mut known = authenticate_token(&call.server, &token, &audiences);
    if known.is_err() {
        prepare_token(&call.server, &token).await;
        known = authenticate_token(&call.server, &token, &audiences);
    }
    review["status"] = match known {
        Ok(answer) => json!({"authenticated": true, "user": user_info(&answer.user), "audiences": answer.audiences}),
        Err(errors) => json!({"user": {}, "error": crate::authorization::rbac::aggregate(&errors)}),
    };
    review.metadata_mut().remove("namespace");
    Ok(call.answer(StatusCode::CREATED, &review))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_have_bounds() {
        let check = |seconds: Value| life(&json!({"spec": {"expirationSeconds": seconds}})).map_err(|status| status.message);
        assert_eq!(check(Value::Null), Ok(3600));
        assert_eq!(check(json!(600)), Ok(600));
        assert!(check(json!(599)).unwrap_err().ends_with("Invalid value: 599: may not specify a duration less than 10 minutes"));
        assert!(check(json!(4294967297i64)).unwrap_err().ends_with("may not specify a duration larger than 2^32 seconds"));
    }
}

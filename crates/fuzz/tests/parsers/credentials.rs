//! What somebody proves himself with: tokens, certificates, requests for certificates, keys of issuers.

use crate::run;
use pki::{Claims, Identity, JoinToken, ServiceAccountKeys, Subject, oidc, request::Request};
use std::sync::LazyLock;

/// Texts that live as long as the process, as generators want them.
fn kept(texts: Vec<String>) -> Vec<&'static [u8]> {
    texts.into_iter().map(|text| &*text.into_bytes().leak()).collect()
}

#[test]
fn tokens() {
    static KEYS: LazyLock<ServiceAccountKeys> = LazyLock::new(|| ServiceAccountKeys::generate().expect("keys"));
    static RIGHT: LazyLock<Vec<&'static [u8]>> = LazyLock::new(|| {
        let claims: Claims = serde_json::from_value(serde_json::json!({
            "iss": "me", "sub": "system:serviceaccount:a:b", "aud": ["me"], "exp": 2_000_000_000, "iat": 1_700_000_000, "nbf": 1_700_000_000, "jti": "1",
            "kubernetes.io": {"namespace": "a", "serviceaccount": {"name": "b", "uid": "u"}},
        }))
        .expect("claims");
        kept(vec![KEYS.sign(&claims).expect("a token"), "e30.e30.".into(), "a.b.c".into()])
    });
    run(|choices| {
        let token = &choices.near_text(&RIGHT);
        let taken = matches!(KEYS.verify(token, "me", 1_800_000_000), Some(Ok(_)));
        assert!(!taken || token.as_bytes() == RIGHT[0], "a token that was changed is taken: {token}");
        let _ = oidc::peek(token);
    });
}

#[test]
fn keys_of_issuers() {
    let right: &[&[u8]] = &[
        br#"{"keys":[{"kty":"RSA","kid":"a","alg":"RS256","use":"sig","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw","e":"AQAB"}]}"#,
        br#"{"keys":[{"kty":"EC","kid":"b","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#,
        b"https://issuer.example/.well-known",
    ];
    run(|choices| {
        let text = &choices.near_text(right);
        let Ok(keys) = oidc::Keys::parse(text) else { return };
        let _ = (keys.has("a"), keys.verify("e30.e30.AA", &oidc::SigningAlgorithms::all(), 0).is_ok());
    });
}

#[test]
fn join_tokens() {
    run(|choices| {
        let text = &choices.near_text(&[b"K10abcdef::abcdef.0123456789abcdef", b"abcdef.0123456789abcdef", b"::server:"]);
        if let Ok(token) = JoinToken::parse(text) {
            let _ = (token.bearer(), token.secret_name());
        }
    });
}

#[test]
fn certificates_and_requests() {
    static RIGHT: LazyLock<Vec<&'static [u8]>> = LazyLock::new(|| {
        let (request, _) = pki::request::create(&Identity::node("worker-1")).expect("a request");
        let authority = pki::Authority::generate("fuzz").expect("an authority");
        kept(vec![request, authority.certificate_pem().into(), authority.issue(&Identity::admin()).expect("a certificate").certificate_pem])
    });
    // The bytes below the text, where most of what can be wrong is.
    static BINARY: LazyLock<Vec<&'static [u8]>> = LazyLock::new(|| {
        let decoded = RIGHT.iter().filter_map(|pem| {
            let text = std::str::from_utf8(pem).ok()?;
            let body: String = text.lines().skip(1).take_while(|line| !line.starts_with('-')).collect();
            api::custom::formats::base64(&body)
        });
        decoded.map(|bytes| &*bytes.leak()).collect()
    });
    run(|choices| {
        let (pem, der) = (&choices.near_text(&RIGHT), &choices.near(&BINARY));
        let _ = Request::parse(pem).map(drop);
        let armoured = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", api::custom::formats::to_base64(der));
        let _ = Request::parse(&armoured).map(drop);
        let certificate = der.clone().into();
        let _ = (Subject::of(&certificate).map(drop), pki::identity::usages(&certificate).map(drop));
        let _ = (pki::identity::served_names(&certificate).map(drop), pki::identity::validity(&certificate).map(drop));
    });
}

//! VAPID tokens as a push service checks them (RFC 8292), for `vapid` and the older `WebPush` scheme.
//!
//! A verified signature is remembered by the whole header, as RFC 8292 section 5 expects push services to do; `exp` is looked at
//! every time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::sha::sha256;
use serde::{Deserialize, Serialize};

use super::decrypt::{POINT, p256};

/// Tokens that are remembered at most; beyond it all are forgotten at once.
const REMEMBERED: usize = 16_384;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vapid {
    /// The audience: an origin.
    pub aud: String,
    /// Seconds since 1970.
    pub exp: u64,
    /// `mailto:` or `https:`.
    pub sub: String,
    /// `k`: the application server's public key, base64url of 65 bytes.
    pub key: String,
    /// The token itself, to see how often a sender makes new ones.
    pub token: String,
}

/// Why a token is not good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No `Authorization`, or none that can be read (RFC 8292 section 4.2: 401).
    Absent(String),
    /// Wrong signature or claims (403 "might").
    Invalid(String),
}

/// Verifies tokens, remembering the good ones.
#[derive(Default)]
pub struct Verifier {
    known: Mutex<HashMap<String, Arc<Vapid>>>,
}

impl Verifier {
    /// Checks `Authorization` for an endpoint of `origin` at `now` (seconds since 1970). `crypto_key` is that header's value, where
    /// the older scheme has the key.
    pub fn verify(
        &self,
        authorization: Option<&str>,
        crypto_key: Option<&str>,
        origin: &str,
        now: u64,
    ) -> Result<Arc<Vapid>, Problem> {
        let header = authorization.ok_or_else(|| Problem::Absent("no Authorization header".to_owned()))?;
        let (token, key) = parts(header, crypto_key).map_err(Problem::Absent)?;
        let remembered = format!("{token} {key}");
        let known = self.known.lock().expect("no holder panics").get(&remembered).cloned();
        let vapid = match known {
            Some(vapid) => vapid,
            None => {
                let vapid = Arc::new(signed(&token, &key).map_err(Problem::Invalid)?);
                let mut known = self.known.lock().expect("no holder panics");
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(remembered, vapid.clone());
                vapid
            }
        };
        if vapid.aud != origin {
            return Err(Problem::Invalid(format!("aud is {:?}, the endpoint's origin {origin:?}", vapid.aud)));
        }
        if vapid.exp <= now {
            return Err(Problem::Invalid(format!("exp is {} seconds past", now - vapid.exp)));
        }
        if vapid.exp > now + 24 * 60 * 60 {
            return Err(Problem::Invalid(format!("exp is {} seconds ahead, more than 24 hours", vapid.exp - now)));
        }
        Ok(vapid)
    }
}

/// Token and key of the header.
fn parts(header: &str, crypto_key: Option<&str>) -> Result<(String, String), String> {
    let (scheme, rest) = header.split_once(' ').ok_or("Authorization has a scheme only")?;
    if scheme.eq_ignore_ascii_case("vapid") {
        let mut token = None;
        let mut key = None;
        for part in rest.split(',') {
            match part.trim().split_once('=') {
                Some(("t", value)) if token.is_none() => token = Some(value),
                Some(("k", value)) if key.is_none() => key = Some(value),
                _ => return Err(format!("Authorization has a strange part of {} bytes", part.len())),
            }
        }
        let token = token.ok_or("Authorization has no t")?;
        let key = key.ok_or("Authorization has no k")?;
        return Ok((token.to_owned(), key.to_owned()));
    }
    if scheme.eq_ignore_ascii_case("webpush") {
        let key = crypto_key.and_then(|value| parameter(value, "p256ecdsa")).ok_or("Crypto-Key has no p256ecdsa")?;
        return Ok((rest.trim().to_owned(), key.to_owned()));
    }
    Err("the scheme is neither vapid nor WebPush".to_owned())
}

/// A parameter of `Crypto-Key` or `Encryption`, separated by `;` or `,`.
pub(super) fn parameter<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split([';', ',']).filter_map(|part| part.trim().split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// What a token says, if its signature and form are right.
fn signed(token: &str, key: &str) -> Result<Vapid, String> {
    let point = URL_SAFE_NO_PAD.decode(key).map_err(|_| "k is not base64url without padding")?;
    if point.len() != POINT || point[0] != 4 {
        return Err(format!("k has {} bytes, not an uncompressed point of 65", point.len()));
    }
    let (signing_input, signature) = token.rsplit_once('.').ok_or("the token has no signature")?;
    let (header, claims) = signing_input.split_once('.').ok_or("the token has two parts")?;
    let header = json(header, "header")?;
    if header["alg"] != "ES256" {
        return Err(format!("alg is {}, not ES256", header["alg"]));
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "the signature is not base64url")?;
    if signature.len() != 64 {
        return Err(format!("the signature has {} bytes, not 64", signature.len()));
    }
    let group = p256();
    let mut context = BigNumContext::new().expect("OpenSSL allocates");
    let point = EcPoint::from_bytes(&group, &point, &mut context).map_err(|_| "k is not on P-256")?;
    let public = EcKey::from_public_key(&group, &point).map_err(|_| "k is no key")?;
    let number = |bytes| BigNum::from_slice(bytes).expect("32 bytes are a number");
    let signature = EcdsaSig::from_private_components(number(&signature[..32]), number(&signature[32..]))
        .expect("two numbers are a signature");
    if !signature.verify(&sha256(signing_input.as_bytes()), &public).unwrap_or(false) {
        return Err("the signature does not match".to_owned());
    }
    let claims = json(claims, "claims")?;
    let aud = claims["aud"].as_str().ok_or("aud is not a string")?.to_owned();
    let exp = claims["exp"].as_u64().ok_or("exp is not an integer")?;
    let sub = claims["sub"].as_str().ok_or("sub is missing")?.to_owned();
    if !sub.starts_with("mailto:") && !sub.starts_with("https:") || sub.contains([' ', '<', '>']) {
        return Err("sub is neither a plain mailto: nor https:".to_owned());
    }
    Ok(Vapid { aud, exp, sub, key: key.to_owned(), token: token.to_owned() })
}

fn json(part: &str, name: &str) -> Result<serde_json::Value, String> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| format!("the token's {name} is not base64url"))?;
    serde_json::from_slice(&bytes).map_err(|_| format!("the token's {name} is not JSON"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use openssl::ec::PointConversionForm;
    use openssl::pkey::Private;

    /// A sender's key, with `k`.
    pub(crate) fn sender() -> (EcKey<Private>, String) {
        let key = EcKey::generate(&p256()).unwrap();
        let mut context = BigNumContext::new().unwrap();
        let point = key.public_key().to_bytes(&p256(), PointConversionForm::UNCOMPRESSED, &mut context).unwrap();
        (key, URL_SAFE_NO_PAD.encode(point))
    }

    /// A token with these claims.
    pub(crate) fn sign(key: &EcKey<Private>, header: &str, claims: &serde_json::Value) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = EcdsaSig::sign(&sha256(input.as_bytes()), key).unwrap();
        let bytes = [signature.r().to_vec_padded(32).unwrap(), signature.s().to_vec_padded(32).unwrap()].concat();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(crate) const HEADER: &str = r#"{"typ":"JWT","alg":"ES256"}"#;
    const ORIGIN: &str = "https://127.0.0.1:4443";
    const NOW: u64 = 1_700_000_000;

    fn verdict(header: &str, claims: serde_json::Value) -> Result<Arc<Vapid>, Problem> {
        let (key, k) = sender();
        Verifier::default().verify(Some(&format!("vapid t={}, k={k}", sign(&key, header, &claims))), None, ORIGIN, NOW)
    }

    #[test]
    fn a_good_token_passes_and_says_what_it_says() {
        let vapid =
            verdict(HEADER, serde_json::json!({"aud": ORIGIN, "exp": NOW + 86_400, "sub": "mailto:ops@example.com"})).unwrap();
        assert_eq!((vapid.aud.as_str(), vapid.exp), (ORIGIN, NOW + 86_400));
    }

    #[test]
    fn each_wrong_claim_is_named() {
        let sub = "mailto:ops@example.com";
        for (claims, word) in [
            (serde_json::json!({"aud": "https://127.0.0.1", "exp": NOW + 10, "sub": sub}), "aud"),
            (serde_json::json!({"aud": format!("{ORIGIN}/"), "exp": NOW + 10, "sub": sub}), "aud"),
            (serde_json::json!({"aud": [ORIGIN], "exp": NOW + 10, "sub": sub}), "aud"),
            (serde_json::json!({"aud": ORIGIN, "exp": NOW, "sub": sub}), "past"),
            (serde_json::json!({"aud": ORIGIN, "exp": NOW + 86_401, "sub": sub}), "24 hours"),
            (serde_json::json!({"aud": ORIGIN, "exp": (NOW + 10) as f64 + 0.5, "sub": sub}), "integer"),
            (serde_json::json!({"aud": ORIGIN, "exp": NOW + 10}), "sub"),
            (serde_json::json!({"aud": ORIGIN, "exp": NOW + 10, "sub": "ops@example.com"}), "sub"),
            (serde_json::json!({"aud": ORIGIN, "exp": NOW + 10, "sub": "mailto: <a@b.example>"}), "sub"),
        ] {
            match verdict(HEADER, claims) {
                Err(Problem::Invalid(text)) => assert!(text.contains(word), "{text}"),
                other => panic!("{word}: {other:?}"),
            }
        }
        let good = serde_json::json!({"aud": ORIGIN, "exp": NOW + 10, "sub": sub});
        assert!(matches!(verdict(r#"{"alg":"HS256"}"#, good), Err(Problem::Invalid(_))));
    }

    #[test]
    fn another_keys_signature_and_strange_headers_are_refused() {
        let (key, k) = sender();
        let (_, other) = sender();
        let token = sign(&key, HEADER, &serde_json::json!({"aud": ORIGIN, "exp": NOW + 10, "sub": "https://example.com"}));
        let verifier = Verifier::default();
        let ask = |header: &str, crypto_key: Option<&str>| verifier.verify(Some(header), crypto_key, ORIGIN, NOW);
        assert!(ask(&format!("vapid t={token}, k={k}"), None).is_ok());
        assert!(ask(&format!("VAPID k={k},t={token}"), None).is_ok());
        assert!(ask(&format!("WebPush {token}"), Some(&format!("dh=AA;p256ecdsa={k}"))).is_ok());
        assert!(matches!(ask(&format!("vapid t={token}, k={other}"), None), Err(Problem::Invalid(_))));
        assert!(matches!(ask(&format!("vapid t={token}, k={k}="), None), Err(Problem::Invalid(_))));
        assert!(matches!(ask(&format!("vapid t={token}"), None), Err(Problem::Absent(_))));
        assert!(matches!(ask(&format!("Basic {token}"), None), Err(Problem::Absent(_))));
        assert!(matches!(verifier.verify(None, None, ORIGIN, NOW), Err(Problem::Absent(_))));
        // A remembered token still expires.
        assert!(verifier.verify(Some(&format!("vapid t={token}, k={k}")), None, ORIGIN, NOW + 11).is_err());
    }
}

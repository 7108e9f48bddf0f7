//! What tells receivers of webhooks that it was this server: fal's signature is Ed25519 with a public key under a URL; all others get
//! the signature of Standard Webhooks, an HMAC with a secret that the caller can ask for.

use std::sync::Arc;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use ed25519_dalek::{Signer, SigningKey};
use hmac::Mac;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    clock::now,
    error::Fault,
    hex::hex,
    http,
    job::{Dialect, JobView},
    journal::Journal,
    mac,
    owner::Owner,
};

/// The keys that notices are signed with. They are in the journal: receivers keep a copy over restarts.
#[derive(Clone)]
pub struct Signing(Arc<Keys>);

struct Keys {
    fal: SigningKey,
    standard: [u8; 32],
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signing")
    }
}

impl Signing {
    /// The journal's keys, made where there are none.
    ///
    /// # Errors
    /// If the journal fails, or holds something else under their names.
    pub async fn open(journal: &Journal) -> Result<Self, Fault> {
        let key = async |name: &'static str| {
            let new = BASE64_STANDARD.encode(http::random::<32>());
            let kept = match journal.meta(name).await? {
                Some(kept) => kept,
                None => journal.meta_or(name, new).await?,
            };
            let bytes = BASE64_STANDARD.decode(kept).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            bytes.ok_or_else(|| Fault::Failed(format!("the journal's '{name}' is not a key of 32 bytes")))
        };
        Ok(Self::of(key("webhook_ed25519").await?, key("webhook_secret").await?))
    }

    /// Of 32 bytes each.
    fn of(fal: [u8; 32], standard: [u8; 32]) -> Self {
        Self(Arc::new(Keys { fal: SigningKey::from_bytes(&fal), standard }))
    }

    /// fal's public key, as its receivers fetch it.
    pub fn jwks(&self) -> Value {
        let public = self.0.fal.verifying_key();
        let name = hex(&Sha256::digest(public.as_bytes())[..8]);
        let x = BASE64_URL_SAFE_NO_PAD.encode(public.as_bytes());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": name, "x": x}]})
    }

    /// An owner's secret of Standard Webhooks. Base 64 with `+` and `/`: Replicate's Python client splits at `_`.
    pub fn secret(&self, owner: &Owner) -> String {
        format!("whsec_{}", BASE64_STANDARD.encode(self.secret_of(owner)))
    }

    /// A secret for each owner, so that none can sign for another; the journal's own where all are one, without keys.
    fn secret_of(&self, owner: &Owner) -> [u8; 32] {
        if *owner == Owner::anyone() {
            return self.0.standard;
        }
        hmac(&self.0.standard, &[b"webhooks of ", owner.0.as_bytes()])
    }

    /// fal's four headers; `at` in seconds.
    fn fal(&self, request: &str, user: &str, at: i64, body: &[u8]) -> Vec<(&'static str, String)> {
        let message = format!("{request}\n{user}\n{at}\n{}", hex(&Sha256::digest(body)));
        let signature = hex(&self.0.fal.sign(message.as_bytes()).to_bytes());
        vec![
            ("x-fal-webhook-request-id", request.to_owned()),
            ("x-fal-webhook-user-id", user.to_owned()),
            ("x-fal-webhook-timestamp", at.to_string()),
            ("x-fal-webhook-signature", signature),
        ]
    }

    /// The three headers of Standard Webhooks; `at` in seconds.
    fn standard(&self, owner: &Owner, id: &str, at: i64, body: &[u8]) -> Vec<(&'static str, String)> {
        let signature = hmac(&self.secret_of(owner), &[format!("{id}.{at}.").as_bytes(), body]);
        vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", format!("v1,{}", BASE64_STANDARD.encode(signature))),
        ]
    }

    pub(crate) fn headers(&self, view: &JobView, notice: &str, body: &[u8]) -> Vec<(&'static str, String)> {
        let at = now() / 1000;
        match view.dialect {
            Dialect::Fal => self.fal(view.id.as_str(), &user(&view.owner), at, body),
            _ => self.standard(&view.owner, notice, at, body),
        }
    }
}

/// HMAC with SHA-256 of these one after the other.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = mac::keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// An owner's name as a header can hold it.
fn user(owner: &Owner) -> String {
    owner.0.chars().filter(char::is_ascii_graphic).collect()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, Verifier, VerifyingKey};

    use super::*;

    fn header<'a>(headers: &'a [(&str, String)], name: &str) -> &'a str {
        &headers.iter().find(|(this, _)| *this == name).unwrap().1
    }

    /// As fal documents it for receivers.
    #[test]
    fn fals_signature_is_verified_with_the_published_key() {
        let signing = Signing::of([7; 32], [0; 32]);
        let body = br#"{"request_id": "r"}"#;
        let headers = signing.fal("r", "u", 1_700_000_000, body);
        let message = format!("r\nu\n1700000000\n{}", hex(&Sha256::digest(body)));
        let x = signing.jwks()["keys"][0]["x"].as_str().map(|x| BASE64_URL_SAFE_NO_PAD.decode(x).unwrap()).unwrap();
        let key = VerifyingKey::from_bytes(&x.try_into().unwrap()).unwrap();
        let signature = header(&headers, "x-fal-webhook-signature");
        let bytes: Vec<u8> =
            (0..64).map(|at| u8::from_str_radix(&signature[2 * at..2 * at + 2], 16).unwrap()).collect();
        let signature = Signature::from_slice(&bytes).unwrap();
        key.verify(message.as_bytes(), &signature).unwrap();
        key.verify(b"another", &signature).unwrap_err();
    }

    /// The example of the Standard Webhooks specification's reference implementations.
    #[test]
    fn the_standard_signature_is_that_of_the_specification() {
        let secret = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        // The example's secret has 24 bytes; zeros at the end of a key change no HMAC with a block of 64.
        let mut key = [0; 32];
        key[..24].copy_from_slice(&secret);
        let signing = Signing::of([0; 32], key);
        let headers = signing.standard(
            &Owner::anyone(),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(header(&headers, "webhook-signature"), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let secrets: Vec<String> =
            [Owner::anyone(), Owner("a".into()), Owner("b".into())].iter().map(|owner| signing.secret(owner)).collect();
        assert!(secrets.iter().all(|secret| secret.starts_with("whsec_") && secret.matches('_').count() == 1));
        assert!(secrets[0] != secrets[1] && secrets[1] != secrets[2] && secrets[0] != secrets[2]);
        let other = signing.standard(&Owner("a".into()), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{}");
        let secret = BASE64_STANDARD.decode(&secrets[1]["whsec_".len()..]).unwrap().try_into().unwrap();
        let own = Signing::of([0; 32], secret);
        let own = own.standard(&Owner::anyone(), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{}");
        assert_eq!(other, own, "signed with the secret that its owner is told");
    }
}

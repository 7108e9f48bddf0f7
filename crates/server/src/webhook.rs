//! Webhooks: what callers are told about their jobs, signed as their vendor signs it, and tried again until they took it.
//!
//! What has to be told is in the journal's [`crate::outbox`], so nothing is lost by a restart; lines of a log are told at most every
//! half second and once. fal's signature is Ed25519 with a public key under a URL; all others get the signature of Standard
//! Webhooks, an HMAC with a secret that the caller can ask for.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use futures_util::{StreamExt, stream};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::broadcast::error::RecvError;

use crate::{
    dialect::{fal, hex, native, replicate},
    error::Fault,
    fetch::Unsent,
    http,
    job::{Dialect, JobId, JobView, Moment, Owner, State},
    jobs::now,
    journal::Journal,
    records::Notice,
    server::Server,
};

/// How long one try may take; fal's own limit.
const TRY: Duration = Duration::from_secs(15);

/// Seconds until the next try of a notice about a job's end: ten tries in about two hours, as fal's.
const PAUSES: [i64; 9] = [5, 15, 45, 120, 300, 600, 1200, 1800, 3600];

/// Tries of a notice about anything else: it would hold up the notices after it.
const FEW: u32 = 2;

/// Notices told at the same time.
const AT_ONCE: usize = 8;

/// Between two notices about a job's log.
const LOG_PAUSE: Duration = Duration::from_millis(500);

/// How long the outbox is left alone when there is nothing in it, or when it cannot be read.
const IDLE: Duration = Duration::from_secs(30);

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

    /// The secret of Standard Webhooks. Base 64 with `+` and `/`: Replicate's Python client splits at `_`.
    pub fn secret(&self) -> String {
        format!("whsec_{}", BASE64_STANDARD.encode(self.0.standard))
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
    fn standard(&self, id: &str, at: i64, body: &[u8]) -> Vec<(&'static str, String)> {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0.standard);
        // HMAC fills a key up with zeros to the block of its hash; a whole block has no length that could be wrong.
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(format!("{id}.{at}.").as_bytes());
        mac.update(body);
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", format!("v1,{signature}")),
        ]
    }

    fn headers(&self, view: &JobView, notice: &str, body: &[u8]) -> Vec<(&'static str, String)> {
        let at = now() / 1000;
        match view.dialect {
            Dialect::Fal => self.fal(view.id.as_str(), &user(&view.owner), at, body),
            _ => self.standard(notice, at, body),
        }
    }
}

/// An owner's name as a header can hold it.
fn user(owner: &Owner) -> String {
    owner.0.chars().filter(char::is_ascii_graphic).collect()
}

/// Tells notices for as long as the server runs, for a task of its own. `base`: the server's public URL where no request says it.
pub async fn deliver(server: Server, base: String) {
    let courier = Courier { server, base: base.into() };
    tokio::join!(courier.clone().tell_all(), courier.tell_logs());
}

/// What became of a try.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Yes,
    /// Worth another try.
    NotYet,
    /// The address may not be told, whatever it answers.
    Never,
}

#[derive(Clone)]
struct Courier {
    server: Server,
    base: Arc<str>,
}

impl Courier {
    async fn tell_all(self) {
        let outbox = self.server.jobs.outbox().clone();
        loop {
            let due = outbox.due(now(), AT_ONCE).await.unwrap_or_default();
            if due.is_empty() {
                let next = outbox.next().await.ok().flatten();
                let wait = next.map_or(IDLE, |at| Duration::from_millis((at - now()).max(20).unsigned_abs()));
                let _ = tokio::time::timeout(wait.min(IDLE), outbox.news()).await;
                continue;
            }
            stream::iter(due).for_each_concurrent(AT_ONCE, |notice| self.tell(notice)).await;
        }
    }

    /// One try.
    async fn tell(&self, notice: Notice) {
        let outbox = self.server.jobs.outbox();
        let told = match self.server.jobs.view(&notice.job).await {
            Some(view) => {
                self.send(&view, notice.moment, &notice.url, &format!("msg_{}_{}", notice.job, notice.id)).await
            }
            None => Told::Yes, // the job is forgotten, and so is its notice
        };
        let again = pause(notice.moment, notice.tries).filter(|_| told == Told::NotYet);
        let noted = match again {
            Some(seconds) => outbox.later(notice.id, now() + seconds * 1000).await,
            None => outbox.done(notice.id).await,
        };
        if told != Told::Yes && again.is_none() {
            tracing::warn!(job = %notice.job, "a webhook was not taken and is given up");
        }
        if let Err(fault) = noted {
            tracing::warn!(job = %notice.job, %fault, "a webhook may be told twice");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn send(&self, view: &JobView, moment: Moment, url: &str, id: &str) -> Told {
        let body = Bytes::from(self.body(view, moment).await.to_string());
        let signed = self.server.signing.headers(view, id, &body);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in signed {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        match self.server.fetcher.tell(url, headers, body, TRY).await {
            Ok(status) if (200..300).contains(&status) => Told::Yes,
            Ok(status) => {
                tracing::info!(job = %view.id, status, "a webhook was answered with an error");
                Told::NotYet
            }
            Err(Unsent::Refused(_)) => Told::Never,
            Err(Unsent::Failed(_)) => Told::NotYet,
        }
    }

    async fn body(&self, view: &JobView, moment: Moment) -> Value {
        let (server, base) = (&self.server, &*self.base);
        match view.dialect {
            Dialect::Fal => match http::fal::output(&server.blobs, view, base).await {
                Ok(output) => fal::notice(view, output),
                Err(fault) => {
                    let mut told = fal::notice(view, Value::Null);
                    told["payload_error"] = fault.to_string().into();
                    told
                }
            },
            Dialect::Replicate => {
                let view = seen_at(view, moment);
                let output = http::replicate::output(server, &view, base).await;
                let told = replicate::prediction(&view, base, output);
                if moment == Moment::Output { not_ended(told) } else { told }
            }
            _ => native::job(view, base, &|made: &crate::job::Made| server.blobs.url(&made.blob, base)),
        }
    }

    /// Tells the lines of logs to those who asked for them.
    async fn tell_logs(self) {
        let mut news = self.server.jobs.chatter();
        let mut last: HashMap<JobId, Instant> = HashMap::new();
        loop {
            let id = match news.recv().await {
                Ok(id) => id,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            last.retain(|_, told| told.elapsed() < LOG_PAUSE);
            if last.contains_key(&id) {
                continue;
            }
            let (Some(view), Some(url)) = (self.server.jobs.view(&id).await, self.server.jobs.webhook_url(&id)) else {
                continue;
            };
            last.insert(id.clone(), Instant::now());
            let this = self.clone();
            tokio::spawn(async move {
                let name = format!("msg_{id}_log{}", view.logs.len());
                this.send(&view, Moment::Logs, &url, &name).await;
            });
        }
    }
}

/// Seconds until a notice is tried again; `None`: it is given up.
fn pause(moment: Moment, tries: u32) -> Option<i64> {
    match moment {
        Moment::Completed => PAUSES.get(tries as usize).copied(),
        _ => (tries + 1 < FEW).then_some(1),
    }
}

/// A job as it was when something happened, also if it has ended since: receivers take a final state for the end.
fn seen_at(view: &JobView, moment: Moment) -> JobView {
    let mut seen = view.clone();
    if matches!(moment, Moment::Start | Moment::Logs) && seen.state.is_final() {
        (seen.state, seen.finished, seen.outcome) = (State::Running, None, None);
        if moment == Moment::Start {
            seen.logs = Arc::default();
        }
    }
    seen
}

/// Outputs are told before the end is.
fn not_ended(mut prediction: Value) -> Value {
    prediction["status"] = "processing".into();
    prediction["completed_at"] = Value::Null;
    prediction
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, Verifier, VerifyingKey};

    use super::*;
    use crate::job::Millis;

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
        let headers = signing.standard("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(header(&headers, "webhook-signature"), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(signing.secret().starts_with("whsec_") && signing.secret().matches('_').count() == 1);
    }

    #[test]
    fn the_end_is_tried_ten_times_in_two_hours_and_the_rest_twice() {
        let tried = |moment| (0..100).map_while(|tries| pause(moment, tries)).collect::<Vec<Millis>>();
        assert_eq!(tried(Moment::Completed).len() + 1, 10);
        assert!((7000..8000).contains(&tried(Moment::Completed).iter().sum::<i64>()));
        assert_eq!(tried(Moment::Start), [1]);
    }
}

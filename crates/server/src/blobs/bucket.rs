//! A bucket as the store: opened, and its failures in words for the operator and for those who ask.
//!
//! An error of the store holds the address of the object, which works as a key, and the service's whole answer. Of it only the
//! service's code or the last cause is told.

use std::{error::Error as _, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
    prefix::PrefixStore,
};

use super::not_found;
use crate::{config::S3, error::Fault};

/// How long one request may take, with all of its bytes.
const REQUEST: Duration = Duration::from_mins(2);

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// How often a request that failed in passing is sent again, and until when. Somebody waits for the answer.
const RETRIES: (usize, Duration) = (3, Duration::from_secs(20));

/// How much of an object is asked for at once where it is read piece by piece.
const WINDOW: u64 = 4 << 20;

/// The bucket of Amazon's or of another service that speaks the same. Nothing is asked of it yet.
pub(super) fn open(s3: &S3) -> Result<Arc<dyn ObjectStore>, Fault> {
    // Of the process; another module may have been first, with the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = build(s3).map_err(|error| refused(s3, &error))?;
    Ok(match &s3.prefix {
        Some(prefix) => Arc::new(PrefixStore::new(store, prefix.as_str())),
        None => Arc::new(store),
    })
}

fn build(s3: &S3) -> object_store::Result<AmazonS3> {
    let plain = s3.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_allow_http(plain);
    let retry = RetryConfig { max_retries: RETRIES.0, retry_timeout: RETRIES.1, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(s3.bucket.clone().unwrap_or_default())
        .with_client_options(options)
        .with_retry(retry);
    if let Some(region) = &s3.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(id) = &s3.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = &s3.secret_access_key {
        builder = builder.with_secret_access_key(&secret.0);
    }
    if let Some(token) = &s3.session_token {
        builder = builder.with_token(&token.0);
    }
    builder.build()
}

/// An object's bytes piece by piece, by requests of their own: each of them has to end in time, whoever reads may take longer.
/// Where the first one fails, the whole does.
pub(super) async fn read(
    store: &Arc<dyn ObjectStore>,
    place: Path,
    from: u64,
    to: u64,
) -> Result<BoxStream<'static, Result<Bytes, io::Error>>, Fault> {
    let first = store.get_range(&place, from..to.min(from + WINDOW)).await.map_err(|error| fault(&error))?;
    let rest = stream::try_unfold((store.clone(), place, from + WINDOW), move |(store, place, at)| async move {
        if at >= to {
            return Ok(None);
        }
        let next = store.get_range(&place, at..to.min(at + WINDOW)).await;
        let next = next.map_err(|error| io::Error::other(fault(&error).to_string()))?;
        Ok(Some((next, (store, place, at + WINDOW))))
    });
    Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
}

/// Why the server does not start: for the operator.
pub(super) fn refused(s3: &S3, error: &Error) -> Fault {
    let bucket = s3.bucket.as_deref().unwrap_or_default();
    let at = s3.endpoint.as_deref().unwrap_or("Amazon's S3");
    Fault::Unavailable(format!("the bucket '{bucket}' of {at} cannot be used: {}", reason(error)))
}

/// What a failure is for the one who asked; the operator finds the reason in the log.
pub(super) fn fault(error: &Error) -> Fault {
    if matches!(error, Error::NotFound { .. }) && code(error).as_deref() != Some("NoSuchBucket") {
        return not_found();
    }
    tracing::warn!(reason = reason(error), "the bucket fails");
    Fault::Unavailable("the store of pictures does not answer".into())
}

/// What went wrong and what to do.
fn reason(error: &Error) -> String {
    let Some(code) = code(error) else {
        return match error {
            Error::InvalidPath { .. } => "an object in it has an empty part in its name; hint: s3.prefix".into(),
            _ => last_cause(error),
        };
    };
    let hint = match code.as_str() {
        "NoSuchBucket" => "there is no such bucket; see s3.bucket",
        "InvalidAccessKeyId" => "the service does not know this key; see s3.access_key_id",
        "SignatureDoesNotMatch" => "the secret does not fit the key; see s3.secret_access_key",
        "InvalidToken" | "ExpiredToken" => "the token is not valid, or not any more; see s3.session_token",
        "AccessDenied" => "these credentials may not; they have to list, read, write and delete",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            "it is in another region; see s3.region"
        }
        "RequestTimeTooSkewed" => "this machine's clock is wrong",
        _ => return format!("the service says {code}"),
    };
    format!("{hint} ({code})")
}

/// The service's own word for an error: `<Code>` of its XML.
fn code(error: &Error) -> Option<String> {
    let text = error.to_string();
    let (code, _) = text.split_once("<Code>")?.1.split_once("</Code>")?;
    (code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric())).then(|| code.to_owned())
}

/// The innermost error, which knows nothing of addresses.
fn last_cause(error: &Error) -> String {
    let mut cause = error.source();
    let mut text = "it does not answer".to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    // A page instead of an answer is no sentence.
    text.split(['<', '\n']).next().unwrap_or_default().trim_end_matches([':', ' ']).chars().take(160).collect()
}

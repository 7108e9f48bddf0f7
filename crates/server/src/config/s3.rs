//! `s3.*`: a bucket for pictures, and what has to be right about it before anything is asked of it.

use super::Secret;

/// An S3 bucket for pictures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3 {
    /// Its name; without it the folder is used.
    pub bucket: Option<String>,
    /// What every object's name begins with.
    pub prefix: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Another service than Amazon's.
    pub endpoint: Option<String>,
    /// Half of the credentials.
    pub access_key_id: Option<String>,
    /// The other half.
    pub secret_access_key: Option<Secret>,
    /// A third, if they are temporary.
    pub session_token: Option<Secret>,
}

impl S3 {
    /// What is wrong with it, a sentence that repeats no secret. Names and credentials become parts of addresses and headers: what
    /// cannot stand there is found here and not in the middle of a request.
    pub(super) fn problem(&self) -> Option<String> {
        let bucket = self.bucket.as_ref()?;
        let (Some(id), Some(secret)) = (&self.access_key_id, &self.secret_access_key) else {
            return Some("s3.bucket needs s3.access_key_id and s3.secret_access_key".into());
        };
        let name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
        if !(3..=255).contains(&bucket.len()) || !bucket.bytes().all(name) {
            let expected = "expected 3 letters, digits, '.', '-' or more, without the address";
            return Some(format!("s3.bucket: '{bucket}' is no bucket's name; {expected}"));
        }
        let part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(name);
        if self.prefix.as_ref().is_some_and(|prefix| !prefix.trim_matches('/').split('/').all(part)) {
            // Services disagree on how anything else is signed.
            return Some("s3.prefix: expected letters, digits, '.', '-', '_' and '/', as darkroom/pictures".into());
        }
        if let Some(region) = self.region.as_ref().filter(|region| region.is_empty() || !region.bytes().all(name)) {
            return Some(format!("s3.region: '{region}' is no region; expected one as eu-central-1"));
        }
        if self.endpoint.as_ref().is_some_and(|endpoint| !is_endpoint(endpoint)) {
            // Not repeated: there may be a password in it.
            return Some(
                "s3.endpoint: no address of a service; expected one as https://s3.example, without the bucket".into(),
            );
        }
        let wrong = |name: &str| Some(format!("{name}: has to be visible ASCII characters"));
        if !is_visible(id) || id.contains(['/', ',']) {
            return wrong("s3.access_key_id");
        }
        if !is_visible(&secret.0) {
            return wrong("s3.secret_access_key");
        }
        self.session_token.as_ref().filter(|token| !is_visible(&token.0)).and_then(|_| wrong("s3.session_token"))
    }
}

fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_endpoint(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

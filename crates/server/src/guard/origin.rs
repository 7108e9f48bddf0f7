//! Pages of other origins: they may not ask, unless the operator says so. A browser tells where a page comes from (`Origin`,
//! `Sec-Fetch-Site`); programs say nothing and are not meant.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use url::Url;

/// Who may ask.
pub(super) struct Origins {
    all: bool,
    listed: Vec<String>,
}

/// What pages may read of an answer beside what they always may.
const EXPOSED: &str = "x-fal-request-id, x-request-id, x-fal-error-type, x-fal-request-timeout-type, retry-after, etag, content-disposition";

impl Origins {
    pub(super) fn new(configured: &[String], public: Option<&Url>) -> Self {
        let all = configured.iter().any(|origin| origin == "*");
        let listed = configured.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase());
        let own = public.map(|url| url.origin().ascii_serialization());
        Self { all, listed: listed.chain(own).collect() }
    }

    /// Whether this request comes from a page that may ask, or from none. `authority`: the host it was sent to.
    pub(super) fn may_ask(&self, headers: &HeaderMap, authority: &str, tls: bool, is_file: bool) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).into_iter();
        match (origins.next(), origins.next()) {
            (None, _) => {
                // A picture or a script of another site's page: no origin is told, but this is.
                let said = |name: &str, value: &str| {
                    headers.get(name).is_some_and(|found| found.as_bytes() == value.as_bytes())
                };
                is_file || self.all || !said("sec-fetch-site", "cross-site") || said("sec-fetch-mode", "navigate")
            }
            (Some(origin), None) => {
                let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else { return false };
                let own = |scheme: &str| origin == format!("{scheme}://{}", authority.to_ascii_lowercase());
                // A page of our own, also where TLS ends before us.
                self.all || own("https") || (!tls && own("http")) || self.listed.contains(&origin)
            }
            _ => false,
        }
    }

    /// Says to the browser that the page may read the answer. Only for origins that [`Origins::may_ask`] let pass.
    pub(super) fn allow(&self, headers: &mut HeaderMap, origin: &HeaderValue) {
        let known = origin.to_str().is_ok_and(|origin| self.listed.contains(&origin.to_ascii_lowercase()));
        if self.all {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        } else if known {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        } else {
            return;
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }

    /// The answer to `OPTIONS`, before [`Origins::allow`].
    pub(super) fn preflight(asked: &HeaderMap) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS");
        answer.headers_mut().insert(header::ALLOW, methods.clone());
        if asked.contains_key(header::ORIGIN) {
            let headers = answer.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
            if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
            }
            // Chrome asks before a public page reaches a private address.
            if asked.contains_key("access-control-request-private-network") {
                headers.insert("access-control-allow-private-network", HeaderValue::from_static("true"));
            }
        }
        answer
    }
}

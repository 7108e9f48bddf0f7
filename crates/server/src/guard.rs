//! What every request passes before a handler sees it: where it is meant for, who may ask from where, how much comes in.
//!
//! In this order: one host and a sane path, or 400; the path on its canonical mount ([`reroute`]); a host name of ours (DNS
//! rebinding); an origin that may ask (pages of others); a key; limits of the key and of bodies. What is refused is refused in the
//! words of the dialect whose path it is. Every answer has the request's name, and a handler that panics answers 500.

mod body;
mod origin;
mod room;
mod route;

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, uri::PathAndQuery},
    response::Response,
};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError};
use serde_json::json;
use tower::ServiceExt;
use tracing::Instrument;

use self::{
    body::{Bounded, Holding},
    origin::Origins,
};
pub use self::{
    room::{Room, Seat, Taken},
    route::{dialect, reroute},
};
use crate::{
    auth::{Admitted, Auth, Caller, Scope, Use},
    config::Config,
    dialect::{Answer, fal, native, openai, replicate, sdapi},
    error::{Fault, Rule},
    http,
    job::Dialect,
    metrics::Metrics,
};

/// The name of a request, in logs, answers and errors: an extension of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

/// What begins every URL in the answer to this request, without a slash at its end: an extension of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(pub Arc<str>);

/// The rules. Cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Rules>);

struct Rules {
    config: Arc<Config>,
    origins: Origins,
    hosts: Vec<String>,
    auth: Auth,
    metrics: Metrics,
    room: Room,
}

/// The longest path with its query.
const LONGEST_PATH: usize = 16 * 1024;

/// The longest body where nobody reads one.
const UNREAD: u64 = 64 * 1024;

/// Hosts of the vendors beside fal's, for programs that were brought here by DNS and a certificate.
const VENDORS: [&str; 2] = ["api.openai.com", "api.replicate.com"];

impl Guard {
    /// Rules as configured.
    pub fn new(config: Arc<Config>, auth: Auth, metrics: Metrics) -> Self {
        let public = config.public_url.as_deref().and_then(|url| url::Url::parse(url).ok());
        let public_host = public.as_ref().and_then(|url| url.host_str().map(str::to_owned));
        let own = config.allowed_hosts.iter().map(|host| host_of(host).to_ascii_lowercase());
        let vendors = fal::HOSTS.iter().map(|(host, _)| *host).chain(VENDORS).map(str::to_owned);
        let hosts = own.chain(public_host).chain(vendors).collect();
        let origins = Origins::new(&config.cors_origins, public.as_ref());
        let room = Room::new(config.limits.bodies);
        Self(Arc::new(Rules { config, origins, hosts, auth, metrics, room }))
    }

    /// What bodies are counted against, for what comes in by other ways.
    pub fn room(&self) -> Room {
        self.0.room.clone()
    }

    /// `inner` behind the rules. `tls`: whether this one listens with TLS.
    pub fn around(&self, inner: Router, tls: bool) -> Router {
        // Bodies are limited here, by configuration.
        let inner = inner.layer(DefaultBodyLimit::disable());
        let this = self.clone();
        Router::new().fallback(move |request: Request| {
            let (this, inner) = (this.clone(), inner.clone());
            async move { this.pass(inner, request, tls).await }
        })
    }

    async fn pass(self, inner: Router, request: Request, tls: bool) -> Response {
        let began = Instant::now();
        let running = self.0.metrics.request_began();
        let id = RequestId(format!("req_{}", &crate::job::JobId::from_random(http::random())).into());
        // Chunked bodies are how two servers are made to disagree where a request ends: nothing follows them on a connection.
        let last = request.version() < Version::HTTP_2 && request.headers().contains_key(header::TRANSFER_ENCODING);
        let origin = request.headers().get(header::ORIGIN).cloned();

        let (dialect, mut answer) = match self.admit(request, &id, tls) {
            Ok(passed) => (passed.dialect, self.answered(inner, passed, &id).await),
            Err(refused) => {
                let Refused { dialect, by, answer } = *refused;
                if let Some(by) = by {
                    self.0.metrics.refused(by);
                    tracing::info!(id = &*id.0, by, status = answer.status().as_u16(), "refused");
                }
                (dialect, answer)
            }
        };
        self.dress(answer.headers_mut(), dialect, &id, origin.as_ref());
        if last {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.0.metrics.request_answered(dialect.name(), answer.status().as_u16(), began.elapsed().as_secs_f64());
        drop(running);
        answer
    }

    /// What the handler of a request says, or why its body did not reach one.
    async fn answered(&self, inner: Router, passed: Passed, id: &RequestId) -> Response {
        let Passed { request, dialect, admitted, room, limit } = passed;
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let span = tracing::info_span!("request", id = &*id.0, %method, dialect = dialect.name());
        let request = read(request, room, limit).await;
        let answer = async { Ok(inner.oneshot(request?).await) };
        let answer = AssertUnwindSafe(answer).catch_unwind().instrument(span.clone()).await;
        let answer = match answer {
            Ok(Ok(Ok(answer))) => answer,
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(fault)) => {
                self.0.metrics.refused("body");
                refusal(dialect, &fault)
            }
            Err(_) => {
                span.in_scope(|| tracing::error!("a handler panicked"));
                refusal(dialect, &Fault::Failed("the server failed; its log says more".into()))
            }
        };
        let status = answer.status().as_u16();
        // Polling is most of all requests, and says nothing.
        if method == Method::GET && status < 400 {
            span.in_scope(|| tracing::debug!(status, path = shown(&path), "answered"));
        } else {
            span.in_scope(|| tracing::info!(status, path = shown(&path), "answered"));
        }
        // What the key was admitted for lasts until the answer's last byte.
        answer.map(|body| Holding::body(body, admitted))
    }

    /// What every answer says.
    fn dress(&self, headers: &mut HeaderMap, dialect: Dialect, id: &RequestId, origin: Option<&HeaderValue>) {
        if let Ok(name) = HeaderValue::from_str(&id.0) {
            headers.entry(HeaderName::from_static("x-request-id")).or_insert(name.clone());
            if dialect == Dialect::Fal {
                headers.entry(HeaderName::from_static("x-fal-request-id")).or_insert(name);
            }
        }
        headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
        if let Some(origin) = origin {
            self.0.origins.allow(headers, origin);
        }
    }

    /// All rules but those that only reading the body can tell.
    fn admit(&self, mut request: Request, id: &RequestId, tls: bool) -> Result<Passed, Box<Refused>> {
        let refuse =
            |dialect, by, fault: &Fault| Box::new(Refused { dialect, by: Some(by), answer: refusal(dialect, fault) });
        let bad = |by, message: &str| {
            let body = json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}, "detail": message});
            Box::new(Refused { dialect: Dialect::Native, by: Some(by), answer: http::respond(&Answer::new(400, body)) })
        };
        let Some(authority) = authority(&request) else {
            return Err(bad("host", "a request has to name one host"));
        };
        let host = host_of(&authority).to_ascii_lowercase();
        let uri = request.uri();
        let path = match route::sane(uri.path()) {
            Some(path) if uri.path_and_query().is_none_or(|all| all.as_str().len() <= LONGEST_PATH) => path,
            _ => return Err(bad("path", "the path is not one that this server could have")),
        };
        let path = reroute(&host, &path).unwrap_or(path);
        let dialect = dialect(&path);
        let method = request.method().clone();
        if matches!(method, Method::CONNECT | Method::TRACE) {
            return Err(bad("method", "this method is not served"));
        }
        if !self.knows(&host) {
            let message = "this server does not know the host name it was asked by; \
                hint: --public-url with that name, or allowed_hosts in its configuration";
            return Err(refuse(dialect, "host", &Fault::Forbidden(message.into())));
        }
        if !self.0.origins.may_ask(request.headers(), &authority, tls, path.starts_with("/files/")) {
            let message = "pages of this origin may not ask this server; hint: cors_origins in its configuration";
            return Err(refuse(dialect, "origin", &Fault::Forbidden(message.into())));
        }
        if method == Method::OPTIONS {
            let answer = Origins::preflight(request.headers());
            return Err(Box::new(Refused { dialect, by: None, answer }));
        }
        let caller = self.caller(&method, &path, request.uri().query(), request.headers());
        let caller = caller.map_err(|fault| refuse(dialect, "key", &fault))?;
        // An upload counted when its URL was asked for.
        let makes = method == Method::POST && route::upload_ticket(&path).is_none();
        let admitted = if makes { Some(self.0.auth.admit(&caller)) } else { None };
        let admitted = admitted.transpose().map_err(|fault| refuse(dialect, "limits", &fault))?;

        let reads = route::reads(&method);
        let limit = if reads { UNREAD } else { self.limit(&path).0 };
        let length = match request.headers().get(header::CONTENT_LENGTH) {
            Some(length) => length.to_str().ok().and_then(|text| text.parse::<u64>().ok()),
            None if reads => Some(0),
            None => None,
        };
        if length.is_some_and(|length| length > limit) {
            return Err(refuse(dialect, "size", &too_large(limit)));
        }
        let room = self.0.room.take(length.unwrap_or(limit)).map_err(|fault| refuse(dialect, "bodies", &fault))?;

        let public = self.public_url(&request, &authority, tls);
        let rest = request.uri().query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        let Ok(rest) = PathAndQuery::try_from(rest) else {
            return Err(bad("path", "the path is not one that this server could have"));
        };
        *request.uri_mut() = Uri::from(rest);
        request.extensions_mut().insert(id.clone());
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(public);
        let silence = self.0.config.limits.silence;
        let request = request.map(|body| Body::new(Bounded::new(body, limit, silence)));
        Ok(Passed { request, dialect, admitted, room, limit })
    }

    fn knows(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let bare = bare.strip_suffix('.').unwrap_or(bare);
        bare.parse::<std::net::IpAddr>().is_ok()
            || bare == "localhost"
            || bare.ends_with(".localhost")
            || self.0.hosts.iter().any(|known| known == bare)
    }

    /// Who asks, where somebody has to.
    fn caller(&self, method: &Method, path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Caller, Fault> {
        let auth = &self.0.auth;
        if route::is_open(method, path) {
            return Ok(Caller::anyone());
        }
        if let Some(ticket) = route::upload_ticket(path) {
            let token = ticket.split_once('~').map_or(&*ticket, |(token, _)| token);
            return auth.redeem(token, Use::Upload).ok_or(Fault::Unauthenticated);
        }
        if !auth.has_keys() {
            return Ok(Caller::anyone());
        }
        if path.starts_with("/fal/cdn/")
            && let Some(caller) = auth.caller_by_token(headers, Use::Upload)
        {
            return Ok(caller);
        }
        if let Some(token) = route::realtime_token(path, query) {
            return auth.redeem(&token, Use::Realtime).ok_or(Fault::Unauthenticated);
        }
        let caller = auth.caller(headers)?;
        let needed = match *method {
            _ if path.starts_with("/api/v1/admin/") => Scope::Admin,
            Method::GET | Method::HEAD => Scope::Read,
            _ => Scope::Generate,
        };
        caller.may(needed)?;
        Ok(caller)
    }

    fn limit(&self, path: &str) -> crate::config::Size {
        let limits = &self.0.config.limits;
        let uploads = ["/fal/cdn/", "/fal/rest/storage/", "/v1/files", "/v1/images/edits", "/v1/images/variations"];
        if uploads.iter().any(|upload| path.starts_with(upload)) { limits.upload } else { limits.body }
    }

    fn public_url(&self, request: &Request, authority: &str, tls: bool) -> PublicUrl {
        let config = &self.0.config;
        if let Some(url) = &config.public_url {
            return PublicUrl(url.trim_end_matches('/').into());
        }
        let forwarded = |name: &str| {
            let value = request.headers().get(name).filter(|_| config.trust_proxy)?.to_str().ok()?;
            Some(value.split(',').next().unwrap_or("").trim().to_owned())
        };
        let scheme = forwarded("x-forwarded-proto").filter(|scheme| scheme == "http" || scheme == "https");
        let scheme = scheme.unwrap_or_else(|| if tls { "https" } else { "http" }.into());
        let host = forwarded("x-forwarded-host").filter(|host| self.knows(&host_of(host).to_ascii_lowercase()));
        PublicUrl(format!("{scheme}://{}", host.as_deref().unwrap_or(authority)).into())
    }
}

struct Passed {
    request: Request,
    dialect: Dialect,
    admitted: Option<Admitted>,
    room: Taken,
    /// Bytes of the body, at most.
    limit: u64,
}

/// Reads the body, so that one that is too long, too slow or broken off is refused in the dialect's words, whoever would have read
/// it. Its room is free again when the handler has it: what becomes a job is counted with jobs.
async fn read(request: Request, mut room: Taken, limit: u64) -> Result<Request, Fault> {
    if route::reads(request.method()) {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| unread(&*error.into_inner(), limit))?.to_bytes();
    room.shrink(body.len());
    Ok(Request::from_parts(parts, Holding::body(Body::from(body), room)))
}

/// Why a body was not read to its end.
fn unread(error: &(dyn std::error::Error + 'static), limit: u64) -> Fault {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return too_large(limit);
        }
        if error.is::<body::Silent>() {
            return Fault::invalid("body", Rule::Body, "did not come to its end in time");
        }
        cause = error.source();
    }
    Fault::invalid("body", Rule::Body, "was broken off")
}

fn too_large(limit: u64) -> Fault {
    Fault::TooLarge(format!("the body is larger than this server takes: {limit} bytes"))
}

struct Refused {
    dialect: Dialect,
    /// Which rule; none for what is only answered here.
    by: Option<&'static str>,
    answer: Response,
}

/// The one host that a request names, with its port: in its first line, its header, or the same in both.
fn authority(request: &Request) -> Option<String> {
    let mut headers = request.headers().get_all(header::HOST).into_iter();
    let (header, second) = (headers.next(), headers.next());
    if second.is_some() {
        return None;
    }
    let header = header.map(|value| value.to_str().map(str::to_owned)).transpose().ok()?;
    let line = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let authority = match (header, line) {
        (Some(header), Some(line)) if header.eq_ignore_ascii_case(&line) => header,
        (Some(one), None) | (None, Some(one)) => one,
        _ => return None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let good = !authority.is_empty() && authority.len() <= 300 && authority.chars().all(plain);
    good.then_some(authority)
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // `[::1]` has colons of its own.
        Some((host, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.is_empty() && !port.contains(']') =>
        {
            host
        }
        _ => authority,
    }
}

/// What the log has of a path: nothing that works as a key, and no name of a file, which is half of its URL.
fn shown(path: &str) -> &str {
    const SECRETS: [(&str, &str); 4] = [
        ("/files/", "/files/…"),
        ("/v1/files/", "/v1/files/…"),
        ("/fal/cdn/", "/fal/cdn/…"),
        ("/api/v1/admin/held/", "/api/v1/admin/held/…"),
    ];
    SECRETS.iter().find(|(beginning, _)| path.starts_with(beginning)).map_or(path, |(_, shown)| shown)
}

/// An answer in the dialect's own words.
pub fn refusal(dialect: Dialect, fault: &Fault) -> Response {
    let answer = match dialect {
        Dialect::OpenAi => openai::error(fault),
        Dialect::Fal => fal::fault(fault),
        Dialect::Replicate => replicate::fault(fault),
        Dialect::Sdapi => sdapi::error(fault),
        Dialect::Native => native::error(fault),
    };
    let mut response = http::respond(&answer);
    // Browsers and clients ask for the key then.
    if response.status() == StatusCode::UNAUTHORIZED {
        let scheme = if dialect == Dialect::Sdapi { "Basic realm=\"darkroom\"" } else { "Bearer" };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}

/// How long a connection may take to say what it wants.
pub const HEADER_TIME: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;

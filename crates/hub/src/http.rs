//! One request, its redirects and its failures. The token goes to the hub alone and never over plain HTTP; other hosts, to which
//! the hub sends us for the bytes, get an address that says all. What may succeed a second later is tried again.

use std::{
    cell::Cell,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, Uri},
    tls::{Certificate, RootCerts, TlsConfig},
};

use crate::{
    error::{Error, Result},
    names::shown,
    settings::{Patience, Settings, Token},
    watch::{Event, Watch, tell},
};

/// Redirects of one request.
const REDIRECTS: u32 = 8;

/// The longest answer that is not a file, bytes.
const LONGEST_ANSWER: u64 = 32 << 20;

/// Nobody knows the host.
const NO_NAME: &str = "no address is known for this name; hint: is the network up? is HF_ENDPOINT right? behind a proxy, set \
                       HTTPS_PROXY";

/// A failure that is final, or one that may pass.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It will fail again.
    Final(Error),
    /// It may succeed, after a wait that the other side asked for.
    Passing { error: Error, after: Option<Duration> },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Final(error) | Failure::Passing { error, .. } => error,
        }
    }
}

/// How a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    /// Headers alone. A redirect to another host is the answer: the hub says there all that is to be known.
    Head,
}

/// An answer: its status, the headers of all hosts on the way (the hub's count), and what is to be read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Who answered.
    pub(crate) host: String,
}

impl Answer {
    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole answer, if it is not endless.
    pub(crate) fn text(&mut self) -> Result<String, Failure> {
        let host = self.host.clone();
        self.body
            .with_config()
            .limit(LONGEST_ANSWER)
            .lossy_utf8(true)
            .read_to_string()
            .map_err(|e| failure(&host, e, true))
    }
}

/// The hub and those to whom it sends us.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<Token>,
    patience: Patience,
    /// Whether anybody answered so far: before that, a refused connection is a wrong address rather than an accident.
    reached: Cell<bool>,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        if settings.offline {
            let problem = "HF_HUB_OFFLINE is set, so nothing is asked of the hub; hint: unset it, or use 'darkroom bundle import'";
            return Err(Error::Offline(problem.into()));
        }
        let endpoint: Uri = settings
            .endpoint
            .parse()
            .map_err(|e| Error::asked("HF_ENDPOINT", format!("'{}' is not a valid address: {e}", settings.endpoint)))?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("darkroom/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(settings.patience.silence))
            .timeout_connect(Some(settings.patience.silence))
            .timeout_recv_response(Some(2 * settings.patience.silence))
            .timeout_per_read(Some(settings.patience.silence))
            .timeout_per_write(Some(settings.patience.silence))
            .proxy(None);
        if !is_loopback(&endpoint) {
            config = config.proxy(settings.proxy.as_ref().map(|proxy| proxy.0.clone()));
        }
        config = config.tls_config(tls(endpoint.scheme_str() == Some("https"))?);
        let token = settings.token.clone().filter(|_| endpoint.scheme_str() == Some("https") || is_loopback(&endpoint));
        let patience = settings.patience;
        Ok(Self { agent: config.build().new_agent(), endpoint, token, patience, reached: Cell::new(false) })
    }

    /// The token that is sent: none over plain HTTP to another machine.
    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Does it again while it fails in a way that may pass. `work` says by `true` that it got further than before.
    pub(crate) fn patiently<T>(
        &self,
        watch: &mut Watch<'_>,
        mut work: impl FnMut(&mut Watch<'_>, &mut bool) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let mut progress = false;
            let (error, after) = match work(watch, &mut progress) {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, after }) => (error, after),
            };
            failures = if progress { 1 } else { failures + 1 };
            let limit = if self.reached.get() { self.patience.attempts } else { 2 };
            if failures >= limit {
                return Err(tried(error, failures, self.reached.get()));
            }
            let wait = after.unwrap_or(self.patience.first_wait * 2_u32.pow((failures - 1).min(5)));
            if wait > self.patience.longest_wait {
                return Err(tried(error, failures, self.reached.get()));
            }
            tell(watch, Event::Waiting { seconds: wait.as_secs_f64(), why: &error.to_string() })?;
            let mut left = wait;
            while !left.is_zero() {
                let nap = left.min(Duration::from_millis(200));
                std::thread::sleep(nap);
                left -= nap;
                tell(watch, Event::StillWaiting)?;
            }
        }
    }

    /// One request with its redirects; statuses from 400 on are answers, too, but for those that pass.
    pub(crate) fn ask(&self, method: Method, address: &str, from: Option<u64>) -> Result<Answer, Failure> {
        let mut address = address.to_owned();
        let mut seen = HeaderMap::new();
        for _ in 0..=REDIRECTS {
            let uri: Uri = address
                .parse()
                .map_err(|e| odd(&self.host(), format!("leads to an address that is not valid: {e}")))?;
            let at_hub = same_place(&uri, &self.endpoint);
            let response = self.send(method, &uri, from, at_hub)?;
            self.reached.set(true);
            let (parts, body) = response.into_parts();
            let status = parts.status.as_u16();
            for (name, value) in &parts.headers {
                // The hub's own words about a file stand on its answer, not on that of whoever keeps the bytes.
                let of_hub = ["x-repo-commit", "x-linked-etag", "x-linked-size"].contains(&name.as_str());
                if !of_hub || (at_hub && !seen.contains_key(name)) {
                    seen.insert(name.clone(), value.clone());
                }
            }
            let host = uri.host().unwrap_or("?").to_owned();
            let location = parts.headers.get("location").and_then(|l| l.to_str().ok());
            match (status, location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    let next = joined(&uri, location)
                        .ok_or_else(|| odd(&host, "redirects to an address that is not valid".into()))?;
                    let to: Uri = next
                        .parse()
                        .map_err(|e| odd(&host, format!("redirects to an address that is not valid: {e}")))?;
                    if uri.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
                        let problem = format!("redirects from https to '{}'; that is refused", shown(&next));
                        return Err(odd(&host, problem).into());
                    }
                    if method == Method::Head
                        && at_hub
                        && !same_place(&to, &self.endpoint)
                        && seen.contains_key("x-linked-etag")
                    {
                        return Ok(Answer { status: 200, headers: seen, body, host });
                    }
                    for name in ["location", "etag", "content-length"] {
                        seen.remove(name);
                    }
                    address = next;
                }
                (429 | 500 | 502 | 503 | 504, _) => {
                    let after = parts.headers.get("retry-after").and_then(|v| v.to_str().ok()).and_then(retry_after);
                    return Err(Failure::Passing { error: unwilling(&host, status, after), after });
                }
                _ => return Ok(Answer { status, headers: seen, body, host }),
            }
        }
        Err(odd(&self.host(), format!("redirects more than {REDIRECTS} times")).into())
    }

    fn send(&self, method: Method, uri: &Uri, from: Option<u64>, at_hub: bool) -> Result<Response<Body>, Failure> {
        let mut request = match method {
            Method::Get => self.agent.get(uri),
            Method::Head => self.agent.head(uri),
        };
        // The length must be the file's, not that of a compressed copy.
        request = request.header("accept-encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| at_hub) {
            request = request.header("authorization", token.header());
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| failure(uri.host().unwrap_or("?"), e, self.reached.get()))
    }

    /// Whom we talk to first.
    pub(crate) fn host(&self) -> String {
        self.endpoint.host().unwrap_or("?").to_owned()
    }
}

fn tried(error: Error, times: u32, reached: bool) -> Error {
    match error {
        Error::Network { host, problem } if times > 1 => {
            let kept = if reached { "; what was downloaded is kept, the same command goes on from there" } else { "" };
            Error::Network { host, problem: format!("{problem} (tried {times} times){kept}") }
        }
        other => other,
    }
}

/// Certificates that this system trusts, and ring's cryptography. A hub over plain HTTP may still send us to others.
fn tls(needed: bool) -> Result<TlsConfig> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() && needed {
        let problem = "this system has no certificates, so nobody on the other side can be trusted; hint: install the package \
                       'ca-certificates', or set SSL_CERT_FILE";
        return Err(Error::Network { host: "TLS".into(), problem: problem.into() });
    }
    let roots: Vec<Certificate<'static>> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Scheme, host and port.
fn same_place(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            _ => Some(80),
        })
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Where a `Location` leads; `None` for anything but HTTP.
fn joined(from: &Uri, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let is_other_scheme = location.split(['/', '?', '#']).next().is_some_and(|start| start.contains(':'));
    if is_other_scheme {
        return None;
    }
    let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(match location.strip_prefix('/') {
        Some(path) => format!("{scheme}://{authority}/{path}"),
        None => format!("{scheme}://{authority}{folder}/{location}"),
    })
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn unwilling(host: &str, status: u16, after: Option<Duration>) -> Error {
    let after = after.map(|after| format!(", and wants us to wait {} s", after.as_secs())).unwrap_or_default();
    let problem = match status {
        429 => {
            format!("has had too many requests from this address or token (429){after}; hint: a token raises the limit")
        }
        _ => format!("is in trouble ({status}){after}"),
    };
    Error::Network { host: host.to_owned(), problem }
}

/// The other side does something that no hub does.
pub(crate) fn odd(host: &str, problem: String) -> Error {
    Error::Network { host: host.to_owned(), problem }
}

/// What a failure of the network is, in words, and whether it may pass.
pub(crate) fn failure(host: &str, error: ureq::Error, reached: bool) -> Failure {
    let network = |problem: String| Error::Network { host: host.to_owned(), problem };
    let passing = |problem: &str| Failure::Passing { error: network(problem.to_owned()), after: None };
    match error {
        ureq::Error::HostNotFound if !reached => network(NO_NAME.into()).into(),
        ureq::Error::HostNotFound => passing("no address is known for this name"),
        ureq::Error::Timeout(_) => passing("did not answer in time"),
        ureq::Error::Rustls(error) => network(tls_problem(&error.to_string())).into(),
        ureq::Error::Tls(problem) => network(tls_problem(problem)).into(),
        ureq::Error::ConnectProxyFailed(problem) => {
            network(format!("the proxy does not let us through: {}; hint: HTTPS_PROXY, NO_PROXY", shown(&problem)))
                .into()
        }
        ureq::Error::InvalidProxyUrl => network("the proxy's address is wrong; hint: HTTPS_PROXY".into()).into(),
        // The standard library tells it in words alone.
        ureq::Error::Io(error) if !reached && error.to_string().contains("lookup address") => {
            network(NO_NAME.into()).into()
        }
        ureq::Error::Io(error) => io_failure(host, &error),
        ureq::Error::BodyExceedsLimit(limit) => network(format!("answers with more than {limit} bytes")).into(),
        other => passing(&format!("broke off: {}", shown(&other.to_string()))),
    }
}

/// The same for a failed read.
pub(crate) fn io_failure(host: &str, error: &io::Error) -> Failure {
    let passing = |problem: &str| {
        let error = Error::Network { host: host.to_owned(), problem: problem.to_owned() };
        Failure::Passing { error, after: None }
    };
    // Certificates are checked while bytes are read: their refusal comes as a failed read.
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Error::Network { host: host.to_owned(), problem: tls_problem(&error.to_string()) }.into();
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            passing("refuses the connection; hint: are HF_ENDPOINT and HTTPS_PROXY right?")
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => passing("did not answer in time"),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            passing("cannot be reached; hint: is the network up?")
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => passing("broke the connection off"),
        _ => passing(&format!("broke off: {}", shown(&error.to_string()))),
    }
}

fn tls_problem(problem: &str) -> String {
    let plain = problem.to_lowercase();
    let says = |words: &str| plain.contains(words);
    let hint = if says("unknownissuer") {
        "the certificate is signed by somebody whom this system does not trust; hint: behind a company's proxy, add its certificate \
         to the system's, or set SSL_CERT_FILE"
    } else if says("expired") || says("notvalidyet") || says("not valid yet") {
        "the certificate is not valid now; hint: is this machine's clock right?"
    } else if says("notvalidforname") || says("not valid for name") {
        "the certificate is for another name; hint: is HF_ENDPOINT right?"
    } else if says("certificate") {
        "the certificate cannot be used; hint: is HF_ENDPOINT right? does somebody listen in between?"
    } else {
        "no safe connection; hint: is it https that is spoken there?"
    };
    format!("{hint} ({})", shown(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_as_browsers_do() {
        let from: Uri = "https://hub.org:8443/a/resolve/main/x".parse().unwrap();
        let to = |location: &str| joined(&from, location);
        assert_eq!(to("https://cdn.org/y?z=1").unwrap(), "https://cdn.org/y?z=1");
        assert_eq!(to("/api/y").unwrap(), "https://hub.org:8443/api/y");
        assert_eq!(to("y").unwrap(), "https://hub.org:8443/a/resolve/main/y");
        assert_eq!(to("//cdn.org/y").unwrap(), "https://cdn.org/y");
        assert_eq!((to("file:///etc/passwd"), to("ftp://x")), (None, None));
    }

    #[test]
    fn the_hub_is_a_scheme_a_host_and_a_port() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let hub = uri("https://hub.org");
        assert!(same_place(&hub, &uri("https://HUB.org:443/x")));
        for other in ["http://hub.org", "https://hub.org:444", "https://hub.org.evil.com", "https://cdn.hub.org"] {
            assert!(!same_place(&hub, &uri(other)), "{other}");
        }
        assert!(is_loopback(&uri("http://127.0.0.1:1")) && is_loopback(&uri("http://[::1]:1")) && !is_loopback(&hub));
    }

    #[test]
    fn certificates_that_are_refused_are_explained() {
        let told = |error: rustls::CertificateError| tls_problem(&rustls::Error::InvalidCertificate(error).to_string());
        assert!(told(rustls::CertificateError::UnknownIssuer).contains("SSL_CERT_FILE"));
        assert!(told(rustls::CertificateError::Expired).contains("clock"));
        assert!(told(rustls::CertificateError::NotValidYet).contains("clock"));
        assert!(told(rustls::CertificateError::NotValidForName).contains("another name"));
        assert!(told(rustls::CertificateError::BadEncoding).contains("cannot be used"));
        assert!(tls_problem("received corrupt message").contains("is it https"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }
}

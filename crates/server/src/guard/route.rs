//! Paths: all mounts onto the canonical ones, whose words a path is answered in, what needs no key.

use axum::http::Method;
use percent_encoding::percent_decode_str;

use crate::{dialect::fal::HOSTS, job::Dialect};

/// A path without double and trailing slashes; `None` for one that tries to climb, or that no client would send. What is
/// percent-encoded stays so: `%2F` is a part of a model's name.
pub(super) fn sane(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\\') {
        return None;
    }
    let mut sane = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let decoded = percent_decode_str(part).decode_utf8().ok()?;
        let climbs = decoded.split(['/', '\\']).any(|step| matches!(step, "." | ".."));
        if climbs || decoded.chars().any(char::is_control) {
            return None;
        }
        sane.push('/');
        sane.push_str(part);
    }
    Some(if sane.is_empty() { "/".into() } else { sane })
}

/// Mounts of the canonical paths; what is on one of them is left as it is.
const CANONICAL: [&str; 5] = ["/fal/", "/sdapi/", "/api/v1/", "/replicate/", "/openai/"];

/// Where a path leads, if not where it says: by the host that was asked (`fal.run` and its relatives) and by the other mounts of
/// each API. `host` is lower case and has no port; `path` has neither double nor trailing slashes.
pub fn reroute(host: &str, path: &str) -> Option<String> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let begins = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    if CANONICAL.iter().all(|mount| !path.starts_with(mount)) && !is_file(path) {
        let known = HOSTS.iter().find(|(known, _)| *known == host).map(|(_, mount)| *mount);
        if let Some(mount) = known.or_else(|| host.starts_with("queue.").then_some("/fal/queue")) {
            return Some(if path == "/" { mount.into() } else { format!("{mount}{path}") });
        }
    }
    if let Some(rest) = begins("/openai/v1").or_else(|| begins("/replicate/v1")).or_else(|| begins("/v1/v1")) {
        // Clients that want a base with `/v1` and those that want one without are told apart by nobody.
        let rest = rest.strip_prefix("/v1").filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(rest);
        return Some(format!("/v1{rest}"));
    }
    match path {
        "/.well-known/jwks.json" => return Some("/fal/rest/.well-known/jwks.json".into()),
        "/api/fal/proxy" => return Some("/fal/proxy".into()),
        "/health" => return Some("/healthz".into()),
        _ => {}
    }
    begins("/fal-ai").map(|_| format!("/fal/run{path}"))
}

/// `/files/` with a token: our own, whatever the host.
fn is_file(path: &str) -> bool {
    let token = path.strip_prefix("/files/").and_then(|rest| rest.split('/').next());
    token.is_some_and(|token| token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// In whose words a canonical path is answered.
pub fn dialect(path: &str) -> Dialect {
    let begins = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let replicate = [
        "/v1/predictions",
        "/v1/deployments",
        "/v1/files",
        "/v1/account",
        "/v1/hardware",
        "/v1/webhooks",
        "/v1/collections",
        "/v1/trainings",
        "/v1/search",
    ];
    if begins("/fal") || upload_ticket(path).is_some() {
        Dialect::Fal
    } else if begins("/sdapi") {
        Dialect::Sdapi
    } else if replicate.iter().any(|prefix| begins(prefix)) || path.matches('/').count() > 3 && begins("/v1/models") {
        Dialect::Replicate
    } else if begins("/v1") {
        Dialect::OpenAi
    } else {
        Dialect::Native
    }
}

/// What is read without a key: it carries its secret in the URL, or has none.
pub(super) fn is_open(method: &Method, path: &str) -> bool {
    reads(method)
        && (path.starts_with("/files/")
            || path.starts_with("/v1/files/stream-")
            || matches!(
                path,
                "/" | "/docs" | "/healthz" | "/readyz" | "/openapi.json" | "/fal/rest/.well-known/jwks.json"
            ))
}

/// Methods whose bodies nobody reads.
pub(super) fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// What stands in an upload's URL instead of a key: a token, and perhaps how long the file is to be kept (`http::fal::storage`).
pub(super) fn upload_ticket(path: &str) -> Option<String> {
    let mut parts = path.split('/').skip(1);
    let ticket = match (parts.next()?, parts.next()?, parts.next()?) {
        ("fal", "cdn", "put") => parts.next()?,
        ("files", _, _) if parts.next()? == "multipart" => parts.next()?,
        _ => return None,
    };
    Some(percent_decode_str(ticket).decode_utf8().ok()?.into_owned())
}

/// The token that stands in the URL of fal's web sockets and streams, which cannot have headers.
pub(super) fn realtime_token(path: &str, query: Option<&str>) -> Option<String> {
    let there = path.starts_with("/fal/run/") && (path.ends_with("/realtime") || path.ends_with("/stream"));
    let mut pairs = url::form_urlencoded::parse(query.filter(|_| there)?.as_bytes());
    pairs.find(|(name, _)| name == "fal_jwt_token").map(|(_, token)| token.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_leads_to_the_canonical_one() {
        for (host, path, leads) in [
            ("localhost", "/openai/v1/images/generations", "/v1/images/generations"),
            ("localhost", "/replicate/v1/predictions/x", "/v1/predictions/x"),
            ("localhost", "/replicate/v1/v1/predictions/x", "/v1/predictions/x"),
            ("localhost", "/v1/v1/models/a/b", "/v1/models/a/b"),
            ("localhost", "/openai/v1/models/a%2Fb", "/v1/models/a%2Fb"),
            ("localhost", "/fal-ai/flux/krea", "/fal/run/fal-ai/flux/krea"),
            ("localhost", "/.well-known/jwks.json", "/fal/rest/.well-known/jwks.json"),
            ("localhost", "/api/fal/proxy", "/fal/proxy"),
            ("localhost", "/health", "/healthz"),
            ("fal.run", "/fal-ai/flux/krea/stream", "/fal/run/fal-ai/flux/krea/stream"),
            ("falrun.com", "/fal-ai/flux/krea", "/fal/run/fal-ai/flux/krea"),
            ("queue.fal.run", "/fal-ai/flux/requests/1/status", "/fal/queue/fal-ai/flux/requests/1/status"),
            ("queue.localhost", "/fal-ai/flux/krea", "/fal/queue/fal-ai/flux/krea"),
            ("rest.fal.ai", "/storage/upload/initiate", "/fal/rest/storage/upload/initiate"),
            ("rest.alpha.fal.ai", "/.well-known/jwks.json", "/fal/rest/.well-known/jwks.json"),
            ("v3.fal.media", "/files/upload", "/fal/cdn/files/upload"),
            ("v3.fal.media.", "/files/upload", "/fal/cdn/files/upload"),
        ] {
            let led = reroute(host, path).unwrap();
            assert_eq!(led, leads, "{host} {path}");
            assert_eq!(reroute(host, &led), None, "and is at home there: {host} {led}");
        }
        let file = "/files/0123456789abcdef0123456789abcdef/0.png";
        for (host, path) in [
            ("localhost", "/v1/images/generations"),
            ("localhost", "/v1/models/a/v1"),
            ("localhost", "/fal-airport/x"),
            ("localhost", "/"),
            ("api.replicate.com", "/v1/predictions"),
            ("v3.fal.media", file),
            ("fal.run", file),
            ("fal.run", "/fal/run/fal-ai/flux"),
        ] {
            assert_eq!(reroute(host, path), None, "{host} {path}");
        }
    }

    #[test]
    fn a_path_does_not_climb() {
        assert_eq!(sane("//v1///images/generations/"), Some("/v1/images/generations".into()));
        assert_eq!(sane("/"), Some("/".into()));
        assert_eq!(sane("/v1/models/a%2Fb"), Some("/v1/models/a%2Fb".into()));
        for wrong in [
            "/files/../x",
            "/files/%2e%2e/x",
            "/files/%2E%2e%2fx",
            "/a\\b",
            "/a%5c..%5cb",
            "/a%00b",
            "/%ff",
            "*",
            "",
            "/a/./b",
            "/a%0d%0ab",
        ] {
            assert_eq!(sane(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_path_has_its_dialect() {
        for (path, whose) in [
            ("/v1/images/edits", Dialect::OpenAi),
            ("/v1/models", Dialect::OpenAi),
            ("/v1/models/a%2Fb", Dialect::OpenAi),
            ("/v1/models/a/b", Dialect::Replicate),
            ("/v1/models/a/b/predictions", Dialect::Replicate),
            ("/v1/predictions/x/cancel", Dialect::Replicate),
            ("/v1/filesystem", Dialect::OpenAi),
            ("/fal/queue/x", Dialect::Fal),
            ("/files/0/a.png", Dialect::Native),
            ("/files/0/a.png/multipart/drt_x/1", Dialect::Fal),
            ("/sdapi/v1/txt2img", Dialect::Sdapi),
            ("/api/v1/jobs", Dialect::Native),
            ("/", Dialect::Native),
        ] {
            assert_eq!(dialect(path), whose, "{path}");
        }
    }
}

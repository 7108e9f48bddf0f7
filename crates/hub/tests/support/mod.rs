//! A stand-in for the hub on loopback: two servers, the hub and the host that keeps the bytes, which speak the hub's protocol and
//! fail when they are told to. Headers and statuses are those that `huggingface_hub` 2.4 expects.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sha2::Digest;

/// A token with access to everything.
pub(crate) const MEMBER: &str = "hf_member";
/// A valid token whose owner has accepted nothing.
pub(crate) const OUTSIDER: &str = "hf_outsider";

/// A repository.
#[derive(Clone, Default)]
pub(crate) struct Repo {
    /// 40 digits.
    pub(crate) commit: String,
    /// Path, bytes, and whether it is a large file.
    pub(crate) files: Vec<(String, Vec<u8>, bool)>,
    /// Whether its terms have to be accepted.
    pub(crate) gated: bool,
    /// `cardData`.
    pub(crate) card: String,
}

/// What goes wrong.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    /// The next answers with a body of more than so many bytes break off there; one for each number.
    pub(crate) break_after: Vec<usize>,
    /// The next so many downloads have a wrong byte.
    pub(crate) corrupt: usize,
    /// The next requests to the hub are answered with these statuses and `Retry-After`s.
    pub(crate) statuses: Vec<(u16, Option<String>)>,
    /// Whether ranges are ignored.
    pub(crate) no_ranges: bool,
    /// Files in a page of a listing.
    pub(crate) page: Option<usize>,
    /// A path that the listing adds, whatever it leads to.
    pub(crate) listed: Option<String>,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `hub` or `cdn`.
    pub(crate) server: &'static str,
    /// `GET` or `HEAD`.
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// `Authorization`.
    pub(crate) authorization: Option<String>,
    /// `Range`.
    pub(crate) range: Option<String>,
}

/// Both servers.
pub(crate) struct StandIn {
    /// The hub's address.
    pub(crate) endpoint: String,
    /// Its repositories.
    pub(crate) repos: Arc<Mutex<HashMap<String, Repo>>>,
    /// What goes wrong.
    pub(crate) faults: Arc<Mutex<Faults>>,
    /// What came.
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

/// Hash of a large file.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// Git's name of a blob.
pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    use sha1::Digest as _;
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Bytes that do not repeat.
pub(crate) fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

impl StandIn {
    /// Starts both on free ports of loopback; they run until the test's process ends.
    pub(crate) fn start() -> Self {
        let (hub, cdn) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("http://127.0.0.1:{}", hub.local_addr().unwrap().port());
        let cdn_at = format!("http://127.0.0.1:{}", cdn.local_addr().unwrap().port());
        let this = Self { endpoint, repos: Arc::default(), faults: Arc::default(), seen: Arc::default() };
        for (server, listener) in [("hub", hub), ("cdn", cdn)] {
            let handler = Handler {
                server,
                endpoint: this.endpoint.clone(),
                cdn: cdn_at.clone(),
                repos: this.repos.clone(),
                faults: this.faults.clone(),
                seen: this.seen.clone(),
            };
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let handler = handler.clone();
                    thread::spawn(move || handler.serve(stream));
                }
            });
        }
        this
    }

    /// Publishes a repository.
    pub(crate) fn publish(&self, name: &str, gated: bool, card: &str, files: &[(&str, Vec<u8>, bool)]) -> String {
        let commit = git_sha1(format!("{name}{}", files.len()).as_bytes());
        let files = files.iter().map(|(path, bytes, large)| ((*path).to_owned(), bytes.clone(), *large)).collect();
        let repo = Repo { commit: commit.clone(), files, gated, card: card.to_owned() };
        self.repos.lock().unwrap().insert(name.to_owned(), repo);
        commit
    }

    /// What came to one of the servers, as `METHOD path`.
    pub(crate) fn asked(&self, server: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| s.server == server).map(|s| format!("{} {}", s.method, s.path)).collect()
    }
}

#[derive(Clone)]
struct Handler {
    server: &'static str,
    endpoint: String,
    cdn: String,
    repos: Arc<Mutex<HashMap<String, Repo>>>,
    faults: Arc<Mutex<Faults>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn json(status: u16, body: String) -> Self {
        Self { status, headers: vec![("Content-Type".into(), "application/json".into())], body: body.into_bytes() }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let mut reply = Self::json(status, format!("{{\"error\":\"{message}\"}}"));
        reply.headers.push(("X-Error-Code".into(), code.into()));
        reply.headers.push(("X-Error-Message".into(), message.into()));
        reply
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Handler {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            match line.trim().split_once(':') {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        let header = |name: &str| headers.get(name).cloned();
        let seen = Seen {
            server: self.server,
            method: method.clone(),
            path: path.clone(),
            authorization: header("authorization"),
            range: header("range"),
        };
        self.seen.lock().unwrap().push(seen);
        let reply = if self.server == "hub" {
            self.hub(&path, header("authorization").as_deref(), header("range").as_deref())
        } else {
            self.cdn(&path, header("range").as_deref())
        };
        self.send(stream, reply, method == "HEAD");
        Some(())
    }

    fn send(&self, mut stream: TcpStream, reply: Reply, head: bool) {
        let mut text =
            format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        let _ = stream.write_all((text + "\r\n").as_bytes());
        if head {
            return;
        }
        let mut body = reply.body;
        let faults = &mut *self.faults.lock().unwrap();
        let breaks = faults.break_after.first().copied().filter(|at| self.server == "cdn" && *at < body.len());
        if let Some(at) = breaks {
            faults.break_after.remove(0);
            body.truncate(at);
        }
        if self.server == "cdn" && faults.corrupt > 0 {
            faults.corrupt -= 1;
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        let _ = stream.write_all(&body);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Whatever the other side still says is heard, so that it reads the end and no reset.
        let _ = stream.read(&mut [0; 64]);
    }

    fn hub(&self, path: &str, authorization: Option<&str>, range: Option<&str>) -> Reply {
        let fault = {
            let faults = &mut *self.faults.lock().unwrap();
            if faults.statuses.is_empty() { None } else { Some(faults.statuses.remove(0)) }
        };
        if let Some((status, after)) = fault {
            let reply = Reply::json(status, "{}".into());
            return match after {
                Some(after) => reply.with("Retry-After", after),
                None => reply,
            };
        }
        let token = authorization.and_then(|a| a.strip_prefix("Bearer "));
        let known = token.is_none_or(|token| [MEMBER, OUTSIDER].contains(&token));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if path == "/api/whoami-v2" {
            return match (token, known) {
                (Some(_), true) => Reply::json(200, "{\"name\":\"somebody\"}".into()),
                _ => Reply::error(401, "", "Invalid credentials in Authorization header"),
            };
        }
        let parts: Vec<&str> = path.trim_start_matches('/').splitn(6, '/').collect();
        let repos = self.repos.lock().unwrap();
        let repo = |organisation: &str, name: &str| repos.get(&format!("{organisation}/{name}"));
        match parts.as_slice() {
            ["api", "models", organisation, name, rest @ ..] => {
                let Some(repo) = repo(organisation, name) else {
                    let status = if token.is_some() { 404 } else { 401 };
                    return Reply::error(status, "RepoNotFound", "Repository not found");
                };
                match rest {
                    [] => self.info(&format!("{organisation}/{name}"), repo),
                    ["revision", revision] if [repo.commit.as_str(), "main"].contains(revision) => {
                        self.info(&format!("{organisation}/{name}"), repo)
                    }
                    ["tree", revision] if [repo.commit.as_str(), "main"].contains(revision) => {
                        self.tree(path, query, repo)
                    }
                    _ => Reply::error(404, "RevisionNotFound", "Invalid rev id"),
                }
            }
            [organisation, name, "resolve", revision, file @ ..] => {
                let Some(repo) = repo(organisation, name) else {
                    return Reply::error(404, "RepoNotFound", "Repository not found");
                };
                if ![repo.commit.as_str(), "main"].contains(revision) {
                    return Reply::error(404, "RevisionNotFound", "Invalid rev id");
                }
                if repo.gated && token != Some(MEMBER) {
                    // As the hub does it: a wrong token is told as if there were none.
                    let status = if token == Some(OUTSIDER) { 403 } else { 401 };
                    return Reply::error(status, "GatedRepo", "Access to model is restricted.");
                }
                let file = file.join("/");
                let Some((_, bytes, large)) = repo.files.iter().find(|(path, ..)| *path == file) else {
                    return Reply::error(404, "EntryNotFound", "Entry not found");
                };
                if *large {
                    let sha = sha256(bytes);
                    return Reply { status: 302, headers: Vec::new(), body: Vec::new() }
                        .with("X-Repo-Commit", repo.commit.as_str())
                        .with("X-Linked-Etag", format!("\"{sha}\""))
                        .with("X-Linked-Size", bytes.len().to_string())
                        .with("Accept-Ranges", "bytes")
                        .with("Location", format!("{}/{sha}?sig=abc", self.cdn));
                }
                let etag = format!("\"{}\"", git_sha1(bytes));
                ranged(bytes, range).with("ETag", etag).with("X-Repo-Commit", repo.commit.as_str())
            }
            _ => Reply::error(404, "", "Not found"),
        }
    }

    fn info(&self, name: &str, repo: &Repo) -> Reply {
        let _ = self;
        let siblings: Vec<String> =
            repo.files.iter().map(|(path, ..)| format!("{{\"rfilename\":\"{path}\"}}")).collect();
        let gated = if repo.gated { "\"auto\"" } else { "false" };
        let card = if repo.card.is_empty() { "{}" } else { &repo.card };
        Reply::json(
            200,
            format!(
                "{{\"_id\":\"1\",\"id\":\"{name}\",\"modelId\":\"{name}\",\"sha\":\"{}\",\"private\":false,\"gated\":{gated},\
                 \"disabled\":false,\"tags\":[],\"downloads\":0,\"likes\":0,\"cardData\":{card},\"siblings\":[{}]}}",
                repo.commit,
                siblings.join(",")
            ),
        )
    }

    fn tree(&self, path: &str, query: &str, repo: &Repo) -> Reply {
        let faults = self.faults.lock().unwrap();
        let mut entries: Vec<String> =
            vec!["{\"type\":\"directory\",\"oid\":\"0\",\"size\":0,\"path\":\"vae\"}".into()];
        for (path, bytes, large) in &repo.files {
            let (oid, size) = (git_sha1(bytes), bytes.len());
            let lfs = if *large {
                format!(",\"lfs\":{{\"oid\":\"{}\",\"size\":{size},\"pointerSize\":134}}", sha256(bytes))
            } else {
                String::new()
            };
            entries.push(format!("{{\"type\":\"file\",\"oid\":\"{oid}\",\"size\":{size},\"path\":\"{path}\"{lfs}}}"));
        }
        if let Some(path) = &faults.listed {
            entries
                .push(format!("{{\"type\":\"file\",\"oid\":\"{}\",\"size\":1,\"path\":\"{path}\"}}", "0".repeat(40)));
        }
        let page = faults.page.unwrap_or(1000);
        let from: usize = query.split('&').find_map(|p| p.strip_prefix("cursor=")).map_or(0, |c| c.parse().unwrap());
        let shown: Vec<String> = entries.iter().skip(from).take(page).cloned().collect();
        let reply = Reply::json(200, format!("[{}]", shown.join(",")));
        if from + page < entries.len() {
            let next = format!("<{}{path}?recursive=true&cursor={}>; rel=\"next\"", self.endpoint, from + page);
            return reply.with("Link", next);
        }
        reply
    }

    fn cdn(&self, path: &str, range: Option<&str>) -> Reply {
        let sha = path.trim_start_matches('/').split('?').next().unwrap();
        let repos = self.repos.lock().unwrap();
        let mut files = repos.values().flat_map(|repo| &repo.files);
        let Some((_, bytes, _)) = files.find(|(_, bytes, _)| sha256(bytes) == sha) else {
            return Reply::json(404, String::new());
        };
        let no_ranges = self.faults.lock().unwrap().no_ranges;
        ranged(bytes, range.filter(|_| !no_ranges)).with("ETag", "\"something-else\"")
    }
}

fn ranged(bytes: &[u8], range: Option<&str>) -> Reply {
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
    match start {
        None => Reply { status: 200, headers: Vec::new(), body: bytes.to_vec() },
        Some(start) if start >= bytes.len() => Reply { status: 416, headers: Vec::new(), body: Vec::new() }
            .with("Content-Range", format!("bytes */{}", bytes.len())),
        Some(start) => Reply { status: 206, headers: Vec::new(), body: bytes[start..].to_vec() }
            .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
    }
}

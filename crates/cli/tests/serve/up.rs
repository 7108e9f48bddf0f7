//! A server of the test's own, and HTTP by hand, so that what goes over the wire is what the test says.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

/// How long the server may take for anything.
const PATIENCE: Duration = Duration::from_mins(2);

/// A server with the model in the box.
pub(crate) struct Up {
    pub(crate) child: Child,
    pub(crate) at: SocketAddr,
    pub(crate) folder: TempDir,
    log: Arc<Mutex<String>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The program that is tested.
pub(crate) const DARKROOM: &str = env!("CARGO_BIN_EXE_darkroom");

/// A program that sees nothing of the machine's own settings.
pub(crate) fn program(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(name);
    command.env("HOME", folder).env("DARKROOM_DATA", folder.join("data")).current_dir(folder);
    for name in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DARKROOM_CACHE", "DARKROOM_CONFIG"] {
        command.env_remove(name);
    }
    command
}

/// A new key of a server that will run, or runs, in this folder.
pub(crate) fn key(folder: &TempDir, name: &str, flags: &[&str]) -> String {
    let mut command = program(DARKROOM, folder.path());
    command.args(["keys", "add", name]).args(flags).stderr(Stdio::null());
    let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
    said.split_whitespace().find(|word| word.starts_with("dr")).unwrap_or_else(|| panic!("no key: {said}")).to_owned()
}

impl Up {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    pub(crate) fn start_in(folder: TempDir, args: &[&str]) -> Self {
        let mut command = program(DARKROOM, folder.path());
        command.args(["serve", "--listen", "127.0.0.1:0", "--threads", "2"]).args(args);
        Self::listening(folder, command)
    }

    /// What is started by `command`, when it listens.
    pub(crate) fn listening(folder: TempDir, mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (told, heard) = mpsc::channel();
        let (stderr, kept) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(at) = line.strip_prefix("listening on http://") {
                    let _ = told.send(at.trim_end_matches('/').parse().unwrap());
                }
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let at = heard.recv_timeout(PATIENCE);
        let at = at.unwrap_or_else(|error| panic!("it does not listen ({error}): {}", log.lock().unwrap()));
        Self { child, at, folder, log }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // A server that has refused already may not read the rest.
        let _ = stream.write_all(bytes);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(all.len());
        let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
        let body = all.get(end + 4..).unwrap_or_default();
        let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() };
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head, body }
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            let _ = write!(head, "Host: {}\r\n", self.at);
        }
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        self.raw(&[head.as_bytes(), b"\r\n", body].concat())
    }

    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", path, headers, b"")
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        self.ask("POST", path, &headers, body.to_string().as_bytes())
    }

    /// The same process still makes pictures, and nothing in it panicked.
    pub(crate) fn is_well(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the process ended:\n{}", self.log());
        let body =
            serde_json::json!({"prompt": "a red apple", "steps": 1, "size": "64x64", "response_format": "b64_json"});
        let made = self.post("/v1/images/generations", &[], &body);
        assert_eq!(made.status, 200, "{}", made.text());
        let log = self.log();
        let panicked = log.lines().position(|line| line.contains("panicked"));
        assert!(panicked.is_none(), "{}", log.lines().skip(panicked.unwrap_or(0)).take(20).collect::<String>());
    }

    /// The most memory that the process ever took, bytes.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else { break };
        let Some(chunk) = body.get(end + 2..end + 2 + size) else { break };
        whole.extend_from_slice(chunk);
        body = body.get(end + 4 + size..).unwrap_or_default();
    }
    whole
}

//! Attacks on the sockets: what is no HTTP, what two servers would read in two ways, what never ends. Each is refused, and the
//! server answers afterwards. (Names, origins, keys and addresses are tested beside their rules: `guard`, `fetch`.)

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::any};
use server::{
    auth::Auth,
    config::{Config, Size},
    guard::Guard,
    http,
    listen::Listeners,
    metrics::Metrics,
};

/// Both listeners of a server whose handler says `echo` and the length of what came, and `evil` when it is asked for `/evil`.
struct Up {
    plain: SocketAddr,
    tls: SocketAddr,
    ca: Vec<u8>,
    folder: tempfile::TempDir,
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn up() -> Up {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::in_folder(folder.path());
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.tls.listen = Some("127.0.0.1:0".parse().unwrap());
    config.tls.dev = Some(folder.path().join("ca"));
    config.limits.body = Size(64 << 20);
    config.limits.silence = Duration::from_millis(600);
    let echo = |uri: axum::http::Uri, body: Bytes| async move {
        let word = if uri.path() == "/evil" { "evil" } else { "echo" };
        match http::object(&body) {
            Ok(_) => format!("{word} {}", body.len()),
            Err(fault) => format!("{word} {fault}"),
        }
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listeners = Listeners::bind(&config).unwrap();
    let at: Vec<SocketAddr> =
        listeners.urls().iter().map(|url| url.rsplit_once('/').unwrap().1.parse().unwrap()).collect();
    let auth = Auth::new(&[], None, [5; 32]).unwrap();
    let guard = Guard::new(config.into(), auth, Metrics::new(Vec::new()));
    let app = Router::new().fallback(any(echo));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = async move { drop(stopped.await) };
        let run = listeners.run(guard.around(app.clone(), false), guard.around(app, true), stop, Duration::ZERO);
        runtime.block_on(run).unwrap();
    });
    let ca = std::fs::read(folder.path().join("ca/ca.pem")).unwrap();
    Up { plain: at[0], tls: at[1], ca, folder, _stop: stop }
}

/// Sends bytes as they are; what came back until the end, or until nothing came for two seconds.
fn send(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    // A server that has refused already may not read the rest.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => answer.extend(b"(open)"),
        Err(_) => answer.extend(b"(reset)"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.match_indices("HTTP/1.1 ").filter_map(|(at, _)| answer.get(at + 9..at + 12)).collect()
}

fn is_alive(it: &Up) -> bool {
    send(it.plain, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        .ends_with("echo 2")
}

#[test]
fn where_a_request_ends_is_not_up_for_debate() {
    let it = up();
    assert!(is_alive(&it));
    let second = "GET /evil HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // A length and chunks: the chunks count, and nothing is read after them.
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: chunked",
    ] {
        let answer =
            send(it.plain, format!("POST / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n{second}").as_bytes());
        assert!(statuses(&answer).len() == 1 && !answer.contains("evil"), "{head}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{head}: {answer}");
    }
    for head in [
        "Content-Length: 2\r\nContent-Length: 40",
        "Content-Length: 2, 40",
        "Content-Length: +2",
        "Content-Length: -2",
        "Content-Length: 0x2",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        " Content-Length: 2",
        "X: a\r\n Content-Length: 2",
        "X: a\0b",
        "X\0: a",
        "Host: evil.example",
        "No colon",
    ] {
        let answer =
            send(it.plain, format!("POST / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n{{}}{second}").as_bytes());
        let all = statuses(&answer);
        assert!(
            !all.is_empty() && all.iter().all(|status| matches!(*status, "400" | "413" | "501")),
            "{head}: {answer}"
        );
        assert!(!answer.contains("evil"), "{head}: {answer}");
    }
    for chunks in ["ffffffffffffffffff\r\n{}", "-1\r\n", "2;\r\n{}", "zz\r\n{}\r\n0\r\n\r\n", "2\r\n{}X\r\n0\r\n\r\n"] {
        let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = send(it.plain, format!("{head}{chunks}{second}").as_bytes());
        assert!(!answer.contains("200") && !answer.contains("evil"), "{chunks}: {answer}");
    }
    assert!(is_alive(&it));
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let it = up();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: a\r\n".repeat(10_000));
    let path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(1 << 17));
    for (bytes, about) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a greeting of TLS"[..], "TLS"),
        (b"\x00\x01\x02\x03\xff\xfe\r\n\r\n", "bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "no host"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "two hosts"),
        (b"GET http://evil.example/evil HTTP/1.1\r\nHost: localhost\r\n\r\n", "another in the line"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "not ours"),
        (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n", "a tunnel"),
        (b"GET /files/../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "climbing"),
        (
            b"GET /files/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "climbing in disguise",
        ),
        (long.as_bytes(), "a long header"),
        (many.as_bytes(), "many headers"),
        (path.as_bytes(), "a long path"),
    ] {
        let answer = send(it.plain, bytes);
        assert!(
            !answer.contains("HTTP/1.1 2") && !answer.contains("echo") && !answer.contains("root:"),
            "{about}: {answer}"
        );
    }
    assert!(is_alive(&it));
}

#[test]
fn what_is_too_much_or_never_ends_is_refused() {
    let it = up();
    // 100 MB are refused before they are sent, by what is said of them.
    let began = Instant::now();
    let head =
        "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n{\"prompt\": \"";
    let answer = send(it.plain, head.as_bytes());
    assert!(statuses(&answer) == ["413"] && answer.contains("invalid_request_error"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(4));
    // The same with nothing said.
    let mut chunks =
        b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..100 {
        chunks.extend(b"100000\r\n");
        chunks.extend([b'a'; 4096].iter().cycle().take(1 << 20));
        chunks.extend(b"\r\n");
    }
    let answer = send(it.plain, &chunks);
    assert!(matches!(statuses(&answer)[..], [] | ["413"]), "{answer:.200}");
    drop(chunks);
    // Deep JSON is no deep stack.
    let deep = "[".repeat(1 << 20);
    let head =
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", deep.len());
    assert!(send(it.plain, (head + &deep).as_bytes()).contains("body: is not JSON"));
    // A body that stops coming.
    let answer =
        send(it.plain, b"POST /fal/run/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"prompt\":");
    assert!(statuses(&answer) == ["422"] && answer.contains("in time"), "{answer}");
    assert!(is_alive(&it));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_by_the_development_ca_is_trusted_by_those_who_trust_it() {
    let it = up();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(&it.ca).unwrap();
    let port = it.tls.port();
    let trusting = reqwest::Client::builder().tls_certs_only([ca]).no_proxy();
    let client = trusting.resolve("fal.run", it.tls).build().unwrap();
    for at in [
        format!("https://localhost:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://fal.run:{port}/x"),
    ] {
        let answer = client.post(&at).body("{}").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{at}");
    }
    let stranger = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
    assert!(stranger.get(format!("https://localhost:{port}/")).send().await.is_err());
    let answer = send(it.tls, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!answer.contains("HTTP/1.1 2"), "plain HTTP on the port of TLS: {answer}");
    assert!(it.folder.path().join("ca/ca-key.pem").is_file());
}

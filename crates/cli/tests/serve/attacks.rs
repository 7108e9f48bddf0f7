//! What a server that strangers reach has to stand: each attack in each dialect's own route, refused in that dialect's own words,
//! by a process that goes on. (Attacks below HTTP are in `crates/server/tests/attacks.rs`, names that resolve to private addresses
//! in its `fetch`.)

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::up::{Answer, Up};

/// A vendor's dialect: where a prompt goes, where a picture goes, and what an error looks like.
struct Dialect {
    name: &'static str,
    draw: &'static str,
    /// Where `picture` is sent.
    edit: &'static str,
    /// A body with a picture (an address or a data URI) and a prompt.
    picture: fn(&str, &str) -> Value,
    is_error: fn(&Value) -> bool,
}

const DIALECTS: [Dialect; 5] = [
    Dialect {
        name: "openai",
        draw: "/v1/images/generations",
        edit: "/v1/images/edits",
        picture: |url, prompt| json!({"images": [{"image_url": url}], "prompt": prompt}),
        is_error: |body| body["error"]["message"].is_string() && body["error"]["type"].is_string(),
    },
    Dialect {
        name: "fal",
        draw: "/fal/run/fal-ai/flux/krea",
        edit: "/fal/run/fal-ai/flux/krea/image-to-image",
        picture: |url, prompt| json!({"image_url": url, "prompt": prompt}),
        is_error: |body| body["detail"].is_string() || body["detail"][0]["msg"].is_string(),
    },
    Dialect {
        name: "replicate",
        draw: "/v1/models/black-forest-labs/flux-krea-dev/predictions",
        edit: "/v1/models/black-forest-labs/flux-krea-dev/predictions",
        picture: |url, prompt| json!({"input": {"image": url, "prompt": prompt}}),
        // Refused, or a prediction that failed.
        is_error: |body| {
            body["title"].is_string() && body["detail"].is_string()
                || body["detail"].is_string()
                || body["status"] == "failed" && body["error"].is_string()
        },
    },
    Dialect {
        name: "sdapi",
        draw: "/sdapi/v1/txt2img",
        edit: "/sdapi/v1/img2img",
        picture: |url, prompt| json!({"init_images": [url], "prompt": prompt}),
        is_error: |body| body["error"].is_string() && body["detail"].is_string(),
    },
    Dialect {
        name: "native",
        draw: "/api/v1/jobs",
        edit: "/api/v1/jobs",
        picture: |url, prompt| json!({"image": url, "prompt": prompt, "wait": true}),
        is_error: |body| body["error"]["code"].is_string() && body["error"]["message"].is_string(),
    },
];

impl Dialect {
    /// Refused with one of these, in its own words, which repeat nothing of the machine.
    fn refuses(&self, answer: &Answer, statuses: &[u16], about: &str) {
        let (name, text) = (self.name, answer.text());
        assert!(statuses.contains(&answer.status), "{name}, {about}: {} {text}", answer.status);
        assert!((self.is_error)(&answer.json()), "{name}, {about}: not in its own words: {text}");
        assert!(!text.contains("root:") && !text.contains("/tmp/"), "{name}, {about}: {text}");
    }

    /// A picture that is not taken. Replicate's and, where they began to answer, others' errors come with status 200 and 201.
    fn refuses_picture(&self, up: &Up, url: &str, about: &str) {
        let body = (self.picture)(url, "a fox");
        let answer = up.post(self.edit, &[("Prefer", "wait")], &body);
        self.refuses(&answer, &[400, 413, 422, 200, 201], about);
    }
}

/// Counts who comes, and sends each elsewhere.
fn listen(address: &str, elsewhere: Option<String>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let (at, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]);
            let answer = match &elsewhere {
                Some(to) => {
                    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                }
                None => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (at.to_string(), count)
}

#[test]
fn pages_and_names_of_others() {
    let mut up = Up::start(&[]);
    for dialect in DIALECTS {
        let body = json!({"prompt": "a fox", "input": {"prompt": "a fox"}});
        for headers in [
            [("Origin", "https://evil.example"), ("X", "")],
            [("Origin", "null"), ("X", "")],
            [("Host", "evil.example"), ("X", "")],
            [("Host", "evil.example:80"), ("Origin", "http://evil.example:80")],
            [("Host", "127.0.0.1.evil.example"), ("X", "")],
        ] {
            dialect.refuses(&up.post(dialect.draw, &headers, &body), &[403], &format!("{headers:?}"));
        }
        let preflight = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
        let answer = up.ask("OPTIONS", dialect.draw, &preflight, b"");
        assert!(!answer.head.contains("access-control-allow-origin"), "{}: {}", dialect.name, answer.head);
    }
    up.is_well();
}

#[test]
fn addresses_that_are_nobodys_business() {
    let (inside, visits) = listen("127.0.0.1", None);
    let port = inside.rsplit_once(':').unwrap().1.to_owned();
    // One network is allowed; what it redirects to is judged again.
    let (outside, redirected) = listen("127.0.0.2", Some(format!("http://{inside}/secret.png")));
    let mut up = Up::start(&["--set", "allowed_networks=127.0.0.2/32"]);
    let own = up.at.port();
    for dialect in DIALECTS {
        for url in [
            "http://169.254.169.254/latest/meta-data/".to_owned(),
            "http://[::ffff:169.254.169.254]/".to_owned(),
            "http://2852039166/".to_owned(),
            format!("http://{inside}/secret.png"),
            format!("http://2130706433:{port}/"),
            format!("http://0x7f000001:{port}/"),
            format!("http://0177.0.0.1:{port}/"),
            format!("http://127.1:{port}/"),
            format!("http://0:{port}/"),
            format!("http://[::1]:{port}/"),
            format!("http://[::ffff:127.0.0.1]:{port}/"),
            format!("http://[::ffff:7f00:1]:{port}/"),
            format!("http://[64:ff9b::7f00:1]:{port}/"),
            format!("http://localhost:{port}/"),
            format!("http://localhost.:{port}/"),
            format!("http://somebody:secret@{inside}/"),
            format!("http://127.0.0.1:{own}/healthz"),
            format!("http://127.0.0.1:{own}/metrics"),
            "http://10.0.0.1/".to_owned(),
            "http://192.168.1.1/".to_owned(),
            "http://100.64.0.1/".to_owned(),
            "http://224.0.0.1/".to_owned(),
            "file:///etc/passwd".to_owned(),
            "/etc/passwd".to_owned(),
            "../../etc/passwd".to_owned(),
            format!("gopher://{inside}/"),
            format!("ftp://{inside}/a.png"),
            format!("http://{outside}/redirects.png"),
        ] {
            dialect.refuses_picture(&up, &url, &url);
        }
    }
    assert_eq!(visits.load(Ordering::SeqCst), 0, "somebody got through");
    assert!(redirected.load(Ordering::SeqCst) >= 4, "the allowed address was asked");
    // Webhooks are judged before the job is taken, or never told.
    let told = up.post("/api/v1/jobs", &[], &json!({"prompt": "a fox", "webhook": format!("http://{inside}/hook")}));
    assert_eq!(told.status, 422, "{}", told.text());
    up.is_well();
    assert_eq!(visits.load(Ordering::SeqCst), 0);
}

/// Pictures that are small to send and large to open, or lie.
fn bombs() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    fn png(width: u32, height: u32, rows: u32, before: impl FnOnce(&mut png::Encoder<'_, &mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        before(&mut encoder);
        let mut writer = encoder.write_header().unwrap();
        let mut stream = writer.stream_writer().unwrap();
        let row = vec![0; width.div_ceil(8) as usize];
        for _ in 0..rows {
            stream.write_all(&row).unwrap();
        }
        // Unfinished where there are fewer rows than the header says.
        let _ = stream.finish();
        drop(writer);
        bytes
    }
    let gif =
        [&b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"[..]].concat();
    let webp = b"RIFF\x24\0\0\0WEBPVP8L\x18\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let jpeg = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xd9".to_vec();
    let mut avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf".to_vec();
    avif.extend([0xff; 64]);
    let text = |encoder: &mut png::Encoder<'_, &mut Vec<u8>>| {
        encoder.add_ztxt_chunk("Comment".into(), "a".repeat(256 << 20)).unwrap();
    };
    vec![
        ("a PNG of 2.5 gigapixels", "image/png", png(50_000, 50_000, 50_000, |_| ())),
        ("a PNG that says 4 gigapixels", "image/png", png(65_000, 65_000, 1, |_| ())),
        ("a PNG of one long row", "image/png", png(100_000_000, 1, 1, |_| ())),
        ("a PNG with 256 MiB of text", "image/png", png(64, 64, 10, text)),
        ("a GIF of 4 gigapixels", "image/gif", gif),
        ("a WebP of 268 megapixels", "image/webp", webp),
        ("a JPEG of 4 gigapixels", "image/jpeg", jpeg),
        ("an AVIF of nothing", "image/avif", avif),
        (
            "an SVG",
            "image/svg+xml",
            b"<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>".to_vec(),
        ),
    ]
}

#[test]
fn pictures_that_are_larger_than_they_look() {
    let mut up = Up::start(&[]);
    up.is_well();
    #[cfg(target_os = "linux")]
    let before = up.peak_memory();
    for (about, mime, bytes) in bombs() {
        let data = BASE64_STANDARD.encode(&bytes);
        for dialect in DIALECTS {
            dialect.refuses_picture(&up, &format!("data:{mime};base64,{data}"), about);
        }
        DIALECTS[3].refuses_picture(&up, &data, about);
        for field in ["image", "mask"] {
            let answer = form(&up, "/v1/images/edits", &[("prompt", None, b"a fox"), (field, Some("a.png"), &bytes)]);
            DIALECTS[0].refuses(&answer, &[400, 413, 200], about);
        }
    }
    // What is read may be held, and a request may be as long as the limit says; pixels are not allocated.
    #[cfg(target_os = "linux")]
    assert!(up.peak_memory() < before + (400 << 20), "{} MiB, {} before", up.peak_memory() >> 20, before >> 20);
    up.is_well();
}

/// Parts: a name, a file name, and the content.
fn form(up: &Up, path: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Answer {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        body.extend(format!("--cut\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").into_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--cut--\r\n");
    up.ask("POST", path, &[("Content-Type", "multipart/form-data; boundary=cut")], &body)
}

#[test]
fn bodies_that_are_too_long_too_deep_or_no_bodies() {
    let mut up = Up::start(&[]);
    let deep = [r#"{"prompt":"#, &"[".repeat(1_000_000)].concat();
    let wide =
        [r#"{"prompt": "a", "#, &(0..200_000).map(|i| format!("\"k{i}\":0,")).collect::<Vec<_>>().concat(), "\"z\":0}"]
            .concat();
    let long = json!({"prompt": "a ".repeat(15 << 20), "input": {"prompt": "a ".repeat(200_000)}}).to_string();
    for dialect in DIALECTS {
        // 100 MB are refused before they are sent.
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n{{\"prompt\": \"",
            dialect.draw
        );
        dialect.refuses(&up.raw(head.as_bytes()), &[413], "100 MB");
        for (about, body) in [
            ("depth", deep.as_bytes()),
            ("30 MB of prompt", long.as_bytes()),
            ("nothing", b""),
            ("no JSON", b"{prompt: 1}"),
            ("a number that is none", br#"{"prompt": "a", "seed": NaN}"#),
            ("half a surrogate", br#"{"prompt": "\ud800"}"#),
            ("no UTF-8", b"{\"prompt\": \"\xff\xfe\"}"),
            ("a list", b"[1, 2, 3]"),
            ("a prompt that is a list", br#"{"prompt": ["a"], "input": {"prompt": {"a": 1}}}"#),
            ("something after it", br#"{"prompt": "a"} {"prompt": "b"}"#),
            ("a zero byte", b"{\"prompt\": \"a\0b\"}"),
        ] {
            let answer = up.ask("POST", dialect.draw, &[("Content-Type", "application/json")], body);
            dialect.refuses(&answer, &[400, 413, 422], about);
        }
        // Nothing is unknown enough to fail, or large enough to hold anybody up.
        let answer = up.ask("POST", dialect.draw, &[("Content-Type", "application/json")], wide.as_bytes());
        assert!(answer.status < 500, "{}: {}", dialect.name, answer.status);
        for numbers in [
            json!({"prompt": "a", "seed": 1e300, "num_inference_steps": -1, "steps": -1, "width": 1e18, "n": 1e9}),
            json!({"prompt": "a", "size": "99999999999x1", "image_size": {"width": 1e9, "height": 1e9}, "width": -5, "height": 0}),
            json!({"prompt": "a", "steps": 1e308, "guidance": -1e308, "guidance_scale": 1e308, "cfg_scale": 1e308}),
        ] {
            let body = if dialect.name == "replicate" {
                json!({"input": {"prompt": "a", "num_inference_steps": -7, "seed": 1e300, "num_outputs": 1e9, "guidance": -3}})
            } else {
                numbers
            };
            let answer = up.post(dialect.draw, &[], &body);
            assert!(answer.status < 500, "{}: {} {}", dialect.name, answer.status, answer.text());
        }
    }
    up.is_well();
}

#[test]
fn forms_that_are_none() {
    let mut up = Up::start(&[]);
    let part = "Content-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n";
    let many: String = (0..20_000)
        .map(|i| format!("--cut\r\nContent-Disposition: form-data; name=\"f{i}\"\r\n\r\nx\r\n"))
        .collect::<Vec<_>>()
        .concat();
    let long_header =
        format!("--cut\r\nContent-Disposition: form-data; name=\"{}\"\r\n\r\nx\r\n--cut--\r\n", "a".repeat(1 << 20));
    for (about, kind, body) in [
        ("no boundary", "multipart/form-data", format!("--cut\r\n{part}x\r\n--cut--\r\n")),
        ("an empty boundary", "multipart/form-data; boundary=", format!("--\r\n{part}x\r\n----\r\n")),
        ("another boundary", "multipart/form-data; boundary=other", format!("--cut\r\n{part}x\r\n--cut--\r\n")),
        (
            "a long boundary",
            "multipart/form-data; boundary=cutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcutcut",
            "--".to_owned(),
        ),
        ("no end", "multipart/form-data; boundary=cut", format!("--cut\r\n{part}half a pic")),
        ("no head", "multipart/form-data; boundary=cut", "--cut\r\n\r\nx\r\n--cut--\r\n".to_owned()),
        (
            "no name",
            "multipart/form-data; boundary=cut",
            "--cut\r\nContent-Disposition: form-data\r\n\r\nx\r\n--cut--\r\n".to_owned(),
        ),
        ("many parts", "multipart/form-data; boundary=cut", format!("{many}--cut--\r\n")),
        ("a long head", "multipart/form-data; boundary=cut", long_header),
        (
            "a form in a form",
            "multipart/form-data; boundary=cut",
            format!(
                "--cut\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n{part}x\r\n--in--\r\n--cut--\r\n"
            ),
        ),
        ("nothing", "multipart/form-data; boundary=cut", String::new()),
        ("JSON that says it is a form", "multipart/form-data; boundary=cut", r#"{"prompt": "a"}"#.to_owned()),
        ("bytes", "multipart/form-data; boundary=cut", "\0\u{1}\u{2}--cut--cut--cut\r\n\r\n\r\n--cut--".to_owned()),
    ] {
        for path in ["/v1/images/edits", "/v1/images/variations", "/v1/files"] {
            let answer = up.ask("POST", path, &[("Content-Type", kind)], body.as_bytes());
            let dialect = &DIALECTS[if path == "/v1/files" { 2 } else { 0 }];
            dialect.refuses(&answer, &[400, 413, 422], &format!("{path}: {about}"));
        }
    }
    // A file is kept under a name of ours, whatever it calls itself.
    let name = "../../../../tmp/\u{202e}evil\\..\\x.html";
    let kept = form(&up, "/v1/files", &[("content", Some(name), b"<script>alert(1)</script>")]);
    assert_eq!(kept.status, 201, "{}", kept.text());
    let url = kept.json()["urls"]["get"].as_str().unwrap().to_owned();
    assert!(!url.contains("..") && !kept.text().contains("/tmp"), "{url}");
    up.is_well();
}

#[test]
fn paths_and_names_that_climb() {
    let mut up = Up::start(&[]);
    for path in [
        "/files/../../../../etc/passwd",
        "/files/..%2f..%2f..%2fetc%2fpasswd",
        "/files/%2e%2e/%2e%2e/etc/passwd",
        "/files/%252e%252e%252fetc%252fpasswd",
        "/files/....//....//etc/passwd",
        "/files/0123456789abcdef0123456789abcdef/../../etc/passwd",
        "/v1/files/..%2f..%2fetc%2fpasswd",
        "/v1/files/..%2f..%2fetc%2fpasswd/content",
        "/api/v1/jobs/..%2f..%2fetc%2fpasswd",
        "/fal/queue/fal-ai/flux/requests/..%2f..%2fetc%2fpasswd",
        "/v1/predictions/..%2f..%2fetc%2fpasswd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/fal/cdn/files/upload/..%2f..%2fx",
        "/etc/passwd",
        "//etc/passwd",
        "/\\etc\\passwd",
        "/files/%00",
        "/darkroom.sqlite",
        "/files/darkroom.sqlite",
    ] {
        let answer = up.get(path, &[]);
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
        assert!(!answer.text().contains("root:") && !answer.text().contains("SQLite"), "{path}: {}", answer.text());
    }
    for name in ["../../../../etc/passwd", "/etc/passwd", "pocket/../../x", "..\\x", "file:///etc/passwd", "pocket\0"] {
        let answers = [
            up.post("/v1/images/generations", &[], &json!({"prompt": "a", "model": name})),
            up.post("/api/v1/jobs", &[], &json!({"prompt": "a", "wait": true, "model": name})),
            up.post("/api/v1/jobs", &[], &json!({"prompt": "a", "wait": true, "loras": [name]})),
        ];
        for answer in answers {
            assert!(matches!(answer.status, 400 | 404 | 422), "{name}: {} {}", answer.status, answer.text());
        }
    }
    up.is_well();
}

#[test]
fn requests_in_requests() {
    let mut up = Up::start(&[]);
    let second = "GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for dialect in DIALECTS {
        for head in [
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Content-Length: 2\r\nContent-Length: 90",
            "Content-Length: +2",
            "Transfer-Encoding : chunked",
            "X: a\r\n Content-Length: 90",
        ] {
            let bytes = format!("POST {} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n{second}", dialect.draw);
            let answer = up.raw(bytes.as_bytes());
            let all = format!("{}{}", answer.head, answer.text());
            assert!(!all.contains("\"jobs\""), "{}, {head}: {all}", dialect.name);
            assert!(all.matches("http/1.1 ").count() <= 1 && answer.status >= 400, "{}, {head}: {all}", dialect.name);
        }
    }
    up.is_well();
}

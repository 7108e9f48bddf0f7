//! fal's web sockets, frame by frame: they make pictures, so they ask for what every other way to make pictures asks for.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::up::{DARKROOM, Up, key, program};

const PATH: &str = "/fal/run/fal-ai/flux/krea/realtime";

/// A connection; or the status that it was refused with.
struct Socket(TcpStream);

impl Socket {
    fn open(up: &Up, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let mut stream = TcpStream::connect(up.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            up.at
        );
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        match String::from_utf8_lossy(&answer)[9..12].parse().unwrap() {
            101 => Ok(Self(stream)),
            refused => Err(refused),
        }
    }

    /// A frame with a mask of zeros, which changes nothing.
    fn send(&mut self, kind: u8, content: &[u8]) {
        let mut frame = vec![0x80 | kind, 0x80 | 127];
        frame.extend((content.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(content);
        // One that is refused may be closed before its end.
        let _ = self.0.write_all(&frame);
    }

    fn ask(&mut self, input: &Value) -> (u8, Vec<u8>) {
        self.send(1, input.to_string().as_bytes());
        self.next()
    }

    /// The next frame: 1 is text, 2 is binary, 8 is the end.
    fn next(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).unwrap();
                u64::from_be_bytes(length)
            }
            length => u64::from(length),
        };
        let mut content = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut content).unwrap();
        (head[0] & 15, content)
    }

    /// The next frame is an error of this kind.
    fn refuses(&mut self, kind: &str) -> String {
        let (opcode, content) = self.next();
        let told: Value = serde_json::from_slice(&content).unwrap_or_default();
        assert_eq!((opcode, &told["type"], &told["error"]), (1, &json!("x-fal-error"), &json!(kind)), "{told}");
        told["reason"].as_str().unwrap().to_owned()
    }
}

fn small() -> Value {
    json!({"prompt": "a red apple", "num_inference_steps": 1, "image_size": {"width": 64, "height": 64}})
}

#[test]
fn a_socket_asks_for_what_its_key_may() {
    let folder = tempfile::tempdir().unwrap();
    let looks = key(&folder, "looks", &["--scope", "read"]);
    let makes = key(&folder, "makes", &["--scope", "generate", "--per-minute", "2"]);
    let up = Up::start_in(folder, &[]);
    let looks = format!("Key {looks}");
    assert_eq!(Socket::open(&up, PATH, &[("Authorization", &looks)]).err(), Some(403));
    let target = ("x-fal-target-url", "https://fal.run/fal-ai/flux/krea/realtime");
    assert_eq!(Socket::open(&up, "/fal/proxy", &[("Authorization", &looks), target]).err(), Some(403));
    assert_eq!(Socket::open(&up, PATH, &[]).err(), Some(401));

    let makes = format!("Key {makes}");
    let mut socket = Socket::open(&up, PATH, &[("Authorization", &makes)]).ok().unwrap();
    for _ in 0..2 {
        assert_eq!(socket.ask(&small()).0, 2, "a picture");
    }
    socket.send(1, small().to_string().as_bytes());
    let why = socket.refuses("TOO_MANY_REQUESTS");
    assert!(why.contains("2 requests a minute"), "{why}");

    let mut revoke = program(DARKROOM, up.folder.path());
    assert!(revoke.args(["keys", "revoke", "makes"]).output().unwrap().status.success());
    // It is known within two seconds.
    std::thread::sleep(Duration::from_secs(4));
    socket.send(1, small().to_string().as_bytes());
    socket.refuses("UNAUTHORIZED");
    let (opcode, content) = socket.next();
    assert_eq!((opcode, &content[..2]), (8, &1008_u16.to_be_bytes()[..]));
}

#[test]
fn a_socket_is_bounded() {
    let mut up = Up::start(&[]);
    let mut sockets: Vec<Socket> = (0..16).map(|_| Socket::open(&up, PATH, &[]).ok().unwrap()).collect();
    assert_eq!(Socket::open(&up, PATH, &[]).err(), Some(429));
    drop(sockets.pop());
    std::thread::sleep(Duration::from_millis(500));
    sockets.push(Socket::open(&up, PATH, &[]).ok().unwrap());

    // 60 arrays of a megabyte each: what waits is not read into values, and what is read is refused.
    let zeros = format!("[{}0]", "0,".repeat(500_000));
    let mut packed = vec![0xdd, 0, 0x0f, 0xff, 0xff];
    packed.resize(1 << 20, 0);
    let socket = &mut sockets[0];
    for _ in 0..30 {
        socket.send(1, zeros.as_bytes());
        socket.send(2, &packed);
    }
    let why = socket.refuses("INVALID_REQUEST");
    assert!(why.contains("more than 200000 values"), "{why}");
    // A message that is too long ends its socket, and no other.
    sockets[1].send(2, &vec![0; 17 << 20]);
    assert_eq!(sockets[2].ask(&small()).0, 2);
    #[cfg(target_os = "linux")]
    assert!(up.peak_memory() < 700 << 20, "{} MiB", up.peak_memory() >> 20);
    up.is_well();
}

//! What receivers of webhooks are told.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::up::Up;

/// The bodies that are told to a receiver on this machine, and its address.
fn receiver() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("http://{}/hook", listener.local_addr().unwrap());
    let (told, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut all, mut piece) = (Vec::new(), [0; 4096]);
            let body = loop {
                let read = stream.read(&mut piece).unwrap();
                all.extend(&piece[..read]);
                let text = String::from_utf8_lossy(&all);
                let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
                if body.is_some() || read == 0 {
                    break body;
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = told.send(body.unwrap_or_default());
        }
    });
    (at, heard)
}

#[test]
fn urls_begin_as_whoever_asked_reached_the_server() {
    let up = Up::start(&["--allow-private-webhooks"]);
    let (hook, heard) = receiver();
    let host = format!("pictures.localhost:{}", up.at.port());
    let headers = [("Host", host.as_str())];
    let begins = |url: &Value| {
        let begins = url.as_str().unwrap_or_default().starts_with(&format!("http://{host}/"));
        assert!(begins, "{url} does not begin with http://{host}/");
    };
    let told = || heard.recv_timeout(Duration::from_mins(1)).unwrap();

    let native = json!({"prompt": "a red apple", "steps": 1, "size": "64x64", "webhook": hook});
    assert_eq!(up.post("/api/v1/jobs", &headers, &native).status, 202);
    begins(&told()["pictures"][0]["url"]);
    let fal = json!({"prompt": "a red apple", "num_inference_steps": 1});
    assert_eq!(up.post(&format!("/fal/queue/fal-ai/flux/krea?fal_webhook={hook}"), &headers, &fal).status, 200);
    begins(&told()["payload"]["images"][0]["url"]);
    let replicate = json!({"input": {"prompt": "a", "num_inference_steps": 1}, "webhook": hook,
                           "webhook_events_filter": ["completed"]});
    let path = "/v1/models/black-forest-labs/flux-krea-dev/predictions";
    assert_eq!(up.post(path, &headers, &replicate).status, 201);
    begins(&told()["urls"]["get"]);
}

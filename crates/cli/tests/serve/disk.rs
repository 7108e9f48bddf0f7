//! A disk that is full and a folder that became read-only: new work is refused with a sentence, the service goes on, and when there is
//! room again it takes work again. In a mount namespace of the test's own; where the system allows none, that is said.

use std::{
    io::{ErrorKind, Write},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::up::{DARKROOM, Up, program};

/// Mounts a disk of 6 MiB, serves from it, and then does what it is told, a command a line.
const SCRIPT: &str = r#"
mount -t tmpfs -o size=6m tmpfs "$1" || exit 1
"$2" serve --listen 127.0.0.1:0 --threads 2 --data-dir "$1" &
server=$!
while read -r line; do eval "$line"; done
kill -9 $server
"#;

fn namespaces() -> bool {
    let tried =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stderr(Stdio::null()).status();
    match tried {
        Ok(status) => status.success(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound);
            false
        }
    }
}

#[test]
fn a_full_disk_and_a_folder_that_became_read_only() {
    if !namespaces() {
        eprintln!("not tested: this system gives a process no mount namespace of its own (unshare -rm)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut command = program("unshare", folder.path());
    command.args(["-rm", "sh", "-c", SCRIPT, "sh"]).arg(&disk).arg(DARKROOM).stdin(Stdio::piped());
    let mut up = Up::listening(folder, command);
    let mut commands = up.child.stdin.take().unwrap();

    let draw = |seed: u32| {
        let body = json!({"prompt": "a red apple", "steps": 1, "size": "512x512", "wait": true, "seed": seed});
        up.post("/api/v1/jobs", &[], &body)
    };
    let ready = || up.get("/readyz", &[]).status;
    assert_eq!(ready(), 200);
    let mut last = Value::Null;
    let refused = (0..200).find(|&seed| {
        let answer = draw(seed);
        last = if answer.status == 200 { answer.json()["pictures"][0]["url"].clone() } else { last.clone() };
        answer.status != 200
    });
    let made = refused.unwrap();
    assert!(made >= 5, "{made} pictures, then it was full: {}", up.log());

    // Everybody hears it in their own words. What is small may find a place for a while: it is accepted then, and fails by its end.
    let refused = |path: &str, body: &Value| {
        let answer = (0..300).map(|_| up.post(path, &[], body)).find(|answer| answer.status >= 400);
        answer.unwrap_or_else(|| panic!("{path} is never refused"))
    };
    let padding = "x".repeat(20_000);
    let input = json!({"prompt": "a", "steps": 1, "num_inference_steps": 1, "size": "256x256", "padding": padding});
    let openai = refused("/v1/images/generations", &input);
    assert_eq!((openai.status, &openai.json()["error"]["code"]), (503, &json!("unavailable")), "{}", openai.text());
    assert!(openai.head.contains("retry-after: ") && openai.text().contains("disk is full"), "{}", openai.text());
    let replicate = "/v1/models/black-forest-labs/flux-krea-dev/predictions";
    let replicate = refused(replicate, &json!({"input": input}));
    assert_eq!((replicate.status, replicate.json()["title"].is_string()), (503, true), "{}", replicate.text());
    let fal = refused("/fal/queue/fal-ai/flux/krea", &input);
    assert!(fal.status == 503 && fal.json()["detail"].is_string(), "{}", fal.text());
    assert_eq!(up.get("/healthz", &[]).status, 200, "it goes on");
    // What was made is there.
    let url = last.as_str().unwrap();
    let path = url[url.find("/files/").unwrap()..].to_owned();
    assert_eq!(up.get(&path, &[]).status, 200);

    // A bigger disk.
    writeln!(commands, "mount -o remount,size=64m \"$1\"").unwrap();
    let wait = |what: &str, is: &dyn Fn() -> bool| {
        for _ in 0..200 {
            if is() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{what}: never; {}", up.log());
    };
    wait("ready, though nobody sends any work", &|| ready() == 200);
    wait("a picture on the bigger disk", &|| draw(1000).status == 200);

    // Pictures cannot be stored any more.
    writeln!(commands, "mount -t tmpfs -o ro tmpfs \"$1/files\"").unwrap();
    wait("refused", &|| draw(1001).status != 200);
    let answer = draw(1002);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("unavailable")), "{}", answer.text());
    assert!(answer.text().contains("may not write to its folder"), "{}", answer.text());
    let upload = up.ask("POST", "/fal/cdn/files/upload", &[("Content-Type", "image/png")], b"\x89PNG\r\n\x1a\n");
    assert!(upload.status == 503 && upload.json()["detail"].is_string(), "{}", upload.text());
    assert_eq!(up.get("/api/v1/jobs", &[]).status, 200);
    writeln!(commands, "umount \"$1/files\"").unwrap();
    wait("a picture", &|| draw(1003).status == 200);
    assert_eq!(up.get(&path, &[]).status, 200, "nothing was lost");
    assert!(!up.log().contains("panicked"));
    drop(commands);
    let _ = up.child.wait();
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let mut command = program(DARKROOM, folder.path());
    let told = command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir", "file/data"]).output().unwrap();
    let told = (told.status.code(), String::from_utf8(told.stderr).unwrap());
    assert!(told.0 == Some(1) && told.1.starts_with("error: file/data: Not a directory"), "{told:?}");
    assert_eq!(told.1.matches("os error").count(), 1, "said once: {told:?}");
}

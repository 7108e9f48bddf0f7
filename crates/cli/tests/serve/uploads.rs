//! Uploads in parts, as fal's clients send them, and as they do not.

use serde_json::{Value, json};

use crate::up::{Answer, Up};

/// The path of a URL of the server's.
fn path(url: &Value) -> String {
    let url = url.as_str().unwrap();
    url[url.find("://").unwrap() + 3..].split_once('/').map(|(_, path)| format!("/{path}")).unwrap()
}

#[test]
fn a_file_in_parts_is_whole_or_not_there() {
    let mut up = Up::start(&["--set", "limits.bodies=64MiB", "--set", "limits.upload=16MiB"]);
    let begun = up.post("/fal/rest/storage/upload/initiate-multipart", &[], &json!({"file_name": "a.bin"})).json();
    let (at, file) = (path(&begun["upload_url"]), path(&begun["file_url"]));
    let part = |number: u32, content: &[u8]| {
        let answer = up.ask("PUT", &format!("{at}/{number}"), &[], content);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let complete = |parts: &[&Value]| -> Answer { up.post(&format!("{at}/complete"), &[], &json!({"parts": parts})) };
    let (first, third) = (part(1, b"one "), part(3, b"three"));
    let second = json!({"partNumber": 2, "etag": "0".repeat(64)});
    let refused = complete(&[&first, &second, &third]);
    assert!(refused.status == 422 && refused.text().contains("part 2 did not come"), "{}", refused.text());
    let old = part(2, b"other");
    let second = part(2, b"two ");
    let refused = complete(&[&first, &old, &third]);
    assert_eq!((refused.status, up.get(&file, &[]).status), (422, 404), "{}", refused.text());

    for _ in 0..2 {
        let done = complete(&[&third, &first, &second]);
        assert_eq!(done.status, 200, "said twice, too: {}", done.text());
    }
    assert_eq!(up.get(&file, &[]).text(), "one two three");
    let metrics = up.get("/metrics", &[]).text();
    assert!(metrics.contains("darkroom_files 1\n"), "the parts are gone:\n{metrics}");

    // One that grows too large goes as a whole.
    let begun = up.post("/fal/rest/storage/upload/initiate-multipart", &[], &json!({"file_name": "a.bin"})).json();
    let at = path(&begun["upload_url"]);
    let content = vec![7; 9 << 20];
    assert_eq!(up.ask("PUT", &format!("{at}/1"), &[], &content).status, 200);
    assert_eq!(up.ask("PUT", &format!("{at}/2"), &[], &content).status, 413);
    assert!(up.get("/metrics", &[]).text().contains("darkroom_files 1\n"));
    up.is_well();
}

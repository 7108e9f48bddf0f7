//! A configuration that changes while the server runs.

use std::{process::Command, thread, time::Duration};

use serde_json::{Value, json};

use crate::up::Up;

fn names(up: &Up) -> Vec<String> {
    let shown: Value = up.get("/api/v1/models", &[]).json();
    shown["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_configuration_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("darkroom.toml");
    std::fs::write(&file, "models = [\"pocket\"]\n").unwrap();
    let mut up = Up::start_in(folder, &["--config", file.to_str().unwrap()]);
    assert!(!names(&up).contains(&"mine".to_owned()));
    let draw = |model: &str| {
        up.post("/v1/images/generations", &[], &json!({"prompt": "a", "steps": 1, "model": model})).status
    };
    assert_eq!((draw("pocket"), draw("mine")), (200, 404));

    std::fs::write(
        &file,
        "models = [\"pocket\"]\nlisten = \"127.0.0.1:1\"\n[aliases]\nmine = \"pocket\"\n[queue]\ntotal = 7\n",
    )
    .unwrap();
    let done = up.post("/api/v1/admin/reload", &[], &json!({}));
    let expected = json!({"models": ["pocket"], "changed": ["aliases"], "needs_restart": ["queue.total"]});
    assert_eq!((done.status, done.json()), (200, expected), "the flag goes before the file's address");
    assert_eq!((draw("mine"), draw("other")), (200, 404));

    // What is wrong is named, and changes nothing.
    for (text, said) in [
        ("keep_alive = \"soon\"\n", "keep_alive: 'soon' is no time"),
        ("modles = [\"pocket\"]\n", "'modles' is no setting; hint: perhaps 'models'"),
        ("models = [\"/nothing/here\"]\n", "the server's log says why"),
        ("= 1", "the server's log says why"),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = up.post("/api/v1/admin/reload", &[], &json!({}));
        assert!(refused.status == 422 && refused.text().contains(said), "{text}: {}", refused.text());
        assert!(!refused.text().contains(up.folder.path().to_str().unwrap()), "{}", refused.text());
        assert_eq!(draw("mine"), 200);
    }
    assert!(up.log().contains("/nothing/here"), "the operator is told: {}", up.log());

    // The same by a signal.
    #[cfg(unix)]
    {
        std::fs::write(&file, "[aliases]\nyours = \"pocket\"\n").unwrap();
        assert!(Command::new("kill").args(["-HUP", &up.child.id().to_string()]).status().unwrap().success());
        for _ in 0..200 {
            if names(&up).contains(&"yours".to_owned()) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!((draw("yours"), draw("mine")), (200, 404));
    }

    let loaded = |up: &Up| up.get("/api/v1/models", &[]).json()["models"][0]["loaded"].as_bool().unwrap();
    for (wish, is) in [("unload", false), ("load", true)] {
        let answer = up.post(&format!("/api/v1/admin/models/pocket/{wish}"), &[], &json!({}));
        assert_eq!((answer.status, &answer.json()["name"]), (202, &json!("pocket")), "{}", answer.text());
        for _ in 0..200 {
            if loaded(&up) == is {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(loaded(&up), is, "{wish}");
    }
    assert_eq!(up.post("/api/v1/admin/models/none/load", &[], &json!({})).status, 404);
    up.is_well();
}

//! A picture that is refused or held is not downloadable by any route, until a person lets it pass.

use serde_json::json;

use crate::up::{Up, key};

/// Everything is above such a threshold.
const STRICT: [&str; 4] = ["--set", "safety.threshold=0.000000001", "--set", "safety.optional=false"];

#[test]
fn what_waits_for_a_person_is_seen_by_reviewers_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (user, other, admin) = (
        key(&folder, "user", &["--scope", "generate"]),
        key(&folder, "other", &["--scope", "generate"]),
        key(&folder, "boss", &["--scope", "admin"]),
    );
    let mut up = Up::start_in(folder, &[&STRICT[..], &["--set", "safety.hold=1h"]].concat());
    let bearer = |key: &str| format!("Bearer {key}");
    let (user, other, admin) = (bearer(&user), bearer(&other), bearer(&admin));
    let user = [("Authorization", user.as_str())];
    let other = [("Authorization", other.as_str())];
    let admin = [("Authorization", admin.as_str())];

    // In each dialect's own shape.
    let prompt = json!({"prompt": "a red apple", "steps": 2, "size": "64x64"});
    let openai = up.post("/v1/images/generations", &user, &prompt);
    assert_eq!(
        (openai.status, &openai.json()["error"]["code"]),
        (400, &json!("moderation_blocked")),
        "{}",
        openai.text()
    );
    let fal = up.post("/fal/run/fal-ai/flux/krea", &user, &json!({"prompt": "a red apple", "num_inference_steps": 2}));
    assert_eq!((fal.status, &fal.json()["has_nsfw_concepts"]), (200, &json!([true])), "{}", fal.text());
    let input = json!({"input": {"prompt": "a red apple", "num_inference_steps": 4}});
    let prefer = [user[0], ("Prefer", "wait")];
    let replicate = up.post("/v1/models/black-forest-labs/flux-krea-dev/predictions", &prefer, &input);
    assert_eq!(replicate.json()["status"], "failed", "{}", replicate.text());
    assert!(replicate.json()["error"].as_str().unwrap().contains("NSFW"), "{}", replicate.text());
    let sdapi =
        up.post("/sdapi/v1/txt2img", &user, &json!({"prompt": "a red apple", "steps": 2, "width": 64, "height": 64}));
    assert_eq!(sdapi.status, 200, "a black picture: {}", sdapi.text());
    let native =
        up.post("/api/v1/jobs", &user, &json!({"prompt": "a red apple", "steps": 2, "size": "64x64", "previews": 1}));
    let job = native.json()["urls"]["self"]
        .as_str()
        .unwrap()
        .split_once("/api")
        .map(|(_, path)| format!("/api{path}"))
        .unwrap();
    let events = up.get(&format!("{job}/events"), &user);
    assert!(
        events.text().contains("\"code\":\"flagged\"") && !events.text().contains("event: preview"),
        "{}",
        events.text()
    );

    let held = up.get("/api/v1/admin/held", &admin);
    let held = held.json()["held"].as_array().unwrap().clone();
    assert_eq!(held.len(), 5, "one of each dialect");
    assert_eq!((&held[0]["owner"], &held[0]["prompt"]), (&json!("user"), &json!("a red apple")));
    let ids: Vec<&str> = held.iter().map(|picture| picture["id"].as_str().unwrap()).collect();
    let metrics = up.get("/metrics", &admin).text();
    for line in [
        "darkroom_files_held 5",
        "darkroom_flagged_total{gate=\"picture\"} 5",
        "darkroom_safety_policy{policy=\"words+nsfwjs/",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    for id in &ids {
        // By no route that has names of files in it, whoever asks.
        for headers in [&user, &other, &admin] {
            for path in [
                format!("/files/{id}"),
                format!("/files/{id}/darkroom-1.png"),
                format!("/v1/files/{id}"),
                format!("/v1/files/{id}/content"),
                format!("/fal/cdn/files/{id}"),
                format!("/fal/cdn/files/{id}/darkroom-1.png"),
                format!("/api/v1/jobs/{id}"),
                format!("/v1/predictions/{id}"),
            ] {
                assert_eq!(up.get(&path, &headers[..]).status, 404, "{path}");
            }
            assert_eq!(up.ask("DELETE", &format!("/v1/files/{id}"), &headers[..], b"").status, 404);
        }
        for headers in [&user[..], &other, &[]] {
            for (method, path) in [
                ("GET", format!("/api/v1/admin/held/{id}")),
                ("POST", format!("/api/v1/admin/held/{id}/release")),
                ("DELETE", format!("/api/v1/admin/held/{id}")),
                ("GET", "/api/v1/admin/held".to_owned()),
                ("POST", "/api/v1/admin/reload".to_owned()),
            ] {
                let status = up.ask(method, &path, headers, b"").status;
                assert_eq!(status, if headers.is_empty() { 401 } else { 403 }, "{method} {path}");
            }
        }
        // Nor as something to begin from.
        let url = format!("http://{}/files/{id}/darkroom-1.png", up.at);
        let begun =
            up.post("/api/v1/jobs", &user, &json!({"image": url, "prompt": "a", "strength": 0.01, "wait": true}));
        assert_eq!(begun.json()["error"]["code"], "picture", "{}", begun.text());
    }

    // A reviewer sees it, and decides.
    let looked = up.get(&format!("/api/v1/admin/held/{}", ids[0]), &admin);
    assert!(looked.status == 200 && looked.body.starts_with(b"\x89PNG"), "{}", looked.head);
    let released = up.ask("POST", &format!("/api/v1/admin/held/{}/release", ids[0]), &admin, b"").json();
    let url = released["url"].as_str().unwrap().to_owned();
    let path = &url[url.find("/files/").unwrap()..];
    assert_eq!(up.get(path, &[]).body, looked.body);
    let seen = |headers: &[(&str, &str)]| up.get(&job, headers);
    assert_eq!(seen(&user).json()["released"], json!([url]), "its owner finds it with the job");
    assert_eq!(seen(&other).status, 404);
    assert_eq!(up.ask("DELETE", &format!("/api/v1/admin/held/{}", ids[1]), &admin, b"").status, 200);
    for id in [ids[0], ids[1]] {
        assert_eq!(up.get(&format!("/api/v1/admin/held/{id}"), &admin).status, 404, "it was decided");
    }
    assert_eq!(up.get("/api/v1/admin/held", &admin).json()["held"].as_array().map(Vec::len), Some(3));
    assert!(up.child.try_wait().unwrap().is_none());
    let log = up.log();
    // A job's name is no key, and those of files were asked for as such here.
    let mut lines = log.lines().filter(|line| !line.contains("/api/v1/jobs/") && !line.contains("/v1/predictions/"));
    let said = lines.find(|line| line.contains("red apple") || ids.iter().any(|id| line.contains(id)));
    assert_eq!(said, None, "the log has no prompt and no file's name");
}

#[test]
fn without_keys_nobody_is_a_reviewer_and_nothing_is_kept_unasked() {
    let up = Up::start(&[&STRICT[..], &["--set", "safety.hold=1h"]].concat());
    let asked =
        up.post("/api/v1/jobs", &[], &json!({"prompt": "a red apple", "steps": 1, "size": "64x64", "wait": true}));
    assert_eq!((asked.status, &asked.json()["error"]["code"]), (422, &json!("flagged")));
    for (method, path) in
        [("GET", "/api/v1/admin/held"), ("GET", "/api/v1/admin/held/0123456789abcdef0123456789abcdef")]
    {
        let answer = up.ask(method, path, &[], b"");
        assert!(answer.status == 403 && answer.text().contains("--scope admin"), "{}", answer.text());
    }

    let up = Up::start(&STRICT);
    let asked =
        up.post("/api/v1/jobs", &[], &json!({"prompt": "a red apple", "steps": 1, "size": "64x64", "wait": true}));
    assert_eq!(asked.json()["error"]["code"], "flagged");
    let metrics = up.get("/metrics", &[]).text();
    assert!(metrics.contains("darkroom_files 0\n"), "nothing of it is in the store: {metrics}");
}

/// A prompt that is refused costs no place in the queue, and each vendor says so in its own way.
#[test]
fn prompts_are_refused_before_they_wait() {
    let up = Up::start(&[]);
    let body = json!({"prompt": "hardcore porn"});
    let openai = up.post("/v1/images/generations", &[], &body);
    assert_eq!((openai.status, &openai.json()["error"]["code"]), (400, &json!("moderation_blocked")));
    assert_eq!(openai.json()["error"]["moderation_details"]["moderation_stage"], "input");
    let fal = up.post("/fal/run/fal-ai/flux/krea", &[], &body);
    assert_eq!((fal.status, &fal.json()["detail"][0]["type"]), (422, &json!("content_policy_violation")));
    assert_eq!(up.post("/sdapi/v1/txt2img", &[], &body).status, 422);
    assert_eq!(up.post("/api/v1/jobs", &[], &body).json()["error"]["code"], "flagged");

    let queued = up.post("/fal/queue/fal-ai/flux/krea", &[], &body).json();
    let id = queued["request_id"].as_str().unwrap();
    let told = (0..200).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let result = up.get(&format!("/fal/queue/fal-ai/flux/requests/{id}"), &[]).json();
        result["detail"].is_array().then_some(result)
    });
    let told = told.unwrap();
    assert_eq!(told["detail"][0]["type"], "content_policy_violation", "taken, and told with the result: {told}");
    let prefer = [("Prefer", "wait")];
    let path = "/v1/models/black-forest-labs/flux-krea-dev/predictions";
    let predicted = up.post(path, &prefer, &json!({"input": {"prompt": "hardcore porn"}}));
    assert_eq!((predicted.status, &predicted.json()["status"]), (201, &json!("failed")));
    let log = up.log();
    let said = log.lines().find(|line| line.contains("porn") || line.contains("started"));
    assert_eq!(said, None);
    assert!(up.get("/metrics", &[]).text().contains("darkroom_flagged_total{gate=\"prompt\"} 6"));
}

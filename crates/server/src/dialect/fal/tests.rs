//! fal's documented bodies in, fal's JSON out.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    blobs::BlobId,
    error::Stage,
    fields::bad_defaults,
    job::{Dialect, JobId, LogLine, Outcome},
    owner::Owner,
};

fn krea(kind: &str) -> App {
    app(&format!("fal-ai/flux/krea{kind}")).unwrap()
}

fn asked(kind: &str, body: &Value) -> Result<Ask, Fault> {
    ask(&krea(kind), "krea".into(), body, 7, KEEP_SECONDS)
}

fn refused(kind: &str, body: &Value) -> Value {
    let answer = fault(&asked(kind, body).unwrap_err());
    assert_eq!((answer.status, &answer.headers[0]), (422, &("x-fal-retryable", "false".to_owned())));
    answer.body["detail"].clone()
}

fn view(state: State, outcome: Option<Outcome>) -> JobView {
    let ask = asked("/redux", &json!({"image_url": "https://a/b.png", "seed": 17454220438242315174u64})).unwrap();
    JobView {
        id: JobId::from_random([1; 26]),
        dialect: Dialect::Fal,
        owner: Owner::anyone(),
        endpoint: "fal-ai/flux/krea/redux".into(),
        ask: Some(Arc::new(ask)),
        raw: Arc::new(json!({})),
        secret: None,
        state,
        position: (state == State::Queued).then_some(2),
        accepted: 0,
        started: None,
        finished: None,
        progress: None,
        logs: vec![LogLine { at: 0, message: "Using seed: 42".into() }, LogLine { at: 1, message: "x".into() }].into(),
        previews: Vec::new().into(),
        outcome: outcome.map(Arc::new),
    }
}

fn succeeded() -> JobView {
    let made = |seed, flagged| Made {
        blob: BlobId("b".into()),
        mime: "image/jpeg".into(),
        width: 1024,
        height: 768,
        bytes: 9,
        seed,
        flagged,
    };
    view(State::Succeeded, Some(Outcome::Succeeded { pictures: vec![made(1, false), made(2, true)], seconds: 2.5 }))
}

const ID: &str = "11111111111111111111111111";

#[test]
fn apps_are_read_from_their_paths() {
    let of = |path: &str| app(path).map(|app| (app.model, app.kind, app.door));
    let krea = || "fal-ai/flux/krea".to_owned();
    assert_eq!(of("fal-ai/flux/krea"), Some((krea(), Purpose::Text, Door::Run)));
    assert_eq!(of("fal-ai/flux/krea/image-to-image"), Some((krea(), Purpose::Image, Door::Run)));
    assert_eq!(of("fal-ai/flux/krea/redux/stream"), Some((krea(), Purpose::Redux, Door::Stream)));
    assert_eq!(of("fal-ai/flux-1/krea/realtime"), Some(("fal-ai/flux-1/krea".into(), Purpose::Text, Door::Realtime)));
    for wrong in ["", "krea", "stream", "/redux", "a/redux", "a//b", "/a/b"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
    assert_eq!(alias("fal-ai/flux/krea/redux"), "fal-ai/flux");
    assert_eq!(alias("fal-ai/flux"), "fal-ai/flux");
}

#[test]
fn the_tables_hold() {
    for table in [&TEXT_FIELDS[..], &IMAGE_FIELDS, &REDUX_FIELDS] {
        assert!(bad_defaults(table).is_empty());
    }
}

/// The example body of fal's page, and its defaults.
#[test]
fn the_documented_body_is_understood() {
    let ask = asked(
        "",
        &json!({"prompt": "A candid street photo", "image_size": "landscape_4_3", "num_inference_steps": 28, "guidance_scale": 4.5,
               "num_images": 1, "enable_safety_checker": true, "output_format": "jpeg", "acceleration": "none"}),
    )
    .unwrap();
    assert_eq!(ask, asked("", &json!({"prompt": "A candid street photo", "unknown": [1], "seed": null})).unwrap());
    assert_eq!(ask.size, OutputSize::Exact { width: 1024, height: 768 });
    assert_eq!((ask.steps, ask.guidance, ask.pictures, ask.seed, ask.quality), (28, 4.5, 1, 7, 95));
    assert_eq!(
        (ask.mode, ask.acceleration, ask.safety, ask.keep_seconds),
        (Mode::Text, Acceleration::None, true, 604_800)
    );
}

#[test]
fn each_app_has_its_own_parameters() {
    let image = asked("/image-to-image", &json!({"prompt": "", "image_url": "data:,x", "image_size": 5})).unwrap();
    assert_eq!((image.mode, image.steps), (Mode::Image { strength: 0.95 }, 40));
    assert_eq!(image.size, OutputSize::Follow { most: 2048, multiple: 1 });
    assert_eq!(image.given, [Source::Url { url: "data:,x".into(), field: "image_url".into() }]);
    let redux = asked("/redux/stream", &json!({"image_url": "https://a/b", "prompt": "left alone"})).unwrap();
    assert_eq!((redux.mode, redux.prompt.as_str(), redux.previews.count), (Mode::Redux, "", 8));
    assert_eq!(redux.size, OutputSize::Exact { width: 1024, height: 768 });
}

#[test]
fn sizes_are_presets_or_sides() {
    let size = |size: Value| asked("", &json!({"prompt": "x", "image_size": size})).map(|ask| ask.size);
    for (name, width, height) in PRESETS {
        assert_eq!(size(json!(name)), Ok(OutputSize::Exact { width, height }));
    }
    assert_eq!(size(json!({"width": 1280})), Ok(OutputSize::Exact { width: 1280, height: 512 }));
    assert_eq!(size(json!({})), Ok(OutputSize::Exact { width: 512, height: 512 }));
    let wrong = |size: Value| refused("", &json!({"prompt": "x", "image_size": size}));
    assert_eq!(wrong(json!({"width": 0}))[0]["loc"], json!(["body", "image_size", "width"]));
    assert_eq!(wrong(json!({"width": 14143}))[0]["ctx"], json!({"le": 14142}));
    assert_eq!(wrong(json!({"width": 4096, "height": 4096}))[0]["loc"], json!(["body", "image_size"]));
    assert_eq!(wrong(json!("huge"))[0]["type"], "literal_error");
    assert_eq!(wrong(json!(7))[0]["type"], "value_error");
}

#[test]
fn problems_are_worded_as_pydantic_words_them() {
    let detail = refused(
        "/image-to-image",
        &json!({"prompt": 1, "num_images": 5, "num_inference_steps": 9, "guidance_scale": "x", "output_format": "webp", "sync_mode": "7"}),
    );
    let told: Vec<_> =
        detail.as_array().unwrap().iter().map(|one| (one["loc"][1].clone(), one["type"].clone())).collect();
    assert_eq!(
        json!(told),
        json!([
            ["prompt", "string_type"],
            ["image_url", "missing"],
            ["num_inference_steps", "greater_than_equal"],
            ["guidance_scale", "float_parsing"],
            ["num_images", "less_than_equal"],
            ["output_format", "literal_error"],
            ["sync_mode", "bool_parsing"]
        ])
    );
    assert_eq!(
        detail[4],
        json!({"loc": ["body", "num_images"], "msg": "Input should be less than or equal to 4", "type": "less_than_equal",
               "ctx": {"le": 4}, "url": "https://docs.fal.ai/errors#less_than_equal"})
    );
    assert_eq!(detail[5]["msg"], "Input should be 'jpeg' or 'png'");
    assert_eq!(
        refused("", &json!([]))[0],
        json!({"loc": ["body"], "msg": "JSON decode error", "type": "json_invalid",
        "ctx": {"error": "has to be a JSON object"}, "url": "https://docs.fal.ai/errors#json_invalid"})
    );
}

#[test]
fn an_output_has_all_keys() {
    let output = output(&succeeded(), |made| format!("https://h/{}", made.seed));
    assert_eq!(
        output,
        json!({"images": [{"url": "https://h/1", "content_type": "image/jpeg", "width": 1024, "height": 768},
                          {"url": "https://h/2", "content_type": "image/jpeg", "width": 1024, "height": 768}],
               "timings": {"inference": 2.5}, "seed": 17454220438242315174u64, "has_nsfw_concepts": [false, true], "prompt": ""})
    );
}

#[test]
fn the_queue_speaks_in_states() {
    let queue = "https://h/fal/queue";
    let response = format!("{queue}/fal-ai/flux/requests/{ID}");
    let urls = json!({"request_id": ID, "response_url": response, "status_url": format!("{response}/status"),
                      "cancel_url": format!("{response}/cancel")});
    let with = |more: Value| {
        let mut all = urls.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    assert_eq!(
        submitted(&view(State::Queued, None), queue),
        with(json!({"status": "IN_QUEUE", "gateway_request_id": ID, "queue_position": 2}))
    );
    let of = |state, outcome, logs| {
        let answer = status(&view(state, outcome), queue, logs);
        (answer.status, answer.body)
    };
    assert_eq!(of(State::Queued, None, Some(0)), (202, with(json!({"status": "IN_QUEUE", "queue_position": 2}))));
    assert_eq!(of(State::Running, None, None), (202, with(json!({"status": "IN_PROGRESS", "logs": null}))));
    let line =
        json!({"message": "x", "level": "INFO", "source": "USER", "timestamp": "1970-01-01T00:00:00.001000+00:00"});
    assert_eq!(of(State::Running, None, Some(1)), (202, with(json!({"status": "IN_PROGRESS", "logs": [line]}))));
    let done = status(&succeeded(), queue, None);
    assert_eq!(
        (done.status, done.body),
        (200, with(json!({"status": "COMPLETED", "logs": null, "metrics": {"inference_time": 2.5}})))
    );
    let failed = Outcome::Failed(Fault::invalid("prompt", Rule::Missing, ""));
    assert_eq!(
        of(State::Failed, Some(failed), None),
        (
            200,
            with(json!({"status": "COMPLETED", "logs": null, "metrics": {}, "error": "Invalid status code: 422",
                          "error_type": "bad_request"}))
        )
    );
    let (_, cancelled) = of(State::Cancelled, Some(Outcome::Cancelled), None);
    assert_eq!((&cancelled["status"], &cancelled["error_type"]), (&json!("COMPLETED"), &json!("client_cancelled")));
}

#[test]
fn every_fault_has_a_status() {
    let picture = |kind| Fault::Picture { field: "image_url".into(), kind, message: "m".into() };
    let flagged = Fault::Flagged { stage: Stage::Prompt, categories: Vec::new(), message: "m".into() };
    for (fault, status, kind) in [
        (picture(PictureFault::Download), 422, "file_download_error"),
        (picture(PictureFault::Decode), 422, "image_load_error"),
        (picture(PictureFault::TooLarge), 422, "image_too_large"),
        (flagged, 422, "content_policy_violation"),
        (Fault::UnknownModel("m".into()), 404, ""),
        (Fault::WrongMethod, 405, ""),
        (Fault::Unauthenticated, 401, ""),
        (Fault::Forbidden("m".into()), 403, ""),
        (Fault::TooLarge("m".into()), 413, ""),
        (Fault::Full { retry_after: 3, message: "m".into() }, 429, ""),
        (Fault::TimedOut("m".into()), 504, "request_timeout"),
        (Fault::Cancelled, 499, "client_cancelled"),
        (Fault::Failed("m".into()), 500, "internal_error"),
        (Fault::Unavailable("m".into()), 503, "runner_scheduling_failure"),
    ] {
        let answer = super::fault(&fault);
        assert_eq!(answer.status, status, "{fault:?}");
        let told = if status == 422 { &answer.body["detail"][0]["type"] } else { &answer.body["error_type"] };
        assert_eq!(told.as_str().unwrap_or_default(), kind, "{fault:?}");
        assert!(![408, 409].contains(&status), "clients would ask again");
    }
}

#[test]
fn a_webhook_tells_the_output_or_the_failure() {
    let view = succeeded();
    let told = notice(&view, json!({"images": []}));
    assert_eq!(
        told,
        json!({"request_id": ID, "gateway_request_id": ID, "status": "OK", "error": null, "payload": {"images": []}})
    );
    let told =
        notice(&super::tests::view(State::Failed, Some(Outcome::Failed(Fault::Failed("no".into())))), Value::Null);
    assert_eq!((&told["status"], &told["error"]), (&json!("ERROR"), &json!("Invalid status code: 500")));
    assert_eq!(told["payload"]["detail"], "no");
}

#[test]
fn headers_and_sync_mode_are_read() {
    assert_eq!(keep_seconds(Some(r#"{"expiration_duration_seconds": 3600}"#)), 3600);
    assert_eq!(keep_seconds(Some("1")), KEEP_SECONDS);
    assert_eq!(keep_seconds(None), KEEP_SECONDS);
    assert!(wants_data(&json!({"sync_mode": "true"})) && !wants_data(&json!({})) && !wants_data(&json!([])));
}

//! Replicate's documented bodies in, Replicate's JSON out.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    blobs::BlobId,
    fields::bad_defaults,
    job::{Dialect, JobId, LogLine, Made},
    owner::Owner,
};

fn asked(input: &Value) -> Result<Ask, Fault> {
    ask("krea".into(), input, 7)
}

fn view(state: State, outcome: Option<Outcome>) -> JobView {
    JobView {
        id: JobId::from_random([1; 26]),
        dialect: Dialect::Replicate,
        owner: Owner::anyone(),
        endpoint: MODEL.into(),
        ask: Some(Arc::new(asked(&json!({"prompt": "a fox"})).unwrap())),
        raw: Arc::new(json!({"prompt": "a fox"})),
        secret: Some("s3cret".into()),
        state,
        position: None,
        accepted: 0,
        started: Some(500),
        finished: state.is_final().then_some(2500),
        progress: None,
        logs: vec![LogLine { at: 0, message: "Using seed: 42".into() }, LogLine { at: 1, message: "x".into() }].into(),
        previews: Vec::new().into(),
        outcome: outcome.map(Arc::new),
    }
}

fn succeeded() -> JobView {
    let made = Made {
        blob: BlobId("b".into()),
        mime: "image/webp".into(),
        width: 1024,
        height: 1024,
        bytes: 9,
        seed: 1,
        flagged: false,
    };
    view(State::Succeeded, Some(Outcome::Succeeded { pictures: vec![made], seconds: 1.9 }))
}

const ID: &str = "11111111111111111111111111";

#[test]
fn the_table_holds() {
    assert!(bad_defaults(&FIELDS).is_empty());
    assert_eq!(SHAPES.map(|(name, ..)| name), ASPECTS);
    assert!(SHAPES.iter().all(|(_, width, height)| width % 32 == 0 && height % 32 == 0));
}

#[test]
fn defaults_are_replicates_own() {
    let ask = asked(&json!({"prompt": "a fox", "unknown": 1})).unwrap();
    assert_eq!((ask.steps, ask.guidance, ask.pictures, ask.seed, ask.quality), (28, 3.0, 1, 7, 80));
    assert_eq!(
        (ask.format, ask.acceleration, ask.safety),
        (flux::image_file::Format::Webp, Acceleration::Regular, true)
    );
    assert_eq!((ask.mode, ask.size), (Mode::Text, OutputSize::Exact { width: 1024, height: 1024 }));
}

#[test]
fn parameters_mean_what_they_mean_at_replicate() {
    let ask = asked(&json!({"prompt": "", "aspect_ratio": "21:9", "megapixels": 0.25, "go_fast": "false",
        "disable_safety_checker": true, "output_format": "jpg", "seed": 0}))
    .unwrap();
    assert_eq!(ask.size, OutputSize::Exact { width: 768, height: 320 });
    assert_eq!((ask.acceleration, ask.safety, ask.seed), (Acceleration::None, false, 0));
    let ask = asked(&json!({"prompt": "x", "image": "https://a/b.png", "aspect_ratio": "1:1"})).unwrap();
    assert_eq!((ask.mode, ask.acceleration), (Mode::Image { strength: 0.8 }, Acceleration::None));
    assert_eq!(ask.size, OutputSize::Follow { most: 1440, multiple: 16 });
    assert_eq!(ask.given, [Source::Url { url: "https://a/b.png".into(), field: "input.image".into() }]);
}

#[test]
fn problems_are_told_in_a_list_and_in_lines() {
    let answer = fault(&asked(&json!({"num_outputs": 5, "aspect_ratio": "7:1", "guidance": "x"})).unwrap_err());
    assert_eq!((answer.status, &answer.body["title"]), (422, &json!("Input validation failed")));
    let lines: Vec<_> = answer.body["detail"].as_str().unwrap().lines().collect();
    assert_eq!(lines[0], "- input: prompt is required");
    assert!(lines[1].starts_with("- input.aspect_ratio: Must be one of the following: \"1:1\", \"16:9\""), "{lines:?}");
    assert_eq!(
        lines[2..],
        ["- input.num_outputs: Must be less than or equal to 4", "- input.guidance: Invalid type. Expected: number"]
    );
    assert_eq!(
        answer.body["invalid_fields"][2],
        json!({"type": "number_lte", "field": "input.num_outputs", "description": "Must be less than or equal to 4"})
    );
    assert_eq!(fault(&asked(&json!("x")).unwrap_err()).body["invalid_fields"][0]["field"], "input");
}

#[test]
fn a_prediction_has_every_key() {
    let told = prediction(&succeeded(), "https://h", Some(vec!["https://h/files/t/0.webp".into()]));
    assert_eq!(
        told,
        json!({"id": ID, "model": MODEL, "version": "hidden", "input": {"prompt": "a fox"}, "logs": "Using seed: 42\nx",
               "output": ["https://h/files/t/0.webp"], "data_removed": false, "error": null, "status": "succeeded", "source": "api",
               "created_at": "1970-01-01T00:00:00.000000Z", "started_at": "1970-01-01T00:00:00.500000Z",
               "completed_at": "1970-01-01T00:00:02.500000Z",
               "metrics": {"predict_time": 1.9, "total_time": 2.5, "image_count": 1},
               "urls": {"get": format!("https://h/v1/predictions/{ID}"), "cancel": format!("https://h/v1/predictions/{ID}/cancel"),
                        "web": format!("https://h/v1/predictions/{ID}"), "stream": "https://h/v1/files/stream-s3cret"}})
    );
    assert_eq!(prediction(&succeeded(), "", None)["data_removed"], true);
    let running = prediction(&view(State::Running, None), "", None);
    assert_eq!(
        (&running["status"], &running["completed_at"], &running["data_removed"]),
        (&json!("processing"), &Value::Null, &json!(false))
    );
    assert_eq!(still_starting(running)["status"], "starting");
    assert_eq!(prediction(&view(State::Queued, None), "", None)["status"], "starting");
    assert_eq!(prediction(&view(State::Cancelled, Some(Outcome::Cancelled)), "", None)["status"], "canceled");
}

#[test]
fn a_flagged_prediction_says_so() {
    let flagged = Fault::Flagged { stage: Stage::Picture, categories: Vec::new(), message: "m".into() };
    let failed = view(State::Failed, Some(Outcome::Failed(flagged)));
    assert!(prediction(&failed, "", None)["error"].as_str().unwrap().contains("NSFW"));
    assert_eq!(done(&failed), json!({"reason": "error"}));
    assert!(stream_error(&failed).is_some() && stream_error(&succeeded()).is_none());
    assert_eq!((done(&succeeded()), done(&view(State::Cancelled, None))), (json!({}), json!({"reason": "canceled"})));
}

#[test]
fn webhooks_are_asked_for_in_two_ways() {
    let of = |body: Value| webhook(body.as_object().unwrap());
    assert_eq!(of(json!({"webhook": null})), Ok(None));
    let hook = of(json!({"webhook": "https://a/b"})).unwrap().unwrap();
    assert_eq!(hook.moments, [Moment::Output, Moment::Completed]);
    let hook = of(json!({"webhook": "https://a/b", "webhook_events_filter": ["start", "logs"]})).unwrap().unwrap();
    assert_eq!(hook.moments, [Moment::Start, Moment::Logs]);
    let hook = of(json!({"webhook_completed": "https://a/c"})).unwrap().unwrap();
    assert_eq!((hook.url.as_str(), &hook.moments[..]), ("https://a/c", &[Moment::Completed][..]));
    for wrong in [
        json!({"webhook": 7}),
        json!({"webhook": "ftp://a"}),
        json!({"webhook": "http://a", "webhook_events_filter": ["x"]}),
    ] {
        assert!(of(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn waits_end_before_the_client_gives_up() {
    let of = |prefer| wait(Some(prefer)).map(|wait| wait.as_secs_f64());
    assert_eq!((of("wait"), of("wait=5"), of("respond-async, wait=1")), (Some(59.5), Some(4.5), Some(0.5)));
    assert_eq!(
        (of("wait=600"), of("wait=x"), of("waiting"), of("wait=-1"), wait(None)),
        (Some(59.5), None, None, None, None)
    );
}

#[test]
fn cancel_after_is_a_duration() {
    let of = |text: &str| cancel_after(Some(text)).map(|time| time.map(|time| time.as_secs()));
    assert_eq!(
        (of("90s"), of("1m30s"), of("30"), of("2h")),
        (Ok(Some(90)), Ok(Some(90)), Ok(Some(30)), Ok(Some(7200)))
    );
    assert_eq!((of(""), cancel_after(None)), (Ok(None), Ok(None)));
    for wrong in ["4", "s", "1x", "-5", "99999999999999999999", "25h", "1.5m", "é"] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn models_and_versions_are_named_in_several_ways() {
    let id = version_id(MODEL);
    assert_eq!(id.len(), 64);
    assert_eq!(named(MODEL), Named { name: Some(MODEL), version: None });
    assert_eq!(named(&format!("{MODEL}:{id}")), Named { name: Some(MODEL), version: Some(&id) });
    assert_eq!(named(&id), Named { name: None, version: Some(&id) });
    let model = model(MODEL, "http://h");
    assert_eq!((&model["owner"], &model["name"]), (&json!("black-forest-labs"), &json!("flux-krea-dev")));
    assert_eq!(model["latest_version"]["id"], id);
}

#[test]
fn a_model_is_a_deployment_and_is_found_by_words() {
    let deployment = deployment(MODEL, "me");
    assert_eq!((&deployment["owner"], &deployment["name"]), (&json!("black-forest-labs"), &json!("flux-krea-dev")));
    let release = &deployment["current_release"];
    assert_eq!((&release["number"], &release["version"]), (&json!(1), &json!(version_id(MODEL))));
    assert_eq!(release["created_by"]["username"], "me");
    assert!(fits(MODEL, "FLUX pictures") && fits(MODEL, " ") && !fits(MODEL, "llama"));
}

#[test]
fn the_schema_is_cogs() {
    let schemas = &schema()["components"]["schemas"];
    let input = &schemas["Input"];
    assert_eq!(input["required"], json!(["prompt"]));
    assert_eq!(
        input["properties"]["num_outputs"],
        json!({"type": "integer", "title": "Num Outputs", "description": "Number of outputs to generate", "default": 1,
               "minimum": 1, "maximum": 4, "x-order": 4})
    );
    assert_eq!(input["properties"]["megapixels"]["allOf"][0]["$ref"], "#/components/schemas/megapixels");
    assert_eq!(schemas["megapixels"]["enum"], json!(["1", "0.25"]));
    assert!(input["properties"]["seed"].get("minimum").is_none());
    assert_eq!(
        schemas["Output"],
        json!({"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"})
    );
}

#[test]
fn every_fault_has_a_status() {
    for (fault, status) in [
        (Fault::UnknownModel("m".into()), 404),
        (Fault::WrongMethod, 405),
        (Fault::Unauthenticated, 401),
        (Fault::Full { retry_after: 1, message: "m".into() }, 429),
        (Fault::Failed("m".into()), 500),
        (Fault::Unavailable("m".into()), 503),
        (Fault::TooLarge("m".into()), 413),
    ] {
        assert_eq!(super::fault(&fault).status, status, "{fault:?}");
    }
    let full = super::fault(&Fault::Full { retry_after: 1, message: "m".into() });
    assert_eq!(full.body["detail"], "Request was throttled. Expected available in 1 second.");
    assert_eq!(full.headers, [("retry-after", "1".to_owned())]);
}

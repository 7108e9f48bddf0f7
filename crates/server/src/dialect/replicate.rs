//! Replicate's dialect: the parameters of `black-forest-labs/flux-krea-dev`, predictions, models with their schema, files and errors.
//!
//! Source: cog-flux's `FluxKreaDevPredictor` and what Replicate's clients read of the answers.

use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, LONGEST_PROMPT, SEEDS, format, instant, number, object, seed};
use crate::{
    ask::{Acceleration, Ask, Mode, OutputSize, Source},
    error::{Fault, Problem, Rule, Stage},
    fields::{Field, Kind, Treatment, field, read},
    job::{JobView, Moment, Outcome, State, Webhook},
};

/// Seconds that pictures are kept.
pub const KEEP_SECONDS: u64 = 24 * 3600;

/// The one model's name among Replicate's.
pub const MODEL: &str = "black-forest-labs/flux-krea-dev";

/// Shapes with the pixels of 1 megapixel; a quarter has half of each side. Source: cog-flux's `ASPECT_RATIOS`.
pub const SHAPES: [(&str, u32, u32); 11] = [
    ("1:1", 1024, 1024),
    ("16:9", 1344, 768),
    ("21:9", 1536, 640),
    ("3:2", 1216, 832),
    ("2:3", 832, 1216),
    ("4:5", 896, 1088),
    ("5:4", 1088, 896),
    ("3:4", 896, 1152),
    ("4:3", 1152, 896),
    ("9:16", 768, 1344),
    ("9:21", 640, 1536),
];

const ASPECTS: [&str; 11] = ["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"];

/// Parameters of a prediction's `input`.
pub const FIELDS: [Field; 13] = [
    field("prompt", Kind::Text(LONGEST_PROMPT), "Prompt for generated image").required(),
    field("aspect_ratio", Kind::Choice(&ASPECTS), "Aspect ratio for the generated image")
        .default("\"1:1\"")
        .treated(Treatment::Converted("a ratio and megapixels become pixels by Replicate's table")),
    field("image", Kind::Picture, "Input image for image to image mode. The aspect ratio of your output will match this image"),
    field(
        "prompt_strength",
        Kind::Number(0.0, 1.0),
        "Prompt strength when using img2img. 1.0 corresponds to full destruction of information in image",
    )
    .default("0.8")
    .treated(Treatment::Renamed("strength")),
    field("num_outputs", Kind::Integer(1, 4), "Number of outputs to generate")
        .default("1")
        .treated(Treatment::Renamed("pictures")),
    field("num_inference_steps", Kind::Integer(1, 50), "Number of denoising steps")
        .default("28")
        .treated(Treatment::Renamed("steps")),
    field("guidance", Kind::Number(0.0, 10.0), "Guidance for generated image").default("3"),
    field("seed", Kind::Integer(SEEDS.0, SEEDS.1), "Random seed. Set for reproducible generation"),
    field("output_format", Kind::Choice(&["webp", "jpg", "png"]), "Format of the output images")
        .default("\"webp\"")
        .treated(Treatment::Renamed("format")),
    field(
        "output_quality",
        Kind::Integer(0, 100),
        "Quality when saving the output images, from 0 to 100. 100 is best quality, 0 is lowest quality. Not relevant for .png outputs",
    )
    .default("80")
    .treated(Treatment::Renamed("quality")),
    field("disable_safety_checker", Kind::Flag, "Disable safety checker for generated images.")
        .default("false")
        .treated(Treatment::Converted("its opposite is asked of the picture gate")),
    field("go_fast", Kind::Flag, "Run faster predictions with additional optimizations.")
        .default("true")
        .treated(Treatment::Converted("acceleration 'regular'; none when begun from a picture")),
    field("megapixels", Kind::Choice(&["1", "0.25"]), "Approximate number of megapixels for generated image")
        .default("\"1\"")
        .treated(Treatment::Converted("see aspect_ratio")),
];

/// What is asked by a prediction's `input`.
///
/// # Errors
/// [`Fault::Invalid`] with every problem found, fields named `input.…`.
pub fn ask(model: String, input: &Value, random: u32) -> Result<Ask, Fault> {
    let values = object(input).and_then(|input| read(&FIELDS, input)).map_err(in_input)?;
    let image = values.text("image").map(|url| Source::Url { url: url.into(), field: "input.image".into() });
    let aspect = values.the_text("aspect_ratio");
    let (_, width, height) = SHAPES.into_iter().find(|(name, ..)| *name == aspect).unwrap_or(SHAPES[0]);
    let divisor = if values.the_text("megapixels") == "0.25" { 2 } else { 1 };
    let fast = values.the_flag("go_fast") && image.is_none();
    Ok(Ask {
        mode: match image {
            Some(_) => Mode::Image { strength: values.the_number("prompt_strength") },
            None => Mode::Text,
        },
        size: match image {
            Some(_) => OutputSize::Follow { most: 1440, multiple: 16 },
            None => OutputSize::Exact { width: width / divisor, height: height / divisor },
        },
        steps: values.the_integer("num_inference_steps"),
        guidance: values.the_number("guidance"),
        seed: seed(values.integer("seed"), random),
        pictures: values.the_integer("num_outputs"),
        given: image.into_iter().collect(),
        format: format(&values, "output_format").map_err(in_input)?,
        quality: values.the_integer("output_quality"),
        acceleration: if fast { Acceleration::Regular } else { Acceleration::None },
        safety: !values.the_flag("disable_safety_checker"),
        keep_seconds: KEEP_SECONDS,
        ..Ask::text(model, values.the_text("prompt"))
    })
}

/// Problems of an `input`, under the names that the body has for them.
fn in_input(fault: Fault) -> Fault {
    let name = |p: &Problem| if p.rule == Rule::Body { "input".to_owned() } else { format!("input.{}", p.field) };
    match fault {
        Fault::Invalid(problems) => {
            Fault::Invalid(problems.into_iter().map(|p| Problem { field: name(&p), ..p }).collect())
        }
        other => other,
    }
}

/// Who wants to be told, as a prediction's body says.
///
/// # Errors
/// [`Fault::Invalid`] about `webhook` or `webhook_events_filter`.
pub fn webhook(body: &Map<String, Value>) -> Result<Option<Webhook>, Fault> {
    let url = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(url)) if url.is_empty() => Ok(None),
        Some(Value::String(url)) if url.starts_with("https://") || url.starts_with("http://") => Ok(Some(url.clone())),
        Some(_) => Err(Fault::invalid(name, Rule::Other, "has to be an http or https URL")),
    };
    // `webhook_completed` is the older way to ask for the end alone.
    let (url, usual) = match url("webhook")? {
        Some(url) => (url, vec![Moment::Output, Moment::Completed]),
        None => match url("webhook_completed")? {
            Some(url) => (url, vec![Moment::Completed]),
            None => return Ok(None),
        },
    };
    let moments = match body.get("webhook_events_filter") {
        None | Some(Value::Null) => usual,
        Some(Value::Array(names)) if names.is_empty() => usual,
        Some(filter) => serde_json::from_value(filter.clone()).map_err(|_| {
            let names = ["start", "output", "logs", "completed"].map(str::to_owned).to_vec();
            Fault::invalid(
                "webhook_events_filter",
                Rule::OneOf(names),
                "has to be a list of start, output, logs, completed",
            )
        })?,
    };
    Ok(Some(Webhook { url, moments, base: None }))
}

/// How long a request is held, from `Prefer: wait` or `wait=5`: half a second less than asked for, because the client gives up
/// half a second after it.
pub fn wait(prefer: Option<&str>) -> Option<Duration> {
    const LONGEST: f64 = 60.0;
    let wish = prefer?.split([',', ';']).map(str::trim).find(|part| part.starts_with("wait"))?;
    let seconds = match wish.strip_prefix("wait")?.trim().strip_prefix('=') {
        Some(number) => number.trim().trim_matches('"').parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0)?,
        None if wish == "wait" => LONGEST,
        None => return None,
    };
    Some(Duration::from_secs_f64((seconds.clamp(1.0, LONGEST)) - 0.5))
}

/// The time after which a prediction is cancelled, from `Cancel-After`: `90s`, `1m30s`, `30`.
///
/// # Errors
/// [`Fault::Invalid`] if it is no duration, or less than five seconds.
pub fn cancel_after(header: Option<&str>) -> Result<Option<Duration>, Fault> {
    let Some(text) = header.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = || {
        let message = "has to be a duration of at least 5 seconds, as 30, 90s or 1m30s";
        Fault::invalid("Cancel-After", Rule::Other, message)
    };
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].chars().next();
        let of = match unit {
            None | Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some(_) => return Err(wrong()),
        };
        seconds = count.checked_mul(of).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[digits + usize::from(unit.is_some())..];
    }
    if (5..=24 * 3600).contains(&seconds) { Ok(Some(Duration::from_secs(seconds))) } else { Err(wrong()) }
}

/// A prediction. `base` is the server's public URL without a slash at its end; `output` the pictures' URLs, `None` where they are
/// left out or gone.
pub fn prediction(view: &JobView, base: &str, output: Option<Vec<String>>) -> Value {
    let status = match view.state {
        State::Queued => "starting",
        State::Running => "processing",
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Cancelled => "canceled",
    };
    let logs: Vec<_> = view.logs.iter().map(|line| line.message.as_str()).collect();
    let at = |at: Option<i64>| at.map_or(Value::Null, |at| instant(at).into());
    let error = match view.outcome.as_deref() {
        Some(Outcome::Failed(fault)) => Value::from(failure(fault)),
        _ => Value::Null,
    };
    let seconds = |from: Option<i64>, to: Option<i64>| Some((to? - from?).max(0) as f64 / 1000.0);
    let mut metrics = Map::new();
    if view.state.is_final() {
        let predict = match view.outcome.as_deref() {
            Some(Outcome::Succeeded { seconds, .. }) => Some(*seconds),
            _ => seconds(view.started, view.finished),
        };
        metrics.extend(predict.map(|seconds| ("predict_time".to_owned(), Value::from(seconds))));
        let total = seconds(Some(view.accepted), view.finished);
        metrics.extend(total.map(|seconds| ("total_time".to_owned(), Value::from(seconds))));
        if view.state == State::Succeeded {
            metrics.insert("image_count".into(), view.made().len().into());
        }
    }
    let get = format!("{base}/v1/predictions/{}", view.id);
    let mut urls = json!({"get": get, "cancel": format!("{get}/cancel"), "web": get});
    if let (Some(secret), Some(urls)) = (&view.secret, urls.as_object_mut()) {
        urls.insert("stream".into(), format!("{base}{STREAM}{secret}").into());
    }
    let gone = view.state == State::Succeeded && output.is_none();
    json!({
        "id": view.id, "model": &*view.endpoint, "version": "hidden", "input": &*view.raw,
        "logs": logs.join("\n"), "output": output.map_or(Value::Null, Value::from), "data_removed": gone, "error": error,
        "status": status, "source": "api", "created_at": instant(view.accepted), "started_at": at(view.started),
        "completed_at": at(view.finished), "metrics": metrics, "urls": urls,
    })
}

/// The path before a stream's secret. The node client makes file objects of a stream's outputs only under `/v1/files/`.
pub const STREAM: &str = "/v1/files/stream-";

/// The same prediction as one says it when the wait has run out: clients take every other state for the end.
pub fn still_starting(mut prediction: Value) -> Value {
    if let Some(members) = prediction.as_object_mut() {
        members.insert("status".into(), "starting".into());
    }
    prediction
}

/// Why a prediction failed, a sentence.
fn failure(fault: &Fault) -> String {
    match fault {
        Fault::Flagged { stage: Stage::Picture, .. } => {
            "All generated images contained NSFW content. Try running it again with a different prompt.".into()
        }
        Fault::Flagged { message, .. } => format!("NSFW content was asked for: {message}"),
        other => other.to_string(),
    }
}

/// The `data` of a stream's `done` event.
pub fn done(view: &JobView) -> Value {
    match view.state {
        State::Cancelled => json!({"reason": "canceled"}),
        State::Failed => json!({"reason": "error"}),
        _ => json!({}),
    }
}

/// The `data` of a stream's `error` event.
pub fn stream_error(view: &JobView) -> Option<Value> {
    match view.outcome.as_deref() {
        Some(Outcome::Failed(fault)) => Some(json!({"detail": failure(fault)})),
        _ => None,
    }
}

/// A model; `name` is `owner/name`. Also what OpenAI's clients read, whose older versions ask at the same path.
pub fn model(name: &str, base: &str) -> Value {
    let (owner, short) = name.split_once('/').unwrap_or(("darkroom", name));
    json!({
        "id": name, "object": "model", "created": RELEASED / 1000, "owned_by": owner,
        "url": format!("{base}/v1/models/{name}"), "owner": owner, "name": short,
        "description": "FLUX.1 [dev] weights on your own machine", "visibility": "public", "is_official": true,
        "github_url": null, "paper_url": null, "license_url": null, "run_count": 0, "cover_image_url": null,
        "default_example": null, "latest_version": version(name),
    })
}

/// A model as the deployment of its own name; `username` is whoever asks.
pub fn deployment(name: &str, username: &str) -> Value {
    let (owner, short) = name.split_once('/').unwrap_or(("darkroom", name));
    json!({
        "owner": owner, "name": short,
        "current_release": {
            "number": 1, "model": name, "version": version_id(name), "created_at": instant(RELEASED),
            "created_by": {"type": "user", "username": username, "name": username, "github_url": null},
            "configuration": {"hardware": "cpu", "min_instances": 1, "max_instances": 1},
        },
    })
}

/// Whether a model's name is looked for: one of the words stands in it. Without a word, any is.
pub fn fits(name: &str, wish: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = wish.split_whitespace().peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word.to_ascii_lowercase()))
}

/// When the weights of FLUX.1 Krea \[dev\] were published, 2025-07-31.
const RELEASED: i64 = 1_753_920_000_000;

/// The name of a model's one version: 64 hexadecimal characters that depend on the model's name alone.
pub fn version_id(name: &str) -> String {
    crate::hex::hex(&Sha256::digest(format!("darkroom:{name}:1")))
}

/// A model's one version, with the schema of its input.
pub fn version(name: &str) -> Value {
    json!({"id": version_id(name), "created_at": instant(RELEASED), "cog_version": "0.15.0", "openapi_schema": schema()})
}

/// What a body names as `version`: `owner/name`, `owner/name:version` or a version's name alone.
pub fn named(version: &str) -> Named<'_> {
    match version.rsplit_once(':') {
        Some((name, version)) => Named { name: Some(name), version: Some(version) },
        None if version.contains('/') => Named { name: Some(version), version: None },
        None => Named { name: None, version: Some(version) },
    }
}

/// A model by its name, a version's name, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// `owner/name`.
    pub name: Option<&'a str>,
    /// 64 hexadecimal characters.
    pub version: Option<&'a str>,
}

/// The OpenAPI schema of input and output, in the form that Cog gives it.
pub fn schema() -> Value {
    let mut properties = Map::new();
    let mut schemas = Map::new();
    for (order, field) in FIELDS.iter().enumerate() {
        let title = field.name.split('_').map(capital).collect::<Vec<_>>().join(" ");
        let mut property = json!({"description": field.about, "x-order": order});
        let Some(members) = property.as_object_mut() else { continue };
        let mut put = |name: &str, value: Value| members.insert(name.into(), value);
        match field.kind {
            Kind::Choice(choices) => {
                put("allOf", json!([{"$ref": format!("#/components/schemas/{}", field.name)}]));
                let about = "An enumeration.";
                let choice = json!({"type": "string", "title": field.name, "enum": choices, "description": about});
                schemas.insert(field.name.into(), choice);
            }
            Kind::Integer(least, most) => {
                put("type", "integer".into());
                put("title", title.into());
                if (least, most) != SEEDS {
                    put("minimum", number(least as f64));
                    put("maximum", number(most as f64));
                }
            }
            Kind::Number(least, most) => {
                put("type", "number".into());
                put("title", title.into());
                put("minimum", number(least));
                put("maximum", number(most));
            }
            kind => {
                put("type", if matches!(kind, Kind::Flag) { "boolean" } else { "string" }.into());
                put("title", title.into());
                if matches!(kind, Kind::Picture) {
                    put("format", "uri".into());
                }
            }
        }
        if let Ok(default) = serde_json::from_str::<Value>(field.default) {
            put("default", default);
        }
        properties.insert(field.name.into(), property);
    }
    let required: Vec<_> = FIELDS.iter().filter(|field| field.required).map(|field| field.name).collect();
    schemas.insert(
        "Input".into(),
        json!({"type": "object", "title": "Input", "required": required, "properties": properties}),
    );
    // Not marked as an iterator: with that mark clients would give their users a generator.
    let uri = json!({"type": "string", "format": "uri"});
    schemas.insert("Output".into(), json!({"type": "array", "items": uri, "title": "Output"}));
    json!({"openapi": "3.0.2", "info": {"title": "Cog", "version": "0.1.0"}, "paths": {}, "components": {"schemas": schemas}})
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A file that somebody uploaded.
#[derive(Clone, Debug, PartialEq)]
pub struct File<'a> {
    /// Its name in URLs.
    pub id: &'a str,
    /// As it was uploaded.
    pub name: &'a str,
    /// The media type.
    pub mime: &'a str,
    /// Bytes.
    pub size: u64,
    /// Hexadecimal.
    pub sha256: &'a str,
    /// Whatever the caller said of it.
    pub metadata: &'a Value,
    /// When it came.
    pub created: i64,
    /// When it goes.
    pub expires: i64,
    /// Where its bytes are.
    pub url: &'a str,
}

/// A file object.
pub fn file(file: &File<'_>) -> Value {
    json!({
        "id": file.id, "name": file.name, "content_type": file.mime, "size": file.size, "etag": file.sha256,
        "checksums": {"sha256": file.sha256}, "metadata": file.metadata, "created_at": instant(file.created),
        "expires_at": instant(file.expires), "urls": {"get": file.url},
    })
}

/// A failure in Replicate's words.
pub fn fault(fault: &Fault) -> Answer {
    let detail = fault.to_string();
    let titled = |status: u16, title: &str, detail: &str| {
        Answer::new(status, json!({"title": title, "detail": detail, "status": status}))
    };
    match fault {
        Fault::Invalid(problems) => {
            let told: Vec<_> = problems.iter().map(problem).collect();
            let lines: Vec<_> = told.iter().map(|(_, field, says)| format!("- {field}: {says}\n")).collect();
            let fields: Vec<_> = told
                .iter()
                .map(|(kind, field, says)| json!({"type": kind, "field": field, "description": says}))
                .collect();
            let title = "Input validation failed";
            Answer::new(422, json!({"title": title, "detail": lines.concat(), "status": 422, "invalid_fields": fields}))
        }
        Fault::Picture { field, message, .. } => {
            let fields = json!([{"type": "invalid", "field": field, "description": message}]);
            let (title, line) = ("Input validation failed", format!("- {field}: {message}\n"));
            Answer::new(422, json!({"title": title, "detail": line, "status": 422, "invalid_fields": fields}))
        }
        Fault::Flagged { .. } => titled(422, "Content policy", &failure(fault)),
        Fault::NotFound(_) | Fault::UnknownModel(_) => {
            titled(404, "Not found", "The requested resource could not be found.")
        }
        Fault::WrongMethod => titled(405, "Method not allowed", &detail),
        Fault::Unauthenticated => titled(401, "Unauthenticated", "You did not pass a valid authentication token"),
        Fault::Forbidden(_) => titled(403, "Permission denied", &detail),
        Fault::TooLarge(_) => titled(413, "Payload too large", &detail),
        Fault::Full { retry_after, .. } => {
            let unit = if *retry_after == 1 { "second" } else { "seconds" };
            let detail = format!("Request was throttled. Expected available in {retry_after} {unit}.");
            Answer::new(429, json!({"detail": detail, "status": 429})).with("retry-after", retry_after.to_string())
        }
        // 408 and 409 would make clients ask again.
        Fault::TimedOut(_) => titled(504, "Timed out", &detail),
        Fault::Cancelled => titled(422, "Canceled", &detail),
        Fault::Failed(_) => titled(500, "Internal server error", &detail),
        Fault::Unavailable(_) => titled(503, "Service unavailable", &detail),
    }
}

/// The rule's name, the field and the sentence.
fn problem(problem: &Problem) -> (&'static str, String, String) {
    let field = problem.field.clone();
    match &problem.rule {
        Rule::Missing => match field.rsplit_once('.') {
            Some((object, name)) => ("required", object.into(), format!("{name} is required")),
            None => ("required", field.clone(), format!("{field} is required")),
        },
        Rule::Text => ("invalid_type", field, "Invalid type. Expected: string".into()),
        Rule::Integer => ("invalid_type", field, "Invalid type. Expected: integer".into()),
        Rule::Number => ("invalid_type", field, "Invalid type. Expected: number".into()),
        Rule::Flag => ("invalid_type", field, "Invalid type. Expected: boolean".into()),
        Rule::AtLeast(least) => ("number_gte", field, format!("Must be greater than or equal to {least}")),
        Rule::AtMost(most) => ("number_lte", field, format!("Must be less than or equal to {most}")),
        Rule::Longest(most) => ("string_lte", field, format!("String length must be less than or equal to {most}")),
        Rule::OneOf(choices) => {
            let quoted: Vec<_> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
            ("enum", field, format!("Must be one of the following: {}", quoted.join(", ")))
        }
        Rule::Body | Rule::Other => ("invalid", field, problem.message.clone()),
    }
}

#[cfg(test)]
mod tests;

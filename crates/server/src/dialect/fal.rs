//! fal.ai's dialect: the three apps of FLUX.1 Krea \[dev\] with their parameters, the queue's status objects, outputs and errors.
//!
//! Source: fal's API pages of `fal-ai/flux/krea` and what its clients read of the answers.

use serde_json::{Map, Value, json};

use super::{
    Answer, LONGEST_PROMPT, LONGEST_SIDE, SEEDS, exact_size, format, instant_with_offset, number, object, seed,
};
use crate::{
    ask::{Acceleration, Ask, Mode, OnFlagged, OutputSize, Previews, Source},
    data_uri,
    error::{Fault, PictureFault, Problem, Rule},
    fields::{Field, Kind, Treatment, field, read},
    job::{JobView, Made, Preview, State},
};

/// Seconds that pictures are kept unless the caller says otherwise.
pub const KEEP_SECONDS: u64 = 7 * 24 * 3600;

/// JPEG's quality; fal has no parameter for it.
const QUALITY: u8 = 95;

/// Pixels of the longest side of a picture whose size follows another one.
const LONGEST_FOLLOWED: u32 = 2048;

/// Pictures of progress in a stream, for each picture.
const STREAM_PREVIEWS: u8 = 8;

const PROMPT: Field = field("prompt", Kind::Text(LONGEST_PROMPT), "What the picture shows.").required();
const IMAGE_URL: Field =
    field("image_url", Kind::Picture, "The picture that is begun from: a URL or a data URI.").required();
const STRENGTH: Field =
    field("strength", Kind::Number(0.01, 1.0), "How much may change: 1 is everything.").default("0.95");
const IMAGE_SIZE: Field = field("image_size", Kind::Any, "A preset's name, or `{\"width\": 1024, \"height\": 768}`.")
    .default("\"landscape_4_3\"")
    .treated(Treatment::Converted("presets become pixels; sides that are no multiples of 16 are cropped to the pixel"));
const STEPS: Field = field("num_inference_steps", Kind::Integer(1, 50), "How many steps.")
    .default("28")
    .treated(Treatment::Renamed("steps"));
const IMAGE_STEPS: Field = Field { kind: Kind::Integer(10, 50), default: "40", ..STEPS };
const GUIDANCE: Field = field("guidance_scale", Kind::Number(1.0, 20.0), "The distilled guidance scale.")
    .default("4.5")
    .treated(Treatment::Renamed("guidance"));
const NUM_IMAGES: Field = field("num_images", Kind::Integer(1, 4), "How many pictures; picture i has seed + i.")
    .default("1")
    .treated(Treatment::Renamed("pictures"));
const SEED: Field = field("seed", Kind::Integer(SEEDS.0, SEEDS.1), "The same seed and parameters make the same bytes.");
const OUTPUT_FORMAT: Field = field("output_format", Kind::Choice(&["jpeg", "png"]), "The file format.")
    .default("\"jpeg\"")
    .treated(Treatment::Renamed("format"));
const SYNC_MODE: Field = field("sync_mode", Kind::Flag, "The answer holds the pictures themselves, as data URIs.")
    .default("false")
    .treated(Treatment::Emulated("the server reads the file back into the answer"));
const SAFETY: Field = field("enable_safety_checker", Kind::Flag, "Flagged pictures come back black.")
    .default("true")
    .treated(Treatment::Renamed("safety"));
const ACCELERATION: Field =
    field("acceleration", Kind::Choice(&["none", "regular", "high"]), "Faster and less exact.").default("\"none\"");

/// Parameters of `fal-ai/flux/krea`.
pub const TEXT_FIELDS: [Field; 10] =
    [PROMPT, IMAGE_SIZE, STEPS, GUIDANCE, NUM_IMAGES, SEED, OUTPUT_FORMAT, SYNC_MODE, SAFETY, ACCELERATION];

/// Parameters of `fal-ai/flux/krea/image-to-image`.
pub const IMAGE_FIELDS: [Field; 11] = [
    PROMPT,
    IMAGE_URL,
    STRENGTH,
    IMAGE_STEPS,
    GUIDANCE,
    NUM_IMAGES,
    SEED,
    OUTPUT_FORMAT,
    SYNC_MODE,
    SAFETY,
    ACCELERATION,
];

/// Parameters of `fal-ai/flux/krea/redux`.
pub const REDUX_FIELDS: [Field; 10] =
    [IMAGE_URL, IMAGE_SIZE, STEPS, GUIDANCE, NUM_IMAGES, SEED, OUTPUT_FORMAT, SYNC_MODE, SAFETY, ACCELERATION];

/// `image_size` by name, pixels.
pub const PRESETS: [(&str, u32, u32); 6] = [
    ("square_hd", 1024, 1024),
    ("square", 512, 512),
    ("portrait_4_3", 768, 1024),
    ("portrait_16_9", 576, 1024),
    ("landscape_4_3", 1024, 768),
    ("landscape_16_9", 1024, 576),
];

/// fal's own host names, as its clients have them built in, and the mount that each one's paths have here.
pub const HOSTS: [(&str, &str); 7] = [
    ("fal.run", "/fal/run"),
    ("queue.fal.run", "/fal/queue"),
    ("falrun.com", "/fal/run"),
    ("queue.falrun.com", "/fal/queue"),
    ("rest.fal.ai", "/fal/rest"),
    ("rest.alpha.fal.ai", "/fal/rest"),
    ("v3.fal.media", "/fal/cdn"),
];

/// Which of a model's apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// From the prompt.
    Text,
    /// Begun from a picture.
    Image,
    /// A variation of a picture.
    Redux,
}

/// Which way into an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The answer is the output.
    Run,
    /// The answer is a stream of outputs, the last one whole.
    Stream,
    /// A connection that takes one request after the other.
    Realtime,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The path without the door: `fal-ai/flux/krea/redux`.
    pub endpoint: String,
    /// The model's name among it: `fal-ai/flux/krea`.
    pub model: String,
    /// Which of its apps.
    pub kind: Purpose,
    /// Which way in.
    pub door: Door,
}

/// Reads the path of an app, without slashes at its ends. Whether the model is served is not known here.
pub fn app(path: &str) -> Option<App> {
    let (endpoint, door) = match path.rsplit_once('/')? {
        (endpoint, "stream") => (endpoint, Door::Stream),
        (endpoint, "realtime") => (endpoint, Door::Realtime),
        _ => (path, Door::Run),
    };
    let (model, kind) = match endpoint.rsplit_once('/')? {
        (model, "image-to-image") => (model, Purpose::Image),
        (model, "redux") => (model, Purpose::Redux),
        _ => (endpoint, Purpose::Text),
    };
    let named = model.split('/').count() >= 2 && model.split('/').all(|part| !part.is_empty());
    named.then(|| App { endpoint: endpoint.into(), model: model.into(), kind, door })
}

/// Owner and alias, all that queue URLs keep of an endpoint: `fal-ai/flux` of `fal-ai/flux/krea/redux`.
pub fn alias(endpoint: &str) -> &str {
    let end = endpoint.match_indices('/').nth(1).map_or(endpoint.len(), |(at, _)| at);
    &endpoint[..end]
}

/// The parameters of an app.
pub fn fields(kind: Purpose) -> &'static [Field] {
    match kind {
        Purpose::Text => &TEXT_FIELDS,
        Purpose::Image => &IMAGE_FIELDS,
        Purpose::Redux => &REDUX_FIELDS,
    }
}

/// What is asked of an app.
///
/// # Errors
/// [`Fault::Invalid`] with every problem found.
pub fn ask(app: &App, model: String, body: &Value, random: u32, keep_seconds: u64) -> Result<Ask, Fault> {
    let values = read(fields(app.kind), object(body)?)?;
    let size = match app.kind {
        Purpose::Image => OutputSize::Follow { most: LONGEST_FOLLOWED, multiple: 1 },
        Purpose::Text | Purpose::Redux => image_size(values.get("image_size").unwrap_or(&Value::Null))?,
    };
    let mode = match app.kind {
        Purpose::Text => Mode::Text,
        Purpose::Image => Mode::Image { strength: values.the_number("strength") },
        Purpose::Redux => Mode::Redux,
    };
    let given = values.text("image_url").map(|url| Source::Url { url: url.into(), field: "image_url".into() });
    Ok(Ask {
        mode,
        size,
        steps: values.the_integer("num_inference_steps"),
        guidance: values.the_number("guidance_scale"),
        seed: seed(values.integer("seed"), random),
        pictures: values.the_integer("num_images"),
        given: given.into_iter().collect(),
        format: format(&values, "output_format")?,
        quality: QUALITY,
        acceleration: Acceleration::named(values.text("acceleration")),
        safety: values.the_flag("enable_safety_checker"),
        on_flagged: OnFlagged::Black,
        previews: Previews { count: if app.door == Door::Stream { STREAM_PREVIEWS } else { 0 }, full_size: false },
        keep_seconds,
        ..Ask::text(model, values.text("prompt").unwrap_or_default())
    })
}

/// A preset's name or an object of two sides, each 512 where it is missing.
fn image_size(value: &Value) -> Result<OutputSize, Fault> {
    const SIDE: Kind = Kind::Integer(1, LONGEST_SIDE as i128);
    const SIDES: [Field; 2] = [field("width", SIDE, "").default("512"), field("height", SIDE, "").default("512")];
    match value {
        Value::Object(sides) => {
            let values = read(&SIDES, sides).map_err(|fault| match fault {
                Fault::Invalid(problems) => Fault::Invalid(
                    problems.into_iter().map(|p| Problem { field: format!("image_size.{}", p.field), ..p }).collect(),
                ),
                other => other,
            })?;
            exact_size("image_size", values.the_integer("width"), values.the_integer("height"))
        }
        Value::String(name) => {
            let preset = PRESETS.iter().find(|(preset, ..)| preset == name);
            preset.map(|&(_, width, height)| OutputSize::Exact { width, height }).ok_or_else(|| {
                let names: Vec<_> = PRESETS.iter().map(|(name, ..)| (*name).to_owned()).collect();
                let message = format!("has to be one of {}, or an object of width and height", names.join(", "));
                Fault::invalid("image_size", Rule::OneOf(names), message)
            })
        }
        _ => {
            Err(Fault::invalid("image_size", Rule::Other, "has to be a preset's name or an object of width and height"))
        }
    }
}

/// Whether the answer holds the pictures themselves.
pub fn wants_data(body: &Value) -> bool {
    let sync = body.as_object().and_then(|body| read(&[SYNC_MODE], body).ok());
    sync.is_some_and(|values| values.the_flag("sync_mode"))
}

/// What is kept of a body for [`wants_data`].
pub fn kept(body: &Value) -> Value {
    json!({SYNC_MODE.name: wants_data(body)})
}

/// Seconds to keep the pictures, from `X-Fal-Object-Lifecycle-Preference`: `{"expiration_duration_seconds": 3600}`. A header that
/// says nothing readable is as none.
pub fn keep_seconds(header: Option<&str>) -> u64 {
    let wish: Option<Value> = header.and_then(|text| serde_json::from_str(text).ok());
    let seconds = wish.and_then(|wish| wish["expiration_duration_seconds"].as_u64());
    seconds.map_or(KEEP_SECONDS, |seconds| seconds.clamp(60, 365 * 24 * 3600))
}

/// The output of a job that succeeded; `url` says where a picture is, or gives its data URI.
pub fn output(view: &JobView, mut url: impl FnMut(&Made) -> String) -> Value {
    let made = view.made();
    let images: Vec<_> = made
        .iter()
        .map(|made| json!({"url": url(made), "content_type": made.mime, "width": made.width, "height": made.height}))
        .collect();
    let flagged: Vec<_> = made.iter().map(|made| made.flagged).collect();
    json!({"images": images, "timings": {"inference": seconds(view)}, "seed": asked_seed(view),
           "has_nsfw_concepts": flagged, "prompt": prompt(view)})
}

/// The same shape with a picture of progress in it.
pub fn preview(view: &JobView, preview: &Preview) -> Value {
    let url = data_uri::encode(preview.mime, &preview.bytes);
    json!({"images": [{"url": url, "content_type": preview.mime, "width": preview.width, "height": preview.height}],
           "timings": {}, "seed": asked_seed(view), "has_nsfw_concepts": [false], "prompt": prompt(view)})
}

fn seconds(view: &JobView) -> f64 {
    match view.outcome.as_deref() {
        Some(crate::job::Outcome::Succeeded { seconds, .. }) => *seconds,
        _ => 0.0,
    }
}

fn asked_seed(view: &JobView) -> u64 {
    view.ask.as_ref().map_or(0, |ask| ask.seed)
}

fn prompt(view: &JobView) -> &str {
    view.ask.as_ref().map_or("", |ask| ask.prompt.as_str())
}

/// The URLs that all of the queue's answers carry; `queue` is where the queue is mounted, without a slash at its end.
fn links(view: &JobView, queue: &str) -> Map<String, Value> {
    let response = format!("{queue}/{}/requests/{}", alias(&view.endpoint), view.id);
    let mut links = Map::new();
    links.insert("request_id".into(), view.id.as_str().into());
    links.insert("status_url".into(), format!("{response}/status").into());
    links.insert("cancel_url".into(), format!("{response}/cancel").into());
    links.insert("response_url".into(), response.into());
    links
}

/// The answer to a submit.
pub fn submitted(view: &JobView, queue: &str) -> Value {
    let mut answer = links(view, queue);
    answer.insert("status".into(), "IN_QUEUE".into());
    answer.insert("gateway_request_id".into(), view.id.as_str().into());
    answer.insert("queue_position".into(), view.position.unwrap_or(0).into());
    Value::Object(answer)
}

/// The status of a job; with its log from line `logs` on, or without it. 202 until it has ended.
pub fn status(view: &JobView, queue: &str, logs: Option<usize>) -> Answer {
    let mut answer = links(view, queue);
    let mut put = |name: &str, value: Value| answer.insert(name.into(), value);
    if view.state == State::Queued {
        put("status", "IN_QUEUE".into());
        put("queue_position", view.position.unwrap_or(0).into());
        return Answer::new(202, Value::Object(answer));
    }
    let lines = logs.map(|first| {
        let line = |line: &crate::job::LogLine| {
            json!({"message": line.message, "level": "INFO", "source": "USER", "timestamp": instant_with_offset(line.at)})
        };
        view.logs.iter().skip(first).map(line).collect::<Vec<_>>()
    });
    // Clients index `logs`: it has to be there, null if nobody asked.
    put("logs", lines.map_or(Value::Null, Value::Array));
    if !view.state.is_final() {
        put("status", "IN_PROGRESS".into());
        return Answer::new(202, Value::Object(answer));
    }
    put("status", "COMPLETED".into());
    match view.fault() {
        Some(fault) => {
            put("metrics", json!({}));
            put("error", run_error(fault).into());
            put("error_type", error_type(fault).into());
        }
        None => {
            put("metrics", json!({"inference_time": seconds(view)}));
        }
    }
    Answer::new(200, Value::Object(answer))
}

/// How the queue speaks of a run that failed.
fn run_error(fault: &Fault) -> String {
    match fault {
        Fault::Cancelled => "Request was cancelled".into(),
        Fault::TimedOut(_) => "Request timed out".into(),
        other => format!("Invalid status code: {}", self::fault(other).status),
    }
}

fn error_type(fault: &Fault) -> &'static str {
    match fault {
        Fault::Cancelled => "client_cancelled",
        Fault::TimedOut(_) => "request_timeout",
        Fault::Failed(_) => "internal_error",
        Fault::Unavailable(_) | Fault::Full { .. } => "runner_scheduling_failure",
        _ => "bad_request",
    }
}

/// The answer of the result's route while there is none.
pub fn unfinished() -> Answer {
    Answer::new(400, json!({"detail": "Request is still in progress"}))
}

/// What a webhook says of a job that ended; `output` as [`output`] gives it.
pub fn notice(view: &JobView, output: Value) -> Value {
    let (status, error, payload) = match view.fault() {
        Some(fault) => ("ERROR", Value::from(run_error(fault)), self::fault(fault).body),
        None => ("OK", Value::Null, output),
    };
    json!({"request_id": view.id, "gateway_request_id": view.id, "status": status, "error": error, "payload": payload})
}

/// A failure in fal's words: lists as pydantic's for what the caller can change, a sentence and a type for the rest.
pub fn fault(fault: &Fault) -> Answer {
    let detail = fault.to_string();
    let plain = |status: u16| Answer::new(status, json!({"detail": detail}));
    let typed = |status: u16, detail: &str| {
        let kind = error_type(fault);
        Answer::new(status, json!({"detail": detail, "error_type": kind})).with("x-fal-error-type", kind)
    };
    match fault {
        Fault::Invalid(problems) => unprocessable(problems.iter().map(problem)),
        Fault::Picture { field, kind, message } => {
            let kind = match kind {
                PictureFault::Download => "file_download_error",
                PictureFault::Decode => "image_load_error",
                PictureFault::TooLarge => "image_too_large",
            };
            unprocessable([entry(field, kind, message, None)])
        }
        Fault::Flagged { message, .. } => unprocessable([entry("prompt", "content_policy_violation", message, None)]),
        Fault::NotFound(_) | Fault::UnknownModel(_) => plain(404),
        Fault::WrongMethod => Answer::new(405, json!({"detail": "Method Not Allowed"})),
        Fault::Unauthenticated => plain(401),
        Fault::Forbidden(_) => plain(403),
        Fault::TooLarge(_) => plain(413),
        Fault::Full { retry_after, .. } => plain(429).with("retry-after", retry_after.to_string()),
        Fault::TimedOut(_) => typed(504, "Request timed out").with("x-fal-request-timeout-type", "user"),
        Fault::Cancelled => typed(499, "Request was cancelled"),
        Fault::Failed(_) => typed(500, &detail),
        Fault::Unavailable(_) => typed(503, &detail),
    }
}

/// An app that is not there.
pub fn no_app(path: &str) -> Answer {
    Answer::new(404, json!({"detail": format!("Path /{path} not found")}))
}

fn unprocessable(detail: impl IntoIterator<Item = Value>) -> Answer {
    Answer::new(422, json!({"detail": Value::from_iter(detail)})).with("x-fal-retryable", "false")
}

/// One entry of pydantic's list. The last part of `loc` is what clients compare with a field's name.
fn entry(field: &str, kind: &str, message: &str, context: Option<Value>) -> Value {
    let loc: Vec<_> = std::iter::once("body").chain(field.split('.').filter(|part| !part.is_empty())).collect();
    let mut entry =
        json!({"loc": loc, "msg": message, "type": kind, "url": format!("https://docs.fal.ai/errors#{kind}")});
    if let (Some(context), Some(members)) = (context, entry.as_object_mut()) {
        members.insert("ctx".into(), context);
    }
    entry
}

/// A problem as pydantic words it.
fn problem(problem: &Problem) -> Value {
    let entry = |kind: &str, message: &str, context| entry(&problem.field, kind, message, context);
    match &problem.rule {
        Rule::Missing => entry("missing", "Field required", None),
        Rule::Text => entry("string_type", "Input should be a valid string", None),
        Rule::Integer => {
            entry("int_parsing", "Input should be a valid integer, unable to parse string as an integer", None)
        }
        Rule::Number => {
            entry("float_parsing", "Input should be a valid number, unable to parse string as a number", None)
        }
        Rule::Flag => entry("bool_parsing", "Input should be a valid boolean, unable to interpret input", None),
        Rule::AtLeast(least) => {
            let message = format!("Input should be greater than or equal to {least}");
            entry("greater_than_equal", &message, Some(json!({"ge": number(*least)})))
        }
        Rule::AtMost(most) => {
            let message = format!("Input should be less than or equal to {most}");
            entry("less_than_equal", &message, Some(json!({"le": number(*most)})))
        }
        Rule::Longest(most) => {
            let message = format!("String should have at most {most} characters");
            entry("string_too_long", &message, Some(json!({"max_length": most})))
        }
        Rule::OneOf(choices) => {
            let quoted: Vec<_> = choices.iter().map(|choice| format!("'{choice}'")).collect();
            let expected = match quoted.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                _ => quoted.concat(),
            };
            entry("literal_error", &format!("Input should be {expected}"), Some(json!({"expected": expected})))
        }
        Rule::Body => self::entry("", "json_invalid", "JSON decode error", Some(json!({"error": problem.message}))),
        Rule::Other => entry("value_error", &format!("Value error, {}", problem.message), None),
    }
}

#[cfg(test)]
mod tests;

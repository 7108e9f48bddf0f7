//! OpenAI's images: bodies of `/v1/images/*` to an [`Ask`], and back. Pure: no network, no clock, no randomness.
//!
//! Sources: the gateway's page on FLUX.1 Krea \[dev\] for parameters and sizes; OpenAI's clients for shapes and errors.

use flux::sizes::{Aspect, Tier, Wish};
use serde_json::{Map, Value, json};

use super::{Answer, LONGEST_PROMPT, SEEDS, exact_size, format, seed};
use crate::{
    ask::{Acceleration, Ask, Mode, OutputSize, Previews, Source},
    error::{Fault, PictureFault, Problem, Rule, Stage},
    fields::{Field, Kind, Treatment, Values, field, read},
};

/// Largest side of a picture whose size follows the one that is given, pixels.
const MOST_FOLLOWED: u32 = 2048;

/// Seconds that results are kept.
const KEEP: u64 = 24 * 3600;

/// Formats that can be asked for; `jpg` is `jpeg`.
const FORMATS: [&str; 6] = ["png", "jpeg", "jpg", "webp", "gif", "avif"];

/// What all three routes take.
pub const FIELDS: [Field; 30] = [
    field("model", Kind::Text(200), "Which model; the one this server has if none is named.")
        .treated(Treatment::Converted("model")),
    field("prompt", Kind::Text(LONGEST_PROMPT), "What to draw, or what to change."),
    field("negative_prompt", Kind::Text(LONGEST_PROMPT), "What not to draw; counts where `true_cfg_scale` is above 1."),
    field("n", Kind::Integer(1, 10), "How many pictures; the next ones have the next seeds.")
        .or(&["num_images", "num_outputs"])
        .default("1")
        .treated(Treatment::Emulated("one after the other")),
    field("size", Kind::Text(40), "Pixels as 1024x768, or a shape as 16:9; goes before `aspect_ratio`.")
        .treated(Treatment::Converted("size")),
    field("aspect_ratio", Kind::Text(40), "The shape; the nearest of the table's rows is taken.")
        .treated(Treatment::Converted("size")),
    field("resolution", Kind::Text(40), "Any tier is mapped to the one there is.").treated(Treatment::Converted("1K")),
    field("megapixels", Kind::Choice(&["1", "0.25"]), "0.25 is 512x512; counts where neither size nor shape is given.")
        .treated(Treatment::Converted("size")),
    field(
        "seed",
        Kind::Integer(SEEDS.0, SEEDS.1),
        "Of the first picture, 0 to 2^64-1; without it, or below 0, one is chosen and told.",
    ),
    field("num_inference_steps", Kind::Integer(1, 50), "Steps from noise to picture.")
        .or(&["steps"])
        .default("28")
        .treated(Treatment::Renamed("steps")),
    field("cfg_scale", Kind::Number(0.0, 20.0), "The distilled guidance scale, an input of the model.")
        .or(&["guidance_scale", "guidance"])
        .default("4.5")
        .treated(Treatment::Renamed("guidance")),
    field(
        "true_cfg_scale",
        Kind::Number(1.0, 20.0),
        "Classifier-free guidance with the negative prompt; twice the time.",
    )
    .default("1")
    .treated(Treatment::Renamed("true_cfg")),
    field("strength", Kind::Number(0.0, 1.0), "How much of a given picture is made anew: 0 nothing, 1 all.")
        .default("0.95"),
    field("image_url", Kind::Picture, "A picture by its address or as a data URI, in the place of a file.")
        .treated(Treatment::Renamed("image")),
    field("acceleration", Kind::Choice(&["none", "regular", "high"]), "Steps that are reused instead of computed."),
    field("go_fast", Kind::Flag, "As `acceleration` regular; the result stays repeatable.")
        .treated(Treatment::Converted("acceleration")),
    field(
        "enable_safety_checker",
        Kind::Flag,
        "Whether pictures are looked at before they are given out, if the operator leaves the choice.",
    )
    .treated(Treatment::Renamed("safety")),
    field("disable_safety_checker", Kind::Flag, "The other way round.").treated(Treatment::Converted("safety")),
    field("response_format", Kind::Choice(&["url", "b64_json"]), "An address or the bytes in base64.")
        .default("\"url\"")
        .treated(Treatment::Emulated("results are kept as files")),
    field("sync_mode", Kind::Flag, "The address is a data URI.")
        .default("false")
        .treated(Treatment::Emulated("data URI")),
    field("output_format", Kind::Choice(&FORMATS), "The file format.").default("\"png\""),
    field("output_compression", Kind::Integer(0, 100), "Quality of JPEG, WebP and AVIF.")
        .or(&["output_quality"])
        .default("100")
        .treated(Treatment::Renamed("quality")),
    field("stream", Kind::Flag, "Events instead of one answer.").default("false"),
    field("partial_images", Kind::Integer(0, 3), "Pictures of progress in the events.")
        .default("0")
        .treated(Treatment::Emulated("the picture that the velocity points to")),
    field("quality", Kind::Any, "").treated(Treatment::Ignored("steps decide")),
    field("style", Kind::Any, "").treated(Treatment::Ignored("say it in the prompt")),
    field("background", Kind::Any, "").treated(Treatment::Ignored("pictures are opaque")),
    field("moderation", Kind::Any, "").treated(Treatment::Ignored("the operator's policy decides")),
    field("input_fidelity", Kind::Any, "").treated(Treatment::Ignored("`strength` decides")),
    field("user", Kind::Any, "").or(&["safety_identifier"]).treated(Treatment::Ignored("keys tell callers apart")),
];

/// Which route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/images/generations`
    Generations,
    /// `/images/edits`
    Edits,
    /// `/images/variations`
    Variations,
}

impl Route {
    /// What events of a stream are called.
    pub fn event(self) -> &'static str {
        match self {
            Self::Generations => "image_generation",
            Self::Edits | Self::Variations => "image_edit",
        }
    }
}

/// Pictures that came beside the body: files of a form, or already by `images` of a JSON body.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The first is used.
    pub images: Vec<Source>,
    /// Where it is transparent (or white) the picture is made anew.
    pub mask: Option<Source>,
}

/// How results are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deliver {
    /// An address.
    Url,
    /// Base64 in `b64_json`.
    Base64,
    /// A data URI in `url`.
    DataUri,
}

/// A body that was understood.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What to make.
    pub ask: Ask,
    /// Events instead of one answer.
    pub stream: bool,
    /// How results are given.
    pub deliver: Deliver,
}

/// Reads a body. `model` finds a name on the server's shelf, `random` is the seed where none is given.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::UnknownModel`].
pub fn ask(
    route: Route,
    body: &Map<String, Value>,
    mut files: Files,
    model: &dyn Fn(Option<&str>) -> Result<String, Fault>,
    random: u32,
) -> Result<Asked, Fault> {
    let values = read(&FIELDS, body)?;
    let model = model(values.text("model").filter(|name| !name.is_empty()))?;
    if let Some(url) = values.text("image_url") {
        files.images.push(Source::Url { url: url.into(), field: "image_url".into() });
    }
    files.images.truncate(1);
    let prompt = values.text("prompt").unwrap_or_default().to_owned();
    let missing = |field: &str| Fault::invalid(field, Rule::Missing, "is required");
    if prompt.trim().is_empty() && route != Route::Variations {
        return Err(missing("prompt"));
    }
    if files.images.is_empty() && route != Route::Generations {
        return Err(missing("image"));
    }
    let strength = values.the_number("strength");
    let mode = match (files.images.is_empty(), &files.mask) {
        (true, _) => Mode::Text,
        (false, Some(_)) => Mode::Inpaint { strength },
        (false, None) if prompt.trim().is_empty() => Mode::Redux,
        (false, None) => Mode::Image { strength },
    };
    let acceleration = match values.flag("go_fast") {
        Some(true) if values.text("acceleration").is_none() => Acceleration::Regular,
        _ => Acceleration::named(values.text("acceleration")),
    };
    let stream = values.the_flag("stream");
    let asked_deliver = (values.the_text("response_format"), values.the_flag("sync_mode"));
    let safety = values.flag("enable_safety_checker");
    let ask = Ask {
        mode,
        size: size(&values, mode)?,
        negative_prompt: values.text("negative_prompt").map(str::to_owned),
        steps: values.the_integer("num_inference_steps"),
        guidance: values.the_number("cfg_scale"),
        true_cfg: values.the_number("true_cfg_scale"),
        seed: seed(values.integer("seed"), random),
        pictures: values.the_integer("n"),
        given: files.images,
        mask: files.mask,
        format: format(&values, "output_format")?,
        quality: values.the_integer("output_compression"),
        acceleration,
        safety: safety.or(values.flag("disable_safety_checker").map(|disabled| !disabled)).unwrap_or(true),
        previews: Previews { count: if stream { values.the_integer("partial_images") } else { 0 }, full_size: true },
        keep_seconds: KEEP,
        ..Ask::text(model, prompt)
    };
    let deliver = match asked_deliver {
        _ if stream => Deliver::Base64,
        ("b64_json", _) => Deliver::Base64,
        (_, true) => Deliver::DataUri,
        _ => Deliver::Url,
    };
    Ok(Asked { ask, stream, deliver })
}

/// The gateway's rules: what is most exact decides; an edit with neither size nor shape keeps its picture's size.
fn size(values: &Values, mode: Mode) -> Result<OutputSize, Fault> {
    let said = |name: &str| values.text(name).map(str::trim).filter(|text| !text.is_empty());
    let size = said("size").filter(|size| *size != "auto");
    let aspect = match said("aspect_ratio") {
        Some(text) if size.is_none() => {
            Some(text.parse::<Aspect>().map_err(|error| Fault::refused("aspect_ratio", &error))?)
        }
        _ => None,
    };
    if size.is_none() && aspect.is_none() {
        if matches!(mode, Mode::Image { .. } | Mode::Inpaint { .. } | Mode::Redux) {
            return Ok(OutputSize::Follow { most: MOST_FOLLOWED, multiple: 1 });
        }
        if values.text("megapixels") == Some("0.25") {
            return Ok(OutputSize::Exact { width: 512, height: 512 });
        }
    }
    let wish = Wish { size, aspect, resolution: Some(Tier::OneK) };
    let size = wish.size().map_err(|error| Fault::refused("size", &error))?;
    exact_size("size", size.width, size.height)
}

/// What every answer and event says beside the picture.
#[derive(Clone, Debug)]
pub struct Common {
    /// Seconds since 1970.
    pub created: i64,
    /// `1024x768`, of the first picture.
    pub size: String,
    /// The file format's name.
    pub format: String,
    /// The prompt's length in tokens, roughly: its words.
    pub tokens: usize,
}

impl Common {
    fn usage(&self) -> Value {
        json!({
            "total_tokens": self.tokens, "input_tokens": self.tokens, "output_tokens": 0,
            "input_tokens_details": {"text_tokens": self.tokens, "image_tokens": 0},
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        })
    }

    fn fields(&self) -> Map<String, Value> {
        let fields = [("size", json!(self.size)), ("quality", json!("high")), ("background", json!("opaque"))];
        let format = [("output_format", json!(self.format))];
        fields.into_iter().chain(format).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A picture as this dialect gives it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The address or data URI; or the base64.
    pub content: String,
    /// Which it is.
    pub deliver: Deliver,
    /// The seed that makes it alone.
    pub seed: u64,
}

/// The answer of a route.
pub fn answer(common: &Common, prompt: &str, pictures: &[Shown]) -> Value {
    let data: Vec<Value> = pictures
        .iter()
        .map(|picture| {
            let key = if picture.deliver == Deliver::Base64 { "b64_json" } else { "url" };
            json!({key: picture.content, "revised_prompt": prompt, "seed": picture.seed})
        })
        .collect();
    let mut answer = common.fields();
    answer.insert("created".into(), json!(common.created));
    answer.insert("data".into(), json!(data));
    answer.insert("usage".into(), common.usage());
    Value::Object(answer)
}

/// An event of a stream: its name and data. `partial`: which preview; `None`: a finished picture.
pub fn event(route: Route, common: &Common, base64: &str, partial: Option<u32>, seed: u64) -> (String, Value) {
    let name = match partial {
        Some(_) => format!("{}.partial_image", route.event()),
        None => format!("{}.completed", route.event()),
    };
    let mut data = common.fields();
    data.insert("type".into(), json!(name));
    data.insert("b64_json".into(), json!(base64));
    data.insert("created_at".into(), json!(common.created));
    if let Some(index) = partial {
        data.insert("partial_image_index".into(), json!(index));
    } else {
        data.insert("usage".into(), common.usage());
        data.insert("seed".into(), json!(seed));
    }
    (name, Value::Object(data))
}

/// A fault in the clients' shape.
pub fn error(fault: &Fault) -> Answer {
    const INVALID: &str = "invalid_request_error";
    let message = fault.to_string();
    let error = |status, kind: &str, code: Option<&str>, param: Option<&str>| {
        Answer::new(status, json!({"error": {"message": message, "type": kind, "code": code, "param": param}}))
    };
    match fault {
        Fault::Invalid(problems) => {
            let first = problems.first();
            let param = first.map(|problem| problem.field.as_str());
            let code = match first.map(|problem| &problem.rule) {
                Some(Rule::Missing) => "missing_required_parameter",
                _ => "invalid_value",
            };
            let mut answer = error(400, INVALID, Some(code), param);
            answer.body["error"]["message"] = problems.iter().map(sentence).collect::<Vec<_>>().join(" ").into();
            answer
        }
        Fault::Picture { field, kind, .. } => {
            let code = match kind {
                PictureFault::Download => "invalid_image_url",
                PictureFault::Decode => "invalid_image_file",
                PictureFault::TooLarge => "image_too_large",
            };
            error(400, INVALID, Some(code), Some(field))
        }
        Fault::NotFound(_) => error(404, INVALID, None, None),
        Fault::WrongMethod => error(405, INVALID, Some("method_not_supported"), None),
        Fault::UnknownModel(_) => error(404, INVALID, Some("model_not_found"), Some("model")),
        Fault::Unauthenticated => error(401, INVALID, Some("invalid_api_key"), None),
        Fault::Forbidden(_) => error(403, INVALID, Some("permission_denied"), None),
        Fault::TooLarge(_) => error(413, INVALID, None, None),
        Fault::Full { retry_after, .. } => {
            error(429, "rate_limit_error", Some("rate_limit_exceeded"), None).retry_after(*retry_after)
        }
        Fault::Flagged { stage, categories, .. } => {
            let stage = match stage {
                Stage::Prompt => "input",
                Stage::Picture => "output",
            };
            let mut answer = error(400, "image_generation_user_error", Some("moderation_blocked"), None);
            answer.body["error"]["moderation_details"] = json!({"moderation_stage": stage, "categories": categories});
            answer
        }
        // Not 408 or 504, which clients would ask again by themselves, and have computed again.
        Fault::TimedOut(_) | Fault::Cancelled | Fault::Failed(_) => {
            error(500, "server_error", None, None).with("x-should-retry", "false")
        }
        Fault::Unavailable(_) => error(503, "server_error", Some("unavailable"), None).retry_after(5),
    }
}

fn sentence(problem: &Problem) -> String {
    format!("Invalid '{}': {}.", problem.field, problem.message)
}

/// A model of the shelf in this dialect's list.
pub fn model(name: &str, created: i64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "darkroom"})
}

#[cfg(test)]
mod tests {
    use flux::image_file::Format;

    use super::*;
    use crate::{blobs::BlobId, fields::bad_defaults};

    fn asked(route: Route, body: &Value, images: usize) -> Result<Asked, Fault> {
        let files = Files {
            images: (0..images).map(|i| Source::Blob { id: BlobId(i.to_string()), field: "image".into() }).collect(),
            mask: None,
        };
        let model = |name: Option<&str>| match name {
            None | Some("flux.1-krea-dev") => Ok("krea".to_owned()),
            Some(other) => Err(Fault::UnknownModel(other.to_owned())),
        };
        ask(route, body.as_object().unwrap(), files, &model, 99)
    }

    fn size_of(body: &Value) -> OutputSize {
        asked(Route::Generations, body, 0).unwrap().ask.size
    }

    #[test]
    fn defaults_are_this_vendors() {
        assert!(bad_defaults(&FIELDS).is_empty());
        let Asked { ask, stream, deliver } = asked(Route::Generations, &json!({"prompt": "a fox"}), 0).unwrap();
        assert_eq!((ask.steps, ask.guidance, ask.seed, ask.pictures, ask.quality), (28, 4.5, 99, 1, 100));
        assert_eq!((ask.mode, ask.format, stream, deliver), (Mode::Text, Format::Png, false, Deliver::Url));
        assert_eq!(ask.size, OutputSize::Exact { width: 1024, height: 1024 });
        assert!(ask.safety);
    }

    #[test]
    fn sizes_follow_the_gateways_page() {
        for (body, width, height) in [
            (json!({"prompt": "x", "size": "16:9"}), 1365, 768),
            (json!({"prompt": "x", "size": "640x480", "aspect_ratio": "1:1", "resolution": "4K"}), 640, 480),
            (json!({"prompt": "x", "aspect_ratio": "7:1"}), 1563, 670),
            (json!({"prompt": "x", "aspect_ratio": "4:5", "resolution": "4K"}), 916, 1145),
            (json!({"prompt": "x", "megapixels": 0.25}), 512, 512),
            (json!({"prompt": "x", "size": "auto"}), 1024, 1024),
            (json!({"prompt": "x", "size": "1x1"}), 1, 1),
        ] {
            assert_eq!(size_of(&body), OutputSize::Exact { width, height }, "{body}");
        }
        let edit = asked(Route::Edits, &json!({"prompt": "x"}), 1).unwrap();
        assert_eq!(edit.ask.size, OutputSize::Follow { most: 2048, multiple: 1 });
        for wrong in ["big", "0x5", "15000x10", "3000x3000", "-1x5"] {
            let fault = asked(Route::Generations, &json!({"prompt": "x", "size": wrong}), 0).unwrap_err();
            let Answer { status, body, .. } = error(&fault);
            assert_eq!(
                (status, &body["error"]["param"], &body["error"]["code"]),
                (400, &json!("size"), &json!("invalid_value")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_a_picture_is_for() {
        let mode = |route, body: Value, images| asked(route, &body, images).unwrap().ask.mode;
        assert_eq!(mode(Route::Edits, json!({"prompt": "x"}), 2), Mode::Image { strength: 0.95 });
        assert_eq!(mode(Route::Edits, json!({"prompt": "x", "strength": "0.5"}), 1), Mode::Image { strength: 0.5 });
        assert_eq!(mode(Route::Variations, json!({}), 1), Mode::Redux);
        assert_eq!(
            mode(Route::Generations, json!({"prompt": "x", "image_url": "data:,"}), 0),
            Mode::Image { strength: 0.95 }
        );
        for (route, body, field) in [
            (Route::Edits, json!({"prompt": "x"}), "image"),
            (Route::Edits, json!({}), "prompt"),
            (Route::Generations, json!({"prompt": " "}), "prompt"),
        ] {
            let Answer { status, body, .. } = error(&asked(route, &body, 0).unwrap_err());
            assert_eq!((status, &body["error"]["param"]), (400, &json!(field)));
            assert_eq!(body["error"]["code"], "missing_required_parameter");
        }
    }

    #[test]
    fn seeds_are_whole_and_negative_ones_are_chosen() {
        let seed =
            |value: Value| asked(Route::Generations, &json!({"prompt": "x", "seed": value}), 0).map(|a| a.ask.seed);
        assert_eq!(seed(json!(17454220438242315174u64)), Ok(17454220438242315174));
        assert_eq!(seed(json!("7")), Ok(7));
        assert_eq!(seed(json!(0)), Ok(0));
        assert_eq!(seed(json!(-1)), Ok(99));
        assert_eq!(seed(Value::Null), Ok(99));
        assert!(seed(json!("cat")).is_err());
        assert!(seed(json!(1.5)).is_err());
    }

    #[test]
    fn every_fault_has_the_clients_shape() {
        let faults = [
            (Fault::WrongMethod, 405, "invalid_request_error", json!("method_not_supported")),
            (Fault::Unauthenticated, 401, "invalid_request_error", json!("invalid_api_key")),
            (Fault::UnknownModel("x".into()), 404, "invalid_request_error", json!("model_not_found")),
            (
                Fault::Full { retry_after: 3, message: "busy".into() },
                429,
                "rate_limit_error",
                json!("rate_limit_exceeded"),
            ),
            (Fault::Failed("x".into()), 500, "server_error", Value::Null),
            (Fault::TooLarge("x".into()), 413, "invalid_request_error", Value::Null),
        ];
        for (fault, status, kind, code) in faults {
            let Answer { status: is, headers, body } = error(&fault);
            assert_eq!((is, &body["error"]["type"], &body["error"]["code"]), (status, &json!(kind), &code), "{fault}");
            assert!(body["error"]["message"].is_string() && body["error"].get("param").is_some());
            assert_eq!(headers.iter().any(|(name, _)| *name == "retry-after"), status == 429);
            assert_eq!(headers.iter().any(|(name, _)| *name == "x-should-retry"), status == 500);
        }
        let flagged = Fault::Flagged { stage: Stage::Picture, categories: vec!["sexual".into()], message: "x".into() };
        let Answer { status, body, .. } = error(&flagged);
        assert_eq!((status, &body["error"]["code"]), (400, &json!("moderation_blocked")));
        assert_eq!(body["error"]["moderation_details"]["moderation_stage"], "output");
    }

    #[test]
    fn a_stream_ends_with_the_same_fields() {
        let common = Common { created: 1, size: "2x3".into(), format: "png".into(), tokens: 4 };
        let (name, data) = event(Route::Generations, &common, "AA", Some(1), 5);
        assert_eq!((name.as_str(), &data["partial_image_index"]), ("image_generation.partial_image", &json!(1)));
        let (name, data) = event(Route::Edits, &common, "AA", None, 5);
        assert_eq!(
            (name.as_str(), &data["type"], &data["seed"]),
            ("image_edit.completed", &json!("image_edit.completed"), &json!(5))
        );
        for key in ["b64_json", "created_at", "size", "quality", "background", "output_format", "usage"] {
            assert!(data.get(key).is_some(), "{key}");
        }
    }
}

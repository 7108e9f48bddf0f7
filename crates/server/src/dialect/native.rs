//! darkroom's own dialect, `/api/v1`: jobs, their events, models. The library's names, everything the library can. Pure.

use flux::sizes::Wish;
use serde_json::{Map, Value, json};

use super::{Answer, LONGEST_SIDE, SEEDS, exact_size, format, instant, seed, usable_loras};
use crate::{
    ask::{Acceleration, Ask, Mode, OutputSize, Previews, Source},
    clock::Millis,
    config::time,
    error::{Fault, Rule},
    fields::{Field, Kind, Values, field, read},
    job::{JobView, Moment, Priority, Webhook},
};

/// Seconds that results are kept unless the body says otherwise.
const KEEP: u64 = 24 * 3600;

/// What `POST /api/v1/jobs` takes.
pub const FIELDS: [Field; 31] = [
    field("model", Kind::Text(200), "Which model of the server; its first if none is named."),
    field("prompt", Kind::Text(100_000), "What to draw. May be left out for a variation of `image`.").default("\"\""),
    field("negative_prompt", Kind::Text(100_000), "What not to draw; counts where `true_cfg` is above 1."),
    field("size", Kind::Text(40), "Pixels as 1024x768, or a shape as 16:9."),
    field("width", Kind::Integer(1, LONGEST_SIDE as i128), "Pixels; with `height`, in the place of `size`."),
    field("height", Kind::Integer(1, LONGEST_SIDE as i128), "Pixels."),
    field("aspect", Kind::Text(40), "The shape; the nearest of the gateway's is taken."),
    field("resolution", Kind::Text(40), "0.5K, 1K, 1.5K, 2K."),
    field("steps", Kind::Integer(1, 200), "Steps from noise to picture.").default("28"),
    field("guidance", Kind::Number(0.0, 100.0), "The distilled guidance scale, an input of the model.").default("4.5"),
    field("true_cfg", Kind::Number(1.0, 100.0), "Classifier-free guidance; off at 1, otherwise twice the time.")
        .default("1"),
    field(
        "seed",
        Kind::Integer(SEEDS.0, SEEDS.1),
        "Of the first picture, 0 to 2^64-1; without it, or below 0, one is chosen.",
    ),
    field("pictures", Kind::Integer(1, 64), "How many; seeds count up.").default("1"),
    field("image", Kind::Picture, "A picture to begin from: an address or a data URI."),
    field(
        "strength",
        Kind::Number(0.0, 1.0),
        "How much of it is made anew. Without a prompt and without this, a variation.",
    ),
    field("mask", Kind::Picture, "White (or transparent) is made anew."),
    field(
        "sampler",
        Kind::Choice(&["euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm"]),
        "How the velocity is followed.",
    )
    .default("\"euler\""),
    field(
        "schedule",
        Kind::Choice(&["reference", "simple", "normal", "beta", "sgm_uniform", "karras"]),
        "Whose noise schedule.",
    )
    .default("\"reference\""),
    field("acceleration", Kind::Choice(&["none", "regular", "high"]), "Velocities that are reused.")
        .default("\"none\""),
    field("loras", Kind::Any, "`[{\"name\": FILE, \"weight\": 1}]`, from the operator's folder."),
    field("format", Kind::Choice(&["png", "jpeg", "jpg", "webp", "gif", "avif"]), "The file format.")
        .default("\"png\""),
    field("quality", Kind::Integer(0, 100), "Of JPEG, WebP and AVIF.").default("90"),
    field("safety", Kind::Flag, "Whether pictures are looked at, if the operator leaves the choice.").default("true"),
    field("previews", Kind::Integer(0, 20), "Pictures of progress in the events.").default("0"),
    field("priority", Kind::Choice(&["normal", "low"]), "What goes first.").default("\"normal\""),
    field("start_within", Kind::Number(0.0, 1e7), "Seconds; a job that has not begun by then fails."),
    field("finish_within", Kind::Number(0.0, 1e7), "Seconds; a job that has not ended by then is cancelled."),
    field("keep", Kind::Integer(60, 31_536_000), "Seconds that results are kept."),
    field(
        "keep_alive",
        Kind::Any,
        "How long the model stays loaded afterwards: seconds, or as 30m; 0; never: for good.",
    ),
    field("webhook", Kind::Text(2000), "An address that is told when the job has ended."),
    field("wait", Kind::Flag, "Answer when the job has ended, and cancel it if the caller goes away.").default("false"),
];

/// A body that was understood.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What to make.
    pub ask: Ask,
    /// What goes first.
    pub priority: Priority,
    /// When it has to have begun.
    pub start_by: Option<Millis>,
    /// When it has to have ended.
    pub finish_by: Option<Millis>,
    /// Who is told.
    pub webhook: Option<Webhook>,
    /// Answer at the end.
    pub wait: bool,
}

/// Reads a body at the time `now`.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::UnknownModel`].
pub fn ask(
    body: &Map<String, Value>,
    model: &dyn Fn(Option<&str>) -> Result<String, Fault>,
    random: u32,
    now: Millis,
) -> Result<Asked, Fault> {
    let values = read(&FIELDS, body)?;
    let model = model(values.text("model").filter(|name| !name.is_empty()))?;
    let url = |name: &str| values.text(name).map(|url| Source::Url { url: url.into(), field: name.into() });
    let prompt = values.the_text("prompt").to_owned();
    let given = url("image");
    let mask = url("mask");
    let strength = values.number("strength").map(|strength| strength as f32);
    let mode = match (&given, &mask) {
        (None, None) if prompt.trim().is_empty() => {
            return Err(Fault::invalid("prompt", Rule::Missing, "is required where no image is given"));
        }
        (None, None) => Mode::Text,
        (None, Some(_)) => return Err(Fault::invalid("image", Rule::Missing, "is required beside a mask")),
        (Some(_), Some(_)) => Mode::Inpaint { strength: strength.unwrap_or(1.0) },
        (Some(_), None) => match strength {
            None if prompt.trim().is_empty() => Mode::Redux,
            _ => Mode::Image { strength: strength.unwrap_or(0.6) },
        },
    };
    let after = |name: &str| values.number(name).map(|seconds| now.saturating_add((seconds * 1e3) as Millis));
    Ok(Asked {
        priority: if values.the_text("priority") == "low" { Priority::Low } else { Priority::Normal },
        start_by: after("start_within"),
        finish_by: after("finish_within"),
        webhook: values.text("webhook").map(|url| Webhook {
            url: url.to_owned(),
            moments: vec![Moment::Completed],
            base: None,
        }),
        wait: values.the_flag("wait"),
        ask: Ask {
            mode,
            negative_prompt: values.text("negative_prompt").map(str::to_owned),
            size: size(&values, mode)?,
            steps: values.the_integer("steps"),
            guidance: values.the_number("guidance"),
            true_cfg: values.the_number("true_cfg"),
            seed: seed(values.integer("seed"), random),
            pictures: values.the_integer("pictures"),
            given: given.into_iter().collect(),
            mask,
            format: format(&values, "format")?,
            quality: values.the_integer("quality"),
            acceleration: Acceleration::named(values.text("acceleration")),
            safety: values.the_flag("safety"),
            previews: Previews { count: values.the_integer("previews"), full_size: false },
            sampler: values.the_text("sampler").parse().map_err(|error| Fault::refused("sampler", &error))?,
            schedule: values.the_text("schedule").parse().map_err(|error| Fault::refused("schedule", &error))?,
            loras: loras(values.get("loras"))?,
            keep_seconds: values.integer("keep").unwrap_or(KEEP),
            keep_alive_seconds: values.get("keep_alive").map(keep_alive).transpose()?,
            ..Ask::text(model, prompt)
        },
    })
}

fn size(values: &Values, mode: Mode) -> Result<OutputSize, Fault> {
    let pair = (values.integer("width"), values.integer("height"));
    let asked = ["size", "aspect", "resolution"].iter().any(|name| values.text(name).is_some());
    let wrong = |field: &'static str| move |error: flux::Error| Fault::refused(field, &error);
    match pair {
        (Some(width), Some(height)) => return exact_size("width", width, height),
        (Some(_), None) => return Err(Fault::invalid("height", Rule::Missing, "is required beside width")),
        (None, Some(_)) => return Err(Fault::invalid("width", Rule::Missing, "is required beside height")),
        (None, None) if !asked && mode != Mode::Text => return Ok(OutputSize::Follow { most: 2048, multiple: 1 }),
        (None, None) => {}
    }
    let wish = Wish {
        size: values.text("size"),
        aspect: values.text("aspect").map(str::parse).transpose().map_err(wrong("aspect"))?,
        resolution: values.text("resolution").map(str::parse).transpose().map_err(wrong("resolution"))?,
    };
    let size = wish.size().map_err(wrong("size"))?;
    let times = size.upscale.unwrap_or(1);
    exact_size("resolution", size.width * times, size.height * times)
}

/// Seconds; `u64::MAX` for good.
fn keep_alive(given: &Value) -> Result<u64, Fault> {
    let read = match given {
        Value::Number(number) => time(&number.to_string()),
        Value::String(text) => time(text),
        other => Err(format!("expected a time as 30m, got {other}")),
    };
    read.map(|time| time.as_secs()).map_err(|message| Fault::invalid("keep_alive", Rule::Other, message))
}

fn loras(given: Option<&Value>) -> Result<Vec<(String, f32)>, Fault> {
    let wrong = || Fault::invalid("loras", Rule::Other, "has to be a list of {\"name\": …, \"weight\": …}");
    let Some(given) = given else { return Ok(Vec::new()) };
    let one = |lora: &Value| {
        let name = lora.as_str().or_else(|| lora["name"].as_str()).ok_or_else(wrong)?;
        let weight = if lora["weight"].is_null() { Some(1.0) } else { lora["weight"].as_f64() };
        Ok((name.to_owned(), weight.ok_or_else(wrong)? as f32))
    };
    let loras = given.as_array().ok_or_else(wrong)?.iter().map(one).collect::<Result<Vec<_>, Fault>>()?;
    usable_loras("loras", loras)
}

/// A job as this dialect shows it. `url` gives a blob's address, `base` is where the server is.
pub fn job(job: &JobView, base: &str, url: &dyn Fn(&crate::job::Made) -> String) -> Value {
    let here = format!("{base}/api/v1/jobs/{}", job.id);
    let pictures: Vec<Value> = job
        .made()
        .iter()
        .map(|made| {
            json!({"url": url(made), "content_type": made.mime, "width": made.width, "height": made.height,
                "bytes": made.bytes, "seed": made.seed, "flagged": made.flagged})
        })
        .collect();
    let ask = job.ask.as_deref();
    json!({
        "id": job.id, "state": job.state, "endpoint": job.endpoint, "model": ask.map(|ask| &ask.model),
        "seed": ask.map(|ask| ask.seed), "position": job.position, "progress": job.progress,
        "accepted": instant(job.accepted), "started": job.started.map(instant), "finished": job.finished.map(instant),
        "seconds": match job.outcome.as_deref() {
            Some(crate::job::Outcome::Succeeded { seconds, .. }) => json!(seconds),
            _ => Value::Null,
        },
        "pictures": pictures,
        "error": job.fault().map(fault_body),
        "logs": job.logs.iter().map(|line| json!({"at": instant(line.at), "message": line.message})).collect::<Vec<_>>(),
        "urls": {"self": here, "events": format!("{here}/events"), "cancel": format!("{here}/cancel")},
    })
}

fn fault_body(fault: &Fault) -> Value {
    let code = match fault {
        Fault::Invalid(_) => "invalid",
        Fault::Picture { .. } => "picture",
        Fault::NotFound(_) => "not_found",
        Fault::WrongMethod => "wrong_method",
        Fault::UnknownModel(_) => "unknown_model",
        Fault::Unauthenticated => "unauthenticated",
        Fault::Forbidden(_) => "forbidden",
        Fault::TooLarge(_) => "too_large",
        Fault::Full { .. } => "full",
        Fault::Flagged { .. } => "flagged",
        Fault::TimedOut(_) => "timed_out",
        Fault::Cancelled => "cancelled",
        Fault::Failed(_) => "failed",
        Fault::Unavailable(_) => "unavailable",
    };
    let mut body = json!({"code": code, "message": fault.to_string()});
    match fault {
        Fault::Invalid(problems) => {
            body["fields"] =
                problems.iter().map(|problem| json!({"field": problem.field, "message": problem.message})).collect();
        }
        Fault::Flagged { stage, categories, .. } => {
            body["stage"] = json!(stage);
            body["categories"] = json!(categories);
        }
        _ => {}
    }
    body
}

/// A fault: its code, a sentence and, where there are some, the fields that are wrong.
pub fn error(fault: &Fault) -> Answer {
    let status = match fault {
        Fault::Invalid(_) | Fault::Picture { .. } | Fault::Flagged { .. } => 422,
        Fault::UnknownModel(_) | Fault::NotFound(_) => 404,
        Fault::WrongMethod => 405,
        Fault::Unauthenticated => 401,
        Fault::Forbidden(_) => 403,
        Fault::TooLarge(_) => 413,
        Fault::Full { .. } => 429,
        Fault::TimedOut(_) => 504,
        Fault::Cancelled => 499,
        Fault::Failed(_) => 500,
        Fault::Unavailable(_) => 503,
    };
    let answer = Answer::new(status, json!({"error": fault_body(fault)}));
    match fault {
        Fault::Full { retry_after, .. } => answer.retry_after(*retry_after),
        Fault::Unavailable(_) => answer.retry_after(5),
        _ => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::bad_defaults;

    fn asked(body: &Value) -> Result<Asked, Fault> {
        ask(body.as_object().unwrap(), &|_| Ok("pocket".into()), 5, 1_000)
    }

    #[test]
    fn every_default_is_one() {
        assert!(bad_defaults(&FIELDS).is_empty());
        let Asked { ask, priority, wait, .. } = asked(&json!({"prompt": "x"})).unwrap();
        assert_eq!((ask.mode, ask.size), (Mode::Text, OutputSize::Exact { width: 1024, height: 1024 }));
        assert_eq!((priority, wait, ask.steps, ask.quality), (Priority::Normal, false, 28, 90));
    }

    #[test]
    fn what_is_given_says_what_is_meant() {
        let mode = |body: Value| asked(&body).map(|asked| asked.ask.mode);
        assert_eq!(mode(json!({"image": "data:,"})), Ok(Mode::Redux));
        assert_eq!(mode(json!({"image": "data:,", "strength": 0.3})), Ok(Mode::Image { strength: 0.3 }));
        assert_eq!(mode(json!({"image": "data:,", "prompt": "x"})), Ok(Mode::Image { strength: 0.6 }));
        assert_eq!(
            mode(json!({"image": "data:,", "mask": "data:,", "prompt": "x"})),
            Ok(Mode::Inpaint { strength: 1.0 })
        );
        assert!(mode(json!({"mask": "data:,", "prompt": "x"})).is_err());
        // What `flux` says of a value comes without its name of the field.
        let wrong = mode(json!({"prompt": "x", "sampler": "best"})).unwrap_err().to_string();
        assert!(wrong.starts_with("sampler: ") && wrong.matches("sampler: ").count() == 1, "{wrong}");
        assert!(mode(json!({})).is_err());
    }

    #[test]
    fn deadlines_count_from_now_and_loras_are_named() {
        let body = json!({"prompt": "x", "start_within": 1.5, "loras": ["a", {"name": "b", "weight": 0.5}], "priority": "low"});
        let asked = asked(&body).unwrap();
        assert_eq!((asked.start_by, asked.finish_by, asked.priority), (Some(2_500), None, Priority::Low));
        assert_eq!(asked.ask.loras, [("a".to_owned(), 1.0), ("b".to_owned(), 0.5)]);
        for (given, seconds) in [(json!("5m"), 300), (json!(0), 0), (json!(-1), u64::MAX), (json!("never"), u64::MAX)] {
            let asked = super::tests::asked(&json!({"prompt": "x", "keep_alive": given})).unwrap();
            assert_eq!(asked.ask.keep_alive_seconds, Some(seconds), "{given}");
        }
        for wrong in [
            json!({"prompt": "x", "keep_alive": "soon"}),
            json!({"prompt": "x", "keep_alive": []}),
            json!({"prompt": "x", "loras": "a"}),
            json!({"prompt": "x", "loras": [1]}),
            json!({"prompt": "x", "width": 5}),
        ] {
            assert!(asked_is_refused(&wrong), "{wrong}");
        }
    }

    fn asked_is_refused(body: &Value) -> bool {
        asked(body).is_err_and(|fault| error(&fault).status == 422)
    }
}

//! AUTOMATIC1111's web API, as far as front ends use it: `txt2img`, `img2img`, `progress` and the lists they look at. Pure.
//!
//! Sources: the API's published schema; what Open WebUI, SillyTavern and `webuiapi` send. `cfg_scale` is ignored: front ends send
//! 7, which means classifier-free guidance, and FLUX.1's guidance is `distilled_cfg_scale`.

use serde_json::{Map, Value, json};

use super::{Answer, LONGEST_SIDE, exact_size, seed, usable_loras};
use crate::{
    ask::{Ask, Mode, OnFlagged, Previews, Source},
    error::{Fault, Rule},
    fields::{Field, Kind, Treatment, Values, field, read},
    job::JobView,
};

/// Seconds that results are kept: the answer holds them already.
const KEEP: u64 = 600;

/// Most pictures of one request.
const MOST_PICTURES: u32 = 64;

/// What both routes take; `img2img` looks at `denoising_strength` and `mask`, too.
pub const FIELDS: [Field; 22] = [
    field("prompt", Kind::Text(100_000), "What to draw; `<lora:NAME:WEIGHT>` is taken out and applied.")
        .default("\"\""),
    field("negative_prompt", Kind::Text(100_000), "")
        .treated(Treatment::Ignored("a distilled model has no use for it")),
    field("width", Kind::Integer(1, LONGEST_SIDE as i128), "Pixels.").default("512"),
    field("height", Kind::Integer(1, LONGEST_SIDE as i128), "Pixels.").default("512"),
    field("steps", Kind::Integer(1, 150), "More than 50 are 50.").default("28").treated(Treatment::Converted("steps")),
    field("seed", Kind::Integer(-1, u64::MAX as i128), "-1: one is chosen.").default("-1"),
    field("batch_size", Kind::Integer(1, 64), "Times `n_iter` pictures, one after the other.")
        .default("1")
        .treated(Treatment::Emulated("one after the other")),
    field("n_iter", Kind::Integer(1, 64), "").default("1").treated(Treatment::Emulated("one after the other")),
    field("distilled_cfg_scale", Kind::Number(0.0, 100.0), "The distilled guidance scale.")
        .default("4.5")
        .treated(Treatment::Renamed("guidance")),
    field("cfg_scale", Kind::Any, "").treated(Treatment::Ignored("front ends send 7, which FLUX.1 cannot use")),
    field("denoising_strength", Kind::Number(0.0, 1.0), "How much of the given picture is made anew.")
        .default("0.75")
        .treated(Treatment::Renamed("strength")),
    field("init_images", Kind::Any, "Base64 or data URIs; the first is used.").treated(Treatment::Renamed("image")),
    field("mask", Kind::Picture, "Base64 or a data URI; white is made anew."),
    field("inpainting_mask_invert", Kind::Any, "1: black is made anew."),
    field("sampler_name", Kind::Any, "").or(&["sampler_index"]).treated(Treatment::Ignored("Euler, whatever is named")),
    field("scheduler", Kind::Any, "").treated(Treatment::Ignored("FLUX.1's own schedule")),
    field("override_settings", Kind::Any, "`sd_model_checkpoint` names the model.")
        .treated(Treatment::Converted("model")),
    field("send_images", Kind::Flag, "Whether pictures are in the answer.").default("true"),
    field("include_init_images", Kind::Any, "").treated(Treatment::Ignored("the answer never holds them")),
    field("enable_hr", Kind::Any, "").treated(Treatment::Ignored("say the size")),
    field("alwayson_scripts", Kind::Any, "").treated(Treatment::Ignored("there are no scripts")),
    field("styles", Kind::Any, "").treated(Treatment::Ignored("say it in the prompt")),
];

/// A body that was understood.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What to make.
    pub ask: Ask,
    /// Whether pictures are in the answer.
    pub send_images: bool,
}

/// Reads a body of `txt2img`, or of `img2img` if `from_picture`.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::UnknownModel`].
pub fn ask(
    body: &Map<String, Value>,
    from_picture: bool,
    model: &dyn Fn(Option<&str>) -> Result<String, Fault>,
    random: u32,
) -> Result<Asked, Fault> {
    let values = read(&FIELDS, body)?;
    let named = values.get("override_settings").and_then(|settings| settings["sd_model_checkpoint"].as_str());
    // What `options` tells is the title, which front ends send back.
    let model = model(named.filter(|name| !name.is_empty()).and_then(|title| title.split_whitespace().next()))?;
    let (mode, given, mask) = if from_picture { pictures(&values)? } else { (Mode::Text, Vec::new(), None) };
    let count = values.the_integer::<u32>("batch_size").saturating_mul(values.the_integer("n_iter"));
    if count > MOST_PICTURES {
        let message = format!("times n_iter has to be at most {MOST_PICTURES}");
        return Err(Fault::invalid("batch_size", Rule::AtMost(f64::from(MOST_PICTURES)), message));
    }
    let (prompt, loras) = split_loras(values.the_text("prompt"));
    let loras = usable_loras("prompt", loras)?;
    let ask = Ask {
        mode,
        size: exact_size("width", values.the_integer("width"), values.the_integer("height"))?,
        steps: values.the_integer::<u32>("steps").min(50),
        guidance: values.the_number("distilled_cfg_scale"),
        seed: seed(values.integer("seed"), random),
        pictures: count,
        given,
        mask_inverted: mask.is_some() && values.get("inpainting_mask_invert").is_some_and(is_on),
        mask,
        quality: 100,
        // It has no parameter for the gate; black pictures are what its own filter gives.
        on_flagged: OnFlagged::Black,
        previews: Previews { count: 6, full_size: false },
        loras,
        keep_seconds: KEEP,
        ..Ask::text(model, prompt)
    };
    Ok(Asked { ask, send_images: values.the_flag("send_images") })
}

fn pictures(values: &Values) -> Result<(Mode, Vec<Source>, Option<Source>), Fault> {
    let first = values.get("init_images").and_then(|images| images.get(0)).and_then(Value::as_str);
    let Some(first) = first else {
        return Err(Fault::invalid("init_images", Rule::Missing, "has to hold a picture"));
    };
    let strength = values.the_number("denoising_strength");
    let mask = values.text("mask").filter(|mask| !mask.is_empty()).map(|mask| source(mask, "mask"));
    let mode = if mask.is_some() { Mode::Inpaint { strength } } else { Mode::Image { strength } };
    Ok((mode, vec![source(first, "init_images")], mask))
}

/// Front ends send numbers for flags.
fn is_on(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_f64().is_some_and(|number| number != 0.0))
}

/// Bare base64 becomes a data URI; its type is told by its bytes.
fn source(text: &str, field: &str) -> Source {
    let lower = text.get(..5).unwrap_or_default().to_ascii_lowercase();
    let url = if lower == "data:" || lower == "http:" || lower == "https" {
        text.to_owned()
    } else {
        format!("data:application/octet-stream;base64,{text}")
    };
    Source::Url { url, field: field.into() }
}

/// Takes `<lora:NAME:WEIGHT>` out of a prompt.
fn split_loras(prompt: &str) -> (String, Vec<(String, f32)>) {
    let mut text = String::with_capacity(prompt.len());
    let mut loras: Vec<(String, f32)> = Vec::new();
    let mut rest = prompt;
    while let Some(start) = rest.find("<lora:") {
        let inner = &rest[start + "<lora:".len()..];
        let Some(end) = inner.find('>') else { break };
        text.push_str(&rest[..start]);
        let (name, weight) = inner[..end].split_once(':').unwrap_or((&inner[..end], "1"));
        let weight = weight.split(':').next().and_then(|weight| weight.trim().parse().ok());
        let weight = weight.filter(|weight: &f32| weight.is_finite()).unwrap_or(1.0);
        // The last word counts.
        loras.retain(|(other, _)| other != name.trim());
        loras.push((name.trim().to_owned(), weight));
        rest = &inner[end + 1..];
    }
    text.push_str(rest);
    let text = if loras.is_empty() { text } else { text.split_whitespace().collect::<Vec<_>>().join(" ") };
    (text, loras)
}

/// The answer: pictures in base64, what was asked, and a JSON string with the seeds.
pub fn answer(ask: &Ask, body: &Map<String, Value>, pictures: &[(u64, String)], width: u32, height: u32) -> Value {
    let seeds: Vec<u64> = pictures.iter().map(|(seed, _)| *seed).collect();
    let text = |seed: u64| {
        format!(
            "{}\nSteps: {}, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: {}, Seed: {seed}, Size: {width}x{height}, Model: {}",
            ask.prompt, ask.steps, ask.guidance, ask.model
        )
    };
    let info = json!({
        "prompt": ask.prompt, "all_prompts": vec![&ask.prompt; seeds.len()], "negative_prompt": "",
        "all_negative_prompts": vec![""; seeds.len()], "seed": ask.seed, "all_seeds": seeds, "subseed": ask.seed, "all_subseeds": seeds,
        "subseed_strength": 0, "width": width, "height": height, "sampler_name": "Euler", "cfg_scale": 1.0,
        "steps": ask.steps, "batch_size": ask.pictures, "restore_faces": false, "sd_model_name": ask.model,
        "index_of_first_image": 0, "infotexts": seeds.iter().map(|&seed| text(seed)).collect::<Vec<_>>(),
        "styles": [], "job_timestamp": "0", "clip_skip": 1, "is_using_inpainting_conditioning": false,
    });
    let mut parameters = body.clone();
    parameters.remove("init_images"); // megabytes that the caller has
    parameters.remove("mask");
    let images: Vec<&str> = pictures.iter().map(|(_, picture)| picture.as_str()).collect();
    json!({"images": images, "parameters": parameters, "info": info.to_string()})
}

/// What `progress` says: of the job that runs, or that nothing does.
pub fn progress(job: Option<&JobView>, preview: Option<&str>, now: crate::clock::Millis) -> Value {
    let Some((job, progress)) = job.and_then(|job| Some((job, job.progress?))) else {
        return json!({
            "progress": 0.0, "eta_relative": 0.0, "current_image": null, "textinfo": null,
            "state": {"skipped": false, "interrupted": false, "stopping_generation": false, "job": "", "job_count": 0,
                "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0},
        });
    };
    let share = progress.share();
    let elapsed = (now - job.started.unwrap_or(now)) as f64 / 1e3;
    let left = if share > 0.0 { elapsed / share - elapsed } else { 0.0 };
    json!({
        "progress": share, "eta_relative": left, "current_image": preview, "textinfo": null,
        "state": {"skipped": false, "interrupted": false, "stopping_generation": false, "job": job.endpoint.as_ref(),
            "job_count": progress.pictures, "job_timestamp": job.accepted.to_string(), "job_no": progress.picture,
            "sampling_step": progress.step, "sampling_steps": progress.steps},
    })
}

/// A fault in the clients' shape.
pub fn error(fault: &Fault) -> Answer {
    let status = match fault {
        Fault::Invalid(_) | Fault::Picture { .. } | Fault::Flagged { .. } => 422,
        Fault::UnknownModel(_) | Fault::NotFound(_) => 404,
        Fault::WrongMethod => 405,
        Fault::Unauthenticated => 401,
        Fault::Forbidden(_) => 403,
        Fault::TooLarge(_) => 413,
        Fault::Full { .. } => 429,
        Fault::TimedOut(_) | Fault::Cancelled | Fault::Failed(_) => 500,
        Fault::Unavailable(_) => 503,
    };
    let message = fault.to_string();
    let answer =
        Answer::new(status, json!({"error": "HTTPException", "detail": message, "body": "", "errors": message}));
    match fault {
        Fault::Full { retry_after, .. } => answer.retry_after(*retry_after),
        _ => answer,
    }
}

/// A model of the shelf in this dialect's list.
pub fn model(name: &str) -> Value {
    json!({"title": name, "model_name": name, "hash": null, "sha256": null, "filename": name, "config": null})
}

/// What `options` tells; front ends look for the first.
pub fn options(model: &str) -> Value {
    json!({"sd_model_checkpoint": model, "samples_format": "png", "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"})
}

/// Lists that are always the same, by the last part of their path.
pub fn list(name: &str) -> Option<Value> {
    Some(match name {
        "samplers" => json!([{"name": "Euler", "aliases": ["k_euler"], "options": {}}]),
        "schedulers" => {
            json!([{"name": "simple", "label": "Simple", "aliases": null, "default_rho": -1.0, "need_inner_model": false}])
        }
        "upscalers"
        | "latent-upscale-modes"
        | "sd-vae"
        | "prompt-styles"
        | "hypernetworks"
        | "face-restorers"
        | "script-info"
        | "artists"
        | "artist-categories"
        | "realesrgan-models"
        | "extensions" => json!([]),
        "embeddings" => json!({"loaded": {}, "skipped": {}}),
        "cmd-flags" => json!({}),
        "scripts" => json!({"txt2img": [], "img2img": []}),
        "memory" => json!({"ram": {}, "cuda": {}}),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ask::OutputSize, fields::bad_defaults};

    fn asked(body: &Value, from_picture: bool) -> Result<Asked, Fault> {
        ask(body.as_object().unwrap(), from_picture, &|name| Ok(name.unwrap_or("pocket").to_owned()), 5)
    }

    #[test]
    fn what_front_ends_send() {
        assert!(bad_defaults(&FIELDS).is_empty());
        // SillyTavern's body, shortened.
        let body = json!({"prompt": "a fox <lora:ink:0.5> at night", "negative_prompt": "blurry", "sampler_name": "DPM++ 2M",
            "scheduler": "Karras", "steps": 60, "cfg_scale": 7, "width": 640, "height": 480, "seed": -1, "restore_faces": false,
            "enable_hr": false, "override_settings": {"CLIP_stop_at_last_layers": 1}, "do_not_save_grid": true});
        let Asked { ask, send_images } = asked(&body, false).unwrap();
        assert_eq!((ask.prompt.as_str(), ask.steps, ask.guidance, ask.seed), ("a fox at night", 50, 4.5, 5));
        assert_eq!(ask.loras, [("ink".to_owned(), 0.5)]);
        assert_eq!(ask.size, OutputSize::Exact { width: 640, height: 480 });
        assert!(send_images && ask.safety);
    }

    #[test]
    fn a_picture_is_base64_or_a_data_uri() {
        let body = json!({"prompt": "x", "init_images": ["iVBORw0KGgo="], "mask": "data:image/png;base64,AA==", "denoising_strength": 0.4});
        let ask = asked(&body, true).unwrap().ask;
        assert_eq!((ask.mode, ask.mask_inverted), (Mode::Inpaint { strength: 0.4 }, false));
        for (given, inverted) in [(json!(1), true), (json!(0), false), (json!(true), true), (json!(null), false)] {
            let mut body = body.clone();
            body["inpainting_mask_invert"] = given;
            assert_eq!(asked(&body, true).unwrap().ask.mask_inverted, inverted, "{}", body["inpainting_mask_invert"]);
        }
        let Source::Url { url, field } = &ask.given[0] else { panic!("a blob") };
        assert_eq!(
            (url.as_str(), field.as_str()),
            ("data:application/octet-stream;base64,iVBORw0KGgo=", "init_images")
        );
        let Answer { status, body, .. } = error(&asked(&json!({"prompt": "x", "init_images": []}), true).unwrap_err());
        assert_eq!(status, 422);
        assert!(body["detail"].as_str().unwrap().starts_with("init_images"), "{body}");
    }

    #[test]
    fn info_is_a_string_with_every_seed() {
        let body = json!({"prompt": "x", "batch_size": 2, "seed": 7, "init_images": ["AAAA"]});
        let asked = asked(&body, false).unwrap();
        let pictures = [(7, "A".to_owned()), (8, "B".to_owned())];
        let answer = answer(&asked.ask, body.as_object().unwrap(), &pictures, 512, 512);
        let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
        assert_eq!((&info["all_seeds"], &info["seed"]), (&json!([7, 8]), &json!(7)));
        assert!(info["infotexts"][1].as_str().unwrap().contains("Seed: 8"));
        assert_eq!((&answer["images"], answer["parameters"].get("init_images")), (&json!(["A", "B"]), None));
    }

    #[test]
    fn nothing_running_is_no_progress() {
        let idle = progress(None, None, 0);
        assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    }

    #[test]
    fn a_lora_that_never_ends_is_text() {
        assert_eq!(split_loras("a <lora:x"), ("a <lora:x".to_owned(), Vec::new()));
        assert_eq!(split_loras("<lora:x>").1, [("x".to_owned(), 1.0)]);
        assert_eq!(split_loras("<lora:x:0.5:0.7> b"), ("b".to_owned(), vec![("x".to_owned(), 0.5)]));
        assert_eq!(split_loras("<lora:x:nan>").1, [("x".to_owned(), 1.0)]);
        assert_eq!(split_loras("<lora:x:1><lora:x:2>").1, [("x".to_owned(), 2.0)]);
    }
}

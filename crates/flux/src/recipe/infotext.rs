//! AUTOMATIC1111's infotext, as its descendants write it too: the prompt, perhaps a line `Negative prompt: …`, and a last line of
//! settings, `Steps: 28, Sampler: Euler, …`. A value with a comma in it is a JSON string.

use super::{Recipe, graph::shortened};
use crate::{
    error::{Error, Result},
    noise::Noise,
};

/// Settings that say nothing about how to make the picture again, or are said elsewhere.
const IDLE: [&str; 8] =
    ["Model hash", "Version", "VAE hash", "VAE", "Lora hashes", "TI hashes", "Module 1", "Postprocess upscaler"];

/// AUTOMATIC1111's names and ours.
const SAMPLERS: [(&str, &str); 5] =
    [("Euler", "euler"), ("Heun", "heun"), ("DPM++ 2M", "dpmpp_2m"), ("Euler a", "euler_ancestral"), ("LCM", "lcm")];
const SCHEDULES: [(&str, &str); 6] = [
    ("Simple", "simple"),
    ("Normal", "normal"),
    ("Beta", "beta"),
    ("SGM Uniform", "sgm_uniform"),
    ("Karras", "karras"),
    ("Automatic", "simple"),
];

pub(super) fn read(text: &str) -> Result<Recipe> {
    let text = text.trim();
    let (prompts, settings) = match text.rfind("\nSteps: ") {
        Some(at) => (&text[..at], &text[at + 1..]),
        None if text.starts_with("Steps: ") => ("", text),
        None => return Err(Error::asked("from", "the file's parameters have no line of settings ('Steps: …')")),
    };
    let (prompt, negative) = match prompts.split_once("Negative prompt: ") {
        Some((prompt, negative)) if prompt.is_empty() || prompt.ends_with('\n') => (prompt, Some(negative)),
        _ => (prompts, None),
    };
    let mut recipe = Recipe {
        prompt: (!prompt.trim().is_empty()).then(|| prompt.trim().to_owned()),
        negative_prompt: negative.map(|negative| negative.trim().to_owned()),
        ..Recipe::default()
    };
    let mut lost = Vec::new();
    let mut noise = None;
    for (name, value) in settings_of(settings) {
        if !take(&mut recipe, &mut noise, name, &value)? && !IDLE.contains(&name) {
            lost.push(format!("{} ({})", shortened(name), shortened(&value)));
        }
    }
    recipe.noise = Some(Noise::CpuF32);
    if noise.as_deref() != Some("CPU") {
        recipe.notes.push(
            "the noise was drawn on a GPU, perhaps, and the picture will be another: 'RNG: CPU' is not there".into(),
        );
    }
    if recipe.prompt.as_deref().is_some_and(|prompt| prompt.contains("<lora:")) {
        recipe.notes.push("LoRAs named in the prompt are taken for words; hint: --lora FILE".into());
    }
    if !lost.is_empty() {
        recipe.notes.push(format!("not taken over: {}", lost.join(", ")));
    }
    Ok(recipe)
}

/// Puts a setting into the recipe; `false` if it has no place there.
fn take(recipe: &mut Recipe, noise: &mut Option<String>, name: &str, value: &str) -> Result<bool> {
    fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<Option<T>> {
        let wrong = || Error::asked("from", format!("'{name}: {}' is not a possible value", shortened(value)));
        value.trim().parse().map(Some).map_err(|_| wrong())
    }
    match name {
        "Steps" => recipe.steps = number(name, value)?,
        "CFG scale" => recipe.true_cfg = number(name, value)?,
        "Distilled CFG Scale" => recipe.guidance = number(name, value)?,
        "Seed" => recipe.seed = number(name, value)?,
        "Size" => {
            let (width, height) = value.split_once('x').unwrap_or((value, ""));
            (recipe.width, recipe.height) = (number(name, width)?, number(name, height)?);
        }
        "Sampler" => {
            let ours = SAMPLERS.iter().find(|(theirs, _)| *theirs == value).map(|(_, ours)| *ours);
            recipe.sampler = Some(ours.unwrap_or(value).to_owned());
        }
        "Schedule type" => {
            let ours = SCHEDULES.iter().find(|(theirs, _)| *theirs == value).map(|(_, ours)| *ours);
            recipe.schedule = Some(format!("comfy-{}", ours.unwrap_or(value)));
        }
        "Model" => recipe.model = Some(value.to_owned()),
        "RNG" => *noise = Some(value.to_owned()),
        "Postprocess upscale by" => {
            let scale = value.trim().parse::<f32>().ok().filter(|scale| [2.0, 4.0].contains(scale));
            recipe.upscale = scale.map(|scale| scale as u32);
            return Ok(scale.is_some());
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// `name: value, name: "value, with comma"`.
fn settings_of(mut rest: &str) -> Vec<(&str, String)> {
    let mut settings = Vec::new();
    while let Some((name, behind)) = rest.split_once(':') {
        let behind = behind.trim_start();
        let mut strings = serde_json::Deserializer::from_str(behind).into_iter::<String>();
        let quoted = if behind.starts_with('"') { strings.next().and_then(std::result::Result::ok) } else { None };
        let (value, length) = if let Some(value) = quoted {
            (value, strings.byte_offset())
        } else {
            let end = behind.find(',').unwrap_or(behind.len());
            (behind[..end].trim().to_owned(), end)
        };
        settings.push((name.trim(), value));
        rest = behind[length..].trim_start().trim_start_matches(',').trim_start();
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infotext_of_forge() {
        let text = "a cat: on, a mat\nwith \"Steps: 3\"\nNegative prompt: dogs,\nbirds\nSteps: 20, Sampler: Euler, Schedule type: Simple, \
            CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 42, Size: 896x1152, Model hash: abc, Model: \"a, b\", RNG: CPU, \
            Hires upscale: 2, Version: f2.0";
        let recipe = read(text).unwrap();
        assert_eq!(recipe.prompt.as_deref(), Some("a cat: on, a mat\nwith \"Steps: 3\""));
        assert_eq!(recipe.negative_prompt.as_deref(), Some("dogs,\nbirds"));
        assert_eq!(
            (recipe.steps, recipe.seed, recipe.width, recipe.height),
            (Some(20), Some(42), Some(896), Some(1152))
        );
        assert_eq!((recipe.guidance, recipe.true_cfg), (Some(3.5), Some(1.0)));
        assert_eq!((recipe.sampler.as_deref(), recipe.schedule.as_deref()), (Some("euler"), Some("comfy-simple")));
        assert_eq!(recipe.model.as_deref(), Some("a, b"));
        assert_eq!(recipe.notes, ["not taken over: Hires upscale (2)"]);
    }

    #[test]
    fn infotext_that_is_none() {
        for text in ["", "a cat", "Steps", "a\nSteps 3"] {
            assert!(read(text).unwrap_err().to_string().starts_with("from: the file's parameters"), "{text}");
        }
        assert!(read("Steps: many").unwrap_err().to_string().contains("'Steps: many'"));
        assert!(read("Steps: 3, Size: 12").unwrap_err().to_string().contains("'Size: '"));
        assert!(read("Steps: 3").unwrap().prompt.is_none());
        assert_eq!(
            settings_of("a: \"b\\\"c, d\", e:f,, g: \"h"),
            [("a", "b\"c, d".into()), ("e", "f".into()), ("g", "\"h".into())]
        );
    }
}

//! What can be asked for. Checked once, before any work.

use crate::{
    acceleration::Acceleration,
    conditioning::{Pictures, canvas::Sizes},
    error::{Error, Result},
    model::Defaults,
    noise::Noise,
    pixels::Rgb8,
    plan::Workload,
    sampler::Sampler,
    schedule::{MAX_STEPS, ScheduleKind},
    sizes::{MAX_PIXELS, MAX_SIDE},
    styles::{MAX_STYLES, Style},
    upscale,
    vae::VaeConfig,
};

/// Most pictures of one request.
pub const MAX_BATCH: u32 = 64;
/// Most T5 tokens: four times what the models were trained with.
pub const MAX_T5_LENGTH: usize = 2048;
/// Longest prompt, bytes. T5 sees 512 tokens of it.
pub const MAX_PROMPT: usize = 100_000;

/// One or several pictures of a prompt.
///
/// Made with a model's own defaults by [`crate::Pipeline::request`]; every field may be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to draw.
    pub prompt: String,
    /// What not to draw; used where `true_cfg` is above 1.
    pub negative_prompt: Option<String>,
    /// A picture to vary, with Redux: as a style of weight 1. The prompt may stay empty.
    pub redux: Option<Rgb8>,
    /// Pictures whose style is followed, with Redux; at most [`crate::styles::MAX_STYLES`].
    pub styles: Vec<Style>,
    /// Pixels. Rendered at the next multiple of 16 and cropped.
    pub width: u32,
    /// Pixels. Rendered at the next multiple of 16 and cropped.
    pub height: u32,
    /// Steps from noise to picture; one evaluation of the transformer each, unless the sampler takes two.
    pub steps: u32,
    /// The distilled guidance scale, an input of the model: not classifier-free guidance.
    pub guidance: f32,
    /// Classifier-free guidance with the negative prompt; off at 1. Doubles the time.
    pub true_cfg: f32,
    /// Noise of the first picture; the next ones count up.
    pub seed: u64,
    /// How many pictures.
    pub batch: u32,
    /// Whose random numbers.
    pub noise: Noise,
    /// How the velocity is followed.
    pub sampler: Sampler,
    /// How many velocities are reused instead of computed.
    pub acceleration: Acceleration,
    /// Whose noise schedule.
    pub schedule: ScheduleKind,
    /// T5 tokens, padding included.
    pub t5_length: usize,
    /// Pictures to begin from, to follow, to look at.
    pub pictures: Pictures,
    /// Decode in tiles: always, never, or (`None`) above 2048×1024 pixels.
    pub vae_tiling: Option<bool>,
    /// How many times the finished picture is enlarged, 2 or 4; see [`crate::upscale`].
    pub upscale: Option<u32>,
}

impl Request {
    /// A request with these defaults, seed 0 and one picture.
    pub fn new(prompt: impl Into<String>, defaults: &Defaults) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: None,
            redux: None,
            styles: Vec::new(),
            width: defaults.width,
            height: defaults.height,
            steps: defaults.steps,
            guidance: defaults.guidance,
            true_cfg: defaults.true_cfg,
            seed: 0,
            batch: 1,
            noise: Noise::default(),
            sampler: Sampler::default(),
            acceleration: Acceleration::None,
            schedule: ScheduleKind::default(),
            t5_length: defaults.t5_length,
            pictures: Pictures::default(),
            vae_tiling: None,
            upscale: None,
        }
    }

    /// The steps that are made: fewer than [`Request::steps`] where a picture is begun from.
    pub fn steps_made(&self) -> u32 {
        self.pictures.start.as_ref().map_or(self.steps, |start| start.steps(self.steps))
    }

    /// Refuses what cannot be met. `least_side` is a token of the model, pixels: 16 for FLUX.1.
    ///
    /// # Errors
    /// [`Error::Asked`] naming the field, the value and the range.
    pub fn check(&self, least_side: u32) -> Result<()> {
        let range = |field, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::asked(field, format!("is {value}; {least} to {most} are possible")))
            }
        };
        range("width", self.width, least_side, MAX_SIDE)?;
        range("height", self.height, least_side, MAX_SIDE)?;
        let pixels = u64::from(self.width) * u64::from(self.height);
        if pixels > MAX_PIXELS {
            let size = format!("{}×{}", self.width, self.height);
            return Err(Error::asked("size", format!("{size} is {pixels} pixels; at most {MAX_PIXELS} are possible")));
        }
        range("steps", self.steps, 1, MAX_STEPS)?;
        range("batch", self.batch, 1, MAX_BATCH)?;
        for (field, value, most) in [("guidance", self.guidance, 1000.0), ("true_cfg", self.true_cfg, 1000.0)] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::asked(field, format!("is {value}; 0 to {most} are possible")));
            }
        }
        self.acceleration.check()?;
        self.check_styles()?;
        if !(1..=MAX_T5_LENGTH).contains(&self.t5_length) {
            return Err(Error::asked("t5_length", format!("is {}; 1 to {MAX_T5_LENGTH} are possible", self.t5_length)));
        }
        if let Some(scale) = self.upscale {
            upscale::check(scale, self.width, self.height)?;
        }
        for (field, text) in [("prompt", Some(&self.prompt)), ("negative_prompt", self.negative_prompt.as_ref())] {
            if let Some(text) = text
                && text.len() > MAX_PROMPT
            {
                return Err(Error::asked(
                    field,
                    format!("is {} bytes long; at most {MAX_PROMPT} are possible", text.len()),
                ));
            }
        }
        Ok(())
    }

    /// What of it decides about memory and work. `vae` are the sizes of the autoencoder that it is made with.
    pub fn planned(&self, vae: &VaeConfig) -> Workload {
        Workload {
            width: self.width,
            height: self.height,
            t5_length: self.t5_length,
            steps: self.steps_made(),
            sampler: self.sampler,
            acceleration: self.acceleration,
            true_cfg: self.uses_true_cfg(),
            styles: self.style_pictures().count() as u32,
            vae_tiling: self.vae_tiling,
            upscale: self.upscale,
            given: self.pictures.given(Sizes::covering((self.width, self.height), vae.factor() as u32)),
        }
    }

    /// Refuses styles that cannot be followed.
    fn check_styles(&self) -> Result<()> {
        if self.styles.len() > MAX_STYLES {
            let problem = format!("{} are given; at most {MAX_STYLES} are possible", self.styles.len());
            return Err(Error::asked("style", problem));
        }
        if let Some(style) = self.styles.iter().find(|style| !(0.0..=1.0).contains(&style.weight)) {
            return Err(Error::asked("style", format!("has the weight {}; 0 to 1 are possible", style.weight)));
        }
        let untouched = self.pictures.start.as_ref().is_some_and(|start| start.strength <= 0.0);
        if untouched && self.style_pictures().next().is_some() {
            let field = self.style_field();
            let problem = format!("is 0, which gives the picture back as it is: {field} would change nothing");
            return Err(Error::asked("strength", problem).hint(format!("up to 1, or no --{field}")));
        }
        Ok(())
    }

    /// Pictures that Redux makes tokens of, with how much they count: the one to vary first, then styles.
    pub(crate) fn style_pictures(&self) -> impl Iterator<Item = (&Rgb8, f32)> {
        let redux = self.redux.iter().map(|picture| (picture, 1.0));
        redux.chain(self.styles.iter().map(|style| (&style.picture, style.weight))).filter(|(_, weight)| *weight > 0.0)
    }

    /// The field that asks for the vision tower, for messages.
    pub(crate) fn style_field(&self) -> &'static str {
        if self.redux.is_some() { "redux" } else { "style" }
    }

    /// What a picture's file says of them: `redux`, `style:0.7`.
    pub(crate) fn styles_told(&self) -> Vec<String> {
        let styles = self.styles.iter().map(|style| format!("style:{}", style.weight));
        self.redux.iter().map(|_| "redux".to_owned()).chain(styles).collect()
    }

    /// Whether two passes a step are needed.
    pub(crate) fn uses_true_cfg(&self) -> bool {
        self.true_cfg > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_field_is_named() {
        let good = Request::new("a cat", &Defaults::default());
        good.check(16).unwrap();
        let wrong: [(&str, Request); 8] = [
            ("width", Request { width: 15, ..good.clone() }),
            ("height", Request { height: 100_000, ..good.clone() }),
            ("size", Request { width: 8192, height: 8192, ..good.clone() }),
            ("steps", Request { steps: 0, ..good.clone() }),
            ("guidance", Request { guidance: f32::NAN, ..good.clone() }),
            ("true_cfg", Request { true_cfg: -1.0, ..good.clone() }),
            ("batch", Request { batch: 0, ..good.clone() }),
            ("prompt", Request { prompt: "x".repeat(MAX_PROMPT + 1), ..good.clone() }),
        ];
        for (field, request) in wrong {
            let error = request.check(16).expect_err(field).to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}

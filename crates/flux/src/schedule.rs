//! Noise levels from 1 (noise) to 0 (picture): `steps + 1` sigmas, shifted towards noise the more image tokens there are.
//!
//! [`ScheduleKind::Reference`] follows diffusers operation by operation in f32; BFL's own schedule differs from it in
//! last bits only. Image tokens are those of the generated picture: H/16 · W/16.
//! Source: diffusers `FlowMatchEulerDiscreteScheduler` as `FluxPipeline` calls it; ComfyUI's are in their own file.

mod comfy;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
pub use comfy::Spacing;

/// Most steps.
pub const MAX_STEPS: u32 = 1000;

/// How sigmas are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScheduleKind {
    /// As diffusers and BFL: evenly spaced, then shifted by token count. `reference`.
    #[default]
    Reference,
    /// As one of ComfyUI's schedulers, `comfy-` and its name, or that name alone: `comfy-beta`, `sgm_uniform`.
    Comfy {
        /// Which one.
        spacing: Spacing,
        /// Whether the shift follows the size, as with the node `ModelSamplingFlux`, instead of being the same at every
        /// size. `comfy-beta-sized`.
        sized: bool,
    },
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("reference"),
            Self::Comfy { spacing, sized } => {
                write!(f, "comfy-{}{}", spacing.name(), if *sized { "-sized" } else { "" })
            }
        }
    }
}

impl FromStr for ScheduleKind {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `schedule` if the name is none of those above.
    fn from_str(name: &str) -> Result<Self> {
        if name == "reference" {
            return Ok(Self::Reference);
        }
        let plain = name.strip_prefix("comfy-").unwrap_or(name);
        let (plain, sized) = plain.strip_suffix("-sized").map_or((plain, false), |plain| (plain, true));
        let spacing = Spacing::ALL.into_iter().find(|spacing| spacing.name() == plain);
        spacing.map(|spacing| Self::Comfy { spacing, sized }).ok_or_else(|| {
            let names = Spacing::ALL.map(Spacing::name).join(", ");
            let problem = format!(
                "expected reference or one of ComfyUI's {names} (with '-sized' if its shift is to follow the size), got '{name}'"
            );
            Error::asked("schedule", problem)
        })
    }
}

/// How `mu` bends a sigma; both leave 0 and 1 where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// `e^mu / (e^mu + (1/t − 1))`.
    #[default]
    Exponential,
    /// `mu / (mu + (1/t − 1))`.
    Linear,
}

/// What a `scheduler_config.json` says; absent keys have diffusers' defaults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Timesteps per unit of sigma.
    pub num_train_timesteps: u32,
    /// The shift at every size; unused if `use_dynamic_shifting`.
    pub shift: f64,
    /// Whether the shift follows the token count.
    pub use_dynamic_shifting: bool,
    /// `mu` at `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// `mu` at `max_image_seq_len` tokens; the line goes on beyond.
    pub max_shift: f64,
    /// Tokens where `mu` is `base_shift`.
    pub base_image_seq_len: u32,
    /// Tokens where `mu` is `max_shift`.
    pub max_image_seq_len: u32,
    /// How `mu` is applied.
    pub time_shift_type: TimeShift,
    /// If set, the sigmas are stretched so that the last before 0 is this.
    pub shift_terminal: Option<f64>,
}

/// Keys that are understood and refused: no FLUX model uses them, and to ignore them would be a wrong picture.
const UNSUPPORTED: [&str; 5] =
    ["invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling"];

const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
        }
    }
}

impl SchedulerConfig {
    /// What FLUX.1 \[dev\] and its kin (Krea, Kontext, Fill, …) ship.
    pub fn dev() -> Self {
        Self { shift: 3.0, use_dynamic_shifting: true, ..Self::default() }
    }

    /// What FLUX.1 \[schnell\] ships: no shift.
    pub fn schnell() -> Self {
        Self::default()
    }

    /// Reads the contents of a `scheduler_config.json` found at `path`.
    ///
    /// # Errors
    /// [`Error::File`] naming `path` and the key: not JSON, a value out of range, or a feature that is not supported.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        let wrong = |problem: String| Error::file(path, problem);
        let config: Map<String, Value> = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
        if let Some(class) = config.get("_class_name").filter(|class| *class != CLASS) {
            return Err(wrong(format!("'_class_name' is {class}, expected \"{CLASS}\"")));
        }
        if let Some(key) = UNSUPPORTED.iter().find(|key| config.get(**key) == Some(&Value::Bool(true))) {
            return Err(wrong(format!("'{key}' is true, which is not supported")));
        }
        let config: Self = serde_json::from_value(config.into()).map_err(|e| wrong(e.to_string()))?;
        config.problem().map_or(Ok(config), |problem| Err(wrong(problem)))
    }

    fn problem(&self) -> Option<String> {
        if self.num_train_timesteps == 0 {
            return Some("'num_train_timesteps' is 0".into());
        }
        if self.shift <= 0.0 {
            return Some(format!("'shift' is {}, expected more than 0", self.shift));
        }
        if self.base_image_seq_len == self.max_image_seq_len {
            return Some("'base_image_seq_len' and 'max_image_seq_len' are equal".into());
        }
        if self.shift_terminal.is_some_and(|end| !(0.0..1.0).contains(&end)) {
            return Some("'shift_terminal' is not in 0 to 1".into());
        }
        None
    }

    /// The shift parameter for a picture of `image_tokens` tokens: on the line through the two ends, never clamped.
    pub fn mu(&self, image_tokens: usize) -> f64 {
        let (from, to) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let slope = (self.max_shift - self.base_shift) / (to - from);
        image_tokens as f64 * slope + (self.base_shift - slope * from)
    }

    /// The `steps + 1` noise levels, from 1 down to a final 0. [`Spacing::Beta`] gives fewer where steps would fall together.
    ///
    /// # Errors
    /// [`Error::Asked`] about `steps`: 0, or 1 with a `shift_terminal`, which then has nothing to stretch.
    pub fn sigmas(&self, kind: ScheduleKind, steps: usize, image_tokens: usize) -> Result<Vec<f32>> {
        if steps == 0 {
            return Err(Error::asked("steps", "expected at least 1, got 0"));
        }
        let mut sigmas = match kind {
            ScheduleKind::Reference => self.reference(steps, self.mu(image_tokens))?,
            ScheduleKind::Comfy { spacing, sized } => {
                self.comfy(spacing, steps, if sized { self.mu(image_tokens) } else { self.max_shift })
            }
        };
        sigmas.push(0.0);
        Ok(sigmas)
    }

    fn reference(&self, steps: usize, mu: f64) -> Result<Vec<f32>> {
        let mut sigmas: Vec<f32> =
            linspace(1.0, 1.0 / steps as f64, steps).map(|t| self.shifted(mu, t as f32)).collect();
        // Like diffusers, take a terminal of 0 for none.
        if let Some(end) = self.shift_terminal.filter(|end| *end != 0.0) {
            if steps == 1 {
                return Err(Error::asked("steps", "expected at least 2: this model's scheduler has a shift_terminal"));
            }
            let scale = (1.0 - sigmas[steps - 1]) / (1.0 - end) as f32;
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
        Ok(sigmas)
    }

    /// One sigma shifted, in f32.
    fn shifted(&self, mu: f64, t: f32) -> f32 {
        if self.use_dynamic_shifting {
            let weight = match self.time_shift_type {
                TimeShift::Exponential => mu.exp(),
                TimeShift::Linear => mu,
            } as f32;
            weight / (weight + (1.0 / t - 1.0))
        } else {
            self.shift as f32 * t / (1.0 + (self.shift - 1.0) as f32 * t)
        }
    }
}

/// `n` evenly spaced numbers, both ends included, as numpy computes them.
fn linspace(from: f64, to: f64, n: usize) -> impl Iterator<Item = f64> {
    let step = (to - from) / (n.max(2) - 1) as f64;
    (0..n).map(move |i| if i > 0 && i == n - 1 { to } else { i as f64 * step + from })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<SchedulerConfig> {
        SchedulerConfig::from_json(Path::new("scheduler/scheduler_config.json"), json.as_bytes())
    }

    #[test]
    fn reads_what_the_models_ship() {
        let dev = parse(
            r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0",
                "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
                "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": true}"#,
        )
        .unwrap();
        assert_eq!(dev.sigmas(ScheduleKind::Reference, 7, 99).unwrap(), {
            SchedulerConfig::dev().sigmas(ScheduleKind::Reference, 7, 99).unwrap()
        });
        assert_eq!(parse("{}").unwrap(), SchedulerConfig::schnell());
        assert_eq!(parse(r#"{"time_shift_type": "linear"}"#).unwrap().time_shift_type, TimeShift::Linear);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let keys = ["invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
        for key in keys.into_iter().chain(["stochastic_sampling"]) {
            let error = parse(&format!(r#"{{"{key}": true}}"#)).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("scheduler_config.json"), "{error}");
            assert!(parse(&format!(r#"{{"{key}": false}}"#)).is_ok());
        }
        for bad in [
            r#"{"_class_name": "DDIMScheduler"}"#,
            r#"{"num_train_timesteps": 0}"#,
            r#"{"shift": 0}"#,
            r#"{"max_image_seq_len": 256}"#,
            r#"{"shift_terminal": 1.0}"#,
            r#"{"time_shift_type": "cubic"}"#,
            "[",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn schnell_is_linear() {
        for kind in ["reference", "comfy-simple", "comfy-simple-sized"] {
            let kind: ScheduleKind = kind.parse().unwrap();
            assert_eq!(SchedulerConfig::schnell().sigmas(kind, 4, 4096).unwrap(), [1.0, 0.75, 0.5, 0.25, 0.0]);
            assert_eq!(SchedulerConfig::dev().sigmas(kind, 1, 4096).unwrap(), [1.0, 0.0]);
            assert_eq!(kind.to_string().parse::<ScheduleKind>().unwrap(), kind);
            assert!(SchedulerConfig::dev().sigmas(kind, 0, 4096).is_err());
        }
        for name in ["comfy-normal", "comfy-sgm_uniform-sized", "comfy-karras", "comfy-beta"] {
            let kind: ScheduleKind = name.parse().unwrap();
            assert_eq!((kind.to_string().as_str(), Ok(kind)), (name, name["comfy-".len()..].parse().map_err(drop)));
        }
        assert!("ddim_uniform".parse::<ScheduleKind>().is_err());
    }

    #[test]
    fn a_terminal_is_reached() {
        let config = SchedulerConfig { shift_terminal: Some(0.02), ..SchedulerConfig::dev() };
        let sigmas = config.sigmas(ScheduleKind::Reference, 5, 1024).unwrap();
        assert!((sigmas[4] - 0.02).abs() < 1e-6 && sigmas[0] == 1.0, "{sigmas:?}");
        assert!(config.sigmas(ScheduleKind::Reference, 1, 1024).is_err());
    }
}

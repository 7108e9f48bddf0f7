//! What is served and how: read from the configuration when the server starts, and again when the operator asks
//! ([`crate::reload`]).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use flux::{
    LoadOptions, PromptCache,
    model::{ModelSpec, SearchPaths},
    safety::{Safety, SafetyConfig},
};

use crate::{config::Config, names};

/// The model in the box, where no other is configured.
const POCKET: &str = "pocket";

/// From which score on a picture of the model in the box is flagged unless the operator says. It draws icons of things, which the
/// classifier was not made for: of 560 none was given more than 0.70, but one in a run of the tests 0.876.
const BOX_THRESHOLD: f32 = 0.99;

/// What the program knows and the configuration does not.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Where models may lie.
    pub search: SearchPaths,
    /// How models are loaded: device and precision; the configuration has the rest.
    pub options: LoadOptions,
}

/// A model that is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// What it is called here.
    pub name: String,
    /// Where it is.
    pub spec: ModelSpec,
}

/// What the shelf is set up with.
#[derive(Clone, Debug, Default)]
pub struct Stock {
    /// In the order of the lists that clients see; the first is used where no model is named.
    pub models: Vec<Served>,
    /// Other names of models.
    pub aliases: BTreeMap<String, String>,
    /// Where models may lie.
    pub search: SearchPaths,
    /// How they are loaded.
    pub options: LoadOptions,
    /// From which score on a picture of the model in the box is flagged, if that is not as for the others.
    pub box_threshold: Option<f32>,
    /// Whether a request may have its pictures not looked at; what is looked at, `options.safety` says.
    pub safety_optional: bool,
    /// How long a flagged picture is kept for a person to look at; `None`: it is not kept.
    pub hold: Option<Duration>,
    /// The operator's folder of LoRAs.
    pub loras: Option<PathBuf>,
    /// How long a model stays loaded after its last picture; `None`: for good.
    pub keep_alive: Option<Duration>,
}

impl Stock {
    /// The models of the configuration. Each is looked for now, so that a name that leads nowhere is an error at the start.
    ///
    /// # Errors
    /// What `flux` says of a model or of the safety policy, for the operator.
    pub fn configured(config: &Config, surroundings: &Surroundings) -> flux::Result<Self> {
        let Surroundings { search, mut options } = surroundings.clone();
        options.memory_limit = config.memory_limit.map(|size| size.0).or(options.memory_limit);
        let usual = SafetyConfig::default();
        options.safety = Safety::new(&SafetyConfig {
            prompts: config.safety.prompts,
            word_list: config.safety.words.clone(),
            pictures: config.safety.pictures,
            threshold: config.safety.threshold.map_or(usual.threshold, |threshold| threshold as f32),
            ..usual
        })?;
        if options.safety.is_off() {
            tracing::warn!(
                "the safety policy is off: the models' licence asks whoever deploys them for a filter or a review"
            );
        }
        options.prompt_cache.get_or_insert_with(|| PromptCache::new(config.data_dir.join("prompts")));
        let names = if config.models.is_empty() { vec![POCKET.to_owned()] } else { config.models.clone() };
        let models = names.into_iter().map(|given| {
            let spec = ModelSpec { model: (given != POCKET).then(|| (&given).into()), ..ModelSpec::default() };
            spec.find(&search)?;
            Ok::<_, flux::Error>(Served { name: name_of(&given), spec })
        });
        Ok(Self {
            models: models.collect::<flux::Result<_>>()?,
            aliases: config.aliases.clone(),
            search,
            options,
            box_threshold: config.safety.threshold.is_none().then_some(BOX_THRESHOLD),
            safety_optional: config.safety.optional,
            hold: config.safety.hold,
            loras: config.loras.clone(),
            keep_alive: Some(config.keep_alive).filter(|time| *time != Duration::MAX),
        })
    }

    /// The policy for prompts and pictures.
    pub fn safety(&self) -> Safety {
        self.options.safety.clone()
    }

    /// The same for a model.
    pub fn safety_of(&self, model: &str) -> Safety {
        let boxed = self.models.iter().any(|served| served.name == model && served.spec.model.is_none());
        let policy = self.safety();
        match self.box_threshold {
            Some(threshold) if boxed => policy.with_threshold(threshold),
            _ => policy,
        }
    }

    /// The name of the model that a client named; of the first, if it named none. `None` if it is not served.
    pub fn resolve(&self, asked: Option<&str>) -> Option<String> {
        names::resolve(asked, &self.names(), &self.aliases).map(str::to_owned)
    }

    /// The names that clients are shown.
    pub fn listed(&self) -> Vec<String> {
        names::listed(&self.names(), &self.aliases)
    }

    fn names(&self) -> Vec<String> {
        self.models.iter().map(|model| model.name.clone()).collect()
    }
}

/// What a model is called here: a path's last part, so that no client is told where it lies; a name as it is.
fn name_of(given: &str) -> String {
    let path = std::path::Path::new(given);
    let is_path = path.is_absolute() || path.exists();
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    stem.filter(|_| is_path).map_or_else(|| given.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

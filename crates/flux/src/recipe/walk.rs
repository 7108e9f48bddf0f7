//! From a graph to what it asks for: backwards from the node that saves the picture.
//!
//! What ComfyUI does with a node is written where the node is read. A node that is not known, or a value that cannot be met, is
//! an error that names it; what the picture does not depend on is listed.

mod pictures;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    LoraAsked, Recipe, T5Length,
    graph::{Graph, Input, Node, shortened, wrong},
    nodes,
};
use crate::{error::Result, noise::Noise};

/// Nodes that end a workflow, by rank.
const ENDS: [&[&str]; 2] = [&["SaveImage"], &["PreviewImage", "SaveImageWebsocket"]];

/// ComfyUI's guidance where no node says one.
const USUAL_GUIDANCE: f64 = 3.5;

/// What ComfyUI pads a short prompt to.
const LEAST_T5: usize = 256;

pub(super) fn read(graph: &Graph) -> Result<Recipe> {
    let walk = Walk { graph };
    let end = walk.end()?;
    let reached = walk.reached(end)?;
    let mut recipe = Recipe { noise: Some(Noise::CpuF32), ..Recipe::default() };
    walk.picture(end, &mut recipe)?;
    let unused: Vec<String> =
        graph.nodes.iter().filter(|(id, _)| !reached.contains(id.as_str())).map(|(id, node)| named(id, node)).collect();
    for lora in recipe.loras.iter().filter(|lora| lora.text_weight.is_some_and(|weight| weight != lora.weight)) {
        let name = shortened(&lora.file);
        recipe.notes.push(format!("the LoRA '{name}' changes text encoders by its weight for the model, not its own"));
    }
    if !unused.is_empty() {
        recipe.notes.push(format!("the picture does not depend on {}", listed(&unused)));
    }
    Ok(recipe)
}

/// `'KSampler' (31)`.
fn named(id: &str, node: &Node) -> String {
    format!("'{}' ({})", shortened(&node.class), shortened(id))
}

/// At most a few, and how many more.
fn listed(names: &[String]) -> String {
    const MOST: usize = 20;
    let more = names.len().saturating_sub(MOST);
    let first = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

struct Walk<'a> {
    graph: &'a Graph,
}

/// A node and its id.
#[derive(Clone, Copy)]
struct At<'a> {
    id: &'a str,
    node: &'a Node,
}

/// What a sampler node says, whichever it is.
struct Sampling<'a> {
    model: At<'a>,
    positive: At<'a>,
    negative: Option<At<'a>>,
    latent: At<'a>,
    seed: u64,
    cfg: f64,
    sampler: String,
    scheduler: String,
    steps: u32,
    denoise: f64,
}

/// What a conditioning says.
#[derive(Default)]
struct Said {
    text: String,
    guidance: Option<f64>,
    zeroed: bool,
}

impl<'a> Walk<'a> {
    fn at(&self, id: &str) -> Result<At<'a>> {
        let found = self.graph.nodes.get_key_value(id);
        found.map(|(id, node)| At { id, node }).ok_or_else(|| wrong(format!("has no node '{}'", shortened(id))))
    }

    /// The one node that ends the workflow.
    fn end(&self) -> Result<At<'a>> {
        for classes in ENDS {
            let ends = self.graph.nodes.iter().filter(|(_, node)| classes.contains(&node.class.as_str()));
            let ends: Vec<At<'a>> = ends.map(|(id, node)| At { id, node }).collect();
            let sources: BTreeSet<String> =
                ends.iter().map(|end| format!("{:?}", end.node.inputs.get("images"))).collect();
            match (&ends[..], sources.len()) {
                ([], _) => {}
                ([end, ..], 1) => return Ok(*end),
                _ => {
                    let all: Vec<String> = ends.iter().map(|end| named(end.id, end.node)).collect();
                    let hint = "hint: mute or delete all but one";
                    return Err(wrong(format!("makes several pictures: {}; {hint}", listed(&all))));
                }
            }
        }
        Err(wrong("has neither a 'SaveImage' nor a 'PreviewImage' node that is switched on"))
    }

    /// All nodes that `end` depends on; refuses those that are not known, and circles.
    fn reached(&self, end: At<'a>) -> Result<BTreeSet<&'a str>> {
        /// Whether all behind a node was looked at.
        #[derive(PartialEq)]
        enum State {
            Open,
            Done,
        }
        let mut states: BTreeMap<&str, State> = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        let mut stack = vec![(end, false)];
        while let Some((at, left)) = stack.pop() {
            if left {
                states.insert(at.id, State::Done);
                continue;
            }
            if states.insert(at.id, State::Open).is_some_and(|state| state == State::Done) {
                states.insert(at.id, State::Done);
                continue;
            }
            if !nodes::is_known(&at.node.class) {
                unknown.insert(named(at.id, at.node));
            }
            stack.push((at, true));
            for input in at.node.inputs.values() {
                let Input::Link(id, _) = input else { continue };
                let next = self.at(id)?;
                match states.get(next.id) {
                    Some(State::Open) => {
                        return Err(wrong(format!("goes round in circles at {}", named(id, next.node))));
                    }
                    Some(State::Done) => {}
                    None => stack.push((next, false)),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(states.into_keys().collect());
        }
        let unknown: Vec<String> = unknown.into_iter().collect();
        Err(wrong(format!("needs nodes that are not known here: {}", listed(&unknown))))
    }

    /// The node that fills an input, and which of its outputs does.
    fn linked(&self, at: At<'a>, input: &str) -> Result<(At<'a>, usize)> {
        match at.node.inputs.get(input) {
            Some(Input::Link(id, slot)) => Ok((self.at(id)?, *slot)),
            _ => Err(wrong(format!("has nothing linked to '{input}' of {}", named(at.id, at.node)))),
        }
    }

    fn node(&self, at: At<'a>, input: &str) -> Result<At<'a>> {
        self.linked(at, input).map(|(node, _)| node)
    }

    /// A value, also one that a primitive node holds.
    fn value(&self, at: At<'a>, input: &str) -> Result<&'a Value> {
        let mut found = at.node.inputs.get(input);
        if let Some(Input::Link(id, _)) = found {
            let other = self.at(id)?;
            if !other.node.class.starts_with("Primitive") {
                let problem = format!("fills '{input}' of {} by a node", named(at.id, at.node));
                return Err(wrong(format!("{problem}, {}, which is not a plain value", named(other.id, other.node))));
            }
            found = other.node.inputs.get("value");
        }
        match found {
            Some(Input::Value(value)) => Ok(value),
            _ => Err(wrong(format!("does not say '{input}' of {}", named(at.id, at.node)))),
        }
    }

    fn bad<T>(at: At<'_>, input: &str, value: &Value, expected: &str) -> Result<T> {
        let value = shortened(&value.to_string());
        Err(wrong(format!("says {value} for '{input}' of {}; {expected} was expected", named(at.id, at.node))))
    }

    fn number(&self, at: At<'a>, input: &str) -> Result<f64> {
        let value = self.value(at, input)?;
        value.as_f64().filter(|n| n.is_finite()).map_or_else(|| Self::bad(at, input, value, "a number"), Ok)
    }

    /// A whole number; the editor may write it as 1.0.
    fn whole(&self, at: At<'a>, input: &str) -> Result<u64> {
        let value = self.value(at, input)?;
        let whole = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n)).map(|n| n as u64));
        whole.map_or_else(|| Self::bad(at, input, value, "a whole number from 0"), Ok)
    }

    fn small(&self, at: At<'a>, input: &str) -> Result<u32> {
        let whole = self.whole(at, input)?;
        u32::try_from(whole).or_else(|_| Self::bad(at, input, &whole.into(), "a smaller number"))
    }

    fn text(&self, at: At<'a>, input: &str) -> Result<String> {
        let value = self.value(at, input)?;
        value.as_str().map_or_else(|| Self::bad(at, input, value, "text"), |text| Ok(text.to_owned()))
    }

    fn picture(&self, end: At<'a>, recipe: &mut Recipe) -> Result<()> {
        let mut at = self.node(end, "images")?;
        let latent = loop {
            match at.node.class.as_str() {
                "VAEDecode" => break self.node(at, "samples")?,
                "VAEDecodeTiled" => {
                    recipe.vae_tiling = Some(true);
                    recipe.notes.push("tiles of the decoder have darkroom's own size, not the node's".into());
                    break self.node(at, "samples")?;
                }
                "ImageUpscaleWithModel" => {
                    let loader = self.node(at, "upscale_model")?;
                    let file = self.text(loader, "model_name")?;
                    if recipe.upscale.is_some() {
                        return Err(wrong("enlarges the picture twice, which is not possible here"));
                    }
                    let twice = ["x2", "2x"].iter().any(|mark| file.to_ascii_lowercase().contains(mark));
                    recipe.upscale = Some(if twice { 2 } else { 4 });
                    recipe.files.upscaler = Some(file);
                    at = self.node(at, "image")?;
                }
                _ => return Err(wrong(format!("saves what {} gives, which no sampler made", named(at.id, at.node)))),
            }
        };
        recipe.files.vae = match at.node.inputs.get("vae") {
            Some(_) => self.vae(self.node(at, "vae")?, recipe)?,
            None => None,
        };
        let sampling = self.sampling(latent)?;
        self.sampled(&sampling, recipe)
    }

    fn vae(&self, at: At<'a>, recipe: &mut Recipe) -> Result<Option<String>> {
        match at.node.class.as_str() {
            "VAELoader" => self.text(at, "vae_name").map(Some),
            "CheckpointLoaderSimple" => {
                recipe.files.checkpoint = Some(self.text(at, "ckpt_name")?);
                Ok(None)
            }
            _ => Err(wrong(format!("takes its VAE from {}, which loads none", named(at.id, at.node)))),
        }
    }

    fn sampling(&self, at: At<'a>) -> Result<Sampling<'a>> {
        let on = |input: &str, usual: &str| match self.value(at, input).ok() {
            Some(value) if value.as_str() != Some(usual) => Self::bad(at, input, value, usual),
            _ => Ok(()),
        };
        match at.node.class.as_str() {
            "KSampler" | "KSamplerAdvanced" => {
                let steps = self.small(at, "steps")?;
                let advanced = at.node.class == "KSamplerAdvanced";
                if advanced {
                    on("add_noise", "enable")?;
                    on("return_with_leftover_noise", "disable")?;
                    let (start, end) = (self.whole(at, "start_at_step")?, self.whole(at, "end_at_step")?);
                    if start > 0 || end < u64::from(steps) {
                        let part = format!("steps {start} to {end} of {steps} alone ({})", named(at.id, at.node));
                        return Err(wrong(format!("runs {part}, which is not possible here")));
                    }
                }
                Ok(Sampling {
                    model: self.node(at, "model")?,
                    positive: self.node(at, "positive")?,
                    negative: Some(self.node(at, "negative")?),
                    latent: self.node(at, "latent_image")?,
                    seed: self.whole(at, if advanced { "noise_seed" } else { "seed" })?,
                    cfg: self.number(at, "cfg")?,
                    sampler: self.text(at, "sampler_name")?,
                    scheduler: self.text(at, "scheduler")?,
                    steps,
                    denoise: if advanced { 1.0 } else { self.number(at, "denoise")? },
                })
            }
            "SamplerCustom" => {
                if self.value(at, "add_noise")?.as_bool() == Some(false) {
                    return Err(wrong(format!(
                        "adds no noise in {}, which is not possible here",
                        named(at.id, at.node)
                    )));
                }
                let sampling = Sampling {
                    model: self.node(at, "model")?,
                    positive: self.node(at, "positive")?,
                    negative: Some(self.node(at, "negative")?),
                    latent: self.node(at, "latent_image")?,
                    seed: self.whole(at, "noise_seed")?,
                    cfg: self.number(at, "cfg")?,
                    sampler: self.selected(self.node(at, "sampler")?)?,
                    scheduler: String::new(),
                    steps: 0,
                    denoise: 1.0,
                };
                self.scheduled(self.node(at, "sigmas")?, sampling)
            }
            "SamplerCustomAdvanced" => {
                let noise = self.node(at, "noise")?;
                let guider = self.node(at, "guider")?;
                let (positive, negative, cfg) = match guider.node.class.as_str() {
                    "BasicGuider" => (self.node(guider, "conditioning")?, None, 1.0),
                    "CFGGuider" => {
                        let negative = self.node(guider, "negative")?;
                        (self.node(guider, "positive")?, Some(negative), self.number(guider, "cfg")?)
                    }
                    _ => {
                        return Err(wrong(format!(
                            "is guided by {}, which guides nothing",
                            named(guider.id, guider.node)
                        )));
                    }
                };
                let sampling = Sampling {
                    model: self.node(guider, "model")?,
                    positive,
                    negative,
                    latent: self.node(at, "latent_image")?,
                    seed: self.whole(noise, "noise_seed")?,
                    cfg,
                    sampler: self.selected(self.node(at, "sampler")?)?,
                    scheduler: String::new(),
                    steps: 0,
                    denoise: 1.0,
                };
                self.scheduled(self.node(at, "sigmas")?, sampling)
            }
            _ => Err(wrong(format!("decodes what {} gives, which is not a sampler", named(at.id, at.node)))),
        }
    }

    fn selected(&self, at: At<'a>) -> Result<String> {
        self.text(at, "sampler_name")
    }

    fn scheduled(&self, at: At<'a>, sampling: Sampling<'a>) -> Result<Sampling<'a>> {
        let (scheduler, steps) = (self.text(at, "scheduler")?, self.small(at, "steps")?);
        Ok(Sampling { scheduler, steps, denoise: self.number(at, "denoise")?, ..sampling })
    }

    fn sampled(&self, sampling: &Sampling<'a>, recipe: &mut Recipe) -> Result<()> {
        recipe.seed = Some(sampling.seed);
        recipe.steps = Some(sampling.steps);
        recipe.true_cfg = Some(sampling.cfg as f32);
        recipe.sampler = Some(sampling.sampler.clone());
        recipe.t5_length = Some(T5Length::AtLeast(LEAST_T5));
        self.latent(sampling, recipe)?;
        let sized = self.model(sampling.model, recipe)?;
        recipe.schedule = Some(format!("comfy-{}{}", sampling.scheduler, if sized { "-sized" } else { "" }));

        let positive = self.said(sampling.positive, false, recipe)?;
        if positive.zeroed {
            return Err(wrong("zeroes the positive conditioning, which is not possible here"));
        }
        recipe.prompt = Some(positive.text);
        let guidance = positive.guidance.unwrap_or(USUAL_GUIDANCE);
        recipe.guidance = Some(guidance as f32);
        // At 1 ComfyUI does not look at the negative conditioning.
        if let Some(negative) = sampling.negative
            && sampling.cfg != 1.0
        {
            let negative = self.said(negative, true, recipe)?;
            if negative.zeroed {
                return Err(wrong(
                    "zeroes the negative conditioning at a cfg other than 1, which is not possible here",
                ));
            }
            if negative.guidance.unwrap_or(USUAL_GUIDANCE) != guidance {
                recipe.notes.push("the negative prompt is guided as the positive one, not as the workflow says".into());
            }
            recipe.negative_prompt = Some(negative.text);
            if sampling.cfg < 1.0 {
                return Err(wrong(format!("has a cfg of {}; 1 and more are possible", sampling.cfg)));
            }
        }
        Ok(())
    }

    fn latent(&self, sampling: &Sampling<'a>, recipe: &mut Recipe) -> Result<()> {
        let at = sampling.latent;
        match at.node.class.as_str() {
            "EmptyLatentImage" | "EmptySD3LatentImage" => {
                let (width, height) = (self.small(at, "width")?, self.small(at, "height")?);
                (recipe.width, recipe.height) = (Some(width), Some(height));
                let batch = self.small(at, "batch_size")?;
                recipe.batch = Some(batch);
                if batch > 1 {
                    let problem = "draws the noise of a batch at once: pictures after the first differ from ComfyUI's";
                    recipe.notes.push(format!("ComfyUI {problem}"));
                }
                if width % 16 + height % 16 > 0 {
                    recipe
                        .notes
                        .push("a size that is not a multiple of 16 has other noise here than in ComfyUI".into());
                }
                if sampling.denoise < 1.0 {
                    let problem = format!("has a denoise of {} without a picture to begin with", sampling.denoise);
                    return Err(wrong(problem));
                }
                Ok(())
            }
            _ if self.started(sampling, recipe)? => Ok(()),
            _ => Err(wrong(format!("begins with {}, which makes no latents", named(at.id, at.node)))),
        }
    }

    /// Files and LoRAs; whether the schedule's shift follows the size.
    fn model(&self, mut at: At<'a>, recipe: &mut Recipe) -> Result<bool> {
        let mut sized = false;
        loop {
            match at.node.class.as_str() {
                "UNETLoader" | "UnetLoaderGGUF" | "UnetLoaderGGUFAdvanced" => {
                    recipe.files.transformer = Some(self.text(at, "unet_name")?);
                    break;
                }
                "CheckpointLoaderSimple" => {
                    recipe.files.checkpoint = Some(self.text(at, "ckpt_name")?);
                    break;
                }
                "LoraLoader" | "LoraLoaderModelOnly" => {
                    let file = self.text(at, "lora_name")?;
                    let weight = self.number(at, "strength_model")? as f32;
                    recipe.loras.push(LoraAsked { file, weight, text_weight: None });
                }
                "ModelSamplingFlux" => {
                    let usual = [("max_shift", 1.15), ("base_shift", 0.5)];
                    for (input, usual) in usual {
                        let shift = self.number(at, input)?;
                        if (shift - usual).abs() > 1e-6 {
                            return Self::bad(at, input, &shift.into(), &usual.to_string());
                        }
                    }
                    for (input, side) in [("width", recipe.width), ("height", recipe.height)] {
                        let shifted = self.small(at, input)?;
                        if side.is_some_and(|side| side != shifted) {
                            return Self::bad(at, input, self.value(at, input)?, "the picture's own");
                        }
                    }
                    sized = true;
                }
                _ => return Err(wrong(format!("takes its model from {}, which has none", named(at.id, at.node)))),
            }
            at = self.node(at, "model")?;
        }
        // From the first that is applied to the last.
        recipe.loras.reverse();
        Ok(sized)
    }

    fn said(&self, mut at: At<'a>, negative: bool, recipe: &mut Recipe) -> Result<Said> {
        let mut said = Said::default();
        loop {
            match at.node.class.as_str() {
                "FluxGuidance" => {
                    // The last one counts, which is met first.
                    let guidance = self.number(at, "guidance")?;
                    said.guidance = said.guidance.or(Some(guidance));
                    at = self.node(at, "conditioning")?;
                }
                "ConditioningZeroOut" => {
                    said.zeroed = true;
                    at = self.node(at, "conditioning")?;
                }
                "CLIPTextEncode" => {
                    said.text = self.text(at, "text")?;
                    break;
                }
                "CLIPTextEncodeFlux" => {
                    let (clip_l, t5xxl) = (self.text(at, "clip_l")?, self.text(at, "t5xxl")?);
                    if clip_l != t5xxl {
                        let problem = "has one text for CLIP and another for T5";
                        return Err(wrong(format!("{problem} in {}; the same was expected", named(at.id, at.node))));
                    }
                    let guidance = self.number(at, "guidance")?;
                    said.guidance = said.guidance.or(Some(guidance));
                    said.text = t5xxl;
                    break;
                }
                _ => match self.conditioned(at, negative, recipe)? {
                    Some(input) => at = self.node(at, input)?,
                    None => {
                        return Err(wrong(format!("is conditioned by {}, which has no text", named(at.id, at.node))));
                    }
                },
            }
        }
        self.clip(self.node(at, "clip")?, recipe)?;
        Ok(said)
    }

    fn clip(&self, mut at: At<'a>, recipe: &mut Recipe) -> Result<()> {
        loop {
            match at.node.class.as_str() {
                "LoraLoader" => {
                    let (file, weight) = (self.text(at, "lora_name")?, self.number(at, "strength_clip")? as f32);
                    let lora = recipe.loras.iter_mut().find(|lora| lora.file == file);
                    let Some(lora) = lora else {
                        let problem = format!("gives the LoRA '{}' to the text encoders alone", shortened(&file));
                        return Err(wrong(format!("{problem}, which is not possible here")));
                    };
                    lora.text_weight = Some(weight);
                    at = self.node(at, "clip")?;
                }
                "DualCLIPLoader" | "DualCLIPLoaderGGUF" => {
                    let kind = self.text(at, "type")?;
                    if kind != "flux" {
                        return Self::bad(at, "type", &kind.into(), "flux");
                    }
                    recipe.files.clip = vec![self.text(at, "clip_name1")?, self.text(at, "clip_name2")?];
                    return Ok(());
                }
                "CheckpointLoaderSimple" => {
                    recipe.files.checkpoint = Some(self.text(at, "ckpt_name")?);
                    return Ok(());
                }
                _ => return Err(wrong(format!("takes its text encoders from {}", named(at.id, at.node)))),
            }
        }
    }
}

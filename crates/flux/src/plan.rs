//! What a picture takes: work, and memory phase by phase under a limit. [`crate::rehearsal`] finds it out from shapes alone.
//!
//! [`Pipeline`] generates by its plan: which blocks stay, whether the transformer makes room for the autoencoder.
//!
//! [`Pipeline`]: crate::Pipeline

use tensor::{Device, Precision, dry_run::Work};

use crate::{
    acceleration::Acceleration,
    conditioning::Given,
    error::{Error, Result},
    memory::Residency,
    model::Defaults,
    sampler::Sampler,
};

/// The program itself, with the tables of both tokenizers and the pages of its own file, bytes. Measured as what runs of a debug
/// build with two threads took beside the rest of their plans: 42 to 54 MB. A release build has 4 MB less.
const PROGRAM: u64 = 52 << 20;

/// Scratch memory and stack of a thread, bytes.
const THREAD: u64 = 4 << 20;

/// Evaluations from which on weights are kept rounded where those of the file would fit, too: fresh memory costs more than it saves a few
/// evaluations (`SPEED.md`).
pub(crate) const KEPT_FROM: u32 = 8;

/// What a model and a size take.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order a picture needs them: `clip_l`, `t5`, `vision` (SigLIP and Redux, if pictures are seen), `vae_encoder` where
    /// there are pictures to encode, `transformer`, `vae`, and `upscaler` if it is enlarged.
    pub parts: Vec<PartPlan>,
    /// Tokens of text and picture that attend to each other.
    pub tokens: usize,
    /// Steps of one picture.
    pub steps: u32,
    /// How the velocity is followed.
    pub sampler: Sampler,
    /// Evaluations of the transformer for one picture.
    pub evaluations: u32,
    /// The arithmetic of the transformer.
    pub precision: Precision,
    /// The most memory that may be used, bytes; `None` where nobody says.
    pub limit: Option<u64>,
    /// The program, its tables and its threads, bytes: there all the time.
    pub overhead_bytes: u64,
    /// Whether the transformer's weights stay in memory while the picture is decoded.
    pub keeps_transformer: bool,
    /// Whether the picture is decoded in tiles.
    pub tiled: bool,
}

/// What a part takes.
#[derive(Clone, Debug, PartialEq)]
pub struct PartPlan {
    /// `clip_l`, `t5`, `vision`, `vae_encoder`, `transformer` (one Euler step), `vae`, `upscaler`.
    pub name: &'static str,
    /// Numbers in it.
    pub parameters: u64,
    /// Bytes of its weights, which stay in the mapped file.
    pub weight_bytes: u64,
    /// Of these, bytes of each block in the order of use; the rest is in no block.
    pub blocks: Vec<u64>,
    /// The same for a block whose weights are kept in the form that kernels read, where they have one: in int8.
    pub kept: Vec<u64>,
    /// How many blocks stay in memory; the others are given back as soon as they were used.
    pub resident_blocks: usize,
    /// Of these, how many are kept in the form that kernels read.
    pub kept_blocks: usize,
    /// Work of one run, and what lives while it runs: activations and operands in the kernels' own order.
    pub work: Work,
}

impl PartPlan {
    /// The most bytes of weights that are in memory at one time.
    pub fn resident_bytes(&self) -> u64 {
        let (resident, streamed) = self.blocks.split_at(self.resident_blocks);
        let kept = self.kept_blocks.min(resident.len());
        let stay = self.kept[..kept].iter().chain(&resident[kept..]).sum::<u64>();
        self.fixed_bytes() + stay + streamed.iter().max().unwrap_or(&0)
    }

    /// Bytes that are read again at every run.
    pub fn streamed_bytes(&self) -> u64 {
        self.blocks[self.resident_blocks..].iter().sum()
    }

    /// The most memory while it runs, beside the program.
    pub fn peak_bytes(&self) -> u64 {
        self.resident_bytes() + self.work.peak_bytes
    }

    fn fixed_bytes(&self) -> u64 {
        self.weight_bytes - self.blocks.iter().sum::<u64>()
    }

    /// Keeps as many blocks as fit into `bytes` beside the largest of the others, in the form that takes less; `false` if not even
    /// that one fits. Where all fit as they are stored, it has to pay to keep them in another form.
    fn keep_within(&mut self, bytes: u64, pays: bool) -> bool {
        let all = self.blocks.len();
        let takes_less = self.kept.iter().sum::<u64>() < self.blocks.iter().sum();
        let as_stored = (!pays).then_some((all, 0));
        let smaller = (0..=all).rev().map(|blocks| (blocks, if takes_less { blocks } else { 0 }));
        as_stored.into_iter().chain(smaller).any(|(resident, kept)| {
            (self.resident_blocks, self.kept_blocks) = (resident, kept);
            self.peak_bytes() <= bytes
        })
    }
}

impl Plan {
    /// The most memory at one time: a promise, if nothing else in the process takes any.
    pub fn peak_bytes(&self) -> u64 {
        let kept =
            if self.keeps_transformer { self.part("transformer").map_or(0, PartPlan::resident_bytes) } else { 0 };
        let after = ["vae", "upscaler"];
        let of = |part: &PartPlan| part.peak_bytes() + if after.contains(&part.name) { kept } else { 0 };
        self.overhead_bytes + self.parts.iter().map(of).max().unwrap_or(0)
    }

    /// The least memory with which the same picture can be made: blocks come one by one.
    pub fn least_bytes(&self) -> u64 {
        let streamed = |part: &PartPlan| PartPlan { resident_blocks: 0, ..part.clone() }.peak_bytes();
        self.overhead_bytes + self.parts.iter().map(streamed).max().unwrap_or(0)
    }

    /// Bytes that are missing under the limit, if any are.
    pub fn shortfall(&self) -> Option<u64> {
        self.least_bytes().checked_sub(self.limit?).filter(|&missing| missing > 0)
    }

    /// Arithmetic of a whole picture, FLOP.
    pub fn flop(&self) -> u64 {
        let times =
            |p: &PartPlan| if p.name == "transformer" { u64::from(self.sampler.evaluations(self.steps)) } else { 1 };
        self.parts.iter().map(|p| times(p) * p.work.flop()).sum()
    }

    /// A part by its name.
    pub fn part(&self, name: &str) -> Option<&PartPlan> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// How much of a part stays between its uses.
    pub(crate) fn residency(&self, name: &str) -> Residency {
        let of = |part: &PartPlan| Residency { resident: part.resident_blocks, kept: part.kept_blocks };
        self.part(name).map_or(Residency::default(), of)
    }

    /// Whether the parts that run before the transformer have room beside its weights: an earlier picture may have left them.
    pub(crate) fn begins_beside_transformer(&self) -> bool {
        let kept = self.part("transformer").map_or(0, PartPlan::resident_bytes);
        let before = self.parts.iter().take_while(|part| part.name != "transformer").map(PartPlan::peak_bytes).max();
        self.limit.is_none_or(|limit| self.overhead_bytes + before.unwrap_or(0) + kept <= limit)
    }

    /// Decides what stays in memory under the limit.
    pub(crate) fn fit(&mut self) {
        let pays = self.evaluations >= KEPT_FROM;
        let limit = self.limit.unwrap_or(u64::MAX);
        let share = limit.saturating_sub(self.overhead_bytes);
        for part in &mut self.parts {
            part.keep_within(share, pays);
        }
        self.keeps_transformer = self.peak_bytes() <= limit;
        // What is left, if that is known, may hold a form that is faster to read but larger.
        for index in 0..self.parts.len() {
            while pays
                && self.limit.is_some()
                && self.parts[index].kept != self.parts[index].blocks
                && self.parts[index].kept_blocks < self.parts[index].resident_blocks
            {
                self.parts[index].kept_blocks += 1;
                if self.peak_bytes() > limit {
                    self.parts[index].kept_blocks -= 1;
                    break;
                }
            }
        }
    }
}

/// What is planned: all of a request that decides about memory and work. [`Request::planned`] gives it of one.
///
/// [`Request::planned`]: crate::Request::planned
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// T5 tokens.
    pub t5_length: usize,
    /// Steps.
    pub steps: u32,
    /// How the velocity is followed: some samplers evaluate it twice a step.
    pub sampler: Sampler,
    /// How many velocities may be reused; the work is planned as if none were.
    pub acceleration: Acceleration,
    /// With classifier-free guidance: two evaluations a step.
    pub true_cfg: bool,
    /// Pictures that Redux makes tokens of.
    pub styles: u32,
    /// Decode in tiles: always, never, or (`None`) above 2048×1024 pixels and where it does not fit otherwise.
    pub vae_tiling: Option<bool>,
    /// How many times the picture is enlarged, if it is.
    pub upscale: Option<u32>,
    /// Pictures given.
    pub given: Given,
}

impl Workload {
    /// A picture from words with a model's own defaults.
    pub fn new(defaults: &Defaults) -> Self {
        Self {
            width: defaults.width,
            height: defaults.height,
            t5_length: defaults.t5_length,
            steps: defaults.steps,
            sampler: Sampler::default(),
            acceleration: Acceleration::None,
            true_cfg: defaults.true_cfg > 1.0,
            styles: 0,
            vae_tiling: None,
            upscale: None,
            given: Given::NONE,
        }
    }
}

/// The program and its threads, bytes.
pub(crate) fn overhead(device: Device) -> u64 {
    let threads = match device {
        Device::Cpu { threads } => {
            threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        }
        Device::Reference | Device::DryRun => 1,
    };
    PROGRAM + THREAD * threads as u64
}

/// The refusal of a job that does not fit, with what would. `at` plans another size.
pub(crate) fn refuse(plan: &Plan, workload: Workload, at: impl Fn(Workload) -> Result<Plan>) -> Error {
    let (Some(missing), Some(limit)) = (plan.shortfall(), plan.limit) else {
        return Error::asked("memory_limit", "is enough");
    };
    let smaller = [0.875, 0.75, 0.625, 0.5, 0.375, 0.25].map(|scale| {
        let side = |side: u32| ((f64::from(side) * scale / 16.0) as u32).max(1) * 16;
        Workload { width: side(workload.width), height: side(workload.height), ..workload }
    });
    let fitting = smaller.into_iter().find(|&smaller| at(smaller).is_ok_and(|plan| plan.shortfall().is_none()));
    let largest = plan.parts.iter().max_by_key(|part| PartPlan { resident_blocks: 0, ..(*part).clone() }.peak_bytes());
    let mut hints = vec![format!("--memory-limit {}", shown(plan.least_bytes()))];
    if let Some(Workload { width, height, .. }) = fitting {
        hints.push(format!("a picture of {width}×{height}"));
    }
    match largest {
        Some(part) if part.name == "vae" && workload.vae_tiling == Some(false) => hints.push("--vae-tiling on".into()),
        Some(part) if part.name == "t5" => hints.push("a smaller --t5-length, or T5 in a smaller format".into()),
        Some(part) if part.name == "transformer" => hints.push("the transformer in a smaller format".into()),
        _ => {}
    }
    let problem = format!(
        "{}×{} pixels take {} while the {} works, {} more than the {} there are",
        workload.width,
        workload.height,
        shown(plan.least_bytes()),
        largest.map_or("model", |part| part.name),
        shown(missing),
        shown(limit),
    );
    Error::asked("memory_limit", problem).hint(hints.join(", or "))
}

/// `1.25GB`, rounded up so that it may be asked for.
pub(crate) fn shown(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1_000_000_000 { (1e9, "GB") } else { (1e6, "MB") };
    format!("{}{name}", (bytes as f64 / unit * 100.0).ceil() / 100.0)
}

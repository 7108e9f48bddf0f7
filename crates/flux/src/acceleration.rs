//! Velocities that are not computed: step caching, without training. Measured in `docs/acceleration.md`.
//!
//! The first four steps and the last are always computed. Memory is kept apart for each branch of guidance and each evaluation of a
//! step, and begins empty with each picture; the prompt's branch decides for both. Sources: diffusers `first_block_cache.py`,
//! `taylorseer_cache.py` (its variant that keeps the model's output alone), ComfyUI `nodes_easycache.py`.

use std::{fmt, str::FromStr};

use tensor::Tensor;

use crate::{
    error::{Error, Result},
    sampler::At,
    transformer::Shortcut,
};

/// Steps at the beginning that are always computed: there the picture is decided.
pub const FIRST_STEPS: usize = 4;

/// Most evaluations that are reused one after the other.
const MOST_IN_A_ROW: usize = 3;

/// What is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheKind {
    /// What the blocks behind the first one added, while the first one adds about the same as before. `first-block`.
    FirstBlock,
    /// The velocity continued along the line through the last two computed, while that changes it little. `taylor`.
    Taylor,
    /// What the model adds to the latents, while they change little. `easy`.
    Easy,
}

impl CacheKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FirstBlock, Self::Taylor, Self::Easy];

    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstBlock => "first-block",
            Self::Taylor => "taylor",
            Self::Easy => "easy",
        }
    }

    /// The threshold where none is given.
    pub fn usual_threshold(self) -> f32 {
        match self {
            Self::FirstBlock => 0.05,
            Self::Taylor => REGULAR,
            Self::Easy => 0.2,
        }
    }
}

/// A kind of reuse and how far it may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache {
    /// What is reused.
    pub kind: CacheKind,
    /// The relative change up to which it is, 0 to 10; what changes is the kind's own.
    pub threshold: f32,
}

/// How much is reused.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Acceleration {
    /// Nothing: every velocity is computed. `none`.
    #[default]
    None,
    /// Little: pictures hardly differ. `regular`.
    Regular,
    /// Much: pictures are like those of fewer steps in fine detail. `high`.
    High,
    /// As said. `first-block:0.05`; the threshold may be left out.
    Cache(Cache),
}

impl Acceleration {
    /// What is reused, if anything.
    pub fn cache(self) -> Option<Cache> {
        match self {
            Self::None => None,
            Self::Regular => Some(Cache { kind: CacheKind::Taylor, threshold: REGULAR }),
            Self::High => Some(Cache { kind: CacheKind::Taylor, threshold: HIGH }),
            Self::Cache(cache) => Some(cache),
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self.cache() {
            Some(Cache { threshold, .. }) if !(0.0..=10.0).contains(&threshold) => {
                Err(Error::asked("cache_threshold", format!("is {threshold}; 0 to 10 are possible")))
            }
            _ => Ok(()),
        }
    }
}

/// Thresholds of the presets, measured: `docs/acceleration.md`.
const REGULAR: f32 = 0.1;
const HIGH: f32 = 0.25;

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Regular => f.write_str("regular"),
            Self::High => f.write_str("high"),
            Self::Cache(Cache { kind, threshold }) => write!(f, "{}:{threshold}", kind.name()),
        }
    }
}

impl FromStr for Acceleration {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `acceleration` if it is none of those above.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let problem = format!(
                "expected none, regular, high, or one of first-block, taylor, easy with or without a threshold (taylor:0.1), got \
                 '{text}'"
            );
            Error::asked("acceleration", problem)
        };
        match text {
            "none" => return Ok(Self::None),
            "regular" => return Ok(Self::Regular),
            "high" => return Ok(Self::High),
            _ => {}
        }
        let (name, threshold) = text.split_once(':').map_or((text, None), |(name, threshold)| (name, Some(threshold)));
        let kind = CacheKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(wrong)?;
        let threshold = threshold.map_or(Ok(kind.usual_threshold()), str::parse).map_err(|_| wrong())?;
        let acceleration = Self::Cache(Cache { kind, threshold });
        acceleration.check()?;
        Ok(acceleration)
    }
}

/// How many velocities a picture took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Evaluations {
    /// Computed by the transformer. With classifier-free guidance a velocity takes it twice.
    pub computed: u32,
    /// Reused.
    pub reused: u32,
}

impl std::ops::Sub for Evaluations {
    type Output = Self;

    fn sub(self, less: Self) -> Self {
        Self { computed: self.computed - less.computed, reused: self.reused - less.reused }
    }
}

/// A pass through the transformer, which may take a shortcut if it is given one.
pub(crate) type Compute<'a> = &'a mut dyn FnMut(Option<&mut dyn Shortcut>) -> Result<Tensor>;

/// What is remembered of a picture's velocities, and the decisions about them.
pub(crate) struct Reuse {
    cache: Option<Cache>,
    /// Whether fresh noise is added between steps: then the velocity jumps, but the picture it predicts does not.
    by_picture: bool,
    /// By branch of guidance, then by evaluation of a step.
    memories: [[Memory; 2]; 2],
    /// What the first branch decided.
    reusing: bool,
    /// Reused since the last one computed, by evaluation of a step.
    in_a_row: [usize; 2],
}

#[derive(Default)]
struct Memory {
    /// Of `taylor`: the last two noise levels and what was computed there, newest first.
    points: Vec<(f32, Tensor)>,
    easy: Option<Easy>,
    first_block: Option<FirstBlock>,
}

impl Reuse {
    pub(crate) fn new(cache: Option<Cache>, by_picture: bool) -> Self {
        Self { cache, by_picture, memories: Default::default(), reusing: false, in_a_row: [0; 2] }
    }

    /// Whether the last velocity was reused.
    pub(crate) fn reused(&self) -> bool {
        self.reusing
    }

    /// The velocity of `x` in a branch of guidance (0, then 1): remembered, or by `compute`.
    pub(crate) fn velocity(&mut self, branch: usize, x: &Tensor, at: At, compute: Compute<'_>) -> Result<Tensor> {
        let Some(Cache { kind, threshold }) = self.cache else { return compute(None) };
        let memory = &mut self.memories[branch][at.stage];
        let decides = branch == 0;
        if decides {
            self.reusing = false;
        }
        let may = if decides {
            at.step >= FIRST_STEPS && at.step + 1 < at.steps && self.in_a_row[at.stage] < MOST_IN_A_ROW
        } else {
            self.reusing
        };
        let velocity = match kind {
            CacheKind::Taylor => {
                let line = if may { Line::through(&memory.points, at.sigma) } else { None };
                let guess = line.map(|line| line.guess(x, self.by_picture));
                if decides {
                    self.reusing = guess.as_ref().is_some_and(|guess| guess.change <= f64::from(threshold));
                }
                match guess {
                    Some(guess) if self.reusing => guess.velocity,
                    _ => {
                        let velocity = compute(None)?;
                        let point = if self.by_picture { x.add_scaled(-at.sigma, &velocity) } else { velocity.clone() };
                        memory.points.truncate(1);
                        memory.points.insert(0, (at.sigma, point));
                        velocity
                    }
                }
            }
            CacheKind::Easy => {
                if decides {
                    // The sum goes on in steps that must be computed, as if they were not.
                    let near = memory.easy.as_mut().is_some_and(|easy| easy.is_near(x, threshold));
                    self.reusing = may && near;
                }
                match &mut memory.easy {
                    Some(easy) if self.reusing => x.add(&easy.added),
                    _ => {
                        let velocity = compute(None)?;
                        memory.easy = Some(Easy::new(x, &velocity, memory.easy.take()));
                        velocity
                    }
                }
            }
            CacheKind::FirstBlock => {
                let decision = if decides { None } else { Some(self.reusing) };
                let mut pass =
                    FirstBlockPass { memory: &mut memory.first_block, threshold, may, decision, reused: false };
                let velocity = compute(Some(&mut pass))?;
                self.reusing = pass.reused;
                velocity
            }
        };
        if decides {
            self.in_a_row[at.stage] = if self.reusing { self.in_a_row[at.stage] + 1 } else { 0 };
        }
        Ok(velocity)
    }
}

/// The line through what was computed at two noise levels, at a third.
struct Line<'a> {
    newest: &'a Tensor,
    before: &'a Tensor,
    /// How far beyond the newest, in units of the way from the one before to it.
    beyond: f64,
    sigma: f32,
}

/// A velocity that was not computed.
struct Guess {
    velocity: Tensor,
    /// How far it is from the newest computed one, relative to it.
    change: f64,
}

impl<'a> Line<'a> {
    fn through(points: &'a [(f32, Tensor)], sigma: f32) -> Option<Self> {
        let [(newest_sigma, newest), (before_sigma, before)] = points else { return None };
        let beyond = f64::from(sigma - newest_sigma) / f64::from(newest_sigma - before_sigma);
        Some(Self { newest, before, beyond, sigma })
    }

    /// `by_picture`: the line is that of predicted pictures, from which the velocity of `x` follows.
    fn guess(&self, x: &Tensor, by_picture: bool) -> Guess {
        let change = self.newest.sub(self.before).affine(self.beyond as f32, 0.0);
        let value = self.newest.add(&change);
        let (velocity, scale) = if by_picture {
            (x.sub(&value).affine(self.sigma.recip(), 0.0), f64::from(self.sigma))
        } else {
            (value, 1.0)
        };
        let square = |v: f64| v * v;
        let change = (sum(&change, square) / sum(&velocity, square)).sqrt() / scale;
        Guess { velocity, change }
    }
}

/// What `easy` remembers of the last evaluation that was computed.
struct Easy {
    x: Tensor,
    velocity: Tensor,
    /// The velocity less the latents.
    added: Tensor,
    /// How much the velocity changed for each change of the latents.
    rate: f64,
    /// The change of the velocity to be expected since then, summed up over evaluations.
    change: f64,
}

impl Easy {
    fn new(x: &Tensor, velocity: &Tensor, before: Option<Self>) -> Self {
        let rate = before.map_or(f64::NAN, |before| {
            sum(&velocity.sub(&before.velocity), f64::abs) / sum(&x.sub(&before.x), f64::abs)
        });
        Self { x: x.clone(), velocity: velocity.clone(), added: velocity.sub(x), rate, change: 0.0 }
    }

    fn is_near(&mut self, x: &Tensor, threshold: f32) -> bool {
        self.change += self.rate * sum(&x.sub(&self.x), f64::abs) / sum(&self.velocity, f64::abs);
        self.change < f64::from(threshold)
    }
}

/// What `first-block` remembers of the last evaluation that was computed.
struct FirstBlock {
    /// What the first block added to the picture's stream.
    head: Tensor,
    /// What all others added.
    tail: Tensor,
}

/// One evaluation with [`FirstBlock`].
struct FirstBlockPass<'a> {
    memory: &'a mut Option<FirstBlock>,
    threshold: f32,
    may: bool,
    /// What was decided already.
    decision: Option<bool>,
    reused: bool,
}

impl Shortcut for FirstBlockPass<'_> {
    fn after_first(&mut self, before: &Tensor, after: &Tensor) -> Option<Tensor> {
        let memory = self.memory.as_ref()?;
        let is_near = || {
            let [change, size] = in_pieces(&[before, after, &memory.head], |[before, after, head]| {
                [f64::from(((after - before) - head).abs()), f64::from(head.abs())]
            });
            change / size <= f64::from(self.threshold)
        };
        self.reused = self.decision.unwrap_or_else(|| self.may && is_near());
        self.reused.then(|| after.add(&memory.tail))
    }

    fn computed(&mut self, before: &Tensor, after_first: &Tensor, last: &Tensor) {
        *self.memory = None; // its place is needed
        *self.memory = Some(FirstBlock { head: after_first.sub(before), tail: last.sub(after_first) });
    }
}

/// `|a − b| / |b|`, L2.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let [off, size] = in_pieces(&[a, b], |[a, b]| [f64::from(a - b).powi(2), f64::from(b).powi(2)]);
    (off / size).sqrt()
}

/// Sum of `f` of all elements.
fn sum(x: &Tensor, f: impl Fn(f64) -> f64) -> f64 {
    let [sum] = in_pieces(&[x], |[v]| [f(f64::from(v))]);
    sum
}

/// Sums of what `f` makes of each place's elements. Few rows at a time come to the host: whole streams would take memory.
fn in_pieces<const N: usize, const M: usize>(tensors: &[&Tensor; N], f: impl Fn([f32; N]) -> [f64; M]) -> [f64; M] {
    const ROWS: usize = 32;
    let rows = tensors[0].shape()[0];
    let mut sums = [0.0; M];
    for start in (0..rows).step_by(ROWS) {
        let pieces = tensors.map(|tensor| tensor.slice(0, start, ROWS.min(rows - start)).to_vec());
        (0..pieces[0].len()).for_each(|i| {
            let values = f(std::array::from_fn(|n| pieces[n][i]));
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        });
    }
    sums
}

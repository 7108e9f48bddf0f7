//! The engine on the worker's thread: from an [`Ask`] to pictures in the store, with the models of the shelf.
//!
//! Between jobs it does what the shelf wishes: another list of models, one loaded or unloaded.
//!
//! Each picture of a job is made from its own seed and is, byte for byte, what a job for it alone would give. Files are stored before
//! the job is done; those of a job that fails are deleted. No path and no prompt is in what a caller or a log sees.

mod following;

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use flux::{
    Error, Generated, Pipeline, Request, Watch, acceleration,
    conditioning::Start,
    error::Subject,
    image_file::{self, Decoded, Encoding, MetadataLevel},
    lora::{Lora, Loras},
    memory,
    pixels::Rgb8,
    plan::PartPlan,
    safety::{self, Held, Reviewed, Safety},
};
use serde_json::json;

use self::following::Following;
use crate::{
    ask::{Acceleration, Ask, Mode, OnFlagged, REDUX_STRENGTH, Source},
    blobs::{Blobs, NewBlob, Purpose},
    canvas::{self, Canvas},
    clock::now,
    error::{Fault, PictureFault, Rule, Stage},
    job::Made,
    jobs::Run,
    shelf::{LoraFile, Shelf, Wish},
    stock::{Served, Stock},
    worker,
};

/// How much nicer than the rest of the server the engine's threads are, so that a question about a job never waits for a picture.
const NICER: i32 = 5;

/// Pictures by `flux`.
pub struct Studio {
    shelf: Shelf,
    blobs: Blobs,
    metadata: MetadataLevel,
    /// What the models in it were loaded from.
    stock: Arc<Stock>,
    /// Models in memory, in no order.
    loaded: Vec<Loaded>,
}

struct Loaded {
    name: String,
    pipeline: Pipeline,
    loras: Vec<(LoraFile, Arc<Lora>, f32)>,
    /// Bytes of weights that stay in memory between pictures.
    resident: u64,
    last_used: Instant,
    /// How long after that it goes, if the last job said so; `Duration::MAX`: never.
    keep_alive: Option<Duration>,
}

impl Studio {
    /// An engine without a model yet; to be called on the worker's thread, whose niceness the engine's threads inherit.
    pub fn new(shelf: Shelf, blobs: Blobs, metadata: MetadataLevel) -> Self {
        if let Err(error) = rustix::process::nice(NICER) {
            tracing::debug!(%error, "the engine runs as important as the rest");
        }
        Self { stock: shelf.stock(), shelf, blobs, metadata, loaded: Vec::new() }
    }

    /// Where the model of this name is in `loaded`, loading it if it is not there.
    fn load(&mut self, name: &str, watch: &mut dyn Watch) -> Result<usize, Fault> {
        self.follow_shelf();
        if let Some(index) = self.loaded.iter().position(|loaded| loaded.name == name) {
            return Ok(index);
        }
        let served = self.stock.models.iter().find(|model| model.name == name);
        let Served { spec, .. } = served.ok_or_else(|| Fault::UnknownModel(name.to_owned()))?;
        let start = Instant::now();
        let loaded = spec
            .find(&self.stock.search)
            .and_then(|files| Pipeline::load(files, &self.stock.options, watch))
            .map_err(|error| match error {
                Error::Cancelled => Fault::Cancelled,
                error => {
                    logged(name, &error);
                    Fault::Failed(format!("the model '{name}' cannot be loaded; the server's log says why"))
                }
            })?;
        tracing::info!(model = name, seconds = start.elapsed().as_secs_f64(), "loaded");
        let (family, notice) = (loaded.family().name(), loaded.notice().map(str::to_owned));
        self.shelf.tell(name, |state| {
            (state.family, state.notice, state.loaded, state.last_used) = (family, notice, true, now());
        });
        self.loaded.push(Loaded {
            name: name.to_owned(),
            pipeline: loaded,
            loras: Vec::new(),
            resident: 0,
            last_used: Instant::now(),
            keep_alive: None,
        });
        Ok(self.loaded.len() - 1)
    }

    /// Another list may have come: the same name may mean another model then.
    fn follow_shelf(&mut self) {
        let stock = self.shelf.stock();
        if !Arc::ptr_eq(&stock, &self.stock) {
            self.unload(|_| true);
            self.stock = stock;
        }
    }

    /// Loads and unloads what somebody wished.
    fn fulfil_wishes(&mut self) {
        for wish in self.shelf.wishes() {
            match wish {
                Wish::Unload(name) => self.unload(|loaded| loaded.name == name),
                Wish::Load(name) => {
                    if let Err(fault) = self.load(&name, &mut ()) {
                        tracing::warn!(model = name, %fault, "was not loaded");
                    }
                }
            }
        }
    }

    fn unload(&mut self, which: impl Fn(&Loaded) -> bool) {
        for gone in self.loaded.extract_if(.., |loaded| which(loaded)) {
            tracing::info!(model = gone.name, "unloaded");
            self.shelf.tell(&gone.name, |state| (state.loaded, state.bytes) = (false, 0));
        }
    }

    /// Makes room for a model that takes `needed` bytes: those used longest ago give their weights back.
    fn make_room(&mut self, index: usize, needed: u64) {
        let Some(limit) = self.stock.options.memory_limit.or_else(memory::available) else { return };
        let mut others: Vec<usize> = (0..self.loaded.len()).filter(|other| *other != index).collect();
        others.sort_by_key(|other| self.loaded[*other].last_used);
        let mut taken: u64 = others.iter().map(|other| self.loaded[*other].resident).sum();
        for other in others {
            if needed.saturating_add(taken) <= limit {
                break;
            }
            let other = &mut self.loaded[other];
            other.pipeline.release();
            taken -= other.resident;
            other.resident = 0;
        }
    }

    fn picture(&self, source: &Source, run: &Run) -> Result<Decoded, Fault> {
        let Source::Blob { id, field } = source else {
            return Err(Fault::Failed("a picture was not fetched".into()));
        };
        let wrong = |kind, message: String| Fault::Picture { field: field.clone(), kind, message };
        let (_, bytes) = run.wait_for(self.blobs.get(id)).map_err(|fault| match fault {
            Fault::NotFound(_) => wrong(PictureFault::Download, "is not there any more".into()),
            other => other,
        })?;
        image_file::decode(&bytes).map_err(|problem| wrong(PictureFault::Decode, problem))
    }

    /// Finishes a picture and stores it; `None` if it was flagged and is to be left out: `left_out` gets why, if it passed before.
    fn store(
        &self,
        generated: &Generated,
        canvas: Canvas,
        pipeline: &Pipeline,
        (ask, run): (&Ask, &Run),
        left_out: &mut Vec<String>,
    ) -> Result<Option<Made>, Fault> {
        let held = generated.held.clone().map(|held| held.map(|picture| canvas.finish(&picture)));
        // What was changed after it had passed is looked at again.
        let (finished, flagged, held) = match pipeline.safety().review(canvas.finish(generated.picture.get())) {
            Ok(reviewed) => (reviewed, generated.picture.verdict().flagged, held),
            Err(flagged) => {
                if !generated.picture.verdict().flagged {
                    run.flagged(Stage::Picture);
                    left_out.push(flagged.refused().category.clone());
                }
                (flagged.blacked(), true, held.or_else(|| Some(flagged.held())))
            }
        };
        let (mime, seed) = (ask.format.mime(), generated.seed);
        let name = format!("darkroom-{seed}.{}", ask.format.extension());
        let encoding = Encoding { format: ask.format, quality: ask.quality, metadata: self.metadata };
        let encode = |picture: &Reviewed<Rgb8>| {
            image_file::encode(picture, &generated.provenance, encoding).map_err(|error| told(&error))
        };
        if let (Some(keep), Some(held)) = (self.stock.hold, held) {
            let about = about_held(&held, ask, seed, run);
            // Released by a person or not at all: until then nothing but the reviewers' routes leads to it.
            let bytes = encode(&held.approved())?;
            let new = NewBlob { about: Some(about), ..NewBlob::new(Purpose::Held, mime, &name, keep, run.owner()) };
            run.wait_for(self.blobs.put(bytes.into(), new))?;
            run.log("A flagged picture waits for a person");
        }
        if flagged && ask.on_flagged == OnFlagged::Drop {
            return Ok(None);
        }
        let keep = Duration::from_secs(ask.keep_seconds);
        let new = NewBlob::new(Purpose::Result, mime, &name, keep, run.owner());
        let blob = run.wait_for(self.blobs.put(encode(&finished)?.into(), new))?;
        let (width, height) = (finished.get().width(), finished.get().height());
        let (blob, bytes) = (blob.id.clone(), blob.bytes);
        Ok(Some(Made { blob, mime: mime.to_owned(), width, height, bytes, seed, flagged }))
    }

    /// The operator's policy, as far as a request may change it.
    fn safety(&self, ask: &Ask) -> Safety {
        let policy = self.stock.safety_of(&ask.model);
        let policy = if ask.safety || !self.stock.safety_optional { policy } else { policy.without_picture_gate() };
        policy.with_on_flagged(match ask.on_flagged {
            _ if self.stock.hold.is_some() => safety::OnFlagged::Hold,
            OnFlagged::Drop => safety::OnFlagged::Refuse,
            OnFlagged::Black => safety::OnFlagged::Black,
        })
    }

    fn delete(&self, pictures: &[Made], run: &Run) {
        for made in pictures {
            if let Err(fault) = run.wait_for(self.blobs.delete(&made.blob)) {
                tracing::warn!(%fault, "a picture of a failed job stays until its time is over");
            }
        }
    }
}

impl worker::Engine for Studio {
    fn make(&mut self, ask: &Ask, run: &Run) -> Result<Vec<Made>, Fault> {
        run.log(format!("Using seed: {}", ask.seed));
        self.fulfil_wishes();
        let index = self.load(&ask.model, &mut Following::quiet(run))?;
        let lora_files = ask
            .loras
            .iter()
            .map(|(name, weight)| Ok((self.shelf.lora(name)?, *weight)))
            .collect::<Result<Vec<_>, Fault>>()?;
        self.loaded[index].set_loras(lora_files)?;

        let given = ask.given.first().map(|source| self.picture(source, run)).transpose()?;
        let mask = ask.mask.as_ref().map(|source| self.picture(source, run)).transpose()?;
        let (request, canvas) = request(ask, &self.loaded[index].pipeline, given, mask, run)?;

        let plan = self.loaded[index].pipeline.plan(&request).map_err(|error| logged(&ask.model, &error))?;
        self.make_room(index, plan.peak_bytes());
        self.loaded[index].resident = plan.parts.iter().map(PartPlan::resident_bytes).sum();
        self.loaded[index].last_used = Instant::now();
        self.loaded[index].keep_alive = ask.keep_alive_seconds.map(|seconds| match seconds {
            u64::MAX => Duration::MAX,
            seconds => Duration::from_secs(seconds),
        });
        self.shelf.tell(&ask.model, |state| (state.bytes, state.last_used) = (plan.peak_bytes(), now()));

        let safety = self.safety(ask);
        self.loaded[index].pipeline.set_safety(safety);
        let pipeline = &self.loaded[index].pipeline;
        let mut watch = Following::new(ask, run, &request, canvas, pipeline);
        let mut made = Vec::new();
        let mut failure = None;
        let mut left_out = Vec::new();
        let result = pipeline.generate_each(&request, &mut watch, &mut |generated| match self.store(
            &generated,
            canvas,
            pipeline,
            (ask, run),
            &mut left_out,
        ) {
            Ok(picture) => {
                made.extend(picture);
                ControlFlow::Continue(())
            }
            Err(fault) => {
                failure = Some(fault);
                ControlFlow::Break(())
            }
        });
        let result = match result {
            // Some were left out, but not all.
            Err(Error::Refused(refused)) if refused.subject == Subject::Picture && !made.is_empty() => Ok(()),
            result => result.map_err(|error| {
                if matches!(&error, Error::Refused(refused) if refused.subject != Subject::Picture) {
                    run.flagged(Stage::Prompt);
                }
                logged(&ask.model, &error)
            }),
        };
        left_out.extend(watch.flagged.take().map(|refused| refused.category));
        left_out.sort();
        left_out.dedup();
        self.loaded[index].last_used = Instant::now();
        let none = || Fault::Flagged {
            stage: Stage::Picture,
            categories: left_out,
            message: "every picture was flagged by the picture gate".into(),
        };
        let failure = failure.or(result.err()).or_else(|| made.is_empty().then(none));
        if let Some(fault) = failure {
            self.delete(&made, run);
            return Err(fault);
        }
        Ok(made)
    }

    fn idle(&mut self) {
        self.follow_shelf();
        self.fulfil_wishes();
        let usual = self.stock.keep_alive.unwrap_or(Duration::MAX);
        self.unload(|loaded| loaded.last_used.elapsed() >= loaded.keep_alive.unwrap_or(usual));
    }

    fn start_over(&mut self) {
        self.unload(|_| true);
    }
}

impl Loaded {
    /// Has these LoRAs applied and no others; nothing is read if they are already.
    fn set_loras(&mut self, asked: Vec<(LoraFile, f32)>) -> Result<(), Fault> {
        let same =
            |(have, asked): (&(LoraFile, Arc<Lora>, f32), &(LoraFile, f32))| have.0 == asked.0 && have.2 == asked.1;
        if self.loras.len() == asked.len() && self.loras.iter().zip(&asked).all(same) {
            return Ok(());
        }
        let wrong = |error: &Error| match error {
            Error::File { problem, .. } => {
                Fault::invalid("loras", Rule::Other, format!("has a LoRA that cannot be used: it {problem}"))
            }
            other => told(other),
        };
        let mut loras = Vec::new();
        for (file, weight) in asked {
            let open = self.loras.iter().find(|(have, ..)| *have == file).map(|(_, lora, _)| lora.clone());
            let lora = match open {
                Some(lora) => lora,
                None => Arc::new(Lora::open(&file.path).map_err(|error| wrong(&error))?),
            };
            loras.push((file, lora, weight));
        }
        let used = loras.iter().map(|(_, lora, weight)| (lora.clone(), *weight)).collect();
        let reports = self.pipeline.set_loras(&Loras { used, merge: false }).map_err(|error| wrong(&error))?;
        for report in reports.iter().filter(|report| !report.unmatched.is_empty()) {
            tracing::warn!(lora = report.name, left_out = report.unmatched.len(), "not all of a LoRA fits the model");
        }
        self.loras = loras;
        Ok(())
    }
}

/// What `flux` is asked for, and how that becomes the picture.
fn request(
    ask: &Ask,
    pipeline: &Pipeline,
    given: Option<Decoded>,
    mask: Option<Decoded>,
    run: &Run,
) -> Result<(Request, Canvas), Fault> {
    let size = given.as_ref().map(|given| (given.picture.width(), given.picture.height()));
    let output = canvas::output(ask.size, size)?;
    let usual = (pipeline.defaults().width, pipeline.defaults().height);
    let canvas = Canvas::new(output, usual, matches!(ask.mode, Mode::Image { .. } | Mode::Inpaint { .. }));
    let mut request = pipeline.request(ask.prompt.clone());
    (request.width, request.height) = canvas.drawn;
    request.upscale = canvas.enlarged;
    request.steps = ask.steps;
    request.guidance = ask.guidance;
    request.true_cfg = ask.true_cfg;
    if ask.true_cfg > 1.0 {
        request.negative_prompt.clone_from(&ask.negative_prompt);
    }
    request.seed = ask.seed;
    request.batch = ask.pictures;
    request.sampler = ask.sampler;
    request.schedule = ask.schedule;
    request.acceleration = match ask.acceleration {
        Acceleration::None => acceleration::Acceleration::None,
        Acceleration::Regular => acceleration::Acceleration::Regular,
        Acceleration::High => acceleration::Acceleration::High,
    };
    let given = || given.ok_or_else(|| Fault::invalid("image", Rule::Missing, "is required"));
    let begin =
        |picture: &Rgb8, strength: f32| Start { strength: f64::from(strength), ..Start::new(canvas.given(picture)) };
    match ask.mode {
        Mode::Text => {}
        Mode::Image { strength } => request.pictures.start = Some(begin(&given()?.picture, strength)),
        Mode::Inpaint { strength } => {
            let given = given()?;
            let mut start = begin(&given.picture, strength);
            // Where no mask is given, what is transparent is painted.
            let mask = mask.or_else(|| given.alpha.is_some().then(|| given.clone())).map(Decoded::into_mask);
            let mask = mask.map(|mask| if ask.mask_inverted { inverted(&mask) } else { mask });
            start.mask = mask.map(|mask| canvas.given(&mask));
            request.pictures.start = Some(start);
        }
        Mode::Redux => {
            let given = given()?;
            request.redux = Some(given.picture.clone());
            if let Err(Error::Asked { field: "redux", .. }) = pipeline.check(&request) {
                run.log(format!(
                    "This model has no Redux: the picture is begun from instead, at strength {REDUX_STRENGTH}"
                ));
                let canvas = Canvas::new(output, usual, true);
                request.redux = None;
                (request.width, request.height) = canvas.drawn;
                request.upscale = canvas.enlarged;
                let strength = f64::from(REDUX_STRENGTH);
                request.pictures.start = Some(Start { strength, ..Start::new(canvas.given(&given.picture)) });
                return Ok((request, canvas));
            }
        }
    }
    Ok((request, canvas))
}

/// What a reviewer should know of a picture that waits for a decision; with a job's name, so that its owner finds it afterwards.
fn about_held(held: &Held, ask: &Ask, seed: u64, run: &Run) -> serde_json::Value {
    let score = held.verdict().scores.map(|scores| scores.explicit());
    json!({"job": run.id(), "model": ask.model, "seed": seed, "category": held.refused().category, "score": score})
}

/// White where it was black.
fn inverted(mask: &Rgb8) -> Rgb8 {
    Rgb8::new(mask.width(), mask.height(), mask.as_ref().iter().map(|value| 255 - value).collect())
}

/// What the caller hears of an error. The operator's log has the file's problem, but not where it is.
fn logged(model: &str, error: &Error) -> Fault {
    match error {
        Error::File { problem, .. } => tracing::error!(model, problem, "a file cannot be used"),
        Error::Asked { field: "model", .. } => tracing::error!(model, "the model's files are not there"),
        _ => {}
    }
    tracing::trace!(model, %error, "in full");
    told(error)
}

/// What the caller hears of an error: the problem, without the hint, which is for the command line.
fn told(error: &Error) -> Fault {
    match error {
        Error::Asked { field: "memory_limit", problem, .. } => {
            Fault::Failed(format!("there is too little memory: {problem}"))
        }
        Error::Asked { field: field @ ("image" | "mask"), problem, .. } => {
            Fault::Picture { field: (*field).to_owned(), kind: PictureFault::Decode, message: problem.clone() }
        }
        Error::Asked { field, .. } => Fault::refused(*field, error),
        Error::Refused(refused) => refused.into(),
        Error::Degenerate { problem, .. } => Fault::Failed(problem.clone()),
        Error::Cancelled => Fault::Cancelled,
        _ => Fault::Failed("a file of the model cannot be used; the server's log says why".into()),
    }
}

#[cfg(test)]
mod tests;

//! What a program does with the library: load a model, follow it at work, save the picture, stop it from another thread.
//! `cargo run --release -p flux --example generate -- apple.png`

#![expect(clippy::print_stdout, reason = "a program")]

use std::{
    error::Error as StdError,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use flux::{
    Error, Event, LoadOptions, Pipeline, Watch,
    image_file::{self, Encoding},
    model::{ModelSpec, SearchPaths},
};

/// Tells of each step, and stops as soon as the flag is set, which any thread may do.
struct Progress<'a> {
    stop: &'a AtomicBool,
}

impl Watch for Progress<'_> {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Planned(plan) => println!("at most {} MB", plan.peak_bytes() / 1_000_000),
            Event::Step(step) => println!("step {} of {}: {:.3} s", step.step, step.steps, step.seconds),
            _ => {}
        }
    }

    /// Asked between two blocks of the transformer.
    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn main() -> Result<(), Box<dyn StdError>> {
    let path = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("apple.png"), PathBuf::from);
    draw(&path)
}

/// Draws a picture into a file, and begins another that is stopped.
pub(crate) fn draw(path: &Path) -> Result<(), Box<dyn StdError>> {
    // The model in the box. Another one: `ModelSpec { model: Some("path/to/FLUX.1-Krea-dev".into()), ..ModelSpec::default() }`.
    let files = ModelSpec::default().find(&SearchPaths::default())?;
    let pipeline = Pipeline::load(files, &LoadOptions::default(), &mut ())?;
    let mut request = pipeline.request("a red apple"); // with the model's own size, steps and guidance
    request.seed = 7;

    let stop = AtomicBool::new(false);
    let mut progress = Progress { stop: &stop };
    for made in pipeline.generate(&request, &mut progress)? {
        let png = image_file::encode(&made.picture, &made.provenance, Encoding::default())?;
        fs::write(path, png)?;
        println!("{}: seed {}", path.display(), made.seed);
    }

    // A pipeline serves one request after the other; here another thread changes its mind about the second.
    request.steps = 1000;
    let ended = thread::scope(|scope| {
        scope.spawn(|| stop.store(true, Ordering::Relaxed));
        pipeline.generate(&request, &mut progress)
    });
    match ended {
        Err(Error::Cancelled) => println!("cancelled"),
        ended => println!("made {} pictures", ended?.len()),
    }
    Ok(())
}

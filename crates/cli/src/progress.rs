//! What is going on, on standard error: a bar in a terminal, plain lines elsewhere.

use std::{io::IsTerminal, time::Duration};

use flux::{
    Event, Request, Step,
    acceleration::{Acceleration, Evaluations},
    sampler::Sampler,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Tells what is going on.
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    /// Smoothed seconds a step.
    pace: Option<f64>,
    /// Velocities of the picture so far.
    evaluations: Evaluations,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: std::io::stderr().is_terminal(),
            bar: None,
            pace: None,
            evaluations: Evaluations::default(),
        }
    }

    /// A line that stays.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub(crate) fn loaded(&mut self, name: &str, notice: Option<&str>, time: Duration) {
        self.clear();
        let notice = notice.map(|notice| format!(" – {notice}")).unwrap_or_default();
        self.note(&format!("model {name}{notice} (found in {:.2} s)", time.as_secs_f64()));
    }

    pub(crate) fn asked(&self, request: &Request) {
        let cfg = if request.true_cfg > 1.0 { format!(", true cfg {}", request.true_cfg) } else { String::new() };
        let batch = if request.batch > 1 { format!(" and the next {}", request.batch - 1) } else { String::new() };
        let enlarged = request.upscale.map(|scale| format!(", enlarged {scale} times")).unwrap_or_default();
        let sampler = match request.sampler {
            Sampler::Euler => String::new(),
            sampler => format!(" by {sampler}"),
        };
        let reuse = match request.acceleration {
            Acceleration::None => String::new(),
            acceleration => format!(", acceleration {acceleration}"),
        };
        self.note(&format!(
            "{}×{} pixels{enlarged}, {} steps{sampler}{reuse}, guidance {}{cfg}, seed {}{batch}",
            request.width,
            request.height,
            request.steps_made(),
            request.guidance,
            request.seed
        ));
    }

    pub(crate) fn event(&mut self, event: &Event<'_>) {
        if self.quiet {
            return;
        }
        match event {
            Event::Loading(part) => self.stage(&format!("loading {part}")),
            Event::Planned(plan) => {
                // Nothing is said where everything fits.
                for line in crate::plan::means(plan) {
                    self.note(&format!("memory: {line}"));
                }
            }
            Event::PromptKnown => self.note("prompt embeddings from the cache"),
            Event::Encoding => self.stage("reading the prompt"),
            Event::EncodingPictures => self.stage("encoding the picture"),
            Event::Decoding { picture } => self.stage(&format!("decoding picture {}", picture + 1)),
            Event::Step(step) => self.step(step),
            Event::Flagged { picture, .. } => {
                self.note(&format!("picture {} was flagged and is left out", picture + 1));
            }
            Event::Upscaling { tile, tiles } => self.stage(&format!("enlarging, part {tile} of {tiles}")),
            _ => {}
        }
    }

    fn stage(&mut self, what: &str) {
        self.clear();
        if self.terminal {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.set_message(what.to_owned());
            bar.tick();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, step: &Step<'_>) {
        self.show_step(step);
        if step.step == 1 {
            self.evaluations = Evaluations::default();
        }
        self.evaluations.computed += step.evaluations.computed;
        self.evaluations.reused += step.evaluations.reused;
        let Evaluations { computed, reused } = self.evaluations;
        if step.step == step.steps && reused > 0 {
            self.note(&format!("{computed} velocities computed, {reused} reused"));
        }
    }

    fn show_step(&mut self, step: &Step<'_>) {
        let pace = self.pace.map_or(step.seconds, |pace| 0.7 * pace + 0.3 * step.seconds);
        self.pace = Some(pace);
        let left = pace * f64::from(step.steps - step.step);
        let line = format!("{}, {} left", a_step(pace), clock(left));
        if !self.terminal {
            // Lines for a log: all of a slow run, a few of a quick one.
            let every = if pace > 5.0 { 1 } else { step.steps.div_ceil(4) };
            if step.step.is_multiple_of(every) || step.step == step.steps {
                eprintln!("step {}/{}: {line}", step.step, step.steps);
            }
            return;
        }
        if step.step == 1 || self.bar.is_none() {
            self.clear();
            let bar = ProgressBar::new(u64::from(step.steps));
            let style = ProgressStyle::with_template("step {pos}/{len} {bar:30} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_message(line);
            bar.set_position(u64::from(step.step));
        }
    }

    pub(crate) fn done(&mut self) {
        self.clear();
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// `2.31 s/step`, `14 ms/step`.
fn a_step(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.0} ms/step", 1000.0 * seconds) } else { format!("{seconds:.2} s/step") }
}

/// `1:02:03`, `2:03`, `3 s`.
fn clock(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let [h, m, s] = [whole / 3600, whole / 60 % 60, whole % 60];
    match (h, m) {
        (0, 0) => format!("{s} s"),
        (0, _) => format!("{m}:{s:02}"),
        _ => format!("{h}:{m:02}:{s:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!([0.0141, 0.1, 12.345].map(a_step), ["14 ms/step", "0.10 s/step", "12.35 s/step"]);
        assert_eq!([0.4, 63.0, 3723.0].map(clock), ["0 s", "1:03", "1:02:03"]);
    }
}

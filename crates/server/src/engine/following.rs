//! What a job shows of its pictures while they are made: progress, lines of its log, previews.

use std::time::{Duration, Instant};

use flux::{
    Event, Pipeline, Request, Watch,
    error::Refused,
    image_file::{self, Encoding, Format, MetadataLevel},
    resize::{Filter, resize},
    watch::Step,
};

use crate::{
    ask::Ask,
    canvas::Canvas,
    error::Stage,
    job::{Preview, Progress},
    jobs::Run,
};

/// Least time between two lines of progress.
const LINE_EVERY: Duration = Duration::from_millis(500);

/// Longest side of a small preview, pixels.
const PREVIEW_SIDE: u32 = 512;

/// Quality of previews.
const PREVIEW_QUALITY: u8 = 80;

/// Tells the job how far its pictures are.
pub(super) struct Following<'a> {
    run: &'a Run,
    /// `None` while a model is loaded.
    making: Option<Making<'a>>,
    /// The last picture that was flagged, and why.
    pub(super) flagged: Option<Refused>,
}

struct Making<'a> {
    ask: &'a Ask,
    request: &'a Request,
    canvas: Canvas,
    pipeline: &'a Pipeline,
    /// When the picture was begun, and which.
    began: (Instant, u32),
    last_line: Option<Instant>,
    /// Of this picture, so far.
    previews: u32,
}

impl<'a> Following<'a> {
    pub(super) fn quiet(run: &'a Run) -> Self {
        Self { run, making: None, flagged: None }
    }

    pub(super) fn new(
        ask: &'a Ask,
        run: &'a Run,
        request: &'a Request,
        canvas: Canvas,
        pipeline: &'a Pipeline,
    ) -> Self {
        let began = (Instant::now(), 0);
        let making = Making { ask, request, canvas, pipeline, began, last_line: None, previews: 0 };
        Self { run, making: Some(making), flagged: None }
    }
}

impl Watch for Following<'_> {
    fn event(&mut self, event: Event<'_>) {
        let Some(making) = &mut self.making else { return };
        match event {
            Event::Step(step) => making.step(&step, self.run),
            Event::Flagged { picture, refused } => {
                self.run.log(format!("Picture {} was flagged: {}", picture + 1, refused.category));
                self.run.flagged(Stage::Picture);
                self.flagged = Some(refused.clone());
            }
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.run.cancelled()
    }
}

impl Making<'_> {
    fn step(&mut self, step: &Step<'_>, run: &Run) {
        let &Step { picture, step: done, steps, seconds, .. } = step;
        if self.began.1 != picture {
            (self.began, self.previews) = ((Instant::now(), picture), 0);
        }
        let pictures = self.ask.pictures;
        run.progress(Progress { picture, pictures, step: done, steps, seconds_per_step: seconds });
        let elapsed = self.began.0.elapsed();
        if done == steps || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            run.log(line(done, steps, elapsed));
        }
        let count = u32::from(self.ask.previews.count);
        if preview_after(done, steps, count)
            && let Some(preview) = self.preview(step)
        {
            run.preview(preview);
            self.previews += 1;
        }
    }

    /// What cannot be shown (a model without a cheap way, a picture that is refused) is left out.
    fn preview(&self, step: &Step<'_>) -> Option<Preview> {
        let rough = step.preview()?;
        let (format, picture) = if self.ask.previews.full_size {
            (self.ask.format, self.canvas.finish(&rough))
        } else {
            let side = rough.width().max(rough.height());
            let shrunk = |of: u32| (u64::from(of) * u64::from(PREVIEW_SIDE) / u64::from(side)).max(1) as u32;
            let small = side <= PREVIEW_SIDE;
            let size =
                if small { (rough.width(), rough.height()) } else { (shrunk(rough.width()), shrunk(rough.height())) };
            (Format::Jpeg, resize(&rough, size.0, size.1, Filter::Lanczos))
        };
        let picture = self.pipeline.safety().review(picture).ok()?;
        let seed = self.request.seed.wrapping_add(u64::from(step.picture));
        let provenance = self.pipeline.provenance(self.request, seed);
        let encoding = Encoding { format, quality: PREVIEW_QUALITY, metadata: MetadataLevel::None };
        let bytes = image_file::encode(&picture, &provenance, encoding).ok()?;
        let (width, height) = (picture.get().width(), picture.get().height());
        let mime = format.mime();
        let index = self.previews;
        Some(Preview { picture: step.picture, index, step: step.step, bytes: bytes.into(), mime, width, height })
    }
}

/// Whether one of `count` previews comes after `step` of `steps`: evenly spaced, never after the last.
fn preview_after(step: u32, steps: u32, count: u32) -> bool {
    (0..count).any(|index| ((index + 1) * steps) / (count + 1) == step) && step > 0 && step < steps
}

/// A line as `tqdm` writes it: people's programs read them.
fn line(step: u32, steps: u32, elapsed: Duration) -> String {
    let share = f64::from(step) / f64::from(steps.max(1));
    let filled = (share * 10.0) as usize;
    let clock = |seconds: f64| format!("{:02}:{:02}", seconds as u64 / 60, seconds as u64 % 60);
    let seconds = elapsed.as_secs_f64();
    let rate = f64::from(step) / seconds.max(1e-6);
    let left = f64::from(steps - step.min(steps)) / rate.max(1e-6);
    let rate = if rate >= 1.0 { format!("{rate:5.2}it/s") } else { format!("{:5.2}s/it", 1.0 / rate) };
    let bar = format!("{}{}", "#".repeat(filled), " ".repeat(10 - filled.min(10)));
    format!("{:3.0}%|{bar}| {step}/{steps} [{}<{}, {rate}]", share * 100.0, clock(seconds), clock(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_tqdms() {
        assert_eq!(line(14, 28, Duration::from_secs(7)), " 50%|#####     | 14/28 [00:07<00:07,  2.00it/s]");
        assert_eq!(line(1, 28, Duration::from_secs(90)), "  4%|          | 1/28 [01:30<40:30, 90.00s/it]");
        assert_eq!(line(4, 4, Duration::from_millis(200)), "100%|##########| 4/4 [00:00<00:00, 20.00it/s]");
    }

    #[test]
    fn previews_are_even_and_never_the_last() {
        let after = |steps, count| (0..=steps).filter(|step| preview_after(*step, steps, count)).collect::<Vec<_>>();
        assert_eq!(after(28, 3), [7, 14, 21]);
        assert_eq!(after(4, 1), [2]);
        assert_eq!(after(2, 3), [1], "fewer steps than previews");
        assert!(after(1, 3).is_empty());
        assert!(after(28, 0).is_empty());
    }
}

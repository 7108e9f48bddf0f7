//! Reused velocities: when they are, when never, and how far off they are, on the model in the box.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use flux::{
    Event, Generated, LoadOptions, Pipeline, Request, Reused, Watch,
    acceleration::{Acceleration, Cache, CacheKind, Evaluations, FIRST_STEPS},
    model::{ModelSpec, SearchPaths},
    sampler::Sampler,
};
use tensor::Device;

fn pipeline() -> Pipeline {
    let files = ModelSpec::default().find(&SearchPaths::default()).unwrap();
    let options = LoadOptions { device: Device::Cpu { threads: Some(2) }, ..LoadOptions::default() };
    Pipeline::load(files, &options, &mut ()).unwrap()
}

fn request(pipeline: &Pipeline, acceleration: Acceleration) -> Request {
    Request { steps: 28, seed: 3, acceleration, ..pipeline.request("a red apple") }
}

fn one(pipeline: &Pipeline, request: &Request) -> Generated {
    pipeline.generate(request, &mut ()).unwrap().remove(0)
}

fn all() -> Vec<Acceleration> {
    let parts = CacheKind::ALL.map(|kind| Acceleration::Cache(Cache { kind, threshold: 10.0 }));
    [Acceleration::Regular, Acceleration::High].into_iter().chain(parts).collect()
}

/// Which steps reused anything.
#[derive(Default)]
struct Steps(Vec<u32>, Evaluations);

impl Watch for Steps {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Step(step) = event {
            if step.evaluations.reused > 0 {
                self.0.push(step.step);
            }
            self.1.computed += step.evaluations.computed;
            self.1.reused += step.evaluations.reused;
        }
    }
}

#[test]
fn the_first_steps_and_the_last_are_computed() {
    let pipeline = pipeline();
    for sampler in Sampler::ALL {
        for acceleration in all() {
            let request = Request { sampler, ..request(&pipeline, acceleration) };
            let mut steps = Steps::default();
            let made = pipeline.generate(&request, &mut steps).unwrap().remove(0);
            let case = format!("{acceleration} by {sampler}: {:?}", steps.0);
            // Where fresh noise is added, thresholds of the presets may never be met.
            let eager = matches!(acceleration, Acceleration::Cache(_)) || sampler == Sampler::Euler;
            assert!(!eager || !steps.0.is_empty(), "{case}");
            assert!(steps.0.iter().all(|step| (FIRST_STEPS as u32 + 1..28).contains(step)), "{case}");
            assert_eq!(steps.1, made.evaluations, "{case}");
            assert_eq!(made.evaluations.computed + made.evaluations.reused, sampler.evaluations(28), "{case}");
        }
    }
    let few = Request {
        steps: 5,
        ..request(&pipeline, Acceleration::Cache(Cache { kind: CacheKind::Taylor, threshold: 10.0 }))
    };
    assert_eq!(one(&pipeline, &few).evaluations.reused, 0);
}

#[test]
fn what_never_reuses_is_exact() {
    let pipeline = pipeline();
    let exact = one(&pipeline, &request(&pipeline, Acceleration::None));
    assert_eq!(exact.evaluations, Evaluations { computed: 28, reused: 0 });
    for kind in CacheKind::ALL {
        let made = one(&pipeline, &request(&pipeline, Acceleration::Cache(Cache { kind, threshold: 0.0 })));
        assert_eq!((made.evaluations.reused, &made.latents), (0, &exact.latents), "{}", kind.name());
    }
}

#[test]
fn nothing_is_remembered_of_another_picture_or_branch() {
    let pipeline = pipeline();
    for acceleration in all() {
        // Each picture of a batch is its seed alone.
        let batch = pipeline.generate(&Request { batch: 2, ..request(&pipeline, acceleration) }, &mut ()).unwrap();
        let second = one(&pipeline, &Request { seed: 4, ..request(&pipeline, acceleration) });
        assert_eq!(batch[1].latents, second.latents, "{acceleration}");
        // With the same prompt on both sides, guidance changes nothing but roundings: each branch has its own memory.
        let guided =
            Request { negative_prompt: Some("a red apple".into()), true_cfg: 3.0, ..request(&pipeline, acceleration) };
        let guided = one(&pipeline, &guided);
        let plain = &batch[0];
        assert_eq!(guided.evaluations, plain.evaluations, "{acceleration}");
        let off = distance(&guided.latents.values, &plain.latents.values);
        assert!(off < 1e-3, "{acceleration}: {off:e}");
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let off: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

/// The numbers of `docs/acceleration.md` in small: its table is of 16 prompts.
#[test]
fn presets_keep_their_word() {
    let pipeline = pipeline();
    for (acceleration, most_computed, most_error) in [(Acceleration::Regular, 20, 0.05), (Acceleration::High, 14, 0.12)]
    {
        let mut errors = Vec::new();
        let mut computed = 0;
        let prompts = ["a red apple", "a blue cat on a yellow background", "a green dragon", "a rocket"];
        for prompt in prompts {
            let request = Request { prompt: prompt.into(), ..request(&pipeline, acceleration) };
            let mut audit = |reused: Reused| errors.push(reused.error);
            let audited = pipeline.generate_audited(&request, &mut (), &mut audit).unwrap().remove(0);
            assert_eq!(audited.latents, one(&pipeline, &request).latents, "looking changes nothing");
            computed += audited.evaluations.computed;
        }
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let each = f64::from(computed) / prompts.len() as f64;
        println!("{acceleration}: {each} of 28 computed, mean error {mean:.3}");
        assert!(each <= f64::from(most_computed), "{acceleration}: {each} computed");
        assert!(mean <= most_error, "{acceleration}: velocities are {mean:.3} off");
    }
}

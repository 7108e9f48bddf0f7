//! Schedules against BFL, diffusers and `ComfyUI` (`golden/schedules.json`), and diffusers' other shifts bit for bit.

use flux::schedule::{ScheduleKind, SchedulerConfig};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    steps: usize,
    seq: usize,
    mu: f64,
    bfl: Vec<f32>,
    diffusers: Vec<f32>,
    comfy_simple_mu115: Vec<f32>,
    comfy_simple_mu_seq: Vec<f32>,
}

#[test]
fn schedules_are_the_references() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/schedules.json")).expect("the fixture is JSON");
    assert_eq!(cases.len(), 9);
    let dev = SchedulerConfig::dev();
    for Case { steps, seq, mu, bfl, diffusers, comfy_simple_mu115, comfy_simple_mu_seq } in cases {
        assert!((dev.mu(seq) - mu).abs() < 1e-12);
        for (kind, name, expected) in [
            (ScheduleKind::Reference, "bfl", bfl),
            (ScheduleKind::Reference, "diffusers", diffusers),
            (ScheduleKind::ComfySimple, "comfy simple", comfy_simple_mu115),
            (ScheduleKind::ComfySimpleSized, "comfy simple, sized", comfy_simple_mu_seq),
        ] {
            let sigmas = dev.sigmas(kind, steps, seq).expect("steps are at least 1");
            let worst = sigmas.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(sigmas.len(), expected.len());
            assert!(worst <= 2e-7, "{name}, {steps} steps, {seq} tokens: off by {worst:e}");
            if name == "diffusers" {
                assert_eq!(sigmas, expected, "{steps} steps, {seq} tokens: diffusers' order of operations is ours");
            }
        }
    }
}

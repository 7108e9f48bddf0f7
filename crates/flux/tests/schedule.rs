//! Schedules against BFL, diffusers and `ComfyUI` (`golden/schedules.json`, `golden/samplers.json`), and diffusers' other shifts
//! bit for bit.

use flux::schedule::{ScheduleKind, SchedulerConfig, Spacing};
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
            (ScheduleKind::Comfy { spacing: Spacing::Simple, sized: false }, "comfy simple", comfy_simple_mu115),
            (ScheduleKind::Comfy { spacing: Spacing::Simple, sized: true }, "comfy simple, sized", comfy_simple_mu_seq),
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

#[derive(Deserialize)]
struct Tables {
    tables: Vec<Table>,
}

#[derive(Deserialize)]
struct Table {
    model: String,
    tokens: Option<usize>,
    spacing: String,
    steps: usize,
    sigmas: Vec<f32>,
}

#[test]
fn comfyui_s_five_schedulers() {
    let tables: Tables = serde_json::from_str(include_str!("golden/samplers.json")).expect("the fixture is JSON");
    let mut worst = 0.0f32;
    for Table { model, tokens, spacing, steps, sigmas: expected } in &tables.tables {
        let config = if model == "schnell" { SchedulerConfig::schnell() } else { SchedulerConfig::dev() };
        let sized = if tokens.is_some() { "-sized" } else { "" };
        let kind: ScheduleKind = format!("comfy-{spacing}{sized}").parse().expect("a known name");
        let sigmas = config.sigmas(kind, *steps, tokens.unwrap_or(4096)).expect("steps are at least 1");
        assert_eq!(sigmas.len(), expected.len(), "{model} {kind}, {steps} steps");
        let off = sigmas.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= 1e-6, "{model} {kind}, {steps} steps: off by {off:e}");
        worst = worst.max(off);
    }
    println!("{} tables, off by at most {worst:e}", tables.tables.len());
    assert_eq!(tables.tables.len(), 4 * (5 * 8 + 1));
}

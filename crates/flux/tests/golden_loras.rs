//! LoRAs that PEFT, diffusers and LyCORIS applied (`golden/loras.safetensors`): the same velocity from the same file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;
#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "a module of each test file that uses it, in part")]
mod toy;

use std::{collections::BTreeMap, sync::Arc};

use flux::{
    lora::{Lora, Loras},
    transformer::{Condition, Flux, FluxConfig, Rope},
    weights::{Naming, safetensors::Header},
};
use support::{Golden, backends, distance, folder};
use tensor::{Backend, Tensor};
use toy::{File, Scratch, Stored};

/// f32 against f32 in another order of summation, with changes as large as the model.
const BOUND: f64 = 1e-5;

/// The cases: each a LoRA's file and the velocity with it.
fn cases() -> BTreeMap<String, File> {
    let bytes = std::fs::read(folder().join("loras.safetensors")).unwrap();
    let header = Header::parse(&bytes).unwrap();
    let mut cases: BTreeMap<String, File> = BTreeMap::new();
    for (name, entry) in &header.tensors {
        let (case, key) = name.split_once('/').unwrap();
        assert_eq!(entry.dtype, "F32");
        let stored = Stored { dtype: "F32", shape: entry.shape.clone(), bytes: bytes[entry.bytes.clone()].to_vec() };
        cases.entry(case.to_owned()).or_default().insert(key.to_owned(), stored);
    }
    cases
}

fn velocities(flux: &Flux, golden: &Golden, backend: &Arc<dyn Backend>) -> Vec<f32> {
    let config = flux.config();
    let ids = ["in.txt_ids", "in.img_ids"].map(|name| golden.values(name).1).concat();
    let ids: Vec<[f32; 3]> = ids.chunks_exact(3).map(|id| [id[0], id[1], id[2]]).collect();
    let rope = Rope::new(backend, &ids, config.axes_dim, config.theta);
    let [times, guidance] = ["in.timestep", "in.guidance"].map(|name| golden.values(name).1);
    let one = |i: usize| {
        let input = |name: &str| golden.item(&format!("in.{name}"), i, backend);
        let condition = Condition {
            txt: &input("encoder_hidden_states"),
            pooled: &input("pooled_projections").reshape([1, config.vec_in_dim]),
            guidance_argument: 1000.0 * guidance[i],
            rope: &rope,
        };
        let mut nothing = |_, _: &Tensor| Ok(());
        flux.forward(&input("hidden_states"), times[i], condition, &mut nothing).unwrap().to_vec()
    };
    (0..times.len()).flat_map(one).collect()
}

#[test]
fn velocities_are_those_of_the_libraries_that_define_the_kinds() {
    let scratch = Scratch::new("golden-loras");
    let golden = Golden::open("models/flux_diffusers.safetensors");
    let metadata = Golden::open("loras.safetensors").metadata().clone();
    let cases = cases();
    assert!(cases.len() >= 9, "{:?}", cases.keys());
    for backend in backends() {
        let config = FluxConfig::from_diffusers(&golden.metadata()["config"]).unwrap();
        let mut flux = Flux::load(config, &golden.weights(Naming::FluxDiffusers, &backend)).unwrap();
        for (case, file) in &cases {
            let mut file = file.clone();
            let out = file.remove("out").unwrap();
            let expected: Vec<f32> = out.bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
            let own: BTreeMap<String, String> = serde_json::from_str(&metadata[case]).unwrap();
            let own: Vec<(&str, &str)> = own.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let path = scratch.join(format!("{case}.safetensors"));
            toy::bytes(&path, &toy::safetensors(&file, &own));
            let lora = Arc::new(Lora::open(&path).unwrap());
            for merge in [false, true] {
                let loras = Loras { used: vec![(lora.clone(), 1.0)], merge };
                let reports = flux.set_loras(&loras, &backend).unwrap();
                assert_eq!(reports[0].unmatched, [], "{case}");
                let off = distance(&velocities(&flux, &golden, &backend), &expected);
                println!("{case} on {}, merged {merge}: {off:.1e}", backend.name());
                assert!(off <= BOUND, "{case} on {}, merged {merge}: {off}", backend.name());
            }
        }
        flux.set_loras(&Loras::default(), &backend).unwrap();
        assert!(distance(&velocities(&flux, &golden, &backend), &golden.values("out").1) <= BOUND);
    }
}

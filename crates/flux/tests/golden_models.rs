//! Small random models run by diffusers and transformers (`golden/models/`), block by block; and what the recorded
//! pipelines say about texts and noise levels.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use flux::{
    Result,
    model::{ModelSpec, SearchPaths},
    safety::Safety,
    schedule::{ScheduleKind, SchedulerConfig},
    text::{
        clip::{Clip, ClipConfig},
        t5::{T5, T5Config},
        tokenizer::{ClipTokenizer, T5Tokenizer},
    },
    transformer::{Condition, Flux, FluxConfig, Rope, Site},
    vae::{
        Decoder, Encoder, VaeConfig,
        tiling::Tiling,
        tiny::{TinyDecoder, TinyEncoder},
    },
    weights::Naming,
};
use support::{Golden, Trace, backends, channels_last, close, folder};
use tensor::{Backend, Precision, Tensor};

/// f32 against f32 in another order of summation.
const BOUND: f64 = 1e-5;

/// Every fixture whose name begins with `kind`, on every backend, with each operation's result remembered.
fn each(kind: &str, least: usize, test: impl Fn(&str, &Golden, &Trace)) {
    let names = std::fs::read_dir(folder().join("models")).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with(kind));
    names.sort();
    assert!(names.len() >= least, "{} fixtures of {kind}, at least {least} were expected", names.len());
    for name in names {
        let golden = Golden::open(&format!("models/{name}"));
        for backend in backends() {
            test(&format!("{name} on {}", backend.name()), &golden, &Trace::new(backend));
        }
    }
}

/// Batch item `item` of a recorded tensor.
fn item(golden: &Golden, name: &str, item: usize) -> Vec<f32> {
    let (shape, values) = golden.values(name);
    let size: usize = shape[1..].iter().product();
    values[item * size..][..size].to_vec()
}

/// A recorded picture `[1, C, H, W]` as `[H, W, C]`.
fn picture(golden: &Golden, name: &str, backend: &Arc<dyn Backend>) -> Tensor {
    let (shape, values) = golden.values(name);
    channels_last(backend, &shape[1..], values)
}

#[test]
fn transformers_in_diffusers_names() {
    each("flux_", 2, |run, golden, trace| {
        let backend = trace.backend.clone();
        let config = FluxConfig::from_diffusers(&golden.metadata()["config"]).unwrap();
        let flux = Flux::load(config, &golden.weights(Naming::FluxDiffusers, &backend)).unwrap();
        let config = flux.config();
        let ids = ["in.txt_ids", "in.img_ids"].map(|name| golden.values(name).1).concat();
        let ids: Vec<[f32; 3]> = ids.chunks_exact(3).map(|id| [id[0], id[1], id[2]]).collect();
        let rope = Rope::new(&backend, &ids, config.axes_dim, config.theta);
        for (half, name) in ["cos", "sin"].iter().enumerate() {
            // diffusers writes each angle twice, once for either number of a pair.
            let angles: Vec<f32> = rope.angles().to_vec().chunks_exact(2).flat_map(|angle| [angle[half]; 2]).collect();
            close(
                &format!("{run}: pos_embed.{name}"),
                &angles,
                &golden.values(&format!("act.pos_embed.{name}")).1,
                BOUND,
            );
        }
        let batch = golden.values("in.timestep").1.len();
        for i in 0..batch {
            let input = |name: &str| golden.item(&format!("in.{name}"), i, &backend);
            let condition = Condition {
                txt: &input("encoder_hidden_states"),
                pooled: &input("pooled_projections").reshape([1, config.vec_in_dim]),
                guidance_argument: if config.guidance_embed {
                    1000.0 * golden.values("in.guidance").1[i]
                } else {
                    4500.0
                },
                rope: &rope,
            };
            let mut seen = 0;
            let mut observe = |site: Site, x: &Tensor| {
                let act = |name: &str| item(golden, &format!("act.{name}"), i);
                let expected = match site {
                    Site::Vec => act("time_text_embed"),
                    Site::ImgIn => act("x_embedder"),
                    Site::TxtIn => act("context_embedder"),
                    Site::DoubleImg(n) => act(&format!("transformer_blocks.{n}.img")),
                    Site::DoubleTxt(n) => act(&format!("transformer_blocks.{n}.txt")),
                    Site::Single(n) => {
                        ["txt", "img"].map(|part| act(&format!("single_transformer_blocks.{n}.{part}"))).concat()
                    }
                };
                seen += 1;
                close(&format!("{run}, item {i}: {site}"), &x.to_vec(), &expected, BOUND);
                Ok(())
            };
            let sigma = golden.values("in.timestep").1[i];
            let out = flux.forward(&input("hidden_states"), sigma, condition, &mut observe).unwrap();
            assert_eq!(seen, 3 + 2 * config.depth + config.depth_single_blocks, "every block was looked at");
            trace.check(run, &[("norm_out".into(), item(golden, "act.norm_out", i))], BOUND);
            close(&format!("{run}, item {i}: out"), &out.to_vec(), &item(golden, "out", i), BOUND);
        }
    });
}

#[test]
fn clip_with_either_end_token_rule() {
    each("clip_", 2, |run, golden, trace| {
        let backend = trace.backend.clone();
        let config = ClipConfig::from_json(&golden.metadata()["config"]).unwrap();
        let layers = config.num_hidden_layers;
        let clip = Clip::load(config, &golden.weights(Naming::Same, &backend)).unwrap();
        let ids = golden.ids("in.ids");
        let batch = golden.values("pooled").0[0];
        for (i, ids) in ids.chunks_exact(ids.len() / batch).enumerate() {
            let states = clip.forward(&backend, ids);
            let places: Vec<_> = (0..layers)
                .map(|n| format!("encoder.layers.{n}"))
                .map(|n| (n.clone(), item(golden, &format!("act.{n}"), i)))
                .collect();
            trace.check(&format!("{run}, item {i}"), &places, BOUND);
            for (name, state) in [("last_hidden_state", states.last_hidden_state), ("pooled", states.pooled)] {
                close(&format!("{run}, item {i}: {name}"), &state.to_vec(), &item(golden, name, i), BOUND);
            }
        }
    });
}

#[test]
fn t5_gated_and_not() {
    each("t5_", 2, |run, golden, trace| {
        let backend = trace.backend.clone();
        let config = T5Config::from_json(&golden.metadata()["config"]).unwrap();
        let layers = config.num_layers;
        let t5 = T5::load(config, &golden.weights(Naming::Same, &backend)).unwrap();
        let ids = golden.ids("in.ids");
        let batch = golden.values("out").0[0];
        for (i, ids) in ids.chunks_exact(ids.len() / batch).enumerate() {
            let mut seen = 0;
            let mut observe = |block: usize, x: &Tensor| {
                seen += 1;
                let name = format!("encoder.block.{block}");
                let expected = item(golden, &format!("act.{name}.out"), i);
                close(&format!("{run}, item {i}: {name}"), &x.to_vec(), &expected, BOUND);
                Ok(())
            };
            let out = t5.forward(&backend, ids, &mut observe).unwrap();
            assert_eq!(seen, layers);
            close(&format!("{run}, item {i}: out"), &out.to_vec(), &item(golden, "out", i), BOUND);
        }
    });
}

#[test]
fn autoencoders_whole_and_in_tiles() {
    #[derive(serde::Deserialize)]
    struct Sizes {
        tile_latent_min_size: usize,
        tile_overlap_factor: f64,
    }
    each("vae_", 6, |run, golden, trace| {
        let backend = trace.backend.clone();
        let config = VaeConfig::from_diffusers(&golden.metadata()["config"]).unwrap();
        let levels = config.block_out_channels.len();
        let weights = golden.weights(Naming::VaeDiffusers { levels }, &backend);
        let tiling = golden.metadata().get("tiling").map(|json| {
            let sizes: Sizes = serde_json::from_str(json).unwrap();
            Tiling { tile: sizes.tile_latent_min_size, overlap: sizes.tile_overlap_factor }
        });
        let check_blocks = |side: &str, blocks: &str| {
            let levels = (0..levels).map(|n| format!("{side}.{blocks}.{n}"));
            let mut names = vec![format!("{side}.conv_in")];
            if side == "encoder" {
                names.extend(levels);
                names.push("encoder.mid_block".into());
            } else {
                names.push("decoder.mid_block".into());
                names.extend(levels);
            }
            let act = |name: String| {
                let values = picture(golden, &format!("act.{name}"), &backends()[0]).to_vec();
                (name, values)
            };
            // Tiled runs have no recorded blocks: each tile would have its own.
            let places: Vec<_> = if tiling.is_none() { names.into_iter().map(act).collect() } else { Vec::new() };
            trace.check(run, &places, BOUND);
        };

        let encoder = Encoder::load(config.clone(), &weights).unwrap();
        let x = picture(golden, "in.x", &backend);
        let moments = tiling.map_or_else(|| encoder.moments(&x), |tiling| tiling.moments(&encoder, &x));
        check_blocks("encoder", "down_blocks");
        let expected = picture(golden, "moments", &backend);
        close(&format!("{run}: moments"), &moments.to_vec(), &expected.to_vec(), BOUND);
        let mean = expected.slice(2, 0, config.latent_channels);
        let z = mean.affine(1.0, -config.shift_factor).affine(config.scaling_factor, 0.0);
        let encoded = tiling.map_or_else(|| encoder.encode(&x), |tiling| tiling.encode(&encoder, &x));
        close(&format!("{run}: mean in model space"), &encoded.to_vec(), &z.to_vec(), BOUND);
        trace.check(run, &[], BOUND);

        let (shift, scale) = (config.shift_factor, config.scaling_factor);
        let decoder = Decoder::load(config, &weights).unwrap();
        // The reference takes latents as the encoder gives them, not in model space.
        let z = picture(golden, "in.z", &backend).affine(1.0, -shift).affine(scale, 0.0);
        let mut observe = || Ok(());
        let decoded = match tiling {
            Some(tiling) => {
                assert!(tiling.applies(z.shape()[0], z.shape()[1]));
                tiling.decode(&decoder, &z, &mut observe).unwrap()
            }
            None => decoder.decode(&z, &mut observe).unwrap(),
        };
        check_blocks("decoder", "up_blocks");
        let expected = picture(golden, "decoded", &backend).to_vec();
        close(&format!("{run}: decoded"), &decoded.to_vec(), &expected, BOUND);
    });
}

#[test]
fn tiles_larger_than_the_picture_change_nothing() {
    let golden = Golden::open("models/vae_4_levels.safetensors");
    let backend = &backends()[1];
    let config = VaeConfig::from_diffusers(&golden.metadata()["config"]).unwrap();
    let weights = golden.weights(Naming::VaeDiffusers { levels: 4 }, backend);
    let encoder = Encoder::load(config.clone(), &weights).unwrap();
    let decoder = Decoder::load(config, &weights).unwrap();
    let tiling = Tiling { tile: 5, overlap: 0.25 };
    let x = picture(&golden, "in.x", backend);
    assert_eq!(tiling.moments(&encoder, &x).to_vec(), encoder.moments(&x).to_vec());
    let z = picture(&golden, "in.z", backend);
    let whole = decoder.decode(&z, &mut || Ok(())).unwrap();
    assert_eq!(tiling.decode(&decoder, &z, &mut || Ok(())).unwrap().to_vec(), whole.to_vec());
    // A quarter of a tile that is not a whole number of latents: tiles still begin where their pixels go.
    let odd = Tiling { tile: 3, overlap: 0.4 };
    assert_eq!(odd.decode(&decoder, &z, &mut || Ok(())).unwrap().shape(), whole.shape());
    assert_eq!(odd.encode(&encoder, &x).shape(), encoder.encode(&x).shape());
}

#[test]
fn tiny_autoencoder() {
    each("taef1", 1, |run, golden, trace| {
        let backend = trace.backend.clone();
        let weights = golden.weights(Naming::Same, &backend);
        // The reference's pictures are in [−1, 1], the network's in [0, 1].
        let encoder = TinyEncoder::load(&weights).unwrap();
        let encoded = encoder.encode(&picture(golden, "in.x", &backend).affine(0.5, 0.5));
        close(&format!("{run}: encoded"), &encoded.to_vec(), &picture(golden, "encoded", &backend).to_vec(), BOUND);
        let decoder = TinyDecoder::load(&weights).unwrap();
        assert_eq!(decoder.latent_channels(), 16);
        let decoded = decoder.decode(&picture(golden, "in.z", &backend)).affine(2.0, -1.0);
        close(&format!("{run}: decoded"), &decoded.to_vec(), &picture(golden, "decoded", &backend).to_vec(), BOUND);
    });
}

/// A file of a folder as tokenizers ask for it.
fn reader(folder: &Path) -> impl Fn(&str) -> Result<Option<Vec<u8>>> {
    move |file| Ok(std::fs::read(folder.join(file)).ok())
}

fn tokenizers(case: &Path) -> (ClipTokenizer, T5Tokenizer) {
    let [clip, t5] = ["tokenizer", "tokenizer_2"].map(|name| case.join(name));
    (ClipTokenizer::from_files(&clip, reader(&clip)).unwrap(), T5Tokenizer::from_files(&t5, reader(&t5)).unwrap())
}

#[test]
fn texts_and_noise_levels_of_whole_pipelines() {
    #[derive(serde::Deserialize)]
    struct Case {
        prompt: String,
        steps: usize,
        max_sequence_length: usize,
    }
    let cases = std::fs::read_dir(folder().join("pipelines")).unwrap().map(|e| e.unwrap().path());
    let mut cases: Vec<_> = cases.filter(|p| p.is_dir()).collect();
    cases.sort();
    assert!(cases.len() >= 8);
    for path in cases {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let golden = Golden::open(&format!("pipelines/{name}/expected.safetensors"));
        let case: Case = serde_json::from_slice(&std::fs::read(path.join("case.json")).unwrap()).unwrap();

        let scheduler = path.join("scheduler/scheduler_config.json");
        let scheduler = SchedulerConfig::from_json(&scheduler, &std::fs::read(&scheduler).unwrap()).unwrap();
        let (latents, _) = golden.values("latents");
        let sigmas = scheduler.sigmas(ScheduleKind::Reference, case.steps, latents[2] / 2 * (latents[3] / 2)).unwrap();
        let expected = golden.values("sigmas").1;
        assert_eq!(sigmas.len(), expected.len(), "{name}");
        let worst = sigmas.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 2e-7, "{name}: a sigma is {worst:e} away");

        let spec = ModelSpec { model: Some((&path).into()), ..ModelSpec::default() };
        let files = spec.find(&SearchPaths::default()).unwrap();
        let (clip_tokenizer, t5_tokenizer) = tokenizers(&path);
        let safety = Safety::off();
        let prompt = safety.screen(&case.prompt).unwrap();
        let clip_config = files.clip_l.clip_config().unwrap();
        let clip_length = clip_tokenizer.model_max_length().unwrap_or(usize::MAX);
        let clip_ids = clip_tokenizer.encode(&prompt, clip_length.min(clip_config.max_position_embeddings)).unwrap();
        assert_eq!(clip_ids, golden.ids("clip_ids"), "{name}: CLIP's tokens");
        let t5_ids = t5_tokenizer.encode(&prompt, case.max_sequence_length).unwrap();
        assert_eq!(t5_ids, golden.ids("t5_ids"), "{name}: T5's tokens");
        for backend in backends() {
            let run = format!("{name} on {}", backend.name());
            let weights = files.clip_l.weights(&backend, Precision::F32);
            let pooled = Clip::load(clip_config.clone(), &weights).unwrap().forward(&backend, &clip_ids).pooled;
            let expected = item(&golden, "pooled_prompt_embeds", 0);
            close(&format!("{run}: pooled_prompt_embeds"), &pooled.to_vec(), &expected, BOUND);
            let t5 = T5::load(files.t5.t5_config().unwrap(), &files.t5.weights(&backend, Precision::F32)).unwrap();
            let txt = t5.forward(&backend, &t5_ids, &mut |_, _| Ok(())).unwrap();
            close(&format!("{run}: prompt_embeds"), &txt.to_vec(), &item(&golden, "prompt_embeds", 0), BOUND);
        }
    }
}

#[test]
fn awkward_texts_give_the_references_tokens() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        clip: Vec<u32>,
        t5: Vec<u32>,
    }
    /// CLIP's in these models; longer texts were cut.
    const CLIP_LENGTH: usize = 24;
    let json = std::fs::read(folder().join("pipelines/token_ids.json")).unwrap();
    let folders: BTreeMap<String, Vec<Case>> = serde_json::from_slice(&json).unwrap();
    assert_eq!(folders.values().map(Vec::len).sum::<usize>(), 3 * 44);
    for (name, texts) in folders {
        let (clip, t5) = tokenizers(&folder().join("pipelines").join(&name));
        for Case { text, clip: clip_ids, t5: t5_ids } in texts {
            let safety = Safety::off();
            let screened = safety.screen(&text).unwrap();
            assert_eq!(clip.encode(&screened, clip_ids.len()).unwrap(), clip_ids, "{name}, CLIP: {text:?}");
            assert_eq!(clip.count(&screened).unwrap().min(CLIP_LENGTH), clip_ids.len(), "{name}, CLIP: {text:?}");
            assert_eq!(t5.encode(&screened, t5_ids.len()).unwrap(), t5_ids, "{name}, T5: {text:?}");
            assert_eq!(t5.count(&screened).unwrap(), t5_ids.len(), "{name}, T5: {text:?}");
        }
    }
}

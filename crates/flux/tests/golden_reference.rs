//! Small random models run by the references' own code (BFL's `flux`, `transformers`), activations at every block.

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use flux::{
    text::{
        clip::{Clip, ClipConfig},
        t5::{T5, T5Config},
    },
    transformer::{Condition, Flux, FluxConfig, Rope, Site},
    vae::{Decoder, Encoder, VaeConfig},
    vision::{Redux, Siglip, SiglipConfig},
    weights::Naming,
};
use support::{Golden, backends, channels_last, close};
use tensor::Tensor;

/// f32 against f32 in another order of summation.
const BOUND: f64 = 1e-5;

#[test]
fn flux_transformer_block_by_block() {
    let golden = Golden::open("tiny_flux.safetensors");
    for backend in backends() {
        let config = FluxConfig::from_bfl(&golden.metadata()["params"]).unwrap();
        let weights = golden.weights(Naming::Same, &backend);
        assert_eq!(config, FluxConfig::from_weights(&weights, "tiny_flux".as_ref()).unwrap(), "sizes from the shapes");
        let flux = Flux::load(config, &weights).unwrap();
        let config = flux.config();
        for item in 0..2 {
            let ids = |name: &str| {
                let ids = golden.item(name, item, &backend).to_vec();
                ids.chunks_exact(3).map(|id| [id[0], id[1], id[2]]).collect::<Vec<_>>()
            };
            let ids = [ids("in.txt_ids"), ids("in.img_ids")].concat();
            let rope = Rope::new(&backend, &ids, config.axes_dim, config.theta);
            let condition = Condition {
                txt: &golden.item("in.txt", item, &backend),
                pooled: &Tensor::from_vec(
                    &backend,
                    [1, config.vec_in_dim],
                    golden.item("in.y", item, &backend).to_vec(),
                ),
                guidance_argument: 1000.0 * golden.values("in.guidance").1[item],
                rope: &rope,
            };
            let sigma = golden.values("in.timesteps").1[item];
            let mut seen = 0;
            let mut observe = |site: Site, x: &Tensor| {
                let expected = match site {
                    Site::Vec => ["time_in", "guidance_in", "vector_in"]
                        .map(|part| golden.item(&format!("act.{part}"), item, &backend).to_vec())
                        .iter()
                        .fold(vec![0.0; x.shape().count()], |sum, part| {
                            sum.iter().zip(part).map(|(a, b)| a + b).collect()
                        }),
                    site => golden.item(&format!("act.{site}"), item, &backend).to_vec(),
                };
                seen += 1;
                close(&format!("{site} of item {item} on {}", backend.name()), &x.to_vec(), &expected, BOUND);
                Ok(())
            };
            let out = flux.forward(&golden.item("in.img", item, &backend), sigma, condition, &mut observe).unwrap();
            assert_eq!(seen, 3 + 2 * 2 + 2, "every block was looked at");
            close("out", &out.to_vec(), &golden.item("out", item, &backend).to_vec(), BOUND);
        }
    }
}

#[test]
fn t5_encoder() {
    let golden = Golden::open("tiny_t5.safetensors");
    for backend in backends() {
        let config = T5Config::from_json(&golden.metadata()["config"]).unwrap();
        let weights = golden.weights(Naming::Same, &backend);
        assert_eq!(config, T5Config::from_weights(&weights, "tiny_t5".as_ref()).unwrap(), "sizes from the shapes");
        let t5 = T5::load(config, &weights).unwrap();
        let out = t5.forward(&backend, &golden.ids("in.ids"), &mut |_, _| Ok(())).unwrap();
        close("out", &out.to_vec(), &golden.item("out", 0, &backend).to_vec(), BOUND);
    }
}

#[test]
fn clip_text_tower() {
    let golden = Golden::open("tiny_clip.safetensors");
    for backend in backends() {
        let config = ClipConfig::from_json(&golden.metadata()["config"]).unwrap();
        let clip = Clip::load(config, &golden.weights(Naming::Same, &backend)).unwrap();
        let states = clip.forward(&backend, &golden.ids("in.ids"));
        let expected = |name: &str| golden.item(name, 0, &backend).to_vec();
        close("last_hidden_state", &states.last_hidden_state.to_vec(), &expected("last_hidden_state"), BOUND);
        close("pooled", &states.pooled.to_vec(), &expected("pooled"), BOUND);
    }
}

#[test]
fn autoencoder_both_ways() {
    let golden = Golden::open("tiny_vae.safetensors");
    for backend in backends() {
        let weights = golden.weights(Naming::Same, &backend);
        let config = VaeConfig::from_weights(&weights, "tiny_vae".as_ref()).unwrap();
        assert_eq!((config.block_out_channels.as_slice(), config.layers_per_block), ([32, 64].as_slice(), 1));
        let picture = |name: &str| {
            let (shape, values) = golden.values(name);
            channels_last(&backend, &shape[1..], values)
        };
        let encoder = Encoder::load(config.clone(), &weights).unwrap();
        close("moments", &encoder.moments(&picture("in.x")).to_vec(), &picture("moments").to_vec(), BOUND);
        close("z", &encoder.encode(&picture("in.x")).to_vec(), &picture("z").to_vec(), BOUND);
        let decoder = Decoder::load(config, &weights).unwrap();
        let decoded = decoder.decode(&picture("in.z"), &mut || Ok(())).unwrap();
        close("decoded", &decoded.to_vec(), &picture("decoded").to_vec(), BOUND);
    }
}

#[test]
fn vision_tower_and_redux() {
    let golden = Golden::open("tiny_siglip_redux.safetensors");
    for backend in backends() {
        let weights = golden.weights(Naming::Same, &backend);
        let siglip = Siglip::load(SiglipConfig::from_json(&golden.metadata()["config"]).unwrap(), &weights).unwrap();
        let (shape, values) = golden.values("in.pixel_values");
        let states = siglip.forward(&channels_last(&backend, &shape[1..], values), &mut || Ok(())).unwrap();
        let expected = |name: &str| golden.item(name, 0, &backend).to_vec();
        close("last_hidden_state", &states.to_vec(), &expected("last_hidden_state"), BOUND);
        let redux = Redux::load(32, 32, &weights).unwrap();
        close("redux", &redux.forward(&states).to_vec(), &expected("redux"), BOUND);
    }
}

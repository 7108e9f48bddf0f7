//! The published checkpoints' names and shapes, as sparse files of their full size: found, checked and planned in a moment.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod gguf;

use std::{collections::BTreeMap, fmt::Write as _, fs::File, io::Write as _, path::Path, sync::Arc};

use flux::{
    text::t5::{T5, T5Config},
    transformer::{Flux, FluxConfig},
    vae::{Decoder, Encoder, VaeConfig},
    weights::{Checkpoint, Component, Naming, Weights, detect},
};
use gguf::Gguf;
use tensor::{DType, Device, Precision};

/// `bfl_shapes.txt`: the tensors of BFL's transformer (one block of each kind) and autoencoder, as the reference has them.
fn published(section: &str) -> BTreeMap<String, Vec<usize>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bfl_shapes.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!("{section} tensors"))).skip(1);
    let listed = lines.take_while(|line| line.ends_with(']'));
    let blocks = |name: &str| match name {
        _ if name.starts_with("double_blocks.") => 19,
        _ if name.starts_with("single_blocks.") => 38,
        _ => 1,
    };
    listed
        .flat_map(|line| (0..blocks(line)).map(move |i| line.replace("_blocks.0.", &format!("_blocks.{i}."))))
        .map(|line| {
            let (name, shape) = line.split_once(" [").unwrap();
            let shape = shape.trim_end_matches(']').split(", ").map(|n| n.parse().unwrap()).collect();
            (name.to_owned(), shape)
        })
        .collect()
}

/// A file with this header whose data is a hole.
fn sparse(path: &Path, tensors: &BTreeMap<String, Vec<usize>>, dtype: &str, size: u64) {
    let mut header = String::from("{");
    let mut end = 0;
    for (name, shape) in tensors {
        let bytes = size * shape.iter().product::<usize>() as u64;
        let comma = if end == 0 { "" } else { "," };
        write!(
            header,
            r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{end},{}]}}"#,
            end + bytes
        )
        .unwrap();
        end += bytes;
    }
    header.push('}');
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

fn open(path: &Path, component: Component) -> Weights {
    let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
    let detected = detect(&checkpoint);
    assert_eq!(detected.iter().map(|d| d.component).collect::<Vec<_>>(), [component]);
    Weights::new(checkpoint, "", detected[0].naming, Device::DryRun.open(), Precision::BF16)
}

#[test]
fn the_transformer_of_12_billion() {
    let tensors = published("flux");
    assert_eq!(tensors.len(), 780);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux1-krea-dev.safetensors");
    sparse(&path, &tensors, "BF16", 2);
    let weights = open(&path, Component::Transformer);
    let config = FluxConfig::from_weights(&weights, &path).unwrap();
    assert_eq!(config, FluxConfig::dev());
    Flux::load(config, &weights).unwrap();
    assert_eq!(weights.parameters_taken(), 11_901_408_320, "every tensor was taken, and nothing else");
    assert_eq!(weights.bytes_taken(), 23_802_816_640);
}

#[test]
fn the_autoencoder() {
    let tensors = published("ae");
    assert_eq!(tensors.len(), 244);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ae.safetensors");
    sparse(&path, &tensors, "F32", 4);
    let weights = open(&path, Component::Vae);
    let config = VaeConfig::from_weights(&weights, &path).unwrap();
    assert_eq!(config, VaeConfig::flux());
    Encoder::load(config.clone(), &weights).unwrap();
    Decoder::load(config, &weights).unwrap();
    assert_eq!(weights.parameters_taken(), 83_819_683);
}

/// A GGUF file whose data is a hole: matrices in one format where its blocks fit, the rest as f32.
fn sparse_gguf(path: &Path, tensors: &BTreeMap<String, Vec<usize>>, dtype: DType) {
    let mut gguf = Gguf::new();
    let mut size = 0;
    for (name, shape) in tensors {
        let fits = shape.len() == 2 && shape[1].is_multiple_of(dtype.block());
        let dtype = if fits { dtype } else { DType::F32 };
        let bytes = dtype.bytes(shape.iter().product());
        gguf.hole(name, shape, gguf::number(&dtype.name().to_uppercase()), bytes);
        size += bytes.next_multiple_of(32) as u64;
    }
    let (header, data) = gguf.header();
    assert_eq!(data as u64, size);
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + size).unwrap();
}

#[test]
fn the_transformer_in_blocks() {
    let tensors = published("flux");
    let folder = tempfile::tempdir().unwrap();
    for (dtype, gigabytes) in [(DType::Q4K, 6.7), (DType::Q8_0, 12.6)] {
        let path = folder.path().join("flux1-krea-dev.gguf");
        sparse_gguf(&path, &tensors, dtype);
        let weights = open(&path, Component::Transformer);
        let config = FluxConfig::from_weights(&weights, &path).unwrap();
        assert_eq!(config, FluxConfig::dev());
        Flux::load(config, &weights).unwrap();
        assert_eq!(weights.parameters_taken(), 11_901_408_320);
        let taken = weights.bytes_taken() as f64 * 1e-9;
        assert!((taken - gigabytes).abs() < 0.1, "{dtype:?}: {taken} GB");
    }
}

#[test]
fn the_encoder_of_t5_xxl_in_blocks() {
    let mut tensors = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let [piece] = &Naming::T5Llama.pieces(name)[..] else { panic!("{name} is one tensor") };
        tensors.insert(piece.name.clone(), shape.to_vec());
    };
    add("shared.weight", &[32128, 4096]);
    add("encoder.final_layer_norm.weight", &[4096]);
    for block in 0..24 {
        for proj in ["q", "k", "v", "o"] {
            add(&format!("encoder.block.{block}.layer.0.SelfAttention.{proj}.weight"), &[4096, 4096]);
        }
        add(&format!("encoder.block.{block}.layer.0.layer_norm.weight"), &[4096]);
        for (proj, shape) in [("wi_0", [10240, 4096]), ("wi_1", [10240, 4096]), ("wo", [4096, 10240])] {
            add(&format!("encoder.block.{block}.layer.1.DenseReluDense.{proj}.weight"), &shape);
        }
        add(&format!("encoder.block.{block}.layer.1.layer_norm.weight"), &[4096]);
    }
    add("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 64]);
    assert_eq!(tensors.len(), 219);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t5-v1_1-xxl-encoder-Q5_K_M.gguf");
    sparse_gguf(&path, &tensors, DType::Q5K);
    let weights = open(&path, Component::T5);
    let config = T5Config::from_weights(&weights, &path).unwrap();
    assert_eq!(config, T5Config::xxl());
    T5::load(config, &weights).unwrap();
    assert_eq!(weights.parameters_taken(), 4_762_310_656);
}

//! The published checkpoints' names and shapes, as sparse files of their full size: found, checked and planned in a moment.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fmt::Write as _, fs::File, io::Write as _, path::Path, sync::Arc};

use flux::{
    transformer::{Flux, FluxConfig},
    vae::{Decoder, Encoder, VaeConfig},
    weights::{Checkpoint, Component, Weights, detect},
};
use tensor::{Device, Precision};

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

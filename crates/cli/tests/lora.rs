//! LoRAs from the command line: the model in the box, a file beside it, what is told and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output},
};

fn darkroom(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    command.args(args).current_dir(folder).env("HOME", folder).env_remove("DARKROOM_CACHE");
    command.output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file of f32 tensors whose elements are these numbers in turn.
fn write(path: &Path, tensors: &[(&str, [usize; 2])]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let count = shape[0] * shape[1];
        let begin = data.len();
        data.extend((0..count).flat_map(|i| (0.2 * ((i * 37 + begin) as f32).sin()).to_le_bytes()));
        header.insert(
            (*name).into(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header.as_bytes(), &data].concat()).unwrap();
}

#[test]
fn a_lora_changes_the_picture_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(
        &path.join("ink.safetensors"),
        &[
            ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", [4, 192]),
            ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", [192, 4]),
            ("lora_unet_single_blocks_1_linear2.lora_down.weight", [3, 960]),
            ("lora_unet_single_blocks_1_linear2.lora_up.weight", [192, 3]),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", [2, 128]),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", [256, 2]),
            ("lora_unet_single_blocks_9_linear2.lora_up.weight", [192, 3]),
        ],
    );
    let made = |name: &str, args: &[&str]| {
        let quick = ["generate", "a red apple", "--steps", "2", "--seed", "7", "-o", name];
        let output = darkroom(path, &[&quick[..], args].concat());
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        (std::fs::read(path.join(name)).unwrap(), stderr(&output))
    };
    let pixels = |bytes: &[u8]| {
        let start = bytes.windows(4).position(|window| window == b"IDAT").unwrap();
        bytes[start..].to_vec()
    };
    let (plain, _) = made("plain.png", &[]);
    let (changed, told) = made("ink.png", &["--lora", "ink.safetensors:1.5"]);
    assert_ne!(pixels(&plain), pixels(&changed));
    for words in [
        "lora ink (weight 1.5): 4 tensors for the transformer, 2 for the CLIP-L text encoder; 1 left out",
        "left out: lora_unet_single_blocks_9_linear2.lora_up.weight",
    ] {
        assert!(told.contains(words), "{told}");
    }
    let (off, _) = made("off.png", &["--lora", "ink.safetensors:0"]);
    assert_eq!(pixels(&plain), pixels(&off), "weight 0 is off");
    let found = darkroom(path, &["inspect", "ink.png"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("ink"), "the picture tells of it: {found}");

    let found = darkroom(path, &["inspect", "ink.safetensors"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("a LoRA for 4 layers"), "{found}");

    let refused = |args: &[&str], code: i32, words: &[&str]| {
        let output = darkroom(path, &[&["generate", "x", "--steps", "1"], args].concat());
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(words.iter().all(|word| told.contains(word)) && !told.contains("panicked"), "{args:?}: {told}");
    };
    refused(&["--lora", "ink.safetensors", "--strict"], 2, &["strict", "single_blocks_9"]);
    refused(&["--lora", "none.safetensors"], 1, &["none.safetensors"]);
    refused(&["--lora", "ink.safetensors:1e9"], 2, &["lora: ", "1000"]);
    std::fs::write(path.join("short.safetensors"), [9; 5]).unwrap();
    refused(&["--lora", "short.safetensors"], 1, &["short.safetensors"]);
    write(
        &path.join("xl.safetensors"),
        &[
            ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight", [4, 640]),
            ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight", [640, 4]),
        ],
    );
    refused(&["--lora", "xl.safetensors"], 1, &["xl.safetensors", "Stable Diffusion", "FLUX.1"]);
}

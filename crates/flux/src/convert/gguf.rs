//! The header of a GGUF file, to be written.
//!
//! FLUX as city96's converter writes it (architecture `flux`, BFL's names), T5 as llama.cpp's (`t5encoder`, the tokenizer
//! inside). Source: `ggml/docs/gguf.md`, `gguf/constants.py`.

use tensor::DType;

use super::Planned;
use crate::text::{t5::T5Config, tokenizer};

/// Where tensors begin: multiples of this many bytes, the format's default.
pub(super) const ALIGNMENT: usize = 32;

/// Everything in front of the first tensor's data.
pub(super) fn header(tensors: &[Planned], most: DType, t5: Option<&T5Config>) -> Vec<u8> {
    let mut metadata = Metadata::default();
    match t5 {
        None => metadata.text("general.architecture", "flux"),
        Some(config) => {
            let rows = tensors.iter().find(|t| t.name.starts_with("token_embd")).map_or(0, |t| t.shape[0]);
            t5_metadata(&mut metadata, config, rows);
        }
    }
    metadata.u32("general.quantization_version", 2);
    metadata.u32("general.file_type", file_type(most));
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(metadata.count.to_le_bytes());
    out.extend(metadata.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for extent in tensor.shape.iter().rev() {
            out.extend((*extent as u64).to_le_bytes());
        }
        out.extend(ggml_type(tensor.to).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes_after().next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// ggml's number of a format.
fn ggml_type(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q4K => 12,
        DType::Q5K => 13,
        DType::Q6K => 14,
        DType::BF16 => 30,
        _ => 0, // F32; nothing else is planned
    }
}

/// llama.cpp's number for a file that mostly has one format.
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q4K => 14,
        DType::Q5K => 16,
        DType::Q6K => 18,
        DType::BF16 => 32,
        _ => 0,
    }
}

fn t5_metadata(metadata: &mut Metadata, config: &T5Config, rows: usize) {
    metadata.text("general.architecture", "t5encoder");
    for (key, value) in [
        ("context_length", 512),
        ("embedding_length", config.d_model),
        ("feed_forward_length", config.d_ff),
        ("block_count", config.num_layers),
        ("attention.head_count", config.num_heads),
        ("attention.key_length", config.d_kv),
        ("attention.value_length", config.d_kv),
        ("attention.relative_buckets_count", config.relative_attention_num_buckets),
    ] {
        metadata.u32(&format!("t5encoder.{key}"), value as u32);
    }
    metadata.f32("t5encoder.attention.layer_norm_epsilon", config.layer_norm_epsilon);
    metadata.f32("t5encoder.attention.layer_norm_rms_epsilon", config.layer_norm_epsilon);
    let (mut pieces, mut scores, charsmap) = tokenizer::t5_pieces();
    metadata.text("tokenizer.ggml.model", "t5");
    metadata.text("tokenizer.ggml.pre", "default");
    let mut kinds: Vec<i32> = pieces.iter().map(|piece| kind(piece)).collect();
    // The table has more rows than there are pieces.
    for id in pieces.len()..rows {
        pieces.push(format!("[PAD{id}]"));
        scores.push(-1000.0);
        kinds.push(UNUSED);
    }
    metadata.array("tokenizer.ggml.tokens", TEXT, pieces.len());
    for piece in &pieces {
        put_text(&mut metadata.bytes, piece);
    }
    metadata.array("tokenizer.ggml.scores", F32, scores.len());
    metadata.bytes.extend(scores.iter().flat_map(|score| score.to_le_bytes()));
    metadata.array("tokenizer.ggml.token_type", I32, kinds.len());
    metadata.bytes.extend(kinds.iter().flat_map(|kind| kind.to_le_bytes()));
    metadata.array("tokenizer.ggml.precompiled_charsmap", U8, charsmap.len());
    metadata.bytes.extend(charsmap);
    for (key, value) in [("add_space_prefix", true), ("remove_extra_whitespaces", true)] {
        metadata.bool(&format!("tokenizer.ggml.{key}"), value);
    }
    for (key, value) in [("padding_token_id", 0), ("eos_token_id", 1), ("unknown_token_id", 2)] {
        metadata.u32(&format!("tokenizer.ggml.{key}"), value);
    }
    metadata.bool("tokenizer.ggml.add_bos_token", false);
    metadata.bool("tokenizer.ggml.add_eos_token", true);
}

/// `SentencePiece`'s type of a piece that no text becomes.
const UNUSED: i32 = 5;

/// `SentencePiece`'s type of a piece.
fn kind(piece: &str) -> i32 {
    match piece {
        "<unk>" => 2,
        "<pad>" | "</s>" => 3,
        _ if piece.starts_with("<extra_id_") => 4,
        _ => 1,
    }
}

/// Types of values, by their number.
const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, TEXT);
        put_text(&mut self.bytes, value);
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, U32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, F32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, BOOL);
        self.bytes.push(value.into());
    }

    /// The values follow.
    fn array(&mut self, key: &str, kind: u32, count: usize) {
        self.key(key, ARRAY);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((count as u64).to_le_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

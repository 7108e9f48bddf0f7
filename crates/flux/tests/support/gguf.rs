//! Writes GGUF files for tests: by the format's description, with nothing of the reader's.

use tensor::DType;

/// A file in the making.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    pub alignment: usize,
    /// Key, type and bytes of each value.
    values: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    /// ggml's number of the type.
    number: u32,
    size: usize,
    /// None, where they are to follow.
    bytes: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn list(kind: u32, count: usize, bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut out = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
    out.extend(bytes);
    out
}

/// ggml's number of a type.
pub fn number(dtype: &str) -> u32 {
    let numbers = [
        ("F32", 0),
        ("F16", 1),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("IQ2_XXS", 16),
        ("IQ4_NL", 20),
        ("IQ4_XS", 23),
        ("I32", 26),
        ("BF16", 30),
    ];
    numbers.iter().find(|(name, _)| *name == dtype).expect("a type of GGUF").1
}

impl Gguf {
    pub fn new() -> Self {
        Self { version: 3, alignment: 32, values: Vec::new(), tensors: Vec::new() }
    }

    pub fn value(&mut self, key: &str, kind: u32, bytes: Vec<u8>) {
        self.values.push((key.into(), kind, bytes));
    }

    pub fn integer(&mut self, key: &str, value: u32) {
        self.value(key, 4, value.to_le_bytes().into());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.value(key, 7, vec![value.into()]);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.value(key, 8, text(value));
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        self.value(key, 9, list(8, values.len(), values.iter().flat_map(|v| text(v))));
    }

    pub fn floats(&mut self, key: &str, values: &[f32]) {
        self.value(key, 9, list(6, values.len(), values.iter().flat_map(|v| v.to_le_bytes())));
    }

    pub fn integers(&mut self, key: &str, values: &[i32]) {
        self.value(key, 9, list(5, values.len(), values.iter().flat_map(|v| v.to_le_bytes())));
    }

    pub fn bytes(&mut self, key: &str, values: &[u8]) {
        self.value(key, 9, list(0, values.len(), values.iter().copied()));
    }

    pub fn tensor(&mut self, name: &str, shape: &[usize], number: u32, bytes: Vec<u8>) {
        self.tensors.push(Tensor { name: name.into(), shape: shape.into(), number, size: bytes.len(), bytes });
    }

    /// A tensor whose bytes are to follow.
    pub fn hole(&mut self, name: &str, shape: &[usize], number: u32, bytes: usize) {
        self.tensors.push(Tensor { name: name.into(), shape: shape.into(), number, size: bytes, bytes: Vec::new() });
    }

    /// The header, and how many bytes of data follow.
    pub fn header(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.values {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut offset = 0usize;
        for Tensor { name, shape, number, size, .. } in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            for extent in shape.iter().rev() {
                out.extend((*extent as u64).to_le_bytes());
            }
            out.extend(number.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + size).next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        (out, offset)
    }

    pub fn file(&self) -> Vec<u8> {
        let (mut out, _) = self.header();
        for Tensor { bytes, .. } in &self.tensors {
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out
    }

    /// T5 v1.1's tokenizer as llama.cpp writes it; from `tokens`, `scores` and a character map.
    pub fn tokenizer(&mut self, tokens: &[String], scores: &[f32], charsmap: &[u8]) {
        let kind = |token: &String| match token.as_str() {
            "<unk>" => 2,
            "<pad>" | "</s>" => 3,
            _ if token.starts_with("<extra_id_") => 4,
            _ if token.starts_with("[PAD") => 5,
            _ => 1,
        };
        self.text("tokenizer.ggml.model", "t5");
        self.text("tokenizer.ggml.pre", "default");
        self.texts("tokenizer.ggml.tokens", tokens);
        self.floats("tokenizer.ggml.scores", scores);
        self.integers("tokenizer.ggml.token_type", &tokens.iter().map(kind).collect::<Vec<_>>());
        self.bool("tokenizer.ggml.add_space_prefix", true);
        self.bool("tokenizer.ggml.remove_extra_whitespaces", true);
        self.bytes("tokenizer.ggml.precompiled_charsmap", charsmap);
        self.integer("tokenizer.ggml.eos_token_id", 1);
        self.integer("tokenizer.ggml.unknown_token_id", 2);
        self.integer("tokenizer.ggml.padding_token_id", 0);
    }

    /// That tokenizer from the assets of the program.
    pub fn t5_tokenizer(&mut self) {
        let asset = |name: &str| {
            let path = format!("{}/assets/tokenizers/{name}.zlib", env!("CARGO_MANIFEST_DIR"));
            miniz_oxide::inflate::decompress_to_vec_zlib(&std::fs::read(path).expect("an asset")).expect("it unpacks")
        };
        let pieces = String::from_utf8(asset("t5-pieces.txt")).expect("text");
        let mut tokens: Vec<String> = pieces.split('\n').map(String::from).collect();
        let scores = asset("t5-scores.f32");
        let mut scores: Vec<f32> = scores.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        // As converters do: what stands for itself has an absurd score, and the table is padded.
        for (token, score) in tokens.iter().zip(&mut scores) {
            if token.starts_with("<extra_id_") {
                *score = -1000.0;
            }
        }
        for i in tokens.len()..32128 {
            tokens.push(format!("[PAD{i}]"));
            scores.push(-1000.0);
        }
        self.tokenizer(&tokens, &scores, &asset("t5-charsmap.bin"));
    }
}

/// Random blocks whose numbers have this deviation, and the numbers.
pub fn blocks(dtype: DType, count: usize, deviation: f32, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let scales: &[usize] = match dtype {
        DType::Q5_1 | DType::Q4_1 | DType::Q5K | DType::Q4K => &[0, 2],
        DType::Q6K => &[208],
        DType::Q3K => &[108],
        DType::Q2K => &[80, 82],
        _ => &[0],
    };
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    let mut bytes: Vec<u8> = (0..dtype.bytes(count)).map(|_| next()).collect();
    let mut values = vec![0.0; count];
    let mut with_scale = |scale: f32, values: &mut [f32]| {
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for (i, &at) in scales.iter().enumerate() {
                // Where a minimum is added, not subtracted, it has to be negative.
                let minimum = i == 1 && matches!(dtype, DType::Q5_1 | DType::Q4_1);
                let scale = half::f16::from_f32(if minimum { -8.0 * scale } else { scale });
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        dtype.decode(&bytes, values);
    };
    with_scale(1.0, &mut values);
    let square: f32 = values.iter().map(|v| v * v).sum();
    with_scale(deviation / (square / count as f32).sqrt(), &mut values);
    (bytes, values)
}

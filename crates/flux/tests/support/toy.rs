//! A FLUX-like model of random weights for tests of files: head width, axes, groups and vocabularies are FLUX.1's, so that
//! shapes tell all sizes; everything else is small. It can be written in any layout and number format.

#[path = "random.rs"]
pub mod random;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use flux::weights::{Half, Naming};

/// Width of the transformer: one head.
pub const WIDTH: usize = 128;
const CLIP_WIDTH: usize = 64;
const T5_WIDTH: usize = 32;
const VAE_CHANNELS: [usize; 4] = [32, 32, 64, 64];

/// Numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub type Arrays = BTreeMap<String, Array>;
pub type File = BTreeMap<String, Stored>;

/// The four parts in the names that the engine has for them.
#[derive(Clone, Debug)]
pub struct Toy {
    pub flux: Arrays,
    pub vae: Arrays,
    pub clip: Arrays,
    pub t5: Arrays,
}

impl Toy {
    pub fn new() -> Self {
        Self { flux: flux(), vae: vae(), clip: clip(), t5: t5() }
    }

    /// The same with each number passed through `f`.
    pub fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        let map = |arrays: &Arrays| {
            let map = |a: &Array| Array { shape: a.shape.clone(), values: a.values.iter().map(|x| f(*x)).collect() };
            arrays.iter().map(|(name, array)| (name.clone(), map(array))).collect()
        };
        Self { flux: map(&self.flux), vae: map(&self.vae), clip: map(&self.clip), t5: map(&self.t5) }
    }

    /// Transformer, autoencoder, CLIP and T5 as single files with these paths.
    pub fn single_files(&self, paths: [&Path; 4], store: impl Fn(&Array) -> Stored) {
        let [flux, vae, clip, t5] = paths;
        write(flux, &stored(&self.flux, &store));
        write(vae, &stored(&square_kernels(&self.vae), &store));
        write(clip, &stored(&self.clip, &store));
        write(t5, &stored(&self.t5, &store));
    }

    /// A diffusers folder; `shards` cuts the transformer and T5 into as many files.
    pub fn diffusers(&self, folder: &Path, shards: usize) {
        let json = |name: &str, value: serde_json::Value| text(&folder.join(name), &value.to_string());
        json("model_index.json", serde_json::json!({"_class_name": "FluxPipeline"}));
        json("scheduler/scheduler_config.json", scheduler_config());
        json("transformer/config.json", transformer_config());
        json("vae/config.json", vae_config());
        json("text_encoder/config.json", clip_config());
        json("text_encoder_2/config.json", t5_config());
        let part = |name: &str, arrays: &Arrays, shards| {
            write_shards(&folder.join(name), &stored(arrays, f32s), shards);
        };
        part("transformer/diffusion_pytorch_model", &renamed(&self.flux, Naming::FluxDiffusers), shards);
        part("vae/diffusion_pytorch_model", &renamed(&self.vae, Naming::VaeDiffusers { levels: 4 }), 1);
        // Newer transformers write CLIP without its prefix.
        let clip = self.clip.iter().map(|(name, a)| (name.replacen("text_model.", "", 1), a.clone())).collect();
        part("text_encoder/model", &clip, 1);
        part("text_encoder_2/model", &self.t5, shards);
    }

    /// One file with everything under `ComfyUI`'s prefixes.
    pub fn all_in_one(&self, path: &Path) {
        let mut file = File::new();
        let mut add = |prefix: &str, arrays: &Arrays| {
            file.extend(stored(arrays, f32s).into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
        };
        add("model.diffusion_model.", &self.flux);
        add("vae.", &square_kernels(&self.vae));
        add("text_encoders.clip_l.transformer.", &self.clip);
        // The table's other name.
        let mut t5 = self.t5.clone();
        let table = t5.remove("shared.weight").unwrap();
        t5.insert("encoder.embed_tokens.weight".into(), table);
        add("text_encoders.t5xxl.transformer.", &t5);
        write(path, &file);
    }
}

pub fn scheduler_config() -> serde_json::Value {
    serde_json::json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": true, "base_shift": 0.5,
        "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096
    })
}

pub fn transformer_config() -> serde_json::Value {
    serde_json::json!({
        "_class_name": "FluxTransformer2DModel", "in_channels": 64, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": WIDTH, "num_attention_heads": 1, "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": CLIP_WIDTH, "guidance_embeds": true, "axes_dims_rope": [16, 56, 56]
    })
}

pub fn vae_config() -> serde_json::Value {
    serde_json::json!({
        "_class_name": "AutoencoderKL", "latent_channels": 16, "block_out_channels": VAE_CHANNELS, "layers_per_block": 1,
        "norm_num_groups": 32, "use_quant_conv": false, "use_post_quant_conv": false, "scaling_factor": 0.3611,
        "shift_factor": 0.1159, "sample_size": 1024
    })
}

pub fn clip_config() -> serde_json::Value {
    serde_json::json!({
        "hidden_size": CLIP_WIDTH, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 1,
        "eos_token_id": 49407
    })
}

pub fn t5_config() -> serde_json::Value {
    serde_json::json!({
        "d_model": T5_WIDTH, "d_kv": 64, "d_ff": 48, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"
    })
}

/// Random numbers of a size that keeps activations near 1, the same for each name.
struct Filled(Arrays);

impl Filled {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        let name = name.into();
        let mut random = random::Random::named(&name);
        let mut uniform = || random.uniform();
        let count: usize = shape.iter().product();
        let values = match shape {
            [_] if name.ends_with("bias") => (0..count).map(|_| 0.2 * uniform()).collect(),
            [_] => (0..count).map(|_| 1.0 + 0.3 * uniform()).collect(),
            [_, rest @ ..] => {
                let size = (3.0 / rest.iter().product::<usize>() as f32).sqrt();
                (0..count).map(|_| size * uniform()).collect()
            }
            [] => vec![uniform()],
        };
        self.0.insert(name, Array { shape: shape.to_vec(), values });
    }

    fn linear(&mut self, name: &str, out: usize, features: usize) {
        self.add(format!("{name}.weight"), &[out, features]);
        self.add(format!("{name}.bias"), &[out]);
    }

    fn conv(&mut self, name: &str, out: usize, channels: usize, kernel: usize) {
        self.add(format!("{name}.weight"), &[out, channels, kernel, kernel]);
        self.add(format!("{name}.bias"), &[out]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }
}

fn flux() -> Arrays {
    let (d, mlp) = (WIDTH, 4 * WIDTH);
    let mut r = Filled(Arrays::new());
    r.linear("img_in", d, 64);
    r.linear("txt_in", d, T5_WIDTH);
    for (name, from) in [("time_in", 256), ("guidance_in", 256), ("vector_in", CLIP_WIDTH)] {
        r.linear(&format!("{name}.in_layer"), d, from);
        r.linear(&format!("{name}.out_layer"), d, d);
    }
    for stream in ["double_blocks.0.img", "double_blocks.0.txt"] {
        r.linear(&format!("{stream}_mod.lin"), 6 * d, d);
        r.linear(&format!("{stream}_attn.qkv"), 3 * d, d);
        r.linear(&format!("{stream}_attn.proj"), d, d);
        r.linear(&format!("{stream}_mlp.0"), mlp, d);
        r.linear(&format!("{stream}_mlp.2"), d, mlp);
        r.add(format!("{stream}_attn.norm.query_norm.scale"), &[d]);
        r.add(format!("{stream}_attn.norm.key_norm.scale"), &[d]);
    }
    r.linear("single_blocks.0.linear1", 3 * d + mlp, d);
    r.linear("single_blocks.0.linear2", d, d + mlp);
    r.linear("single_blocks.0.modulation.lin", 3 * d, d);
    r.add("single_blocks.0.norm.query_norm.scale", &[d]);
    r.add("single_blocks.0.norm.key_norm.scale", &[d]);
    r.linear("final_layer.linear", 64, d);
    r.linear("final_layer.adaLN_modulation.1", 2 * d, d);
    r.0
}

/// Only the decoder: nothing else is needed for pictures from text.
fn vae() -> Arrays {
    let mut r = Filled(Arrays::new());
    let widest = VAE_CHANNELS[3];
    let resnet = |r: &mut Filled, name: &str, from: usize, to: usize| {
        r.norm(&format!("{name}.norm1"), from);
        r.conv(&format!("{name}.conv1"), to, from, 3);
        r.norm(&format!("{name}.norm2"), to);
        r.conv(&format!("{name}.conv2"), to, to, 3);
        if from != to {
            r.conv(&format!("{name}.nin_shortcut"), to, from, 1);
        }
    };
    r.conv("decoder.conv_in", widest, 16, 3);
    resnet(&mut r, "decoder.mid.block_1", widest, widest);
    resnet(&mut r, "decoder.mid.block_2", widest, widest);
    r.norm("decoder.mid.attn_1.norm", widest);
    for proj in ["q", "k", "v", "proj_out"] {
        r.linear(&format!("decoder.mid.attn_1.{proj}"), widest, widest);
    }
    for (level, &to) in VAE_CHANNELS.iter().enumerate() {
        let from = VAE_CHANNELS.get(level + 1).copied().unwrap_or(widest);
        resnet(&mut r, &format!("decoder.up.{level}.block.0"), from, to);
        resnet(&mut r, &format!("decoder.up.{level}.block.1"), to, to);
        if level > 0 {
            r.conv(&format!("decoder.up.{level}.upsample.conv"), to, to, 3);
        }
    }
    r.norm("decoder.norm_out", VAE_CHANNELS[0]);
    r.conv("decoder.conv_out", 3, VAE_CHANNELS[0], 3);
    r.0
}

fn clip() -> Arrays {
    let d = CLIP_WIDTH;
    let mut r = Filled(Arrays::new());
    r.add("text_model.embeddings.token_embedding.weight", &[49408, d]);
    r.add("text_model.embeddings.position_embedding.weight", &[77, d]);
    let layer = "text_model.encoder.layers.0";
    for proj in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        r.linear(&format!("{layer}.self_attn.{proj}"), d, d);
    }
    r.norm(&format!("{layer}.layer_norm1"), d);
    r.norm(&format!("{layer}.layer_norm2"), d);
    r.linear(&format!("{layer}.mlp.fc1"), 96, d);
    r.linear(&format!("{layer}.mlp.fc2"), d, 96);
    r.norm("text_model.final_layer_norm", d);
    r.0
}

fn t5() -> Arrays {
    let d = T5_WIDTH;
    let mut r = Filled(Arrays::new());
    r.add("shared.weight", &[32128, d]);
    let block = "encoder.block.0.layer";
    for proj in ["q", "k", "v"] {
        r.add(format!("{block}.0.SelfAttention.{proj}.weight"), &[128, d]);
    }
    r.add(format!("{block}.0.SelfAttention.o.weight"), &[d, 128]);
    r.add(format!("{block}.0.SelfAttention.relative_attention_bias.weight"), &[32, 2]);
    r.add(format!("{block}.0.layer_norm.weight"), &[d]);
    r.add(format!("{block}.1.DenseReluDense.wi_0.weight"), &[48, d]);
    r.add(format!("{block}.1.DenseReluDense.wi_1.weight"), &[48, d]);
    r.add(format!("{block}.1.DenseReluDense.wo.weight"), &[d, 48]);
    r.add(format!("{block}.1.layer_norm.weight"), &[d]);
    r.add("encoder.final_layer_norm.weight", &[d]);
    r.0
}

/// In another naming. The names are the engine's own map: that it is right is shown by files which diffusers wrote
/// (`golden_models.rs`, `golden_pipelines.rs`).
pub fn renamed(arrays: &Arrays, naming: Naming) -> Arrays {
    let mut out = Arrays::new();
    for (name, array) in arrays {
        let pieces = naming.pieces(name);
        let rows = array.shape[0];
        let counts = match pieces.len() {
            4 => vec![rows / 7, rows / 7, rows / 7, rows / 7 * 4], // q, k, v and an MLP four times as wide
            n => vec![rows / n; n],
        };
        let row = array.values.len() / rows;
        let mut from = 0;
        for (piece, count) in pieces.iter().zip(counts) {
            let values = &array.values[from * row..(from + count) * row];
            from += count;
            let mut shape = array.shape.clone();
            let part = if let Some(half) = piece.half {
                let whole =
                    out.entry(piece.name.clone()).or_insert_with(|| Array { shape, values: vec![0.0; rows * row] });
                let start = if half == Half::First { 0 } else { rows / 2 * row };
                &mut whole.values[start..start + values.len()]
            } else {
                shape[0] = count;
                let whole = Array { shape, values: vec![0.0; values.len()] };
                &mut out.entry(piece.name.clone()).or_insert(whole).values[..]
            };
            part.copy_from_slice(values);
        }
    }
    out
}

/// In BFL's files the attention's matrices are convolutions of one pixel.
fn square_kernels(vae: &Arrays) -> Arrays {
    let mut vae = vae.clone();
    for (name, array) in &mut vae {
        if name.contains("attn_1") && array.shape.len() == 2 {
            array.shape.extend([1, 1]);
        }
    }
    vae
}

/// Each array in some number format.
pub fn stored(arrays: &Arrays, store: impl Fn(&Array) -> Stored) -> File {
    arrays.iter().map(|(name, array)| (name.clone(), store(array))).collect()
}

pub fn f32s(array: &Array) -> Stored {
    let bytes = array.values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Stored { dtype: "F32", shape: array.shape.clone(), bytes }
}

pub fn f16s(array: &Array) -> Stored {
    let bytes = array.values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    Stored { dtype: "F16", shape: array.shape.clone(), bytes }
}

pub fn bf16s(array: &Array) -> Stored {
    let bytes = array.values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    Stored { dtype: "BF16", shape: array.shape.clone(), bytes }
}

/// The bytes of a safetensors file.
pub fn safetensors(file: &File, metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header
            .insert("__metadata__".into(), metadata.iter().copied().collect::<BTreeMap<_, _>>().into_iter().collect());
    }
    let mut end = 0;
    for (name, Stored { dtype, shape, bytes }) in file {
        let begin = end;
        end += bytes.len();
        header.insert(name.clone(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    for tensor in file.values() {
        out.extend_from_slice(&tensor.bytes);
    }
    out
}

/// Writes a file and the folders it is in.
pub fn bytes(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

pub fn text(path: &Path, content: &str) {
    bytes(path, content.as_bytes());
}

pub fn write(path: &Path, file: &File) {
    bytes(path, &safetensors(file, &[]));
}

/// `stem.safetensors`, or shards with their index.
pub fn write_shards(stem: &Path, file: &File, shards: usize) {
    let name = stem.file_name().unwrap().to_string_lossy();
    if shards == 1 {
        return write(&stem.with_file_name(format!("{name}.safetensors")), file);
    }
    let mut parts = vec![File::new(); shards];
    let mut weight_map = BTreeMap::new();
    for (i, (tensor, stored)) in file.iter().enumerate() {
        let shard = i % shards;
        weight_map.insert(tensor, format!("{name}-{:05}-of-{shards:05}.safetensors", shard + 1));
        parts[shard].insert(tensor.clone(), stored.clone());
    }
    for (shard, part) in parts.iter().enumerate() {
        write(&stem.with_file_name(format!("{name}-{:05}-of-{shards:05}.safetensors", shard + 1)), part);
    }
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    text(&stem.with_file_name(format!("{name}.safetensors.index.json")), &index.to_string());
}

/// The same file at another place, without writing it again where the disk can link.
pub fn place(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    }
}

/// A folder of one test, gone when the test is.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("darkroom-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, file: impl AsRef<Path>) -> PathBuf {
        self.0.join(file)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

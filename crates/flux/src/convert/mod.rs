//! A component of a checkpoint in another file format and other number formats.
//!
//! [`Conversion::plan`] reads headers only and tells what the new file will hold; [`Conversion::write`] streams it, some rows at a
//! time, so that memory stays at a few megabytes whatever the model's size. The new file has the engine's names (BFL's for
//! FLUX's transformer), or llama.cpp's for T5 in GGUF.

mod gguf;
mod rules;

use std::{collections::BTreeMap, io::Write, path::PathBuf, sync::Arc};

use tensor::{DType, Precision, Weight, cpu::Encoder};

pub use self::rules::{Keep, parse_type, type_name};
use crate::{
    error::{Error, Result},
    text::t5::T5Config,
    weights::{Checkpoint, Component, Detected, Naming, Weights},
};

/// Elements that are encoded at a time.
const AT_A_TIME: usize = 1 << 22;

/// A format of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Plain numbers, or darkroom's int8 with a scale for each row.
    Safetensors,
    /// Plain numbers, or ggml's blocks.
    Gguf,
}

impl Container {
    /// The name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "GGUF",
        }
    }

    fn alignment(self) -> usize {
        match self {
            Self::Safetensors => 1,
            Self::Gguf => gguf::ALIGNMENT,
        }
    }
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The new file's format.
    pub container: Container,
    /// What most of its numbers are stored as.
    pub to: DType,
    /// Exceptions, the first that fits counts.
    pub keep: Vec<Keep>,
}

/// A tensor of the new file.
#[derive(Debug)]
pub struct Planned {
    /// Its name there.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// What it will be stored as.
    pub to: DType,
    weight: Weight,
}

impl Planned {
    /// What it is stored as now; several formats if it is put together from pieces.
    pub fn from(&self) -> String {
        let mut names: Vec<_> = self.weight.rows().iter().map(|rows| rows.dtype.name()).collect();
        names.dedup();
        names.join("+")
    }

    /// Elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes now.
    pub fn bytes_before(&self) -> usize {
        self.weight.byte_len()
    }

    /// Bytes in the new file, scales included.
    pub fn bytes_after(&self) -> usize {
        self.data_bytes() + self.scale_bytes()
    }

    fn data_bytes(&self) -> usize {
        self.to.bytes(self.elements())
    }

    fn scale_bytes(&self) -> usize {
        if self.to == DType::I8 { 4 * self.weight.out_features() } else { 0 }
    }
}

/// A conversion, ready to be written.
#[derive(Debug)]
pub struct Conversion {
    origin: PathBuf,
    component: Component,
    container: Container,
    tensors: Vec<Planned>,
    header: Vec<u8>,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that is being written.
    pub tensor: &'a str,
    /// Bytes written.
    pub written: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// What all tensors of one format became.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// How many tensors.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Bytes before.
    pub before: u64,
    /// Bytes after.
    pub after: u64,
    /// What it cost.
    pub loss: tensor::cpu::Loss,
}

impl Conversion {
    /// Reads headers, names every tensor of the new file and its format.
    ///
    /// # Errors
    /// [`Error::Asked`] if the wanted formats do not go together; [`Error::File`] if a tensor cannot be read.
    pub fn plan(checkpoint: &Arc<Checkpoint>, detected: &Detected, wanted: &Wanted) -> Result<Self> {
        rules::check(detected.component, wanted)?;
        let backend = tensor::Device::DryRun.open();
        let weights = Weights::new(checkpoint.clone(), &detected.prefix, detected.naming, backend, Precision::F32);
        let mut tensors = Vec::new();
        let mut used = vec![false; wanted.keep.len()];
        for name in names(checkpoint, detected, &weights) {
            let Some(shape) = weights.stored_shape(&name) else { continue };
            let shape = if shape.is_empty() { vec![1] } else { shape };
            let weight = match shape[..] {
                [rows, ref rest @ ..] if !rest.is_empty() => weights.matrix(&name, rows, rest.iter().product())?,
                _ => weights.list(&name, shape[0])?,
            };
            let from = weight.rows().first().map_or(DType::F32, |rows| rows.dtype);
            let to = rules::target(detected.component, wanted, &name, &shape, from, &mut used)?;
            let name = match (detected.component, wanted.container) {
                (Component::T5, Container::Gguf) => Naming::T5Llama.pieces(&name).remove(0).name,
                _ => name,
            };
            tensors.push(Planned { name, shape, to, weight });
        }
        if let Some(unused) = wanted.keep.iter().zip(used).find(|(_, used)| !used) {
            return Err(Error::asked("keep", format!("'{}' is not the name of a tensor", unused.0.pattern)));
        }
        if tensors.is_empty() {
            let problem = format!("holds no tensor of the {}", detected.component.name());
            return Err(Error::file(checkpoint.origin(), problem));
        }
        let origin = checkpoint.origin().to_owned();
        let mut conversion =
            Self { origin, component: detected.component, container: wanted.container, tensors, header: Vec::new() };
        conversion.header = match wanted.container {
            Container::Safetensors => conversion.safetensors_header(),
            Container::Gguf => {
                let t5 = (detected.component == Component::T5)
                    .then(|| T5Config::from_weights(&weights, checkpoint.origin()))
                    .transpose()?;
                gguf::header(&conversion.tensors, wanted.to, t5.as_ref())
            }
        };
        Ok(conversion)
    }

    /// What is converted.
    pub fn component(&self) -> Component {
        self.component
    }

    /// The tensors in the order of the new file.
    pub fn tensors(&self) -> &[Planned] {
        &self.tensors
    }

    /// Bytes of the new file.
    pub fn bytes(&self) -> u64 {
        let alignment = self.container.alignment();
        let data: usize = self.tensors.iter().map(|t| t.bytes_after().next_multiple_of(alignment)).sum();
        (self.header.len() + data) as u64
    }

    /// Writes the new file, and tells what each format lost.
    ///
    /// # Errors
    /// [`Error::File`] if a number is not finite, or not in the new format; [`Error::Cancelled`] if `progress` says false;
    /// `out`'s own, as [`Error::Output`].
    pub fn write(
        &self,
        out: &mut dyn Write,
        threads: Option<usize>,
        progress: &mut dyn FnMut(Progress<'_>) -> bool,
    ) -> Result<BTreeMap<&'static str, Summary>> {
        let encoder = Encoder::new(threads);
        let mut summaries: BTreeMap<&'static str, Summary> = BTreeMap::new();
        let total = self.bytes();
        let mut written = self.header.len() as u64;
        out.write_all(&self.header).map_err(Error::Output)?;
        for tensor in &self.tensors {
            let rows = tensor.weight.out_features();
            let some = (AT_A_TIME / tensor.weight.row_len().max(1)).max(1);
            let mut scales: Vec<u8> = Vec::with_capacity(tensor.scale_bytes());
            let summary = summaries.entry(tensor.to.name()).or_default();
            for first in (0..rows).step_by(some) {
                if !progress(Progress { tensor: &tensor.name, written, total }) {
                    return Err(Error::Cancelled);
                }
                // Of a list the elements are the rows: they are blocks only together.
                let encoded = encoder.encode(&tensor.weight, first..(first + some).min(rows), tensor.to);
                if encoded.loss.not_finite > 0 {
                    return Err(self.not_finite(tensor, encoded.loss.not_finite));
                }
                out.write_all(&encoded.bytes).map_err(Error::Output)?;
                written += encoded.bytes.len() as u64;
                summary.loss = summary.loss.and(encoded.loss);
                if tensor.to == DType::I8 {
                    scales.extend(encoded.scales.iter().flat_map(|scale| scale.to_le_bytes()));
                }
            }
            out.write_all(&scales).map_err(Error::Output)?;
            written += scales.len() as u64;
            let padding = tensor.bytes_after().next_multiple_of(self.container.alignment()) - tensor.bytes_after();
            out.write_all(&[0; gguf::ALIGNMENT][..padding]).map_err(Error::Output)?;
            written += padding as u64;
            summary.tensors += 1;
            summary.elements += tensor.elements() as u64;
            summary.before += tensor.bytes_before() as u64;
            summary.after += tensor.bytes_after() as u64;
        }
        progress(Progress { tensor: "", written, total });
        Ok(summaries)
    }

    fn not_finite(&self, tensor: &Planned, count: u64) -> Error {
        let (name, to) = (&tensor.name, tensor.to.name());
        let problem = format!("holds {count} numbers in '{name}' that are not finite, or too large for {to}");
        Error::file(&self.origin, format!("{problem}; hint: bf16 and f32 hold every finite number"))
    }

    fn safetensors_header(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut metadata = serde_json::json!({"format": "pt"});
        if self.tensors.iter().any(|t| t.to == DType::I8) {
            metadata["quantization"] = "darkroom int8 per row: weight = weight · weight_scale[row]".into();
        }
        header.insert("__metadata__".into(), metadata);
        let mut end = 0;
        for tensor in &self.tensors {
            let mut add = |name: String, dtype: &str, shape: &[usize], bytes: usize| {
                let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]});
                header.insert(name, entry);
                end += bytes;
            };
            let dtype = match tensor.to {
                DType::F32 => "F32",
                DType::F16 => "F16",
                DType::I8 => "I8",
                _ => "BF16",
            };
            add(tensor.name.clone(), dtype, &tensor.shape, tensor.data_bytes());
            if tensor.to == DType::I8 {
                let rows = tensor.weight.out_features();
                add(format!("{}_scale", tensor.name), "F32", &[rows], tensor.scale_bytes());
            }
        }
        let mut json = serde_json::Value::Object(header).to_string();
        // Data begins at a multiple of eight.
        while !json.len().is_multiple_of(8) {
            json.push(' ');
        }
        [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
    }
}

/// The engine's names of all tensors of a component.
fn names(checkpoint: &Checkpoint, detected: &Detected, weights: &Weights) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |name: String| {
        if weights.has(&name) {
            names.push(name);
        }
    };
    match detected.component {
        Component::Transformer => {
            let mut linear = |name: &str| ["weight", "bias"].map(|kind| add(format!("{name}.{kind}")));
            for name in ["img_in", "txt_in"] {
                linear(name);
            }
            for name in ["time_in", "guidance_in", "vector_in"] {
                linear(&format!("{name}.in_layer"));
                linear(&format!("{name}.out_layer"));
            }
            linear("final_layer.linear");
            linear("final_layer.adaLN_modulation.1");
            for block in 0..weights.blocks("double_blocks") {
                for stream in ["img", "txt"] {
                    let at = format!("double_blocks.{block}.{stream}");
                    for part in ["mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2"] {
                        linear(&format!("{at}_{part}"));
                    }
                }
            }
            for block in 0..weights.blocks("single_blocks") {
                for part in ["modulation.lin", "linear1", "linear2"] {
                    linear(&format!("single_blocks.{block}.{part}"));
                }
            }
            for block in 0..weights.blocks("double_blocks") {
                for norm in ["img_attn.norm.query", "img_attn.norm.key", "txt_attn.norm.query", "txt_attn.norm.key"] {
                    add(format!("double_blocks.{block}.{norm}_norm.scale"));
                }
            }
            for block in 0..weights.blocks("single_blocks") {
                for norm in ["query", "key"] {
                    add(format!("single_blocks.{block}.norm.{norm}_norm.scale"));
                }
            }
        }
        Component::T5 => {
            let table = if weights.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
            add(table.into());
            for block in 0..weights.blocks("encoder.block") {
                let at = format!("encoder.block.{block}.layer");
                for part in ["q", "k", "v", "o", "relative_attention_bias"] {
                    add(format!("{at}.0.SelfAttention.{part}.weight"));
                }
                add(format!("{at}.0.layer_norm.weight"));
                for part in ["wi_0", "wi_1", "wi", "wo"] {
                    add(format!("{at}.1.DenseReluDense.{part}.weight"));
                }
                add(format!("{at}.1.layer_norm.weight"));
            }
            add("encoder.final_layer_norm.weight".into());
        }
        // Whatever the file has, in its own names.
        Component::ClipL
        | Component::Vae
        | Component::TinyDecoder
        | Component::TinyEncoder
        | Component::Vision
        | Component::Redux => {
            for (name, entry) in checkpoint.tensors() {
                if let Some(name) = name.strip_prefix(detected.prefix.as_str())
                    && entry.weight_dtype().is_some()
                {
                    names.push(name.to_owned());
                }
            }
        }
    }
    names
}

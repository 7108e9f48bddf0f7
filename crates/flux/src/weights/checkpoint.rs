//! A checkpoint: the tensors of one file, or of several shards, by name; and [`Weights`], a model's view of it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tensor::{Backend, BlockScales, Bytes, DType, MappedFile, Precision, Rows, Scale, Shape, Tensor, Weight};

use super::{
    Naming, four_bits, gguf,
    names::{Half, Piece},
    safetensors::{Entry, Header, HeaderError},
};
use crate::{
    error::{Error, Result},
    memory::Extent,
    nn::{Conv2d, Linear},
};

/// The tensors of one file or of the shards of one model.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    origin: PathBuf,
    files: Vec<Bytes>,
    tensors: BTreeMap<String, (usize, Entry)>,
    metadata: BTreeMap<String, String>,
    /// Lists in the metadata of GGUF files, and whose they are.
    arrays: BTreeMap<String, (usize, gguf::Array)>,
    /// Tensors in bitsandbytes' four bits, and what is told of them beside them.
    four_bits: BTreeMap<String, four_bits::State>,
    /// Layers whose quantisation is told in `_quantization_metadata`, ComfyUI's way, and the name of the format.
    formats: BTreeMap<String, String>,
}

/// How a layer is quantised, in ComfyUI's words.
#[derive(serde::Deserialize)]
struct Quantisation {
    format: String,
}

/// What weights are stored as.
const EXPECTED: &str = "F32, F16, BF16, F8_E4M3 or F8_E5M2 (safetensors), or F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, \
                        Q6_K, Q5_K, Q4_K, Q3_K, Q2_K, IQ4_NL or IQ4_XS (GGUF)";

/// Formats that are nothing but fp8 numbers and a scale.
const READABLE: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];

impl Checkpoint {
    /// Maps one safetensors or GGUF file, or all shards that a `….safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "json") {
            return Self::open_shards(path);
        }
        let mut checkpoint = Self { origin: path.to_owned(), ..Self::default() };
        checkpoint.add_file(path)?;
        checkpoint.find_four_bits()?;
        Ok(checkpoint)
    }

    /// A checkpoint embedded in the program.
    ///
    /// # Errors
    /// As for a file.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self { origin: name.into(), ..Self::default() };
        checkpoint.add(Path::new(name), Bytes::Static(bytes))?;
        checkpoint.find_four_bits()?;
        Ok(checkpoint)
    }

    fn open_shards(index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read(index).map_err(|e| Error::file(index, e.to_string()))?;
        let parsed: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::file(index, format!("is not an index of shards ('weight_map' expected): {e}")))?;
        let mut shards: Vec<&String> = parsed.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let mut checkpoint = Self { origin: index.to_owned(), ..Self::default() };
        let folder = index.parent().unwrap_or(Path::new(""));
        for shard in shards {
            if Path::new(shard).components().count() != 1 {
                return Err(Error::file(index, format!("names the shard '{shard}', which is not a file beside it")));
            }
            let path = folder.join(shard);
            if !path.exists() {
                let problem = format!("is missing, but '{}' needs it; hint: download it again", index.display());
                return Err(Error::file(path, problem));
            }
            checkpoint.add_file(&path)?;
        }
        for (name, shard) in &parsed.weight_map {
            if !checkpoint.tensors.contains_key(name) {
                return Err(Error::file(folder.join(shard), format!("lacks '{name}', which the index promises")));
            }
        }
        checkpoint.find_four_bits()?;
        Ok(checkpoint)
    }

    /// Gives tensors in bitsandbytes' four bits their real shape and format.
    fn find_four_bits(&mut self) -> Result<()> {
        let mut found = Vec::new();
        for state in self.tensors.keys() {
            let Some(name) = four_bits::STATES.iter().find_map(|end| state.strip_suffix(end)) else { continue };
            let (Some((json, _)), Some((codes, _))) = (self.bytes(state), self.bytes(name)) else {
                return Err(Error::file(&self.origin, format!("has '{state}', but lacks '{name}'")));
            };
            let parsed = four_bits::State::parse(json.get(), codes.len());
            let parsed =
                parsed.map_err(|problem| Error::file(&self.origin, format!("has '{name}', which {problem}")))?;
            found.push((name.to_owned(), parsed));
        }
        for (name, state) in found {
            if let Some((_, entry)) = self.tensors.get_mut(&name) {
                entry.dtype = "NF4".into();
                entry.shape.clone_from(&state.shape);
            }
            self.four_bits.insert(name, state);
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Err(Error::file(path, "is a folder, a weights file was expected"));
        }
        let length = std::fs::metadata(path).map_err(|e| Error::file(path, e.to_string()))?.len();
        if length == 0 {
            return Err(Error::file(path, "is empty; hint: download it again"));
        }
        let file = MappedFile::open(path).map_err(|e| Error::file(path, e.to_string()))?;
        let length = file.bytes().len();
        self.add(path, Bytes::Mapped(file, 0..length))
    }

    fn add(&mut self, path: &Path, bytes: Bytes) -> Result<()> {
        let file = self.files.len();
        let tensors = if bytes.get().starts_with(gguf::MAGIC) {
            self.add_gguf(path, bytes.get(), file)?
        } else {
            self.add_safetensors(path, bytes.get())?
        };
        self.files.push(bytes);
        for (name, entry) in tensors {
            if self.tensors.contains_key(&name) {
                return Err(Error::file(path, format!("holds '{name}', which another shard holds too")));
            }
            self.tensors.insert(name, (file, entry));
        }
        Ok(())
    }

    fn add_safetensors(&mut self, path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>> {
        let header = Header::parse(bytes).map_err(|e| {
            // Of a file that is neither, its name tells what was meant.
            let meant = path.extension().is_some_and(|e| e == "gguf") && !matches!(e, HeaderError::Other(_));
            Error::file(path, if meant { gguf::HeaderError::Other.to_string() } else { e.to_string() })
        })?;
        if let Some(json) = header.metadata.get("_quantization_metadata") {
            #[derive(serde::Deserialize)]
            struct Layers {
                layers: BTreeMap<String, Quantisation>,
            }
            let Layers { layers } = serde_json::from_str(json)
                .map_err(|e| Error::file(path, format!("has '_quantization_metadata' that cannot be read: {e}")))?;
            self.formats.extend(layers.into_iter().map(|(layer, quantisation)| (layer, quantisation.format)));
        }
        self.metadata.extend(header.metadata);
        Ok(header.tensors)
    }

    fn add_gguf(&mut self, path: &Path, bytes: &[u8], file: usize) -> Result<BTreeMap<String, Entry>> {
        let header = gguf::Header::parse(bytes).map_err(|e| Error::file(path, e.to_string()))?;
        if let Some(gguf::Value::Integer(pieces @ 2..)) = header.metadata.get("split.count") {
            let hint = "hint: put them together with 'llama-gguf-split --merge'";
            return Err(Error::file(path, format!("is one of {pieces} pieces of a GGUF file; {hint}")));
        }
        for (key, value) in header.metadata {
            if let gguf::Value::Array(array) = value {
                self.arrays.insert(key, (file, array));
            } else if let Some(text) = value.text() {
                self.metadata.insert(key, text);
            }
        }
        Ok(header.tensors)
    }

    /// The file (or index) it came from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Its files' bytes, in the order in which they were opened.
    pub(crate) fn files(&self) -> &[Bytes] {
        &self.files
    }

    /// Names and entries, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.tensors.iter().map(|(name, (_, entry))| (name.as_str(), entry))
    }

    /// The entry of one tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name).map(|(_, entry)| entry)
    }

    /// One more than the highest number that follows `series.` in a tensor's name.
    pub(super) fn blocks(&self, series: &str) -> usize {
        let start = format!("{series}.");
        let names = self.tensors.range(start.clone()..).map(|(name, _)| name);
        let numbers = names.map_while(|name| name.strip_prefix(&start)).filter_map(|rest| {
            let (number, _) = rest.split_once('.')?;
            number.parse::<usize>().ok()
        });
        numbers.max().map_or(0, |highest| highest.saturating_add(1))
    }

    /// A `__metadata__` string of a safetensors header, or a value of a GGUF's as text.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// A list in the metadata of a GGUF file, and the file's bytes to read it from.
    pub fn array(&self, key: &str) -> Option<(&gguf::Array, &[u8])> {
        self.arrays.get(key).map(|(file, array)| (array, self.files[*file].get()))
    }

    /// This transformer with what it lacks outside of its blocks from `other`, whose names begin with `theirs` instead of
    /// `prefix`. Nothing is copied.
    pub(crate) fn completed(&self, prefix: &str, other: &Self, theirs: &str) -> Self {
        let mut whole = self.clone();
        let first = whole.files.len();
        whole.files.extend(other.files.iter().cloned());
        let outside = |name: &str| !name.starts_with("double_blocks.") && !name.starts_with("single_blocks.");
        for (name, (file, entry)) in &other.tensors {
            if let Some(bare) = name.strip_prefix(theirs).filter(|bare| outside(bare)) {
                whole.tensors.entry(format!("{prefix}{bare}")).or_insert((first + file, entry.clone()));
            }
        }
        for (layer, format) in &other.formats {
            whole.formats.entry(layer.clone()).or_insert_with(|| format.clone());
        }
        whole
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.files.iter().any(|file| file.get().starts_with(gguf::MAGIC))
    }

    /// Refuses a layer in a format that is more than numbers and a scale: its bytes would be taken for something else.
    fn check_format(&self, layer: &str) -> Result<()> {
        let said = if let Some((bytes, _)) = self.bytes(&format!("{layer}.comfy_quant")) {
            let quantisation: Quantisation = serde_json::from_slice(bytes.get()).map_err(|e| {
                Error::file(&self.origin, format!("has '{layer}.comfy_quant' that cannot be read: {e}"))
            })?;
            Some(quantisation.format)
        } else {
            let bare = layer.strip_prefix("model.diffusion_model.").unwrap_or(layer);
            self.formats.get(layer).or_else(|| self.formats.get(bare)).cloned()
        };
        match said {
            Some(format) if !READABLE.contains(&format.as_str()) => {
                let readable = READABLE.join(" and ");
                let problem =
                    format!("stores '{layer}' in the format '{format}', of which only {readable} can be read");
                Err(Error::file(&self.origin, problem))
            }
            _ if self.entry(&format!("{layer}.pre_quant_scale")).is_some() => {
                let problem = format!("scales the input of '{layer}' (pre_quant_scale), which is not supported");
                Err(Error::file(&self.origin, problem))
            }
            _ => Ok(()),
        }
    }

    /// The bytes of one tensor.
    pub(crate) fn bytes(&self, name: &str) -> Option<(Bytes, &Entry)> {
        let (file, entry) = self.tensors.get(name)?;
        Some((self.files[*file].slice(entry.bytes.clone()), entry))
    }
}

/// Where a model's tensors come from.
#[derive(Clone, Debug)]
enum Source {
    Checkpoint {
        checkpoint: Arc<Checkpoint>,
        prefix: String,
        naming: Naming,
    },
    /// Nothing is there: every tensor asked for exists, in this format and of the size asked for.
    Planned(DType),
}

/// A model's view of a checkpoint: tensors by the engine's names, checked against the sizes the model expects.
#[derive(Debug)]
pub struct Weights {
    source: Source,
    backend: Arc<dyn Backend>,
    precision: Precision,
    bytes: Cell<u64>,
    parameters: Cell<u64>,
    /// Taken since the last [`Weights::extent`].
    pieces: RefCell<Vec<Bytes>>,
}

impl Weights {
    /// The tensors of `checkpoint` whose names begin with `prefix`, translated by `naming`.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        prefix: &str,
        naming: Naming,
        backend: Arc<dyn Backend>,
        precision: Precision,
    ) -> Self {
        Self::from_source(Source::Checkpoint { checkpoint, prefix: prefix.to_owned(), naming }, backend, precision)
    }

    /// Tensors of every name and size without any bytes, for planning.
    pub fn planned(dtype: DType, backend: Arc<dyn Backend>, precision: Precision) -> Self {
        Self::from_source(Source::Planned(dtype), backend, precision)
    }

    fn from_source(source: Source, backend: Arc<dyn Backend>, precision: Precision) -> Self {
        Self { source, backend, precision, bytes: Cell::new(0), parameters: Cell::new(0), pieces: RefCell::default() }
    }

    /// The backend on which small tensors (biases, norms) are put.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The arithmetic of the products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of all tensors taken so far.
    pub fn bytes_taken(&self) -> u64 {
        self.bytes.get()
    }

    /// Elements of all tensors taken so far.
    pub fn parameters_taken(&self) -> u64 {
        self.parameters.get()
    }

    /// Where the tensors lie that were taken since the last call, or since the start.
    pub fn extent(&self) -> Extent {
        Extent::new(self.pieces.take())
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Planned(_) => true,
            Source::Checkpoint { checkpoint, prefix, naming } => {
                naming.pieces(name).iter().all(|p| checkpoint.entry(&format!("{prefix}{}", p.name)).is_some())
            }
        }
    }

    /// How many blocks a numbered series (`double_blocks`) has: one more than the highest number in any tensor's name. So
    /// a block that lacks a tensor is found to be damaged instead of being left out.
    pub fn blocks(&self, series: &str) -> usize {
        let Source::Checkpoint { checkpoint, prefix, naming } = &self.source else { return 0 };
        // Names are translated in one direction only: what becomes of some tensor tells what the file calls the series.
        let probe = naming.pieces(&format!("{series}.0.-.weight"));
        let theirs = probe[0].name.strip_suffix(".-.weight").and_then(|name| name.rsplit_once('.'));
        theirs.map_or(0, |(theirs, _)| checkpoint.blocks(&format!("{prefix}{theirs}")))
    }

    /// A matrix `[out, in]`.
    ///
    /// # Errors
    /// [`Error::File`] if it is missing, of another size, or in a format no weight can have.
    pub fn matrix(&self, name: &str, out: usize, features: usize) -> Result<Weight> {
        self.weight(name, [out, features].into())
    }

    /// A linear layer `name.weight [out, in]` with `name.bias [out]`.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn linear(&self, name: &str, out: usize, features: usize) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), out, features)?;
        Ok(Linear::new(weight, Some(self.vector(&format!("{name}.bias"), out)?)))
    }

    /// A convolution `name.weight [out, in, k, k]` with `name.bias [out]`.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn conv2d(&self, name: &str, out: usize, channels: usize, kernel: usize) -> Result<Conv2d> {
        let weight = self.weight(&format!("{name}.weight"), [out, channels, kernel, kernel].into())?;
        Ok(Conv2d { weight, bias: Some(self.vector(&format!("{name}.bias"), out)?) })
    }

    /// As [`Weights::conv2d`], for models some of whose convolutions have no bias.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn conv2d_bias_if_any(&self, name: &str, out: usize, channels: usize, kernel: usize) -> Result<Conv2d> {
        let bias = format!("{name}.bias");
        if self.has(&bias) {
            return self.conv2d(name, out, channels, kernel);
        }
        let weight = self.weight(&format!("{name}.weight"), [out, channels, kernel, kernel].into())?;
        Ok(Conv2d { weight, bias: None })
    }

    /// A small tensor of `len` elements as f32 on the backend.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let weight = self.weight(name, [len].into())?;
        let values = if self.backend.computes() { weight.to_f32() } else { vec![0.0; len] };
        Ok(Tensor::from_vec(&self.backend, [len], values))
    }

    /// A tensor of `len` elements as it is stored: rows of one.
    pub(crate) fn list(&self, name: &str, len: usize) -> Result<Weight> {
        self.weight(name, [len].into())
    }

    fn weight(&self, name: &str, shape: Shape) -> Result<Weight> {
        // Sizes come from configurations, which may say anything; behind this line their products are sound.
        let bytes = shape.dims().iter().try_fold(4usize, |n, &d| n.checked_mul(d));
        if bytes.is_none_or(|n| n > isize::MAX as usize) {
            let problem = format!("cannot have '{name}' of shape {shape}: no computer has room for it");
            return Err(match &self.source {
                Source::Planned(_) => Error::asked("model", problem),
                Source::Checkpoint { checkpoint, .. } => Error::file(checkpoint.origin(), problem),
            });
        }
        let rows = match &self.source {
            Source::Planned(dtype) => {
                // Vectors are not stored in blocks.
                let row = shape.count() / shape[0].max(1);
                let dtype = if row.is_multiple_of(dtype.block()) { dtype } else { &DType::F32 };
                let bytes = Bytes::Absent(dtype.bytes(shape.count()));
                vec![Rows { count: shape[0], dtype: *dtype, scale: Scale::NONE, bytes }]
            }
            Source::Checkpoint { checkpoint, prefix, naming } => {
                let pieces = naming.pieces(name);
                let row = shape.count() / shape[0].max(1);
                let mut rows = Vec::with_capacity(pieces.len());
                for piece in &pieces {
                    rows.push(read_piece(checkpoint, &format!("{prefix}{}", piece.name), piece, row)?);
                }
                let total: usize = rows.iter().map(|r| r.count).sum();
                if total != shape[0] {
                    return Err(wrong_size(checkpoint, prefix, &pieces, shape));
                }
                rows
            }
        };
        self.pieces.borrow_mut().extend(rows.iter().map(|r| r.bytes.clone()));
        self.bytes.set(self.bytes.get() + rows.iter().map(|r| r.bytes.len() as u64).sum::<u64>());
        self.parameters.set(self.parameters.get() + shape.count() as u64);
        Ok(Weight::new(shape, rows, self.precision))
    }

    /// The extents of a tensor as stored, for deriving a configuration; `None` where it is missing.
    pub fn stored_shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.source {
            Source::Planned(_) => None,
            Source::Checkpoint { checkpoint, prefix, naming } => {
                let pieces = naming.pieces(name);
                let mut shape: Option<Vec<usize>> = None;
                for piece in &pieces {
                    let entry = checkpoint.entry(&format!("{prefix}{}", piece.name))?;
                    let count = entry.shape.first().copied().unwrap_or(1) / if piece.half.is_some() { 2 } else { 1 };
                    match &mut shape {
                        None => {
                            let mut first = entry.shape.clone();
                            if let Some(rows) = first.first_mut() {
                                *rows = count;
                            }
                            shape = Some(first);
                        }
                        Some(shape) => *shape.first_mut()? += count,
                    }
                }
                shape
            }
        }
    }
}

/// One tensor of a file (or half of its rows) as rows of `row` elements each.
fn read_piece(checkpoint: &Checkpoint, name: &str, piece: &Piece, row: usize) -> Result<Rows> {
    let Some((bytes, entry)) = checkpoint.bytes(name) else {
        return Err(Error::file(checkpoint.origin(), format!("lacks the tensor '{name}'")));
    };
    if let Some(layer) = name.strip_suffix(".weight") {
        checkpoint.check_format(layer)?;
    }
    let Some(dtype) = entry.weight_dtype() else {
        let problem = format!("stores '{name}' as {}, which cannot be read; expected {EXPECTED}", entry.dtype);
        return Err(Error::file(checkpoint.origin(), problem));
    };
    let elements: usize = entry.shape.iter().product();
    // GGUF drops an outermost extent of 1.
    let whole_rows = entry.shape.iter().skip(1).product::<usize>() == row || entry.shape == [row];
    if row == 0 || !elements.is_multiple_of(row) || (row > 1 && !whole_rows) {
        let problem = format!("has '{name}' of shape {:?}; rows of {row} elements were expected", entry.shape);
        return Err(Error::file(checkpoint.origin(), problem));
    }
    let count = elements / row;
    let scale = match dtype {
        DType::I8 => Scale::PerRow(row_scales(checkpoint, name, count)?),
        DType::NF4 => Scale::PerBlock(block_scales(checkpoint, name, row)?),
        _ => Scale::All(scale(checkpoint, name, dtype)?),
    };
    // Blocks that reach over the ends of rows, as in a quantised bias: only whole are they rows of numbers.
    let (dtype, bytes) =
        if row.is_multiple_of(dtype.block()) { (dtype, bytes) } else { (DType::F32, as_f32(dtype, &bytes, elements)) };
    let rows = Rows { count, dtype, scale, bytes };
    let Some(half) = piece.half else { return Ok(rows) };
    let middle = count / 2;
    Ok(rows.slice(match half {
        Half::First => 0..middle,
        Half::Second => middle..2 * middle,
    }))
}

/// All elements as f32: a copy, twelve times the size at most.
fn as_f32(dtype: DType, bytes: &Bytes, elements: usize) -> Bytes {
    let mut values = vec![0.0; elements];
    dtype.decode(bytes.get(), &mut values);
    Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Arc<[u8]>>())
}

/// The scale of an fp8 tensor: `X.scale_weight` (ComfyUI's first spelling) or `X.weight_scale` (its second) beside `X.weight`.
///
/// Ignoring them gives white pictures.
fn scale(checkpoint: &Checkpoint, name: &str, dtype: DType) -> Result<f32> {
    let Some(layer) = name.strip_suffix(".weight") else { return Ok(1.0) };
    if !matches!(dtype, DType::F8E4M3 | DType::F8E5M2) {
        return Ok(1.0);
    }
    for scale in [format!("{layer}.scale_weight"), format!("{layer}.weight_scale")] {
        let Some((bytes, entry)) = checkpoint.bytes(&scale) else { continue };
        let one = entry.shape.iter().product::<usize>() == 1;
        let (true, Some(dtype)) = (one, entry.weight_dtype()) else {
            let problem =
                format!("has '{scale}' of shape {:?} and dtype {}; one number was expected", entry.shape, entry.dtype);
            return Err(Error::file(checkpoint.origin(), problem));
        };
        let mut value = [0.0];
        dtype.decode(bytes.get(), &mut value);
        return Ok(value[0]);
    }
    Ok(1.0)
}

/// The scales of darkroom's int8: `X.weight_scale` beside `X.weight`, one number for each row.
fn row_scales(checkpoint: &Checkpoint, name: &str, rows: usize) -> Result<Arc<[f32]>> {
    let scales = format!("{name}_scale");
    let bad = |problem: String| Error::file(checkpoint.origin(), problem);
    let Some((bytes, entry)) = checkpoint.bytes(&scales) else {
        return Err(bad(format!("stores '{name}' as I8 without '{scales}', a scale for each row")));
    };
    let count: usize = entry.shape.iter().product();
    let Some(dtype) = entry.weight_dtype().filter(|dtype| dtype.block() == 1 && count == rows) else {
        let (shape, dtype) = (&entry.shape, &entry.dtype);
        return Err(bad(format!("has '{scales}' of shape {shape:?} and dtype {dtype}; {rows} numbers were expected")));
    };
    let mut values = vec![0.0; count];
    dtype.decode(bytes.get(), &mut values);
    Ok(values.into())
}

/// The scales of bitsandbytes' four bits.
fn block_scales(checkpoint: &Checkpoint, name: &str, row: usize) -> Result<Arc<BlockScales>> {
    let bad = |problem: &str| Error::file(checkpoint.origin(), format!("has '{name}', which {problem}"));
    if !row.is_multiple_of(DType::NF4.block()) {
        let problem = format!("has rows of {row} elements in four bits; a multiple of 64 was expected");
        return Err(bad(&problem));
    }
    let state = checkpoint.four_bits.get(name).ok_or_else(|| bad("has no state"))?;
    let beside = |what: &str| {
        let (bytes, entry) = checkpoint.bytes(&format!("{name}.{what}"))?;
        Some((bytes, entry.weight_dtype()))
    };
    state.scales(beside).map(Arc::new).map_err(|problem| bad(&problem))
}

fn wrong_size(checkpoint: &Checkpoint, prefix: &str, pieces: &[Piece], shape: Shape) -> Error {
    let found: Vec<String> = pieces
        .iter()
        .filter_map(|p| {
            let name = format!("{prefix}{}", p.name);
            checkpoint.entry(&name).map(|e| format!("'{name}' {:?}", e.shape))
        })
        .collect();
    Error::file(checkpoint.origin(), format!("has {}; {shape} was expected", found.join(" + ")))
}

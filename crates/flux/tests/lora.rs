//! LoRAs in every spelling, kind and format of the model under them: the picture of the merged weights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "a module of each test file that uses it, in part")]
mod toy;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flux::{
    Generated, LoadOptions, Pipeline, Request,
    conditioning::{Control, Pictures},
    convert::{Container, Conversion, Wanted, parse_type},
    lora::{Lora, LoraReport, Loras},
    model::{ModelSpec, Part, PartFiles, SearchPaths},
    pixels::Rgb8,
    transformer::{Condition, Flux, Rope},
    weights::{Checkpoint, Component, Half, Naming, Weights, detect},
};
use tensor::{Device, Precision, Tensor};
use toy::{Array, Arrays, File, Scratch, Toy, random::Random};

/// What the issue allows; measured are 1e-6 and less.
const SAME: f64 = 1e-4;

/// Numbers between −1 and 1, the same for each name.
fn random(name: &str, shape: &[usize], size: f32) -> Array {
    let mut random = Random::named(name);
    let values = (0..shape.iter().product::<usize>()).map(|_| size * random.uniform());
    Array { shape: shape.to_vec(), values: values.collect() }
}

fn number(value: f32) -> Array {
    Array { shape: vec![], values: vec![value] }
}

/// `a · b` in f64.
fn times(a: &Array, b: &Array) -> Vec<f64> {
    let [rows, rank, columns] = [a.shape[0], a.shape[1], b.shape[1]];
    assert_eq!(rank, b.shape[0]);
    let mut y = vec![0.0; rows * columns];
    for i in 0..rows {
        for r in 0..rank {
            let factor = f64::from(a.values[i * rank + r]);
            for j in 0..columns {
                y[i * columns + j] += factor * f64::from(b.values[r * columns + j]);
            }
        }
    }
    y
}

fn add(to: &mut Array, factor: f64, change: &[f64]) {
    assert_eq!(to.values.len(), change.len());
    for (value, change) in to.values.iter_mut().zip(change) {
        *value = (f64::from(*value) + factor * change) as f32;
    }
}

/// A change of low rank of one layer.
#[derive(Clone)]
struct Pair {
    down: Array,
    up: Array,
    alpha: f32,
}

impl Pair {
    fn rank(&self) -> f32 {
        self.down.shape[0] as f32
    }

    /// The second factor with `alpha / rank` in it.
    fn scaled_up(&self) -> Array {
        let factor = self.alpha / self.rank();
        Array { shape: self.up.shape.clone(), values: self.up.values.iter().map(|v| v * factor).collect() }
    }
}

type Pairs = BTreeMap<String, Pair>;

/// One for each of the transformer's layers, as diffusers has them.
fn pairs(toy: &Toy, seed: &str) -> Pairs {
    let layers = toy::renamed(&toy.flux, Naming::FluxDiffusers);
    let matrices = layers.iter().filter(|(name, array)| name.ends_with(".weight") && array.shape.len() == 2);
    matrices
        .enumerate()
        .map(|(i, (name, array))| {
            let layer = name.strip_suffix(".weight").unwrap();
            (layer.to_owned(), pair(&format!("{seed}{layer}"), array.shape[0], array.shape[1], 2 + i % 3))
        })
        .collect()
}

fn pair(name: &str, out: usize, features: usize, rank: usize) -> Pair {
    Pair {
        down: random(&format!("{name}.down"), &[rank, features], (3.0 / features as f32).sqrt()),
        up: random(&format!("{name}.up"), &[out, rank], 0.7),
        alpha: 1.5,
    }
}

/// The same for BFL's layers: the factors of pieces under each other, and block by block.
fn fused(toy: &Toy, pairs: &Pairs) -> Pairs {
    let matrices = toy.flux.iter().filter(|(name, array)| name.ends_with(".weight") && array.shape.len() == 2);
    let fuse = |(name, array): (&String, &Array)| {
        let layer = name.strip_suffix(".weight").unwrap().to_owned();
        let pieces = Naming::FluxDiffusers.pieces(name);
        let of = |piece: &flux::weights::Piece| &pairs[piece.name.strip_suffix(".weight").unwrap()];
        if pieces.iter().any(|piece| piece.half.is_some()) {
            let pair = of(&pieces[0]);
            let (first, second) = pair.up.values.split_at(pair.up.values.len() / 2);
            let halves = pieces.iter().map(|piece| if piece.half == Some(Half::First) { first } else { second });
            let values = halves.collect::<Vec<_>>().concat();
            let up = Array { values, ..pair.up.clone() };
            return (layer, Pair { up, ..pair.clone() });
        }
        let rank: usize = pieces.iter().map(|piece| of(piece).down.shape[0]).sum();
        let alpha = rank as f32 / 2.0;
        let mut down = Array { shape: vec![rank, array.shape[1]], values: Vec::new() };
        let mut up = Array { shape: vec![array.shape[0], rank], values: vec![0.0; array.shape[0] * rank] };
        let (mut row, mut column) = (0, 0);
        for piece in &pieces {
            let pair = of(piece);
            down.values.extend(&pair.down.values);
            let own = pair.down.shape[0];
            for values in pair.scaled_up().values.chunks_exact(own) {
                for (c, value) in values.iter().enumerate() {
                    up.values[row * rank + column + c] = 2.0 * value;
                }
                row += 1;
            }
            column += own;
        }
        (layer, Pair { down, up, alpha })
    };
    matrices.map(fuse).collect()
}

/// The transformer in diffusers' names with the changes in its weights.
fn merged(flux: &Arrays, pairs: &Pairs, weight: f64) -> Arrays {
    let mut layers = toy::renamed(flux, Naming::FluxDiffusers);
    for (layer, pair) in pairs {
        let change = times(&pair.up, &pair.down);
        add(layers.get_mut(&format!("{layer}.weight")).unwrap(), weight * f64::from(pair.alpha / pair.rank()), &change);
    }
    layers
}

/// The parts of a toy model as files, and LoRAs beside them.
struct Files {
    scratch: Scratch,
    toy: Toy,
    rest: [PathBuf; 3],
    flux: PathBuf,
}

impl Files {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let toy = Toy::new();
        let [flux, vae, clip, t5] = ["flux", "vae", "clip", "t5"].map(|f| scratch.join(format!("{f}.safetensors")));
        toy.single_files([&flux, &vae, &clip, &t5], toy::f32s);
        Self { scratch, toy, rest: [vae, clip, t5], flux }
    }

    fn write(&self, name: &str, arrays: &Arrays) -> PathBuf {
        let path = self.scratch.join(format!("{name}.safetensors"));
        toy::write(&path, &toy::stored(arrays, toy::f32s));
        path
    }

    fn load(&self, transformer: &Path, precision: Precision) -> Pipeline {
        load([transformer, &self.rest[0], &self.rest[1], &self.rest[2]], precision)
    }

    fn lora(&self, name: &str, file: &File, metadata: &[(&str, &str)]) -> Arc<Lora> {
        let path = self.scratch.join(format!("{name}.safetensors"));
        toy::bytes(&path, &toy::safetensors(file, metadata));
        Arc::new(Lora::open(&path).unwrap())
    }
}

fn load(parts: [&Path; 4], precision: Precision) -> Pipeline {
    let [transformer, vae, clip_l, t5xxl] = parts.map(|path| Some(path.to_owned()));
    let parts = PartFiles { transformer, vae, clip_l, t5xxl, ..PartFiles::default() };
    let spec = ModelSpec { model: None, parts };
    let device = Device::Cpu { threads: Some(2) };
    let options = LoadOptions { device, precision: Some(precision), ..LoadOptions::default() };
    Pipeline::load(spec.find(&SearchPaths::default()).unwrap(), &options, &mut ()).unwrap()
}

fn picture(pipeline: &Pipeline) -> Generated {
    let request = Request {
        width: 64,
        height: 48,
        steps: 2,
        seed: 7,
        t5_length: 24,
        ..Request::new("a red fox", pipeline.defaults())
    };
    pipeline.generate(&request, &mut ()).unwrap().remove(0)
}

/// Relative L2 distance of the latents.
fn distance(got: &Generated, expected: &Generated) -> f64 {
    let pairs = got.latents.values.iter().zip(&expected.latents.values);
    let (off, all) =
        pairs.fold((0.0, 0.0), |(off, all), (g, e)| (off + f64::from(g - e).powi(2), all + f64::from(*e).powi(2)));
    (off / all).sqrt()
}

/// Applies one, of which nothing may be left out.
fn with(pipeline: &mut Pipeline, lora: &Arc<Lora>, weight: f32) -> Generated {
    let reports = pipeline.set_loras(&Loras::from([(lora.clone(), weight)])).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(reports[0].unmatched, [], "{}", reports[0]);
    picture(pipeline)
}

/// What a trainer makes of a layer's name.
type Rename = fn(&str) -> String;

/// How a trainer writes: the name of a layer, the endings of the two factors, whether there is an alpha.
type Spelling = (&'static str, bool, Rename, [&'static str; 2], bool);

const SPELLINGS: [Spelling; 13] = [
    ("kohya", true, |n| format!("lora_unet_{}", n.replace('.', "_")), [".lora_down.weight", ".lora_up.weight"], true),
    ("comfyui", true, |n| format!("diffusion_model.{n}"), [".lora_A.weight", ".lora_B.weight"], true),
    ("bfl", true, str::to_owned, [".lora_A.weight", ".lora_B.weight"], false),
    ("fal", true, |n| format!("base_model.model.{n}"), [".lora_A.weight", ".lora_B.weight"], false),
    ("peft", false, |n| format!("transformer.{n}"), [".lora_A.weight", ".lora_B.weight"], false),
    ("ai-toolkit", false, |n| format!("transformer.{n}"), [".lora_A.weight", ".lora_B.weight"], true),
    ("bare", false, str::to_owned, [".lora_A.default.weight", ".lora_B.default.weight"], false),
    ("older", false, |n| format!("transformer.{n}"), [".lora.down.weight", ".lora.up.weight"], true),
    (
        "oldest",
        false,
        |n| format!("unet.{n}"),
        [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"],
        false,
    ),
    ("unnamed", false, |n| format!("transformer.{n}"), [".lora_A", ".lora_B"], false),
    (
        "simpletuner",
        false,
        |n| format!("lycoris_{}", n.replace('.', "_")),
        [".lora_down.weight", ".lora_up.weight"],
        true,
    ),
    (
        "onetrainer",
        false,
        |n| format!("lora_transformer_{}", n.replace('.', "_")),
        [".lora_down.weight", ".lora_up.weight"],
        true,
    ),
    ("mixed", false, |n| format!("lora_unet_{}", n.replace('.', "_")), [".lora_down.weight", ".lora_up.weight"], true),
];

fn spelt((_, _, name, [down, up], has_alpha): Spelling, pairs: &Pairs) -> File {
    let mut file = Arrays::new();
    for (layer, pair) in pairs {
        let layer = name(layer);
        file.insert(format!("{layer}{down}"), pair.down.clone());
        file.insert(format!("{layer}{up}"), if has_alpha { pair.up.clone() } else { pair.scaled_up() });
        if has_alpha {
            file.insert(format!("{layer}.alpha"), number(pair.alpha));
        }
    }
    toy::stored(&file, toy::f32s)
}

#[test]
fn every_spelling_gives_the_picture_of_the_merged_weights() {
    let files = Files::new("lora-spellings");
    let split = pairs(&files.toy, "");
    let whole = fused(&files.toy, &split);
    let mut pipeline = files.load(&files.flux, Precision::F32);
    let without = picture(&pipeline);
    let expected = picture(&files.load(&files.write("merged", &merged(&files.toy.flux, &split, 1.0)), Precision::F32));
    assert!(distance(&expected, &without) > 0.05, "a LoRA that changes something");
    let mut check = |name: &str, file: &File, metadata: &[(&str, &str)]| {
        let lora = files.lora(name, file, metadata);
        let off = distance(&with(&mut pipeline, &lora, 1.0), &expected);
        println!("{name}: {off:.1e}");
        assert!(off <= SAME, "{name}: {off}");
    };
    for spelling in SPELLINGS {
        check(spelling.0, &spelt(spelling, if spelling.1 { &whole } else { &split }), &[]);
    }
    // PEFT's alphas are in the metadata.
    let plain = SPELLINGS.into_iter().find(|spelling| spelling.0 == "ai-toolkit").unwrap();
    let mut unscaled = spelt(plain, &split);
    unscaled.retain(|key, _| key.strip_suffix(".alpha").is_none());
    check(
        "peft-metadata",
        &unscaled,
        &[("lora_adapter_metadata", r#"{"transformer.r": 2, "transformer.lora_alpha": 1.5}"#)],
    );
    // One trainer's spelling for some layers, another's for the rest.
    let mut both = spelt(SPELLINGS[0], &whole);
    both.retain(|key, _| key.contains("double_blocks"));
    let other = split.iter().filter(|(layer, _)| !layer.starts_with("transformer_blocks"));
    both.extend(spelt(plain, &other.map(|(layer, pair)| (layer.clone(), pair.clone())).collect()));
    check("two spellings", &both, &[]);

    // XLabs' have the attention alone, and no alpha.
    let layers = [
        ("double_blocks.0.img_attn.qkv", "double_blocks.0.processor.qkv_lora1", 384, 128),
        ("double_blocks.0.txt_attn.qkv", "double_blocks.0.processor.qkv_lora2", 384, 128),
        ("double_blocks.0.img_attn.proj", "double_blocks.0.processor.proj_lora1", 128, 128),
        ("double_blocks.0.txt_attn.proj", "double_blocks.0.processor.proj_lora2", 128, 128),
        ("single_blocks.0.linear1", "single_blocks.0.processor.qkv_lora", 384, 128),
        ("single_blocks.0.linear2", "single_blocks.0.processor.proj_lora", 128, 640),
    ];
    let mut file = Arrays::new();
    let mut flux = files.toy.flux.clone();
    for (layer, name, out, features) in layers {
        let pair = pair(name, out, features, 4);
        let change = times(&pair.up, &pair.down);
        let weight = flux.get_mut(&format!("{layer}.weight")).unwrap();
        let rows = &mut weight.values[..out * features]; // of linear1, queries, keys and values
        rows.iter_mut().zip(&change).for_each(|(w, c)| *w = (f64::from(*w) + c) as f32);
        file.insert(format!("{name}.down.weight"), pair.down);
        file.insert(format!("{name}.up.weight"), pair.up);
    }
    let expected = picture(&files.load(&files.write("merged-xlabs", &flux), Precision::F32));
    let lora = files.lora("xlabs", &toy::stored(&file, toy::f32s), &[]);
    let off = distance(&with(&mut pipeline, &lora, 1.0), &expected);
    assert!(off <= SAME, "xlabs: {off}");

    pipeline.set_loras(&Loras::default()).unwrap();
    assert_eq!(picture(&pipeline).latents, without.latents, "without LoRAs the model is what it was");
}

fn converted(from: &Path, to: &Path, kind: &str) {
    let checkpoint = Arc::new(Checkpoint::open(from).unwrap());
    let detected = detect(&checkpoint).remove(0);
    let gguf = to.extension().is_some_and(|e| e == "gguf");
    let container = if gguf { Container::Gguf } else { Container::Safetensors };
    let wanted = Wanted { container, to: parse_type(kind).unwrap(), keep: Vec::new() };
    let mut bytes = Vec::new();
    Conversion::plan(&checkpoint, &detected, &wanted).unwrap().write(&mut bytes, Some(2), &mut |_| true).unwrap();
    toy::bytes(to, &bytes);
}

/// All of a file's tensors as f32.
fn arrays(path: &Path) -> Arrays {
    let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
    let weights = Weights::new(checkpoint.clone(), "", Naming::Same, Device::Reference.open(), Precision::F32);
    let read = |(name, entry): (&str, &flux::weights::safetensors::Entry)| {
        let row = entry.shape.get(1).copied().unwrap_or(1);
        let values = weights.matrix(name, entry.shape[0], row).unwrap().to_f32();
        (name.to_owned(), Array { shape: entry.shape.clone(), values })
    };
    checkpoint.tensors().filter(|(name, _)| !name.ends_with("_scale")).map(read).collect()
}

#[test]
fn on_every_storage_format_and_arithmetic() {
    let files = Files::new("lora-formats");
    let split = pairs(&files.toy, "");
    let lora = files.lora("kohya", &spelt(SPELLINGS[0], &fused(&files.toy, &split)), &[]);
    for (kind, end) in [("f32", "safetensors"), ("bf16", "safetensors"), ("q8_0", "gguf"), ("int8", "safetensors")] {
        let stored = files.scratch.join(format!("stored.{kind}.{end}"));
        converted(&files.flux, &stored, kind);
        let plain = files.scratch.join(format!("plain.{kind}.safetensors"));
        converted(&stored, &plain, "f32");
        let whole = files.write(&format!("merged.{kind}"), &merged(&arrays(&plain), &split, 1.0));
        // In f32 nothing is rounded: the bound is the issue's. Else factors of products are, and not the same ones: bounds are
        // about twice what was measured, 0.0055 for bf16 and 0.009 for int8.
        for (precision, most) in [(Precision::F32, SAME), (Precision::BF16, 0.012), (Precision::Int8, 0.02)] {
            let expected = picture(&files.load(&whole, precision));
            let off = distance(&with(&mut files.load(&stored, precision), &lora, 1.0), &expected);
            println!("{kind} in {precision}: {off:.1e}");
            assert!(off <= most, "{kind} in {precision}: {off}");
        }
    }
}

/// A layer's changed weight and bias, and the tensors that say so.
struct Changed {
    tensors: Vec<(&'static str, Array)>,
    /// As with weight 1.
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

/// Changes that are more than two factors, computed from their definitions.
fn changed(kind: usize, layer: &str, weight: &Array) -> Changed {
    let [out, features] = [weight.shape[0], weight.shape[1]];
    let array = |what: &str, shape: &[usize], size: f32| random(&format!("{layer} {what}"), shape, size);
    let own: Vec<f64> = weight.values.iter().map(|v| f64::from(*v)).collect();
    let plus = |factor: f64, change: &[f64]| own.iter().zip(change).map(|(w, c)| w + factor * c).collect::<Vec<f64>>();
    let kron = |a: &Array, b: &[f64], [c, d]: [usize; 2]| {
        let columns = a.shape[1];
        let at = |i: usize, j: usize| f64::from(a.values[i / c * columns + j / d]) * b[i % c * d + j % d];
        (0..out).flat_map(|i| (0..features).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect::<Vec<f64>>()
    };
    let [a, b] = [4, 8];
    let [c, d] = [out / a, features / b];
    let whole = |x: &Array| x.values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let product = |x: &Array, y: &Array| {
        let values = times(x, y);
        Array { shape: vec![x.shape[0], y.shape[1]], values: values.iter().map(|v| *v as f32).collect() }
    };
    let done = |tensors, weight| Changed { tensors, weight, bias: None };
    match kind {
        0 => {
            let [w1, w2] = [array("w1", &[a, b], 0.3), array("w2", &[c, d], 0.3)];
            let weight = plus(1.0, &kron(&w1, &whole(&w2), [c, d]));
            done(vec![(".lokr_w1", w1), (".lokr_w2", w2), (".alpha", number(3.0))], weight) // whole factors heed no alpha
        }
        1 => {
            let [w1, w2a, w2b] = [array("w1", &[a, b], 0.5), array("a", &[c, 2], 0.5), array("b", &[2, d], 0.5)];
            let weight = plus(1.5, &kron(&w1, &times(&w2a, &w2b), [c, d]));
            done(vec![(".lokr_w1", w1), (".lokr_w2_a", w2a), (".lokr_w2_b", w2b), (".alpha", number(3.0))], weight)
        }
        2 => {
            let [w1a, w1b, w2] = [array("a", &[a, 3], 0.5), array("b", &[3, b], 0.5), array("w2", &[c, d], 0.3)];
            let weight = plus(2.0 / 3.0, &kron(&product(&w1a, &w1b), &whole(&w2), [c, d]));
            done(vec![(".lokr_w1_a", w1a), (".lokr_w1_b", w1b), (".lokr_w2", w2), (".alpha", number(2.0))], weight)
        }
        3 | 4 => {
            // Of ranks that make one product, and of ranks that are as large as the matrix.
            let rank = if kind == 3 { 3 } else { 40 };
            let size = 0.9 / (rank as f32).sqrt();
            let [w1a, w1b] = [array("1a", &[out, rank], size), array("1b", &[rank, features], size)];
            let [w2a, w2b] = [array("2a", &[out, rank], size), array("2b", &[rank, features], size)];
            let change: Vec<f64> = times(&w1a, &w1b).iter().zip(times(&w2a, &w2b)).map(|(x, y)| x * y).collect();
            let weight = plus(2.0 / rank as f64, &change);
            let [w1a, w1b, w2a, w2b] =
                [(".hada_w1_a", w1a), (".hada_w1_b", w1b), (".hada_w2_a", w2a), (".hada_w2_b", w2b)];
            done(vec![w1a, w1b, w2a, w2b, (".alpha", number(2.0))], weight)
        }
        5 | 6 => {
            let pair = pair(layer, out, features, 3);
            let mut weight = plus(f64::from(pair.alpha / 3.0), &times(&pair.up, &pair.down));
            let of_rows = kind == 5;
            let magnitude = array("m", &[if of_rows { out } else { features }], 1.0);
            let lengths = magnitude.values.iter().map(|m| 1.0 + 0.5 * f64::from(*m)).collect::<Vec<_>>();
            let place = |index: usize| if of_rows { index / features } else { index % features };
            let mut norms = vec![0.0; lengths.len()];
            weight.iter().enumerate().for_each(|(i, w)| norms[place(i)] += w * w);
            weight.iter_mut().enumerate().for_each(|(i, w)| *w *= lengths[place(i)] / norms[place(i)].sqrt());
            let shape = if of_rows { vec![out, 1] } else { vec![1, features] };
            let scale = Array { shape, values: lengths.iter().map(|l| *l as f32).collect() };
            let (down, up) = ((".lora_down.weight", pair.down), (".lora_up.weight", pair.up));
            done(vec![down, up, (".alpha", number(pair.alpha)), (".dora_scale", scale)], weight)
        }
        7 => {
            let [diff, bias] = [array("diff", &[out, features], 0.1), array("diff_b", &[out], 0.3)];
            let weight = plus(1.0, &whole(&diff));
            Changed { bias: Some(whole(&bias)), weight, tensors: vec![(".diff", diff), (".diff_b", bias)] }
        }
        _ => {
            let pair = pair(layer, out, features, 3);
            let bias = array("bias", &[out], 0.3);
            let weight = plus(1.0, &times(&pair.up, &pair.down));
            let tensors =
                vec![(".lora_A.weight", pair.down), (".lora_B.weight", pair.up), (".lora_B.bias", bias.clone())];
            Changed { bias: Some(whole(&bias)), weight, tensors }
        }
    }
}

/// A file with changes of every kind, and the transformer with them at this weight; layers as in `flux`.
fn all_kinds(flux: &Arrays, name: fn(&str) -> String, first: usize, weight: f64) -> (File, Arrays) {
    let (mut file, mut changed_flux) = (Arrays::new(), flux.clone());
    let layers = flux.iter().filter(|(name, array)| name.ends_with(".weight") && array.shape.len() == 2);
    for (i, (key, array)) in layers.enumerate() {
        let layer = key.strip_suffix(".weight").unwrap();
        let Changed { tensors, weight: all, bias } = changed((first + i) % 9, layer, array);
        file.extend(tensors.into_iter().map(|(ending, tensor)| (format!("{}{ending}", name(layer)), tensor)));
        let change: Vec<f64> = all.iter().zip(&array.values).map(|(w, own)| w - f64::from(*own)).collect();
        add(changed_flux.get_mut(key).unwrap(), weight, &change);
        if let Some(bias) = bias {
            add(changed_flux.get_mut(&format!("{layer}.bias")).unwrap(), weight, &bias);
        }
    }
    (toy::stored(&file, toy::f32s), changed_flux)
}

#[test]
fn every_kind_gives_the_picture_of_the_changed_weights() {
    let files = Files::new("lora-kinds");
    let mut pipeline = files.load(&files.flux, Precision::F32);
    let without = picture(&pipeline);
    let split = toy::renamed(&files.toy.flux, Naming::FluxDiffusers);
    for first in 0..9 {
        // Each layer has each kind once, in BFL's pieces or in diffusers'.
        let (flux, name): (_, fn(&str) -> String) = if first % 2 == 0 {
            (&split, |n| format!("lycoris_{}", n.replace('.', "_")))
        } else {
            (&files.toy.flux, |n| format!("diffusion_model.{n}"))
        };
        let weight = if first < 6 { 1.0 } else { 0.6 };
        let (file, changed) = all_kinds(flux, name, first, weight);
        let lora = files.lora(&format!("kinds-{first}"), &file, &[]);
        let expected = picture(&files.load(&files.write(&format!("changed-{first}"), &changed), Precision::F32));
        assert!(distance(&expected, &without) > 0.05);
        let off = distance(&with(&mut pipeline, &lora, weight as f32), &expected);
        println!("kinds from {first}: {off:.1e}");
        assert!(off <= SAME, "kinds from {first}: {off}");
        // And folded into the weights.
        pipeline.set_loras(&Loras { used: vec![(lora, weight as f32)], merge: true }).unwrap();
        let off = distance(&picture(&pipeline), &expected);
        assert!(off <= SAME, "kinds from {first}, merged: {off}");
    }
    pipeline.set_loras(&Loras::default()).unwrap();
    assert_eq!(picture(&pipeline).latents, without.latents);
}

#[test]
fn weights_change_at_once_and_add_up() {
    let files = Files::new("lora-weights");
    let [first, second] = ["a", "b"].map(|seed| pairs(&files.toy, seed));
    let [a, b] =
        [("a", &first), ("b", &second)].map(|(name, pairs)| files.lora(name, &spelt(SPELLINGS[4], pairs), &[]));
    let mut pipeline = files.load(&files.flux, Precision::F32);
    let without = picture(&pipeline);
    let mut flux = merged(&files.toy.flux, &first, 0.5);
    for (layer, pair) in &second {
        let change = times(&pair.up, &pair.down);
        add(flux.get_mut(&format!("{layer}.weight")).unwrap(), -0.3 * f64::from(pair.alpha / pair.rank()), &change);
    }
    let expected = picture(&files.load(&files.write("both", &flux), Precision::F32));
    with(&mut pipeline, &a, 1.0);
    pipeline.set_loras(&Loras::from([(a.clone(), 0.5), (b.clone(), -0.3)])).unwrap();
    let both = picture(&pipeline);
    assert!(distance(&both, &expected) <= SAME, "{}", distance(&both, &expected));
    assert_eq!(with(&mut pipeline, &a, 0.0).latents, without.latents, "weight 0 is off");
    // The picture's file tells of them.
    pipeline.set_loras(&Loras::from([(a.clone(), 0.5), (b, 0.0)])).unwrap();
    let told = pipeline.provenance(&pipeline.request("x"), 1).loras;
    assert_eq!((told.len(), told[0].name.as_str(), told[0].weight), (1, "a", 0.5));
    let told_before: Vec<f32> = both.provenance.loras.iter().map(|lora| lora.weight).collect();
    assert_eq!(told_before, [0.5, -0.3], "of those that it was made with");
    assert!(told[0].hash.len() == 12 && told[0].hash == a.hash(), "{told:?}");
    for weight in [f32::NAN, f32::INFINITY, 1e6] {
        let error = pipeline.set_loras(&Loras::from([(a.clone(), weight)])).expect_err("no such weight").to_string();
        assert!(error.starts_with("lora: "), "{error}");
    }
}

#[test]
fn text_encoders_are_changed_too() {
    let files = Files::new("lora-text");
    let of = |arrays: &Arrays| -> Pairs {
        let layers = arrays.iter().filter(|(name, array)| {
            array.shape.len() == 2
                && !name.contains("embedding")
                && !name.contains("attention_bias")
                && *name != "shared.weight"
        });
        let layers = layers.map(|(name, array)| (name.strip_suffix(".weight").unwrap(), &array.shape));
        layers.map(|(layer, shape)| (layer.to_owned(), pair(layer, shape[0], shape[1], 3))).collect()
    };
    let [clip, t5] = [of(&files.toy.clip), of(&files.toy.t5)];
    assert_eq!((clip.len(), t5.len()), (6, 7));
    let changed = |arrays: &Arrays, pairs: &Pairs| {
        let mut arrays = arrays.clone();
        for (layer, pair) in pairs {
            let change = times(&pair.up, &pair.down);
            add(arrays.get_mut(&format!("{layer}.weight")).unwrap(), f64::from(pair.alpha / pair.rank()), &change);
        }
        arrays
    };
    let [clip_file, t5_file] =
        [("clip-changed", changed(&files.toy.clip, &clip)), ("t5-changed", changed(&files.toy.t5, &t5))]
            .map(|(name, arrays)| files.write(name, &arrays));
    let expected = picture(&load([&files.flux, &files.rest[0], &clip_file, &t5_file], Precision::F32));
    let mut pipeline = files.load(&files.flux, Precision::F32);
    let without = picture(&pipeline);
    assert!(distance(&expected, &without) > 1e-3);
    let underscored = [".lora_down.weight", ".lora_up.weight"];
    let dotted = [".lora_A.weight", ".lora_B.weight"];
    let names: [[Rename; 2]; 3] = [
        [|n| format!("lora_te1_{}", n.replace('.', "_")), |n| format!("lora_te3_{}", n.replace('.', "_"))],
        [|n| format!("lora_te_{}", n.replace('.', "_")), |n| format!("lora_te2_{}", n.replace('.', "_"))],
        [|n| format!("text_encoder.{n}"), |n| format!("text_encoder_2.{n}")],
    ];
    for (i, [of_clip, of_t5]) in names.into_iter().enumerate() {
        let endings = if i < 2 { underscored } else { dotted };
        let mut file = spelt(("", false, of_clip, endings, i < 2), &clip);
        file.extend(spelt(("", false, of_t5, endings, i < 2), &t5));
        let lora = files.lora(&format!("text-{i}"), &file, &[]);
        let off = distance(&with(&mut pipeline, &lora, 1.0), &expected);
        assert!(off <= SAME, "spelling {i}: {off}");
        let reports = pipeline.set_loras(&Loras::from([(lora, 1.0)])).unwrap();
        let tensors = if i < 2 { [18, 21] } else { [12, 14] };
        assert_eq!(reports[0].matched, [(Component::ClipL, tensors[0]), (Component::T5, tensors[1])]);
    }
    pipeline.set_loras(&Loras::default()).unwrap();
    assert_eq!(picture(&pipeline).latents, without.latents);
}

#[test]
fn what_has_no_place_is_named() {
    let files = Files::new("lora-unmatched");
    let split = pairs(&files.toy, "");
    let mut pipeline = files.load(&files.flux, Precision::F32);
    let whole = picture(&pipeline);
    let mut file = spelt(SPELLINGS[5], &split);
    let key = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight";
    let moved = file.remove(key).unwrap();
    file.insert("transformer.transformer_blocks.0.attn.to_quux.lora_A.weight".into(), moved);
    let extra = file["transformer.x_embedder.lora_A.weight"].clone();
    file.insert("transformer.transformer_blocks.77.attn.to_k.lora_A.weight".into(), extra.clone());
    file.insert("noise_scale".into(), extra);
    let reports = pipeline.set_loras(&Loras::from([(files.lora("broken", &file, &[]), 1.0)])).unwrap();
    let report: &LoraReport = &reports[0];
    let mut names: Vec<&str> = report.unmatched.iter().map(|left| left.key.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "noise_scale",
        "transformer.transformer_blocks.0.attn.to_q.alpha",
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight",
        "transformer.transformer_blocks.0.attn.to_quux.lora_A.weight",
        "transformer.transformer_blocks.77.attn.to_k.lora_A.weight",
    ];
    assert_eq!(names, expected);
    assert_eq!(report.matched.iter().map(|(_, count)| count).sum::<usize>(), 3 * split.len() - 3);
    let error = report.strict().expect_err("strict refuses").to_string();
    assert!(error.starts_with("strict: ") && error.contains("to_quux"), "{error}");
    pipeline.set_loras(&Loras::default()).unwrap();

    let problem = |pipeline: &mut Pipeline, lora: &Arc<Lora>| {
        pipeline.set_loras(&Loras::from([(lora.clone(), 1.0)])).expect_err("this must be refused").to_string()
    };
    let one = |key: &str, down: [usize; 2], up: [usize; 2]| {
        let mut file = Arrays::new();
        file.insert(format!("{key}.lora_down.weight"), random("down", &down, 1.0));
        file.insert(format!("{key}.lora_up.weight"), random("up", &up, 1.0));
        toy::stored(&file, toy::f32s)
    };
    for (name, file, words) in [
        (
            "xl",
            one("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", [4, 640], [640, 4]),
            ["Stable Diffusion", "not for FLUX.1"],
        ),
        ("other", one("blocks_0_self_attn_q", [4, 64], [64, 4]), ["another model", "blocks_0_self_attn_q"]),
        ("wide", one("lora_unet_double_blocks_0_img_attn_qkv", [4, 3072], [9216, 4]), ["[4, 3072]", "another model"]),
        ("tall", one("lora_unet_double_blocks_0_img_attn_qkv", [4, 128], [9216, 4]), ["[9216, 4]", "another model"]),
        ("ranks", one("lora_unet_double_blocks_0_img_attn_qkv", [4, 128], [384, 5]), ["[384, 5]", "[384, 4]"]),
    ] {
        let error = problem(&mut pipeline, &files.lora(name, &file, &[]));
        assert!(words.iter().all(|word| error.contains(word)) && error.contains(name), "{error}");
    }
    // A LoRA that cannot be used changes nothing, nor does the good one that came with it.
    let good = files.lora("good", &spelt(SPELLINGS[5], &split), &[]);
    let bad = files.lora("bad", &one("lora_unet_img_in", [4, 3], [128, 4]), &[]);
    assert!(pipeline.set_loras(&Loras::from([(good.clone(), 1.0), (bad, 1.0)])).is_err());
    assert_eq!(picture(&pipeline).latents, whole.latents);

    let error = Lora::open(&files.flux).expect_err("a whole model is no LoRA").to_string();
    assert!(error.contains("holds no LoRA"), "{error}");
    // Numbers that cannot be.
    let mut nan = spelt(SPELLINGS[0], &fused(&files.toy, &split));
    nan.insert("lora_unet_img_in.alpha".into(), toy::f32s(&number(f32::NAN)));
    let error = problem(&mut pipeline, &files.lora("nan", &nan, &[]));
    assert!(error.contains("lora_unet_img_in") && error.contains("alpha"), "{error}");
    // Quantised weights cannot take it in.
    let stored = files.scratch.join("q.gguf");
    converted(&files.flux, &stored, "q8_0");
    let mut quantised = files.load(&stored, Precision::F32);
    let error = quantised.set_loras(&Loras { used: vec![(good, 1.0)], merge: true }).expect_err("refused").to_string();
    assert!(error.starts_with("lora_merge: ") && error.contains("Q8_0"), "{error}");
}

/// BFL's control LoRAs: more channels for `img_in`, biases, and norms' scales that take the place of the model's.
#[test]
fn a_control_lora_widens_the_model() {
    let files = Files::new("lora-control");
    let (mut file, mut flux) = (Arrays::new(), files.toy.flux.clone());
    let weight = 0.85;
    let wide = flux["img_in.weight"].clone();
    let mut widened = Array { shape: vec![128, 128], values: vec![0.0; 128 * 128] };
    for (to, from) in widened.values.chunks_exact_mut(128).zip(wide.values.chunks_exact(64)) {
        to[..64].copy_from_slice(from);
    }
    flux.insert("img_in.weight".into(), widened);
    let names: Vec<String> = flux.keys().cloned().collect();
    for name in names {
        if let Some(layer) = name.strip_suffix(".weight") {
            let shape = flux[&name].shape.clone();
            let pair = pair(layer, shape[0], shape[1], 4);
            let bias = random(&format!("{layer} bias"), &[shape[0]], 0.2);
            add(flux.get_mut(&name).unwrap(), weight, &times(&pair.up, &pair.down));
            let change: Vec<f64> = bias.values.iter().map(|v| f64::from(*v)).collect();
            add(flux.get_mut(&format!("{layer}.bias")).unwrap(), weight, &change);
            file.insert(format!("{layer}.lora_A.weight"), pair.down);
            file.insert(format!("{layer}.lora_B.weight"), pair.up);
            file.insert(format!("{layer}.lora_B.bias"), bias);
        } else if name.strip_suffix(".scale").is_some() {
            let mut scale = random(&name, &[128], 0.4);
            scale.values.iter_mut().for_each(|v| *v += 1.0);
            file.insert(name.clone(), scale.clone());
            flux.insert(name, scale);
        }
    }
    let lora = files.lora("control", &toy::stored(&file, toy::f32s), &[]);
    let velocity = |path: &Path, precision, loras: &Loras| {
        let backend = Device::Cpu { threads: Some(2) }.open();
        let part = Part::open(path, Component::Transformer).unwrap();
        let mut flux = Flux::load(part.flux_config().unwrap(), &part.weights(&backend, precision)).unwrap();
        let reports = flux.set_loras(loras, &backend).unwrap();
        assert!(reports.iter().all(|report| report.unmatched.is_empty()), "{reports:?}");
        let channels = flux.config().in_channels;
        assert_eq!((channels, flux.config().out_channels), (128, 64));
        let tensor =
            |name: &str, shape: [usize; 2]| Tensor::from_vec(&backend, shape, random(name, &shape, 1.7).values);
        let rope = Rope::text_to_image(&backend, 6, [3, 4], flux.config().axes_dim, flux.config().theta);
        let (txt, pooled) = (tensor("txt", [6, 32]), tensor("pooled", [1, 64]));
        let condition = Condition { txt: &txt, pooled: &pooled, guidance_argument: 4512.0, rope: &rope };
        flux.forward(&tensor("img", [12, channels]), 0.6, condition, &mut |_, _| Ok(())).unwrap().to_vec()
    };
    let whole = files.write("control-merged", &flux);
    let off = |got: &[f32], expected: &[f32]| {
        let pairs = got.iter().zip(expected);
        let (off, all) =
            pairs.fold((0.0, 0.0), |(off, all), (g, e)| (off + f64::from(g - e).powi(2), all + f64::from(*e).powi(2)));
        (off / all).sqrt()
    };
    for (precision, most) in [(Precision::F32, SAME), (Precision::BF16, 0.018)] {
        let expected = velocity(&whole, precision, &Loras::default());
        let got = velocity(&files.flux, precision, &Loras::from([(lora.clone(), weight as f32)]));
        println!("control in {precision}: {:.1e}", off(&got, &expected));
        assert!(off(&got, &expected) <= most, "{precision}: {}", off(&got, &expected));
    }
    // Beside it, LoRAs for the model as it was go on.
    let pairs = pairs(&files.toy, "style");
    let style = files.lora("style", &spelt(SPELLINGS[4], &pairs), &[]);
    for (layer, pair) in &fused(&files.toy, &pairs) {
        let mut change = times(&pair.up, &pair.down);
        if layer == "img_in" {
            change = change.chunks_exact(64).flat_map(|row| [row, &[0.0; 64]].concat()).collect();
        }
        let factor = 0.5 * f64::from(pair.alpha / pair.rank());
        add(flux.get_mut(&format!("{layer}.weight")).unwrap(), factor, &change);
    }
    let expected = velocity(&files.write("control-style", &flux), Precision::F32, &Loras::default());
    let got = velocity(&files.flux, Precision::F32, &Loras::from([(lora.clone(), weight as f32), (style, 0.5)]));
    assert!(off(&got, &expected) <= SAME, "{}", off(&got, &expected));
    // Without its picture it makes none, and off it is off.
    let mut pipeline = files.load(&files.flux, Precision::F32);
    let without = picture(&pipeline);
    pipeline.set_loras(&Loras::from([(lora.clone(), 1.0)])).unwrap();
    let request = Request { width: 64, height: 48, steps: 1, ..Request::new("x", pipeline.defaults()) };
    let error = pipeline.generate(&request, &mut ()).expect_err("a control picture is missing").to_string();
    assert!(error.starts_with("control: is missing"), "{error}");
    // With one it is a control model; this autoencoder has no encoder, and the plan finds that before any work.
    let control = Some(Control::Ready(Rgb8::new(64, 48, vec![200; 64 * 48 * 3])));
    let request = Request { pictures: Pictures { control, ..Pictures::default() }, ..request };
    let error = pipeline.generate(&request, &mut ()).expect_err("there is no encoder").to_string();
    assert!(error.contains("'encoder."), "{error}");
    assert_eq!(with(&mut pipeline, &lora, 0.0).latents, without.latents);
}

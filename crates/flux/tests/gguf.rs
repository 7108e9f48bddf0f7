//! GGUF files as people have them: the same picture as from the numbers that they stand for, to the last bit.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/gguf.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod gguf;
#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod toy;

use std::path::{Path, PathBuf};

use flux::{
    Generated, LoadOptions, Pipeline, Request,
    model::{ModelSpec, PartFiles, SearchPaths},
    safety::Safety,
    text::tokenizer::T5Tokenizer,
    weights::{Checkpoint, Naming},
};
use gguf::Gguf;
use tensor::{DType, Device, Precision};
use toy::{Array, Arrays, Scratch, Toy};

fn load(spec: &ModelSpec, paths: &SearchPaths) -> flux::Result<Pipeline> {
    let options = LoadOptions {
        device: Device::Cpu { threads: Some(2) },
        precision: Some(Precision::F32),
        ..LoadOptions::default()
    };
    Pipeline::load(spec.find(paths)?, &options, &mut ())
}

fn picture(spec: &ModelSpec) -> Generated {
    let pipeline = load(spec, &SearchPaths::default()).unwrap_or_else(|e| panic!("{e}"));
    let request = Request {
        width: 64,
        height: 48,
        steps: 2,
        seed: 7,
        t5_length: 24,
        ..Request::new("a red fox, 35mm", pipeline.defaults())
    };
    pipeline.generate(&request, &mut ()).unwrap().remove(0)
}

fn same(case: &str, got: &Generated, expected: &Generated) {
    let differ = got.latents.values.iter().zip(&expected.latents.values).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{case}: {differ} latents differ");
    assert_eq!(got.picture, expected.picture, "{case}: another picture");
}

fn named(model: impl AsRef<Path>) -> ModelSpec {
    ModelSpec { model: Some(model.as_ref().into()), parts: PartFiles::default() }
}

fn parts(paths: [&Path; 4]) -> ModelSpec {
    let [transformer, vae, clip_l, t5xxl] = paths.map(|path| Some(path.to_owned()));
    ModelSpec { model: None, parts: PartFiles { transformer, vae, clip_l, t5xxl, ..PartFiles::default() } }
}

/// Formats in which an array can be stored, most wanted first: as quantisers do, what blocks do not fit is stored wider.
const FALLBACKS: [DType; 2] = [DType::Q8_0, DType::F16];

/// Writes arrays into a file, matrices in one of `wanted` in turn, and gives back the numbers that were stored.
fn store(file: &mut Gguf, prefix: &str, arrays: &Arrays, wanted: &[DType]) -> Arrays {
    let mut stored = Arrays::new();
    for (i, (name, array)) in arrays.iter().enumerate() {
        let row = array.shape.last().copied().unwrap_or(1);
        let fits = |dtype: &DType| row.is_multiple_of(dtype.block());
        let plain = array.shape.len() != 2;
        let dtype = if plain {
            [DType::F32, DType::F16, DType::BF16][i % 3]
        } else {
            let from = wanted.iter().cycle().skip(i).take(wanted.len());
            *from.chain(&FALLBACKS).find(|dtype| fits(dtype)).unwrap()
        };
        let count = array.values.len();
        let (bytes, values) = if dtype.block() == 1 {
            let bytes: Vec<u8> = match dtype {
                DType::F16 => array.values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                DType::BF16 => array.values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
                _ => array.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            let mut values = vec![0.0; count];
            dtype.decode(&bytes, &mut values);
            (bytes, values)
        } else {
            gguf::blocks(dtype, count, (row as f32).sqrt().recip(), i as u64)
        };
        let number = gguf::number(&dtype.name().to_uppercase());
        file.tensor(&format!("{prefix}{name}"), &array.shape, number, bytes);
        stored.insert(name.clone(), Array { shape: array.shape.clone(), values });
    }
    stored
}

fn renamed_t5(t5: &Arrays) -> Arrays {
    toy::renamed(t5, Naming::T5Llama)
}

/// What was stored, as single files of f32.
fn plain(scratch: &Scratch, toy: &Toy) -> ModelSpec {
    let paths = ["flux", "vae", "clip", "t5"].map(|part| scratch.join(format!("plain/{part}.safetensors")));
    let [flux, vae, clip, t5] = paths.each_ref().map(PathBuf::as_path);
    toy.single_files([flux, vae, clip, t5], toy::f32s);
    parts([flux, vae, clip, t5])
}

/// city96's way: a transformer and a T5 encoder in GGUF files of their own, in ComfyUI's folders.
#[test]
fn a_transformer_and_an_encoder_with_its_tokenizer() {
    let toy = Toy::new();
    for (index, wanted) in DType::BLOCKS.chunks(4).chain([&[DType::BF16][..]]).enumerate() {
        let scratch = Scratch::new(&format!("gguf-{index}"));
        let models = scratch.join("ComfyUI/models");
        let mut transformer = Gguf::new();
        transformer.version = if index == 1 { 2 } else { 3 };
        transformer.text("general.architecture", "flux");
        transformer.integer("general.quantization_version", 2);
        let flux = store(&mut transformer, "", &toy.flux, wanted);
        toy::bytes(&models.join("unet/flux1-krea-dev-Q4_K_S.gguf"), &transformer.file());

        let mut encoder = Gguf::new();
        encoder.text("general.architecture", "t5encoder");
        if index == 2 {
            encoder.alignment = 64;
            encoder.integer("general.alignment", 64);
        }
        encoder.t5_tokenizer();
        let theirs = store(&mut encoder, "", &renamed_t5(&toy.t5), wanted);
        toy::bytes(&models.join("text_encoders/t5-v1_1-xxl-encoder-Q4_K_M.gguf"), &encoder.file());
        let t5 = toy.t5.keys().map(|name| (name.clone(), theirs[&Naming::T5Llama.pieces(name)[0].name].clone()));
        let stored = Toy { flux, t5: t5.collect(), ..toy.clone() };

        let expected = plain(&scratch, &stored);
        let others = &expected.parts;
        toy::place(others.vae.as_deref().unwrap(), &models.join("vae/ae.safetensors"));
        toy::place(others.clip_l.as_deref().unwrap(), &models.join("clip/clip_l.safetensors"));
        same(&format!("{wanted:?}"), &picture(&named(scratch.join("ComfyUI"))), &picture(&expected));
    }
}

/// stable-diffusion.cpp's way: everything in one file, even what city96 keeps exact in blocks, and ComfyUI's prefixes.
#[test]
fn everything_in_one_file() {
    let toy = Toy::new();
    for (index, [clip, vae]) in
        [["text_encoders.clip_l.transformer.", "vae."], ["cond_stage_model.transformer.", "first_stage_model."]]
            .into_iter()
            .enumerate()
    {
        let scratch = Scratch::new(&format!("gguf-whole-{index}"));
        let mut file = Gguf::new();
        let wanted = [DType::Q4_0, DType::Q8_0, DType::Q4K];
        let flux = store(&mut file, "model.diffusion_model.", &toy.flux, &wanted);
        let vae = store(&mut file, vae, &toy.vae, &wanted);
        let clip = store(&mut file, clip, &toy.clip, &wanted);
        // The names of Hugging Face, or those of llama.cpp kept under the prefix.
        let prefix = "text_encoders.t5xxl.transformer.";
        let t5 = if index == 0 {
            store(&mut file, prefix, &toy.t5, &wanted)
        } else {
            let theirs = store(&mut file, prefix, &renamed_t5(&toy.t5), &wanted);
            toy.t5.keys().map(|n| (n.clone(), theirs[&Naming::T5Llama.pieces(n)[0].name].clone())).collect()
        };
        let path = scratch.join("flux1-krea-dev-q4_0.gguf");
        toy::bytes(&path, &file.file());
        let expected = plain(&scratch, &Toy { flux, vae, clip, t5 });
        same("one file", &picture(&named(&path)), &picture(&expected));
    }
}

/// Blocks that do not end where rows do: a quantised bias, and a kernel that ComfyUI-GGUF flattened.
#[test]
fn blocks_across_rows() {
    let toy = Toy::new();
    let scratch = Scratch::new("gguf-across");
    let [mut transformer, mut autoencoder] = [Gguf::new(), Gguf::new()];
    let mut stored = toy.clone();
    let (bias, kernel) = ("double_blocks.0.img_mlp.0.bias", "decoder.mid.block_1.conv1.weight");
    let mut flux = toy.flux.clone();
    let array = flux.remove(bias).unwrap();
    let (bytes, values) = gguf::blocks(DType::Q8_0, array.values.len(), 0.1, 1);
    transformer.tensor(bias, &array.shape, gguf::number("Q8_0"), bytes);
    stored.flux = store(&mut transformer, "", &flux, &[DType::F32]);
    stored.flux.insert(bias.into(), Array { values, ..array });

    let mut vae = toy.vae.clone();
    let array = vae.remove(kernel).unwrap();
    let count = array.values.len();
    let (bytes, values) = gguf::blocks(DType::Q4K, count, 0.04, 2);
    let original: Vec<i32> = array.shape.iter().map(|&d| d as i32).collect();
    autoencoder.integers(&format!("comfy.gguf.orig_shape.{kernel}"), &original);
    autoencoder.tensor(kernel, &[count / 256, 256], gguf::number("Q4_K"), bytes);
    stored.vae = store(&mut autoencoder, "", &vae, &[DType::F32]);
    stored.vae.insert(kernel.into(), Array { values, ..array });

    let expected = plain(&scratch, &stored);
    let mut spec = expected.clone();
    for (slot, file) in [(&mut spec.parts.transformer, &transformer), (&mut spec.parts.vae, &autoencoder)] {
        let path = slot.as_ref().unwrap().with_extension("gguf");
        toy::bytes(&path, &file.file());
        *slot = Some(path);
    }
    same("across", &picture(&spec), &picture(&expected));
}

#[test]
fn a_tokenizer_inside_gives_the_references_ids() {
    #[derive(serde::Deserialize)]
    struct Case {
        prompt: String,
        t5: Vec<u32>,
    }
    let scratch = Scratch::new("gguf-tokenizer");
    let path = scratch.join("t5.gguf");
    let mut file = Gguf::new();
    file.t5_tokenizer();
    toy::bytes(&path, &file.file());
    let inside = T5Tokenizer::from_gguf(&Checkpoint::open(&path).unwrap()).unwrap();
    let screened = |prompt: &str, tokenizer: &T5Tokenizer| {
        let safety = Safety::off();
        let text = safety.screen(prompt).unwrap();
        let length = tokenizer.count(&text).unwrap();
        tokenizer.encode(&text, length + 3).unwrap()
    };
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/tokens.json")).unwrap();
    assert_eq!(cases.len(), 13);
    for case in &cases {
        let ids = screened(&case.prompt, &inside);
        assert_eq!(ids[..case.t5.len()], case.t5, "{:?}", case.prompt);
        assert!(ids[case.t5.len()..].iter().all(|id| *id == 0));
    }
    let awkward = [
        "a</s>b<extra_id_0>",
        "[PAD32101] is text",
        "\u{1F98A} 狐 ﬁ ½ ① Ⅻ",
        "  two  spaces\n\tand\u{200b}zero ",
        "ÅÄÖ naïve cafe\u{301}",
        "x\u{0}y",
        "<pad><unk>",
        "▁▁ _ __",
        "ＦＵＬＬ　ｗｉｄｔｈ",
        "a\u{feff}b",
        "don't 3.14159 #tag @me https://a.b/c?d=e&f",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    ];
    for prompt in awkward {
        assert_eq!(screened(prompt, &inside), screened(prompt, T5Tokenizer::embedded()), "{prompt:?}");
    }
}

#[test]
fn a_tokenizer_that_lies_is_refused() {
    // What is wrong, scores, character map, words of the refusal.
    type Case<'a> = (&'a str, &'a [f32], &'a [u8], &'a [&'a str]);
    let scratch = Scratch::new("gguf-bad-tokenizer");
    let tokens: Vec<String> = ["<pad>", "</s>", "<unk>", "▁a", "b"].map(String::from).into();
    let good = [0.0, 0.0, 0.0, -1.0, -2.0];
    let cases: [Case<'_>; 3] = [
        ("fewer scores", &good[..4], &[], &["tokenizer.ggml.tokens", "5 pieces", "4 scores"]),
        ("a score that is none", &[0.0, 0.0, 0.0, f32::NAN, 0.0], &[], &["tokenizer.ggml.scores", "NaN"]),
        ("no character map", &good, &[1, 2, 3], &["t5.gguf"]),
    ];
    for (case, scores, charsmap, words) in cases {
        let path = scratch.join("t5.gguf");
        let mut file = Gguf::new();
        file.tokenizer(&tokens, scores, charsmap);
        toy::bytes(&path, &file.file());
        let problem = T5Tokenizer::from_gguf(&Checkpoint::open(&path).unwrap()).expect_err(case).to_string();
        assert!(problem.contains("t5.gguf") && words.iter().all(|w| problem.contains(w)), "{case}: {problem}");
    }
    let mut lists = Gguf::new();
    lists.text("tokenizer.ggml.model", "t5");
    lists.integers("tokenizer.ggml.tokens", &[1, 2]);
    let path = scratch.join("lists.gguf");
    toy::bytes(&path, &lists.file());
    let problem = T5Tokenizer::from_gguf(&Checkpoint::open(&path).unwrap()).expect_err("no texts").to_string();
    assert!(problem.contains("'tokenizer.ggml.tokens' is not a list of texts"), "{problem}");
}

/// Some programs keep the blocks alone and complete them from BFL's file.
#[test]
fn a_file_without_embedders_is_completed_or_says_so() {
    let toy = Toy::new();
    let scratch = Scratch::new("gguf-pruned");
    let expected = plain(&scratch, &toy);
    let mut file = Gguf::new();
    let blocks = toy.flux.iter().filter(|(name, _)| name.contains("_blocks.")).map(|(n, a)| (n.clone(), a.clone()));
    let stored = store(&mut file, "", &blocks.collect(), &[DType::Q8_0]);
    let path = scratch.join("pruned-Q8_0.gguf");
    toy::bytes(&path, &file.file());
    let mut spec = expected.clone();
    spec.parts.transformer = Some(path.clone());
    let problem = load(&spec, &SearchPaths::default()).expect_err("nothing to start with").to_string();
    for word in ["pruned-Q8_0.gguf", "img_in, txt_in, time_in.in_layer", "final_layer.linear", "hint: "] {
        assert!(problem.contains(word), "{word}: {problem}");
    }
    // A whole transformer of the same family lies near: city96's files without embedders are used with BFL's.
    let models = scratch.join("models");
    let [pruned, whole] =
        ["unet/flux1-krea-dev-Q8_0.gguf", "diffusion_models/flux1-krea-dev.safetensors"].map(|f| models.join(f));
    toy::place(&path, &pruned);
    let other = models.join("diffusion_models/flux1-dev.safetensors");
    toy::write(&other, &toy::stored(&toy.map(|x| 0.5 * x).flux, toy::f32s));
    spec.parts.transformer = Some(pruned.clone());
    load(&spec, &SearchPaths::default()).expect_err("another model's are not taken");
    let mut flux = toy.flux.clone();
    flux.extend(stored);
    toy::write(&whole, &toy::stored(&toy.flux, toy::f32s));
    let mut expected = expected;
    expected.parts.transformer = Some(scratch.join("expected.safetensors"));
    toy::write(expected.parts.transformer.as_deref().unwrap(), &toy::stored(&flux, toy::f32s));
    same("completed", &picture(&spec), &picture(&expected));
    let notice = spec.find(&SearchPaths::default()).unwrap().notice.unwrap();
    assert!(notice.contains("diffusion_models/flux1-krea-dev.safetensors"), "{notice}");
}

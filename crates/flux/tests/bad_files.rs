//! Files that are damaged, lie or do not belong together: each is refused with a sentence that names the file and what is
//! wrong with it, without a panic and without believing the sizes that the file claims.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/measured.rs"]
#[expect(unreachable_pub, reason = "a module of each test file that uses it")]
mod measured;
#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod toy;

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use flux::{
    LoadOptions, Pipeline, Request,
    model::{ModelSpec, PartFiles, SearchPaths},
    text::tokenizer::{ClipTokenizer, T5Tokenizer},
    weights::Checkpoint,
};
use measured::{ALLOCATOR, MOST, alone, refused};
use tensor::{Device, Precision};
use toy::{Array, Scratch, Stored, Toy};

fn load(spec: &ModelSpec) -> flux::Result<Pipeline> {
    load_with(spec, &SearchPaths::default())
}

fn load_with(spec: &ModelSpec, paths: &SearchPaths) -> flux::Result<Pipeline> {
    // The program's own tokenizers are built once and are no part of what a file costs.
    let _ = (ClipTokenizer::embedded(), T5Tokenizer::embedded());
    let options = LoadOptions {
        device: Device::Cpu { threads: Some(1) },
        precision: Some(Precision::F32),
        ..LoadOptions::default()
    };
    Pipeline::load(spec.find(paths)?, &options, &mut ())
}

fn named(model: &Path) -> ModelSpec {
    ModelSpec { model: Some(model.into()), parts: PartFiles::default() }
}

/// A file's bytes from a header and as many zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
#[should_panic(expected = "MB to refuse")]
fn the_measure_measures() {
    let _alone = alone();
    refused("large", &[], || {
        std::hint::black_box(vec![1u8; 80 << 20]);
        Err::<(), _>(flux::Error::Cancelled)
    });
}

#[test]
fn single_files_that_are_damaged_or_something_else() {
    let _alone = alone();
    let scratch = Scratch::new("damaged");
    let good = toy::safetensors(&toy::stored(&Toy::new().vae, toy::f32s), &[]);
    let header = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let with_length = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let one = |shape: &str, begin: u64, end: u64| {
        file(&format!(r#"{{"w.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#), 64)
    };
    let mut not_utf8 = good.clone();
    not_utf8[12] = 0xff;
    let deep = file(&"[".repeat(1 << 20), 0);
    let many_extents = format!("[{}1]", "1,".repeat(1 << 20));
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("empty", Vec::new(), &["is empty", "download"]),
        ("cut in the data", good[..good.len() / 2].to_vec(), &["is cut short", "tensor 'decoder.", "download"]),
        ("cut by one byte", good[..good.len() - 1].to_vec(), &["is cut short", "tensor 'decoder."]),
        ("cut in the header", good[..header / 2].to_vec(), &["is cut short", "download"]),
        ("cut in the length", good[..7].to_vec(), &["is cut short"]),
        ("a length of 2^64 − 1", with_length(u64::MAX), &["claims a header of 18446744073709551615 bytes"]),
        ("a length of terabytes", with_length(1 << 42), &["claims a header of"]),
        ("a length just allowed", with_length(99_999_999), &["is cut short", "100000007"]),
        ("a length into the data", with_length(header as u64 + 8), &["damaged header"]),
        ("a length too short", with_length(header as u64 - 8), &["damaged header"]),
        ("a length of none", with_length(0), &["damaged header"]),
        ("not UTF-8", not_utf8, &["damaged header", "UTF-8"]),
        ("deep nesting", deep, &["damaged header"]),
        ("terabytes that are not there", one("[1048576,1048576]", 0, 1 << 42), &["is cut short", "'w.weight'"]),
        ("terabytes in a few bytes", one("[1048576,1048576]", 0, 64), &["lying header", "'w.weight'", "1048576"]),
        ("a product past 2^64", one("[4294967296,4294967296,2]", 0, 64), &["lying header", "'w.weight'"]),
        ("offsets past 2^64", one("[1]", u64::MAX - 3, u64::MAX), &["'w.weight'"]),
        ("offsets backwards", one("[1]", 8, 4), &["lying header", "'w.weight'"]),
        ("negative extents", one("[-1]", 0, 4), &["damaged header"]),
        ("a million extents", one(&many_extents, 0, 4), &["lying header", "'w.weight'", "1048577 extents"]),
        (
            "two tensors in one place",
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}"#,
                64,
            ),
            &["lying header", "'b' overlaps 'a'"],
        ),
        (
            "one name twice",
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                64,
            ),
            &["lying header", "'a' is named twice"],
        ),
        ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec(), &["a PNG picture"]),
        ("JPEG", b"\xff\xd8\xff\xe0\0\x10JFIF\0\0\0\0\0".to_vec(), &["a JPEG picture"]),
        ("pickle", b"PK\x03\x04\0\0\0\0\0\0\0\0".to_vec(), &["zip archive"]),
        ("GGUF", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), &["is cut short", "the number of tensors", "download"]),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), &["git lfs pull"]),
        ("a page", b"<!DOCTYPE html><html>".to_vec(), &["a web page"]),
        ("text", b"Access denied. Please log in to continue.".to_vec(), &["claims a header of"]),
        (
            "nothing that is known",
            file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4),
            &["holds no FLUX transformer", "nothing that is known"],
        ),
        ("an autoencoder", good.clone(), &["holds no FLUX transformer", "autoencoder"]),
    ];
    for (case, bytes, words) in cases {
        let path = scratch.join(format!("{}.safetensors", case.replace(' ', "-")));
        toy::bytes(&path, bytes);
        let words = [&[path.to_str().unwrap()], *words].concat();
        refused(case, &words, || load(&named(&path)));
        // The same file as a part.
        let parts = PartFiles { vae: Some(path.clone()), ..PartFiles::default() };
        if *case != "an autoencoder" {
            refused(case, &[path.to_str().unwrap()], || load(&ModelSpec { model: Some("pocket".into()), parts }));
        }
    }
    refused("a folder", &["is a folder"], || Checkpoint::open(&scratch.join("")));
    refused("no file", &["no-such-file"], || Checkpoint::open(&scratch.join("no-such-file.safetensors")));
    let missing = scratch.join("no-such-file.safetensors");
    refused("no model", &["model: there is no file, folder or known model", "no-such-file"], || load(&named(&missing)));
}

/// A diffusers folder that is good until something is done to it; big files are shared.
struct Folders {
    scratch: Scratch,
    next: Cell<usize>,
}

impl Folders {
    fn new(name: &str) -> Self {
        let folders = Self { scratch: Scratch::new(name), next: Cell::new(0) };
        toy().diffusers(&folders.scratch.join("good"), 1);
        toy().diffusers(&folders.scratch.join("sharded"), 3);
        folders
    }

    /// A copy, whose files may be replaced (not changed in place).
    fn copy(&self, kind: &str) -> PathBuf {
        self.next.set(self.next.get() + 1);
        let copy = self.scratch.join(format!("{kind}-{}", self.next.get()));
        copy_folder(&self.scratch.join(kind), &copy);
        copy
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy_folder(&entry.path(), &target) } else { toy::place(&entry.path(), &target) }
    }
}

/// Writes a file anew: the one there may be a link to a good one.
fn replace(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    toy::bytes(path, bytes);
}

fn toy() -> &'static Toy {
    static TOY: OnceLock<Toy> = OnceLock::new();
    TOY.get_or_init(Toy::new)
}

const SHARDS: &str = "transformer/diffusion_pytorch_model";

#[test]
fn shards_and_their_index() {
    let _alone = alone();
    let folders = Folders::new("shards");
    load(&named(&folders.copy("sharded"))).unwrap();

    let folder = folders.copy("sharded");
    let missing = format!("{SHARDS}-00002-of-00003.safetensors");
    std::fs::remove_file(folder.join(&missing)).unwrap();
    refused("a shard is missing", &[&missing, "is missing", "index.json", "download"], || load(&named(&folder)));

    let index = format!("{SHARDS}.safetensors.index.json");
    let change = |from: &str, to: &str| {
        let folder = folders.copy("sharded");
        let text = std::fs::read_to_string(folder.join(&index)).unwrap();
        assert!(text.contains(from), "{from}");
        replace(&folder.join(&index), text.replacen(from, to, 1).as_bytes());
        folder
    };
    let promise = change("\"proj_out.bias\"", "\"proj_out.gain\"");
    refused("a promise", &["00", "lacks 'proj_out.gain'", "promises"], || load(&named(&promise)));
    let outside = change("diffusion_pytorch_model-00001", "../../diffusion_pytorch_model-00001");
    refused("a way out", &[&index, "../../", "not a file beside it"], || load(&named(&outside)));
    let other = change("weight_map", "weights");
    refused("no map", &[&index, "weight_map"], || load(&named(&other)));
    let broken = change("{", "[");
    refused("no JSON", &[&index], || load(&named(&broken)));

    let folder = folders.copy("sharded");
    let (first, second) = ("-00001-of-00003.safetensors", "-00002-of-00003.safetensors");
    let copy = std::fs::read(folder.join(format!("{SHARDS}{first}"))).unwrap();
    replace(&folder.join(format!("{SHARDS}{second}")), &copy);
    refused("a shard twice", &[second, "another shard holds too"], || load(&named(&folder)));
}

#[test]
fn tensors_of_another_type_or_size() {
    let _alone = alone();
    let folders = Folders::new("tensors");
    let file = format!("{SHARDS}.safetensors");
    let naming = flux::weights::Naming::FluxDiffusers;
    let good = toy::stored(&toy::renamed(&toy().flux, naming), toy::f32s);
    let zeros = |dtype, shape: &[usize], bytes: usize| Stored { dtype, shape: shape.to_vec(), bytes: vec![0; bytes] };
    let to_q = "transformer_blocks.0.attn.to_q.weight";
    let cases: &[(&str, &str, Option<Stored>, &[&str])] = &[
        ("missing", to_q, None, &["lacks the tensor"]),
        ("integers", to_q, Some(zeros("I64", &[128, 128], 8 << 14)), &["as I64", "F32, F16, BF16"]),
        ("doubles", "x_embedder.bias", Some(zeros("F64", &[128], 1024)), &["as F64"]),
        ("four bits", to_q, Some(zeros("U8", &[128, 64], 128 * 64)), &["as U8"]),
        ("transposed", "proj_out.weight", Some(zeros("F32", &[128, 64], 4 << 13)), &["[128, 64]"]),
        ("too few rows", to_q, Some(zeros("F32", &[64, 128], 4 << 13)), &["[64, 128]", "was expected"]),
        ("a number", to_q, Some(zeros("F32", &[], 4)), &["[]"]),
        ("nothing", to_q, Some(zeros("F32", &[0, 128], 0)), &["[0, 128]"]),
        ("a list", "x_embedder.bias", Some(zeros("F32", &[64], 256)), &["[64]", "[128]"]),
        ("odd halves", "norm_out.linear.weight", Some(zeros("F32", &[255, 128], 4 * 255 * 128)), &["[255, 128]"]),
    ];
    for with_config in [true, false] {
        for (case, name, tensor, words) in cases {
            let folder = folders.copy("good");
            let mut tensors = good.clone();
            tensors.remove(*name);
            if let Some(tensor) = tensor {
                tensors.insert((*name).to_owned(), tensor.clone());
            }
            replace(&folder.join(&file), &toy::safetensors(&tensors, &[]));
            let words = if with_config {
                [&[file.as_str(), name], *words].concat()
            } else {
                // Sizes are then told by the very tensors that are wrong.
                std::fs::remove_file(folder.join("transformer/config.json")).unwrap();
                vec!["transformer"]
            };
            refused(&format!("{case}, config: {with_config}"), &words, || load(&named(&folder)));
        }
    }

    // An fp8 layer's scale must be one number.
    let folder = folders.copy("good");
    let mut tensors = good.clone();
    tensors.insert(to_q.into(), zeros("F8_E4M3", &[128, 128], 1 << 14));
    tensors.insert("transformer_blocks.0.attn.to_q.weight_scale".into(), zeros("F32", &[128], 512));
    replace(&folder.join(&file), &toy::safetensors(&tensors, &[]));
    refused("many scales", &[&file, "to_q.weight_scale", "one number"], || load(&named(&folder)));
}

/// Files without configurations of which one tensor is missing or has a shape that tells nonsense.
#[test]
fn sizes_told_by_nonsense_shapes() {
    let _alone = alone();
    let folders = Folders::new("nonsense");
    let parts = [
        ("transformer", "diffusion_pytorch_model", toy::renamed(&toy().flux, flux::weights::Naming::FluxDiffusers)),
        ("vae", "diffusion_pytorch_model", toy::renamed(&toy().vae, flux::weights::Naming::VaeDiffusers { levels: 4 })),
        ("text_encoder", "model", small_tables(&toy().clip)),
        ("text_encoder_2", "model", small_tables(&toy().t5)),
    ];
    let mut tried = 0;
    for (part, stem, arrays) in parts {
        let folder = folders.copy("good");
        std::fs::remove_file(folder.join(part).join("config.json")).unwrap();
        let file = folder.join(part).join(format!("{stem}.safetensors"));
        let good = toy::stored(&arrays, toy::f32s);
        for name in arrays.keys() {
            // Neither sizes nor products of these may be believed; 2^60 times nothing is nothing.
            let shapes = [vec![], vec![0], vec![0, 1 << 60], vec![0, 1 << 30, 3, 3], vec![1; 8], vec![1, 1]];
            for shape in shapes.into_iter().map(Some).chain([None]) {
                let mut tensors = good.clone();
                tensors.remove(name);
                if let Some(shape) = &shape {
                    let bytes = vec![0; if shape.contains(&0) { 0 } else { 4 }];
                    tensors.insert(name.clone(), Stored { dtype: "F32", shape: shape.clone(), bytes });
                }
                replace(&file, &toy::safetensors(&tensors, &[]));
                let case = format!("{part}: '{name}' of shape {shape:?}");
                refused(&case, &[folder.to_str().unwrap()], || load(&named(&folder)));
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

/// With three tokens, so that many files can be written.
fn small_tables(arrays: &toy::Arrays) -> toy::Arrays {
    let mut arrays = arrays.clone();
    for (name, array) in &mut arrays {
        if name.ends_with("token_embedding.weight") || name == "shared.weight" {
            *array = Array { shape: vec![3, array.shape[1]], values: array.values[..3 * array.shape[1]].to_vec() };
        }
    }
    arrays
}

#[test]
fn configurations() {
    let _alone = alone();
    let folders = Folders::new("configurations");
    let cases: &[(&str, &str, &[u8], &[&str])] = &[
        ("not JSON", "transformer/config.json", b"{\"in_channels\": ", &["transformer's configuration"]),
        ("not UTF-8", "transformer/config.json", b"{\"a\": \"\xff\"}", &["UTF-8"]),
        ("empty", "vae/config.json", b"", &["autoencoder's configuration"]),
        ("text", "text_encoder/config.json", b"\"clip\"", &["CLIP"]),
        ("text for a number", "text_encoder_2/config.json", b"{\"d_model\": \"wide\"}", &["T5"]),
        (
            "another transformer",
            "transformer/config.json",
            br#"{"_class_name":"SD3Transformer2DModel","in_channels":64,"num_layers":1,"num_single_layers":1,
               "attention_head_dim":128,"num_attention_heads":1,"joint_attention_dim":32,"pooled_projection_dim":64}"#,
            &["SD3Transformer2DModel", "FluxTransformer2DModel was expected"],
        ),
        ("another autoencoder", "vae/config.json", br#"{"_class_name":"AutoencoderDC"}"#, &["AutoencoderDC"]),
        ("another pipeline", "model_index.json", br#"{"_class_name":"StableDiffusionPipeline"}"#, &["FluxPipeline"]),
        ("no pipeline", "model_index.json", b"{}", &["_class_name"]),
        ("no scheduler", "scheduler/scheduler_config.json", b"{\"shift\": 0}", &["'shift' is 0"]),
        ("another scheduler", "scheduler/scheduler_config.json", br#"{"_class_name":"DDIMScheduler"}"#, &["DDIM"]),
        ("an unknown activation", "text_encoder/config.json", br#"{"hidden_act":"mish"}"#, &["'mish'"]),
        ("our own file", "darkroom.json", b"{\"defaults\": 1}", &["cannot be read"]),
        ("a tokenizer that is none", "tokenizer/tokenizer.json", b"{}", &["tokenizer"]),
        ("a vocabulary alone", "tokenizer/vocab.json", b"{}", &["tokenizer"]),
    ];
    for (case, file, content, words) in cases {
        let folder = folders.copy("good");
        replace(&folder.join(file), content);
        let path = folder.join(file);
        let place = if case.starts_with("a vocabulary") { path.parent().unwrap() } else { &path };
        refused(case, &[&[place.to_str().unwrap()], *words].concat(), || load(&named(&folder)));
    }

    // Numbers that no model has: refused by their own limit or because the tensors are of another size.
    let configs = [
        ("transformer", toy::transformer_config()),
        ("vae", toy::vae_config()),
        ("text_encoder", toy::clip_config()),
        ("text_encoder_2", toy::t5_config()),
    ];
    let all =
        ["max_position_embeddings", "vocab_size", "relative_attention_num_buckets", "norm_num_groups", "patch_size"];
    let mut tried = 0;
    for (part, config) in configs {
        let folder = folders.copy("good");
        let path = folder.join(part).join("config.json");
        let numbers = config.as_object().unwrap().iter().filter(|(_, v)| v.is_u64()).map(|(k, _)| k.as_str());
        let keys: Vec<&str> = numbers.chain(all).collect();
        for key in keys {
            for value in [0u64, 1, 3, 1 << 31, 1 << 62, u64::MAX] {
                let mut config = config.clone();
                config[key] = value.into();
                replace(&path, config.to_string().as_bytes());
                let before = ALLOCATOR.current_usage();
                ALLOCATOR.reset_peak_usage();
                // Some are right (one layer, one head) or are not this part's; none may panic or take much.
                let result = load(&named(&folder));
                let peak = ALLOCATOR.peak_usage().saturating_sub(before);
                assert!(peak <= MOST, "{part}, {key} = {value}: took {} MB", peak >> 20);
                let weighty = value > 3 && config[key] != serde_json::Value::Null && !matches!(key, "eos_token_id");
                let own = toy_key(part, key);
                if let Err(error) = &result {
                    assert!(error.to_string().contains(part), "{part}, {key} = {value}: {error}");
                } else {
                    assert!(!(weighty && own), "{part}, {key} = {value}: was accepted");
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 150, "{tried}");
}

/// Whether a part's loading depends on that key.
fn toy_key(part: &str, key: &str) -> bool {
    match part {
        "text_encoder" => !matches!(key, "relative_attention_num_buckets" | "norm_num_groups" | "patch_size"),
        "text_encoder_2" => !matches!(key, "max_position_embeddings" | "norm_num_groups" | "patch_size"),
        "transformer" => !matches!(
            key,
            "max_position_embeddings" | "vocab_size" | "relative_attention_num_buckets" | "norm_num_groups"
        ),
        _ => !matches!(
            key,
            "max_position_embeddings" | "vocab_size" | "relative_attention_num_buckets" | "patch_size" | "sample_size"
        ),
    }
}

#[test]
fn what_is_missing_or_ambiguous_in_a_tree_is_named() {
    let _alone = alone();
    let scratch = Scratch::new("trees");
    let [flux, vae, clip, t5] = ["flux", "ae", "clip", "t5"].map(|f| scratch.join(format!("files/{f}.safetensors")));
    toy().single_files([&flux, &vae, &clip, &t5], toy::f32s);
    let comfy = scratch.join("ComfyUI");
    let models = comfy.join("models");
    let transformer = models.join("diffusion_models/flux1-krea-dev.safetensors");
    toy::place(&flux, &transformer);
    toy::place(&clip, &models.join("text_encoders/clip_l.safetensors"));
    toy::place(&t5, &models.join("text_encoders/t5xxl_fp16.safetensors"));
    let models_text = models.to_str().unwrap();
    let words = [transformer.to_str().unwrap(), "autoencoder (vae)", "--vae", models_text];
    let problem = refused("no autoencoder", &words, || load(&named(&comfy)));
    assert!(!problem.contains("--clip-l") && !problem.contains("--t5xxl"), "only what is missing: {problem}");

    // What is given is not looked for; what is given wrongly is said.
    let with = |vae: &Path| ModelSpec {
        parts: PartFiles { vae: Some(vae.to_owned()), ..PartFiles::default() },
        ..named(&comfy)
    };
    load(&with(&vae)).unwrap();
    refused("CLIP as autoencoder", &[clip.to_str().unwrap(), "holds no autoencoder"], || load(&with(&clip)));
    let empty = scratch.join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    refused("an empty folder as part", &["empty", "is a folder without"], || load(&with(&empty)));
    refused("an empty folder as model", &["empty", "model_index.json", "--transformer"], || load(&named(&empty)));

    toy::place(&flux, &models.join("diffusion_models/flux1-dev.safetensors"));
    toy::place(&flux, &models.join("unet/flux1-schnell.safetensors"));
    let others = scratch.join("others/models");
    copy_folder(&models, &others);
    std::fs::remove_file(others.join("diffusion_models/flux1-krea-dev.safetensors")).unwrap();
    let words = [others.to_str().unwrap(), "several FLUX models", "flux1-dev.safetensors", "flux1-schnell.safetensors"];
    refused("two models", &words, || load(&named(&others)));

    // A damaged file in a place that promises a part is an error, not a part that is missing.
    let damaged = models.join("vae/ae.safetensors");
    toy::bytes(&damaged, b"\x89PNG\r\n\x1a\n");
    refused("a damaged autoencoder", &[damaged.to_str().unwrap(), "a PNG picture"], || load(&named(&transformer)));

    let paths = SearchPaths {
        hf_cache: Some(scratch.join("hub")),
        comfyui: vec![scratch.join("nothing")],
        ..SearchPaths::default()
    };
    let words = ["krea", "models--black-forest-labs--FLUX.1-Krea-dev", "nothing", "hint: "];
    let krea = ModelSpec { model: Some("krea".into()), ..ModelSpec::default() };
    refused("a known name without files", &words, || load_with(&krea, &paths));
    std::fs::create_dir_all(scratch.join("hub/models--black-forest-labs--FLUX.1-Krea-dev/snapshots")).unwrap();
    refused("an empty cache", &["snapshots", "holds no snapshot"], || load_with(&krea, &paths));
}

#[test]
fn parts_that_do_not_fit_each_other() {
    let _alone = alone();
    let folders = Folders::new("misfits");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipelines/one_one_schnell");
    let good = folders.copy("good");
    let spec = |parts| ModelSpec { parts, ..named(&good) };
    let some = |part: &str| Some(golden.join(part));
    let cases = [
        ("CLIP", PartFiles { clip_l: some("text_encoder"), ..PartFiles::default() }, ["CLIP's width", "vector_in"]),
        ("T5", PartFiles { t5xxl: some("text_encoder_2"), ..PartFiles::default() }, ["T5's width", "txt_in"]),
        ("autoencoder", PartFiles { vae: some("vae"), ..PartFiles::default() }, ["autoencoder's latents", "img_in"]),
        ("transformer", PartFiles { transformer: some("transformer"), ..PartFiles::default() }, ["takes", "belong"]),
    ];
    for (case, parts, words) in cases {
        refused(case, &[&words[..], &["transformer", "do not belong together"]].concat(), || load(&spec(parts)));
    }

    // A tokenizer with more tokens than the text encoder has rows.
    let folder = folders.copy("good");
    for part in ["text_encoder", "text_encoder_2"] {
        let path = folder.join(part).join("model.safetensors");
        let arrays = if part == "text_encoder" { &toy().clip } else { &toy().t5 };
        replace(&path, &toy::safetensors(&toy::stored(&small_tables(arrays), toy::f32s), &[]));
        let mut config = if part == "text_encoder" { toy::clip_config() } else { toy::t5_config() };
        config["vocab_size"] = 3.into();
        replace(&folder.join(part).join("config.json"), config.to_string().as_bytes());
        let pipeline = load(&named(&folder)).unwrap();
        let encoder = if part == "text_encoder" { "CLIP knows 3" } else { "T5 knows 3" };
        let request =
            Request { width: 16, height: 16, steps: 1, t5_length: 8, ..Request::new("a cat", pipeline.defaults()) };
        refused(encoder, &["tokenizer", "gives token", encoder], || pipeline.generate(&request, &mut ()));
        // The other one for the next round.
        std::fs::remove_dir_all(folder.join(part)).unwrap();
        copy_folder(&folders.scratch.join("good").join(part), &folder.join(part));
    }
}

#[test]
fn weights_that_are_no_numbers_give_no_picture() {
    let _alone = alone();
    let folders = Folders::new("nan");
    let folder = folders.copy("good");
    let mut arrays = toy::renamed(&toy().flux, flux::weights::Naming::FluxDiffusers);
    arrays.get_mut("proj_out.bias").unwrap().values[3] = f32::NAN;
    replace(&folder.join(format!("{SHARDS}.safetensors")), &toy::safetensors(&toy::stored(&arrays, toy::f32s), &[]));
    let pipeline = load(&named(&folder)).unwrap();
    let request =
        Request { width: 16, height: 16, steps: 1, t5_length: 8, ..Request::new("a cat", pipeline.defaults()) };
    refused("not a number", &["not numbers", "nothing was saved"], || pipeline.generate(&request, &mut ()));
}

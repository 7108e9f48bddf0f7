//! The model in the box behind the queue: pictures from asking to the store.

use std::path::Path;

use flux::{
    LoadOptions,
    image_file::{self, Format},
    model::ModelSpec,
    safety::SafetyConfig,
};

use super::*;
use crate::{
    ask::{OutputSize, Previews},
    blobs::{BlobId, Place, Purpose},
    job::{JobView, NewJob, State},
    jobs::{Cancelling, Jobs, Settings},
    journal::Journal,
    metrics::Metrics,
    owner::Owner,
    testing::{self, Unfetched, job},
};

struct Bench {
    jobs: Jobs,
    blobs: Blobs,
    shelf: Shelf,
    folder: tempfile::TempDir,
}

fn pocket(name: &str) -> Served {
    Served { name: name.into(), spec: ModelSpec::default() }
}

async fn bench(stock: Stock) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal")).unwrap();
    let blobs = Blobs::open(&Place::Folder(folder.path().join("blobs")), 1 << 30).await.unwrap();
    let jobs =
        Jobs::open(journal, Arc::new(Unfetched::default()), Settings::default(), Metrics::default()).await.unwrap();
    let shelf = Shelf::new(stock);
    let (on_shelf, in_store) = (shelf.clone(), blobs.clone());
    worker::spawn(jobs.clone(), move || Studio::new(on_shelf, in_store, MetadataLevel::Full)).unwrap();
    Bench { jobs, blobs, shelf, folder }
}

fn ask(prompt: &str) -> Ask {
    Ask { steps: 4, guidance: 3.0, ..testing::ask(prompt) }
}

impl Bench {
    async fn end(&self, ask: Ask) -> JobView {
        let taken = self.jobs.submit(NewJob { ask: Ok(ask), ..job("") }).await.unwrap().0;
        self.jobs.wait(&taken.id).await.unwrap()
    }

    /// The files of a job that succeeds.
    async fn files(&self, ask: Ask) -> Vec<Vec<u8>> {
        let view = self.end(ask).await;
        assert_eq!(view.state, State::Succeeded, "{:?}", view.fault());
        let mut files = Vec::new();
        for made in view.made() {
            let (blob, bytes) = self.blobs.get(&made.blob).await.unwrap();
            assert_eq!((blob.mime.as_str(), blob.bytes), (made.mime.as_str(), made.bytes));
            files.push(bytes.to_vec());
        }
        files
    }

    async fn upload(&self, picture: &[u8]) -> Source {
        let keep = Duration::from_mins(10);
        let owner = Owner::anyone();
        let put = self
            .blobs
            .put(picture.to_vec().into(), NewBlob::new(Purpose::Upload, "image/png", "a.png", keep, &owner))
            .await;
        Source::Blob { id: put.unwrap().id.clone(), field: "image_url".into() }
    }
}

fn one_model() -> Stock {
    Stock { models: vec![pocket("pocket")], ..Stock::default() }
}

#[tokio::test]
async fn each_picture_of_a_batch_is_what_it_is_alone() {
    let bench = bench(one_model()).await;
    let batch = bench.files(Ask { pictures: 3, seed: u64::MAX, ..ask("a red fox") }).await;
    assert_eq!(batch.len(), 3);
    for (i, seed) in [u64::MAX, 0, 1].into_iter().enumerate() {
        assert_eq!(bench.files(Ask { seed, ..ask("a red fox") }).await, [batch[i].clone()], "picture {i}");
    }
    let found = image_file::read(&batch[1]).unwrap();
    assert_eq!((found.width, found.height), (64, 64));
    let told = found.provenance.unwrap();
    assert_eq!((told.seed, told.prompt.as_deref()), (0, Some("a red fox")));
}

#[tokio::test]
async fn sizes_and_formats_are_exact() {
    let bench = bench(one_model()).await;
    for (format, width, height) in
        [(Format::Png, 300, 200), (Format::Jpeg, 67, 41), (Format::Webp, 200, 256), (Format::Gif, 48, 96)]
    {
        let size = OutputSize::Exact { width, height };
        let file = bench.files(Ask { size, format, ..ask("a blue car") }).await.remove(0);
        let found = image_file::read(&file).unwrap();
        assert_eq!((found.format, found.width, found.height), (format, width, height));
    }
}

#[tokio::test]
async fn pictures_from_pictures() {
    let bench = bench(one_model()).await;
    let size = OutputSize::Exact { width: 160, height: 96 };
    let drawn = bench.files(Ask { size, steps: 20, ..ask("a red fox on a yellow background") }).await.remove(0);
    let given = vec![bench.upload(&drawn).await];
    let follow = OutputSize::Follow { most: 1440, multiple: 16 };
    let mode = Mode::Image { strength: 0.3 };
    let changed = Ask { size: follow, given, mode, ..ask("a red fox on a yellow background") };
    let file = bench.files(Ask { steps: 20, ..changed.clone() }).await.remove(0);
    let (before, after) = (image_file::decode(&drawn).unwrap().picture, image_file::decode(&file).unwrap().picture);
    assert_eq!((after.width(), after.height()), (160, 96));
    let apart = before.as_ref().iter().zip(after.as_ref()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
    let apart = apart / before.as_ref().len() as f64;
    assert!((0.5..25.0).contains(&apart), "it is like the one that it began from, and not the same: {apart}");

    // The model in the box has no Redux.
    let view = bench.end(Ask { mode: Mode::Redux, prompt: String::new(), ..changed.clone() }).await;
    assert_eq!(view.state, State::Succeeded, "{:?}", view.fault());
    assert!(view.logs.iter().any(|line| line.message.contains("no Redux")), "{:?}", view.logs);

    let broken = vec![bench.upload(b"\x89PNG nothing").await];
    let view = bench.end(Ask { given: broken, ..changed.clone() }).await;
    let Some(Fault::Picture { field, kind: PictureFault::Decode, .. }) = view.fault() else { panic!("{view:?}") };
    assert_eq!(field, "image_url", "the vendor's name");
    let gone = vec![Source::Blob { id: BlobId("0123456789abcdef0123456789abcdef".into()), field: "image_url".into() }];
    let view = bench.end(Ask { given: gone, ..changed }).await;
    assert!(matches!(view.fault(), Some(Fault::Picture { kind: PictureFault::Download, .. })), "{:?}", view.fault());
}

#[tokio::test]
async fn only_the_masked_part_is_painted() {
    let bench = bench(one_model()).await;
    let size = OutputSize::Exact { width: 96, height: 96 };
    let drawn = bench.files(Ask { size, steps: 20, ..ask("a red fox") }).await.remove(0);
    let black_left = Rgb8::new(96, 96, (0..96 * 96).flat_map(|i| [if i % 96 < 48 { 0 } else { 255 }; 3]).collect());
    let mask = png(&black_left);
    let (given, mask) = (vec![bench.upload(&drawn).await], Some(bench.upload(&mask).await));
    let mode = Mode::Inpaint { strength: 1.0 };
    let painted = Ask { size, given, mask, mode, seed: 9, ..ask("a blue car") };
    let file = bench.files(painted.clone()).await.remove(0);
    let (before, after) = (image_file::decode(&drawn).unwrap().picture, image_file::decode(&file).unwrap().picture);
    let apart = |columns: std::ops::Range<u32>| {
        let pixels = (0..96).flat_map(|y| columns.clone().map(move |x| (x, y)));
        pixels.map(|(x, y)| f64::from(before.pixel(x, y)[1].abs_diff(after.pixel(x, y)[1]))).sum::<f64>() / 96.0 / 40.0
    };
    assert!(apart(0..40) < 8.0 && apart(56..96) > 20.0, "{} {}", apart(0..40), apart(56..96));

    // The other half by the same mask turned over, or told so.
    let black_right = Rgb8::new(96, 96, black_left.as_ref().iter().map(|value| 255 - value).collect());
    let turned = Ask { mask: Some(bench.upload(&png(&black_right)).await), ..painted.clone() };
    let told = Ask { mask_inverted: true, ..painted };
    let (turned, told) = (bench.files(turned).await, bench.files(told).await);
    assert_eq!(pixels(&turned), pixels(&told));
    assert_ne!(pixels(&told), pixels(&[file]));
}

/// A file of a picture that no model made.
fn png(picture: &Rgb8) -> Vec<u8> {
    let safety = flux::safety::Safety::off();
    let reviewed = safety.review(picture.clone()).unwrap();
    image_file::encode(&reviewed, &image_file::Provenance::default(), Encoding::default()).unwrap()
}

#[tokio::test]
async fn progress_previews_and_cancelling() {
    let bench = bench(one_model()).await;
    let previews = Previews { count: 2, full_size: true };
    let size = OutputSize::Exact { width: 128, height: 128 };
    let taken =
        bench.jobs.submit(NewJob { ask: Ok(Ask { steps: 60, previews, size, ..ask("a fox") }), ..job("") }).await;
    let mut views = bench.jobs.follow(&taken.unwrap().0.id).await.unwrap();
    let mut seen = Vec::new();
    while let Some(view) = futures_util::StreamExt::next(&mut views).await {
        seen.extend(view.previews.iter().map(|preview| (preview.step, preview.index, preview.mime)));
        for preview in &*view.previews {
            let found = image_file::read(&preview.bytes).unwrap();
            assert_eq!((found.width, found.height, found.provenance.is_none()), (128, 128, true));
        }
        if view.state.is_final() {
            assert!(view.logs[1].message.contains("1/60 ["), "{:?}", view.logs);
            assert!(view.logs.last().unwrap().message.starts_with("100%|##########| 60/60 ["));
        }
    }
    seen.sort_unstable();
    seen.dedup();
    // Two follow each other slowly enough that somebody who looks sees one at least.
    let drawn = [(20, 0, "image/png"), (40, 1, "image/png")];
    assert!(!seen.is_empty() && seen.iter().all(|seen| drawn.contains(seen)), "{seen:?}");

    let long = Ask { steps: 1000, pictures: 64, ..ask("a fox") };
    let taken = bench.jobs.submit(NewJob { ask: Ok(long), ..job("") }).await.unwrap().0;
    let mut views = bench.jobs.follow(&taken.id).await.unwrap();
    while futures_util::StreamExt::next(&mut views).await.unwrap().progress.is_none() {}
    let start = Instant::now();
    assert_eq!(bench.jobs.cancel(&taken.id).await, Cancelling::Requested);
    assert_eq!(bench.jobs.wait(&taken.id).await.unwrap().state, State::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn models_come_and_go() {
    let keep_alive = Some(Duration::ZERO);
    let bench = bench(Stock { models: vec![pocket("pocket"), pocket("other")], keep_alive, ..Stock::default() }).await;
    for model in ["pocket", "other", "pocket"] {
        bench.files(Ask { model: model.into(), ..ask("a fox") }).await;
    }
    let loaded = || bench.shelf.models().iter().filter(|model| model.loaded).count();
    for _ in 0..500 {
        if loaded() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(loaded(), 0, "nobody uses them");
    assert!(bench.shelf.models().iter().all(|model| model.last_used.is_some() && model.bytes == 0));
    bench.shelf.replace(Stock { models: vec![pocket("other")], ..Stock::default() });
    let view = bench.end(ask("a fox")).await;
    assert_eq!(view.fault(), Some(&Fault::UnknownModel("pocket".into())));
    bench.files(Ask { model: "other".into(), ..ask("a fox") }).await;
    let broken = ModelSpec { model: Some(bench.folder.path().join("nothing").into()), ..ModelSpec::default() };
    let broken = Served { name: "broken".into(), spec: broken };
    bench.shelf.replace(Stock { models: vec![broken], ..Stock::default() });
    let view = bench.end(Ask { model: "broken".into(), ..ask("a fox") }).await;
    let told = view.fault().unwrap().to_string();
    assert!(!told.contains(&*bench.folder.path().to_string_lossy()), "a path of the server's: {told}");
}

#[tokio::test]
async fn loras_are_swapped_and_a_wrong_one_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(Stock { loras: Some(folder.path().to_owned()), ..one_model() }).await;
    let plain = bench.files(ask("a red fox")).await;
    let with = |name: &str, weight| Ask { loras: vec![(name.into(), weight)], ..ask("a red fox") };
    let view = bench.end(with("ink", 1.0)).await;
    assert!(matches!(view.fault(), Some(Fault::Invalid(_))), "{:?}", view.fault());
    lora(&folder.path().join("ink.safetensors"), 40);
    let inked = bench.files(with("ink", 1.0)).await;
    assert_ne!(pixels(&inked), pixels(&plain));
    std::fs::write(folder.path().join("broken.safetensors"), b"no").unwrap();
    let view = bench.end(with("broken", 1.0)).await;
    let told = view.fault().unwrap().to_string();
    assert!(
        matches!(view.fault(), Some(Fault::Invalid(_))) && !told.contains(&*folder.path().to_string_lossy()),
        "{told}"
    );
    assert_eq!(bench.files(with("ink", 1.0)).await, inked);
    assert_eq!(bench.files(ask("a red fox")).await, plain, "as if there had been none");
}

#[tokio::test]
async fn what_is_flagged_is_left_out_or_black() {
    // Every picture is above such a threshold.
    let gates = SafetyConfig { threshold: 1e-9, ..SafetyConfig::default() };
    let options = LoadOptions { safety: Safety::new(&gates).unwrap(), ..LoadOptions::default() };
    let own_line = Stock { options: options.clone(), box_threshold: Some(1.0), ..one_model() };
    assert_eq!(bench(own_line).await.files(ask("a red fox")).await.len(), 1, "the model in the box has its own line");
    let bench = bench(Stock { options, safety_optional: true, ..one_model() }).await;
    let view = bench.end(Ask { pictures: 2, ..ask("a red fox") }).await;
    assert!(matches!(view.fault(), Some(Fault::Flagged { stage: Stage::Picture, .. })), "{:?}", view.fault());
    assert_eq!(bench.blobs.used().0, 0, "nothing of it is in the store");
    let view = bench
        .end(Ask {
            on_flagged: OnFlagged::Black,
            previews: Previews { count: 2, full_size: false },
            ..ask("a red fox")
        })
        .await;
    assert!(view.made()[0].flagged && view.previews.is_empty());
    let (_, file) = bench.blobs.get(&view.made()[0].blob).await.unwrap();
    assert!(image_file::decode(&file).unwrap().picture.as_ref().iter().all(|&byte| byte == 0));
    let unseen = bench.files(Ask { safety: false, ..ask("a red fox") }).await;
    assert!(!image_file::decode(&unseen[0]).unwrap().picture.is_flat());
    let view = bench.end(Ask { safety: false, ..ask("hardcore porn") }).await;
    assert!(matches!(view.fault(), Some(Fault::Flagged { stage: Stage::Prompt, .. })), "{:?}", view.fault());
}

fn pixels(files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    files.iter().map(|file| image_file::decode(file).unwrap().picture.as_ref().to_vec()).collect()
}

/// A LoRA of rank 1 for one layer of the model in the box, in Kohya's spelling; `size` is how much it changes.
pub(crate) fn lora(path: &Path, size: u8) {
    const WIDTH: usize = 192;
    let value = f32::from(size) / 100.0;
    let layer = "lora_unet_double_blocks_0_img_attn_proj";
    let tensors = [("lora_down", [1, WIDTH]), ("lora_up", [WIDTH, 1])];
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (role, shape) in tensors {
        let begin = data.len();
        for i in 0..WIDTH {
            data.extend((if i % 3 == 0 { value } else { -value }).to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(format!("{layer}.{role}.weight"), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(path, file).unwrap();
}

#[tokio::test]
async fn what_is_held_waits_in_the_store_and_is_no_result() {
    let gates = SafetyConfig { threshold: 1e-9, ..SafetyConfig::default() };
    let options = LoadOptions { safety: Safety::new(&gates).unwrap(), ..LoadOptions::default() };
    let hold = Some(Duration::from_hours(1));
    let bench = bench(Stock { options, hold, ..one_model() }).await;
    let size = OutputSize::Exact { width: 100, height: 60 };
    let view = bench.end(Ask { size, pictures: 2, ..ask("a red fox") }).await;
    let Some(Fault::Flagged { stage: Stage::Picture, categories, .. }) = view.fault() else {
        panic!("{:?}", view.fault())
    };
    assert_eq!(categories, &["sexual content"]);
    let held = bench.blobs.list(|_| true);
    assert_eq!(held.len(), 2);
    for (blob, seed) in held.iter().zip([43, 42]) {
        let about = blob.about.as_ref().unwrap();
        assert_eq!((blob.purpose, &blob.owner), (Purpose::Held, &Owner::anyone()));
        assert_eq!((about["job"].as_str(), about["seed"].as_u64()), (Some(view.id.as_str()), Some(seed)));
        let file = bench.blobs.get(&blob.id).await.unwrap().1;
        let picture = image_file::decode(&file).unwrap().picture;
        assert_eq!((picture.width(), picture.height(), picture.is_flat()), (100, 60, false), "as it would have left");
    }

    let view = bench.end(Ask { on_flagged: OnFlagged::Black, ..ask("a red fox") }).await;
    assert!(view.made()[0].flagged);
    let (made, file) = bench.blobs.get(&view.made()[0].blob).await.unwrap();
    assert_eq!(made.purpose, Purpose::Result);
    assert!(image_file::decode(&file).unwrap().picture.as_ref().iter().all(|&byte| byte == 0));
    assert_eq!(bench.blobs.list(|blob| blob.purpose == Purpose::Held).len(), 3);
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_as_somebody_wishes() {
    let bench = bench(Stock { models: vec![pocket("pocket"), pocket("other")], ..Stock::default() }).await;
    let loaded = || bench.shelf.models().iter().map(|model| model.loaded).collect::<Vec<_>>();
    let become_loaded = async |wanted: [bool; 2]| {
        for _ in 0..500 {
            if loaded() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?} and not {wanted:?}", loaded());
    };
    bench.shelf.wish(Wish::Load("other".into()));
    become_loaded([false, true]).await;
    bench.files(ask("a fox")).await;
    become_loaded([true, true]).await;
    bench.shelf.wish(Wish::Unload("other".into()));
    become_loaded([true, false]).await;
    // A request's own time goes before the operator's, which is for good here.
    bench.files(Ask { keep_alive_seconds: Some(0), ..ask("a fox") }).await;
    become_loaded([false, false]).await;
    // A list without it takes it from memory before anything else is asked.
    bench.files(ask("a fox")).await;
    bench.shelf.replace(Stock { models: vec![pocket("pocket"), pocket("other")], ..Stock::default() });
    become_loaded([false, false]).await;
}

/// Flags of the command line are nothing that a client could say.
#[test]
fn a_client_hears_of_no_flags() {
    let files = || ModelSpec::default().find(&flux::model::SearchPaths::default()).unwrap();
    let tight = LoadOptions { memory_limit: Some(1 << 20), ..LoadOptions::default() };
    let tight = Pipeline::load(files(), &tight, &mut ()).unwrap();
    let pipeline = Pipeline::load(files(), &LoadOptions::default(), &mut ()).unwrap();
    let picture = Rgb8::new(16, 16, vec![9; 3 * 16 * 16]);
    let redux = Request { redux: Some(picture), ..pipeline.request("a fox") };
    let flat = Error::Degenerate { problem: "the picture is flat".into(), hint: Some("try --precision f32".into()) };
    let errors = [tight.check(&tight.request("a fox")).unwrap_err(), pipeline.check(&redux).unwrap_err(), flat];
    for (error, word) in errors.iter().zip(["too little memory", "SigLIP", "flat"]) {
        assert!(error.to_string().contains("hint: ") && error.to_string().contains("--"), "{error}");
        let told = told(error).to_string();
        assert!(told.contains(word) && !told.contains("--") && !told.contains("hint"), "{told}");
    }
}

//! The gates as a program sees them: golden scores, runs whose pictures are flagged, what files say of the policy.

use std::{collections::BTreeMap, ops::ControlFlow};

use flux::{
    Error, Event, Generated, LoadOptions, Pipeline, Watch,
    conditioning::Start,
    error::Subject,
    image_file::{self, Encoding, Format},
    model::{ModelSpec, SearchPaths},
    pixels::Rgb8,
    safety::{OnFlagged, Safety, SafetyConfig, Verdict},
};

fn golden(path: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/golden/{path}", env!("CARGO_MANIFEST_DIR"))).expect(path)
}

#[derive(serde::Deserialize)]
struct Golden {
    scores: BTreeMap<String, [f32; 5]>,
}

#[test]
fn scores_are_nsfwjs_own() {
    let golden_scores: Golden = serde_json::from_slice(&golden("picture_scores.json")).expect("a golden");
    let safety = Safety::new(&SafetyConfig::default()).expect("no list");
    let mut worst = 0_f32;
    for (name, expected) in &golden_scores.scores {
        let folder = if name == "rgb.png" { "pictures" } else { "photographs" };
        let picture = image_file::decode(&golden(&format!("{folder}/{name}"))).expect(name).picture;
        let start = std::time::Instant::now();
        let Verdict { scores, flagged } = safety.judge(&picture);
        let took = start.elapsed();
        let scores = scores.expect("the gate is on");
        let is = [scores.drawing, scores.hentai, scores.neutral, scores.porn, scores.sexy];
        let off = is.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {is:.4?}, {off:.1e} off, {took:?}");
        worst = worst.max(off);
        // A close cut of a photograph scores 0.73: it must not take much more.
        assert!(!flagged, "{name} is harmless");
    }
    assert_eq!(golden_scores.scores.len(), 7);
    assert!(worst < 2e-4, "{worst} off");
}

fn pipeline(safety: Safety) -> Pipeline {
    let files = ModelSpec::default().find(&SearchPaths::default()).expect("the model in the box");
    let options = LoadOptions { safety, ..LoadOptions::default() };
    Pipeline::load(files, &options, &mut ()).expect("it loads")
}

/// A policy that flags every picture.
fn strict(on_flagged: OnFlagged) -> Safety {
    let config = SafetyConfig { threshold: f32::MIN_POSITIVE, on_flagged, ..SafetyConfig::default() };
    Safety::new(&config).expect("no list")
}

#[derive(Default)]
struct Flags(Vec<u32>);

impl Watch for Flags {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Flagged { picture, refused } = event {
            assert_eq!(refused.subject, Subject::Picture);
            self.0.push(picture);
        }
    }
}

fn run(pipeline: &Pipeline, batch: u32) -> (Vec<Generated>, Vec<u32>, Result<(), Error>) {
    let mut request = pipeline.request("a red apple");
    (request.steps, request.seed, request.batch, request.width, request.height) = (1, 7, batch, 32, 32);
    let (mut made, mut flags) = (Vec::new(), Flags::default());
    let result = pipeline.generate_each(&request, &mut flags, &mut |generated| {
        made.push(generated);
        ControlFlow::Continue(())
    });
    (made, flags.0, result)
}

#[test]
fn a_flagged_picture_leaves_in_no_way() {
    let mut pipeline = pipeline(Safety::off());
    let (plain, flags, result) = run(&pipeline, 2);
    result.expect("nothing is looked at");
    assert_eq!((plain.len(), flags.len(), *plain[0].picture.verdict()), (2, 0, Verdict::default()));

    // No loading in between: the policy of each run is its own.
    pipeline.set_safety(strict(OnFlagged::Refuse));
    let (made, flags, result) = run(&pipeline, 2);
    assert_eq!((made.len(), flags), (0, vec![0, 1]));
    let Err(Error::Refused(refused)) = result else { panic!("refused") };
    assert_eq!((refused.subject, refused.category.as_str()), (Subject::Picture, "sexual content"));

    pipeline.set_safety(strict(OnFlagged::Black));
    let (made, flags, result) = run(&pipeline, 2);
    result.expect("black pictures are pictures");
    assert_eq!((made.len(), flags), (2, vec![0, 1]));
    for generated in &made {
        assert!(generated.picture.verdict().flagged && generated.held.is_none());
        assert!(generated.picture.get().as_ref().iter().all(|byte| *byte == 0));
        assert!(generated.latents.values.iter().all(|value| *value == 0.0));
        assert_eq!((generated.picture.get().width(), generated.picture.get().height()), (32, 32));
    }

    pipeline.set_safety(strict(OnFlagged::Hold));
    let (mut made, ..) = run(&pipeline, 1);
    let generated = made.remove(0);
    assert!(generated.picture.get().as_ref().iter().all(|byte| *byte == 0));
    let approved = generated.held.expect("it waits").approved();
    assert_eq!(approved.get(), plain[0].picture.get());

    pipeline.set_safety(strict(OnFlagged::Black).without_picture_gate());
    let (made, ..) = run(&pipeline, 1);
    assert_eq!((made[0].picture.get(), pipeline.safety().name()), (plain[0].picture.get(), "words"));
}

#[test]
fn refused_before_any_work() {
    let mut pipeline = pipeline(Safety::new(&SafetyConfig::default()).expect("no list"));
    let mut request = pipeline.request("hardcore porn");
    let refused = |pipeline: &Pipeline, request: &flux::Request| match pipeline.generate(request, &mut ()) {
        Err(Error::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&pipeline, &request).subject, Subject::Prompt);
    assert!(!refused(&pipeline, &request).to_string().contains("porn"), "the words stay out of logs");
    assert!(matches!(pipeline.t5_tokens("hardcore porn"), Err(Error::Refused(_))));

    // What is to be avoided may be said.
    (request.prompt, request.negative_prompt) = ("a red apple".into(), Some("porn, nsfw".into()));
    (request.steps, request.true_cfg, request.width, request.height) = (1, 2.0, 32, 32);
    pipeline.generate(&request, &mut ()).expect("a red apple");

    // Pictures that are given are judged too.
    pipeline.set_safety(strict(OnFlagged::Black));
    request.pictures.start = Some(Start::new(Rgb8::new(32, 32, vec![90; 32 * 32 * 3])));
    assert_eq!(refused(&pipeline, &request).subject, Subject::Given("image"));
}

#[test]
fn every_file_says_which_policy() {
    let pipeline = pipeline(Safety::new(&SafetyConfig { threshold: 0.9, ..SafetyConfig::default() }).expect("no list"));
    let (made, ..) = run(&pipeline, 1);
    for format in [Format::Png, Format::Jpeg, Format::Webp, Format::Avif, Format::Gif] {
        let encoding = Encoding { format, ..Encoding::default() };
        let file = image_file::encode(&made[0].picture, &made[0].provenance, encoding).expect("a small picture");
        let found = image_file::read(&file).expect("our own file").provenance.expect("told");
        assert_eq!(found.safety, "words+nsfwjs/0.9", "{format}");
    }
}

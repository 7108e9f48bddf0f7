//! Getting weights as a stranger does it: pulled from a stand-in for the hub, listed, used, carried to another machine, removed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../hub/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use support::{MEMBER, StandIn, noise};

const KREA: &str = "black-forest-labs/FLUX.1-Krea-dev";
const LICENCE: &[u8] = b"FLUX.1 [dev] Non-Commercial License v1.1.1\n";

/// A machine with nothing on it but that hub.
struct Machine {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Machine {
    fn new(endpoint: &str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), endpoint: endpoint.to_owned() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null()).env_clear();
        command.env("HOME", self.folder.path()).env("HF_ENDPOINT", &self.endpoint);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output and standard error of a run that succeeds.
    fn done(&self, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{args:?}: {err}");
        (out, err)
    }

    fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        told(&self.run(args), code, words);
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn told(output: &Output, code: i32, words: &[&str]) {
    let (_, err) = texts(output);
    assert_eq!(output.status.code(), Some(code), "{err}");
    for word in words {
        assert!(err.contains(word), "should mention '{word}': {err}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

/// The model in the box under Krea's name.
fn publish_folder(server: &StandIn, gated: bool) {
    let mut files = Vec::new();
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flux/assets/pocket");
    for part in fs::read_dir(&pocket).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for file in fs::read_dir(part.path()).unwrap().flatten() {
            let path = format!("{}/{}", part.file_name().display(), file.file_name().display());
            files.push((path, fs::read(file.path()).unwrap()));
        }
    }
    files.push(("model_index.json".into(), fs::read(pocket.join("model_index.json")).unwrap()));
    files.push(("LICENSE.md".into(), LICENCE.to_vec()));
    files.push(("flux1-krea-dev.safetensors".into(), noise(50_000, 1)));
    let files: Vec<(&str, Vec<u8>, bool)> =
        files.iter().map(|(path, bytes)| (path.as_str(), bytes.clone(), bytes.len() > 10_000)).collect();
    server.publish(KREA, gated, "", &files);
}

#[test]
fn a_model_is_pulled_used_carried_over_and_removed() {
    let server = StandIn::start();
    publish_folder(&server, false);
    let machine = Machine::new(&server.endpoint);

    // Nobody accepts a licence by not being there.
    let pull = ["pull", "krea", "--variant", "bf16"];
    machine.refused(
        &pull,
        2,
        &["FLUX.1 [dev] Non-Commercial License", "non-commercial purposes only", "usage-policy", "--accept-license"],
    );
    assert!(server.asked("cdn").is_empty(), "no weights before the licence");
    let (_, err) = machine.done(&[&pull[..], &["--accept-license"]].concat());
    assert!(
        err.contains("v1.1.1, sha256") && err.contains("are to be downloaded; ") && err.contains("is complete"),
        "{err}"
    );
    let (accepted, _) = machine.done(&["licenses"]);
    assert!(accepted.contains("krea") && accepted.contains("--accept-license"), "{accepted}");

    // Again: the same variant, the licence is known, nothing is downloaded.
    let before = server.asked("cdn").len();
    let (_, err) = machine.done(&["pull", "krea"]);
    assert!(
        err.contains("as it was pulled before") && err.contains("all of it is here") && err.contains("accepted 20"),
        "{err}"
    );
    assert_eq!(server.asked("cdn").len(), before);

    // The same pictures as from the folder in the program.
    let make = |model: &[&str], file: &str| {
        let quick = [
            "generate",
            "a red apple",
            "--steps",
            "2",
            "--seed",
            "7",
            "--guidance",
            "3.5",
            "--true-cfg",
            "1",
            "--metadata",
            "none",
            "-o",
            file,
        ];
        machine.done(&[&quick[..], model].concat());
        fs::read(machine.folder.path().join(file)).unwrap()
    };
    let size = ["-W", "64", "-H", "64", "--t5-length", "32"];
    let krea = make(&[&["-m", "krea:bf16"][..], &size].concat(), "krea.png");
    assert_eq!(krea, make(&[&["-m", "pocket"][..], &size].concat(), "pocket.png"));

    let (list, _) = machine.done(&["list"]);
    assert!(list.contains("krea") && list.contains("bf16") && list.contains("complete"), "{list}");
    let (show, _) = machine.done(&["show", "krea"]);
    assert!(show.contains("accepted  20") && show.contains("transformer/") && show.contains("q4_k"), "{show}");

    // To a machine without a network.
    machine.done(&["bundle", "export", "krea", "-o", "krea.tar"]);
    let bundle = machine.folder.path().join("krea.tar");
    let island = Machine::new("http://127.0.0.1:9");
    let import = ["bundle", "import", bundle.to_str().unwrap()];
    island.refused(&import, 2, &["non-commercial purposes only", "--accept-license"]);
    island.done(&[&import[..], &["--accept-license"]].concat());
    let offline = island.command(&["pull", "krea"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    told(&offline, 0, &["is here", "nothing was asked"]);
    let (plan, _) = island.done(&["plan", "-m", "krea"]);
    assert!(plan.contains("FLUX.1-Krea-dev"), "{plan}");
    let offline = island.command(&["pull", "dev"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    told(&offline, 1, &["HF_HUB_OFFLINE is set", "bundle import"]);

    island.refused(&["rm", "krea"], 2, &["--yes"]);
    let (_, err) = island.done(&["rm", "krea", "--yes"]);
    assert!(err.contains("MB are free now"), "{err}");
    island.refused(&["generate", "x", "-m", "krea"], 2, &["darkroom pull krea"]);
    island.refused(&["rm", "krea", "--yes"], 2, &["is not here"]);
}

#[test]
fn a_file_of_another_repository_finds_its_companions() {
    let server = StandIn::start();
    let machine = Machine::new(&server.endpoint);
    let convert = |part: &str, to: &str| {
        let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flux/assets/pocket");
        machine.done(&["convert", pocket.to_str().unwrap(), "--part", part, "--type", "q8_0", "-o", to]);
        fs::read(machine.folder.path().join(to)).unwrap()
    };
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flux/assets/pocket");
    let first = |folder: &str| {
        let mut files = fs::read_dir(pocket.join(folder)).unwrap().flatten().map(|entry| entry.path());
        fs::read(files.find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap()).unwrap()
    };
    server.publish(
        "QuantStack/FLUX.1-Krea-dev-GGUF",
        false,
        "{\"license\":\"apache-2.0\"}",
        &[
            ("flux1-krea-dev-Q8_0.gguf", convert("transformer", "t.gguf"), true),
            ("flux1-krea-dev-Q4_K_S.gguf", noise(20_000, 2), true),
        ],
    );
    server.publish(
        "city96/t5-v1_1-xxl-encoder-gguf",
        false,
        "",
        &[("t5-v1_1-xxl-encoder-Q8_0.gguf", convert("t5", "t5.gguf"), true)],
    );
    server.publish(
        "comfyanonymous/flux_text_encoders",
        false,
        "",
        &[("clip_l.safetensors", first("text_encoder"), true)],
    );
    server.publish(
        "Comfy-Org/Lumina_Image_2.0_Repackaged",
        false,
        "",
        &[("split_files/vae/ae.safetensors", first("vae"), true)],
    );

    // Repacked under a freer name: the terms stay.
    let (_, err) = machine.done(&["pull", "krea:q8_0", "--accept-license"]);
    assert!(err.contains("FLUX.1 [dev] Non-Commercial License") && err.contains("krea (q8_0) is complete"), "{err}");
    // Sizes of so small parts stand in their configurations, which single files of the real ones do not need.
    let (clip, vae) = (pocket.join("text_encoder"), pocket.join("vae"));
    let plan_of = |model: &str| {
        let given = ["--clip-l", clip.to_str().unwrap(), "--vae", vae.to_str().unwrap(), "--json"];
        machine.done(&[&["plan", "-m", model][..], &given].concat())
    };
    let (plan, _) = plan_of("krea:q8_0");
    assert!(plan.contains("flux1-krea-dev-Q8_0") && plan.contains("\"transformer\""), "{plan}");

    // A file by its path, of which nobody wrote a table: its companions are in the cache.
    let name = "QuantStack/FLUX.1-Krea-dev-GGUF:flux1-krea-dev-Q8_0.gguf";
    machine.done(&["pull", name, "--accept-license", "-q"]);
    let (plan, _) = plan_of(name);
    assert!(plan.contains("flux1-krea-dev-Q8_0"), "{plan}");

    machine.refused(
        &["pull", "QuantStack/FLUX.1-Krea-dev-GGUF:*Q9*"],
        1,
        &["no file that fits '*Q9*'", "flux1-krea-dev-Q4_K_S.gguf"],
    );
    machine.refused(
        &["pull", "QuantStack/FLUX.1-Krea-dev-GGUF"],
        1,
        &["more than one file of weights", "hint: darkroom pull"],
    );
    machine.refused(&["pull", "krea:q9"], 2, &["there is no 'q9' of krea", "q4_k"]);
    machine.refused(&["pull", "krae"], 2, &["there is no model 'krae'", "krea, dev"]);
}

#[test]
fn a_closed_gate_and_events_are_told() {
    let server = StandIn::start();
    publish_folder(&server, true);
    let machine = Machine::new(&server.endpoint);
    let pull = ["pull", "krea", "--variant", "bf16", "--json", "--accept-license"];
    machine.refused(&pull, 1, &["is gated", "make an account", "accept", "HF_TOKEN", "--token-file"]);
    fs::write(machine.folder.path().join("token"), "hf_nonsense\n").unwrap();
    machine.refused(&[&pull[..], &["--token-file", "token"]].concat(), 1, &["is not valid", "'token'"]);
    let output = machine.command(&pull).env("HF_TOKEN", MEMBER).output().unwrap();
    told(&output, 0, &["Non-Commercial"]);
    let events: Vec<serde_json::Value> =
        texts(&output).0.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
    assert!(of("planned") == 1 && of("file") > 5 && of("file") == of("file_done") && of("done") == 1, "{events:?}");
    // The licence's text came before.
    let missing = events.iter().find(|event| event["event"] == "planned").unwrap()["missing_bytes"].as_u64().unwrap();
    assert_eq!(events.last().unwrap()["received_bytes"], missing - LICENCE.len() as u64);
    let all = format!("{output:?}");
    assert!(!all.contains(MEMBER), "a token is never told");
}

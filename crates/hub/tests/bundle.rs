//! Bundles: what goes out comes in, and what somebody changed on the way does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the stand-in does more than this test asks of it")]
mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use hub::{
    Error,
    bundle::{export, import, read_manifest},
    cache::Cache,
    records::{Record, Records},
    settings::{Patience, Settings},
    transfer::{Hub, Pick, Role, Wanted},
    watch::Event,
};
use support::{StandIn, noise, sha256};

/// A machine: its cache and its records.
struct Machine {
    cache: Cache,
    records: Records,
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (cache, records) = (Cache::new(folder.path().join("hub")), Records::new(&folder.path().join("data")));
        Self { cache, records, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn quietly(_: Event<'_>) -> bool {
    true
}

/// A machine with a network, on which a model was pulled.
fn connected() -> (Machine, Record) {
    let (server, machine) = (StandIn::start(), Machine::new());
    server.publish(
        "q/krea",
        false,
        "",
        &[("krea-Q4.gguf", noise(90_000, 4), true), ("LICENSE.md", b"L".to_vec(), false)],
    );
    server.publish(
        "c/encoders",
        false,
        "",
        &[("clip_l.safetensors", noise(5000, 5), true), ("x.json", Vec::new(), false)],
    );
    let settings = Settings {
        endpoint: server.endpoint.clone(),
        token: None,
        cache: machine.cache.root().to_owned(),
        data: machine.path("data"),
        offline: false,
        proxy: None,
        patience: Patience { silence: Duration::from_secs(5), ..Patience::default() },
    };
    let wanted = |repository: &str, role, pick| Wanted {
        repository: repository.parse().unwrap(),
        revision: "main".into(),
        role,
        pick: Pick::Pattern(String::from(pick)),
    };
    let hub = Hub::new(&settings).unwrap();
    let wanted = [wanted("q/krea", Role::Transformer, "*.gguf"), wanted("c/encoders", Role::ClipL, "*")];
    let transfer = hub.prepare(&wanted, &mut quietly).unwrap();
    hub.fetch(&transfer, &mut quietly).unwrap();
    let record = Record::new("krea", "q4_k", "flux-1-dev-non-commercial-license", &transfer);
    machine.records.save(&record).unwrap();
    (machine, record)
}

fn taken_in(from: &Path, to: &Machine) -> Result<(), Error> {
    let manifest = read_manifest(from)?;
    import(from, &manifest, &to.cache, &to.records, &mut quietly)
}

#[test]
fn a_model_travels_in_a_tar_and_in_a_folder() {
    let (from, record) = connected();
    for name in ["krea.tar", "krea"] {
        let bundle = from.path(name);
        let manifest = export(std::slice::from_ref(&record), &from.cache, &bundle, &mut quietly).unwrap();
        assert_eq!(manifest.bytes(), 95_001);
        assert!(!from.path(&format!("{name}.partial")).exists());
        let to = Machine::new();
        taken_in(&bundle, &to).unwrap();
        let [there] = &to.records.named("krea")[..] else { panic!("one record") };
        assert_eq!((&there.files, there.missing(&to.cache)), (&record.files, Vec::new()));
        let parts = there.parts(&to.cache);
        assert_eq!(fs::read(parts.transformer.unwrap()).unwrap(), noise(90_000, 4));
        assert_eq!(
            to.cache.commit(&"q/krea".parse().unwrap(), "main"),
            from.cache.commit(&"q/krea".parse().unwrap(), "main")
        );
        // Again: nothing to do, and no error.
        taken_in(&bundle, &to).unwrap();
        // No bundle is written over.
        let again = export(std::slice::from_ref(&record), &from.cache, &bundle, &mut quietly).unwrap_err();
        assert!(again.to_string().contains("is there already"), "{again}");
    }
}

#[test]
fn a_broken_cache_makes_no_bundle() {
    let (from, record) = connected();
    let file = record.files.iter().find(|file| file.size == 90_000).unwrap();
    let path = from.cache.path(&file.repository, &file.commit, &file.path);
    fs::write(&path, vec![0; 90_000]).unwrap();
    for name in ["krea.tar", "krea"] {
        let error = export(std::slice::from_ref(&record), &from.cache, &from.path(name), &mut quietly).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(!from.path(name).exists() && !from.path(&format!("{name}.partial")).exists());
    }
}

/// That nothing of a bundle counts, and why.
fn refused(bundle: &Path, words: &str) {
    let to = Machine::new();
    let error = taken_in(bundle, &to).unwrap_err().to_string();
    assert!(error.contains(words), "{error} should mention '{words}'");
    assert!(to.records.all().is_empty());
    assert!(to.cache.files(&"q/krea".parse().unwrap(), &"0".repeat(40)).is_empty());
    assert!(!to.path("evil").exists() && !to.path("hub/models--q--krea/refs").exists());
}

#[test]
fn what_was_changed_on_the_way_is_refused() {
    let (from, record) = connected();
    let good = from.path("good");
    export(std::slice::from_ref(&record), &from.cache, &good, &mut quietly).unwrap();
    let manifest = fs::read_to_string(good.join("manifest.json")).unwrap();
    let large = sha256(&noise(90_000, 4));
    let changed = |name: &str, change: &dyn Fn(&Path)| {
        let bundle = from.path(name);
        fs::create_dir_all(bundle.join("blobs")).unwrap();
        for blob in fs::read_dir(good.join("blobs")).unwrap().flatten() {
            fs::copy(blob.path(), bundle.join("blobs").join(blob.file_name())).unwrap();
        }
        fs::write(bundle.join("manifest.json"), &manifest).unwrap();
        change(&bundle);
        bundle
    };
    let rewritten = |from: &str, to: &str| {
        assert!(manifest.contains(from), "{from}");
        manifest.replace(from, to)
    };
    let with_manifest =
        |name: &str, text: String| changed(name, &|bundle| fs::write(bundle.join("manifest.json"), &text).unwrap());

    refused(&changed("byte", &|b| fs::write(b.join("blobs").join(&large), noise(90_000, 9)).unwrap()), "were promised");
    refused(&changed("short", &|b| fs::write(b.join("blobs").join(&large), b"x").unwrap()), "the manifest says");
    refused(&changed("gone", &|b| fs::remove_file(b.join("blobs").join(&large)).unwrap()), "is missing");
    refused(&changed("none", &|b| fs::remove_file(b.join("manifest.json")).unwrap()), "is not a bundle");
    refused(&with_manifest("path", rewritten("\"krea-Q4.gguf\"", "\"../../../../evil\"")), "cannot be used");
    refused(&with_manifest("absolute", rewritten("\"krea-Q4.gguf\"", "\"/tmp/evil\"")), "cannot be used");
    refused(&with_manifest("repository", rewritten("\"q/krea\"", "\"../..\"")), "cannot be read");
    refused(&with_manifest("name", rewritten("\"name\": \"krea\"", "\"name\": \"../../evil\"")), "cannot be used");
    refused(&with_manifest("size", rewritten("\"size\": 90000", "\"size\": 90001")), "contradicts itself");
    refused(&with_manifest("sizes", rewritten(": 90000", ": 18446744073709551615")), "free");
    refused(&with_manifest("version", rewritten("\"version\": 1", "\"version\": 2")), "of version 2");
    refused(&with_manifest("kind", rewritten("darkroom-bundle", "something")), "is not a bundle");
    refused(&with_manifest("empty", "{}".into()), "cannot be read");
}

#[test]
fn tars_that_hold_other_things_are_refused() {
    let (from, record) = connected();
    let good = from.path("good.tar");
    export(std::slice::from_ref(&record), &from.cache, &good, &mut quietly).unwrap();
    // The good one's entries, and one more at the end or instead.
    let with = |name: &str, more: &dyn Fn(&mut tar::Builder<File>), keep: &dyn Fn(usize) -> bool| {
        let path = from.path(name);
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut archive = tar::Archive::new(File::open(&good).unwrap());
        for (index, entry) in archive.entries().unwrap().enumerate() {
            let mut entry = entry.unwrap();
            if keep(index) {
                let mut header = entry.header().clone();
                let path = entry.path().unwrap().into_owned();
                builder.append_data(&mut header, path, &mut entry).unwrap();
            }
        }
        more(&mut builder);
        builder.finish().unwrap();
        path
    };
    let raw = |name: &'static [u8], kind: tar::EntryType| {
        move |builder: &mut tar::Builder<File>| {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_entry_type(kind);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name);
            if kind == tar::EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, std::io::empty()).unwrap();
        }
    };
    let all = |_: usize| true;
    refused(&with("up.tar", &raw(b"../../evil", tar::EntryType::Regular), &all), "which its manifest does not name");
    refused(&with("root.tar", &raw(b"/evil", tar::EntryType::Regular), &all), "which its manifest does not name");
    refused(&with("link.tar", &raw(b"blobs/x", tar::EntryType::Symlink), &all), "not a plain file");
    refused(&with("less.tar", &|_| {}, &|index| index < 2), "is not whole");
    refused(&with("headless.tar", &|_| {}, &|index| index > 0), "is not a bundle");
    let bytes = fs::read(&good).unwrap();
    fs::write(from.path("cut.tar"), &bytes[..bytes.len() / 2]).unwrap();
    let to = Machine::new();
    assert!(taken_in(&from.path("cut.tar"), &to).is_err() && to.records.all().is_empty());
    fs::write(from.path("junk.tar"), noise(5000, 1)).unwrap();
    refused(&from.path("junk.tar"), "is not a bundle");
    refused(&from.path("nothing.tar"), "No such file");
}

//! `darkroom inspect`: what files hold. Weights: components, layout, formats, what is missing. Pictures: how they were made.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use flux::{
    image_file::{self, Format},
    lora::Lora,
    model::{Family, ModelSpec, SearchPaths},
    weights::{Checkpoint, Component, Detected, Naming, detect},
};

use crate::readable::bytes;

/// Tell what weights hold and what pictures were made of.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Weights files, model folders or pictures
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut failed = Vec::new();
    let mut reports = Vec::new();
    for path in &args.files {
        match inspect(path) {
            Ok(report) if args.json => reports.push(report.json(path)),
            Ok(report) => print(path, &report)?,
            Err(error) => failed.push(error),
        }
    }
    if args.json {
        writeln!(std::io::stdout(), "{:#}", serde_json::Value::Array(reports))?;
    }
    // Every file is looked at before a bad one ends the program.
    let mut failed = failed.into_iter();
    let Some(last) = failed.next_back() else { return Ok(()) };
    for error in failed {
        eprintln!("error: {error:#}");
    }
    Err(last)
}

/// Facts in the order they are told: name and value.
struct Report {
    kind: &'static str,
    facts: Vec<(&'static str, String)>,
    text: Option<String>,
}

impl Report {
    fn json(&self, path: &Path) -> serde_json::Value {
        let mut map = serde_json::Map::new();
        map.insert("file".into(), path.display().to_string().into());
        map.insert("kind".into(), self.kind.into());
        for (name, value) in &self.facts {
            map.insert((*name).into(), value.clone().into());
        }
        if let Some(text) = &self.text {
            map.insert("parameters".into(), text.clone().into());
        }
        map.into()
    }
}

fn print(path: &Path, report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: {}", path.display(), report.kind)?;
    for (name, value) in &report.facts {
        writeln!(out, "  {name:<12} {value}")?;
    }
    for line in report.text.iter().flat_map(|text| text.lines()) {
        writeln!(out, "  | {line}")?;
    }
    Ok(())
}

fn inspect(path: &Path) -> Result<Report> {
    if path.is_dir() {
        return model_folder(path);
    }
    if is_picture(path)? {
        return picture(path);
    }
    weights(path)
}

fn is_picture(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| anyhow!("'{}': {e}", path.display()))?;
    file.take(64).read_to_end(&mut start).map_err(|e| anyhow!("'{}': {e}", path.display()))?;
    Ok(Format::of(&start).is_some())
}

fn model_folder(path: &Path) -> Result<Report> {
    let spec = ModelSpec { model: Some(path.into()), ..ModelSpec::default() };
    let files = spec.find(&SearchPaths::default())?;
    let mut facts = vec![("name", files.name.clone()), ("family", files.family.name().to_owned())];
    for (name, part) in files.parts() {
        facts.push((
            name,
            format!("{} ({})", part.checkpoint.origin().display(), dtypes(&part.checkpoint, &part.detected)),
        ));
    }
    facts.push(("complete", "yes: transformer, autoencoder, CLIP-L and T5 are there".into()));
    Ok(Report { kind: "a model", facts, text: None })
}

fn weights(path: &Path) -> Result<Report> {
    let checkpoint = Checkpoint::open(path)?;
    let found = detect(&checkpoint);
    let length = std::fs::metadata(path).map_or(0, |m| m.len());
    let count = checkpoint.tensors().count();
    let mut facts = vec![("size", format!("{} in {count} tensors", bytes(length)))];
    for detected in &found {
        facts.push(("holds", format!("{}, {}", detected.component.name(), layout(detected))));
        facts.push(("formats", dtypes(&checkpoint, detected)));
    }
    if checkpoint.metadata("tokenizer.ggml.model") == Some("t5") {
        facts.push(("holds", "T5's tokenizer".into()));
    }
    if found.iter().any(|d| d.component == Component::Transformer) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        facts.push((
            "family",
            format!("{} (told by its name; weights do not tell Krea from dev)", Family::from_name(&name).name()),
        ));
        let parts = [(Component::Vae, "--vae"), (Component::ClipL, "--clip-l"), (Component::T5, "--t5xxl")];
        let missing: Vec<String> = parts
            .iter()
            .filter(|(component, _)| !found.iter().any(|d| d.component == *component))
            .map(|(component, flag)| format!("{} ({flag})", component.name()))
            .collect();
        let missing = if missing.is_empty() { "nothing: all in one".into() } else { missing.join(", ") };
        facts.push(("also needed", missing));
    }
    if found.is_empty()
        && let Ok(lora) = Lora::open(path)
    {
        let layers =
            format!("a LoRA for {} layers of some model; darkroom generate --lora tells if it fits", lora.layers());
        facts.push(("holds", layers));
        facts.push(("hash", format!("{} (AutoV3)", lora.hash())));
    } else if found.is_empty() {
        let names: Vec<&str> = checkpoint.tensors().take(3).map(|(name, _)| name).collect();
        facts.push(("holds", format!("nothing darkroom knows; its first tensors are {}", names.join(", "))));
    }
    let kind = if checkpoint.is_gguf() { "weights (GGUF)" } else { "weights (safetensors)" };
    Ok(Report { kind, facts, text: None })
}

fn layout(detected: &Detected) -> String {
    let naming = match (detected.naming, detected.component) {
        (Naming::Same, Component::Transformer | Component::Vae) => "BFL's names",
        (Naming::FluxDiffusers | Naming::VaeDiffusers { .. }, _) => "diffusers' names",
        (Naming::T5Llama, _) => "llama.cpp's names",
        (Naming::Same, _) => "the usual names",
    };
    if detected.prefix.is_empty() { naming.to_owned() } else { format!("{naming} under '{}'", detected.prefix) }
}

/// `bf16 780, f32 4`: how many tensors of a component have which format.
pub(crate) fn dtypes(checkpoint: &Checkpoint, detected: &Detected) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, entry) in checkpoint.tensors() {
        if name.starts_with(&detected.prefix) {
            *counts.entry(entry.dtype.as_str()).or_default() += 1;
        }
    }
    counts.iter().map(|(dtype, count)| format!("{dtype} ×{count}")).collect::<Vec<_>>().join(", ")
}

fn picture(path: &Path) -> Result<Report> {
    let bytes = std::fs::read(path).map_err(|e| anyhow!("'{}': {e}", path.display()))?;
    let found = image_file::read(&bytes).map_err(|e| anyhow!("'{}': {e}", path.display()))?;
    let mut facts = vec![
        ("size", format!("{}×{} pixels, {}", found.width, found.height, found.format)),
        (
            "AI-generated",
            if found.ai_generated { "yes, says its mark (IPTC trainedAlgorithmicMedia)" } else { "not marked" }.into(),
        ),
    ];
    if let Some(made) = &found.provenance {
        facts.push(("software", made.software.clone()));
        facts.push(("model", made.model.clone()));
        facts.push(("seed", made.seed.to_string()));
        facts.push(("precision", made.precision.clone()));
        facts.push(("safety", made.safety.clone()));
    }
    if !found.other.is_empty() {
        facts.push(("also holds", found.other.join(", ")));
    }
    Ok(Report { kind: "a picture", facts, text: found.parameters })
}

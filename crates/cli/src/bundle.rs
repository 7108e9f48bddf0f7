//! `darkroom bundle`: models on a disk or stick, for machines without a network.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use hub::{
    Error,
    bundle::{export, import, read_manifest},
    cache::Cache,
    records::{Record, Records},
    settings::Settings,
};

use crate::{
    download::{Told, Watch},
    generate::cancel_on_interrupt,
    licences,
    model_args::variable,
    readable::{bytes, shown},
};

/// Take models to machines without a network.
#[derive(ClapArgs)]
#[command(after_help = "\
  darkroom bundle export krea -o krea.tar      on a machine that has it
  darkroom bundle import krea.tar              on the other; then: darkroom generate -m krea …

A bundle is an uncompressed tar, or a folder, with a manifest of SHA-256. Its licence is accepted where it is imported.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write models that were pulled into a bundle
    Export(ExportArgs),
    /// Take a bundle's models into the cache
    Import(ImportArgs),
}

#[derive(ClapArgs)]
struct ExportArgs {
    /// Names of models: krea (its latest variant), krea:q4_k
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// A new file that ends in .tar, or a new folder
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(ClapArgs)]
struct ImportArgs {
    /// A bundle: a tar or a folder
    #[arg(value_name = "PATH")]
    from: PathBuf,
    /// Accept the licences that are shown, without being asked; the acceptance is recorded
    #[arg(long, visible_alias = "accept-licence")]
    accept_license: bool,
    /// Say nothing but errors and licences
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Export(args) => run_export(args),
        Verb::Import(args) => run_import(args),
    }
}

fn told(quiet: bool) -> Told {
    if quiet { Told::Quietly } else { Told::People }
}

fn run_export(args: &ExportArgs) -> Result<()> {
    let settings = Settings::from_environment(variable)?;
    let (cache, records) = (Cache::new(&settings.cache), Records::new(&settings.data));
    let mut models: Vec<Record> = Vec::new();
    for name in &args.names {
        let Some(record) = records.named(name).into_iter().next() else {
            let problem = format!("'{name}' was not pulled here; hint: darkroom list, darkroom pull {name}");
            return Err(Error::Asked { field: "name", problem }.into());
        };
        if let Some(missing) = record.missing(&cache).first() {
            let problem = format!("{name} is not whole: '{}' is missing; hint: darkroom pull {name}", missing.path);
            return Err(Error::Asked { field: "name", problem }.into());
        }
        models.push(record);
    }
    let mut watch = Watch::new(told(args.quiet));
    watch.stop_by(cancel_on_interrupt()?);
    watch.begin("written", models.iter().map(Record::bytes).sum(), 0);
    let exported = export(&models, &cache, &args.output, &mut |event| watch.event(event));
    watch.finish();
    let manifest = exported?;
    watch.note(&watch.summary());
    let names: Vec<String> =
        manifest.models.iter().map(|model| format!("{} ({})", model.name, model.variant)).collect();
    watch.note(&format!("{}: {}, {}", shown(&args.output), names.join(", "), bytes(manifest.bytes())));
    Ok(())
}

fn run_import(args: &ImportArgs) -> Result<()> {
    let settings = Settings::from_environment(variable)?;
    let (cache, records) = (Cache::new(&settings.cache), Records::new(&settings.data));
    let manifest = read_manifest(&args.from)?;
    let mut watch = Watch::new(told(args.quiet));
    for model in &manifest.models {
        watch.note(&format!("{} ({}), {}, bundled {}", model.name, model.variant, bytes(model.bytes()), manifest.made));
        let repositories = model.files.iter().map(|file| &file.repository);
        let stated = (Some(model.licence.as_str()), None);
        let terms = licences::terms(&model.name, repositories, stated, &settings, manifest.licence_text(model));
        licences::accept(&terms, args.accept_license, args.quiet, &settings)?;
    }
    watch.stop_by(cancel_on_interrupt()?);
    watch.begin("imported", manifest.bytes(), 0);
    let imported = import(&args.from, &manifest, &cache, &records, &mut |event| watch.event(event));
    watch.finish();
    imported?;
    for model in &manifest.models {
        watch.note(&format!(
            "{} ({}) is complete: darkroom generate -m {} \"a fox in the snow\"",
            model.name, model.variant, model.name
        ));
    }
    Ok(())
}

//! `darkroom list`, `show` and `rm`: what is here, what is known of it, and away with it.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use clap::Args as ClapArgs;
use hub::{
    Error, Repository,
    cache::Cache,
    catalog,
    licence::{Acceptances, Terms},
    records::{Record, Records},
    settings::Settings,
};

use crate::{Usage, model_args::variable, readable::bytes};

/// Tell which models are here.
#[derive(ClapArgs)]
pub(crate) struct ListArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Tell what is known of a model: licence, variants, files.
#[derive(ClapArgs)]
pub(crate) struct ShowArgs {
    /// A model's name, with or without a variant, or a repository
    #[arg(value_name = "NAME")]
    name: String,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Remove a model's files from the cache, but for those that another model needs.
#[derive(ClapArgs)]
pub(crate) struct RemoveArgs {
    /// A model's name (all its variants), krea:q4_k (one), or a repository of the cache
    #[arg(value_name = "NAME")]
    name: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Where everything is.
struct Store {
    settings: Settings,
    cache: Cache,
    records: Records,
}

impl Store {
    fn open() -> Result<Self> {
        let settings = Settings::from_environment(variable)?;
        let (cache, records) = (Cache::new(&settings.cache), Records::new(&settings.data));
        Ok(Self { settings, cache, records })
    }

    /// Repositories of the cache that no record names: other programs' downloads.
    fn others(&self) -> Vec<Repository> {
        let ours: Vec<Repository> =
            self.records.all().into_iter().flat_map(|record| record.files).map(|file| file.repository).collect();
        self.cache.repositories().into_iter().filter(|repository| !ours.contains(repository)).collect()
    }

    fn state(&self, record: &Record) -> &'static str {
        if record.missing(&self.cache).is_empty() { "complete" } else { "files are missing" }
    }
}

pub(crate) fn list(args: &ListArgs) -> Result<()> {
    let store = Store::open()?;
    let (records, others) = (store.records.all(), store.others());
    let mut out = std::io::stdout().lock();
    if args.json {
        let models: Vec<_> = records
            .iter()
            .map(|r| {
                serde_json::json!({
                    "name": r.name, "variant": r.variant, "bytes": r.bytes(), "pulled": r.pulled, "licence": r.licence,
                    "complete": r.missing(&store.cache).is_empty(),
                })
            })
            .collect();
        let others: Vec<_> =
            others.iter().map(|r| serde_json::json!({"repository": r, "bytes": store.cache.bytes(r)})).collect();
        let report = serde_json::json!({"cache": store.cache.root(), "models": models, "others": others});
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{:<24} {:<10} {:>9}  {:<20}  state", "model", "variant", "size", "pulled")?;
    for record in &records {
        let state = store.state(record);
        writeln!(
            out,
            "{:<24} {:<10} {:>9}  {:<20}  {state}",
            record.name,
            record.variant,
            bytes(record.bytes()),
            record.pulled
        )?;
    }
    writeln!(out, "{:<24} {:<10} {:>9}  {:<20}  in the program", "pocket", "–", "–", "–")?;
    for repository in &others {
        let size = bytes(store.cache.bytes(repository));
        writeln!(
            out,
            "{:<24} {:<10} {size:>9}  {:<20}  in the cache, by another program",
            repository.as_str(),
            "–",
            "–"
        )?;
    }
    writeln!(out, "the cache is '{}'", store.cache.root().display())?;
    Ok(())
}

pub(crate) fn show(args: &ShowArgs) -> Result<()> {
    let store = Store::open()?;
    let base = args.name.split(':').next().unwrap_or(&args.name);
    let model = catalog::find(base);
    let records = store.records.named(&args.name);
    let repository = base.parse::<Repository>().ok().filter(|repository| store.cache.folder(repository).is_dir());
    let terms = match (&model, records.first(), &repository) {
        (Some(model), ..) => Terms::known(model.name, &model.licence),
        (None, Some(record), _) => {
            let mut of_files = record.files.iter().filter_map(|file| catalog::licence_of(&file.repository));
            match of_files.next() {
                Some(licence) => Terms::known(&record.name, &licence),
                None => Terms::stated(&record.name, &store.settings.page(base), Some(&record.licence), None),
            }
        }
        (None, None, Some(repository)) => match catalog::licence_of(repository) {
            Some(licence) => Terms::known(base, &licence),
            None => Terms::stated(base, &store.settings.page(base), None, None),
        },
        (None, None, None) => {
            let names: Vec<&str> = catalog::models().iter().map(|model| model.name).collect();
            let problem = format!("'{}' is neither here nor known; known are {}", args.name, names.join(", "));
            return Err(Error::Asked { field: "name", problem }.into());
        }
    };
    let accepted: Vec<_> =
        Acceptances::new(&store.settings.data).all()?.into_iter().filter(|a| a.model == base).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let variants = model.iter().flat_map(|m| &m.variants);
        let variants: Vec<_> =
            variants.map(|v| serde_json::json!({"variant": v.name, "download_bytes": v.bytes()})).collect();
        let report = serde_json::json!({
            "name": base, "licence": terms.name, "licence_link": terms.link, "policy": terms.policy, "accepted": accepted,
            "variants": variants, "here": records,
        });
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{}", model.as_ref().map_or(base, |model| model.title))?;
    if let Some(model) = &model {
        writeln!(out, "page      {}", store.settings.page(model.home))?;
    }
    for line in terms.lines() {
        writeln!(out, "{line}")?;
    }
    match accepted.last() {
        Some(a) => writeln!(out, "accepted  {} ({})", a.accepted, a.how)?,
        None => writeln!(out, "accepted  not on this machine")?,
    }
    if let Some(model) = &model {
        let sizes: Vec<String> = model.variants.iter().map(|v| format!("{} {}", v.name, bytes(v.bytes()))).collect();
        writeln!(out, "variants  {}", sizes.join(", "))?;
    }
    for record in &records {
        writeln!(
            out,
            "here      {} ({}), {}, pulled {}",
            record.variant,
            store.state(record),
            bytes(record.bytes()),
            record.pulled
        )?;
        for file in &record.files {
            let there = store.cache.has(&file.repository, &file.commit, &file.path, file.size);
            let mark = if there { " " } else { "!" };
            writeln!(out, "  {mark} {:>9}  {}/{}", bytes(file.size), file.repository, file.path)?;
        }
    }
    if let (true, Some(repository)) = (records.is_empty(), &repository) {
        let size = bytes(store.cache.bytes(repository));
        writeln!(out, "here      {size} in '{}'", store.cache.folder(repository).display())?;
    }
    Ok(())
}

pub(crate) fn remove(args: &RemoveArgs) -> Result<()> {
    let store = Store::open()?;
    let records = store.records.named(&args.name);
    let repository = args.name.parse::<Repository>().ok().filter(|repository| store.cache.folder(repository).is_dir());
    if records.is_empty() && repository.is_none() {
        let problem = format!("'{}' is not here; hint: darkroom list", args.name);
        return Err(Error::Asked { field: "name", problem }.into());
    }
    for record in &records {
        eprintln!("{} ({}), {} in {} files", record.name, record.variant, bytes(record.bytes()), record.files.len());
    }
    if let (true, Some(repository)) = (records.is_empty(), &repository) {
        let size = bytes(store.cache.bytes(repository));
        eprintln!(
            "{repository}, {size} in '{}', which other programs may use",
            store.cache.folder(repository).display()
        );
    }
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            return Err(Usage("rm: nobody can be asked (standard input is not a terminal); hint: --yes".into()).into());
        }
        eprint!("Type 'yes' to remove it: ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !answer.trim().eq_ignore_ascii_case("yes") {
            eprintln!("nothing was removed");
            return Ok(());
        }
    }
    let mut freed = 0;
    for record in &records {
        freed += store.records.remove(record, &store.cache)?;
    }
    if let (true, Some(repository)) = (records.is_empty(), &repository) {
        freed += store.cache.remove_repository(repository)?;
    }
    eprintln!("{} are free now", bytes(freed));
    Ok(())
}

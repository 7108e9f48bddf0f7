//! `darkroom pull`: weights from the Hugging Face hub into its cache, where every program finds them.

use std::{io::Write, path::PathBuf};

use anyhow::Result;
use clap::Args as ClapArgs;
use hub::{
    Error, Repository,
    cache::Cache,
    catalog::{self, Model},
    licence::{Terms, Text},
    records::{Record, Records},
    settings::{Settings, Token},
    transfer::{Hub, Item, Pick, Role, Transfer, Wanted},
};

use crate::{
    compute_args::parse_bytes,
    download::{Told, Watch},
    generate::cancel_on_interrupt,
    licences,
    model_args::variable,
    readable::bytes,
    variants::{Machine, choose, fits},
};

/// Download a model's weights from the Hugging Face hub.
#[derive(ClapArgs)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
#[command(after_help = "\
Names: krea, dev, schnell, kontext, fill, canny, depth, redux, encoders (T5, CLIP-L and autoencoder alone).

  darkroom pull krea                                   the variant that suits this machine
  darkroom pull krea --list-variants
  darkroom pull krea --variant q4_k                    or: darkroom pull krea:q4_k
  darkroom pull city96/FLUX.1-dev-gguf:*Q5_K_S.gguf    files of any repository, by path or pattern

Files land in the hub's cache (HF_HUB_CACHE, HF_HOME), where Hugging Face's tools find them too. An interrupted download goes on
where it stopped. HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HTTPS_PROXY count as usual.")]
pub(crate) struct Args {
    /// A model's name, or a repository: org/name, org/name:FILE, org/name:PATTERN
    #[arg(value_name = "NAME")]
    name: String,
    /// Which variant: bf16, q8_0, fp8, q6_k, q5_k, q4_k, q3_k [default: the most exact that stays in memory]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Tell which variants there are and what they take, and download nothing
    #[arg(long)]
    list_variants: bool,
    /// A branch, tag or commit of the repository
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Accept the licence that is shown, without being asked; the acceptance is recorded
    #[arg(long, visible_alias = "accept-licence")]
    accept_license: bool,
    /// A file with a token of the hub [default: HF_TOKEN, or the file 'token' in HF_HOME]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Choose the variant for so much memory, such as 12GB [default: what this machine has available]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory_limit: Option<u64>,
    /// Tell what would be downloaded, and download nothing
    #[arg(long)]
    dry_run: bool,
    /// Print events as lines of JSON to standard output
    #[arg(long)]
    json: bool,
    /// Say nothing but errors and the licence
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// What is to be pulled, by which name it is known afterwards.
struct Order {
    name: String,
    variant: String,
    wanted: Vec<Wanted>,
    /// Why this variant.
    why: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut settings = Settings::from_environment(variable)?;
    if let Some(file) = &args.token_file {
        settings.token = Some(Token::from_file(file)?);
    }
    let records = Records::new(&settings.data);
    let cache = Cache::new(&settings.cache);
    let (name, asked) = split(&args.name);
    let model = catalog::find(&name);
    if let (true, Some(model)) = (args.list_variants, &model) {
        return list_variants(model, args, &cache);
    }
    let order = match &model {
        Some(model) => of_model(model, args, asked.as_deref(), &records, &cache)?,
        None => of_repository(&name, args, asked)?,
    };
    let told = match (args.quiet, args.json) {
        (true, _) => Told::Quietly,
        (_, true) => Told::Json,
        _ => Told::People,
    };
    if settings.offline {
        return offline(&order, &records, &cache);
    }
    let hub = Hub::new(&settings)?;
    let mut watch = Watch::new(told);
    if args.list_variants {
        return list_files(&hub, &order, &mut watch);
    }
    if let Some(why) = &order.why {
        watch.note(why);
    }
    let transfer = hub.prepare(&order.wanted, &mut |event| watch.event(event))?;
    report(&order, &transfer, &cache, &watch);
    if args.dry_run {
        return dry_run(&transfer, args.json);
    }
    let terms = agree(args, &order, &hub, &transfer, &settings, &mut watch)?;

    watch.stop_by(cancel_on_interrupt()?);
    watch.begin("downloaded", transfer.total(), transfer.total() - transfer.missing());
    let fetched = hub.fetch(&transfer, &mut |event| watch.event(event));
    watch.finish();
    fetched?;
    let record = Record::new(&order.name, &order.variant, &terms.id, &transfer);
    records.save(&record)?;
    if watch.received() > 0 {
        watch.note(&watch.summary());
    }
    watch.json(&serde_json::json!({
        "event": "done", "model": record.name, "variant": record.variant, "bytes": record.bytes(),
        "received_bytes": watch.received(), "seconds": watch.pace().0,
        "files": record.files.iter().map(|f| cache.path(&f.repository, &f.commit, &f.path)).collect::<Vec<_>>(),
    }));
    let use_it = match order.name.as_str() {
        "redux" => "darkroom generate -m krea --redux IMAGE".into(),
        "encoders" => "darkroom generate --transformer FILE \"a fox in the snow\"".into(),
        name => format!("darkroom generate -m {name} \"a fox in the snow\""),
    };
    watch.note(&format!("{} ({}) is complete: {use_it}", order.name, order.variant));
    Ok(())
}

/// `krea:q4_k`, `org/name:FILE`.
fn split(name: &str) -> (String, Option<String>) {
    match name.split_once(':') {
        Some((name, rest)) if !rest.is_empty() => (name.to_owned(), Some(rest.to_owned())),
        _ => (name.trim_end_matches(':').to_owned(), None),
    }
}

fn machine(args: &Args, cache: &Cache) -> Machine {
    Machine { memory: args.memory_limit.or_else(flux::memory::available), disk: cache.free() }
}

fn of_model(model: &Model, args: &Args, asked: Option<&str>, records: &Records, cache: &Cache) -> Result<Order> {
    let last = records.named(model.name).into_iter().next();
    let (variant, why) = match (args.variant.as_deref().or(asked), last) {
        (Some(name), _) => (model.variant(name)?, None),
        (None, Some(last)) if args.memory_limit.is_none() && model.variant(&last.variant).is_ok() => {
            (model.variant(&last.variant)?, Some(format!("{}: as it was pulled before", last.variant)))
        }
        (None, _) => {
            let (variant, why) = choose(model, &fits(model)?, machine(args, cache))?;
            (variant, Some(why))
        }
    };
    let wanted = variant.wanted(args.revision.as_deref())?;
    Ok(Order { name: model.name.to_owned(), variant: variant.name.to_owned(), wanted, why })
}

fn of_repository(name: &str, args: &Args, asked: Option<String>) -> Result<Order> {
    let Ok(repository) = name.parse::<Repository>() else {
        let names: Vec<&str> = catalog::models().iter().map(|model| model.name).collect();
        let known =
            format!("there is no model '{name}'; known are {}, and any repository by its org/name", names.join(", "));
        return Err(Error::Asked { field: "name", problem: known }.into());
    };
    if args.variant.is_some() {
        let problem = format!("nobody knows variants of {repository}; hint: {repository}:FILE, or --list-variants");
        return Err(Error::Asked { field: "variant", problem }.into());
    }
    let pick = match &asked {
        Some(file) if file.contains(['*', '?']) || !file.contains('/') => Pick::Pattern(file.clone()),
        Some(file) => Pick::File(file.clone()),
        None => Pick::Whatever,
    };
    let revision = args.revision.clone().unwrap_or_else(|| "main".into());
    let wanted = vec![Wanted { repository, revision, role: Role::Other, pick }];
    Ok(Order { name: name.to_owned(), variant: asked.unwrap_or_else(|| "all".into()), wanted, why: None })
}

/// What can be said without a network.
fn offline(order: &Order, records: &Records, cache: &Cache) -> Result<()> {
    let here = records.named(&order.name).into_iter().find(|record| record.missing(cache).is_empty());
    let Some(record) = here else {
        let problem = format!(
            "HF_HUB_OFFLINE is set, and {} is not complete here; hint: unset it, or 'darkroom bundle import' on this machine",
            order.name
        );
        return Err(Error::Offline(problem).into());
    };
    eprintln!(
        "{} ({}) is here, {}; HF_HUB_OFFLINE is set, so nothing was asked",
        record.name,
        record.variant,
        bytes(record.bytes())
    );
    Ok(())
}

/// What is about to happen.
fn report(order: &Order, transfer: &Transfer, cache: &Cache, watch: &Watch) {
    let (total, missing) = (transfer.total(), transfer.missing());
    for contents in &transfer.contents {
        let of_it = |item: &&Item| item.repository == contents.repository;
        let size: u64 = transfer.items.iter().filter(of_it).map(|item| item.file.size).sum();
        let count = transfer.items.iter().filter(of_it).count();
        let files = if count == 1 { "1 file" } else { &format!("{count} files") };
        watch.note(&format!("  {:>9}  {} at {}, {files}", bytes(size), contents.repository, &contents.commit[..12]));
    }
    let free = cache.free().map(|free| format!("; {} are free in '{}'", bytes(free), cache.root().display()));
    let rest = match (missing, total - missing) {
        (0, _) => "all of it is here".to_owned(),
        (_, 0) => format!("all of it is to be downloaded{}", free.unwrap_or_default()),
        (missing, here) => {
            format!("{} are here, {} are to be downloaded{}", bytes(here), bytes(missing), free.unwrap_or_default())
        }
    };
    watch.note(&format!("{} ({}): {}, {rest}", order.name, order.variant, bytes(total)));
    watch.json(&serde_json::json!({
        "event": "planned", "model": order.name, "variant": order.variant, "why": order.why,
        "total_bytes": total, "missing_bytes": missing, "free_bytes": cache.free(), "files": transfer.items.len(),
    }));
}

fn dry_run(transfer: &Transfer, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for item in &transfer.items {
        let (size, path) = (item.file.size, &item.file.path);
        if json {
            let here = item.here;
            let event = serde_json::json!({
                "event": "file", "repository": item.repository, "commit": item.commit, "file": path, "bytes": size,
                "here": here, "hash": item.file.etag,
            });
            writeln!(out, "{event}")?;
        } else {
            writeln!(out, "{:>9}  {}/{path}", bytes(size), item.repository)?;
        }
    }
    Ok(())
}

/// The licence, before the first byte of weights.
fn agree(
    args: &Args,
    order: &Order,
    hub: &Hub,
    transfer: &Transfer,
    settings: &Settings,
    watch: &mut Watch,
) -> Result<Terms> {
    let text = hub.licence_text(transfer, &mut |event| watch.event(event))?;
    let text =
        text.map(|(item, text)| Text::new(format!("{}@{}/{}", item.repository, item.commit, item.file.path), &text));
    let first = transfer.contents.first();
    let stated = (first.and_then(|c| c.licence.as_deref()), first.and_then(|c| c.licence_link.as_deref()));
    let repositories = transfer.contents.iter().map(|contents| &contents.repository);
    let terms = licences::terms(&order.name, repositories, stated, settings, text);
    licences::accept(&terms, args.accept_license, args.quiet || args.json, settings)?;
    Ok(terms)
}

/// The variants of a model, and which one it would be.
fn list_variants(model: &Model, args: &Args, cache: &Cache) -> Result<()> {
    let machine = machine(args, cache);
    let fits = fits(model)?;
    let (chosen, why) = choose(model, &fits, machine)?;
    let of = |name: &str| fits.iter().find(|fit| fit.variant.name == name);
    let mut out = std::io::stdout().lock();
    if args.json {
        let variant = |variant: &catalog::Variant| {
            let fit = of(variant.name);
            serde_json::json!({
                "variant": variant.name, "download_bytes": variant.bytes(), "chosen": variant.name == chosen.name,
                "memory_bytes": fit.map(|fit| fit.whole), "least_memory_bytes": fit.map(|fit| fit.least),
                "repository": variant.sources.first().map(|source| source.repository),
            })
        };
        let variants: Vec<_> = model.variants.iter().map(variant).collect();
        let report = serde_json::json!({
            "model": model.name, "memory_bytes": machine.memory, "disk_bytes": machine.disk, "variants": variants,
        });
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{}, at its usual size; sizes as they were known, the hub's count", model.title)?;
    writeln!(out, "  {:<8} {:>10} {:>12} {:>12}  from", "variant", "download", "in memory", "at least")?;
    for variant in &model.variants {
        let memory = |bytes_of: fn(&crate::variants::Fit<'_>) -> u64| {
            of(variant.name).map_or_else(|| "–".into(), |fit| bytes(bytes_of(fit)))
        };
        writeln!(
            out,
            "{} {:<8} {:>10} {:>12} {:>12}  {}",
            if variant.name == chosen.name { "*" } else { " " },
            variant.name,
            bytes(variant.bytes()),
            memory(|fit| fit.whole),
            memory(|fit| fit.least),
            variant.sources.first().map_or("", |source| source.repository)
        )?;
    }
    writeln!(out, "* {why}")?;
    Ok(())
}

/// The weights of a repository that nobody wrote a table of.
fn list_files(hub: &Hub, order: &Order, watch: &mut Watch) -> Result<()> {
    let Some(wanted) = order.wanted.first() else { return Ok(()) };
    let contents = hub.contents(&wanted.repository, &wanted.revision, &mut |event| watch.event(event))?;
    let mut out = std::io::stdout().lock();
    for file in contents.files {
        writeln!(out, "{:>9}  {}", bytes(file.size), file.path)?;
    }
    Ok(())
}

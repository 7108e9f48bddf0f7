//! `darkroom keys`: who may use the server. A server that runs knows of a change within seconds.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use server::{
    auth::{KeyTable, Limits, NoKey, Scope},
    config::{Loaded, Sources, Value},
    dialect::instant,
    journal::{Journal, OpenError},
};

use crate::{Usage, model_args::variable};

#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a key and print it: shown once, never stored
    Add(AddArgs),
    /// Tell which keys there are
    List(ListArgs),
    /// End a key, for good
    Revoke(RevokeArgs),
}

#[derive(ClapArgs)]
struct AddArgs {
    /// What to call it
    #[arg(value_name = "NAME")]
    name: String,
    /// What it is good for; each includes those before it
    #[arg(long, value_enum, default_value_t = Good::Generate)]
    scope: Good,
    /// Whose jobs are made with it: keys of one owner see each other's jobs [default: the key's name]
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// Requests that make something, at most, in a minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_minute: Option<u32>,
    /// Such requests at the same time, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrent: Option<u32>,
    /// Jobs that have not ended, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    queued: Option<u32>,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(ClapArgs)]
struct ListArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(ClapArgs)]
struct RevokeArgs {
    /// Which
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Good {
    /// To look: models, metrics, jobs of its owner
    Read,
    /// To make pictures
    Generate,
    /// To load and unload models
    Admin,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match &args.what {
        What::Add(args) => {
            let limits = Limits { per_minute: args.per_minute, concurrent: args.concurrent, queued: args.queued };
            let scope = match args.scope {
                Good::Read => Scope::Read,
                Good::Generate => Scope::Generate,
                Good::Admin => Scope::Admin,
            };
            let owner = args.owner.as_deref().unwrap_or(&args.name);
            let key = table(&args.place)?.add(&args.name, owner, scope, limits).map_err(usage)?;
            eprintln!("This is the key '{}'. It is shown once.", args.name);
            writeln!(out, "{key}")?;
        }
        What::List(args) => {
            let keys = table(&args.place)?.list()?;
            if args.json {
                let keys: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        serde_json::json!({
                            "name": key.name, "owner": key.owner, "scope": key.scope, "limits": key.limits,
                            "made": instant(key.made), "revoked": key.revoked.map(instant),
                        })
                    })
                    .collect();
                writeln!(out, "{}", serde_json::to_string_pretty(&keys)?)?;
                return Ok(());
            }
            for key in keys {
                let day = |at| instant(at).chars().take(10).collect::<String>();
                let end = key.revoked.map(|at| format!(", revoked {}", day(at))).unwrap_or_default();
                let limit = |name, most: Option<u32>| most.map(|n| format!(", {n} {name}")).unwrap_or_default();
                let limits = limit("a minute", key.limits.per_minute)
                    + &limit("at once", key.limits.concurrent)
                    + &limit("in the queue", key.limits.queued);
                let (name, scope, owner) = (&key.name, key.scope.name(), &key.owner.0);
                writeln!(out, "{name}  {scope}, owner {owner}, made {}{limits}{end}", day(key.made))?;
            }
        }
        What::Revoke(args) => {
            table(&args.place)?.revoke(&args.name).map_err(usage)?;
            eprintln!("The key '{}' is of no use any more.", args.name);
        }
    }
    Ok(())
}

/// Where the server's folder and its configuration are.
#[derive(ClapArgs)]
pub(crate) struct PlaceArgs {
    /// The server's folder [default: darkroom/server in the user's folder for data]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// The configuration file [default: $DARKROOM_CONFIG, or darkroom/config.toml in the user's folder]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl PlaceArgs {
    /// The configuration.
    pub(crate) fn read(&self) -> Result<Loaded> {
        let flags = self.data_dir.iter().map(|folder| ("data_dir", Value::String(folder.clone()))).collect();
        let sources = Sources { flags, environment: &variable, file: self.config.clone() };
        Loaded::read(sources).map_err(|wrong| Usage(wrong.to_string()).into())
    }
}

/// The keys of the data folder, which is made if it is not there. A server that runs has the folder for itself, but for this table.
fn table(place: &PlaceArgs) -> Result<KeyTable> {
    let folder = place.read()?.config.data_dir;
    match Journal::open(&folder) {
        Ok(_) | Err(OpenError::InUse { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    KeyTable::open(&folder)?.with_context(|| format!("{}: there is no table of keys", folder.display()))
}

fn usage(error: NoKey) -> anyhow::Error {
    match error {
        NoKey::Fault(fault) => fault.into(),
        other => Usage(other.to_string()).into(),
    }
}

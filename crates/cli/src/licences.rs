//! The licence of what is downloaded or imported: shown, accepted by whoever sits there or by a flag, and written down. `darkroom
//! licenses` tells what was accepted.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use clap::Args as ClapArgs;
use hub::{
    Error, Repository, catalog,
    licence::{Acceptances, Terms, Text},
    settings::Settings,
};

use crate::model_args::variable;

/// Tell which licences were accepted on this machine, and when.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Print the acceptances as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let settings = Settings::from_environment(variable)?;
    let all = Acceptances::new(&settings.data).all()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    if all.is_empty() {
        writeln!(out, "no licence was accepted here so far; 'darkroom pull' asks before it downloads")?;
    }
    for a in all {
        writeln!(out, "{}  {:<12} {} ({})", a.accepted, a.model, a.name, a.how)?;
        writeln!(out, "{:22}{}", "", a.link)?;
        if let Some(text) = a.text {
            let version = text.version.map(|version| format!("{version}, ")).unwrap_or_default();
            writeln!(out, "{:22}{} ({version}sha256 {})", "", text.from, text.sha256)?;
        }
    }
    Ok(())
}

/// The terms of a model: of its name, of the strictest of its repositories, or what its card states.
pub(crate) fn terms<'a>(
    name: &str,
    mut repositories: impl Iterator<Item = &'a Repository>,
    (stated, link): (Option<&str>, Option<&str>),
    settings: &Settings,
    text: Option<Text>,
) -> Terms {
    let known = catalog::find(name).map(|model| model.licence).or_else(|| repositories.find_map(catalog::licence_of));
    let terms = match known {
        Some(licence) => Terms::known(name, &licence),
        None => Terms::stated(name, &settings.page(name), stated, link),
    };
    Terms { text, ..terms }
}

/// Goes on only if the terms were accepted before, or are now.
pub(crate) fn accept(terms: &Terms, by_flag: bool, quiet: bool, settings: &Settings) -> Result<()> {
    let acceptances = Acceptances::new(&settings.data);
    if let Some(before) = acceptances.find(terms)? {
        if !quiet {
            eprintln!("licence   {}, accepted {}", before.name, before.accepted);
        }
        return Ok(());
    }
    // Shown even with -q: nobody accepts what he does not see.
    for line in terms.lines() {
        eprintln!("{line}");
    }
    if by_flag {
        acceptances.record(terms, "--accept-license")?;
        eprintln!("accepted by --accept-license, which is recorded");
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let problem = format!(
            "the licence of {} was not accepted, and nobody can be asked (standard input is not a terminal); hint: read the text, \
             then add --accept-license",
            terms.model
        );
        return Err(Error::Licence(problem).into());
    }
    eprint!("Type 'yes' to accept these terms: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("yes") {
        acceptances.record(terms, "typed")?;
        return Ok(());
    }
    Err(Error::Licence(format!("the licence of {} was not accepted; nothing was downloaded", terms.model)).into())
}

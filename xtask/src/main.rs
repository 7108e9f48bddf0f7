//! The checks of the project itself: `cargo xtask test`, `cargo xtask tidy`, `cargo xtask ci`.
//!
//! Nothing but the standard library, so that it is built in a second; it runs cargo and reads files, and changes nothing.

#![forbid(unsafe_code)]

mod clients;
mod source;
mod tidy;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

const HELP: &str = "\
usage: cargo xtask COMMAND

  test [ARGS]  all tests: units, goldens against the references, the command line, the documentation's examples, and
               (without ARGS) the vendors' clients
  clients [X]  the vendors' own clients against 'darkroom serve'; X: only scripts whose names hold it
  tidy         the house rules: who may import whom, where unsafe may stand, headers, links
  ci           formatting, lints, tidy and all tests; stops at the first failure

ARGS go to cargo test: 'cargo xtask test -p flux golden'.";

/// What `ci` runs through cargo before the tests.
const LINTS: [(&str, &[&str]); 2] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let passed = match args.as_slice() {
        ["test", rest @ ..] => test(rest),
        ["clients"] => clients(""),
        ["clients", only] => clients(only),
        ["tidy"] => tidy(),
        ["ci"] => ci(),
        ["help" | "-h" | "--help"] => {
            println!("{HELP}");
            true
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

fn ci() -> bool {
    let start = Instant::now();
    let passed = LINTS.iter().all(|(name, args)| cargo(name, args)) && tidy() && test(&[]);
    if passed {
        println!("ci: all passed in {:.0} s", start.elapsed().as_secs_f64());
    }
    passed
}

/// `cargo test` of every crate: its own summary lines are what is shown.
fn test(args: &[&str]) -> bool {
    let mut all = vec!["test"];
    if !args.iter().any(|arg| ["-p", "--package", "--workspace"].contains(arg)) {
        all.push("--workspace");
    }
    all.extend(args);
    cargo("tests", &all) && (!args.is_empty() || clients(""))
}

/// The vendors' clients against the program as it is built now.
fn clients(only: &str) -> bool {
    cargo("the program", &["build", "-p", "darkroom"]) && clients::run(&root(), &clients::target(&root()), only)
}

fn tidy() -> bool {
    println!("== tidy: cargo xtask tidy");
    let problems = tidy::problems(&root());
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => println!("tidy: passed"),
        n => println!("tidy: {n} problems\nfailed: tidy; again with: cargo xtask tidy"),
    }
    problems.is_empty()
}

/// Runs cargo in the workspace's folder; says what is run, and after a failure how to run it again.
fn cargo(name: &str, args: &[&str]) -> bool {
    let command = format!("cargo {}", args.join(" "));
    println!("== {name}: {command}");
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let problem = match Command::new(program).args(args).current_dir(root()).status() {
        Ok(status) if status.success() => return true,
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    println!("failed: {name} ({problem}); again with: {command}");
    false
}

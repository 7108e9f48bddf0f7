//! A hub on loopback with files of a folder, to try other clients on it: `stand_in REPOSITORY FOLDER [gated]` prints its address and
//! waits. Files above 10 kB count as large ones.

#![expect(clippy::unwrap_used, reason = "a tool for tests")]

#[expect(dead_code, reason = "the stand-in does more than this tool asks of it")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::{fs, path::Path};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [repository, folder, rest @ ..] = &arguments[..] else {
        eprintln!("usage: stand_in REPOSITORY FOLDER [gated]");
        std::process::exit(2);
    };
    let mut files = Vec::new();
    collect(Path::new(folder), "", &mut files);
    let files: Vec<(&str, Vec<u8>, bool)> =
        files.iter().map(|(path, bytes)| (path.as_str(), bytes.clone(), bytes.len() > 10_000)).collect();
    let server = support::StandIn::start();
    server.publish(repository, !rest.is_empty(), "", &files);
    println!("{}", server.endpoint);
    std::thread::park();
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.push((name, fs::read(entry.path()).unwrap()));
        }
    }
}

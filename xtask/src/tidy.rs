//! The house rules that no compiler keeps. Each rule gives its problems as `file:line: what is wrong`.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use crate::source::{backticks, code, prose};

/// Our crates by folder, and which of ours each may import. A crate that is not here fails.
const MAY_IMPORT: [(&str, &str, &[&str]); 8] = [
    ("crates/tensor", "tensor", &[]),
    ("crates/flux", "flux", &["tensor"]),
    ("crates/server", "server", &["flux"]),
    // Of models it knows names and addresses, nothing of tensors.
    ("crates/hub", "hub", &[]),
    // `tensor` only to name a device and a precision, and to measure its kernels.
    ("crates/cli", "darkroom", &["flux", "hub", "server", "tensor"]),
    ("fuzz", "darkroom-fuzz", &["flux", "tensor"]),
    // Another engine, for comparison.
    ("bench/candle", "bench-candle", &[]),
    ("xtask", "xtask", &[]),
];

/// The only crate with `unsafe`.
const UNSAFE_IN: &str = "crates/tensor/";

/// The longest header, lines. `lib.rs` may say more: it is the crate's front page.
const LONGEST_HEADER: usize = 10;

/// The longest file, lines, unless it is in [`LONG_FILES`].
const LONGEST_FILE: usize = 800;

/// Files that may be longer, and why.
const LONG_FILES: [(&str, &str); 0] = [];

/// What may not stand in code, and what to do instead.
const FORBIDDEN: [(&str, &str); 6] = [
    ("todo!", "do it, or leave it out"),
    ("unimplemented!", "do it, or leave it out"),
    ("dbg!", "remove it"),
    ("#[ignore", "run the test, or delete it"),
    ("#[allow", "write #[expect(…, reason = \"…\")]"),
    ("#![allow", "write #![expect(…, reason = \"…\")]"),
];

/// First folders of paths that exist on one machine only.
const MACHINES: [&str; 5] = ["work", "home", "root", "Users", "mnt"];

/// Not ours to check: what is built, and what git does not keep.
const SKIPPED: [&str; 8] = [".git", "target", ".venv", "__pycache__", "node_modules", "demo", "corpus", "artifacts"];

/// The only place where dependencies come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// All that is wrong in the tree under `root`, in order of files and lines.
pub(crate) fn problems(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    collect(root, &mut files);
    files.sort();
    let mut all = workspace(root);
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue }; // not text
        let name = relative(root, &path);
        let found = match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => rust(&name, &text),
            Some("md") => markdown(root, &name, &text),
            _ if name.ends_with("Cargo.toml") => manifest(&name, &text),
            _ if name.ends_with("Cargo.lock") => lock(&text),
            _ => Vec::new(),
        };
        let found = found.into_iter().chain(length(&name, &text)).chain(machine_paths(&text));
        all.extend(found.map(|(line, problem)| format!("{name}:{line}: {problem}")));
    }
    all
}

/// A line's number and what is wrong with it.
type Problem = (usize, String);

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if SKIPPED.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

/// With forward slashes on every system.
fn relative(root: &Path, path: &Path) -> String {
    let parts = path.strip_prefix(root).unwrap_or(path).components();
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn workspace(root: &Path) -> Vec<String> {
    let missing = |(folder, ..): &(&str, _, _)| {
        let gone = !root.join(folder).join("Cargo.toml").is_file();
        gone.then(|| format!("xtask/src/tidy.rs: the table of crates names '{folder}', which is not there"))
    };
    let mut all: Vec<String> = MAY_IMPORT.iter().filter_map(missing).collect();
    for (file, _) in LONG_FILES {
        if !root.join(file).is_file() {
            all.push(format!("xtask/src/tidy.rs: the list of long files names '{file}', which is not there"));
        }
    }
    // The README's first command is `cargo run` in the root: of the default members, one may have a binary.
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
    let default = manifest.lines().find(|line| line.starts_with("default-members"));
    if !default.is_some_and(|line| line.contains("\"crates/cli\"") && !line.contains("\"xtask\"")) {
        let line = r#"default-members = ["crates/tensor", "crates/flux", "crates/cli"]"#;
        all.push(format!("Cargo.toml: 'cargo run' does not know which binary is meant; hint: {line}"));
    }
    all
}

/// Who imports whom.
fn manifest(name: &str, text: &str) -> Vec<Problem> {
    let folder = name.strip_suffix("/Cargo.toml").unwrap_or("");
    if folder.is_empty() {
        return Vec::new();
    }
    let Some((_, _, allowed)) = MAY_IMPORT.iter().find(|(of, ..)| *of == folder) else {
        return vec![(1, "is not in the table of crates in xtask/src/tidy.rs".into())];
    };
    let mut problems = Vec::new();
    let mut section = "";
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            continue;
        }
        if !section.ends_with("dependencies") || line.is_empty() || line.starts_with('#') {
            continue;
        }
        let import = line.split(['.', '=', ' ']).next().unwrap_or("").trim_matches('"');
        if MAY_IMPORT.iter().any(|(_, ours, _)| *ours == import) && !allowed.contains(&import) {
            problems.push((number, format!("'{folder}' may not import '{import}'")));
        }
        if folder == "xtask" {
            problems.push((number, format!("xtask has no dependencies, not even '{import}'")));
        }
    }
    problems
}

fn lock(text: &str) -> Vec<Problem> {
    let foreign =
        |line: &str| line.strip_prefix("source = ").is_some_and(|source| source.trim_matches('"') != REGISTRY);
    let lines = (1..).zip(text.lines()).filter(|(_, line)| foreign(line));
    lines.map(|(number, line)| (number, format!("{line}: only crates.io is used"))).collect()
}

fn rust(name: &str, text: &str) -> Vec<Problem> {
    let mut problems = header(name, text);
    let code = code(text);
    for (number, line) in (1..).zip(code.lines()) {
        if has_word(line, "unsafe") && !name.starts_with(UNSAFE_IN) {
            problems.push((number, format!("'unsafe' stands outside of {UNSAFE_IN}")));
        }
        for (word, instead) in FORBIDDEN {
            // A longer word that ends in the same letters is another word.
            let found =
                line.find(word).is_some_and(|at| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            if found {
                problems.push((number, format!("'{word}' may not stay; {instead}")));
            }
        }
    }
    problems.extend(expectations(&code));
    problems
}

/// Every expectation says why.
fn expectations(code: &str) -> Vec<Problem> {
    let openings = ["#[expect(", "#![expect("].into_iter().flat_map(|open| code.match_indices(open));
    let silent = openings.filter(|(at, _)| {
        let attribute = code[*at..].split(']').next().unwrap_or("");
        !attribute.contains("reason")
    });
    silent.map(|(at, open)| (code[..at].lines().count().max(1), format!("'{open}' gives no reason"))).collect()
}

/// What a module is, said in its first lines.
fn header(name: &str, text: &str) -> Vec<Problem> {
    let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
    if lines == 0 {
        return vec![(1, "has no header: what is it? ('//! …' in the first line)".into())];
    }
    if lines > LONGEST_HEADER && !name.ends_with("lib.rs") {
        return vec![(1, format!("has a header of {lines} lines; at most {LONGEST_HEADER} are read"))];
    }
    Vec::new()
}

fn length(name: &str, text: &str) -> Option<Problem> {
    let is_code = [".rs", ".py"].iter().any(|end| name.ends_with(end));
    let lines = text.lines().count();
    let listed = LONG_FILES.iter().any(|(file, _)| *file == name);
    match (is_code && lines > LONGEST_FILE, listed) {
        (true, false) => {
            Some((lines, format!("has {lines} lines; split it, or list it with a reason in xtask/src/tidy.rs")))
        }
        (false, true) => Some((lines, format!("has only {lines} lines; take it off the list in xtask/src/tidy.rs"))),
        _ => None,
    }
}

fn machine_paths(text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for machine in MACHINES.map(|folder| format!("/{folder}/")) {
            // Inside a longer path or an address it is just a folder's name.
            let longer = |at: usize| line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~/}".contains(c));
            if line.match_indices(&machine).any(|(at, _)| !longer(at)) {
                problems.push((number, format!("names a path of one machine: '{machine}…'")));
            }
        }
    }
    problems
}

/// Links and paths lead somewhere.
fn markdown(root: &Path, name: &str, text: &str) -> Vec<Problem> {
    let folder = Path::new(name).parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    for (number, line) in prose(text) {
        let (quoted, plain) = backticks(line);
        for link in links(&plain) {
            let target = link.split('#').next().unwrap_or("");
            let outside = target.contains("://") || target.starts_with("mailto:");
            if !outside && !target.is_empty() && !exists(root, &folder.join(target)) {
                problems.push((number, format!("links to '{link}', which is not there")));
            }
        }
        for path in quoted.into_iter().filter(|quoted| is_path(quoted)) {
            if !exists(root, Path::new(path)) {
                problems.push((number, format!("names '{path}', which is not there")));
            }
        }
    }
    problems
}

/// Targets of `[text](target "title")` and `src="target"`.
fn links(line: &str) -> Vec<&str> {
    let cut = |open: &'static str, close: char| {
        line.split(open).skip(1).filter_map(move |rest| rest.split_once(close)).map(|(target, _)| target.trim())
    };
    let links = cut("](", ')').map(|link| link.split(' ').next().unwrap_or(""));
    links.chain(cut("src=\"", '"')).collect()
}

/// Whether a word in backticks is a path of ours, from the root.
fn is_path(word: &str) -> bool {
    let ours = ["bench/", "crates/", "docs/", "tools/", "xtask/"].iter().any(|folder| word.starts_with(folder));
    ours && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

/// Whether a path inside the tree exists; one that leaves the tree does not.
fn exists(root: &Path, path: &Path) -> bool {
    let mut depth = 0;
    for part in path.components() {
        depth += match part {
            Component::Normal(_) => 1,
            Component::CurDir => 0,
            _ => -1,
        };
        if depth < 0 {
            return false;
        }
    }
    root.join(path).exists()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|(_, problem)| problem.as_str()).collect()
    }

    #[test]
    fn this_tree_is_tidy() {
        let problems = problems(&crate::root());
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    #[test]
    fn imports_go_one_way() {
        let text =
            "[dependencies]\nflux.workspace = true\nhalf = \"2\"\n[dev-dependencies]\ntensor = { path = \"\" }\n";
        assert_eq!(manifest("crates/tensor/Cargo.toml", text).len(), 2);
        assert_eq!(said(&manifest("crates/flux/Cargo.toml", text)), ["'crates/flux' may not import 'flux'"]);
        assert_eq!(manifest("crates/cli/Cargo.toml", text), []);
        assert_eq!(manifest("crates/new/Cargo.toml", text).len(), 1);
        assert_eq!(manifest("Cargo.toml", text), []);
    }

    #[test]
    fn code_is_judged_and_words_about_code_are_not() {
        let bad = "//! Bad.\nfn f() { unsafe { g() }; todo!() }\n#[allow(dead_code)]\n#[ignore = \"slow\"]\n";
        assert_eq!(rust("crates/flux/src/bad.rs", bad).len(), 4);
        let good = "//! About todo!() and unsafe.\n#![forbid(unsafe_code)]\nconst S: &str = \"dbg!\"; // #[allow(x)]\n";
        assert_eq!(rust("crates/flux/src/good.rs", good), []);
        assert_eq!(rust("crates/tensor/src/x.rs", "//! X.\nunsafe fn f() {}\n"), []);
        assert_eq!(
            said(&rust("x.rs", "//! X.\n#[expect(a)]\n#[expect(a, reason = \"b\")]\n")),
            ["'#[expect(' gives no reason"]
        );
    }

    #[test]
    fn headers_are_there_and_short() {
        assert_eq!(header("a.rs", "fn f() {}\n").len(), 1);
        let long = "//! a\n".repeat(LONGEST_HEADER + 1);
        assert_eq!((header("a.rs", &long).len(), header("src/lib.rs", &long).len()), (1, 0));
    }

    #[test]
    fn links_and_paths_lead_somewhere() {
        let root = crate::root();
        let text = "[a](Cargo.toml#x) [b](https://example.org) [c](#here) [d](../gone.md) `crates/flux/src/lib.rs` `crates/gone.rs`";
        assert_eq!(
            said(&markdown(&root, "README.md", text)),
            ["links to '../gone.md', which is not there", "names 'crates/gone.rs', which is not there"]
        );
        assert_eq!(said(&markdown(&root, "docs/a.md", "[a](../Cargo.toml) <img src=\"../b.png\">")).len(), 1);
    }

    #[test]
    fn a_path_of_one_machine_is_told_from_a_folders_name() {
        let home = format!("/{}/", MACHINES[1]);
        assert_eq!(machine_paths(&format!("cd {home}me")).len(), 1);
        assert_eq!(machine_paths(&format!("https://example.org{home} .{home} a{home}b ~{home}")), []);
    }

    #[test]
    fn dependencies_come_from_one_registry() {
        let text = format!("source = \"{REGISTRY}\"\nsource = \"git+https://example.org/x\"\n");
        assert_eq!(lock(&text).len(), 1);
    }
}

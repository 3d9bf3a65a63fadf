//! Keeps the architecture: a module uses only lower floors, never its siblings; no file grows without bound.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The modules of the library, from the ground up. Those of one floor don't use each other.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["util"],
    &["math"],
    &["tcq"],
    &["device", "gguf", "llama"],
    &["model"],
    &["corpus"],
    &["calib"],
    &["quant"],
    &["convert", "eval", "inspect"],
    &["analysis"],
    &["report"],
    &["pipeline"],
    &["cli"],
];

/// The longest file, tests included.
const MAX_LINES: usize = 600;

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Lists the Rust files under `folder`.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Gives the modules that a text names after `crate::`, also in `crate::{a, b::C}`. A name in capitals is a re-export of `error`.
fn used(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(list) => found.extend(top_level_names(list)),
            None => found.extend(leading_name(rest)),
        }
    }
    found
}

fn leading_name(text: &str) -> Option<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let name = &text[..end];
    let first = name.chars().next()?;
    Some(if first.is_uppercase() { "error".to_owned() } else { name.to_owned() })
}

/// Gives the first names of a braced list, whose opening brace was taken off.
fn top_level_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut item) = (0, Vec::new(), String::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(leading_name(std::mem::take(&mut item).trim())),
            _ if depth == 0 => item.push(c),
            _ => {}
        }
    }
    names.extend(leading_name(item.trim()));
    names
}

#[test]
fn modules_use_only_lower_floors() {
    let source = source_folder();
    let mut breaches = Vec::new();
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).expect("a file of the library");
        let own = relative.components().next().expect("a name").as_os_str().to_string_lossy();
        let own = own.trim_end_matches(".rs");
        if matches!(own, "lib" | "main") {
            continue;
        }
        let Some(level) = floor(own) else {
            breaches.push(format!("{}: module `{own}` has no floor", relative.display()));
            continue;
        };
        for other in used(&std::fs::read_to_string(&file).expect("a source file")) {
            let fine = other == own || floor(&other).is_some_and(|other| other < level);
            if !fine {
                breaches.push(format!("{}: `{own}` uses `crate::{other}`", relative.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn files_stay_short() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for file in rust_files(&source_folder()).into_iter().chain(rust_files(&tests)) {
        let lines = std::fs::read_to_string(&file).expect("a source file").lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines, at most {MAX_LINES} are allowed", file.display());
    }
}

#[test]
fn uses_are_found_in_every_form() {
    let text = "use crate::util::hash; use crate::{Error, math::stats, gguf::{Plan, Source}}; fn f() { crate::tcq::x() } mycrate::no()";
    let names: Vec<String> = used(text).into_iter().collect();
    assert_eq!(names, ["error", "gguf", "math", "tcq", "util"]);
}

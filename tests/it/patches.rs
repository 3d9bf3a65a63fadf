//! The patches of llama.cpp: they apply to the tree that this build compiles, once and only there, and hold the numbers of the code.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tcq4::tcq::{FTYPE_ID, GGML_TYPE_ID};

use crate::support::Dir;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The patches in their order, with their names.
fn series() -> Vec<(String, String)> {
    let files = std::fs::read_dir(repository("ggml-patches")).unwrap().map(|entry| entry.unwrap().path());
    let mut patches: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap()))
        .collect();
    patches.sort();
    patches
}

/// The files of llama.cpp that the series changes.
fn changed() -> Vec<String> {
    let of = |(_, text): &(String, String)| {
        text.lines().filter_map(|line| line.strip_prefix("--- a/").map(str::to_owned)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = series().iter().flat_map(of).collect();
    all.sort();
    all.dedup();
    all
}

/// The platform of this build: packages of others may not be at hand.
fn host() -> String {
    let told = Command::new("rustc").arg("-vV").output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    told.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

/// Copies what the series changes out of the tree that the crate compiles.
fn copied_tree(dir: &Dir) -> PathBuf {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", &host()])
        .arg("--manifest-path")
        .arg(repository("Cargo.toml"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let sys = packages.iter().find(|package| package["name"] == "llama-cpp-sys-2").unwrap();
    let tree = Path::new(sys["manifest_path"].as_str().unwrap()).with_file_name("llama.cpp");
    let copy = dir.file("llama.cpp");
    for file in changed() {
        if tree.join(&file).exists() {
            std::fs::create_dir_all(copy.join(&file).parent().unwrap()).unwrap();
            std::fs::copy(tree.join(&file), copy.join(&file)).unwrap();
        }
    }
    copy
}

fn apply(tree: &Path) -> Output {
    Command::new("bash").arg(repository("ggml-patches/apply.sh")).arg(tree).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_series_applies_once_to_the_tree_of_this_build() {
    let dir = Dir::new();
    let tree = copied_tree(&dir);
    let first = apply(&tree);
    assert!(first.status.success(), "{}", told(&first));
    let header = std::fs::read_to_string(tree.join("ggml/include/ggml.h")).unwrap();
    assert!(header.contains(&format!("GGML_TYPE_TCQ4_K32 = {GGML_TYPE_ID},")));
    assert!(tree.join("ggml/src/tcq4_k32.h").exists() && tree.join("ggml/src/ggml-cuda/tcq4.cu").exists());
    let source = |file: &str| ["ggml/src", "ggml/src/ggml-cuda"].map(|folder| tree.join(folder).join(file));
    let mut wanted = vec!["tcq4.cu".to_owned()];
    while let Some(file) = wanted.pop() {
        let path = source(&file).into_iter().find(|path| path.exists());
        let text = std::fs::read_to_string(path.unwrap_or_else(|| panic!("{file} was not copied"))).unwrap();
        let included = text.lines().filter_map(|line| line.strip_prefix("#include \"tcq4_")?.strip_suffix('"'));
        wanted.extend(included.map(|rest| format!("tcq4_{rest}")));
    }
    let second = apply(&tree);
    assert!(second.status.success() && told(&second).contains("patched already"), "{}", told(&second));
    assert_eq!(std::fs::read_to_string(tree.join("ggml/include/ggml.h")).unwrap(), header);
}

#[test]
fn other_trees_are_refused_and_left_as_they_are() {
    let dir = Dir::new();
    let tree = copied_tree(&dir);
    let changed = format!("{}\n", std::fs::read_to_string(tree.join("ggml/src/gguf.cpp")).unwrap());
    std::fs::write(tree.join("ggml/src/gguf.cpp"), &changed).unwrap();
    let refused = apply(&tree);
    assert!(!refused.status.success() && told(&refused).contains("none of the revisions"), "{}", told(&refused));
    assert!(!tree.join("ggml/src/tcq4_k32.h").exists());
    let nothing = apply(dir.path());
    assert!(
        !nothing.status.success() && told(&nothing).contains("is not a llama.cpp source tree"),
        "{}",
        told(&nothing)
    );
}

#[test]
fn patches_hold_call_sites_and_the_ids_of_the_code() {
    let series = series();
    assert!(series.len() >= 6);
    for (name, text) in &series {
        let added = text.lines().filter(|line| line.starts_with('+') && !line.starts_with("+++")).count();
        assert!(added <= 150, "{name} adds {added} lines: what is new belongs into files of its own");
        assert!(text.contains("\n---\ndiff --git "), "{name} has no message");
    }
    // Without the spaces that align lines.
    let all: String = series.iter().flat_map(|(_, text)| text.split_ascii_whitespace()).collect();
    for line in [
        format!("+GGML_TYPE_TCQ4_K32={GGML_TYPE_ID},"),
        format!("+GGML_FTYPE_MOSTLY_TCQ4_K32={FTYPE_ID},"),
        format!("+LLAMA_FTYPE_MOSTLY_TCQ4_K32={FTYPE_ID},"),
    ] {
        assert!(all.contains(&line), "{line}");
    }
}

//! Models of the hub in a batch, from a server on this machine that answers as the hub does.

use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tcq4::util::hash::hex;

use crate::support::Dir;
use crate::support::cmd::fixture;
use crate::support::server::{Reply, Request, Server};

const COMMIT: &str = "0123456789012345678901234567890123456789";
const BATCH: &str = "presets = [\"p\"]\nretry-pause = 0.05\n[preset.p]\nscales = \"none\"\norder = \"none\"\nrounding = \"nearest\"\n\
    [[model]]\nhf = \"own/tiny\"\nrevision = \"v1\"\n";

/// Answers as the hub: what is in the repository, what a file is, its bytes from some place on.
fn hub(body: &'static [u8], sha256: &str) -> Server {
    let sha256 = sha256.to_owned();
    Server::start(move |request, _| {
        if request.header("authorization") != Some("Bearer secret") {
            return Reply::status(401);
        }
        match request.path.as_str() {
            "/api/models/own/tiny/revision/v1" => {
                let files = [json!({ "rfilename": "README.md" }), json!({ "rfilename": "tiny-f16.gguf" })];
                Reply::ok(json!({ "siblings": files, "sha": COMMIT }).to_string().as_bytes())
            }
            "/own/tiny/resolve/v1/tiny-f16.gguf" => file(request, body, &sha256),
            _ => Reply::status(404),
        }
    })
}

fn file(request: &Request, body: &[u8], sha256: &str) -> Reply {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")).unwrap_or("0-");
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(body.len(), |to: usize| to + 1);
    let headers = vec![
        format!("ETag: \"{sha256}\""),
        format!("X-Repo-Commit: {COMMIT}"),
        format!("Content-Range: bytes {from}-{}/{}", to - 1, body.len()),
    ];
    Reply { status: 206, headers, ..Reply::ok(&body[from..to]) }
}

fn model() -> &'static [u8] {
    Box::leak(std::fs::read(fixture("models/tiny-llama-f16.gguf")).unwrap().into_boxed_slice())
}

fn run(dir: &Dir, server: Option<&Server>, line: &str) -> (Option<i32>, Value) {
    let mut command: Command = dir.command(line);
    command.env("HF_HOME", dir.file("hf")).env("HF_TOKEN", "secret");
    if let Some(server) = server {
        command.env("HF_ENDPOINT", &server.url);
    }
    let done = command.output().unwrap();
    let text = String::from_utf8_lossy(&done.stderr);
    (done.status.code(), serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn dir() -> Dir {
    let dir = Dir::new();
    dir.write("b.toml", BATCH.as_bytes());
    dir
}

#[test]
fn a_model_is_fetched_once_with_the_token() {
    let (dir, body) = (dir(), model());
    let server = hub(body, &hex(&Sha256::digest(body)));
    // Offline it says what is missing.
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json --offline");
    let message = found["jobs"][0]["message"].as_str().unwrap();
    assert_eq!(code, Some(3), "{message}");
    assert!(
        message.starts_with("hf:own/tiny: *.gguf of revision v1 is not in ") && message.ends_with("(--offline)"),
        "{message}"
    );
    assert!(server.requests().is_empty());
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json");
    assert_eq!((code, found["jobs"][0]["status"].as_str()), (Some(0), Some("done")), "{found}");
    assert!(dir.file("tiny-p.gguf").exists());
    let before = server.requests().len();
    std::fs::remove_file(dir.file("tiny-p.gguf")).unwrap();
    let (code, found) = run(&dir, None, "batch b.toml --json --offline");
    assert_eq!((code, found["jobs"][0]["status"].as_str()), (Some(0), Some("done")), "{found}");
    assert_eq!(server.requests().len(), before);
}

#[test]
fn other_bytes_than_the_hub_has_are_refused() {
    let (dir, body) = (dir(), model());
    let server = hub(body, &hex(&Sha256::digest(b"something else")));
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json");
    let message = found["jobs"][0]["message"].as_str().unwrap();
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("tiny-f16.gguf: SHA-256 is ") && message.ends_with("it was removed"), "{message}");
    let blobs = dir.file("hf/hub/models--own--tiny/blobs");
    let left = std::fs::read_dir(blobs)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_none_or(|e| e != "lock"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_repository_that_is_not_there_is_told() {
    let dir = dir();
    dir.write("b.toml", BATCH.replace("own/tiny", "own/other").as_bytes());
    let server = hub(b"", "x");
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json");
    let message = found["jobs"][0]["message"].as_str().unwrap();
    assert_eq!(code, Some(1), "{message}");
    assert!(message.starts_with("hf:own/other: ") && message.contains("404"), "{message}");
    assert_eq!(server.requests().len(), 1, "an answer like this is not asked for again");
}

#[test]
fn what_a_pattern_means_is_asked_for_where_the_cache_has_a_part() {
    let (dir, body) = (dir(), model());
    let repository = dir.file("hf/hub/models--own--tiny");
    let snapshot = repository.join("snapshots").join(COMMIT);
    for folder in [&repository.join("refs"), &snapshot] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repository.join("refs/v1"), COMMIT).unwrap();
    std::fs::write(snapshot.join("tiny-Q4_K.gguf"), b"another tool fetched this").unwrap();
    let server = hub(body, &hex(&Sha256::digest(body)));
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json");
    assert_eq!(code, Some(0), "{found}");
    assert!(found["jobs"][0]["model"].as_str().unwrap().ends_with("tiny-f16.gguf"), "{found}");
    // A file by its name is not asked for again.
    let before = server.requests().len();
    dir.write("b.toml", (BATCH.to_owned() + "file = \"tiny-f16.gguf\"\n").as_bytes());
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json");
    assert_eq!((code, found["jobs"][0]["status"].as_str()), (Some(0), Some("skipped")), "{found}");
    assert_eq!(server.requests().len(), before);
}

#[test]
fn a_plan_says_what_would_be_fetched() {
    let (dir, body) = (dir(), model());
    let server = hub(body, &hex(&Sha256::digest(body)));
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json --dry-run");
    assert_eq!((code, found["jobs"][0]["plan"].as_str()), (Some(0), Some("to fetch")), "{found}");
    assert!(server.requests().is_empty());
}

#[test]
fn a_server_that_is_busy_is_asked_again_and_whole_files_are_kept() {
    let (dir, body) = (dir(), model());
    let sha256 = hex(&Sha256::digest(body));
    let part = |number: u32| format!("tiny-f16-0000{number}-of-00002.gguf");
    let server = Server::start(move |request, before| match request.path.rsplit('/').next().unwrap_or_default() {
        "v1" => {
            let files = [part(1), part(2)].map(|name| json!({ "rfilename": name }));
            Reply::ok(json!({ "siblings": files, "sha": COMMIT }).to_string().as_bytes())
        }
        name if name == part(1) => file(request, body, &sha256),
        // The second shard comes from a server that is overloaded twice.
        _ if before < 6 => Reply::status(503),
        _ => file(request, body, &sha256),
    });
    let (code, found) = run(&dir, Some(&server), "batch b.toml --json");
    // Both are whole. (The first says nothing of a second one, so it is a model by itself.)
    assert_eq!((code, found["jobs"][0]["status"].as_str()), (Some(0), Some("done")), "{found}");
    let of = |name: String| server.requests().iter().filter(|request| request.path.ends_with(&name)).count();
    assert_eq!(of("v1".to_owned()), 3, "asked again after each failure");
    assert!(of(part(1)) < of(part(2)), "{} and {}", of(part(1)), of(part(2)));
}

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

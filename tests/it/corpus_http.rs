//! Data sets over the network, from a server on this machine that behaves badly in every way a server can.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tcq4::corpus::catalogue::{Archive, Dataset, Format, Known, Origin, Part};
use tcq4::corpus::rules::Rule;
use tcq4::corpus::{LoadOptions, Purpose, SourceSpec, Store, fetch, load, source::Place};
use tcq4::error::CorpusError;
use tcq4::util::hash::hex;
use tcq4::util::progress::{NoProgress, Progress, Unit};
use tcq4::{Error, Result};

use crate::support::Dir;
use crate::support::server::{Reply, Server};

const FILE: &str = "set/text.txt";

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn body() -> Vec<u8> {
    (0..200_000_u32).map(|i| b'a' + (i * i % 23) as u8).collect()
}

fn sha256(bytes: &[u8]) -> Known {
    Known::Sha256(bytes.len() as u64, leak(hex(&Sha256::digest(bytes))))
}

fn set(file: &'static str, known: Known, origin: Origin, format: Format, rule: Rule) -> &'static Dataset {
    let part = Part { split: "test", file, known, origin, format, rule };
    leak(Dataset { name: "set", aliases: &[], about: "", licence: "none", calibration: part, evaluation: part })
}

/// A data set of one text file under these addresses.
fn file_set(urls: &[String], known: Known) -> &'static Dataset {
    let urls: &'static [&'static str] = leak(urls.iter().map(|url| leak(url.clone()).as_str()).collect::<Vec<_>>());
    set(FILE, known, Origin::File { urls, limit: 1 << 20 }, Format::Text, Rule::Raw)
}

fn options(dir: &Dir) -> LoadOptions<'static> {
    let mut store = Store::new(dir.path());
    store.fetch.pause = Duration::from_millis(5);
    store.fetch.retries = 2;
    store.fetch.connect = Duration::from_secs(5);
    LoadOptions { store, ctx: 16, chunks: 4, ..LoadOptions::default() }
}

fn get(set: &Dataset, dir: &Dir) -> Result<Vec<u8>> {
    let path = fetch(set, Purpose::Evaluation, &options(dir), &NoProgress)?;
    Ok(std::fs::read(path).expect("the file that was fetched"))
}

/// The names in the folder of the file; locks are left there, for the next run.
fn names(dir: &Dir) -> Vec<String> {
    let folder = std::fs::read_dir(dir.file(FILE).parent().unwrap()).unwrap();
    let mut names: Vec<String> = folder.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.ends_with(".lock"));
    names.sort();
    names
}

#[test]
fn a_file_is_fetched_once_and_its_hash_kept() {
    let (dir, server) = (Dir::new(), Server::start(|_, _| Reply::ok(&body())));
    let set = file_set(&[server.url.clone() + "/x"], Known::Nothing);
    assert!(get(set, &dir).unwrap() == body());
    assert!(get(set, &dir).unwrap() == body());
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].path, "/x");
    assert_eq!(names(&dir), ["text.txt", "text.txt.sha256"]);
    std::fs::write(dir.file(FILE), "other bytes").unwrap();
    assert!(matches!(get(set, &dir), Err(Error::Corpus(CorpusError::Checksum { .. }))));
}

#[test]
fn what_is_cut_off_is_continued() {
    let (dir, server) = (
        Dir::new(),
        Server::start(|request, n| {
            let reply = Reply::ranged(request, &body(), "\"v1\"");
            if n < 3 { reply.cut(50_000) } else { reply }
        }),
    );
    let set = file_set(std::slice::from_ref(&server.url), Known::Nothing);
    assert!(get(set, &dir).unwrap() == body());
    let ranges: Vec<_> = server.requests().iter().map(|r| r.header("range").unwrap_or("all").to_owned()).collect();
    assert_eq!(ranges, ["all", "bytes=50000-", "bytes=100000-", "bytes=150000-"]);
    assert!(server.requests()[1..].iter().all(|r| r.header("if-range") == Some("\"v1\"")));
    assert_eq!(names(&dir), ["text.txt", "text.txt.sha256"]);
}

#[test]
fn a_version_that_changed_is_not_mixed_with_the_old_one() {
    let (dir, new) = (Dir::new(), body().to_ascii_uppercase());
    let expected = new.clone();
    let server = Server::start(move |request, n| match n {
        0 => Reply::ranged(request, &body(), "\"v1\"").cut(100_000),
        _ => Reply::ranged(request, &new, "\"v2\""),
    });
    assert!(get(file_set(std::slice::from_ref(&server.url), Known::Nothing), &dir).unwrap() == expected);
    assert_eq!(server.requests()[1].header("if-range"), Some("\"v1\""));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_later_run_continues_and_another_address_does_not() {
    let half_done = || {
        let server = Server::start(|request, n| match n {
            0 => Reply::ranged(request, &body(), "\"v1\"").cut(100_000),
            1 => Reply::status(404),
            _ => Reply::ranged(request, &body(), "\"v1\""),
        });
        let dir = Dir::new();
        let error = get(file_set(std::slice::from_ref(&server.url), Known::Nothing), &dir).unwrap_err();
        assert!(matches!(error, Error::Corpus(CorpusError::Status { status: 404, .. })), "{error}");
        assert_eq!(names(&dir), [".text.txt.partial", ".text.txt.partial.json"]);
        (dir, server)
    };
    let (dir, server) = half_done();
    assert!(get(file_set(std::slice::from_ref(&server.url), Known::Nothing), &dir).unwrap() == body());
    assert_eq!(server.requests()[2].header("range"), Some("bytes=100000-"));
    let (dir, _) = half_done();
    let other = Server::start(|request, _| Reply::ranged(request, &body(), "\"v1\""));
    assert!(get(file_set(std::slice::from_ref(&other.url), Known::Nothing), &dir).unwrap() == body());
    assert_eq!(other.requests()[0].header("range"), None);
}

#[test]
fn without_a_tag_and_a_hash_nothing_is_continued() {
    let dir = Dir::new();
    let server = Server::start(|request, n| {
        let reply = Reply::ranged(request, &body(), "W/\"weak\"");
        if n == 0 { reply.cut(100_000) } else { reply }
    });
    assert!(get(file_set(std::slice::from_ref(&server.url), Known::Nothing), &dir).unwrap() == body());
    assert!(server.requests().iter().all(|request| request.header("range").is_none()));
}

#[test]
fn bytes_that_do_not_fit_together_are_fetched_anew() {
    let dir = Dir::new();
    let server = Server::start(|request, n| match n {
        0 => Reply::ranged(request, &body().to_ascii_uppercase(), "W/\"a\"").cut(100_000),
        _ => Reply::ranged(request, &body(), "W/\"b\""),
    });
    let set = file_set(std::slice::from_ref(&server.url), sha256(&body()));
    let mut once = options(&dir);
    once.store.fetch.retries = 0;
    assert!(fetch(set, Purpose::Evaluation, &once, &NoProgress).is_err());
    assert!(get(set, &dir).unwrap() == body());
    let ranges: Vec<_> = server.requests().iter().map(|request| request.header("range").is_some()).collect();
    assert_eq!(ranges, [false, true, false]);
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let (dir, server) = (Dir::new(), Server::start(|_, _| Reply::ok(b"not what was promised")));
    let error = get(file_set(std::slice::from_ref(&server.url), sha256(b"right")), &dir).unwrap_err();
    let found = hex(&Sha256::digest(b"not what was promised"));
    let right = hex(&Sha256::digest(b"right"));
    assert_eq!(dir.message(&error), format!("set/text.txt: SHA-256 is {found}, expected {right}"));
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[test]
fn an_address_without_the_file_leads_to_the_next() {
    let dir = Dir::new();
    let server = Server::start(|request, _| if request.path == "/b" { Reply::ok(b"here") } else { Reply::status(404) });
    let urls = [server.url.clone() + "/a", server.url.clone() + "/b"];
    assert!(get(file_set(&urls, Known::Nothing), &dir).unwrap() == b"here");
    assert_eq!(server.requests().iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), ["/a", "/b"]);
    let other = Dir::new();
    let error = get(file_set(&urls[..1], Known::Nothing), &other).unwrap_err();
    assert_eq!(error.to_string(), format!("{}/a: the server answered 404", server.url));
    assert!(error.hint().unwrap().contains("put the file at"));
    assert_eq!(server.requests().len(), 3, "404 is not tried again");
}

#[test]
fn what_can_pass_is_tried_again_and_not_for_ever() {
    let dir = Dir::new();
    let server = Server::start(|_, n| if n < 2 { Reply::status(503) } else { Reply::ok(b"late") });
    assert!(get(file_set(std::slice::from_ref(&server.url), Known::Nothing), &dir).unwrap() == b"late");
    let (other, busy) = (Dir::new(), Server::start(|_, _| Reply::status(429)));
    let error = get(file_set(std::slice::from_ref(&busy.url), Known::Nothing), &other).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: the server answered 429", busy.url));
    assert_eq!(busy.requests().len(), 3);
}

#[test]
fn a_server_that_stops_talking_is_left() {
    let dir = Dir::new();
    let server = Server::start(|_, _| Reply { stall: Some(Duration::from_secs(20)), ..Reply::ok(&body()) });
    let mut impatient = options(&dir);
    impatient.store.fetch.body = Duration::from_millis(300);
    impatient.store.fetch.retries = 0;
    let started = Instant::now();
    let error = fetch(
        file_set(std::slice::from_ref(&server.url), Known::Nothing),
        Purpose::Evaluation,
        &impatient,
        &NoProgress,
    )
    .unwrap_err();
    assert!(matches!(error, Error::Corpus(CorpusError::Transport { .. })), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn nobody_listening_is_said() {
    let dir = Dir::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again at once
    let error = get(file_set(&[format!("http://{port}/x")], Known::Nothing), &dir).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(error.class().code(), 1);
}

#[test]
fn too_much_is_refused_by_its_length_or_by_its_bytes() {
    let dir = Dir::new();
    let server = Server::start(|_, _| Reply::ok(&vec![b'x'; (1 << 20) + 1]));
    let error = get(file_set(std::slice::from_ref(&server.url), Known::Nothing), &dir).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: more than 1048576 bytes", server.url));
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[test]
fn two_that_fetch_at_once_do_not_harm_each_other() {
    let (dir, server) =
        (Dir::new(), Server::start(|_, _| Reply { stall: Some(Duration::from_millis(400)), ..Reply::ok(&body()) }));
    let set = file_set(std::slice::from_ref(&server.url), sha256(&body()));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| get(set, &dir).unwrap() == body())).collect();
        assert!(runs.into_iter().all(|run| run.join().unwrap()));
    });
    assert_eq!(server.requests().len(), 1);
}

fn zipped(member: &str, bytes: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(bytes).unwrap();
    zip.finish().unwrap().into_inner()
}

#[test]
fn a_member_of_an_archive_is_unpacked_and_checked() {
    let archive = zipped("in/wiki.raw", &body());
    let bytes = archive.clone();
    let server = Server::start(move |_, _| Reply::ok(&bytes));
    let urls: &'static [&'static str] = leak([leak(server.url.clone()).as_str()]);
    let archive: &'static Archive = leak(Archive { file: "a.zip", known: sha256(&archive), urls });
    let member = |member, known| set(FILE, known, Origin::Zip { archive, member }, Format::Text, Rule::Raw);
    let dir = Dir::new();
    assert!(get(member("in/wiki.raw", sha256(&body())), &dir).unwrap() == body());
    assert!(get(member("in/wiki.raw", sha256(&body())), &dir).unwrap() == body());
    let dir = Dir::new();
    let error = get(member("in/none.raw", sha256(&body())), &dir).unwrap_err();
    assert!(dir.message(&error).starts_with("a.zip: in/none.raw: "), "{error}");
    let error = get(member("in/wiki.raw", sha256(&body().to_ascii_uppercase())), &dir).unwrap_err();
    assert!(dir.message(&error).starts_with("set/text.txt: SHA-256 is "), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
    let error = get(member("in/wiki.raw", sha256(b"short")), &dir).unwrap_err();
    assert!(dir.message(&error).ends_with("a.zip: more than 5 bytes"), "{error}");
    assert_eq!(server.requests().len(), 2, "the archive is fetched once a folder");
}

fn documents(n: usize) -> Vec<u8> {
    let document =
        |i: usize| serde_json::json!({ "text": format!("document {i} {}", "word ".repeat(i % 60)), "url": "x" });
    (0..n).flat_map(|i| (document(i).to_string() + "\n").into_bytes()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A data set whose head is taken from a stream.
fn stream_set(url: &str, rule: Rule) -> &'static Dataset {
    let urls: &'static [&'static str] = leak([leak(url.to_owned()).as_str()]);
    set("set/c.json.gz", Known::Nothing, Origin::Stream { urls }, Format::JsonLines, rule)
}

#[test]
fn a_stream_is_read_until_there_is_enough() {
    let server = Server::start(|_, _| Reply::ok(&gzip(&documents(100_000))));
    let dir = Dir::new();
    let set = stream_set(&server.url, Rule::Windows);
    let spec = SourceSpec { place: Place::Dataset(set), rule: None, weight: None };
    let corpus = load(std::slice::from_ref(&spec), Purpose::Evaluation, &options(&dir), &NoProgress).unwrap();
    // Four windows and one held out, three documents for each, of 48 characters at least.
    assert_eq!(corpus.samples, 15);
    assert!(corpus.text.split("\n\n").all(|text| text.len() >= 48));
    assert_eq!(names(&dir), ["c.min48-n15.jsonl", "c.min48-n15.jsonl.sha256"]);
    let offline = LoadOptions { store: Store { offline: true, ..options(&dir).store }, ..options(&dir) };
    assert_eq!(load(std::slice::from_ref(&spec), Purpose::Evaluation, &offline, &NoProgress).unwrap(), corpus);
    // The whole shard gives the same as its stream.
    let whole = Dir::new();
    std::fs::create_dir(whole.file("set")).unwrap();
    std::fs::write(whole.file("set/c.json.gz"), gzip(&documents(1000))).unwrap();
    let offline = LoadOptions { store: Store { offline: true, ..options(&whole).store }, ..options(&whole) };
    assert_eq!(load(&[spec], Purpose::Evaluation, &offline, &NoProgress).unwrap().text, corpus.text);
}

#[test]
fn a_stream_that_breaks_leaves_no_sample() {
    let whole = gzip(&documents(500));
    let server = Server::start(move |_, _| Reply::ok(&whole).cut(whole.len() / 2));
    let dir = Dir::new();
    let error = get(stream_set(&server.url, Rule::Texts), &dir).unwrap_err();
    assert!(matches!(error, Error::Corpus(CorpusError::Transport { .. })), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
    assert_eq!(server.requests().len(), 3);
    let truncated = gzip(&documents(500));
    let server = Server::start(move |_, _| Reply::ok(&truncated[..truncated.len() / 2]));
    let error = get(stream_set(&server.url, Rule::Texts), &dir).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[test]
fn an_interruption_stops_a_transfer() {
    struct Impatient;
    impl Progress for Impatient {
        fn begin(&self, _: &str, _: u64, _: Unit) {}
        fn advance(&self, _: u64) {}
        fn end(&self) {}
        fn note(&self, _: &str) {}
        fn interrupted(&self) -> bool {
            true
        }
    }
    let (dir, server) = (Dir::new(), Server::start(|_, _| Reply::ok(&body())));
    let set = file_set(std::slice::from_ref(&server.url), Known::Nothing);
    let error = fetch(set, Purpose::Evaluation, &options(&dir), &Impatient).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}

/// Two programs, the second of which waits for the first.
#[test]
fn two_programs_fetch_a_data_set_once() {
    let server =
        Server::start(|_, _| Reply { stall: Some(Duration::from_millis(500)), ..Reply::ok(&gzip(&documents(60_000))) });
    let dir = Dir::new();
    let line = format!("datasets fetch c4 --data-dir data --data-mirror {}", server.url);
    let mut first = dir.start(&line);
    let second = dir.tcq4(&line).ok();
    assert!(first.wait().unwrap().success());
    assert!(
        second.stdout.contains("c4 (calibration): data/c4/en/c4-train.00000-of-01024.min1536-n396.jsonl"),
        "{}",
        second.stdout
    );
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert_eq!(paths[0], "/huggingface.co/datasets/allenai/c4/resolve/main/en/c4-train.00000-of-01024.json.gz");
    assert!(Path::new(&dir.file("data/c4/en")).is_dir());
}

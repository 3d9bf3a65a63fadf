//! Texts on their way into a calibration, through the program: data sets, weights, conversations, what is reported, what is refused.

use serde_json::{Value, json};
use tcq4::corpus::{LoadOptions, Purpose, SourceSpec, load};
use tcq4::gguf::Source;
use tcq4::util::progress::NoProgress;

use crate::support::Dir;
use crate::support::cmd::fixture;
use crate::support::raw::Raw;

const RUN: &str = "calibrate -m MODEL -o p.json --ctx 64 --json --offline --data-dir data --force";

/// Puts a data set's file where the program looks for it.
fn put(dir: &Dir, name: &str, bytes: &[u8]) {
    let path = dir.file("data").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn text() -> String {
    std::fs::read_to_string(fixture("text/evaluation.txt")).unwrap()
}

/// News as the data set has them: class, title, description, no line of names.
fn news() -> Vec<u8> {
    let line = |i: usize, part: &str| {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\"").replace('\n', " "));
        format!("\"{}\",{},{}\n", i % 4 + 1, quoted(&format!("Title {i}")), quoted(part))
    };
    text().split("\n\n").enumerate().map(|(i, part)| line(i, part)).collect::<String>().into_bytes()
}

#[test]
fn without_the_network_the_file_and_its_place_are_named() {
    let dir = Dir::new();
    let archive = "https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/wikitext-2-raw-v1.zip";
    let raw = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/train.csv";
    for (name, shown, url, place) in [
        ("wikitext", "wikitext2 (train)", archive, "wikitext-2-raw-v1.zip"),
        ("ag-news@raw:2", "ag-news (train)", raw, "ag_news_csv/train.csv"),
    ] {
        dir.tcq4(&format!("{RUN} -c {name}")).fails(
            3,
            &format!(
                "error: {shown}: not on this machine, and offline work was asked for\n\
                 hint: fetch {url} and put it at data/{place}"
            ),
        );
    }
    let online = "convert MODEL -o out.gguf -c c4";
    dir.tcq4_with("HF_HUB_OFFLINE", "1", online).fails_like(3, "error: c4 (train): not on this machine, and offline");
    dir.tcq4_with("TCQ4_OFFLINE", "yes", online).fails_like(3, "error: c4 (train): not on this machine, and offline");
}

#[test]
fn a_file_put_there_by_hand_is_taken_if_it_is_the_right_one() {
    let dir = Dir::new();
    put(&dir, "wikitext-2-raw/wiki.train.raw", b"not the text");
    let wrong = "error: data/wikitext-2-raw/wiki.train.raw: SHA-256 is ";
    dir.tcq4(&format!("{RUN} -c wikitext2")).fails_like(3, wrong);
    put(&dir, "ag_news_csv/train.csv", &news());
    dir.tcq4(&format!("{RUN} -c ag-news")).fails_like(3, "error: data/ag_news_csv/train.csv: MD5 is ");
    // C4 has no known hash: any shard will do.
    let shard: String = text().split("\n\n").map(|part| json!({ "text": part }).to_string() + "\n").collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, shard.as_bytes()).unwrap();
    put(&dir, "c4/en/c4-train.00000-of-01024.json.gz", &gzip.finish().unwrap());
    let record = dir.tcq4(&format!("{RUN} -c c4 -n 6")).record("calibrate");
    let source = &record["text"]["sources"][0];
    assert_eq!(
        (&source["name"], &source["split"], &source["rule"]),
        (&json!("c4"), &json!("train"), &json!("windows"))
    );
    assert_eq!((&source["chunks"], &record["chunks"]), (&json!(6), &json!(6)));
    let list = dir.tcq4("datasets --data-dir data --json").record("datasets");
    let here = |entry: &&Value| !entry["cached"].is_null();
    let names: Vec<_> = list["datasets"].as_array().unwrap().iter().filter(here).map(|e| e["name"].clone()).collect();
    assert_eq!(names, ["c4"], "{list}");
}

#[test]
fn weights_are_the_shares_of_the_chunks() {
    let dir = Dir::new();
    let text = text();
    let (a, b) = text.split_at(text.floor_char_boundary(text.len() / 2));
    dir.write("a.txt", a.as_bytes());
    dir.write("b:c.txt", b.as_bytes());
    let run = |n: usize, weights: &str| dir.tcq4(&format!("{RUN} {weights} -n {n}"));
    let counts = |record: &Value| -> Vec<u64> {
        record["text"]["sources"].as_array().unwrap().iter().map(|s| s["chunks"].as_u64().unwrap()).collect()
    };
    let record = run(20, "-c a.txt:0.3 -c b:c.txt:0.7 --stats first.gguf").record("calibrate");
    assert_eq!(counts(&record), [6, 14]);
    let again = run(20, "-c a.txt:3 -c b:c.txt:7 --stats again.gguf --threads 2").record("calibrate");
    assert_eq!((counts(&again), &again["chunks"]), (vec![6, 14], &json!(20)));
    let sums = |name: &str| {
        let source = Source::open(&dir.file(name)).unwrap();
        let tensors = source.tensors().iter().filter(|t| t.name.ends_with(".in_sum2"));
        tensors.map(|t| source.data(t).to_vec()).collect::<Vec<_>>()
    };
    assert!(sums("first.gguf") == sums("again.gguf"));
    // A source with too little text keeps its share by making the run shorter.
    dir.write("few.txt", &a.as_bytes()[..1000]);
    let short = run(400, "-c few.txt:1 -c b:c.txt:1");
    assert!(short.stderr.contains("so that the weights hold"), "{}", short.stderr);
    let counts = counts(&short.record("calibrate"));
    assert!(counts[0] == counts[1] && counts[0] > 0, "{counts:?}");
    run(4, "-c a.txt:0.5 -c few.txt").fails_like(2, "error: `few.txt` has no weight, but `a.txt` has one\nhint: ");
}

#[test]
fn overlap_with_the_evaluation_text_is_measured_and_warned_of() {
    let dir = Dir::new();
    let text = text();
    let half = text.floor_char_boundary(text.len() / 2);
    dir.write("half.txt", &text.as_bytes()[..half]);
    dir.write("rest.txt", &text.as_bytes()[half..]);
    let run = |against: &str| dir.tcq4(&format!("{RUN} -c EVALUATION -n 2 --check-overlap {against}"));
    let done = run("half.txt");
    assert!(done.stderr.contains("of the calibration text stands in half.txt too"), "{}", done.stderr);
    let share = done.record("calibrate")["text"]["overlap"]["share"].as_f64().unwrap();
    assert!((0.4..0.6).contains(&share), "{share}");
    let apart = dir.tcq4(&format!("{RUN} -c rest.txt -n 2 --check-overlap half.txt"));
    assert!(!apart.stderr.contains("too: measurements"), "{}", apart.stderr);
    dir.tcq4("calibrate -m MODEL -o q.json --check-overlap half.txt").fails_like(2, "error: the following required");
}

#[test]
fn csv_and_compressed_files_are_read() {
    let dir = Dir::new();
    dir.write("news.csv", &news());
    let record = dir.tcq4(&format!("{RUN} -c news.csv@texts --text-column 2+3 -n 4")).record("calibrate");
    assert!(record["text"]["samples"].as_u64().unwrap() > 50, "{}", record["text"]);
    dir.tcq4(&format!("{RUN} -c news.csv"))
        .fails_like(3, "error: news.csv: no column `text`; the first line has: 1, Title 0");
}

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.strip() }}{{ eos_token }}{% endfor %}";

#[test]
fn conversations_take_the_template_of_the_model() {
    let dir = Dir::new();
    let tokens = [&b"<s>"[..], b"</s>"].map(|text| [&(text.len() as u64).to_le_bytes()[..], text].concat()).concat();
    let array = crate::support::raw::array(8, 2, &tokens);
    let model = |template: &str| {
        let raw = Raw::new().text("general.architecture", "llama").text("tokenizer.chat_template", template);
        raw.u32("tokenizer.ggml.eos_token_id", 1).key("tokenizer.ggml.tokens", 9, &array).bytes()
    };
    let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \" hi \"}, {\"role\": \"assistant\", \"content\": \"yes\"}]}\n";
    let other = "{\"conversations\": [{\"from\": \"human\", \"value\": \"again\"}]}\n";
    let lines = dir.write("chat.jsonl", format!("{chat}{other}{chat}{{\"text\": \"plain\"}}\n").as_bytes());
    let read = |name: &str, template: &str| {
        let source = Source::open(&dir.write(name, &model(template))).unwrap();
        let options = LoadOptions { model: Some(&source), ..LoadOptions::default() };
        load(&[SourceSpec::file(&lines)], Purpose::Calibration, &options, &NoProgress)
    };
    let corpus = read("m.gguf", TEMPLATE).unwrap();
    assert_eq!(corpus.text, "<|user|>hi</s><|assistant|>yes</s><|user|>again</s>\n\nplain");
    assert_eq!((corpus.parts[0].chats, corpus.samples, corpus.duplicates), (2, 3, 1));
    let refuses = "{{ raise_exception('only system here') }}";
    let error = read("r.gguf", refuses).unwrap_err();
    assert_eq!(dir.message(&error), "chat.jsonl:1: r.gguf: chat template, line 1: only system here");
    dir.tcq4(&format!("{RUN} -c chat.jsonl")).fails(
        3,
        "error: chat.jsonl:1: a chat sample, but fixtures/models/tiny-llama-f16.gguf has no chat template\n\
         hint: use a chat model's file, or samples of plain text",
    );
}

#[test]
fn control_tokens_are_parsed_on_request() {
    let dir = Dir::new();
    dir.write("a.txt", format!("{}<|endoftext|>", text()).repeat(2).as_bytes());
    let tokens = |options: &str| {
        dir.tcq4(&format!("{RUN} -c a.txt -n 1 {options}")).record("calibrate")["text"]["tokens"].as_u64().unwrap()
    };
    let model = Source::open(&fixture("models/tiny-llama-f16.gguf")).unwrap();
    let vocabulary = model.metadata().get_array("tokenizer.ggml.tokens").unwrap().to_string_vec().unwrap();
    assert!(vocabulary.iter().any(|token| token == "<|endoftext|>"), "{:?}", &vocabulary[..4]);
    assert!(tokens("--parse-special") < tokens(""));
}

use std::fs;

use super::*;

fn corpus(files: &[(&str, &str)]) -> Result<Corpus> {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| dir.path().join(name)).collect();
    for (path, (_, text)) in paths.iter().zip(files) {
        fs::write(path, text).unwrap();
    }
    Corpus::read(&paths)
}

#[test]
fn one_text_file_is_taken_verbatim() {
    let text = "\n = Title = \n\n\nline\r\nline\n";
    assert_eq!(corpus(&[("a.raw", text)]).unwrap().text, text);
}

#[test]
fn json_and_jsonl_give_samples_and_duplicates_are_counted() {
    let all = corpus(&[
        ("a.json", r#"["one", {"text": "two", "id": 3}, "one", " "]"#),
        ("b.jsonl", "\"two\"\n\n{\"text\": \"three\"}\n"),
        ("c.txt", "four"),
        ("d.txt", "four"),
    ])
    .unwrap();
    assert_eq!(all.text, "one\n\ntwo\n\nthree\n\nfour");
    assert_eq!((all.samples, all.duplicates), (4, 3));
    let each: Vec<_> = all.parts.iter().map(|part| (part.samples, part.duplicates)).collect();
    assert_eq!(each, [(2, 1), (1, 1), (1, 0), (0, 1)]);
    assert_eq!(all.parts[1].texts(&all).collect::<Vec<_>>(), ["three"]);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let message = |files: &[(&str, &str)]| corpus(files).unwrap_err().to_string();
    assert!(message(&[("a.jsonl", "\"x\"\n{\"txt\": 1}")]).contains("a.jsonl:2: neither a string"));
    assert!(message(&[("a.json", "{}")]).contains("expected an array"));
    assert!(message(&[("a.txt", " \n")]).contains("no text"));
    assert!(message(&[("a.txt", "")]).contains("a.txt"));
    let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}";
    assert!(message(&[("a.jsonl", chat)]).contains("a.jsonl:1: a chat sample, but no model has no chat template"));
}

#[test]
fn weights_are_for_all_sources_or_none() {
    let spec = |weight| SourceSpec { weight, ..SourceSpec::file("a.txt") };
    let specs = [spec(Some(0.5)), spec(None)];
    let error = load(&specs, Purpose::Calibration, &LoadOptions::default(), &NoProgress).unwrap_err();
    assert_eq!(error.to_string(), "`a.txt` has no weight, but `a.txt` has one");
}

#[test]
fn the_hash_tells_divisions_apart_that_the_text_does_not() {
    let plain = Corpus::from_text("a", "x y").unwrap();
    assert_eq!(plain.hash(), format!("{:032x}", xxh3_128(b"x y")));
    let mut weighted = plain.clone();
    weighted.parts[0].weight = Some(1.0);
    let mut special = plain.clone();
    special.parts[0].pieces[0].special = true;
    assert_ne!(weighted.hash(), plain.hash());
    assert_ne!(special.hash(), plain.hash());
    assert_ne!(special.hash(), weighted.hash());
}

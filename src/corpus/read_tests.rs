use std::io::Write;
use std::path::PathBuf;

use flate2::{Compression, write::GzEncoder};

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn texts(&self, name: &str, bytes: &[u8], column: Option<&str>) -> Result<Vec<String>, String> {
        let path = self.write(name, bytes);
        let mut texts = Vec::new();
        let read = read_samples(&path, &Shape::of(&path, column), &mut |sample| {
            texts.push(sample.text);
            Ok(ControlFlow::Continue(()))
        });
        read.map(|()| texts).map_err(|error| error.to_string().rsplit_once('/').unwrap().1.to_owned())
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_spelling_of_a_sample_is_understood() {
    let folder = Folder::new();
    let lines = "\u{feff}\"a\"\n\n{\"prompt\": \"d\", \"text\": \"b\"}\n{\"content\": \"c\"}\r\n{\"sample\": \"s\"}";
    assert_eq!(folder.texts("a.jsonl", lines.as_bytes(), None).unwrap(), ["a", "b", "c", "s"]);
    for key in WRAPPER_KEYS {
        let json = format!("{{\"version\": 1, \"{key}\": [\"x\", {{\"text\": \"y\"}}]}}");
        assert_eq!(folder.texts("a.json", json.as_bytes(), None).unwrap(), ["x", "y"]);
    }
    assert_eq!(folder.texts("b.jsonl", b"{\"text\": \"t\", \"body\": \"u\"}", Some("body")).unwrap(), ["u"]);
}

#[test]
fn a_conversation_goes_before_a_prompt_unless_a_column_is_named() {
    let line = r#"{"prompt": "p", "messages": [{"role": "user", "content": "hi"}]}"#;
    let value = || serde_json::from_str(line).unwrap();
    let chat = sample(value(), None).unwrap().chat.unwrap();
    assert_eq!(messages(&chat)[0]["content"], "hi");
    assert_eq!(sample(value(), Some("prompt")).unwrap(), Sample::text("p".into()));
}

#[test]
fn csv_columns_are_named_or_numbered() {
    let folder = Folder::new();
    let csv = b"id,text,note\n1,\"two\nlines, \"\"quoted\"\"\",x\n2,plain,y\n";
    assert_eq!(folder.texts("a.csv", csv, None).unwrap(), ["two\nlines, \"quoted\"", "plain"]);
    assert_eq!(folder.texts("a.csv", csv, Some("note")).unwrap(), ["x", "y"]);
    assert_eq!(folder.texts("n.csv", b"\"3\",\"T\",\"D\"\n", Some("2+3")).unwrap(), ["T D"]);
    let missing = folder.texts("n.csv", b"\"3\",\"T\",\"D\"\n", None).unwrap_err();
    assert_eq!(missing, "n.csv: no column `text`; the first line has: 3, T, D");
    assert_eq!(folder.texts("s.csv", b"a,b\nc\n", Some("2")).unwrap_err(), "s.csv:2: 1 columns, too few");
}

#[test]
fn gzip_is_seen_through_and_damage_in_it_is_said() {
    let folder = Folder::new();
    let whole = gzip(b"\"one\"\n\"two\"\n");
    assert_eq!(folder.texts("a.jsonl.gz", &whole, None).unwrap(), ["one", "two"]);
    assert_eq!(folder.texts("a.txt.gz", &gzip(b"text"), None).unwrap(), ["text"]);
    let cut = folder.texts("b.txt.gz", &whole[..whole.len() - 9], None).unwrap_err();
    assert_eq!(cut, "b.txt.gz: the gzip stream is cut off");
    assert!(
        folder
            .texts("c.txt.gz", b"no gzip at all, only text", None)
            .unwrap_err()
            .starts_with("c.txt.gz: no sound gzip")
    );
}

#[test]
fn hostile_bytes_are_refused_with_their_place() {
    let folder = Folder::new();
    assert_eq!(folder.texts("a.txt", b"ab\xff", None).unwrap_err(), "a.txt: not UTF-8 text (byte 2)");
    assert_eq!(folder.texts("a.jsonl", b"\"x\"\n\"\xff\"\n", None).unwrap_err(), "a.jsonl:2: not UTF-8 text (byte 1)");
    let deep = format!("{{\"text\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(folder.texts("d.jsonl", deep.as_bytes(), None).unwrap_err().contains("recursion limit"));
    assert!(folder.texts("d.json", deep.as_bytes(), None).unwrap_err().contains("recursion limit"));
    assert!(folder.texts("e.csv", b"text\n\xff\xfe\n", None).unwrap_err().contains("not UTF-8"));
}

#[test]
fn an_endless_line_stops_at_its_limit() {
    let mut endless = BufReader::new(io::repeat(b'x'));
    let error = json_lines(Path::new("e.jsonl"), &mut endless, None, &mut |_| Ok(ControlFlow::Continue(())));
    assert_eq!(error.unwrap_err().to_string(), format!("e.jsonl:1: a line of more than {MAX_LINE} bytes"));
}

#[test]
fn reading_stops_when_there_is_enough() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", b"\"one\"\n\"two\"\nnot json at all\n");
    let mut left = 2;
    let read = read_samples(&path, &Shape::of(&path, None), &mut |_| {
        left -= 1;
        Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    assert!(read.is_ok());
}

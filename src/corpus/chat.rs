//! Renders conversations with a model's own chat template (`tokenizer.chat_template`), as the transformers library does: Jinja with trimmed
//! blocks, Python's string methods, `raise_exception`, `strftime_now`. The date is fixed, so that a rendering never changes.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::read::messages;
use crate::gguf::Metadata;

/// The name of the template in messages of the engine.
const NAME: &str = "chat template";
/// Instructions that one rendering may take: a template that loops without end is an error.
const FUEL: u64 = 50_000_000;
/// Bytes of a template, and of what it makes, at most.
const MAX_BYTES: usize = 64 << 20;
/// What `strftime_now` knows: 26 July 2024, the date that Llama 3.1's own template falls back to.
const DATE: [(&str, &str); 10] = [
    ("%Y", "2024"),
    ("%m", "07"),
    ("%d", "26"),
    ("%b", "Jul"),
    ("%B", "July"),
    ("%A", "Friday"),
    ("%a", "Fri"),
    ("%H", "12"),
    ("%M", "00"),
    ("%S", "00"),
];

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of a model, if it has one.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        let source = metadata.get_str("tokenizer.chat_template").filter(|source| !source.trim().is_empty())?;
        let token = |key: &str| {
            let id = metadata.get_u64(&format!("tokenizer.ggml.{key}_token_id"))?;
            let tokens = metadata.get_array("tokenizer.ggml.tokens")?;
            tokens.iter().nth(usize::try_from(id).ok()?)?.as_str().map(str::to_owned)
        };
        Some(Self::new(&source, &token("bos").unwrap_or_default(), &token("eos").unwrap_or_default()))
    }

    /// A template and the texts of the tokens that begin and end a text.
    pub fn new(source: &str, bos: &str, eos: &str) -> Self {
        // A mark of the transformers library for training, not part of Jinja.
        let mark = |text: &str, name: &str, into: &str| {
            ["{% ", "{%- ", "{%", "{%-"].iter().fold(text.to_owned(), |text, open| {
                text.replace(&format!("{open}{name} %}}"), &format!("{open}{into} %}}"))
                    .replace(&format!("{open}{name} -%}}"), &format!("{open}{into} -%}}"))
            })
        };
        let source = mark(&mark(source, "generation", "if true"), "endgeneration", "endif");
        Self { source, bos: bos.to_owned(), eos: eos.to_owned() }
    }

    /// The text of a conversation: an object with `messages` (role, content) or `conversations` (from, value), and `tools` if it has any.
    ///
    /// # Errors
    /// What is wrong with the template, or what it says against the conversation.
    pub fn render(&self, chat: &Map<String, Json>) -> Result<String, String> {
        let messages = messages(chat).iter().map(message).collect::<Result<Vec<_>, _>>()?;
        if messages.is_empty() {
            return Err("the conversation is empty".into());
        }
        let environment = environment(&self.source).map_err(|error| describe(&error))?;
        let template = environment.get_template(NAME).map_err(|error| describe(&error))?;
        let context = json!({
            "messages": messages,
            "tools": chat.get("tools").cloned().unwrap_or(Json::Null),
            "documents": Json::Null,
            "add_generation_prompt": false,
            "bos_token": self.bos,
            "eos_token": self.eos,
        });
        let text = template.render(Serde(&context)).map_err(|error| describe(&error))?;
        match text.len() {
            0..=MAX_BYTES => Ok(text),
            bytes => Err(format!("the conversation becomes {bytes} bytes long")),
        }
    }
}

/// One message as templates expect it.
fn message(message: &Json) -> Result<Json, String> {
    let Json::Object(message) = message else { return Err("a message is no object".into()) };
    let mut message = message.clone();
    if !message.contains_key("role")
        && let Some(from) = message.shift_remove("from")
    {
        let role = match from.as_str() {
            Some("human") => json!("user"),
            Some("gpt" | "bot" | "model") => json!("assistant"),
            _ => from,
        };
        message.insert("role".into(), role);
    }
    if !message.contains_key("content")
        && let Some(value) = message.shift_remove("value")
    {
        message.insert("content".into(), value);
    }
    if !message.get("role").is_some_and(Json::is_string) {
        return Err("a message has no role".into());
    }
    let joined = match message.get("content") {
        Some(Json::Array(parts)) => Some(joined_text(parts)?),
        Some(Json::String(_) | Json::Null) => None,
        None if message.contains_key("tool_calls") => Some(String::new()),
        _ => return Err("a message has no text".into()),
    };
    if let Some(text) = joined {
        message.insert("content".into(), text.into());
    }
    Ok(Json::Object(message))
}

/// The text of a message in parts: most templates expect one string.
fn joined_text(parts: &[Json]) -> Result<String, String> {
    let texts = parts.iter().map(|part| part.get("text").and_then(Json::as_str));
    texts
        .collect::<Option<Vec<_>>>()
        .map(|texts| texts.join("\n"))
        .ok_or_else(|| "a message has parts without text".into())
}

fn environment(source: &str) -> Result<Environment<'_>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        DATE.iter().fold(format, |text, (sign, value)| text.replace(sign, value))
    });
    environment.add_filter("tojson", to_json);
    environment.add_template(NAME, source)?;
    Ok(environment)
}

fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{NAME}, line {line}: {what}"),
        None => format!("{NAME}: {what}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the engine passes it so")]
/// JSON as Python writes it: nothing escaped for HTML, a blank after commas and colons.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let failed = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty)).map_err(failed)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)).map_err(failed)?,
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Python's `json.dumps` on one line.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;

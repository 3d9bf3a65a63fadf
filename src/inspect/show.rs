//! Metadata values as short text for people.

use crate::gguf::Value;

/// Elements of an array that are shown.
const SHOWN: usize = 6;
/// Characters of a text that are shown.
const MAX_CHARS: usize = 72;

/// Shows a value on one line; long texts and arrays are cut.
pub(super) fn show(value: &Value<'_>) -> String {
    match value {
        Value::Bool(v) => v.to_string(),
        Value::Str(text) => cut(text),
        Value::Array(array) => {
            let shown: Vec<String> = array.iter().take(SHOWN).map(|v| show(&v)).collect();
            let rest = if array.len() > SHOWN as u64 { format!(", … {} in all", array.len()) } else { String::new() };
            format!("[{}{rest}]", shown.join(", "))
        }
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        integer => integer.as_integer().map(|v| v.to_string()).unwrap_or_default(),
    }
}

fn cut(text: &str) -> String {
    let line = text.replace('\n', "\\n");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut() {
        let numbers: Vec<i32> = (0..9).collect();
        assert_eq!(show(&Value::from(&numbers[..])), "[0, 1, 2, 3, 4, 5, … 9 in all]");
        assert_eq!(show(&Value::from("a\nb")), "a\\nb");
        assert_eq!(show(&Value::from(1.5f32)), "1.5");
        assert_eq!(show(&Value::from("x".repeat(80))).chars().count(), MAX_CHARS + 1);
    }
}

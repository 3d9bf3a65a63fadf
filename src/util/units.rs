//! Shows and reads quantities as people write them. Only for people: records carry plain numbers.

use std::fmt;
use std::time::Duration;

/// A number of bytes, shown in binary units with three or four digits: `258.3 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let (mut value, mut unit) = (self.0 as f64 / 1024.0, "KiB");
        for larger in ["MiB", "GiB", "TiB", "PiB", "EiB"] {
            if value < 1000.0 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        f.pad(&format!("{value:.1} {unit}"))
    }
}

/// A duration, shown as a person would say it: `0.42 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Elapsed(pub Duration);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let whole = seconds.round() as u64;
        f.pad(&match whole {
            _ if seconds < 9.995 => format!("{seconds:.2} s"),
            _ if seconds < 59.95 => format!("{seconds:.1} s"),
            0..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
            _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        })
    }
}

/// Reads a number of bytes: plain, with `K`, `M`, `G`, `T` (powers of 1000, as `llama-gguf-split` reads them) or with `KiB` to `TiB`.
/// `None` for anything else, for 0 and on overflow.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        let shown = [0, 1023, 1024, 270_885_920, 1_048_000_000, u64::MAX].map(|bytes| Bytes(bytes).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "258.3 MiB", "999.5 MiB", "16.0 EiB"]);
    }

    #[test]
    fn durations_are_shown_in_the_unit_that_fits() {
        let shown = [0.4249, 9.996, 59.97, 185.0, 7620.0].map(|s| Elapsed(Duration::from_secs_f64(s)).to_string());
        assert_eq!(shown, ["0.42 s", "10.0 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]);
    }

    #[test]
    fn sizes_are_read_with_decimal_and_binary_units() {
        assert_eq!(parse_bytes("2G"), Some(2_000_000_000));
        assert_eq!(parse_bytes(" 64 MiB "), Some(64 << 20));
        assert_eq!(parse_bytes("123"), Some(123));
        for wrong in ["", "G", "-1M", "1.5G", "0", "3X", "99999999999T"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }
}

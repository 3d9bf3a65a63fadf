//! Where the ticks of an axis stand and how numbers are written beside them.

/// Gives round values (1, 2 or 5 times a power of ten apart) inside `low..=high`, at most about `wanted`.
pub(super) fn round_values(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let raw = (high - low) / wanted.max(1) as f64;
    if raw <= 0.0 || !raw.is_finite() {
        return vec![low];
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Gives ticks of a logarithmic axis, as exponents: whole decades, thinned to at most about `wanted`; within less than two decades also 2 and 5.
pub(super) fn decades(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let (first, last) = ((low - 1e-9).ceil() as i64, (high + 1e-9).floor() as i64);
    let whole = (last - first + 1).max(0) as usize;
    if whole < 3 {
        let fine = (low.floor() as i64..=high.ceil() as i64)
            .flat_map(|decade| [1f64, 2.0, 5.0].map(|m| decade as f64 + m.log10()))
            .filter(|tick| (low - 1e-9..=high + 1e-9).contains(tick));
        let fine: Vec<f64> = fine.collect();
        if fine.len() >= 3 {
            return fine;
        }
        let round = round_values(10f64.powf(low), 10f64.powf(high), wanted);
        return round.into_iter().map(f64::log10).filter(|tick| tick.is_finite()).collect();
    }
    let step = whole.div_ceil(wanted.max(1)).max(1);
    (first..=last).step_by(step).map(|tick| tick as f64).collect()
}

/// Gives at most about `wanted` of the places `0..count`, equally spaced at round distances, the first included.
pub(super) fn places(count: usize, wanted: usize) -> Vec<usize> {
    let raw = count.div_ceil(wanted.max(1)).max(1);
    let power = 10usize.pow(raw.ilog10());
    let step = [1, 2, 5, 10].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(raw);
    (0..count).step_by(step).collect()
}

/// Writes a number in few characters with three significant digits: `0.0123`, `12.3`, `4.1e-5`, `12k`, `3.4M`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        ..0.001 => trimmed_exponent(value, 1),
        ..10_000.0 => significant(value, 3),
        ..999_500.0 => format!("{}k", significant(value / 1e3, 3)),
        ..999_500_000.0 => format!("{}M", significant(value / 1e6, 3)),
        _ => trimmed_exponent(value, 1),
    }
}

/// Writes a number for a table with four significant digits: `4.625`, `0.01234`, `4.12e-5`, `65540`.
pub fn figures(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        0.001..1e7 => significant(value, 4),
        _ => trimmed_exponent(value, 2),
    }
}

fn significant(value: f64, figures: i32) -> String {
    let whole = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let digits = (figures - 1 - whole).clamp(0, 7) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn trimmed_exponent(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    format!("{mantissa}e{exponent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.5, "0.5"),
            (-2.25, "-2.25"),
            (1.0 / 3.0, "0.333"),
            (1234.4, "1234"),
            (12_345.0, "12.3k"),
            (4_096_000.0, "4.1M"),
            (0.000_041_2, "4.1e-5"),
            (0.001, "0.001"),
            (2e-7, "2e-7"),
            (3e12, "3e12"),
            (f64::NAN, "–"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(round_values(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.2 * 3.0, 0.8, 1.0]);
        assert_eq!(round_values(-3.2, 7.9, 6), [-2.0, 0.0, 2.0, 4.0, 6.0]);
        assert_eq!(round_values(2.0, 2.0, 5), [2.0]);
        assert_eq!(decades(-4.0, 2.0, 7), [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0]);
        assert_eq!(decades(-12.0, 0.0, 5), [-12.0, -9.0, -6.0, -3.0, 0.0]);
        assert_eq!(decades(0.0, 1.0, 5), [0.0, 2f64.log10(), 5f64.log10(), 1.0]);
        assert_eq!(places(30, 15), (0..30).step_by(2).collect::<Vec<_>>());
        assert_eq!(places(2, 15), [0, 1]);
        assert_eq!(places(300, 15), (0..300).step_by(20).collect::<Vec<_>>());
    }
}

//! How numbers are written for people: sensible digits, a real minus sign, thin spaces
//! between thousands. Machines read `metrics.json`, which keeps every digit.

/// The minus sign of typeset numbers (U+2212), as wide as the plus.
const MINUS: char = '\u{2212}';
/// Between groups of three digits (U+202F, narrow and unbreakable).
const THOUSANDS: char = '\u{202f}';

/// `value` with a fixed number of decimals. A rounded zero has no sign.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    let digits = format!("{:.decimals$}", value.abs());
    let is_zero = digits.bytes().all(|b| matches!(b, b'0' | b'.'));
    if value < 0.0 && !is_zero { format!("{MINUS}{digits}") } else { digits }
}

/// Like [`fixed`], with a plus sign in front of positive values.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = fixed(value, decimals);
    let is_zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    if value > 0.0 && !is_zero { format!("+{text}") } else { text }
}

/// `value` with about `digits` significant digits, in exponent form when very large or small.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_string();
    }
    let magnitude = value.abs();
    if !(1e-4..1e7).contains(&magnitude) {
        let text = format!("{value:.0$e}", digits.saturating_sub(1));
        return text.replace('-', &MINUS.to_string());
    }
    fixed(value, decimals_for(magnitude, digits))
}

/// How many decimals show `digits` significant digits of `magnitude` (> 0).
fn decimals_for(magnitude: f64, digits: usize) -> usize {
    let exponent = magnitude.log10().floor() as i64;
    (digits as i64 - 1 - exponent).clamp(0, 9) as usize
}

/// One number of decimals for a whole column of (value, spread): two significant digits of
/// the smallest spread, else four of the largest value; never more than six digits in all.
pub(super) fn column_decimals(values: &[(f64, Option<f64>)]) -> usize {
    let largest = values.iter().map(|(v, _)| v.abs()).fold(0.0, f64::max);
    let finest = values
        .iter()
        .filter_map(|(_, spread)| *spread)
        .filter(|s| *s > 0.0)
        .fold(f64::INFINITY, f64::min);
    if largest == 0.0 {
        return 2;
    }
    let most = decimals_for(largest, 6);
    if finest.is_finite() {
        decimals_for(finest, 2).min(most)
    } else {
        decimals_for(largest, 4).min(most)
    }
}

/// A count, with its thousands set apart from 10 000 on.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(THOUSANDS);
        }
        text.push(digit);
    }
    text
}

/// Merging weights: at most three decimals each, no trailing zeros.
pub(super) fn weights(values: &[f64]) -> String {
    let texts: Vec<String> = values.iter().map(|w| trimmed(*w, 3)).collect();
    texts.join(", ")
}

/// `value` with at most `decimals` decimals and no trailing zeros.
pub(super) fn trimmed(value: f64, decimals: usize) -> String {
    let text = fixed(value, decimals);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    }
}

/// A duration in the two units that matter: `4.2 s`, `3 min 05 s`, `1 h 02 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if whole < 60 {
        format!("{whole} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        let minutes = (seconds / 60.0).round() as u64;
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_like_typeset_ones() {
        assert_eq!(fixed(-1.25, 1), "\u{2212}1.2");
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(signed(0.5, 1), "+0.5");
        assert_eq!(signed(0.001, 2), "0.00");
        assert_eq!(significant(0.012345, 3), "0.0123");
        assert_eq!(significant(1234.5, 3), "1234");
        assert_eq!(significant(0.0000123, 3), "1.23e\u{2212}5");
        assert_eq!(significant(0.0, 3), "0");
        assert_eq!(count(9999), "9999");
        assert_eq!(count(1234567), "1\u{202f}234\u{202f}567");
        assert_eq!(weights(&[0.1, 0.5, 1.0, 0.0, 1.0 / 3.0]), "0.1, 0.5, 1, 0, 0.333");
    }

    #[test]
    fn a_column_shows_the_digits_its_spread_allows() {
        assert_eq!(column_decimals(&[(12.345, Some(0.21)), (10.0, Some(1.9))]), 2);
        assert_eq!(column_decimals(&[(1234.5, Some(20.0))]), 0);
        assert_eq!(column_decimals(&[(12.345, None)]), 2);
        assert_eq!(column_decimals(&[(12.345, Some(1e-12))]), 4);
        assert_eq!(column_decimals(&[(12.345, Some(0.0))]), 2);
        assert_eq!(column_decimals(&[]), 2);
    }

    #[test]
    fn durations_roll_over_at_the_right_places() {
        assert_eq!(duration(0.04), "0.0 s");
        assert_eq!(duration(9.97), "10 s");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(59.7), "1 min 00 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }
}

//! Numbers as people write them: `N = 4`, `20K`, `30%`, `5e-5`, `20,000`.

/// All numbers of a text, in order. A digit behind a letter (`x0`, `p2`) belongs to a name.
pub fn numbers_in(text: &str) -> Vec<f64> {
    let characters: Vec<char> = text.chars().collect();
    let mut numbers = Vec::new();
    let mut place = 0;
    while place < characters.len() {
        let in_name = place > 0 && is_name(characters[place - 1]);
        match number_at(&characters[place..]) {
            Some((number, length)) if !in_name => {
                numbers.push(number);
                place += length;
                // Letters behind a number are its unit.
                while place < characters.len() && is_name(characters[place]) {
                    place += 1;
                }
            }
            _ => place += 1,
        }
    }
    numbers
}

/// The text's number, if it holds exactly one.
pub fn number_in(text: &str) -> Option<f64> {
    match numbers_in(text).as_slice() {
        [number] => Some(*number),
        _ => None,
    }
}

/// The text's number, if it is a whole one of at least 0.
pub fn count_in(text: &str) -> Option<u64> {
    let number = number_in(text)?;
    let is_count = number >= 0.0 && number.fract() == 0.0 && number < 1e15;
    is_count.then_some(number as u64)
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The number that the characters begin with, and how many of them it takes.
fn number_at(characters: &[char]) -> Option<(f64, usize)> {
    let at = |place: usize| characters.get(place).copied().unwrap_or(' ');
    let mut digits = String::new();
    let mut place = 0;
    if matches!(at(0), '-' | '\u{2212}' | '+') {
        digits.push(if at(0) == '+' { '+' } else { '-' });
        place = 1;
    }
    let starts = at(place).is_ascii_digit() || (at(place) == '.' && at(place + 1).is_ascii_digit());
    if !starts {
        return None;
    }
    let mut has_point = false;
    loop {
        let thousands = at(place) == ','
            && !has_point
            && (1..=3).all(|next| at(place + next).is_ascii_digit())
            && !at(place + 4).is_ascii_digit();
        if at(place).is_ascii_digit() {
            digits.push(at(place));
        } else if at(place) == '.' && !has_point && at(place + 1).is_ascii_digit() {
            has_point = true;
            digits.push('.');
        } else if !thousands {
            break;
        }
        place += 1;
    }
    let sign = usize::from(matches!(at(place + 1), '-' | '+'));
    if matches!(at(place), 'e' | 'E') && at(place + 1 + sign).is_ascii_digit() {
        let end = (place + 1 + sign..).find(|&p| !at(p).is_ascii_digit())?;
        digits.extend(&characters[place..end]);
        place = end;
    }
    let number: f64 = digits.parse().ok()?;
    let unit_ends = !is_name(at(place + 1));
    let factor = match at(place) {
        'k' | 'K' if unit_ends => 1e3,
        'M' if unit_ends => 1e6,
        '%' => return Some((number / 100.0, place + 1)),
        _ => return Some((number, place)),
    };
    Some((number * factor, place + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_as_they_are_written() {
        for (text, expected) in [
            ("4", vec![4.0]),
            ("N = 4.", vec![4.0]),
            ("N=8 ranges", vec![8.0]),
            ("8x", vec![8.0]),
            ("p = 30%", vec![0.3]),
            ("20K iterations", vec![20_000.0]),
            ("20,000 iterations", vec![20_000.0]),
            ("0.1, 0.1, 0.2, 0.5", vec![0.1, 0.1, 0.2, 0.5]),
            ("(0.1,0.1,0.2,0.5)", vec![0.1, 0.1, 0.2, 0.5]),
            ("[1,2,4]", vec![1.0, 2.0, 4.0]),
            ("5e-5", vec![5e-5]),
            ("-1.5 and +2", vec![-1.5, 2.0]),
            ("P2 on x0 with w_1", vec![]),
            (".5", vec![0.5]),
            ("none", vec![]),
        ] {
            assert_eq!(numbers_in(text), expected, "{text}");
        }
        assert_eq!(count_in("4.0"), Some(4));
        assert_eq!(count_in("2 or 4"), None);
        assert_eq!(count_in("0.5"), None);
    }
}

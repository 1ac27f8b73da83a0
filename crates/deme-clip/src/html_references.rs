//! HTML's character references (`&amp;`, `&#39;`) in captions, as Python's `html.unescape` reads them.
//!
//! HTML Living Standard, section 13.2.5.72 to 13.2.5.80. Not here: when a caption is to be unescaped.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Name with its semicolon, where it has one, and what it stands for.
static NAMED: LazyLock<HashMap<&str, String>> = LazyLock::new(|| {
    let rows = include_str!("../assets/html_entities.tsv").lines().map(|line| {
        let (name, points) = line.split_once('\t').expect("every row has a tab");
        let character = |hex| {
            let point = u32::from_str_radix(hex, 16).expect("code points are hexadecimal");
            char::from_u32(point).expect("code points are characters")
        };
        (name, points.split(' ').map(character).collect())
    });
    rows.collect()
});

/// The longest name, with its semicolon.
const LONGEST_NAME: usize = 32;

/// What Windows-1252 has where Unicode has its second block of control characters; the bytes it leaves
/// free stay as they are.
pub(crate) fn windows_1252(control: u8) -> char {
    const FROM_0X80: [u16; 32] = [
        0x20AC, 0x81, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160,
        0x2039, 0x0152, 0x8D, 0x017D, 0x8F, 0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013,
        0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x9D, 0x017E, 0x0178,
    ];
    let point = FROM_0X80[usize::from(control - 0x80)];
    char::from_u32(point.into()).expect("the table holds characters")
}

/// All references replaced. A name without a semicolon counts when HTML knows it without one, even in
/// front of letters (`&notit` is `¬it`); what is no reference stays.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find('&') else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    out.push_str(&text[..first]);
    let mut rest = &text[first..];
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = numeric(rest, &mut out).or_else(|| named(rest, &mut out));
        if taken.is_none() {
            out.push('&');
        }
        rest = &rest[taken.unwrap_or(1)..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// References that end in a semicolon, those in capitals included that only exist in small letters
/// (`&NTILDE;`): ftfy's careful rule for text that may or may not be HTML.
pub(crate) fn unescape_closed(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 24;
    let Some(first) = text.find('&') else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    out.push_str(&text[..first]);
    let mut rest = &text[first..];
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let body = rest[1..].strip_prefix('#').unwrap_or(&rest[1..]);
        let len = body.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let end = rest.len() - body.len() + len;
        let closed = (1..=LONGEST).contains(&len) && rest[end..].starts_with(';');
        let reference = &rest[..if closed { end + 1 } else { 1 }];
        out.push_str(&closed_reference(reference));
        rest = &rest[reference.len()..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn closed_reference(reference: &str) -> Cow<'_, str> {
    let name = &reference[1..];
    if let Some(text) = NAMED.get(name) {
        return text.into();
    }
    if name.starts_with('#') {
        let text = unescape(reference);
        return if text.contains(';') { reference.into() } else { text };
    }
    // Only where it can mean nothing else: `&AMP;` exists, and `&NOTit;` begins with one that does.
    let small = name.to_ascii_lowercase();
    match NAMED.get(small.as_str()) {
        Some(text) if name == name.to_ascii_uppercase() && unescape(reference) == reference => {
            text.to_uppercase().into()
        }
        _ => reference.into(),
    }
}

/// Writes what `&#...` at the front stands for; how many bytes it took.
fn numeric(text: &str, out: &mut String) -> Option<usize> {
    let digits = text.strip_prefix("&#")?;
    let (radix, digits) = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => (16, hex),
        None => (10, digits),
    };
    let len = digits.chars().take_while(|c| c.is_digit(radix)).count();
    if len == 0 {
        return None;
    }
    // Too large for u32 is too large for Unicode, too.
    let point = u32::from_str_radix(&digits[..len], radix).unwrap_or(u32::MAX);
    match point {
        0 => out.push(char::REPLACEMENT_CHARACTER),
        0x80..=0x9F => out.push(windows_1252(point as u8)),
        1..=8 | 0xB | 0xE..=0x1F | 0x7F | 0xFDD0..=0xFDEF => {}
        _ if point & 0xFFFE == 0xFFFE && point <= 0x10_FFFF => {}
        _ => out.push(char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
    let end = text.len() - digits.len() + len;
    Some(end + usize::from(text[end..].starts_with(';')))
}

/// Writes what `&name` at the front stands for; how many bytes it took.
fn named(text: &str, out: &mut String) -> Option<usize> {
    let name = &text[1..];
    let is_part = |c: char| !matches!(c, '\t' | '\n' | '\x0C' | ' ' | '<' | '&' | '#' | ';');
    let end = name.char_indices().find(|&(_, c)| !is_part(c)).map_or(name.len(), |(end, _)| end);
    let with_semicolon = end + usize::from(name[end..].starts_with(';'));
    // Names are ASCII; one that is too long is none, but may begin with one.
    let lens = (2..=with_semicolon.min(LONGEST_NAME)).rev();
    let found = lens.filter_map(|len| Some((len, NAMED.get(name.get(..len)?)?))).next();
    let (len, text) = found?;
    out.push_str(text);
    Some(1 + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_what_they_stand_for() {
        let cases = [
            ("cat &amp; dog &lt;3", "cat & dog <3"),
            ("it&#39;s &#x2019; &#X41;", "it's \u{2019} A"),
            ("&eacute;&eacute &notit; &notin;", "éé ¬it; ∉"),
            ("&NotEqualTilde;", "≂\u{338}"),
            ("&#128;&#x9f;&#0;&#xD800;&#99999999999;", "€Ÿ\u{FFFD}\u{FFFD}\u{FFFD}"),
            ("a&#11;b&#xFFFF;c", "abc"),
            ("R&D & more &; &# &#x; &nosuch; &", "R&D & more &; &# &#x; &nosuch; &"),
            ("&amp;amp;", "&amp;"),
            ("no reference", "no reference"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn the_careful_rule_wants_a_semicolon_and_knows_capitals() {
        let cases = [
            ("this&not that &amp; &eacute", "this&not that & &eacute"),
            ("P&EACUTE;REZ &NTILDE; &nTILDE; &SZLIG;", "PÉREZ Ñ &nTILDE; SS"),
            ("&#39; &#x41; &#xZZ; &#128;", "' A &#xZZ; €"),
            ("&; &#; &", "&; &#; &"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape_closed(text), expected, "{text}");
        }
    }
}

//! What open_clip does to a caption before it is cut into tokens.
//!
//! ftfy's `fix_text` line by line, HTML's character references twice, blanks joined, small letters.
//! So `it’s` is `it's` and `caf&eacute;` is `café`; Hugging Face's tokenizer leaves both as they are.
//! A departure: what ftfy does to text that was decoded in the wrong encoding (`cafÃ©`) is not done,
//! apart from stray control characters of Windows-1252. Not here: tokens.

use crate::html_references::{unescape, unescape_closed, windows_1252};
use tokenizers::NormalizedString;

/// The caption as open_clip's `SimpleTokenizer` tokenises it (its cleaning is called `lower`).
pub(crate) fn open_clip_caption(caption: &str) -> String {
    let fixed = fixed_lines(caption);
    let once = unescape(&fixed);
    let twice = unescape(&once);
    twice.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// ftfy's `fix_text` without repairs of the encoding.
fn fixed_lines(text: &str) -> String {
    // From the first line with a `<` on the text is taken for HTML, whose references stay.
    let mut is_html = false;
    text.split_inclusive('\n')
        .map(|line| {
            is_html |= line.contains('<');
            fixed(line, is_html)
        })
        .collect()
}

/// All repairs, over and over until nothing changes.
fn fixed(line: &str, is_html: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let plain = if is_html { (&*text).into() } else { unescape_closed(&text) };
        let mut repaired = String::with_capacity(plain.len());
        for c in plain.chars() {
            push_repaired(c, &mut repaired);
        }
        let repaired = repaired.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        let mut repaired = without_terminal_escapes(&repaired);
        repaired.retain(|c| !is_unwanted_control(c));
        let mut normalised = NormalizedString::from(repaired);
        normalised.nfc();
        if normalised.get() == text {
            return text;
        }
        text = normalised.get().to_owned();
    }
}

/// Control characters of Windows-1252, ligatures of Latin letters, wide and narrow forms, curly quotes.
fn push_repaired(c: char, out: &mut String) {
    let ligature = match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => "",
    };
    if !ligature.is_empty() {
        out.push_str(ligature);
        return;
    }
    match c {
        '\u{80}'..='\u{9F}' => out.push(straight(windows_1252(c as u8))),
        '\u{3000}' => out.push(' '),
        '\u{FF01}'..='\u{FFEF}' => {
            let mut wide = NormalizedString::from(c.to_string());
            wide.nfkc();
            out.extend(wide.get().chars().map(straight));
        }
        _ => out.push(straight(c)),
    }
}

fn straight(c: char) -> char {
    match c {
        '\u{2BC}' | '\u{2018}'..='\u{201B}' => '\'',
        '\u{201C}'..='\u{201F}' => '"',
        _ => c,
    }
}

/// Without the sequences that colour text on a terminal: escape, `[`, digits and semicolons, a letter.
fn without_terminal_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\x1B[") {
        let arguments = &rest[at + 2..];
        let len = arguments.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
        let is_sequence = arguments[len..].starts_with(|c: char| c.is_ascii_alphabetic());
        let end = at + 2 + if is_sequence { len + 1 } else { 0 };
        out.push_str(&rest[..if is_sequence { at } else { end }]);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn is_unwanted_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x08' | '\x0B' | '\x0E'..='\x1F' | '\x7F' | '\u{206A}'..='\u{206F}' | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFC}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_cleaned_as_open_clip_does() {
        let cases = [
            ("  A \t photo\nof  a CAT  ", "a photo of a cat"),
            ("it’s “quoted”", "it's \"quoted\""),
            ("caf&eacute; &amp; bar", "café & bar"),
            ("&amp;amp;amp; x", "& x"),
            ("it&rsquo;s", "it's"),
            // With a tag in the line the reference is only read after the quotes were straightened.
            ("<b>it&rsquo;s", "<b>it’s"),
            ("ｗｉｄｅ　ｔｅｘｔ", "wide text"),
            ("ﬁnal ŉ", "final 'n"),
            ("e\u{301}", "é"),
            ("a\u{0}b\u{FEFF}c\x1B[31mred\x1B[0m", "abcred"),
            ("one\u{85}two", "one…two"),
            ("ΟΔΟΣ", "οδος"),
            ("", ""),
        ];
        for (caption, expected) in cases {
            assert_eq!(open_clip_caption(caption), expected, "{caption}");
        }
    }

    #[test]
    fn an_escape_that_colours_nothing_loses_only_its_control_character() {
        assert_eq!(open_clip_caption("a\x1B[b\x1B[1;2?"), "a[1;2?");
        assert_eq!(open_clip_caption("a\x1B[1;?"), "a[1;?");
    }
}

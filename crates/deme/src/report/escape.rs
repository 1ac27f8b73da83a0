//! Text from recipes, file names and labels made harmless in HTML, SVG and Markdown.

/// `text` for HTML and SVG, inside elements and inside quoted attributes.
pub(super) fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters are not allowed in XML, which SVG files are.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// `text` as one line of Markdown, safe in table cells too.
pub(super) fn markdown(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut escaped = String::with_capacity(text.len());
    for (place, &character) in characters.iter().enumerate() {
        // An underscore between letters is never emphasis; names like `fd_tiny_clip` stay readable.
        let inside_word = place > 0
            && characters[place - 1].is_alphanumeric()
            && characters.get(place + 1).is_some_and(|c| c.is_alphanumeric());
        match character {
            '\n' | '\r' | '\t' => escaped.push(' '),
            '_' if inside_word => escaped.push('_'),
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            // The dollar begins a formula where Markdown has those.
            '\\' | '`' | '*' | '_' | '|' | '[' | ']' | '#' | '~' | '$' => {
                escaped.push('\\');
                escaped.push(character);
            }
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// `text` in a fenced code block whose fence is longer than any run of backticks inside.
pub(super) fn markdown_code(text: &str, language: &str) -> String {
    let longest_run = text.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(3.max(longest_run + 1));
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// `text` as part of a file name or anchor: lower-case ASCII letters, digits and dashes.
pub(super) fn slug(text: &str) -> String {
    let mut slug = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_cannot_be_left() {
        assert_eq!(
            html("<script>\"a\" & 'b'</script>\u{0}"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;\u{fffd}"
        );
    }

    #[test]
    fn markdown_cells_stay_cells() {
        assert_eq!(markdown("a|b\nc"), "a\\|b c");
        assert_eq!(markdown("<img> *x* `y` [z]"), "&lt;img> \\*x\\* \\`y\\` \\[z\\]");
        assert_eq!(markdown("fd_tiny_clip _x_"), "fd_tiny_clip \\_x\\_");
        assert_eq!(markdown("for $1 or $2\u{b}\u{0}"), "for \\$1 or \\$2\u{fffd}\u{fffd}");
    }

    #[test]
    fn code_with_fences_inside_is_fenced_longer() {
        assert_eq!(markdown_code("a", "toml"), "```toml\na\n```\n");
        assert!(markdown_code("```` x", "").starts_with("`````\n"));
    }

    #[test]
    fn slugs_are_plain_file_names() {
        assert_eq!(slug("Expert 1 (0..250)"), "expert-1-0-250");
        assert_eq!(slug("../../etc"), "etc");
    }
}

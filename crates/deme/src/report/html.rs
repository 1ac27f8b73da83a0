//! `report.html`: one file that needs nothing else, on screens, phones and paper.

use super::document::{Block, Cell, Document, Picture, PictureTable, Table, Tone};
use super::escape::html as escape;
use super::svg::FIGURE_CSS;

const PAGE_CSS: &str = include_str!("page.css");

/// Pictures up to this width are enlarged pixel by pixel instead of being smoothed.
const SMALL_PICTURE: u32 = 700;

/// The whole page.
pub(super) fn render(document: &Document) -> String {
    let title = escape(&document.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{FIGURE_CSS}{PAGE_CSS}</style>\n</head>\n<body>\n<header>\n\
         <h1>{title}</h1>\n<p class=\"subtitle\">{}</p>\n</header>\n<main>\n",
        escape(&document.subtitle)
    );
    page.push_str(&format!("<div class=\"verdict\">\n<p>{}</p>\n", prose(&document.verdict)));
    if !document.remarks.is_empty() {
        page.push_str(&list(&document.remarks));
    }
    page.push_str("</div>\n");
    page.push_str(&contents(document));
    for section in &document.sections {
        page.push_str(&format!(
            "<section id=\"{}\">\n<h2>{}</h2>\n",
            section.id,
            escape(section.heading)
        ));
        page.extend(section.blocks.iter().map(block));
        page.push_str("</section>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn contents(document: &Document) -> String {
    let links: Vec<String> = document
        .sections
        .iter()
        .map(|section| format!("<a href=\"#{}\">{}</a>", section.id, escape(section.heading)))
        .collect();
    format!("<nav>{}</nav>\n", links.join(" "))
}

fn block(block: &Block) -> String {
    match block {
        Block::Paragraph(text) => format!("<p>{}</p>\n", prose(text)),
        Block::Remark(text) => format!("<p class=\"remark\">{}</p>\n", escape(text)),
        Block::Subheading(text) => format!("<h3>{}</h3>\n", escape(text)),
        Block::List(items) => list(items),
        Block::Pairs(pairs) => {
            let entries: String = pairs
                .iter()
                .map(|(name, value)| {
                    format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value))
                })
                .collect();
            format!("<dl>\n{entries}</dl>\n")
        }
        Block::Table(table) => table_element(table),
        Block::Figures(figures) => {
            let elements: String = figures
                .iter()
                .map(|captioned| {
                    format!(
                        "<figure>{}{}</figure>\n",
                        captioned.figure.inline(),
                        caption(&captioned.caption)
                    )
                })
                .collect();
            let class = if figures.len() == 1 { "figures single" } else { "figures" };
            format!("<div class=\"{class}\">\n{elements}</div>\n")
        }
        Block::Pictures(pictures) => {
            let elements: String = pictures.iter().map(picture).collect();
            format!("<div class=\"pictures\">\n{elements}</div>\n")
        }
        Block::PictureTable(table) => picture_table(table),
        Block::Code { text, .. } => format!("<pre>{}</pre>\n", escape(text.trim_end())),
        Block::FoldOut { summary, blocks } => {
            let inside: String = blocks.iter().map(self::block).collect();
            format!("<details>\n<summary>{}</summary>\n{inside}</details>\n", escape(summary))
        }
    }
}

/// Running text: a value and its spread stay on one line.
fn prose(text: &str) -> String {
    escape(text).replace(" ± ", "&nbsp;±&nbsp;")
}

fn list(items: &[String]) -> String {
    let items: String = items.iter().map(|item| format!("<li>{}</li>\n", prose(item))).collect();
    format!("<ul>\n{items}</ul>\n")
}

fn caption(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("<figcaption>{}</figcaption>", escape(text))
    }
}

fn picture(picture: &Picture) -> String {
    format!(
        "<figure><img{class} alt=\"{label}\" width=\"{}\" height=\"{}\" src=\"{}\"><figcaption><b>{label}</b>{}</figcaption></figure>\n",
        picture.file.width,
        picture.file.height,
        picture.file.data_uri(),
        if picture.caption.is_empty() {
            String::new()
        } else {
            format!("<br>{}", escape(&picture.caption))
        },
        class = pixels_class(picture),
        label = escape(&picture.label),
    )
}

/// Each picture says what it is to those who do not see it.
fn picture_table(table: &PictureTable) -> String {
    let mut text = format!(
        "<div class=\"table\"><table class=\"prompts\">\n<thead><tr><th scope=\"col\">{}</th>",
        escape(&table.front)
    );
    for column in &table.columns {
        text.push_str(&format!("<th scope=\"col\">{}</th>", escape(column)));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for (front, pictures) in &table.rows {
        text.push_str(&format!("<tr><th scope=\"row\">{}</th>", escape(front)));
        for picture in pictures {
            text.push_str(&format!(
                "<td><img{} alt=\"{}\" src=\"{}\"></td>",
                pixels_class(picture),
                escape(&picture.label),
                picture.file.data_uri()
            ));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table></div>\n");
    text
}

fn pixels_class(picture: &Picture) -> &'static str {
    if picture.file.width <= SMALL_PICTURE { " class=\"pixels\"" } else { "" }
}

fn table_element(table: &Table) -> String {
    // The widest note of each column, in characters: numbers line up when all leave its room.
    let notes: Vec<usize> = (0..table.columns.len())
        .map(|column| {
            let of_column = table.rows.iter().filter_map(|row| row.get(column)?.note.as_ref());
            of_column.map(|note| note.chars().count()).max().unwrap_or_default()
        })
        .collect();
    let class = |numeric: bool| if numeric { " class=\"number\"" } else { "" };
    let mut text = String::from("<div class=\"table\"><table>\n<thead><tr>");
    for (column, room) in table.columns.iter().zip(&notes) {
        text.push_str(&format!(
            "<th scope=\"col\"{}>{}{}</th>",
            class(column.numeric),
            escape(&column.title),
            note_element("", *room)
        ));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        text.push_str("<tr>");
        for ((cell, column), room) in row.iter().zip(&table.columns).zip(&notes) {
            text.push_str(&format!(
                "<td{}>{}</td>",
                class(column.numeric),
                cell_content(cell, *room)
            ));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table></div>\n");
    text
}

/// A note with room for `room` characters; nothing in columns without notes.
fn note_element(note: &str, room: usize) -> String {
    match room {
        0 => String::new(),
        _ => format!(
            " <small style=\"min-width:{:.1}em\">{}</small>",
            room as f64 * 0.53 + 0.6,
            escape(note)
        ),
    }
}

fn cell_content(cell: &Cell, room: usize) -> String {
    let text = escape(&cell.text);
    let note = note_element(cell.note.as_deref().unwrap_or_default(), room);
    match cell.tone {
        Tone::Plain => format!("{text}{note}"),
        Tone::Best => format!("<b>{text}</b>{note}"),
        Tone::Better => format!("<span class=\"good\">{text}{note}</span>"),
        Tone::Worse => format!("<span class=\"bad\">{text}{note}</span>"),
        Tone::Faint => format!("<span class=\"faint\">{text}{note}</span>"),
    }
}

//! `report.md`: the same report for places that show Markdown; its pictures are files.

use super::document::{Block, Cell, Document, PictureTable, Table, Tone};
use super::escape;

/// The folder beside `report.md` that holds its pictures.
pub(super) const FIGURES_FOLDER: &str = "figures";

/// The whole text.
pub(super) fn render(document: &Document) -> String {
    let mut text = format!(
        "# {}\n\n{}\n\n> **{}**\n",
        escape::markdown(&document.title),
        escape::markdown(&document.subtitle),
        escape::markdown(&document.verdict)
    );
    if !document.remarks.is_empty() {
        text.push('\n');
        text.push_str(&list(&document.remarks));
    }
    for section in &document.sections {
        text.push_str(&format!("\n## {}\n", escape::markdown(section.heading)));
        for part in &section.blocks {
            text.push('\n');
            text.push_str(&block(part));
        }
    }
    text
}

/// A block, ending in one line break.
fn block(block: &Block) -> String {
    match block {
        Block::Paragraph(text) | Block::Remark(text) => format!("{}\n", escape::markdown(text)),
        Block::Subheading(text) => format!("### {}\n", escape::markdown(text)),
        Block::List(items) => list(items),
        Block::Pairs(pairs) => pairs
            .iter()
            .map(|(name, value)| {
                format!("- **{}**: {}\n", escape::markdown(name), escape::markdown(value))
            })
            .collect(),
        Block::Table(table) => table_lines(table),
        Block::Figures(figures) => {
            figures
                .iter()
                .map(|captioned| {
                    let figure = &captioned.figure;
                    let image =
                        image(&format!("{}.svg", figure.name), &figure.alt, figure.width * 1.2);
                    if captioned.caption.is_empty() {
                        format!("{image}\n")
                    } else {
                        format!("{image}\n\n{}\n\n", escape::markdown(&captioned.caption))
                    }
                })
                .collect::<String>()
                .trim_end()
                .to_string()
                + "\n"
        }
        Block::Pictures(pictures) => {
            // Three to a line, names above: a table keeps them together.
            let mut text = String::new();
            for line in pictures.chunks(3) {
                let cells = |of: &dyn Fn(&super::document::Picture) -> String| {
                    let cells: Vec<String> = line.iter().map(of).collect();
                    format!("| {} |\n", cells.join(" | "))
                };
                text.push_str(&cells(&|p| escape::markdown(&p.label)));
                text.push_str(&cells(&|_| "---".to_string()));
                text.push_str(&cells(&|p| image(&format!("{}.png", p.name), &p.label, 260.0)));
                text.push_str(&cells(&|p| escape::markdown(&p.caption)));
                text.push('\n');
            }
            format!("{}\n", text.trim_end())
        }
        Block::PictureTable(table) => picture_table_lines(table),
        Block::Code { text, language } => escape::markdown_code(text, language),
        Block::FoldOut { summary, blocks } => {
            let inside: String = blocks.iter().map(|b| format!("\n{}", self::block(b))).collect();
            format!("<details><summary>{}</summary>\n{inside}\n</details>\n", escape::html(summary))
        }
    }
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("- {}\n", escape::markdown(item))).collect()
}

fn image(file: &str, alt: &str, width: f64) -> String {
    format!(
        "<img src=\"{FIGURES_FOLDER}/{file}\" alt=\"{}\" width=\"{width:.0}\">",
        // Inside a table's cell: neither a new cell nor a new line.
        escape::html(alt).replace('|', "&#124;").replace(['\n', '\t'], " ")
    )
}

fn picture_table_lines(table: &PictureTable) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut head = vec![escape::markdown(&table.front)];
    head.extend(table.columns.iter().map(|column| escape::markdown(column)));
    let mut text = line(head);
    text.push_str(&line(vec!["---".to_string(); table.columns.len() + 1]));
    for (front, pictures) in &table.rows {
        let mut cells = vec![escape::markdown(front)];
        let picture =
            |p: &super::document::Picture| image(&format!("{}.png", p.name), &p.label, 96.0);
        cells.extend(pictures.iter().map(picture));
        text.push_str(&line(cells));
    }
    text
}

fn table_lines(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(table.columns.iter().map(|c| escape::markdown(&c.title)).collect());
    text.push_str(&line(
        table
            .columns
            .iter()
            .map(|column| if column.numeric { "---:" } else { "---" }.to_string())
            .collect(),
    ));
    for row in &table.rows {
        text.push_str(&line(row.iter().map(cell_text).collect()));
    }
    text
}

fn cell_text(cell: &Cell) -> String {
    let mut text = escape::markdown(&cell.text);
    if cell.tone == Tone::Best && !text.is_empty() {
        text = format!("**{text}**");
    }
    match &cell.note {
        Some(note) => format!("{text} ({})", escape::markdown(note)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::compose::compose;
    use super::super::test_report::{report_of, with_pictures, with_prompts};
    use super::*;

    #[test]
    fn every_table_line_has_as_many_cells_as_its_head() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = with_prompts(with_pictures(report_of(4), folder.path()));
        report.rows[0].label = "a|b".into();
        for row in &mut report.rows {
            row.prompts[0] = "a|b\r\n| c | `d\n\n- e".into();
        }
        let text = render(&compose(&report).unwrap());
        let mut columns = 0;
        let mut tables = 0;
        for line in text.lines() {
            if !line.starts_with('|') {
                columns = 0;
                continue;
            }
            let cells = line.replace("\\|", "").matches('|').count();
            if columns == 0 {
                (columns, tables) = (cells, tables + 1);
            }
            assert_eq!(cells, columns, "{line}");
        }
        assert!(tables > 4);
    }
}

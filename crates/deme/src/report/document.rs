//! A report as blocks of text, tables and figures: what is said, free of how it is marked up.
//! All strings are plain text; the renderers escape them.

use super::picture_file::PictureFile;
use super::svg::Figure;

/// A report, ready to be rendered.
pub(super) struct Document {
    pub(super) title: String,
    /// One line under the title.
    pub(super) subtitle: String,
    /// What was found, in one sentence.
    pub(super) verdict: String,
    /// What must be read along with it.
    pub(super) remarks: Vec<String>,
    pub(super) sections: Vec<Section>,
}

/// A part of the report under its own heading.
pub(super) struct Section {
    /// The anchor.
    pub(super) id: &'static str,
    pub(super) heading: &'static str,
    pub(super) blocks: Vec<Block>,
}

/// A piece of a section.
pub(super) enum Block {
    Paragraph(String),
    /// Set smaller: footnotes of tables and figures.
    Remark(String),
    Subheading(String),
    List(Vec<String>),
    /// Names and values.
    Pairs(Vec<(String, String)>),
    Table(Table),
    /// Drawings side by side, as many as fit.
    Figures(Vec<CaptionedFigure>),
    /// Pictures side by side, as many as fit.
    Pictures(Vec<Picture>),
    PictureTable(PictureTable),
    Code {
        text: String,
        language: &'static str,
    },
    FoldOut {
        summary: String,
        blocks: Vec<Block>,
    },
}

/// A table.
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// Pictures in rows that have a text in front.
pub(super) struct PictureTable {
    /// What the texts in front are.
    pub(super) front: String,
    /// What the columns of pictures are.
    pub(super) columns: Vec<String>,
    /// Text and one picture per column. Labels and captions of these pictures are not shown.
    pub(super) rows: Vec<(String, Vec<Picture>)>,
}

/// The head of a table's column.
pub(super) struct Column {
    pub(super) title: String,
    pub(super) numeric: bool,
}

impl Column {
    pub(super) fn text(title: impl Into<String>) -> Self {
        Self { title: title.into(), numeric: false }
    }

    pub(super) fn number(title: impl Into<String>) -> Self {
        Self { title: title.into(), numeric: true }
    }
}

/// A table's cell.
#[derive(Default)]
pub(super) struct Cell {
    pub(super) text: String,
    /// A word or two behind it, smaller.
    pub(super) note: Option<String>,
    pub(super) tone: Tone,
}

/// What a cell wants to say besides its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tone {
    #[default]
    Plain,
    /// The best value of its column.
    Best,
    Better,
    Worse,
    /// Nothing to be concluded from it.
    Faint,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub(super) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    pub(super) fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }
}

/// A drawing with its caption.
pub(super) struct CaptionedFigure {
    pub(super) figure: Figure,
    pub(super) caption: String,
}

/// A PNG with its caption.
pub(super) struct Picture {
    /// The file name in `figures/`, without its ending.
    pub(super) name: String,
    pub(super) label: String,
    pub(super) caption: String,
    pub(super) file: PictureFile,
}

impl Document {
    /// The files that the Markdown shows: (name, bytes).
    pub(super) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for section in &self.sections {
            collect(&section.blocks, &mut files);
        }
        files
    }
}

fn collect(blocks: &[Block], files: &mut Vec<(String, Vec<u8>)>) {
    for block in blocks {
        match block {
            Block::Figures(figures) => files.extend(figures.iter().map(|captioned| {
                let figure = &captioned.figure;
                (format!("{}.svg", figure.name), figure.standalone().into_bytes())
            })),
            Block::Pictures(pictures) => files.extend(pictures.iter().map(file_of)),
            Block::PictureTable(table) => {
                files.extend(table.rows.iter().flat_map(|(_, pictures)| pictures).map(file_of));
            }
            Block::FoldOut { blocks, .. } => collect(blocks, files),
            _ => {}
        }
    }
}

fn file_of(picture: &Picture) -> (String, Vec<u8>) {
    (format!("{}.png", picture.name), picture.file.bytes.clone())
}

//! Everything that can be wrong with a data set, each with its way out.

use std::path::PathBuf;

use crate::split::SplitPart;

/// Why a data set cannot be opened, loaded, split or written.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The folder or file a data set should be in is not there.
    #[error("{path} is not there; set `path` to the {expected}", path = .path.display())]
    Missing {
        /// The path as configured.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// A path that should be a folder is a file.
    #[error("{path} is not a folder; set `path` to the {expected}", path = .path.display())]
    NotAFolder {
        /// The path as configured.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// The operating system refused to read or write.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried: `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder holds no picture at all.
    #[error(
        "no picture (.png, .jpg, .jpeg, .webp, .bmp) in {path} or its subfolders; \
         symbolic links to folders are not followed",
        path = .path.display()
    )]
    NoPictures {
        /// The folder that was searched.
        path: PathBuf,
    },
    /// A data set with no example: a count of zero or a file without rows.
    #[error("{what} holds no example")]
    Empty {
        /// The data set or file.
        what: String,
    },
    /// A picture's name is not Unicode, so no caption file can name it.
    #[error("the file name {path:?} is not valid UTF-8; rename it")]
    NameNotUnicode {
        /// The file.
        path: PathBuf,
    },
    /// A picture lies outside the folder: `..`, an absolute path, or a symbolic link that leaves.
    #[error(
        "{named_by} names {file_name:?}, which lies outside the folder {folder}; \
         copy the picture into the folder and name it relative to it",
        folder = .folder.display()
    )]
    OutsideFolder {
        /// Where the name stands, e.g. `metadata.jsonl, line 3`.
        named_by: String,
        /// The name as written.
        file_name: String,
        /// The folder it must lie in.
        folder: PathBuf,
    },
    /// A line of the caption file names a picture that is not in the folder.
    #[error(
        "{path}, line {line}: there is no picture {file_name:?} in the folder; \
         correct `file_name` or remove the line",
        path = .path.display()
    )]
    NoSuchPicture {
        /// The caption file.
        path: PathBuf,
        /// Its line, counted from one.
        line: usize,
        /// The name as written.
        file_name: String,
    },
    /// Two lines of the caption file name the same picture.
    #[error(
        "{path}, line {line}: {file_name:?} was already named in line {first_line}; \
         keep one of the two lines",
        path = .path.display()
    )]
    DuplicateFileName {
        /// The caption file.
        path: PathBuf,
        /// The second line, counted from one.
        line: usize,
        /// The first line, counted from one.
        first_line: usize,
        /// The name as written.
        file_name: String,
    },
    /// A line of the caption file cannot be read: broken UTF-8, broken JSON, missing or wrong
    /// fields.
    #[error(
        "{path}, line {line}: {reason}; every line must be like \
         {{\"file_name\": \"a.png\", \"text\": \"a red circle\"}}",
        path = .path.display()
    )]
    BadMetadataLine {
        /// The caption file.
        path: PathBuf,
        /// Its line, counted from one.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a caption file, but not one of its lines has the caption field.
    #[error(
        "{path}: no line has the caption field {field:?} (fields found: {found}); set `caption_field` \
         to one of them, or move the file away to use the pictures without captions",
        path = .path.display()
    )]
    NoCaptionField {
        /// The caption file.
        path: PathBuf,
        /// The field that was asked for.
        field: String,
        /// The fields there are, joined by commas.
        found: String,
    },
    /// There is a caption file, but some pictures of the folder are not in it.
    #[error(
        "{path} does not name {count} of the {total} pictures in its folder, e.g. {examples}; \
         add a line for each, or move those pictures away",
        path = .path.display()
    )]
    UnnamedPictures {
        /// The caption file.
        path: PathBuf,
        /// How many pictures have no line.
        count: usize,
        /// How many pictures there are.
        total: usize,
        /// The first few, joined by commas.
        examples: String,
    },
    /// A caption file of a kind or in a place that is not read.
    #[error(
        "{path} would be ignored: captions are read from `metadata.jsonl` right in the folder `path`; \
         convert it, set `path` to the folder it lies in, or move it away",
        path = .path.display()
    )]
    UnsupportedMetadata {
        /// The caption file.
        path: PathBuf,
    },
    /// A caption file whose ending says nothing that is known.
    #[error(
        "{path} is no caption file that can be read: its name must end in .jsonl, .json, .csv, .tsv or \
         .txt",
        path = .path.display()
    )]
    UnknownCaptionFormat {
        /// The file.
        path: PathBuf,
    },
    /// A caption file that cannot be read: broken UTF-8 or JSON, a missing field, an empty caption.
    #[error("{path}, {place}: {reason}", path = .path.display())]
    BadCaptionFile {
        /// The file.
        path: PathBuf,
        /// `line 3` or `entry 3`, counted from one.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// A file of prompts that cannot be read: broken UTF-8 or JSON, a missing field, an empty line.
    #[error("{path}, line {line}: {reason}", path = .path.display())]
    BadPromptFile {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A file of prompts without any.
    #[error("{path} holds no prompt; write one per line", path = .path.display())]
    NoPrompts {
        /// The file.
        path: PathBuf,
    },
    /// Two captions for one picture.
    #[error(
        "{path}, {place}: {file_name:?} already has a caption ({first_place}); keep one of the two",
        path = .path.display()
    )]
    DuplicateCaption {
        /// The file.
        path: PathBuf,
        /// Where the second stands.
        place: String,
        /// Where the first stands.
        first_place: String,
        /// The picture's name as written.
        file_name: String,
    },
    /// A name that two pictures have.
    #[error(
        "{path}, {place}: {file_name:?} may be {first} or {second}; write more of its path",
        path = .path.display(), first = .first.display(), second = .second.display()
    )]
    AmbiguousPicture {
        /// The caption file.
        path: PathBuf,
        /// Where the name stands.
        place: String,
        /// The name as written.
        file_name: String,
        /// One picture.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// Captions for pictures that are not there.
    #[error(
        "{path}: {count} of {total} captions have no picture, e.g. {examples}; correct the names or \
         remove these captions",
        path = .path.display()
    )]
    CaptionsWithoutPicture {
        /// The caption file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Of how many captions.
        total: usize,
        /// The first few, joined by commas.
        examples: String,
    },
    /// Pictures that the caption file does not name.
    #[error(
        "{path}: {count} of {total} pictures have no caption, e.g. {examples}; add captions or move \
         these pictures away",
        path = .path.display()
    )]
    PicturesWithoutCaption {
        /// The caption file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Of how many pictures.
        total: usize,
        /// The first few, joined by commas.
        examples: String,
    },
    /// A list of captions without names that is not as long as that of the pictures.
    #[error(
        "{path} holds {captions} captions, but there are {pictures} pictures: line i is the caption of \
         the i-th picture in the order of the paths",
        path = .path.display()
    )]
    CaptionCount {
        /// The caption file.
        path: PathBuf,
        /// Its captions.
        captions: usize,
        /// The pictures.
        pictures: usize,
    },
    /// Some pictures cannot be decoded. All were tried; the first few are listed in order.
    #[error(
        "{count} of {total} pictures cannot be used: {list}; repair or remove them",
        list = list_broken(.broken, *.count)
    )]
    BrokenPictures {
        /// How many are broken.
        count: usize,
        /// How many were tried.
        total: usize,
        /// The first few of them, in the data set's order.
        broken: Vec<BrokenPicture>,
    },
    /// A CIFAR-10 folder without the files of that data set.
    #[error(
        "{path} holds neither CIFAR-10's binary version ({missing} is missing) nor Parquet files \
         whose names begin with `{parquet_prefix}`",
        path = .path.display()
    )]
    NotCifar10 {
        /// The folder that was searched.
        path: PathBuf,
        /// The first binary file that is missing.
        missing: String,
        /// How the names of the Parquet files of this split begin.
        parquet_prefix: &'static str,
    },
    /// A CIFAR-10 file whose size, labels or class names cannot be right.
    #[error("{path} is not a CIFAR-10 file: {reason}; download it again", path = .path.display())]
    BadCifar10File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A Parquet file that cannot be read.
    #[error("cannot read the Parquet file {path}: {reason}", path = .path.display())]
    BadParquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A Parquet file without the column that was asked for.
    #[error("{path} has no column {column:?}; its columns are {found}", path = .path.display())]
    NoSuchColumn {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// The columns there are, joined by commas.
        found: String,
    },
    /// A Parquet column of a type that cannot be pictures, captions or labels.
    #[error(
        "{path}: column {column:?} is {found}, but must be {expected}; name another column",
        path = .path.display()
    )]
    WrongColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A value in a Parquet file that cannot be used.
    #[error("{path}, row {row}, column {column:?}: {reason}", path = .path.display())]
    BadParquetValue {
        /// The file.
        path: PathBuf,
        /// The row, counted from zero.
        row: usize,
        /// The column.
        column: String,
        /// What is wrong.
        reason: String,
    },
    /// A file that is no tar, or a damaged one.
    #[error(
        "cannot read the tar {path}{}: {reason}; unpack compressed tars, download damaged ones again",
        behind_entry(behind.as_deref()), path = .path.display()
    )]
    BadTar {
        /// The file.
        path: PathBuf,
        /// The last entry that could be read.
        behind: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// A tar that ends too early.
    #[error(
        "{path} is cut off {place} {entry:?}; download it again",
        path = .path.display(), place = if *.within { "within" } else { "behind" }
    )]
    TruncatedTar {
        /// The file.
        path: PathBuf,
        /// The entry concerned.
        entry: String,
        /// Whether that entry's own content is cut off; otherwise what should follow it is missing.
        within: bool,
    },
    /// An entry of a tar that cannot be used.
    #[error("{path}, entry {entry:?}: {reason}", path = .path.display())]
    BadTarEntry {
        /// The tar.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A caption without a picture of the same key.
    #[error(
        "{path}: {entry:?} has no picture beside it ({key}.jpg, .jpeg, .png, .webp or .bmp); add one or \
         remove the entry",
        path = .path.display()
    )]
    NoPictureInTar {
        /// The tar.
        path: PathBuf,
        /// The entry of the caption.
        entry: String,
        /// What the names of both begin with.
        key: String,
    },
    /// A picture without a caption, though others have one.
    #[error(
        "{path}: the picture {entry:?} has no caption in {expected}{}",
        or_fields(.fields), path = .path.display()
    )]
    NoCaptionInTar {
        /// The tar.
        path: PathBuf,
        /// The entry of the picture.
        entry: String,
        /// Where the caption was looked for.
        expected: String,
        /// Fields with text of the `.json` beside the picture, of which none was asked for or none is there.
        fields: Vec<String>,
    },
    /// A preparation that asks for an impossible size.
    #[error("resolution {resolution} is impossible; it must be within 1..={max}")]
    BadResolution {
        /// What was asked for.
        resolution: u32,
        /// The largest possible.
        max: u32,
    },
    /// A share of a split that is no share.
    #[error("the share of `{part}` is {share}; give a count, or a fraction between 0 and 1")]
    BadShare {
        /// The part.
        part: SplitPart,
        /// The fraction asked for.
        share: f64,
    },
    /// A part of a split would have no example.
    #[error(
        "of {total} examples, {train} are left to `train`, {search} go to `search` and {report} to \
         `report`: no part may be empty; change the shares or take more pictures"
    )]
    EmptyPart {
        /// The first empty part.
        part: SplitPart,
        /// The number of examples.
        total: usize,
        /// How many remain for training (zero when the others want all or more).
        train: usize,
        /// How many the search part wants.
        search: usize,
        /// How many the report part wants.
        report: usize,
    },
    /// A pixel that is not a number.
    #[error("{name}: value {index} of the picture is {value}, not a finite number")]
    NonFinitePixel {
        /// The picture.
        name: String,
        /// The position in the values given.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The number of values does not fit the size of the picture.
    #[error("{name}: {expected} values make a {width}x{height} RGB picture, found {found}")]
    WrongPixelCount {
        /// The picture.
        name: String,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// `3 * width * height`.
        expected: usize,
        /// How many values there are.
        found: usize,
    },
    /// A grid needs pictures, all of one size, and at least one column.
    #[error("cannot lay out a grid: {reason}")]
    BadGrid {
        /// What is wrong.
        reason: String,
    },
    /// A picture could not be encoded as PNG.
    #[error("cannot encode {name} as PNG: {reason}")]
    Encode {
        /// The picture.
        name: String,
        /// What the encoder said.
        reason: String,
    },
}

/// One picture that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {source}")]
pub struct BrokenPicture {
    /// The picture's name in its data set: a path relative to the folder, or a file and a row.
    pub name: String,
    /// Why it cannot be used.
    pub source: PictureError,
}

/// Why one picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file cannot be read.
    #[error("cannot be read ({0})")]
    Unreadable(#[from] std::io::Error),
    /// Nothing a supported picture begins with.
    #[error("is neither PNG, JPEG, WebP nor BMP")]
    UnknownFormat,
    /// The file is damaged.
    #[error("is damaged ({reason})")]
    Damaged {
        /// What the decoder said.
        reason: String,
    },
    /// The header asks for more pixels than any picture here has.
    #[error("claims to be {width}x{height} pixels; more than {limit} are refused")]
    TooManyPixels {
        /// The width in the header.
        width: u32,
        /// The height in the header.
        height: u32,
        /// The most pixels that are decoded.
        limit: u64,
    },
    /// The decoder would need more memory than any picture here does.
    #[error("would take more than {limit} bytes of memory to decode, which is refused")]
    TooMuchMemory {
        /// The most bytes a decoder may take.
        limit: u64,
    },
}

fn behind_entry(entry: Option<&str>) -> String {
    entry.map_or_else(String::new, |entry| format!(" behind its entry {entry:?}"))
}

fn or_fields(fields: &[String]) -> String {
    match fields {
        [] => "; add it or remove the picture".to_owned(),
        fields => format!(
            "; set `caption_field` to a field of the .json beside it ({})",
            fields.join(", ")
        ),
    }
}

fn list_broken(broken: &[BrokenPicture], count: usize) -> String {
    let mut list: Vec<String> = broken.iter().map(BrokenPicture::to_string).collect();
    if count > broken.len() {
        list.push(format!("and {} more", count - broken.len()));
    }
    list.join("; ")
}

/// Attaches the path and the action to an input or output error.
pub(crate) fn io_error(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Io { action, path, source }
}

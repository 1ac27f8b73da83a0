//! Single pictures out of a grid of samples, so that the same place of several grids can stand side by side.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};

use super::ReportError;
use super::picture_file::PictureFile;

/// Pixels between the pictures of a grid and around them.
const PADDING: u32 = 1;

/// A grid of square pictures, as the sampling stage writes them.
pub(super) struct SampleGrid {
    pixels: RgbImage,
    /// Of a picture, in pixels.
    side: u32,
    /// Pictures in a line.
    pub(super) columns: usize,
}

impl SampleGrid {
    /// Reads a grid that holds `pictures` pictures of `side` x `side` pixels, row by row.
    ///
    /// # Errors
    /// [`ReportError::UnreadablePicture`], [`ReportError::NotAPng`]; [`ReportError::NotAGrid`] when the file's
    /// size is not that of such a grid.
    pub(super) fn read(path: &Path, side: usize, pictures: usize) -> Result<Self, ReportError> {
        let file = PictureFile::read(path)?;
        let decoded = image::load_from_memory_with_format(&file.bytes, ImageFormat::Png);
        let pixels =
            decoded.map_err(|_| ReportError::NotAPng { path: path.to_path_buf() })?.into_rgb8();
        let (width, height) = pixels.dimensions();
        let layout = layout(side, width, height).filter(|[columns, rows]| {
            (columns * (rows - 1) + 1..=columns * rows).contains(&pictures)
        });
        let Some([columns, _]) = layout else {
            let path: PathBuf = path.to_path_buf();
            return Err(ReportError::NotAGrid { path, width, height, side, pictures });
        };
        Ok(Self { pixels, side: side as u32, columns })
    }

    /// The picture at a place, counted row by row from 0 and below the count that the grid was read with.
    pub(super) fn picture(&self, place: usize) -> PictureFile {
        let corner = |index: usize| PADDING + index as u32 * (self.side + PADDING);
        let (x, y) = (corner(place % self.columns), corner(place / self.columns));
        let picture =
            image::imageops::crop_imm(&self.pixels, x, y, self.side, self.side).to_image();
        let mut bytes = Cursor::new(Vec::new());
        picture
            .write_to(&mut bytes, ImageFormat::Png)
            .expect("an RGB picture can be written as PNG into memory");
        PictureFile { bytes: bytes.into_inner(), width: self.side, height: self.side }
    }
}

/// Columns and rows of a grid of that size, both at least 1.
fn layout(side: usize, width: u32, height: u32) -> Option<[usize; 2]> {
    let step = side + PADDING as usize;
    let count = |extent: u32| {
        let inside = (extent as usize).checked_sub(PADDING as usize)?;
        (side > 0 && inside > 0 && inside.is_multiple_of(step)).then_some(inside / step)
    };
    Some([count(width)?, count(height)?])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deme_data::{Picture, grid, write_png};

    /// Pictures of one colour each, laid out by the function that the sampling stage calls.
    fn written(folder: &Path, count: u8, columns: usize) -> PathBuf {
        let pictures: Vec<Picture> = (0..count)
            .map(|place| Picture::filled(place.to_string(), 8, 8, [place, 2 * place, 255 - place]))
            .collect();
        let path = folder.join("grid.png");
        write_png(&path, &grid(&pictures, columns, 1, [255; 3]).unwrap()).unwrap();
        path
    }

    #[test]
    fn every_picture_comes_back_from_its_place() {
        let folder = tempfile::tempdir().unwrap();
        for (count, columns) in [(36, 6), (8, 6), (3, 6), (1, 6)] {
            let path = written(folder.path(), count, columns);
            let grid = SampleGrid::read(&path, 8, usize::from(count)).unwrap();
            for place in 0..count {
                let file = grid.picture(usize::from(place));
                let cut = image::load_from_memory(&file.bytes).unwrap().into_rgb8();
                assert_eq!((cut.dimensions(), file.width, file.height), ((8, 8), 8, 8));
                let colour = [place, 2 * place, 255 - place];
                assert!(cut.pixels().all(|pixel| pixel.0 == colour), "{place} of {count}");
            }
        }
    }

    #[test]
    fn a_grid_of_other_pictures_or_another_count_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 8, 6);
        // 8 pictures stand in 2 rows of 6.
        for (side, pictures) in [(7, 8), (16, 8), (0, 8), (8, 6), (8, 13), (8, 0)] {
            let error = SampleGrid::read(&path, side, pictures).err().unwrap();
            assert!(matches!(error, ReportError::NotAGrid { .. }), "{side} {pictures}: {error}");
            assert!(error.to_string().contains("grid.png"), "{error}");
        }
        SampleGrid::read(&path, 8, 7).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..60]).unwrap();
        let error = SampleGrid::read(&path, 8, 8).err().unwrap();
        assert!(matches!(error, ReportError::NotAPng { .. }), "{error}");
    }
}

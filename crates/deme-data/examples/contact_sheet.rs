//! Lays the first pictures of a data set out on one PNG, to look at before training on them:
//!
//! `cargo run -p deme-data --example contact_sheet -- '{"kind": "shapes", "count": 100}' 16 sheet.png`

use std::error::Error;
use std::path::Path;

use deme_data::{
    DataConfig, DataSet, Interpolation, Picture, Preparation, grid, resize_rgb, write_png,
};

const SHOWN: usize = 100;
const COLUMNS: usize = 10;
const SHOWN_SIDE: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, resolution, path] = arguments.as_slice() else {
        return Err("give a data set as JSON, a resolution and the PNG to write".into());
    };
    let config: DataConfig = serde_json::from_str(config)?;
    let data = DataSet::open(&config)?;
    println!("{} pictures, hash {}", data.len(), data.content_hash()?);
    for example in data.examples().iter().take(5) {
        println!("{}: {:?}", example.name, example.caption);
    }
    let images = data.load(&Preparation::new(resolution.parse()?))?;
    let shown: Vec<Picture> = (0..images.len().min(SHOWN))
        .map(|index| {
            let picture = images.picture(index);
            resize_rgb(&picture, SHOWN_SIDE, SHOWN_SIDE, Interpolation::Bilinear)
        })
        .collect();
    write_png(Path::new(path), &grid(&shown, COLUMNS, 2, [255; 3])?)?;
    Ok(())
}

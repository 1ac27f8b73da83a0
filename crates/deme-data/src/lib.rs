//! Pictures and captions: what every later stage trains on, compares with and shows.
//!
//! A [`DataConfig`] names a data set, [`DataSet::open`] checks it before work starts and
//! [`DataSet::load`] decodes and resizes all of its pictures by one [`Preparation`], the one PIL and
//! torchvision compute. [`split`](split()) parts a data set for training, for the search of merging
//! weights and for the final report; [`EpochOrder`] says which pictures are in which batch.
//! [`pair_captions`] reads captions that lie beside pictures in a file of their own, [`read_prompts`] what
//! pictures are to be drawn of.
//! [`Picture`] also goes the other way: from a model's output to PNG files and grids of samples.
//!
//! No tensor engine here: pictures are bytes or `f32` slices.

mod caption_file;
mod cifar10;
mod data_set;
mod epoch_order;
mod error;
mod image_preparation;
mod imagefolder;
mod parquet_pictures;
mod picture;
mod picture_decoding;
mod prompt_file;
mod random_draws;
mod shapes;
mod split;
mod webdataset;

pub use caption_file::pair_captions;
pub use cifar10::{CIFAR10_CLASSES, Cifar10Split};
pub use data_set::{DataConfig, DataSet, Example, PreparedImages};
pub use epoch_order::EpochOrder;
pub use error::{BrokenPicture, DataError, PictureError};
pub use image_preparation::{
    Interpolation, Preparation, interpolate_bilinear, prepare_square, resize_channels, resize_rgb,
    resize_shorter_side,
};
pub use imagefolder::picture_files;
pub use picture::{Picture, grid, write_png};
pub use picture_decoding::{MAX_PIXELS, decode_picture, read_picture};
pub use prompt_file::read_prompts;
pub use shapes::{MAX_SHAPES_RESOLUTION, ShapesScene, shapes_picture};
pub use split::{Share, Split, SplitConfig, SplitPart, split};

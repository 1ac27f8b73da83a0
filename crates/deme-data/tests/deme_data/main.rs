//! The data rooms from outside: reference numbers, files made on the spot, every error.

#![allow(clippy::unwrap_used, missing_docs)]

mod caption_files;
mod cifar10;
mod decoding;
mod files;
mod fixtures;
mod float_resizing;
mod imagefolder;
mod order_and_split;
mod parquet_files;
mod pictures;
mod preparation;
mod shapes;
mod webdataset;

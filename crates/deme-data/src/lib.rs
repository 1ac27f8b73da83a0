//! Pictures and captions: imagefolder, Parquet, CIFAR-10, made shapes, and the one image preparation.

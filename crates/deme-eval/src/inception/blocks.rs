//! The five kinds of blocks: branches over one input, joined along the channels.
//!
//! Names are torchvision's. Two departures of FID's network from the paper and from torchvision, both
//! of which came with TensorFlow's graph:
//!
//! - average pools do not count the padding, so at the border they divide by 4 or 6 instead of 9;
//! - the very last block takes a max pool where the one before it, the paper and torchvision take an
//!   average pool. pytorch-fid's authors think it an error; the weights were trained with it.

use super::Layers;
use burn::tensor::Tensor;
use deme_kernels::{AverageOver, ChannelConcat, ConvRelu, Window, avg_pool2d, max_pool2d};

/// Convolutions that keep the map's size.
fn same(rows: usize, columns: usize) -> Window {
    Window { kernel: [rows, columns], stride: [1, 1], padding: [rows / 2, columns / 2] }
}

/// The windows that halve a map, of convolutions and max pools.
fn halving() -> Window {
    Window::square(3, 2, 0)
}

/// The average pool in front of `branch_pool`.
fn average_around(x: Tensor<4>) -> Tensor<4> {
    avg_pool2d(x, same(3, 3), AverageOver::Map)
}

/// pytorch-fid's `FIDInceptionA`, at 35 x 35.
#[derive(Debug, Clone)]
pub(super) struct InceptionA {
    branch1x1: ConvRelu,
    branch5x5: [ConvRelu; 2],
    branch3x3dbl: [ConvRelu; 3],
    branch_pool: ConvRelu,
    channels: usize,
}

impl InceptionA {
    pub(super) fn new(name: &str, c_in: usize, pooled: usize, layers: &mut Layers<'_>) -> Self {
        let mut conv = |branch: &str, c_in, c_out, window| {
            layers.conv(&format!("{name}.{branch}"), c_in, c_out, window)
        };
        Self {
            branch1x1: conv("branch1x1", c_in, 64, same(1, 1)),
            branch5x5: [
                conv("branch5x5_1", c_in, 48, same(1, 1)),
                conv("branch5x5_2", 48, 64, same(5, 5)),
            ],
            branch3x3dbl: [
                conv("branch3x3dbl_1", c_in, 64, same(1, 1)),
                conv("branch3x3dbl_2", 64, 96, same(3, 3)),
                conv("branch3x3dbl_3", 96, 96, same(3, 3)),
            ],
            branch_pool: conv("branch_pool", c_in, pooled, same(1, 1)),
            channels: 64 + 64 + 96 + pooled,
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let branch5x5 = self.branch5x5[0].forward(x.clone());
        let branch3x3dbl = self.branch3x3dbl[0].forward(x.clone());
        let branch3x3dbl = self.branch3x3dbl[1].forward(branch3x3dbl);
        ChannelConcat::new(self.channels)
            .conv(&self.branch1x1, x.clone())
            .conv(&self.branch5x5[1], branch5x5)
            .conv(&self.branch3x3dbl[2], branch3x3dbl)
            .conv(&self.branch_pool, average_around(x))
            .finish()
    }
}

/// torchvision's `InceptionB`, from 35 x 35 to 17 x 17.
#[derive(Debug, Clone)]
pub(super) struct InceptionB {
    branch3x3: ConvRelu,
    branch3x3dbl: [ConvRelu; 3],
    channels: usize,
}

impl InceptionB {
    pub(super) fn new(name: &str, c_in: usize, layers: &mut Layers<'_>) -> Self {
        let mut conv = |branch: &str, c_in, c_out, window| {
            layers.conv(&format!("{name}.{branch}"), c_in, c_out, window)
        };
        Self {
            branch3x3: conv("branch3x3", c_in, 384, halving()),
            branch3x3dbl: [
                conv("branch3x3dbl_1", c_in, 64, same(1, 1)),
                conv("branch3x3dbl_2", 64, 96, same(3, 3)),
                conv("branch3x3dbl_3", 96, 96, halving()),
            ],
            channels: 384 + 96 + c_in,
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let branch3x3dbl = self.branch3x3dbl[0].forward(x.clone());
        let branch3x3dbl = self.branch3x3dbl[1].forward(branch3x3dbl);
        ChannelConcat::new(self.channels)
            .conv(&self.branch3x3, x.clone())
            .conv(&self.branch3x3dbl[2], branch3x3dbl)
            .max_pool2d(x, halving())
            .finish()
    }
}

/// pytorch-fid's `FIDInceptionC`, at 17 x 17: 7 x 7 windows as rows and columns.
#[derive(Debug, Clone)]
pub(super) struct InceptionC {
    branch1x1: ConvRelu,
    branch7x7: [ConvRelu; 3],
    branch7x7dbl: [ConvRelu; 5],
    branch_pool: ConvRelu,
}

impl InceptionC {
    pub(super) fn new(name: &str, c_in: usize, c7: usize, layers: &mut Layers<'_>) -> Self {
        let mut conv = |branch: &str, c_in, c_out, window| {
            layers.conv(&format!("{name}.{branch}"), c_in, c_out, window)
        };
        Self {
            branch1x1: conv("branch1x1", c_in, 192, same(1, 1)),
            branch7x7: [
                conv("branch7x7_1", c_in, c7, same(1, 1)),
                conv("branch7x7_2", c7, c7, same(1, 7)),
                conv("branch7x7_3", c7, 192, same(7, 1)),
            ],
            branch7x7dbl: [
                conv("branch7x7dbl_1", c_in, c7, same(1, 1)),
                conv("branch7x7dbl_2", c7, c7, same(7, 1)),
                conv("branch7x7dbl_3", c7, c7, same(1, 7)),
                conv("branch7x7dbl_4", c7, c7, same(7, 1)),
                conv("branch7x7dbl_5", c7, 192, same(1, 7)),
            ],
            branch_pool: conv("branch_pool", c_in, 192, same(1, 1)),
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let through =
            |layers: &[ConvRelu]| layers.iter().fold(x.clone(), |x, layer| layer.forward(x));
        let (branch7x7, branch7x7dbl) =
            (through(&self.branch7x7[..2]), through(&self.branch7x7dbl[..4]));
        ChannelConcat::new(4 * 192)
            .conv(&self.branch1x1, x.clone())
            .conv(&self.branch7x7[2], branch7x7)
            .conv(&self.branch7x7dbl[4], branch7x7dbl)
            .conv(&self.branch_pool, average_around(x))
            .finish()
    }
}

/// torchvision's `InceptionD`, from 17 x 17 to 8 x 8.
#[derive(Debug, Clone)]
pub(super) struct InceptionD {
    branch3x3: [ConvRelu; 2],
    branch7x7x3: [ConvRelu; 4],
    channels: usize,
}

impl InceptionD {
    pub(super) fn new(name: &str, c_in: usize, layers: &mut Layers<'_>) -> Self {
        let mut conv = |branch: &str, c_in, c_out, window| {
            layers.conv(&format!("{name}.{branch}"), c_in, c_out, window)
        };
        Self {
            branch3x3: [
                conv("branch3x3_1", c_in, 192, same(1, 1)),
                conv("branch3x3_2", 192, 320, halving()),
            ],
            branch7x7x3: [
                conv("branch7x7x3_1", c_in, 192, same(1, 1)),
                conv("branch7x7x3_2", 192, 192, same(1, 7)),
                conv("branch7x7x3_3", 192, 192, same(7, 1)),
                conv("branch7x7x3_4", 192, 192, halving()),
            ],
            channels: 320 + 192 + c_in,
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let through =
            |layers: &[ConvRelu]| layers.iter().fold(x.clone(), |x, layer| layer.forward(x));
        let (branch3x3, branch7x7x3) =
            (through(&self.branch3x3[..1]), through(&self.branch7x7x3[..3]));
        ChannelConcat::new(self.channels)
            .conv(&self.branch3x3[1], branch3x3)
            .conv(&self.branch7x7x3[3], branch7x7x3)
            .max_pool2d(x, halving())
            .finish()
    }
}

/// The pool in front of an [`InceptionE`]'s `branch_pool`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pooling {
    /// `FIDInceptionE_1`.
    Average,
    /// `FIDInceptionE_2`.
    Max,
}

/// pytorch-fid's `FIDInceptionE_1` and `FIDInceptionE_2`, at 8 x 8: 3 x 3 windows as a row beside a
/// column.
#[derive(Debug, Clone)]
pub(super) struct InceptionE {
    branch1x1: ConvRelu,
    branch3x3_1: ConvRelu,
    branch3x3_2: [ConvRelu; 2],
    branch3x3dbl: [ConvRelu; 2],
    branch3x3dbl_3: [ConvRelu; 2],
    branch_pool: ConvRelu,
    pooling: Pooling,
}

impl InceptionE {
    pub(super) fn new(name: &str, c_in: usize, pooling: Pooling, layers: &mut Layers<'_>) -> Self {
        let mut conv = |branch: &str, c_in, c_out, window| {
            layers.conv(&format!("{name}.{branch}"), c_in, c_out, window)
        };
        Self {
            branch1x1: conv("branch1x1", c_in, 320, same(1, 1)),
            branch3x3_1: conv("branch3x3_1", c_in, 384, same(1, 1)),
            branch3x3_2: [
                conv("branch3x3_2a", 384, 384, same(1, 3)),
                conv("branch3x3_2b", 384, 384, same(3, 1)),
            ],
            branch3x3dbl: [
                conv("branch3x3dbl_1", c_in, 448, same(1, 1)),
                conv("branch3x3dbl_2", 448, 384, same(3, 3)),
            ],
            branch3x3dbl_3: [
                conv("branch3x3dbl_3a", 384, 384, same(1, 3)),
                conv("branch3x3dbl_3b", 384, 384, same(3, 1)),
            ],
            branch_pool: conv("branch_pool", c_in, 192, same(1, 1)),
            pooling,
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let branch3x3 = self.branch3x3_1.forward(x.clone());
        let branch3x3dbl = self.branch3x3dbl[0].forward(x.clone());
        let branch3x3dbl = self.branch3x3dbl[1].forward(branch3x3dbl);
        let pooled = match self.pooling {
            Pooling::Average => average_around(x.clone()),
            Pooling::Max => max_pool2d(x.clone(), same(3, 3)),
        };
        ChannelConcat::new(320 + 2 * 384 + 2 * 384 + 192)
            .conv(&self.branch1x1, x)
            .conv(&self.branch3x3_2[0], branch3x3.clone())
            .conv(&self.branch3x3_2[1], branch3x3)
            .conv(&self.branch3x3dbl_3[0], branch3x3dbl.clone())
            .conv(&self.branch3x3dbl_3[1], branch3x3dbl)
            .conv(&self.branch_pool, pooled)
            .finish()
    }
}

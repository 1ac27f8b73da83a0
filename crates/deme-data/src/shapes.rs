//! Shapes: pictures that are drawn, not loaded, so that everything runs on a fresh machine.
//!
//! Each picture has one or two coloured shapes on a plain or shaded background, and a caption that
//! says what there is to see: "a small red circle left of a blue square on white". Picture i depends
//! on the seed and i alone, and the same scene can be drawn at any resolution.

use std::ops::Range;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::data_set::{Example, StoredPicture};
use crate::error::DataError;
use crate::picture::Picture;
use crate::random_draws::RandomDraws;

/// The resolution shapes are drawn at where none is asked for.
pub(crate) const DRAWN_RESOLUTION: u32 = 64;

/// The largest resolution shapes are drawn at.
pub const MAX_SHAPES_RESOLUTION: u32 = 8192;

/// A drawn data set.
#[derive(Debug)]
pub(crate) struct Shapes {
    seed: u64,
}

impl Shapes {
    pub(crate) fn open(count: usize, seed: u64) -> Result<(Self, Vec<Example>), DataError> {
        if count == 0 {
            return Err(DataError::Empty { what: "`shapes` with `count = 0`".to_owned() });
        }
        let examples = (0..count)
            .map(|index| Example {
                name: shapes_name(index),
                caption: Some(ShapesScene::new(seed, index as u64).caption()),
            })
            .collect();
        Ok((Self { seed }, examples))
    }

    pub(crate) fn read(&self, indices: Range<usize>, resolution: u32) -> Vec<StoredPicture> {
        indices
            .into_par_iter()
            .map(|index| {
                StoredPicture::Decoded(shapes_picture(self.seed, index as u64, resolution))
            })
            .collect()
    }

    /// A hash of the way of drawing: of the first scenes of this seed as pictures.
    pub(crate) fn drawing_hash(&self) -> Vec<u8> {
        let mut hasher = Sha256::new();
        for index in 0..64 {
            hasher.update(shapes_picture(self.seed, index, 16).pixels);
        }
        hasher.finalize().to_vec()
    }
}

fn shapes_name(index: usize) -> String {
    format!("shapes/{index}")
}

/// What one picture shows: positions and sizes are fractions of its side.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapesScene {
    background_top: [f64; 3],
    background_bottom: [f64; 3],
    background_word: &'static str,
    shapes: Vec<PlacedShape>,
    /// How the first shape lies to the second, where there is one.
    relation: Option<Relation>,
}

#[derive(Debug, Clone, PartialEq)]
struct PlacedShape {
    kind: ShapeKind,
    size: Size,
    colour_word: &'static str,
    colour: [f64; 3],
    /// The centre: to the right and down.
    center: [f64; 2],
    /// The width of the box the shape fills.
    extent: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShapeKind {
    Circle,
    Square,
    Triangle,
    Ring,
    Cross,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Medium,
    Large,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

const COLOURS: [(&str, [f64; 3]); 8] = [
    ("red", [220.0, 40.0, 40.0]),
    ("orange", [245.0, 135.0, 20.0]),
    ("yellow", [250.0, 215.0, 30.0]),
    ("green", [40.0, 165.0, 65.0]),
    ("cyan", [30.0, 195.0, 210.0]),
    ("blue", [40.0, 85.0, 220.0]),
    ("purple", [130.0, 55.0, 190.0]),
    ("pink", [250.0, 130.0, 185.0]),
];

const BACKGROUNDS: [(&str, [f64; 3]); 4] = [
    ("white", [245.0, 245.0, 245.0]),
    ("beige", [222.0, 205.0, 172.0]),
    ("grey", [150.0, 154.0, 160.0]),
    ("black", [22.0, 22.0, 28.0]),
];

const KINDS: [ShapeKind; 5] =
    [ShapeKind::Circle, ShapeKind::Square, ShapeKind::Triangle, ShapeKind::Ring, ShapeKind::Cross];

const RELATIONS: [Relation; 4] =
    [Relation::LeftOf, Relation::RightOf, Relation::Above, Relation::Below];

/// Two shapes must fit beside each other: a large one only has a small one next to it.
const SIZE_PAIRS: [(Size, Size); 6] = [
    (Size::Small, Size::Small),
    (Size::Small, Size::Medium),
    (Size::Medium, Size::Small),
    (Size::Medium, Size::Medium),
    (Size::Small, Size::Large),
    (Size::Large, Size::Small),
];

/// The least distance of a shape from the border and of two shapes from each other.
const MARGIN: f64 = 0.02;

impl ShapesScene {
    /// Scene `index` of a seed.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut draws = RandomDraws::new(seed, index);
        let (background_word, background) = draws.pick(&BACKGROUNDS);
        // Plain, or lighter at the top, or lighter at the bottom.
        let shading = draws.pick(&[0.0, 12.0, -12.0]);
        let first_colour = draws.below(COLOURS.len());
        let mut scene = Self {
            background_top: background.map(|value| value + shading),
            background_bottom: background.map(|value| value - shading),
            background_word,
            shapes: Vec::new(),
            relation: None,
        };
        let first_kind = draws.pick(&KINDS);
        if draws.unit() < 0.4 {
            let size = draws.pick(&[Size::Small, Size::Medium, Size::Large]);
            let extent = size.extent(&mut draws);
            let center = [0, 1].map(|_| 0.5 + draws.between(-0.12, 0.12));
            let center = center.map(|value| keep_inside(value, extent));
            scene.add(first_kind, size, first_colour, center, extent);
            return scene;
        }
        let second_kind = draws.pick(&KINDS);
        // Any colour but the first one.
        let second_colour = (first_colour + 1 + draws.below(COLOURS.len() - 1)) % COLOURS.len();
        let (first_size, second_size) = draws.pick(&SIZE_PAIRS);
        let relation = draws.pick(&RELATIONS);
        let extents = [first_size, second_size].map(|size| size.extent(&mut draws));
        // Along the axis of the relation the free room is shared out in three gaps.
        let free = 1.0 - extents[0] - extents[1] - 3.0 * MARGIN;
        let before = MARGIN + free * draws.between(0.2, 0.45);
        let between = MARGIN + free * draws.between(0.2, 0.45);
        let (near, far) = if relation.first_is_nearer() {
            (extents[0], extents[1])
        } else {
            (extents[1], extents[0])
        };
        let near_center = before + near / 2.0;
        let far_center = before + near + between + far / 2.0;
        let across = [0, 1]
            .map(|index: usize| keep_inside(0.5 + draws.between(-0.14, 0.14), extents[index]));
        let along = if relation.first_is_nearer() {
            [near_center, far_center]
        } else {
            [far_center, near_center]
        };
        let center = |index: usize| {
            if relation.is_horizontal() {
                [along[index], across[index]]
            } else {
                [across[index], along[index]]
            }
        };
        scene.relation = Some(relation);
        scene.add(first_kind, first_size, first_colour, center(0), extents[0]);
        scene.add(second_kind, second_size, second_colour, center(1), extents[1]);
        scene
    }

    fn add(&mut self, kind: ShapeKind, size: Size, colour: usize, center: [f64; 2], extent: f64) {
        let (colour_word, colour) = COLOURS[colour];
        self.shapes.push(PlacedShape { kind, size, colour_word, colour, center, extent });
    }

    /// What the picture shows, in words.
    pub fn caption(&self) -> String {
        let words: Vec<String> = self.shapes.iter().map(PlacedShape::words).collect();
        let shapes = match self.relation {
            Some(relation) => words.join(relation.words()),
            None => words.concat(),
        };
        format!("{shapes} on {}", self.background_word)
    }

    /// Draws the scene as a square picture, each pixel the mean of 8x8 samples.
    ///
    /// # Panics
    /// When `resolution` is zero or more than [`MAX_SHAPES_RESOLUTION`].
    pub fn draw(&self, name: impl Into<String>, resolution: u32) -> Picture {
        assert!(
            (1..=MAX_SHAPES_RESOLUTION).contains(&resolution),
            "shapes are drawn at 1 to {MAX_SHAPES_RESOLUTION} pixels"
        );
        let size = resolution as usize;
        let mut pixels = Vec::with_capacity(3 * size * size);
        for row in 0..size {
            let depth = (row as f64 + 0.5) / size as f64;
            for column in 0..size {
                let mut colour = [0, 1, 2].map(|channel: usize| {
                    let (top, bottom) =
                        (self.background_top[channel], self.background_bottom[channel]);
                    top + (bottom - top) * depth
                });
                for shape in &self.shapes {
                    let coverage = shape.coverage(column, row, size);
                    for (value, own) in colour.iter_mut().zip(shape.colour) {
                        *value += (own - *value) * coverage;
                    }
                }
                pixels.extend(colour.map(|value| value.clamp(0.0, 255.0).round() as u8));
            }
        }
        Picture { name: name.into(), width: resolution, height: resolution, pixels }
    }
}

/// Draws picture `index` of a seed.
///
/// # Panics
/// When `resolution` is zero or more than [`MAX_SHAPES_RESOLUTION`].
pub fn shapes_picture(seed: u64, index: u64, resolution: u32) -> Picture {
    ShapesScene::new(seed, index).draw(shapes_name(index as usize), resolution)
}

/// Moves a centre so that a shape of this extent stays within the picture.
fn keep_inside(center: f64, extent: f64) -> f64 {
    center.clamp(MARGIN + extent / 2.0, 1.0 - MARGIN - extent / 2.0)
}

impl PlacedShape {
    fn words(&self) -> String {
        let words = format!("{}{} {}", self.size.words(), self.colour_word, self.kind.word());
        let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        format!("{article} {words}")
    }

    /// The part of a pixel the shape covers, from 0 to 1.
    fn coverage(&self, column: usize, row: usize, size: usize) -> f64 {
        const SAMPLES: usize = 8;
        let pixel = 1.0 / size as f64;
        let left = column as f64 * pixel - self.center[0];
        let top = row as f64 * pixel - self.center[1];
        let reach = self.extent / 2.0;
        if left > reach || top > reach || left + pixel < -reach || top + pixel < -reach {
            return 0.0;
        }
        let mut covered = 0;
        for sample in 0..SAMPLES * SAMPLES {
            let offset = |index: usize| (index as f64 + 0.5) / SAMPLES as f64 * pixel;
            let x = (left + offset(sample % SAMPLES)) / reach;
            let y = (top + offset(sample / SAMPLES)) / reach;
            covered += usize::from(self.kind.holds(x, y));
        }
        covered as f64 / (SAMPLES * SAMPLES) as f64
    }
}

impl ShapeKind {
    fn word(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Ring => "ring",
            Self::Cross => "cross",
        }
    }

    /// Whether a point is in the shape that fills the box [-1, 1] x [-1, 1], y downwards.
    fn holds(self, x: f64, y: f64) -> bool {
        match self {
            Self::Circle => x * x + y * y <= 1.0,
            Self::Square => x.abs() <= 0.88 && y.abs() <= 0.88,
            Self::Triangle => y <= 0.9 && x.abs() <= (y + 0.95) / 1.85,
            Self::Ring => (0.25..=1.0).contains(&(x * x + y * y)),
            Self::Cross => {
                let (near, far) = (x.abs().min(y.abs()), x.abs().max(y.abs()));
                near <= 0.34 && far <= 1.0
            }
        }
    }
}

impl Size {
    /// Followed by a space, or empty: the medium size goes without saying.
    fn words(self) -> &'static str {
        match self {
            Self::Small => "small ",
            Self::Medium => "",
            Self::Large => "large ",
        }
    }

    fn extent(self, draws: &mut RandomDraws) -> f64 {
        let middle = match self {
            Self::Small => 0.31,
            Self::Medium => 0.40,
            Self::Large => 0.56,
        };
        middle * draws.between(0.96, 1.04)
    }
}

impl Relation {
    /// Between the two shapes' words.
    fn words(self) -> &'static str {
        match self {
            Self::LeftOf => " left of ",
            Self::RightOf => " right of ",
            Self::Above => " above ",
            Self::Below => " below ",
        }
    }

    fn is_horizontal(self) -> bool {
        matches!(self, Self::LeftOf | Self::RightOf)
    }

    /// Whether the first shape is the one nearer to the left or upper border.
    fn first_is_nearer(self) -> bool {
        matches!(self, Self::LeftOf | Self::Above)
    }
}

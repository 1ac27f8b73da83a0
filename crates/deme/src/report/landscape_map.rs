//! The objective over the plane of two task vectors, as a filled contour map.   (Ma et al. 2024, the loss
//! landscape figure)

use deme_merge::Landscape;
use deme_merge::weight_search::ReferenceKind;

use super::figures::{WIDTH, shortened};
use super::number_format::significant;
use super::svg::{Axes, Figure, Scale, quantile};
use super::{LandscapePlane, Row};

/// How many shades there are up to the worst tenth, which has one of its own.
const BANDS: usize = 8;
/// More measured points than this are not drawn singly.
const MOST_DOTS: usize = 900;

/// A point to find on the map.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Landmark {
    pub(super) label: String,
    /// The two coefficients.
    pub(super) at: (f64, f64),
    /// The objective there, where it was measured.
    pub(super) value: Option<f64>,
    /// The merged model rather than a model that it is made from.
    pub(super) is_merged: bool,
    /// True when the model differs from the plane in other experts' weights: it lies beside the point
    /// that its two coefficients give.
    pub(super) off_plane: bool,
}

impl Landmark {
    /// Whether the measured part of the plane holds its coefficients.
    pub(super) fn is_on(&self, landscape: &Landscape) -> bool {
        let holds = |coefficients: &[f64], at: f64| {
            coefficients.iter().any(|c| *c <= at) && coefficients.iter().any(|c| *c >= at)
        };
        holds(&landscape.first, self.at.0) && holds(&landscape.second, self.at.1)
    }
}

/// Pretrained, the two experts and the merged model, as far as the plane has something to do with them.
pub(super) fn landmarks(plane: &LandscapePlane, merged: Option<&Row>) -> Vec<Landmark> {
    let landscape = &plane.landscape;
    let [i, j] = landscape.experts;
    let mut found = Vec::new();
    let num_experts = plane.others.as_ref().map_or(0, Vec::len);
    if (0..num_experts).all(|expert| plane.fixed_weight(expert).unwrap_or(0.0) == 0.0) {
        let models = [
            ("pretrained".to_string(), ReferenceKind::Pretrained, (0.0, 0.0)),
            (format!("expert {}", i + 1), ReferenceKind::Expert(i), (1.0, 0.0)),
            (format!("expert {}", j + 1), ReferenceKind::Expert(j), (0.0, 1.0)),
        ];
        for (label, kind, at) in models {
            let reference = landscape.references.iter().find(|reference| reference.kind == kind);
            let value = reference.map(|r| r.value).or_else(|| measured_at(landscape, at));
            found.push(Landmark { label, at, value, is_merged: false, off_plane: false });
        }
    }
    if let Some(weights) = merged.and_then(|row| row.weights.as_ref()) {
        let at = (weights[i], weights[j]);
        let off_plane = weights
            .iter()
            .enumerate()
            .any(|(expert, weight)| plane.fixed_weight(expert).is_some_and(|w| w != *weight));
        let label = if off_plane { "merged*" } else { "merged" }.to_string();
        let value = if off_plane { None } else { measured_at(landscape, at) };
        found.push(Landmark { label, at, value, is_merged: true, off_plane });
    }
    found
}

/// The value at a point of the grid; none beside it.
fn measured_at(landscape: &Landscape, at: (f64, f64)) -> Option<f64> {
    let a = landscape.first.iter().position(|a| *a == at.0)?;
    let b = landscape.second.iter().position(|b| *b == at.1)?;
    Some(landscape.values[a][b])
}

/// The best measured point, the first of several: its coefficients and its value.
pub(super) fn best_point(plane: &LandscapePlane) -> Option<((f64, f64), f64)> {
    let Landscape { first, second, values, .. } = &plane.landscape;
    let points = first
        .iter()
        .zip(values)
        .flat_map(|(a, row)| second.iter().zip(row).map(move |(b, value)| ((*a, *b), *value)));
    points.reduce(|best, point| {
        let is_better = if plane.lower_is_better { point.1 < best.1 } else { point.1 > best.1 };
        if is_better { point } else { best }
    })
}

/// The map with its colour bar; none when a direction has less than two coefficients.
pub(super) fn landscape_map(
    name: String,
    plane: &LandscapePlane,
    landmarks: &[Landmark],
) -> Option<Figure> {
    let grid = Grid::of(&plane.landscape)?;
    let levels = Levels::of(&grid, plane.lower_is_better);
    let (x, y) = (grid.scale_of(&grid.x), grid.scale_of(&grid.y));
    let width = 238.0;
    let height = (width * (y.high - y.low) / (x.high - x.low)).clamp(110.0, 300.0);
    let axes = Axes { left: 46.0, top: 26.0, width, height, x, y };
    let [i, j] = plane.landscape.experts;
    let alt = format!(
        "{} over the weights of experts {} and {}, from {} to {}",
        plane.objective,
        i + 1,
        j + 1,
        significant(levels.bounds[0], 4),
        significant(levels.bounds[levels.bounds.len() - 1], 4)
    );
    let mut figure = Figure::new(name, alt, WIDTH, axes.bottom() + 42.0);
    figure.text(0.0, 13.0, "name start", &shortened(&plane.objective, 40));
    levels.fill(&mut figure, &grid, &axes);
    if grid.x.len() * grid.y.len() <= MOST_DOTS {
        for a in &grid.x {
            for b in &grid.y {
                figure.dot(axes.at(*a, *b), 0.8, "measured");
            }
        }
    }
    figure.rectangle((axes.left, axes.top), (width, height), "frame", 0.0);
    for (value, label) in axes.x.ticks(4) {
        let x = axes.x_at(value);
        figure.line((x, axes.bottom()), (x, axes.bottom() + 4.0), "axis");
        figure.text(x, axes.bottom() + 15.0, "tick middle", &label);
    }
    for (value, label) in axes.y.ticks(4) {
        let y = axes.y_at(value);
        figure.line((axes.left - 4.0, y), (axes.left, y), "axis");
        figure.text(axes.left - 7.0, y + 3.5, "tick end", &label);
    }
    let weight_of = |expert: usize| format!("weight of expert {}", expert + 1);
    let middle = axes.left + width / 2.0;
    figure.text(middle, axes.bottom() + 32.0, "tick middle", &weight_of(i));
    figure.text_upwards(10.0, axes.top + height / 2.0, "tick middle", &weight_of(j));
    levels.colour_bar(&mut figure, &axes);
    let on_map: Vec<&Landmark> = landmarks.iter().filter(|l| l.is_on(&plane.landscape)).collect();
    draw_landmarks(&mut figure, &axes, &on_map);
    Some(figure)
}

/// The measured values, by ascending coefficients.
struct Grid {
    x: Vec<f64>,
    y: Vec<f64>,
    /// `values[a][b]` lies at `(x[a], y[b])`.
    values: Vec<Vec<f64>>,
}

impl Grid {
    fn of(landscape: &Landscape) -> Option<Self> {
        let ascending = |coefficients: &[f64]| {
            let mut order: Vec<usize> = (0..coefficients.len()).collect();
            order.sort_by(|a, b| coefficients[*a].total_cmp(&coefficients[*b]));
            order
        };
        let (rows, columns) = (ascending(&landscape.first), ascending(&landscape.second));
        if rows.len() < 2 || columns.len() < 2 {
            return None;
        }
        let values_of = |a: &usize| columns.iter().map(|b| landscape.values[*a][*b]).collect();
        Some(Self {
            values: rows.iter().map(values_of).collect(),
            x: rows.iter().map(|a| landscape.first[*a]).collect(),
            y: columns.iter().map(|b| landscape.second[*b]).collect(),
        })
    }

    fn scale_of(&self, coefficients: &[f64]) -> Scale {
        Scale::linear(coefficients[0], coefficients[coefficients.len() - 1])
    }
}

/// The values at which the map changes its shade.
struct Levels {
    /// From the best measured value to the worst; a single one when all are equal.
    bounds: Vec<f64>,
    lower_is_better: bool,
}

impl Levels {
    /// The distances from the best value grow as squares, so that a quadratic basin has evenly spaced
    /// rings, up to where the worst tenth begins.
    fn of(grid: &Grid, lower_is_better: bool) -> Self {
        let values = grid.values.concat();
        let at = |share: f64| quantile(&values, if lower_is_better { share } else { 1.0 - share });
        let (best, worst) = (at(0.0), at(1.0));
        if best == worst {
            return Self { bounds: vec![best], lower_is_better };
        }
        let far = if at(0.9) == best { worst } else { at(0.9) };
        let ring = |k: usize| best + (far - best) * (k as f64 / BANDS as f64).powi(2);
        let mut bounds: Vec<f64> = (0..BANDS).map(ring).collect();
        bounds.push(far);
        if far != worst {
            bounds.push(worst);
        }
        Self { bounds, lower_is_better }
    }

    fn bands(&self) -> usize {
        (self.bounds.len() - 1).max(1)
    }

    /// How strong the colour of a band is; 0 is the best band.
    fn shade(&self, band: usize) -> f64 {
        let share = band as f64 / (self.bands() - 1).max(1) as f64;
        0.06 + 0.82 * (1.0 - share)
    }

    /// Areas of better and better values, each laid over those before.
    fn fill(&self, figure: &mut Figure, grid: &Grid, axes: &Axes) {
        let palest = self.shade(self.bands() - 1);
        figure.rectangle((axes.left, axes.top), (axes.width, axes.height), "contour", palest);
        for band in (1..self.bands()).rev() {
            let (below, shade) = (self.shade(band), self.shade(band - 1));
            let layer = (shade - below) / (1.0 - below);
            figure.paths(&self.area_within(self.bounds[band], grid, axes), "contour", layer);
        }
    }

    /// Where values are at least as good as `level`, in pieces. Within each square of four measured
    /// points the values run linearly to their mean in its middle.
    fn area_within(&self, level: f64, grid: &Grid, axes: &Axes) -> Vec<Vec<(f64, f64)>> {
        let sign = if self.lower_is_better { 1.0 } else { -1.0 };
        let margin = |value: f64| sign * (level - value);
        let mut pieces = Vec::new();
        for b in 1..grid.y.len() {
            // Whole squares beside each other become one rectangle.
            let mut whole_from: Option<usize> = None;
            for a in 1..=grid.x.len() {
                let places = [(a - 1, b - 1), (a, b - 1), (a, b), (a - 1, b)];
                let inside = |(a, b): &(usize, usize)| {
                    grid.values.get(*a).is_some_and(|row| margin(row[*b]) >= 0.0)
                };
                if places.iter().all(inside) {
                    whole_from.get_or_insert(a - 1);
                    continue;
                }
                if let Some(from) = whole_from.take() {
                    let corners = [(from, b - 1), (a - 1, b - 1), (a - 1, b), (from, b)];
                    pieces.push(corners.map(|(a, b)| axes.at(grid.x[a], grid.y[b])).to_vec());
                }
                if a < grid.x.len() && places.iter().any(inside) {
                    let corners = places
                        .map(|(a, b)| (axes.at(grid.x[a], grid.y[b]), margin(grid.values[a][b])));
                    pieces.extend(square_pieces(&corners));
                }
            }
        }
        pieces
    }

    /// The shades with the values between them, the smallest at the bottom.
    fn colour_bar(&self, figure: &mut Figure, axes: &Axes) {
        let left = axes.right() + 12.0;
        let step = axes.height / self.bands() as f64;
        for band in 0..self.bands() {
            let from_bottom = if self.lower_is_better { band } else { self.bands() - 1 - band };
            let top = axes.bottom() - (from_bottom + 1) as f64 * step;
            figure.rectangle((left, top), (11.0, step), "contour", self.shade(band));
        }
        figure.rectangle((left, axes.top), (11.0, axes.height), "frame", 0.0);
        for (place, label) in distinct_labels(&self.bounds).iter().enumerate() {
            let y = match (self.bounds.len(), self.lower_is_better) {
                (1, _) => axes.top + axes.height / 2.0,
                (_, true) => axes.bottom() - place as f64 * step,
                (_, false) => axes.top + place as f64 * step,
            };
            figure.text(left + 15.0, y + 3.5, "tick start", label);
        }
    }
}

/// The pieces of a square where the margin is not negative, from those of its corners.
fn square_pieces(corners: &[((f64, f64), f64); 4]) -> Vec<Vec<(f64, f64)>> {
    let mean = |of: &dyn Fn(usize) -> f64| (0..4).map(of).sum::<f64>() / 4.0;
    let at = (mean(&|k| corners[k].0.0), mean(&|k| corners[k].0.1));
    let middle = (at, mean(&|k| corners[k].1));
    let piece = |k: usize| non_negative_part(&[middle, corners[k], corners[(k + 1) % 4]]);
    (0..4).map(piece).filter(|piece| piece.len() > 2).collect()
}

fn non_negative_part(corners: &[((f64, f64), f64)]) -> Vec<(f64, f64)> {
    let mut kept = Vec::new();
    for (k, &(p, m)) in corners.iter().enumerate() {
        let (q, n) = corners[(k + 1) % corners.len()];
        if m >= 0.0 {
            kept.push(p);
        }
        if (m >= 0.0) != (n >= 0.0) {
            let share = m / (m - n);
            kept.push((p.0 + (q.0 - p.0) * share, p.1 + (q.1 - p.1) * share));
        }
    }
    kept
}

/// Labels with as many digits as it takes to tell them apart, three at least.
fn distinct_labels(values: &[f64]) -> Vec<String> {
    let with = |digits: usize| -> Vec<String> {
        values.iter().map(|value| significant(*value, digits)).collect()
    };
    let all_differ = |labels: &[String]| labels.windows(2).all(|pair| pair[0] != pair[1]);
    (3..7).map(with).find(|labels| all_differ(labels)).unwrap_or_else(|| with(7))
}

/// About how wide a letter of a name is.
const LETTER: f64 = 6.8;

/// A box on the drawing: left, top, right, bottom.
type Area = [f64; 4];

fn overlap(a: &Area, b: &Area) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// The points with their names, each name where it covers neither a point nor another name.
fn draw_landmarks(figure: &mut Figure, axes: &Axes, landmarks: &[&Landmark]) {
    let places: Vec<(f64, f64)> = landmarks.iter().map(|l| axes.at(l.at.0, l.at.1)).collect();
    let around = |(x, y): &(f64, f64)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0];
    let mut taken: Vec<Area> = places.iter().map(around).collect();
    for (landmark, place) in landmarks.iter().zip(&places) {
        match landmark.is_merged {
            true => figure.dot(*place, 4.2, "best"),
            false => figure.dot(*place, 3.4, "landmark"),
        }
    }
    let frame = [axes.left, axes.top, axes.right(), axes.bottom()];
    for (landmark, (x, y)) in landmarks.iter().zip(&places) {
        let width = landmark.label.chars().count() as f64 * LETTER;
        let middle = x - width / 2.0;
        let spots = [
            (x + 8.0, y + 3.5),
            (x - 8.0 - width, y + 3.5),
            (middle, y - 8.0),
            (middle, y + 15.0),
            (x + 6.0, y - 7.0),
            (x - 6.0 - width, y - 7.0),
            (x + 6.0, y + 14.0),
            (x - 6.0 - width, y + 14.0),
        ];
        let area = |(left, base): &(f64, f64)| [*left, base - 10.0, left + width, base + 3.0];
        let within =
            |a: &Area| a[0] >= frame[0] && a[1] >= frame[1] && a[2] <= frame[2] && a[3] <= frame[3];
        let free = |spot: &&(f64, f64)| {
            let area = area(spot);
            within(&area) && !taken.iter().any(|other| overlap(&area, other))
        };
        let spot = spots.iter().find(free).or_else(|| spots.iter().find(|s| within(&area(s))));
        let spot = spot.unwrap_or(&spots[0]);
        taken.push(area(spot));
        figure.text_on_map(spot.0, spot.1, "start strong", &landmark.label);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::report_of;
    use super::super::verdict::merged_row;
    use super::*;

    fn plane() -> LandscapePlane {
        report_of(2).landscapes.remove(0)
    }

    /// A slope: the value is the first coefficient.
    fn slope(lower_is_better: bool) -> LandscapePlane {
        let mut plane = plane();
        plane.lower_is_better = lower_is_better;
        plane.landscape.first = vec![2.0, 0.0, 1.0];
        plane.landscape.second = vec![0.0, 1.0];
        plane.landscape.values = plane.landscape.first.iter().map(|a| vec![*a; 2]).collect();
        plane
    }

    /// Twice the area of a piece, positive whichever way its corners go round.
    fn doubled_area(piece: &[(f64, f64)]) -> f64 {
        let next = piece.iter().cycle().skip(1);
        piece.iter().zip(next).map(|(p, q)| p.0 * q.1 - q.0 * p.1).sum::<f64>().abs()
    }

    #[test]
    fn the_colour_bar_goes_from_the_best_to_the_worst_value() {
        let plane = plane();
        let values = plane.landscape.values.concat();
        let (low, high) = (
            values.iter().copied().fold(f64::INFINITY, f64::min),
            values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        );
        let levels = Levels::of(&Grid::of(&plane.landscape).unwrap(), true);
        assert_eq!((levels.bounds[0], *levels.bounds.last().unwrap()), (low, high));
        assert!(levels.bounds.is_sorted_by(|a, b| a < b));
        let flipped = Levels::of(&Grid::of(&plane.landscape).unwrap(), false);
        assert_eq!((flipped.bounds[0], *flipped.bounds.last().unwrap()), (high, low));
        let figure = landscape_map("a".into(), &plane, &[]).unwrap().inline();
        for bound in [low, high] {
            assert!(figure.contains(&format!(">{}</text>", significant(bound, 3))), "{figure}");
        }
    }

    #[test]
    fn an_area_ends_where_the_values_reach_its_level() {
        for (lower_is_better, width) in [(true, 0.75), (false, 1.25)] {
            let plane = slope(lower_is_better);
            let grid = Grid::of(&plane.landscape).unwrap();
            assert_eq!(grid.x, [0.0, 1.0, 2.0]);
            let levels = Levels::of(&grid, lower_is_better);
            // One unit is one unit.
            let axes = Axes {
                left: 0.0,
                top: 0.0,
                width: 2.0,
                height: 1.0,
                x: Scale::linear(0.0, 2.0),
                y: Scale::linear(0.0, 1.0),
            };
            let pieces = levels.area_within(0.75, &grid, &axes);
            let area: f64 = pieces.iter().map(|piece| doubled_area(piece) / 2.0).sum();
            assert!((area - width).abs() < 1e-12, "{area} {pieces:?}");
            for (x, _) in pieces.concat() {
                assert!(if lower_is_better { x <= 0.75 + 1e-12 } else { x >= 0.75 - 1e-12 });
            }
        }
    }

    #[test]
    fn a_constant_landscape_has_one_shade() {
        let mut plane = plane();
        plane.landscape.values.iter_mut().flatten().for_each(|value| *value = 3.0);
        let figure = landscape_map("a".into(), &plane, &[]).unwrap().inline();
        assert!(!figure.contains("NaN") && !figure.contains("inf"), "{figure}");
        assert_eq!(figure.matches("class=\"contour\"").count(), 2, "the map and its bar");
        assert_eq!(figure.matches(">3.00</text>").count(), 1, "{figure}");
        assert_eq!(best_point(&plane), Some(((-0.5, -0.5), 3.0)), "the first of equals");
    }

    #[test]
    fn most_values_may_be_the_best() {
        let mut plane = plane();
        plane.landscape.values.iter_mut().flatten().for_each(|value| *value = 3.0);
        plane.landscape.values[4][4] = 7.0;
        let levels = Levels::of(&Grid::of(&plane.landscape).unwrap(), true);
        assert_eq!((levels.bounds[0], *levels.bounds.last().unwrap()), (3.0, 7.0));
        assert_eq!(levels.bands(), BANDS);
    }

    #[test]
    fn landmarks_lie_at_their_weights() {
        let report = report_of(3);
        let merged = merged_row(&report.rows).unwrap();
        let plane = &report.landscapes[0];
        let found = landmarks(plane, Some(merged));
        let at: Vec<(&str, (f64, f64))> =
            found.iter().map(|landmark| (landmark.label.as_str(), landmark.at)).collect();
        let weights = merged.weights.as_ref().unwrap();
        let expected = [
            ("pretrained", (0.0, 0.0)),
            ("expert 1", (1.0, 0.0)),
            ("expert 2", (0.0, 1.0)),
            ("merged*", (weights[0], weights[1])),
        ];
        assert_eq!(at, expected);
        assert_eq!(found[0].value, Some(plane.landscape.values[2][2]));
        assert!(found[3].off_plane && found[3].value.is_none());

        let figure = landscape_map("a".into(), plane, &found).unwrap().inline();
        assert_eq!(figure.matches("class=\"landmark\"").count(), 3);
        // x from -0.5 to 1.5 over 238 units from 46, y the same upwards from 264.
        let place = |a: f64, b: f64| {
            format!(
                "cx=\"{:.1}\" cy=\"{:.1}\"",
                46.0 + (a + 0.5) * 119.0,
                264.0 - (b + 0.5) * 119.0
            )
        };
        assert!(figure.contains(&format!("class=\"best\" {}", place(weights[0], weights[1]))));
        assert!(figure.contains(&format!("class=\"landmark\" {}", place(1.0, 0.0))), "{figure}");
    }

    #[test]
    fn a_plane_beside_the_pretrained_model_marks_what_lies_in_it() {
        let mut report = report_of(3);
        let row = report.rows.iter_mut().find(|row| row.id == "searched").unwrap();
        row.weights = Some(vec![9.0, 0.5, 0.25]);
        report.landscapes[0].others = Some(vec![7.0, 7.0, 0.25]);
        let found = landmarks(&report.landscapes[0], merged_row(&report.rows));
        assert_eq!(found.len(), 1);
        assert!(found[0].is_merged && !found[0].off_plane);
        assert!(!found[0].is_on(&report.landscapes[0].landscape), "9 is beyond the map");
        let figure = landscape_map("a".into(), &report.landscapes[0], &found).unwrap().inline();
        assert!(!figure.contains("class=\"best\""));
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let report = report_of(2);
        let mut found = landmarks(&report.landscapes[0], merged_row(&report.rows));
        found[3].at = (0.05, 0.02);
        let figure = landscape_map("a".into(), &report.landscapes[0], &found).unwrap().inline();
        let names = figure.split("class=\"start strong\" x=\"").skip(1);
        let areas: Vec<Area> = names
            .map(|rest| {
                let mut parts = rest.split(['"', '>', '<']);
                let x: f64 = parts.next().unwrap().parse().unwrap();
                let y: f64 = parts.nth(1).unwrap().parse().unwrap();
                let name = parts.nth(1).unwrap();
                [x, y - 10.0, x + name.chars().count() as f64 * LETTER, y + 3.0]
            })
            .collect();
        assert_eq!(areas.len(), 4);
        for (place, a) in areas.iter().enumerate() {
            assert!(areas[..place].iter().all(|b| !overlap(a, b)), "{areas:?}");
        }
    }

    #[test]
    fn labels_have_the_digits_that_tell_them_apart() {
        assert_eq!(distinct_labels(&[0.03, 0.04]), ["0.0300", "0.0400"]);
        assert_eq!(distinct_labels(&[0.030001, 0.030012]), ["0.03000", "0.03001"]);
    }
}

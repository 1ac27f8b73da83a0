//! Drawing on axes, as SVG whose colours come from the page: the same drawing serves a light
//! page, a dark page and paper.

use super::escape;
use super::number_format::{fixed, significant, trimmed};

/// Colours and strokes of drawings; shared by the page and by SVG files.
pub(super) const FIGURE_CSS: &str = include_str!("figure.css");

/// A finished drawing.
pub(super) struct Figure {
    /// Its file name without ending, unique in the report.
    pub(super) name: String,
    /// What it shows, for those who do not see it.
    pub(super) alt: String,
    pub(super) width: f64,
    pub(super) height: f64,
    body: String,
}

impl Figure {
    pub(super) fn new(name: String, alt: String, width: f64, height: f64) -> Self {
        Self { name, alt, width, height, body: String::new() }
    }

    /// The element for a page that holds [`FIGURE_CSS`].
    pub(super) fn inline(&self) -> String {
        format!(
            "<svg class=\"figure\" viewBox=\"0 0 {0} {1}\" style=\"max-width:{2:.0}px\" role=\"img\" aria-label=\"{3}\">{4}</svg>",
            self.width,
            self.height,
            self.width * 1.35,
            escape::html(&self.alt),
            self.body
        )
    }

    /// A file of its own, with its own colours and background.
    pub(super) fn standalone(&self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"figure\" viewBox=\"0 0 {0} {1}\" width=\"{2}\" height=\"{3}\"><title>{4}</title><style>{FIGURE_CSS}</style><rect class=\"paper\" width=\"{0}\" height=\"{1}\"/>{5}</svg>\n",
            self.width,
            self.height,
            self.width * 1.5,
            self.height * 1.5,
            escape::html(&self.alt),
            self.body
        )
    }

    /// A text. `class` may hold `start`, `middle` or `end`.
    pub(super) fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape::html(text);
        self.body
            .push_str(&format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    /// A text that reads upwards.
    pub(super) fn text_upwards(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape::html(text);
        self.body.push_str(&format!(
            "<text class=\"{class}\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{text}</text>"
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        self.body.push_str(&format!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    pub(super) fn dot(&mut self, at: (f64, f64), radius: f64, class: &str) {
        self.body.push_str(&format!(
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\"/>",
            at.0, at.1
        ));
    }

    /// A rectangle; `opacity` is that of its filling.
    pub(super) fn rectangle(
        &mut self,
        corner: (f64, f64),
        size: (f64, f64),
        class: &str,
        opacity: f64,
    ) {
        self.body.push_str(&format!(
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{opacity:.2}\"/>",
            corner.0, corner.1, size.0, size.1
        ));
    }

    /// Several lines or, when the class fills them, areas as one element: areas that touch have no seam
    /// between them. `opacity` is that of the filling.
    pub(super) fn paths(&mut self, outlines: &[Vec<(f64, f64)>], class: &str, opacity: f64) {
        if outlines.is_empty() {
            return;
        }
        let corners = |outline: &Vec<(f64, f64)>| -> String {
            let corners: Vec<String> =
                outline.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            format!("M{}", corners.join("L"))
        };
        let outlines: String = outlines.iter().map(corners).collect();
        self.body.push_str(&format!(
            "<path class=\"{class}\" fill-opacity=\"{opacity:.3}\" d=\"{outlines}\"/>"
        ));
    }

    /// A text that stays readable on colours.
    pub(super) fn text_on_map(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.text(x, y, &format!("halo {class}"), text);
        self.text(x, y, class, text);
    }

    /// An open line, or a filled area when the class says so.
    pub(super) fn path(&mut self, points: &[(f64, f64)], class: &str) {
        if points.is_empty() {
            return;
        }
        let corners: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        self.body.push_str(&format!("<path class=\"{class}\" d=\"M{}\"/>", corners.join("L")));
    }
}

/// An axis: values from `low` to `high`, linear or logarithmic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) logarithmic: bool,
}

impl Scale {
    /// Exactly `low..=high`, widened when it is a single value.
    pub(super) fn linear(low: f64, high: f64) -> Self {
        let (low, high) = if low < high {
            (low, high)
        } else {
            let half = (low.abs() * 0.1).max(0.5);
            (low - half, low + half)
        };
        Self { low, high, logarithmic: false }
    }

    /// Around `low..=high` with some air; logarithmic when the values are positive and span
    /// more than a factor of ten.
    pub(super) fn around(low: f64, high: f64) -> Self {
        if low > 0.0 && high / low > 10.0 {
            let air = (high / low).powf(0.05);
            return Self { low: low / air, high: high * air, logarithmic: true };
        }
        let scale = Self::linear(low, high);
        let air = (scale.high - scale.low) * 0.06;
        Self::linear(scale.low - air, scale.high + air)
    }

    /// 0 at `low`, 1 at `high`; values beyond stay at the ends.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            if value <= 0.0 {
                return 0.0;
            }
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// About `wanted` round values inside the scale, with their labels.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        if self.logarithmic {
            return self.logarithmic_ticks(wanted);
        }
        let step = round_step((self.high - self.low) / wanted.max(1) as f64);
        let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last)
            .map(|multiple| {
                let value = multiple as f64 * step;
                let label = if value.abs() >= 1e6 || (value != 0.0 && step < 1e-6) {
                    significant(value, 2)
                } else {
                    fixed(value, decimals)
                };
                (value, label)
            })
            .collect()
    }

    fn logarithmic_ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let decades = self.high.log10() - self.low.log10();
        let steps: &[f64] = match decades {
            d if d < 1.2 => &[1.0, 2.0, 5.0],
            d if d < 2.2 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let every = ((decades / (wanted + 1) as f64).ceil() as i32).max(1);
        (first..=last)
            .filter(|exponent| exponent.rem_euclid(every) == 0)
            .flat_map(|exponent| steps.iter().map(move |step| step * 10f64.powi(exponent)))
            .filter(|value| (self.low..=self.high).contains(value))
            .map(|value| (value, logarithmic_label(value)))
            .collect()
    }
}

fn logarithmic_label(value: f64) -> String {
    if (1e-4..1e5).contains(&value) { trimmed(value, 5) } else { significant(value, 1) }
}

/// 1, 2 or 5 times a power of ten, about `step` or more.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= step * 0.7)
        .unwrap_or(10.0);
    factor * power
}

/// The area between a pair of axes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axes {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
}

impl Axes {
    /// Where a pair of values is drawn.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x_at(x), self.y_at(y))
    }

    pub(super) fn x_at(&self, x: f64) -> f64 {
        self.left + self.x.place(x) * self.width
    }

    pub(super) fn y_at(&self, y: f64) -> f64 {
        self.top + (1.0 - self.y.place(y)) * self.height
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }

    /// Draws the ticks, their labels and the lines behind the data.
    pub(super) fn draw(&self, figure: &mut Figure, x_title: &str) {
        for (value, label) in self.y.ticks(4) {
            let y = self.y_at(value);
            figure.line((self.left, y), (self.right(), y), "rule");
            figure.text(self.left - 6.0, y + 3.5, "tick end", &label);
        }
        for (value, label) in self.x.ticks(4) {
            let x = self.x_at(value);
            figure.line((x, self.bottom()), (x, self.bottom() + 4.0), "axis");
            figure.text(x, self.bottom() + 16.0, "tick middle", &label);
        }
        figure.line((self.left, self.bottom()), (self.right(), self.bottom()), "axis");
        figure.text(self.left + self.width / 2.0, self.bottom() + 31.0, "tick middle", x_title);
    }

    /// The points as they are drawn.
    pub(super) fn all(&self, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        points.iter().map(|(x, y)| self.at(*x, *y)).collect()
    }
}

/// The value below which `share` of `values` lie. Zero for no values.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len().saturating_sub(1)) as f64 * share;
    sorted.get(place.round() as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks(4).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(labels(Scale::linear(0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Scale::linear(0.0, 0.75)), ["0.0", "0.2", "0.4", "0.6"]);
        assert_eq!(labels(Scale::linear(0.0, 400.0)), ["0", "100", "200", "300", "400"]);
        assert_eq!(labels(Scale::around(0.01, 100.0)), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(Scale::around(0.3, 4.0)), ["0.3", "1", "3"]);
        for (low, high) in [(3.0, 3.0), (-2.0, 1e9), (1e-9, 2e-9), (0.0, 0.0), (1e-12, 1.0)] {
            let scale = Scale::around(low, high);
            let ticks = scale.ticks(4);
            assert!((1..=12).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.iter().all(|(v, _)| (scale.low..=scale.high).contains(v)));
        }
    }

    #[test]
    fn values_beyond_the_axis_stay_in_the_frame() {
        let scale = Scale::around(0.01, 100.0);
        assert!(scale.logarithmic);
        assert_eq!(scale.place(0.0), 0.0);
        assert_eq!(scale.place(1e9), 1.0);
        assert!((scale.place(1.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn text_in_drawings_is_escaped() {
        let mut figure = Figure::new("a".into(), "<a> \"b\"".into(), 10.0, 10.0);
        figure.text(0.0, 0.0, "tick", "<script>");
        for text in [figure.inline(), figure.standalone()] {
            assert!(!text.contains("<script>") && !text.contains("<a>"), "{text}");
            assert!(text.contains("&lt;script&gt;"));
        }
    }

    #[test]
    fn quantiles_lie_between_the_extremes() {
        let values = [3.0, 1.0, 2.0];
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 0.5), 2.0);
        assert_eq!(quantile(&values, 1.0), 3.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}

//! The results of an ablation: numbers, means over seeds, differences to the recipe. This is `ablation.json`.
//!
//! Everything here follows from the plan, the recipe and the measured numbers, so an interrupted ablation that
//! is resumed gives the same bytes. Nothing is measured here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::metric_names::Metric;
use super::part_readings::snake_name;
use super::setting::RunRow;
use super::statistics::{half_width, mean, standard_deviation};
use super::variants::VariantKind;

/// Raised when a field changes its meaning or disappears.
pub const SCHEMA_VERSION: u32 = 1;

/// A difference from one seed counts when it exceeds this many combined spreads over pictures.
const SPREADS_TO_COUNT: f64 = 2.0;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblationResults {
    /// [`SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// The plan's name.
    pub plan: String,
    /// The recipe's name.
    pub recipe: String,
    /// The recipe as it is, every default written out.
    pub recipe_toml: String,
    /// The recipe's seed of each repetition.
    pub seeds: Vec<u64>,
    /// What every reader must know.
    pub notes: Vec<String>,
    /// One table each.
    pub ablations: Vec<AblationTable>,
}

/// One ablation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblationTable {
    /// Its name in the plan.
    pub name: String,
    /// The id of the ablated part.
    pub part: String,
    /// What the part is.
    pub part_title: String,
    /// The plan's words for it.
    pub asked_part: String,
    /// ADD, REMOVE or REPLACE.
    pub action: super::plan::Action,
    /// Why.
    pub reason: Option<String>,
    /// What was measured; the first one is what is talked about.
    pub metrics: Vec<Metric>,
    /// The recipe as it is, what the plan asks for, what is compared with.
    pub rows: Vec<AblationRow>,
}

/// One variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblationRow {
    /// How tables call it.
    pub label: String,
    /// Why it is there.
    pub kind: VariantKind,
    /// The plan's words for it; several where they mean the same.
    pub asked: Vec<String>,
    /// What was decided in reading it.
    pub note: Option<String>,
    /// Overrides of the recipe.
    pub overrides: Vec<String>,
    /// The row of the run that was measured.
    pub run_row: RunRow,
    /// Its place on an axis, where it has one.
    pub number: Option<f64>,
    /// The numbers, by metric; one per seed, in the order of the seeds.
    pub measured: BTreeMap<String, Vec<Option<Measured>>>,
    /// What went wrong, by seed.
    pub failures: Vec<Failure>,
    /// What follows from the numbers, by metric.
    pub summary: BTreeMap<String, Summary>,
    /// How the first number was made, but for the model.
    pub protocol: Value,
}

/// One number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// In the metric's unit.
    pub value: f64,
    /// Its standard deviation over resampled pictures, where it is known.
    pub spread: Option<f64>,
}

/// A variant that failed at a seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What the program said.
    pub reason: String,
}

/// What the numbers of a row say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many seeds have a number.
    pub seeds: usize,
    /// The mean over them.
    pub mean: f64,
    /// The standard deviation over seeds; none for one seed.
    pub deviation: Option<f64>,
    /// Half of the mean's 95% interval over seeds; none for one seed.
    pub half_width: Option<f64>,
    /// Against the recipe as it is; none for that row itself, and where no seed has both.
    pub difference: Option<Difference>,
}

/// A row against the recipe as it is, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// How many seeds have both numbers.
    pub seeds: usize,
    /// The mean of row minus recipe.
    pub mean: f64,
    /// Its 95% interval over seeds; none for one seed.
    pub interval: Option<[f64; 2]>,
    /// What may be said.
    pub standing: Standing,
}

/// What a difference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The interval lies on the good side of 0.
    Better,
    /// On the bad side.
    Worse,
    /// It holds 0; from one seed: the difference is within two combined spreads over pictures.
    WithinNoise,
    /// Equal in every digit.
    Same,
    /// One seed, and no spread is known.
    Unknown,
}

impl AblationTable {
    /// The row of the recipe as it is.
    pub fn base(&self) -> &AblationRow {
        let base = self.rows.iter().find(|row| row.kind == VariantKind::Base);
        base.expect("every table has the recipe as it is")
    }

    /// Fills in the summaries.
    pub fn summarise(&mut self) {
        let base = self.base().measured.clone();
        for row in &mut self.rows {
            let is_base = row.kind == VariantKind::Base;
            row.summary.clear();
            for metric in &self.metrics {
                let Some(measured) = row.measured.get(&metric.name) else { continue };
                let against = if is_base { None } else { base.get(&metric.name) };
                if let Some(summary) = Summary::of(metric, measured, against) {
                    row.summary.insert(metric.name.clone(), summary);
                }
            }
        }
    }
}

impl Summary {
    /// None when no seed has a number.
    fn of(
        metric: &Metric,
        measured: &[Option<Measured>],
        base: Option<&Vec<Option<Measured>>>,
    ) -> Option<Self> {
        let values: Vec<f64> = measured.iter().flatten().map(|m| m.value).collect();
        Some(Self {
            seeds: values.len(),
            mean: mean(&values)?,
            deviation: standard_deviation(&values),
            half_width: half_width(&values),
            difference: base.and_then(|base| Difference::of(metric, measured, base)),
        })
    }
}

impl Difference {
    fn of(
        metric: &Metric,
        measured: &[Option<Measured>],
        base: &[Option<Measured>],
    ) -> Option<Self> {
        let pairs: Vec<(Measured, Measured)> =
            measured.iter().zip(base).filter_map(|(a, b)| Some(((*a)?, (*b)?))).collect();
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| a.value - b.value).collect();
        let amount = mean(&differences)?;
        let interval = half_width(&differences).map(|half| [amount - half, amount + half]);
        let noise = match (interval, pairs.as_slice()) {
            (Some([low, _]), _) => Some(amount - low),
            (None, [(a, b)]) => a.spread.zip(b.spread).map(|(a, b)| SPREADS_TO_COUNT * a.hypot(b)),
            _ => None,
        };
        let standing = match noise {
            _ if differences.iter().all(|difference| *difference == 0.0) => Standing::Same,
            None => Standing::Unknown,
            Some(noise) if amount.abs() <= noise => Standing::WithinNoise,
            Some(_) if (amount < 0.0) == metric.lower_is_better => Standing::Better,
            Some(_) => Standing::Worse,
        };
        Some(Self { seeds: pairs.len(), mean: amount, interval, standing })
    }
}

/// `ablation.csv`: one line per variant and metric.
pub fn csv(results: &AblationResults) -> String {
    let mut columns: Vec<String> = [
        "ablation",
        "part",
        "variant",
        "kind",
        "run_row",
        "metric",
        "stands_for",
        "seeds",
        "mean",
        "deviation",
        "difference",
        "low",
        "high",
        "standing",
    ]
    .map(str::to_owned)
    .to_vec();
    columns.extend(results.seeds.iter().map(|seed| format!("seed_{seed}")));
    columns.push("failures".to_owned());
    let mut text = line(&columns);
    for table in &results.ablations {
        for row in &table.rows {
            for metric in &table.metrics {
                text += &line(&fields(table, row, metric, results.seeds.len()));
            }
        }
    }
    text
}

fn fields(table: &AblationTable, row: &AblationRow, metric: &Metric, seeds: usize) -> Vec<String> {
    let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    let summary = row.summary.get(&metric.name);
    let difference = summary.and_then(|summary| summary.difference.as_ref());
    let interval = difference.and_then(|difference| difference.interval);
    let mut fields = vec![
        table.name.clone(),
        table.part.clone(),
        row.label.clone(),
        snake_name(&row.kind),
        row.run_row.id(),
        metric.name.clone(),
        metric.stands_for.join("; "),
        summary.map_or(0, |summary| summary.seeds).to_string(),
        number(summary.map(|summary| summary.mean)),
        number(summary.and_then(|summary| summary.deviation)),
        number(difference.map(|difference| difference.mean)),
        number(interval.map(|[low, _]| low)),
        number(interval.map(|[_, high]| high)),
        difference.map(|difference| snake_name(&difference.standing)).unwrap_or_default(),
    ];
    let none = Vec::new();
    let measured = row.measured.get(&metric.name).unwrap_or(&none);
    fields.extend(
        (0..seeds).map(|seed| number(measured.get(seed).copied().flatten().map(|m| m.value))),
    );
    let failures: Vec<String> =
        row.failures.iter().map(|f| format!("seed {}: {}", f.seed, f.reason)).collect();
    fields.push(failures.join("; "));
    fields
}

/// A line of CSV; what holds commas, quotes or line breaks is quoted.
fn line(fields: &[String]) -> String {
    let quoted = |field: &String| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ablation::plan::Action;

    pub fn metric(name: &str) -> Metric {
        Metric { name: name.to_owned(), stands_for: Vec::new(), lower_is_better: true }
    }

    pub fn row(
        label: &str,
        kind: VariantKind,
        values: &[Option<f64>],
        spread: Option<f64>,
    ) -> AblationRow {
        let measured = values.iter().map(|v| v.map(|value| Measured { value, spread })).collect();
        AblationRow {
            label: label.to_owned(),
            kind,
            asked: Vec::new(),
            note: None,
            overrides: Vec::new(),
            run_row: RunRow::Merged,
            number: None,
            measured: BTreeMap::from([("fd".to_owned(), measured)]),
            failures: Vec::new(),
            summary: BTreeMap::new(),
            protocol: Value::Null,
        }
    }

    /// `row` with a CLIP score at each seed beside its distance.
    pub fn with_score(
        mut row: AblationRow,
        values: &[Option<f64>],
        spread: Option<f64>,
    ) -> AblationRow {
        let measured = values.iter().map(|v| v.map(|value| Measured { value, spread })).collect();
        row.measured.insert("clip_score".to_owned(), measured);
        row
    }

    /// A table of two metrics, the second of which rises with quality.
    pub fn table_of_two(rows: Vec<AblationRow>) -> AblationTable {
        let mut table = table(rows);
        table.metrics.push(Metric { lower_is_better: false, ..metric("clip_score") });
        table.summarise();
        table
    }

    pub fn table(rows: Vec<AblationRow>) -> AblationTable {
        let mut table = AblationTable {
            name: "Weights".to_owned(),
            part: "weights".to_owned(),
            part_title: "how the merging weights w_i are found".to_owned(),
            asked_part: "the weights".to_owned(),
            action: Action::Replace,
            reason: None,
            metrics: vec![metric("fd")],
            rows,
        };
        table.summarise();
        table
    }

    fn difference(row: &AblationRow) -> &Difference {
        row.summary["fd"].difference.as_ref().unwrap()
    }

    #[test]
    fn differences_are_paired_by_seed() {
        // The seeds differ by 10, the variants by about 1: only pairs show it.
        let base = row("base", VariantKind::Base, &[Some(10.0), Some(20.0), Some(30.0)], None);
        let other = row("other", VariantKind::Asked, &[Some(9.0), Some(19.1), Some(28.9)], None);
        let table = table(vec![base, other]);
        let found = difference(&table.rows[1]);
        assert!((found.mean + 1.0).abs() < 1e-12 && found.seeds == 3);
        let [low, high] = found.interval.unwrap();
        // s = 0.1, t_{0.975, 2} = 4.303: half the width is 4.303 * 0.1 / sqrt(3).
        assert!((high - low - 2.0 * 4.3027 * 0.1 / 3f64.sqrt()).abs() < 1e-4, "{low} {high}");
        assert_eq!(found.standing, Standing::Better);
        assert!(table.rows[1].summary["fd"].half_width.unwrap() > 20.0);
        assert!(table.rows[0].summary["fd"].difference.is_none());
    }

    #[test]
    fn each_metric_is_judged_by_itself_and_in_its_own_direction() {
        let some = |values: [f64; 3]| values.map(Some);
        let base = row("base", VariantKind::Base, &some([10.0, 20.0, 30.0]), None);
        let other = row("other", VariantKind::Asked, &some([9.0, 19.1, 28.9]), None);
        let rows = vec![
            with_score(base, &some([25.0, 26.0, 27.0]), None),
            with_score(other, &some([26.0, 27.1, 27.9]), None),
        ];
        let table = table_of_two(rows);
        let found = |metric: &str| table.rows[1].summary[metric].difference.clone().unwrap();
        assert_eq!((found("fd").standing, found("clip_score").standing), {
            (Standing::Better, Standing::Better)
        });
        assert!((found("fd").mean + 1.0).abs() < 1e-12);
        assert!((found("clip_score").mean - 1.0).abs() < 1e-12);

        // A score that falls is worse, one that wavers is noise, one that failed leaves the other alone.
        let standing = |scores: [Option<f64>; 3]| {
            let mut rows = table.rows.clone();
            rows[1] = with_score(rows[1].clone(), &scores, None);
            let table = table_of_two(rows);
            let summary = &table.rows[1].summary;
            assert_eq!(summary["fd"].difference.as_ref().unwrap().standing, Standing::Better);
            summary.get("clip_score").map(|s| s.difference.as_ref().unwrap().standing)
        };
        assert_eq!(standing(some([24.0, 24.9, 26.1])), Some(Standing::Worse));
        assert_eq!(standing(some([20.0, 30.0, 27.0])), Some(Standing::WithinNoise));
        assert_eq!(standing([None; 3]), None);
        // One seed: two combined spreads of each metric's own.
        let one = |fd: f64, score: f64| {
            let base = row("base", VariantKind::Base, &[Some(10.0)], Some(1.0));
            let other = row("other", VariantKind::Asked, &[Some(fd)], Some(1.0));
            let rows = vec![
                with_score(base, &[Some(25.0)], Some(0.1)),
                with_score(other, &[Some(score)], Some(0.1)),
            ];
            let table = table_of_two(rows);
            ["fd", "clip_score"]
                .map(|metric| table.rows[1].summary[metric].difference.clone().unwrap().standing)
        };
        assert_eq!(one(9.0, 25.5), [Standing::WithinNoise, Standing::Better]);
        assert_eq!(one(7.0, 24.5), [Standing::Better, Standing::Worse]);

        let results = AblationResults {
            schema_version: SCHEMA_VERSION,
            plan: "p".into(),
            recipe: "r".into(),
            recipe_toml: String::new(),
            seeds: vec![0, 1, 2],
            notes: Vec::new(),
            ablations: vec![table.clone()],
        };
        let text = csv(&results);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines.len(), 4, "a line per variant and metric: {text}");
        assert!(
            lines[3].starts_with("Weights,weights,other,asked,merged,clip_score,,3,"),
            "{text}"
        );
    }

    #[test]
    fn only_seeds_that_have_both_are_compared() {
        let base = row("base", VariantKind::Base, &[Some(10.0), None, Some(30.0)], None);
        let other = row("other", VariantKind::Asked, &[Some(11.0), Some(5.0), None], Some(0.1));
        let found = table(vec![base, other]);
        let summary = &found.rows[1].summary["fd"];
        assert_eq!(summary.seeds, 2);
        let difference = difference(&found.rows[1]);
        assert_eq!((difference.seeds, difference.mean, difference.interval), (1, 1.0, None));
        assert_eq!(difference.standing, Standing::Unknown);
    }

    #[test]
    fn what_may_be_said_follows_from_interval_direction_and_spread() {
        let standing = |base: &[f64], other: &[f64], spread: Option<f64>| {
            let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
            let base = row("base", VariantKind::Base, &some(base), spread);
            let other = row("other", VariantKind::Asked, &some(other), spread);
            difference(&table(vec![base, other]).rows[1]).standing
        };
        assert_eq!(standing(&[1.0, 1.0], &[2.0, 2.1], None), Standing::Worse);
        assert_eq!(standing(&[1.0, 1.0], &[0.0, 2.5], None), Standing::WithinNoise);
        assert_eq!(standing(&[1.0, 2.0], &[1.0, 2.0], None), Standing::Same);
        // One seed: 2 sqrt(2) spreads of 0.1.
        assert_eq!(standing(&[1.0], &[0.71], Some(0.1)), Standing::Better);
        assert_eq!(standing(&[1.0], &[0.73], Some(0.1)), Standing::WithinNoise);
        assert_eq!(standing(&[1.0], &[0.73], None), Standing::Unknown);
        let mut base = row("base", VariantKind::Base, &[Some(1.0), Some(1.0)], None);
        base.measured.insert("fd".into(), vec![None, None]);
        let other = row("other", VariantKind::Asked, &[Some(1.0), Some(1.0)], None);
        let table = table(vec![base, other]);
        assert!(table.rows[1].summary["fd"].difference.is_none());
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let base = row("a, \"b\"", VariantKind::Base, &[Some(1.5), None], None);
        let results = AblationResults {
            schema_version: SCHEMA_VERSION,
            plan: "p".into(),
            recipe: "r".into(),
            recipe_toml: String::new(),
            seeds: vec![3, 4],
            notes: Vec::new(),
            ablations: vec![table(vec![base])],
        };
        let text = csv(&results);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with(",seed_3,seed_4,failures"), "{text}");
        let expected = "Weights,weights,\"a, \"\"b\"\"\",base,merged,fd,,1,1.5,,,,,,1.5,,";
        assert_eq!(lines[1], expected);
    }
}

//! What earlier results say of the parts of a recipe: `ablation.json` of ablations and `metrics.json` of runs,
//! wherever they lie below a folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::AblationError;
use super::results::{AblationResults, AblationTable, SCHEMA_VERSION};
use crate::diagnostics::Problem;

/// All that was found.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Ablations with their files.
    pub ablations: Vec<(PathBuf, AblationResults)>,
    /// Whole runs.
    pub runs: Vec<RunFacts>,
}

/// What one run measured.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFacts {
    /// The file.
    pub source: PathBuf,
    /// The recipe's name.
    pub recipe: String,
    /// The metric of the values.
    pub metric: String,
    /// Whether lower is better.
    pub lower_is_better: bool,
    /// The rows by id.
    pub rows: Vec<RowFacts>,
}

/// One row of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RowFacts {
    /// `before`, `joint`, `expert-1`, `ensemble`, `uniform`, `merged`.
    pub id: String,
    /// Its first metric.
    pub value: f64,
    /// Its standard deviation over resampled pictures.
    pub spread: Option<f64>,
    /// The merging weights, where all tensors have the same.
    pub weights: Option<Vec<f64>>,
}

impl RunFacts {
    /// The row of that name.
    pub fn row(&self, id: &str) -> Option<&RowFacts> {
        self.rows.iter().find(|row| row.id == id)
    }
}

impl Evidence {
    /// Reads everything below `folder`, but for the folders of stages.
    ///
    /// # Errors
    /// [`Problem::Read`]; [`AblationError::BadResults`] for a file of that name which holds something else.
    pub fn read(folder: &Path) -> Result<Self, Problem> {
        let mut evidence = Self::default();
        let mut open = vec![folder.to_owned()];
        while let Some(next) = open.pop() {
            let mut paths = Vec::new();
            for entry in fs::read_dir(&next).map_err(|e| Problem::read(&next, e))? {
                paths.push(entry.map_err(|e| Problem::read(&next, e))?.path());
            }
            paths.sort();
            for path in paths {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                match name.as_deref() {
                    // Stages keep files of the same names that are no results.
                    Some("stages") => {}
                    _ if path.is_dir() => open.push(path),
                    Some("ablation.json") => {
                        let results = ablation(&path, &json(&path)?)?;
                        evidence.ablations.push((path, results));
                    }
                    Some("metrics.json") => evidence.runs.push(run(&path, &json(&path)?)?),
                    _ => {}
                }
            }
        }
        Ok(evidence)
    }

    /// The tables of a part in ablations of this recipe, with their seeds and files.
    pub fn of_part<'a>(
        &'a self,
        recipe: &'a str,
        part: &'a str,
    ) -> impl Iterator<Item = (&'a Path, &'a AblationResults, &'a AblationTable)> {
        let of_recipe = self.ablations.iter().filter(move |(_, results)| results.recipe == recipe);
        of_recipe.flat_map(move |(path, results)| {
            let tables = results.ablations.iter().filter(move |table| table.part == part);
            tables.map(move |table| (path.as_path(), results, table))
        })
    }

    /// The last run of this recipe.
    pub fn run_of(&self, recipe: &str) -> Option<&RunFacts> {
        self.runs.iter().rfind(|run| run.recipe == recipe)
    }
}

fn json(path: &Path) -> Result<Value, Problem> {
    let bytes = fs::read(path).map_err(|e| Problem::read(path, e))?;
    Ok(serde_json::from_slice(&bytes).map_err(|error| bad(path, error.to_string()))?)
}

fn bad(path: &Path, reason: impl Into<String>) -> AblationError {
    AblationError::BadResults { place: path.display().to_string(), reason: reason.into() }
}

fn ablation(path: &Path, value: &Value) -> Result<AblationResults, AblationError> {
    match value["schema_version"].as_u64() {
        Some(version) if version == u64::from(SCHEMA_VERSION) => {}
        Some(version) => {
            return Err(bad(
                path,
                format!("its format is {version}, this program reads {SCHEMA_VERSION}"),
            ));
        }
        None => return Err(bad(path, "it has no schema_version")),
    }
    serde_json::from_value(value.clone()).map_err(|error| bad(path, error.to_string()))
}

fn run(path: &Path, value: &Value) -> Result<RunFacts, AblationError> {
    let recipe = value["title"].as_str().ok_or_else(|| bad(path, "it has no title"))?;
    let rows = value["rows"].as_array().ok_or_else(|| bad(path, "it has no rows"))?;
    let mut facts = RunFacts {
        source: path.to_owned(),
        recipe: recipe.to_owned(),
        metric: String::new(),
        lower_is_better: true,
        rows: Vec::new(),
    };
    for row in rows {
        let metric = &row["metrics"][0];
        let (Some(id), Some(name), Some(value)) =
            (row["id"].as_str(), metric["name"].as_str(), metric["value"].as_f64())
        else {
            return Err(bad(path, "a row has no id or no metric"));
        };
        facts.metric = name.to_owned();
        facts.lower_is_better = metric["lower_is_better"].as_bool().unwrap_or(true);
        let weights = row["weights"]
            .as_array()
            .and_then(|weights| weights.iter().map(Value::as_f64).collect());
        facts.rows.push(RowFacts {
            id: id.to_owned(),
            value,
            spread: metric["spread"].as_f64(),
            weights,
        });
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn results_are_found_below_a_folder_and_stages_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, value: Value| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value.to_string()).unwrap();
        };
        let metric = json!({ "name": "fd", "value": 2.0, "spread": 0.5, "lower_is_better": true });
        let row = json!({ "id": "merged", "weights": [0.5, 1.0], "metrics": [metric] });
        write("a/b/metrics.json", json!({ "title": "r", "rows": [row] }));
        write("a/stages/metrics-x/metrics.json", json!({ "feature_dim": 3 }));
        let evidence = Evidence::read(folder.path()).unwrap();
        let run = evidence.run_of("r").unwrap();
        let merged = run.row("merged").unwrap();
        assert_eq!((merged.value, merged.spread), (2.0, Some(0.5)));
        assert_eq!(merged.weights.as_deref(), Some([0.5, 1.0].as_slice()));
        assert!(evidence.run_of("other").is_none());

        for (name, wrong) in [
            ("ablation.json", json!({ "schema_version": 99 })),
            ("ablation.json", json!({ "schema_version": SCHEMA_VERSION })),
            ("ablation.json", json!({})),
            ("metrics.json", json!({ "title": "r" })),
            ("metrics.json", json!({ "title": "r", "rows": [{}] })),
        ] {
            write(name, wrong.clone());
            let refused = Evidence::read(folder.path());
            assert!(
                matches!(refused, Err(Problem::Ablation(AblationError::BadResults { .. }))),
                "{name} {wrong}"
            );
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        assert!(matches!(Evidence::read(&folder.path().join("no")), Err(Problem::Read { .. })));
    }
}

//! The plans that come with the program.

/// File names and texts. The first of several forms of a plan is the one that its bare name stands for.
pub const SHIPPED_PLANS: &[(&str, &str)] = &[
    ("merging-weights.toml", include_str!("../../../../ablations/merging-weights.toml")),
    ("merging-weights.md", include_str!("../../../../ablations/merging-weights.md")),
    ("timestep-ranges.toml", include_str!("../../../../ablations/timestep-ranges.toml")),
    ("timestep-ranges.md", include_str!("../../../../ablations/timestep-ranges.md")),
    ("techniques.toml", include_str!("../../../../ablations/techniques.toml")),
    ("probability.toml", include_str!("../../../../ablations/probability.toml")),
    ("projection.toml", include_str!("../../../../ablations/projection.toml")),
];

/// A shipped plan's file name and text, by its file name or its bare name.
pub fn find(name: &str) -> Option<(&'static str, &'static str)> {
    SHIPPED_PLANS.iter().find(|(file, _)| *file == name || name_of(file) == name).copied()
}

/// A file's bare name; that of a further form is its file name.
pub fn name_of(file: &'static str) -> &'static str {
    file.strip_suffix(".toml").unwrap_or(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::AblationPlan;
    use super::*;

    #[test]
    fn every_shipped_plan_is_a_plan_and_all_of_the_folder_is_shipped() {
        for (file, _) in SHIPPED_PLANS {
            let plan = AblationPlan::load(name_of(file)).unwrap();
            assert_eq!(plan.source, *file);
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ablations");
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            assert!(find(&file).is_some(), "{file} is not built in");
        }
    }
}

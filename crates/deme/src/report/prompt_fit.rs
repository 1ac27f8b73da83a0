//! Whether a model's pictures follow their prompts: their CLIP score with their own prompts beside that of the
//! same pictures with prompts of others.
//!
//! A CLIP score alone says little: pictures and prompts of one data set resemble each other whoever belongs to
//! whom. What counts is how far the own prompt is ahead.

use deme_eval::metric_row;

use super::number_format::fixed;
use super::verdict::{Difference, Standing, difference, with_spread};
use super::{MetricValue, Row};

/// Whether a metric is a CLIP score, of whatever CLIP.
pub(super) fn is_clip_score(metric: &str) -> bool {
    metric_row(metric).is_some_and(|row| row.name == "clip_score")
}

/// A row's CLIP scores with its own prompts and with those of others.
pub(super) struct PromptFit<'a> {
    /// With its own prompts.
    pub(super) own: &'a MetricValue,
    /// With the prompts of others, taken to have the same spread.
    pub(super) shuffled: f64,
    /// Own less others. Better is clearly above.
    pub(super) difference: Difference,
}

/// The row's scores, where both were measured.
pub(super) fn prompt_fit(row: &Row) -> Option<PromptFit<'_>> {
    let own = row.metrics.iter().find(|metric| is_clip_score(&metric.name))?;
    let shuffled = row.shuffled_clip_score?;
    let difference = difference(own, &MetricValue { value: shuffled, ..own.clone() });
    Some(PromptFit { own, shuffled, difference })
}

impl PromptFit<'_> {
    /// Where the own prompts stand, in a word or two.
    pub(super) fn standing_in_words(&self) -> &'static str {
        match self.difference.standing {
            Standing::Better => "clearly above",
            Standing::Worse => "clearly below",
            Standing::WithinSpread | Standing::Same => "within noise",
            Standing::SpreadUnknown => "spread unknown",
        }
    }

    /// What the two scores of the merged model say.
    pub(super) fn sentence(&self, decimals: usize) -> String {
        let meaning = match self.difference.standing {
            Standing::Better => "clearly above, so the pictures follow their prompts",
            Standing::Worse => "clearly below, as if the pictures had been given wrong prompts",
            Standing::WithinSpread | Standing::Same => {
                "within noise, so nothing shows that the pictures follow their prompts"
            }
            Standing::SpreadUnknown => {
                "with no spread measured, nothing can be said of whether the pictures follow them"
            }
        };
        format!(
            "CLIP score of the merged model's pictures with their own prompts {}, with shuffled \
             prompts {}: {meaning}.",
            with_spread(self.own, decimals),
            fixed(self.shuffled, decimals)
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::report_of;
    use super::*;

    /// A row with a CLIP score of 25, of a spread, and one with prompts of others.
    fn row(spread: Option<f64>, shuffled: f64) -> Row {
        let mut row = report_of(2).rows.remove(0);
        let score = row.metrics.iter_mut().find(|metric| is_clip_score(&metric.name)).unwrap();
        (score.value, score.spread) = (25.0, spread);
        row.shuffled_clip_score = Some(shuffled);
        row
    }

    #[test]
    fn own_prompts_must_be_ahead_by_more_than_two_combined_spreads() {
        // 2 sqrt(2) spreads of 0.5 are 1.414.
        for (spread, shuffled, words, meaning) in [
            (Some(0.5), 23.5, "clearly above", "the pictures follow their prompts"),
            (Some(0.5), 23.6, "within noise", "nothing shows"),
            (Some(0.5), 25.0, "within noise", "nothing shows"),
            (Some(0.5), 26.4, "within noise", "nothing shows"),
            (Some(0.5), 26.5, "clearly below", "wrong prompts"),
            (None, 10.0, "spread unknown", "no spread measured"),
        ] {
            let row = row(spread, shuffled);
            let fit = prompt_fit(&row).unwrap();
            assert_eq!(fit.standing_in_words(), words, "{spread:?} {shuffled}");
            assert!(fit.sentence(1).contains(meaning), "{}", fit.sentence(1));
        }
        let told = prompt_fit(&row(Some(0.5), 20.0)).unwrap().sentence(1);
        assert!(told.contains("own prompts 25.0 ± 0.5, with shuffled prompts 20.0"), "{told}");
    }

    #[test]
    fn both_scores_are_needed() {
        let mut row = row(Some(0.5), 20.0);
        row.shuffled_clip_score = None;
        assert!(prompt_fit(&row).is_none());
        row.shuffled_clip_score = Some(20.0);
        row.metrics.retain(|metric| !is_clip_score(&metric.name));
        assert!(prompt_fit(&row).is_none());
        assert!(is_clip_score("clip_score") && is_clip_score("clip_score_tiny_clip"));
        assert!(!is_clip_score("fd_tiny_clip") && !is_clip_score("clip_scores"));
    }
}

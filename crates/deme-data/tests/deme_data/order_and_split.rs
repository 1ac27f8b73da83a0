//! Which picture is drawn when, and which part it belongs to.

use deme_data::{DataError, EpochOrder, Share, SplitConfig, SplitPart, split};
use proptest::prelude::*;

proptest! {
    #[test]
    fn every_epoch_is_a_permutation(len in 1usize..200, seed: u64, epoch in 0u64..1_000_000) {
        let mut seen = EpochOrder::new(len, seed).batch(epoch * len as u64, len);
        seen.sort_unstable();
        prop_assert_eq!(seen, Vec::from_iter(0..len));
    }

    #[test]
    fn a_batch_depends_on_its_position_only(
        len in 1usize..40,
        seed: u64,
        start in 0u64..1000,
        first in 0usize..60,
        second in 0usize..60,
    ) {
        let order = EpochOrder::new(len, seed);
        let mut parts = order.batch(start, first);
        parts.extend(order.batch(start + first as u64, second));
        prop_assert_eq!(parts, order.batch(start, first + second));
    }

    #[test]
    fn parts_are_disjoint_ascending_and_complete(
        n in 3usize..300,
        search in 1usize..100,
        report in 1usize..100,
        seed: u64,
    ) {
        prop_assume!(search + report < n);
        let config = SplitConfig {
            search: Share::Count(search),
            report: Share::Count(report),
            seed,
        };
        let parts = split(n, &config).unwrap();
        prop_assert_eq!(parts.search.len(), search);
        prop_assert_eq!(parts.report.len(), report);
        let mut all = Vec::new();
        for part in [&parts.train, &parts.search, &parts.report] {
            prop_assert!(part.is_sorted());
            all.extend_from_slice(part);
        }
        all.sort_unstable();
        prop_assert_eq!(all, Vec::from_iter(0..n));
    }
}

#[test]
fn epochs_and_seeds_differ() {
    let order = EpochOrder::new(100, 7);
    assert_ne!(order.epoch(0), order.epoch(1));
    assert_ne!(order.epoch(0), EpochOrder::new(100, 8).epoch(0));
    assert_ne!(order.epoch(0), Vec::from_iter(0..100));
}

#[test]
fn the_order_stays_the_same_between_versions() {
    // Runs are resumed with the order they began with: these numbers must never change.
    assert_eq!(EpochOrder::new(8, 1).batch(0, 12), [5, 6, 2, 4, 1, 7, 0, 3, 4, 2, 1, 5]);
}

#[test]
fn fractions_are_of_all_pictures() {
    let config: SplitConfig =
        serde_json::from_str(r#"{"search": 0.25, "report": 10, "seed": 3}"#).unwrap();
    let parts = split(100, &config).unwrap();
    assert_eq!((parts.train.len(), parts.search.len(), parts.report.len()), (65, 25, 10));
}

#[test]
fn the_report_does_not_depend_on_the_search() {
    let report = |search| {
        let config =
            SplitConfig { search: Share::Count(search), report: Share::Count(20), seed: 5 };
        split(100, &config).unwrap().report
    };
    assert_eq!(report(10), report(50));
}

#[test]
fn a_seed_changes_the_split() {
    let report = |seed| {
        let config = SplitConfig { seed, ..SplitConfig::default() };
        split(100, &config).unwrap().report
    };
    assert_eq!(report(1), report(1));
    assert_ne!(report(1), report(2));
}

#[test]
fn no_part_may_be_empty() {
    for (search, report, empty) in [
        (Share::Count(5), Share::Count(5), SplitPart::Train),
        (Share::Count(usize::MAX), Share::Count(5), SplitPart::Train),
        (Share::Count(0), Share::Count(5), SplitPart::Search),
        (Share::Count(5), Share::Fraction(0.01), SplitPart::Report),
    ] {
        let config = SplitConfig { search, report, seed: 0 };
        let error = split(10, &config).unwrap_err();
        assert!(
            matches!(error, DataError::EmptyPart { part, total: 10, .. } if part == empty),
            "{error}"
        );
    }
}

#[test]
fn fractions_lie_between_zero_and_one() {
    for share in [0.0, 1.0, -0.5, f64::NAN] {
        let config = SplitConfig { search: Share::Fraction(share), ..SplitConfig::default() };
        let error = split(10, &config).unwrap_err();
        assert!(matches!(error, DataError::BadShare { part: SplitPart::Search, .. }), "{error}");
    }
}

#[test]
fn unknown_keys_and_wrong_shares_are_refused() {
    let unknown = serde_json::from_str::<SplitConfig>(r#"{"serch": 0.1}"#);
    assert!(unknown.unwrap_err().to_string().contains("serch"));
    let wrong = serde_json::from_str::<SplitConfig>(r#"{"search": "many"}"#);
    assert!(wrong.unwrap_err().to_string().contains("a count such as"));
}

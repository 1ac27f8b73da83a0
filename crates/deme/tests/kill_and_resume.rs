//! A run killed at any moment and started again ends in the same bytes as an undisturbed one.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{results, run_tiny, succeed, tiny_recipe};

#[test]
fn killed_at_ten_random_moments_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let start = Instant::now();
    let undisturbed = folder.path().join("undisturbed");
    succeed(&mut run_tiny(&recipe, &undisturbed, &[]));
    let duration = start.elapsed();
    let expected = results(&undisturbed);
    assert!(expected.len() > 20);

    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut killed = 0;
    for moment in 0..10 {
        let out = folder.path().join(format!("killed-{moment}"));
        let mut child = run_tiny(&recipe, &out, &[]).arg("--quiet").spawn().unwrap();
        // One moment in each tenth of the run.
        let share = (f64::from(moment) + rng.random::<f64>()) / 10.0;
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * share));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();

        succeed(run_tiny(&recipe, &out, &[]).arg("--quiet"));
        let found = results(&out);
        let names = |results: &[(std::path::PathBuf, Vec<u8>)]| {
            results.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&found), names(&expected), "killed at {share:.2} of the run");
        for ((path, found), (_, expected)) in found.iter().zip(&expected) {
            assert!(found == expected, "{} differs, killed at {share:.2}", path.display());
        }
    }
    // How many were still going depends on the machine; most must have been.
    assert!(killed >= 4, "only {killed} of 10 runs were still going when they were to be killed");
}

//! The console blocks of the README say what the program says.

#[test]
fn the_readme_tells_the_truth() {
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).expect("the root");
    trycmd::TestCases::new().case("README.md");
}

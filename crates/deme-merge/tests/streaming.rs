//! Merging to the disk: the same numbers as in memory, files that are complete or absent, inputs untouched.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use deme_merge::{
    Dtype, MergeError, MergeInputs, MergeMethod, ModelRole, StateDict, StoredTensor, WeightFiles,
    merge,
};
use proptest::prelude::*;

const NAMES: [&str; 5] = [
    "conv_in.weight",
    "down_blocks.0.attentions.0.to_q.weight",
    "mid_block.resnets.0.norm1.bias",
    "up_blocks.1.resnets.0.conv1.weight",
    "up_blocks.2.attentions.0.to_q.weight",
];

/// Numbers that look random, from a seed.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A model of three dtypes and one tensor that is not merged; `rows` sets its size.
fn model(seed: u64, rows: usize) -> StateDict {
    let mut model = StateDict::new();
    for (number, name) in NAMES.into_iter().enumerate() {
        let dtype = [Dtype::F32, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F32][number];
        let shape = if name.ends_with("weight") { vec![rows, 4] } else { vec![rows] };
        let values = numbers(seed + 100 * number as u64, shape.iter().product());
        model.insert(name.into(), StoredTensor::from_f32_as(dtype, shape, &values).unwrap());
    }
    let ids = StoredTensor::new(Dtype::I64, vec![2], vec![7; 16]).unwrap();
    model.insert("text.position_ids".into(), ids);
    model
}

/// Squares of numbers, of the shapes of the tensors that are merged.
fn fisher(seed: u64, rows: usize) -> StateDict {
    let like = model(seed, rows);
    let squares = |(name, stored): (&str, &StoredTensor)| {
        let values = stored.to_f32().ok()?.into_iter().map(|x| x * x).collect();
        Some((name.to_owned(), StoredTensor::from_f32(stored.shape().to_vec(), values)))
    };
    like.iter().filter_map(squares).collect()
}

/// X^T X of six random inputs, for the linear layers.
fn grams(seed: u64) -> StateDict {
    let gram = |name: &&str| {
        let x = numbers(seed + name.len() as u64, 24);
        let entry = |k: usize| (0..6).map(|row| x[4 * row + k / 4] * x[4 * row + k % 4]).sum();
        let values = (0..16).map(entry).collect();
        ((*name).to_owned(), StoredTensor::from_f32(vec![4, 4], values))
    };
    NAMES.iter().filter(|name| name.contains("to_q")).map(gram).collect()
}

fn methods(experts: usize) -> Vec<MergeMethod> {
    let weights: Vec<f64> = (0..experts).map(|i| 0.3 * i as f64 - 0.2).collect();
    let groups: BTreeMap<String, Vec<f64>> =
        [("down".into(), weights.clone()), ("up_blocks.2".into(), vec![0.5; experts])].into();
    let mut methods = vec![
        MergeMethod::Linear { weights: weights.clone() },
        MergeMethod::LinearByGroup { groups, weights: Some(vec![0.1; experts]) },
        MergeMethod::Uniform,
        MergeMethod::Ties { density: 0.4, scale: 0.9 },
        MergeMethod::Dare { weights, drop: 0.5, seed: 3 },
        MergeMethod::Fisher,
        MergeMethod::RegMean { alpha: 0.9 },
    ];
    if experts == 2 {
        methods.push(MergeMethod::Slerp { t: 0.3 });
    }
    methods
}

/// Models in files, and the statistics that a method needs.
struct Files {
    folder: tempfile::TempDir,
    theta_pre: StateDict,
    experts: Vec<StateDict>,
    fisher: Vec<StateDict>,
    grams: Vec<StateDict>,
}

impl Files {
    fn new(seed: u64, experts: usize, rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let stored = |name: String, model: StateDict| {
            let path = path.join(name);
            model.save(&path).unwrap();
            StateDict::load(&path).unwrap()
        };
        let each = |name: &str, make: &dyn Fn(u64) -> StateDict| {
            let one =
                |i: usize| stored(format!("{name}{i}.safetensors"), make(seed + 1 + i as u64));
            (0..experts).map(one).collect()
        };
        Self {
            theta_pre: stored("base.safetensors".into(), model(seed, rows)),
            experts: each("expert", &|seed| model(seed, rows)),
            fisher: each("fisher", &|seed| fisher(seed, rows)),
            grams: each("gram", &grams),
            folder,
        }
    }

    fn inputs(&self, method: &MergeMethod) -> MergeInputs<'_> {
        let statistics = match method {
            MergeMethod::Fisher => &self.fisher[..],
            MergeMethod::RegMean { .. } => &self.grams[..],
            _ => &[],
        };
        MergeInputs { theta_pre: &self.theta_pre, experts: &self.experts, statistics }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn names_in(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| name(e).unwrap()).collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// In memory, to a file, to shards, on one thread and on three: the same bits and the same provenance.
    #[test]
    fn every_way_to_merge_gives_the_same_bits(
        seed in 0u64..1000,
        experts in 1usize..4,
        rows in 1usize..40,
        shard in 1u64..600,
    ) {
        let files = Files::new(seed, experts, rows);
        for method in methods(experts) {
            let inputs = files.inputs(&method);
            let in_memory = with_threads(1, || inputs.merge(&method)).unwrap();

            let path = files.path("merged.safetensors");
            with_threads(3, || inputs.merge_to_file(&method, &path)).unwrap();
            let streamed = StateDict::load(&path).unwrap();
            prop_assert_eq!(streamed.content_hash(), in_memory.content_hash(), "{:?}", &method);
            for (key, value) in in_memory.metadata() {
                prop_assert_eq!(streamed.metadata().get(key), Some(value));
            }

            let shards = files.path("shards");
            fs::create_dir_all(&shards).unwrap();
            let names = WeightFiles::new("model");
            let main = inputs.merge_to_folder(&method, &shards, &names, shard).unwrap();
            let sharded = StateDict::load(&main).unwrap();
            prop_assert_eq!(sharded.content_hash(), in_memory.content_hash());
            prop_assert_eq!(sharded.metadata(), streamed.metadata());

            let hash = |model: &StateDict| model.content_hash();
            prop_assert_eq!(&in_memory.metadata()["merge.theta_pre"], &hash(&files.theta_pre));
            let hashes: Vec<String> = inputs.statistics.iter().map(hash).collect();
            let said = in_memory.metadata().get("merge.statistics");
            let expected =
                (!hashes.is_empty()).then(|| serde_json::to_string(&hashes).unwrap());
            prop_assert_eq!(said, expected.as_ref());
        }
    }

    #[test]
    fn shards_merge_as_one_file_does(seed in 0u64..1000, rows in 1usize..40, shard in 1u64..600) {
        let files = Files::new(seed, 2, rows);
        let in_shards = |number: usize, model: &StateDict| {
            let folder = files.path(&format!("shards{number}"));
            fs::create_dir(&folder).unwrap();
            StateDict::load(&model.save_sharded(&folder, "model", shard).unwrap()).unwrap()
        };
        let theta_pre = in_shards(0, &files.theta_pre);
        let experts = [in_shards(1, &files.experts[0]), in_shards(2, &files.experts[1])];
        for method in methods(2) {
            let single = files.inputs(&method);
            let sharded = MergeInputs { theta_pre: &theta_pre, experts: &experts, ..single };
            let (a, b) = (single.merge(&method).unwrap(), sharded.merge(&method).unwrap());
            prop_assert_eq!(a.content_hash(), b.content_hash());
            prop_assert_eq!(a.metadata(), b.metadata());
        }
    }
}

/// Larger than a block and than the room between two releases of pages.
#[test]
fn tensors_of_many_blocks_come_out_as_a_sum_entry_by_entry() {
    let files = Files::new(1, 2, 100_003);
    let method = MergeMethod::Linear { weights: vec![0.25, -0.5] };
    let path = files.path("merged.safetensors");
    files.inputs(&method).merge_to_file(&method, &path).unwrap();
    let merged = StateDict::load(&path).unwrap();
    let values = |model: &StateDict| model.get(NAMES[1]).unwrap().to_f32().unwrap();
    let (theta, a, b) =
        (values(&files.theta_pre), values(&files.experts[0]), values(&files.experts[1]));
    for (index, merged) in values(&merged).into_iter().enumerate() {
        let t = theta[index];
        assert_eq!(merged, t + 0.25 * (a[index] - t) - 0.5 * (b[index] - t), "{index}");
    }
    for method in methods(2) {
        let inputs = files.inputs(&method);
        let one = with_threads(1, || inputs.merge(&method)).unwrap().content_hash();
        let four = with_threads(4, || inputs.merge(&method)).unwrap().content_hash();
        assert_eq!(one, four, "{method:?}");
    }
}

#[test]
fn inputs_are_not_modified_and_nothing_else_is_left() {
    let files = Files::new(2, 2, 9);
    let before = names_in(files.folder.path());
    let bytes = |name: &String| fs::read(files.path(name)).unwrap();
    let contents: Vec<Vec<u8>> = before.iter().map(bytes).collect();
    for method in methods(2) {
        let path = files.path("merged.safetensors");
        files.inputs(&method).merge_to_file(&method, &path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(names_in(files.folder.path()), before);
    }
    assert_eq!(before.iter().map(bytes).collect::<Vec<_>>(), contents);
}

#[test]
fn a_failed_merge_keeps_what_stood_there() {
    let mut files = Files::new(3, 2, 50_000);
    let mut values = files.experts[1].get(NAMES[4]).unwrap().to_f32().unwrap();
    values[190_000] = f32::INFINITY; // in the last tensor: all others are written by then
    let broken = StoredTensor::from_f32(vec![50_000, 4], values);
    files.experts[1].insert(NAMES[4].into(), broken);
    let path = files.path("merged.safetensors");
    fs::write(&path, "what stood there").unwrap();
    let before = names_in(files.folder.path());
    for method in methods(2).into_iter().filter(|method| *method != MergeMethod::Fisher) {
        match files.inputs(&method).merge_to_file(&method, &path).unwrap_err() {
            MergeError::NonFinite { model, name, index, value } => {
                assert_eq!((model, name.as_str()), (ModelRole::Expert(1), NAMES[4]));
                assert_eq!((index, value), (190_000, f64::INFINITY));
            }
            other => panic!("{other}"),
        }
        assert_eq!(fs::read(&path).unwrap(), b"what stood there");
        assert_eq!(names_in(files.folder.path()), before);
    }
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let files = Files::new(4, 1, 3);
    let path = files.path("no/such/folder/merged.safetensors");
    let method = MergeMethod::Uniform;
    let error = files.inputs(&method).merge_to_file(&method, &path).unwrap_err();
    assert!(matches!(error, MergeError::StateDict(_)), "{error}");
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}

/// The first of many failures is told, whichever thread met one first.
#[test]
fn the_first_failure_by_name_is_told() {
    let mut files = Files::new(5, 1, 5);
    for name in &NAMES[1..] {
        let stored = files.experts[0].get(name).unwrap();
        let (dtype, shape) = (stored.dtype(), stored.shape().to_vec());
        let values = vec![f32::NAN; stored.numel()];
        let broken = StoredTensor::from_f32_as(dtype, shape, &values).unwrap();
        files.experts[0].insert((*name).into(), broken);
    }
    for _ in 0..50 {
        match with_threads(4, || merge(&files.theta_pre, &files.experts, &MergeMethod::Uniform)) {
            Err(MergeError::NonFinite { name, .. }) => assert_eq!(name, NAMES[1]),
            other => panic!("{other:?}"),
        }
    }
}

const KILLED: &str = "DEME_TEST_KILLED_MERGE";

/// Runs itself as another process, which merges, and kills that in the middle.
#[test]
fn a_killed_merge_leaves_no_half_file_under_its_name() {
    let method = MergeMethod::Dare { weights: vec![0.5; 2], drop: 0.5, seed: 0 };
    if let Some(folder) = std::env::var_os(KILLED) {
        let load = |name: &str| StateDict::load(&Path::new(&folder).join(name)).unwrap();
        let experts = [load("expert0.safetensors"), load("expert1.safetensors")];
        let theta_pre = load("base.safetensors");
        let inputs = MergeInputs { theta_pre: &theta_pre, experts: &experts, statistics: &[] };
        inputs.merge_to_file(&method, &Path::new(&folder).join("merged.safetensors")).unwrap();
        return;
    }
    let files = Files::new(6, 2, 1_000_000);
    let merged = files.path("merged.safetensors");
    let is_partial = |name: &String| name.ends_with(".deme.tmp");
    let mut killed_in_the_middle = false;
    for _ in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_merge_leaves_no_half_file_under_its_name"])
            .env(KILLED, files.folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !names_in(files.folder.path()).iter().any(is_partial) && !merged.exists() {
            assert!(child.try_wait().unwrap().is_none(), "the merge ended without a file");
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !merged.exists() {
            killed_in_the_middle = true;
            break;
        }
        // It was faster than we are; then the file is complete.
        StateDict::load(&merged).unwrap();
        fs::remove_file(&merged).unwrap();
    }
    assert!(killed_in_the_middle, "20 merges ended before they could be killed");
    files.inputs(&method).merge_to_file(&method, &merged).unwrap();
    assert_eq!(StateDict::load(&merged).unwrap().len(), files.theta_pre.len());
}

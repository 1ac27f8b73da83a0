//! `deme sample` with prompts, on a tiny Stable Diffusion: pictures, files beside them, wrong input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{self, deme, fail_with, small_clip, succeed};
use burn::tensor::{Device, Tensor, TensorData};
use deme_clip::{CaptionTokenizer, ClipTextModel};
use deme_data::{Picture, write_png};
use deme_diffusion::text_to_image::SingleFileConfigs;
use deme_diffusion::{
    GuidanceConfig, Guided, SamplerConfig, SchedulerClass, TextToImagePipeline,
    UNet2DConditionConfig, UNet2DConditionModel, sample_latents,
};
use deme_eval::FeatureStats;
use deme_merge::StateDict;
use deme_nn::Init;
use serde_json::{Value, json};

const PROMPTS: [&str; 3] = ["a red circle", "two blue squares on green", "nothing much"];

/// A folder with the fixture's networks as a pipeline (`sd`), a file of prompts, and a small CLIP.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let (fixture, sd) = (support::fixtures().join("sd_tiny"), place.path("sd"));
        for part in ["unet", "vae", "text_encoder"] {
            copy_folder(&fixture.join(part), &sd.join(part));
        }
        fs::create_dir(sd.join("tokenizer")).unwrap();
        tokenizer().save(&sd.join("tokenizer/tokenizer.json")).unwrap();
        fs::create_dir(sd.join("scheduler")).unwrap();
        let scheduler = SingleFileConfigs::default().scheduler.to_json();
        place.write("sd/scheduler/scheduler_config.json", scheduler.as_bytes());
        let index = json!({
            "_class_name": "StableDiffusionPipeline",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        place.write("sd/model_index.json", index.to_string().as_bytes());
        place.write("prompts.txt", (PROMPTS.join("\n") + "\n").as_bytes());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Changes a JSON file.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut json);
        self.write(name, json.to_string().as_bytes());
    }

    /// `deme` in the folder.
    fn deme(&self, words: &[&str]) -> Command {
        let mut command = deme();
        command.current_dir(self.folder.path()).args(words);
        command
    }

    /// `deme sample`, of two steps unless the words say otherwise.
    fn sample(&self, words: &[&str]) -> Command {
        let steps: &[&str] = if words.contains(&"--steps") { &[] } else { &["--steps", "2"] };
        self.deme(&[&["sample"], steps, words].concat())
    }

    /// What the pipeline draws, as PNG files by their names, and what is said meanwhile.
    fn drawn(&self, words: &[&str]) -> (Vec<(String, Vec<u8>)>, String) {
        let out = self.path("drawn");
        let output =
            succeed(&mut self.sample(&[&["--model", "sd", "--out", "drawn"], words].concat()));
        let names = support::files(&out).into_iter().map(|path| path.to_str().unwrap().to_owned());
        let pictures = names
            .filter(|name| name.ends_with(".png"))
            .map(|name| (name.clone(), fs::read(out.join(name)).unwrap()))
            .collect();
        fs::remove_dir_all(out).unwrap();
        (pictures, String::from_utf8(output.stderr).unwrap())
    }

    /// The PNG of one picture.
    fn picture(&self, words: &[&str]) -> Vec<u8> {
        let (mut pictures, _) = self.drawn(words);
        assert_eq!(pictures.len(), 1);
        pictures.remove(0).1
    }

    /// What is said when it goes wrong, with exit code 2 and no picture.
    fn refuses(&self, words: &[&str], said: &[&str]) {
        let found = fail_with(&mut self.sample(&[&["--out", "refused"], words].concat()), 2);
        assert!(!self.path("refused").exists(), "work was begun: {found}");
        // Where lines are wrapped there may be a space too many.
        let closed = |text: &str| text.replace(' ', "");
        for word in said {
            assert!(closed(&found).contains(&closed(word)), "no {word:?} in: {found}");
        }
    }
}

/// A word per token; 600 tokens, the last two the marks, as the fixture's text encoder has them.
fn tokenizer() -> CaptionTokenizer {
    let words: Vec<String> = (0..596).map(|i| format!("word{i}")).collect();
    let captions = [PROMPTS.join(" "), PROMPTS.join(" "), words.join(" ")];
    let tokenizer = CaptionTokenizer::train_words(&captions, 600, 77).unwrap();
    assert_eq!(tokenizer.special_ids()[..2], [598, 599]);
    tokenizer
}

fn copy_folder(from: &Path, to: &Path) {
    for file in support::files(from) {
        fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

/// Every line of a `.jsonl`.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Width and height, from a PNG's header.
fn size_of(png: &Path) -> [u32; 2] {
    let bytes = fs::read(png).unwrap();
    [16, 20].map(|at| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
}

/// What the library draws: two DDIM steps for one seed, as a PNG.
fn by_library(place: &Place, prompt: &str, negative: &str, scale: f64, seed: u64) -> Vec<u8> {
    let device = Device::flex();
    let sd = place.path("sd");
    let pipeline = TextToImagePipeline::load(sd.to_str().unwrap(), &device).unwrap();
    let states = |text| pipeline.encode_prompts(&[text], 0).unwrap().hidden_states;
    let guidance = GuidanceConfig { scale, rescale: 0.0 };
    let guided =
        Guided::new(&pipeline.unet, guidance, states(prompt), Some(states(negative))).unwrap();
    let latents = sample_latents(
        &mut |_| &guided,
        &pipeline.scheduler,
        &SamplerConfig { steps: 2, ..SamplerConfig::default() },
        pipeline.latent_shape().unwrap(),
        &[seed],
        1,
        &device,
        &mut |_| {},
    )
    .unwrap();
    let latents = TensorData::new(latents.concat(), [1, 4, 16, 16]);
    let image = pipeline.images(Tensor::from_data(latents, &device));
    let image = image.into_data().try_into_vec::<f32>().unwrap();
    let path = place.path("expected.png");
    write_png(&path, &Picture::from_signed("expected", &image, 32, 32).unwrap()).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn each_picture_is_of_its_seed_and_prompt_alone() {
    let place = Place::new();
    let settings = ["--prompts", "prompts.txt", "--negative-prompt", "word3 word4"];
    let draw = |batch: &str| {
        let words = ["--num", "5", "--seed", "7", "--guidance", "4", "--batch-size", batch];
        place.drawn(&[&settings[..], &words].concat()).0
    };
    let one_by_one = draw("1");
    let names: Vec<&str> = one_by_one.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["10.png", "11.png", "7.png", "8.png", "9.png"]);
    // Bit for bit, whatever is in the batch besides.
    assert_eq!(draw("3"), one_by_one);
    assert_eq!(draw("5"), one_by_one);
    // Seed 11 is picture 4, whose prompt is number 4 mod 3.
    assert_eq!(one_by_one[1].1, by_library(&place, PROMPTS[1], "word3 word4", 4.0, 11));

    // Without --num there is a picture per prompt.
    let (pictures, said) = place.drawn(&settings);
    assert_eq!(pictures.len(), 3);
    assert!(!said.contains("warning"), "{said}");
    assert_eq!(place.drawn(&["--prompt", PROMPTS[0]]).0.len(), 1);
}

#[test]
fn every_setting_shows() {
    let place = Place::new();
    let plain = place.picture(&["--prompt", PROMPTS[0]]);
    assert_eq!(plain, by_library(&place, PROMPTS[0], "", 7.5, 0));
    let of = |words: &[&str]| place.picture(&[&["--prompt", PROMPTS[0]], words].concat());
    // The scheduler's class is the default, and so are the empty negative prompt and 7.5.
    for (setting, value) in
        [("--sampler", "ddim"), ("--negative-prompt", ""), ("--guidance", "7.5")]
    {
        assert_eq!(of(&[setting, value]), plain, "{setting}");
    }
    for words in [
        ["--negative-prompt", "word9"],
        ["--guidance", "3"],
        ["--guidance", "0"],
        ["--guidance-rescale", "0.7"],
        ["--clip-skip", "1"],
        ["--seed", "1"],
        ["--sampler", "euler"],
        ["--height", "24"],
    ] {
        assert_ne!(of(&words), plain, "{words:?}");
    }
    assert_ne!(place.picture(&["--prompt", PROMPTS[1]]), plain);
    // The empty prompt is a prompt: guided away from itself it is where it was.
    let empty = place.picture(&["--prompt", "", "--guidance", "1"]);
    assert_eq!(place.picture(&["--prompt", "", "--guidance", "0"]), empty);
    assert_eq!(of(&["--guidance", "0"]), empty);
}

#[test]
fn every_sampler_draws_and_the_schedulers_own_is_the_default() {
    let place = Place::new();
    let of = |words: &[&str]| {
        place.picture(&[&["--prompt", PROMPTS[0], "--steps", "12"], words].concat())
    };
    let classes = [
        ("ddim", SchedulerClass::Ddim),
        ("ddpm", SchedulerClass::Ddpm),
        ("pndm", SchedulerClass::Pndm),
        ("dpm-solver++", SchedulerClass::DpmSolver),
        ("euler", SchedulerClass::Euler),
        ("euler-ancestral", SchedulerClass::EulerAncestral),
    ];
    let mut pictures = Vec::new();
    for (sampler, class) in classes {
        let scheduler = SingleFileConfigs::default().scheduler.as_class(class).to_json();
        place.write("sd/scheduler/scheduler_config.json", scheduler.as_bytes());
        pictures.push(of(&[]));
        assert_eq!(pictures.last(), Some(&of(&["--sampler", sampler])), "{sampler}");
    }
    assert_eq!(of(&["--sampler", "dpm++-2m"]), of(&["--sampler", "dpm-solver++"]));
    pictures.sort();
    pictures.dedup();
    assert_eq!(pictures.len(), classes.len());
}

#[test]
fn captions_and_how_they_were_drawn_lie_beside_the_pictures() {
    let place = Place::new();
    let words = ["--model", "sd", "--prompts", "prompts.txt", "--num", "4", "--seed", "20"];
    succeed(place.sample(&["--out", "whole", "--guidance", "3"]).args(words));
    let expected: Vec<Value> = (0..4)
        .map(|i| json!({ "file_name": format!("{}.png", 20 + i), "text": PROMPTS[i % 3], "seed": 20 + i }))
        .collect();
    assert_eq!(lines(&place.path("whole/metadata.jsonl")), expected);
    let stamp = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
    };
    let whole = stamp("whole/samples.json");
    assert_eq!(
        (&whole["guidance"], &whole["sampler"], &whole["count"], &whole["size"]),
        (&json!(3.0), &json!("ddim"), &json!(4), &json!([32, 32]))
    );

    // Other prompts, another hash; a metadata.jsonl serves as a file of prompts.
    let hash = |words: &[&str]| {
        succeed(place.sample(&["--model", "sd", "--num", "1", "--out", "one"]).args(words));
        stamp("one/samples.json")["prompts_hash"].as_str().unwrap().to_owned()
    };
    let plain = hash(&["--prompts", "prompts.txt"]);
    assert_eq!(whole["prompts_hash"], plain);
    assert_ne!(hash(&["--prompts", "prompts.txt", "--negative-prompt", "word1"]), plain);
    assert_ne!(hash(&["--prompts", "whole/metadata.jsonl"]), plain);
    assert_ne!(hash(&["--prompt", PROMPTS[0]]), plain);
    let without = ["--prompts", "prompts.txt", "--guidance", "1"];
    assert_eq!(hash(&[&without[..], &["--negative-prompt", "word1"]].concat()), hash(&without));

    // Parts say the same one behind the other.
    for part in ["2/2", "1/2"] {
        succeed(place.sample(&["--out", "parts", "--part", part]).args(words));
    }
    let of = |part| lines(&place.path(&format!("parts/metadata-{part}-of-2.jsonl")));
    assert_eq!([of(1), of(2)].concat(), expected);

    small_clip(0).save(&place.path("clip")).unwrap();
    let mut score = place.deme(&["clip-score", "--images", "whole", "--model", "clip", "--json"]);
    let found = succeed(score.args(["--captions", "whole/metadata.jsonl", "--per-pair"]));
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    let captions = found["pairs"].as_array().unwrap().iter().map(|pair| &pair["caption"]);
    assert_eq!(captions.collect::<Vec<_>>(), [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0]]);
}

#[test]
fn parts_make_the_whole_and_those_of_other_prompts_do_not() {
    let place = Place::new();
    small_clip(0).save(&place.path("clip")).unwrap();
    let clip = ["--extractor", "clip", "--weights", "clip"];
    let sample = |words: &[&str]| {
        let model = ["--model", "sd", "--num", "5", "--prompts", "prompts.txt"];
        succeed(place.sample(&model).args(clip).args(words));
    };
    sample(&["--save-stats", "whole.npz", "--batch-size", "3", "--grid", "grid.png"]);
    assert!(place.path("grid.png").is_file());
    fs::create_dir(place.path("parts")).unwrap();
    sample(&["--save-features", "parts/1.safetensors", "--part", "1/2"]);
    sample(&["--save-features", "parts/2.safetensors", "--part", "2/2", "--batch-size", "1"]);
    succeed(place.deme(&["fid", "parts", "--save-stats", "joined.npz"]).args(clip));
    let stats = |name: &str| FeatureStats::load_npz(&place.path(name)).unwrap();
    assert_eq!(stats("joined.npz"), stats("whole.npz"));
    let sampling = stats("whole.npz").stamp().unwrap().sampling.clone().unwrap();
    assert_eq!((sampling.guidance, sampling.prompts_hash.is_some()), (Some(7.5), true));

    for other in [["--negative-prompt", "word1"], ["--guidance", "2"], ["--clip-skip", "1"]] {
        let words = ["--save-features", "parts/2.safetensors", "--part", "2/2"];
        sample(&[&words[..], &other].concat());
        fail_with(place.deme(&["fid", "parts", "--save-stats", "mixed.npz"]).args(clip), 2);
    }
}

#[test]
fn prompts_that_are_cut_and_settings_without_effect_are_said() {
    let place = Place::new();
    let long = "a red circle ".repeat(30);
    let (pictures, said) = place.drawn(&["--prompt", &long, "--negative-prompt", &long]);
    for word in [
        "warning: the prompt (\"a red circle",
        "warning: the negative prompt (\"a red",
        "longer than the 77 tokens",
        "its first 75 tokens are kept",
    ] {
        assert!(said.contains(word), "{said}");
    }
    // What is lost has no effect.
    let kept = place.drawn(&["--prompt", &"a red circle ".repeat(25), "--negative-prompt", &long]);
    assert_eq!(kept.0, pictures);
    assert!(!kept.1.contains("the prompt ("), "{}", kept.1);
    let (_, said) = place.drawn(&["--prompt", &long, "--quiet"]);
    assert_eq!(said, "");

    // Of many the first few are named.
    let many: String = (0..8).map(|i| format!("word{i} {long}\n")).collect();
    place.write("many.txt", format!("short\n{many}").as_bytes());
    let (_, said) = place.drawn(&["--prompts", "many.txt", "--num", "1"]);
    assert_eq!(said.matches("warning: prompt ").count(), 5, "{said}");
    assert!(said.contains("prompt 2 (\"word0") && !said.contains("prompt 1 ("), "{said}");
    assert!(said.contains("3 further prompts are cut"), "{said}");

    let prompt = ["--prompt", PROMPTS[0], "--guidance"];
    let of = |words: &[&str]| place.drawn(&[&prompt[..], words].concat());
    let (without, said) = of(&["1"]);
    assert!(!said.contains("warning"), "{said}");
    let (with, said) = of(&["1", "--negative-prompt", "word1", "--guidance-rescale", "0.5"]);
    assert_eq!(with, without);
    assert!(said.contains("--negative-prompt has no effect at --guidance 1"), "{said}");
    assert!(said.contains("--guidance-rescale has no effect at --guidance 1"), "{said}");
    let (_, said) = of(&["0"]);
    assert!(said.contains("the prompts have no effect at --guidance 0"), "{said}");
}

#[test]
fn impossible_settings_are_refused_before_work() {
    let place = Place::new();
    let refuses = |words: &[&str], said: &[&str]| {
        place.refuses(&[&["--model", "sd", "--prompt", "x"], words].concat(), said);
    };
    refuses(&["--guidance", "-2"], &["--guidance -2", "change places, with --guidance 3"]);
    refuses(&["--guidance", "nan"], &["guidance scale NaN is no finite number"]);
    refuses(&["--guidance", "inf"], &["guidance scale inf is no finite number"]);
    refuses(&["--guidance-rescale", "1.5"], &["guidance rescale 1.5", "[0, 1]"]);
    refuses(&["--clip-skip", "3"], &["3 layers cannot be skipped", "has 2"]);
    // Three blocks of the UNet and two of the autoencoder halve the size three times.
    refuses(&["--height", "36"], &["height 36 and width 32", "multiples of 8", "--height 32"]);
    refuses(&["--width", "3"], &["height 32 and width 3:", "--width 8"]);
    refuses(&["--height", "0"], &["height 0", "--height 8"]);
    refuses(&["--num", "0"], &["--num 0 asks for no picture"]);
    refuses(&["--batch-size", "0"], &["batch size is 0"]);
    refuses(&["--eta", "0.5", "--sampler", "euler"], &["only ddim has an eta"]);
    refuses(&["--steps", "2000"], &["2000 steps", "1000"]);
    refuses(&["--prompts", "prompts.txt"], &["--prompt", "--prompts", "cannot be used with"]);
}

#[test]
fn wrong_files_of_prompts_are_refused_with_the_line() {
    let place = Place::new();
    place.write("broken.txt", b"good\nbad \xff\n");
    place.write("gap.txt", b"one\n\nthree\n");
    place.write("empty.txt", b"\n");
    place.write("captions.jsonl", b"{\"text\": \"good\"}\n{\"caption\": \"x\"}\n");
    for (file, said) in [
        ("broken.txt", "broken.txt, line 2: it is not valid UTF-8"),
        ("gap.txt", "gap.txt, line 2: the line is empty"),
        ("empty.txt", "empty.txt holds no prompt"),
        ("captions.jsonl", "captions.jsonl, line 2: it has no field `text`"),
        ("none.txt", "none.txt"),
    ] {
        place.refuses(&["--model", "sd", "--prompts", file], &[said]);
    }
}

#[test]
fn models_of_the_other_kind_are_refused() {
    let place = Place::new();
    let unconditional = support::fixtures().join("unet2d/cifar10_like");
    let unconditional = unconditional.to_str().unwrap();
    place.refuses(
        &["--model", unconditional, "--prompt", "x"],
        &["is no text-to-image model", "leave out the prompt"],
    );
    for (setting, value) in [
        ("--negative-prompt", "x"),
        ("--guidance", "7.5"),
        ("--guidance-rescale", "0"),
        ("--clip-skip", "1"),
    ] {
        let said = format!("{setting} means nothing without a prompt");
        place.refuses(&["--model", unconditional, setting, value], &[&said]);
    }
    place.refuses(
        &["--model", "sd"],
        &["sd is a text-to-image model", "no prompt", "--prompt TEXT"],
    );
    place.write("sd.safetensors", b"anything");
    place.refuses(&["--model", "sd.safetensors"], &["single file", "no prompt"]);
    place.refuses(&["--model", "sd.safetensors", "--prompt", "x"], &["sd.safetensors"]);
    place.refuses(&["--model", "none", "--prompt", "x"], &["there is no model at none"]);
    // Sizes are no matter of texts.
    succeed(&mut place.sample(&[
        "--model",
        unconditional,
        "--num",
        "1",
        "--out",
        "a",
        "--width",
        "8",
    ]));
    assert!(!place.path("a/metadata.jsonl").exists());
    assert_eq!(size_of(&place.path("a/0.png")), [8, 16]);
}

#[test]
fn a_wrong_or_missing_part_of_a_pipeline_is_named() {
    for (file, said) in [
        ("model_index.json", "has no model index: model_index.json is not there"),
        ("unet/config.json", "has no unet: unet/config.json"),
        ("vae/config.json", "has no vae: vae/config.json"),
        ("text_encoder/config.json", "has no text_encoder"),
        ("tokenizer/tokenizer.json", "neither tokenizer.json nor vocab.json"),
        ("scheduler/scheduler_config.json", "has no scheduler"),
        ("vae/diffusion_pytorch_model.safetensors", "sd/vae"),
    ] {
        let place = Place::new();
        fs::remove_file(place.path("sd").join(file)).unwrap();
        place.refuses(&["--model", "sd", "--prompt", "x"], &[said]);
    }
    let place = Place::new();
    let wider = ClipTextModel::new(
        &deme_clip::ClipTextConfig {
            hidden_size: 16,
            intermediate_size: 16,
            num_attention_heads: 2,
            num_hidden_layers: 1,
            vocab_size: 600,
            ..Default::default()
        },
        &mut Init::new(1, &Device::flex()),
    );
    wider.unwrap().save(&place.path("sd/text_encoder")).unwrap();
    place.refuses(
        &["--model", "sd", "--prompt", "x"],
        &["the parts of sd are not of one model", "width 24", "width 16"],
    );

    let place = Place::new();
    let weights = place.path("sd/unet/diffusion_pytorch_model.safetensors");
    let mut state = StateDict::load(&weights).unwrap();
    state.remove("conv_in.bias");
    state.save(&weights).unwrap();
    place.refuses(&["--model", "sd", "--prompt", "x"], &["sd/unet", "conv_in.bias"]);
    place.edit("sd/model_index.json", |index| index["unet"][1] = "UNet3DModel".into());
    place.refuses(&["--model", "sd", "--prompt", "x"], &["UNet3DModel"]);
}

/// A pipeline that draws pixels, without an autoencoder.
#[test]
fn a_model_of_pixels_draws_without_an_autoencoder() {
    let place = Place::new();
    let config = UNet2DConditionConfig::from_json(
        r#"{"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "in_channels": 3, "out_channels": 3,
            "cross_attention_dim": 24}"#,
    )
    .unwrap();
    let device = Device::flex();
    let sd = TextToImagePipeline::load(place.path("sd").to_str().unwrap(), &device).unwrap();
    let unet = UNet2DConditionModel::new(&config, &mut Init::new(3, &device)).unwrap();
    TextToImagePipeline { unet, vae: None, ..sd }.save(&place.path("pixels")).unwrap();
    let model = ["--model", "pixels", "--prompt", PROMPTS[0]];
    succeed(place.sample(&["--out", "drawn", "--num", "2"]).args(model));
    assert_eq!(size_of(&place.path("drawn/1.png")), [16, 16]);
    let odd = [&model[..], &["--height", "17"]].concat();
    place.refuses(&odd, &["multiples of 2", "--height 16"]);
}

/// A whole pipeline of the hub is found in the cache when there is a prompt.
#[test]
fn a_pipeline_of_the_hub_is_found_in_the_cache() {
    let place = Place::new();
    let repo = place.path("home/hub/models--somebody--sd");
    let commit = "0123456789012345678901234567890123456789";
    copy_folder(&place.path("sd"), &repo.join("snapshots").join(commit));
    fs::create_dir(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    let sample = |words: &[&str]| {
        let mut command = place.sample(words);
        command.env("HF_HOME", place.path("home")).env("HF_HUB_OFFLINE", "1");
        command
    };
    let hub = ["--model", "hub:somebody/sd", "--out", "hub"];
    succeed(sample(&hub).args(["--prompt", PROMPTS[0]]));
    let expected = place.picture(&["--prompt", PROMPTS[0]]);
    assert_eq!(fs::read(place.path("hub/0.png")).unwrap(), expected);
    let said = fail_with(&mut sample(&hub), 2);
    assert!(said.contains("no prompt"), "{said}");
    // A part that is not in the cache would have to be fetched.
    fs::remove_file(repo.join("snapshots").join(commit).join("vae/config.json")).unwrap();
    let said = fail_with(sample(&hub).args(["--prompt", "x"]), 2);
    assert!(said.contains("not completely in the cache"), "{said}");
}

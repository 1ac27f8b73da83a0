//! Models of the Hugging Face hub: `hub:owner/name[@revision]`.
//!
//! A model that is in the cache is used as it is, without a request; else its config files and one set of
//! weights are downloaded into that cache, where Python's libraries find them too. Not here: reading the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

/// What begins the name of a model of the hub.
const PREFIX: &str = "hub:";
const DEFAULT_REVISION: &str = "main";
/// Set to 1, nothing is requested from the network.
const OFFLINE: &str = "HF_HUB_OFFLINE";
const ENDPOINT: &str = "HF_ENDPOINT";

/// A model of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `owner/name`.
    pub repo: String,
    /// A branch, a tag or a full commit hash; `main` when not given.
    pub revision: String,
}

impl HubModel {
    /// Reads `hub:owner/name[@revision]`; `None` for anything that does not begin with `hub:`.
    ///
    /// # Errors
    /// [`HubError::Name`] when the rest is no such name.
    pub fn parse(source: &str) -> Option<Result<Self, HubError>> {
        let name = source.strip_prefix(PREFIX)?;
        let (repo, revision) = name.split_once('@').unwrap_or((name, DEFAULT_REVISION));
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.contains("..")
        };
        let is_repo = repo.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name));
        if !is_repo || !revision.split('/').all(plain) {
            return Some(Err(HubError::Name { found: source.to_owned() }));
        }
        Some(Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() }))
    }
}

/// Which files of a repository are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// A diffusion model: a UNet in diffusers' format, alone or in its pipeline.
    Diffusion,
    /// Stable Diffusion in diffusers' format: UNet, autoencoder, text encoder, tokenizer and scheduler.
    TextToImage,
    /// A network that looks at pictures or texts, in transformers' or open_clip's format: CLIP, DINOv2.
    Encoder,
}

/// The hub: a cache folder and, unless offline, the network.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: Cache,
    endpoint: Option<String>,
    offline: bool,
}

impl Hub {
    /// The cache under `HF_HOME` (default `~/.cache/huggingface`), the server `HF_ENDPOINT`; offline when
    /// `HF_HUB_OFFLINE` is 1, true, yes or on.
    pub fn from_env() -> Self {
        let offline = std::env::var(OFFLINE).unwrap_or_default().to_lowercase();
        Self {
            cache: Cache::from_env(),
            endpoint: std::env::var(ENDPOINT).ok(),
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
        }
    }

    /// A cache folder (the one that holds `models--owner--name`), and no network.
    pub fn offline(cache: &Path) -> Self {
        Self { cache: Cache::new(cache.to_owned()), endpoint: None, offline: true }
    }

    /// A cache folder (the one that holds `models--owner--name`) and a server.
    pub fn at(cache: &Path, endpoint: &str) -> Self {
        let cache = Cache::new(cache.to_owned());
        Self { cache, endpoint: Some(endpoint.to_owned()), offline: false }
    }

    /// The folder of a model's files: from the cache when it holds them, else after a download.
    ///
    /// # Errors
    /// [`HubError::NotCached`] offline; [`HubError::Request`] when the network or the repository fails;
    /// [`HubError::NoModel`] when the repository has no model of that kind.
    pub fn folder_of(&self, model: &HubModel, kind: ModelKind) -> Result<PathBuf, HubError> {
        if let Some(folder) = self.cached(model, kind) {
            return Ok(folder);
        }
        if self.offline {
            let (repo, revision) = (model.repo.clone(), model.revision.clone());
            return Err(HubError::NotCached { repo, revision, cache: self.cache.path().clone() });
        }
        self.download(model, kind)
    }

    /// The snapshot in the cache, if it is complete.
    fn cached(&self, model: &HubModel, kind: ModelKind) -> Option<PathBuf> {
        let repo = self.cache.path().join(repo_of(model, &model.revision).folder_name());
        let commit = fs::read_to_string(repo.join("refs").join(&model.revision));
        let commit = commit.unwrap_or_else(|_| model.revision.clone());
        let folder = repo.join("snapshots").join(commit.trim());
        let files = ModelFiles::among(&files_in(&folder), kind)?;
        let complete = files
            .shards(&folder)
            .is_some_and(|shards| shards.iter().all(|shard| folder.join(shard).is_file()));
        complete.then_some(folder)
    }

    fn download(&self, model: &HubModel, kind: ModelKind) -> Result<PathBuf, HubError> {
        let failed = |source| HubError::Request {
            repo: model.repo.clone(),
            revision: model.revision.clone(),
            source: Box::new(source),
        };
        let api = self.api().map_err(failed)?;
        let info = api.repo(repo_of(model, &model.revision)).info().map_err(failed)?;
        let listed = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let no_model = || HubError::NoModel {
            repo: model.repo.clone(),
            revision: model.revision.clone(),
            expected: kind.expected(),
        };
        let files = ModelFiles::among(&listed, kind).ok_or_else(no_model)?;

        // All files of one commit, whatever happens to the branch meanwhile.
        let at_commit = api.repo(repo_of(model, &info.sha));
        for file in files.configs.iter().chain(&files.weights) {
            at_commit.get(file).map_err(failed)?;
        }
        let cache = self.cache.repo(repo_of(model, &info.sha));
        let folder = cache.pointer_path(&info.sha);
        for shard in files.shards(&folder).ok_or_else(no_model)? {
            at_commit.get(&shard).map_err(failed)?;
        }
        let cache = self.cache.repo(repo_of(model, &model.revision));
        cache.create_ref(&info.sha).map_err(|error| failed(ApiError::IoError(error)))?;
        Ok(folder)
    }

    fn api(&self) -> Result<Api, ApiError> {
        let mut builder =
            ApiBuilder::from_cache(self.cache.clone()).with_progress(false).with_retries(3);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        builder.build()
    }
}

fn repo_of(model: &HubModel, revision: &str) -> Repo {
    Repo::with_revision(model.repo.clone(), RepoType::Model, revision.to_owned())
}

/// The files of a repository that make a model, by their paths in it.
#[derive(Debug, PartialEq, Eq)]
struct ModelFiles {
    configs: Vec<String>,
    /// For each network a weights file, or the index of a sharded one.
    weights: Vec<String>,
}

/// A UNet's weights by preference, as diffusers prefers them.
const DIFFUSION_WEIGHTS: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
];

/// The weights of a part of a pipeline by preference; half precision where there is nothing else.
const PART_WEIGHTS: [(&str, [&str; 4]); 3] = [
    (
        "unet",
        [
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16.bin",
        ],
    ),
    (
        "vae",
        [
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16.bin",
        ],
    ),
    (
        "text_encoder",
        [
            "model.safetensors",
            "pytorch_model.bin",
            "model.fp16.safetensors",
            "pytorch_model.fp16.bin",
        ],
    ),
];

/// The configs of a pipeline's parts, all of which must be there.
const PART_CONFIGS: [&str; 5] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
];

/// An encoder's weights by preference; open_clip's last, as a repository may hold both.
const ENCODER_WEIGHTS: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];

impl ModelKind {
    /// The files that must be there, for an error.
    fn expected(self) -> String {
        let (configs, weights) = match self {
            Self::Diffusion => ("unet/config.json or config.json", DIFFUSION_WEIGHTS.join(" or ")),
            Self::Encoder => ("config.json or open_clip_config.json", ENCODER_WEIGHTS.join(" or ")),
            Self::TextToImage => {
                return format!(
                    "there must be {}, a tokenizer, and weights beside each config",
                    PART_CONFIGS.join(", ")
                );
            }
        };
        format!("there must be {configs}, with {weights} beside it")
    }
}

impl ModelFiles {
    /// Chooses among a listing; `None` without a config and weights.
    fn among(listing: &BTreeSet<String>, kind: ModelKind) -> Option<Self> {
        let first = |names: Vec<String>| names.into_iter().find(|name| listing.contains(name));
        let (mut configs, weights, optional) = match kind {
            ModelKind::Diffusion => {
                let unet = ["unet/", ""]
                    .into_iter()
                    .find(|folder| listing.contains(&format!("{folder}config.json")))?;
                let optional = vec![
                    "model_index.json",
                    "scheduler/scheduler_config.json",
                    "scheduler_config.json",
                ];
                let weights = DIFFUSION_WEIGHTS.map(|name| format!("{unet}{name}")).to_vec();
                (vec![format!("{unet}config.json")], vec![first(weights)?], optional)
            }
            ModelKind::TextToImage => {
                if !PART_CONFIGS.iter().all(|config| listing.contains(*config)) {
                    return None;
                }
                let weights = PART_WEIGHTS.iter().map(|(part, names)| {
                    first(names.map(|name| format!("{part}/{name}")).to_vec())
                });
                let optional = vec![
                    "tokenizer/tokenizer.json",
                    "tokenizer/vocab.json",
                    "tokenizer/merges.txt",
                    "tokenizer/tokenizer_config.json",
                    "tokenizer/special_tokens_map.json",
                    "tokenizer/added_tokens.json",
                ];
                if !optional[..2].iter().any(|file| listing.contains(*file)) {
                    return None;
                }
                let configs = PART_CONFIGS.map(str::to_owned).to_vec();
                (configs, weights.collect::<Option<_>>()?, optional)
            }
            ModelKind::Encoder => {
                let config = ["config.json", "open_clip_config.json"];
                let config = config.into_iter().find(|name| listing.contains(*name))?;
                let optional = vec![
                    "open_clip_config.json",
                    "preprocessor_config.json",
                    "tokenizer.json",
                    "vocab.json",
                    "merges.txt",
                ];
                let weights = ENCODER_WEIGHTS.map(str::to_owned).to_vec();
                (vec![config.to_owned()], vec![first(weights)?], optional)
            }
        };
        let optional = optional.into_iter().filter(|path| listing.contains(*path));
        configs.extend(optional.map(str::to_owned));
        Some(Self { configs, weights })
    }

    /// The shards that the indices name, or none for single files; `None` for an unreadable index.
    fn shards(&self, folder: &Path) -> Option<BTreeSet<String>> {
        let indices = self.weights.iter().filter(|weights| weights.ends_with(".index.json"));
        let mut shards = BTreeSet::new();
        for weights in indices {
            let index = fs::read_to_string(folder.join(weights)).ok()?;
            let index: serde_json::Value = serde_json::from_str(&index).ok()?;
            let (beside, _) = weights.split_at(weights.rfind('/').map_or(0, |slash| slash + 1));
            for name in index.get("weight_map")?.as_object()?.values() {
                let name = name.as_str()?;
                if name.contains(['/', '\\']) || name == ".." {
                    return None;
                }
                shards.insert(format!("{beside}{name}"));
            }
        }
        Some(shards)
    }
}

/// Files in a folder and its direct subfolders, as paths with `/`; empty when there is no folder.
fn files_in(folder: &Path) -> BTreeSet<String> {
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
    };
    let mut files = BTreeSet::new();
    for (path, name) in entries(folder) {
        if path.is_file() {
            files.insert(name);
        } else {
            let inner = entries(&path).filter(|(path, _)| path.is_file());
            files.extend(inner.map(|(_, file)| format!("{name}/{file}")));
        }
    }
    files
}

/// Why a model of the hub could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not the name of a model.
    #[error("`{found}` names no model of the hub; write hub:owner/name or hub:owner/name@revision")]
    Name {
        /// What was given.
        found: String,
    },
    /// Offline and not in the cache.
    #[error(
        "{repo} (revision {revision}) is not completely in the cache {}, and HF_HUB_OFFLINE forbids to fetch \
         it: unset it once, or give the path of a local folder instead",
        cache.display()
    )]
    NotCached {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The network, the server or the disk failed.
    #[error(
        "cannot fetch {repo} (revision {revision}) from the hub: {source}. Without a network, copy its folder \
         here by other means and give that folder's path instead of hub:{repo}"
    )]
    Request {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What hf-hub found.
        source: Box<ApiError>,
    },
    /// A repository without a model of the wanted kind.
    #[error("{repo} (revision {revision}) holds no model that can be read: {expected}")]
    NoModel {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The files that must be there.
        expected: String,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache as Python's and Rust's libraries lay it out; returns the snapshot's folder.
    fn cached(cache: &Path, revision: Option<&str>, files: &[(&str, &str)]) -> PathBuf {
        let repo = cache.join("models--someone--some-model");
        if let Some(revision) = revision {
            let reference = repo.join("refs").join(revision);
            fs::create_dir_all(reference.parent().unwrap()).unwrap();
            fs::write(reference, COMMIT).unwrap();
        }
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        for (path, text) in files {
            let path = snapshot.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        snapshot
    }

    fn model(source: &str) -> HubModel {
        HubModel::parse(source).unwrap().unwrap()
    }

    const FLAT: [(&str, &str); 2] =
        [("config.json", "{}"), ("diffusion_pytorch_model.safetensors", "")];
    const INDEX: &str = r#"{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}"#;
    const SHARDED: [(&str, &str); 4] = [
        ("unet/config.json", "{}"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", INDEX),
        ("unet/part-1.safetensors", ""),
        ("unet/part-2.safetensors", ""),
    ];

    #[test]
    fn names_are_parsed() {
        assert!(HubModel::parse("some/folder").is_none());
        let plain = model("hub:someone/some-model");
        assert_eq!((plain.repo.as_str(), plain.revision.as_str()), ("someone/some-model", "main"));
        assert_eq!(model("hub:someone/some-model@refs/pr/1").revision, "refs/pr/1");
    }

    #[test]
    fn anything_else_after_the_prefix_is_refused() {
        for bad in
            ["hub:", "hub:model", "hub:a/b/c", "hub:a/../b", "hub:a/b@", "hub:/b", "hub:a b/c"]
        {
            let error = HubModel::parse(bad).unwrap().unwrap_err();
            assert!(matches!(&error, HubError::Name { found } if found == bad), "{error}");
        }
    }

    #[test]
    fn a_cached_model_is_found_by_branch_and_by_commit_without_a_network() {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cached(cache.path(), Some("main"), &FLAT);
        let hub = Hub::offline(cache.path());
        assert_eq!(
            hub.folder_of(&model("hub:someone/some-model"), ModelKind::Diffusion).unwrap(),
            snapshot
        );
        let by_commit = model(&format!("hub:someone/some-model@{COMMIT}"));
        assert_eq!(hub.folder_of(&by_commit, ModelKind::Diffusion).unwrap(), snapshot);
    }

    #[test]
    fn a_cached_model_is_used_even_when_the_server_is_down() {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cached(cache.path(), Some("v1.0"), &SHARDED);
        let hub = Hub::at(cache.path(), "http://127.0.0.1:9");
        assert_eq!(
            hub.folder_of(&model("hub:someone/some-model@v1.0"), ModelKind::Diffusion).unwrap(),
            snapshot
        );
    }

    #[test]
    fn what_is_missing_in_the_cache_is_an_error_offline() {
        for missing in 0..SHARDED.len() {
            let cache = tempfile::tempdir().unwrap();
            let mut files = SHARDED.to_vec();
            files.remove(missing);
            cached(cache.path(), Some("main"), &files);
            let hub = Hub::offline(cache.path());
            let error =
                hub.folder_of(&model("hub:someone/some-model"), ModelKind::Diffusion).unwrap_err();
            assert!(
                matches!(&error, HubError::NotCached { repo, .. } if repo == "someone/some-model")
            );
            assert!(error.to_string().contains("local folder"), "{error}");
        }
    }

    #[test]
    fn an_unreachable_server_is_an_error_that_names_the_model_and_the_way_out() {
        let cache = tempfile::tempdir().unwrap();
        // Nothing listens on the discard port, so no packet leaves this machine.
        let hub = Hub::at(cache.path(), "http://127.0.0.1:9");
        let error =
            hub.folder_of(&model("hub:someone/some-model@v2"), ModelKind::Diffusion).unwrap_err();
        assert!(matches!(&error, HubError::Request { repo, revision, .. }
            if repo == "someone/some-model" && revision == "v2"));
        let text = error.to_string();
        assert!(text.contains("someone/some-model") && text.contains("folder's path"), "{text}");
    }

    #[test]
    fn a_missing_model_is_downloaded_once_into_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(&SHARDED);
        let hub = Hub::at(cache.path(), &server.address);
        let folder = hub.folder_of(&model("hub:someone/some-model"), ModelKind::Diffusion).unwrap();
        let text = fs::read_to_string(folder.join(SHARDED[1].0)).unwrap();
        assert_eq!(text, INDEX);
        let offline = Hub::offline(cache.path());
        assert_eq!(
            offline.folder_of(&model("hub:someone/some-model"), ModelKind::Diffusion).unwrap(),
            folder
        );
    }

    #[test]
    fn an_encoder_comes_with_its_tokenizer_and_no_second_set_of_weights() {
        let cache = tempfile::tempdir().unwrap();
        let files = [
            ("config.json", "{}"),
            ("merges.txt", "a b"),
            ("model.safetensors", "weights"),
            ("pytorch_model.bin", "the same once more"),
        ];
        let server = Server::start(&files);
        let hub = Hub::at(cache.path(), &server.address);
        let folder = hub.folder_of(&model("hub:someone/some-model"), ModelKind::Encoder).unwrap();
        for (name, text) in &files[..3] {
            assert_eq!(&fs::read_to_string(folder.join(name)).unwrap(), text);
        }
        assert!(!folder.join("pytorch_model.bin").exists());
        // A pipeline is no encoder, and an encoder no pipeline.
        let error = hub.folder_of(&model("hub:someone/some-model"), ModelKind::Diffusion);
        assert!(matches!(error, Err(HubError::NoModel { .. })));
    }

    const PIPELINE: [(&str, &str); 12] = [
        ("model_index.json", "{}"),
        ("unet/config.json", "{}"),
        ("vae/config.json", "{}"),
        ("text_encoder/config.json", "{}"),
        ("scheduler/scheduler_config.json", "{}"),
        ("tokenizer/vocab.json", "{}"),
        ("tokenizer/merges.txt", "a b"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "half of it"),
        ("vae/diffusion_pytorch_model.bin", "the whole"),
        ("text_encoder/model.safetensors", "the whole"),
        ("text_encoder/model.fp16.safetensors", "half of it"),
        ("safety_checker/model.safetensors", "what nobody needs"),
    ];

    #[test]
    fn a_pipeline_comes_with_one_set_of_weights_for_each_of_its_parts_and_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(&PIPELINE);
        let hub = Hub::at(cache.path(), &server.address);
        let model = model("hub:someone/some-model");
        let folder = hub.folder_of(&model, ModelKind::TextToImage).unwrap();
        for (name, text) in &PIPELINE[..10] {
            assert_eq!(&fs::read_to_string(folder.join(name)).unwrap(), text);
        }
        for (name, _) in &PIPELINE[10..] {
            assert!(!folder.join(name).exists(), "{name}");
        }
        let offline = Hub::offline(cache.path());
        assert_eq!(offline.folder_of(&model, ModelKind::TextToImage).unwrap(), folder);
    }

    #[test]
    fn a_pipeline_without_one_of_its_parts_is_none() {
        for missing in [0, 1, 2, 3, 4, 5, 7, 8] {
            let mut listing: BTreeSet<String> =
                PIPELINE.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert!(ModelFiles::among(&listing, ModelKind::TextToImage).is_some());
            listing.remove(PIPELINE[missing].0);
            assert_eq!(ModelFiles::among(&listing, ModelKind::TextToImage), None);
        }
        let expected = ModelKind::TextToImage.expected();
        assert!(expected.contains("text_encoder/config.json"), "{expected}");
    }

    #[test]
    fn a_repository_without_a_unet_is_an_error() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(&[("README.md", "a story")]);
        let hub = Hub::at(cache.path(), &server.address);
        let error =
            hub.folder_of(&model("hub:someone/some-model"), ModelKind::Diffusion).unwrap_err();
        assert!(matches!(error, HubError::NoModel { repo, .. } if repo == "someone/some-model"));
    }

    /// As much of the hub as a download needs, on a port of this machine.
    struct Server {
        address: String,
    }

    impl Server {
        fn start(files: &[(&str, &str)]) -> Self {
            use std::io::{BufRead, BufReader, Write};
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
            let files: Vec<(String, String)> = files.iter().map(owned).collect();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    let request = lines.next().unwrap().unwrap();
                    let headers: Vec<String> = lines
                        .map(|line| line.unwrap())
                        .take_while(|line| !line.is_empty())
                        .collect();
                    let path = request.split(' ').nth(1).unwrap();
                    let (status, body) = if path.starts_with("/api/") {
                        let siblings: Vec<_> = files
                            .iter()
                            .map(|(path, _)| serde_json::json!({ "rfilename": path }))
                            .collect();
                        let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
                        ("200 OK", info.to_string())
                    } else {
                        let (_, file) = path.split_once(&format!("/resolve/{COMMIT}/")).unwrap();
                        let (_, text) = files.iter().find(|(path, _)| path == file).unwrap();
                        ("206 Partial Content", text.clone())
                    };
                    // The first request of a file asks for its first byte alone, to learn its size.
                    let first_byte = headers.iter().any(|line| line.ends_with("bytes=0-0"));
                    let sent = if first_byte { body.get(..1).unwrap_or("") } else { &body };
                    write!(
                        stream,
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes 0-0/{}\r\n\
                         x-repo-commit: {COMMIT}\r\netag: \"{}\"\r\nConnection: close\r\n\r\n{sent}",
                        sent.len(),
                        body.len(),
                        path.replace('/', "_"),
                    )
                    .unwrap();
                }
            });
            Self { address }
        }
    }
}

//! Extractors as the command line names them, and where their weights lie.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use deme_diffusion::hub::ModelKind;
use deme_eval::extractor_config::{INCEPTION_FILE, torch_inception_file};
use deme_eval::{
    ExtractorConfig, FeatureExtractor, ImageFeatures, InceptionBlock, InceptionProtocol,
};

use sha2::{Digest, Sha256};

use crate::cli::{ExtractorArguments, ExtractorName, ResizingName};
use crate::diagnostics::Problem;

/// The extractor that the arguments of a command name.
///
/// # Errors
/// [`Problem::Usage`] for an argument that the extractor does not have, or lacks.
pub fn of_arguments(arguments: &ExtractorArguments) -> Result<ExtractorConfig, Problem> {
    let ExtractorArguments { extractor, weights, dims, resizing, architecture } = arguments;
    let name = match extractor {
        ExtractorName::Inception => "inception",
        ExtractorName::Dinov2 => "dinov2",
        ExtractorName::Clip => "clip",
    };
    let given = [
        ("--dims", dims.is_some(), ExtractorName::Inception),
        ("--resizing", resizing.is_some(), ExtractorName::Inception),
        ("--architecture", architecture.is_some(), ExtractorName::Clip),
    ];
    let foreign = given.into_iter().find(|(_, given, owner)| *given && owner != extractor);
    if let Some((argument, ..)) = foreign {
        return Err(Problem::Usage {
            message: format!("{argument} means nothing to --extractor {name}"),
            help: format!("leave {argument} away, or name another extractor"),
        });
    }
    let needed = || {
        weights.clone().ok_or_else(|| Problem::Usage {
            message: format!("--extractor {name} needs its weights"),
            help: "give a folder, a file or hub:owner/name with --weights".into(),
        })
    };
    Ok(match extractor {
        ExtractorName::Inception => ExtractorConfig::Inception {
            weights: weights.clone(),
            block: block_of(dims.unwrap_or(InceptionBlock::default().dim()))?,
            protocol: match resizing {
                Some(ResizingName::CleanFid) => InceptionProtocol::CleanFid,
                Some(ResizingName::PytorchFid) | None => InceptionProtocol::PytorchFid,
            },
        },
        ExtractorName::Dinov2 => ExtractorConfig::Dinov2 { weights: needed()? },
        ExtractorName::Clip => ExtractorConfig::Clip {
            weights: needed()?,
            architecture: architecture.clone(),
            features: ImageFeatures::default(),
        },
    })
}

fn block_of(dims: usize) -> Result<InceptionBlock, Problem> {
    let found = InceptionBlock::ALL.into_iter().find(|block| block.dim() == dims);
    found.ok_or_else(|| Problem::Usage {
        message: format!("--dims {dims} is no block of Inception-v3"),
        help: "choose 64, 192, 768 or 2048; the FID is on 2048".into(),
    })
}

/// Loads an extractor.
pub fn open(
    config: &ExtractorConfig,
    device: &Device,
) -> Result<Box<dyn FeatureExtractor>, Problem> {
    Ok(config.open(&weights_path(config)?, device)?)
}

/// Where an extractor's weights lie.
///
/// # Errors
/// [`Problem::Usage`] when Inception's are not given and not where torch keeps them.
pub fn weights_path(config: &ExtractorConfig) -> Result<PathBuf, Problem> {
    if let Some(weights) = config.weights() {
        return resolve(weights);
    }
    let expected = torch_inception_file();
    match &expected {
        Some(file) if file.is_file() => Ok(file.clone()),
        _ => Err(Problem::Usage {
            message: format!(
                "the weights of Inception-v3 are not at {}",
                expected.map_or("the place where torch keeps them".into(), |file| file
                    .display()
                    .to_string())
            ),
            help: format!(
                "give pytorch-fid's {INCEPTION_FILE} with --weights (in a recipe: \
                 evaluation.extractor.weights); whoever has run pytorch-fid has it in torch's cache"
            ),
        }),
    }
}

/// The local path of weights: the path itself, or the cached snapshot of `hub:owner/name`.
pub fn resolve(source: &str) -> Result<PathBuf, Problem> {
    Ok(deme_diffusion::resolve(source, ModelKind::Encoder)?)
}

/// SHA-256, in hex, of a file, or of the names and contents of all files in a folder and its subfolders.
pub fn content_hash(path: &Path) -> Result<String, Problem> {
    let mut hasher = Sha256::new();
    add_contents(&mut hasher, path)?;
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add_contents(hasher: &mut Sha256, path: &Path) -> Result<(), Problem> {
    let failed = |error| Problem::read(path, error);
    if !path.is_dir() {
        let mut file = std::fs::File::open(path).map_err(failed)?;
        return std::io::copy(&mut file, &mut Hashing(hasher)).map(|_| ()).map_err(failed);
    }
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        hasher.update(entry.file_name().as_encoded_bytes());
        hasher.update([0]);
        add_contents(hasher, &entry.path())?;
    }
    Ok(())
}

/// A hash as something to write to.
struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn arguments(extractor: ExtractorName) -> ExtractorArguments {
        ExtractorArguments {
            extractor,
            weights: None,
            dims: None,
            resizing: None,
            architecture: None,
        }
    }

    #[test]
    fn the_fid_is_what_nothing_is_said_of() {
        let config = of_arguments(&arguments(ExtractorName::Inception)).unwrap();
        let expected = ExtractorConfig::Inception {
            weights: None,
            block: InceptionBlock::Pool3,
            protocol: InceptionProtocol::PytorchFid,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn weights_are_known_by_their_contents() {
        let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for folder in [&a, &b] {
            std::fs::create_dir(folder.path().join("inner")).unwrap();
            std::fs::write(folder.path().join("inner/config.json"), "{}").unwrap();
            std::fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
        }
        let hash = |path: &Path| content_hash(path).unwrap();
        assert_eq!(hash(a.path()), hash(b.path()));
        std::fs::write(b.path().join("inner/config.json"), "{ }").unwrap();
        assert_ne!(hash(a.path()), hash(b.path()));
        let file = |folder: &tempfile::TempDir| hash(&folder.path().join("model.safetensors"));
        assert_eq!(file(&a), file(&b));
        assert!(content_hash(&a.path().join("nothing")).is_err());
    }

    #[test]
    fn what_an_extractor_does_not_have_is_refused() {
        let (mut dims, mut architecture) =
            (arguments(ExtractorName::Clip), arguments(ExtractorName::Dinov2));
        dims.dims = Some(64);
        architecture.architecture = Some("ViT-B-32".into());
        let mut inception = architecture.clone();
        inception.extractor = ExtractorName::Inception;
        for wrong in [dims, architecture, inception] {
            let error = of_arguments(&wrong).unwrap_err();
            assert!(error.to_string().contains("means nothing"), "{error}");
        }
        let mut odd = arguments(ExtractorName::Inception);
        odd.dims = Some(2047);
        assert!(of_arguments(&odd).unwrap_err().to_string().contains("2047"));
        for lacking in [ExtractorName::Clip, ExtractorName::Dinov2] {
            let error = of_arguments(&arguments(lacking)).unwrap_err();
            assert!(error.to_string().contains("needs its weights"), "{error}");
        }
    }
}

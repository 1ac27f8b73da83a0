//! What a text-to-image model is asked for: prompts, guidance, and what should be said about them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use burn::tensor::Tensor;
use deme_data::read_prompts;
use deme_diffusion::{CheckpointError, GuidanceConfig, PromptTokenizer, TextToImagePipeline};
use sha2::{Digest, Sha256};

use crate::cli::TextArguments;
use crate::diagnostics::Problem;
use crate::feature_sets::hex;

/// Prompts that are too long are named up to this many.
const LISTED: usize = 5;
/// Letters of a prompt that an error or a warning shows.
const SHOWN: usize = 60;

/// The prompts of all pictures.
pub struct Prompts {
    texts: Vec<String>,
    /// `None` where guidance does not look at it.
    negative: Option<String>,
    /// How strongly they guide.
    pub guidance: GuidanceConfig,
    /// Layers of the text encoder that are left out.
    pub clip_skip: usize,
    /// What was asked for without effect.
    idle: Vec<&'static str>,
}

impl Prompts {
    /// What the arguments ask for; `None` without prompts.
    ///
    /// # Errors
    /// [`Problem::Usage`] for settings without prompts and negative guidance, [`Problem::Guidance`],
    /// [`Problem::Data`] for a file of prompts.
    pub fn of_arguments(arguments: &TextArguments) -> Result<Option<Self>, Problem> {
        let TextArguments { prompt, prompts, negative_prompt, .. } = arguments;
        let texts = match (prompt, prompts) {
            (Some(prompt), _) => vec![prompt.clone()],
            (None, Some(file)) => read_prompts(file)?,
            (None, None) => return no_settings(arguments).map(|()| None),
        };
        let default = GuidanceConfig::default();
        let guidance = GuidanceConfig {
            scale: arguments.guidance.unwrap_or(default.scale),
            rescale: arguments.guidance_rescale.unwrap_or(default.rescale),
        };
        guidance.check()?;
        if guidance.scale < 0.0 {
            return Err(Problem::Usage {
                message: format!("--guidance {} leads away from the prompt", guidance.scale),
                help: format!(
                    "for that, let prompt and negative prompt change places, with --guidance {}: it is the \
                     same prediction",
                    1.0 - guidance.scale
                ),
            });
        }
        let mut idle = Vec::new();
        if guidance.scale == 0.0 && guidance.rescale == 0.0 && texts.iter().any(|t| !t.is_empty()) {
            idle.push(
                "the prompts have no effect at --guidance 0: it is the negative prompt alone",
            );
        }
        if guidance.scale == 1.0 && negative_prompt.is_some() {
            idle.push("--negative-prompt has no effect at --guidance 1: it is the prompt alone");
        }
        if guidance.scale == 1.0 && guidance.rescale != 0.0 {
            idle.push("--guidance-rescale has no effect at --guidance 1");
        }
        let negative = negative_prompt.clone().unwrap_or_default();
        Ok(Some(Self {
            texts,
            negative: guidance.needs_unconditional().then_some(negative),
            guidance,
            clip_skip: arguments.clip_skip.unwrap_or(0),
            idle,
        }))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.texts.len()
    }

    /// The prompt of picture `position`.
    pub fn of_picture(&self, position: usize) -> &str {
        &self.texts[position % self.texts.len()]
    }

    /// A hash of all of them and of the negative one, by which sets of pictures are told apart.
    pub fn hash(&self) -> String {
        let all = serde_json::to_vec(&(&self.texts, &self.negative)).expect("strings are JSON");
        hex(&Sha256::digest(all))
    }

    /// Hidden states of the negative prompt, `[1, L, width]`, where guidance looks at it.
    ///
    /// # Errors
    /// As [`TextToImagePipeline::encode_prompts`].
    pub fn negative_states(
        &self,
        pipeline: &TextToImagePipeline,
    ) -> Result<Option<Tensor<3>>, CheckpointError> {
        let encode = |text| self.states_of(text, pipeline);
        self.negative.as_deref().map(encode).transpose()
    }

    /// Hidden states of the prompts of these pictures, `[pictures, L, width]`.
    ///
    /// # Errors
    /// As [`TextToImagePipeline::encode_prompts`].
    pub fn states(
        &self,
        pipeline: &TextToImagePipeline,
        positions: Range<usize>,
    ) -> Result<Tensor<3>, CheckpointError> {
        // Each by itself, so that no picture depends on its neighbours, and no two alike twice.
        let mut known: BTreeMap<&str, Tensor<3>> = BTreeMap::new();
        let mut states = Vec::new();
        for position in positions {
            let text = self.of_picture(position);
            if let Entry::Vacant(unknown) = known.entry(text) {
                unknown.insert(self.states_of(text, pipeline)?);
            }
            states.push(known[text].clone());
        }
        Ok(Tensor::cat(states, 0))
    }

    fn states_of(
        &self,
        text: &str,
        pipeline: &TextToImagePipeline,
    ) -> Result<Tensor<3>, CheckpointError> {
        Ok(pipeline.encode_prompts(&[text], self.clip_skip)?.hidden_states)
    }

    /// What a user should know before the first picture is drawn: settings without effect, prompts that are cut.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`] for a prompt the tokenizer refuses.
    pub fn warnings(&self, tokenizer: &PromptTokenizer) -> Result<Vec<String>, CheckpointError> {
        let mut warnings: Vec<String> = self.idle.iter().map(|&idle| idle.to_owned()).collect();
        let (length, kept) = (tokenizer.context_length(), tokenizer.context_length() - 2);
        let cut = |what: &str, text: &str| {
            format!(
                "{what} ({}) is longer than the {length} tokens the text encoder reads; its first {kept} tokens \
                 are kept, the rest is lost",
                shown(text)
            )
        };
        if let Some(negative) = &self.negative
            && tokenizer.encode(&[negative])?.truncated[0]
        {
            warnings.push(cut("the negative prompt", negative));
        }
        let truncated = tokenizer.encode(&self.texts)?.truncated;
        let long: Vec<usize> = (0..self.texts.len()).filter(|&i| truncated[i]).collect();
        for &i in long.iter().take(LISTED) {
            let what = match self.texts.len() {
                1 => "the prompt".to_owned(),
                _ => format!("prompt {}", i + 1),
            };
            warnings.push(cut(&what, &self.texts[i]));
        }
        if long.len() > LISTED {
            warnings.push(format!("{} further prompts are cut likewise", long.len() - LISTED));
        }
        Ok(warnings)
    }
}

/// That nothing was set which needs a prompt.
fn no_settings(arguments: &TextArguments) -> Result<(), Problem> {
    let given = [
        ("--negative-prompt", arguments.negative_prompt.is_some()),
        ("--guidance", arguments.guidance.is_some()),
        ("--guidance-rescale", arguments.guidance_rescale.is_some()),
        ("--clip-skip", arguments.clip_skip.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((setting, _)) => Err(Problem::Usage {
            message: format!("{setting} means nothing without a prompt"),
            help: "give --prompt TEXT or --prompts FILE, or leave it out".into(),
        }),
    }
}

/// A text in quotes, or how it begins.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("\"{}...\"", text[..end].trim_end()),
        None => format!("\"{text}\""),
    }
}

//! Prompts to token ids, padded as the text encoder saw them in training.
//!
//! The UNet looks at the hidden states of the padding too, so with what a row is filled up matters here, other
//! than for CLIP's embeddings: Stable Diffusion 1 pads with the end token, Stable Diffusion 2 with `!`.
//! Not here: how a text becomes tokens (`deme-clip`).

use std::fs;
use std::io::Write;
use std::path::Path;

use deme_clip::{CaptionCleaning, CaptionTokenizer, END_OF_TEXT, EncodedCaptions};
use deme_merge::write_atomically;
use serde_json::{Value, json};

use crate::checkpoint::CheckpointError;

const TOKENIZER: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// All files a tokenizer's folder may have.
pub(super) const FILES: [&str; 6] =
    [TOKENIZER, VOCABULARY, MERGES, CONFIG, SPECIAL_TOKENS, "added_tokens.json"];

/// A tokenizer, its padding and the files it came from.
#[derive(Debug, Clone)]
pub struct PromptTokenizer {
    tokenizer: CaptionTokenizer,
    pad: u32,
    /// Written back byte for byte.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl PromptTokenizer {
    /// Reads the `tokenizer/` folder of a pipeline: `tokenizer.json`, or `vocab.json` and `merges.txt`. Rows get
    /// `context_length` ids, 77 for CLIP.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`], [`CheckpointError::TokenizerFiles`], [`CheckpointError::Io`].
    pub fn load(folder: &Path, context_length: usize) -> Result<Self, CheckpointError> {
        let refused = |source| CheckpointError::Tokenizer {
            folder: Some(folder.to_owned()),
            source: Box::new(source),
        };
        let unusable =
            |reason: String| CheckpointError::TokenizerFiles { folder: folder.to_owned(), reason };
        let tokenizer =
            CaptionTokenizer::load_folder(folder, context_length).map_err(refused)?.ok_or_else(
                || unusable(format!("neither {TOKENIZER} nor {VOCABULARY} and {MERGES} are there")),
            )?;
        let mut files = Vec::new();
        for name in FILES {
            let path = folder.join(name);
            match fs::read(&path) {
                Ok(contents) => files.push((name, contents)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(CheckpointError::Io { path, source }),
            }
        }
        let json = |name: &str| -> Result<Value, CheckpointError> {
            let Some((_, contents)) = files.iter().find(|(file, _)| *file == name) else {
                return Ok(Value::Null);
            };
            serde_json::from_slice(contents)
                .map_err(|error| unusable(format!("{name} is no JSON: {error}")))
        };
        let named = |json: Value| {
            let token = &json["pad_token"];
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        };
        let token = match named(json(CONFIG)?) {
            Some(token) => Some(token),
            None => named(json(SPECIAL_TOKENS)?),
        };
        let [_, end, _] = tokenizer.special_ids();
        let pad = match token.as_deref() {
            None | Some(END_OF_TEXT) => end,
            Some(token) => id_in(token, &json(VOCABULARY)?, &json(TOKENIZER)?)
                .ok_or_else(|| unusable(format!("its pad_token `{token}` is no entry of it")))?,
        };
        Ok(Self { tokenizer, pad, files })
    }

    /// The vocabulary CLIP was published with, padded with the end token: the tokenizer of Stable Diffusion 1.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`] when `context_length` is below 3.
    pub fn published(context_length: usize) -> Result<Self, CheckpointError> {
        let refused =
            |source| CheckpointError::Tokenizer { folder: None, source: Box::new(source) };
        let tokenizer = CaptionTokenizer::published(CaptionCleaning::HuggingFace, context_length)
            .map_err(refused)?;
        let [_, pad, _] = tokenizer.special_ids();
        Ok(Self { tokenizer, pad, files: Vec::new() })
    }

    /// Rows of ids: the start, the prompt, the end, padding. Prompts that are too long lose their last words,
    /// which is noted.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`] when the tokenizer refuses a prompt.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<EncodedCaptions, CheckpointError> {
        let refused =
            |source| CheckpointError::Tokenizer { folder: None, source: Box::new(source) };
        let mut encoded = self.tokenizer.encode(prompts).map_err(refused)?;
        let [_, end, padded_with] = self.tokenizer.special_ids();
        for row in &mut encoded.ids {
            pad_again(row, end, padded_with, self.pad);
        }
        Ok(encoded)
    }

    /// The id that fills rows up.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Ids per row.
    pub fn context_length(&self) -> usize {
        self.tokenizer.context_length()
    }

    /// Entries of the vocabulary: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// Writes the files it was read from, or those transformers' `CLIPTokenizer` reads.
    pub(super) fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        let write = |name: &str, contents: &[u8]| {
            let path = folder.join(name);
            write_atomically(&path, |file| file.write_all(contents))
                .map_err(|source| CheckpointError::Io { path, source })
        };
        if !self.files.is_empty() {
            return self.files.iter().try_for_each(|(name, contents)| write(name, contents));
        }
        let path = folder.join(TOKENIZER);
        self.tokenizer.save(&path).map_err(|source| CheckpointError::Tokenizer {
            folder: Some(folder.to_owned()),
            source: Box::new(source),
        })?;
        // The class `CLIPTokenizer` of transformers 4 reads the older pair of files.
        let text = fs::read(&path).map_err(|source| CheckpointError::Io { path, source })?;
        let json: Value = serde_json::from_slice(&text).expect("a tokenizer.json was just written");
        let merge = |merge: &Value| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!(
                "{} {}",
                pair[0].as_str().unwrap_or_default(),
                pair[1].as_str().unwrap_or_default()
            ),
        };
        let merges = json["model"]["merges"].as_array().map_or(&[][..], Vec::as_slice);
        let merges: String = merges.iter().map(merge).map(|merge| merge + "\n").collect();
        write(VOCABULARY, json["model"]["vocab"].to_string().as_bytes())?;
        write(MERGES, format!("#version: 0.2\n{merges}").as_bytes())?;
        let config = json!({
            "add_prefix_space": false,
            "bos_token": deme_clip::START_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "do_lower_case": true,
            "errors": "replace",
            "model_max_length": self.context_length(),
            "tokenizer_class": "CLIPTokenizer",
        });
        write(CONFIG, format!("{config:#}\n").as_bytes())
    }
}

/// Fills what is behind the end of a row with `pad` instead of `padded_with`.
fn pad_again(row: &mut [u32], end: u32, padded_with: u32, pad: u32) {
    if padded_with == pad {
        return;
    }
    let padding = row.iter().rev().take_while(|&&id| id == padded_with).count();
    // Padded with the end token, the first of the last run of end tokens is the end itself.
    let padding = if padded_with == end { padding.saturating_sub(1) } else { padding };
    let start = row.len() - padding;
    row[start..].fill(pad);
}

/// The id of a token in `vocab.json`, or in `tokenizer.json`.
fn id_in(token: &str, vocabulary: &Value, tokenizer: &Value) -> Option<u32> {
    let added = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let added = added.iter().find(|added| added["content"] == token).map(|added| &added["id"]);
    let id = [&vocabulary[token], &tokenizer["model"]["vocab"][token]]
        .into_iter()
        .chain(added)
        .find_map(Value::as_u64)?;
    u32::try_from(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_replaced_and_nothing_else() {
        let padded = |mut row: Vec<u32>, with, pad| {
            pad_again(&mut row, 9, with, pad);
            row
        };
        assert_eq!(padded(vec![8, 3, 0, 9, 0, 0], 0, 9), [8, 3, 0, 9, 9, 9]);
        assert_eq!(padded(vec![8, 3, 9, 9, 9], 9, 0), [8, 3, 9, 0, 0]);
        assert_eq!(padded(vec![8, 3, 4, 9], 9, 0), [8, 3, 4, 9]);
        assert_eq!(padded(vec![8, 3, 4, 9], 0, 9), [8, 3, 4, 9]);
        assert_eq!(padded(vec![8, 9, 0, 0], 0, 0), [8, 9, 0, 0]);
    }

    #[test]
    fn a_token_is_found_in_either_kind_of_file() {
        let vocabulary = json!({"!": 0});
        let tokenizer = json!({
            "model": {"vocab": {"a": 7}},
            "added_tokens": [{"content": "<pad>", "id": 11}],
        });
        assert_eq!(id_in("!", &vocabulary, &Value::Null), Some(0));
        assert_eq!(id_in("a", &Value::Null, &tokenizer), Some(7));
        assert_eq!(id_in("<pad>", &vocabulary, &tokenizer), Some(11));
        assert_eq!(id_in("b", &vocabulary, &tokenizer), None);
    }
}

//! Captions to token ids: CLIP's byte-pair tokens, `tokenizer.json` files, and a small word-level
//! tokenizer made from captions.
//!
//! Every row is the start of the text, the caption's tokens, the end of the text, padding. Padding is 0
//! where the tokenizer has no `<pad>`. Hugging Face pads OpenAI's models with the end token instead:
//! the text tower reads its state at the first end token and looks only to the left, so that no
//! embedding depends on what stands behind.
//!
//! Hugging Face's and open_clip's tokenizers share the vocabulary but not what they do to a caption
//! before, see [`CaptionCleaning`].

use crate::ClipError;
use crate::byte_pair_vocabulary::BytePairVocabulary;
use crate::caption_cleaning::open_clip_caption;
use serde_json::json;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior, Tokenizer,
};

/// First token of every row.
pub const START_OF_TEXT: &str = "<|startoftext|>";
/// Token behind the caption; the text tower reads its state there.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Stands for words outside the vocabulary.
pub const UNKNOWN: &str = "<unk>";
/// Fills rows up to the context length. Tokenizers without it pad with id 0, as OpenAI's does.
pub const PAD: &str = "<pad>";

/// open_clip's names of start and end.
const OPEN_CLIP_MARKS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

/// Pieces of a caption that are merged to tokens by themselves: English endings, words, single digits,
/// runs of other marks (Radford et al. 2021, the published code).
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What is done to a caption before its bytes are merged to tokens.
///
/// On plain text the two differ where it has typographic quotes, HTML's character references, ligatures
/// or wide letters: those open_clip replaces. `It’s 5 &lt; 6` is `it's 5 < 6` to open_clip and
/// `it’s 5 &lt; 6` to Hugging Face. Both compose accents (NFC), join blanks and take small letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptionCleaning {
    /// As transformers' `CLIPTokenizer`.
    HuggingFace,
    /// As open_clip's `SimpleTokenizer` and OpenAI's own code. Departures: text that was decoded in the
    /// wrong encoding (`cafÃ©`) is not repaired, as the ftfy library does in both; and whether a
    /// character that Unicode got lately is a letter depends on the version of its tables.
    OpenClip,
}

/// A tokenizer and the length of its rows.
#[derive(Debug, Clone)]
pub struct CaptionTokenizer {
    inner: Tokenizer,
    cleaning: CaptionCleaning,
    /// The file it was read from or made as.
    json: Option<Vec<u8>>,
    start: u32,
    end: u32,
    pad: u32,
    context_length: usize,
}

/// Captions as rows of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedCaptions {
    /// One row of `context_length` ids per caption.
    pub ids: Vec<Vec<u32>>,
    /// Which captions were too long and lost their last words.
    pub truncated: Vec<bool>,
}

impl EncodedCaptions {
    /// How many captions lost their last words.
    pub fn truncated_count(&self) -> usize {
        self.truncated.iter().filter(|&&truncated| truncated).count()
    }
}

impl CaptionTokenizer {
    /// Reads a `tokenizer.json`; rows get `context_length` ids (at least 3).
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::Tokenizer`], [`ClipError::MissingToken`],
    /// [`ClipError::Config`].
    pub fn load(path: &Path, context_length: usize) -> Result<Self, ClipError> {
        let json = std::fs::read(path).map_err(|source| ClipError::io(path, source))?;
        Self::from_json(json, context_length)
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`CaptionTokenizer::load`].
    pub fn from_json(json: Vec<u8>, context_length: usize) -> Result<Self, ClipError> {
        let inner = Tokenizer::from_bytes(&json).map_err(tokenizer_error)?;
        let marks = [START_OF_TEXT, END_OF_TEXT];
        let made = Self::new(inner, CaptionCleaning::HuggingFace, marks, context_length)?;
        Ok(Self { json: Some(json), ..made })
    }

    /// Reads `vocab.json` and `merges.txt`, for Hugging Face's `CLIPTokenizer`.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::Json`], [`ClipError::Tokenizer`], [`ClipError::MissingToken`],
    /// [`ClipError::Config`].
    pub fn load_vocabulary(
        vocab: &Path,
        merges: &Path,
        context_length: usize,
    ) -> Result<Self, ClipError> {
        let vocabulary = BytePairVocabulary::load(vocab, merges)?;
        let marks = [START_OF_TEXT, END_OF_TEXT];
        Self::byte_pairs(vocabulary, CaptionCleaning::HuggingFace, marks, context_length)
    }

    /// The tokenizer of a Hugging Face folder: `tokenizer.json`, without it `vocab.json` and
    /// `merges.txt`, without those none.
    ///
    /// # Errors
    /// As [`CaptionTokenizer::load`] and [`CaptionTokenizer::load_vocabulary`].
    pub fn load_folder(folder: &Path, context_length: usize) -> Result<Option<Self>, ClipError> {
        let [json, vocab, merges] =
            ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
        if json.exists() {
            return Self::load(&json, context_length).map(Some);
        }
        // One of the two without the other is an error that names the missing one.
        let some = vocab.exists() || merges.exists();
        some.then(|| Self::load_vocabulary(&vocab, &merges, context_length)).transpose()
    }

    /// The vocabulary CLIP was published with, 49 408 entries, which is part of this crate.
    ///
    /// # Errors
    /// [`ClipError::Config`] when `context_length` is below 3.
    pub fn published(cleaning: CaptionCleaning, context_length: usize) -> Result<Self, ClipError> {
        let marks = match cleaning {
            CaptionCleaning::HuggingFace => [START_OF_TEXT, END_OF_TEXT],
            CaptionCleaning::OpenClip => OPEN_CLIP_MARKS,
        };
        let vocabulary = BytePairVocabulary::published(marks[0], marks[1]);
        Self::byte_pairs(vocabulary, cleaning, marks, context_length)
    }

    fn byte_pairs(
        vocabulary: BytePairVocabulary,
        cleaning: CaptionCleaning,
        marks: [&'static str; 2],
        context_length: usize,
    ) -> Result<Self, ClipError> {
        let merged = || -> Result<Tokenizer, tokenizers::Error> {
            let mut inner = Tokenizer::new(vocabulary.into_model(marks[1])?);
            // open_clip ignores case here, too: the long s ends an English word for it. Hugging Face cuts
            // the pieces once more by GPT-2's rules.
            let (pieces, again) = match cleaning {
                CaptionCleaning::HuggingFace => (PIECES.to_owned(), true),
                CaptionCleaning::OpenClip => (format!("(?i:{PIECES})"), false),
            };
            let removed = SplitDelimiterBehavior::Removed;
            inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![
                Split::new(SplitPattern::Regex(pieces), removed, true)?.into(),
                ByteLevel::new(false, true, again).into(),
            ])));
            if cleaning == CaptionCleaning::HuggingFace {
                let blanks = ReplacePattern::Regex(r"\s+".to_owned());
                let normalizers =
                    vec![NFC.into(), Replace::new(blanks, " ")?.into(), Lowercase.into()];
                inner.with_normalizer(Some(Normalizers::new(normalizers)))?;
            }
            inner.add_special_tokens(marks.map(|mark| AddedToken::from(mark, true)))?;
            Ok(inner)
        };
        Self::new(merged().map_err(tokenizer_error)?, cleaning, marks, context_length)
    }

    fn new(
        mut inner: Tokenizer,
        cleaning: CaptionCleaning,
        marks: [&'static str; 2],
        context_length: usize,
    ) -> Result<Self, ClipError> {
        if context_length < 3 {
            let expected = "start, end and one word need at least 3";
            return Err(ClipError::config("context_length", context_length, expected));
        }
        // Rows are cut and filled here, so that what is lost can be counted.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(tokenizer_error)?;
        let id =
            |token: &'static str| inner.token_to_id(token).ok_or(ClipError::MissingToken { token });
        let (start, end) = (id(marks[0])?, id(marks[1])?);
        let pad = inner.token_to_id(PAD).unwrap_or(0);
        Ok(Self { inner, cleaning, json: None, start, end, pad, context_length })
    }

    /// A lower-casing tokenizer of the words and punctuation marks in `captions`.
    ///
    /// The `max_vocab - 4` commonest words are kept, ordered by count, then by alphabet; the rest
    /// becomes `<unk>`. `<pad>` is 0, `<unk>` 1, `<|endoftext|>` the largest id.
    ///
    /// # Errors
    /// [`ClipError::Config`] when `max_vocab` is below 5 or `context_length` below 3.
    pub fn train_words<S: AsRef<str>>(
        captions: &[S],
        max_vocab: usize,
        context_length: usize,
    ) -> Result<Self, ClipError> {
        if max_vocab < 5 {
            let expected = "four tokens are taken, so it must be at least 5";
            return Err(ClipError::config("max_vocab", max_vocab, expected));
        }
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for caption in captions {
            for word in words(caption.as_ref())? {
                *counts.entry(word).or_default() += 1;
            }
        }
        let mut by_count: Vec<(String, u64)> = counts.into_iter().collect();
        // Stable: words of equal count stay in alphabetical order.
        by_count.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let words = by_count.into_iter().take(max_vocab - 4).map(|(word, _)| word);
        let tokens: Vec<String> = [PAD.to_owned(), UNKNOWN.to_owned()]
            .into_iter()
            .chain(words)
            .chain([START_OF_TEXT.to_owned(), END_OF_TEXT.to_owned()])
            .collect();
        let added: Vec<_> = tokens
            .iter()
            .enumerate()
            .filter(|(_, token)| {
                [PAD, UNKNOWN, START_OF_TEXT, END_OF_TEXT].contains(&token.as_str())
            })
            .map(|(id, token)| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true,
                })
            })
            .collect();
        let vocab: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": { "type": "Lowercase" },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": null,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN },
        });
        let mut json =
            serde_json::to_vec_pretty(&json).expect("strings and numbers make valid JSON");
        json.push(b'\n');
        Self::from_json(json, context_length)
    }

    /// Writes the `tokenizer.json`.
    ///
    /// # Errors
    /// [`ClipError::Io`]; [`ClipError::Tokenizer`] for open_clip's rules, which such a file cannot hold.
    pub fn save(&self, path: &Path) -> Result<(), ClipError> {
        if self.cleaning == CaptionCleaning::OpenClip {
            let reason = "what open_clip does to captions cannot be written as tokenizer.json";
            return Err(ClipError::Tokenizer { reason: reason.to_owned() });
        }
        let json = match &self.json {
            Some(json) => json.clone(),
            None => self.inner.to_string(true).map_err(tokenizer_error)?.into_bytes(),
        };
        deme_merge::write_atomically(path, |writer| writer.write_all(&json))
            .map_err(|source| ClipError::io(path, source))
    }

    /// Rows of ids; captions that are too long lose their last words and are counted.
    ///
    /// # Errors
    /// [`ClipError::Tokenizer`] when the tokenizer refuses a caption.
    pub fn encode<S: AsRef<str>>(&self, captions: &[S]) -> Result<EncodedCaptions, ClipError> {
        let room = self.context_length - 2;
        let mut encoded = EncodedCaptions { ids: Vec::new(), truncated: Vec::new() };
        for caption in captions {
            let caption = match self.cleaning {
                CaptionCleaning::HuggingFace => Cow::Borrowed(caption.as_ref()),
                CaptionCleaning::OpenClip => Cow::Owned(open_clip_caption(caption.as_ref())),
            };
            let words = self.inner.encode_fast(&*caption, false).map_err(tokenizer_error)?;
            let words = words.get_ids();
            encoded.truncated.push(words.len() > room);
            let mut row = vec![self.start];
            row.extend(&words[..words.len().min(room)]);
            row.push(self.end);
            row.resize(self.context_length, self.pad);
            encoded.ids.push(row);
        }
        Ok(encoded)
    }

    /// Entries of the vocabulary: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// Ids per row.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// What is done to a caption before.
    pub fn cleaning(&self) -> CaptionCleaning {
        self.cleaning
    }

    /// Ids of the start, the end and the padding.
    pub fn special_ids(&self) -> [u32; 3] {
        [self.start, self.end, self.pad]
    }
}

/// The words of a caption as [`CaptionTokenizer::train_words`] splits it.
fn words(caption: &str) -> Result<Vec<String>, ClipError> {
    let lower: String = caption.chars().flat_map(char::to_lowercase).collect();
    let mut split = PreTokenizedString::from(lower.as_str());
    BertPreTokenizer.pre_tokenize(&mut split).map_err(tokenizer_error)?;
    let splits = split.get_splits(OffsetReferential::Original, OffsetType::None);
    Ok(splits.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}

fn tokenizer_error(error: tokenizers::Error) -> ClipError {
    ClipError::Tokenizer { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CAPTIONS: [&str; 3] = ["A red circle.", "a blue square", "the RED square"];

    #[test]
    fn words_are_sorted_by_count_then_alphabet() {
        let tokenizer = CaptionTokenizer::train_words(&CAPTIONS, 100, 6).unwrap();
        // a, red, square twice; then . blue circle the; two in front, two behind
        assert_eq!(tokenizer.vocab_size(), 11);
        assert_eq!(tokenizer.special_ids(), [9, 10, 0]);
        let encoded = tokenizer.encode(&["a RED square", ".", "blue circle the", "green"]).unwrap();
        assert_eq!(encoded.truncated_count(), 0);
        assert_eq!(encoded.ids[0], [9, 2, 3, 4, 10, 0]);
        assert_eq!(encoded.ids[1], [9, 5, 10, 0, 0, 0]);
        assert_eq!(encoded.ids[2], [9, 6, 7, 8, 10, 0]);
        assert_eq!(encoded.ids[3], [9, 1, 10, 0, 0, 0]);
    }

    #[test]
    fn long_captions_are_cut_and_counted() {
        let tokenizer = CaptionTokenizer::train_words(&CAPTIONS, 100, 4).unwrap();
        let encoded = tokenizer.encode(&["a red square", "a red", ""]).unwrap();
        assert_eq!(encoded.truncated, [true, false, false]);
        assert_eq!(encoded.truncated_count(), 1);
        assert_eq!(encoded.ids, [[9, 2, 3, 10], [9, 2, 3, 10], [9, 10, 0, 0]]);
    }

    #[test]
    fn the_vocabulary_is_bounded() {
        let tokenizer = CaptionTokenizer::train_words(&CAPTIONS, 6, 5).unwrap();
        assert_eq!(tokenizer.vocab_size(), 6);
        let encoded = tokenizer.encode(&["a red square"]).unwrap();
        assert_eq!(encoded.ids[0], [4, 2, 3, 1, 5]);
    }

    #[test]
    fn saved_and_loaded_encodes_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let tokenizer = CaptionTokenizer::train_words(&CAPTIONS, 100, 6).unwrap();
        tokenizer.save(&path).unwrap();
        let loaded = CaptionTokenizer::load(&path, 6).unwrap();
        assert_eq!(loaded.encode(&CAPTIONS).unwrap(), tokenizer.encode(&CAPTIONS).unwrap());
        let again = CaptionTokenizer::train_words(&CAPTIONS, 100, 6).unwrap();
        again.save(&folder.path().join("again.json")).unwrap();
        let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(bytes("tokenizer.json"), bytes("again.json"));
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        let error = CaptionTokenizer::load(Path::new("/nowhere/tokenizer.json"), 8).unwrap_err();
        assert!(matches!(error, ClipError::Io { .. }));
        let error = CaptionTokenizer::from_json(b"{}".to_vec(), 8).unwrap_err();
        assert!(matches!(error, ClipError::Tokenizer { .. }));
        let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}});
        let error = CaptionTokenizer::from_json(json.to_string().into_bytes(), 8).unwrap_err();
        assert!(matches!(error, ClipError::MissingToken { token: START_OF_TEXT }));
        let error = CaptionTokenizer::train_words(&CAPTIONS, 4, 8).unwrap_err();
        assert!(matches!(error, ClipError::Config { field: "max_vocab", .. }));
        let error = CaptionTokenizer::train_words(&CAPTIONS, 9, 2).unwrap_err();
        assert!(matches!(error, ClipError::Config { field: "context_length", .. }));
    }
}

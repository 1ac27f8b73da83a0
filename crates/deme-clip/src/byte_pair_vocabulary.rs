//! CLIP's byte-pair vocabulary: 256 bytes, the same at the end of a word, 48 894 merges, start and end.
//!
//! Sennrich et al. 2016 on bytes, as Radford et al. 2021 (section 2.4) use it. Comes from
//! `vocab.json` and `merges.txt` of a Hugging Face folder, or from the merges that CLIP was published
//! with, which are part of this crate. Not here: what happens to a caption before.

use crate::ClipError;
use flate2::read::GzDecoder;
use std::io::{BufRead, BufReader};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};

/// Closes a word inside the vocabulary.
const END_OF_WORD: &str = "</w>";

/// Merges of the published file that CLIP uses: 49 152 less 256 bytes, the start and the end. The bytes
/// at the end of a word were not counted; with them the vocabulary has 49 408 entries.
const USED_MERGES: usize = 49_152 - 256 - 2;

static PUBLISHED: &[u8] = include_bytes!("../assets/bpe_simple_vocab_16e6.txt.gz");

/// Entries with their ids, and the merges in the order they are tried.
pub(crate) struct BytePairVocabulary {
    ids: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
}

impl BytePairVocabulary {
    /// The published one, with these names for the start and the end of a text.
    pub(crate) fn published(start: &str, end: &str) -> Self {
        let lines = BufReader::new(GzDecoder::new(PUBLISHED)).lines();
        let merges: Vec<(String, String)> = lines
            .skip(1)
            .take(USED_MERGES)
            .map(|line| merge(&line.expect("the file is part of the crate")))
            .map(|merge| merge.expect("every line of the file is a merge"))
            .collect();
        let bytes = byte_characters();
        let alone = bytes.iter().map(char::to_string);
        let closing = bytes.iter().map(|c| format!("{c}{END_OF_WORD}"));
        let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
        let special = [start, end].map(str::to_owned);
        let ids = alone.chain(closing).chain(merged).chain(special).zip(0..).collect();
        Self { ids, merges }
    }

    /// Reads `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`ClipError::Io`]; [`ClipError::Json`] says what is wrong in which line.
    pub(crate) fn load(vocab: &Path, merges: &Path) -> Result<Self, ClipError> {
        let read = |path: &Path| std::fs::read(path).map_err(|source| ClipError::io(path, source));
        let refuse = |path: &Path, reason: String| ClipError::Json { path: path.into(), reason };
        let ids: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&read(vocab)?)
            .map_err(|error| refuse(vocab, error.to_string()))?;
        let ids = ids.into_iter().map(|(token, id)| {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| {
                refuse(vocab, format!("the id of `{token}` is {id}, expected a number"))
            })?;
            Ok((token, number))
        });
        let ids = ids.collect::<Result<_, ClipError>>()?;
        let text = String::from_utf8(read(merges)?)
            .map_err(|error| refuse(merges, format!("it is not valid UTF-8 ({error})")))?;
        let lines = text
            .lines()
            .zip(1..)
            .filter(|(line, _)| !line.starts_with("#version") && !line.trim().is_empty());
        let merges = lines.map(|(line, number): (&str, usize)| {
            merge(line).ok_or_else(|| {
                refuse(merges, format!("line {number} is `{line}`, expected two parts"))
            })
        });
        Ok(Self { ids, merges: merges.collect::<Result<_, ClipError>>()? })
    }

    /// The model that merges bytes to tokens. What is outside the vocabulary becomes `unknown`.
    pub(crate) fn into_model(self, unknown: &str) -> Result<BPE, tokenizers::Error> {
        BPE::builder()
            .vocab_and_merges(self.ids.into_iter().collect::<Vocab>(), self.merges)
            .unk_token(unknown.to_owned())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(END_OF_WORD.to_owned())
            .build()
    }
}

fn merge(line: &str) -> Option<(String, String)> {
    let mut parts = line.split_whitespace();
    let (left, right) = (parts.next()?, parts.next()?);
    parts.next().is_none().then(|| (left.to_owned(), right.to_owned()))
}

/// How bytes are written as characters, in the order of their ids: those that are seen first, as
/// themselves, then the others as the characters from U+0100 on.
fn byte_characters() -> Vec<char> {
    let seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let (seen, unseen): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(seen);
    let moved = (0x100..).map_while(char::from_u32).take(unseen.len());
    seen.into_iter().map(char::from).chain(moved).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_published_vocabulary_has_clips_ids() {
        let vocabulary = BytePairVocabulary::published("<a>", "<b>");
        assert_eq!(vocabulary.merges.len(), 48_894);
        let id = |token: &str| vocabulary.ids.iter().find(|(t, _)| t == token).map(|&(_, id)| id);
        assert_eq!(vocabulary.ids.len(), 49_408);
        assert_eq!([id("!"), id("<a>"), id("<b>")], [Some(0), Some(49_406), Some(49_407)]);
        // 0x20, the first byte that is not seen after the 32 before it, is U+0120.
        assert_eq!([id("Ġ"), id("!</w>"), id("in")], [Some(220), Some(256), Some(512)]);
    }

    #[test]
    fn damaged_files_are_refused_with_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let (vocab, merges) = (folder.path().join("vocab.json"), folder.path().join("merges.txt"));
        let loaded = |vocab_text: &str, merges_text: &[u8]| {
            std::fs::write(&vocab, vocab_text).unwrap();
            std::fs::write(&merges, merges_text).unwrap();
            BytePairVocabulary::load(&vocab, &merges)
        };
        let good = loaded(r#"{"a": 0, "b": 1, "ab": 2}"#, b"#version: 0.2\na b\n").unwrap();
        assert_eq!(good.merges, [("a".to_owned(), "b".to_owned())]);
        let refused = |vocab_text: &str, merges_text: &[u8], part: &str| {
            let error = loaded(vocab_text, merges_text).err().unwrap();
            assert!(matches!(&error, ClipError::Json { reason, .. } if reason.contains(part)));
        };
        refused("[]", b"", "expected a map");
        refused(r#"{"a": -1}"#, b"", "the id of `a` is -1");
        refused("{}", b"#version: 0.2\na b\na b c\n", "line 3 is `a b c`");
        refused("{}", b"a \xFF\n", "UTF-8");
        std::fs::remove_file(&merges).unwrap();
        let error = BytePairVocabulary::load(&vocab, &merges).err().unwrap();
        assert!(matches!(error, ClipError::Io { .. }));
    }
}

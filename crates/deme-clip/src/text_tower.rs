//! The text tower: token and position embedding, causal encoder, the state at the end of the text.

use crate::ClipError;
use crate::config::ClipTextConfig;
use crate::encoder::{ClipEncoder, EncoderShape};
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use deme_nn::{Embedding, Init, LayerNorm};

/// Token plus position embedding.
#[derive(Module, Debug)]
pub struct ClipTextEmbeddings {
    /// `[vocab_size, width]`.
    pub token_embedding: Embedding,
    /// `[max_position_embeddings, width]`.
    pub position_embedding: Embedding,
}

/// transformers' `CLIPTextTransformer`.
#[derive(Module, Debug)]
pub struct ClipTextTransformer {
    /// Token plus position embedding.
    pub embeddings: ClipTextEmbeddings,
    /// The layers.
    pub encoder: ClipEncoder,
    /// Over the last hidden state.
    pub final_layer_norm: LayerNorm,
    #[module(skip)]
    eos_token_id: u32,
}

impl ClipTextTransformer {
    pub(crate) fn new(config: &ClipTextConfig, init: &mut Init) -> Self {
        let width = config.hidden_size;
        let shape = EncoderShape {
            width,
            mlp_width: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        Self {
            embeddings: ClipTextEmbeddings {
                token_embedding: Embedding::new(config.vocab_size, width, 0.02, init),
                position_embedding: Embedding::new(
                    config.max_position_embeddings,
                    width,
                    0.02,
                    init,
                ),
            },
            encoder: ClipEncoder::new(&shape, init),
            final_layer_norm: LayerNorm::new(width, config.layer_norm_eps, init),
            eos_token_id: config.eos_token_id,
        }
    }

    /// The last hidden state `[B, L, width]` after the final layer norm, from B rows of L ids.
    ///
    /// # Errors
    /// [`ClipError::TokenCount`], [`ClipError::TokenOutOfRange`].
    pub fn last_hidden_state(&self, ids: &[Vec<u32>]) -> Result<Tensor<3>, ClipError> {
        self.hidden_state_before(ids, 0)
    }

    /// The hidden state `[B, L, width]` before the last `skipped_layers` layers, after the final layer norm,
    /// from B rows of L ids: 0 is the last hidden state, 1 the penultimate layer's. Diffusion models that are
    /// prompted with `clip_skip` put the final norm on an earlier layer's state too.
    ///
    /// # Errors
    /// [`ClipError::TokenCount`], [`ClipError::TokenOutOfRange`], [`ClipError::SkippedLayers`].
    pub fn hidden_state_before(
        &self,
        ids: &[Vec<u32>],
        skipped_layers: usize,
    ) -> Result<Tensor<3>, ClipError> {
        let layers = &self.encoder.layers;
        let Some(used) = layers.len().checked_sub(skipped_layers) else {
            return Err(ClipError::SkippedLayers { skipped: skipped_layers, layers: layers.len() });
        };
        let tokens = self.embeddings.token_embedding.weight.val();
        let positions = self.embeddings.position_embedding.weight.val();
        let [vocab_size, width] = tokens.dims();
        let [max_len, _] = positions.dims();
        let [b, l] = check_ids(ids, max_len, vocab_size)?;
        let flat: Vec<i64> = ids.iter().flatten().map(|&id| i64::from(id)).collect();
        let flat = Tensor::<2, Int>::from_data(TensorData::new(flat, [b, l]), &tokens.device());
        let x = self.embeddings.token_embedding.forward(flat);
        let x = x + positions.slice([0..l, 0..width]).reshape([1, l, width]);
        let x = layers[..used].iter().fold(x, |x, layer| layer.forward(x, true));
        Ok(self.final_layer_norm.forward(x))
    }

    /// How many ids of each row its pooled output depends on, at most: up to the end of the longest text.
    /// What follows can be left out.
    pub fn text_len(&self, rows: &[impl AsRef<[u32]>]) -> usize {
        let ends = rows.iter().map(|row| end_of_text(row.as_ref(), self.eos_token_id) + 1);
        ends.max().unwrap_or(0)
    }

    /// The hidden state at the end-of-text token, `[B, width]`, from B rows of L ids.
    ///
    /// # Errors
    /// [`ClipError::TokenCount`], [`ClipError::TokenOutOfRange`].
    pub fn pooled_output(&self, ids: &[Vec<u32>]) -> Result<Tensor<2>, ClipError> {
        let x = self.last_hidden_state(ids)?;
        let [b, l, width] = x.dims();
        let ends: Vec<i64> = ids
            .iter()
            .enumerate()
            .map(|(row, ids)| (row * l + end_of_text(ids, self.eos_token_id)) as i64)
            .collect();
        let ends = Tensor::<1, Int>::from_data(TensorData::new(ends, [b]), &x.device());
        Ok(x.reshape([b * l, width]).select(0, ends))
    }
}

/// Where a row's text ends, by transformers' rule: the first largest id when `eos_token_id` is 2
/// (files from before the id was stored right), else the first `eos_token_id`, else 0.
fn end_of_text(ids: &[u32], eos_token_id: u32) -> usize {
    let end = if eos_token_id == 2 { ids.iter().copied().max() } else { Some(eos_token_id) };
    ids.iter().position(|&id| Some(id) == end).unwrap_or(0)
}

fn check_ids(ids: &[Vec<u32>], max_len: usize, vocab_size: usize) -> Result<[usize; 2], ClipError> {
    let len = ids.first().map_or(0, Vec::len);
    if len == 0 || len > max_len {
        let expected = format!("1 to {max_len}");
        return Err(ClipError::TokenCount { row: 0, found: len, expected });
    }
    for (row, row_ids) in ids.iter().enumerate() {
        if row_ids.len() != len {
            let expected = format!("{len} as in the first row");
            return Err(ClipError::TokenCount { row, found: row_ids.len(), expected });
        }
        if let Some(position) = row_ids.iter().position(|&id| id as usize >= vocab_size) {
            let id = row_ids[position];
            return Err(ClipError::TokenOutOfRange { row, position, id, vocab_size });
        }
    }
    Ok([ids.len(), len])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_end_is_the_largest_id_for_old_files_and_the_first_end_token_otherwise() {
        assert_eq!(end_of_text(&[5, 9, 3, 9], 2), 1);
        assert_eq!(end_of_text(&[5, 9, 3, 3], 3), 2);
        assert_eq!(end_of_text(&[5, 9, 4], 3), 0);
    }

    #[test]
    fn rows_of_the_wrong_length_or_vocabulary_are_refused() {
        assert_eq!(check_ids(&[vec![1, 2], vec![0, 1]], 2, 3).unwrap(), [2, 2]);
        let count = |ids: &[Vec<u32>]| match check_ids(ids, 3, 10).unwrap_err() {
            ClipError::TokenCount { row, found, .. } => (row, found),
            other => panic!("{other}"),
        };
        assert_eq!(count(&[]), (0, 0));
        assert_eq!(count(&[vec![1; 4]]), (0, 4));
        assert_eq!(count(&[vec![1; 2], vec![1; 3]]), (1, 3));
        let error = check_ids(&[vec![1, 2], vec![1, 10]], 3, 10).unwrap_err();
        assert!(matches!(error, ClipError::TokenOutOfRange { row: 1, position: 1, id: 10, .. }));
    }
}

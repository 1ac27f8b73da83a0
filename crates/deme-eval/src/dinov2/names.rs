//! What the tensors are called by the programs that write them.

use super::positions::PositionInterpolation;
use deme_merge::StateDict;
use sha2::{Digest, Sha256};

/// The names of one program. Those of a block's parts stand behind `<blocks>.<number>.`.
#[derive(Debug)]
pub(super) struct Names {
    pub class_token: &'static str,
    pub positions: &'static str,
    pub patch: &'static str,
    pub blocks: &'static str,
    /// Queries, keys and values, in this order, in one or three tensors.
    pub qkv: &'static [&'static str],
    pub attention_out: &'static str,
    pub scale1: &'static str,
    pub scale2: &'static str,
    /// The gate and what it opens, in this order, in one or two tensors.
    pub swiglu_in: &'static [&'static str],
    pub swiglu_out: &'static str,
    pub norm: &'static str,
    pub interpolation: PositionInterpolation,
}

/// Meta's own.
const META: Names = Names {
    class_token: "cls_token",
    positions: "pos_embed",
    patch: "patch_embed.proj",
    blocks: "blocks",
    qkv: &["attn.qkv"],
    attention_out: "attn.proj",
    scale1: "ls1.gamma",
    scale2: "ls2.gamma",
    swiglu_in: &["mlp.w12"],
    swiglu_out: "mlp.w3",
    norm: "norm",
    interpolation: PositionInterpolation::OffsetScale,
};

/// transformers' files.
const TRANSFORMERS: Names = Names {
    class_token: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    patch: "embeddings.patch_embeddings.projection",
    blocks: "encoder.layer",
    qkv: &["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    attention_out: "attention.output.dense",
    scale1: "layer_scale1.lambda1",
    scale2: "layer_scale2.lambda1",
    swiglu_in: &["mlp.weights_in"],
    swiglu_out: "mlp.weights_out",
    norm: "layernorm",
    interpolation: PositionInterpolation::Size,
};

/// What transformers calls them in memory since version 5, and writes when asked not to rename.
const TRANSFORMERS_5: Names = Names {
    qkv: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    attention_out: "attention.o_proj",
    swiglu_in: &["mlp.gate_proj", "mlp.up_proj"],
    swiglu_out: "mlp.down_proj",
    ..TRANSFORMERS
};

/// The tensor that only the variant with registers has.
pub(super) const REGISTERS: [&str; 2] = ["register_tokens", "embeddings.register_tokens"];

impl Names {
    /// The names that a checkpoint uses; Meta's when it uses none of them.
    pub(super) fn of(state: &StateDict) -> &'static Self {
        let holds = |name: String| state.get(&name).is_some();
        if state.get(TRANSFORMERS.class_token).is_none() {
            &META
        } else if holds(format!("{}.0.{}.weight", TRANSFORMERS_5.blocks, TRANSFORMERS_5.qkv[0])) {
            &TRANSFORMERS_5
        } else {
            &TRANSFORMERS
        }
    }
}

/// The hash of weights whose positions are interpolated by [`PositionInterpolation::OffsetScale`].
pub(super) fn hash_with_offset(weights: &str) -> String {
    let hash = Sha256::digest(format!("{weights}, positions interpolated with an offset of 0.1"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Weights per part of the UNet: which tensors belong together, by their names.
//!
//! A group is a part of the UNet (`down`, `mid`, `up`), a block of it (`down_blocks.0`, `mid_block`,
//! `up_blocks.2`), or `rest`: whatever lies outside of the blocks, such as `conv_in` and the time embedding.

use std::collections::{BTreeMap, BTreeSet};

use crate::merge_error::MergeError;
use crate::merge_method::f32_weights;
use crate::parameter_groups::part_and_block;

/// The weights of every group, for the tensors of one model.
pub(crate) struct GroupWeights {
    groups: BTreeMap<String, Vec<f32>>,
    others: Option<Vec<f32>>,
}

impl GroupWeights {
    /// Checks that every tensor has weights, and that every group has tensors.
    pub(crate) fn new<'a>(
        groups: &BTreeMap<String, Vec<f64>>,
        others: Option<&[f64]>,
        num_experts: usize,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, MergeError> {
        let mut known = BTreeSet::new();
        let mut missing = BTreeSet::new();
        for name in names {
            let (part, block) = part_and_block(name);
            known.extend([part, block]);
            if !groups.contains_key(part) && !groups.contains_key(block) {
                missing.insert(block);
            }
        }
        let owned = |names: BTreeSet<&str>| names.into_iter().map(String::from).collect();
        let unknown: BTreeSet<&str> =
            groups.keys().map(String::as_str).filter(|group| !known.contains(group)).collect();
        if !unknown.is_empty() {
            return Err(MergeError::UnknownGroups { unknown: owned(unknown), known: owned(known) });
        }
        if others.is_none() && !missing.is_empty() {
            return Err(MergeError::MissingGroups { groups: owned(missing) });
        }
        Ok(Self {
            groups: checked(groups, num_experts)?,
            others: others.map(|weights| f32_weights(weights, num_experts)).transpose()?,
        })
    }

    /// The weights of a tensor: of its block, or else of its part, or else those of all other tensors.
    pub(crate) fn of(&self, name: &str) -> &[f32] {
        let (part, block) = part_and_block(name);
        self.groups
            .get(block)
            .or_else(|| self.groups.get(part))
            .or(self.others.as_ref())
            .expect("every tensor was seen to have weights")
    }
}

/// One finite f32 weight per expert in every group.
pub(crate) fn checked(
    groups: &BTreeMap<String, Vec<f64>>,
    num_experts: usize,
) -> Result<BTreeMap<String, Vec<f32>>, MergeError> {
    let check = |(group, weights): (&String, &Vec<f64>)| match f32_weights(weights, num_experts) {
        Ok(weights) => Ok((group.clone(), weights)),
        Err(source) => Err(MergeError::Group { group: group.clone(), source: Box::new(source) }),
    };
    groups.iter().map(check).collect()
}

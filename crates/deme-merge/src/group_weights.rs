//! Weights per part of the UNet: which tensors belong together, by their names.
//!
//! A group is a part of the UNet (`down`, `mid`, `up`), a block of it (`down_blocks.0`, `mid_block`,
//! `up_blocks.2`), or `rest`: whatever lies outside of the blocks, such as `conv_in` and the time embedding.

use std::collections::{BTreeMap, BTreeSet};

use crate::merge_error::MergeError;
use crate::merge_method::f32_weights;

/// Part and block that a tensor belongs to.
fn groups_of(name: &str) -> (&'static str, &str) {
    for (list, part) in [("down_blocks.", "down"), ("up_blocks.", "up")] {
        if let Some(rest) = name.strip_prefix(list)
            && let Some(digits) = rest.find('.')
        {
            return (part, &name[..list.len() + digits]);
        }
    }
    match name.starts_with("mid_block.") {
        true => ("mid", "mid_block"),
        false => ("rest", "rest"),
    }
}

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
            let (part, block) = groups_of(name);
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
        let (part, block) = groups_of(name);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_groups() {
        for (name, expected) in [
            ("down_blocks.0.resnets.1.conv1.weight", ("down", "down_blocks.0")),
            ("down_blocks.11.x", ("down", "down_blocks.11")),
            ("up_blocks.2.attentions.0.to_q.weight", ("up", "up_blocks.2")),
            ("mid_block.resnets.0.norm1.bias", ("mid", "mid_block")),
            ("conv_in.weight", ("rest", "rest")),
            ("time_embedding.linear_1.bias", ("rest", "rest")),
            ("my_down_blocks.0.x", ("rest", "rest")),
        ] {
            assert_eq!(groups_of(name), expected, "{name}");
        }
    }
}

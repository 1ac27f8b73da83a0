//! Which tensors of a diffusers UNet belong together, by their names.

use serde::{Deserialize, Serialize};

/// How the tensors are divided, where each group has merging weights of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterGroups {
    /// All in one group.
    #[default]
    One,
    /// `down`, `mid`, `up`, and `rest`: the first and last convolutions, the time embedding.
    Parts,
    /// `down_blocks.0`, `down_blocks.1`, .., `mid_block`, `up_blocks.0`, .., and `rest`.
    Blocks,
}

impl ParameterGroups {
    /// The name of the group that a tensor belongs to.
    pub fn of(self, name: &str) -> &str {
        let (part, block) = part_and_block(name);
        match self {
            Self::One => "all",
            Self::Parts => part,
            Self::Blocks => block,
        }
    }
}

/// Part and block that a tensor belongs to.
pub(crate) fn part_and_block(name: &str) -> (&'static str, &str) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_groups() {
        for (name, part, block) in [
            ("down_blocks.0.resnets.1.conv1.weight", "down", "down_blocks.0"),
            ("down_blocks.11.x", "down", "down_blocks.11"),
            ("up_blocks.2.attentions.0.to_q.weight", "up", "up_blocks.2"),
            ("mid_block.resnets.0.norm1.bias", "mid", "mid_block"),
            ("conv_in.weight", "rest", "rest"),
            ("time_embedding.linear_1.bias", "rest", "rest"),
            ("my_down_blocks.0.x", "rest", "rest"),
        ] {
            assert_eq!(ParameterGroups::One.of(name), "all");
            assert_eq!(ParameterGroups::Parts.of(name), part, "{name}");
            assert_eq!(ParameterGroups::Blocks.of(name), block, "{name}");
        }
    }
}

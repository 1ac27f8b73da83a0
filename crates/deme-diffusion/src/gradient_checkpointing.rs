//! Gradients in the memory of one layer: gradient checkpointing (Chen et al. 2016, "Training Deep Nets with
//! Sublinear Memory Cost", section 3).
//!
//! A UNet is cut into segments: the first convolution with the time embedding, each layer of each block (a
//! residual block with its attention, or a change of resolution), the last convolution. Without checkpointing the
//! forward pass keeps what the backward pass of every layer will need. Here it keeps only what passes between the
//! segments, most of which are the skip connections. The backward pass comes to a segment with the gradient `g_k`
//! of each of its outputs `out_k`, runs it again, now differentiable, and back-propagates `sum_k <out_k, g_k>`:
//! the gradients of the segment's parameters, and of its inputs for the segment before. It costs one more
//! forward pass.
//!
//! Each parameter belongs to one segment. The time embedding enters nearly all of them, so its gradient is summed
//! until the first segment is reached.
//!
//! Not here: losses, and checkpoints on disk ([`checkpoint`](crate::checkpoint)).

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::{Gradients, with_gradients};

/// One layer of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment {
    Down { block: usize, layer: usize },
    Mid { layer: usize },
    Up { block: usize, layer: usize },
}

/// The segments of blocks with so many layers each, in the order in which they run.
pub(crate) fn segments_of(
    down: impl Iterator<Item = usize>,
    mid: Option<usize>,
    up: impl Iterator<Item = usize>,
) -> Vec<Segment> {
    let down = down
        .enumerate()
        .flat_map(|(block, layers)| (0..layers).map(move |layer| Segment::Down { block, layer }));
    let mid = (0..mid.unwrap_or(0)).map(|layer| Segment::Mid { layer });
    let up = up
        .enumerate()
        .flat_map(|(block, layers)| (0..layers).map(move |layer| Segment::Up { block, layer }));
    down.chain(mid).chain(up).collect()
}

/// A UNet in segments, the one definition of its forward pass.
///
/// # Shapes
/// x_t: `[B, C, H, W]`; x and skips: `[B, ..]` of each segment's own size; temb_silu: `[B, time_embed_dim]`; t: B.
pub(crate) trait Segmented: Module {
    /// What every segment sees besides.
    type Condition;

    /// Those between the first and the last.
    fn segments(&self) -> Vec<Segment>;

    /// Of the noisy images, the first hidden state, which is the first skip connection too, and `silu(temb)`.
    ///
    /// # Panics
    /// When an argument has another shape or length than the network takes.
    fn first(
        &self,
        x_t: Tensor<4>,
        t: &[f64],
        condition: &Self::Condition,
    ) -> (Tensor<4>, Tensor<2>);

    /// The next hidden state. A segment either appends to `skips` or takes from their end.
    fn segment(
        &self,
        segment: Segment,
        x: Tensor<4>,
        temb_silu: &Tensor<2>,
        condition: &Self::Condition,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4>;

    /// Of the last hidden state, the output.
    fn last(&self, x: Tensor<4>) -> Tensor<4>;

    /// All segments.
    fn run(&self, x_t: Tensor<4>, t: &[f64], condition: &Self::Condition) -> Tensor<4> {
        let (mut x, temb_silu) = self.first(x_t, t, condition);
        let mut skips = vec![x.clone()];
        for segment in self.segments() {
            x = self.segment(segment, x, &temb_silu, condition, &mut skips);
        }
        self.last(x)
    }
}

/// The gradients of `loss(output)` with respect to the parameters of `model`, a plain model.
///
/// # Panics
/// As [`Segmented::first`]; when the loss does not depend on the output.
pub(crate) fn checkpointed_gradients<M: Segmented>(
    model: &M,
    x_t: Tensor<4>,
    t: &[usize],
    condition: &M::Condition,
    loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
) -> Gradients {
    let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();

    // Forward, without a graph. Tensors are shared, so the inputs of a segment cost what would be freed otherwise.
    let (mut x, temb_silu) = model.first(x_t.clone(), &t, condition);
    let mut skips = vec![x.clone()];
    let mut kept = Vec::new();
    for segment in model.segments() {
        let (x_before, mut skips_before) = (x.clone(), skips.clone());
        x = model.segment(segment, x, &temb_silu, condition, &mut skips);
        let taken = skips_before.split_off(skips.len().min(skips_before.len()));
        kept.push((segment, x_before, taken));
    }
    let output = leaf(model.last(x.clone()));
    let mut rest = loss(output.clone()).backward();
    let of_output = output.grad_remove(&mut rest).expect("the loss depends on the output");
    drop((output, rest));

    // Backward. `of_skips` stand in the order of the skip connections: the last segment took the first of them.
    let (mut gradients, mut of_x) = {
        let (live, x) = (with_gradients(model), leaf(x));
        let outputs = weighed(live.last(x.clone()), of_output);
        let (gradients, mut rest) = Gradients::of_reached(&outputs, &live);
        (gradients, x.grad_remove(&mut rest).expect("a convolution depends on its input"))
    };
    let mut of_skips = Vec::new();
    let mut of_temb = None::<Tensor<2>>;
    for (segment, x, taken) in kept.into_iter().rev() {
        let (live, x, temb_silu) = (with_gradients(model), leaf(x), leaf(temb_silu.clone()));
        let taken: Vec<_> = taken.into_iter().map(leaf).collect();
        let mut made = taken.clone();
        let next = live.segment(segment, x.clone(), &temb_silu, condition, &mut made);
        let of_made = of_skips.split_off(of_skips.len() - made.len());
        let made = made.into_iter().zip(of_made);
        let outputs = made.fold(weighed(next, of_x), |sum, (skip, g)| sum + weighed(skip, g));

        let (part, mut rest) = Gradients::of_reached(&outputs, &live);
        gradients = gradients.joined(part);
        of_x = x.grad_remove(&mut rest).expect("every layer depends on its input");
        of_skips.extend(taken.iter().map(|skip| {
            skip.grad_remove(&mut rest).expect("a residual block depends on its skip connection")
        }));
        // No time enters where the resolution changes.
        let here = temb_silu.grad_remove(&mut rest);
        of_temb = match (of_temb, here) {
            (Some(sum), Some(here)) => Some(sum + here),
            (sum, here) => sum.or(here),
        };
    }

    let live = with_gradients(model);
    let (x, temb_silu) = live.first(x_t, &t, condition);
    let of_x = of_skips.into_iter().fold(of_x, |sum, g| sum + g);
    let of_temb = of_temb.expect("the time enters every residual block");
    let outputs = weighed(x, of_x) + weighed(temb_silu, of_temb);
    let (part, _) = Gradients::of_reached(&outputs, &live);
    gradients.joined(part).or_zeros(model)
}

/// The tensor as an input whose gradient is wanted; it shares the memory.
fn leaf<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.autodiff().require_grad()
}

/// `<output, g>`, whose gradient with respect to `output` is `g`.
fn weighed<const D: usize>(output: Tensor<D>, g: Tensor<D>) -> Tensor<1> {
    (output * g).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_run_down_over_the_middle_and_up() {
        use Segment::{Down, Mid, Up};
        let segments = segments_of([2, 1].into_iter(), Some(2), [1, 2].into_iter());
        let expected = [
            Down { block: 0, layer: 0 },
            Down { block: 0, layer: 1 },
            Down { block: 1, layer: 0 },
            Mid { layer: 0 },
            Mid { layer: 1 },
            Up { block: 0, layer: 0 },
            Up { block: 1, layer: 0 },
            Up { block: 1, layer: 1 },
        ];
        assert_eq!(segments, expected);
        let without_mid = segments_of([1].into_iter(), None, [1].into_iter());
        assert_eq!(without_mid, [Down { block: 0, layer: 0 }, Up { block: 0, layer: 0 }]);
    }
}

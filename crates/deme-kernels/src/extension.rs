//! The kernels as a Burn backend extension: routing, and their own backward passes.
//!
//! [`KernelOps`] is what a tensor operation calls; Burn routes it to the plain CPU backend or to
//! the same wrapped in autodiff. [`CpuKernels`] is the forward and backward arithmetic below it.
//! A device without kernels never gets here: the public functions send it to the plain path.

use crate::{ConvGeometry, GroupNormSettings};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, DispatchTensorKind, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

/// The CPU backend's own tensor, when `x` is one without autodiff.
pub(crate) fn into_cpu<const D: usize>(x: Tensor<D>) -> Option<FloatTensor<Flex>> {
    match x.into_dispatch().kind {
        DispatchTensorKind::Flex(inner) => Some(inner.float()),
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

/// The reverse of [`into_cpu`].
pub(crate) fn from_cpu<const D: usize>(x: FloatTensor<Flex>) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(x)
}

/// Whether `x` is a tensor that [`into_cpu`] takes, of f32.
pub(crate) fn on_plain_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.clone().into_dispatch().kind, DispatchTensorKind::Flex(_))
}

/// Whether `x` lives where the kernels run: f32 on the CPU backend, with or without autodiff.
pub fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    // Taking the dispatch form apart needs an owned tensor; a clone shares the memory.
    x.dtype() == DType::F32
        && match x.clone().into_dispatch().kind {
            DispatchTensorKind::Flex(_) => true,
            DispatchTensorKind::Autodiff(inner) => matches!(*inner, DispatchTensorKind::Flex(_)),
            #[allow(unreachable_patterns)]
            _ => false,
        }
}

/// The operations as tensors see them; differentiable on an autodiff backend.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait KernelOps: Backend {
    /// See [`crate::group_norm`]: the channels of `more` follow those of `x`, and `shift` is added;
    /// either may have no entries.
    fn group_norm(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        settings: GroupNormSettings,
    ) -> FloatTensor<Self>;

    /// See [`crate::group_norm_conv2d`].
    #[allow(clippy::too_many_arguments)]
    fn group_norm_conv2d(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        settings: GroupNormSettings,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self>;

    /// See [`crate::conv2d`].
    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self>;

    /// See [`crate::pointwise_conv_of_two`].
    fn pointwise_conv_of_two(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`crate::linear`].
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`crate::attention`].
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
        causal: bool,
    ) -> FloatTensor<Self>;
}

/// The forward and backward arithmetic, without any graph.
pub(crate) trait CpuKernels: Backend {
    /// The output, and (mean, 1 / deviation) per image and group for the backward pass.
    fn group_norm_forward(
        x: [FloatTensor<Self>; 2],
        shift: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        settings: GroupNormSettings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The output once more, from the statistics.
    fn group_norm_forward_again(
        x: [FloatTensor<Self>; 2],
        shift: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        settings: GroupNormSettings,
    ) -> FloatTensor<Self>;

    /// The gradients of both parts of x, shift, weight and bias.
    fn group_norm_backward(
        x: [FloatTensor<Self>; 2],
        shift: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        settings: GroupNormSettings,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 5];

    /// The convolution.
    fn conv2d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self>;

    /// The wanted ones among the gradients of x, weight and bias.
    fn conv2d_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        geometry: ConvGeometry,
        dy: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];

    /// The 1x1 convolution of two tensors that count as one.
    fn pointwise_conv_of_two_forward(
        x: [FloatTensor<Self>; 2],
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The gradients of both parts of x, weight and bias.
    fn pointwise_conv_of_two_backward(
        x: [FloatTensor<Self>; 2],
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 4];

    /// The linear map of the last dimension.
    fn linear_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The wanted ones among the gradients of x, weight and bias.
    fn linear_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];

    /// Attention of all heads.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
        causal: bool,
    ) -> FloatTensor<Self>;

    /// The gradients of q, k and v.
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
        causal: bool,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3];
}

impl KernelOps for Flex {
    fn group_norm(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        settings: GroupNormSettings,
    ) -> FloatTensor<Self> {
        Self::group_norm_forward([x, more], shift, weight, bias, settings).0
    }

    fn group_norm_conv2d(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        settings: GroupNormSettings,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self> {
        let x = Self::group_norm(x, more, shift, norm_weight, norm_bias, settings);
        Self::conv2d_forward(x, weight, bias, geometry)
    }

    fn pointwise_conv_of_two(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::pointwise_conv_of_two_forward([x, more], weight, bias)
    }

    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self> {
        Self::conv2d_forward(x, weight, bias, geometry)
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::linear_forward(x, weight, bias)
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
        causal: bool,
    ) -> FloatTensor<Self> {
        Self::attention_forward(q, k, v, scale, causal)
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: CpuKernels> Backward<B, 3> for LinearBackward {
    /// x and weight.
    type State = [NodeId; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let inputs = ops.state;
        let [x, weight] = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let all = B::linear_backward(x, weight, dy, wanted);
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(node), Some(grad)) = (parent, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl<B: CpuKernels> Backward<B, 3> for AttentionBackward {
    /// q, k, v; scale and causality.
    type State = ([NodeId; 3], f64, bool);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (inputs, scale, causal) = ops.state;
        let [q, k, v] = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let all = B::attention_backward(q, k, v, scale, causal, dy);
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct Conv2dBackward;

impl<B: CpuKernels> Backward<B, 3> for Conv2dBackward {
    /// x and weight; geometry.
    type State = ([NodeId; 2], ConvGeometry);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (inputs, geometry) = ops.state;
        let [x, weight] = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let all = B::conv2d_backward(x, weight, geometry, dy, wanted);
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(node), Some(grad)) = (parent, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct GroupNormBackward;

impl<B: CpuKernels> Backward<B, 5> for GroupNormBackward {
    /// Both parts of x, shift, weight, bias; their statistics.
    type State = ([NodeId; 5], FloatTensor<B>, GroupNormSettings);

    fn backward(
        self,
        ops: Ops<Self::State, 5>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (inputs, stats, settings) = ops.state;
        let [x, more, shift, weight, bias] =
            inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let all = B::group_norm_backward([x, more], shift, weight, bias, stats, settings, dy);
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// Keeps the norm's input and statistics, not the convolution's input between the two.
#[derive(Debug)]
struct GroupNormConv2dBackward;

impl<B: CpuKernels> Backward<B, 7> for GroupNormConv2dBackward {
    /// Both parts of x, shift, the norm's weight and bias, the convolution's weight; the statistics.
    type State = ([NodeId; 6], FloatTensor<B>, GroupNormSettings, ConvGeometry);

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (inputs, stats, settings, geometry) = ops.state;
        let [x, more, shift, norm_weight, norm_bias, weight] =
            inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let x = [x, more];
        let [of_norm @ .., of_weight, of_bias] = ops.parents;
        let wanted = [of_norm.iter().any(Option::is_some), of_weight.is_some(), of_bias.is_some()];
        let normed = B::group_norm_forward_again(
            x.clone(),
            shift.clone(),
            norm_weight.clone(),
            norm_bias.clone(),
            stats.clone(),
            settings,
        );
        let [dnormed, dweight, dbias] = B::conv2d_backward(normed, weight, geometry, dy, wanted);
        for (parent, grad) in [(of_weight, dweight), (of_bias, dbias)] {
            if let (Some(node), Some(grad)) = (parent, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
        let Some(dnormed) = dnormed else { return };
        let all =
            B::group_norm_backward(x, shift, norm_weight, norm_bias, stats, settings, dnormed);
        for (parent, grad) in of_norm.into_iter().zip(all) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct PointwiseConvOfTwoBackward;

impl<B: CpuKernels> Backward<B, 4> for PointwiseConvOfTwoBackward {
    /// Both parts of x, and weight.
    type State = [NodeId; 3];

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let [x, more, weight] =
            ops.state.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let all = B::pointwise_conv_of_two_backward([x, more], weight, dy);
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

impl<B: CpuKernels, C: CheckpointStrategy> KernelOps for Autodiff<B, C> {
    fn group_norm(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        settings: GroupNormSettings,
    ) -> FloatTensor<Self> {
        let prepared = GroupNormBackward
            .prepare::<C>([x.node(), more.node(), shift.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful();
        let parts = |x: FloatTensor<Self>| x.into_primitive();
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let inputs =
                    [&x, &more, &shift, &weight, &bias].map(|input| prep.checkpoint(input));
                let [x, more, shift, weight, bias] = [x, more, shift, weight, bias].map(parts);
                let (y, stats) = B::group_norm_forward([x, more], shift, weight, bias, settings);
                prep.finish((inputs, stats, settings), y)
            }
            OpsKind::UnTracked(prep) => {
                let [x, more, shift, weight, bias] = [x, more, shift, weight, bias].map(parts);
                prep.finish(B::group_norm_forward([x, more], shift, weight, bias, settings).0)
            }
        }
    }

    fn group_norm_conv2d(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        settings: GroupNormSettings,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self> {
        let kept = [&x, &more, &shift, &norm_weight, &norm_bias, &weight];
        let [n0, n1, n2, n3, n4, n5] = kept.map(|input| input.node());
        let prepared = GroupNormConv2dBackward
            .prepare::<C>([n0, n1, n2, n3, n4, n5, bias.node()])
            .compute_bound()
            .stateful();
        let forward = |all: [FloatTensor<Self>; 7]| {
            let [x, more, shift, norm_weight, norm_bias, weight, bias] =
                all.map(|input| input.into_primitive());
            let (normed, stats) =
                B::group_norm_forward([x, more], shift, norm_weight, norm_bias, settings);
            (B::conv2d_forward(normed, weight, bias, geometry), stats)
        };
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let inputs = kept.map(|input| prep.checkpoint(input));
                let (y, stats) = forward([x, more, shift, norm_weight, norm_bias, weight, bias]);
                prep.finish((inputs, stats, settings, geometry), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(forward([x, more, shift, norm_weight, norm_bias, weight, bias]).0)
            }
        }
    }

    fn pointwise_conv_of_two(
        x: FloatTensor<Self>,
        more: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let prepared = PointwiseConvOfTwoBackward
            .prepare::<C>([x.node(), more.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful();
        let parts = |x: FloatTensor<Self>| x.into_primitive();
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&x, &more, &weight].map(|input| prep.checkpoint(input));
                let [x, more, weight, bias] = [x, more, weight, bias].map(parts);
                prep.finish(inputs, B::pointwise_conv_of_two_forward([x, more], weight, bias))
            }
            OpsKind::UnTracked(prep) => {
                let [x, more, weight, bias] = [x, more, weight, bias].map(parts);
                prep.finish(B::pointwise_conv_of_two_forward([x, more], weight, bias))
            }
        }
    }

    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: ConvGeometry,
    ) -> FloatTensor<Self> {
        let prepared = Conv2dBackward
            .prepare::<C>([x.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful();
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&x, &weight].map(|input| prep.checkpoint(input));
                let [x, weight, bias] = [x, weight, bias].map(|input| input.into_primitive());
                let y = B::conv2d_forward(x, weight, bias, geometry);
                prep.finish((inputs, geometry), y)
            }
            OpsKind::UnTracked(prep) => {
                let [x, weight, bias] = [x, weight, bias].map(|input| input.into_primitive());
                prep.finish(B::conv2d_forward(x, weight, bias, geometry))
            }
        }
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let prepared = LinearBackward
            .prepare::<C>([x.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful();
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&x, &weight].map(|input| prep.checkpoint(input));
                let [x, weight, bias] = [x, weight, bias].map(|input| input.into_primitive());
                prep.finish(inputs, B::linear_forward(x, weight, bias))
            }
            OpsKind::UnTracked(prep) => {
                let [x, weight, bias] = [x, weight, bias].map(|input| input.into_primitive());
                prep.finish(B::linear_forward(x, weight, bias))
            }
        }
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
        causal: bool,
    ) -> FloatTensor<Self> {
        let prepared = AttentionBackward
            .prepare::<C>([q.node(), k.node(), v.node()])
            .compute_bound()
            .stateful();
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&q, &k, &v].map(|input| prep.checkpoint(input));
                let [q, k, v] = [q, k, v].map(|input| input.into_primitive());
                let y = B::attention_forward(q, k, v, scale, causal);
                prep.finish((inputs, scale, causal), y)
            }
            OpsKind::UnTracked(prep) => {
                let [q, k, v] = [q, k, v].map(|input| input.into_primitive());
                prep.finish(B::attention_forward(q, k, v, scale, causal))
            }
        }
    }
}

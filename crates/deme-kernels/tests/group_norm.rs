//! Fused group normalisation against the plain path in f64.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{
    Activation, ConvGeometry, GroupNormInput, GroupNormParameters, GroupNormSettings, conv2d,
    group_norm, group_norm_conv2d, plain,
};
use proptest::prelude::*;
use support::{assert_close, bits, f64, largest, on_threads, tensor};

const EPS: f64 = 1e-5;

type Norm = fn(GroupNormInput, GroupNormParameters) -> Tensor<4>;

/// Output and the gradients of x, weight and bias of sum(y g).
fn run(norm: Norm, inputs: &Inputs) -> (Tensor<4>, [Tensor<4>; 1], [Tensor<1>; 2]) {
    let x = inputs.x.clone().autodiff().require_grad();
    let GroupNormParameters { weight, bias, settings } = inputs.parameters();
    let [weight, bias] = [weight, bias].map(|t| t.autodiff().require_grad());
    let parameters = GroupNormParameters { weight: weight.clone(), bias: bias.clone(), settings };
    let y = norm(x.clone().into(), parameters);
    let grads = (y.clone() * inputs.g.clone().autodiff()).sum().backward();
    let (dw, db) = (weight.grad(&grads).unwrap(), bias.grad(&grads).unwrap());
    (y.inner(), [x.grad(&grads).unwrap()], [dw, db])
}

#[derive(Clone)]
struct Inputs {
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    g: Tensor<4>,
    groups: usize,
    activation: Activation,
}

impl Inputs {
    fn new(seed: u64, shape: [usize; 4], groups: usize, activation: Activation) -> Self {
        Self {
            x: tensor(seed, shape) * 1.5 + 0.7,
            weight: tensor(seed + 1, [shape[1]]),
            bias: tensor(seed + 2, [shape[1]]),
            g: tensor(seed + 3, shape),
            groups,
            activation,
        }
    }

    /// The first `first` channels, and the others.
    fn parts(&self, first: usize) -> [Tensor<4>; 2] {
        let rest = self.x.dims()[1] - first;
        [self.x.clone().narrow(1, 0, first), self.x.clone().narrow(1, first, rest)]
    }

    fn parameters(&self) -> GroupNormParameters {
        let Self { weight, bias, groups, activation, .. } = self.clone();
        GroupNormParameters {
            weight,
            bias,
            settings: GroupNormSettings { groups, eps: EPS, activation },
        }
    }

    fn in_f64(&self) -> Self {
        Self {
            x: f64(self.x.clone()),
            weight: f64(self.weight.clone()),
            bias: f64(self.bias.clone()),
            g: f64(self.g.clone()),
            ..self.clone()
        }
    }
}

fn check(inputs: &Inputs) {
    let (y, [dx], [dweight, dbias]) = run(group_norm, inputs);
    let (y64, [dx64], [dweight64, dbias64]) = run(plain::group_norm, &inputs.in_f64());
    let [b, _, h, w] = inputs.x.dims();
    let terms = (b * h * w) as f64;
    assert_close(f64(y), y64.clone(), 1e-5, largest(&y64).max(1.0), "y");
    assert_close(f64(dx), dx64.clone(), 2e-5, largest(&dx64).max(1.0), "dx");
    assert_close(f64(dweight), dweight64, 1e-5, terms, "dweight");
    assert_close(f64(dbias), dbias64, 1e-5, terms, "dbias");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn follows_the_plain_path(
        seed in 0u64..1000, b in 1usize..4, groups in 1usize..4, per_group in 1usize..4,
        h in 1usize..10, w in 2usize..20, silu: bool,
    ) {
        let activation = if silu { Activation::Silu } else { Activation::None };
        check(&Inputs::new(seed, [b, groups * per_group, h, w], groups, activation));
    }
}

/// Output and the gradients of both parts, weight and bias of sum(y g), where the first `first`
/// channels are the first part.
fn run_of_two(
    norm: Norm,
    inputs: &Inputs,
    first: usize,
) -> (Tensor<4>, [Tensor<4>; 2], [Tensor<1>; 2]) {
    let parts = inputs.parts(first).map(|x| x.autodiff().require_grad());
    let GroupNormParameters { weight, bias, settings } = inputs.parameters();
    let [weight, bias] = [weight, bias].map(|t| t.autodiff().require_grad());
    let parameters = GroupNormParameters { weight: weight.clone(), bias: bias.clone(), settings };
    let y = norm(GroupNormInput::of_two(parts.clone()), parameters);
    let grads = (y.clone() * inputs.g.clone().autodiff()).sum().backward();
    let (dw, db) = (weight.grad(&grads).unwrap(), bias.grad(&grads).unwrap());
    (y.inner(), parts.map(|x| x.grad(&grads).unwrap()), [dw, db])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn two_tensors_are_one_of_all_their_channels(
        seed in 0u64..1000, b in 1usize..4, groups in 1usize..4, per_group in 1usize..5,
        first in 0usize..100, h in 1usize..8, w in 2usize..12,
    ) {
        let channels = groups * per_group;
        prop_assume!(channels > 1);
        let first = 1 + first % (channels - 1);
        let inputs = Inputs::new(seed, [b, channels, h, w], groups, Activation::Silu);
        let (y, dx, [dw, db]) = run_of_two(group_norm, &inputs, first);
        let (y_one, [dx_one], [dw_one, db_one]) = run(group_norm, &inputs);
        // The same arithmetic, so the same bits.
        prop_assert!(bits(y) == bits(y_one));
        prop_assert!(bits(Tensor::cat(dx.to_vec(), 1)) == bits(dx_one));
        prop_assert!(bits(dw) == bits(dw_one) && bits(db) == bits(db_one));
        let plain = run_of_two(plain::group_norm, &inputs.in_f64(), first);
        let expected = run(plain::group_norm, &inputs.in_f64());
        assert_close(plain.0, expected.0, 1e-12, 1.0, "plain y");
    }

    #[test]
    fn a_shift_is_added_first(
        seed in 0u64..1000, b in 1usize..4, groups in 1usize..4, per_group in 1usize..4,
        h in 1usize..8, w in 2usize..12,
    ) {
        let channels = groups * per_group;
        let i = Inputs::new(seed, [b, channels, h, w], groups, Activation::Silu);
        let shift: Tensor<2> = tensor(seed + 9, [b, channels]);
        let run = |norm: Norm, i: &Inputs, shift: Tensor<2>| {
            let x = i.x.clone().autodiff().require_grad();
            let shift = shift.autodiff().require_grad();
            let y = norm(GroupNormInput::shifted(x.clone(), shift.clone()), i.parameters());
            let grads = (y.clone() * i.g.clone().autodiff()).sum().backward();
            (y.inner(), x.grad(&grads).unwrap(), shift.grad(&grads).unwrap())
        };
        let (y, dx, dshift) = run(group_norm, &i, shift.clone());
        let (y64, dx64, dshift64) = run(plain::group_norm, &i.in_f64(), f64(shift));
        assert_close(f64(y), y64.clone(), 1e-5, largest(&y64).max(1.0), "y");
        let scale = largest(&dx64).max(1.0);
        assert_close(f64(dx), dx64, 2e-5, scale, "dx");
        // A sum over the pixels.
        assert_close(f64(dshift), dshift64, 2e-5, scale * (h * w) as f64, "dshift");
    }
}

#[test]
fn follows_the_plain_path_on_a_large_group() {
    check(&Inputs::new(5, [1, 4, 64, 96], 2, Activation::Silu));
}

#[test]
fn a_mean_far_from_zero_costs_no_precision() {
    let mut inputs = Inputs::new(6, [2, 8, 16, 16], 4, Activation::None);
    inputs.x = inputs.x * 0.01 + 100.0;
    let y = group_norm(inputs.x.clone(), inputs.parameters());
    let i = inputs.in_f64();
    let expected = plain::group_norm(i.x.clone(), i.parameters());
    assert_close(f64(y), expected, 1e-3, 1.0, "y");
}

#[test]
fn reads_permuted_tensors() {
    let mut inputs = Inputs::new(7, [2, 6, 5, 7], 3, Activation::Silu);
    inputs.x = tensor(8, [5, 7, 2, 6]).permute([2, 3, 0, 1]);
    inputs.g = tensor(9, [2, 6, 7, 5]).swap_dims(2, 3);
    check(&inputs);
}

#[test]
fn threads_and_batch_do_not_change_a_bit() {
    let inputs = Inputs::new(10, [5, 12, 9, 7], 4, Activation::Silu);
    let all = |(y, [dx], [dw, db]): (Tensor<4>, [Tensor<4>; 1], [Tensor<1>; 2])| {
        [bits(y), bits(dx), bits(dw), bits(db)]
    };
    let one = on_threads(1, || all(run(group_norm, &inputs)));
    let three = on_threads(3, || all(run(group_norm, &inputs)));
    assert!(one == three);
    for i in 0..5 {
        let image = inputs.x.clone().narrow(0, i, 1);
        let alone = group_norm(image, inputs.parameters());
        assert!(bits(alone)[..] == one[0][i * 12 * 63..(i + 1) * 12 * 63]);
    }
}

#[test]
fn gradients_are_the_slopes() {
    let inputs = Inputs::new(11, [1, 4, 3, 3], 2, Activation::Silu);
    let (_, [dx], _) = run(group_norm, &inputs);
    let direction = tensor(12, [1, 4, 3, 3]);
    let slope = (dx * direction.clone()).sum().into_scalar::<f64>();
    let loss = |h: f64| {
        let i = inputs.in_f64();
        let x = i.x.clone() + f64(direction.clone()) * h;
        let y = plain::group_norm(x, i.parameters());
        (y * i.g).sum().into_scalar::<f64>()
    };
    let expected = (loss(1e-4) - loss(-1e-4)) / 2e-4;
    assert!((slope - expected).abs() < 1e-4 * expected.abs().max(1.0), "{slope} {expected}");
}

#[test]
fn only_tracked_inputs_get_gradients() {
    let inputs = Inputs::new(13, [2, 4, 3, 3], 2, Activation::None);
    let weight = inputs.weight.clone().autodiff().require_grad();
    let parameters = GroupNormParameters { weight: weight.clone(), ..inputs.parameters() };
    let y = group_norm(inputs.x, parameters);
    let grads = y.sum().backward();
    assert!(weight.grad(&grads).is_some());
}

/// What [`group_norm_conv2d`] reads: x with the others of its form, then norm and convolution.
#[derive(Clone, Copy, Debug)]
enum Form {
    One,
    Shifted,
    OfTwo(usize),
}

/// Output and all gradients of sum(y g) for a norm and a convolution by `layer`.
fn run_normed_conv(
    layer: fn(
        GroupNormInput,
        GroupNormParameters,
        Tensor<4>,
        Option<Tensor<1>>,
        ConvGeometry,
    ) -> Tensor<4>,
    inputs: &Inputs,
    form: Form,
    c_out: usize,
    in_f64: bool,
) -> Vec<Tensor<1>> {
    let shape = inputs.x.dims();
    let like = |x: Tensor<1>| if in_f64 { f64(x) } else { x };
    let inputs = if in_f64 { inputs.in_f64() } else { inputs.clone() };
    let leaf = |seed, n| like(tensor(seed, [n])).autodiff().require_grad();
    let (weight, bias) = (leaf(50, c_out * shape[1] * 9), leaf(51, c_out));
    let shift = leaf(52, shape[0] * shape[1]);
    let tracked = |x: Tensor<4>| x.autodiff().require_grad();
    let (x, parts) = match form {
        Form::One => {
            let x = tracked(inputs.x.clone());
            (x.clone().into(), vec![x])
        }
        Form::Shifted => {
            let x = tracked(inputs.x.clone());
            let shift = shift.clone().reshape([shape[0], shape[1]]);
            (GroupNormInput::shifted(x.clone(), shift), vec![x])
        }
        Form::OfTwo(first) => {
            let parts = inputs.parts(first).map(tracked);
            (GroupNormInput::of_two(parts.clone()), parts.to_vec())
        }
    };
    let GroupNormParameters { weight: scale, bias: offset, settings } = inputs.parameters();
    let [scale, offset] = [scale, offset].map(|t| t.autodiff().require_grad());
    let norm = GroupNormParameters { weight: scale.clone(), bias: offset.clone(), settings };
    let kernel = weight.clone().reshape([c_out, shape[1], 3, 3]);
    let y = layer(x, norm, kernel, Some(bias.clone()), ConvGeometry::same(3));
    let g = f64(tensor(53, y.dims())).cast(y.dtype());
    let grads = (y.clone() * g.autodiff()).sum().backward();
    let mut all = vec![y.inner().flatten(0, 3)];
    all.extend(parts.iter().map(|x| x.grad(&grads).unwrap().flatten(0, 3)));
    all.extend([scale, offset, weight, bias].map(|x| x.grad(&grads).unwrap()));
    if matches!(form, Form::Shifted) {
        all.push(shift.grad(&grads).unwrap());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_convolution_behind_it_sees_the_same_tensor(
        seed in 0u64..1000, b in 1usize..4, groups in 1usize..4, per_group in 1usize..5,
        first in 0usize..100, form in 0usize..3, c_out in 1usize..6, h in 1usize..9, w in 2usize..12,
    ) {
        let channels = groups * per_group;
        let form = match form {
            0 => Form::One,
            1 => Form::Shifted,
            _ if channels == 1 => Form::One,
            _ => Form::OfTwo(1 + first % (channels - 1)),
        };
        let inputs = Inputs::new(seed, [b, channels, h, w], groups, Activation::Silu);
        let one = run_normed_conv(group_norm_conv2d, &inputs, form, c_out, false);
        let two = run_normed_conv(
            |x, norm, weight, bias, geometry| conv2d(group_norm(x, norm), weight, bias, geometry),
            &inputs, form, c_out, false,
        );
        // The normalised tensor of the backward pass is computed by the same arithmetic.
        prop_assert!(one.len() == two.len());
        for (one, two) in one.iter().zip(two) {
            prop_assert!(bits(one.clone()) == bits(two));
        }
        let plain = run_normed_conv(plain::group_norm_conv2d, &inputs, form, c_out, true);
        for (i, (one, plain)) in one.into_iter().zip(plain).enumerate() {
            let scale = largest(&plain).max(1.0) * (b * h * w) as f64;
            assert_close(f64(one), plain, 2e-5, scale, &format!("tensor {i}"));
        }
    }
}

#[test]
fn a_convolution_behind_it_gives_gradients_to_tracked_inputs_only() {
    let inputs = Inputs::new(14, [2, 4, 5, 3], 2, Activation::Silu);
    let weight = tensor(15, [3, 4, 3, 3]).autodiff().require_grad();
    let geometry = ConvGeometry::same(3);
    let y =
        group_norm_conv2d(inputs.x.clone(), inputs.parameters(), weight.clone(), None, geometry);
    let of_weight = weight.grad(&y.sum().backward()).unwrap();

    let x = inputs.x.clone().autodiff().require_grad();
    let fixed = weight.clone().inner();
    let y = group_norm_conv2d(x.clone(), inputs.parameters(), fixed, None, geometry);
    let of_x = x.grad(&y.sum().backward()).unwrap();

    let (both_x, both_weight) = (inputs.x.clone().autodiff().require_grad(), weight);
    let normed = group_norm(both_x.clone(), inputs.parameters());
    let grads = conv2d(normed, both_weight.clone(), None, geometry).sum().backward();
    assert!(bits(of_weight) == bits(both_weight.grad(&grads).unwrap()));
    assert!(bits(of_x) == bits(both_x.grad(&grads).unwrap()));
}

//! What finetuning needs of a network, whether it looks at a text or not.
//!
//! A [`Denoiser`] is enough to sample. To be finetuned, a network must also be a module
//! whose parameters can be copied, differentiated and named, and take channel projections. Both UNets are that:
//! [`UNet2DModel`] with the condition `()`, [`UNet2DConditionModel`] with the hidden states of a text per image. A
//! loop over `N: NoisePredictor` carries an `N::Condition` with each micro-batch and never asks which it is:
//!
//! ```
//! # use burn::tensor::Tensor;
//! # use deme_diffusion::NoisePredictor;
//! # use deme_nn::{Gradients, with_gradients};
//! fn eps_gradients<N: NoisePredictor>(
//!     model: &N,
//!     x_t: Tensor<4>,
//!     t: &[usize],
//!     condition: N::Condition,
//!     eps: Tensor<4>,
//! ) -> Gradients {
//!     let live = with_gradients(model);
//!     let loss = (live.output(x_t, t, condition) - eps).square().mean();
//!     Gradients::of(&loss, &live)
//! }
//! ```
//!
//! Not here: losses, the loop.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use deme_nn::Gradients;

use crate::denoiser::{ConditionalDenoiser, Denoiser};
use crate::gradient_checkpointing;
use crate::model_config::ModelConfigError;
use crate::unet::{ProjectionError, ProjectionPlacement, UNet2DModel};
use crate::unet_2d_condition::UNet2DConditionModel;

/// What the images of a batch are predicted under.
pub trait Condition: Clone + Send + Sync {
    /// The conditions of some images of the batch.
    fn part(&self, images: &Range<usize>) -> Self;
}

/// Nothing.
impl Condition for () {
    fn part(&self, _: &Range<usize>) -> Self {}
}

/// The hidden states of a text per image, `[B, L, width]`.
impl Condition for Tensor<3> {
    fn part(&self, images: &Range<usize>) -> Self {
        self.clone().narrow(0, images.start, images.len())
    }
}

/// A network that can be finetuned.
pub trait NoisePredictor: Module + Sync {
    /// What it sees of an image besides noisy pixels and timestep.
    type Condition: Condition;

    /// The raw output for `x_t` at timesteps `t`; differentiable with respect to the parameters where the
    /// module is.
    ///
    /// # Shapes
    /// x_t: `[B, C, H, W]`; t: one per image; condition: of B images; returns `[B, C, H, W]`.
    fn output(&self, x_t: Tensor<4>, t: &[usize], condition: Self::Condition) -> Tensor<4>;

    /// As [`output`](Self::output), of a model without gradients; the parts of a batch run at the same time (see
    /// [`image_shards`](crate::image_shards)).
    fn inference(&self, x_t: Tensor<4>, t: &[usize], condition: Self::Condition) -> Tensor<4>;

    /// Channels of the images it takes, and of its output.
    fn channels(&self) -> [usize; 2];

    /// The configuration, which tells architectures apart.
    fn architecture(&self) -> serde_json::Value;

    /// The gradients of `loss(output)`, where output is that of [`output`](Self::output), computed with gradient
    /// checkpointing: peak memory is that of one layer's backward pass and of what passes between layers, for one
    /// more forward pass. `self` is the plain model, without autodiff; no graph outlives the call.
    ///
    /// They are the gradients that [`Gradients::of`] gives up to rounding: where several layers contribute to one
    /// tensor's gradient, they are summed in another order. Parameters that the output does not depend on get zeros.
    ///
    /// `loss` is called once and may put its parts aside as numbers.
    ///
    /// ```
    /// # use burn::tensor::Tensor;
    /// # use deme_diffusion::NoisePredictor;
    /// # use deme_nn::Gradients;
    /// fn eps_loss_and_gradients<N: NoisePredictor>(
    ///     model: &N,
    ///     x_t: Tensor<4>,
    ///     t: &[usize],
    ///     condition: N::Condition,
    ///     eps: Tensor<4>,
    /// ) -> (f32, Gradients) {
    ///     let mut value = f32::NAN;
    ///     let gradients = model.checkpointed_gradients(x_t, t, condition, |output| {
    ///         let loss = (output - eps).square().mean();
    ///         value = loss.clone().without_autodiff().into_scalar();
    ///         loss
    ///     });
    ///     (value, gradients)
    /// }
    /// ```
    ///
    /// # Panics
    /// Where `output` does; when the loss does not depend on the output.
    fn checkpointed_gradients(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        condition: Self::Condition,
        loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> Gradients;

    /// Checks that images (or latents) of shape `[C, H, W]` pass through.
    ///
    /// # Errors
    /// [`ModelConfigError::ImageShape`].
    fn check_image_shape(&self, shape: [usize; 3]) -> Result<(), ModelConfigError>;

    /// Where its channel projections act.
    fn projection_placement(&self) -> ProjectionPlacement;

    /// Adds identity matrices at `placement`, unless they are there.
    ///
    /// # Errors
    /// [`ProjectionError::AlreadyPlaced`].
    fn with_projection(self, placement: ProjectionPlacement) -> Result<Self, ProjectionError>;

    /// Folds the matrices into the convolutions they follow.
    ///
    /// # Errors
    /// [`ProjectionError::NotFoldable`].
    fn fold_projection(self) -> Result<Self, ProjectionError>;

    /// Where the parameters are.
    fn device(&self) -> Device;
}

impl NoisePredictor for UNet2DModel {
    type Condition = ();

    fn output(&self, x_t: Tensor<4>, t: &[usize], (): ()) -> Tensor<4> {
        self.forward(x_t, t)
    }

    fn inference(&self, x_t: Tensor<4>, t: &[usize], (): ()) -> Tensor<4> {
        self.predict(x_t, t)
    }

    fn channels(&self) -> [usize; 2] {
        [self.config().in_channels, self.config().out_channels]
    }

    fn architecture(&self) -> serde_json::Value {
        serde_json::to_value(self.config()).expect("a configuration is plain data")
    }

    fn checkpointed_gradients(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        (): (),
        loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> Gradients {
        gradient_checkpointing::checkpointed_gradients(self, x_t, t, &(), loss)
    }

    fn check_image_shape(&self, shape: [usize; 3]) -> Result<(), ModelConfigError> {
        self.config().check_image_shape(shape)
    }

    fn projection_placement(&self) -> ProjectionPlacement {
        self.config().channel_projection
    }

    fn with_projection(self, placement: ProjectionPlacement) -> Result<Self, ProjectionError> {
        self.with_projection(placement)
    }

    fn fold_projection(self) -> Result<Self, ProjectionError> {
        self.fold_projection()
    }

    fn device(&self) -> Device {
        self.device()
    }
}

impl NoisePredictor for UNet2DConditionModel {
    type Condition = Tensor<3>;

    fn output(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
        self.forward(x_t, t, condition)
    }

    fn inference(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
        self.predict(x_t, t, condition)
    }

    fn channels(&self) -> [usize; 2] {
        [self.config().in_channels, self.config().out_channels]
    }

    fn architecture(&self) -> serde_json::Value {
        serde_json::to_value(self.config()).expect("a configuration is plain data")
    }

    fn checkpointed_gradients(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        condition: Tensor<3>,
        loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> Gradients {
        gradient_checkpointing::checkpointed_gradients(self, x_t, t, &condition, loss)
    }

    fn check_image_shape(&self, shape: [usize; 3]) -> Result<(), ModelConfigError> {
        self.config().check_image_shape(shape)
    }

    fn projection_placement(&self) -> ProjectionPlacement {
        self.config().channel_projection
    }

    fn with_projection(self, placement: ProjectionPlacement) -> Result<Self, ProjectionError> {
        self.with_projection(placement)
    }

    fn fold_projection(self) -> Result<Self, ProjectionError> {
        self.fold_projection()
    }

    fn device(&self) -> Device {
        self.device()
    }
}

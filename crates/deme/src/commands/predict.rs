//! `deme predict`: one forward pass, to check a model against another implementation.

use burn::tensor::{Tensor, TensorData};
use deme_diffusion::{Denoiser, UNet2DConfig, load_pipeline};
use deme_merge::{StateDict, StoredTensor};

use crate::cli::PredictArguments;
use crate::diagnostics::Problem;

/// Reads `sample` and `timesteps`, writes `output`.
pub fn run(arguments: &PredictArguments) -> Result<(), Problem> {
    let device = super::device(arguments.device);
    let model = load_pipeline(&arguments.model, &device)?;
    let input = StateDict::load(&arguments.input)?;
    let tensor = |name: &str| {
        input.get(name).ok_or_else(|| Problem::Usage {
            message: format!("{} holds no tensor `{name}`", arguments.input.display()),
            help: "it needs `sample` [B, C, H, W] and `timesteps` [B]".into(),
        })
    };
    let (sample, timesteps) = (tensor("sample")?, tensor("timesteps")?);
    let shape = check_shapes(sample.shape(), timesteps.shape(), model.unet.config())?;
    let total = model.scheduler.unwrap_or_default().num_train_timesteps;
    let timesteps: Vec<usize> = timesteps
        .to_i64()?
        .into_iter()
        .map(|t| match usize::try_from(t) {
            Ok(t) if t < total => Ok(t),
            _ => Err(Problem::Usage {
                message: format!("timestep {t} is outside 0..{total}"),
                help: "give integer timesteps the model was trained on".into(),
            }),
        })
        .collect::<Result<_, _>>()?;
    let data = TensorData::new(sample.to_f32()?, shape);
    let output = model.unet.predict(Tensor::<4>::from_data(data, &device), &timesteps);
    let shape = output.dims().to_vec();
    let values = output.into_data().try_into_vec::<f32>().expect("networks compute in f32");
    let mut state = StateDict::default();
    state.insert("output".into(), StoredTensor::from_f32(shape, values));
    Ok(state.save(&arguments.out)?)
}

/// What the engine would panic on.
fn check_shapes(
    sample: &[usize],
    timesteps: &[usize],
    config: &UNet2DConfig,
) -> Result<[usize; 4], Problem> {
    let usage = |message: String, help: &str| Problem::Usage { message, help: help.to_owned() };
    let &[b, c, h, w] = sample else {
        return Err(usage(format!("`sample` has shape {sample:?}"), "it must be [B, C, H, W]"));
    };
    if timesteps != [b] {
        return Err(usage(
            format!("`timesteps` has shape {timesteps:?} for {b} samples"),
            "give one timestep per sample",
        ));
    }
    config.check_image_shape([c, h, w])?;
    Ok([b, c, h, w])
}

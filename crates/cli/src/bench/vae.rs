//! `darkroom bench vae`: latents to a picture, whole, without tiles.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{
    model::Part,
    vae::{Decoder, VaeConfig},
    weights::Component,
};
use serde_json::json;
use tensor::{Backend, Tensor};

use super::{
    Runs,
    arrays::{Array, Arrays, normal},
    check_size,
    measure::{Run, Subject, measure},
    problem,
};
use crate::{Usage, readable::shown};

/// Time decoding a picture.
#[derive(ClapArgs)]
#[command(after_help = "\
Inputs: latents [1, 16, H/8, W/8] as the transformer leaves them.
'out' is the picture, [1, 3, H, W], about -1 to 1.

Example:  darkroom bench vae --vae ae.safetensors --size 512x512 --runs 3 --stages")]
pub(super) struct Args {
    /// An autoencoder: a file or a folder, any layout
    #[arg(long, value_name = "FILE")]
    vae: PathBuf,
    /// The picture's size in pixels [default: 1024x1024, or that of the inputs]
    #[arg(long, value_name = "WxH", value_parser = super::parse_size)]
    size: Option<(u32, u32)>,
    #[command(flatten)]
    runs: Runs,
}

/// `[height, width]` of latents and their values, channels first.
type Latents = ([usize; 2], Vec<f32>);

pub(super) fn run(args: &Args) -> Result<()> {
    let part = Part::open(&args.vae, Component::Vae)?;
    let config = part.vae_config()?;
    let latents = latents(args, &config)?;
    let [height, width] = latents.0.map(|side| side * config.factor());
    let weights = part.weights(&tensor::Device::DryRun.open(), args.runs.precision);
    Decoder::load(config.clone(), &weights)?;
    let subject = Subject {
        what: "vae",
        title: format!("a picture of {width}×{height} pixels decoded by {}", shown(&args.vae)),
        facts: json!({
            "vae": args.vae.display().to_string(),
            "parameters": weights.parameters_taken(),
            "weight_bytes": weights.bytes_taken(),
            "size": [width, height],
        }),
        prepare: &|backend| {
            let weights = part.weights(backend, args.runs.precision);
            Ok(prepare(Decoder::load(config.clone(), &weights)?, &latents, backend))
        },
        saved: &|out| {
            let out = out.permute(&[2, 0, 1]);
            out.reshape([1, out.shape()[0], out.shape()[1], out.shape()[2]])
        },
    };
    measure(&args.runs, &subject)
}

fn prepare(decoder: Decoder, ([height, width], values): &Latents, backend: &Arc<dyn Backend>) -> Run {
    let shape = [decoder.config().latent_channels, *height, *width];
    let latents = Tensor::from_vec(backend, shape, values.clone()).permute(&[1, 2, 0]);
    Box::new(move || decoder.decode(&latents, &mut || Ok(())))
}

fn latents(args: &Args, config: &VaeConfig) -> Result<Latents> {
    let (channels, factor) = (config.latent_channels, config.factor());
    let Some(path) = &args.runs.inputs else {
        let size = args.size.unwrap_or((1024, 1024));
        check_size(size)?;
        let sides = [size.1, size.0].map(|side| (side as usize).div_ceil(factor));
        return Ok((sides, normal(channels * sides[0] * sides[1], 1)));
    };
    let Array { shape, values } = Arrays::open(path)?.read("latents")?;
    let ([1, found, height, width] | [found, height, width]) = shape[..] else {
        return Err(wrong_shape(path, &shape, channels));
    };
    if found != channels || height == 0 || width == 0 {
        return Err(wrong_shape(path, &shape, channels));
    }
    if let Some((w, h)) = args.size
        && [h, w].map(|side| (side as usize).div_ceil(factor)) != [height, width]
    {
        let told = format!("--size {w}x{h} does not fit 'latents' of shape {shape:?} in {}", shown(path));
        return Err(Usage(told).into());
    }
    Ok(([height, width], values))
}

fn wrong_shape(path: &std::path::Path, shape: &[usize], channels: usize) -> anyhow::Error {
    problem(path, format!("has 'latents' of shape {shape:?}; [1, {channels}, height, width] was expected: one picture"))
}

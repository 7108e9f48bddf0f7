//! `darkroom bench step`: one evaluation of a transformer, of any depth and in any layout that can be read.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{
    model::Part,
    transformer::{Condition, Flux, FluxConfig, Rope},
    weights::Component,
};
use serde_json::json;
use tensor::{Backend, Tensor};

use super::{
    Runs,
    arrays::{Arrays, normal},
    check_size,
    measure::{Run, Subject, measure},
    problem,
};
use crate::{Usage, lora_args, readable::shown};

/// Time one evaluation of a transformer.
#[derive(ClapArgs)]
#[command(after_help = "\
Inputs, by BFL's names: img [1, N, 64], txt [1, T, 4096], y [1, 768], img_ids [1, N, 3],
txt_ids [1, T, 3], timesteps [1] (the noise level, 0 to 1), guidance [1] (if the model has it).
'out' is the velocity, [1, N, 64].

Example:  darkroom bench step --transformer flux1-krea-dev.safetensors --size 512x512 --stages")]
pub(super) struct Args {
    /// A FLUX transformer: a file or a folder, any layout, any number of blocks
    #[arg(long, value_name = "FILE", visible_alias = "diffusion-model")]
    transformer: PathBuf,
    /// The picture's size in pixels [default: 1024x1024, or that of the inputs]
    #[arg(long, value_name = "WxH", value_parser = super::parse_size)]
    size: Option<(u32, u32)>,
    /// Tokens of text [default: 512, or those of the inputs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    text_tokens: Option<u32>,
    /// Apply a LoRA with this weight, 1 without one; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = lora_args::parse)]
    lora: Vec<lora_args::Asked>,
    /// In int8, round the weights anew at every run, as where memory is short; otherwise they are rounded once and kept
    #[arg(long)]
    anew: bool,
    #[command(flatten)]
    runs: Runs,
}

/// What the transformer is asked.
struct Question {
    /// `[N, in_channels]`.
    img: Vec<f32>,
    /// `[T, context_in_dim]`.
    txt: Vec<f32>,
    /// `[vec_in_dim]`.
    pooled: Vec<f32>,
    sigma: f32,
    guidance: f32,
    /// Of text, then of the picture.
    ids: Vec<[f32; 3]>,
    img_tokens: usize,
    txt_tokens: usize,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let part = Part::open(&args.transformer, Component::Transformer)?;
    let config = part.flux_config()?;
    let question = match &args.runs.inputs {
        Some(path) => given(args, &Arrays::open(path)?, path, &config)?,
        None => random(args, &config)?,
    };
    let parameters = part.weights(&tensor::Device::DryRun.open(), args.runs.precision);
    Flux::load(config.clone(), &parameters)?;
    let loras = lora_args::open(&args.lora, false)?;
    let subject = Subject {
        what: "step",
        title: format!(
            "one step of {}: {} double and {} single blocks, {:.2} billion parameters\n{} tokens of picture, {} of text",
            shown(&args.transformer),
            config.depth,
            config.depth_single_blocks,
            parameters.parameters_taken() as f64 / 1e9,
            question.img_tokens,
            question.txt_tokens,
        ),
        facts: json!({
            "transformer": args.transformer.display().to_string(),
            "double_blocks": config.depth,
            "single_blocks": config.depth_single_blocks,
            "parameters": parameters.parameters_taken(),
            "weight_bytes": parameters.bytes_taken(),
            "size": args.size.map(|(w, h)| [w, h]),
            "image_tokens": question.img_tokens,
            "text_tokens": question.txt_tokens,
            "loras": loras.used.len(),
            "anew": args.anew,
        }),
        prepare: &|backend| {
            let weights = part.weights(backend, args.runs.precision);
            let mut flux = Flux::load(config.clone(), &weights)?;
            flux.set_loras(&loras, backend)?;
            let room = flux::memory::available().is_none_or(|bytes| bytes > flux.layout().bytes());
            if room && !args.anew {
                flux.layout().keep(usize::MAX);
            }
            Ok(prepare(flux, &question, backend))
        },
        saved: &|out| out.reshape([1, out.shape()[0], out.shape()[1]]),
    };
    measure(&args.runs, &subject)
}

fn prepare(flux: Flux, question: &Question, backend: &Arc<dyn Backend>) -> Run {
    let config = flux.config();
    let matrix =
        |rows: usize, columns: usize, values: &[f32]| Tensor::from_vec(backend, [rows, columns], values.to_vec());
    let img = matrix(question.img_tokens, config.in_channels, &question.img);
    let txt = matrix(question.txt_tokens, config.context_in_dim, &question.txt);
    let pooled = matrix(1, config.vec_in_dim, &question.pooled);
    let rope = Rope::new(backend, &question.ids, config.axes_dim, config.theta);
    // The question as it was asked: not rounded to bf16, as `generate` does because all references do.
    let [sigma, guidance_argument] = [question.sigma, 1000.0 * question.guidance];
    Box::new(move || {
        let condition = Condition { txt: &txt, pooled: &pooled, guidance_argument, rope: &rope };
        flux.forward(&img, sigma, condition, &mut |_, _| Ok(()))
    })
}

/// Random inputs, the same each time: noise for the picture, positions as `generate` has them.
fn random(args: &Args, config: &FluxConfig) -> Result<Question> {
    let size = args.size.unwrap_or((1024, 1024));
    check_size(size)?;
    let [rows, columns] = grid(size);
    let (img_tokens, txt_tokens) = (rows * columns, args.text_tokens.unwrap_or(512) as usize);
    let text = std::iter::repeat_n([0.0; 3], txt_tokens);
    let picture = (0..rows).flat_map(|row| (0..columns).map(move |column| [0.0, row as f32, column as f32]));
    Ok(Question {
        img: normal(img_tokens * config.in_channels, 1),
        txt: normal(txt_tokens * config.context_in_dim, 2).iter().map(|v| 0.2 * v).collect(),
        pooled: normal(config.vec_in_dim, 3),
        sigma: 0.5,
        guidance: 4.0,
        ids: text.chain(picture).collect(),
        img_tokens,
        txt_tokens,
    })
}

/// Rows and columns of tokens: 16 pixels each.
fn grid((width, height): (u32, u32)) -> [usize; 2] {
    [height, width].map(|side| (side as usize).div_ceil(16))
}

/// Inputs from a file.
fn given(args: &Args, inputs: &Arrays, path: &std::path::Path, config: &FluxConfig) -> Result<Question> {
    let ([img_tokens, _], img) = inputs.matrix("img", [None, Some(config.in_channels)])?;
    let ([txt_tokens, _], txt) = inputs.matrix("txt", [None, Some(config.context_in_dim)])?;
    let (_, pooled) = match inputs.read("y")?.shape[..] {
        [_] => ([1, 1], vector(inputs, "y", config.vec_in_dim)?),
        _ => inputs.matrix("y", [Some(1), Some(config.vec_in_dim)])?,
    };
    let sigma = inputs.number("timesteps")?;
    if !(0.0..=1.0).contains(&sigma) {
        return Err(problem(path, format!("has 'timesteps' {sigma}; a noise level from 0 to 1 was expected")));
    }
    let guidance = if config.guidance_embed || inputs.has("guidance") { inputs.number("guidance")? } else { 0.0 };
    let ids = |name: &str, tokens: usize| -> Result<Vec<[f32; 3]>> {
        let (_, values) = inputs.matrix(name, [Some(tokens), Some(3)])?;
        Ok(values.as_chunks::<3>().0.to_vec())
    };
    let ids = [ids("txt_ids", txt_tokens)?, ids("img_ids", img_tokens)?].concat();
    if let Some(size) = args.size {
        let [rows, columns] = grid(size);
        if rows * columns != img_tokens {
            let told = format!("--size {}x{} is {} tokens", size.0, size.1, rows * columns);
            return Err(Usage(format!("{told}, but 'img' in {} has {img_tokens}", shown(path))).into());
        }
    }
    if let Some(told) = args.text_tokens
        && told as usize != txt_tokens
    {
        let problem = format!("--text-tokens is {told}, but 'txt' in {} has {txt_tokens}", shown(path));
        return Err(Usage(problem).into());
    }
    Ok(Question { img, txt, pooled, sigma, guidance, ids, img_tokens, txt_tokens })
}

fn vector(inputs: &Arrays, name: &str, len: usize) -> Result<Vec<f32>> {
    let array = inputs.read(name)?;
    if array.shape == [len] {
        Ok(array.values)
    } else {
        Err(inputs.wrong_shape(name, &array.shape, [Some(1), Some(len)]))
    }
}

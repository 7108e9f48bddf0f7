//! `darkroom bench t5`: token ids to hidden states, with as many layers as the file has.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{
    model::Part,
    text::t5::{T5, T5Config},
    weights::Component,
};
use serde_json::json;
use tensor::Backend;

use super::{
    Runs,
    arrays::Arrays,
    measure::{Run, Subject, measure},
    problem,
};
use crate::{Usage, readable::shown};

/// Time reading a prompt with T5.
#[derive(ClapArgs)]
#[command(after_help = "\
Inputs: ids [T] or [1, T], whole numbers. 'out' is the hidden states, [1, T, 4096].

Example:  darkroom bench t5 --t5 t5xxl_fp16.safetensors --tokens 512 --runs 3 --stages")]
pub(super) struct Args {
    /// A T5 encoder: a file or a folder, any layout, any number of layers
    #[arg(long, value_name = "FILE", visible_alias = "t5xxl")]
    t5: PathBuf,
    /// Tokens [default: 512, or those of the inputs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: Option<u32>,
    #[command(flatten)]
    runs: Runs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let part = Part::open(&args.t5, Component::T5)?;
    let config = part.t5_config()?;
    let ids = ids(args, &config)?;
    let weights = part.weights(&tensor::Device::DryRun.open(), args.runs.precision);
    T5::load(config.clone(), &weights)?;
    let subject = Subject {
        what: "t5",
        title: format!(
            "{} tokens read by {}: {} layers, {:.2} billion parameters",
            ids.len(),
            shown(&args.t5),
            config.num_layers,
            weights.parameters_taken() as f64 / 1e9
        ),
        facts: json!({
            "t5": args.t5.display().to_string(),
            "layers": config.num_layers,
            "parameters": weights.parameters_taken(),
            "weight_bytes": weights.bytes_taken(),
            "tokens": ids.len(),
        }),
        prepare: &|backend| {
            let weights = part.weights(backend, args.runs.precision);
            Ok(prepare(T5::load(config.clone(), &weights)?, &ids, backend))
        },
        saved: &|out| out.reshape([1, out.shape()[0], out.shape()[1]]),
    };
    measure(&args.runs, &subject)
}

fn prepare(t5: T5, ids: &[u32], backend: &Arc<dyn Backend>) -> Run {
    let (ids, backend) = (ids.to_vec(), backend.clone());
    Box::new(move || t5.forward(&backend, &ids, &mut |_, _| Ok(())))
}

/// Ids from the inputs, or some that are spread over the vocabulary.
fn ids(args: &Args, config: &T5Config) -> Result<Vec<u32>> {
    let Some(path) = &args.runs.inputs else {
        let count = args.tokens.unwrap_or(512) as usize;
        return Ok((0..count).map(|i| (i * 7919 % config.vocab_size.max(1)) as u32).collect());
    };
    let (shape, ids) = Arrays::open(path)?.read_ids("ids")?;
    if ids.is_empty() || !matches!(shape[..], [_] | [1, _]) {
        return Err(problem(path, format!("has 'ids' of shape {shape:?}; [tokens] was expected")));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(problem(path, format!("has the id {id}, but the encoder knows {} tokens", config.vocab_size)));
    }
    if let Some(tokens) = args.tokens
        && tokens as usize != ids.len()
    {
        let problem = format!("--tokens is {tokens}, but 'ids' in {} are {}", shown(path), ids.len());
        return Err(Usage(problem).into());
    }
    Ok(ids)
}

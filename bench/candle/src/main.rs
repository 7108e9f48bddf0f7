//! One step of a FLUX transformer by candle: `step KIND WEIGHTS INPUTS OUT` waits for a line before each run and answers with
//! its seconds, as `darkroom bench step --paced` does. `quantize KIND WEIGHTS.safetensors OUT.gguf` makes what it reads.
//!
//! KIND is q4_K or q8_0 (a GGUF file, candle's quantised model), bf16 or f32 (safetensors, its plain model).

use std::{collections::HashMap, fs::File, io::BufRead, path::Path, time::Instant};

use anyhow::{Context, Result, bail};
use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
    safetensors,
};
use candle_nn::VarBuilder;
use candle_transformers::{
    models::flux::{WithForward, model, quantized_model},
    quantized_var_builder,
};
use serde_json::json;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["quantize", kind, weights, out] => quantize(kind, weights, out),
        ["step", kind, weights, inputs, out] => step(kind, weights, inputs, out),
        _ => bail!("expected: quantize KIND WEIGHTS OUT, or step KIND WEIGHTS INPUTS OUT"),
    }
}

/// Matrices in the kind asked for, all else in f32.
fn quantize(kind: &str, weights: &str, out: &str) -> Result<()> {
    let dtype = match kind {
        "q4_K" => GgmlDType::Q4K,
        "q8_0" => GgmlDType::Q8_0,
        _ => bail!("'{kind}' is not q4_K or q8_0"),
    };
    let mut quantized = Vec::new();
    for (name, tensor) in safetensors::load(weights, &Device::Cpu)? {
        let matrix = tensor.rank() == 2 && tensor.dim(1)?.is_multiple_of(dtype.block_size());
        let tensor = tensor.to_dtype(DType::F32)?;
        quantized.push((name, QTensor::quantize(&tensor, if matrix { dtype } else { GgmlDType::F32 })?));
    }
    quantized.sort_by(|a, b| a.0.cmp(&b.0));
    let tensors: Vec<(&str, &QTensor)> = quantized.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let architecture = gguf_file::Value::String("flux".into());
    // Under its name only when it is whole.
    let partial = format!("{out}.partial");
    gguf_file::write(&mut File::create(&partial)?, &[("general.architecture", &architecture)], &tensors)?;
    std::fs::rename(&partial, out).context("cannot rename the finished file")
}

fn step(kind: &str, weights: &str, inputs: &str, out: &str) -> Result<()> {
    let (flux, dtype) = load(kind, weights)?;
    let inputs = safetensors::load(inputs, &Device::Cpu)?;
    let input = |name: &str| -> Result<Tensor> {
        let tensor = inputs.get(name).with_context(|| format!("the inputs lack '{name}'"))?;
        Ok(tensor.to_dtype(dtype)?)
    };
    let [img, img_ids, txt, txt_ids] = ["img", "img_ids", "txt", "txt_ids"].map(input);
    let [timesteps, y, guidance] = ["timesteps", "y", "guidance"].map(input);
    let (img, img_ids, txt, txt_ids) = (img?, img_ids?, txt?, txt_ids?);
    let (timesteps, y, guidance) = (timesteps?, y?, guidance?);
    let run = || -> Result<(Tensor, f64)> {
        let start = Instant::now();
        let velocity = flux.forward(&img, &img_ids, &txt, &txt_ids, &timesteps, &y, Some(&guidance))?;
        Ok((velocity, start.elapsed().as_secs_f64()))
    };
    let (velocity, warm_up) = run()?;
    let saved = HashMap::from([("out", velocity.to_dtype(DType::F32)?)]);
    safetensors::save(&saved, Path::new(out))?;
    println!("{}", json!({"ready": true, "warm_up_seconds": warm_up}));
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("{}", json!({"seconds": run()?.1, "peak_rss_bytes": peak_rss()}));
    }
    Ok(())
}

/// The model with as many blocks as the file has, and the type of its activations.
fn load(kind: &str, weights: &str) -> Result<(Box<dyn WithForward>, DType)> {
    let device = Device::Cpu;
    if kind.starts_with('q') {
        let names = gguf_file::Content::read(&mut File::open(weights)?)?.tensor_infos;
        let config = config(|name| names.contains_key(name));
        let weights = quantized_var_builder::VarBuilder::from_gguf(weights, &device)?;
        return Ok((Box::new(quantized_model::Flux::new(&config, weights)?), DType::F32));
    }
    let dtype = match kind {
        "bf16" => DType::BF16,
        "f32" => DType::F32,
        _ => bail!("'{kind}' is not q4_K, q8_0, bf16 or f32"),
    };
    let tensors = safetensors::load(weights, &device)?;
    let config = config(|name| tensors.contains_key(name));
    Ok((Box::new(model::Flux::new(&config, VarBuilder::from_tensors(tensors, dtype, &device))?), dtype))
}

fn config(has: impl Fn(&str) -> bool) -> model::Config {
    let blocks = |name: &str, layer: &str| (0..).take_while(|i| has(&format!("{name}.{i}.{layer}.weight"))).count();
    model::Config {
        depth: blocks("double_blocks", "img_mod.lin"),
        depth_single_blocks: blocks("single_blocks", "linear1"),
        guidance_embed: has("guidance_in.in_layer.weight"),
        ..model::Config::dev()
    }
}

/// The most memory this process had at one time.
fn peak_rss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

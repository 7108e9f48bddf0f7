//! How to compute: the flags that all verbs which run a model share.

use clap::Args;
use flux::LoadOptions;
use tensor::{Device, Precision};

/// How to compute.
#[derive(Args, Clone)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// Threads [default: all cores]; the picture does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Arithmetic of products: f32, bf16, int8 (the transformer's large layers, bf16 elsewhere) or auto: f32 where the
    /// weights are, otherwise bf16
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = parse_precision)]
    precision: Asked,
}

/// A precision, or what suits the model.
#[derive(Clone, Copy)]
struct Asked(Option<Precision>);

impl ComputeArgs {
    /// As the library takes them.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            device: Device::Cpu { threads: self.threads.map(usize::from) },
            precision: self.precision.0,
            safety: None,
        }
    }
}

fn parse_precision(text: &str) -> Result<Asked, String> {
    Ok(Asked(match text {
        "auto" => None,
        "f32" | "fp32" => Some(Precision::F32),
        "bf16" => Some(Precision::BF16),
        "int8" => Some(Precision::Int8),
        _ => return Err(format!("'{text}' is not a precision; auto, f32, bf16 and int8 are")),
    }))
}

//! Text to conditioning: tokenizers, then CLIP for one vector and T5 for a sequence.

pub mod clip;
pub mod t5;
pub mod tokenizer;

use tensor::Unary;

/// The activation of this name in Hugging Face configurations.
pub(crate) fn activation(name: &str) -> Result<Unary, String> {
    Ok(match name {
        "gelu" => Unary::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Unary::GeluTanh,
        "quick_gelu" => Unary::QuickGelu,
        "relu" => Unary::Relu,
        "silu" | "swish" => Unary::Silu,
        other => {
            return Err(format!("asks for the activation '{other}'; gelu, gelu_new, quick_gelu, relu and silu exist"));
        }
    })
}

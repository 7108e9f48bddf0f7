//! How a LoRA's tensors are called: a prefix that says of which model, a layer in some spelling, an ending that says what it is.
//!
//! Source: the files that kohya's sd-scripts, ai-toolkit, diffusers, SimpleTuner, OneTrainer, XLabs, fal's trainer and BFL write, as
//! `ComfyUI/comfy/lora.py` and `diffusers/loaders/lora_conversion_utils.py` read them.

use crate::weights::Component;

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The first factor, `[rank, in]`; PEFT's A.
    Down,
    /// The second factor, `[out, rank]`; PEFT's B.
    Up,
    /// Is added to the bias.
    UpBias,
    /// One number; the change is `alpha / rank` times the product.
    Alpha,
    /// Lengths of rows or columns: DoRA.
    Magnitude,
    /// LoHa: `(w1_a · w1_b) ⊙ (w2_a · w2_b)`.
    Hada1A,
    Hada1B,
    Hada2A,
    Hada2B,
    /// LoKr: `w1 ⊗ w2`, each whole or as `a · b`.
    Kron1,
    Kron1A,
    Kron1B,
    Kron2,
    Kron2A,
    Kron2B,
    /// The whole change of a weight.
    Diff,
    /// The whole change of a bias.
    DiffBias,
    /// The shape of the weight that is meant; it shows in the factors, too.
    Shape,
}

/// Endings. Of two that fit, the first one is meant.
const ENDINGS: [(&str, Role); 36] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_B.bias", Role::UpBias),
    (".lora_B.default.bias", Role::UpBias),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".down.weight", Role::Down),
    (".up.weight", Role::Up),
    (".lora_A", Role::Down),
    (".lora_B", Role::Up),
    (".alpha", Role::Alpha),
    (".dora_scale", Role::Magnitude),
    (".lora_magnitude_vector", Role::Magnitude),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector.default.weight", Role::Magnitude),
    (".hada_w1_a", Role::Hada1A),
    (".hada_w1_b", Role::Hada1B),
    (".hada_w2_a", Role::Hada2A),
    (".hada_w2_b", Role::Hada2B),
    (".lokr_w1", Role::Kron1),
    (".lokr_w1_a", Role::Kron1A),
    (".lokr_w1_b", Role::Kron1B),
    (".lokr_w2", Role::Kron2),
    (".lokr_w2_a", Role::Kron2A),
    (".lokr_w2_b", Role::Kron2B),
    (".diff", Role::Diff),
    (".diff_b", Role::DiffBias),
    (".reshape_weight", Role::Shape),
];

/// A key without its ending, and what the ending says.
pub(super) fn split(key: &str) -> Option<(&str, Role)> {
    ENDINGS.iter().find_map(|&(ending, role)| Some((key.strip_suffix(ending)?, role)))
}

/// How a layer's name is spelt behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `double_blocks.0.img_attn.qkv`.
    Dots,
    /// `double_blocks_0_img_attn_qkv`.
    Underscores,
}

/// Prefixes. Those that fit are tried in this order.
pub(super) const PREFIXES: [(&str, Component, Spelling); 21] = [
    ("lora_unet_", Component::Transformer, Spelling::Underscores),
    ("lora_transformer_", Component::Transformer, Spelling::Underscores),
    ("lycoris_", Component::Transformer, Spelling::Underscores),
    ("lora_te_", Component::ClipL, Spelling::Underscores),
    ("lora_te1_", Component::ClipL, Spelling::Underscores),
    ("lora_te2_", Component::T5, Spelling::Underscores),
    ("lora_te3_", Component::T5, Spelling::Underscores),
    ("diffusion_model.", Component::Transformer, Spelling::Dots),
    ("model.diffusion_model.", Component::Transformer, Spelling::Dots),
    ("base_model.model.", Component::Transformer, Spelling::Dots),
    ("base_model.model.transformer.", Component::Transformer, Spelling::Dots),
    ("transformer.base_model.model.", Component::Transformer, Spelling::Dots),
    ("transformer.", Component::Transformer, Spelling::Dots),
    ("unet.", Component::Transformer, Spelling::Dots),
    ("text_encoder.", Component::ClipL, Spelling::Dots),
    ("text_encoder_2.", Component::T5, Spelling::Dots),
    ("text_encoders.clip_l.transformer.", Component::ClipL, Spelling::Dots),
    ("text_encoders.t5xxl.transformer.", Component::T5, Spelling::Dots),
    ("clip_l.", Component::ClipL, Spelling::Dots),
    ("t5xxl.", Component::T5, Spelling::Dots),
    ("", Component::Transformer, Spelling::Dots),
];

/// Another program's model, told by what its LoRAs call their layers.
pub(super) fn other_model(key: &str) -> Option<&'static str> {
    const MARKS: [(&str, &str); 11] = [
        ("lora_te2_text_model", "Stable Diffusion XL"),
        ("_attn1_", "Stable Diffusion 1, 2 or XL"),
        ("_attn2_", "Stable Diffusion 1, 2 or XL"),
        (".attn1.", "Stable Diffusion 1, 2 or XL"),
        ("input_blocks", "Stable Diffusion 1, 2 or XL"),
        ("down_blocks", "Stable Diffusion 1, 2 or XL"),
        ("joint_blocks", "Stable Diffusion 3"),
        ("joint_transformer_blocks", "AuraFlow"),
        ("double_stream_modulation_img", "FLUX.2"),
        ("cross_attn", "a video model"),
        ("distilled_guidance_layer", "Chroma"),
    ];
    MARKS.iter().find(|(mark, _)| key.contains(mark)).map(|(_, model)| *model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        for (key, expected) in [
            ("lora_unet_single_blocks_3_linear1.lora_down.weight", ("lora_unet_single_blocks_3_linear1", Role::Down)),
            ("double_blocks.0.processor.qkv_lora1.up.weight", ("double_blocks.0.processor.qkv_lora1", Role::Up)),
            ("single_blocks.0.processor.qkv_lora.down.weight", ("single_blocks.0.processor.qkv", Role::Down)),
            ("transformer.x.lora_A.default.weight", ("transformer.x", Role::Down)),
            ("transformer.x.lora_B.bias", ("transformer.x", Role::UpBias)),
            ("lycoris_x.lokr_w1_a", ("lycoris_x", Role::Kron1A)),
            ("x.lora_magnitude_vector.default.weight", ("x", Role::Magnitude)),
            ("x.diff_b", ("x", Role::DiffBias)),
        ] {
            assert_eq!(split(key), Some(expected));
        }
        assert_eq!(split("double_blocks.0.img_attn.qkv.weight"), None);
    }
}

//! What a checkpoint holds, told from its tensors' names: which components, under which prefix, in whose naming.

use super::{Checkpoint, Naming};

/// A part of a text-to-image model, or something related that people keep beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// FLUX's transformer; ComfyUI: diffusion model, unet.
    Transformer,
    /// The autoencoder.
    Vae,
    /// CLIP-L's text tower.
    ClipL,
    /// T5's encoder.
    T5,
    /// TAEF1's decoder, for previews.
    TinyDecoder,
    /// TAEF1's encoder.
    TinyEncoder,
    /// SigLIP's vision tower, which sees pictures for Redux.
    Vision,
    /// What makes tokens of what the tower saw.
    Redux,
}

impl Component {
    /// The name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "autoencoder (vae)",
            Self::ClipL => "CLIP-L text encoder",
            Self::T5 => "T5 text encoder",
            Self::TinyDecoder => "tiny decoder (taef1)",
            Self::TinyEncoder => "tiny encoder (taef1)",
            Self::Vision => "SigLIP vision tower",
            Self::Redux => "Redux projector",
        }
    }
}

/// A component found in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// What it is.
    pub component: Component,
    /// What the names of its tensors begin with.
    pub prefix: String,
    /// How the rest of the names is spelt.
    pub naming: Naming,
}

/// `ComfyUI`'s, and what stable-diffusion.cpp writes besides.
const CLIP_PREFIXES: [&str; 6] = [
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_l.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "te1.",
    "",
];
const T5_PREFIXES: [&str; 5] =
    ["text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "cond_stage_model.1.transformer.", "te3.", ""];

/// All components of a checkpoint, each once.
pub fn detect(checkpoint: &Checkpoint) -> Vec<Detected> {
    let has = |prefix: &str, name: &str| checkpoint.entry(&format!("{prefix}{name}")).is_some();
    let mut found: Vec<Detected> = Vec::new();
    let mut add = |component, prefix: &str, naming| {
        if !found.iter().any(|d| d.component == component) {
            found.push(Detected { component, prefix: prefix.to_owned(), naming });
        }
    };
    for prefix in ["model.diffusion_model.", "", "transformer.", "diffusion_model."] {
        if has(prefix, "distilled_guidance_layer.norms.0.scale") {
            continue; // Chroma: FLUX's blocks without its modulations
        }
        let block = |double: &str, single: &str| has(prefix, double) || has(prefix, single);
        let bfl = block("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight");
        // Without `img_in` a file lacks all that is not a block; modulations of each block are FLUX.1's alone.
        let pruned = || block("double_blocks.0.img_mod.lin.weight", "single_blocks.0.modulation.lin.weight");
        if bfl && (has(prefix, "img_in.weight") || pruned()) {
            add(Component::Transformer, prefix, Naming::Same);
        }
        let names = ["transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.proj_mlp.weight"];
        if has(prefix, "x_embedder.weight") && has(prefix, "context_embedder.weight") && block(names[0], names[1]) {
            add(Component::Transformer, prefix, Naming::FluxDiffusers);
        }
    }
    for prefix in ["vae.", "first_stage_model.", ""] {
        if has(prefix, "decoder.up.0.block.0.conv1.weight") {
            add(Component::Vae, prefix, Naming::Same);
        }
        if has(prefix, "decoder.up_blocks.0.resnets.0.conv1.weight") {
            let levels = checkpoint.blocks(&format!("{prefix}decoder.up_blocks"));
            add(Component::Vae, prefix, Naming::VaeDiffusers { levels });
        }
    }
    for prefix in CLIP_PREFIXES {
        if ["text_model.", ""].iter().any(|p| has(prefix, &format!("{p}embeddings.token_embedding.weight"))) {
            add(Component::ClipL, prefix, Naming::Same);
        }
    }
    for prefix in T5_PREFIXES {
        // A bias in every block is UMT5's.
        let bias = |name: &str| has(prefix, &name.replace('N', "0")) && !has(prefix, &name.replace('N', "1"));
        if bias("encoder.block.N.layer.0.SelfAttention.relative_attention_bias.weight") {
            add(Component::T5, prefix, Naming::Same);
        }
        if bias("enc.blk.N.attn_rel_b.weight") {
            add(Component::T5, prefix, Naming::T5Llama);
        }
    }
    for (prefix, first) in [("taesd_decoder.", "1.weight"), ("", "1.weight"), ("", "decoder.layers.0.weight")] {
        if has(prefix, first) && (has(prefix, "3.conv.0.weight") || has(prefix, "decoder.layers.2.conv.0.weight")) {
            add(Component::TinyDecoder, prefix, Naming::Same);
        }
    }
    for (prefix, first) in [("taesd_encoder.", "0.weight"), ("", "0.weight"), ("", "encoder.layers.0.weight")] {
        if has(prefix, first) && (has(prefix, "1.conv.0.weight") || has(prefix, "encoder.layers.1.conv.0.weight")) {
            add(Component::TinyEncoder, prefix, Naming::Same);
        }
    }
    // CLIP's tower has a class token, and no bias here.
    for root in ["vision_model.", ""] {
        let patches = |part: &str| has(root, &format!("embeddings.{part}"));
        if patches("patch_embedding.bias") && patches("position_embedding.weight") && !patches("class_embedding") {
            add(Component::Vision, "", Naming::Same);
        }
    }
    if has("", "redux_up.weight") && has("", "redux_down.weight") {
        add(Component::Redux, "", Naming::Same);
    }
    found
}

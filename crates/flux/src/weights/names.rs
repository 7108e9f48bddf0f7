//! BFL's tensor names ↔ diffusers' names, for the transformer and the autoencoder; Hugging Face's ↔ llama.cpp's, for T5.
//!
//! Source: `flux/src/flux/model.py`, `diffusers/scripts/convert_flux_to_diffusers.py`, `gguf/tensor_mapping.py`. The traps: diffusers keeps q, k, v
//! (and the single block's MLP) apart; the last modulation's halves are swapped; the decoder's levels count the other way.

/// How a file names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// As the engine does: BFL's names, or Hugging Face's for T5 and CLIP.
    Same,
    /// `FluxTransformer2DModel`.
    FluxDiffusers,
    /// `AutoencoderKL` with this many resolution levels.
    VaeDiffusers {
        /// `block_out_channels.len()`.
        levels: usize,
    },
    /// T5's encoder as llama.cpp's GGUF files have it.
    T5Llama,
}

/// Rows of a tensor in a file that make up a part of one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file's name, without prefix.
    pub name: String,
    /// All rows, or one half of them.
    pub half: Option<Half>,
}

/// A half of a tensor's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Rows from the first.
    First,
    /// Rows from the middle.
    Second,
}

impl Naming {
    /// The tensors of the file that make up ours, top to bottom.
    pub fn pieces(self, name: &str) -> Vec<Piece> {
        match self {
            Self::Same => whole([name.to_owned()]),
            Self::FluxDiffusers => flux(name),
            Self::VaeDiffusers { levels } => whole([vae(name, levels)]),
            Self::T5Llama => whole([t5(name)]),
        }
    }
}

fn whole<const N: usize>(names: [String; N]) -> Vec<Piece> {
    names.map(|name| Piece { name, half: None }).into()
}

fn flux(name: &str) -> Vec<Piece> {
    let (layer, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    // Norm scales are called `scale` by BFL and `weight` by diffusers.
    let kind = if kind == "scale" { "weight" } else { kind };
    let one = |layer: &str| whole([format!("{layer}.{kind}")]);
    if let Some((block, part)) = block(layer, "double_blocks.") {
        let at = |part: &str| format!("transformer_blocks.{block}.{part}.{kind}");
        return match part {
            "img_attn.qkv" => whole(["attn.to_q", "attn.to_k", "attn.to_v"].map(at)),
            "txt_attn.qkv" => whole(["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"].map(at)),
            "img_mod.lin" => whole([at("norm1.linear")]),
            "txt_mod.lin" => whole([at("norm1_context.linear")]),
            "img_attn.norm.query_norm" => whole([at("attn.norm_q")]),
            "img_attn.norm.key_norm" => whole([at("attn.norm_k")]),
            "txt_attn.norm.query_norm" => whole([at("attn.norm_added_q")]),
            "txt_attn.norm.key_norm" => whole([at("attn.norm_added_k")]),
            "img_attn.proj" => whole([at("attn.to_out.0")]),
            "txt_attn.proj" => whole([at("attn.to_add_out")]),
            "img_mlp.0" => whole([at("ff.net.0.proj")]),
            "img_mlp.2" => whole([at("ff.net.2")]),
            "txt_mlp.0" => whole([at("ff_context.net.0.proj")]),
            "txt_mlp.2" => whole([at("ff_context.net.2")]),
            other => whole([at(other)]),
        };
    }
    if let Some((block, part)) = block(layer, "single_blocks.") {
        let at = |part: &str| format!("single_transformer_blocks.{block}.{part}.{kind}");
        return match part {
            "linear1" => whole(["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(at)),
            "linear2" => whole([at("proj_out")]),
            "modulation.lin" => whole([at("norm.linear")]),
            "norm.query_norm" => whole([at("attn.norm_q")]),
            "norm.key_norm" => whole([at("attn.norm_k")]),
            other => whole([at(other)]),
        };
    }
    match layer {
        "img_in" => one("x_embedder"),
        "txt_in" => one("context_embedder"),
        "time_in.in_layer" => one("time_text_embed.timestep_embedder.linear_1"),
        "time_in.out_layer" => one("time_text_embed.timestep_embedder.linear_2"),
        "guidance_in.in_layer" => one("time_text_embed.guidance_embedder.linear_1"),
        "guidance_in.out_layer" => one("time_text_embed.guidance_embedder.linear_2"),
        "vector_in.in_layer" => one("time_text_embed.text_embedder.linear_1"),
        "vector_in.out_layer" => one("time_text_embed.text_embedder.linear_2"),
        "final_layer.linear" => one("proj_out"),
        "final_layer.adaLN_modulation.1" => [Half::Second, Half::First]
            .map(|half| Piece { name: format!("norm_out.linear.{kind}"), half: Some(half) })
            .into(),
        other => one(other),
    }
}

/// `double_blocks.3.img_mod.lin` → `(3, img_mod.lin)`.
fn block<'a>(layer: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    layer.strip_prefix(kind)?.split_once('.')
}

fn vae(name: &str, levels: usize) -> String {
    let name = name
        .replace("mid.block_1", "mid_block.resnets.0")
        .replace("mid.block_2", "mid_block.resnets.1")
        .replace("mid.attn_1.norm", "mid_block.attentions.0.group_norm")
        .replace("mid.attn_1.q", "mid_block.attentions.0.to_q")
        .replace("mid.attn_1.k", "mid_block.attentions.0.to_k")
        .replace("mid.attn_1.v", "mid_block.attentions.0.to_v")
        .replace("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0")
        .replace("nin_shortcut", "conv_shortcut")
        .replace("norm_out", "conv_norm_out")
        .replace("downsample.conv", "downsamplers.0.conv")
        .replace("upsample.conv", "upsamplers.0.conv")
        .replace(".block.", ".resnets.");
    if let Some(rest) = name.strip_prefix("encoder.down.") {
        return format!("encoder.down_blocks.{rest}");
    }
    let Some((level, rest)) = name.strip_prefix("decoder.up.").and_then(|rest| rest.split_once('.')) else {
        return name;
    };
    let level = level.parse::<usize>().ok().and_then(|level| levels.checked_sub(1 + level));
    level.map_or_else(|| name.clone(), |level| format!("decoder.up_blocks.{level}.{rest}"))
}

fn t5(name: &str) -> String {
    let layers = [
        ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
        ("layer.0.SelfAttention.q", "attn_q"),
        ("layer.0.SelfAttention.k", "attn_k"),
        ("layer.0.SelfAttention.v", "attn_v"),
        ("layer.0.SelfAttention.o", "attn_o"),
        ("layer.0.layer_norm", "attn_norm"),
        ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
        ("layer.1.DenseReluDense.wi_1", "ffn_up"),
        ("layer.1.DenseReluDense.wi", "ffn_up"),
        ("layer.1.DenseReluDense.wo", "ffn_down"),
        ("layer.1.layer_norm", "ffn_norm"),
    ];
    match name {
        "shared.weight" => return "token_embd.weight".into(),
        "encoder.final_layer_norm.weight" => return "enc.output_norm.weight".into(),
        _ => {}
    }
    let Some((block, part)) = block(name, "encoder.block.") else { return name.to_owned() };
    let (layer, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    let theirs = layers.iter().find(|(ours, _)| *ours == layer).map_or(layer, |(_, theirs)| theirs);
    format!("enc.blk.{block}.{theirs}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(naming: Naming, name: &str) -> Vec<String> {
        naming.pieces(name).into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn fused_layers_come_apart() {
        let qkv = names(Naming::FluxDiffusers, "double_blocks.3.txt_attn.qkv.bias");
        assert_eq!(
            qkv,
            ["add_q_proj", "add_k_proj", "add_v_proj"].map(|p| format!("transformer_blocks.3.attn.{p}.bias"))
        );
        let linear1 = names(Naming::FluxDiffusers, "single_blocks.7.linear1.weight");
        assert_eq!(linear1.len(), 4);
        assert_eq!(linear1[3], "single_transformer_blocks.7.proj_mlp.weight");
    }

    #[test]
    fn the_last_modulation_swaps_halves() {
        let pieces = Naming::FluxDiffusers.pieces("final_layer.adaLN_modulation.1.weight");
        assert_eq!(pieces.iter().map(|p| p.half).collect::<Vec<_>>(), [Some(Half::Second), Some(Half::First)]);
    }

    #[test]
    fn an_encoder_of_llama_cpp() {
        for (ours, theirs) in [
            ("shared.weight", "token_embd.weight"),
            ("encoder.final_layer_norm.weight", "enc.output_norm.weight"),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "enc.blk.0.attn_rel_b.weight"),
            ("encoder.block.23.layer.0.SelfAttention.o.weight", "enc.blk.23.attn_o.weight"),
            ("encoder.block.7.layer.1.DenseReluDense.wi_0.weight", "enc.blk.7.ffn_gate.weight"),
            ("encoder.block.7.layer.1.DenseReluDense.wi_1.weight", "enc.blk.7.ffn_up.weight"),
            ("encoder.block.7.layer.1.DenseReluDense.wo.weight", "enc.blk.7.ffn_down.weight"),
            ("encoder.block.7.layer.0.layer_norm.weight", "enc.blk.7.attn_norm.weight"),
            ("encoder.block.7.layer.1.layer_norm.weight", "enc.blk.7.ffn_norm.weight"),
        ] {
            assert_eq!(names(Naming::T5Llama, ours), [theirs]);
        }
    }

    #[test]
    fn decoder_levels_count_the_other_way() {
        let naming = Naming::VaeDiffusers { levels: 4 };
        assert_eq!(names(naming, "decoder.up.3.block.0.conv1.weight"), ["decoder.up_blocks.0.resnets.0.conv1.weight"]);
        assert_eq!(names(naming, "decoder.up.1.upsample.conv.bias"), ["decoder.up_blocks.2.upsamplers.0.conv.bias"]);
        assert_eq!(
            names(naming, "encoder.down.2.block.1.nin_shortcut.bias"),
            ["encoder.down_blocks.2.resnets.1.conv_shortcut.bias"]
        );
        assert_eq!(
            names(naming, "decoder.mid.attn_1.proj_out.weight"),
            ["decoder.mid_block.attentions.0.to_out.0.weight"]
        );
    }
}

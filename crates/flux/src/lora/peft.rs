//! What PEFT says beside its tensors: the numbers from which its factors come, for the file's layers without an alpha.
//!
//! diffusers writes them as JSON into the metadata `lora_adapter_metadata`, each with the component before it
//! (`transformer.lora_alpha`); PEFT itself as `adapter_config.json` beside `adapter_model.safetensors`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::weights::Checkpoint;

/// The longest configuration that is read, bytes.
const LONGEST: u64 = 1 << 20;

/// Alphas by component.
#[derive(Clone, Debug, Default)]
pub(super) struct Peft {
    /// By what names of its layers begin with: `transformer.`, `text_encoder.`, or nothing.
    configs: BTreeMap<String, Config>,
}

#[derive(Clone, Debug, Default)]
struct Config {
    lora_alpha: Option<f32>,
    alpha_pattern: BTreeMap<String, f32>,
    use_rslora: bool,
}

impl Peft {
    /// Of a file, or of its neighbour.
    pub(super) fn read(file: &Checkpoint) -> Result<Self, String> {
        if let Some(json) = file.metadata("lora_adapter_metadata") {
            let parsed = serde_json::from_str(json);
            return parsed
                .map(|map| Self::parse(&map))
                .map_err(|e| format!("has 'lora_adapter_metadata' that cannot be read: {e}"));
        }
        let path = file.origin();
        if path.file_stem().is_none_or(|stem| stem != "adapter_model") {
            return Ok(Self::default());
        }
        let beside = path.with_file_name("adapter_config.json");
        match std::fs::metadata(&beside) {
            Ok(metadata) if metadata.len() <= LONGEST => {}
            Ok(_) => return Err(format!("lies beside an adapter_config.json of more than {LONGEST} bytes")),
            Err(_) => return Ok(Self::default()),
        }
        let text = std::fs::read(&beside).map_err(|e| format!("lies beside adapter_config.json: {e}"))?;
        let parsed = serde_json::from_slice(&text);
        parsed
            .map(|map| Self::parse(&map))
            .map_err(|e| format!("lies beside an adapter_config.json that cannot be read: {e}"))
    }

    fn parse(map: &Map<String, Value>) -> Self {
        let mut configs: BTreeMap<String, Config> = BTreeMap::new();
        for (key, value) in map {
            let (prefix, field) = key.rsplit_once('.').map_or(("", key.as_str()), |(prefix, field)| (prefix, field));
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
            let config = configs.entry(prefix).or_default();
            match field {
                "lora_alpha" => config.lora_alpha = value.as_f64().map(|alpha| alpha as f32),
                "use_rslora" => config.use_rslora = value.as_bool().unwrap_or(false),
                "alpha_pattern" => {
                    let alphas = value.as_object().into_iter().flatten();
                    let alphas = alphas.filter_map(|(name, alpha)| Some((name.clone(), alpha.as_f64()? as f32)));
                    config.alpha_pattern = alphas.collect();
                }
                _ => {}
            }
        }
        Self { configs }
    }

    /// The factor of a layer, called as in the file.
    pub(super) fn factor(&self, name: &str, rank: usize) -> f32 {
        // The longest prefix that fits is the layer's own.
        let own = self.configs.iter().rev().find(|(prefix, _)| name.starts_with(prefix.as_str()));
        let Some((prefix, config)) = own else { return 1.0 };
        let layer = &name[prefix.len()..];
        let pattern = config.alpha_pattern.iter().find(|(pattern, _)| fits(pattern, layer));
        let Some(alpha) = pattern.map(|(_, alpha)| *alpha).or(config.lora_alpha) else { return 1.0 };
        let rank = rank.max(1) as f32;
        alpha / if config.use_rslora { rank.sqrt() } else { rank }
    }
}

/// Whether a pattern names the layer or ends its name, as PEFT's do; `^` ties it to the start.
fn fits(pattern: &str, layer: &str) -> bool {
    let bare = pattern.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
    if pattern.starts_with('^') || layer == bare {
        return layer == bare;
    }
    layer.strip_suffix(bare.as_str()).is_some_and(|before| before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_by_component_and_layer() {
        let json = r#"{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_q": 2.0},
            "text_encoder.lora_alpha": 3, "text_encoder.use_rslora": true}"#;
        let peft = Peft::parse(&serde_json::from_str(json).unwrap());
        assert_eq!(peft.factor("transformer.transformer_blocks.0.attn.to_k", 4), 2.0);
        assert_eq!(peft.factor("transformer.transformer_blocks.0.attn.to_q", 4), 0.5);
        assert_eq!(peft.factor("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 9), 1.0);
        assert_eq!(peft.factor("double_blocks.0.img_attn.qkv", 4), 1.0);
        let peft = Peft::parse(&serde_json::from_str(r#"{"lora_alpha": 6}"#).unwrap());
        assert_eq!(peft.factor("base_model.model.x_embedder", 3), 2.0);
    }
}

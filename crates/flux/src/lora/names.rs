//! A model's layers under every name that LoRAs have for them.
//!
//! The names come from the model itself: each of its layers is listed as BFL (or Hugging Face) calls it, as diffusers does by
//! [`Naming`], and as XLabs' trainer does; and all of it again with underscores for dots, which cannot be undone by itself
//! (`double_blocks_0_img_attn_qkv`).

use std::{collections::HashMap, ops::Range};

use super::keys::{PREFIXES, Spelling};
use crate::{
    nn::Parts,
    weights::{Component, Naming},
};

/// A layer of the model.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) out: usize,
    pub(super) features: usize,
    pub(super) bias: bool,
}

/// Rows of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Which [`Module`].
    pub(super) module: usize,
    pub(super) rows: Range<usize>,
    /// Whether the file has the second half of the rows first, as diffusers has those of the last modulation.
    pub(super) swapped: bool,
}

/// What one component has.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) component: Component,
    pub(super) modules: Vec<Module>,
    dots: HashMap<String, Target>,
    underscores: HashMap<String, Target>,
    /// Norms' scales by whole names and by names without their last word.
    vectors: HashMap<String, usize>,
}

impl Names {
    pub(super) fn new(component: Component, parts: &Parts<'_>) -> Self {
        let mut modules: Vec<Module> = Vec::new();
        for layer in &parts.linears {
            let out = layer.first_row + layer.it.weight.out_features();
            match modules.iter_mut().find(|module| module.name == layer.name) {
                Some(module) => module.out = module.out.max(out),
                None => modules.push(Module {
                    name: layer.name.clone(),
                    out,
                    features: layer.it.weight.row_len(),
                    bias: layer.it.bias.is_some(),
                }),
            }
        }
        let mut dots = HashMap::new();
        for (index, module) in modules.iter().enumerate() {
            let whole = |swapped| Target { module: index, rows: 0..module.out, swapped };
            dots.insert(module.name.clone(), whole(false));
            match component {
                Component::Transformer => transformer_names(index, module, &mut dots),
                Component::ClipL => {
                    let bare = module.name.strip_prefix("text_model.").unwrap_or(&module.name);
                    dots.insert(bare.to_owned(), whole(false));
                }
                _ => {}
            }
        }
        let underscores = dots.iter().map(|(name, target)| (name.replace('.', "_"), target.clone())).collect();
        let mut vectors = HashMap::new();
        for (index, vector) in parts.vectors.iter().enumerate() {
            let theirs = Naming::FluxDiffusers.pieces(&vector.name).into_iter().map(|piece| piece.name);
            for name in std::iter::once(vector.name.clone()).chain(theirs) {
                if let Some((bare, _)) = name.rsplit_once('.') {
                    vectors.insert(bare.to_owned(), index);
                    vectors.insert(bare.replace('.', "_"), index);
                }
                vectors.insert(name, index);
            }
        }
        Self { component, modules, dots, underscores, vectors }
    }

    /// The layer that a key without its ending names.
    pub(super) fn find(&self, key: &str) -> Option<&Target> {
        self.stripped(key).find_map(|(name, spelling)| match spelling {
            Spelling::Dots => self.dots.get(name),
            Spelling::Underscores => self.underscores.get(name),
        })
    }

    /// The vector that a key names.
    pub(super) fn find_vector(&self, key: &str) -> Option<usize> {
        self.stripped(key).find_map(|(name, _)| self.vectors.get(name).copied())
    }

    /// A key without each of the prefixes that it may have for this component.
    fn stripped<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (&'a str, Spelling)> {
        PREFIXES.iter().filter_map(move |&(prefix, component, spelling)| {
            let name = key.strip_prefix(prefix)?;
            (component == self.component).then_some((name, spelling))
        })
    }
}

/// The names that diffusers and XLabs have for a layer of the transformer.
fn transformer_names(index: usize, module: &Module, names: &mut HashMap<String, Target>) {
    let mut add = |name: String, rows: Range<usize>, swapped| {
        names.insert(name, Target { module: index, rows, swapped });
    };
    let d = module.features;
    let weight = format!("{}.weight", module.name);
    let pieces = Naming::FluxDiffusers.pieces(&weight);
    let count = pieces.len();
    let halves = pieces.iter().any(|piece| piece.half.is_some());
    for (i, piece) in pieces.into_iter().enumerate() {
        let Some(name) = piece.name.strip_suffix(".weight") else { continue };
        let rows = match i {
            _ if halves || count == 1 => 0..module.out,
            // The MLP is what queries, keys and values leave of `linear1`.
            _ if i + 1 == count => i * d..module.out,
            _ => i * d..(i + 1) * d,
        };
        if rows.end > module.out || rows.is_empty() {
            continue; // of a width that no FLUX has
        }
        // An older spelling of diffusers'.
        if name.contains(".attn.") {
            add(name.replacen(".attn.", ".attn.processor.", 1), rows.clone(), halves);
        }
        add(name.to_owned(), rows, halves);
    }
    // XLabs: 1 is the picture's stream, 2 the text's.
    if let Some((block, layer)) = module.name.rsplit_once('.') {
        let (block, layer) = match block.rsplit_once('.') {
            Some((block, stream @ ("img_attn" | "txt_attn"))) => (block, format!("{stream}.{layer}")),
            _ => (block, layer.to_owned()),
        };
        let processor = |lora: &str| format!("{block}.processor.{lora}");
        match layer.as_str() {
            "img_attn.qkv" => add(processor("qkv_lora1"), 0..module.out, false),
            "txt_attn.qkv" => add(processor("qkv_lora2"), 0..module.out, false),
            "img_attn.proj" => add(processor("proj_lora1"), 0..module.out, false),
            "txt_attn.proj" => add(processor("proj_lora2"), 0..module.out, false),
            "linear1" if 3 * d <= module.out => {
                for name in [processor("qkv"), processor("qkv_lora"), format!("{block}.linear1_qkv")] {
                    add(name, 0..3 * d, false);
                }
            }
            "linear2" => {
                for name in [processor("proj"), processor("proj_lora")] {
                    add(name, 0..module.out, false);
                }
            }
            _ => {}
        }
    }
}

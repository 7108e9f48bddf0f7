//! bitsandbytes' four bits, NF4 and FP4, plain and nested: what of `X.weight` lies in tensors beside it.
//!
//! `X.weight` holds two codes a byte over the flattened matrix. `X.weight.quant_state.bitsandbytes__nf4` is JSON with the real
//! shape and the size of a block, `X.weight.absmax` has a scale for each block (as bytes if it is nested, with
//! `X.weight.nested_absmax` and `X.weight.nested_quant_map`), `X.weight.quant_map` the value of each code. As in diffusers'
//! folders and in ComfyUI's and Forge's `flux1-dev-bnb-nf4`. Source: `bitsandbytes/functional.py`, `QuantState`.
//!
//! The state is JSON in a file that may lie: sizes are checked against the tensors before they are used.

use std::sync::Arc;

use serde::Deserialize;
use tensor::{BlockScales, Bytes, DType, Scales};

/// What a tensor's state is called behind its name.
pub const STATES: [&str; 2] = [".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"];
/// Elements of a block are a multiple of this.
const SMALLEST: usize = 64;
/// Most extents of a tensor.
const MAX_RANK: usize = 8;

/// A tensor's state.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct State {
    quant_type: String,
    blocksize: usize,
    /// Extents of the weight, outermost first.
    pub shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl State {
    /// Reads the state of a weight that is stored in `stored` bytes.
    ///
    /// # Errors
    /// What is wrong with it, to follow the tensor's name.
    pub fn parse(json: &[u8], stored: usize) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(json).map_err(|e| format!("has a state that cannot be read: {e}"))?;
        if !["nf4", "fp4"].contains(&state.quant_type.as_str()) {
            return Err(format!("is quantised as '{}', of which only nf4 and fp4 can be read", state.quant_type));
        }
        if state.shape.len() > MAX_RANK || state.shape.is_empty() {
            return Err(format!("has {} extents in its state; 1 to {MAX_RANK} were expected", state.shape.len()));
        }
        // Also of no elements: products of some of the extents are taken later.
        let extents = state.shape.iter().filter(|&&d| d != 0).try_fold(1usize, |n, &d| n.checked_mul(d));
        if extents.is_none_or(|n| n > 1 << 60) {
            return Err(format!("is of shape {:?}, larger than any file", state.shape));
        }
        if state.elements().div_ceil(2) != stored {
            return Err(format!("of shape {:?} in four bits does not take {stored} bytes", state.shape));
        }
        let block = state.blocksize;
        if block == 0 || !block.is_multiple_of(SMALLEST) {
            return Err(format!("has blocks of {block} elements; a multiple of {SMALLEST} was expected"));
        }
        if state.nested_blocksize == Some(0) {
            return Err("has nested blocks of 0 scales".into());
        }
        if state.nested_offset.is_some_and(|offset| !(offset as f32).is_finite()) {
            return Err("has a nested offset that is not a number".into());
        }
        Ok(state)
    }

    /// Elements of the weight.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The scales, from tensors beside the weight: `beside("absmax")` is that tensor's bytes and format.
    ///
    /// # Errors
    /// What is wrong with them, to follow the tensor's name.
    pub fn scales(&self, beside: impl Fn(&str) -> Option<(Bytes, Option<DType>)>) -> Result<BlockScales, String> {
        let get = |name: &str| beside(name).ok_or_else(|| format!("lacks '{name}' beside it"));
        let floats = |name: &str| match get(name)? {
            (bytes, Some(DType::F32)) => Ok(bytes),
            _ => Err(format!("has '{name}' that is not F32")),
        };
        let values = |name: &str, expected: usize| {
            let bytes = floats(name)?;
            let values: Vec<f32> = bytes.get().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if values.len() == expected {
                return Ok(values);
            }
            Err(format!("has '{name}' of {} values; {expected} were expected", values.len()))
        };
        let of_codes = values("quant_map", 16)?;
        let (absmax, dtype) = get("absmax")?;
        let blocks = self.elements().div_ceil(self.blocksize);
        let count = |name: &str, have: usize, expected: usize| {
            if have == expected {
                Ok(())
            } else {
                Err(format!("has {have} numbers in '{name}'; {expected} were expected"))
            }
        };
        let scales = if dtype == Some(DType::F32) {
            count("absmax", absmax.len() / 4, blocks)?;
            Scales::Plain(absmax)
        } else {
            let Some((size, offset)) = self.nested_blocksize.zip(self.nested_offset) else {
                return Err("has 'absmax' that is not F32, and no nested state".into());
            };
            count("absmax", absmax.len(), blocks)?;
            let scales = floats("nested_absmax")?;
            count("nested_absmax", scales.len() / 4, blocks.div_ceil(size))?;
            let of_bytes: Arc<[f32]> = values("nested_quant_map", 256)?.into();
            let of_bytes = of_bytes.try_into().map_err(|_| "has no nested map".to_owned())?;
            Scales::Nested { codes: absmax, values: of_bytes, scales, size, offset: offset as f32 }
        };
        let of_codes = of_codes.try_into().map_err(|_| "has no map".to_owned())?;
        Ok(BlockScales { values: of_codes, size: self.blocksize, scales, first: 0 })
    }
}

//! Any bytes as the state of a tensor in bitsandbytes' four bits: it is refused, or its sizes fit the tensors beside it.

#![no_main]

#[path = "../../crates/flux/src/weights/four_bits.rs"]
#[expect(dead_code, reason = "a part of the engine, used in part")]
mod four_bits;

use std::sync::Arc;

use four_bits::State;
use libfuzzer_sys::fuzz_target;
use tensor::{Bytes, DType, Precision, Rows, Scale, Weight};

fuzz_target!(|input: &[u8]| {
    // The first bytes are the sizes of the tensors beside it.
    let Some(([stored, scales, outer, kind], json)) = input.split_first_chunk::<4>() else { return };
    let stored = 32 * usize::from(*stored);
    let Ok(state) = State::parse(json, stored) else { return };
    let zeros = |bytes: usize| Bytes::from(Arc::<[u8]>::from(vec![0; bytes]));
    let beside = |name: &str| match name {
        "absmax" if kind & 1 == 0 => Some((zeros(4 * usize::from(*scales)), Some(DType::F32))),
        "absmax" => Some((zeros(usize::from(*scales)), None)),
        "nested_absmax" => Some((zeros(4 * usize::from(*outer)), Some(DType::F32))),
        "nested_quant_map" => Some((zeros(1024), Some(DType::F32))),
        "quant_map" => Some((zeros(64), Some(DType::F32))),
        _ => None,
    };
    let Ok(scales) = state.scales(beside) else { return };
    // What was accepted is a weight whose every element can be read.
    let row: usize = state.shape[1..].iter().product();
    if row == 0 || !row.is_multiple_of(64) || state.elements() == 0 {
        return;
    }
    let scale = Scale::PerBlock(Arc::new(scales));
    let rows = Rows { count: state.shape[0], dtype: DType::NF4, scale, bytes: zeros(stored) };
    let weight = Weight::new([state.shape[0], row], vec![rows], Precision::F32);
    assert_eq!(weight.to_f32().len(), state.elements());
});

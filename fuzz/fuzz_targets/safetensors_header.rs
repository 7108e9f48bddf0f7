//! Any bytes as a weights file: `Header::parse` answers or refuses, and what it answers is true of the file.

#![no_main]

#[path = "../../crates/flux/src/weights/safetensors.rs"]
#[expect(dead_code, reason = "a part of the engine, used in part")]
mod safetensors;

use libfuzzer_sys::fuzz_target;
use safetensors::Header;

fuzz_target!(|input: &[u8]| {
    check(input);
    // The same bytes as the text of a header whose length is right and which has data behind it: lengths are hard to guess.
    let mut file = (input.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(input);
    file.resize(file.len() + 64, 0);
    check(&file);
});

fn check(file: &[u8]) {
    let Ok(header) = Header::parse(file) else { return };
    let length = u64::from_le_bytes(*file.first_chunk().expect("a parsed file has a length")) as usize;
    let mut ranges = Vec::new();
    for (name, entry) in &header.tensors {
        assert!(entry.bytes.start >= 8 + length && entry.bytes.end <= file.len(), "'{name}' lies outside of the data");
        // What the engine does with an entry must not overflow: its elements fit into its bytes.
        let elements = entry.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).expect("elements can be counted");
        if let Some(dtype) = entry.weight_dtype() {
            assert_eq!(dtype.bytes(elements), entry.bytes.len(), "'{name}' has the size of its shape");
        }
        if !entry.bytes.is_empty() {
            ranges.push(entry.bytes.clone());
        }
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "no byte belongs to two tensors");
}

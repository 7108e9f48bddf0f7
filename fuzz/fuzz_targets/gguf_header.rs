//! Any bytes as a GGUF file: `Header::parse` answers or refuses, and what it answers is true of the file.

#![no_main]

#[path = "../../crates/flux/src/weights/gguf.rs"]
#[expect(dead_code, reason = "a part of the engine, used in part")]
mod gguf;
#[path = "../../crates/flux/src/weights/safetensors.rs"]
#[expect(dead_code, reason = "a part of the engine, used in part")]
mod safetensors;

use gguf::{Header, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(input);
    // The same with the magic, a version and data behind it: what is hard to guess.
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend_from_slice(input);
    check(&file);
    file.resize(file.len().next_multiple_of(32) + 256, 0);
    check(&file);
});

fn check(file: &[u8]) {
    let Ok(header) = Header::parse(file) else { return };
    let mut ranges = Vec::new();
    for (name, entry) in &header.tensors {
        assert!(entry.bytes.end <= file.len() && entry.bytes.start <= entry.bytes.end, "'{name}' lies in the file");
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
    // Lists of the metadata are read when somebody asks for them.
    for value in header.metadata.values() {
        let Value::Array(array) = value else { continue };
        let read = [
            array.integers(file).map(|v| v.len()),
            array.floats(file).map(|v| v.len()),
            array.bytes(file).map(<[u8]>::len),
            array.texts(file).map(|v| v.len()),
        ];
        assert!(read.into_iter().flatten().all(|count| count == array.len()), "a list has as many values as it says");
    }
}

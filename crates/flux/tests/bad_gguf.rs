//! GGUF files that are damaged or lie: each is refused with a sentence that names the file and what is wrong with it, without a
//! panic and without believing the sizes that the file claims.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/gguf.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod gguf;
#[path = "support/measured.rs"]
#[expect(unreachable_pub, reason = "a module of each test file that uses it")]
mod measured;
#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod toy;

use flux::{
    LoadOptions, Pipeline,
    model::{ModelSpec, PartFiles, SearchPaths},
    weights::gguf::Header,
};
use gguf::Gguf;
use measured::{alone, refused};
use toy::{Scratch, Stored};

fn load(spec: &ModelSpec) -> flux::Result<Pipeline> {
    Pipeline::load(spec.find(&SearchPaths::default())?, &LoadOptions::default(), &mut ())
}

#[test]
fn gguf_files_that_are_damaged_or_lie() {
    let _alone = alone();
    let scratch = Scratch::new("damaged-gguf");
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::new();
        file.text("general.architecture", "flux");
        change(&mut file);
        file
    };
    let one = |name: &str, shape: &[usize], number: u32, bytes: usize| {
        with(&|file| file.tensor(name, shape, number, vec![0; bytes])).file()
    };
    let good = with(&|file| {
        file.bytes("a.list", &[1; 100]);
        file.tensor("a.weight", &[4, 32], gguf::number("Q8_0"), vec![0; 136]);
        file.tensor("b.weight", &[8], 0, vec![0; 32]);
    });
    let (header, data) = good.header();
    let whole = good.file();
    assert_eq!(whole.len(), header.len() + data);
    let find = |what: &[u8]| whole.windows(what.len()).position(|w| w == what).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    // Behind a name: rank, extents, type, offset.
    let info = |name: &[u8]| find(name) + name.len();
    let (a, b) = (info(b"a.weight"), info(b"b.weight"));
    let list = find(b"a.list") + 6;
    let huge = u64::MAX.to_le_bytes();
    let alignment = |value: u32| with(&|file| file.integer("general.alignment", value)).file();
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("another name", b"hello, I am no model at all".to_vec(), &["does not begin with 'GGUF'", "download"]),
        ("a web page", b"<!DOCTYPE html><html>".to_vec(), &["a web page"]),
        ("version 1", patched(4, &1u32.to_le_bytes()), &["of version 1", "2 and 3", "hint"]),
        ("version 4", patched(4, &4u32.to_le_bytes()), &["of version 4"]),
        ("big-endian", patched(4, &3u32.to_be_bytes()), &["big-endian", "hint"]),
        ("cut in the version", whole[..6].to_vec(), &["is cut short", "the version"]),
        ("cut in the counts", whole[..20].to_vec(), &["is cut short", "metadata values", "download"]),
        ("cut in the metadata", whole[..60].to_vec(), &["is cut short", "metadata"]),
        ("cut in the infos", whole[..a + 8].to_vec(), &["is cut short", "'a.weight'"]),
        ("cut in the data", whole[..header.len() + 100].to_vec(), &["is cut short", "tensor 'a.weight' ends at byte"]),
        ("cut by the last tensor", whole[..whole.len() - 1].to_vec(), &["is cut short", "tensor 'b.weight'"]),
        ("2^64 − 1 tensors", patched(8, &huge), &["is cut short"]),
        ("2^64 − 1 values", patched(16, &huge), &["is cut short"]),
        ("billions of values", patched(16, &(1u64 << 40).to_le_bytes()), &["metadata value"]),
        ("a key longer than the file", patched(24, &huge), &["is cut short", "metadata value 1"]),
        ("a text longer than the file", patched(24 + 8 + 20 + 4, &huge), &["is cut short", "general.architecture"]),
        ("a value of no type", patched(list, &77u32.to_le_bytes()), &["'a.list'", "unknown type 77"]),
        ("a list of no type", patched(list + 4, &77u32.to_le_bytes()), &["'a.list'", "unknown type 77"]),
        ("a list longer than the file", patched(list + 8, &huge), &["is cut short", "'a.list'"]),
        ("a name that is no text", patched(a - 3, &[0xff]), &["the name", "not UTF-8"]),
        ("a thousand extents", patched(a, &1000u32.to_le_bytes()), &["'a.weight'", "1000 extents"]),
        ("no whole blocks", patched(a + 4, &33u64.to_le_bytes()), &["'a.weight'", "33", "whole blocks of 32 (Q8_0)"]),
        ("a product past 2^64", patched(a + 12, &(1u64 << 62).to_le_bytes()), &["'a.weight'", "larger than any file"]),
        ("terabytes that are not there", patched(a + 12, &(1u64 << 40).to_le_bytes()), &["cut short", "'a.weight'"]),
        ("an unknown type", patched(a + 20, &999u32.to_le_bytes()), &["'a.weight'", "unknown ggml type 999", "hint"]),
        ("a type taken back", patched(a + 20, &4u32.to_le_bytes()), &["'a.weight'", "unknown ggml type 4"]),
        ("an offset between", patched(b + 16, &8u64.to_le_bytes()), &["'b.weight'", "multiple of the alignment 32"]),
        ("an offset past 2^64", patched(b + 16, &(u64::MAX - 31).to_le_bytes()), &["'b.weight'", "past the end"]),
        ("an offset past the end", patched(b + 16, &(1u64 << 40).to_le_bytes()), &["cut short", "'b.weight'"]),
        ("two in one place", patched(b + 16, &64u64.to_le_bytes()), &["'b.weight' overlaps 'a.weight'"]),
        ("one name twice", patched(b - 8, b"a"), &["'a.weight' is named twice"]),
        ("alignment of nothing", alignment(0), &["'general.alignment' is 0", "power of two"]),
        ("alignment of 24", alignment(24), &["'general.alignment' is 24"]),
        ("an alignment in words", with(&|f| f.text("general.alignment", "32")).file(), &["'general.alignment' is not"]),
        (
            "one key twice",
            with(&|f| f.bool("general.architecture", true)).file(),
            &["has 'general.architecture' twice"],
        ),
        ("one piece of three", with(&|f| f.integer("split.count", 3)).file(), &["one of 3 pieces", "hint"]),
        (
            "a shape that was not",
            with(&|f| {
                f.integers("comfy.gguf.orig_shape.w", &[2, 3]);
                f.tensor("w", &[4], 0, vec![0; 16]);
            })
            .file(),
            &["'w'", "[2, 3]"],
        ),
        (
            "a shape that is none",
            with(&|f| {
                f.integers("comfy.gguf.orig_shape.w", &[-2, -2]);
                f.tensor("w", &[4], 0, vec![0; 16]);
            })
            .file(),
            &["comfy.gguf.orig_shape.w"],
        ),
        (
            "lists in lists",
            with(&|f| {
                let nested: Vec<u8> = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(5000);
                f.value("deep", 9, nested);
            })
            .file(),
            &["'deep'", "lists in lists"],
        ),
        ("nothing that is known", one("x", &[8], 0, 32), &["holds no FLUX transformer", "nothing that is known"]),
    ];
    for (case, bytes, words) in cases {
        let path = scratch.join(format!("{}.gguf", case.replace([' ', '−'], "-")));
        toy::bytes(&path, bytes);
        refused(case, &[&[path.to_str().unwrap()], *words].concat(), || {
            load(&ModelSpec { model: Some((&path).into()), parts: PartFiles::default() })
        });
    }
    // Every cut and many damages: an answer or a refusal, never more than a little memory.
    for end in 0..whole.len() {
        let _ = Header::parse(&whole[..end]);
    }
    for at in 0..header.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut file = whole.clone();
            file[at] = value;
            let _ = Header::parse(&file);
        }
    }

    // A type that cannot be read is an error of the tensor, not of the file.
    let mut file = with(&|_| ());
    for (name, array) in &toy::Toy::new().flux {
        let odd = name == "double_blocks.0.img_mlp.2.weight";
        let Stored { shape, bytes, .. } = toy::f32s(array);
        let (number, bytes) =
            if odd { (gguf::number("IQ2_XXS"), vec![0; array.values.len() / 256 * 66]) } else { (0, bytes) };
        file.tensor(name, &shape, number, bytes);
    }
    let path = scratch.join("odd.gguf");
    toy::bytes(&path, &file.file());
    let parts = PartFiles { transformer: Some(path.clone()), ..PartFiles::default() };
    let words = [path.to_str().unwrap(), "'double_blocks.0.img_mlp.2.weight' as IQ2_XXS", "cannot be read", "Q4_K"];
    refused("IQ2_XXS", &words, || load(&ModelSpec { model: Some("pocket".into()), parts }));
}

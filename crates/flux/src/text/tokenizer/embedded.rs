//! The vocabularies that come with the binary; assets/tokenizers/README.md tells whose they are.

use std::path::Path;

use miniz_oxide::inflate::decompress_to_vec_zlib;
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use super::settings::Settings;
use super::unigram::Pieces;
use super::{ClipTokenizer, T5Tokenizer, Text, clip_tokenizer, parse_merges};

/// Merges that have a place in CLIP's vocabulary of 49,408, beside 256 bytes, as many word-final ones and two special
/// tokens.
pub(super) const CLIP_MERGES: usize = 48_894;

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// The asset of that name. It is ours: if it does not unpack, the binary is broken.
macro_rules! asset {
    ($name:literal) => {
        decompress_to_vec_zlib(include_bytes!(concat!("../../../assets/tokenizers/", $name, ".zlib"))).expect(concat!(
            "the asset ",
            $name,
            " unpacks"
        ))
    };
}

pub(super) fn clip() -> ClipTokenizer {
    let merges = String::from_utf8(asset!("clip-merges.txt")).expect("the merges are text");
    let merges = parse_merges(&merges).expect("the merges are pairs");
    let bytes = || byte_symbols().map(String::from);
    let tokens = bytes()
        .chain(bytes().map(|symbol| symbol + "</w>"))
        .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
        .chain([BOS, EOS].map(String::from));
    let vocab: Vocab = tokens.zip(0..).collect();
    let specials = [BOS, EOS].map(|token| AddedToken::from(token, true).normalized(true));
    let tokenizer = clip_tokenizer(vocab, merges, EOS, &specials).expect("the merges fit the vocabulary");
    let framed = ClipTokenizer::framed(Text(tokenizer), Path::new("embedded"), &Settings::default());
    ClipTokenizer { model_max_length: Some(77), ..framed.expect("the special tokens are there") }
}

pub(super) fn t5() -> T5Tokenizer {
    let (pieces, scores) = t5_pieces();
    let vocab: Vec<(String, f64)> = pieces.into_iter().zip(scores.into_iter().map(f64::from)).collect();
    let is_special =
        |piece: &&String| ["<pad>", "</s>", "<unk>"].contains(&piece.as_str()) || piece.starts_with("<extra_id_");
    let special = vocab.iter().map(|(piece, _)| piece).filter(is_special).cloned().collect();
    let pieces = Pieces { vocab, unknown: 2, special, charsmap: charsmap(), clean_spaces: true, prefix: true };
    let tokenizer = pieces.tokenizer().expect("the pieces make a model");
    let framed = T5Tokenizer::framed(Text(tokenizer), Path::new("embedded"), &Settings::default());
    T5Tokenizer { model_max_length: Some(512), ..framed.expect("the special tokens are there") }
}

/// T5's pieces and their scores, by id.
pub(super) fn t5_pieces() -> (Vec<String>, Vec<f32>) {
    let pieces = String::from_utf8(asset!("t5-pieces.txt")).expect("the pieces are text");
    let scores = asset!("t5-scores.f32");
    let scores = scores.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    pieces.split('\n').map(String::from).zip(scores).unzip()
}

/// T5's normalisation.
pub(super) fn charsmap() -> Vec<u8> {
    asset!("t5-charsmap.bin")
}

/// One printable character for each byte, in the order of CLIP's ids: those that print as themselves, then the others.
fn byte_symbols() -> impl Iterator<Item = char> {
    ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('\u{100}'..='\u{143}')
}

//! Token ids against transformers' tokenizers (`golden/tokens.json`), and tokenizers read from a model's own files.

use std::collections::HashMap;
use std::path::Path;

use flux::safety::{Safety, Screened};
use flux::text::tokenizer::{ClipTokenizer, T5Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    prompt: String,
    t5: Vec<u32>,
    t5_512: Vec<u32>,
    clip: Vec<u32>,
}

fn screened(prompt: &str) -> Screened<&str> {
    Safety::off().screen(prompt).expect("nothing is refused")
}

#[test]
fn embedded_tokenizers_give_the_references_ids() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/tokens.json")).expect("the fixture is JSON");
    assert_eq!(cases.len(), 13);
    let (clip_tokenizer, t5_tokenizer) = (ClipTokenizer::embedded(), T5Tokenizer::embedded());
    for Case { prompt, t5, t5_512, clip } in cases {
        let text = screened(&prompt);
        assert_eq!(t5_tokenizer.encode(&text, t5.len()).expect("embedded"), t5, "T5: {prompt:?}");
        assert_eq!(t5_tokenizer.encode(&text, 512).expect("embedded"), t5_512, "T5 at 512: {prompt:?}");
        assert_eq!(clip_tokenizer.encode(&text, 77).expect("embedded"), clip, "CLIP: {prompt:?}");
        assert_eq!(t5_tokenizer.count(&text).expect("embedded"), t5.len());
    }
}

#[test]
fn a_long_prompt_is_cut_before_its_end_token() {
    let prompt = "cat ".repeat(1000);
    let text = screened(&prompt);
    let clip = ClipTokenizer::embedded();
    let ids = clip.encode(&text, 77).expect("embedded");
    assert_eq!((ids.len(), ids[0], ids[75], ids[76]), (77, 49406, 2368, 49407));
    assert_eq!(clip.encode(&text, 2).expect("embedded"), [49406, 49407]);
    assert_eq!(clip.count(&text).expect("embedded"), 1002);
    assert_eq!(clip.model_max_length(), Some(77));
    let t5 = T5Tokenizer::embedded();
    let ids = t5.encode(&text, 256).expect("embedded");
    assert_eq!((ids.len(), ids[254], ids[255]), (256, 1712, 1));
    assert_eq!(t5.encode(&text, 1).expect("embedded"), [1]);
}

#[test]
fn special_tokens_in_a_prompt_are_what_the_references_make_of_them() {
    let clip = ClipTokenizer::embedded().encode(&screened("a <|ENDOFTEXT|>a<|endoftext|>"), 7).expect("embedded");
    assert_eq!(clip, [49406, 320, 49407, 320, 49407, 49407, 49407]);
    let t5 = T5Tokenizer::embedded().encode(&screened("a</s>b<extra_id_0>"), 6).expect("embedded");
    assert_eq!(t5, [3, 9, 1, 115, 32099, 1]);
}

/// Files by name, as a model's folder would hold them.
struct Folder(HashMap<&'static str, Vec<u8>>);

impl Folder {
    fn new(files: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect())
    }

    fn clip(&self) -> Result<ClipTokenizer, String> {
        ClipTokenizer::from_files(Path::new("tokenizer"), |name| Ok(self.0.get(name).cloned()))
            .map_err(|e| e.to_string())
    }

    fn t5(&self) -> Result<T5Tokenizer, String> {
        T5Tokenizer::from_files(Path::new("tokenizer_2"), |name| Ok(self.0.get(name).cloned()))
            .map_err(|e| e.to_string())
    }
}

const MERGES: &str = "#version: 0.2\na b</w>\n";

fn tiny_vocab() -> Value {
    json!({"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<s>": 5, "<e>": 6, "<p>": 7})
}

fn tiny_config() -> Value {
    json!({
        "bos_token": "<s>", "eos_token": {"content": "<e>", "normalized": true}, "unk_token": "<e>",
        "pad_token": "<p>", "model_max_length": 16
    })
}

#[test]
fn clip_reads_vocab_and_merges_with_their_own_special_tokens() {
    let folder = Folder::new([
        ("vocab.json", tiny_vocab().to_string()),
        ("merges.txt", MERGES.into()),
        ("tokenizer_config.json", tiny_config().to_string()),
    ]);
    let clip = folder.clip().expect("well formed");
    assert_eq!(clip.model_max_length(), Some(16));
    assert_eq!(clip.encode(&screened("AB  a ba"), 8).expect("known"), [5, 4, 2, 1, 2, 6, 7, 7]);
    // The flags are the file's: this end token is matched in lower-cased text. What is unknown becomes <e> too.
    assert_eq!(clip.encode(&screened("a<E>z"), 6).expect("known"), [5, 2, 6, 6, 6, 7]);
}

#[test]
fn a_tokenizer_json_may_not_pad_or_cut_by_itself() {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let t5 = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false,
                  "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0], ["▁", -3.0]]}
    });
    let unlimited = json!({"model_max_length": 1e30}).to_string();
    let folder = Folder::new([("tokenizer.json", t5.to_string()), ("tokenizer_config.json", unlimited)]);
    let tokenizer = folder.t5().expect("well formed");
    assert_eq!(tokenizer.model_max_length(), None);
    assert_eq!(tokenizer.encode(&screened("ab a b"), 8).expect("known"), [3, 4, 3, 5, 4, 1, 0, 0]);
    assert!(folder.clip().expect_err("a unigram is not CLIP's").contains("tokenizer.json: 'model' is not of type BPE"));
}

#[test]
fn errors_name_the_file_at_fault() {
    let vocab = || ("vocab.json", tiny_vocab().to_string());
    let merges = || ("merges.txt", MERGES.to_owned());
    let config = || ("tokenizer_config.json", tiny_config().to_string());
    let cases = [
        (vec![], "tokenizer: has neither"),
        (vec![vocab()], "tokenizer: has neither"),
        (vec![vocab(), merges()], "vocab.json: lacks the special token '<|startoftext|>'"),
        (vec![("vocab.json", "[]".into()), merges(), config()], "vocab.json: invalid type"),
        (vec![vocab(), ("merges.txt", "ab\n".into()), config()], "merges.txt: line 1"),
        (vec![vocab(), ("merges.txt", "b a\n".into()), config()], "merges.txt: "),
        (vec![vocab(), merges(), ("tokenizer_config.json", "3".into())], "tokenizer_config.json: "),
        (vec![vocab(), merges(), config(), ("special_tokens_map.json", "{".into())], "special_tokens_map.json: "),
        (vec![("tokenizer.json", "{}".into())], "tokenizer.json: "),
    ];
    for (files, expected) in cases {
        let error = Folder::new(files).clip().expect_err(expected);
        assert!(error.contains(expected), "{error} does not contain {expected}");
    }
    assert!(Folder::new([]).t5().expect_err("empty").contains("tokenizer_2: has no tokenizer.json"));
}

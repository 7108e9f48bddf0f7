//! From a screened prompt to what the transformer reads.

pub mod tokenizer;

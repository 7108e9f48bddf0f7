//! Getting the weights: what is published where, and how it comes into the Hugging Face hub's cache.
//!
//! | module | holds |
//! |---|---|
//! | [`catalog`] | models, their variants, and where each file is published |
//! | [`licence`] | whose terms a model is under, and what was accepted when |
//! | [`settings`] | addresses, folders and the token, from the environment variables that Hugging Face's tools read |
//! | [`transfer`] | a download from its list of files to the last hash |
//! | [`watch`] | what a caller is told meanwhile, and how it stops it |
//! | [`cache`] | the folders `blobs`, `snapshots` and `refs`, shared with other programs |
//! | [`records`] | which files make the model that was asked for by name |
//! | [`bundle`] | models on a disk or stick, for machines without a network |
//!
//! Everything is synchronous. Nothing is printed and no environment variable is read here: programs pass both in. What is
//! downloaded is never run and never parsed; it has the hash that was promised, or it is not there.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod cache;
pub mod catalog;
mod clock;
mod error;
mod hash;
mod http;
pub mod licence;
mod names;
pub mod records;
mod remote;
pub mod settings;
pub mod transfer;
pub mod watch;

pub use error::{Error, Gate, Result, bytes};
pub use names::Repository;

//! darkroom over HTTP: the dialects of OpenAI, fal, Replicate and AUTOMATIC1111 on one durable queue.
//!
//! A request walks through these modules: a dialect turns a vendor's JSON into an [`ask::Ask`], the queue keeps it as a job
//! ([`job`]), the worker makes pictures of it with `flux`, [`blobs`] keep them, and the dialect says so in the vendor's words.

#![forbid(unsafe_code)]

pub mod app;
pub mod ask;
pub mod auth;
pub mod blobs;
mod canvas;
pub mod clock;
mod collect;
pub mod config;
pub mod data_uri;
pub mod dialect;
pub mod engine;
pub mod error;
pub mod fetch;
pub mod fields;
pub mod files;
pub mod guard;
mod hex;
pub mod http;
pub mod job;
pub mod jobs;
pub mod journal;
pub mod listen;
pub mod logging;
mod mac;
pub mod metrics;
pub mod names;
pub mod openapi;
pub mod outbox;
pub mod owner;
pub mod queue;
pub mod reload;
mod records;
pub mod server;
pub mod shelf;
pub mod signing;
pub mod start;
pub mod stock;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod uploads;
pub mod webhook;
pub mod worker;

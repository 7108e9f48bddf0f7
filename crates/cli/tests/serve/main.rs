//! `darkroom serve` as a process: attacks on every dialect, pictures that wait for a person, a configuration that changes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod held;
mod live;
mod up;

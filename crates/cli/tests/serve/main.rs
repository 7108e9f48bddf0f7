//! `darkroom serve` as a process: attacks on every dialect, pictures that wait for a person, a configuration that changes, a
//! disk that is full, web sockets, uploads in parts, webhooks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
#[cfg(target_os = "linux")]
mod disk;
mod held;
mod live;
mod realtime;
mod up;
mod uploads;
mod webhooks;

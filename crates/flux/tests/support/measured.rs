//! What a refusal says and how much memory it takes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use peak_alloc::PeakAlloc;

/// Counts what is allocated and not given back.
#[global_allocator]
pub static ALLOCATOR: PeakAlloc = PeakAlloc;

static ALONE: Mutex<()> = Mutex::new(());

/// Held by every test of a binary that measures from its start to its end: the allocator counts what all threads take, so two
/// tests at once would count each other's files.
pub fn alone() -> MutexGuard<'static, ()> {
    // The test of the measure itself panics while it holds this.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most that a refusal may take, whatever the file claims.
pub const MOST: usize = 64 << 20;

/// What `f` fails with: it names all of `words` and was cheap.
pub fn refused<T>(case: &str, words: &[&str], f: impl FnOnce() -> flux::Result<T>) -> String {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let error = match f() {
        Ok(_) => panic!("{case}: was accepted"),
        Err(error) => error.to_string(),
    };
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(peak <= MOST, "{case}: took {} MB to refuse", peak >> 20);
    for word in words {
        assert!(error.contains(word), "{case}: '{word}' was expected in: {error}");
    }
    assert!(!error.ends_with('.') && !error.contains('\n'), "{case}: one sentence without a full stop: {error}");
    error
}

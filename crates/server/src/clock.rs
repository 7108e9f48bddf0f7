//! The time, as everything here counts it.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970, UTC.
pub type Millis = i64;

/// `time` from now on; for good, if that is beyond what can be counted.
pub fn after(time: Duration) -> Millis {
    now().saturating_add(Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX))
}

/// Now.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

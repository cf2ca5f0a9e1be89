//! Progress callbacks of long operations.

use std::sync::Arc;

/// Called with the number of items done and, if it is known, the total number.
pub type OnProgress = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// A callback that does nothing.
pub fn silent() -> OnProgress {
    Arc::new(|_, _| {})
}

//! How long work says how far it is, without knowing who listens.

use std::sync::Arc;

/// Called with what is done and, where known, what there is in all.
pub type OnProgress = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// For callers who do not want to know.
pub fn silent() -> OnProgress {
    Arc::new(|_, _| {})
}

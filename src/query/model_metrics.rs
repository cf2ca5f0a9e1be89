//! Counts of what models computed, for EXPLAIN ANALYZE.
//!
//! An SQL function returns a column and nothing else. So a model call adds its counts to a sum of its thread, and the
//! plan node that evaluates the function takes the sum ([`measured`]).

use std::cell::Cell;
use std::ops::AddAssign;

/// Counts of model calls.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ModelMetrics {
    /// Cells that went through a model.
    pub(super) computed: u64,
    /// Cells whose vector the store held.
    pub(super) stored: u64,
    /// Cells whose vector this session had computed before.
    pub(super) remembered: u64,
    /// Tokens that went through an encoder.
    pub(super) tokens: u64,
    /// Batches of tokens.
    pub(super) batches: u64,
    /// Seconds spent in models.
    pub(super) seconds: f64,
}

impl AddAssign for ModelMetrics {
    fn add_assign(&mut self, more: Self) {
        self.computed += more.computed;
        self.stored += more.stored;
        self.remembered += more.remembered;
        self.tokens += more.tokens;
        self.batches += more.batches;
        self.seconds += more.seconds;
    }
}

thread_local! {
    static COUNTS: Cell<ModelMetrics> = Cell::new(ModelMetrics::default());
}

/// Adds to the counts of this thread.
pub(super) fn add(more: ModelMetrics) {
    let mut sum = COUNTS.get();
    sum += more;
    COUNTS.set(sum);
}

/// Calls `f` and returns its result with the counts of the model calls it made on this thread.
pub(super) fn measured<T>(f: impl FnOnce() -> T) -> (T, ModelMetrics) {
    let outer = COUNTS.replace(ModelMetrics::default());
    let result = f();
    (result, COUNTS.replace(outer))
}

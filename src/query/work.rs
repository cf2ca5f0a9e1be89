//! What models did, for whoever asked them.
//!
//! A function of SQL returns a column and nothing else, so what it cost is added up per thread while it runs, and the
//! plan's node that called it takes the sum ([`tallied`]).

use std::cell::Cell;
use std::ops::AddAssign;

/// Work of model calls.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    /// Cells that went through a model.
    pub(super) computed: u64,
    /// Cells whose vector the store held.
    pub(super) stored: u64,
    /// Cells that this session had met before.
    pub(super) remembered: u64,
    /// Tokens that went through an encoder.
    pub(super) tokens: u64,
    /// Batches of tokens.
    pub(super) batches: u64,
    /// Seconds inside models.
    pub(super) seconds: f64,
}

impl AddAssign for Work {
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
    static WORK: Cell<Work> = Cell::new(Work::default());
}

/// Adds to what this thread's caller is told.
pub(super) fn add(more: Work) {
    let mut sum = WORK.get();
    sum += more;
    WORK.set(sum);
}

/// Calls `f` and says what models did in it, on this thread.
pub(super) fn tallied<T>(f: impl FnOnce() -> T) -> (T, Work) {
    let outer = WORK.replace(Work::default());
    let result = f();
    (result, WORK.replace(outer))
}

//! Ctrl-C, heard by a thread of its own: models may keep every thread of the runtime busy, and it must be heard then.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::error::{Error, Result};

/// Hears Ctrl-C from its making to the end of the program, which Ctrl-C then no longer ends.
pub(in crate::cli) struct Interrupts(Arc<Notify>);

impl Interrupts {
    /// Begins to listen.
    ///
    /// # Errors
    /// The system refuses.
    pub(in crate::cli) fn listen() -> Result<Self> {
        let doing = || Error::internal("listening for Ctrl-C");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing())?;
        let mut signals = {
            let _inside = runtime.enter();
            signal(SignalKind::interrupt()).map_err(doing())?
        };
        let heard = Arc::new(Notify::new());
        let tell = Arc::clone(&heard);
        let listen = async move {
            while signals.recv().await.is_some() {
                tell.notify_waiters();
            }
        };
        std::thread::Builder::new().name("ctrl-c".into()).spawn(move || runtime.block_on(listen)).map_err(doing())?;
        Ok(Self(heard))
    }

    /// Waits for the next one.
    pub(super) async fn next(&self) {
        self.0.notified().await;
    }
}

//! Ctrl-C. A thread of its own listens for it, because models can keep all threads of the runtime busy.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::error::{Error, Result};

/// Listens for Ctrl-C until the program ends. Ctrl-C then no longer ends the program.
pub(in crate::cli) struct Interrupts(Arc<Notify>);

impl Interrupts {
    /// Starts to listen.
    ///
    /// # Errors
    /// The system refuses the signal handler or the thread.
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

    /// Waits for the next Ctrl-C.
    pub(in crate::cli) async fn next(&self) {
        self.0.notified().await;
    }
}

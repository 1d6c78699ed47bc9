//! A door that starts shut and is opened once. Who waits at it goes on when it opens. Nothing here
//! depends on how long anything takes; the bound only ends a test that would hang.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The longest wait at a gate before the test counts as hung.
pub const GATE_WAIT_MAX: Duration = Duration::from_secs(120);

/// A shared door. Clones are the same door.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A door that is shut.
    pub fn shut() -> Self {
        Self::default()
    }

    /// Opens it for good.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether it was opened.
    pub fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is open; false after [`GATE_WAIT_MAX`].
    pub fn pass(&self) -> bool {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(guard, GATE_WAIT_MAX, |open| !*open);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

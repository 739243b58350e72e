//! When a run's phases begin and end: shared by all shards, read at every message.
//!
//! The begin is not known before all streams are open, and Ctrl-C moves the end, so both are
//! atomics; between those moments nobody writes, and reading them is a plain load.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::units::Nanos;

/// Begin of the load and the window of the measurement, on the run's clock.
#[derive(Debug)]
pub(crate) struct Timeline {
    load_begin: AtomicU64,
    window_begin: AtomicU64,
    window_end: AtomicU64,
}

impl Timeline {
    /// Nothing has begun yet.
    pub(crate) fn unknown() -> Self {
        let never = || AtomicU64::new(Nanos::NEVER.0);
        Timeline { load_begin: never(), window_begin: never(), window_end: never() }
    }

    /// Load begins at `load_begin`, counts from `window_begin` on, and until `window_end`.
    pub(crate) fn set(&self, load_begin: Nanos, window_begin: Nanos, window_end: Nanos) {
        self.load_begin.store(load_begin.0, Relaxed);
        self.window_begin.store(window_begin.0, Relaxed);
        self.window_end.store(window_end.0, Relaxed);
    }

    /// Moves the end to `at`, if that is earlier.
    pub(crate) fn end_by(&self, at: Nanos) {
        self.window_end.fetch_min(at.0, Relaxed);
    }

    pub(crate) fn load_begin(&self) -> Nanos {
        Nanos(self.load_begin.load(Relaxed))
    }

    pub(crate) fn window_begin(&self) -> Nanos {
        Nanos(self.window_begin.load(Relaxed))
    }

    pub(crate) fn window_end(&self) -> Nanos {
        Nanos(self.window_end.load(Relaxed))
    }

    /// Whether something at `at` counts.
    pub(crate) fn counts(&self, at: Nanos) -> bool {
        at >= self.window_begin() && at < self.window_end()
    }
}

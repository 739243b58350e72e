//! loadgen's only clock: monotonic nanoseconds since the run began.
//!
//! One clock in one process, so that every difference of two instants is a true length of time.

use std::time::Instant;

use crate::units::Nanos;

/// A monotonic clock that began at zero; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that shows zero now.
    pub fn start() -> Self {
        Clock { origin: Instant::now() }
    }

    /// Time since the start. Costs about 30 ns where the kernel's vDSO has the clock.
    pub fn now(&self) -> Nanos {
        Nanos::from(self.origin.elapsed())
    }

    /// What this clock showed at `instant`; zero before it began.
    pub(crate) fn at(&self, instant: Instant) -> Nanos {
        Nanos::from(instant.saturating_duration_since(self.origin))
    }

    /// The tokio instant at which this clock shows `at`.
    pub(crate) fn instant(&self, at: Nanos) -> tokio::time::Instant {
        (self.origin + at.as_duration()).into()
    }
}

//! The guard between user code and a connection: a panic ends here, whatever it threw.

use std::panic::UnwindSafe;

/// User code panicked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panicked;

/// Runs user code. Err: it panicked; what it threw is gone.
///
/// Unlike the standard's it hands no payload on, whose own drop might panic where nobody expects it.
pub(crate) fn catch_unwind<T>(run: impl FnOnce() -> T + UnwindSafe) -> Result<T, Panicked> {
    std::panic::catch_unwind(run).map_err(|payload| {
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(payload)));
        // Whoever goes on like this is not dropped again: a leak is the lesser evil.
        dropped.unwrap_or_else(std::mem::forget);
        Panicked
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics when it is dropped, with one more of its kind, as often as it says.
    struct Bomb(usize);

    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 > 0 {
                std::panic::resume_unwind(Box::new(Bomb(self.0 - 1)));
            }
        }
    }

    #[test]
    fn a_payload_that_panics_when_it_is_dropped_does_not_get_out() {
        for more in 0..4 {
            let caught = catch_unwind(|| std::panic::resume_unwind(Box::new(Bomb(more))));
            assert!(matches!(caught, Err::<(), _>(Panicked)));
        }
    }
}

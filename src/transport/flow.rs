//! Flow-control windows, both directions (RFC 9113, 5.2 and 6.9).
//!
//! In: what was sent, received, taken and granted. Out: how much may leave, and when to grant more.
//! A [`SendWindow`] is what the peer lets us send; a [`RecvWindow`] what we let the peer send.

/// Largest window (RFC 9113, 6.9.1).
pub(crate) const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;

/// Window of every stream and connection until somebody says otherwise (RFC 9113, 6.9.2).
pub(crate) const WINDOW_BYTES_DEFAULT: u32 = 65_535;

/// What the peer lets us send, relative to its initial window: a change of that by SETTINGS moves
/// all streams at once and touches none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SendWindow {
    /// Granted by WINDOW_UPDATE, less what was sent.
    balance: i64,
}

impl SendWindow {
    /// Bytes that may leave, with the peer's present initial window; negative after a shrink.
    pub(crate) fn room(self, initial: u32) -> i64 {
        self.balance + i64::from(initial)
    }

    /// `bytes` left.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.balance -= i64::try_from(bytes).expect("a frame's length");
    }

    /// The peer granted `increment`. Err: the window would pass [`WINDOW_BYTES_MAX`].
    pub(crate) fn grant(&mut self, increment: u32, initial: u32) -> Result<(), Overflow> {
        let balance = self.balance + i64::from(increment);
        if balance + i64::from(initial) > i64::from(WINDOW_BYTES_MAX) {
            return Err(Overflow);
        }
        self.balance = balance;
        Ok(())
    }
}

/// A window grew past 2^31-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

/// What we let the peer send.
///
/// Conserved: `open + buffered + owed` is the size that we aim at, whatever happens in between
/// (`buffered` is known to the owner).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecvWindow {
    /// What the peer may still send; negative if our settings took away what it had sent already.
    open: i64,
    /// Received and done with, but not granted again yet.
    owed: u32,
}

impl RecvWindow {
    /// A window that the peer knows to be `open`.
    pub(crate) fn new(open: u32) -> Self {
        RecvWindow { open: open.into(), owed: 0 }
    }

    /// What the peer may still send.
    pub(crate) fn open(self) -> u32 {
        u32::try_from(self.open.max(0)).expect("at most WINDOW_BYTES_MAX")
    }

    /// The same as the peer counts it, below zero too.
    #[cfg(test)]
    pub(crate) fn balance(self) -> i64 {
        self.open
    }

    /// Done with, but not granted again.
    pub(crate) fn owed(self) -> u32 {
        self.owed
    }

    /// `bytes` came. Err: more than was open.
    pub(crate) fn receive(&mut self, bytes: u32) -> Result<(), Overflow> {
        if i64::from(bytes) > self.open.max(0) {
            return Err(Overflow);
        }
        self.open -= i64::from(bytes);
        Ok(())
    }

    /// `bytes` of what came are done with.
    pub(crate) fn release(&mut self, bytes: u32) {
        self.owed += bytes;
    }

    /// Moves what the peer may still send: our initial window bound it only now. The peer's own
    /// account may be negative then, and ours has to agree, or it would wait for grants that we owe.
    pub(crate) fn shift(&mut self, by: i64) {
        self.open = (self.open + by).min(i64::from(WINDOW_BYTES_MAX));
    }

    /// Widens the aim by `bytes`: they are granted with the next update.
    pub(crate) fn widen(&mut self, bytes: u32) {
        self.owed += bytes;
    }

    /// What to grant now: all that is owed, once it is at least `threshold`; small updates wait.
    pub(crate) fn update(&mut self, threshold: u32) -> Option<u32> {
        if self.owed == 0 || self.owed < threshold {
            return None;
        }
        let increment = std::mem::take(&mut self.owed);
        self.open += i64::from(increment);
        Some(increment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_initial_window_makes_a_window_negative() {
        let mut window = SendWindow::default();
        window.spend(60_000);
        assert_eq!(window.room(65_535), 5_535);
        assert_eq!(window.room(16_384), -43_616);
        window.grant(50_000, 16_384).unwrap();
        assert_eq!(window.room(16_384), 6_384);
    }

    #[test]
    fn a_window_past_its_maximum_overflows() {
        let mut window = SendWindow::default();
        assert_eq!(window.grant(WINDOW_BYTES_MAX - 65_535, 65_535), Ok(()));
        assert_eq!(window.grant(1, 65_535), Err(Overflow));
        window.spend(1);
        assert_eq!(window.grant(1, 65_535), Ok(()));
    }

    #[test]
    fn a_window_that_our_settings_made_negative_is_granted_until_it_is_open() {
        let mut window = RecvWindow::new(65_535);
        window.receive(65_535).unwrap();
        window.shift(1_000 - 65_535);
        assert_eq!(window.open(), 0);
        assert_eq!(window.receive(1), Err(Overflow));
        assert_eq!(window.receive(0), Ok(()));
        window.release(65_535);
        assert_eq!(window.update(0), Some(65_535));
        assert_eq!(window.open(), 1_000);
    }

    #[test]
    fn what_is_owed_is_granted_once_it_pays() {
        let mut window = RecvWindow::new(100);
        assert_eq!(window.receive(101), Err(Overflow));
        assert_eq!(window.receive(100), Ok(()));
        window.release(49);
        assert_eq!(window.update(50), None);
        window.release(1);
        assert_eq!(window.update(50), Some(50));
        assert_eq!((window.open(), window.owed()), (50, 0));
        assert_eq!(window.update(0), None);
    }
}

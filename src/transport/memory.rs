//! Who keeps how many bytes: layers above the transport for a connection, and all connections of a
//! server together.
//!
//! In: what is kept and let go. Out: whether more may be. A connection tells the server's sum of
//! itself once a turn, and only if something has changed: nothing is counted per message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::counters::Counters;

/// What layers above the transport keep on behalf of one connection.
///
/// Each request of a server's connection finds it in its extensions. A layer that takes bytes from a
/// body before anybody can use them (the parts of a message that has begun) counts them here, so
/// that they stay within [`Limits::held_bytes_max`](super::Limits::held_bytes_max) and within the
/// cap of the server.
#[derive(Clone, Debug)]
pub struct Held(Arc<HeldBytes>);

#[derive(Debug)]
struct HeldBytes {
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Held {
    /// Nothing is held yet, and never more than `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Held(Arc::new(HeldBytes { bytes: AtomicUsize::new(0), bytes_max }))
    }

    /// Counts `bytes` that are kept from now on. Out: whether there is room; if not, they are not
    /// counted and must not be kept.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> bool {
        let before = self.0.bytes.fetch_add(bytes, Relaxed);
        let has_room = before.saturating_add(bytes) <= self.0.bytes_max;
        if !has_room {
            self.release(bytes);
        }
        has_room
    }

    /// `bytes` that were counted are kept no more.
    pub fn release(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Relaxed);
    }

    /// What is held now.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Relaxed)
    }

    /// The most that may be.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }
}

/// What all connections of a server keep together; the sum stands among its counters.
#[derive(Clone, Debug)]
pub(crate) struct Total {
    bytes_max: usize,
    counters: Arc<Counters>,
    connections: Arc<AtomicUsize>,
}

impl Total {
    pub(crate) fn new(bytes_max: usize, counters: Arc<Counters>) -> Self {
        Total { bytes_max, counters, connections: Arc::default() }
    }
}

/// How scarce memory is, as far as one connection is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scarcity {
    /// It may go on.
    None,
    /// It keeps more than its fair part of half the cap, and all together keep more than that half:
    /// nothing more is granted.
    Some,
    /// It has grown nevertheless, beyond the cap.
    Exhausted,
}

/// One connection's part of the [`Total`].
#[derive(Debug)]
pub(crate) struct Share {
    total: Total,
    bytes: usize,
}

impl Share {
    pub(crate) fn new(total: Total) -> Self {
        total.connections.fetch_add(1, Relaxed);
        Share { total, bytes: 0 }
    }

    /// The connection keeps so many bytes now.
    pub(crate) fn is(&mut self, bytes: usize) -> Scarcity {
        let Total { bytes_max, counters, connections } = &self.total;
        let sum = &counters.buffered_bytes;
        let has_grown = bytes > self.bytes;
        if bytes != self.bytes {
            // Wraps, and is right again in the sum.
            sum.fetch_add(bytes.wrapping_sub(self.bytes), Relaxed);
            self.bytes = bytes;
        }
        let (all, half) = (sum.load(Relaxed), bytes_max / 2);
        if all <= half {
            return Scarcity::None;
        }
        let is_fair = bytes <= half / connections.load(Relaxed).max(1);
        match all > if is_fair { bytes_max.saturating_add(half) } else { *bytes_max } {
            true if has_grown => Scarcity::Exhausted,
            _ if is_fair => Scarcity::None,
            _ => Scarcity::Some,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.total.counters.buffered_bytes.fetch_sub(self.bytes, Relaxed);
        self.total.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_not_counted() {
        let held = Held::new(10);
        assert!(held.hold(4) && held.hold(6));
        assert!(!held.hold(1));
        assert_eq!(held.bytes(), 10);
        held.release(6);
        assert!(!held.hold(usize::MAX));
        assert!(held.hold(6));
    }

    #[test]
    fn whoever_keeps_more_than_its_part_is_held_back_and_ends_if_it_grows_on() {
        let counters = Arc::<Counters>::default();
        let total = Total::new(1_000, counters.clone());
        let (mut hog, mut other) = (Share::new(total.clone()), Share::new(total.clone()));
        // Half of the cap is anybody's.
        assert_eq!(hog.is(500), Scarcity::None);
        assert_eq!(hog.is(501), Scarcity::Some);
        assert_eq!(hog.is(1_000), Scarcity::Some);
        // Each has a part that nobody takes away: of the other half, 250 for each of the two.
        assert_eq!(other.is(250), Scarcity::None);
        assert_eq!(other.is(251), Scarcity::Exhausted);
        assert_eq!(other.is(250), Scarcity::None);
        // Keeping what it has costs nothing; more does.
        assert_eq!(hog.is(1_000), Scarcity::Some);
        assert_eq!(hog.is(1_001), Scarcity::Exhausted);
        drop(hog);
        assert_eq!(counters.snapshot().buffered_bytes, 250);
        assert_eq!(other.is(251), Scarcity::None);
    }

    #[test]
    fn however_many_come_the_sum_is_bounded() {
        let counters = Arc::<Counters>::default();
        let total = Total::new(1_000, counters.clone());
        let mut shares = Vec::new();
        loop {
            let mut share = Share::new(total.clone());
            // Each takes all that nobody would grudge it at its time, which the next makes too much.
            let is_over = share.is(500 / (shares.len() + 1)) == Scarcity::Exhausted;
            shares.push(share);
            if is_over {
                break;
            }
        }
        let sum = counters.snapshot().buffered_bytes;
        assert!((1_500..=2_000).contains(&sum), "{sum}");
    }
}

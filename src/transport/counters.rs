//! What the transport counts: connections, streams, and why connections were ended.
//!
//! In: events of connections. Out: [`Counters::snapshot`]. Nothing is counted per message.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Counters of one server, or of one client's connections.
#[derive(Debug, Default)]
pub struct Counters {
    streams_opened: AtomicU64,
    streams_closed: AtomicU64,
    panics: AtomicU64,
    goaways: Mutex<BTreeMap<&'static str, u64>>,
}

/// Counters at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Streams that began.
    pub streams_opened: u64,
    /// Streams that are over.
    pub streams_closed: u64,
    /// Panics of handlers, bodies and their drops; each cost one stream.
    pub panics: u64,
    /// Connections that we ended, by reason.
    pub goaways: BTreeMap<&'static str, u64>,
}

impl Counters {
    /// What was counted so far.
    pub fn snapshot(&self) -> CountersSnapshot {
        CountersSnapshot {
            streams_opened: self.streams_opened.load(Relaxed),
            streams_closed: self.streams_closed.load(Relaxed),
            panics: self.panics.load(Relaxed),
            goaways: self.goaways.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn stream_opened(&self) {
        self.streams_opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_closed(&self) {
        self.streams_closed.fetch_add(1, Relaxed);
    }

    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub(crate) fn goaway(&self, reason: &'static str) {
        *self.goaways.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() +=
            1;
    }
}

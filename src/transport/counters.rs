//! What the transport counts: connections, streams, and why connections were ended.
//!
//! In: events of connections. Out: [`Counters::snapshot`]. Nothing is counted per message.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters of one server, or of one client's connections.
#[derive(Debug, Default)]
pub struct Counters {
    streams_opened: AtomicU64,
    streams_closed: AtomicU64,
    streams_reset: AtomicU64,
    streams_broken: AtomicU64,
    streams_refused: AtomicU64,
    streams_expired: Mutex<Reasons>,
    panics: AtomicU64,
    reads_kept: AtomicU64,
    /// What all connections keep, as each last told.
    pub(crate) buffered_bytes: AtomicUsize,
    goaways: Mutex<Reasons>,
}

/// How often something happened, by why.
type Reasons = BTreeMap<&'static str, u64>;

/// Counters at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Streams that began.
    pub streams_opened: u64,
    /// Streams that are over.
    pub streams_closed: u64,
    /// Streams that the peer reset while they were open.
    pub streams_reset: u64,
    /// Streams that we reset or did not begin, because the peer broke the protocol on them.
    pub streams_broken: u64,
    /// Streams that we did not begin because there were too many, or because of a drain.
    pub streams_refused: u64,
    /// Streams whose time was over, by reason: `deadline`, `stalled`, `idle`, `unread` or `drained`.
    pub streams_expired: BTreeMap<&'static str, u64>,
    /// Panics of handlers, bodies and their drops; each cost one stream.
    pub panics: u64,
    /// Read buffers that were still held by a service when all its streams had been polled; since the first,
    /// every payload is copied. More than one only if threads lent theirs at the same time.
    pub reads_kept: u64,
    /// Bytes that all connections keep now, as each last told.
    pub buffered_bytes: usize,
    /// Connections that we ended, by reason.
    pub goaways: BTreeMap<&'static str, u64>,
}

impl Counters {
    /// What was counted so far.
    pub fn snapshot(&self) -> CountersSnapshot {
        CountersSnapshot {
            streams_opened: self.streams_opened.load(Relaxed),
            streams_closed: self.streams_closed.load(Relaxed),
            streams_reset: self.streams_reset.load(Relaxed),
            streams_broken: self.streams_broken.load(Relaxed),
            streams_refused: self.streams_refused.load(Relaxed),
            streams_expired: lock(&self.streams_expired).clone(),
            panics: self.panics.load(Relaxed),
            reads_kept: self.reads_kept.load(Relaxed),
            buffered_bytes: self.buffered_bytes.load(Relaxed),
            goaways: lock(&self.goaways).clone(),
        }
    }

    pub(crate) fn stream_opened(&self) {
        self.streams_opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_closed(&self) {
        self.streams_closed.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_reset(&self) {
        self.streams_reset.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_broken(&self) {
        self.streams_broken.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_refused(&self) {
        self.streams_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_expired(&self, reason: &'static str) {
        *lock(&self.streams_expired).entry(reason).or_default() += 1;
    }

    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub(crate) fn read_kept(&self) {
        self.reads_kept.fetch_add(1, Relaxed);
    }

    /// Whether payloads may wait in the read buffer: no service has kept one.
    pub(crate) fn lends_reads(&self) -> bool {
        self.reads_kept.load(Relaxed) == 0
    }

    pub(crate) fn goaway(&self, reason: &'static str) {
        *lock(&self.goaways).entry(reason).or_default() += 1;
    }
}

fn lock(reasons: &Mutex<Reasons>) -> MutexGuard<'_, Reasons> {
    reasons.lock().unwrap_or_else(PoisonError::into_inner)
}

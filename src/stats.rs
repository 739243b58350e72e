//! What the server counts: connections, streams, messages, bytes.
//!
//! In: events of connections and streams. Out: [`Stats::snapshot`]. Message counters are spread
//! over cache lines by thread, so that counting never makes two cores share a line; a stream adds
//! up locally (`MessageTally`) and posts when it has nothing more to do.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use tonic::Code;

use crate::transport::StreamEnd;

/// Counters of one server.
#[derive(Debug)]
pub struct Stats {
    connections_accepted: AtomicU64,
    connections_open: AtomicU64,
    streams_open: AtomicU64,
    streams_finished: [AtomicU64; OUTCOMES],
    messages: Box<[CachePadded<MessageCounters>]>,
}

/// gRPC's 17 codes, and one for requests that were not gRPC.
const OUTCOMES: usize = 18;
const NOT_GRPC: usize = 17;

/// Counters at one instant; each is exact once the streams that it counts are idle or over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections accepted since the start.
    pub connections_accepted: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Streams open now.
    pub streams_open: u64,
    /// Streams that ended, by outcome; outcomes that never happened are left out.
    pub streams_finished: Vec<(Outcome, u64)>,
    /// Messages that handlers took.
    pub messages_in: u64,
    /// Messages that handlers gave back.
    pub messages_out: u64,
    /// Encoded bytes of the messages in, without the 5-byte prefixes.
    pub message_bytes_in: u64,
    /// Encoded bytes of the messages out, without the 5-byte prefixes.
    pub message_bytes_out: u64,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this gRPC status; `Cancelled` also stands for a stream whose client or connection went away.
    Grpc(Code),
    /// With an HTTP status, because the request was not gRPC.
    NotGrpc,
}

impl Outcome {
    /// The status name of the gRPC specification, or `NOT_GRPC`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::NotGrpc => "NOT_GRPC",
            Outcome::Grpc(code) => code_name(code),
        }
    }

    fn index(self) -> usize {
        match self {
            Outcome::NotGrpc => NOT_GRPC,
            Outcome::Grpc(code) => i32::from(code).clamp(0, 16).unsigned_abs() as usize,
        }
    }

    fn from_index(index: usize) -> Self {
        match i32::try_from(index) {
            Ok(code) if index < NOT_GRPC => Outcome::Grpc(Code::from_i32(code)),
            _ => Outcome::NotGrpc,
        }
    }
}

/// Name of a status code as the gRPC specification writes it, `RESOURCE_EXHAUSTED` for example.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[derive(Debug, Default)]
struct MessageCounters {
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Lines that belong to one thread each; the threads after that share one more.
const OWNED_LINES: usize = 64;

thread_local! {
    static LINE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The line of this thread, the same in every [`Stats`]; no other thread adds to it, unless it is the
/// shared one.
fn line_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    LINE.with(|line| {
        line.get().unwrap_or_else(|| {
            let taken = NEXT.fetch_add(1, Relaxed).min(OWNED_LINES);
            line.set(Some(taken));
            taken
        })
    })
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            connections_accepted: AtomicU64::new(0),
            connections_open: AtomicU64::new(0),
            streams_open: AtomicU64::new(0),
            streams_finished: std::array::from_fn(|_| AtomicU64::new(0)),
            messages: (0..=OWNED_LINES).map(|_| CachePadded::default()).collect(),
        }
    }
}

impl Stats {
    /// Sums up what was counted so far.
    pub fn snapshot(&self) -> Snapshot {
        let sum = |field: fn(&MessageCounters) -> &AtomicU64| {
            self.messages.iter().map(|line| field(line).load(Relaxed)).sum()
        };
        let finished = self.streams_finished.iter().enumerate();
        Snapshot {
            connections_accepted: self.connections_accepted.load(Relaxed),
            connections_open: self.connections_open.load(Relaxed),
            streams_open: self.streams_open.load(Relaxed),
            streams_finished: finished
                .map(|(index, count)| (Outcome::from_index(index), count.load(Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            messages_in: sum(|line| &line.messages_in),
            messages_out: sum(|line| &line.messages_out),
            message_bytes_in: sum(|line| &line.bytes_in),
            message_bytes_out: sum(|line| &line.bytes_out),
        }
    }
}

/// Counts one connection as open until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection(Arc<Stats>);

impl OpenConnection {
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        stats.connections_accepted.fetch_add(1, Relaxed);
        stats.connections_open.fetch_add(1, Relaxed);
        OpenConnection(stats)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Relaxed);
    }
}

/// Counts one stream as open, then by how it ended; dropped without a word, it was cancelled.
#[derive(Debug)]
pub(crate) struct OpenStream {
    stats: Arc<Stats>,
    outcome: Option<Outcome>,
    end: Option<StreamEnd>,
}

impl OpenStream {
    /// `end` knows whether the transport ended the stream, where the transport tells.
    pub(crate) fn new(stats: Arc<Stats>, end: Option<StreamEnd>) -> Self {
        stats.streams_open.fetch_add(1, Relaxed);
        OpenStream { stats, outcome: None, end }
    }

    /// Whether the service was told that a drain cuts the request short.
    pub(crate) fn was_told_of_drain(&self) -> bool {
        self.end.as_ref().is_some_and(StreamEnd::was_told_of_drain)
    }

    /// Notes how the stream ended; counted when this is dropped, unless the transport knows better.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.stats.streams_open.fetch_sub(1, Relaxed);
        // The transport knows what left. A service on another task may have ended the stream in its own way meanwhile.
        let (told, now) = match &self.end {
            Some(end) => (end.told(), end.grpc_code()),
            None => (None, None),
        };
        let by_transport = |code| Outcome::Grpc(Code::from_i32(code));
        let outcome = told.map(by_transport).or(self.outcome).or(now.map(by_transport));
        let outcome = outcome.unwrap_or(Outcome::Grpc(Code::Cancelled));
        self.stats.streams_finished[outcome.index()].fetch_add(1, Relaxed);
    }
}

/// One stream's messages, added up locally and posted by [`MessageTally::post`] and on drop.
#[derive(Debug)]
pub(crate) struct MessageTally {
    stats: Arc<Stats>,
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl MessageTally {
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        MessageTally { stats, messages_in: 0, messages_out: 0, bytes_in: 0, bytes_out: 0 }
    }

    pub(crate) fn took(&mut self, bytes: usize) {
        self.messages_in += 1;
        self.bytes_in += bytes as u64;
    }

    pub(crate) fn gave(&mut self, bytes: usize) {
        self.messages_out += 1;
        self.bytes_out += bytes as u64;
    }

    /// Adds what was counted since the last call to the server's counters.
    pub(crate) fn post(&mut self) {
        if self.messages_in == 0 {
            return;
        }
        let at = line_of_this_thread();
        let line = &self.stats.messages[at];
        let add = |counter: &AtomicU64, count: u64| {
            if at < OWNED_LINES {
                // Nobody else writes: plain sums instead of four locked ones for each turn of a stream.
                counter.store(counter.load(Relaxed) + count, Relaxed);
            } else {
                counter.fetch_add(count, Relaxed);
            }
        };
        add(&line.messages_in, std::mem::take(&mut self.messages_in));
        add(&line.messages_out, std::mem::take(&mut self.messages_out));
        add(&line.bytes_in, std::mem::take(&mut self.bytes_in));
        add(&line.bytes_out, std::mem::take(&mut self.bytes_out));
    }
}

impl Drop for MessageTally {
    fn drop(&mut self) {
        self.post();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_dropped_without_a_status_was_cancelled() {
        let stats = Arc::new(Stats::default());
        let stream = OpenStream::new(stats.clone(), None);
        assert_eq!(stats.snapshot().streams_open, 1);
        drop(stream);
        let finished = vec![(Outcome::Grpc(Code::Cancelled), 1)];
        assert_eq!(
            stats.snapshot(),
            Snapshot { streams_finished: finished, ..Snapshot::default() }
        );
    }

    #[test]
    fn what_the_transport_ended_counts_as_that_whatever_its_service_said_meanwhile() {
        let check = |told: bool, said, expected: Code| {
            let stats = Arc::new(Stats::default());
            let mut stream = OpenStream::new(stats.clone(), Some(StreamEnd::example(told)));
            if let Some(code) = said {
                stream.finish(Outcome::Grpc(code));
            }
            drop(stream);
            let finished = vec![(Outcome::Grpc(expected), 1)];
            assert_eq!(stats.snapshot().streams_finished, finished);
        };
        check(true, Some(Code::Unknown), Code::Cancelled);
        check(true, None, Code::Cancelled);
        check(false, Some(Code::Unknown), Code::Unknown);
        check(false, None, Code::Cancelled);
    }

    #[test]
    fn every_outcome_keeps_its_name_through_its_index() {
        for index in 0..OUTCOMES {
            assert_eq!(Outcome::from_index(index).index(), index);
        }
        assert_eq!(Outcome::from_index(NOT_GRPC).name(), "NOT_GRPC");
        assert_eq!(Outcome::from_index(8).name(), "RESOURCE_EXHAUSTED");
    }

    #[test]
    fn tallies_of_many_threads_add_up() {
        let stats = Arc::new(Stats::default());
        std::thread::scope(|scope| {
            for _ in 0..100 {
                let mut tally = MessageTally::new(stats.clone());
                scope.spawn(move || {
                    for _ in 0..1_000 {
                        tally.took(3);
                        tally.gave(5);
                        tally.post();
                    }
                });
            }
        });
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.messages_in, snapshot.messages_out), (100_000, 100_000));
        assert_eq!((snapshot.message_bytes_in, snapshot.message_bytes_out), (300_000, 500_000));
    }
}

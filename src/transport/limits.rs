//! Every bound of a connection, with its default and the reason for it; and the flood counters.
//!
//! In: what a peer did, and `now`. Out: whether it may. A [`Bucket`] fills with what costs us work
//! and brings the peer nothing, and drains with time and with useful frames: there is no lifetime
//! counter that an honest peer of many hours could use up.

use std::time::{Duration, Instant};

use super::flow::WINDOW_BYTES_MAX;
use super::frame::{ErrorCode, Fault};

/// Longest time that is added to an instant: nothing overflows, and nobody sees its end.
const TIME_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);

/// Shortest time that a timer takes: what tokio's timers know.
const TIME_MIN: Duration = Duration::from_millis(1);

/// Most bytes that a limit in `usize` allows: sums of a few dozen of them do not overflow.
const BYTES_MAX: usize = usize::MAX >> 8;

/// Bounds of one server's connections, or of one client connection. Times of `None` mean never.
///
/// What lies outside a field's range, [`Server::new`](super::Server::new) and
/// [`Client::new`](super::Client::new) take for the nearest value within it. Times are at least 1 ms, at
/// most 30 years; where a field names no range, every value means what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that a peer may have open at once; more are refused and may be tried again.
    ///
    /// Live handlers never exceed it, whatever the peer resets. 4,096 lets 3,000 streams begin
    /// before the client has seen our settings.
    pub max_concurrent_streams: u32,
    /// Largest header list in bytes (names + values + 32 each; RFC 9113, 6.5.2). The seed's 8 KiB.
    ///
    /// An answer's may have 64 KiB, or as many as this if that is more, but no more than the peer says that it takes: beyond
    /// that a gRPC status leaves without its message, and any other answer is a failure (RESOURCE_EXHAUSTED, or 500).
    pub header_list_bytes_max: u32,
    /// Flow-control window that a stream begins with; it doubles while its reader keeps up. 1 to 2^31-1
    /// (RFC 9113, 6.9.1).
    ///
    /// 64 KiB: a stream whose reader was always stuck holds no more of the connection's window than that.
    pub stream_flow_window_bytes: u32,
    /// Largest flow-control window of a stream, from [`Self::stream_flow_window_bytes`] to 2^31-1.
    pub stream_flow_window_bytes_max: u32,
    /// Flow-control window of a connection, 1 to 2^31-1: the most that its inboxes hold, together. Every
    /// connection begins with 65,535 (RFC 9113, 6.9.2); a smaller window holds from then on.
    ///
    /// Streams that grew share half of it at most, so that 16 readers that stop after they kept up do not
    /// starve those that go on. Whoever uses all of it up without being read for the stall timeout is ended.
    pub connection_flow_window_bytes: u32,
    /// Output at which no further response body is polled, at least 1. Bounds what a peer that does not
    /// read makes us keep.
    pub output_bytes_max: usize,
    /// Most that waits for the windows of streams: pieces of response bodies that did not wholly fit.
    ///
    /// From half of it on bodies are polled only where the window has room for a frame of 16 KiB,
    /// beyond it none is. 8 MiB: two of gRPC's largest messages.
    pub pending_bytes_max: usize,
    /// Most that layers above may hold of a connection's unfinished messages ([`Held`](super::Held)).
    ///
    /// 24 MiB: six of gRPC's largest messages begun at once.
    pub held_bytes_max: usize,
    /// Most that the heads of requests take whose handler was not called yet, and trailers that wait:
    /// streams beyond it are refused and may be tried again.
    ///
    /// A field takes some 200 bytes, but a client may send it as one. 16 MiB: 4,096 streams at once, of
    /// 15 fields each.
    pub heads_bytes_max: usize,
    /// Control replies (to PING, SETTINGS, broken streams) at which reading pauses, at least 1.
    pub control_bytes_max: usize,
    /// Once reading has paused for them, some output must leave in this time, or the connection ends:
    /// two peers that read nothing would wait for each other for ever.
    pub control_stall_timeout: Duration,
    /// From accept to the peer's first SETTINGS.
    pub handshake_timeout: Duration,
    /// From the first frame of a header block to its last.
    pub header_block_timeout: Duration,
    /// A connection without streams is closed after this.
    pub connection_idle_timeout: Option<Duration>,
    /// A stream without DATA or headers either way is ended after this.
    pub stream_idle_timeout: Option<Duration>,
    /// A stream that has something to send, or a connection with output, must get some of it out in
    /// this time: defends against peers that never open a window or never read.
    ///
    /// A response body is not polled while its window is shut, but for once each time that this has
    /// passed: whether it has something to send, nobody else knows. If it has, its stream ends within
    /// a quarter of this time more.
    ///
    /// A connection whose own window is used up, and is not granted again because the server's memory is scarce, ends after
    /// this, too.
    pub stall_timeout: Option<Duration>,
    /// Pings that notice peers that vanished; without them one that has a stream open keeps its connection for ever. None unless
    /// set; gRPC's servers use 2 h and 20 s (grpc/grpc, doc/keepalive.md).
    pub keepalive: Option<Keepalive>,
    /// When a connection is told to go, so that clients spread anew.
    pub age: Option<Age>,
    /// Floods: how much of each kind may come at once, and how fast it is forgiven.
    pub floods: Floods,
}

/// Pings of an otherwise silent connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which a ping leaves.
    pub interval: Duration,
    /// Time for its answer, from the ping or, if that is later, from the last bytes that came: the answer may stand behind
    /// much else.
    pub timeout: Duration,
}

/// How old a connection may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// GOAWAY is sent at this age, 10 % sooner or later by chance (gRFC A9).
    pub max: Duration,
    /// The connection is cut off this long after; `None` waits for its streams.
    pub grace: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_concurrent_streams: 4_096,
            header_list_bytes_max: 8 << 10,
            stream_flow_window_bytes: 64 << 10,
            stream_flow_window_bytes_max: 1 << 20,
            connection_flow_window_bytes: 16 << 20,
            output_bytes_max: 256 << 10,
            pending_bytes_max: 8 << 20,
            held_bytes_max: 6 * ((4 << 20) + 5),
            heads_bytes_max: 16 << 20,
            control_bytes_max: 64 << 10,
            control_stall_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            header_block_timeout: Duration::from_secs(10),
            connection_idle_timeout: Some(Duration::from_secs(15 * 60)),
            stream_idle_timeout: None,
            stall_timeout: Some(Duration::from_secs(60)),
            keepalive: None,
            age: None,
            floods: Floods::default(),
        }
    }
}

impl Limits {
    /// The same, within the ranges of its fields: past this nothing checks them.
    pub(crate) fn clamped(self) -> Self {
        let window = |bytes: u32| bytes.clamp(1, WINDOW_BYTES_MAX);
        let time = |time: Duration| time.clamp(TIME_MIN, TIME_MAX);
        let stream_flow_window_bytes = window(self.stream_flow_window_bytes);
        let stream_flow_window_bytes_max = window(self.stream_flow_window_bytes_max);
        Limits {
            max_concurrent_streams: self.max_concurrent_streams,
            header_list_bytes_max: self.header_list_bytes_max,
            stream_flow_window_bytes,
            stream_flow_window_bytes_max: stream_flow_window_bytes_max
                .max(stream_flow_window_bytes),
            connection_flow_window_bytes: window(self.connection_flow_window_bytes),
            output_bytes_max: self.output_bytes_max.clamp(1, BYTES_MAX),
            pending_bytes_max: self.pending_bytes_max.min(BYTES_MAX),
            held_bytes_max: self.held_bytes_max.min(BYTES_MAX),
            heads_bytes_max: self.heads_bytes_max.min(BYTES_MAX),
            control_bytes_max: self.control_bytes_max.clamp(1, BYTES_MAX),
            control_stall_timeout: time(self.control_stall_timeout),
            handshake_timeout: time(self.handshake_timeout),
            header_block_timeout: time(self.header_block_timeout),
            connection_idle_timeout: self.connection_idle_timeout.map(time),
            stream_idle_timeout: self.stream_idle_timeout.map(time),
            stall_timeout: self.stall_timeout.map(time),
            keepalive: self.keepalive.map(|Keepalive { interval, timeout }| Keepalive {
                interval: time(interval),
                timeout: time(timeout),
            }),
            age: self.age.map(|Age { max, grace }| Age { max: time(max), grace: grace.map(time) }),
            floods: self.floods,
        }
    }

    /// Bytes that a header block may have before it is decoded. Far more than the list, so that lists
    /// of 1 MiB are refused politely, with 431 or RESOURCE_EXHAUSTED, and cost one stream only.
    pub fn header_block_bytes_max(&self) -> usize {
        (self.header_list_bytes_max as usize).max(1 << 20) + (64 << 10)
    }

    /// What [`Self::header_list_bytes_max`] says of answers.
    pub(crate) fn answer_list_bytes_max(&self) -> u32 {
        self.header_list_bytes_max.max(ANSWER_LIST_BYTES_MAX)
    }

    /// Fields that a header block may have. A list within its limit has none with less than 32 bytes (RFC 9113,
    /// 6.5.2), so no honest one has more; up to 32,768 a list is refused politely even so.
    pub fn header_fields_max(&self) -> usize {
        (self.header_list_bytes_max as usize / 32).max(32 << 10)
    }

    /// Most bytes on the heap that the transport, and layers that count what they [hold](super::Held),
    /// own for one connection, if no response body gives more than `piece_bytes_max` at once.
    ///
    /// A sum of what each limit allows, most of it doubled: buffers grow by doubling. Not in it is
    /// what belongs to a service: its futures, its bodies and what they keep, request bodies that outlive their
    /// stream, the service's clone for each stream; nor, with [`Placement::Task`](super::Placement::Task), a
    /// piece of each body that is being asked, 16 at most; nor buffers that a thread lends.
    pub fn connection_bytes_max(&self, piece_bytes_max: usize) -> usize {
        let limits = self.clone().clamped();
        let streams = limits.max_concurrent_streams as usize;
        let window = limits.connection_flow_window_bytes.max(super::flow::WINDOW_BYTES_DEFAULT);
        let inboxes = window as usize;
        let replies = limits.control_bytes_max + READ_REPLY_BYTES + streams * LAST_WORDS_BYTES;
        let output = limits.output_bytes_max + replies;
        // Each of these consists of pieces with their places in queues, a small part of their size.
        let doubled = 2 * (inboxes + limits.held_bytes_max + output);
        doubled
            + doubled / 16
            + super::output::LENT_BYTES_MAX
            + limits.pending_bytes_max
            // The last that found room in the windows, in the output, and the one that is leaving.
            + 3 * piece_bytes_max
            // The last answer's fields that found room in the output, and the block that they were encoded into.
            + 4 * limits.answer_list_bytes_max() as usize
            + limits.heads_bytes_max
            // The block, growing, and what its longest string unpacks to, growing too.
            + 7 * limits.header_block_bytes_max()
            + 4 * super::frame::FRAME_BYTES_MAX
            // What a turn had no time for.
            + super::connection::READ_BYTES
            + 2 * HEADER_TABLE_BYTES
            + CONNECTION_BYTES
            + streams * STREAM_BYTES
    }
}

/// Fields of an answer, unless requests may have more: they are encoded and written as one, whatever room there is. Eight times
/// what gRPC clients take by default.
const ANSWER_LIST_BYTES_MAX: u32 = 64 << 10;

/// Replies to all the frames of one read, which is begun while there is room. Most are as long as what
/// they answer; to refuse a stream takes 13 bytes for 10.
const READ_REPLY_BYTES: usize = 2 * super::connection::READ_BYTES;

/// What ends one stream, whatever room the output has: head or trailers with status and message, and
/// RST_STREAM.
const LAST_WORDS_BYTES: usize = 256;

/// Both dynamic tables have 4,096 bytes as HPACK counts, and at most twice that in memory, and with each
/// goes what it unpacks into.
const HEADER_TABLE_BYTES: usize = 16 << 10;

/// The fixed part of a connection: its state, timer and flood counters, and its queues while all frames of
/// a read concern another stream each.
pub(crate) const CONNECTION_BYTES: usize = 1 << 20;

/// The fixed part of a stream: its slot in a table that grows by doubling, its inbox without what is
/// in it, what it shares with its body, its places in indexes and queues.
pub(crate) const STREAM_BYTES: usize = 4_096;

/// How much of what brings nothing may come at once, and how fast it is forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// So many at once.
    pub burst: u32,
    /// So many are forgiven each second.
    pub per_second: u32,
    /// So many are forgiven for each frame of DATA that we sent and each stream that ended in order; of
    /// [`FloodKind::EmptyData`] for each frame of DATA that came, too; of [`FloodKind::WindowUpdate`] for each
    /// 5 bytes of DATA that we sent, the shortest message of gRPC, because many messages may share a frame and
    /// each may be granted by itself. What came forgives nothing else: one byte costs a peer less than what it
    /// would excuse.
    pub per_useful_frame: u32,
}

impl Flood {
    const fn new(burst: u32, per_second: u32, per_useful_frame: u32) -> Self {
        Flood { burst, per_second, per_useful_frame }
    }
}

/// The flood limits, one per kind of work that a peer can cause for nothing.
///
/// Small DATA has none: what it makes us keep is bounded by the windows, and its sender works harder than
/// we do (the row `tiny-data` of the bench `hostile`), while honest streams consist of small messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floods([Flood; FLOODS]);

/// A kind of flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloodKind {
    /// RST_STREAM of streams that had not ended (CVE-2023-44487).
    RapidReset,
    /// RST_STREAM that the peer provoked us to send (CVE-2025-8671).
    ProvokedReset,
    /// Streams above the limit, or above the last that our GOAWAY named.
    Refused,
    /// PING.
    Ping,
    /// SETTINGS, one for each six entries begun.
    Settings,
    /// DATA without data or end.
    EmptyData,
    /// CONTINUATION above what the block's length needs.
    Continuation,
    /// WINDOW_UPDATE above what the data sent explains.
    WindowUpdate,
    /// PRIORITY.
    Priority,
    /// Frames of unknown types.
    Unknown,
    /// Frames for streams that are gone.
    GoneStream,
    /// Header lists over the limit.
    HeaderList,
}

const FLOODS: usize = 12;

impl FloodKind {
    /// The word in GOAWAY, log and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            FloodKind::RapidReset => "too_many_resets",
            FloodKind::ProvokedReset => "too_many_stream_errors",
            FloodKind::Refused => "too_many_refused_streams",
            FloodKind::Ping => "too_many_pings",
            FloodKind::Settings => "too_many_settings",
            FloodKind::EmptyData => "too_many_empty_data_frames",
            FloodKind::Continuation => "too_many_continuations",
            FloodKind::WindowUpdate => "too_many_window_updates",
            FloodKind::Priority => "too_many_priorities",
            FloodKind::Unknown => "too_many_unknown_frames",
            FloodKind::GoneStream => "too_many_frames_for_gone_streams",
            FloodKind::HeaderList => "too_many_large_header_lists",
        }
    }
}

impl Default for Floods {
    fn default() -> Self {
        Floods([
            // An honest client may cancel all its streams at once, and a few hundred a second for ever.
            Flood::new(4_096, 400, 1),
            // Honest peers break streams by accident only.
            Flood::new(200, 20, 0),
            // What a client opens before it has seen our settings, a few times over.
            Flood::new(16_384, 1_000, 1),
            // grpc-go probes its bandwidth with one PING per round trip with data.
            Flood::new(100, 10, 1),
            // A handful at the beginning; changes are rare.
            Flood::new(100, 10, 0),
            // Some stacks end a write with an empty frame.
            Flood::new(200, 20, 1),
            // A block of full frames needs none of this.
            Flood::new(32, 10, 0),
            // Two for each message of ours, stream and connection, plus one for each stream's begin: gRPC C++
            // 1.51 grants each message that it reads.
            Flood::new(10_000, 1_000, 2),
            // Old browsers send a handful at the beginning.
            Flood::new(200, 20, 0),
            // GREASE: some at the beginning, now and then one.
            Flood::new(200, 20, 0),
            // What was on its way when streams were reset: a few windows full of small frames.
            Flood::new(100_000, 10_000, 1),
            // A client with a bug deserves the answer a few times.
            Flood::new(100, 10, 0),
        ])
    }
}

impl Floods {
    /// The limit of one kind.
    pub fn get(&self, kind: FloodKind) -> Flood {
        self.0[kind as usize]
    }

    /// Replaces the limit of one kind.
    pub fn set(&mut self, kind: FloodKind, flood: Flood) {
        self.0[kind as usize] = flood;
    }
}

/// How full one kind's bucket is.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    level: u32,
    /// Useful frames that it has been relieved for.
    useful: u64,
    drained_at: Option<Instant>,
}

/// All buckets of a connection; nothing is allocated before the first charge.
#[derive(Debug, Default)]
pub(crate) struct FloodGuard {
    buckets: Option<Box<[Bucket; FLOODS]>>,
    useful: u64,
    /// Messages that the DATA which was sent may have held, and streams that ended in order, as far as
    /// updates of windows have not been put down to them.
    unread: u64,
    /// Updates that the last of those still explains.
    excused: u32,
    /// Frames of DATA that came with something in them.
    received: u64,
}

/// The shortest message of gRPC is its prefix.
const MESSAGE_BYTES_MIN: u64 = 5;

/// More than a wide window holds is not remembered: whoever reads late grants what he reads at once, and
/// whoever has read much for long earns no flood by it.
const UNREAD_MAX: u64 = (16 << 20) / MESSAGE_BYTES_MIN;

impl FloodGuard {
    /// A stream ended in order.
    pub(crate) fn ended(&mut self) {
        self.useful += 1;
        self.unread = (self.unread + 1).min(UNREAD_MAX);
    }

    /// A frame with so many bytes of DATA was sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.useful += 1;
        let messages = (bytes as u64 / MESSAGE_BYTES_MIN).max(1);
        self.unread = (self.unread + messages).min(UNREAD_MAX);
    }

    /// A frame came that carried data.
    pub(crate) fn received(&mut self) {
        self.received += 1;
    }

    /// Charges one of `kind`. Err: the bucket is full; the connection ends, and the fault says why.
    pub(crate) fn charge(
        &mut self,
        floods: &Floods,
        kind: FloodKind,
        now: Instant,
    ) -> Result<(), Fault> {
        let flood = floods.get(kind);
        let useful = match kind {
            FloodKind::EmptyData => self.useful + self.received,
            FloodKind::WindowUpdate if self.explains(flood) => return Ok(()),
            // What was sent has explained all that it can.
            FloodKind::WindowUpdate => 0,
            _ => self.useful,
        };
        let bucket = &mut self.buckets.get_or_insert_default()[kind as usize];
        if bucket.level == 0 {
            (bucket.useful, bucket.drained_at) = (useful, Some(now));
        }
        bucket.level = bucket.level.saturating_add(1);
        if bucket.level <= flood.burst {
            return Ok(());
        }
        bucket.drain(flood, useful, now);
        if bucket.level <= flood.burst {
            return Ok(());
        }
        bucket.level = flood.burst;
        Err(Fault { code: ErrorCode::ENHANCE_YOUR_CALM, reason: kind.reason() })
    }
}

impl FloodGuard {
    /// Whether what was sent explains one more update of a window.
    fn explains(&mut self, flood: Flood) -> bool {
        if self.excused == 0 && self.unread > 0 {
            self.unread -= 1;
            self.excused = flood.per_useful_frame;
        }
        let explains = self.excused > 0;
        self.excused -= u32::from(explains);
        explains
    }
}

impl Bucket {
    /// Forgives what time and useful frames forgive. Called when full, so it costs honest peers nothing.
    fn drain(&mut self, flood: Flood, useful: u64, now: Instant) {
        let for_frames = (useful - self.useful).saturating_mul(flood.per_useful_frame.into());
        self.useful = useful;
        let since = self.drained_at.map_or(0.0, |at| (now - at).as_secs_f64());
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "floats saturate, and neither factor is negative"
        )]
        let for_time = (since * f64::from(flood.per_second)) as u64;
        // A part of one is not lost: it counts on from the same instant.
        if for_time > 0 {
            self.drained_at = Some(now);
        }
        let forgiven = for_frames.saturating_add(for_time);
        self.level = self.level.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floods() -> Floods {
        let mut floods = Floods::default();
        floods.set(FloodKind::Ping, Flood::new(3, 10, 2));
        floods
    }

    fn charge(guard: &mut FloodGuard, now: Instant) -> Result<(), &'static str> {
        guard.charge(&floods(), FloodKind::Ping, now).map_err(|fault| fault.reason)
    }

    #[test]
    fn a_burst_is_carried_and_a_flood_is_not() {
        let mut guard = FloodGuard::default();
        let now = Instant::now();
        let carried = (0..1_000).take_while(|_| charge(&mut guard, now).is_ok()).count();
        assert_eq!(carried, 3);
        assert_eq!(charge(&mut guard, now), Err("too_many_pings"));
    }

    #[test]
    fn time_forgives() {
        let mut guard = FloodGuard::default();
        let mut now = Instant::now();
        while charge(&mut guard, now).is_ok() {}
        for _ in 0..1_000 {
            now += Duration::from_millis(101);
            assert_eq!(charge(&mut guard, now), Ok(()));
        }
    }

    #[test]
    fn slower_than_forgiven_is_never_too_fast_even_when_asked_often() {
        let mut guard = FloodGuard::default();
        let mut now = Instant::now();
        while charge(&mut guard, now).is_ok() {}
        now += Duration::from_millis(50);
        assert_eq!(charge(&mut guard, now), Err("too_many_pings"));
        now += Duration::from_millis(500);
        assert_eq!(charge(&mut guard, now), Ok(()));
    }

    #[test]
    fn useful_frames_forgive() {
        let mut guard = FloodGuard::default();
        let now = Instant::now();
        while charge(&mut guard, now).is_ok() {}
        for _ in 0..1_000 {
            // However much is in it.
            guard.sent(1 << 14);
            assert_eq!(charge(&mut guard, now), Ok(()));
            assert_eq!(charge(&mut guard, now), Ok(()));
        }
        assert_eq!(charge(&mut guard, now), Err("too_many_pings"));
    }

    #[test]
    fn each_message_that_was_sent_may_be_granted_twice_however_late() {
        let mut floods = Floods::default();
        floods.set(FloodKind::WindowUpdate, Flood::new(3, 0, 2));
        let now = Instant::now();
        let carried = |sent: usize, bytes: usize| {
            let mut guard = FloodGuard::default();
            (0..sent).for_each(|_| guard.sent(bytes));
            let mut update = || guard.charge(&floods, FloodKind::WindowUpdate, now).is_ok();
            (0..100_000_000).take_while(|_| update()).count()
        };
        assert_eq!([0, 1, 5, 10, 1_000].map(|bytes| carried(1, bytes)), [5, 5, 5, 7, 403]);
        assert_eq!(carried(100, 10), 403);
        let most = 2 * usize::try_from(UNREAD_MAX).unwrap() + 3;
        assert_eq!(carried(2_000, 16_384), most, "what was read long ago is forgotten");
    }

    #[test]
    fn data_that_came_excuses_empty_data_and_nothing_else() {
        let mut floods = Floods::default();
        let now = Instant::now();
        for kind in [FloodKind::Ping, FloodKind::RapidReset, FloodKind::EmptyData] {
            floods.set(kind, Flood::new(3, 0, 1));
            let mut guard = FloodGuard::default();
            let carried = (0..100).take_while(|_| {
                guard.received();
                guard.charge(&floods, kind, now).is_ok()
            });
            let expected = if kind == FloodKind::EmptyData { 100 } else { 3 };
            assert_eq!(carried.count(), expected, "{kind:?}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_taken_for_the_nearest_within() {
        let (least, most) = (Duration::ZERO, Duration::MAX);
        let extreme = |window: u32, bytes: usize, time: Duration| Limits {
            stream_flow_window_bytes: window,
            stream_flow_window_bytes_max: window,
            connection_flow_window_bytes: window,
            output_bytes_max: bytes,
            control_bytes_max: bytes,
            pending_bytes_max: bytes,
            held_bytes_max: bytes,
            heads_bytes_max: bytes,
            stall_timeout: Some(time),
            keepalive: Some(Keepalive { interval: time, timeout: time }),
            age: Some(Age { max: time, grace: Some(time) }),
            ..Limits::default()
        };
        let low = extreme(0, 0, least).clamped();
        assert_eq!((low.stream_flow_window_bytes, low.connection_flow_window_bytes), (1, 1));
        assert_eq!((low.output_bytes_max, low.control_bytes_max, low.pending_bytes_max), (1, 1, 0));
        // A timer that is always due would keep its connection awake for ever.
        assert_eq!(low.stall_timeout, Some(TIME_MIN));
        let high = extreme(u32::MAX, usize::MAX, most).clamped();
        assert_eq!(high.stream_flow_window_bytes, WINDOW_BYTES_MAX);
        assert_eq!(high.stream_flow_window_bytes_max, WINDOW_BYTES_MAX);
        assert_eq!(high.connection_flow_window_bytes, WINDOW_BYTES_MAX);
        assert_eq!(high.age, Some(Age { max: TIME_MAX, grace: Some(TIME_MAX) }));
        assert!(extreme(u32::MAX, usize::MAX, most).connection_bytes_max(0) > usize::MAX >> 8);
        let narrow = Limits { stream_flow_window_bytes_max: 1, ..Limits::default() }.clamped();
        assert_eq!(narrow.stream_flow_window_bytes_max, narrow.stream_flow_window_bytes);
        assert_eq!(Limits::default().clamped(), Limits::default());
    }

    #[test]
    fn an_idle_guard_owns_nothing() {
        assert!(FloodGuard::default().buckets.is_none());
    }
}

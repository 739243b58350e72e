//! One connection: read once, handle all frames, poll the ready streams, write once; then again.
//!
//! In: a byte stream, a [`Role`] (server or client), signals of the drain. Out: a future that ends
//! with the connection. All streams live inside it. The order of a lap is where the speed lies:
//! streams are polled after *all* frames of a read, and written after *all* ready streams.
//!
//! Must never: run a server's user code while frames are handled, do work per frame that grows with the
//! number of streams, or let what the peer sends decide how much memory or time it takes. A client's
//! user code does run there: its [`Exchange`](super::Exchange) gets what comes in place, which saves a queue
//! and a wake, and whoever opens a stream answers for what it costs its own connection.

#[cfg(test)]
pub(crate) mod audit;
mod control;
mod endings;
mod frames;
mod heads;
mod reading;
mod role;
mod streams;
mod timing;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::counters::Counters;
use super::flow::WINDOW_BYTES_DEFAULT;
use super::frame::{self, Fault, PREFACE, setting};
use super::guard::catch_unwind;
use super::limits::Limits;
use super::memory::{Held, Scarcity, Share};
use super::stream::{BodyError, Key, Wakes};
use super::wire::{Core, Wire};
use crate::drain::Watcher;
use reading::ReadBuffer;

pub(crate) use role::{Expiry, Opening, Role, Turn};

/// Most bytes of one read. 256 KiB: the largest that a socket holds by default is read at once.
pub(crate) const READ_BYTES: usize = 256 << 10;

/// Bytes of a connection's first read: nobody knows yet what they cost. Doubles with each short lap.
const READ_BYTES_FIRST: usize = 8 << 10;

/// A read is never cut below this: 4 KiB may be 270 requests of 15 bytes, each to be refused.
const READ_BYTES_MIN: usize = 4 << 10;

/// Laps of one poll before other tasks of the thread get their turn.
const LAPS_MAX: usize = 4;

/// A turn ends after the lap in which this has passed, and a connection whose laps take longer reads
/// less at once. A neighbour on the same thread waits for a turn of each busy connection, so this is
/// what bytes that are cheap to send and dear to handle (header bombs, frames of a byte) can cost it:
/// with 500 us the p99.9 wait beside four such connections was 4 ms. A turn that carries many messages
/// at once needs less: between 200 and 500 us no load showed a difference.
const TURN_TIME_MAX: Duration = Duration::from_micros(200);

/// A fatal GOAWAY and last replies get this long to leave, and the peer this long to close.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that lingers reads so much in a turn.
const LINGER_READ_BYTES: usize = 64 << 10;

/// Whoever was cut off is listened to for so much longer: what a buggy client may have on its way. Floods
/// end with megabytes in the client's system, and with dozens of such connections a neighbour waited
/// 6 ms until all had been read to their ends.
const LINGER_BYTES_AFTER_FAULT: usize = 256 << 10;

/// From the first GOAWAY of a drain to the second, if the peer does not answer the ping between.
const GOAWAY_PATIENCE: Duration = Duration::from_secs(5);

/// The same for a client that has not said its preface yet: as long as that may be on its way, once around
/// the globe. Whoever never says it holds a drain up no longer.
const GREETING_PATIENCE: Duration = Duration::from_millis(250);

/// Streams that the peer ended last: a frame for one of them is the peer's error, not a late one.
const RECENTLY_CLOSED: usize = 16;

/// When a stream is asked again that seemed to have nothing more. Long enough that the peer's next
/// message comes first, so that one poll serves for both; short enough that nobody notices the one
/// time that it was wrong. tokio's timers know milliseconds.
const LATER: Duration = Duration::from_millis(2);

/// A connection whose window was not granted because memory is scarce looks again after this.
const SCARCITY_PATIENCE: Duration = Duration::from_millis(100);

/// Opaque data of the pings that we send.
const PING_DRAIN: [u8; 8] = *b"draining";
const PING_KEEPALIVE: [u8; 8] = *b"alive?!?";

/// How the server asks a connection to end; each implies those before.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Send GOAWAY; streams go on.
    pub(crate) leave: Watcher,
    /// Streams end now, after what they took.
    pub(crate) stop: Watcher,
    /// Close.
    pub(crate) cut_off: Watcher,
}

#[derive(Debug)]
struct Slot<App> {
    core: Core,
    app: App,
}

/// Streams whose connection is gone, or as good as.
struct Lost<App> {
    streams: Slab<Slot<App>>,
    /// All slots below this are empty.
    at: usize,
    error: BodyError,
}

/// A connection; the future ends with it.
pub(crate) struct Connection<IO, R: Role> {
    io: IO,
    role: R,
    wire: Wire,
    streams: Slab<Slot<R::App>>,
    index: HashMap<u32, u32, IdHashes>,
    next_generation: u32,
    wakes: Arc<Wakes>,
    woken: Vec<Key>,
    /// Slots of streams that were reset, whose applications are to be dropped.
    dead: Vec<u32>,
    /// What is gone with the connection, and is still to be told.
    lost: Option<Box<Lost<R::App>>>,
    /// How the connection ended; it waits for `lost`.
    ended: Option<io::Result<()>>,
    /// Nothing can be written any more, and what the peer said before is still read. Clients only.
    unwritable: Option<Box<Unwritable>>,
    needs_flush: bool,
    /// What is read at once.
    read_bytes: usize,
    /// When the turn has had its time.
    turn_ends: Instant,
    /// Each look at the clock finds that the turn has had its time: on a paused one none would.
    #[cfg(test)]
    pub(crate) is_hurried: bool,
    /// The turn asked for another one.
    #[cfg(test)]
    goes_on: bool,
    /// Bytes that may still be read and discarded after the shutdown.
    linger_bytes: usize,
    /// The linger is over.
    is_abandoned: bool,
    /// A frame that is not complete yet.
    tail: Vec<u8>,
    /// What was read and the turn had no time for; `tail` is empty then, and nothing is read.
    left: Bytes,
    /// The thread's read buffer, while payloads wait in it: from a read to the end of its lap.
    reading: Option<ReadBuffer>,
    /// A header block that is not complete yet.
    block: Option<Box<Block>>,
    phase: Phase,
    handshake: Handshake,
    /// Largest stream of the peer that we have seen.
    last_peer_stream: u32,
    /// Streams of the peer above this are ignored: our GOAWAY named it.
    last_accepted: Option<u32>,
    next_own_stream: u32,
    /// The peer's GOAWAY.
    peer_left: bool,
    /// What streams are told when the connection is lost: the error that the peer's GOAWAY named, if any did. Clients only.
    farewell: Option<Box<BodyError>>,
    /// Our streams from this one on will not be begun: the peer's GOAWAYs said so.
    given_up_from: u32,
    /// Streams that were looked at for that.
    #[cfg(test)]
    given_up_looks: usize,
    recently_closed: [u32; RECENTLY_CLOSED],
    recently_closed_at: usize,
    signals: Option<Box<Signals>>,
    stopped: bool,
    /// The connection is being cut off, and the streams of all slots below this are.
    cut_at: usize,
    deadlines: BTreeSet<(Instant, u32)>,
    clocks: Clocks,
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
    counters: Arc<Counters>,
    /// Servers only.
    memory: Option<Memory>,
}

/// Why nothing can be written, and how long the end of what the peer said is waited for.
#[derive(Debug)]
struct Unwritable {
    error: io::Error,
    until: Instant,
}

/// What the connection tells of the memory that it keeps, and what it counts for layers above.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) share: Share,
    pub(crate) held: Held,
}

/// Connection-wide instants.
#[derive(Debug)]
struct Clocks {
    began: Instant,
    last_read: Instant,
    /// When the last stream ended, or the connection began.
    last_busy: Instant,
    /// Since when output waits for the peer to read.
    write_stalled: Option<Instant>,
    /// Since when we read nothing because of control replies that wait, of which none has left.
    reading_paused: Option<Instant>,
    ping_sent: Option<Instant>,
    leave_at: Option<Instant>,
    cut_off_at: Option<Instant>,
    next_sweep: Option<Instant>,
    /// When the first GOAWAY of a drain left.
    leaving_since: Option<Instant>,
    /// When a connection that closes has had its time.
    close_by: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// GOAWAY(2^31-1) has left; the second one waits for the ping's answer.
    Leaving,
    /// The last stream is named; ends when there is none left.
    Draining,
    /// Everything that matters is in the output: write it, shut down, linger.
    Closing,
    /// Shut down; what still comes is discarded until the peer closes too.
    Lingering,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handshake {
    /// Preface (servers), then SETTINGS.
    Preface,
    Settings,
    /// Our settings wait for their ACK.
    Ack,
    Done,
}

#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    depends_on: Option<u32>,
    fragments: Vec<u8>,
    began: Instant,
}

/// Stream ids come from the peer, and it may leave out as many as it likes: so each connection spreads them in a way of its
/// own, or a thousand could be chosen that lie in one place of the index.
#[derive(Clone, Debug)]
struct IdHashes(u64);

impl Default for IdHashes {
    fn default() -> Self {
        IdHashes(RandomState::new().build_hasher().finish())
    }
}

impl BuildHasher for IdHashes {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.0)
    }
}

/// Folds the product: both halves depend on all of the id.
#[derive(Debug)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let product = u128::from(self.0 ^ u64::from(id)) * u128::from(SPREAD);
        #[allow(clippy::cast_possible_truncation, reason = "both halves are folded in")]
        let folded = (product >> 64) as u64 ^ product as u64;
        self.0 = folded;
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    /// A connection that has not said anything yet.
    pub(crate) fn new(
        io: IO,
        role: R,
        limits: Arc<Limits>,
        signals: Option<Signals>,
        counters: Arc<Counters>,
    ) -> Self {
        let now = now();
        let mut wire = Wire::new(limits, now);
        if !R::IS_SERVER {
            wire.out.tail.extend_from_slice(PREFACE);
        }
        announce::<R>(&mut wire);
        let age = wire.limits.age;
        let jitter = 0.9 + 0.2 * chance();
        let leave_at = age.map(|age| now + age.max.mul_f64(jitter));
        // An honest peer has hardly more on its way than this.
        let window = wire.limits.connection_flow_window_bytes.max(WINDOW_BYTES_DEFAULT);
        let linger_bytes = window as usize;
        let clocks = Clocks {
            began: now,
            last_read: now,
            last_busy: now,
            write_stalled: None,
            reading_paused: None,
            ping_sent: None,
            leave_at,
            cut_off_at: None,
            next_sweep: None,
            leaving_since: None,
            close_by: None,
        };
        Connection {
            io,
            role,
            wire,
            streams: Slab::new(),
            index: HashMap::default(),
            next_generation: 0,
            wakes: Arc::default(),
            woken: Vec::new(),
            dead: Vec::new(),
            lost: None,
            ended: None,
            unwritable: None,
            needs_flush: false,
            read_bytes: READ_BYTES_FIRST,
            turn_ends: now,
            #[cfg(test)]
            is_hurried: false,
            #[cfg(test)]
            goes_on: false,
            linger_bytes,
            is_abandoned: false,
            tail: Vec::new(),
            left: Bytes::new(),
            reading: None,
            block: None,
            phase: Phase::Open,
            handshake: if R::IS_SERVER { Handshake::Preface } else { Handshake::Settings },
            last_peer_stream: 0,
            last_accepted: None,
            next_own_stream: 1,
            peer_left: false,
            farewell: None,
            given_up_from: u32::MAX,
            #[cfg(test)]
            given_up_looks: 0,
            recently_closed: [0; RECENTLY_CLOSED],
            recently_closed_at: 0,
            signals: signals.map(Box::new),
            stopped: false,
            cut_at: 0,
            deadlines: BTreeSet::new(),
            clocks,
            timer: None,
            armed: None,
            counters,
            memory: None,
        }
    }

    /// The same connection, as a part of a server's memory.
    pub(crate) fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = Some(memory);
        self
    }

    /// One turn of the task.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wakes.register(cx.waker());
        let _turn = self.wakes.turn();
        self.wire.now = now();
        self.turn_ends = self.wire.now + TURN_TIME_MAX;
        #[cfg(test)]
        {
            self.goes_on = false;
        }
        if !self.tell_lost() {
            return self.again(cx);
        }
        if let Some(ended) = self.ended.take() {
            return Poll::Ready(ended);
        }
        if self.wire.is_scarce {
            // Others may have let go of theirs while this one slept.
            self.tell_memory();
        }
        self.wire.out.borrow();
        let mut lap_began = self.wire.now;
        for _ in 0..LAPS_MAX {
            match self.lap(cx) {
                Lap::Busy => {}
                Lap::Idle if self.wakes.any() && self.phase != Phase::Lingering => {}
                Lap::Over(ended) if self.lost.is_none() => return Poll::Ready(ended),
                Lap::Over(ended) => {
                    self.ended = Some(ended);
                    break;
                }
                Lap::Idle => {
                    self.wire.out.give_back();
                    // Without budget, streams that could go on were not polled, and nobody else
                    // would wake us for them.
                    let is_spent = !tokio::task::coop::has_budget_remaining();
                    let goes_on = self.tell_memory();
                    return match self.wait(cx) || is_spent || goes_on || self.lost.is_some() {
                        true => self.again(cx),
                        false => Poll::Pending,
                    };
                }
            }
            let lap_ended = now();
            self.fit_reads(lap_ended - lap_began);
            lap_began = lap_ended;
            let is_spent = !tokio::task::coop::has_budget_remaining();
            if is_spent || lap_ended >= self.turn_ends || self.phase == Phase::Lingering {
                break;
            }
        }
        self.wire.out.give_back();
        self.tell_memory();
        if self.ended.is_none() {
            // A connection that is never idle keeps its times too.
            self.expire_if_due();
        }
        self.again(cx)
    }

    /// Tells what the connection keeps now. Out: whether there is something to do about it at once.
    fn tell_memory(&mut self) -> bool {
        let Some(memory) = &mut self.memory else { return false };
        let wire = &mut self.wire;
        let block = self.block.as_ref().map_or(0, |block| block.fragments.len());
        let left = if self.left.is_empty() { 0 } else { READ_BYTES };
        let frames = wire.buffered + wire.out.len() + self.tail.len() + left + block;
        let scarcity = memory.share.is(frames + wire.pending + wire.heads + memory.held.bytes());
        let was_scarce = std::mem::replace(&mut wire.is_scarce, scarcity != Scarcity::None);
        let is_over = matches!(self.phase, Phase::Closing | Phase::Lingering);
        if scarcity == Scarcity::Exhausted && !is_over {
            self.fault(Fault::calm("memory_exhausted"));
            return true;
        }
        was_scarce && !self.wire.is_scarce
    }

    /// Reads less at once after a lap that took long, more after a short one: laps settle between half a
    /// turn and a whole one. With a quarter as the lower bound, reads that a pause of the machine had made
    /// small stayed so, and 8 x 125 streams with 16 in flight cost 4 % (1.5 to 7) more where a lap takes
    /// long (`results/2026-11-29-reads`).
    fn fit_reads(&mut self, lap: Duration) {
        if lap > TURN_TIME_MAX {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
        } else if lap < TURN_TIME_MAX / 2 {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES);
        }
    }

    /// Other tasks of the thread first, and first of all those that sockets have something for: a wake
    /// alone would let the runtime come back here dozens of times before it asks the system again
    /// (tokio's `event_interval`). But not behind handlers on tasks of their own: what is deferred in this way
    /// waits for its worker, and no other can take it over while that computes.
    fn again(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        #[cfg(test)]
        {
            self.goes_on = true;
        }
        if self.role.is_on_tasks() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let yielding = std::pin::pin!(tokio::task::yield_now());
        // Pending: it wakes us, later.
        let _ = yielding.poll(cx);
        Poll::Pending
    }

    fn lap(&mut self, cx: &mut Context<'_>) -> Lap {
        self.heed_signals(cx);
        if self.phase == Phase::Lingering {
            return self.linger(cx);
        }
        let mut busy = false;
        match self.read(cx) {
            Read::Some => busy = true,
            Read::None => {}
            Read::End(ended) => {
                // The peer may have closed only its own half: what is said to it may still arrive.
                let _ = self.write(cx);
                return Lap::Over(ended);
            }
        }
        busy |= self.poll_streams(cx);
        if self.phase != Phase::Closing {
            self.wire.grant_connection();
        }
        match self.write(cx) {
            Ok(wrote) => busy |= wrote,
            Err(error) if !R::IS_SERVER && self.phase != Phase::Closing => {
                self.give_up_writing(error);
                busy = true;
            }
            Err(error) => {
                self.lose_connection();
                return Lap::Over(Err(error));
            }
        }
        // Behind the write: a body may give back what it got.
        self.settle_reads();
        let all_left = self.wire.out.is_empty() && !self.needs_flush;
        if (all_left || self.unwritable.is_some()) && self.is_finished() {
            // Shutting down may take the peer, too; it does not get longer than it gets to close.
            self.clocks.close_by.get_or_insert(self.wire.now + LINGER);
            return match Pin::new(&mut self.io).poll_shutdown(cx) {
                Poll::Ready(_) => {
                    self.phase = Phase::Lingering;
                    Lap::Busy
                }
                Poll::Pending => Lap::Idle,
            };
        }
        if busy { Lap::Busy } else { Lap::Idle }
    }

    fn is_finished(&self) -> bool {
        match self.phase {
            Phase::Closing => true,
            _ if !self.left.is_empty() => false,
            Phase::Draining => self.streams.is_empty(),
            _ => {
                !R::IS_SERVER
                    && self.streams.is_empty()
                    && (self.role.is_finished() || self.peer_left)
            }
        }
    }

    /// Discards what still comes, so that the kernel does not answer it with RST, which would
    /// destroy replies on their way (RFC 9112, 9.6, for HTTP/1).
    fn linger(&mut self, cx: &mut Context<'_>) -> Lap {
        if self.is_abandoned || self.linger_bytes == 0 {
            return Lap::Over(Ok(()));
        }
        let bytes = self.linger_bytes.min(LINGER_READ_BYTES);
        match ReadBuffer::take().poll_read(&mut self.io, cx, bytes) {
            Poll::Pending => Lap::Idle,
            Poll::Ready(Ok(came @ 1..)) => {
                self.linger_bytes -= came;
                Lap::Busy
            }
            Poll::Ready(_) => Lap::Over(Ok(())),
        }
    }
}

enum Lap {
    /// There may be more to do at once.
    Busy,
    /// Nothing until somebody wakes us.
    Idle,
    Over(io::Result<()>),
}

enum Read {
    Some,
    None,
    End(io::Result<()>),
}

/// tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A number from 0 to 1 that differs between connections; nothing depends on who could guess it.
fn chance() -> f64 {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    f64::from((random >> 32) as u32) / f64::from(u32::MAX)
}

/// Our settings, and the connection's window, which no setting can widen (RFC 9113, 6.9.2).
fn announce<R: Role>(wire: &mut Wire) {
    let limits = wire.limits.clone();
    let window = (setting::INITIAL_WINDOW_SIZE, limits.stream_flow_window_bytes);
    let list = (setting::MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max);
    let out = &mut wire.out.tail;
    if R::IS_SERVER {
        let streams = (setting::MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams);
        frame::settings(out, &[streams, window, list]);
    } else {
        frame::settings(out, &[(setting::ENABLE_PUSH, 0), window, list]);
    }
    wire.grant_connection();
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    /// The peer may have answered before it closed: what it said is read to its end, if that comes soon, and streams are lost
    /// only then. What waits in the output stays there, so that streams find no room for more.
    fn give_up_writing(&mut self, error: io::Error) {
        self.role.refuse_openings(BodyError::ConnectionLost);
        self.peer_left = true;
        (self.clocks.write_stalled, self.clocks.reading_paused) = (None, None);
        let until = self.wire.now + LINGER;
        self.unwritable = Some(Box::new(Unwritable { error, until }));
    }

    /// Writes what waits. Out: whether anything left.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.unwritable.is_some() {
            // Or nothing would be read any more. Streams have room again, and would find out from nobody.
            let makes_room = self.wire.control_is_full();
            if makes_room {
                self.wire.discard();
                self.clocks.reading_paused = None;
            }
            return Ok(makes_room);
        }
        let mut wrote = false;
        while !self.wire.out.is_empty() {
            match self.wire.out.poll_write(Pin::new(&mut self.io), cx)? {
                Poll::Ready(bytes) => {
                    wrote = true;
                    self.wire.left(bytes);
                }
                Poll::Pending => break,
            }
        }
        self.needs_flush |= wrote;
        if self.wire.out.is_empty() {
            self.wire.drained();
            if self.needs_flush && Pin::new(&mut self.io).poll_flush(cx)?.is_ready() {
                self.needs_flush = false;
            }
        }
        let waits = !self.wire.out.is_empty() || self.needs_flush;
        if wrote || !waits {
            self.clocks.write_stalled = None;
            self.clocks.reading_paused = None;
        }
        if waits {
            self.clocks.write_stalled.get_or_insert(self.wire.now);
        }
        Ok(wrote)
    }
}

/// What has to stay in place is in boxes of its own.
impl<IO: Unpin, R: Role> Unpin for Connection<IO, R> {}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Future for Connection<IO, R> {
    /// Err: the connection broke; what streams made of that, they were told.
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.turn(cx)
    }
}

/// Bodies that outlive a server's connection find its end; a client's exchanges are only dropped, since
/// whoever dropped the connection knows.
impl<IO, R: Role> Drop for Connection<IO, R> {
    fn drop(&mut self) {
        let lost = self.lost.take().map(|lost| lost.streams);
        let streams = lost.into_iter().flatten().chain(std::mem::take(&mut self.streams));
        for (_, Slot { core, mut app }) in streams {
            if R::IS_SERVER && !core.is_dead {
                self.role.broken(&mut app, BodyError::ConnectionLost);
            }
            self.counters.stream_closed();
            if catch_unwind(AssertUnwindSafe(|| drop(app))).is_err() {
                self.counters.panicked();
            }
        }
    }
}

#[cfg(test)]
mod tests;

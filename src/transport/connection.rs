//! One connection: read once, handle all frames, poll the ready streams, write once; then again.
//!
//! In: a byte stream, a [`Role`] (server or client), signals of the drain. Out: a future that ends
//! with the connection. All streams live inside it. The order of a lap is where the speed lies:
//! streams are polled after *all* frames of a read, and written after *all* ready streams.
//!
//! Must never: run user code while frames are handled, do work per frame that grows with the number
//! of streams, or let what the peer sends decide how much memory or time it takes.

#[cfg(test)]
pub(crate) mod audit;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Request;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use super::counters::Counters;
use super::fields::Fields;
use super::flow::WINDOW_BYTES_DEFAULT;
use super::frame::{
    self, ErrorCode, FRAME_BYTES_MAX, Fault, HEAD_BYTES, Head, PREFACE, Settings, flag, kind,
    setting,
};
use super::guard::catch_unwind;
use super::limits::{FloodKind, Limits};
use super::stream::{BodyError, Key, Wakes};
use super::wire::{Core, Wire};
use crate::drain::Watcher;

/// Bytes of one read. 256 KiB: the largest that a socket holds by default is read at once.
const READ_BYTES: usize = 256 << 10;

/// Laps of one poll before other tasks of the thread get their turn.
const LAPS_MAX: usize = 4;

/// A fatal GOAWAY and last replies get this long to leave, and the peer this long to close.
const LINGER: Duration = Duration::from_secs(1);

/// From the first GOAWAY of a drain to the second, if the peer does not answer the ping between.
const GOAWAY_PATIENCE: Duration = Duration::from_secs(5);

/// Streams that the peer ended last: a frame for one of them is the peer's error, not a late one.
const RECENTLY_CLOSED: usize = 16;

/// When a stream is asked again that seemed to have nothing more. Long enough that the peer's next
/// message comes first, so that one poll serves for both; short enough that nobody notices the one
/// time that it was wrong. tokio's timers know milliseconds.
const LATER: Duration = Duration::from_millis(2);

/// Opaque data of the pings that we send.
const PING_DRAIN: [u8; 8] = *b"draining";
const PING_KEEPALIVE: [u8; 8] = *b"alive?!?";

/// What differs between server and client, and everything that streams are to them.
pub(crate) trait Role {
    /// One stream's application side.
    type App;

    /// Whether we are the server.
    const IS_SERVER: bool;

    /// The peer opened a stream (servers). Runs no user code.
    fn accept(&mut self, core: &mut Core, wakes: &Arc<Wakes>, request: Request<()>) -> Self::App;

    /// A stream to open (clients), if there is one; it will have `key`. Asked while there is room.
    fn poll_open(
        &mut self,
        key: Key,
        wakes: &Arc<Wakes>,
        cx: &mut Context<'_>,
    ) -> Option<Opening<Self::App>>;

    /// A header block came for a stream that is there: response head or trailers.
    /// Err: it is malformed, which ends the stream.
    fn headers(
        &mut self,
        core: &mut Core,
        app: &mut Self::App,
        fields: Fields,
        end: bool,
    ) -> Result<(), &'static str>;

    /// DATA came. Out: how much of it is kept; the rest is done with.
    fn data(&mut self, core: &mut Core, app: &mut Self::App, payload: &[u8]) -> usize;

    /// The peer ended its half without trailers.
    fn end(&mut self, core: &mut Core, app: &mut Self::App) -> Result<(), &'static str>;

    /// The stream is over for a reason that is not its own end.
    fn broken(&mut self, app: &mut Self::App, error: BodyError);

    /// Whether no user code has seen the stream yet, so that dropping it runs none.
    fn is_untouched(app: &Self::App) -> bool;

    /// Bytes in the app's inbox.
    fn buffered(app: &Self::App) -> usize;

    /// Lets the stream go on. Out: what it waits for.
    fn poll(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire) -> Turn;

    /// The stream's time is over, for this reason; our half is still open.
    fn expire(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire, why: Expiry);

    /// Refuses a request whose head was too large; no stream was made of it.
    fn too_large(&mut self, core: &mut Core, fields: &Fields, wire: &mut Wire);

    /// Whether nothing will be opened any more (clients whose handles are gone).
    fn is_finished(&self) -> bool;

    /// Nothing can be opened any more, for this reason.
    fn refuse_openings(&mut self, error: BodyError);
}

/// A stream that we open.
pub(crate) struct Opening<App> {
    pub(crate) request: Request<()>,
    pub(crate) app: App,
}

/// Why a stream's time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// `grpc-timeout`.
    Deadline,
    /// The peer did not open its window.
    Stalled,
    /// Nothing came or went.
    Idle,
    /// The server is shutting down.
    Drained,
}

/// What a stream waits for after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A frame, a wake, a window.
    Wait,
    /// It could go on, but had its share.
    Again,
    /// It seems to have nothing more, but has not said so: it is asked after [`LATER`].
    Later,
    /// Nothing: both halves are done.
    Over,
}

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

/// A connection; the future ends with it.
pub(crate) struct Connection<IO, R: Role> {
    io: IO,
    role: R,
    wire: Wire,
    streams: Slab<Slot<R::App>>,
    index: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    next_generation: u32,
    wakes: Arc<Wakes>,
    woken: Vec<Key>,
    /// Slots of streams that were reset, whose applications are to be dropped.
    dead: Vec<u32>,
    needs_flush: bool,
    /// The linger is over.
    is_abandoned: bool,
    /// A frame that is not complete yet.
    tail: Vec<u8>,
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
    recently_closed: [u32; RECENTLY_CLOSED],
    recently_closed_at: usize,
    signals: Option<Box<Signals>>,
    stopped: bool,
    deadlines: BTreeSet<(Instant, u32)>,
    clocks: Clocks,
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
    counters: Arc<Counters>,
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

/// Stream ids come from the peer, but only their order is its to choose: folding spreads them well.
#[derive(Debug, Default)]
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
        let clocks = Clocks {
            began: now,
            last_read: now,
            last_busy: now,
            write_stalled: None,
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
            needs_flush: false,
            is_abandoned: false,
            tail: Vec::new(),
            block: None,
            phase: Phase::Open,
            handshake: if R::IS_SERVER { Handshake::Preface } else { Handshake::Settings },
            last_peer_stream: 0,
            last_accepted: None,
            next_own_stream: 1,
            peer_left: false,
            recently_closed: [0; RECENTLY_CLOSED],
            recently_closed_at: 0,
            signals: signals.map(Box::new),
            stopped: false,
            deadlines: BTreeSet::new(),
            clocks,
            timer: None,
            armed: None,
            counters,
        }
    }

    /// One turn of the task.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wakes.register(cx.waker());
        self.wire.now = now();
        self.wire.out.borrow();
        for _ in 0..LAPS_MAX {
            match self.lap(cx) {
                Lap::Busy => {}
                Lap::Over(ended) => return Poll::Ready(ended),
                Lap::Idle => {
                    self.wire.out.give_back();
                    // Without budget, streams that could go on were not polled, and nobody else
                    // would wake us for them.
                    let is_spent = !tokio::task::coop::has_budget_remaining();
                    return match self.wait(cx) || is_spent {
                        true => self.again(cx),
                        false => Poll::Pending,
                    };
                }
            }
            if !tokio::task::coop::has_budget_remaining() {
                break;
            }
        }
        self.wire.out.give_back();
        // A connection that is never idle keeps its times too.
        self.expire_if_due();
        self.again(cx)
    }

    /// Other tasks of the thread first.
    #[allow(clippy::unused_self, reason = "reads as the end of a turn")]
    fn again(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        cx.waker().wake_by_ref();
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
            Err(error) => {
                self.lose_streams(&BodyError::ConnectionLost);
                return Lap::Over(Err(error));
            }
        }
        if self.wire.out.is_empty() && !self.needs_flush && self.is_finished() {
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
        let mut discarded = [0; 4_096];
        while !self.is_abandoned {
            let mut buf = ReadBuf::new(&mut discarded);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Pending => return Lap::Idle,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => break,
            }
        }
        Lap::Over(Ok(()))
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

// Frames in.
impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    fn read(&mut self, cx: &mut Context<'_>) -> Read {
        if self.wire.control_is_full() {
            // The write's progress wakes us; its stall timer ends us.
            return Read::None;
        }
        let mut buffer = ReadBuffer::take();
        let kept = self.tail.len();
        buffer.0[..kept].copy_from_slice(&self.tail);
        let mut unread = ReadBuf::new(&mut buffer.0[kept..]);
        match Pin::new(&mut self.io).poll_read(cx, &mut unread) {
            Poll::Pending => return Read::None,
            Poll::Ready(Err(error)) => {
                self.lose_streams(&BodyError::ConnectionLost);
                return Read::End(Err(error));
            }
            Poll::Ready(Ok(())) => {}
        }
        let came = unread.filled().len();
        if came == 0 {
            return self.ended_by_peer();
        }
        if !R::IS_SERVER {
            // What the user measures begins and ends here, not when the turn began.
            self.wire.now = now();
        }
        self.clocks.last_read = self.wire.now;
        if self.phase == Phase::Closing {
            return Read::Some;
        }
        let bytes = &buffer.0[..kept + came];
        match self.frames(bytes) {
            Ok(handled) if handled == bytes.len() => self.tail = Vec::new(),
            Ok(handled) => {
                self.tail.clear();
                self.tail.extend_from_slice(&bytes[handled..]);
            }
            Err(fault) => self.fault(fault),
        }
        Read::Some
    }

    /// The peer closed: nothing more can come, not even windows, so what streams still wait for is lost.
    fn ended_by_peer(&mut self) -> Read {
        let was_orderly = self.streams.is_empty() && self.tail.is_empty();
        self.lose_streams(&BodyError::ConnectionLost);
        let ended = if was_orderly || R::IS_SERVER {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        };
        Read::End(ended)
    }

    /// Ends the connection: GOAWAY with the reason, then nothing but closing.
    fn fault(&mut self, fault: Fault) {
        if self.phase == Phase::Closing {
            return;
        }
        self.counters.goaway(fault.reason);
        let last = self.last_accepted.unwrap_or(self.last_peer_stream);
        frame::goaway(&mut self.wire.out.tail, last, fault.code, fault.reason);
        self.close();
        self.lose_streams(&BodyError::Ended(fault.reason));
    }

    /// What is in the output still leaves; nothing else happens any more.
    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.clocks.close_by.get_or_insert(self.wire.now + LINGER);
        self.clocks.write_stalled = None;
        self.tail = Vec::new();
        self.block = None;
    }

    /// Handles all complete frames. Out: how many bytes they were.
    fn frames(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut handled = 0;
        if self.handshake == Handshake::Preface {
            let length = bytes.len().min(PREFACE.len());
            if bytes[..length] != PREFACE[..length] {
                return Err(Fault::protocol("no_http2_preface"));
            }
            if length < PREFACE.len() {
                return Ok(0);
            }
            self.handshake = Handshake::Settings;
            handled = length;
        }
        while let Some(head) = Head::parse(&bytes[handled..]) {
            if head.length > FRAME_BYTES_MAX {
                return Err(Fault::size("frame_too_large"));
            }
            let begin = handled + HEAD_BYTES;
            let Some(payload) = bytes.get(begin..begin + head.length) else {
                break;
            };
            self.frame(head, payload)?;
            handled = begin + head.length;
        }
        Ok(handled)
    }

    fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if self.handshake == Handshake::Settings
            && (head.kind != kind::SETTINGS || head.has(flag::ACK))
        {
            return Err(Fault::protocol("first_frame_is_not_settings"));
        }
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(Fault::protocol("header_block_interrupted"));
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS => self.headers(head, payload),
            kind::PRIORITY => self.priority(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Err(Fault::protocol("push_promise")),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY => self.goaway(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            _ => self.wire.charge(FloodKind::Unknown),
        }
    }

    fn data(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let content =
            if head.has(flag::PADDED) { frame::unpad(head, payload)?.content } else { payload };
        #[allow(clippy::cast_possible_truncation, reason = "at most FRAME_BYTES_MAX")]
        let (length, padding) = (head.length as u32, (head.length - content.len()) as u32);
        let end = head.has(flag::END_STREAM);
        self.wire.recv.receive(length).map_err(|_| Fault::flow("connection_window_exceeded"))?;
        if content.is_empty() && !end {
            self.wire.charge(FloodKind::EmptyData)?;
        }
        let Some(slot) = self.index.get(&head.stream) else {
            return self.frame_of_gone_stream(head);
        };
        let Slot { core, app } = &mut self.streams[*slot as usize];
        if core.remote_closed {
            return self.stream_error(head.stream, ErrorCode::STREAM_CLOSED, "data_after_end");
        }
        core.recv.receive(length).map_err(|_| Fault::flow("stream_window_exceeded"))?;
        if let Some(left) = core.content_left {
            let left = left.checked_sub(content.len() as u64);
            if left.is_none() || (end && left != Some(0)) {
                let code = ErrorCode::PROTOCOL_ERROR;
                return self.stream_error(head.stream, code, "content_length_mismatch");
            }
            core.content_left = left;
        }
        core.last_frame = self.wire.now;
        if padding > 0 {
            self.wire.released(core, padding, false);
        }
        if !content.is_empty() {
            self.wire.floods.useful(1);
            let kept = self.role.data(core, app, content);
            self.wire.buffered += kept;
            #[allow(clippy::cast_possible_truncation, reason = "at most FRAME_BYTES_MAX")]
            let done = (content.len() - kept) as u32;
            if done > 0 {
                self.wire.released(core, done, true);
            }
        }
        let mut ended = Ok(());
        if end {
            core.remote_closed = true;
            ended = self.role.end(core, app);
        }
        self.wire.run(core);
        match ended {
            Ok(()) => Ok(()),
            Err(reason) => self.stream_error(head.stream, ErrorCode::PROTOCOL_ERROR, reason),
        }
    }

    /// A frame for a stream that is not in the table: late, wrong, or for one that never was.
    fn frame_of_gone_stream(&mut self, head: Head) -> Result<(), Fault> {
        if self.is_idle(head.stream) {
            return Err(Fault::protocol("frame_on_idle_stream"));
        }
        let is_late_at_most = matches!(head.kind, kind::WINDOW_UPDATE | kind::RST_STREAM);
        if !is_late_at_most && self.recently_closed.contains(&head.stream) {
            let reason = "frame_after_end_of_stream";
            return Err(Fault { code: ErrorCode::STREAM_CLOSED, reason });
        }
        self.wire.charge(FloodKind::GoneStream)
    }

    /// Whether nobody ever opened the stream; 0 counts as that.
    fn is_idle(&self, stream: u32) -> bool {
        let is_own = (stream % 2 == 1) != R::IS_SERVER;
        match stream {
            0 => true,
            _ if is_own => stream >= self.next_own_stream,
            _ => stream > self.last_peer_stream,
        }
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(Fault::protocol("headers_on_stream_0"));
        }
        let unpadded = frame::unpad(head, payload)?;
        let end_stream = head.has(flag::END_STREAM);
        let depends_on = unpadded.depends_on;
        if head.has(flag::END_HEADERS) {
            return self.header_block(head.stream, end_stream, depends_on, unpadded.content);
        }
        let fragments = unpadded.content.to_vec();
        let (stream, began) = (head.stream, self.wire.now);
        self.block = Some(Box::new(Block { stream, end_stream, depends_on, fragments, began }));
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let Some(block) = &mut self.block else {
            return Err(Fault::protocol("continuation_without_headers"));
        };
        if block.stream != head.stream {
            return Err(Fault::protocol("continuation_of_another_stream"));
        }
        // A fragment that is not the last one has no reason to be small.
        if payload.len() < FRAME_BYTES_MAX / 16 {
            self.wire.charge(FloodKind::Continuation)?;
        }
        if block.fragments.len() + payload.len() > self.wire.limits.header_block_bytes_max() {
            return Err(Fault::calm("header_block_too_large"));
        }
        block.fragments.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        let block = self.block.take().expect("it was there above");
        self.header_block(block.stream, block.end_stream, block.depends_on, &block.fragments)
    }

    /// A complete header block. It is decoded whatever becomes of it: the table must stay in step.
    fn header_block(
        &mut self,
        stream: u32,
        end: bool,
        depends_on: Option<u32>,
        block: &[u8],
    ) -> Result<(), Fault> {
        let mut fields = Fields::default();
        let list_bytes_max = self.wire.limits.header_list_bytes_max as usize;
        self.wire.decoder.decode(block, |field| fields.add(&field, list_bytes_max)).map_err(
            |error| Fault { code: ErrorCode::COMPRESSION_ERROR, reason: error.reason() },
        )?;
        if let Some(slot) = self.index.get(&stream) {
            return self.headers_of_stream(*slot, end, depends_on, fields);
        }
        if !R::IS_SERVER || !self.is_idle(stream) {
            let head = Head { length: block.len(), kind: kind::HEADERS, flags: 0, stream };
            self.frame_of_gone_stream(head)?;
            // Trailers may come late; a head means to open a stream (RFC 9113, 5.1.1).
            return match R::IS_SERVER && fields.is_head() {
                true => Err(Fault::protocol("stream_smaller_than_the_last")),
                false => Ok(()),
            };
        }
        if stream.is_multiple_of(2) {
            return Err(Fault::protocol("stream_of_the_wrong_parity"));
        }
        self.last_peer_stream = stream;
        self.accept(stream, end, depends_on, fields)
    }

    fn headers_of_stream(
        &mut self,
        slot: u32,
        end: bool,
        depends_on: Option<u32>,
        fields: Fields,
    ) -> Result<(), Fault> {
        let Slot { core, app } = &mut self.streams[slot as usize];
        let id = core.id;
        if core.remote_closed {
            return self.stream_error(id, ErrorCode::STREAM_CLOSED, "headers_after_end");
        }
        if depends_on == Some(id) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR, "stream_depends_on_itself");
        }
        if fields.is_too_large {
            self.wire.charge(FloodKind::HeaderList)?;
            return self.stream_error(id, ErrorCode::CANCEL, "header_list_too_large");
        }
        if end && core.content_left.is_some_and(|left| left > 0) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR, "content_length_mismatch");
        }
        core.last_frame = self.wire.now;
        let handled = self.role.headers(core, app, fields, end);
        core.remote_closed |= end;
        self.wire.run(core);
        match handled {
            Ok(()) => Ok(()),
            Err(reason) => self.stream_error(id, ErrorCode::PROTOCOL_ERROR, reason),
        }
    }

    /// The peer opens a stream.
    fn accept(
        &mut self,
        id: u32,
        end: bool,
        depends_on: Option<u32>,
        fields: Fields,
    ) -> Result<(), Fault> {
        if self.last_accepted.is_some_and(|last| id > last) || self.phase == Phase::Closing {
            return self.wire.charge(FloodKind::Refused);
        }
        if depends_on == Some(id) {
            return self.refuse(id, ErrorCode::PROTOCOL_ERROR, FloodKind::ProvokedReset);
        }
        // Those that the peer has cancelled are dropped before anything is polled.
        let open = self.streams.len() - self.dead.len();
        let is_full = open >= self.wire.limits.max_concurrent_streams as usize;
        if is_full || self.stopped {
            return self.refuse(id, ErrorCode::REFUSED_STREAM, FloodKind::Refused);
        }
        let key = self.next_key();
        let mut core = self.core(id, key);
        if fields.is_too_large {
            self.wire.charge(FloodKind::HeaderList)?;
            self.role.too_large(&mut core, &fields, &mut self.wire);
            if !end {
                self.wire.reset(&mut core, ErrorCode::NO_ERROR);
            }
            return Ok(());
        }
        let request = fields.into_request().and_then(|request| {
            core.content_left = super::fields::content_length(request.headers())?;
            if end && core.content_left.is_some_and(|left| left > 0) {
                return Err("content_length_mismatch");
            }
            Ok(request)
        });
        let Ok(request) = request else {
            return self.refuse(id, ErrorCode::PROTOCOL_ERROR, FloodKind::ProvokedReset);
        };
        core.remote_closed = end;
        let mut app = self.role.accept(&mut core, &self.wakes, request);
        if end {
            // An end without data and trailers is never malformed.
            let _ = self.role.end(&mut core, &mut app);
        }
        self.insert(core, app);
        Ok(())
    }

    /// A stream that begins now. Until the peer has acknowledged our settings its window is the
    /// default, but it aims at ours from the first: [`Self::settings_acknowledged`] makes up for it.
    fn core(&self, id: u32, key: Key) -> Core {
        let target = self.wire.limits.stream_flow_window_bytes;
        let recv = match self.handshake {
            Handshake::Done => target,
            _ => WINDOW_BYTES_DEFAULT,
        };
        Core { recv_target: target, ..Core::new(id, key, &self.wire, recv) }
    }

    fn next_key(&self) -> Key {
        let slot =
            u32::try_from(self.streams.vacant_key()).expect("streams are counted in 32 bits");
        Key { slot, generation: self.next_generation }
    }

    fn insert(&mut self, mut core: Core, app: R::App) {
        self.next_generation = self.next_generation.wrapping_add(1);
        self.index.insert(core.id, core.key.slot);
        if let Some(deadline) = core.deadline {
            self.deadlines.insert((deadline, core.id));
        }
        self.wire.run(&mut core);
        self.counters.stream_opened();
        self.streams.insert(Slot { core, app });
    }

    /// Ends a stream that was not begun.
    fn refuse(&mut self, id: u32, code: ErrorCode, flood: FloodKind) -> Result<(), Fault> {
        self.wire.charge(flood)?;
        self.wire.control(|out| frame::rst_stream(out, id, code));
        Ok(())
    }

    /// The peer broke one stream: it is reset, the others live on.
    fn stream_error(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Fault> {
        self.wire.charge(FloodKind::ProvokedReset)?;
        if let Some(slot) = self.index.get(&id).copied() {
            let core = &mut self.streams[slot as usize].core;
            self.wire.reset(core, code);
            self.kill(slot, BodyError::Ended(reason));
        }
        Ok(())
    }

    /// Takes a stream out of the protocol; its application is dropped when no frame is being handled.
    fn kill(&mut self, slot: u32, error: BodyError) {
        let Slot { core, app } = &mut self.streams[slot as usize];
        core.is_dead = true;
        core.local_closed = true;
        core.pending = bytes::Bytes::new();
        core.pending_end = None;
        self.wire.buffered -= R::buffered(app);
        self.role.broken(app, error);
        let (id, deadline) = (core.id, core.deadline.take());
        let is_untouched = R::is_untouched(app);
        self.forget(id, deadline);
        if is_untouched {
            self.streams.remove(slot as usize);
            self.counters.stream_closed();
        } else {
            self.dead.push(slot);
        }
    }

    fn forget(&mut self, id: u32, deadline: Option<Instant>) {
        self.index.remove(&id);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(Fault::protocol("priority_on_stream_0"));
        }
        self.wire.charge(FloodKind::Priority)?;
        let Ok(priority) = payload.try_into() else {
            return self.break_stream(head.stream, ErrorCode::FRAME_SIZE_ERROR, "priority_length");
        };
        if frame::dependency(priority) == head.stream {
            let code = ErrorCode::PROTOCOL_ERROR;
            return self.break_stream(head.stream, code, "stream_depends_on_itself");
        }
        Ok(())
    }

    /// A stream error of a stream that may not be there.
    fn break_stream(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Fault> {
        if self.index.contains_key(&id) {
            return self.stream_error(id, code, reason);
        }
        if self.is_idle(id) {
            // RST_STREAM must not name an idle stream (RFC 9113, 6.4).
            return Err(Fault { code, reason });
        }
        self.refuse(id, code, FloodKind::ProvokedReset)
    }

    fn rst_stream(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let code = payload.try_into().map_err(|_| Fault::size("rst_stream_length"))?;
        let code = ErrorCode(u32::from_be_bytes(code));
        let Some(slot) = self.index.get(&head.stream).copied() else {
            self.frame_of_gone_stream(head)?;
            self.remember_closed(head.stream);
            return Ok(());
        };
        let core = &mut self.streams[slot as usize].core;
        // A reset of what had ended both ways, or that we had ended, costs us nothing.
        if R::IS_SERVER && !core.local_closed {
            self.wire.charge(FloodKind::RapidReset)?;
        }
        self.remember_closed(head.stream);
        self.kill(slot, BodyError::Reset(code));
        Ok(())
    }

    fn remember_closed(&mut self, id: u32) {
        self.recently_closed[self.recently_closed_at] = id;
        self.recently_closed_at = (self.recently_closed_at + 1) % RECENTLY_CLOSED;
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("settings_on_a_stream"));
        }
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(Fault::size("settings_ack_length"));
            }
            return self.settings_acknowledged();
        }
        let is_first = self.handshake == Handshake::Settings;
        for _ in 0..=payload.len() / 36 {
            self.wire.charge(FloodKind::Settings)?;
        }
        let settings = Settings::parse(payload)?;
        if is_first {
            self.handshake = Handshake::Ack;
        }
        if let Some(least) = settings.header_table_bytes_min {
            self.wire.encoder.set_peer_table_bytes_max(least as usize);
        }
        if let Some(size) = settings.header_table_bytes {
            self.wire.encoder.set_peer_table_bytes_max(size as usize);
        }
        if settings.enable_push == Some(true) && !R::IS_SERVER {
            return Err(Fault::protocol("push_enabled_by_server"));
        }
        let peer = &mut self.wire.peer;
        if let Some(streams) = settings.max_concurrent_streams {
            peer.max_concurrent_streams = streams;
        }
        if let Some(bytes) = settings.header_list_bytes_max {
            peer.header_list_bytes_max = bytes;
        }
        if let Some(window) = settings.initial_flow_window_bytes {
            let before = std::mem::replace(&mut peer.initial_flow_window_bytes, window);
            if window > before {
                self.windows_grew(window)?;
            }
        }
        self.wire.control(frame::settings_ack);
        Ok(())
    }

    /// A larger initial window frees what waits for it. All streams are walked: SETTINGS are rare, and
    /// a flood of them is cut off early.
    fn windows_grew(&mut self, initial: u32) -> Result<(), Fault> {
        for (_, Slot { core, .. }) in &mut self.streams {
            if core.send.grant(0, initial).is_err() {
                return Err(Fault::flow("stream_window_overflow_by_settings"));
            }
            if core.is_waiting {
                self.wire.run(core);
            }
        }
        Ok(())
    }

    /// From here on our settings bind the peer; streams that it opened before get the difference.
    fn settings_acknowledged(&mut self) -> Result<(), Fault> {
        if self.handshake != Handshake::Ack {
            return self.wire.charge(FloodKind::Settings);
        }
        self.handshake = Handshake::Done;
        let shift =
            i64::from(self.wire.limits.stream_flow_window_bytes) - i64::from(WINDOW_BYTES_DEFAULT);
        for (_, Slot { core, .. }) in &mut self.streams {
            core.recv.shift(shift);
            // What was too little to grant in the window of before may be all of this one.
            self.wire.released(core, 0, false);
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("ping_on_a_stream"));
        }
        let opaque: &[u8; 8] = payload.try_into().map_err(|_| Fault::size("ping_length"))?;
        if !head.has(flag::ACK) {
            self.wire.charge(FloodKind::Ping)?;
            self.wire.control(|out| frame::ping(out, opaque, true));
            return Ok(());
        }
        if *opaque == PING_DRAIN && self.phase == Phase::Leaving {
            self.name_last_stream();
        } else if self.clocks.ping_sent.take().is_none() {
            return self.wire.charge(FloodKind::Ping);
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("goaway_on_a_stream"));
        }
        let (last, rest) = payload.split_first_chunk().ok_or(Fault::size("goaway_length"))?;
        let (code, _) = rest.split_first_chunk().ok_or(Fault::size("goaway_length"))?;
        let (last, code) = (frame::u31(last), ErrorCode(u32::from_be_bytes(*code)));
        self.peer_left = true;
        if R::IS_SERVER {
            // It will open nothing more: what is open goes on, then the connection ends.
            if matches!(self.phase, Phase::Open | Phase::Leaving) {
                self.name_last_stream();
            }
            return Ok(());
        }
        self.role.refuse_openings(BodyError::GoAway(code));
        let above: Vec<u32> =
            self.index.iter().filter(|(id, _)| **id > last).map(|(_, slot)| *slot).collect();
        for slot in above {
            self.kill(slot, BodyError::Refused);
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let increment = payload.try_into().map_err(|_| Fault::size("window_update_length"))?;
        let increment = frame::u31(increment);
        self.wire.charge(FloodKind::WindowUpdate)?;
        if head.stream == 0 {
            if increment == 0 {
                return Err(Fault::protocol("window_update_of_0"));
            }
            return self.wire.granted(increment);
        }
        if increment == 0 && !self.is_idle(head.stream) {
            let code = ErrorCode::PROTOCOL_ERROR;
            return self.break_stream(head.stream, code, "window_update_of_0");
        }
        let Some(slot) = self.index.get(&head.stream) else {
            return self.frame_of_gone_stream(head);
        };
        let core = &mut self.streams[*slot as usize].core;
        let initial = self.wire.peer.initial_flow_window_bytes;
        if core.send.grant(increment, initial).is_err() {
            let code = ErrorCode::FLOW_CONTROL_ERROR;
            return self.stream_error(head.stream, code, "stream_window_overflow");
        }
        if core.is_waiting {
            self.wire.run(core);
        }
        Ok(())
    }
}

// Streams, output, time.
impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    /// Polls what is ready. Out: whether anything was.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> bool {
        self.bury();
        self.take_wakes();
        let streams = &self.streams;
        self.wire.purge(streams.len(), |key| {
            streams.get(key.slot as usize).is_some_and(|slot| slot.core.key == *key)
        });
        let mut polled = self.open_streams(cx);
        if !R::IS_SERVER && !self.wire.runnable.is_empty() {
            self.wire.polled_at = now();
        }
        // Those that queue up again meanwhile wait for the next lap.
        let mut ready = self.wire.runnable.len();
        while self.wire.has_output_room()
            // Reading has stopped until all has left: nothing is added that could prevent it for ever.
            && !self.wire.control_is_full()
            && tokio::task::coop::has_budget_remaining()
        {
            let was_blocked = ready == 0;
            let key = if !was_blocked {
                ready -= 1;
                self.wire.runnable.pop_front()
            } else if self.wire.connection_room() > 0 {
                self.wire.blocked.pop_front()
            } else {
                None
            };
            let Some(key) = key else { break };
            polled |= self.poll_stream(key, was_blocked);
        }
        polled
    }

    fn take_wakes(&mut self) {
        let mut woken = std::mem::take(&mut self.woken);
        if self.wakes.take(&mut woken) {
            for key in woken.drain(..) {
                if let Some(Slot { core, .. }) = self.streams.get_mut(key.slot as usize)
                    && core.key == key
                {
                    self.wire.run(core);
                }
            }
        }
        self.woken = woken;
    }

    /// Says whether there was a stream to poll. `was_blocked`: which queue it left; it may stand in
    /// the other one still.
    fn poll_stream(&mut self, key: Key, was_blocked: bool) -> bool {
        let Some(Slot { core, app }) = self.streams.get_mut(key.slot as usize) else {
            return false;
        };
        if core.key != key || core.is_dead {
            return false;
        }
        match was_blocked {
            true => core.is_blocked = false,
            false => core.is_queued = false,
        }
        core.later_since = None;
        match self.role.poll(core, app, &mut self.wire) {
            Turn::Wait => {}
            Turn::Again => self.wire.run(core),
            Turn::Later => self.wire.defer(core),
            Turn::Over => self.finish(key.slot),
        }
        true
    }

    /// A stream ended in order.
    fn finish(&mut self, slot: u32) {
        let Slot { mut core, app } = self.streams.remove(slot as usize);
        self.forget(core.id, core.deadline.take());
        if core.remote_closed {
            self.remember_closed(core.id);
        }
        self.wire.buffered -= R::buffered(&app);
        self.wire.floods.useful(1);
        self.clocks.last_busy = self.wire.now;
        self.counters.stream_closed();
        self.drop_guarded(app);
    }

    /// Drops the applications of streams that were reset.
    fn bury(&mut self) {
        while let Some(slot) = self.dead.pop() {
            let Slot { app, .. } = self.streams.remove(slot as usize);
            self.clocks.last_busy = self.wire.now;
            self.counters.stream_closed();
            self.drop_guarded(app);
        }
        if self.streams.is_empty() && self.streams.capacity() > 0 {
            self.streams = Slab::new();
            self.index = HashMap::default();
            self.dead = Vec::new();
        }
    }

    /// User code may panic when it is dropped; that costs nobody else anything.
    fn drop_guarded(&self, app: R::App) {
        if catch_unwind(AssertUnwindSafe(|| drop(app))).is_err() {
            self.counters.panicked();
        }
    }

    /// All streams at once: the connection is gone, or as good as.
    fn lose_streams(&mut self, error: &BodyError) {
        self.role.refuse_openings(error.clone());
        self.index = HashMap::default();
        self.deadlines = BTreeSet::new();
        self.dead = Vec::new();
        self.wire.buffered = 0;
        for (_, Slot { core, mut app }) in std::mem::take(&mut self.streams) {
            if !core.is_dead {
                self.role.broken(&mut app, error.clone());
            }
            self.counters.stream_closed();
            self.drop_guarded(app);
        }
    }

    /// Opens what waits to be opened, as far as the peer's limit has room. Out: whether any was.
    fn open_streams(&mut self, cx: &mut Context<'_>) -> bool {
        if R::IS_SERVER || self.phase != Phase::Open || self.peer_left {
            return false;
        }
        let mut opened = false;
        while (self.streams.len() as u64) < u64::from(self.wire.peer.max_concurrent_streams)
            && self.wire.has_output_room()
        {
            let key = self.next_key();
            let Some(opening) = self.role.poll_open(key, &self.wakes, cx) else {
                break;
            };
            let id = self.next_own_stream;
            // 2^30 streams later the ids are used up; nobody has seen that yet.
            self.next_own_stream += 2;
            let mut core = self.core(id, key);
            self.wire.request(&mut core, &opening.request, false);
            self.insert(core, opening.app);
            opened = true;
        }
        opened
    }

    /// Writes what waits. Out: whether anything left.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
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
        }
        if waits {
            self.clocks.write_stalled.get_or_insert(self.wire.now);
        }
        Ok(wrote)
    }

    fn heed_signals(&mut self, cx: &mut Context<'_>) {
        let Some(signals) = &mut self.signals else { return };
        if matches!(self.phase, Phase::Closing | Phase::Lingering) {
            if signals.cut_off.is_set(cx) {
                // Nobody has time to linger.
                self.clocks.close_by = Some(self.wire.now);
            }
            return;
        }
        if signals.leave.is_set(cx) && self.phase == Phase::Open {
            self.leave();
        }
        let Some(signals) = &mut self.signals else { return };
        if !self.stopped && signals.stop.is_set(cx) {
            self.stop();
        }
        let Some(signals) = &mut self.signals else { return };
        if signals.cut_off.is_set(cx) {
            self.cut_off();
        }
    }

    /// Says that the peer should go: GOAWAY in two steps, so that no stream that is on its way is lost.
    fn leave(&mut self) {
        if matches!(self.handshake, Handshake::Preface | Handshake::Settings) {
            return self.name_last_stream();
        }
        let any = (1 << 31) - 1;
        frame::goaway(&mut self.wire.out.tail, any, ErrorCode::NO_ERROR, "draining");
        frame::ping(&mut self.wire.out.tail, &PING_DRAIN, false);
        self.phase = Phase::Leaving;
        self.clocks.leaving_since = Some(self.wire.now);
    }

    /// The second GOAWAY: streams above the last that we saw will not be served.
    fn name_last_stream(&mut self) {
        let last = self.last_peer_stream;
        frame::goaway(&mut self.wire.out.tail, last, ErrorCode::NO_ERROR, "draining");
        self.last_accepted = Some(last);
        self.phase = Phase::Draining;
    }

    /// Handlers get nothing more; what they took is still answered.
    fn stop(&mut self) {
        self.stopped = true;
        if self.phase != Phase::Draining {
            self.name_last_stream();
        }
        for (_, Slot { core, app }) in &mut self.streams {
            if core.is_dead {
                continue;
            }
            self.wire.buffered -= R::buffered(app);
            self.role.broken(app, BodyError::Ended("the server is shutting down"));
            self.wire.run(core);
        }
    }

    /// Whatever is still there ends now; the output gets one more chance to leave.
    fn cut_off(&mut self) {
        let slots: Vec<usize> = self.streams.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.expire_stream(slot, Expiry::Drained);
        }
        self.close();
        self.lose_streams(&BodyError::Ended("the server is shutting down"));
        self.clocks.close_by = Some(self.wire.now);
    }

    fn expire_stream(&mut self, slot: usize, why: Expiry) {
        let Some(Slot { core, app }) = self.streams.get_mut(slot) else { return };
        if core.is_dead {
            return;
        }
        if !core.local_closed {
            // The peer may provoke it as often as it likes, and whatever room the output has.
            self.wire.reply(|wire| self.role.expire(core, app, wire, why));
        }
        if core.local_closed {
            let slot = core.key.slot;
            if !core.remote_closed {
                self.wire.reset(core, ErrorCode::NO_ERROR);
            }
            self.finish(slot);
        }
    }

    /// When something is due next.
    fn next_due(&self) -> Option<Instant> {
        let (clocks, limits) = (&self.clocks, &self.wire.limits);
        if let Some(close_by) = clocks.close_by {
            return Some(close_by);
        }
        let shaking = matches!(self.handshake, Handshake::Preface | Handshake::Settings);
        let idle = limits.connection_idle_timeout.filter(|_| self.streams.is_empty());
        let keepalive = limits.keepalive.map(|keepalive| match clocks.ping_sent {
            Some(sent) => sent + keepalive.timeout,
            None => clocks.last_read + keepalive.interval,
        });
        let leaving = clocks.leaving_since.filter(|_| self.phase == Phase::Leaving);
        [
            shaking.then(|| clocks.began + limits.handshake_timeout),
            self.block.as_ref().map(|block| block.began + limits.header_block_timeout),
            idle.map(|idle| clocks.last_busy + idle),
            keepalive,
            leaving.map(|since| since + GOAWAY_PATIENCE),
            limits.stall_timeout.and_then(|stall| clocks.write_stalled.map(|since| since + stall)),
            clocks.leave_at.filter(|_| self.phase == Phase::Open),
            clocks.cut_off_at,
            self.deadlines.first().map(|(deadline, _)| *deadline),
            clocks.next_sweep.filter(|_| !self.streams.is_empty()),
            self.wire.later_begun.map(|begun| begun + LATER),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Waits for the next thing that is due. Out: whether something is due already.
    fn wait(&mut self, cx: &mut Context<'_>) -> bool {
        if self.expire_if_due() {
            return true;
        }
        let Some(due) = self.next_due() else { return false };
        // A timer that is armed for earlier stays: deadlines move with every read, and it is cheaper
        // to wake once for nothing than to move it each time.
        if self.armed.is_none_or(|armed| armed > due) {
            self.armed = Some(due);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(due.into()),
                None => self.timer = Some(Box::pin(sleep_until(due.into()))),
            }
        }
        let timer = self.timer.as_mut().expect("armed above");
        if Future::poll(timer.as_mut(), cx).is_pending() {
            return false;
        }
        self.armed = None;
        true
    }

    /// Does what is due. Out: whether anything was.
    fn expire_if_due(&mut self) -> bool {
        self.plan_sweep();
        let is_due = self.next_due().is_some_and(|due| due <= self.wire.now);
        if is_due {
            self.expire();
        }
        is_due
    }

    /// Looks for streams that stall or idle, from time to time, while there are any.
    fn plan_sweep(&mut self) {
        let limits = &self.wire.limits;
        let shortest =
            [limits.stall_timeout, limits.stream_idle_timeout].into_iter().flatten().min();
        match shortest {
            Some(shortest) if !self.streams.is_empty() => {
                self.clocks.next_sweep.get_or_insert(self.wire.now + shortest / 4);
            }
            _ => self.clocks.next_sweep = None,
        }
    }

    /// Does what is due.
    fn expire(&mut self) {
        let now = self.wire.now;
        let limits = self.wire.limits.clone();
        let is_due = |since: Option<Instant>, after: Duration| {
            since.is_some_and(|since| since + after <= now)
        };
        if self.clocks.close_by.is_some_and(|at| at <= now) {
            // Shut down and lingered, or unable to write: there is nothing left to wait for.
            self.wire.out = super::output::Output::default();
            self.phase = Phase::Lingering;
            self.is_abandoned = true;
            return;
        }
        if matches!(self.handshake, Handshake::Preface | Handshake::Settings)
            && is_due(Some(self.clocks.began), limits.handshake_timeout)
        {
            return self.fault(Fault::calm("handshake_timeout"));
        }
        if is_due(self.block.as_ref().map(|block| block.began), limits.header_block_timeout) {
            return self.fault(Fault::calm("header_block_timeout"));
        }
        if let Some(stall) = limits.stall_timeout
            && is_due(self.clocks.write_stalled, stall)
        {
            self.fault(Fault::calm("peer_does_not_read"));
            self.clocks.close_by = Some(now);
            return;
        }
        if let Some(idle) = limits.connection_idle_timeout
            && self.streams.is_empty()
            && is_due(Some(self.clocks.last_busy), idle)
        {
            return self.fault(Fault { code: ErrorCode::NO_ERROR, reason: "idle_connection" });
        }
        if self.clocks.cut_off_at.is_some_and(|at| at <= now) {
            return self.cut_off();
        }
        if self.clocks.leave_at.is_some_and(|at| at <= now) && self.phase == Phase::Open {
            let grace = limits.age.and_then(|age| age.grace);
            self.clocks.cut_off_at = grace.map(|grace| now + grace);
            self.leave();
        }
        if self.phase == Phase::Leaving && is_due(self.clocks.leaving_since, GOAWAY_PATIENCE) {
            self.name_last_stream();
        }
        if is_due(self.wire.later_begun, LATER) {
            self.ask_again(now);
        }
        self.keep_alive(now);
        while let Some((deadline, id)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.remove(&(deadline, id));
            if let Some(slot) = self.index.get(&id).copied() {
                self.expire_stream(slot as usize, Expiry::Deadline);
            }
        }
        if self.clocks.next_sweep.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
    }

    /// Runs the streams that nothing came for since they were deferred.
    fn ask_again(&mut self, now: Instant) {
        self.wire.later_begun = None;
        for _ in 0..self.wire.later.len() {
            let Some(key) = self.wire.later.pop_front() else { break };
            let Some(Slot { core, .. }) = self.streams.get_mut(key.slot as usize) else { continue };
            if core.key != key {
                continue;
            }
            core.is_later = false;
            match core.later_since {
                Some(since) if since + LATER > now => self.wire.defer_since(core, since),
                Some(_) => self.wire.run(core),
                None => {}
            }
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let Some(keepalive) = self.wire.limits.keepalive else { return };
        match self.clocks.ping_sent {
            Some(sent) if sent + keepalive.timeout <= now => {
                self.fault(Fault::calm("keepalive_timeout"));
            }
            None if self.clocks.last_read + keepalive.interval <= now => {
                self.clocks.ping_sent = Some(now);
                frame::ping(&mut self.wire.out.tail, &PING_KEEPALIVE, false);
            }
            _ => {}
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.clocks.next_sweep = None;
        let limits = self.wire.limits.clone();
        let over = |since: Instant, after: Option<Duration>| {
            after.is_some_and(|after| since + after <= now)
        };
        let expired = |core: &Core| {
            if core.stalled_since.is_some_and(|since| over(since, limits.stall_timeout)) {
                return Some(Expiry::Stalled);
            }
            over(core.last_frame, limits.stream_idle_timeout).then_some(Expiry::Idle)
        };
        let expired: Vec<(usize, Expiry)> = self
            .streams
            .iter()
            .filter_map(|(slot, Slot { core, .. })| Some((slot, expired(core)?)))
            .collect();
        for (slot, why) in expired {
            self.expire_stream(slot, why);
        }
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
        for (_, Slot { core, mut app }) in std::mem::take(&mut self.streams) {
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

/// The thread's read buffer, for the length of a read: connections keep only what is incomplete.
struct ReadBuffer(Box<[u8]>);

thread_local! {
    static READ: std::cell::Cell<Option<Box<[u8]>>> = const { std::cell::Cell::new(None) };
}

impl ReadBuffer {
    fn take() -> Self {
        ReadBuffer(READ.take().unwrap_or_else(|| vec![0; READ_BYTES].into()))
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        READ.set(Some(std::mem::take(&mut self.0)));
    }
}

#[cfg(test)]
mod tests;

//! One stream's inbox, the body that reads it, and the waker that marks the stream.
//!
//! The connection's task fills an [`Inbox`]; a [`RecvBody`] empties it. Nearly always the body is
//! polled by that very task, while it polls the stream: then the inbox is lent through a
//! thread-local for the length of the poll, and neither lock nor atomic is touched. The first time
//! that the body is polled anywhere else, the stream becomes *remote* for good: its inbox moves
//! behind the mutex that body and connection share.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::connection::READ_BYTES;
use super::frame::{ErrorCode, FRAME_BYTES_MAX};

/// DATA from here up is kept as it came, smaller payloads are gathered in one buffer, so that a
/// frame of a byte costs a byte.
const GATHER_BYTES_MAX: usize = 4_096;

/// Most that is gathered in one buffer. What a reader takes at once, and may have to keep itself, is
/// no more than that, or one frame.
const GATHERED_BYTES_MAX: usize = 4 << 10;

/// The first payload that may wait where it was read, if nothing waits before it, has so many bytes: below, a copy costs
/// less than two counts. With messages of 1,000 bytes, four to a frame, a server used 483 ns of CPU a message
/// with it and 531 without (medians of 7 interleaved pairs, 2026-11-28).
const IN_PLACE_BYTES_MIN: usize = 512;

/// Those behind it, of any size, are so many at most: as many whole frames as a read has. Messages of 64 KiB, four frames
/// and a bit each, cost a server 4 % less with it than copied frame by frame (CPU time a message, medians of 16 and of 44
/// interleaved pairs, 2026-11-29); with messages of 1,000 bytes and of 1 MiB no difference showed.
const IN_PLACE_MORE_MAX: usize = READ_BYTES / FRAME_BYTES_MAX;

/// Chunks that an empty inbox keeps places for.
const CHUNKS_KEPT: usize = 16;

/// Why a body ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyError {
    /// The peer reset the stream: it cancelled, with this code.
    Reset(ErrorCode),
    /// We ended the stream, for this reason: a broken frame, a deadline, a drain.
    Ended(&'static str),
    /// The peer did not begin the stream, which may be tried again elsewhere.
    Refused,
    /// The peer takes no new streams on this connection; open another.
    GoAway(ErrorCode),
    /// The request was not sent: its header list (RFC 9113, 6.5.2) is larger than the peer takes.
    HeadTooLarge {
        /// Of the list: names, values and 32 for each field, pseudo-headers included.
        bytes: u64,
        /// The peer's SETTINGS_MAX_HEADER_LIST_SIZE.
        bytes_max: u32,
    },
    /// The server ended the connection for an error. Clients only.
    EndedByPeer {
        /// Of its GOAWAY (RFC 9113, 6.8).
        code: ErrorCode,
        /// Its Additional Debug Data, the first 256 bytes, as text; often empty.
        debug_data: Arc<str>,
    },
    /// The connection is gone.
    ConnectionLost,
}

impl BodyError {
    /// What a drain ends streams with that go on for longer than it waits.
    pub(crate) const SHUTDOWN: BodyError = BodyError::Ended("the server is shutting down");
}

impl fmt::Display for BodyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Reset(code) => write!(out, "the peer reset the stream: {code}"),
            BodyError::Ended(reason) => write!(out, "the stream was ended: {reason}"),
            BodyError::Refused => out.write_str("the peer did not begin the stream; try again"),
            BodyError::GoAway(code) => write!(out, "the peer closes the connection: {code}"),
            BodyError::HeadTooLarge { bytes, bytes_max } => write!(
                out,
                "cannot send a request with a header list of {bytes} bytes: the peer takes at most \
                 {bytes_max}; send fewer or shorter headers"
            ),
            BodyError::EndedByPeer { code, debug_data } if debug_data.is_empty() => {
                write!(out, "the peer ended the connection: {code}")
            }
            BodyError::EndedByPeer { code, debug_data } => {
                write!(out, "the peer ended the connection: {code}, {debug_data:?}")
            }
            BodyError::ConnectionLost => out.write_str("the connection was lost"),
        }
    }
}

impl std::error::Error for BodyError {}

/// How the inbound half of a stream ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// In order, perhaps with trailers.
    Clean(Option<Box<HeaderMap>>),
    /// Not in order.
    Broken(BodyError),
}

/// What became of a payload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    /// How much of it waits to be taken.
    pub(crate) bytes: usize,
    /// It waits in the connection's read buffer.
    pub(crate) is_in_place: bool,
}

/// What arrived and was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// If `in_place` is there, the payloads behind it, in the read buffer, too.
    chunks: VecDeque<Bytes>,
    /// Small payloads, behind `chunks`.
    gathered: Vec<u8>,
    /// A payload where it lies in the connection's read buffer, until the end of a lap; then all that waits lies there.
    in_place: Bytes,
    /// Bytes in all of them.
    bytes: usize,
    end: Option<End>,
    /// Who waits, if that is not the stream's own waker.
    waiting: Option<Waker>,
    /// The body was dropped: nobody will take anything.
    pub(crate) abandoned: bool,
}

impl Inbox {
    /// Bytes that wait to be taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same, counted chunk by chunk.
    #[cfg(test)]
    pub(crate) fn lying_bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(Bytes::len).sum();
        self.in_place.len() + chunks + self.gathered.len()
    }

    /// Takes a payload in, unless nobody will take it from here. `read`: what it is a part of, if that may be
    /// held until [`keep`](Inbox::keep).
    pub(crate) fn push(&mut self, payload: &[u8], read: Option<&Bytes>) -> Kept {
        if self.is_shut() {
            return Kept::default();
        }
        let is_only = self.bytes == 0;
        self.bytes += payload.len();
        if let Some(read) = read {
            let kept = Kept { bytes: payload.len(), is_in_place: true };
            if is_only && payload.len() >= IN_PLACE_BYTES_MIN {
                self.in_place = read.slice_ref(payload);
                return kept;
            }
            if !self.in_place.is_empty() && self.chunks.len() < IN_PLACE_MORE_MAX {
                self.chunks.push_back(read.slice_ref(payload));
                return kept;
            }
        }
        self.keep();
        self.copy(payload);
        Kept { bytes: payload.len(), is_in_place: false }
    }

    /// Copies what is still in its place.
    pub(crate) fn keep(&mut self) {
        if !self.in_place.is_empty() {
            let first = std::mem::take(&mut self.in_place);
            let others = std::mem::take(&mut self.chunks);
            self.copy(&first);
            others.iter().for_each(|payload| self.copy(payload));
        }
    }

    fn copy(&mut self, payload: &[u8]) {
        if payload.len() >= GATHER_BYTES_MAX {
            self.close_gathered();
            self.chunks.push_back(Bytes::copy_from_slice(payload));
            return;
        }
        if self.gathered.is_empty() {
            // Nearly always the only one of a turn: exactly its size, so that it becomes `Bytes`
            // without another allocation.
            self.gathered = payload.to_vec();
            return;
        }
        let needed = self.gathered.len() + payload.len();
        if needed > GATHERED_BYTES_MAX {
            self.close_gathered();
            self.gathered = payload.to_vec();
            return;
        }
        if needed > self.gathered.capacity() {
            let roomy = (2 * self.gathered.capacity()).clamp(needed, GATHERED_BYTES_MAX);
            self.gathered.reserve_exact(roomy - self.gathered.len());
        }
        self.gathered.extend_from_slice(payload);
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.gathered).into());
        }
    }

    /// Nobody will take anything more: the body was dropped, or was told that it ends here.
    pub(crate) fn is_shut(&self) -> bool {
        self.abandoned || matches!(self.end, Some(End::Broken(_)))
    }

    /// Nothing more will come; if not in order, what waits is dropped: the reader learns of it at once.
    pub(crate) fn end(&mut self, end: End) {
        if self.is_shut() {
            return;
        }
        if let End::Broken(_) = end {
            self.discard();
        }
        self.end = Some(end);
    }

    /// Nothing more will come, unless that is known already.
    pub(crate) fn end_if_open(&mut self, error: BodyError) {
        self.end.get_or_insert(End::Broken(error));
    }

    /// Drops what waits. Out: how much that was.
    pub(crate) fn discard(&mut self) -> usize {
        self.chunks = VecDeque::new();
        self.gathered = Vec::new();
        self.in_place = Bytes::new();
        std::mem::take(&mut self.bytes)
    }

    /// The next chunk; if it lies in the read buffer, only as much of it as `part` says, a byte at least. What is a copy goes as a whole:
    /// a part of it that stays would keep all of it, and be counted as its own length.
    fn pop_data(&mut self, part: impl FnOnce(&[u8]) -> usize) -> Option<Bytes> {
        if self.bytes == 0 {
            return None;
        }
        if !self.in_place.is_empty() {
            let length = part(&self.in_place).max(1);
            let chunk = if length < self.in_place.len() {
                self.in_place.split_to(length)
            } else {
                let next = self.chunks.pop_front().unwrap_or_default();
                std::mem::replace(&mut self.in_place, next)
            };
            self.bytes -= chunk.len();
            return Some(chunk);
        }
        let chunk = match self.chunks.pop_front() {
            Some(chunk) => {
                if self.chunks.is_empty() && self.chunks.capacity() > CHUNKS_KEPT {
                    self.chunks = VecDeque::new();
                }
                chunk
            }
            None => Bytes::from(std::mem::take(&mut self.gathered)),
        };
        self.bytes -= chunk.len();
        Some(chunk)
    }

    /// The next chunk, trailers, the end, or nothing yet.
    fn pop(&mut self) -> Option<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(chunk) = self.pop_data(<[u8]>::len) {
            return Some(Some(Ok(Frame::data(chunk))));
        }
        match self.end.as_mut()? {
            End::Clean(trailers) => {
                Some(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            End::Broken(error) => Some(Some(Err(error.clone()))),
        }
    }

    fn is_at_end(&self) -> bool {
        self.bytes == 0 && matches!(self.end, Some(End::Clean(None)))
    }

    /// Whom to wake, besides the stream, because something came.
    pub(crate) fn take_waiting(&mut self) -> Option<Waker> {
        self.waiting.take()
    }

    /// Moves everything to `remote`, where nothing was delivered yet. Out: whom to wake.
    pub(crate) fn hand_over(&mut self, remote: &mut Inbox) -> Option<Waker> {
        let waiting = remote.waiting.take().or_else(|| self.waiting.take());
        self.abandoned |= remote.abandoned;
        self.keep();
        *remote = std::mem::take(self);
        waiting
    }

    fn wait(&mut self, waker: &Waker) {
        if !self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(waker)) {
            self.waiting = Some(waker.clone());
        }
    }
}

/// What a remote body and the connection share.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// `None` as long as there was no use for it.
    inbox: Option<Box<Inbox>>,
    /// Bytes that the body took and the connection has not granted again.
    pub(crate) taken: usize,
}

impl Remote {
    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        self.inbox.get_or_insert_default()
    }

    /// What lies here, and what was taken from here and is not granted again.
    #[cfg(test)]
    pub(crate) fn unread_bytes(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.lying_bytes()) + self.taken
    }
}

/// The wakers of a connection's streams, as its task sees them.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    any: AtomicBool,
    marked: Mutex<Vec<Key>>,
    task: futures_util::task::AtomicWaker,
}

/// A stream's place in its connection's table, and which of the place's streams it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Wakes {
    /// The connection's task is the one to wake.
    pub(crate) fn register(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// Moves the marked streams into `into`, which must be empty. Out: whether there were any.
    pub(crate) fn take(&self, into: &mut Vec<Key>) -> bool {
        if !self.any() {
            return false;
        }
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Relaxed);
        std::mem::swap(&mut *marked, into);
        !into.is_empty()
    }

    /// Whether streams were marked, or something else was seen to, since they were taken last.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// It is the connection's turn, on this thread, until what is returned is dropped. What is marked here
    /// meanwhile wakes nobody, because the turn looks for it before it ends: a wake would let the runtime run the
    /// task again, as often as its own streams come and go, before it asks the system for others' sockets.
    pub(crate) fn turn(&self) -> TurnOf {
        TurnOf { outer: TURN_OF.replace(self) }
    }

    fn mark(&self, key: Key) {
        {
            let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
            marked.push(key);
            self.any.store(true, Ordering::Release);
        }
        self.wake();
    }

    fn wake(&self) {
        if !std::ptr::eq(TURN_OF.get(), self) {
            self.task.wake();
        }
    }
}

thread_local! {
    /// Whose turn it is on this thread: an address, never followed.
    static TURN_OF: Cell<*const Wakes> = const { Cell::new(std::ptr::null()) };
}

/// A connection's turn; see [`Wakes::turn`].
pub(crate) struct TurnOf {
    /// Not null only if user code blocks on another connection in a poll.
    outer: *const Wakes,
}

impl Drop for TurnOf {
    fn drop(&mut self) {
        TURN_OF.set(self.outer);
    }
}

/// One stream as others hold it: its waker, and where a remote body finds its inbox.
#[derive(Debug)]
pub(crate) struct Shared {
    wakes: Arc<Wakes>,
    key: Key,
    /// Marked and not polled since.
    marked: AtomicBool,
    is_remote: AtomicBool,
    /// A piece of the answer was asked for on another task and is not here yet.
    owes_piece: AtomicBool,
    /// None was asked for, because too many are.
    lacks_place: AtomicBool,
    /// The gRPC code with which the transport itself ended the stream; 0: it did not.
    ended_with: AtomicU8,
    /// Whoever reads the request was told that a drain ends it.
    told_of_drain: AtomicBool,
    remote: Mutex<Remote>,
}

impl Shared {
    pub(crate) fn new(wakes: Arc<Wakes>, key: Key) -> Arc<Self> {
        Arc::new(Shared {
            wakes,
            key,
            marked: AtomicBool::new(false),
            is_remote: AtomicBool::new(false),
            owes_piece: AtomicBool::new(false),
            lacks_place: AtomicBool::new(false),
            ended_with: AtomicU8::new(0),
            told_of_drain: AtomicBool::new(false),
            remote: Mutex::default(),
        })
    }

    /// From here on a wake marks the stream again. Called before it is polled.
    pub(crate) fn unmark(&self) {
        // Nearly always false, and a load is cheaper than a sequentially consistent store.
        if self.marked.load(Ordering::Relaxed) {
            // A swap, not a store: whoever marks again meanwhile, and finds it marked, relies on this poll to see what it did.
            self.marked.swap(false, Ordering::SeqCst);
        }
    }

    /// The transport ends the stream with this gRPC code. Called before user code is dropped.
    pub(crate) fn end_with(&self, code: u8) {
        self.ended_with.store(code, Ordering::Relaxed);
    }

    /// The client went away or broke the stream, unless the transport has ended it already.
    pub(crate) fn cancelled(&self) {
        const CANCELLED: u8 = 1;
        // Only the connection's task writes.
        if self.ended_with.load(Ordering::Relaxed) == 0 {
            self.end_with(CANCELLED);
        }
    }

    pub(crate) fn owe_piece(&self, owes: bool) {
        self.owes_piece.store(owes, Ordering::Relaxed);
    }

    /// Whether there may be a piece that waits to be taken. Asked by whoever polls the body, no other.
    pub(crate) fn owes_piece(&self) -> bool {
        self.owes_piece.load(Ordering::Relaxed)
    }

    pub(crate) fn lack_place(&self) {
        self.lacks_place.store(true, Ordering::Relaxed);
    }

    /// Whether the last poll of the body had no place to ask from. Asked by whoever polls it, no other.
    pub(crate) fn lacked_place(&self) -> bool {
        self.lacks_place.load(Ordering::Relaxed) && self.lacks_place.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn is_remote(&self) -> bool {
        self.is_remote.load(Ordering::Acquire)
    }

    pub(crate) fn remote(&self) -> MutexGuard<'_, Remote> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the connection's own sake, whether the stream is still there or not.
    pub(crate) fn wake_connection(&self) {
        self.wakes.any.store(true, Ordering::Release);
        self.wakes.wake();
    }

    fn mark(&self) {
        if !self.marked.swap(true, Ordering::SeqCst) {
            self.wakes.mark(self.key);
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.mark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mark();
    }
}

/// The inbox that is lent to the body of the stream that is being polled on this thread.
struct Lent {
    /// Whose it is: an address, never followed.
    owner: *const Shared,
    inbox: Box<Inbox>,
}

thread_local! {
    static LENT: Cell<Option<Lent>> = const { Cell::new(None) };
}

/// Runs `poll` while the body of `owner` (an address, never followed), polled on this thread, finds its data in `inbox`, which is
/// `None` meanwhile; if it is so already, it is lent already.
///
/// Nothing of user code may unwind out of `poll`: the inbox would be lost.
pub(crate) fn lend<T>(
    owner: *const Shared,
    inbox: &mut Option<Box<Inbox>>,
    poll: impl FnOnce() -> T,
) -> T {
    let Some(lending) = inbox.take() else { return poll() };
    // Nested only if user code blocks on another connection in a poll; that one gives back first.
    let outer = LENT.replace(Some(Lent { owner, inbox: lending }));
    let polled = poll();
    let lent = LENT.replace(outer).expect("whoever lends gives back");
    *inbox = Some(lent.inbox);
    polled
}

/// How the transport itself ended a stream, if it did: in the extensions of each request, for layers
/// that count. A service whose future or body is dropped finds here whether its client went away.
#[derive(Clone, Debug)]
pub struct StreamEnd(Arc<Shared>);

impl StreamEnd {
    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        StreamEnd(shared)
    }

    /// gRPC's code of a deadline, a stall, idleness, a drain, a failure of the service, an answer that the client would
    /// not take, a client that went away or broke the stream (CANCELLED), or of a panic, also for whoever is dropped by
    /// that; `None`: the transport did not end it, or not yet.
    pub fn grpc_code(&self) -> Option<i32> {
        const INTERNAL: i32 = 13;
        // What unwinds is dropped before the stream's guard hears of it.
        self.told().or_else(|| std::thread::panicking().then_some(INTERNAL))
    }

    /// The same, without what unwinds at this moment: the stream may have ended before.
    pub(crate) fn told(&self) -> Option<i32> {
        match self.0.ended_with.load(Ordering::Relaxed) {
            0 => None,
            code => Some(code.into()),
        }
    }

    /// Of a stream on its own, whose client has gone away or not.
    #[cfg(test)]
    pub(crate) fn example(is_cancelled: bool) -> Self {
        let shared = Shared::new(Arc::default(), Key { slot: 0, generation: 0 });
        if is_cancelled {
            shared.cancelled();
        }
        StreamEnd(shared)
    }

    /// Whether the request was cut short by a drain and the service was told so: what it answers after that is not an answer
    /// to all that its client had to say.
    pub fn was_told_of_drain(&self) -> bool {
        self.0.told_of_drain.load(Ordering::Relaxed)
    }
}

/// The body of what the peer sends: DATA, then trailers, if there are any.
///
/// May be polled on any task, and may outlive its stream and its connection: then it ends with an
/// error. What it gives is granted again to the peer, not before.
///
/// A chunk may be a slice of what the connection read. A service that keeps some for long should copy
/// them: they would keep all of that. A server whose service held on to one gives copies from then on.
#[derive(Debug)]
pub struct RecvBody {
    shared: Arc<Shared>,
    own_waker: Waker,
    /// Polled by another task than its connection's, once.
    is_remote: bool,
    is_done: bool,
}

impl RecvBody {
    pub(crate) fn new(shared: Arc<Shared>, own_waker: Waker) -> Self {
        RecvBody { shared, own_waker, is_remote: false, is_done: false }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Runs `with` on the inbox if it is lent to this body on this thread.
    fn with_lent<T>(&self, with: impl FnOnce(&mut Inbox) -> T) -> Option<T> {
        LENT.with(|place| {
            let mut lent = place.take()?;
            let is_ours = lent.owner == Arc::as_ptr(&self.shared);
            let done = is_ours.then(|| with(&mut lent.inbox));
            place.set(Some(lent));
            done
        })
    }

    /// What an inbox that is lent to this body has. `None`: none is.
    fn look(&self, cx: &Context<'_>, part: impl FnOnce(&[u8]) -> usize) -> Option<Look> {
        self.with_lent(|inbox| match inbox.pop_data(part) {
            Some(data) => Look::Data(data),
            None if inbox.end.is_some() => Look::Ended(Box::new(inbox.pop().flatten())),
            None => {
                // The connection polls the stream anyway when something comes; another waker is
                // somebody's combinator, which must hear of it by itself.
                if !cx.waker().will_wake(&self.own_waker) {
                    inbox.wait(cx.waker());
                }
                Look::Nothing
            }
        })
    }

    /// As [`Body::poll_frame`](http_body::Body::poll_frame), but of a chunk that lies in the read buffer only what `part` says of it: that
    /// many bytes, from 1 on, are taken, and the others wait where they are, as if they had come by themselves, until the lap ends.
    /// Of copies it is not asked.
    pub(crate) fn poll_part(
        &mut self,
        cx: &Context<'_>,
        part: impl FnOnce(&[u8]) -> usize,
    ) -> PolledFrame {
        if self.is_done {
            return Poll::Ready(None);
        }
        let polled = match if self.is_remote { None } else { self.look(cx, part) } {
            Some(Look::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Look::Nothing) => return Poll::Pending,
            Some(Look::Ended(end)) => Poll::Ready(*end),
            None => {
                self.is_remote = true;
                self.poll_remote(cx)
            }
        };
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.is_done = true;
        }
        if let Poll::Ready(Some(Err(BodyError::SHUTDOWN))) = &polled {
            self.shared.told_of_drain.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn poll_remote(&self, cx: &Context<'_>) -> PolledFrame {
        let mut remote = self.shared.remote();
        let became_remote = !self.shared.is_remote.swap(true, Ordering::AcqRel);
        let next = remote.inbox().pop();
        if let Some(Some(Ok(frame))) = &next {
            remote.taken += frame.data_ref().map_or(0, Bytes::len);
        } else if next.is_none() {
            remote.inbox().wait(cx.waker());
        }
        drop(remote);
        // The connection hands its inbox over, or grants again what was taken.
        if became_remote || matches!(next, Some(Some(Ok(_)))) {
            self.shared.mark();
        }
        next.map_or(Poll::Pending, Poll::Ready)
    }
}

type PolledFrame = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// What a lent inbox has for its body. Small, since nearly all of it is data, or nothing.
enum Look {
    Data(Bytes),
    Nothing,
    /// Trailers, an error, the end.
    Ended(Box<Option<Result<Frame<Bytes>, BodyError>>>),
}

impl http_body::Body for RecvBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        self.poll_part(cx, <[u8]>::len)
    }

    fn is_end_stream(&self) -> bool {
        self.is_done
            || (!self.is_remote && self.with_lent(|inbox| inbox.is_at_end()).unwrap_or(false))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        let abandon = |inbox: &mut Inbox| inbox.abandoned = true;
        if self.is_remote || self.with_lent(abandon).is_none() {
            self.shared.remote().inbox().abandoned = true;
            self.shared.is_remote.store(true, Ordering::Release);
            self.shared.mark();
        }
    }
}

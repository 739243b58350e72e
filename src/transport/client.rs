//! The client's side: opens streams on a connection and drives them inside its task.
//!
//! In: requests, each with an [`Exchange`] that gives what is sent and takes what comes. Out: calls
//! of the exchange, in the connection's task: no task, channel, lock or allocation per message. What
//! the peer's stream limit has no room for waits; what its GOAWAY did not begin is told so.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::connection::{Connection, Expiry, Opening, Role, Turn};
use super::counters::Counters;
use super::fields::{self, Fields};
use super::frame::ErrorCode;
use super::limits::Limits;
use super::stream::{BodyError, Kept, Key, Shared, Wakes};
use super::wire::{Core, Ending, Flushed, Wire};

/// What one stream may put into the output in one turn before its siblings get theirs.
const TURN_BYTES: usize = 64 << 10;

/// The user's side of one stream. Called in the connection's task, so it must not block; `Send` only if
/// that task is to be.
pub trait Exchange: 'static {
    /// The head of the response came; informational ones (1xx) are left out.
    fn head(&mut self, status: StatusCode, headers: &HeaderMap, now: Instant);

    /// A payload came, at `now`, cut wherever the peer cut it. It counts as taken on return.
    fn data(&mut self, payload: &[u8], now: Instant);

    /// The peer ended the stream, with these trailers (of a response without data: its head).
    /// Err: it ended otherwise. Nothing is called after this; not called at all if the connection's
    /// future is dropped.
    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, now: Instant);

    /// Asks for something to send, at `now`. Appends to `frame`, best no more than `room` bytes. That is none where a window
    /// has been shut for [`Limits::stall_timeout`]: whoever has nothing more says so, and does not stall.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        frame: &mut Vec<u8>,
        room: usize,
        now: Instant,
    ) -> Sending;

    /// Whether nothing that may still come is of any use. Asked in each of the stream's turns, which it has when something
    /// came or its waker was woken. Then the stream is reset (CANCEL), whatever its windows and however much was not sent, and
    /// [`end`](Exchange::end) is told that it was ended here.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What an [`Exchange`] has to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Nothing beyond what was appended, until it wakes its waker or something came.
    Wait,
    /// There is more.
    More,
    /// This, after what was appended; then more. Not copied.
    Chunk(bytes::Bytes),
    /// Nothing more at all: half-close.
    End,
}

/// Opens streams on one connection. The connection ends when all handles are gone and all streams over.
#[derive(Debug)]
pub struct Client<X> {
    openings: mpsc::UnboundedSender<(Request<()>, X)>,
}

impl<X> Clone for Client<X> {
    fn clone(&self) -> Self {
        Client { openings: self.openings.clone() }
    }
}

/// Limits of a client that trusts its server with memory: wide windows, so that the client's are
/// never what slows a stream down. Streams and connection may idle, and the server may take its time
/// to read and to answer; time is limited only for the handshake, for a header block, and while replies
/// that the server asks for without reading any keep us from reading on.
pub fn client_limits(stream_flow_window_bytes: u32, connection_flow_window_bytes: u32) -> Limits {
    Limits {
        max_concurrent_streams: u32::MAX,
        header_list_bytes_max: 64 << 10,
        stream_flow_window_bytes,
        stream_flow_window_bytes_max: stream_flow_window_bytes,
        connection_flow_window_bytes,
        output_bytes_max: 1 << 20,
        connection_idle_timeout: None,
        stall_timeout: None,
        ..Limits::default()
    }
}

impl<X: Exchange> Client<X> {
    /// A client over a byte stream, and the future that is its connection, which keeps to `limits`, each
    /// taken within its range. The future has to be polled, within a tokio runtime with timers; its Err:
    /// the byte stream failed.
    pub fn new<IO>(
        io: IO,
        limits: Limits,
    ) -> (Self, impl Future<Output = io::Result<()>> + use<IO, X>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        Self::connect(io, limits)
    }

    /// The same, with the connection by its name: tests audit it.
    pub(crate) fn connect<IO>(io: IO, limits: Limits) -> (Self, Connection<IO, Calling<X>>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (openings, to_open) = mpsc::unbounded_channel();
        let calling = Calling { to_open, next: None, is_finished: false };
        let limits = Arc::new(limits.clamped());
        let connection = Connection::new(io, calling, limits, None, Arc::<Counters>::default());
        (Client { openings }, connection)
    }

    /// Opens a stream as soon as the peer's limit has room. Err: the connection takes none any more.
    pub fn open(&self, request: Request<()>, exchange: X) -> Result<(), X> {
        self.openings.send((request, exchange)).map_err(|refused| refused.0.1)
    }
}

/// gRPC's code for an HTTP status, where a response has no `grpc-status`
/// (grpc/grpc, doc/http-grpc-status-mapping.md).
pub fn grpc_code_of_http(status: StatusCode) -> i32 {
    const INTERNAL: i32 = 13;
    const UNAUTHENTICATED: i32 = 16;
    const PERMISSION_DENIED: i32 = 7;
    const UNIMPLEMENTED: i32 = 12;
    const UNAVAILABLE: i32 = 14;
    const UNKNOWN: i32 = 2;
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// gRPC's code for a reset (gRPC over HTTP/2, "Errors").
pub fn grpc_code_of_reset(code: ErrorCode) -> i32 {
    const CANCELLED: i32 = 1;
    const INTERNAL: i32 = 13;
    const PERMISSION_DENIED: i32 = 7;
    const RESOURCE_EXHAUSTED: i32 = 8;
    const UNAVAILABLE: i32 = 14;
    match code {
        ErrorCode::REFUSED_STREAM => UNAVAILABLE,
        ErrorCode::CANCEL => CANCELLED,
        ErrorCode::ENHANCE_YOUR_CALM => RESOURCE_EXHAUSTED,
        ErrorCode(12) => PERMISSION_DENIED,
        _ => INTERNAL,
    }
}

/// The client's [`Role`].
pub(crate) struct Calling<X> {
    to_open: mpsc::UnboundedReceiver<(Request<()>, X)>,
    /// The first of those, if the peer's limit has no room for it yet.
    next: Option<(Request<()>, X)>,
    is_finished: bool,
}

/// One stream.
pub(crate) struct Call<X> {
    exchange: X,
    shared: Arc<Shared>,
    waker: Waker,
    has_head: bool,
    /// Of a request for a head alone: its answer has no content, whatever length it tells.
    is_head: bool,
    /// The exchange has been told.
    is_over: bool,
}

impl<X: Exchange> Call<X> {
    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, now: Instant) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.exchange.end(end, now);
        }
    }
}

impl<X: Exchange> Role for Calling<X> {
    type App = Call<X>;

    const IS_SERVER: bool = false;

    fn accept(&mut self, _: &mut Core, _: &Arc<Wakes>, _: Request<()>) -> Self::App {
        unreachable!("servers open no streams: push is off")
    }

    fn poll_open(
        &mut self,
        key: Key,
        wakes: &Arc<Wakes>,
        has_room: bool,
        cx: &mut Context<'_>,
    ) -> Option<Opening<Self::App>> {
        if self.next.is_none() {
            match self.to_open.poll_recv(cx) {
                Poll::Pending => return None,
                Poll::Ready(None) => self.is_finished = true,
                Poll::Ready(opening) => self.next = opening,
            }
        }
        let (request, exchange) = self.next.take_if(|_| has_room)?;
        let shared = Shared::new(wakes.clone(), key);
        let waker = Waker::from(shared.clone());
        let is_head = request.method() == Method::HEAD;
        let app = Call { exchange, shared, waker, has_head: false, is_head, is_over: false };
        Some(Opening { request, app })
    }

    fn headers(
        &mut self,
        core: &mut Core,
        app: &mut Self::App,
        fields: Fields,
        end: bool,
    ) -> Result<(), &'static str> {
        let now = core.last_frame;
        if app.has_head {
            if !end {
                return Err("headers_in_mid_stream");
            }
            app.end(Ok(&fields.into_trailers()?), now);
            return Ok(());
        }
        let (status, headers) = fields.into_response()?;
        if status.is_informational() {
            return if end { Err("informational_response_ends_stream") } else { Ok(()) };
        }
        app.has_head = true;
        // 304 and the answer to HEAD tell the length of what they leave out (RFC 9110, 8.6).
        let has_no_content = app.is_head || status == StatusCode::NOT_MODIFIED;
        let length = fields::content_length(&headers)?;
        core.content_left = if has_no_content { Some(0) } else { length };
        if end && core.content_left.is_some_and(|left| left > 0) {
            return Err("content_length_mismatch");
        }
        app.exchange.head(status, &headers, now);
        if end {
            app.end(Ok(&headers), now);
        }
        Ok(())
    }

    fn expects_data(app: &Self::App) -> Result<(), &'static str> {
        if app.has_head { Ok(()) } else { Err("data_before_headers") }
    }

    fn data(
        &mut self,
        core: &mut Core,
        app: &mut Self::App,
        payload: &[u8],
        _: Option<&Bytes>,
    ) -> Kept {
        if !app.is_over {
            app.exchange.data(payload, core.last_frame);
        }
        Kept::default()
    }

    fn keep(_: &mut Self::App) {}

    fn end(&mut self, core: &mut Core, app: &mut Self::App) {
        app.end(Ok(&HeaderMap::new()), core.last_frame);
    }

    fn broken(&mut self, app: &mut Self::App, error: BodyError) {
        app.end(Err(&error), Instant::now());
    }

    fn is_untouched(_: &Self::App) -> bool {
        false
    }

    fn buffered(_: &Self::App) -> usize {
        0
    }

    #[cfg(test)]
    fn unread_bytes(_: &Self::App) -> usize {
        0
    }

    fn poll(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire) -> Turn {
        app.shared.unmark();
        if core.remote_closed {
            // Nobody listens to what we would still send.
            if !core.local_closed {
                wire.reset(core, ErrorCode::CANCEL);
            }
            return Turn::Over;
        }
        if app.exchange.is_cancelled() {
            wire.reset(core, ErrorCode::CANCEL);
            app.end(Err(&BodyError::Ended("it was cancelled")), wire.now);
            return Turn::Over;
        }
        if !core.is_flushed() {
            match wire.flush(core) {
                Flushed::All => {}
                Flushed::Shut => return Turn::Wait,
                Flushed::Full => return Turn::Again,
            }
        }
        let before = wire.out.len();
        let mut cx = Context::from_waker(&app.waker);
        let now = wire.polled_at;
        loop {
            if core.local_closed {
                return Turn::Wait;
            }
            if !core.is_flushed() {
                return if core.is_waiting { Turn::Wait } else { Turn::Again };
            }
            if !wire.has_output_room() || wire.out.len() >= before + TURN_BYTES {
                return Turn::Again;
            }
            let is_shut = wire.room(core) == 0;
            core.is_asked &= is_shut;
            if is_shut && !core.is_asked {
                wire.block(core);
                return Turn::Wait;
            }
            let exchange = &mut app.exchange;
            let sending = wire
                .data_in_place(core, |frame, room| exchange.poll_send(&mut cx, frame, room, now));
            match sending {
                Sending::Wait if core.is_flushed() => {
                    if std::mem::take(&mut core.is_asked) {
                        // The window is not what it waits for.
                        core.stalled_since = Some(wire.now);
                    }
                    return Turn::Wait;
                }
                // The window is, and the next sweep finds that it was asked.
                Sending::More if core.is_asked && core.is_flushed() => return Turn::Wait,
                // What the output had no room for is still here: nobody but we would come back for it.
                Sending::More | Sending::Wait => {}
                Sending::Chunk(chunk) => wire.append(core, chunk),
                Sending::End => wire.end(core, Ending::Data),
            }
        }
    }

    fn expire(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire, _: Expiry) {
        wire.reset(core, ErrorCode::CANCEL);
        app.end(Err(&BodyError::Ended("the stream's time is over")), wire.now);
    }

    fn too_large(&mut self, _: &mut Core, _: &Fields, _: &mut Wire) {}

    fn is_finished(&self) -> bool {
        self.is_finished
    }

    fn refuse_openings(&mut self, error: BodyError) {
        self.is_finished = true;
        self.to_open.close();
        let next = self.next.take();
        let waiting = std::iter::from_fn(|| self.to_open.try_recv().ok());
        for (_, mut exchange) in next.into_iter().chain(waiting) {
            exchange.end(Err(&error), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;

//! One connection on a desk: bytes are laid in, the connection is polled by hand, frames come out.
//!
//! For what a few frames show: every bug that the torture found has its small test here.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;
use tokio::time::advance;
use tower_service::Service;

use crate::drain::Drain;
use crate::transport::connection::{Connection, Signals};
use crate::transport::counters::Counters;
use crate::transport::frame::{self, ErrorCode, Head, PREFACE, flag, kind, setting};
use crate::transport::hpack::Encoder;
use crate::transport::limits::{Flood, FloodKind, Limits};
use crate::transport::serving::Serving;
use crate::transport::{BodyError, RecvBody};

/// The byte stream: what was laid in, what came out, and how much may come out.
#[derive(Clone, Debug, Default)]
pub(super) struct Tray(Arc<Mutex<Bytestream>>);

impl Tray {
    /// One that lets everything come out.
    pub(super) fn roomy() -> Self {
        let tray = Tray::default();
        tray.0.lock().unwrap().room = usize::MAX;
        tray
    }

    pub(super) fn lay(&self, bytes: &[u8]) {
        self.0.lock().unwrap().inbound.extend(bytes);
    }

    /// What came out until now.
    pub(super) fn came_out(&self) -> Vec<u8> {
        self.0.lock().unwrap().outbound.clone()
    }
}

#[derive(Debug, Default)]
struct Bytestream {
    inbound: VecDeque<u8>,
    outbound: Vec<u8>,
    room: usize,
    /// It never says that all was flushed.
    keeps_flushing: bool,
    /// It never says that it is shut down.
    keeps_shutting: bool,
}

fn unless(never: bool) -> Poll<io::Result<()>> {
    if never { Poll::Pending } else { Poll::Ready(Ok(())) }
}

impl AsyncRead for Tray {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inbound = &mut self.0.lock().unwrap().inbound;
        let count = inbound.len().min(buf.remaining());
        if count == 0 {
            return Poll::Pending;
        }
        let bytes: Vec<u8> = inbound.drain(..count).collect();
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tray {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut tray = self.0.lock().unwrap();
        let count = bytes.len().min(tray.room);
        if count == 0 {
            return Poll::Pending;
        }
        tray.room -= count;
        tray.outbound.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unless(self.0.lock().unwrap().keeps_flushing)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unless(self.0.lock().unwrap().keeps_shutting)
    }
}

/// Turns in a row in which no byte moved, although the connection had asked for each.
#[derive(Default)]
struct Idle {
    turns: usize,
    /// Bytes that lie on either side of the connection.
    bytes: (usize, usize),
}

impl Idle {
    /// One for what a turn left over, one that finds that nothing is.
    const TURNS_MAX: usize = 2;

    fn look(&mut self, tray: &Tray) {
        let tray = tray.0.lock().unwrap();
        let bytes = (tray.inbound.len(), tray.outbound.len());
        self.turns = if bytes == self.bytes { self.turns + 1 } else { 0 };
        self.bytes = bytes;
        assert!(self.turns <= Self::TURNS_MAX, "does not come to rest");
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Answers every request with what it makes of the request's body.
#[derive(Clone)]
struct Answers<F>(F);

impl<F: Fn(RecvBody) -> Response<B>, B> Service<Request<RecvBody>> for Answers<F> {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RecvBody>) -> Self::Future {
        std::future::ready(Ok((self.0)(request.into_body())))
    }
}

/// A body out of a closure.
struct FromFn<F>(F);

fn answer<F>(body: F) -> Response<FromFn<F>> {
    Response::new(FromFn(body))
}

type Polled = Poll<Option<Result<Frame<Bytes>, Infallible>>>;

impl<F: FnMut(&mut Context<'_>) -> Polled + Unpin> Body for FromFn<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        (self.0)(cx)
    }
}

/// The connection and what belongs to it.
struct Desk<F, B>
where
    F: Fn(RecvBody) -> Response<B> + Clone,
    B: Body<Data = Bytes>,
{
    connection: Pin<Box<Connection<Tray, Serving<Answers<F>>>>>,
    tray: Tray,
    woken: Arc<Woken>,
    encoder: Encoder,
    drain: Drain,
}

impl<F, B> Desk<F, B>
where
    F: Fn(RecvBody) -> Response<B> + Clone + Unpin,
    B: Body<Data = Bytes>,
{
    /// A connection whose client said its preface and `settings`, and let everything come out.
    fn new(limits: Limits, settings: &[(u16, u32)], answer: F) -> Self {
        let (tray, drain, counters) =
            (Tray::default(), Drain::default(), Arc::<Counters>::default());
        tray.0.lock().unwrap().room = usize::MAX;
        let service = Answers(answer);
        let serving = Serving {
            service,
            extensions: Extensions::new(),
            counters: counters.clone(),
            tasks: None,
        };
        let signals = Signals {
            leave: drain.leave.watch(),
            stop: drain.stop_reading.watch(),
            cut_off: drain.cut_off.watch(),
        };
        let limits = Arc::new(limits);
        let connection = Connection::new(tray.clone(), serving, limits, Some(signals), counters);
        let mut desk = Desk {
            connection: Box::pin(connection),
            tray,
            woken: Arc::default(),
            encoder: Encoder::new(0),
            drain,
        };
        desk.lay(|bytes, _| {
            bytes.extend_from_slice(PREFACE);
            frame::settings(bytes, settings);
        });
        desk
    }

    fn lay(&mut self, with: impl FnOnce(&mut Vec<u8>, &mut Encoder)) {
        let mut bytes = Vec::new();
        with(&mut bytes, &mut self.encoder);
        self.tray.0.lock().unwrap().inbound.extend(bytes);
    }

    fn request(&mut self, stream: u32, end: bool) {
        self.lay(|bytes, encoder| {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            for (name, value) in [(":method", "POST"), (":scheme", "http"), (":path", "/")] {
                encoder.field(name.as_bytes(), value.as_bytes(), false, &mut block);
            }
            frame::headers(bytes, stream, &block, end);
        });
    }

    fn data(&mut self, stream: u32, length: usize, end: bool) {
        let flags = if end { flag::END_STREAM } else { 0 };
        self.lay(|bytes, _| {
            bytes.extend_from_slice(&Head { length, kind: kind::DATA, flags, stream }.bytes());
            bytes.resize(bytes.len() + length, b'x');
        });
    }

    /// Polls until it waits. Out: the frames that came out.
    fn run(&mut self) -> Vec<(Head, Vec<u8>)> {
        let mut idle = Idle::default();
        loop {
            let before = self.woken.0.load(SeqCst);
            self.turn();
            if !self.is_to_be_polled_since(before) {
                return self.frames();
            }
            idle.look(&self.tray);
        }
    }

    /// Whether anybody asked for a turn since `before`.
    fn is_to_be_polled_since(&self, before: usize) -> bool {
        self.woken.0.load(SeqCst) > before || self.connection.goes_on()
    }

    fn turn(&mut self) {
        let before = self.woken.0.load(SeqCst);
        assert!(!self.is_over_after_a_turn(), "the connection ended");
        self.connection.audit(self.woken.0.load(SeqCst) > before);
    }

    fn is_over_after_a_turn(&mut self) -> bool {
        let waker = Waker::from(self.woken.clone());
        self.connection.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
    }

    /// Polls until it waits. Out: whether it is over.
    fn ends(&mut self) -> bool {
        let mut idle = Idle::default();
        loop {
            let before = self.woken.0.load(SeqCst);
            if self.is_over_after_a_turn() {
                return true;
            }
            if !self.is_to_be_polled_since(before) {
                return false;
            }
            idle.look(&self.tray);
        }
    }

    fn frames(&mut self) -> Vec<(Head, Vec<u8>)> {
        let bytes = std::mem::take(&mut self.tray.0.lock().unwrap().outbound);
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while let Some(head) = Head::parse(rest) {
            let end = 9 + head.length;
            frames.push((head, rest[9..end].to_vec()));
            rest = &rest[end..];
        }
        assert!(rest.is_empty(), "half a frame");
        frames
    }
}

/// Bytes that the frames carry on `stream`.
fn carried(frames: &[(Head, Vec<u8>)], stream: u32) -> usize {
    let data = frames.iter().filter(|(head, _)| head.kind == kind::DATA && head.stream == stream);
    data.map(|(head, _)| head.length).sum()
}

/// Takes what comes, and gives what it ended with.
fn poll_to_end(body: &mut RecvBody, cx: &mut Context<'_>) -> Poll<Option<BodyError>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Some(error)),
            None => return Poll::Ready(None),
        }
    }
}

fn echo(body: RecvBody) -> Response<RecvBody> {
    Response::new(body)
}

#[tokio::test(start_paused = true)]
async fn a_window_that_shrank_before_the_ack_still_opens_again() {
    let limits = Limits {
        stream_flow_window_bytes: 1_000,
        stream_flow_window_bytes_max: 1_000,
        ..Limits::default()
    };
    let mut desk = Desk::new(limits, &[], |mut body| {
        answer(move |cx: &mut Context<'_>| poll_to_end(&mut body, cx).map(|_| None))
    });
    desk.request(1, false);
    for _ in 0..4 {
        desk.data(1, 15_000, false);
    }
    // Not polled before the ACK: all of it counts against the window of before.
    desk.lay(|bytes, _| frame::settings_ack(bytes));
    let mut window = 65_535 - 60_000 + (1_000 - 65_535);
    for round in 0..10 {
        for (head, payload) in desk.run() {
            if (head.kind, head.stream) == (kind::WINDOW_UPDATE, 1) {
                window += i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
            }
        }
        assert!((501..=1_000).contains(&window), "round {round}: the client has {window}");
        desk.data(1, usize::try_from(window).unwrap(), false);
        window = 0;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_before_a_window_shrank_is_granted_when_it_shrinks() {
    let limits = Limits {
        stream_flow_window_bytes: 10,
        stream_flow_window_bytes_max: 10,
        ..Limits::default()
    };
    let mut desk = Desk::new(limits, &[], echo);
    desk.request(1, false);
    desk.data(1, 18, false);
    desk.run();
    desk.lay(|bytes, _| frame::settings_ack(bytes));
    let frames = desk.run();
    let granted = frames.iter().find(|(head, _)| head.kind == kind::WINDOW_UPDATE);
    assert_eq!(granted.map(|(head, payload)| (head.stream, payload[3])), Some((1, 18)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_waits_for_the_connections_window_once_however_often_it_is_polled() {
    let mut desk = Desk::new(Limits::default(), &[(setting::INITIAL_WINDOW_SIZE, 1 << 20)], echo);
    desk.lay(|bytes, _| frame::settings_ack(bytes));
    desk.request(1, false);
    for _ in 0..5 {
        desk.data(1, 16_000, false);
        desk.run();
    }
    // Blocked now; the audit of each turn counts the queue.
    for _ in 0..2_000 {
        desk.data(1, 1, false);
        desk.run();
    }
    desk.lay(|bytes, _| frame::window_update(bytes, 0, 1 << 20));
    assert_eq!(carried(&desk.run(), 1), 5 * 16_000 + 2_000 - 65_535);
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_gone_leave_the_queues() {
    let settings = [(setting::INITIAL_WINDOW_SIZE, 1 << 20)];
    let mut limits = Limits::default();
    limits
        .floods
        .set(FloodKind::RapidReset, Flood { burst: 1 << 30, per_second: 0, per_useful_frame: 0 });
    let mut desk = Desk::new(limits, &settings, echo);
    desk.lay(|bytes, _| frame::settings_ack(bytes));
    for id in (1..20_000).step_by(2) {
        desk.request(id, false);
        desk.data(id, 16_000, false);
        desk.run();
        desk.lay(|bytes, _| frame::rst_stream(bytes, id, ErrorCode::CANCEL));
        desk.run();
    }
}

/// Real time passes: the handlers take some of it.
#[tokio::test]
async fn a_turn_that_takes_long_ends_and_the_next_one_reads_less() {
    let answered = Arc::new(AtomicUsize::new(0));
    let counted = answered.clone();
    let limits = Limits { max_concurrent_streams: 6_000, ..Limits::default() };
    let mut desk = Desk::new(limits, &[], move |_| {
        counted.fetch_add(1, SeqCst);
        std::thread::sleep(Duration::from_micros(50));
        answer(|_: &mut Context<'_>| Poll::Ready(None))
    });
    (1..12_000).step_by(2).for_each(|id| desk.request(id, true));
    let unread = |desk: &Desk<_, _>| desk.tray.0.lock().unwrap().inbound.len();
    let all = unread(&desk);
    // The clock is looked at after 32 streams; on a slow machine what was read takes more turns.
    let mut turns = 0;
    while all - unread(&desk) <= 8 << 10 {
        desk.turn();
        turns += 1;
        let answered = answered.load(SeqCst);
        assert!(0 < answered && answered <= 32 * turns, "{answered} in {turns} turns");
    }
    assert!(turns > 1);
    assert_eq!(all - unread(&desk), 12 << 10);
    desk.run();
    assert_eq!((answered.load(SeqCst), unread(&desk)), (6_000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_of_empty_frames_does_not_hold_the_thread() {
    let polls = Arc::new(AtomicUsize::new(0));
    let polled = polls.clone();
    let mut desk = Desk::new(Limits::default(), &[], move |_| {
        let polled = polled.clone();
        answer(move |_: &mut Context<'_>| match polled.fetch_add(1, SeqCst) {
            0..100_000 => Poll::Ready(Some(Ok(Frame::data(Bytes::new())))),
            _ => Poll::Ready(None),
        })
    });
    desk.request(1, true);
    desk.turn();
    assert!(polls.load(SeqCst) < 100_000, "polled until it had enough");
    assert!(desk.connection.goes_on(), "the rest is for later");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_was_stopped_does_not_see_a_clean_end() {
    let ended: Arc<Mutex<Option<bool>>> = Arc::default();
    let noted = ended.clone();
    let mut desk = Desk::new(Limits::default(), &[], move |mut body: RecvBody| {
        let noted = noted.clone();
        answer(move |cx: &mut Context<'_>| {
            let end = ready!(poll_to_end(&mut body, cx));
            *noted.lock().unwrap() = Some(end.is_none());
            Poll::Ready(None)
        })
    });
    desk.request(1, false);
    desk.run();
    desk.drain.stop_reading.set();
    desk.data(1, 1_000, true);
    desk.run();
    assert_eq!(*ended.lock().unwrap(), Some(false), "what came was taken away from it");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_provokes_replies_is_still_read_when_the_output_is_never_empty() {
    let endless = |_| {
        answer(|_: &mut Context<'_>| {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 1_000])))))
        })
    };
    let limits = Limits { control_bytes_max: 100, ..Limits::default() };
    let huge = (1 << 31) - 1;
    let mut desk = Desk::new(limits, &[(setting::INITIAL_WINDOW_SIZE, huge)], endless);
    desk.lay(|bytes, _| frame::window_update(bytes, 0, huge - 65_535));
    desk.request(1, true);
    desk.tray.0.lock().unwrap().room = 0;
    for _ in 0..5 {
        desk.lay(|bytes, _| frame::ping(bytes, b"one more", false));
        desk.turn();
    }
    for _ in 0..5 {
        desk.lay(|bytes, _| frame::ping(bytes, b"one more", false));
        for _ in 0..20 {
            desk.tray.0.lock().unwrap().room = 100_000;
            desk.turn();
        }
    }
    assert!(desk.tray.0.lock().unwrap().inbound.is_empty(), "pings lie unread");
}

/// A request's body that its handler gave away.
type Kept = Arc<Mutex<Option<RecvBody>>>;

/// Polls the body from elsewhere.
fn poll_kept(kept: &Kept, cx: &mut Context<'_>) -> Poll<Option<BodyError>> {
    poll_to_end(kept.lock().unwrap().as_mut().unwrap(), cx)
}

#[tokio::test(start_paused = true)]
async fn a_reset_after_the_end_of_the_request_is_told_as_a_reset() {
    for is_remote in [false, true] {
        let kept = Kept::default();
        let keeps = kept.clone();
        let mut desk = Desk::new(Limits::default(), &[], move |body| {
            *keeps.lock().unwrap() = Some(body);
            answer(|_: &mut Context<'_>| Poll::Pending)
        });
        desk.request(1, false);
        desk.run();
        let mut cx = Context::from_waker(Waker::noop());
        if is_remote {
            assert!(poll_kept(&kept, &mut cx).is_pending());
            desk.run();
        }
        desk.data(1, 1_000, true);
        desk.run();
        desk.lay(|bytes, _| frame::rst_stream(bytes, 1, ErrorCode::CANCEL));
        desk.run();
        let cancelled = Some(BodyError::Reset(ErrorCode::CANCEL));
        assert_eq!(poll_kept(&kept, &mut cx), Poll::Ready(cancelled), "{is_remote}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_body_hears_of_the_end_of_its_stream() {
    let (kept, woken) = (Kept::default(), Arc::<Woken>::default());
    let (keeps, wakes) = (kept.clone(), woken.clone());
    let mut desk = Desk::new(Limits::default(), &[], move |body| {
        let (keeps, wakes) = (keeps.clone(), wakes.clone());
        *keeps.lock().unwrap() = Some(body);
        answer(move |_: &mut Context<'_>| {
            // Polled in its place, but with somebody else's waker.
            let waker = Waker::from(wakes.clone());
            assert!(poll_kept(&keeps, &mut Context::from_waker(&waker)).is_pending());
            Poll::Ready(None)
        })
    });
    desk.request(1, false);
    desk.run();
    assert_eq!(woken.0.load(SeqCst), 1);
    let polled = poll_kept(&kept, &mut Context::from_waker(Waker::noop()));
    assert_eq!(polled, Poll::Ready(Some(BodyError::Ended("the stream is over"))));
}

/// Panics when it is dropped, and so does what it throws.
#[derive(Clone)]
struct Bomb(usize);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 {
            resume_unwind(Box::new(Bomb(self.0 - 1)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_when_the_answers_extensions_are_dropped_costs_nobody_else_anything() {
    let mut desk = Desk::new(Limits::default(), &[], |mut body| {
        let bomb = Bomb(2);
        let mut response = answer(move |cx: &mut Context<'_>| {
            let _held = &bomb;
            poll_to_end(&mut body, cx).map(|_| None)
        });
        // Both at once would be the end of the process.
        response.extensions_mut().insert(Bomb(2));
        response
    });
    desk.request(1, false);
    let frames = desk.run();
    let heads: Vec<_> = frames.iter().filter(|(head, _)| head.stream == 1).collect();
    assert!(matches!(heads[..], [(head, _), (reset, _)]
        if head.has(flag::END_STREAM) && reset.kind == kind::RST_STREAM));
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_throws_what_panics_ends_its_stream_alone() {
    let mut desk = Desk::new(Limits::default(), &[], |mut body| {
        let bomb = Bomb(2);
        answer(move |cx: &mut Context<'_>| {
            let _held = &bomb;
            match ready!(Pin::new(&mut body).poll_frame(cx)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(|data| data.len() == 13) => {
                    resume_unwind(Box::new(Bomb(2)))
                }
                next => Poll::Ready(next.and_then(Result::ok).map(Ok)),
            }
        })
    });
    for id in [1, 3, 5] {
        desk.request(id, false);
    }
    desk.run();
    desk.data(1, 13, false);
    desk.lay(|bytes, _| frame::rst_stream(bytes, 3, ErrorCode::CANCEL));
    desk.data(5, 10, false);
    let frames = desk.run();
    assert!(frames.iter().any(|(head, _)| (head.kind, head.stream) == (kind::RST_STREAM, 1)));
    assert_eq!(carried(&frames, 5), 10, "the neighbour lives");
    desk.data(5, 10, true);
    assert_eq!(carried(&desk.run(), 5), 10);
}

/// No time limit at all: nothing but frames and wakes make such a connection go on.
fn timeless() -> Limits {
    Limits { connection_idle_timeout: None, stall_timeout: None, ..Limits::default() }
}

#[tokio::test(start_paused = true)]
async fn a_turn_without_budget_is_made_up_for() {
    let mut desk = Desk::new(timeless(), &[], echo);
    desk.lay(|bytes, _| frame::settings_ack(bytes));
    desk.run();
    desk.request(1, false);
    desk.data(1, 10, true);
    poll_fn(|cx| {
        while coop::has_budget_remaining() {
            let _ = pin!(coop::consume_budget()).poll(cx);
        }
        // The first two read, the last one finds nothing new.
        for _ in 0..3 {
            let before = desk.woken.0.load(SeqCst);
            desk.turn();
            assert!(desk.is_to_be_polled_since(before), "nobody will ever poll the stream");
        }
        Poll::Ready(())
    })
    .await;
    tokio::task::yield_now().await;
    assert_eq!(carried(&desk.run(), 1), 10);
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_never_ends_is_a_stall() {
    let stall = Duration::from_secs(60);
    let limits = Limits { stall_timeout: Some(stall), ..timeless() };
    let mut desk = Desk::new(limits, &[], echo);
    desk.run();
    desk.tray.0.lock().unwrap().keeps_flushing = true;
    desk.request(1, false);
    desk.data(1, 10, true);
    assert_eq!(carried(&desk.run(), 1), 10);
    advance(stall - Duration::from_millis(2)).await;
    assert!(!desk.ends());
    advance(Duration::from_millis(4)).await;
    assert!(desk.ends(), "waits for a flush for ever");
}

#[tokio::test(start_paused = true)]
async fn what_is_flushed_in_time_is_no_stall() {
    let stall = Duration::from_secs(60);
    let limits = Limits { stall_timeout: Some(stall), ..timeless() };
    let mut desk = Desk::new(limits, &[], echo);
    desk.run();
    for round in 0..4 {
        desk.tray.0.lock().unwrap().keeps_flushing = true;
        desk.request(2 * round + 1, true);
        desk.run();
        advance(stall / 2).await;
        desk.tray.0.lock().unwrap().keeps_flushing = false;
        desk.run();
        advance(stall / 2).await;
        desk.run();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_never_ends_is_waited_for_as_long_as_a_linger() {
    let mut desk = Desk::new(timeless(), &[], echo);
    desk.lay(|bytes, _| frame::settings_ack(bytes));
    desk.run();
    desk.tray.0.lock().unwrap().keeps_shutting = true;
    desk.drain.leave.set();
    let frames = desk.run();
    let ping = frames.iter().find(|(head, _)| head.kind == kind::PING).expect("asked");
    let opaque = ping.1[..].try_into().unwrap();
    desk.lay(|bytes, _| frame::ping(bytes, opaque, true));
    assert!(!desk.ends());
    advance(Duration::from_millis(1_002)).await;
    assert!(desk.ends(), "waits for the shutdown for ever");
}

//! A server's connection from inside: queues, windows and output that a client tries to make grow.

mod ages;
mod crowds;
mod fairness;
mod reads;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::hash::BuildHasher;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use tokio::io::ReadBuf;

use super::super::frame::{ErrorCode, FRAME_BYTES_MAX, Head, flag, kind};
use super::*;
use crate::drain::Drain;
use crate::transport::client::{Client, Exchange, Sending, client_limits};
use crate::transport::inside::{self, HeaderEncoder};
use crate::transport::limits::{Flood, FloodKind};
use crate::transport::memory::Total;
use crate::transport::serving::Serving;
use crate::transport::stream::RecvBody;
use crate::transport::wire::QUEUE_KEPT;

/// Answers with what comes; or, if the request says so, with pieces of `piece` bytes, `pieces` of them; or
/// reads nothing (`hold`), and takes its time to be dropped (`dear`); or answers only at the end, with all that it kept (`keep`); or
/// takes so many bytes at once at most (`part`), and so many times (`parts`).
#[derive(Clone)]
struct Echo;

enum Answer {
    Echo(RecvBody),
    Pieces { bytes: usize, left: usize },
    Hold(#[expect(dead_code, reason = "only held")] RecvBody),
    Dear(Dear),
    Keep { body: RecvBody, kept: VecDeque<Bytes> },
    Parts { body: RecvBody, bytes: usize, left: usize },
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Answer::Echo(body) => Pin::new(body).poll_frame(cx),
            Answer::Hold(_) | Answer::Dear(_) => Poll::Pending,
            Answer::Keep { body, kept } => {
                while let Some(frame) = std::task::ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    kept.extend(frame?.into_data());
                }
                Poll::Ready(kept.pop_front().map(|chunk| Ok(http_body::Frame::data(chunk))))
            }
            Answer::Parts { left: 0, .. } => Poll::Pending,
            Answer::Parts { body, bytes, left } => {
                let part = std::task::ready!(body.poll_part(cx, |chunk| chunk.len().min(*bytes)));
                *left -= 1;
                Poll::Ready(part)
            }
            Answer::Pieces { left: 0, .. } => Poll::Ready(None),
            Answer::Pieces { bytes, left } => {
                *left -= 1;
                Poll::Ready(Some(Ok(http_body::Frame::data(vec![1; *bytes].into()))))
            }
        }
    }
}

impl tower_service::Service<Request<RecvBody>> for Echo {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Answer>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RecvBody>) -> Self::Future {
        let number = |name| request.headers().get(name)?.to_str().ok()?.parse().ok();
        let answer = match (number("piece"), number("pieces")) {
            (Some(bytes), Some(left)) => Answer::Pieces { bytes, left },
            _ if request.headers().contains_key("part") => Answer::Parts {
                bytes: number("part").expect("a number"),
                left: number("parts").unwrap_or(usize::MAX),
                body: request.into_body(),
            },
            _ if request.headers().contains_key("keep") => {
                Answer::Keep { body: request.into_body(), kept: VecDeque::new() }
            }
            _ if request.headers().contains_key("hold") => Answer::Hold(request.into_body()),
            _ if request.headers().contains_key("dear") => Answer::Dear(Dear),
            _ => Answer::Echo(request.into_body()),
        };
        ready(Ok(Response::new(answer)))
    }
}

/// What takes its time to be dropped.
struct Dear;

impl Drop for Dear {
    fn drop(&mut self) {
        let begin = std::time::Instant::now();
        while begin.elapsed() < TURN_TIME_MAX / 32 {}
    }
}

/// A client that says what it is told to, and takes what it gets, or nothing of it.
#[derive(Default)]
struct Peer {
    said: VecDeque<u8>,
    got: Vec<u8>,
    is_deaf: bool,
    is_gone: bool,
    /// Each read takes so long.
    takes: Duration,
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begin = std::time::Instant::now();
        while begin.elapsed() < self.takes {}
        if self.said.is_empty() && self.is_gone {
            return Poll::Ready(Ok(()));
        }
        if self.said.is_empty() {
            return Poll::Pending;
        }
        let count = buf.remaining().min(self.said.len());
        self.said.drain(..count).for_each(|byte| buf.put_slice(&[byte]));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_deaf {
            return Poll::Pending;
        }
        self.got.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A server's connection that a test looks into, and the client's side of it.
struct Probe {
    connection: Connection<Peer, Serving<Echo>>,
    encoder: HeaderEncoder,
    is_over: bool,
}

impl Probe {
    fn new(limits: Limits) -> Self {
        let mut probe = Self::silent(limits, None);
        probe.greet();
        probe
    }

    /// A client that has said nothing yet.
    fn silent(limits: Limits, drain: Option<&Drain>) -> Self {
        let signals = drain.map(|drain| Signals {
            leave: drain.leave.watch(),
            stop: drain.stop_reading.watch(),
            cut_off: drain.cut_off.watch(),
        });
        let counters = Arc::<Counters>::default();
        let serving = Serving {
            service: Echo,
            extensions: Extensions::new(),
            counters: counters.clone(),
            tasks: None,
        };
        let connection =
            Connection::new(Peer::default(), serving, Arc::new(limits), signals, counters);
        Probe { connection, encoder: HeaderEncoder::default(), is_over: false }
    }

    fn greet(&mut self) {
        self.connection.io.said.extend(PREFACE);
        self.say(kind::SETTINGS, 0, 0, &[]);
    }

    /// The last streams that GOAWAYs named, in order.
    fn goaways(&self) -> Vec<u32> {
        inside::frames(&self.connection.io.got)
            .filter(|(kind, ..)| *kind == kind::GOAWAY)
            .map(|(.., payload)| u32::from_be_bytes(*payload.first_chunk().unwrap()))
            .collect()
    }

    fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let said = &mut self.connection.io.said;
        said.extend(Head { length: payload.len(), kind, flags, stream }.bytes());
        said.extend(payload);
    }

    fn acknowledge(&mut self) {
        self.say(kind::SETTINGS, flag::ACK, 0, &[]);
    }

    fn open(&mut self, stream: u32, more: &[(&'static str, &'static str)]) {
        let post = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")];
        let fields = post.iter().chain(more);
        let mut block = Vec::new();
        self.encoder.encode(
            fields.map(|(name, value)| (name.as_bytes(), value.as_bytes(), false)),
            &mut block,
        );
        self.say(kind::HEADERS, flag::END_HEADERS, stream, &block);
    }

    /// Lets the connection do all that it can do now.
    async fn settle(&mut self) {
        for _ in 0..20 {
            if !self.is_over {
                let connection = Pin::new(&mut self.connection);
                let mut connection = Some(connection);
                self.is_over = poll_fn(|cx| {
                    let connection = connection.take().expect("polled once");
                    Poll::Ready(connection.poll(cx).is_ready())
                })
                .await;
            }
            tokio::task::yield_now().await;
        }
    }
}

const ANY: u32 = (1 << 31) - 1;

#[tokio::test(start_paused = true)]
async fn a_request_behind_a_preface_that_was_not_read_when_a_drain_began_is_served() {
    let drain = Drain::default();
    let mut probe = Probe::silent(Limits::default(), Some(&drain));
    probe.greet();
    probe.open(1, &[]);
    probe.say(kind::DATA, flag::END_STREAM, 1, b"on its way");
    drain.leave.set();
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY]);
    let echoed = inside::frames(&probe.connection.io.got).any(|(kind, _, stream, payload)| {
        (kind, stream, payload) == (kind::DATA, 1, b"on its way")
    });
    assert!(echoed, "the request was lost");
    // And what it sends until it knows of the drain.
    probe.open(3, &[]);
    probe.say(kind::PING, flag::ACK, 0, &PING_DRAIN);
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_preface_that_comes_while_a_drain_goes_on_is_taken() {
    let drain = Drain::default();
    let mut probe = Probe::silent(Limits::default(), Some(&drain));
    probe.settle().await;
    drain.leave.set();
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY]);
    tokio::time::advance(GREETING_PATIENCE - Duration::from_millis(1)).await;
    probe.settle().await;
    probe.greet();
    probe.open(1, &[]);
    probe.settle().await;
    tokio::time::advance(GREETING_PATIENCE).await;
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY], "it has as long as any other");
    tokio::time::advance(GOAWAY_PATIENCE).await;
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY, 1]);
    assert!(!probe.is_over, "its stream goes on");
}

#[tokio::test(start_paused = true)]
async fn whoever_never_finishes_its_handshake_does_not_hold_a_drain_up() {
    for said in [&b""[..], &PREFACE[..10], PREFACE] {
        let drain = Drain::default();
        let mut probe = Probe::silent(Limits::default(), Some(&drain));
        probe.connection.io.said.extend(said);
        probe.settle().await;
        drain.leave.set();
        probe.settle().await;
        tokio::time::advance(GREETING_PATIENCE).await;
        probe.settle().await;
        assert_eq!(probe.goaways(), [ANY, 0], "{said:?}");
        tokio::time::advance(LINGER).await;
        probe.settle().await;
        assert!(probe.is_over, "{said:?}");
    }
}

/// A connection that was cut off, and a client that goes on for so many bytes.
async fn talked_to_after_a_fault(bytes: usize) -> Probe {
    let mut probe = Probe::new(Limits::default());
    probe.say(kind::DATA, 0, 99, b"of a stream that is idle");
    probe.settle().await;
    assert_eq!(probe.goaways(), [0]);
    assert!(!probe.is_over, "the client may not have read it yet");
    probe.connection.io.said.resize(bytes, 0);
    probe
}

#[tokio::test(start_paused = true)]
async fn a_turn_of_a_connection_that_lingers_is_short() {
    let bytes = 1 << 20;
    let mut probe = talked_to_after_a_fault(bytes).await;
    let poll = poll_fn(|cx| Poll::Ready(Pin::new(&mut probe.connection).poll(cx))).await;
    assert!(poll.is_pending());
    let discarded = bytes - probe.connection.io.said.len();
    assert_eq!(discarded, LINGER_READ_BYTES);
    assert!(probe.connection.goes_on(), "the rest is for later");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_cut_off_is_not_listened_to_for_long() {
    let bytes = 1 << 20;
    let mut probe = talked_to_after_a_fault(bytes).await;
    probe.settle().await;
    assert!(probe.is_over);
    assert_eq!(bytes - probe.connection.io.said.len(), LINGER_BYTES_AFTER_FAULT);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_drained_is_listened_to_for_as_long_as_an_honest_one_sends() {
    let drain = Drain::default();
    let mut probe = Probe::silent(Limits::default(), Some(&drain));
    probe.greet();
    probe.settle().await;
    drain.leave.set();
    probe.settle().await;
    probe.say(kind::PING, flag::ACK, 0, &PING_DRAIN);
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY, 0]);
    let window = Limits::default().connection_flow_window_bytes as usize;
    let bytes = window + 1;
    probe.connection.io.said.resize(bytes, 0);
    for _ in 0..window / LINGER_READ_BYTES {
        probe.settle().await;
    }
    assert!(probe.is_over);
    assert_eq!(probe.connection.io.said.len(), 1);
}

/// Uses the connection's window up on stream 1, which then waits for more.
async fn window_used_up() -> Probe {
    let mut probe = Probe::new(Limits::default());
    probe.acknowledge();
    probe.open(1, &[]);
    probe.say(kind::WINDOW_UPDATE, 0, 1, &(1_u32 << 20).to_be_bytes());
    for _ in 0..5 {
        probe.say(kind::DATA, 0, 1, &[1; FRAME_BYTES_MAX]);
        probe.settle().await;
    }
    assert_eq!(probe.connection.wire.connection_room(), 0);
    probe
}

#[tokio::test]
async fn a_stream_stands_in_the_queue_of_the_connection_window_once() {
    let mut probe = window_used_up().await;
    for _ in 0..100 {
        probe.say(kind::DATA, 0, 1, b"x");
        probe.settle().await;
    }
    assert_eq!(probe.connection.wire.blocked.len(), 1);
}

#[tokio::test]
async fn streams_that_are_gone_do_not_stay_in_the_queue_of_the_connection_window() {
    let mut probe = window_used_up().await;
    for stream in (3..2_000).step_by(2) {
        probe.open(stream, &[]);
        probe.say(kind::DATA, 0, stream, b"x");
        probe.settle().await;
        probe.say(kind::RST_STREAM, 0, stream, &ErrorCode::CANCEL.0.to_be_bytes());
        probe.settle().await;
    }
    assert_eq!(probe.connection.streams.len(), 1);
    assert!(probe.connection.wire.blocked.len() <= 3 + QUEUE_KEPT);
}

/// Bytes of DATA that came on a stream.
fn data_bytes(probe: &Probe, stream: u32) -> usize {
    inside::frames(&probe.connection.io.got)
        .filter(|(kind, _, id, _)| (*kind, *id) == (kind::DATA, stream))
        .map(|(.., payload)| payload.len())
        .sum()
}

#[tokio::test]
async fn a_stream_that_is_read_goes_on_beside_one_that_is_stuck_with_a_large_piece() {
    let mut probe = Probe::new(Limits { pending_bytes_max: 1 << 20, ..Limits::default() });
    probe.acknowledge();
    let window = [&[0, 4][..], &20_000_u32.to_be_bytes()].concat();
    probe.say(kind::SETTINGS, 0, 0, &window);
    probe.say(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    probe.open(1, &[("piece", "600000"), ("pieces", "1")]);
    probe.settle().await;
    probe.open(3, &[("piece", "10000"), ("pieces", "1000")]);
    probe.settle().await;
    assert_eq!(data_bytes(&probe, 1), 20_000, "the rest waits");
    let mut before = data_bytes(&probe, 3);
    for _ in 0..5 {
        probe.say(kind::WINDOW_UPDATE, 0, 3, &100_000_u32.to_be_bytes());
        probe.settle().await;
        let now = data_bytes(&probe, 3);
        assert!(now >= before + 90_000, "{} bytes for a window of 100,000", now - before);
        before = now;
    }
}

#[tokio::test]
async fn streams_with_small_windows_go_on_beside_one_that_is_stuck_with_a_large_piece() {
    let mut probe = Probe::new(Limits { pending_bytes_max: 1 << 20, ..Limits::default() });
    probe.acknowledge();
    let window = [&[0, 4][..], &2_000_u32.to_be_bytes()].concat();
    probe.say(kind::SETTINGS, 0, 0, &window);
    probe.say(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    probe.open(1, &[("piece", "600000"), ("pieces", "1")]);
    probe.settle().await;
    probe.open(3, &[("piece", "2000"), ("pieces", "1000")]);
    for round in 1..=20 {
        probe.settle().await;
        assert_eq!(data_bytes(&probe, 3), round * 2_000);
        probe.say(kind::WINDOW_UPDATE, 0, 3, &2_000_u32.to_be_bytes());
    }
}

#[tokio::test]
async fn a_stream_that_is_read_goes_on_when_the_connection_window_opens() {
    let mut probe = Probe::new(Limits { pending_bytes_max: 1 << 20, ..Limits::default() });
    probe.acknowledge();
    probe.open(1, &[("piece", "600000"), ("pieces", "1")]);
    probe.settle().await;
    probe.open(3, &[("piece", "1000"), ("pieces", "1000")]);
    probe.say(kind::WINDOW_UPDATE, 0, 3, &(1_u32 << 20).to_be_bytes());
    probe.settle().await;
    assert_eq!(data_bytes(&probe, 3), 0, "the first one had the connection's window");
    for round in 1..=5 {
        probe.say(kind::WINDOW_UPDATE, 0, 0, &50_000_u32.to_be_bytes());
        probe.settle().await;
        let came = data_bytes(&probe, 3);
        assert!(came > round * 50_000 - 20_000, "{came} bytes after {round} grants");
    }
}

#[tokio::test]
async fn a_large_piece_leaves_its_siblings_room_in_the_output() {
    let limits = Limits::default();
    let bound = limits.output_bytes_max + 2 * FRAME_BYTES_MAX;
    let mut probe = Probe::new(limits);
    probe.acknowledge();
    let window = [&[0, 4][..], &(1_u32 << 30).to_be_bytes()].concat();
    probe.say(kind::SETTINGS, 0, 0, &window);
    probe.say(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    probe.settle().await;
    probe.connection.io.is_deaf = true;
    probe.open(1, &[("piece", "4000000"), ("pieces", "1")]);
    probe.settle().await;
    let waiting = probe.connection.wire.out.len();
    assert!(waiting < bound, "{waiting} bytes wait");
    probe.connection.io.is_deaf = false;
    probe.open(3, &[("piece", "10"), ("pieces", "1")]);
    probe.settle().await;
    assert_eq!((data_bytes(&probe, 1), data_bytes(&probe, 3)), (4_000_000, 10));
    let before: usize = inside::frames(&probe.connection.io.got)
        .take_while(|(kind, _, id, _)| (*kind, *id) != (kind::DATA, 3))
        .filter(|(kind, ..)| *kind == kind::DATA)
        .map(|(.., payload)| payload.len())
        .sum();
    assert!(before < 2 * bound, "{before} bytes stood before it");
}

#[tokio::test]
async fn windows_grow_to_half_of_the_connection_window_together() {
    let limits = Limits::default();
    let shared = limits.connection_flow_window_bytes as usize / 2;
    let begun = limits.stream_flow_window_bytes as usize;
    let mut probe = Probe::new(limits);
    probe.acknowledge();
    probe.say(kind::WINDOW_UPDATE, 0, 0, &((1_u32 << 31) - 65_536).to_be_bytes());
    let streams: Vec<u32> = (0..32).map(|n| 2 * n + 1).collect();
    for stream in &streams {
        probe.open(*stream, &[]);
        probe.say(kind::WINDOW_UPDATE, 0, *stream, &(1_u32 << 30).to_be_bytes());
    }
    for _ in 0..200 {
        for stream in &streams {
            probe.say(kind::DATA, 0, *stream, &[1; FRAME_BYTES_MAX]);
        }
        probe.settle().await;
    }
    let windows = |probe: &Probe| -> Vec<usize> {
        probe.connection.streams.iter().map(|(_, slot)| slot.core.recv_target as usize).collect()
    };
    let grown: usize = windows(&probe).iter().map(|window| window - begun).sum();
    assert_eq!(grown, shared, "{:?}", windows(&probe));
    // What a stream had is there for others when it has gone.
    for stream in &streams[..16] {
        probe.say(kind::RST_STREAM, 0, *stream, &ErrorCode::CANCEL.0.to_be_bytes());
    }
    for _ in 0..100 {
        for stream in &streams[16..] {
            probe.say(kind::DATA, 0, *stream, &[1; FRAME_BYTES_MAX]);
        }
        probe.settle().await;
    }
    let grown: usize = windows(&probe).iter().map(|window| window - begun).sum();
    assert_eq!(grown, shared, "{:?}", windows(&probe));
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_not_read_give_a_used_up_window_back_after_the_stall_timeout() {
    let limits = Limits { connection_flow_window_bytes: 128 << 10, ..Limits::default() };
    let stall = limits.stall_timeout.unwrap();
    let mut probe = Probe::new(limits);
    probe.acknowledge();
    probe.settle().await;
    for stream in [1, 3] {
        probe.open(stream, &[("hold", "on")]);
        for _ in 0..4 {
            probe.say(kind::DATA, 0, stream, &[1; FRAME_BYTES_MAX]);
        }
    }
    probe.settle().await;
    assert_eq!(probe.connection.wire.recv.open(), 0);
    // One that is not in anybody's way.
    probe.open(5, &[("hold", "on")]);
    for _ in 0..3 {
        tokio::time::advance(stall / 2).await;
        probe.settle().await;
    }
    let left: Vec<u32> = probe.connection.streams.iter().map(|(_, slot)| slot.core.id).collect();
    assert_eq!(left, [5]);
    assert_eq!(probe.connection.wire.recv.open(), 128 << 10);
}

#[tokio::test]
async fn a_header_bomb_counts_whatever_becomes_of_its_stream() {
    let mut probe = Probe::new(Limits { max_concurrent_streams: 1, ..Limits::default() });
    probe.acknowledge();
    probe.open(1, &[]);
    let long = &*"x".repeat(9_000).leak();
    for stream in (3..2_000).step_by(2) {
        // The stream would be refused for another reason.
        probe.open(stream, &[("long", long)]);
        probe.settle().await;
    }
    assert!(probe.is_over || !probe.goaways().is_empty());
    let goaway = inside::frames(&probe.connection.io.got).find(|(kind, ..)| *kind == kind::GOAWAY);
    let (.., payload) = goaway.expect("the flood is one");
    assert_eq!(&payload[8..], b"too_many_large_header_lists");
}

#[tokio::test]
async fn a_deadline_is_not_early_by_the_time_that_the_turn_took_before_it_read_the_request() {
    let mut probe = Probe::new(Limits::default());
    probe.settle().await;
    probe.connection.io.takes = Duration::from_millis(20);
    probe.open(1, &[("hold", ""), ("content-type", "application/grpc"), ("grpc-timeout", "1H")]);
    let begin = std::time::Instant::now();
    let poll = poll_fn(|cx| Poll::Ready(Pin::new(&mut probe.connection).poll(cx))).await;
    assert!(poll.is_pending());
    let (deadline, _) = probe.connection.deadlines.first().expect("it holds its stream");
    let hour = Duration::from_secs(3_600);
    assert!(*deadline >= begin + probe.connection.io.takes + hour, "{:?}", *deadline - begin);
}

#[tokio::test]
async fn a_client_that_reads_nothing_cannot_gather_answers_to_deadlines() {
    let mut probe = Probe::new(Limits { stall_timeout: None, ..Limits::default() });
    probe.acknowledge();
    probe.connection.io.is_deaf = true;
    let deadline = [("content-type", "application/grpc"), ("grpc-timeout", "1n")];
    for stream in (1..20_000).step_by(2) {
        probe.open(stream, &deadline);
        if stream % 100 == 1 {
            probe.settle().await;
        }
    }
    let limits = &probe.connection.wire.limits;
    let bound = limits.output_bytes_max + limits.control_bytes_max;
    let waiting = probe.connection.wire.out.len();
    assert!(waiting < bound, "{waiting} bytes wait");
    assert!(!probe.connection.io.said.is_empty(), "reading has paused");
}

#[tokio::test]
async fn a_window_that_grew_before_our_settings_were_acknowledged_keeps_to_its_maximum() {
    let max = i64::from(crate::transport::flow::WINDOW_BYTES_MAX);
    let window = crate::transport::flow::WINDOW_BYTES_MAX;
    let mut probe = Probe::new(Limits {
        stream_flow_window_bytes: window,
        stream_flow_window_bytes_max: window,
        ..Limits::default()
    });
    // A client whose ACK is late: by its SETTINGS the stream's window is the largest already.
    probe.open(1, &[]);
    probe.say(kind::WINDOW_UPDATE, 0, 1, &(1_u32 << 20).to_be_bytes());
    probe.say(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
    let (mut sent, rounds) = (0, 3);
    for _ in 0..rounds {
        probe.say(kind::DATA, 0, 1, &[1; FRAME_BYTES_MAX]);
        sent += FRAME_BYTES_MAX as i64;
        probe.settle().await;
    }
    let granted: i64 = inside::frames(&probe.connection.io.got)
        .filter(|(kind, _, stream, _)| (*kind, *stream) == (kind::WINDOW_UPDATE, 1))
        .map(|(.., payload)| i64::from(u32::from_be_bytes(payload.try_into().unwrap())))
        .sum();
    assert!(granted > 0, "the echo took what came");
    assert!(max - sent + granted <= max, "{granted} bytes granted for {sent}");
}

#[test]
fn the_fixed_part_of_a_stream_is_as_large_as_its_parts() {
    use crate::transport::limits::STREAM_BYTES;
    use crate::transport::serving::Handler;
    use crate::transport::stream::{Inbox, Shared};
    // The table has room for those that were reset and wait to be dropped, too. It grows by doubling,
    // and old and new are there meanwhile.
    let slots = 2 * 3 * size_of::<Slot<Handler<Echo, RecvBody>>>();
    let counts = 2 * size_of::<usize>();
    let inbox = size_of::<Inbox>() + 4 * size_of::<Bytes>();
    let shared = size_of::<Shared>() + counts;
    // Entries of maps that are half empty at worst, and while they grow.
    let index = 3 * (size_of::<(u32, u32)>() + 1) * 2;
    let deadlines = 3 * size_of::<(Instant, u32)>();
    let queues = 4 * 2 * 3 * size_of::<Key>();
    let wakes = 2 * 3 * size_of::<Key>();
    let all = slots + inbox + shared + index + deadlines + queues + wakes;
    assert!(all <= STREAM_BYTES, "{all}");
    assert!(all > STREAM_BYTES / 2, "{all}: the bound is too cautious");
}

#[test]
fn the_fixed_part_of_a_connection_is_as_large_as_its_parts() {
    use crate::transport::frame::HEAD_BYTES;
    use crate::transport::limits::CONNECTION_BYTES;
    let state = size_of::<Connection<tokio::net::TcpStream, Serving<Echo>>>() + 4_096;
    // Frames without payload, each for another stream, whose keys are queued: the queue grows.
    let queued = READ_BYTES / HEAD_BYTES * size_of::<Key>() * 3;
    assert!(state + queued <= CONNECTION_BYTES, "{state} + {queued}");
}

#[tokio::test]
async fn heads_that_nobody_takes_are_bounded() {
    let max = 100_000;
    let mut probe = Probe::new(Limits { heads_bytes_max: max, ..Limits::default() });
    probe.acknowledge();
    probe.connection.io.is_deaf = true;
    // Fills the output: from then on nothing is polled.
    probe.say(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    probe.open(1, &[]);
    probe.say(kind::WINDOW_UPDATE, 0, 1, &(1_u32 << 30).to_be_bytes());
    probe.settle().await;
    for _ in 0..20 {
        probe.say(kind::DATA, 0, 1, &[1; FRAME_BYTES_MAX]);
        probe.settle().await;
    }
    assert!(!probe.connection.wire.has_output_room());
    let many = [("x", "y"); 200];
    for stream in (3..2_003).step_by(2) {
        probe.open(stream, &many);
        if stream % 100 == 3 {
            probe.settle().await;
        }
    }
    let heads = probe.connection.wire.heads;
    assert!((max / 2..=max).contains(&heads), "{heads} bytes wait");
    // Those are there and wait; the others may be tried again.
    assert!((2..5).contains(&probe.connection.streams.len()));
    probe.connection.io.is_deaf = false;
    probe.settle().await;
    assert_eq!(probe.connection.wire.heads, 0);
    let refused = inside::frames(&probe.connection.io.got)
        .filter(|(kind, _, _, payload)| {
            *kind == kind::RST_STREAM && *payload == ErrorCode::REFUSED_STREAM.0.to_be_bytes()
        })
        .count();
    assert!(refused > 990, "{refused} were refused");
}

#[tokio::test]
async fn a_connection_that_slept_while_memory_was_scarce_takes_its_first_stream_when_it_is_not() {
    let counters = Arc::<Counters>::default();
    let total = Total::new(1_000, counters);
    let mut hog = Share::new(total.clone());
    let mut probe = Probe::new(Limits::default());
    let held = Held::new(1_000);
    let memory = Memory { share: Share::new(total), held: held.clone() };
    probe.connection = probe.connection.with_memory(memory);
    probe.acknowledge();
    // More than its part, of more than half of all.
    assert!(held.hold(400));
    hog.is(400);
    probe.settle().await;
    probe.open(1, &[]);
    probe.settle().await;
    assert!(!probe.connection.index.contains_key(&1), "memory is scarce");
    hog.is(0);
    probe.open(3, &[]);
    probe.settle().await;
    assert!(probe.connection.index.contains_key(&3), "memory is free, but the stream was refused");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_lingers_is_not_ended_once_more_for_memory_that_a_layer_above_holds() {
    let counters = Arc::<Counters>::default();
    let total = Total::new(1_000, counters.clone());
    let mut probe = Probe::new(Limits::default());
    let held = Held::new(10_000);
    let memory = Memory { share: Share::new(total), held: held.clone() };
    probe.connection = probe.connection.with_memory(memory);
    probe.say(kind::DATA, 0, 99, b"of a stream that is idle");
    probe.settle().await;
    assert_eq!(probe.goaways(), [0]);
    assert!(held.hold(2_000));
    probe.connection.io.said.push_back(0);
    probe.settle().await;
    assert_eq!(probe.goaways(), [0], "said behind the shutdown");
    tokio::time::advance(LINGER).await;
    probe.settle().await;
    assert!(probe.is_over);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_granted_is_waited_for_by_no_timer() {
    let mut probe = Probe::new(Limits::default());
    probe.settle().await;
    let wire = &mut probe.connection.wire;
    let open = wire.recv.open();
    wire.recv.receive(open).unwrap();
    wire.is_scarce = true;
    wire.grant_connection();
    assert!(wire.withheld_since.is_some());
    wire.is_scarce = false;
    wire.grant_connection();
    assert!(wire.recv.open() > 0);
    assert_eq!(wire.withheld_since, None);
}

#[tokio::test]
async fn larger_windows_for_all_are_not_for_a_stream_that_was_reset() {
    let mut probe = Probe::new(Limits::default());
    probe.open(1, &[("hold", "")]);
    let most = (1_u32 << 31) - 1 - WINDOW_BYTES_DEFAULT;
    probe.say(kind::WINDOW_UPDATE, 0, 1, &most.to_be_bytes());
    probe.settle().await;
    // In one read: its application is still to be dropped.
    probe.say(kind::RST_STREAM, 0, 1, &ErrorCode::CANCEL.0.to_be_bytes());
    let initial = |window: u32| {
        [&setting::INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat()
    };
    probe.say(kind::SETTINGS, 0, 0, &initial(WINDOW_BYTES_DEFAULT + 1));
    probe.settle().await;
    assert!(probe.goaways().is_empty(), "RFC 9113, 6.9.2 speaks of streams with active windows");
    probe.open(3, &[("hold", "")]);
    probe.say(kind::WINDOW_UPDATE, 0, 3, &(most - 1).to_be_bytes());
    probe.say(kind::SETTINGS, 0, 0, &initial(WINDOW_BYTES_DEFAULT + 2));
    probe.settle().await;
    assert_eq!(probe.goaways(), [3], "that one has a window, which is too large now");
}

#[test]
fn streams_that_lie_together_in_one_connections_index_do_not_in_anothers() {
    let [one, another] = [IdHashes::default(), IdHashes::default()];
    let place = |hashes: &IdHashes, id: u32| hashes.hash_one(id) & 0x1fff;
    let together = (1..).step_by(2).filter(|id| place(&one, *id) == place(&one, 1)).take(64);
    let places: BTreeSet<_> = together.map(|id| place(&another, id)).collect();
    assert!(places.len() > 32, "{} places for 64", places.len());
}

/// What a client's stream is told, and sends: nothing.
#[derive(Clone, Default)]
struct Told(Arc<std::sync::Mutex<Option<Result<(), BodyError>>>>);

impl Exchange for Told {
    fn head(&mut self, _: http::StatusCode, _: &http::HeaderMap, _: Instant) {}

    fn data(&mut self, _: &[u8], _: Instant) {}

    fn end(&mut self, end: Result<&http::HeaderMap, &BodyError>, _: Instant) {
        *self.0.lock().unwrap() = Some(end.map(drop).map_err(BodyError::clone));
    }

    fn poll_send(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>, _: usize, _: Instant) -> Sending {
        Sending::Wait
    }
}

#[tokio::test]
async fn goaways_without_end_cost_a_client_no_more_than_its_streams() {
    let mut limits = client_limits(65_535, 65_535);
    limits
        .floods
        .set(FloodKind::Unknown, Flood { burst: 10_000, per_second: 0, per_useful_frame: 0 });
    let (client, mut connection) = Client::<Told>::connect(Peer::default(), limits);
    let say = |connection: &mut Connection<Peer, _>, kind: u8, payload: &[u8]| {
        let said = &mut connection.io.said;
        said.extend(Head { length: payload.len(), kind, flags: 0, stream: 0 }.bytes());
        said.extend(payload);
    };
    let streams = 1_000_u32;
    let calls: Vec<_> = (0..streams).map(|_| Told::default()).collect();
    for call in &calls {
        let request = Request::post("http://a/b").body(()).unwrap();
        assert!(client.open(request, call.clone()).is_ok());
    }
    say(&mut connection, kind::SETTINGS, &[]);
    let settle = async |connection: &mut Connection<Peer, _>| {
        for _ in 0..20 {
            let turn = poll_fn(|cx| Poll::Ready(Pin::new(&mut *connection).poll(cx))).await;
            assert!(turn.is_pending());
            tokio::task::yield_now().await;
        }
    };
    settle(&mut connection).await;
    assert_eq!(connection.streams.len(), calls.len());
    // Each one lower, and each said again, and then one that it must not say (RFC 9113, 6.8).
    let lasts = (0..2 * streams).rev();
    for last in lasts.flat_map(|last| [last, last]).chain([ANY]).filter(|last| *last > 0) {
        say(&mut connection, kind::GOAWAY, &[last.to_be_bytes(), [0; 4]].concat());
    }
    settle(&mut connection).await;
    assert!(connection.io.said.is_empty());
    assert_eq!(connection.index.keys().copied().collect::<Vec<_>>(), [1]);
    for (number, call) in calls.iter().enumerate() {
        let told = call.0.lock().unwrap().clone();
        assert_eq!(told, (number > 0).then_some(Err(BodyError::Refused)), "{number}");
    }
    let looked_at = connection.given_up_looks;
    assert!(looked_at <= calls.len(), "{looked_at} looks at {streams} streams");
}

#[tokio::test]
async fn a_client_whose_stream_ids_are_used_up_opens_no_more_and_says_so() {
    let (client, mut connection) =
        Client::<Told>::connect(Peer::default(), client_limits(65_535, 65_535));
    connection.next_own_stream = ANY;
    let calls = [Told::default(), Told::default()];
    for call in &calls {
        assert!(client.open(Request::post("http://a/b").body(()).unwrap(), call.clone()).is_ok());
    }
    let turn = poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll(cx))).await;
    assert!(turn.is_pending());
    let begun = inside::frames(&connection.io.got[super::super::frame::PREFACE.len()..])
        .filter(|(found, ..)| *found == kind::HEADERS);
    assert_eq!(begun.map(|(_, _, stream, _)| stream).collect::<Vec<_>>(), [ANY]);
    let told = calls.map(|call| call.0.lock().unwrap().clone());
    assert_eq!(told, [None, Some(Err(BodyError::GoAway(ErrorCode::NO_ERROR)))]);
    let request = Request::post("http://a/b").body(()).unwrap();
    assert!(client.open(request, Told::default()).is_err());
}

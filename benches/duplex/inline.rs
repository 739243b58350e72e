//! The same connection with the inline transport at both ends.
//!
//! The service is the generated one around the same handler. The client is the transport's own, used
//! as the load generator uses it: messages are framed, sent and checked in the connection's task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use bidi_echo::config::{CONNECTION_FLOW_WINDOW_BYTES, STREAM_FLOW_WINDOW_BYTES};
use bidi_echo::proto::echo::EchoMessage;
use bidi_echo::proto::echo::echo_server::EchoServer;
use bidi_echo::transport::{BodyError, Client, Exchange, Limits, Sending, Server, client_limits};
use bytes::Bytes;
use http::{Extensions, HeaderMap, Request, StatusCode};
use prost::Message;
use tokio::io::duplex;
use tokio::sync::Notify;

use super::{Echo, PIPE_BYTES};

/// All streams of a connection, as whoever waits for their echoes sees them.
pub(crate) struct Streams {
    pace: Arc<Pace>,
    /// The connection ends when it is dropped.
    _client: Client<Call>,
}

/// How far the streams may go, and how many have got there.
#[derive(Debug)]
struct Pace {
    streams: usize,
    /// Messages of each stream, since it was opened.
    target: AtomicU64,
    finished: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
    all_finished: Notify,
}

impl Streams {
    /// Must be called within the runtime that will drive both ends.
    pub(crate) fn open(streams: usize, payload: &Bytes) -> Self {
        let (client_end, server_end) = duplex(PIPE_BYTES);
        let server = Server::new(Limits::default());
        let service = EchoServer::new(Echo);
        tokio::spawn(server.serve_connection(server_end, service, Extensions::new()));
        let limits = client_limits(STREAM_FLOW_WINDOW_BYTES, CONNECTION_FLOW_WINDOW_BYTES);
        let (client, connection) = Client::new(client_end, limits);
        tokio::spawn(connection);

        let pace = Arc::new(Pace {
            streams,
            target: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            waiting: Mutex::default(),
            all_finished: Notify::new(),
        });
        for _ in 0..streams {
            let request = Request::post("http://in-memory/echo.v1.Echo/Bidi")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .expect("a request");
            client.open(request, Call::new(pace.clone(), payload)).expect("just connected");
        }
        Streams { pace, _client: client }
    }

    pub(crate) async fn ping_pong(&mut self, rounds: u64) {
        let Pace { target, finished, waiting, all_finished, .. } = &*self.pace;
        finished.store(0, Relaxed);
        target.fetch_add(rounds, Relaxed);
        let waiting = std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
        all_finished.notified().await;
    }
}

/// One stream: a message in flight, and the next when its echo has come.
#[derive(Debug)]
struct Call {
    pace: Arc<Pace>,
    /// A message as it is on the wire, out and back.
    framed: Vec<u8>,
    sent: u64,
    received: u64,
    /// Bytes of the echo at hand that have come.
    came: usize,
}

impl Call {
    fn new(pace: Arc<Pace>, payload: &Bytes) -> Self {
        let encoded = EchoMessage { payload: payload.clone() }.encode_to_vec();
        let length = u32::try_from(encoded.len()).expect("below 4 GiB").to_be_bytes();
        let framed = [&[0], &length[..], &encoded].concat();
        Call { pace, framed, sent: 0, received: 0, came: 0 }
    }
}

impl Exchange for Call {
    fn head(&mut self, status: StatusCode, _: &HeaderMap, _: Instant) {
        assert_eq!(status, StatusCode::OK);
    }

    fn data(&mut self, mut payload: &[u8], _: Instant) {
        while !payload.is_empty() {
            let expected = &self.framed[self.came..];
            let (part, rest) = payload.split_at(expected.len().min(payload.len()));
            assert!(part == &expected[..part.len()], "the echo differs");
            payload = rest;
            self.came += part.len();
            if self.came < self.framed.len() {
                return;
            }
            self.came = 0;
            self.received += 1;
        }
        let pace = &self.pace;
        if self.received == pace.target.load(Relaxed)
            && pace.finished.fetch_add(1, Relaxed) + 1 == pace.streams
        {
            pace.all_finished.notify_one();
        }
    }

    /// The benches drop their runtime, and the streams never end before.
    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, _: Instant) {
        panic!("the stream ended: {end:?}");
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        frame: &mut Vec<u8>,
        _: usize,
        _: Instant,
    ) -> Sending {
        if self.sent > self.received {
            return Sending::Wait;
        }
        if self.sent < self.pace.target.load(Relaxed) {
            frame.extend_from_slice(&self.framed);
            self.sent += 1;
        } else {
            let mut waiting = self.pace.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(cx.waker().clone());
        }
        Sending::Wait
    }
}

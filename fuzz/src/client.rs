//! A client's connection under test: every stream is told what happened to it, in an order.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};

use crate::check::Endpoint;
use crate::drive::{Pipe, drive, with_runtime};
use crate::script::{Cuts, Event};
use crate::transport::{BodyError, Client, Exchange, Limits, Sending, client_limits};

/// Streams that are opened at once.
const STREAMS: usize = 6;

/// Lets a client's connection live through `events`.
pub fn run(has_small_limits: bool, keeps_handle: bool, seed: u8, events: Vec<Event>) {
    let limits = match has_small_limits {
        true => Limits { header_list_bytes_max: 512, ..client_limits(1_024, 8_192) },
        false => client_limits(1 << 20, 1 << 24),
    };
    // A peer that takes nothing more is noticed by this timer alone.
    let limits = Limits { stall_timeout: Some(Duration::from_secs(60)), ..limits };
    let ended = Arc::new(AtomicUsize::new(0));
    with_runtime(async {
        let pipe = Pipe::new(Endpoint::Client, &limits, Cuts::new(seed));
        let (client, connection) = Client::new(pipe.clone(), limits);
        for stream in 0..STREAMS {
            let call = Call { ended: ended.clone(), ..Call::new(stream) };
            let request = Request::post("http://fuzz/a/b").body(()).expect("a request");
            client.open(request, call).expect("the connection has not begun");
        }
        let handle = Cell::new(keeps_handle.then_some(client));
        drive(connection, &pipe, events).await;
        drop(handle);
    });
    assert_eq!(ended.load(SeqCst), STREAMS, "streams that were not told of their end");
}

/// One stream's side: sends a little in each of the ways, and checks the order of what it is told.
#[derive(Debug)]
struct Call {
    stream: usize,
    turns: usize,
    has_head: bool,
    has_ended: bool,
    ended: Arc<AtomicUsize>,
}

impl Call {
    fn new(stream: usize) -> Self {
        Call { stream, turns: 0, has_head: false, has_ended: false, ended: Arc::default() }
    }
}

impl Exchange for Call {
    fn head(&mut self, status: StatusCode, _: &HeaderMap, _: Instant) {
        assert!(!self.has_head && !self.has_ended && !status.is_informational());
        self.has_head = true;
    }

    fn data(&mut self, payload: &[u8], _: Instant) {
        assert!(self.has_head && !self.has_ended && !payload.is_empty());
    }

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, _: Instant) {
        assert!(!self.has_ended && (self.has_head || end.is_err()));
        self.has_ended = true;
        self.ended.fetch_add(1, SeqCst);
    }

    fn poll_send(
        &mut self,
        _: &mut Context<'_>,
        frame: &mut Vec<u8>,
        room: usize,
        _: Instant,
    ) -> Sending {
        assert!(!self.has_ended);
        self.turns += 1;
        match (self.turns, self.stream) {
            (1, _) => {
                frame.extend_from_slice(b"hello");
                Sending::More
            }
            (2, 1) => Sending::End,
            // More than there is room for.
            (2, 2) => {
                frame.resize(frame.len() + room + 100, 2);
                Sending::More
            }
            (2 | 3, 3) => Sending::Chunk(Bytes::from_static(&[3; 40_000])),
            (4, 3) => Sending::End,
            _ => Sending::Wait,
        }
    }
}

//! SIGTERM under load, fifty times: no message that the server took is left without its echo.
//!
//! Clients keep all cores busy and send without pause, most until the server ends their streams,
//! some until the signal. After each round the server's own counters must equal what they received.
//! A binary of its own: no other test runs beside that load.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "it/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bidi_echo::config::Transport;
use bidi_echo::proto::echo::EchoMessage;
use bidi_echo::proto::echo::echo_client::EchoClient;
use bytes::Bytes;
use rstest::rstest;
use rustix::process::Signal;
use support::binary::Binary;
use support::wire::{Client, ECHO, echo_message, frame};
use support::{INLINE, TASK, TONIC, soon, until};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

const ROUNDS: usize = 50;

const DRAIN_LIMIT: Duration = Duration::from_millis(600);

/// What a busy machine may add to the limit: this test leaves no core idle, and others run too.
const SCHEDULING_MARGIN: Duration = Duration::from_millis(100);

/// At most 10,000 messages in flight on a connection: what a client that shares the cores with the
/// server can read in the flush time. Unread in a frame each, 239 bytes less than h2 finds long enough, they use up 2.4 MB
/// of what it takes, which is half of the connection's window.
const LOADS: [Load; 5] = [
    Load { connections: 2, streams_per_connection: 8, payload_bytes: 8, in_flight_max: 1_000 },
    Load { connections: 4, streams_per_connection: 25, payload_bytes: 100, in_flight_max: 100 },
    Load { connections: 1, streams_per_connection: 100, payload_bytes: 8, in_flight_max: 100 },
    Load { connections: 3, streams_per_connection: 10, payload_bytes: 16 << 10, in_flight_max: 20 },
    Load { connections: 2, streams_per_connection: 500, payload_bytes: 8, in_flight_max: 20 },
];

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_leaves_no_message_without_its_echo(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    for round in 0..ROUNDS {
        check(transport, round, LOADS[round % LOADS.len()]).await;
    }
}

async fn check(transport: Transport, round: usize, load: Load) {
    let limit = format!("{}ms", DRAIN_LIMIT.as_millis());
    let server = Binary::start(transport, &["--drain-limit", &limit]);
    let progress = Arc::new(Progress::default());
    let mut streams = JoinSet::new();
    for connection in 0..load.connections {
        if (round + connection).is_multiple_of(2) {
            open_raw(server.address, load, &progress, &mut streams).await;
        } else {
            open_with_tonic(server.address, load, &progress, &mut streams).await;
        }
    }
    let all = load.connections * load.streams_per_connection;
    until("every stream echoes", async || progress.streams_echoing.load(Relaxed) == all).await;

    server.signal(Signal::TERM);
    let signalled = Instant::now();
    progress.signalled.store(true, Relaxed);
    let exit = server.exit().await;
    let took = exit.at - signalled;
    let context = format!("{transport:?}, round {round}, {load:?}, took {took:?}, {}", exit.stdout);
    let mut received = 0;
    while let Some(ended) = soon(streams.join_next()).await {
        let ended = ended.unwrap();
        let expected = matches!(ended.status, Ok(Code::Ok | Code::Unavailable));
        assert!(expected, "{context}: a stream ended with {ended:?}");
        received += ended.received;
    }

    let summary = exit.summary();
    let counted = (summary["messages_in"], summary["messages_out"]);
    assert_eq!(exit.status.code(), Some(0), "{context}");
    assert_eq!(counted, (received, received), "{context}");
    assert!(took <= DRAIN_LIMIT + SCHEDULING_MARGIN, "{context}");
}

/// What the clients of one round do.
#[derive(Clone, Copy, Debug)]
struct Load {
    connections: usize,
    streams_per_connection: usize,
    payload_bytes: usize,
    /// Messages sent and not yet echoed, per stream.
    in_flight_max: usize,
}

impl Load {
    fn payload(self) -> Vec<u8> {
        vec![7; self.payload_bytes]
    }
}

/// What the clients of one round have in common.
#[derive(Default)]
struct Progress {
    /// Streams that saw an echo: from then on GOAWAY cannot refuse them.
    streams_echoing: AtomicUsize,
    signalled: AtomicBool,
}

impl Progress {
    /// Whether this stream sends on: every fourth half-closes when the signal was sent.
    fn goes_on(&self, stream: usize) -> bool {
        !stream.is_multiple_of(4) || !self.signalled.load(Relaxed)
    }
}

/// How a stream ended, as its client saw it; `Err` says what came instead of a status.
#[derive(Debug)]
struct Ended {
    received: u64,
    status: Result<Code, String>,
}

/// On h2 alone, one DATA frame per message.
async fn open_raw(
    address: SocketAddr,
    load: Load,
    progress: &Arc<Progress>,
    streams: &mut JoinSet<Ended>,
) {
    let client = Client::with_windows(address, 1 << 20, 8 << 20).await;
    for stream in 0..load.streams_per_connection {
        let (mut sender, mut replies) = client.open(ECHO).await.split();
        let message = frame(&echo_message(&load.payload()));
        let room = Arc::new(Semaphore::new(load.in_flight_max));
        let (sending, may_send) = (progress.clone(), room.clone());
        tokio::spawn(async move {
            while sending.goes_on(stream) {
                let Ok(room) = may_send.acquire().await else { return };
                room.forget();
                // An error means that the stream is over; the receiving half knows how.
                if sender.send_when_possible(message.clone()).await.is_err() {
                    return;
                }
            }
            let _ = sender.try_half_close();
        });
        let progress = progress.clone();
        streams.spawn(async move {
            let mut received = 0;
            let status = loop {
                match replies.try_reply().await {
                    Ok(Some(_)) => received += 1,
                    Ok(None) => break replies.try_end().await,
                    Err(error) => break Err(error),
                }
                room.add_permits(1);
                if received == 1 {
                    progress.streams_echoing.fetch_add(1, Relaxed);
                }
            };
            room.close();
            let status = status.map(|status| Code::from_i32(status.code));
            Ended { received, status: status.map_err(|error| error.to_string()) }
        });
    }
}

/// On tonic's client, which packs messages into larger frames.
async fn open_with_tonic(
    address: SocketAddr,
    load: Load,
    progress: &Arc<Progress>,
    streams: &mut JoinSet<Ended>,
) {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let client = EchoClient::new(channel.connect().await.unwrap());
    for stream in 0..load.streams_per_connection {
        let room = Arc::new(Semaphore::new(load.in_flight_max));
        let message = EchoMessage { payload: Bytes::from(load.payload()) };
        let sending = (progress.clone(), room.clone());
        let messages = futures_util::stream::unfold(sending, move |(progress, room)| {
            let message = message.clone();
            async move {
                room.acquire().await.ok()?.forget();
                progress.goes_on(stream).then_some((message, (progress, room)))
            }
        });
        let (mut client, progress) = (client.clone(), progress.clone());
        streams.spawn(async move {
            let mut received = 0;
            let mut replies = match client.bidi(messages).await {
                Ok(response) => response.into_inner(),
                Err(status) => return Ended { received, status: Ok(status.code()) },
            };
            let status = loop {
                match replies.message().await {
                    Ok(Some(_)) => received += 1,
                    Ok(None) => break Code::Ok,
                    Err(status) => break status.code(),
                }
                room.add_permits(1);
                if received == 1 {
                    progress.streams_echoing.fetch_add(1, Relaxed);
                }
            };
            Ended { received, status: Ok(status) }
        });
    }
}

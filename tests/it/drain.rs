//! How a server ends: in time for whoever finishes, and in time in spite of whoever does not.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::support::binary::{Binary, command};
use crate::support::http2::{self, GOAWAY, PING, SETTINGS};
use crate::support::wire::{Call, Client, ECHO, Status, echo_message, frame, grpc_request};
use crate::support::{INLINE, Server, TASK, TONIC, finished, soon, until};
use bidi_echo::config::Config;
use bidi_echo::config::Transport;
use bidi_echo::serve::Summary;
use rstest::rstest;
use rustix::process::Signal;
use tokio::sync::Semaphore;

const UNAVAILABLE: i32 = 14;

/// Long enough for what is to happen within it on a busy machine.
const LIMIT: Duration = Duration::from_millis(400);

/// Messages sent and not yet echoed: what a client that shares the cores with the server can read in
/// the last part of [`LIMIT`].
const IN_FLIGHT_MAX: usize = 1_000;

/// What a busy machine may add to a limit.
const SCHEDULING_MARGIN: Duration = Duration::from_millis(200);

fn config(transport: Transport, drain_limit: Duration) -> Config {
    Config { transport, drain_limit, ..Config::default() }
}

/// A stream that has had one echo.
async fn echoing(client: &Client) -> Call {
    let mut call = client.open(ECHO).await;
    call.send(frame(&echo_message(b"hello")));
    assert_eq!(call.echoed().await, b"hello"[..]);
    call
}

/// Waits until the listener of `address` is closed.
async fn refused(address: SocketAddr) {
    until("connections are refused", async || TcpStream::connect(address).is_err()).await;
}

fn assert_in_time_and_nothing_left(summary: &Summary) {
    assert!(summary.drained_in <= LIMIT + SCHEDULING_MARGIN, "{summary}");
    assert_eq!((summary.stats.connections_open, summary.stats.streams_open), (0, 0));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_half_closes_in_time_ends_with_ok(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, crate::support::DEADLINE)).await;
    let address = server.address;
    let client = Client::connect(address).await;
    let mut call = echoing(&client).await;
    let drained = server.drain();
    refused(address).await;
    // Streams that are open go on as before.
    for number in 0..100u32 {
        call.send(frame(&echo_message(&number.to_be_bytes())));
        assert_eq!(call.echoed().await, number.to_be_bytes()[..]);
    }
    call.half_close();
    assert_eq!(call.end().await, Status::ok());
    assert_eq!(client.closed().await.map_err(|error| error.to_string()), Ok(()));
    let summary = soon(drained).await.unwrap();
    assert_eq!((summary.stats.messages_in, summary.stats.messages_out), (101, 101));
    assert_eq!((summary.stats.connections_open, summary.stats.streams_open), (0, 0));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_takes_no_new_streams_once_the_drain_began(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, LIMIT)).await;
    let client = Client::connect(server.address).await;
    let mut call = echoing(&client).await;
    let drained = server.drain();
    until("new streams are refused", async || match client.try_request(grpc_request(ECHO)).await {
        Ok(mut call) => call.try_end().await.is_err(),
        Err(_) => true,
    })
    .await;
    assert_eq!(call.end().await.code, UNAVAILABLE);
    soon(drained).await.unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_never_ends_is_ended_with_unavailable_after_its_last_echo(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, LIMIT)).await;
    let client = Client::connect(server.address).await;
    let (mut sender, mut replies) = client.open(ECHO).await.split();
    let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let may_send = room.clone();
    let sending = tokio::spawn(async move {
        let message = frame(&echo_message(b"again"));
        while let Ok(room) = may_send.acquire().await {
            room.forget();
            if sender.send_when_possible(message.clone()).await.is_err() {
                break;
            }
        }
    });
    assert!(replies.try_reply().await.unwrap().is_some());
    let drained = server.drain();
    let mut received = 1;
    while replies.try_reply().await.unwrap().is_some() {
        received += 1;
        room.add_permits(1);
    }
    room.close();
    assert_eq!(replies.try_end().await.unwrap().code, UNAVAILABLE);
    soon(sending).await.unwrap();
    drop((replies, client));
    let summary = soon(drained).await.unwrap();
    assert_eq!((summary.stats.messages_in, summary.stats.messages_out), (received, received));
    assert_eq!(finished(&summary, "UNAVAILABLE"), 1);
    assert_in_time_and_nothing_left(&summary);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_cannot_hold_the_server(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, LIMIT)).await;
    let client = Client::with_windows(server.address, 65_535, 65_535).await;
    let mut call = client.open(ECHO).await;
    for _ in 0..20 {
        call.send(frame(&echo_message(&[7; 64 << 10])));
    }
    call.head().await;
    let summary = server.stop().await;
    assert!(summary.stats.messages_in >= 1);
    assert_in_time_and_nothing_left(&summary);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_no_preface_cannot_hold_the_server(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, LIMIT)).await;
    let mut silent = TcpStream::connect(server.address).unwrap();
    let mut half_a_preface = TcpStream::connect(server.address).unwrap();
    half_a_preface.write_all(b"PRI * HTTP").unwrap();
    // Accepted in order, so both are accepted when the third is served.
    let third = Client::connect(server.address).await;
    third.echo(b"here").await;
    drop(third);
    let summary = server.stop().await;
    assert_eq!(summary.stats.connections_accepted, 3);
    assert_in_time_and_nothing_left(&summary);
    let _ = silent.write_all(b"kept open until here");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_answer_the_shutdown_ping_cannot_hold_the_server(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, LIMIT)).await;
    let address = server.address;
    let (greeted, greeting) = tokio::sync::oneshot::channel();
    let client = tokio::task::spawn_blocking(move || {
        let mut tcp = http2::connect(address);
        // The server's own, which may leave before it has read a byte, and its ACK of ours: whom it has
        // not heard yet it waits for less.
        http2::read_until(&mut tcp, SETTINGS);
        http2::read_until(&mut tcp, SETTINGS);
        greeted.send(()).unwrap();
        let goaway = http2::read_until(&mut tcp, GOAWAY);
        http2::read_until(&mut tcp, PING);
        (goaway, tcp)
    });
    soon(greeting).await.unwrap();
    let drained = server.drain();
    let (goaway, _tcp) = soon(client).await.unwrap();
    // Last stream 2^31 - 1, "the streams you have opened are fine", and NO_ERROR.
    assert_eq!(goaway.payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let summary = soon(drained).await.unwrap();
    assert_in_time_and_nothing_left(&summary);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_zero_cuts_off_at_once(#[values(INLINE, TASK, TONIC)] transport: Transport) {
    let server = Server::start(config(transport, Duration::ZERO)).await;
    let client = Client::connect(server.address).await;
    let _call = echoing(&client).await;
    assert_in_time_and_nothing_left(&server.stop().await);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_stops_without_waiting_for_the_limit(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(config(transport, crate::support::DEADLINE)).await;
    let idle = Client::connect(server.address).await;
    idle.echo(b"used once").await;
    let summary = server.stop().await;
    assert!(summary.drained_in < crate::support::DEADLINE / 2, "{summary}");
    drop(idle);
}

async fn drains_at(transport: Transport, signal: Signal) {
    let server = Binary::start(transport, &["--drain-limit", "400ms"]);
    let client = Client::connect(server.address).await;
    let mut finishing = echoing(&client).await;
    let mut staying = echoing(&client).await;
    server.signal(signal);
    refused(server.address).await;
    finishing.half_close();
    assert_eq!(finishing.end().await, Status::ok());
    assert_eq!(staying.end().await.code, UNAVAILABLE);
    drop((finishing, staying, client));
    let exit = server.exit().await;
    assert_eq!(exit.status.code(), Some(0));
    let summary = exit.summary();
    let named = ["streams", "messages_in", "messages_out", "OK", "UNAVAILABLE"];
    assert_eq!(named.map(|name| summary[name]), [2, 2, 2, 1, 1]);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_exits_with_0_and_one_line(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    drains_at(transport, Signal::TERM).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn sigint_drains_as_sigterm_does(#[values(INLINE, TASK, TONIC)] transport: Transport) {
    drains_at(transport, Signal::INT).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_server_at_once(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Binary::start(transport, &["--drain-limit", "1h"]);
    let client = Client::connect(server.address).await;
    let _call = echoing(&client).await;
    server.signal(Signal::TERM);
    refused(server.address).await;
    server.signal(Signal::INT);
    let exit = server.exit().await;
    assert_eq!((exit.status.code(), exit.stdout.as_str()), (Some(1), ""));
}

/// As behind `bidi-echo 2>&1 | head -1`.
#[rstest]
#[case(&[Signal::TERM], 0)]
#[case(&[Signal::TERM, Signal::INT], 1)]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_log_nobody_reads_any_more_ends_as_any_other(
    #[values(INLINE, TONIC)] transport: Transport,
    #[case] signals: &[Signal],
    #[case] code: i32,
) {
    let limit = if signals.len() > 1 { "1h" } else { "100ms" };
    let server = Binary::start_unheard(transport, &["--drain-limit", limit]);
    let client = Client::connect(server.address).await;
    let _call = echoing(&client).await;
    for signal in signals {
        server.signal(*signal);
        refused(server.address).await;
    }
    assert_eq!(server.exit().await.status.code(), Some(code));
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_clear_line_and_exit_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = command().args(["--listen", &address]).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let stderr = String::from_utf8(ended.stderr).unwrap();
    let expected = format!(
        "bidi-echo: cannot bind {address}: Address already in use (os error 98); \
         stop what listens there or pass another --listen\n"
    );
    assert_eq!(stderr, expected);
}

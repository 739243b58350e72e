//! The binary from outside: flags and environment, log, metrics page, and too few descriptors.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::binary::{Binary, PATH, chosen, command};
use crate::support::peer::{self, INITIAL_WINDOW_SIZE, Peer};
use crate::support::wire::{Call, Client, ECHO, Status, echo_message, frame};
use crate::support::{INLINE, TASK, TONIC, until};
use bidi_echo::config::Transport;
use rstest::rstest;
use rustix::process::Signal;

#[rstest]
#[tokio::test]
async fn flags_come_from_the_environment_too(#[values(INLINE, TASK, TONIC)] transport: Transport) {
    let mut server = command();
    server
        .env("BIDI_ECHO_LISTEN", "127.0.0.1:0")
        .env("BIDI_ECHO_TRANSPORT", transport.name())
        .env("BIDI_ECHO_THREADS", "1")
        .env("BIDI_ECHO_INBOUND_MESSAGE_BYTES_MAX", "1KiB")
        .env("BIDI_ECHO_MAX_CONCURRENT_STREAMS", "3")
        .env("BIDI_ECHO_DRAIN_LIMIT", "200ms")
        .env("BIDI_ECHO_METRICS_LISTEN", "127.0.0.1:0")
        .env("BIDI_ECHO_REFLECTION", "true");
    if let Transport::Inline(placement) = transport {
        server.env("BIDI_ECHO_PLACEMENT", placement.name());
    }
    let server = Binary::from_command(server);
    let client = Client::connect(server.address).await;
    assert_eq!(client.echo(&[7; 1_000]).await, [7; 1_000][..]);
    assert_eq!(client.max_concurrent_streams(), 3);
    let mut call = client.open(ECHO).await;
    call.send(frame(&echo_message(&[7; 1_024])));
    assert_eq!(call.end().await.code, 8);
    let mut reflection =
        client.open("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo").await;
    reflection.half_close();
    assert_eq!(reflection.end().await, Status::ok());
    assert!(metrics(server.address_after("metrics"), "/metrics").is_ok());
    // Held open: only the limit ends it.
    let _held = client.open(ECHO).await;
    server.signal(Signal::TERM);
    let exit = server.exit().await;
    assert_eq!(exit.status.code(), Some(0));
    let (transport, placement) = (transport.name(), transport.placement().name());
    let begins = format!("stopped: transport={transport} placement={placement} ");
    assert!(exit.stdout.starts_with(&begins), "{}", exit.stdout);
}

#[test]
fn a_flag_beats_its_environment_variable() {
    let mut server = command();
    server.env("BIDI_ECHO_LISTEN", "nonsense").env("BIDI_ECHO_LOG_FORMAT", "json");
    server.args(["--listen", "127.0.0.1:0", "--log-format", "text"]);
    let server = Binary::from_command(server);
    assert_ne!(server.address.port(), 0);
}

#[test]
fn bad_usage_is_named_and_ends_with_exit_code_2() {
    let check = |flags: &[&str], expected: &str| {
        let ended = command().args(flags).output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{flags:?}");
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert!(stderr.contains(expected), "{flags:?}: {stderr}");
        assert!(ended.stdout.is_empty());
    };
    check(&["--no-such-flag"], "unexpected argument '--no-such-flag'");
    check(&["--drain-limit", "soon"], "invalid value 'soon' for '--drain-limit <TIME>'");
    check(
        &["--threads", "0"],
        "bidi-echo: --threads 0: need 1 to 1024 worker threads; more than cores seldom help\n",
    );
}

#[tokio::test]
async fn a_json_log_is_one_object_a_line() {
    let server = Binary::start(TONIC, &["--log-format", "json"]);
    server.signal(Signal::TERM);
    server.line(|line| line.contains("draining"));
    let log = server.log();
    assert!(log.len() >= 2, "{log:#?}");
    for line in &log {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
    assert_eq!(server.exit().await.status.code(), Some(0));
}

#[rstest]
#[tokio::test]
async fn the_metrics_page_equals_what_was_sent(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Binary::start(transport, &["--metrics-listen", "127.0.0.1:0"]);
    let page = server.address_after("metrics");
    let client = Client::connect(server.address).await;
    for _ in 0..3 {
        client.echo(b"12345678").await;
    }
    let mut bad = client.open("/no.such.Service/Method").await;
    bad.half_close();
    assert_eq!(bad.end().await.code, 12);
    let mut reset = client.open(ECHO).await;
    reset.send(frame(&echo_message(b"12")));
    assert_eq!(reset.echoed().await, b"12"[..]);
    reset.reset();
    let mut open = client.open(ECHO).await;
    open.head().await;

    let of_transport = [
        ("transport_streams_opened_total", 6),
        ("transport_streams_closed_total", 5),
        ("transport_streams_reset_total", 1),
        ("transport_streams_broken_total", 0),
        ("transport_streams_refused_total", 0),
        ("transport_buffered_bytes", 0),
        ("transport_panics_total", 0),
        ("transport_reads_kept_total", 0),
    ];
    let of_server = [
        ("connections_accepted_total", 1),
        ("connections_open", 1),
        ("streams_open", 1),
        ("streams_finished_total{status=\"OK\"}", 3),
        ("streams_finished_total{status=\"UNIMPLEMENTED\"}", 1),
        ("streams_finished_total{status=\"CANCELLED\"}", 1),
        ("messages_in_total", 4),
        ("messages_out_total", 4),
        ("message_in_bytes_total", 3 * 10 + 4),
        ("message_out_bytes_total", 3 * 10 + 4),
    ];
    let of_transport = if transport == TONIC { &[][..] } else { &of_transport };
    let expected: Vec<_> = [&of_server[..], of_transport]
        .concat()
        .into_iter()
        .map(|(name, value)| (format!("bidi_echo_{name}"), value))
        .collect();
    let mut shown = HashMap::new();
    // A client sees its stream's end a moment before the server has counted it.
    until("the page shows what was sent", async || {
        shown = values(&metrics(page, "/metrics").unwrap());
        expected.iter().all(|(name, value)| shown.get(name) == Some(value))
    })
    .await;
    assert_eq!(shown.len(), expected.len(), "{shown:#?}");
    drop((bad, open, client));
    until("the connection is counted as closed", async || {
        values(&metrics(page, "/metrics").unwrap())["bidi_echo_connections_open"] == 0
    })
    .await;
}

/// What a client does that is let go when its time is over.
#[derive(Clone, Copy, Debug)]
enum Dawdler {
    SaysNothing,
    HalfAHeaderBlock,
    OpensNoStream,
    SaysNothingOnItsStream,
    OpensNoWindow,
}

#[rstest]
#[case("--handshake-timeout", Dawdler::SaysNothing, "goaways", "handshake_timeout")]
#[case("--header-block-timeout", Dawdler::HalfAHeaderBlock, "goaways", "header_block_timeout")]
#[case("--connection-idle-timeout", Dawdler::OpensNoStream, "goaways", "idle_connection")]
#[case("--stream-idle-timeout", Dawdler::SaysNothingOnItsStream, "streams_expired", "idle")]
#[case("--stall-timeout", Dawdler::OpensNoWindow, "streams_expired", "stalled")]
#[tokio::test]
async fn whoever_lets_a_timer_run_out_is_let_go_and_the_page_names_it(
    #[case] flag: &str,
    #[case] dawdler: Dawdler,
    #[case] metric: &str,
    #[case] reason: &str,
    #[values(INLINE, TASK)] transport: Transport,
) {
    let server = Binary::start(transport, &[flag, "100ms", "--metrics-listen", "127.0.0.1:0"]);
    let tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let mut peer = Peer::new(tcp);
    let call = peer::call(1, ECHO);
    match dawdler {
        Dawdler::SaysNothing => {}
        Dawdler::HalfAHeaderBlock => {
            peer.greet(&[]).await;
            peer.send(&peer::frame(1, 0, 1, &[])).await;
        }
        Dawdler::OpensNoStream => peer.greet(&[]).await,
        Dawdler::SaysNothingOnItsStream => {
            peer.greet(&[]).await;
            peer.send(&call).await;
            assert_eq!(peer.answer(1).await.grpc_status(), Some("14"));
        }
        Dawdler::OpensNoWindow => {
            peer.greet(&[(INITIAL_WINDOW_SIZE, 0)]).await;
            let message = frame(&echo_message(b"no room for the echo"));
            peer.send(&[call, peer::data(1, 0, &message)].concat()).await;
            assert_eq!(peer.answer(1).await.grpc_status(), Some("8"));
        }
    }
    if metric == "goaways" {
        assert_eq!(peer.goaway().await.1, reason);
    }
    let name = format!("bidi_echo_transport_{metric}_total{{reason=\"{reason}\"}}");
    let page = metrics(server.address_after("metrics"), "/metrics").unwrap();
    assert_eq!(values(&page).get(&name), Some(&1), "{page}");
}

#[test]
fn there_is_nothing_but_the_metrics_page() {
    let server = Binary::start(TONIC, &["--metrics-listen", "127.0.0.1:0"]);
    let address = server.address_after("metrics");
    assert!(metrics(address, "/metrics").is_ok());
    for path in ["/", "/metrics/", "/admin"] {
        assert_eq!(metrics(address, path).unwrap_err(), "HTTP/1.1 404 Not Found");
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_descriptors_waits_for_some_and_accepts_again(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    // The binary raises the soft limit to the hard one; `ulimit -n` lowers both.
    let mut shell = std::process::Command::new("sh");
    let script = "ulimit -n 32; exec \"$0\" --listen 127.0.0.1:0 \"$@\"";
    shell.args(["-c", script, PATH]).args(chosen(transport));
    let server = Binary::from_command(shell);
    let crowd: Vec<TcpStream> =
        (0..64).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.line(|line| line.contains("cannot accept connections"));

    let (start, ticks) = (Instant::now(), server.cpu_ticks());
    // Not a wait for something: the span over which CPU time is measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = server.cpu_ticks() - ticks;
    assert!(used <= 20, "spins: {used} ticks of 10 ms in {:?}", start.elapsed());

    drop(crowd);
    let client = Client::connect(server.address).await;
    assert_eq!(client.echo(b"back").await, b"back"[..]);
    let warnings = server.log().iter().filter(|line| line.contains("cannot accept")).count();
    assert_eq!(warnings, 1, "{:#?}", server.log());
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_streams_held_goes_back_to_the_system_while_others_go_on(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Binary::start(transport, &["--threads", "2"]);
    let lone = Client::connect(server.address).await;
    lone.echo(b"first").await;
    // Each worker's heap has a beginning of some MiB of its own, which belongs to no stream.
    drop(hold(server.address, 40, 1).await);
    let before = server.resident_bytes();
    let held = hold(server.address, 40, 250).await;
    let full = server.resident_bytes();
    assert!(full > before + (5 << 20), "10,000 streams took {} bytes", full - before);
    drop(held);
    until("three quarters have gone back", async || {
        assert_eq!(lone.echo(b"on").await, b"on"[..]);
        server.resident_bytes() <= before + (full - before) / 4
    })
    .await;
}

/// Open connections with open streams on each that have echoed a message.
async fn hold(address: SocketAddr, connections: usize, streams: usize) -> Vec<(Client, Vec<Call>)> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let client = Client::connect(address).await;
        let mut calls = Vec::new();
        for _ in 0..streams {
            let mut call = client.open(ECHO).await;
            call.send(frame(&echo_message(b"1234567")));
            calls.push(call);
        }
        for call in &mut calls {
            assert_eq!(call.echoed().await, b"1234567"[..]);
        }
        held.push((client, calls));
    }
    held
}

/// The body of `GET path`; Err: the status line, if it is not 200.
fn metrics(address: SocketAddr, path: &str) -> Result<String, String> {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
    write!(tcp, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    tcp.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.lines().next().unwrap();
    if status == "HTTP/1.1 200 OK" { Ok(body.to_owned()) } else { Err(status.to_owned()) }
}

fn values(page: &str) -> HashMap<String, u64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

//! Servers that are slow, wrong, rude or gone: loadgen says so, counts it, and ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bidi_echo::config::Transport;
use bidi_echo::proto::echo::EchoMessage;
use futures_util::{StreamExt, stream};
use loadgen::scenario::ClientName;
use rstest::rstest;
use rustix::process::Signal;
use serde_json::Value;
use tonic::Status;

use crate::support::{
    Behaviour, INLINE, Running, ServerProcess, TASK, TONIC, behaving, number, parsed, record, typed,
};

const SHORT: [&str; 8] =
    ["--streams", "4", "--messages", "400", "--warmup", "0s", "--drain-limit", "500ms"];

#[track_caller]
fn record_of(client: ClientName, behaviour: Behaviour, flags: &[&str]) -> Value {
    let server = behaving(behaviour);
    let client = typed(client);
    let target = ["--target", &server.target, "--client", &client, "--duration", "3s"];
    let args = [&target, &SHORT[..], flags].concat();
    let (exit, record) = record(&args);
    assert_eq!(exit, 1, "{record:#}");
    record
}

fn damaged(message: EchoMessage) -> EchoMessage {
    let mut payload = message.payload.to_vec();
    payload[0] ^= 0x80;
    payload.push(1);
    EchoMessage { payload: payload.into() }
}

#[rstest]
fn damaged_echoes_are_counted_as_wrong(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let replies = inbound.map(|message| message.map(damaged));
                Ok(Box::pin(replies) as _)
            })
        },
        &[],
    );
    assert_eq!(number(&record, "/measured/wrong/corrupt"), 400);
    assert_eq!(number(&record, "/measured/messages_wrong"), 400);
}

#[rstest]
fn a_message_that_is_too_large_ends_its_stream_and_what_follows_takes_no_room(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let message = |bytes| Ok(EchoMessage { payload: vec![0; bytes].into() });
                let flood = stream::repeat(message(64 << 10)).then(|message| async {
                    tokio::task::yield_now().await;
                    message
                });
                let too_large = stream::once(async move { message(5 << 20) });
                Ok(Box::pin(inbound.take(1).chain(too_large).chain(flood)) as _)
            })
        },
        &[],
    );
    assert_eq!(number(&record, "/measured/messages_received"), 4);
    let ended = &record["measured"]["statuses"];
    assert!(ended["INTERNAL"] == 4 || ended["OUT_OF_RANGE"] == 4, "{ended}");
    let rss_bytes = number(&record, "/measured/loadgen/rss_bytes_max");
    assert!(rss_bytes < 200 << 20, "{rss_bytes}");
}

#[rstest]
fn repeated_echoes_are_counted_as_wrong(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let replies = inbound.flat_map(|message| stream::iter([message.clone(), message]));
                Ok(Box::pin(replies) as _)
            })
        },
        &["--in-flight", "4"],
    );
    let wrong =
        number(&record, "/measured/wrong/duplicated") + number(&record, "/measured/wrong/unasked");
    assert_eq!(wrong, 400);
    assert_eq!(number(&record, "/measured/messages_received"), 400);
}

#[rstest]
fn skipped_echoes_are_lost_and_those_after_them_early(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let every_tenth_is_missing =
                    inbound.enumerate().filter(|(index, _)| std::future::ready(index % 10 != 3));
                let replies = every_tenth_is_missing.map(|(_, message)| message);
                Ok(Box::pin(replies) as _)
            })
        },
        &["--in-flight", "4"],
    );
    assert_eq!(number(&record, "/measured/messages_lost"), 40);
    assert_eq!(number(&record, "/measured/wrong/early"), 40);
    assert_eq!(number(&record, "/measured/messages_received"), 360);
}

#[rstest]
fn swapped_echoes_are_noticed(#[values(ClientName::Inline, ClientName::Tonic)] client: ClientName) {
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let replies = inbound.chunks(2).flat_map(|mut pair| {
                    pair.reverse();
                    stream::iter(pair)
                });
                Ok(Box::pin(replies) as _)
            })
        },
        &["--in-flight", "4"],
    );
    // Of each pair the second came early, which made the first, when it came, a stranger.
    assert_eq!(number(&record, "/measured/wrong/early"), 200);
    assert_eq!(number(&record, "/measured/messages_lost"), 200);
    assert_eq!(number(&record, "/measured/messages_wrong"), 400);
}

#[test]
fn a_backlog_on_one_shard_ends_the_load_of_all() {
    static SOME_ARE_STUCK: AtomicBool = AtomicBool::new(false);
    let server = behaving(|inbound| {
        Box::pin(async {
            // The first stream that says something hears nothing, all others do.
            let mut is_stuck = None;
            let replies = inbound.filter(move |_| {
                let first = || !SOME_ARE_STUCK.swap(true, Ordering::Relaxed);
                std::future::ready(!*is_stuck.get_or_insert_with(first))
            });
            Ok(Box::pin(replies) as _)
        })
    });
    let shape = ["--shards", "2", "--connections", "2", "--streams", "2"];
    let load = ["--rate", "10k", "--max-backlog", "2000", "--warmup", "0s"];
    let times = ["--duration", "60s", "--drain-limit", "500ms"];
    let (exit, record) =
        record(&[&["--target", &server.target][..], &shape, &load, &times].concat());
    assert_eq!(exit, 1);
    assert_eq!(number(&record, "/measured/unstable/backlog"), 1_001);
    let window_ns = number(&record, "/measured/window_ns");
    assert!(window_ns < 30_000_000_000, "the other shard went on for {window_ns} ns");
}

#[rstest]
fn a_server_that_swallows_everything_loses_everything_and_loadgen_ends(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let begin = Instant::now();
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let nothing = inbound.filter_map(|_| async { None });
                Ok(Box::pin(nothing.chain(stream::pending())) as _)
            })
        },
        &[],
    );
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(number(&record, "/measured/messages_received"), 0);
    assert_eq!(
        number(&record, "/measured/messages_lost"),
        number(&record, "/measured/messages_due")
    );
    assert_eq!(number(&record, "/measured/streams_unfinished"), 4);
}

#[rstest]
fn a_status_in_mid_stream_is_counted_and_told_once(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = record_of(
        client,
        |inbound| {
            Box::pin(async {
                let replies = inbound.take(10).chain(stream::once(async {
                    Err(Status::resource_exhausted("ten is enough"))
                }));
                Ok(Box::pin(replies) as _)
            })
        },
        &[],
    );
    assert_eq!(number(&record, "/measured/statuses/RESOURCE_EXHAUSTED"), 4);
    assert_eq!(number(&record, "/measured/messages_received"), 40);
    let failure = record["measured"]["first_failure"].as_str().unwrap();
    assert!(failure.ends_with("ended with RESOURCE_EXHAUSTED: ten is enough"), "{failure}");
    assert_eq!(record["measured"]["stopped_early"], true);
}

/// grpc-message is percent-encoded, so it may hold whatever a terminal would obey.
#[rstest]
fn what_a_server_says_stays_in_its_line(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    const FORGED: &str = "a\nvalid x\u{1b}[2J";
    let at_once = behaving(|_| Box::pin(async { Err(Status::internal(FORGED)) }));
    let later = behaving(|inbound| {
        Box::pin(async {
            let replies =
                inbound.take(10).chain(stream::once(async { Err(Status::internal(FORGED)) }));
            Ok(Box::pin(replies) as _)
        })
    });
    for server in [at_once, later] {
        let target = ["--target", &server.target, "--client", &typed(client), "--duration", "3s"];
        let output = crate::support::loadgen(&[&target, &SHORT[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("a\u{fffd}valid x\u{fffd}[2J"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}

#[rstest]
fn a_server_that_ends_its_streams_with_ok_too_early_has_failed(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record =
        record_of(client, |inbound| Box::pin(async { Ok(Box::pin(inbound.take(10)) as _) }), &[]);
    assert_eq!(number(&record, "/measured/statuses/OK"), 4);
    assert_eq!(number(&record, "/measured/messages_received"), 40);
    let failure = record["measured"]["first_failure"].as_str().unwrap();
    assert!(failure.ends_with("ended it with OK before it had echoed all"), "{failure}");
}

#[rstest]
fn a_server_that_refuses_every_stream_is_one_clear_line(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let server = behaving(|_| Box::pin(async { Err(Status::permission_denied("not you")) }));
    let output = crate::support::loadgen(&["--target", &server.target, "--client", &typed(client)]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let last = stderr.lines().last().unwrap();
    assert!(
        last.starts_with("loadgen: ") && last.ends_with("PERMISSION_DENIED: not you"),
        "{stderr}"
    );
}

/// As Ballerina does, and others (grpc/grpc-rust#515): a client that waits for them never begins.
#[rstest]
fn headers_that_come_with_the_first_message_only_are_no_reason_to_hang(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let server = behaving(|mut inbound| {
        Box::pin(async move {
            let first = inbound.next().await;
            Ok(Box::pin(stream::iter(first).chain(inbound)) as _)
        })
    });
    let client = typed(client);
    let flags = ["--target", &server.target, "--client", &client, "--duration", "3s"];
    let (exit, record) = record(&[&flags, &SHORT[..]].concat());
    assert_eq!(exit, 0, "{record:#}");
    assert_eq!(number(&record, "/measured/messages_received"), 400);
    let warnings = record["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|warning| warning["kind"] == "late_headers"), "{warnings:?}");
}

#[rstest]
fn a_server_that_dies_leaves_the_figures_until_then(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let (server, client) = (ServerProcess::start(server), typed(client));
    let flags = [
        "--target",
        &server.target,
        "--client",
        &client,
        "--streams",
        "50",
        "--warmup",
        "0s",
        "--duration",
        "60s",
        "--json",
        "-",
    ];
    let mut running = Running::start(&flags);
    running.wait_for("  2 %");
    let killed = Instant::now();
    server.signal(Signal::KILL);
    let (exit, record) = parsed(&running.finish());
    assert!(killed.elapsed() < Duration::from_secs(15), "took {:?}", killed.elapsed());
    assert_eq!(exit, 1);
    assert!(number(&record, "/measured/messages_received") > 0);
    assert_eq!(record["measured"]["stopped_early"], true);
    assert!(number(&record, "/measured/window_ns") < 30_000_000_000);
    let failure = record["measured"]["first_failure"].as_str().unwrap();
    assert!(failure.contains("UN"), "{failure}");
}

#[rstest]
fn who_asks_for_the_end_gets_it_in_order_and_the_record_is_marked(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let (server, client) = (ServerProcess::start(server), typed(client));
    let target = ["--target", &server.target, "--client", &client];
    let loads = [&["--in-flight", "2"][..], &["--rate", "2000"]];
    for (load, signal) in loads.into_iter().zip([Signal::INT, Signal::TERM]) {
        let flags = ["--warmup", "0s", "--duration", "60s", "--json", "-"];
        let mut running = Running::start(&[&target, &flags[..], load].concat());
        running.wait_for("  2 %");
        running.signal(signal);
        let (exit, record) = parsed(&running.finish());
        assert_eq!(exit, 0, "{record:#}");
        assert_eq!(record["measured"]["stopped_early"], true);
        assert_eq!(number(&record, "/measured/messages_lost"), 0);
        assert!(number(&record, "/measured/messages_received") > 0);
        assert!(number(&record, "/measured/window_ns") < 30_000_000_000);
    }
}

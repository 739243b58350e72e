//! Every message is accounted for: loadgen's counts against the server's own.

use bidi_echo::config::Transport;
use loadgen::scenario::ClientName;
use rstest::rstest;
use serde_json::Value;

use crate::support::{INLINE, Pair, TASK, TONIC, number};

#[track_caller]
fn check_nothing_lost(pair: Pair, args: &[&str]) -> Value {
    let (exit, record, summary) = pair.run(args);
    let failure = &record["measured"]["first_failure"];
    assert_eq!(exit, 0, "{failure}, {}", record["measured"]["statuses"]);
    for count in ["messages_lost", "messages_wrong", "streams_unfinished"] {
        assert_eq!(number(&record, &format!("/measured/{count}")), 0, "{count}");
    }
    let received = number(&record, "/measured/messages_received");
    assert!(received > 0);
    let histogram = number(&record, "/measured/service_time/count");
    assert_eq!(histogram, received, "every echo of the measurement is in the histogram");
    let per_stream = record["measured"]["echoes_per_stream"].as_array().unwrap();
    assert_eq!(per_stream.iter().map(|echoes| echoes.as_u64().unwrap()).sum::<u64>(), received);
    assert_eq!(record["measured"]["stopped_early"], false);
    assert_eq!(summary.stats.messages_in, summary.stats.messages_out);
    assert_eq!(summary.stats.connections_open, 0);
    record
}

#[track_caller]
fn check_counts_equal_the_servers(pair: Pair, args: &[&str], expected: u64) {
    let (exit, record, summary) = pair.run(&[&["--warmup", "0s"], args].concat());
    assert_eq!(exit, 0);
    let sent = number(&record, "/measured/messages_sent");
    let received = number(&record, "/measured/messages_received");
    let counted = [summary.stats.messages_in, summary.stats.messages_out, sent, received];
    assert_eq!(counted, [expected; 4]);
}

#[rstest]
fn a_million_messages_equal_the_servers_counters(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = ["--messages", "1000000", "--streams", "100", "--in-flight", "16"];
    check_counts_equal_the_servers(Pair { server, client }, &flags, 1_000_000);
}

#[rstest]
fn idle_streams_echo_once_and_stay_open_beside_the_load(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = ["--streams", "4", "--connections", "2", "--duration", "1s", "--warmup", "0s"];
    let idle = ["--idle-streams", "301", "--idle-connections", "5", "--shards", "2"];
    let (exit, record, summary) = Pair { server, client }.run(&[&flags[..], &idle].concat());
    assert_eq!(exit, 0, "{record:#}");
    let received = number(&record, "/measured/messages_received");
    assert_eq!(summary.stats.messages_out, received + 301);
    assert_eq!(number(&record, "/measured/statuses/OK"), 4 + 301);
    assert_eq!(number(&record, "/measured/first_message/count"), 4 + 301);
    assert_eq!(number(&record, "/measured/connect/count"), 2 + 5);
    assert_eq!(record["measured"]["echoes_per_stream"].as_array().unwrap().len(), 4);
    assert_eq!(number(&record, "/scenario/idle_streams"), 301);
}

#[rstest]
fn an_open_loop_of_so_many_messages_equals_the_servers_counters_too(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = ["--messages", "10001", "--streams", "7", "--rate", "20k", "--arrivals", "poisson"];
    check_counts_equal_the_servers(Pair { server, client }, &flags, 10_001);
}

#[rstest]
fn fewer_messages_than_streams_leave_the_rest_empty(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    check_counts_equal_the_servers(
        Pair { server, client },
        &["--messages", "3", "--streams", "10"],
        3,
    );
}

#[rstest]
fn five_thousand_messages_in_flight_on_one_stream_lose_nothing(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = ["--streams", "1", "--in-flight", "5000", "--duration", "1s", "--warmup", "200ms"];
    check_nothing_lost(Pair { server, client }, &flags);
}

#[rstest]
fn a_lone_stream_that_is_done_at_once_has_not_stopped_early(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    check_nothing_lost(
        Pair { server, client },
        &["--streams", "1", "--duration", "300ms", "--warmup", "0s"],
    );
}

#[rstest]
fn three_thousand_streams_on_one_connection_lose_nothing(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags =
        ["--streams", "3000", "--connections", "1", "--duration", "1s", "--warmup", "200ms"];
    check_nothing_lost(Pair { server, client }, &flags);
}

#[rstest]
fn every_payload_size_comes_back_on_both_contracts(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    for (contract, largest) in [("echo", "4194299"), ("chat", "4194291")] {
        for payload in ["0", "1", "7", "1000", "1MiB", largest] {
            let flags = [
                "--contract",
                contract,
                "--payload",
                payload,
                "--streams",
                "2",
                "--in-flight",
                "2",
                "--messages",
                "20",
                "--warmup",
                "0s",
            ];
            check_nothing_lost(Pair { server, client }, &flags);
        }
    }
}

#[rstest]
fn several_shards_share_the_streams_and_add_up(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = [
        "--streams",
        "30",
        "--connections",
        "5",
        "--shards",
        "3",
        "--duration",
        "1200ms",
        "--warmup",
        "0s",
    ];
    let record = check_nothing_lost(Pair { server, client }, &flags);
    assert_eq!(number(&record, "/scenario/shards"), 3);
    assert_eq!(record["measured"]["echoes_per_stream"].as_array().unwrap().len(), 30);
    assert_eq!(number(&record, "/measured/connect/count"), 5);
    for lifecycle in ["response_headers", "first_message", "half_close"] {
        assert_eq!(number(&record, &format!("/measured/{lifecycle}/count")), 30, "{lifecycle}");
    }
    let seconds = record["measured"]["seconds"].as_array().unwrap();
    let in_seconds: u64 = seconds.iter().map(|second| number(second, "/messages_received")).sum();
    assert_eq!(in_seconds, number(&record, "/measured/messages_received"));
}

#[rstest]
fn an_open_loop_sends_as_many_as_its_schedule_holds(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = ["--streams", "20", "--rate", "5000", "--duration", "1s", "--warmup", "300ms"];
    let record = check_nothing_lost(Pair { server, client }, &flags);
    let due = number(&record, "/measured/messages_due");
    // Each stream's count is rounded by its phase, up or down by one.
    assert!((4_980..=5_020).contains(&due), "{due} messages were due");
    for time in ["response_time", "send_lag", "flow_wait"] {
        assert_eq!(number(&record, &format!("/measured/{time}/count")), due, "{time}");
    }
}

#[rstest]
fn a_gap_longer_than_the_run_is_not_waited_for(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let flags = ["--streams", "50", "--rate", "20", "--duration", "500ms", "--warmup", "0s"];
    check_nothing_lost(Pair { server, client }, &[&flags[..], &["--drain-limit", "1s"]].concat());
}

/// The generator's own fault, but its messages were due: they are sent late, or they are lost.
#[rstest]
fn a_rate_beyond_its_power_forgets_no_message_that_was_due(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    for drain_limit in ["20s", "10ms"] {
        let flags = [
            "--streams",
            "10",
            // Smaller ones that pile up are an attack to h2, which ends their connection (too_many_data_frames), and the run with it.
            "--payload",
            "100",
            "--rate",
            "2M",
            "--duration",
            "300ms",
            "--warmup",
            "0s",
            "--drain-limit",
            drain_limit,
        ];
        let (_, record, _) = Pair { server, client }.run(&flags);
        let due = number(&record, "/measured/messages_due");
        assert!((599_990..=600_010).contains(&due), "{due} were due, {drain_limit}");
        let received = number(&record, "/measured/messages_received");
        assert_eq!(due - received, number(&record, "/measured/messages_lost"));
    }
}

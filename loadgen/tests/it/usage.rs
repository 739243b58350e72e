//! What people type and what they are told.

use bidi_echo::config::{Config, Transport};
use loadgen::scenario::ClientName;
use rstest::rstest;

use crate::support::{
    INLINE, Pair, TASK, TONIC, answering, echo_server, loadgen, number, record, without_services,
};

/// Runs loadgen, wants this exit code and this last line on stderr.
#[track_caller]
fn check(args: &[&str], exit: i32, last_line: &str) {
    let output = loadgen(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains(last_line), "{last_line:?} is not in {last:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn bad_flags_end_with_2_and_the_cure() {
    check(&["--streams", "0"], 2, "--help");
    check(&["--rate", "fast"], 2, "--help");
    check(&["--arrivals", "poisson"], 2, "pass --rate too");
    check(&["--target", "localhost"], 2, "pass http://HOST:PORT");
    check(&["--target", "https://localhost:1"], 2, "without TLS");
    let misplaced = ["--transport", "tonic", "--placement", "task"];
    check(&misplaced, 2, "tonic runs each stream on a task of its own");
    let server = echo_server(Config::default());
    let to = |flags: &[&'static str]| [&["--target", server.target.as_str()], flags].concat();
    check(&to(&["--payload", "4MiB"]), 2, "pass at most 4194299");
    check(&to(&["--server-pid", "4000000000"]), 2, "no such process here");
    check(&to(&["--transport", "inline"]), 2, "the server runs already");
    check(&to(&["--transport", "inline", "--placement", "task"]), 2, "the server runs already");
    check(&to(&["--cpus", "99999"]), 2, "this process may use the cores [");
    check(&to(&["--json", "/no/such/folder/x.json"]), 2, "--json /no/such/folder/x.json");
}

#[test]
fn a_target_that_is_no_grpc_server_is_named_for_what_it_is() {
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    check(&["--target", &format!("http://{free}")], 1, "cannot connect");
    let http1 = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    check(&["--target", &http1.target], 1, "speaks HTTP/1");
    let tls = answering(b"\x15\x03\x01\x00\x02\x02\x46ab");
    check(&["--target", &tls.target], 1, "speaks TLS");
    let ssh = answering(b"SSH-2.0-OpenSSH_9.9");
    check(&["--target", &ssh.target], 1, "is it a gRPC port without TLS?");
    let silent = answering(b"");
    check(&["--target", &silent.target], 1, "silence");
    let settings_only = answering(b"\0\0\0\x04\0\0\0\0\0\0\0\0\x07");
    let short = ["--duration", "1s", "--warmup", "0s", "--drain-limit", "1s", "--streams", "3"];
    let (exit, record) = record(&[&["--target", &settings_only.target], &short[..]].concat());
    assert_eq!((exit, number(&record, "/measured/messages_received")), (1, 0));
    assert_eq!(number(&record, "/measured/streams_unfinished"), 3);
}

#[test]
fn a_stream_limit_that_is_too_low_is_named_with_the_connections_it_needs() {
    let server = echo_server(Config { max_concurrent_streams: 10, ..Config::default() });
    let flags =
        ["--target", &server.target, "--streams", "95", "--duration", "200ms", "--warmup", "0s"];
    check(
        &[&flags[..], &["--connections", "2"]].concat(),
        2,
        "the server allows 10 streams per connection, and 95 streams need at least --connections 10",
    );
    let (exit, record) = record(&flags);
    assert_eq!(exit, 0);
    assert_eq!(number(&record, "/scenario/connections"), 10);
}

#[test]
fn a_server_without_the_service_is_one_clear_line() {
    let server = without_services();
    check(&["--target", &server.target], 1, "UNIMPLEMENTED");
}

#[test]
fn the_verb_may_be_left_out_and_the_table_goes_to_stdout() {
    let server = echo_server(Config::default());
    let flags = ["--target", &server.target, "--messages", "2000", "--warmup", "0s"];
    for verb in [&[][..], &["run"]] {
        let output = loadgen(&[verb, &flags].concat());
        assert_eq!(output.status.code(), Some(0));
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains("2000 sent, 2000 received, 0 lost, 0 wrong"), "{stdout}");
        let service = stdout.lines().find(|line| line.starts_with("service S")).unwrap();
        let cells: Vec<_> = service.split("  ").filter(|cell| !cell.trim().is_empty()).collect();
        // 2,000 samples hold up p99 (20 beyond), but neither p99.9 nor p99.99.
        assert_eq!(cells[5].trim(), "-", "{service}");
        assert_eq!(cells[6].trim(), "-", "{service}");
        assert_ne!(cells[4].trim(), "-", "{service}");
    }
}

#[rstest]
fn a_record_says_what_carried_the_server(#[values(INLINE, TASK, TONIC)] server: Transport) {
    let pair = Pair { server, client: ClientName::Inline };
    let (exit, record, _) = pair.run(&["--messages", "100", "--warmup", "0s"]);
    assert_eq!(exit, 0);
    let said = &record["provenance"]["server"];
    assert_eq!(said["transport"], server.name());
    assert_eq!(said["placement"], server.placement().name());
}

#[test]
fn an_embedded_server_is_started_measured_and_stopped() {
    // Another server may be on the default address of the machine that runs this test: then that
    // one is measured, and the rest of this test has nothing to look at.
    let output =
        loadgen(&["--streams", "10", "--messages", "1000", "--warmup", "0s", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0));
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let origin = record["provenance"]["server"]["origin"].as_str().unwrap();
    assert!(["embedded", "found"].contains(&origin), "{origin}");
    if origin == "embedded" {
        assert!(number(&record, "/measured/server/rss_bytes_max") > 1_000_000);
        let all = loadgen::harness::provenance::cpus();
        // One core cannot be shared out; of more, loadgen has the second half.
        let apart = if all.len() < 2 { &[] } else { &all[all.len() / 2..] };
        assert_eq!(record["scenario"]["cpus"], serde_json::json!(apart));
        assert_eq!(record["provenance"]["server"]["transport"], "inline");
        assert_eq!(record["provenance"]["server"]["placement"], "inline");
        let target = record["provenance"]["server"]["target"].as_str().unwrap();
        let refused = std::net::TcpStream::connect(target).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "it still runs");
    }
}

#[test]
fn a_report_draws_from_records_and_names_what_is_none() {
    let server = echo_server(Config::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first-run.json");
    let flags = ["--target", &server.target, "--messages", "2000", "--warmup", "0s", "--json"];
    loadgen(&[&flags[..], &[path.to_str().unwrap()]].concat());
    let folder_name = folder.path().to_str().unwrap();
    let output = loadgen(&["report", folder_name]);
    assert_eq!(output.status.code(), Some(0));
    let report = String::from_utf8(output.stdout).unwrap();
    let row = report.lines().find(|line| line.contains("first-run")).unwrap();
    assert!(row.contains("| 10 on 1 |") || row.contains("| 100 on 1 |"), "{row}");
    assert!(row.ends_with("| 0, 0 |"), "{row}");
    std::fs::write(folder.path().join("second.json"), "{\"schema_version\": 1").unwrap();
    check(&["report", folder_name], 1, "second.json is no record that can be read");
    check(&["report", "/no/such/file.json"], 1, "/no/such/file.json");
}

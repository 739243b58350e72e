//! The record: its schema, its keys, and what must not be in it.

use std::ffi::OsStr;

use bidi_echo::config::{Config, Transport};
use loadgen::record::RunRecord;
use loadgen::scenario::ClientName;
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    INLINE, Pair, ServerProcess, TASK, TONIC, echo_server, loadgen, number, record, typed,
};

fn real_record(pair: Pair, flags: &[&str]) -> Value {
    let server = ServerProcess::start(pair.server);
    let client = typed(pair.client);
    let pid = server.pid();
    let usual = [
        "--target",
        &server.target,
        "--client",
        &client,
        "--server-pid",
        &pid,
        "--streams",
        "10",
        "--duration",
        "1s",
        "--warmup",
        "100ms",
        "--seed",
        "42",
        "--header",
        "x-run=test",
    ];
    let (exit, record) = record(&[&usual, flags].concat());
    assert_eq!(exit, 0, "{record:#}");
    record
}

#[rstest]
fn real_records_obey_the_committed_schema(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../results/run.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for flags in [&["--in-flight", "2"][..], &["--rate", "2000", "--arrivals", "poisson"]] {
        let record = real_record(Pair { server, client }, flags);
        let errors: Vec<_> =
            validator.iter_errors(&record).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        let mut damaged = record.clone();
        damaged["measured"].as_object_mut().unwrap().remove("messages_sent");
        assert!(!validator.is_valid(&damaged), "a schema that takes everything proves nothing");
    }
}

#[rstest]
fn a_record_reads_back_as_what_was_written(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = real_record(Pair { server, client }, &["--rate", "2000"]);
    let read: RunRecord = serde_json::from_value(record.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), record);
    assert_eq!(read.measured.service_time.count(), read.measured.messages_received);
}

#[rstest]
fn the_keys_that_others_rely_on_are_there(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let record = real_record(Pair { server, client }, &["--rate", "2000"]);
    for key in [
        "messages_sent",
        "messages_received",
        "messages_lost",
        "messages_wrong",
        "service_time/p99_ns",
        "response_time/p99_ns",
        "server/cpu_user_ns",
        "server/cpu_system_ns",
        "server/rss_bytes_max",
        "loadgen/cpu_user_ns",
        "loadgen/cpu_system_ns",
        "loadgen/rss_bytes_max",
        "server_resident/before_bytes",
        "server_resident/all_open_bytes",
        "server_resident/end_bytes",
    ] {
        number(&record, &format!("/measured/{key}"));
    }
    assert!(record["measured"]["throughput_messages_per_s"].as_f64().unwrap() > 1_500.0);
    let began = record["provenance"]["window_began_at"].as_str().unwrap();
    let began = humantime::parse_rfc3339(began).unwrap();
    let started = record["provenance"]["started_at"].as_str().unwrap();
    // The run began, connected and warmed up for 100 ms before; the former is told in whole seconds.
    let before = began.duration_since(humantime::parse_rfc3339(started).unwrap()).unwrap();
    assert!((0.1..60.0).contains(&before.as_secs_f64()), "{before:?}");
    assert_eq!(number(&record, "/scenario/seed"), 42);
    assert_eq!(record["scenario"]["headers"]["x-run"], "test");
    assert_eq!(number(&record, "/schema_version"), 1);
}

#[test]
fn the_servers_memory_is_watched_until_it_was_given_back() {
    let pair = Pair { server: INLINE, client: ClientName::Inline };
    let idle = ["--idle-streams", "2000", "--idle-connections", "100", "--watch-give-back", "2s"];
    let record = real_record(pair, &idle);
    let resident = |moment: &str| number(&record, &format!("/measured/server_resident/{moment}"));
    // What a server gives back of its start lies between the moments, too: only the largest step is sure.
    let (before, with_streams) = (resident("before_bytes"), resident("idle_streams_open_bytes"));
    assert!(before > 1_000_000 && with_streams > before, "{before}, {with_streams}");
    let closed = record["measured"]["server_resident"]["closed_bytes"].as_array().unwrap();
    assert_eq!(closed.len(), 2, "{closed:?}");
}

#[rstest]
fn a_record_names_neither_host_nor_user_nor_folder(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let text = real_record(Pair { server, client }, &[]).to_string();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let folder = env!("CARGO_MANIFEST_DIR").to_owned();
    let home = std::env::var("HOME").unwrap_or_default();
    for private in [host, folder, home].iter().filter(|private| private.len() > 4) {
        assert!(!text.contains(private.as_str()), "{private} is in the record");
    }
}

#[rstest]
fn a_record_goes_to_its_file_and_the_table_to_stdout(
    #[values(INLINE, TASK, TONIC)] server: Transport,
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let (server, client) = (ServerProcess::start(server), typed(client));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let flags = [
        "--target",
        &server.target,
        "--client",
        &client,
        "--messages",
        "100",
        "--warmup",
        "0s",
        "--json",
        path.to_str().unwrap(),
    ];
    let output = loadgen(&flags);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("100 sent"));
    let record: RunRecord = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(record.measured.messages_sent, 100);
}

#[test]
fn every_published_record_can_be_read() {
    let results = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../results");
    let mut records = 0;
    for folder in results.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        if !folder.is_dir() {
            continue;
        }
        for file in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            // What hostile clients cost is another kind of record, and a suite's knees are none.
            let name = file.file_name().and_then(OsStr::to_str).unwrap();
            let is_run = !["hostile.json", "knees.json"].contains(&name);
            if is_run && file.extension().is_some_and(|extension| extension == "json") {
                let record = loadgen::record::read(&file);
                let record = record.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                assert!(!record.provenance.loadgen.revision.ends_with("-dirty"), "{file:?}");
                records += 1;
            }
        }
    }
    assert!(records > 0);
}

/// This test's process serves, and has started loadgen.
#[test]
fn a_process_with_others_of_its_own_is_not_taken_for_the_server() {
    let server = echo_server(Config::default());
    let pid = std::process::id().to_string();
    let flags = ["--streams", "4", "--messages", "400", "--warmup", "0s", "--duration", "3s"];
    let (exit, record) =
        record(&[&["--target", &server.target, "--server-pid", &pid][..], &flags].concat());
    assert_eq!(exit, 0, "{record:#}");
    for key in ["server", "server_resident", "server_cpu_share", "messages_per_server_cpu_s"] {
        assert_eq!(record["measured"][key], Value::Null, "{key}");
    }
    let unknown = |warning: &&Value| warning["kind"] == "server_usage_unknown";
    let warning = record["warnings"].as_array().unwrap().iter().find(unknown).unwrap();
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains(&format!("process {pid} has others of its own")), "{message}");
    assert!(message.ends_with("from a shell script with exec"), "{message}");
}

//! Valid or not, goals, and what becomes of a stream that is blocked.

use std::time::{Duration, Instant};

use rstest::rstest;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Busy, INLINE, Running, ServerProcess, loadgen, number, parsed, quiet, record, sleep_until,
    two_cpus,
};

fn gate<'a>(record: &'a Value, name: &str) -> &'a Value {
    let gates = record["gates"].as_array().unwrap();
    gates.iter().find(|gate| gate["name"] == name).unwrap_or_else(|| panic!("no {name}: {gates:?}"))
}

#[test]
fn a_generator_that_is_starved_says_so_and_its_run_is_invalid() {
    let Some([_, cpu]) = two_cpus() else { return };
    let _quiet = quiet();
    let server = ServerProcess::start(INLINE);
    let _busy = Busy::on(cpu, 2);
    let cpu = cpu.to_string();
    let load = ["--target", &server.target, "--rate", "20k", "--streams", "10", "--cpus", &cpu];
    let time = ["--duration", "1s", "--warmup", "200ms"];
    let output = loadgen(&[&load[..], &time, &["--require-valid"]].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{table}");
    assert!(table.contains("\nINVALID "), "{table}");
    let line = "\ngate         a shard thread ready but without a core";
    assert!(table.contains(line), "{table}");
    let (exit, record) = record(&[&load[..], &time].concat());
    assert_eq!(exit, 0, "a plain run only tells");
    assert_eq!(gate(&record, "shard_run_delay")["verdict"], "failed");
    assert!(gate(&record, "shard_run_delay")["figure"].as_f64().unwrap() > 0.02);
}

#[test]
fn a_run_that_must_be_valid_shows_that_loadgen_could_have_carried_more() {
    let _quiet = quiet();
    let load = ["--streams", "4", "--duration", "500ms", "--warmup", "100ms"];
    let (exit, record) = record(&[&load[..], &["--require-valid"]].concat());
    let gates = record["gates"].as_array().unwrap();
    let headroom = gates.iter().find(|gate| gate["name"] == "headroom");
    let failed: Vec<_> = gates.iter().filter(|gate| gate["verdict"] == "failed").collect();
    // Other tests may have had its core. Then it is invalid, whatever a null echo would carry.
    let Some(headroom) = headroom else {
        assert!(!failed.is_empty(), "{gates:?}");
        return assert_eq!(exit, 3);
    };
    let null = record["scenario"]["null_throughput_messages_per_s"].as_f64().unwrap();
    let carried = record["measured"]["throughput_messages_per_s"].as_f64().unwrap();
    assert_eq!(headroom["figure"], carried / null);
    assert_eq!(exit, if failed.is_empty() { 0 } else { 3 }, "{gates:?}");
}

#[test]
fn each_load_has_its_gates_with_figure_and_bound() {
    let names = |flags: &[&str]| -> Vec<String> {
        let time = ["--duration", "500ms", "--warmup", "100ms", "--streams", "10"];
        let (_, record) = record(&[&time[..], flags].concat());
        let gates = record["gates"].as_array().unwrap();
        for gate in gates {
            assert!(gate["threshold"].is_number(), "{gate}");
            // Half a second has no trend.
            let is_known = gate["figure"].is_number() || gate["name"] == "backlog";
            assert!(is_known || gate["name"] == "throttling", "{gate}");
        }
        gates.iter().map(|gate| gate["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = ["shard_cpu", "shard_run_delay", "steal", "throttling"];
    assert_eq!(names(&[]), [&["littles_law"][..], &all].concat());
    let open = ["send_lag", "achieved", "departure_gaps", "backlog"];
    assert_eq!(names(&["--rate", "1000"]), [&open[..], &all].concat());
}

#[test]
fn a_probe_beside_the_load_has_a_stream_and_figures_of_its_own() {
    let load = ["--rate", "1000", "--streams", "4", "--duration", "1s", "--warmup", "100ms"];
    let (exit, record) = record(&[&load[..], &["--probe-rate", "200"]].concat());
    assert_eq!(exit, 0, "{record:#}");
    assert_eq!(record["measured"]["statuses"]["OK"], 4, "the probe is not the load");
    assert_eq!(record["measured"]["probe"]["messages_lost"], 0);
    let probed = number(&record, "/measured/probe/service_time/count");
    assert!((100..400).contains(&probed), "{probed} of about 200");
    assert_eq!(number(&record, "/measured/messages_received"), 1_000);
    assert!(gate(&record, "probe")["figure"].is_number());
}

#[test]
fn a_probe_ends_with_the_load_that_it_is_beside() {
    let load = ["--rate", "10k", "--messages", "1000", "--streams", "4", "--warmup", "100ms"];
    let (exit, record) =
        record(&[&load[..], &["--duration", "20s", "--probe-rate", "100"]].concat());
    assert_eq!(exit, 0, "{record:#}");
    assert_eq!(record["measured"]["stopped_early"], false);
    assert_eq!(number(&record, "/measured/messages_received"), 1_000);
    // Of twenty seconds they would be two thousand.
    let probed = number(&record, "/measured/probe/service_time/count");
    assert!(probed < 500, "{probed}");
    assert_eq!(record["measured"]["probe"]["messages_lost"], 0);
}

#[test]
fn a_load_of_so_many_messages_is_whole_when_some_of_them_were_shed() {
    let load = ["--rate", "1M", "--messages", "20000", "--streams", "1", "--in-flight", "1"];
    let how = ["--blocked", "shed", "--warmup", "0s", "--duration", "60s"];
    let (exit, record) = record(&[&load[..], &how].concat());
    assert_eq!(exit, 0, "{record:#}");
    let shed = number(&record, "/measured/messages_shed");
    assert!(shed > 0);
    assert_eq!(number(&record, "/measured/messages_received") + shed, 20_000);
    assert_eq!(record["measured"]["stopped_early"], false, "{record:#}");
}

/// Three streams with a message in flight each, a server that answers none of them, and a drain that waits for it.
fn waits_for(server: &ServerProcess, duration: &str) -> Running {
    let load = ["--target", &server.target, "--streams", "3", "--duration", duration];
    let how = ["--warmup", "0s", "--drain-limit", "600s", "--json", "-"];
    let mut running = Running::start(&[&load[..], &how].concat());
    running.wait_for("measuring");
    server.signal(Signal::STOP);
    running
}

#[rstest]
fn who_asks_for_the_end_in_the_drain_gets_what_there_is(
    #[values(Signal::INT, Signal::TERM)] signal: Signal,
) {
    let server = ServerProcess::start(INLINE);
    let mut running = waits_for(&server, "500ms");
    running.wait_for("draining");
    running.signal(signal);
    let (exit, record) = parsed(&running.finish());
    server.signal(Signal::CONT);
    assert_eq!(exit, 1, "{record:#}");
    assert_eq!(record["measured"]["stopped_early"], true);
    assert_eq!(number(&record, "/measured/messages_lost"), 3);
    assert_eq!(number(&record, "/measured/streams_unfinished"), 3);
}

#[test]
fn who_asks_twice_for_the_end_waits_for_nothing() {
    let server = ServerProcess::start(INLINE);
    let mut running = waits_for(&server, "600s");
    running.signal(Signal::TERM);
    running.wait_for("draining");
    running.signal(Signal::INT);
    let output = running.finish();
    server.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("asked a second time to end: without figures"), "{said}");
}

#[test]
fn a_missed_goal_has_an_exit_code_and_a_line_of_its_own() {
    let run = |slo: &str| {
        let load = ["--streams", "2", "--duration", "300ms", "--warmup", "100ms"];
        let output = loadgen(&[&load[..], &["--slo", slo]].concat());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (exit, said) = run("errors=0,p50<1h,throughput>1");
    assert_eq!((exit, said.contains("goal missed")), (0, false), "{said}");
    let (exit, said) = run("errors=0,p50<1ns,throughput>1000M");
    assert_eq!(exit, 4, "{said}");
    assert!(said.contains("loadgen: goal missed: p50<1 ns: "), "{said}");
    assert!(said.contains("loadgen: goal missed: throughput>1 G messages/s: "), "{said}");
    let (exit, said) = run("p99.99<1h");
    assert_eq!(exit, 4, "{said}");
    assert!(said.contains("messages are too few for it"), "{said}");
    let (exit, said) = run("p99<5");
    assert_eq!(exit, 2, "{said}");
    assert!(said.contains("need a time, as 5ms"), "{said}");
}

#[test]
fn a_backlog_over_its_bound_ends_the_run_with_the_moment_it_diverged() {
    let server = ServerProcess::start(INLINE);
    let mut running = Running::start(&[
        "--target",
        &server.target,
        "--rate",
        "10k",
        "--max-backlog",
        "2000",
        "--streams",
        "10",
        "--duration",
        "30s",
        "--warmup",
        "0s",
        "--drain-limit",
        "1s",
        "--json",
        "-",
    ]);
    running.wait_for("measuring");
    running.wait_for(" ");
    server.signal(Signal::STOP);
    let (exit, record) = parsed(&running.finish());
    server.signal(Signal::CONT);
    assert_eq!(exit, 1, "{record:#}");
    let [backlog, at, since] = ["backlog", "at_ns", "since_ns"]
        .map(|key| number(&record, &format!("/measured/unstable/{key}")));
    assert_eq!(backlog, 2_001);
    // From a tenth of the bound on, that is 1,800 messages at 10,000 a second.
    assert!((100_000_000..10_000_000_000).contains(&(at - since)), "{at} {since}");
    assert_eq!(gate(&record, "backlog")["verdict"], "failed");
    let failure = record["measured"]["first_failure"].as_str().unwrap();
    assert!(failure.starts_with("unstable at this rate: 2001 messages"), "{failure}");
}

#[test]
fn what_a_blocked_stream_sheds_is_counted_and_later_than_everything() {
    let server = ServerProcess::start(INLINE);
    let mut running = Running::start(&[
        "--target",
        &server.target,
        "--rate",
        "1000",
        "--streams",
        "10",
        "--in-flight",
        "1",
        "--blocked",
        "shed",
        "--duration",
        "3s",
        "--warmup",
        "0s",
        "--json",
        "-",
    ]);
    running.wait_for("measuring");
    running.wait_for(" ");
    let begin = Instant::now();
    server.signal(Signal::STOP);
    sleep_until(begin, Duration::from_millis(500));
    server.signal(Signal::CONT);
    let output = running.finish();
    let table = String::from_utf8_lossy(&output.stderr).into_owned();
    let (exit, record) = parsed(&output);
    assert_eq!(exit, 0, "{record:#}");
    let count = |key: &str| number(&record, &format!("/measured/messages_{key}"));
    // 500 were due in the freeze, and ten could be in flight.
    assert!((300..1_500).contains(&count("shed")), "{} shed", count("shed"));
    assert_eq!(count("lost"), 0);
    assert_eq!(count("due"), count("received") + count("shed"));
    let seconds = record["measured"]["seconds"].as_array().unwrap();
    let by_second: u64 = seconds.iter().map(|second| number(second, "/messages_shed")).sum();
    assert_eq!(by_second, count("shed"));
    let response = table.lines().find(|line| line.starts_with("response R")).unwrap();
    assert!(response.contains('>'), "p99 falls among what was shed: {response}");
}

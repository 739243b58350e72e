//! A server that freezes: what a user would have waited shows in R, also for the messages that the
//! freeze kept from leaving (coordinated omission; wrk2 README).
//!
//! 1,000 messages per second for 5 s, a freeze of 200 ms: the 200 messages due in it wait between 200
//! and 0 ms, so of all 5,000 the top 1 % waited for more than 150 ms. That is R's p99, by arithmetic.
//! With both clients, which do the measuring; a frozen server is the same on any transport.

use std::time::{Duration, Instant};

use loadgen::scenario::ClientName;
use rstest::rstest;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    INLINE, Running, ServerProcess, number, parsed, quiet, run_delay, sleep_until, typed,
};

const FREEZE: Duration = Duration::from_millis(200);

/// Runs the load above with `flags` added and the server frozen in its midst.
///
/// Out: the record, and what R's p99 is by arithmetic for the freeze as it really was: the kernel
/// may wake this test late.
fn with_a_freeze(client: ClientName, flags: &[&str]) -> (Value, f64) {
    let _quiet = quiet();
    let server = ServerProcess::start(INLINE);
    let client = typed(client);
    let load =
        ["--rate", "1000", "--streams", "10", "--duration", "5s", "--warmup", "1s", "--json", "-"];
    let mut running = Running::start(
        &[&["--target", &server.target, "--client", &client], &load[..], flags].concat(),
    );
    running.wait_for("measuring");
    running.wait_for(" 20 %");
    let begin = Instant::now();
    server.signal(Signal::STOP);
    sleep_until(begin, FREEZE);
    server.signal(Signal::CONT);
    let frozen = begin.elapsed();
    let (exit, record) = parsed(&running.finish());
    assert_eq!(exit, 0, "{record:#}");
    let due = number(&record, "/measured/messages_due") as f64;
    let beyond = Duration::from_secs_f64(due * 0.01 / 1_000.0);
    (record, (frozen - beyond).as_nanos() as f64)
}

/// Within 20 %: the freeze ends with 200 echoes at once, and this machine has other things to do.
#[track_caller]
fn check_is_near(p99_ns: u64, expected_ns: f64) {
    let ratio = p99_ns as f64 / expected_ns;
    assert!((0.8..1.2).contains(&ratio), "p99 {p99_ns} ns, by arithmetic {expected_ns} ns");
}

#[rstest]
fn messages_kept_back_by_a_freeze_show_in_response_time_and_not_in_service_time(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let (record, expected_ns) = with_a_freeze(client, &["--in-flight", "1"]);
    let p99 = |metric: &str| number(&record, &format!("/measured/{metric}/p99_ns"));
    check_is_near(p99("response_time"), expected_ns);
    // Ten messages of five thousand were in flight when the freeze began.
    assert!(p99("service_time") < 50_000_000, "S p99 {} ns", p99("service_time"));
    assert!(number(&record, "/measured/service_time/max_ns") > 150_000_000);
    check_is_near(p99("flow_wait"), expected_ns);
}

#[rstest]
fn messages_that_leave_in_spite_of_a_freeze_show_it_in_both_times(
    #[values(ClientName::Inline, ClientName::Tonic)] client: ClientName,
) {
    let (record, expected_ns) = with_a_freeze(client, &[]);
    let p99 = |metric: &str| number(&record, &format!("/measured/{metric}/p99_ns"));
    check_is_near(p99("response_time"), expected_ns);
    check_is_near(p99("service_time"), expected_ns);
}

/// A freeze of 100 ms in each of five seconds: a message that was due in one waits until its end, so p99 and
/// p99.9 of R are those of the freezes' own lengths, whatever the rest of the time costs.
#[rstest]
fn a_freeze_each_second_shows_in_p99_and_p99_9_as_arithmetic_says(
    #[values("uniform", "poisson")] arrivals: &str,
) {
    const FREEZES: u32 = 5;
    let _quiet = quiet();
    let server = ServerProcess::start(INLINE);
    let mut running = Running::start(&[
        "--target",
        &server.target,
        "--rate",
        "4000",
        "--streams",
        "10",
        "--arrivals",
        arrivals,
        "--duration",
        &format!("{FREEZES}s"),
        "--warmup",
        "1s",
        "--json",
        "-",
    ]);
    running.wait_for("measuring");
    let begin = Instant::now();
    let mut frozen = Vec::new();
    for freeze in 0..FREEZES {
        sleep_until(begin, Duration::from_millis(500) + freeze * Duration::from_secs(1));
        let stopped = Instant::now();
        server.signal(Signal::STOP);
        sleep_until(stopped, Duration::from_millis(100));
        server.signal(Signal::CONT);
        frozen.push(stopped.elapsed().as_secs_f64());
    }
    let (exit, record) = parsed(&running.finish());
    assert_eq!(exit, 0, "{record:#}");
    // What the kernel kept from running, on either side, waited for longer; nothing waited for less.
    let shard = number(&record, "/measured/shard_threads/0/run_delay_ns") as f64 / 1e9;
    let delayed = run_delay(server.pid().parse().unwrap()).as_secs_f64() + shard;
    for (percent, key) in [(99.0, "p99_ns"), (99.9, "p99_9_ns")] {
        let expected = waited(&frozen, f64::from(FREEZES) * (1.0 - percent / 100.0));
        let seen = number(&record, &format!("/measured/response_time/{key}")) as f64 / 1e9;
        assert!(
            seen > 0.95 * expected && seen < 1.05 * expected + delayed,
            "p{percent}: {seen} s, by arithmetic {expected} s; not on a core for {delayed} s"
        );
    }
}

/// The wait that messages exceed which are due within `time` seconds, over all freezes: in a freeze of f
/// seconds, those are due in its first f - w.
fn waited(frozen: &[f64], time: f64) -> f64 {
    let beyond = |wait: f64| frozen.iter().map(|freeze| (freeze - wait).max(0.0)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if beyond(middle) > time { low = middle } else { high = middle }
    }
    low
}

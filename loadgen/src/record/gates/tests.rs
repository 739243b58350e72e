//! What passes each gate, what fails it, and what a failed one says of server and generator.

use super::*;
use crate::record::{Bystander, WrittenHdr};
use crate::report::example;

fn seconds(due_and_received: &[(u64, u64)]) -> Vec<Second> {
    let second = |(second, (messages_due, messages_received)): (u64, &(u64, u64))| Second {
        second,
        messages_due: *messages_due,
        messages_shed: 0,
        messages_received: *messages_received,
        latency: WrittenHdr::from(&Hdr::default()),
    };
    (0..).zip(due_and_received).map(second).collect()
}

#[test]
fn a_backlog_that_only_wobbles_has_no_trend() {
    let steady = [(100, 98), (100, 101), (100, 99), (100, 102), (100, 100), (100, 99)];
    let (slope, error) = backlog_trend(&seconds(&steady), Nanos(6_000_000_000)).unwrap();
    assert!(slope.abs() < BACKLOG_ERRORS_MIN * error, "{slope} {error}");
    let growing = [(100, 98), (100, 97), (100, 99), (100, 98), (100, 97), (100, 98)];
    let (slope, error) = backlog_trend(&seconds(&growing), Nanos(6_000_000_000)).unwrap();
    assert!((slope - 2.2).abs() < 0.1 && slope > BACKLOG_ERRORS_MIN * error, "{slope} {error}");
}

#[test]
fn a_backlog_that_the_warm_up_left_behind_is_a_trend_and_no_loss_of_the_server() {
    let check = |due_and_received: &[(u64, u64)], is_failed: bool, is_loss: bool| {
        let mut record = example::open_loop(1_000.0, 1);
        record.measured.seconds = seconds(due_and_received);
        record.gates = gates(&record.scenario, &record.measured);
        let gate = record.gates.iter().find(|gate| gate.name == GateName::Backlog).unwrap();
        let verdict = if is_failed { Verdict::Failed } else { Verdict::Passed };
        assert_eq!(gate.verdict, verdict, "{due_and_received:?}: {}", gate.message);
        assert_eq!(gate.message.contains("--warmup"), is_failed && !is_loss, "{}", gate.message);
        assert_eq!(record.is_loss(gate), is_loss, "{due_and_received:?}");
        assert_eq!(record.fell_behind(), is_failed && is_loss, "{due_and_received:?}");
    };
    let even = [(1_000, 1_000); 5];
    check(&even, false, false);
    check(&[(1_000, 1_020); 5], true, false);
    check(&[(1_000, 980); 5], true, true);
    // Three seconds' worth was left of the warm-up, and was gone after two of the window: so uneven a fall has a large
    // error.
    check(
        &[(1_000, 2_500), (1_000, 2_500), (1_000, 1_000), (1_000, 1_000), (1_000, 1_000)],
        true,
        false,
    );
    check(
        &[(1_000, 1_000), (1_000, 1_000), (1_000, 1_000), (1_000, 100), (1_000, 100)],
        true,
        true,
    );
    // A tenth of a second's worth, gone within the first.
    check(
        &[(1_000, 1_100), (1_000, 1_000), (1_000, 1_000), (1_000, 1_001), (1_000, 999)],
        true,
        false,
    );
    check(
        &[(1_000, 1_040), (1_000, 1_000), (1_000, 1_000), (1_000, 1_001), (1_000, 999)],
        false,
        false,
    );
    // One echo in twenty came a second later once.
    check(
        &[(1_000, 1_000), (1_000, 950), (1_000, 1_050), (1_000, 1_000), (1_000, 1_000)],
        false,
        false,
    );
}

#[test]
fn messages_that_a_machine_which_stood_still_kept_back_are_no_loss_of_the_server() {
    let check = |due_and_received: &[(u64, u64)], is_loss: bool| {
        let mut record = example::open_loop(1_000.0, 1);
        record.measured.seconds = seconds(due_and_received);
        record.measured.window_ns = Nanos(Nanos::SECOND.0 * due_and_received.len() as u64);
        record.measured.messages_due = due_and_received.iter().map(|second| second.0).sum();
        // Twenty were to leave in the last 20 ms.
        record.measured.messages_sent_in_window = Some(record.measured.messages_due - 20);
        record.gates = gates(&record.scenario, &record.measured);
        let gate = record.gates.iter().find(|gate| gate.name == GateName::Achieved).unwrap();
        assert_eq!(gate.verdict, Verdict::Failed, "{due_and_received:?}");
        assert_eq!(record.is_loss(gate), is_loss, "{due_and_received:?}");
        assert_eq!(record.fell_behind(), is_loss, "{due_and_received:?}");
    };
    check(&[(1_000, 1_000), (1_000, 999), (1_000, 1_000), (1_000, 1_001), (1_000, 980)], false);
    check(&[(1_000, 980); 5], true);
    // Too short to tell.
    check(&[(1_000, 1_000), (1_000, 980)], true);
}

#[test]
fn a_closed_loop_whose_messages_were_not_all_answered_still_tells_throughput() {
    let check = |in_flight: f64, failed: &[GateName], expected| {
        let mut record = example::closed_loop();
        let Load::ClosedLoop { in_flight_max } = record.scenario.load else { unreachable!() };
        let count = (record.scenario.streams * in_flight_max) as f64;
        let mean_s = in_flight * count / record.measured.throughput_messages_per_s;
        record.measured.in_flight_mean_ns = Some(mean_s * Nanos::SECOND.0 as f64);
        let gate = |name: &GateName| example::gate(*name, Verdict::Failed, Some(1.0), "share");
        record.gates = failed.iter().map(gate).collect();
        assert_eq!(record.is_of_answered(), expected, "{in_flight} {failed:?}");
    };
    check(0.3, &[GateName::LittlesLaw], true);
    // More than were sent: times are wrong.
    check(1.3, &[GateName::LittlesLaw], false);
    check(0.3, &[], false);
    check(0.3, &[GateName::LittlesLaw, GateName::Steal], false);
    check(0.3, &[GateName::Steal], false);
}

#[test]
fn an_open_loop_whose_echoes_fall_behind_is_known_from_its_gates() {
    let check = |mut record: RunRecord, failed: GateName, expected| {
        record.measured.seconds = seconds(&[(100, 98); 5]);
        record.gates = vec![example::gate(failed, Verdict::Failed, Some(1.0), "share")];
        assert_eq!(record.fell_behind(), expected, "{failed:?}");
    };
    check(example::open_loop(1_000.0, 1), GateName::Backlog, true);
    check(example::open_loop(1_000.0, 1), GateName::Achieved, true);
    check(example::open_loop(1_000.0, 1), GateName::Steal, false);
    check(example::closed_loop(), GateName::Backlog, false);
}

#[test]
fn what_is_shed_on_purpose_is_no_backlog() {
    let mut half = seconds(&[(100, 50); 6]);
    let slope = |seconds: &[Second]| backlog_trend(seconds, Nanos(6_000_000_000)).unwrap().0;
    assert!((slope(&half) - 50.0).abs() < 1e-9);
    half.iter_mut().for_each(|second| second.messages_shed = 50);
    assert!(slope(&half).abs() < 1e-9);
}

#[test]
fn a_closed_loop_that_only_loadgen_bounds_still_tells_bounds() {
    let check = |mut record: RunRecord, failed: &[GateName], expected| {
        record.gates = vec![example::gate(GateName::Steal, Verdict::Passed, Some(0.0), "share")];
        let gate = |name: &GateName| example::gate(*name, Verdict::Failed, Some(1.0), "share");
        record.gates.extend(failed.iter().map(gate));
        assert_eq!(record.is_bound(), expected, "{failed:?}");
    };
    let closed = example::closed_loop;
    check(closed(), &[], false);
    check(closed(), &[GateName::ShardCpu], true);
    check(closed(), &[GateName::Headroom, GateName::ShardCpu], true);
    // Neighbours took the time: nothing is bounded by it.
    check(closed(), &[GateName::ShardCpu, GateName::Steal], false);
    check(closed(), &[GateName::LittlesLaw], false);
    // An open loop's times say nothing once loadgen is late.
    check(example::open_loop(1_000.0, 1), &[GateName::ShardCpu], false);
}

#[test]
fn a_busy_shard_is_full_if_messages_leave_late() {
    let verdict = |mut record: RunRecord, lag: u64, busy_percent: u64| {
        let measured = &mut record.measured;
        let cpu_ns = Nanos(measured.window_ns.0 * busy_percent / 100);
        measured.shard_threads = vec![ThreadUsage { cpu_ns, run_delay_ns: Nanos(0) }];
        let mut hdr = Hdr::default();
        (0..1_000).for_each(|_| hdr.record(Nanos(lag)));
        measured.send_lag = measured.send_lag.is_some().then_some(hdr);
        let gates = gates(&record.scenario, &record.measured);
        gates.iter().find(|gate| gate.name == GateName::ShardCpu).unwrap().verdict
    };
    let open = || example::open_loop(1_000.0, 1);
    assert_eq!(verdict(open(), 100_000, 50), Verdict::Passed);
    assert_eq!(verdict(open(), 100_000, 99), Verdict::Passed);
    assert_eq!(verdict(open(), 250_000, 99), Verdict::Failed);
    // Beside a server that takes ten times as long it is in time.
    assert_eq!(verdict(example::open_loop(1_000.0, 30), 250_000, 99), Verdict::Passed);
    assert_eq!(verdict(example::closed_loop(), 0, 99), Verdict::Failed);
}

#[test]
fn messages_in_flight_are_as_many_as_throughput_and_time_say() {
    let verdict = |throughput, in_flight_mean_ns| {
        let mut record = example::closed_loop();
        assert_eq!(record.scenario.streams, 4);
        record.measured.throughput_messages_per_s = throughput;
        record.measured.in_flight_mean_ns = in_flight_mean_ns;
        let gates = gates(&record.scenario, &record.measured);
        gates.iter().find(|gate| gate.name == GateName::LittlesLaw).unwrap().verdict
    };
    assert_eq!(verdict(4_000.0, Some(1e6)), Verdict::Passed);
    assert_eq!(verdict(4_000.0, Some(0.96e6)), Verdict::Passed);
    // One place in ten was lost on the way, or echoes of nothing were counted.
    assert_eq!(verdict(3_600.0, Some(1e6)), Verdict::Failed);
    assert_eq!(verdict(4_400.0, Some(1e6)), Verdict::Failed);
    assert_eq!(verdict(4_000.0, None), Verdict::Unknown);
}

#[test]
fn a_probe_that_lost_its_messages_saw_another_server_than_the_load() {
    let check = |probe_lost: u64, load_lost: u64, expected: Verdict| {
        let mut record = example::open_loop(1_000.0, 1);
        let measured = &mut record.measured;
        let mut times = Hdr::default();
        (0..100).for_each(|_| times.record(measured.service_time.percentile(50.0)));
        measured.messages_lost = load_lost;
        measured.probe = Some(Probe {
            messages_lost: probe_lost,
            response_time: times.clone(),
            service_time: times,
        });
        let gates = gates(&record.scenario, measured);
        let gate = gates.iter().find(|gate| gate.name == GateName::Probe).unwrap();
        assert_eq!(gate.verdict, expected, "{probe_lost} {load_lost}: {}", gate.message);
    };
    check(0, 0, Verdict::Passed);
    check(99, 0, Verdict::Passed);
    check(101, 0, Verdict::Failed);
    // The server lost what both sent: nothing tells them apart.
    check(101, 1_000_000, Verdict::Unknown);
    check(0, 1_000_000, Verdict::Unknown);
}

#[test]
fn a_trend_is_of_whole_seconds_in_the_window() {
    let all = seconds(&[(9, 9); 6]);
    assert!(backlog_trend(&all, Nanos(4_999_999_999)).is_none());
    assert!(backlog_trend(&all, Nanos(5_000_000_000)).is_some());
}

#[test]
fn a_bound_may_be_met_but_not_passed() {
    let verdict = |share| Gate::of_share(GateName::Steal, share, 0.02, "steal").verdict;
    assert_eq!(verdict(Some(0.02)), Verdict::Passed);
    assert_eq!(verdict(Some(0.0201)), Verdict::Failed);
    assert_eq!(verdict(None), Verdict::Unknown);
}

#[test]
fn who_else_ran_may_be_what_the_slowest_messages_of_an_open_loop_waited_for() {
    let check = |mut record: RunRecord, shares: &[f64], expected: Option<&str>| {
        let one =
            |core_share: &f64| Bystander { name: "kdamond.0".to_owned(), core_share: *core_share };
        record.measured.bystanders = shares.iter().map(one).collect();
        assert_eq!(record.others_in_p99().as_deref(), expected, "{shares:?}");
    };
    let open = || example::open_loop(1_000.0, 1);
    check(open(), &[], None);
    check(open(), &[0.009], None);
    check(open(), &[0.01], Some("kdamond.0 1.0 % of a core"));
    check(open(), &[0.006, 0.004], Some("kdamond.0 0.6 %, kdamond.0 0.4 % of a core"));
    // A closed loop sends nothing while it waits.
    check(example::closed_loop(), &[0.5], None);
}

#[test]
fn a_shard_that_waited_for_its_core_says_who_ran_meanwhile() {
    let mut record = example::open_loop(1_000.0, 1);
    let bystander = Bystander { name: "kdamond.0".to_owned(), core_share: 0.024 };
    record.measured.bystanders = vec![bystander];
    let message = |record: &RunRecord, run_delay_ns: Nanos| {
        let mut measured = record.measured.clone();
        measured.shard_threads = vec![ThreadUsage { cpu_ns: Nanos(0), run_delay_ns }];
        let gates = gates(&record.scenario, &measured);
        let gate = gates.into_iter().find(|gate| gate.name == GateName::ShardRunDelay).unwrap();
        (gate.verdict, gate.message)
    };
    let window = record.measured.window_ns;
    let named = "; meanwhile others ran: kdamond.0 2.4 % of a core";
    let (verdict, said) = message(&record, window);
    assert_eq!(verdict, Verdict::Failed);
    assert!(said.ends_with(named), "{said}");
    let (verdict, said) = message(&record, Nanos(0));
    assert_eq!(verdict, Verdict::Passed);
    assert!(!said.contains("kdamond"), "nobody was in its way: {said}");
    record.measured.bystanders.clear();
    let (_, said) = message(&record, window);
    assert!(!said.contains("meanwhile"), "{said}");
}

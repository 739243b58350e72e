//! Whether the figures of a record agree with each other: what was damaged by hand or on a disk mostly does not.
//!
//! In: a record. Out: the first contradiction, in words. Asks only what holds for every record that loadgen ever
//! wrote, whatever was measured.

use super::{Gate, GateName, Measured, RunRecord, Timing, Verdict, gates};

/// What contradicts what, with both values; `None` if all figures agree.
pub(super) fn contradiction(record: &RunRecord) -> Option<String> {
    let RunRecord { measured, .. } = record;
    sums(measured)
        .or_else(|| due_in_seconds(measured))
        .or_else(|| derived(measured, record.scenario.payload_bytes as u64))
        .or_else(|| gates_that_are_not_its_own(record))
        .or_else(|| record.gates.iter().find_map(verdict))
}

/// Gates that its load and what was measured do not have, or not all of them. Records of the time before there were
/// gates have none.
fn gates_that_are_not_its_own(record: &RunRecord) -> Option<String> {
    let names = |gates: &[Gate]| gates.iter().map(|gate| gate.name).collect::<Vec<_>>();
    let listed =
        |names: &[GateName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let ours = names(&record.gates);
    let expected = names(&gates(&record.scenario, &record.measured));
    (!ours.is_empty() && ours != expected).then(|| {
        format!("its gates are {}, but such a run has {}", listed(&ours), listed(&expected))
    })
}

/// Counts that are told twice, or are the sum of others.
fn sums(measured: &Measured) -> Option<String> {
    let received = measured.messages_received;
    let sum = |counts: &mut dyn Iterator<Item = u64>| counts.map(u128::from).sum::<u128>();
    let wrong = measured.wrong;
    let wrong = [wrong.corrupt, wrong.duplicated, wrong.early, wrong.unasked];
    let known = [received, measured.messages_lost, measured.messages_shed];
    let seconds = measured.seconds.iter().map(|second| second.latency.count);
    let told = [
        (
            "messages_due",
            u128::from(measured.messages_due),
            "messages_received + messages_lost + messages_shed",
            sum(&mut known.into_iter()),
        ),
        (
            "messages_wrong",
            u128::from(measured.messages_wrong),
            "the sum of wrong",
            sum(&mut wrong.into_iter()),
        ),
        (
            "messages_received",
            u128::from(received),
            "the sum of echoes_per_stream",
            sum(&mut measured.echoes_per_stream.iter().copied()),
        ),
        (
            "messages_received",
            u128::from(received),
            "the number of values in all seconds",
            sum(&mut seconds.into_iter()),
        ),
    ];
    for (name, value, other, sum) in told {
        if value != sum {
            return Some(format!("{name} is {value}, but {other} is {sum}"));
        }
    }
    Timing::OF_MESSAGES.into_iter().find_map(|timing| {
        let count = timing.of(measured)?.count();
        let name = timing.key();
        (count != received)
            .then(|| format!("messages_received is {received}, but {name} holds {count} values"))
    })
}

/// Every message that a pacer released became due in a second; some of those were of the warm-up. The first records do not
/// tell it by the second.
fn due_in_seconds(measured: &Measured) -> Option<String> {
    let seconds = measured.seconds.iter().map(|second| u128::from(second.messages_due));
    let (due, sum) = (measured.messages_due, seconds.sum::<u128>());
    // Some that were lost no pacer came to release.
    let is_less = sum + u128::from(measured.messages_lost) < u128::from(due);
    (sum > 0 && is_less)
        .then(|| format!("messages_due is {due}, but all seconds had {sum} messages due"))
}

/// Figures that follow from others.
fn derived(measured: &Measured, payload_bytes: u64) -> Option<String> {
    let bytes = |messages: u64| u128::from(messages) * u128::from(payload_bytes);
    let sent_in_window = measured.messages_sent_in_window.unwrap_or_default();
    let told = [
        (
            "payload_bytes_sent",
            u128::from(measured.payload_bytes_sent) == bytes(measured.messages_sent),
        ),
        (
            "payload_bytes_received",
            u128::from(measured.payload_bytes_received) == bytes(measured.messages_received),
        ),
        (
            "throughput_payload_bytes_per_s",
            is_near(
                measured.throughput_payload_bytes_per_s,
                measured.throughput_messages_per_s * payload_bytes as f64,
            ),
        ),
        ("messages_sent", measured.messages_sent <= measured.messages_due),
        ("messages_sent_in_window", sent_in_window <= measured.messages_sent),
        ("messages_per_server_cpu_s", is_of_its_cpu_time(measured)),
    ];
    let (name, _) = told.into_iter().find(|(_, agrees)| !agrees)?;
    Some(format!("{name} is not what the figures that it follows from give"))
}

/// Messages by CPU time, if both are known.
fn is_of_its_cpu_time(measured: &Measured) -> bool {
    let (Some(rate), Some(used)) = (measured.messages_per_server_cpu_s, measured.server) else {
        return true;
    };
    let messages = measured.throughput_messages_per_s * measured.window_ns.as_secs_f64();
    is_near(rate * used.cpu().as_secs_f64(), messages)
}

/// Up to what a float loses on its way.
fn is_near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

/// A verdict that its own figure denies. Some gates excuse a figure and say why; none fails one that keeps its bound.
fn verdict(gate: &Gate) -> Option<String> {
    let Gate { name, verdict, figure, threshold, .. } = gate;
    let figure = (*figure)?;
    let is_kept = figure <= *threshold;
    let agrees = match verdict {
        Verdict::Passed => is_kept || matches!(name, GateName::ShardCpu | GateName::Headroom),
        Verdict::Failed => !is_kept,
        Verdict::Unknown => false,
    };
    let verdict = if *verdict == Verdict::Failed { "failed" } else { "passed or unknown" };
    (!agrees).then(|| {
        format!("gate {name} is {verdict}, but its figure is {figure} of at most {threshold}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    /// With the gates that such a run has.
    fn judged(record: RunRecord) -> RunRecord {
        RunRecord { gates: gates(&record.scenario, &record.measured), ..record }
    }

    #[test]
    fn a_record_as_it_was_written_does_not_contradict_itself() {
        assert_eq!(contradiction(&judged(example::closed_loop())), None);
        assert_eq!(contradiction(&judged(example::open_loop(1_000.0, 1))), None);
    }

    #[test]
    fn a_figure_that_was_changed_contradicts_another() {
        let check = |change: fn(&mut Measured), expected: &str| {
            let mut record = example::open_loop(1_000.0, 1);
            change(&mut record.measured);
            let said = contradiction(&record).unwrap_or_default();
            assert!(said.contains(expected), "{expected}: {said}");
        };
        check(|it| it.messages_due += 1, "messages_due is ");
        check(|it| it.messages_lost += 1, "messages_lost + messages_shed is ");
        check(|it| it.messages_shed += 1, "messages_lost + messages_shed is ");
        check(|it| it.messages_wrong += 1, "messages_wrong is 2, but the sum of wrong is 1");
        check(|it| it.wrong.early += 1, "messages_wrong is 1, but the sum of wrong is 2");
        check(|it| it.echoes_per_stream[0] += 1, "the sum of echoes_per_stream is ");
        check(|it| _ = it.seconds.pop(), "the number of values in all seconds is ");
        check(|it| it.service_time.clear(), "service_time holds 0 values");
        check(|it| it.response_time = Some(it.connect.clone()), "response_time holds ");
        check(|it| it.payload_bytes_sent += 1, "payload_bytes_sent is not");
        check(|it| it.payload_bytes_received += 1, "payload_bytes_received is not");
        check(|it| it.throughput_messages_per_s *= 1.01, "throughput_payload_bytes_per_s is not");
        check(|it| it.throughput_payload_bytes_per_s *= 1.01, "throughput_payload_bytes_per_s is");
        check(|it| it.messages_sent_in_window = Some(u64::MAX), "messages_sent_in_window is not");
        check(|it| it.messages_per_server_cpu_s = Some(9.0), "messages_per_server_cpu_s is not");
        check(|it| it.seconds[0].messages_due -= 1, "all seconds had 19999 messages due");
        // No sum overflows, whatever stands there.
        check(|it| it.messages_lost = u64::MAX, "messages_lost + messages_shed is 18446744073709");
    }

    #[test]
    fn more_may_become_due_in_seconds_than_in_the_run_but_not_less() {
        let check = |change: fn(&mut Measured), expected: Option<&str>| {
            let mut record = judged(example::open_loop(1_000.0, 1));
            change(&mut record.measured);
            let said = contradiction(&record);
            assert_eq!(said.as_deref(), expected);
        };
        check(|_| {}, None);
        // Of the warm-up, but released late.
        check(|it| it.seconds[0].messages_due += 7, None);
        let said = "messages_due is 20000, but all seconds had 19999 messages due";
        check(|it| it.seconds[0].messages_due -= 1, Some(said));
        // No pacer came to release them.
        let never_released = |it: &mut Measured| {
            it.messages_due += 100;
            it.messages_lost += 100;
        };
        check(never_released, None);
        // Seconds of the first records did not tell.
        check(|it| it.seconds.iter_mut().for_each(|second| second.messages_due = 0), None);
    }

    #[test]
    fn a_gate_that_was_taken_out_is_missed() {
        let record = judged(example::open_loop(1_000.0, 1));
        for at in 0..record.gates.len() {
            let mut record = record.clone();
            let name = record.gates.remove(at).name;
            let said = contradiction(&record).unwrap_or_default();
            assert!(said.contains("its gates are "), "{name}: {said}");
        }
        let of_old = RunRecord { gates: Vec::new(), ..record };
        assert_eq!(contradiction(&of_old), None);
    }

    #[test]
    fn a_verdict_that_was_changed_contradicts_its_figure() {
        let check = |name, verdict, figure, expected| {
            let mut gate = example::gate(name, verdict, figure, "share");
            gate.threshold = 1.0;
            assert_eq!(super::verdict(&gate).is_some(), expected, "{name} {verdict:?} {figure:?}");
        };
        check(GateName::Steal, Verdict::Passed, Some(1.0), false);
        check(GateName::Steal, Verdict::Passed, Some(1.1), true);
        check(GateName::Steal, Verdict::Failed, Some(1.1), false);
        check(GateName::Steal, Verdict::Failed, Some(1.0), true);
        check(GateName::Steal, Verdict::Unknown, Some(1.0), true);
        check(GateName::Steal, Verdict::Unknown, None, false);
        check(GateName::Probe, Verdict::Failed, None, false);
        check(GateName::ShardCpu, Verdict::Passed, Some(1.1), false);
        check(GateName::Headroom, Verdict::Passed, Some(1.1), false);
    }
}

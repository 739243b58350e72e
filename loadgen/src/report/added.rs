//! What all runs of a server have in common, for a comparison: their histograms added, never their percentiles.

use std::fmt::{self, Display};

use crate::record::{Hdr, RunRecord, is_supported};
use crate::units::Count;

/// Sums over the runs of one server.
#[derive(Clone, Debug, Default)]
pub struct Added {
    runs: usize,
    /// R, in closed loop S.
    latency: Hdr,
    missing: u64,
    messages: f64,
    window_s: f64,
    /// Of the server; `None` once a run does not know it.
    cpu_s: Option<f64>,
    is_open_loop: bool,
}

impl Added {
    /// Adds a run.
    pub fn add(&mut self, record: &RunRecord) {
        let measured = &record.measured;
        let window_s = measured.window_ns.as_secs_f64();
        let cpu_s = measured.server.map(|used| used.cpu().as_secs_f64());
        let before = if self.runs == 0 { Some(0.0) } else { self.cpu_s };
        self.cpu_s = before.zip(cpu_s).map(|(sum, cpu_s)| sum + cpu_s);
        self.runs += 1;
        self.latency.merge(measured.latency());
        self.missing += measured.missing();
        self.messages += measured.throughput_messages_per_s * window_s;
        self.window_s += window_s;
        self.is_open_loop = measured.response_time.is_some();
    }

    fn percentile(&self, percent: f64) -> String {
        if !is_supported(self.latency.count() + self.missing, percent) {
            return "-".to_owned();
        }
        let (value, is_beyond) = self.latency.percentile_among(percent, self.missing);
        format!("{}{value}", if is_beyond { ">" } else { "" })
    }
}

impl Display for Added {
    /// As one line, without a name.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} messages/s", Count(self.messages / self.window_s))?;
        if let Some(cpu_s) = self.cpu_s.filter(|cpu_s| *cpu_s > 0.0) {
            write!(out, ", {} per server CPU-second", Count(self.messages / cpu_s))?;
        }
        let name = if self.is_open_loop { "R" } else { "S" };
        let [p50, p99, p99_9] = [50.0, 99.0, 99.9].map(|percent| self.percentile(percent));
        let (count, runs) = (Count(self.latency.count() as f64), self.runs);
        write!(
            out,
            ", {name} p50 {p50}, p99 {p99}, p99.9 {p99_9} ({count} messages of {runs} runs)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;
    use crate::units::Nanos;

    #[test]
    fn percentiles_are_of_all_messages_and_no_means() {
        let run = |value_us: u64, count: u64| {
            let mut record = example::open_loop(1_000.0, 1);
            let mut times = Hdr::default();
            (0..count).for_each(|_| times.record(Nanos(value_us * 1_000)));
            record.measured.response_time = Some(times);
            record
        };
        let mut added = Added::default();
        added.add(&run(100, 9_000));
        added.add(&run(900, 1_000));
        let said = added.to_string();
        // A mean of both p50 would be 500 µs.
        assert!(
            said.contains("R p50 100 µs, p99 900 µs, p99.9 900 µs (10 k messages of 2 runs)"),
            "{said}"
        );
        assert!(said.starts_with("1000 messages/s, 250 k per server CPU-second, "), "{said}");
    }

    #[test]
    fn messages_without_an_echo_are_later_than_all_and_few_hold_no_percentile_up() {
        let mut record = example::closed_loop();
        record.measured.messages_lost = record.measured.service_time.count() / 20;
        record.measured.server = None;
        let mut added = Added::default();
        added.add(&record);
        let said = added.to_string();
        assert!(said.contains(", S p50 ") && said.contains(", p99 >"), "{said}");
        assert!(!said.contains("CPU"), "{said}");
        let mut few = example::closed_loop();
        few.measured.service_time = Hdr::default();
        (0..100).for_each(|_| few.measured.service_time.record(Nanos(1_000)));
        let mut added = Added::default();
        added.add(&few);
        assert!(added.to_string().contains(", p99 -, p99.9 - "), "{added}");
        // Known in one run only is not known.
        added.add(&record);
        assert!(!added.to_string().contains("CPU"), "{added}");
    }
}

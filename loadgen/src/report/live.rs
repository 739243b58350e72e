//! The lines while a run goes on: one a second.

use std::collections::VecDeque;
use std::fmt;

use crate::record::{Gate, GateName, Second, Verdict};
use crate::scenario::{Load, Scenario};
use crate::units::{Count, Nanos};

/// Seconds that the sparkline shows.
const SPARKS: usize = 30;

/// From low to high.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What the lines of a run add up.
#[derive(Clone, Debug, Default)]
pub struct Live {
    received: u64,
    failed: u64,
    /// Due and neither echoed nor shed since the window began.
    backlog: i128,
    /// Of the last seconds; `None` where nothing came that has a time.
    p99: VecDeque<Option<Nanos>>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct LiveLine {
    progress: String,
    received: u64,
    /// With whether it lies among what was shed; `None` where nothing came that has a time.
    p50: Option<(Nanos, bool)>,
    p99: Option<(Nanos, bool)>,
    failed: u64,
    /// Of an open loop.
    backlog: Option<i128>,
    /// Gates that fail so far.
    failing: Vec<GateName>,
    sparkline: String,
}

impl Live {
    /// The line of a second that is over. `gates`: as they stand so far.
    pub fn line(
        &mut self,
        scenario: &Scenario,
        second: &Second,
        failed: u64,
        gates: &[Gate],
    ) -> LiveLine {
        self.received += second.messages_received;
        self.failed += failed;
        self.backlog += second.backlog_growth();
        let has_times = second.latency.count > 0;
        let [p50, p99] = second.percentiles([50.0, 99.0]).map(|it| has_times.then_some(it));
        self.p99.push_back(p99.map(|(value, _)| value));
        if self.p99.len() > SPARKS {
            self.p99.pop_front();
        }
        let is_open = matches!(scenario.load, Load::OpenLoop { .. });
        let failing = gates.iter().filter(|gate| gate.verdict == Verdict::Failed);
        LiveLine {
            progress: self.progress(scenario, second.second + 1),
            received: second.messages_received,
            p50,
            p99,
            failed: self.failed,
            backlog: is_open.then_some(self.backlog),
            failing: failing.map(|gate| gate.name).collect(),
            sparkline: sparkline(self.p99.iter().copied()),
        }
    }

    fn progress(&self, scenario: &Scenario, seconds: u64) -> String {
        let by_time = scenario.duration_ns.map(|duration| seconds as f64 / duration.as_secs_f64());
        let by_count = scenario.messages_max.map(|max| self.received as f64 / max as f64);
        let done = by_time.unwrap_or(0.0).max(by_count.unwrap_or(0.0)).min(1.0);
        format!("{:>3.0} %  {seconds:>4} s", done * 100.0)
    }
}

impl LiveLine {
    /// For a terminal so wide, which shows one line at a time: with the course of p99 behind it, or as much of
    /// that as there is room for. A line that is wrapped could not be taken back.
    pub fn within(&self, columns: usize) -> String {
        const WORD: &str = "  p99 ";
        let line = self.to_string();
        // The last column is left free: some terminals wrap as soon as it is written.
        let room = columns.saturating_sub(1);
        let left = room.saturating_sub(line.chars().count() + WORD.len());
        let sparks = self.sparkline.chars().count();
        if left == 0 {
            return line.chars().take(room).collect();
        }
        let latest: String = self.sparkline.chars().skip(sparks.saturating_sub(left)).collect();
        format!("{line}{WORD}{latest}")
    }
}

/// A bar for each value: the lowest is the least of them, the highest the largest, in between by their
/// logarithm. A gap where there is none.
fn sparkline(values: impl Iterator<Item = Option<Nanos>> + Clone) -> String {
    let log = |value: Nanos| (value.0.max(1) as f64).ln();
    let low = values.clone().flatten().map(log).fold(f64::INFINITY, f64::min);
    let high = values.clone().flatten().map(log).fold(f64::NEG_INFINITY, f64::max);
    let bar = |value: Nanos| {
        let share = if high > low { (log(value) - low) / (high - low) } else { 0.0 };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a few bars"
        )]
        let bar = (share * (BARS.len() - 1) as f64).round() as usize;
        BARS[bar.min(BARS.len() - 1)]
    };
    values.map(|value| value.map_or(' ', bar)).collect()
}

impl fmt::Display for LiveLine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LiveLine { progress, received, p50, p99, failed, .. } = self;
        let rate = Count(*received as f64);
        let time = |told: &Option<(Nanos, bool)>| match told {
            None => "-".to_owned(),
            Some((value, true)) => format!(">{value}"),
            Some((value, false)) => value.to_string(),
        };
        let (p50, p99) = (time(p50), time(p99));
        write!(
            out,
            "{progress}  {rate:>7} messages/s  p50 {p50:>8}  p99 {p99:>8}  errors {failed}"
        )?;
        if let Some(backlog) = self.backlog {
            write!(out, "  backlog {backlog}")?;
        }
        for gate in &self.failing {
            write!(out, "  gate {gate} fails")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn what_is_shed_is_no_backlog() {
        let record = example::open_loop(1_000.0, 1);
        let mut second = record.measured.seconds[0].clone();
        (second.messages_due, second.messages_received) = (1_000, 400);
        let mut live = Live::default();
        let mut line = |second: &Second| live.line(&record.scenario, second, 0, &[]).to_string();
        assert!(line(&second).ends_with("backlog 600"));
        second.messages_shed = 590;
        assert!(line(&second).ends_with("backlog 610"));
    }

    #[test]
    fn a_percentile_among_what_was_shed_is_told_as_beyond() {
        let record = example::open_loop(1_000.0, 1);
        let mut second = record.measured.seconds[0].clone();
        second.messages_shed = second.latency.count / 10;
        let line = Live::default().line(&record.scenario, &second, 0, &[]).to_string();
        let largest = format!("p99 {:>8}", format!(">{}", second.latency.max_ns));
        assert!(line.contains(&largest), "{line}");
        assert!(!line.contains("p50 >") && !line.contains("p50  >"), "{line}");
    }

    #[test]
    fn a_line_never_needs_more_than_the_terminal_has() {
        let record = example::open_loop(1_000.0, 1);
        let mut live = Live::default();
        let mut line = None;
        for second in 0..40 {
            let second = Second { second, ..record.measured.seconds[0].clone() };
            line = Some(live.line(&record.scenario, &second, 0, &[]));
        }
        let line = line.unwrap();
        let length = line.to_string().chars().count();
        for columns in [1, 20, length, length + 1, length + 10, 200] {
            let shown = line.within(columns);
            assert!(shown.chars().count() < columns, "{columns}: {shown}");
            assert!(line.to_string().starts_with(&shown) || shown.starts_with(&line.to_string()));
        }
        assert!(line.within(200).ends_with(&format!("p99 {}", line.sparkline)));
        assert!(line.within(length + 10).ends_with("p99 ▁▁▁"));
    }

    #[test]
    fn a_sparkline_goes_from_the_least_to_the_largest() {
        let line = |values: &[u64]| sparkline(values.iter().map(|value| Some(Nanos(*value))));
        assert_eq!(line(&[1_000, 1_000_000, 31_623]), "▁█▅");
        assert_eq!(line(&[7, 7]), "▁▁");
        assert_eq!(line(&[0]), "▁");
        assert_eq!(line(&[]), "");
    }

    #[test]
    fn a_second_in_which_nothing_came_has_no_time() {
        let record = example::open_loop(1_000.0, 1);
        let second = |count: usize| {
            let mut hdr = crate::record::Hdr::default();
            (0..count).for_each(|us| hdr.record(Nanos(1_000 * (us as u64 + 1))));
            let latency = crate::record::WrittenHdr::from(&hdr);
            Second {
                messages_received: count as u64,
                latency,
                ..record.measured.seconds[0].clone()
            }
        };
        let mut live = Live::default();
        let mut line = |second: &Second| live.line(&record.scenario, second, 0, &[]);
        line(&second(1_000));
        // Nor is it that of what was shed.
        let empty = Second { messages_shed: 9, ..second(0) };
        let said = line(&empty).to_string();
        assert!(said.contains("p50        -  p99        -  "), "{said}");
        let shown = line(&second(10)).within(300);
        assert!(shown.ends_with("  p99 █ ▁"), "{shown}");
    }
}

//! The lines while a run goes on: one a second.

use std::fmt;

use crate::record::Second;
use crate::scenario::Scenario;
use crate::units::{Count, Nanos};

/// What the lines of a run add up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    received: u64,
    failed: u64,
}

/// One line.
#[derive(Clone, Debug)]
pub struct LiveLine {
    progress: String,
    received: u64,
    p50: Nanos,
    p99: Nanos,
    failed: u64,
}

impl Live {
    /// The line of a second that is over.
    pub fn line(&mut self, scenario: &Scenario, second: &Second, failed: u64) -> LiveLine {
        self.received += second.messages_received;
        self.failed += failed;
        LiveLine {
            progress: self.progress(scenario, second.second + 1),
            received: second.messages_received,
            p50: second.latency.p50_ns,
            p99: second.latency.p99_ns,
            failed: self.failed,
        }
    }

    fn progress(&self, scenario: &Scenario, seconds: u64) -> String {
        let by_time = scenario.duration_ns.map(|duration| seconds as f64 / duration.as_secs_f64());
        let by_count = scenario.messages_max.map(|max| self.received as f64 / max as f64);
        let done = by_time.unwrap_or(0.0).max(by_count.unwrap_or(0.0)).min(1.0);
        format!("{:>3.0} %  {seconds:>4} s", done * 100.0)
    }
}

impl fmt::Display for LiveLine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LiveLine { progress, received, p50, p99, failed } = self;
        let rate = Count(*received as f64);
        write!(out, "{progress}  {rate:>7} messages/s  p50 {p50:>8}  p99 {p99:>8}  errors {failed}")
    }
}

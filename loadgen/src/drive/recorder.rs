//! Histograms and counters of one shard.
//!
//! In: each echo with its instants. Out: what [`Measured`] is merged from, and one [`Interval`] a
//! second. One recorder per shard, touched by that shard's thread alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bidi_echo::stats::code_name;
use tonic::{Code, Status};

use super::flight::Sent;
use super::timeline::Timeline;
use crate::record::{Hdr, SoFar, Unstable, Wrong};
use crate::units::Nanos;

/// What one shard saw.
#[derive(Debug)]
pub(crate) struct Recorder {
    timeline: Arc<Timeline>,
    open_loop: bool,
    interval: Interval,
    /// When that ends; zero before it was looked for.
    interval_end: Nanos,
    finished: Vec<Interval>,
    /// Messages of an open loop that are due and not echoed, on all streams of the shard.
    pub(crate) backlog: u64,
    pub(crate) seen: Seen,
}

/// The sums over a run; those of all shards merge into one.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) response_time: Hdr,
    pub(crate) send_lag: Hdr,
    pub(crate) flow_wait: Hdr,
    pub(crate) service_time: Hdr,
    pub(crate) connect: Hdr,
    pub(crate) response_headers: Hdr,
    pub(crate) first_message: Hdr,
    pub(crate) half_close: Hdr,
    /// Differences between gaps of departures and those of the plan.
    pub(crate) gap_error: Hdr,
    /// Sum of the times from queued to received.
    pub(crate) in_flight: Nanos,
    /// Echoes of the measurement.
    pub(crate) received: u64,
    /// Echoes that arrived inside the window.
    pub(crate) received_in_window: u64,
    /// When the last echo of the measurement arrived.
    pub(crate) last_received: Nanos,
    pub(crate) wrong: Wrong,
    pub(crate) statuses: BTreeMap<&'static str, u64>,
    /// The first pacer that gave up.
    pub(crate) unstable: Option<Unstable>,
    pub(crate) first_failure: Option<String>,
    /// The `server` header of the first response that had one.
    pub(crate) product: Option<String>,
}

/// One second of one shard.
#[derive(Debug, Default)]
pub(crate) struct Interval {
    pub(crate) second: u64,
    pub(crate) due: u64,
    /// Of those.
    pub(crate) shed: u64,
    pub(crate) received: u64,
    pub(crate) failed: u64,
    pub(crate) latency: Hdr,
    /// From the window's begin to its end.
    pub(crate) so_far: SoFar,
}

impl Recorder {
    pub(crate) fn new(timeline: Arc<Timeline>, open_loop: bool) -> Self {
        Recorder {
            timeline,
            open_loop,
            interval: Interval::default(),
            interval_end: Nanos(0),
            finished: Vec::new(),
            backlog: 0,
            seen: Seen::default(),
        }
    }

    /// The pacer released a message at `now`, and the gap to the one before on its stream is off by
    /// `gap_error`.
    pub(crate) fn due(&mut self, intended: Nanos, now: Nanos, gap_error: Option<Nanos>) {
        let window_begin = self.timeline.window_begin();
        if now < window_begin {
            return;
        }
        self.roll(now);
        self.interval.due += 1;
        if let Some(error) = gap_error.filter(|_| intended >= window_begin) {
            self.seen.gap_error.record(error);
        }
    }

    /// What the pacer released at `now` is left out: its stream is blocked.
    pub(crate) fn shed(&mut self, now: Nanos) {
        if now >= self.timeline.window_begin() {
            self.roll(now);
            self.interval.shed += 1;
        }
    }

    /// An echo came at `received`. Says whether it belongs to the measurement.
    pub(crate) fn echo(&mut self, sent: &Sent, received: Nanos) -> bool {
        if sent.sequence == 0 {
            self.seen.first_message.record(received.since(sent.pulled));
        }
        let window_begin = self.timeline.window_begin();
        if received < window_begin {
            return false;
        }
        self.roll(received);
        self.interval.received += 1;
        if received < self.timeline.window_end() {
            self.seen.received_in_window += 1;
        }
        // Not whether the window still counts it: Ctrl-C may have moved the end since it was sent.
        if sent.intended < window_begin {
            return false;
        }
        self.seen.received += 1;
        self.seen.last_received = received;
        self.times(sent, received);
        true
    }

    /// What a second is told by, R or in closed loop S, is summed up when the second closes.
    fn times(&mut self, sent: &Sent, received: Nanos) {
        let service = received.since(sent.pulled);
        self.seen.flow_wait.record(sent.pulled.since(sent.queued));
        if !self.open_loop {
            self.seen.in_flight = self.seen.in_flight + received.since(sent.queued);
            return self.interval.latency.record(service);
        }
        self.interval.latency.record(received.since(sent.intended));
        self.seen.service_time.record(service);
        self.seen.send_lag.record(sent.queued.since(sent.intended));
    }

    /// Closes a second.
    fn close(&mut self, next: Interval) {
        let Seen { response_time, service_time, .. } = &mut self.seen;
        let sum = if self.open_loop { response_time } else { service_time };
        sum.merge(&self.interval.latency);
        let so_far = self.seen.so_far();
        self.finished.push(Interval { so_far, ..std::mem::replace(&mut self.interval, next) });
    }

    /// A stream ended.
    pub(crate) fn ended(&mut self, stream: usize, status: &Status) {
        let code = code_of(status);
        *self.seen.statuses.entry(code_name(code)).or_default() += 1;
        if code != Code::Ok {
            self.failed(|| {
                let cause = std::error::Error::source(status)
                    .map_or(String::new(), |cause| format!(" ({})", innermost(cause)));
                let code = code_name(code);
                format!("stream {stream} ended with {code}: {}{cause}", status.message())
            });
        }
    }

    /// An echo on `stream` was not what was due.
    pub(crate) fn wrong(&mut self, which: fn(&mut Wrong) -> &mut u64, stream: usize) {
        *which(&mut self.seen.wrong) += 1;
        self.failed(|| format!("stream {stream}: an echo was not the message that was due"));
    }

    /// Something failed; the first is kept in words, in one line: a server's own may be meant for terminals and tables.
    pub(crate) fn failed(&mut self, describe: impl FnOnce() -> String) {
        self.interval.failed += 1;
        self.seen.first_failure.get_or_insert_with(|| {
            describe().replace(char::is_control, &char::REPLACEMENT_CHARACTER.to_string())
        });
    }

    /// Closes the seconds that are over at `now`: a comparison for each message, a division for each second.
    pub(crate) fn roll(&mut self, now: Nanos) {
        if now < self.interval_end {
            return;
        }
        let window_begin = self.timeline.window_begin();
        let second = now.since(window_begin).0 / Nanos::SECOND.0;
        self.interval_end = window_begin + Nanos((second + 1) * Nanos::SECOND.0);
        while self.interval.second < second {
            let second = self.interval.second + 1;
            self.close(Interval { second, ..Interval::default() });
        }
    }

    /// The seconds that were closed since the last call.
    pub(crate) fn take_finished(&mut self) -> Vec<Interval> {
        std::mem::take(&mut self.finished)
    }

    /// All that is left: the last, unfinished second, and the sums.
    pub(crate) fn take_rest(&mut self) -> (Vec<Interval>, Seen) {
        self.close(Interval::default());
        (self.take_finished(), std::mem::take(&mut self.seen))
    }
}

/// A connection that broke is UNAVAILABLE (grpc/grpc, doc/statuscodes.md); tonic says UNKNOWN, but
/// with a cause, which a status from the wire never has.
fn code_of(status: &Status) -> Code {
    match std::error::Error::source(status) {
        Some(_) if status.code() == Code::Unknown => Code::Unavailable,
        _ => status.code(),
    }
}

/// The cause that says most: "connection reset by peer" rather than "transport error".
fn innermost(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

impl Seen {
    /// Reads of each histogram what lies below its percentile: some microseconds, once a second.
    fn so_far(&self) -> SoFar {
        let p99 = |hdr: &Hdr| (hdr.count() > 0).then(|| hdr.percentile(99.0));
        SoFar {
            send_lag_p99: p99(&self.send_lag),
            gap_error_p99: p99(&self.gap_error),
            service_time_p50: self.service_time.percentile(50.0),
            in_flight: self.in_flight,
        }
    }

    pub(crate) fn merge(&mut self, other: Seen) {
        for (sum, part) in [
            (&mut self.response_time, &other.response_time),
            (&mut self.send_lag, &other.send_lag),
            (&mut self.flow_wait, &other.flow_wait),
            (&mut self.service_time, &other.service_time),
            (&mut self.connect, &other.connect),
            (&mut self.response_headers, &other.response_headers),
            (&mut self.first_message, &other.first_message),
            (&mut self.half_close, &other.half_close),
            (&mut self.gap_error, &other.gap_error),
        ] {
            sum.merge(part);
        }
        self.in_flight = self.in_flight + other.in_flight;
        self.received += other.received;
        self.received_in_window += other.received_in_window;
        self.last_received = self.last_received.max(other.last_received);
        self.wrong.corrupt += other.wrong.corrupt;
        self.wrong.duplicated += other.wrong.duplicated;
        self.wrong.early += other.wrong.early;
        self.wrong.unasked += other.wrong.unasked;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        let unstable = self.unstable.take().into_iter().chain(other.unstable);
        self.unstable = unstable.min_by_key(|unstable| unstable.at_ns);
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.product = self.product.take().or(other.product);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u64 = 1_000;

    fn recorder(open_loop: bool) -> Recorder {
        let timeline = Timeline::unknown();
        timeline.set(Nanos(0), Nanos(BEGIN), Nanos(BEGIN + 2 * Nanos::SECOND.0));
        Recorder::new(Arc::new(timeline), open_loop)
    }

    fn sent(intended: u64, queued: u64, pulled: u64) -> Sent {
        let [intended, queued, pulled] = [intended, queued, pulled].map(|at| Nanos(BEGIN + at));
        Sent { sequence: 1, intended, queued, pulled }
    }

    #[test]
    fn response_time_is_the_sum_of_lag_wait_and_service() {
        let mut recorder = recorder(true);
        assert!(recorder.echo(&sent(100, 110, 130), Nanos(BEGIN + 170)));
        let (_, seen) = recorder.take_rest();
        assert_eq!(seen.send_lag.max(), Nanos(10));
        assert_eq!(seen.flow_wait.max(), Nanos(20));
        assert_eq!(seen.service_time.max(), Nanos(40));
        assert_eq!(seen.response_time.max(), Nanos(70));
    }

    #[test]
    fn the_closed_loop_has_nothing_to_be_late_for_but_waits_and_is_served() {
        let mut recorder = recorder(false);
        recorder.echo(&sent(100, 100, 130), Nanos(BEGIN + 170));
        recorder.roll(Nanos(BEGIN + 170 + Nanos::SECOND.0));
        recorder.echo(&sent(100, 100, 130), Nanos(BEGIN + 180 + Nanos::SECOND.0));
        let (seconds, seen) = recorder.take_rest();
        assert_eq!(seconds.iter().map(|second| second.latency.count()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!((seen.service_time.count(), seen.flow_wait.count()), (2, 2));
        assert_eq!(seen.flow_wait.max(), Nanos(30));
        assert_eq!(seen.in_flight, Nanos(70 + 80 + Nanos::SECOND.0));
        assert_eq!((seen.response_time.count(), seen.send_lag.count()), (0, 0));
    }

    #[test]
    fn what_is_due_counts_in_its_second_and_its_gap_if_it_is_of_the_window() {
        let mut recorder = recorder(true);
        recorder.due(Nanos(BEGIN - 2), Nanos(BEGIN - 1), Some(Nanos(3)));
        recorder.shed(Nanos(BEGIN - 1));
        recorder.due(Nanos(BEGIN - 1), Nanos(BEGIN), Some(Nanos(5)));
        recorder.due(Nanos(BEGIN), Nanos(BEGIN + Nanos::SECOND.0), Some(Nanos(7)));
        recorder.due(Nanos(BEGIN + 1), Nanos(BEGIN + Nanos::SECOND.0), None);
        recorder.shed(Nanos(BEGIN + Nanos::SECOND.0));
        let (intervals, seen) = recorder.take_rest();
        assert_eq!(intervals.iter().map(|interval| interval.shed).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(intervals.iter().map(|interval| interval.due).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((seen.gap_error.count(), seen.gap_error.max()), (1, Nanos(7)));
    }

    #[test]
    fn the_warm_up_is_not_recorded_but_its_late_echoes_are_throughput() {
        let mut recorder = recorder(true);
        let early = Sent { sequence: 1, intended: Nanos(1), queued: Nanos(1), pulled: Nanos(1) };
        assert!(!recorder.echo(&early, Nanos(BEGIN - 1)));
        assert!(!recorder.echo(&early, Nanos(BEGIN + 1)));
        let (_, seen) = recorder.take_rest();
        assert_eq!((seen.received, seen.received_in_window), (0, 1));
        assert_eq!(seen.service_time.count(), 0);
    }

    #[test]
    fn an_echo_in_the_drain_is_received_but_is_not_throughput() {
        let mut recorder = recorder(true);
        assert!(recorder.echo(&sent(100, 100, 100), Nanos(BEGIN + 3 * Nanos::SECOND.0)));
        let seen = &recorder.seen;
        assert_eq!((seen.received, seen.received_in_window), (1, 0));
    }

    #[test]
    fn seconds_close_in_order_and_empty_ones_are_there_too() {
        let mut recorder = recorder(true);
        recorder.echo(&sent(1, 1, 1), Nanos(BEGIN + 2));
        recorder.roll(Nanos(BEGIN + 3 * Nanos::SECOND.0));
        recorder.echo(&sent(1, 1, 1), Nanos(BEGIN + 3 * Nanos::SECOND.0 + 1));
        let (intervals, _) = recorder.take_rest();
        let seen: Vec<_> = intervals.iter().map(|i| (i.second, i.received)).collect();
        assert_eq!(seen, [(0, 1), (1, 0), (2, 0), (3, 1)]);
    }
}

//! The measured core: connects, warms up, measures, drains. No file, no process, no printing.
//!
//! In: a [`Scenario`], a target, and a future that asks for an early end. Out: [`Measured`], and
//! [`Progress`] on the way. Shards do the work, each on a thread of its own (`shard`); this module
//! tells them when, and adds up what they saw.

mod clock;
mod contract;
mod flight;
mod inline;
mod pacer;
mod payload;
mod recorder;
mod schedule;
mod shard;
mod stream;
mod timeline;
mod timer;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub use self::clock::Clock;
use self::contract::{Chat, Echo};
use self::flight::Lost;
use self::recorder::{Interval, Seen};
use self::shard::{Command, Event, Figures, Plan};
use self::timeline::Timeline;
use crate::record::{Gate, Hdr, Measured, Probe, Second, SoFar, WrittenHdr, load_gates_so_far};
use crate::scenario::{ContractName, Load, Scenario};
use crate::units::Nanos;

/// Flow-control windows that loadgen announces.
struct FlowWindowBytes {
    stream: u32,
    connection: u32,
}

/// Wide, so that the client's windows are never what is measured, and so that h2's guard against
/// small frames (a budget of half the connection's window) does not mistake echoes for an attack:
/// 64 MiB let 130,000 unread echoes of one small frame each through.
const FLOW_WINDOW_BYTES: FlowWindowBytes =
    FlowWindowBytes { stream: 8 << 20, connection: 64 << 20 };

/// From the command to begin to the first message: shards on other threads must have seen it.
const HEAD_START: Nanos = Nanos(20_000_000);

/// After something idle was opened, until nothing goes on any more in a server: acknowledgements, timers of
/// a few milliseconds.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(500);

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DriveError {
    #[error("cannot open connection {connection} of {connections}")]
    Connect {
        connection: usize,
        connections: usize,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no stream could be opened: {failure}")]
    NoStream { failure: String },
    #[error("an idle stream has not echoed its message: {failure}")]
    NoIdleStream { failure: String },
    #[error("cannot pin a shard to core {cpu}: {error}; pass cores that this process may use")]
    Pin { cpu: usize, error: io::Error },
    #[error("cannot start a shard: {0}")]
    Runtime(io::Error),
    #[error("a shard's thread ended without a word; that is a bug in loadgen")]
    ShardLost,
    #[error("stopped before the measurement began")]
    Interrupted,
    #[error("the run was given up")]
    Abandoned,
}

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Progress {
    /// A phase begins now.
    Phase(Phase),
    /// This is open now, and at rest if anything is idle.
    Open(Opened),
    /// One second of the window is over.
    Second {
        /// The second, merged over the shards.
        second: Second,
        /// Failures in it: streams that ended wrongly, wrong echoes.
        failed: u64,
        /// How the load stands, from the window's begin to the end of this second.
        gates: Vec<Gate>,
    },
}

/// What a run opens, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The connections, and the streams of the load.
    Streams,
    /// The idle streams.
    IdleStreams,
    /// The idle connections.
    IdleConnections,
}

/// The phases of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connections and streams are being opened.
    Connect,
    /// Load that is not recorded.
    WarmUp {
        /// Streams that have no response headers yet.
        streams_without_headers: usize,
    },
    /// The window is open.
    Measure,
    /// The window is shut; echoes are awaited.
    Drain,
}

/// Runs `scenario` against `target`. `stop` asks for an early end; what was measured until then is
/// given. CPU and memory are not filled in: watching processes is the caller's part, in step with
/// `tell`. Err: the run has no figures.
pub async fn run(
    scenario: &Scenario,
    target: http::Uri,
    stop: impl Future<Output = ()>,
    tell: &mut dyn FnMut(Progress),
) -> Result<(Measured, Option<String>), DriveError> {
    // Said once; from then on it says nothing.
    let mut stop = std::pin::pin!(stop.fuse());
    let mut stopped = false;
    tell(Progress::Phase(Phase::Connect));
    let mut shards = Shards::spawn(scenario, target)?;
    let streams_without_headers = tokio::select! {
        opened = shards.opened() => opened?,
        () = &mut stop => return Err(DriveError::Interrupted),
    };
    tokio::select! {
        rested = shards.open_idle(tell) => rested?,
        () = &mut stop => return Err(DriveError::Interrupted),
    }
    shards.begin();
    tell(Progress::Phase(Phase::WarmUp { streams_without_headers }));
    if shards.until(shards.timeline.window_begin(), &mut stop, &mut stopped, tell).await? {
        tell(Progress::Phase(Phase::Measure));
        shards.until(shards.timeline.window_end(), &mut stop, &mut stopped, tell).await?;
    }
    tell(Progress::Phase(Phase::Drain));
    let probe = shards.drained(&mut stop, &mut stopped, tell).await?;
    let (mut measured, product) = shards.measured(stopped);
    measured.probe = probe;
    Ok((measured, product))
}

/// All shards of a run, as the coordinator sees them.
struct Shards {
    scenario: Arc<Scenario>,
    timeline: Arc<Timeline>,
    clock: Clock,
    commands: watch::Sender<Command>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Those of the probe's thread, if there is one.
    probe: Option<mpsc::UnboundedReceiver<Event>>,
    done: Vec<Figures>,
    seconds: Seconds,
}

impl Shards {
    fn spawn(scenario: &Scenario, target: http::Uri) -> Result<Self, DriveError> {
        let scenario = Arc::new(scenario.clone());
        let timeline = Arc::new(Timeline::unknown());
        let clock = Clock::start();
        let (commands, receiver) = watch::channel(Command::Open);
        let (sender, events) = mpsc::unbounded_channel();
        let spawn = match scenario.contract {
            ContractName::Echo => shard::spawn::<Echo>,
            ContractName::Chat => shard::spawn::<Chat>,
        };
        let plan = |name: String, shard, scenario: &Arc<Scenario>| Plan {
            name,
            is_probe: false,
            shard,
            scenario: scenario.clone(),
            target: target.clone(),
            timeline: timeline.clone(),
            clock,
        };
        for shard in 0..scenario.shards {
            let plan = plan(format!("shard-{shard}"), shard, &scenario);
            spawn(plan, receiver.clone(), sender.clone()).map_err(DriveError::Runtime)?;
        }
        let mut probe = None;
        if let Some(beside) = scenario.probe() {
            let (sender, events) = mpsc::unbounded_channel();
            let plan = Plan { is_probe: true, ..plan("probe".to_owned(), 0, &Arc::new(beside)) };
            spawn(plan, receiver, sender).map_err(DriveError::Runtime)?;
            probe = Some(events);
        }
        let seconds = Seconds::of(scenario.clone());
        let done = Vec::new();
        Ok(Shards { scenario, timeline, clock, commands, events, probe, done, seconds })
    }

    /// Waits until every shard has opened its streams. Out: streams without response headers.
    async fn opened(&mut self) -> Result<usize, DriveError> {
        let mut without_headers = 0;
        for _ in 0..self.scenario.shards {
            match self.events.recv().await.ok_or(DriveError::ShardLost)? {
                Event::Opened { streams, with_headers } => {
                    without_headers += streams - with_headers
                }
                Event::Failed(error) => return Err(error),
                Event::OpenedIdle | Event::Intervals(_) | Event::Unstable | Event::Done(_) => {
                    unreachable!("nothing has begun")
                }
            }
        }
        if let Some(probe) = &mut self.probe
            && let Event::Failed(error) = probe.recv().await.ok_or(DriveError::ShardLost)?
        {
            return Err(error);
        }
        Ok(without_headers)
    }

    /// Opens what is idle, step by step, and tells each; the streams of the load are open.
    async fn open_idle(&mut self, tell: &mut dyn FnMut(Progress)) -> Result<(), DriveError> {
        let Scenario { idle_streams, idle_connections, .. } = *self.scenario;
        let settle = async || {
            if idle_streams + idle_connections > 0 {
                tokio::time::sleep(SETTLE).await;
            }
        };
        settle().await;
        tell(Progress::Open(Opened::Streams));
        for (command, what) in [
            (Command::OpenIdleStreams, Opened::IdleStreams),
            (Command::OpenIdleConnections, Opened::IdleConnections),
        ] {
            self.commands.send_replace(command);
            for _ in 0..self.scenario.shards {
                match self.events.recv().await.ok_or(DriveError::ShardLost)? {
                    Event::OpenedIdle => {}
                    Event::Failed(error) => return Err(error),
                    _ => unreachable!("nothing has begun"),
                }
            }
            settle().await;
            tell(Progress::Open(what));
        }
        Ok(())
    }

    fn begin(&self) {
        let load_begin = self.clock.now() + HEAD_START;
        let window_begin = load_begin + self.scenario.warmup_ns;
        let window_end = match self.scenario.duration_ns {
            Some(duration) => window_begin + duration,
            None => Nanos::NEVER,
        };
        self.timeline.set(load_begin, window_begin, window_end);
        self.commands.send_replace(Command::Begin);
    }

    /// Handles events until `at`. Out: whether `at` was reached with shards still at work.
    async fn until(
        &mut self,
        at: Nanos,
        stop: &mut (impl Future<Output = ()> + Unpin),
        stopped: &mut bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<bool, DriveError> {
        let deadline = sleep_until(self.instant(at));
        tokio::pin!(deadline);
        while self.done.len() < self.scenario.shards {
            tokio::select! {
                () = &mut deadline => return Ok(true),
                () = &mut *stop => break,
                event = self.events.recv() => match event {
                    Some(Event::Unstable) => break,
                    event => self.handle(event, tell)?,
                }
            }
        }
        *stopped |= self.done.len() < self.scenario.shards;
        // Of shards that are done nothing is cut off; the probe beside them would go on alone.
        self.timeline.end_by(self.clock.now());
        self.commands.send_replace(Command::End);
        Ok(false)
    }

    /// Handles events until every shard is done, and the probe; `stop`: nothing is waited for any more. Out: what the
    /// probe saw.
    async fn drained(
        &mut self,
        stop: &mut (impl Future<Output = ()> + Unpin),
        stopped: &mut bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Option<Probe>, DriveError> {
        let mut seen_by_probe = None;
        let mut awaits_probe = self.probe.is_some();
        while self.done.len() < self.scenario.shards || awaits_probe {
            tokio::select! {
                () = &mut *stop => {
                    *stopped = true;
                    self.commands.send_replace(Command::GiveUp);
                }
                event = self.events.recv(), if self.done.len() < self.scenario.shards => {
                    self.handle(event, tell)?;
                }
                event = next(&mut self.probe), if awaits_probe => {
                    seen_by_probe = of_probe(event)?;
                    awaits_probe = seen_by_probe.is_none();
                }
            }
        }
        Ok(seen_by_probe)
    }

    fn handle(
        &mut self,
        event: Option<Event>,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), DriveError> {
        match event.ok_or(DriveError::ShardLost)? {
            Event::Intervals(intervals) => {
                intervals.into_iter().for_each(|interval| self.seconds.add(interval, tell));
            }
            Event::Done(figures) => self.done.push(*figures),
            // The load is over already.
            Event::Unstable => {}
            Event::Failed(error) => return Err(error),
            Event::Opened { .. } | Event::OpenedIdle => unreachable!("every shard opens once"),
        }
        Ok(())
    }

    /// A far deadline must not overflow the timer.
    fn instant(&self, at: Nanos) -> Instant {
        self.clock.instant(at.min(self.clock.now() + Nanos(86_400 * 365 * Nanos::SECOND.0)))
    }

    /// Adds up what all shards saw; also what the server calls itself.
    fn measured(mut self, stopped: bool) -> (Measured, Option<String>) {
        let mut seen = Seen::default();
        let mut lost = Lost::default();
        let mut sent_late = 0;
        let mut streams_unfinished = 0;
        let mut echoes = BTreeMap::new();
        let mut unfinished = BTreeMap::new();
        let all_ended_at = self.done.iter().map(|figures| figures.ended_early_at).max().flatten();
        let all_early = self.done.iter().all(|figures| figures.ended_early_at.is_some());
        for figures in std::mem::take(&mut self.done) {
            seen.merge(figures.seen);
            lost.unsent += figures.lost.unsent;
            lost.unanswered += figures.lost.unanswered;
            lost.shed += figures.lost.shed;
            sent_late += figures.sent_late;
            streams_unfinished += figures.streams_unfinished;
            echoes.extend(figures.echoes);
            unfinished.extend(figures.unfinished_schedules);
        }
        let window_end = match all_ended_at {
            // With --messages the window is as long as its messages took.
            Some(_) if all_early && lost.unsent + lost.unanswered == 0 => seen.last_received,
            Some(ended) if all_early => ended.min(self.timeline.window_end()),
            _ => self.timeline.window_end(),
        };
        lost.unsent += self.never_released(&unfinished, window_end);
        let window = window_end.since(self.timeline.window_begin());
        let all = seen.received + lost.unsent + lost.unanswered + lost.shed;
        let messages_done = self.scenario.messages_max.is_some_and(|max| all >= max);
        let product = seen.product.take();
        let open_loop = matches!(self.scenario.load, Load::OpenLoop { .. });
        let per_second = |count: u64| match window.as_secs_f64() {
            0.0 => 0.0,
            seconds => count as f64 / seconds,
        };
        let payload_bytes = self.scenario.payload_bytes as u64;
        let only_open = |hdr: Hdr| open_loop.then_some(hdr);
        let messages_sent = seen.received + lost.unanswered;
        let measured = Measured {
            window_ns: window,
            stopped_early: stopped || (all_early && !messages_done),
            unstable: seen.unstable,
            first_failure: seen.first_failure,
            messages_due: messages_sent + lost.unsent + lost.shed,
            messages_sent,
            messages_sent_in_window: Some(messages_sent - sent_late),
            messages_received: seen.received,
            messages_lost: lost.unsent + lost.unanswered,
            messages_shed: lost.shed,
            messages_wrong: seen.wrong.sum(),
            wrong: seen.wrong,
            payload_bytes_sent: messages_sent * payload_bytes,
            payload_bytes_received: seen.received * payload_bytes,
            throughput_messages_per_s: per_second(seen.received_in_window),
            throughput_payload_bytes_per_s: per_second(seen.received_in_window * payload_bytes),
            statuses: seen.statuses.into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
            streams_unfinished,
            response_time: only_open(seen.response_time),
            send_lag: only_open(seen.send_lag),
            flow_wait: Some(seen.flow_wait),
            gap_error: only_open(seen.gap_error),
            in_flight_mean_ns: (!open_loop && seen.received > 0)
                .then(|| seen.in_flight.0 as f64 / seen.received as f64),
            service_time: seen.service_time,
            probe: None,
            connect: seen.connect,
            response_headers: seen.response_headers,
            first_message: seen.first_message,
            half_close: seen.half_close,
            seconds: self.seconds.finish(window),
            echoes_per_stream: echoes.into_values().collect(),
            server: None,
            server_cpu_share: None,
            loadgen: None,
            shard_threads: Vec::new(),
            disturbance: None,
            bystanders: Vec::new(),
            server_resident: None,
            messages_per_server_cpu_s: None,
        };
        (measured, product)
    }
}

/// Never, if there is none.
async fn next(probe: &mut Option<mpsc::UnboundedReceiver<Event>>) -> Option<Event> {
    match probe {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// What the probe saw, if this says so.
fn of_probe(event: Option<Event>) -> Result<Option<Probe>, DriveError> {
    match event.ok_or(DriveError::ShardLost)? {
        Event::Done(figures) => {
            let Figures { seen, lost, .. } = *figures;
            Ok(Some(Probe {
                messages_lost: lost.unsent + lost.unanswered,
                response_time: seen.response_time,
                service_time: seen.service_time,
            }))
        }
        Event::Failed(error) => Err(error),
        Event::Opened { .. } | Event::OpenedIdle | Event::Intervals(_) | Event::Unstable => {
            Ok(None)
        }
    }
}

impl Shards {
    /// Messages that were due until `window_end`, but that no pacer came to release: `counted` says
    /// how many each stream released.
    fn never_released(&self, counted: &BTreeMap<usize, u64>, window_end: Nanos) -> u64 {
        let (load_begin, window_begin) = (self.timeline.load_begin(), self.timeline.window_begin());
        let due = |stream: usize| {
            let schedule = self.scenario.schedule(stream).into_iter().flatten();
            let in_window = schedule
                .map(|at| load_begin + at)
                .take_while(|at| *at < window_end)
                .filter(|at| *at >= window_begin);
            // A quota that is beyond this machine's numbers is none.
            let quota = usize::try_from(self.scenario.quota(stream)).unwrap_or(usize::MAX);
            in_window.take(quota).count() as u64
        };
        counted.iter().map(|(stream, counted)| due(*stream).saturating_sub(*counted)).sum()
    }
}

/// The seconds of a run, merged over its shards as they come in.
#[derive(Debug)]
struct Seconds {
    scenario: Arc<Scenario>,
    /// Seconds that some shard has not reported yet.
    merging: BTreeMap<u64, Merging>,
    merged: Vec<Second>,
}

#[derive(Debug, Default)]
struct Merging {
    shards: usize,
    due: u64,
    shed: u64,
    received: u64,
    failed: u64,
    latency: Hdr,
    so_far: SoFar,
}

impl Seconds {
    fn of(scenario: Arc<Scenario>) -> Self {
        Seconds { scenario, merging: BTreeMap::new(), merged: Vec::new() }
    }

    fn add(&mut self, interval: Interval, tell: &mut dyn FnMut(Progress)) {
        let Interval { second, due, shed, received, failed, latency, so_far } = interval;
        let merging = self.merging.entry(second).or_default();
        merging.shards += 1;
        merging.due += due;
        merging.shed += shed;
        merging.received += received;
        merging.failed += failed;
        merging.latency.merge(&latency);
        merging.so_far.add(so_far);
        if merging.shards == self.scenario.shards {
            let Merging { failed, so_far, .. } = *merging;
            let second = self.close(second);
            let gates = load_gates_so_far(&self.scenario, so_far, &self.merged);
            tell(Progress::Second { second, failed, gates });
        }
    }

    fn close(&mut self, second: u64) -> Second {
        let Merging { due, shed, received, latency, .. } =
            self.merging.remove(&second).unwrap_or_default();
        let second = Second {
            second,
            messages_due: due,
            messages_shed: shed,
            messages_received: received,
            latency: WrittenHdr::from(&latency),
        };
        self.merged.push(second.clone());
        second
    }

    /// All seconds in order, those of the window whether anything came in them or not, without empty ones behind it.
    fn finish(mut self, window: Nanos) -> Vec<Second> {
        for second in self.merging.keys().copied().collect::<Vec<_>>() {
            self.close(second);
        }
        self.merged.sort_by_key(|second| second.second);
        let is_empty = |second: &Second| {
            let Second { messages_due, messages_shed, messages_received, .. } = second;
            messages_due + messages_shed + messages_received == 0
        };
        let is_behind = |second: &Second| second.second * Nanos::SECOND.0 >= window.0;
        while self.merged.last().is_some_and(|last| is_empty(last) && is_behind(last)) {
            self.merged.pop();
        }
        self.merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GateName, Verdict};
    use crate::report::example;

    fn failing(gates: &[Gate]) -> Vec<GateName> {
        let failed = gates.iter().filter(|gate| gate.verdict == Verdict::Failed);
        failed.map(|gate| gate.name).collect()
    }

    #[test]
    fn a_second_tells_which_gates_fail_until_then_as_the_worst_shard_sees_it() {
        let mut scenario = example::open_loop(1_000.0, 1).scenario;
        scenario.shards = 2;
        let mut seconds = Seconds::of(scenario.into());
        let mut told = Vec::new();
        for (second, lags) in [(0, [10, 20]), (1, [10, 300_000]), (2, [10, 150_000])] {
            for lag in lags {
                let so_far = SoFar { send_lag_p99: Some(Nanos(lag)), ..SoFar::default() };
                let interval = Interval { second, so_far, ..Interval::default() };
                seconds.add(interval, &mut |progress| {
                    let Progress::Second { second, gates, .. } = progress else { unreachable!() };
                    told.push((second.second, failing(&gates)));
                });
            }
        }
        assert_eq!(told, [(0, vec![]), (1, vec![GateName::SendLag]), (2, vec![])]);
    }

    #[test]
    fn a_backlog_that_grows_is_told_while_the_load_goes_on() {
        let mut seconds = Seconds::of(example::open_loop(1_000.0, 1).scenario.into());
        let mut told = Vec::new();
        for second in 0..6 {
            let interval = Interval { second, due: 1_000, received: 990, ..Interval::default() };
            seconds.add(interval, &mut |progress| {
                let Progress::Second { gates, .. } = progress else { unreachable!() };
                told.push(failing(&gates));
            });
        }
        // A trend needs five seconds.
        assert_eq!(told[..4], [const { Vec::new() }; 4]);
        assert_eq!(told[4..], [vec![GateName::Backlog], vec![GateName::Backlog]]);
    }

    #[test]
    fn messages_in_flight_are_counted_while_a_closed_loop_goes_on() {
        let check = |in_flight_ns: u64, expected: &[GateName]| {
            let scenario = example::closed_loop().scenario;
            assert_eq!((scenario.streams, scenario.shards), (4, 1));
            let mut latency = Hdr::default();
            (0..90).for_each(|_| latency.record(Nanos(1)));
            // Ten of the hundred were sent before the window, and have no time.
            let so_far = SoFar { in_flight: Nanos(in_flight_ns), ..SoFar::default() };
            let interval = Interval { received: 100, latency, so_far, ..Interval::default() };
            let mut told = None;
            Seconds::of(scenario.into()).add(interval, &mut |progress| {
                let Progress::Second { gates, .. } = progress else { unreachable!() };
                told = Some(failing(&gates));
            });
            assert_eq!(told.unwrap(), expected, "{in_flight_ns}");
        };
        check(3_600_000_000, &[]);
        check(3_000_000_000, &[GateName::LittlesLaw]);
        check(0, &[GateName::LittlesLaw]);
    }

    #[test]
    fn a_second_in_which_nothing_came_is_left_out_only_behind_the_window() {
        let mut seconds = Seconds::of(example::open_loop(1_000.0, 1).scenario.into());
        for (second, due, shed, received) in
            [(0, 9, 0, 9), (1, 9, 2, 0), (2, 0, 0, 0), (3, 0, 0, 1), (4, 0, 1, 0), (5, 0, 0, 0)]
        {
            let interval = Interval { second, due, shed, received, ..Interval::default() };
            seconds.add(interval, &mut |_| {});
        }
        let ends = |window| {
            let mut seconds = Seconds::of(example::open_loop(1_000.0, 1).scenario.into());
            for second in 0..4 {
                let received = u64::from(second == 0);
                seconds.add(Interval { second, received, ..Interval::default() }, &mut |_| {});
            }
            seconds.finish(Nanos(window)).len()
        };
        assert_eq!(ends(3 * Nanos::SECOND.0), 3);
        assert_eq!(ends(2 * Nanos::SECOND.0 + 1), 3);
        assert_eq!(ends(0), 1);
        // What was due or shed has no echo, and is told all the same.
        assert_eq!(seconds.finish(Nanos(0)).len(), 5);
    }
}

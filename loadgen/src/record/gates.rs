//! Whether a run is valid: figures about the generator and its machine, each held against a bound.
//!
//! In: a scenario and what was measured. Out: one [`Gate`] for everything that could have made the
//! figures say something about loadgen instead of the server. Pure: every figure that a gate needs is
//! in the record, so a verdict can be repeated by whoever doubts it.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Disturbance, Hdr, Measured, Probe, RunRecord, Second, ThreadUsage, Unstable};
use crate::scenario::{Load, Scenario};
use crate::units::Nanos;

/// Lag beyond this share of the median service time says more about loadgen than about the server.
const LAG_SHARE_MAX: f64 = 0.1;

/// Lag below this is nobody's trouble: a timer's wake-up takes as long.
const LAG_HARMLESS: Nanos = Nanos(200_000);

/// Messages of the schedule that may miss the window, as a share of all.
const MISSED_SHARE_MAX: f64 = 0.001;

/// Shards that are busy for longer than this share of the window have nothing to spare.
const BUSY_SHARE_MAX: f64 = 0.95;

/// Shards that were ready and waited for a core for longer than this share of the window were not alone
/// on it.
pub const RUN_DELAY_SHARE_MAX: f64 = 0.02;

/// Messages in flight, by count, may differ so much from throughput x time (Little's law).
const LITTLE_ERROR_MAX: f64 = 0.05;

/// A gap between two departures of a stream is off by at most this share of the mean gap, at p99, or by
/// [`LAG_HARMLESS`].
const GAP_ERROR_SHARE_MAX: f64 = 0.1;

/// The backlog of a steady run does not grow or shrink by more than this share of the offered load each second.
const BACKLOG_TREND_MAX: f64 = 0.001;

/// A trend is one if it stands out of its own noise by so many standard errors ...
const BACKLOG_ERRORS_MIN: f64 = 3.0;

/// ... or is this share of the offered load each second, however uneven: a fall that ends early leaves large errors.
const BACKLOG_TREND_PLAIN: f64 = 0.1;

/// More than this share of all that was due came back beyond it: the rest is of before the window. Steady servers were below
/// a twentieth of it, one that had not compiled all before the window eight times above it
/// (results/2026-11-28-baseline-2).
const SURPLUS_SHARE_MAX: f64 = 0.01;

/// What is in flight comes and goes by this share, however slow the server is.
const IN_FLIGHT_WOBBLE: f64 = 0.1;

/// A trend needs so many whole seconds.
const BACKLOG_SECONDS_MIN: u64 = 5;

/// Below this a backlog has no trend, and an open loop that has to be valid cannot be shown to be.
pub const OPEN_LOOP_NS_MIN: Nanos = Nanos(BACKLOG_SECONDS_MIN * Nanos::SECOND.0);

/// The load may be further from the probe than [`LAG_HARMLESS`] by this share of the probe's median.
const PROBE_DIFFERENCE_MAX: f64 = 1.0;

/// Loadgen can carry so many times the load, or it may be what was measured.
pub const HEADROOM_MIN: f64 = 1.5;

/// A server that used so much of its cores was the bottleneck of a closed loop, whatever loadgen can do.
const SATURATED_SHARE_MIN: f64 = 0.95;

/// What p99 leaves out.
const OTHERS_IN_P99_MIN: f64 = 0.01;

/// Time that the host took from this machine's cores, as a share.
const STEAL_SHARE_MAX: f64 = 0.02;

/// Time that cores had nothing to run although somebody was to keep them awake, as a share: it is none while that lives.
const AWAKE_IDLE_SHARE_MAX: f64 = 0.02;

/// One figure about a run, and the bound that it has to keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gate {
    /// What it is about.
    pub name: GateName,
    /// Whether the bound was kept.
    pub verdict: Verdict,
    /// The figure; null if it is not known.
    pub figure: Option<f64>,
    /// The most that it may be.
    pub threshold: f64,
    /// Unit of both, `ns` or `share`.
    pub unit: String,
    /// For people, with the values.
    pub message: String,
}

/// What a gate is about.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum GateName {
    /// Messages left when they were meant to. Open loop.
    SendLag,
    /// All that the drawn schedule holds for the window left within it. Open loop.
    Achieved,
    /// Gaps between a stream's departures are those of the plan. Open loop.
    DepartureGaps,
    /// What is due and not echoed neither grows nor shrinks. Open loop.
    Backlog,
    /// In flight = throughput x time in flight. Closed loop.
    LittlesLaw,
    /// Shard threads had time to spare.
    ShardCpu,
    /// Shard threads got a core when they wanted one.
    ShardRunDelay,
    /// A low-rate stream beside the load, on a thread of its own, saw what the load saw.
    Probe,
    /// The same plan against a server that does nothing leaves room.
    Headroom,
    /// The host left this machine its cores.
    Steal,
    /// No quota of a control group stopped this process.
    Throttling,
    /// Cores that were to be kept awake were. Where there are any.
    Awake,
}

impl GateName {
    /// Whether it says that the machine was taken from those who should carry the load.
    pub fn is_about_machine(self) -> bool {
        use GateName::{Awake, ShardRunDelay, Steal, Throttling};
        matches!(self, ShardRunDelay | Steal | Throttling | Awake)
    }

    /// Whether it is about the load, not about threads and the machine.
    pub fn is_about_load(self) -> bool {
        self != GateName::ShardCpu && !self.is_about_machine()
    }
}

impl fmt::Display for GateName {
    /// As records spell it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        out.pad(json.as_str().unwrap_or_default())
    }
}

/// How a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The bound was kept.
    Passed,
    /// It was not: the run is invalid.
    Failed,
    /// The figure is not known here, or the run is too short to tell.
    Unknown,
}

impl RunRecord {
    /// Gates that the run failed; a run without any is valid.
    pub fn failed_gates(&self) -> impl Iterator<Item = &Gate> {
        self.gates.iter().filter(|gate| gate.verdict == Verdict::Failed)
    }

    /// Their names as records spell them.
    pub fn failed_gate_names(&self) -> BTreeSet<String> {
        self.failed_gates().map(|gate| gate.name.to_string()).collect()
    }

    /// Gates about the load that could not be told: nothing shows then that the run is valid. (Of the machine not all is to be
    /// known everywhere.)
    pub fn untold_gates(&self) -> impl Iterator<Item = &Gate> {
        let is_untold =
            |gate: &&Gate| gate.name.is_about_load() && gate.verdict == Verdict::Unknown;
        self.gates.iter().filter(is_untold)
    }

    /// Whether all that failed says that loadgen, or the round trip itself, was the limit of a closed loop: then
    /// throughput is at least, and time at most, what the server can do, and its CPU time is its own.
    pub fn is_bound(&self) -> bool {
        let mut failed = self.failed_gates().peekable();
        matches!(self.scenario.load, Load::ClosedLoop { .. })
            && failed.peek().is_some()
            && failed.all(|gate| matches!(gate.name, GateName::ShardCpu | GateName::Headroom))
    }

    /// The share of its cores' time that the server used in a closed loop, if that was not all of it: then loadgen, or
    /// the way between them, had its part in how much was carried, whether a gate failed or not.
    pub fn server_cpu_share_if_unsaturated(&self) -> Option<f64> {
        let is_closed = matches!(self.scenario.load, Load::ClosedLoop { .. });
        self.measured.server_cpu_share.filter(|used| is_closed && *used < SATURATED_SHARE_MIN)
    }

    /// What else ran on the machine during an open loop, if it was so much of a core that the slowest hundredth of the messages may have
    /// waited for that and not for the server: messages that come at any moment find a core taken as often as it is. What a
    /// shard waited for is in L and has its gate; what kept the server from its core is in S, and no gate tells it from the server's own.
    pub fn others_in_p99(&self) -> Option<String> {
        let is_open = matches!(self.scenario.load, Load::OpenLoop { .. });
        let used: f64 = self.measured.bystanders.iter().map(|it| it.core_share).sum();
        self.measured.bystanders_used().filter(|_| is_open && used >= OTHERS_IN_P99_MIN)
    }

    /// Whether the gate that failed says that some messages of a closed loop had no echo in all the time that was measured,
    /// as where a server lets streams wait: then throughput and CPU times are the server's, and the times of
    /// messages are of those that were answered.
    pub fn is_of_answered(&self) -> bool {
        let Load::ClosedLoop { in_flight_max } = self.scenario.load else { return false };
        let in_flight = (self.scenario.streams * in_flight_max) as f64;
        let is_short = in_flight_by_law(&self.measured).is_some_and(|by_law| by_law < in_flight);
        let mut failed = self.failed_gates().peekable();
        is_short && failed.peek().is_some() && failed.all(|gate| gate.name == GateName::LittlesLaw)
    }

    /// Whether echoes of an open loop fell behind its schedule, more and more: the server carries less than it was
    /// offered, unless another gate that failed tells why.
    pub fn fell_behind(&self) -> bool {
        matches!(self.scenario.load, Load::OpenLoop { .. })
            && (self.measured.unstable.is_some()
                || self.failed_gates().any(|gate| self.is_loss(gate)))
    }

    /// Whether a gate that failed says that the server carries less than an open loop offers, and nothing against
    /// loadgen. A backlog that shrinks is not of this load: it was there when the window began.
    pub fn is_loss(&self, gate: &Gate) -> bool {
        let Measured { seconds, window_ns, unstable, service_time, .. } = &self.measured;
        let Load::OpenLoop { rate_messages_per_s: rate, .. } = self.scenario.load else {
            return false;
        };
        let grows = || {
            let fell =
                surplus(rate.0, seconds, *window_ns, service_time.percentile(50.0)).is_some();
            !fell && backlog_trend(seconds, *window_ns).is_none_or(|(slope, _)| slope > 0.0)
        };
        match gate.name {
            // A server that carries less leaves a backlog; a machine that stands still near the end does not.
            GateName::Achieved => {
                let is_steady =
                    |gate: &Gate| gate.name == GateName::Backlog && gate.verdict == Verdict::Passed;
                !self.gates.iter().any(is_steady)
            }
            GateName::Backlog => unstable.is_some() || grows(),
            _ => false,
        }
    }

    /// Whether nobody has measured if loadgen could have carried more: a run without that may be valid, and yet its figures
    /// loadgen's own. Records without gates lack more than that.
    pub fn lacks_headroom(&self) -> bool {
        let is_headroom = |gate: &Gate| gate.name == GateName::Headroom;
        !self.gates.is_empty() && !self.gates.iter().any(is_headroom)
    }

    /// Whether no gate failed. Records without gates are of a loadgen that had none: not known.
    pub fn is_valid(&self) -> Option<bool> {
        (!self.gates.is_empty()).then(|| self.failed_gates().next().is_none())
    }
}

impl Gate {
    /// `share` and `share_max` of the same whole.
    fn of_share(name: GateName, share: Option<f64>, share_max: f64, what: &str) -> Self {
        let message = match share {
            Some(share) => {
                format!("{what}: {:.2} %, at most {:.1} %", 100.0 * share, 100.0 * share_max)
            }
            None => format!("{what}: not known here"),
        };
        Gate::of(name, share, share_max, "share", message)
    }

    fn of(
        name: GateName,
        figure: Option<f64>,
        threshold: f64,
        unit: &str,
        message: String,
    ) -> Self {
        let verdict = match figure {
            Some(figure) if figure <= threshold => Verdict::Passed,
            Some(_) => Verdict::Failed,
            None => Verdict::Unknown,
        };
        Gate { name, verdict, figure, threshold, unit: unit.to_owned(), message }
    }
}

/// All gates of a run.
pub fn gates(scenario: &Scenario, measured: &Measured) -> Vec<Gate> {
    let mut gates = match scenario.load {
        Load::ClosedLoop { in_flight_max } => {
            let by_law = in_flight_by_law(measured);
            vec![littles_law(scenario.streams * in_flight_max, by_law)]
        }
        Load::OpenLoop { rate_messages_per_s: rate, .. } => {
            let p99 = |hdr: &Option<Hdr>| {
                hdr.as_ref().filter(|hdr| hdr.count() > 0).map(|hdr| hdr.percentile(99.0))
            };
            let service = measured.service_time.percentile(50.0);
            vec![
                send_lag(p99(&measured.send_lag), service),
                achieved(measured),
                departure_gaps(scenario, rate.0, p99(&measured.gap_error)),
                match measured.unstable {
                    Some(unstable) => unstable_backlog(unstable),
                    None => backlog(rate.0, &measured.seconds, measured.window_ns, service),
                },
            ]
        }
    };
    add_machine_gates(
        &mut gates,
        measured.window_ns,
        &measured.shard_threads,
        measured.disturbance,
    );
    gates.extend(measured.probe.as_ref().map(|seen| probe(seen, measured)));
    gates.extend(
        scenario.null_throughput_messages_per_s.map(|null| headroom(scenario, measured, null.0)),
    );
    name_bystanders(&mut gates, measured);
    gates
}

/// What the gates about a load are told by while it goes on: figures of all seconds that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoFar {
    /// p99 of L on the shard where it is longest; open loop.
    pub send_lag_p99: Option<Nanos>,
    /// p99 of the differences between gaps of departures and those of the plan, on the shard where it is largest; open loop.
    pub gap_error_p99: Option<Nanos>,
    /// Median of S on the shard where it is longest.
    pub service_time_p50: Nanos,
    /// Sum of the times from queued to received of all messages that [`Second::latency`] has; closed loop.
    pub in_flight: Nanos,
}

impl SoFar {
    /// Adds another shard, which was seen until the same time.
    pub fn add(&mut self, shard: SoFar) {
        self.send_lag_p99 = self.send_lag_p99.max(shard.send_lag_p99);
        self.gap_error_p99 = self.gap_error_p99.max(shard.gap_error_p99);
        self.service_time_p50 = self.service_time_p50.max(shard.service_time_p50);
        self.in_flight = self.in_flight + shard.in_flight;
    }
}

/// The gates about a load that can be told while its window is open. `seconds`: all that are over.
pub fn load_gates_so_far(scenario: &Scenario, so_far: SoFar, seconds: &[Second]) -> Vec<Gate> {
    let window = Nanos(seconds.len() as u64 * Nanos::SECOND.0);
    match scenario.load {
        Load::ClosedLoop { in_flight_max } => {
            // As at the end: some echoes of the first seconds were sent before the window, and have no time.
            let received: u64 = seconds.iter().map(|second| second.messages_received).sum();
            let timed: u64 = seconds.iter().map(|second| second.latency.count).sum();
            let mean_ns = so_far.in_flight.0 as f64 / timed as f64;
            let by_law = mean_ns * received as f64 / window.0 as f64;
            let by_law = Some(by_law).filter(|_| timed > 0);
            vec![littles_law(scenario.streams * in_flight_max, by_law)]
        }
        Load::OpenLoop { rate_messages_per_s: rate, .. } => vec![
            send_lag(so_far.send_lag_p99, so_far.service_time_p50),
            departure_gaps(scenario, rate.0, so_far.gap_error_p99),
            backlog(rate.0, seconds, window, so_far.service_time_p50),
        ],
    }
}

/// A shard that finds little in each turn has always another turn to take, and its pacer spins: it is busy from a small
/// load on, and carries ten times that with larger turns. In open loop it is known when it can do no more: messages
/// leave late then, each by the turn before it at least.
fn excuse_busy_shards(gates: &mut [Gate]) {
    let is_in_time =
        |gate: &&Gate| gate.name == GateName::SendLag && gate.verdict == Verdict::Passed;
    let Some(lag) = gates.iter().find(is_in_time).and_then(|gate| gate.figure) else { return };
    let lag = nanos(lag);
    let is_busy =
        |gate: &&mut Gate| gate.name == GateName::ShardCpu && gate.verdict == Verdict::Failed;
    for gate in gates.iter_mut().filter(is_busy) {
        gate.verdict = Verdict::Passed;
        gate.message
            .push_str(&format!("; but messages left in time (L p99 {lag}): it is not full"));
    }
}

/// Adds the gates about shard threads and the machine to those about the load, over a window that may still be open.
pub fn add_machine_gates(
    gates: &mut Vec<Gate>,
    window: Nanos,
    threads: &[ThreadUsage],
    disturbance: Option<Disturbance>,
) {
    let window_s = window.as_secs_f64();
    let share_of_window = |time: Option<Nanos>| {
        time.map(|time| time.as_secs_f64()).filter(|_| window_s > 0.0).map(|time| time / window_s)
    };
    let busiest = threads.iter().map(|thread| thread.cpu_ns).max();
    let most_delayed = threads.iter().map(|thread| thread.run_delay_ns).max();
    let throttled = |it: Disturbance| it.throttled_ns;
    gates.extend([
        Gate::of_share(
            GateName::ShardCpu,
            share_of_window(busiest),
            BUSY_SHARE_MAX,
            "busiest shard thread (pass more --shards if there are cores)",
        ),
        Gate::of_share(
            GateName::ShardRunDelay,
            share_of_window(most_delayed),
            RUN_DELAY_SHARE_MAX,
            "a shard thread ready but without a core (pin with --cpus, away from others)",
        ),
        Gate::of_share(
            GateName::Steal,
            disturbance.map(|it| it.steal_share),
            STEAL_SHARE_MAX,
            "time that the host took from this machine's cores",
        ),
        Gate::of_share(
            GateName::Throttling,
            share_of_window(disturbance.and_then(throttled)),
            0.0,
            "time that a control group's quota stopped this process",
        ),
    ]);
    let idle = disturbance.and_then(|it| it.awake_idle_share);
    gates.extend(idle.map(|idle| {
        Gate::of_share(
            GateName::Awake,
            Some(idle),
            AWAKE_IDLE_SHARE_MAX,
            "time that the cores which were to be kept awake idled (has their process ended?)",
        )
    }));
    excuse_busy_shards(gates);
}

/// Says who ran meanwhile where a shard was kept from its core, or may have been.
fn name_bystanders(gates: &mut [Gate], measured: &Measured) {
    let Some(used) = measured.bystanders_used() else { return };
    let late = [GateName::SendLag, GateName::DepartureGaps, GateName::ShardRunDelay];
    for gate in gates {
        if gate.verdict == Verdict::Failed && late.contains(&gate.name) {
            gate.message.push_str(&format!("; meanwhile others ran: {used}"));
        }
    }
}

/// What is carried, beside what loadgen carries against a server that does nothing.
fn headroom(scenario: &Scenario, measured: &Measured, null: f64) -> Gate {
    let carried = match scenario.load {
        Load::ClosedLoop { .. } => measured.throughput_messages_per_s,
        Load::OpenLoop { rate_messages_per_s, .. } => rate_messages_per_s.0,
    };
    let message = format!(
        "headroom: against a null echo loadgen carries {:.2} times this load, at least {HEADROOM_MIN} \
         (give it more --cpus)",
        null / carried
    );
    let mut gate = Gate::of(
        GateName::Headroom,
        Some(carried / null).filter(|share| share.is_finite()),
        1.0 / HEADROOM_MIN,
        "share",
        message,
    );
    let is_closed = matches!(scenario.load, Load::ClosedLoop { .. });
    let used = measured.server_cpu_share.filter(|share| is_closed && *share >= SATURATED_SHARE_MIN);
    if let (Verdict::Failed, Some(used)) = (gate.verdict, used) {
        gate.verdict = Verdict::Passed;
        let used = 100.0 * used;
        gate.message.push_str(&format!(
            "; but the server used {used:.0} % of its cores, and was the bottleneck"
        ));
    }
    gate
}

/// `lag`: p99; `service`: median.
fn send_lag(lag: Option<Nanos>, service: Nanos) -> Gate {
    let threshold = (LAG_SHARE_MAX * service.0 as f64).max(LAG_HARMLESS.0 as f64);
    let message = match lag {
        Some(lag) => format!(
            "messages left late through loadgen's own fault: L p99 {lag}, at most {} (S p50 {service})",
            nanos(threshold)
        ),
        None => "send lag: no message was sent".to_owned(),
    };
    Gate::of(GateName::SendLag, lag.map(|lag| lag.0 as f64), threshold, "ns", message)
}

fn achieved(measured: &Measured) -> Gate {
    // What was shed was left out on purpose, and is told.
    let due = measured.messages_due - measured.messages_shed;
    let sent = measured.messages_sent_in_window;
    let missed = sent.filter(|_| due > 0).map(|sent| due.saturating_sub(sent));
    // A message is whole: of few, one may be more than the share.
    let threshold = MISSED_SHARE_MAX.max(1.0 / due.max(1) as f64);
    let message = match missed {
        Some(missed) => {
            format!("{missed} of the schedule's {due} messages had not left when the window ended")
        }
        None => "achieved load: not known".to_owned(),
    };
    let share = missed.map(|missed| missed as f64 / due as f64);
    Gate::of(GateName::Achieved, share, threshold, "share", message)
}

/// `error`: p99.
fn departure_gaps(scenario: &Scenario, rate: f64, error: Option<Nanos>) -> Gate {
    let mean_gap_ns = Nanos::SECOND.0 as f64 * scenario.streams as f64 / rate;
    let threshold = (GAP_ERROR_SHARE_MAX * mean_gap_ns).max(LAG_HARMLESS.0 as f64);
    let message = match error {
        Some(error) => format!(
            "gaps between a stream's departures: p99 off by {error}, at most {} (mean gap {})",
            nanos(threshold),
            nanos(mean_gap_ns)
        ),
        None => "departure gaps: no stream sent two messages".to_owned(),
    };
    Gate::of(GateName::DepartureGaps, error.map(|error| error.0 as f64), threshold, "ns", message)
}

/// Of a run that was given up.
fn unstable_backlog(Unstable { backlog, at_ns, since_ns }: Unstable) -> Gate {
    let message = format!(
        "unstable: a backlog of {backlog} messages {at_ns} into the load, growing since {since_ns}"
    );
    Gate::of(GateName::Backlog, Some(1.0), BACKLOG_TREND_MAX, "share", message)
}

/// `service`: median.
fn backlog(rate: f64, seconds: &[Second], window: Nanos, service: Nanos) -> Gate {
    let trend = backlog_trend(seconds, window);
    let surplus = surplus(rate, seconds, window, service);
    let figure = trend.map(|(slope, error)| {
        let (slope, least) = (slope.abs(), BACKLOG_TREND_PLAIN * rate);
        let slope = if slope > least.min(BACKLOG_ERRORS_MIN * error) { slope } else { 0.0 };
        // A fall that is over within a second has no slope.
        slope.max(surplus.unwrap_or(0.0) / window.as_secs_f64()) / rate
    });
    let mut message = match trend {
        Some((slope, error)) => format!(
            "backlog: {slope:+.1} messages each second (standard error {error:.1}) at {rate:.0} offered"
        ),
        None => format!("backlog: a trend needs {BACKLOG_SECONDS_MIN} whole seconds"),
    };
    let is_fall = surplus.is_some() || trend.is_some_and(|(slope, _)| slope < 0.0);
    if is_fall && figure > Some(BACKLOG_TREND_MAX) {
        let surplus =
            surplus.map_or(String::new(), |it| format!(", {it:.0} more came back than were due"));
        message.push_str(&format!(
            "{surplus}; they are of the warm-up, which was too short (pass a longer --warmup)"
        ));
    }
    Gate::of(GateName::Backlog, figure, BACKLOG_TREND_MAX, "share", message)
}

/// By how many more messages came back in the window's whole seconds than were due there, if that is more than a steady
/// server has; `service`: its median.
fn surplus(rate: f64, seconds: &[Second], window: Nanos, service: Nanos) -> Option<f64> {
    let whole = window.0 / Nanos::SECOND.0;
    let inside = seconds.iter().filter(|second| second.second < whole);
    let fall = -inside.map(Second::backlog_growth).sum::<i128>() as f64;
    let share = (SURPLUS_SHARE_MAX * whole as f64).max(IN_FLIGHT_WOBBLE * service.as_secs_f64());
    (fall > share * rate).then_some(fall)
}

/// By how much the messages that are due and neither echoed nor shed grow each second, and the standard error of
/// that: the line of least squares through their number at the end of each whole second.
fn backlog_trend(seconds: &[Second], window: Nanos) -> Option<(f64, f64)> {
    let whole = window.0 / Nanos::SECOND.0;
    let mut backlog = 0.0;
    let ends: Vec<_> = seconds
        .iter()
        .filter(|second| second.second < whole)
        .map(|second| {
            backlog += second.backlog_growth() as f64;
            backlog
        })
        .collect();
    if (ends.len() as u64) < BACKLOG_SECONDS_MIN {
        return None;
    }
    let count = ends.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = ends.iter().sum::<f64>() / count;
    let points =
        || ends.iter().enumerate().map(|(second, end)| (second as f64 - middle, end - mean));
    let spread: f64 = points().map(|(x, _)| x * x).sum();
    let slope = points().map(|(x, y)| x * y).sum::<f64>() / spread;
    let rest: f64 = points().map(|(x, y)| (y - slope * x).powi(2)).sum();
    Some((slope, (rest / (count - 2.0) / spread).sqrt()))
}

/// What waits inside loadgen makes the load's time longer than that of a stream which shares nothing with it. A probe
/// that lost more than half of its messages, beside a load that did not, saw another server.
fn probe(seen: &Probe, measured: &Measured) -> Gate {
    let (of_probe, is_lost) = seen.service_time.percentile_among(50.0, seen.messages_lost);
    let (of_load, is_load_lost) =
        measured.service_time.percentile_among(50.0, measured.messages_lost);
    let threshold = (PROBE_DIFFERENCE_MAX * of_probe.0 as f64).max(LAG_HARMLESS.0 as f64);
    let beyond = |is_lost| if is_lost { ">" } else { "" };
    let message = format!(
        "an independent probe: S p50 {}{of_probe}, of the load {}{of_load}, at most {} apart",
        beyond(is_lost),
        beyond(is_load_lost),
        nanos(threshold)
    );
    let is_known = seen.service_time.count() > 0 && measured.service_time.count() > 0;
    let difference =
        (is_known && !is_lost && !is_load_lost).then_some(of_load.0.abs_diff(of_probe.0) as f64);
    let mut gate = Gate::of(GateName::Probe, difference, threshold, "ns", message);
    if is_lost && !is_load_lost {
        gate.verdict = Verdict::Failed;
        gate.message.push_str(&format!("; the probe lost {} messages", seen.messages_lost));
    }
    gate
}

/// Messages in flight by throughput x time (Little's law), if there were any.
fn in_flight_by_law(measured: &Measured) -> Option<f64> {
    let time_s = measured.in_flight_mean_ns? / Nanos::SECOND.0 as f64;
    (measured.messages_received > 0).then_some(time_s * measured.throughput_messages_per_s)
}

fn littles_law(in_flight: usize, by_law: Option<f64>) -> Gate {
    let error = by_law.map(|by_law| (1.0 - by_law / in_flight as f64).abs());
    let message = match by_law {
        Some(by_law) => format!(
            "in flight: {in_flight} messages by count, {by_law:.1} by throughput x time (Little's law)"
        ),
        None => "Little's law: the time in flight is not known".to_owned(),
    };
    Gate::of(GateName::LittlesLaw, error, LITTLE_ERROR_MAX, "share", message)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of a float saturates, and no time here is negative"
)]
fn nanos(ns: f64) -> Nanos {
    Nanos(ns as u64)
}

#[cfg(test)]
mod tests;

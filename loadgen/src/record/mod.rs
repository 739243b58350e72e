//! What is kept of a run: [`RunRecord`], inputs, surroundings, figures and doubts in one value.
//!
//! Its JSON is the project's file format: keys carry their units, and the schema in
//! `results/run.schema.json` is generated from these types (a test holds the two together).

mod check;
mod gates;
mod goals;
mod hdr;
mod hlog;
mod store;
mod timing;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::UNIX_EPOCH;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::gates::{
    Gate, GateName, HEADROOM_MIN, OPEN_LOOP_NS_MIN, RUN_DELAY_SHARE_MAX, SoFar, Verdict,
    add_machine_gates, gates, load_gates_so_far,
};
pub use self::hdr::{
    Damaged, Hdr, SAMPLES_BEYOND_MIN, Step, WrittenHdr, is_supported, samples_min,
};
pub use self::hlog::{Hlog, HlogError, Interval};
pub use self::store::{check_writable, read, replace_bytes, write, write_bytes};
pub use self::timing::{Missing, Timing};
use crate::scenario::Scenario;
use crate::units::Nanos;

/// Version of the record's shape; a change that breaks readers raises it.
pub const SCHEMA_VERSION: u32 = 1;

/// One execution of one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunRecord {
    /// Shape of this record.
    pub schema_version: u32,
    /// Every input, defaults resolved.
    pub scenario: Scenario,
    /// Which builds ran where.
    pub provenance: Provenance,
    /// What was measured.
    pub measured: Measured,
    /// What decides whether the run is valid; records of before had none.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// What makes the figures suspect.
    pub warnings: Vec<Warning>,
}

impl RunRecord {
    /// When the window began, since the Unix epoch. Records that do not say are taken to have connected in
    /// no time; zero if there is no time in them at all.
    pub fn window_began(&self) -> Nanos {
        let since_epoch = |at: &str| {
            let at = humantime::parse_rfc3339(at).ok()?;
            at.duration_since(UNIX_EPOCH).ok().map(Nanos::from)
        };
        let began = self.provenance.window_began_at.as_deref().and_then(since_epoch);
        let planned = || Some(since_epoch(&self.provenance.started_at)? + self.scenario.warmup_ns);
        began.or_else(planned).unwrap_or_default()
    }
}

/// Which builds ran where; no host name, user or path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// UTC time at which the run began, RFC 3339.
    pub started_at: String,
    /// UTC time at which the window of the measurement began, RFC 3339 with milliseconds; null in records
    /// of before it was kept, and if nothing was measured.
    #[serde(default)]
    pub window_began_at: Option<String>,
    /// The generator.
    pub loadgen: Build,
    /// The server.
    pub server: Server,
    /// The machine that loadgen ran on.
    pub host: Host,
}

/// One of our own builds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Build {
    /// Package version.
    pub version: String,
    /// Git commit, `-dirty` if the sources differed; or `unknown`.
    pub revision: String,
    /// Cargo's profile, `release` or `debug` (which `dev` is, at the same optimisation level, but not compiled as one);
    /// null in records of before.
    #[serde(default)]
    pub profile: Option<String>,
    /// Compiler's optimisation level.
    pub opt_level: String,
    /// Whether debug assertions were compiled in.
    pub debug_assertions: bool,
    /// `rustc --version`.
    pub rustc: String,
}

impl Display for Build {
    /// What tells builds apart, but for the compiler.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Build { version, revision, profile, opt_level, debug_assertions, .. } = self;
        write!(out, "{version} ({revision})")?;
        if let Some(profile) = profile {
            write!(out, ", profile {profile}")?;
        }
        let assertions = if *debug_assertions { "on" } else { "off" };
        write!(out, ", opt-level {opt_level}, debug assertions {assertions}")
    }
}

/// The server that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Server {
    /// How it was chosen.
    pub origin: Origin,
    /// Where it listened.
    pub target: String,
    /// Its `server` header, if it sent one.
    pub product: Option<String>,
    /// What carried its streams, `inline` or `tonic`; null if it is not ours, or an old one.
    pub transport: Option<String>,
    /// Where its streams ran: `inline` in their connection's task, or each in a `task` of its own; null
    /// if it is not ours, or an old one.
    pub placement: Option<String>,
}

/// How the server was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// loadgen started it for this run.
    Embedded,
    /// It answered on the default address.
    Found,
    /// `--target` named it.
    Target,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// As the kernel names it.
    pub cpu_model: String,
    /// Cores that loadgen might use.
    pub cores: usize,
    /// Operating system and kernel release.
    pub kernel: String,
    /// Linux's `net.ipv4.tcp_congestion_control`, where loadgen runs: `bbr` spaces what is sent by timers, on loopback too. Null if it
    /// cannot be read, and in records of before.
    #[serde(default)]
    pub tcp_congestion_control: Option<String>,
}

/// The figures of a run. Unless said, they are of messages of the measurement: those whose intended
/// time (closed loop: queued time) lies inside its window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// Length of the window in which messages counted.
    pub window_ns: Nanos,
    /// Whether the window ended before its plan: by Ctrl-C, or because no stream was left.
    pub stopped_early: bool,
    /// When an open loop was given up because its backlog was over its bound; null if it was not.
    #[serde(default)]
    pub unstable: Option<Unstable>,
    /// Why streams failed: the first failure, in words.
    pub first_failure: Option<String>,
    /// Messages that were due.
    pub messages_due: u64,
    /// Messages that the transport took.
    pub messages_sent: u64,
    /// Those of them that the transport took before the window ended, or at most 1 ms later; null in
    /// records of before.
    #[serde(default)]
    pub messages_sent_in_window: Option<u64>,
    /// Echoes of them that arrived, in the window or in the drain.
    pub messages_received: u64,
    /// Due but neither echoed nor shed: `messages_due - messages_received - messages_shed`.
    pub messages_lost: u64,
    /// Due, but left out because their stream was blocked; only if the scenario sheds.
    #[serde(default)]
    pub messages_shed: u64,
    /// Echoes that were not what was due; the sum of `wrong`.
    pub messages_wrong: u64,
    /// The same by what was wrong.
    pub wrong: Wrong,
    /// Payload bytes of `messages_sent`.
    pub payload_bytes_sent: u64,
    /// Payload bytes of `messages_received`.
    pub payload_bytes_received: u64,
    /// Echoes that arrived inside the window, whenever they were due, by its length.
    pub throughput_messages_per_s: f64,
    /// The same in payload bytes.
    pub throughput_payload_bytes_per_s: f64,
    /// Streams by the gRPC status that they ended with.
    pub statuses: BTreeMap<String, u64>,
    /// Streams that had not ended when the drain limit passed.
    pub streams_unfinished: u64,
    /// R, received - intended: what a user waits. Open loop only.
    pub response_time: Option<Hdr>,
    /// L, queued - intended: the generator's own fault. Open loop only.
    pub send_lag: Option<Hdr>,
    /// W, pulled - queued: in-flight room and flow control, the server's doing. Null in older records of closed
    /// loops.
    pub flow_wait: Option<Hdr>,
    /// S, received - pulled.
    pub service_time: Hdr,
    /// Difference between a gap of two departures (queued) of a stream and the same gap in its plan.
    /// Open loop only.
    #[serde(default)]
    pub gap_error: Option<Hdr>,
    /// Mean time from an echo to that of the message which it released, in ns: what a place in flight
    /// lasts. Closed loop only.
    #[serde(default)]
    pub in_flight_mean_ns: Option<f64>,
    /// What the probe stream saw beside the load; null if there was none.
    #[serde(default)]
    pub probe: Option<Probe>,
    /// Each connection's TCP handshake; what answers the first frames is in `response_headers`. All of the run, as the three that follow.
    pub connect: Hdr,
    /// Each stream's way from the call to its response headers.
    pub response_headers: Hdr,
    /// Each stream's first message, pulled to received.
    pub first_message: Hdr,
    /// Each stream's way from the half-close to its status.
    pub half_close: Hdr,
    /// Echoes by the second in which they arrived, from the window's begin into the drain.
    pub seconds: Vec<Second>,
    /// Echoes of the measurement on each stream.
    pub echoes_per_stream: Vec<u64>,
    /// CPU and memory of the server, over the window; null if its process is not known.
    pub server: Option<Usage>,
    /// CPU time of the server as a share of what the cores gave that it may use, over the window; null if
    /// that is not known.
    #[serde(default)]
    pub server_cpu_share: Option<f64>,
    /// CPU and memory of loadgen, over the window.
    pub loadgen: Option<Usage>,
    /// What each shard's thread got and wanted, over the window; empty where it is not known.
    #[serde(default)]
    pub shard_threads: Vec<ThreadUsage>,
    /// What others did to the machine in the window; null where it is not known.
    #[serde(default)]
    pub disturbance: Option<Disturbance>,
    /// Who took the most CPU time of this machine besides server and loadgen, most first, from before loadgen connected
    /// until it had the last echo; three at most, and none that took less than a hundredth of one core.
    #[serde(default)]
    pub bystanders: Vec<Bystander>,
    /// Resident memory of the server at the moments of the run; null if its process is not known.
    #[serde(default)]
    pub server_resident: Option<Resident>,
    /// Echoes that arrived in the window by the server's CPU seconds.
    pub messages_per_server_cpu_s: Option<f64>,
}

impl Measured {
    /// CPU time of a process per echo that arrived in the window.
    pub fn cpu_per_message(&self, usage: Option<Usage>) -> Option<Nanos> {
        let echoes = self.throughput_messages_per_s * self.window_ns.as_secs_f64();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a float saturates, and CPU time is not negative"
        )]
        usage.filter(|_| echoes >= 1.0).map(|used| Nanos((used.cpu().0 as f64 / echoes) as u64))
    }

    /// What the bystanders used: `kdamond.0 2.4 %, rustc 1.1 % of a core`; `None` if there were none.
    pub fn bystanders_used(&self) -> Option<String> {
        let used = |it: &Bystander| format!("{} {:.1} %", it.name, 100.0 * it.core_share);
        let used: Vec<_> = self.bystanders.iter().map(used).collect();
        (!used.is_empty()).then(|| format!("{} of a core", used.join(", ")))
    }
}

/// What one low-rate stream saw, on a connection and a thread of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// Its messages in the window that were not echoed.
    pub messages_lost: u64,
    /// Its R.
    pub response_time: Hdr,
    /// Its S.
    pub service_time: Hdr,
}

/// How a backlog came to its bound. Times count from the load's begin, warm-up included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unstable {
    /// Messages due and not echoed, on the shard that gave up.
    pub backlog: u64,
    /// When it gave up.
    pub at_ns: Nanos,
    /// Since when the backlog had been above a tenth of its bound: the moment it diverged.
    pub since_ns: Nanos,
}

/// Echoes that were not what was due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Wrong {
    /// Length or content differ.
    pub corrupt: u64,
    /// Had been echoed before.
    pub duplicated: u64,
    /// Came although earlier messages of the stream had not; those are lost.
    pub early: u64,
    /// Came when nothing was in flight.
    pub unasked: u64,
}

impl Wrong {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.corrupt + self.duplicated + self.early + self.unasked
    }
}

/// One second of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Second {
    /// Number of the second, from 0 at the window's begin.
    pub second: u64,
    /// Messages that became due in it and were handed to their streams. Open loop only, else 0.
    #[serde(default)]
    pub messages_due: u64,
    /// Those of them that were left out because their stream was blocked; only if the scenario sheds. 0 in
    /// records of before.
    #[serde(default)]
    pub messages_shed: u64,
    /// Echoes that arrived in it, whenever they were due.
    pub messages_received: u64,
    /// Response times (closed loop: service times) of the measurement's messages among them.
    pub latency: WrittenHdr,
}

impl Second {
    /// Percentiles of its times if what was shed in it waited longer than all that is in it; and whether each falls
    /// among that, so that all that is known is that it lies beyond the largest value. Of the percentiles that a
    /// record writes: 50, 90, 99, 99.9 and 99.99. What was lost has no second, and is in the figures of the run.
    pub fn percentiles<const N: usize>(&self, percents: [f64; N]) -> [(Nanos, bool); N] {
        // Where nothing was shed, and for a histogram that cannot be read, what was written stands.
        let decoded = (self.messages_shed > 0).then(|| Hdr::try_from(&self.latency).ok()).flatten();
        percents.map(|percent| match &decoded {
            Some(hdr) => hdr.percentile_among(percent, self.messages_shed),
            None => (self.latency.percentile(percent), false),
        })
    }

    /// By how many it made the messages more that are due and not echoed. What is shed is none of them: it
    /// never will be echoed, and that is its purpose.
    pub fn backlog_growth(&self) -> i128 {
        let gone = i128::from(self.messages_shed) + i128::from(self.messages_received);
        i128::from(self.messages_due) - gone
    }
}

/// What a process used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// CPU time in user mode, in the window. The sum of both is exact; how it is divided is known to hundredths of a
    /// second.
    pub cpu_user_ns: Nanos,
    /// CPU time in the kernel, in the window.
    pub cpu_system_ns: Nanos,
    /// Peak of resident memory since the process began.
    pub rss_bytes_max: u64,
}

/// What the kernel says of one thread (Linux, Documentation/scheduler/sched-stats.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadUsage {
    /// Time on a core.
    pub cpu_ns: Nanos,
    /// Time ready to run but without a core.
    pub run_delay_ns: Nanos,
}

/// What others did to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Disturbance {
    /// Time that the host took from the cores that loadgen may use, as a share of their time.
    pub steal_share: f64,
    /// Time that the quotas of loadgen's control group and of those above it stopped them; null where there is none.
    pub throttled_ns: Option<Nanos>,
    /// TCP segments that this machine sent again, loopback or not; null where it is not known.
    pub tcp_retransmits: Option<u64>,
    /// Time that the cores in `awake_cpus` of the scenario had nothing to run all the same, as a share of their time; null
    /// if there are none.
    #[serde(default)]
    pub awake_idle_share: Option<f64>,
}

/// A process of this machine, or a thread of its kernel, that is neither server nor loadgen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bystander {
    /// As the kernel has it: 15 bytes at most (proc_pid_comm(5)).
    pub name: String,
    /// CPU time as a share of one core's.
    pub core_share: f64,
}

/// Resident memory of a process as the run goes on. Where anything is idle, each moment up to the load
/// comes half a second after everything was open, so that nothing goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resident {
    /// Before the run connects.
    pub before_bytes: u64,
    /// When the connections stand and the streams of the load are open.
    pub streams_open_bytes: u64,
    /// When the idle streams are open besides, and each has echoed its message.
    pub idle_streams_open_bytes: u64,
    /// When the idle connections are open besides: everything is, at rest.
    pub all_open_bytes: u64,
    /// When the window ends.
    pub end_bytes: u64,
    /// Each second after everything has closed, beside a trickle of messages, if that was asked for.
    pub closed_bytes: Vec<u64>,
}

impl Resident {
    /// What one idle stream costs beyond its connection; `None` if there is none.
    pub fn bytes_per_idle_stream(&self, scenario: &Scenario) -> Option<f64> {
        let grown = self.idle_streams_open_bytes.saturating_sub(self.streams_open_bytes);
        per(grown, scenario.idle_streams)
    }

    /// What one idle connection costs; `None` if there is none.
    pub fn bytes_per_idle_connection(&self, scenario: &Scenario) -> Option<f64> {
        let grown = self.all_open_bytes.saturating_sub(self.idle_streams_open_bytes);
        per(grown, scenario.idle_connections)
    }

    /// The share of what the run took that had gone back to the system at the end of the watch; `None`
    /// if there was none, or nothing to give back.
    pub fn share_given_back(&self) -> Option<f64> {
        let taken =
            self.all_open_bytes.checked_sub(self.before_bytes).filter(|taken| *taken > 0)?;
        let kept = self.closed_bytes.last()?.saturating_sub(self.before_bytes);
        Some(1.0 - kept as f64 / taken as f64)
    }
}

fn per(bytes: u64, count: usize) -> Option<f64> {
    (count > 0).then(|| bytes as f64 / count as f64)
}

impl Usage {
    /// User and system together.
    pub fn cpu(&self) -> Nanos {
        self.cpu_user_ns + self.cpu_system_ns
    }
}

/// Something suspect but not fatal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// For people, with the values.
    pub message: String,
}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// loadgen was built without full optimisation or with debug assertions.
    SlowBuild,
    /// The server is of another version, revision or build profile than loadgen.
    RevisionDiffers,
    /// Messages left late through loadgen's own fault. In records of before; now a gate.
    SendLag,
    /// loadgen's threads had no time to spare. In records of before; now a gate.
    LoadgenBusy,
    /// The server sends response headers only with its first message.
    LateHeaders,
    /// The server's CPU time and memory are not known.
    ServerUsageUnknown,
    /// The run ended before its plan.
    StoppedEarly,
    /// A part of the response time that counts is loadgen's own lag.
    LagInResponse,
    /// The server's memory was not watched to the end after everything had closed.
    MemoryNotWatched,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn what_has_gone_back_is_a_share_of_what_was_taken() {
        let resident = |closed: &[u64]| Resident {
            before_bytes: 100,
            all_open_bytes: 500,
            closed_bytes: closed.to_vec(),
            ..Resident::default()
        };
        assert_eq!(resident(&[500, 200]).share_given_back(), Some(0.75));
        assert_eq!(resident(&[90]).share_given_back(), Some(1.0), "below where it began");
        assert_eq!(resident(&[]).share_given_back(), None);
        assert_eq!(Resident::default().share_given_back(), None);
    }

    #[test]
    fn a_build_says_its_profile_and_one_of_before_says_none() {
        let mut build = example::closed_loop().provenance.loadgen;
        assert_eq!(
            build.to_string(),
            "0.1.0 (0123456789ab), profile release, opt-level 3, debug assertions off"
        );
        let mut json = serde_json::to_value(&build).unwrap();
        assert!(json.as_object_mut().unwrap().remove("profile").is_some());
        build = serde_json::from_value(json).unwrap();
        build.debug_assertions = true;
        assert_eq!(build.to_string(), "0.1.0 (0123456789ab), opt-level 3, debug assertions on");
    }

    /// `BIDI_ECHO_UPDATE_SCHEMA=1 cargo test -p loadgen` writes it anew.
    #[test]
    fn the_schema_in_results_is_the_one_of_these_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../results/run.schema.json");
        let schema =
            serde_json::to_string_pretty(&schemars::schema_for!(RunRecord)).unwrap() + "\n";
        if std::env::var_os("BIDI_ECHO_UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &schema).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(committed == schema, "results/run.schema.json is another version's: write it anew");
    }
}

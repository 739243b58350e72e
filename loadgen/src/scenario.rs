//! Every input of a run: [`RunArgs`] is what was typed, [`Scenario`] is what it means.
//!
//! Every flag of `run` is declared here. `Scenario` is checked and has no defaults left to guess,
//! so that a record says all that a repetition needs.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;

use bidi_echo::config::{Placement, Transport};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use crate::slo::Slo;
use crate::units::{MessagesPerSecond, Nanos};

/// Streams on a connection unless `--connections` says otherwise: what most servers allow at least
/// (RFC 9113, 6.5.2 asks for no limit below 100).
const STREAMS_PER_CONNECTION: usize = 100;

/// Largest message that loadgen sends or takes: gRPC's usual limit.
pub const MESSAGE_BYTES_MAX: usize = bidi_echo::config::MESSAGE_BYTES_MAX;

/// Of the stream beside an open loop that has to be valid: too few to load anything, enough for a median.
pub(crate) const PROBE_RATE: MessagesPerSecond = MessagesPerSecond(100.0);

/// `name` of every message that loadgen sends to `Chat/chat`.
pub(crate) const CHAT_NAME: &str = "load";

/// Measures one scenario against one server.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Server to measure, http://HOST:PORT [default: what answers on 127.0.0.1:9090, else an
    /// embedded server on a free port]
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,

    /// Process id of a server that loadgen did not start, for its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,

    /// Transport of an embedded server [default: the server's own]
    #[arg(long, value_enum)]
    pub transport: Option<Transport>,

    /// Where the streams of an embedded server on the inline transport run [default: inline]
    #[arg(long, value_enum)]
    pub placement: Option<Placement>,

    /// The load.
    #[command(flatten)]
    pub load: LoadArgs,

    /// Further streams on these connections: each echoes one message before the load, then stays open
    #[arg(long, value_name = "N", default_value = "0")]
    pub idle_streams: usize,

    /// Further connections that never carry a stream
    #[arg(long, value_name = "N", default_value = "0")]
    pub idle_connections: usize,

    /// Watch the server's memory so long after everything has closed, beside a trickle of messages
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub watch_give_back: Nanos,

    /// Threads, each with its own connections and streams [default: half the cores]
    #[arg(long, value_name = "N")]
    pub shards: Option<NonZeroUsize>,

    /// Cores to pin the shards to, in turn, such as 2,3 [default: not pinned; with an embedded server, that is pinned to
    /// the first half of the cores, and shards to the rest]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub cpus: Vec<usize>,

    /// Keep those cores, and an embedded server's, from idling: a thread of the lowest priority on each, so that none has to
    /// be woken. For cores that nobody else uses
    #[arg(long)]
    pub keep_awake: bool,

    /// Length of the measurement
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub duration: Nanos,

    /// Load before the measurement, never recorded
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub warmup: Nanos,

    /// Stop after so many measured messages over all streams (without --duration: however long it takes)
    #[arg(long, value_name = "N")]
    pub messages: Option<u64>,

    /// Time after the measurement for the echoes that are still missing; then they are lost
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub drain_limit: Nanos,

    /// Seed of phases, Poisson gaps and payloads [default: from the clock, and recorded]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Write the whole record as JSON; - is stdout
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,

    /// Open loop: one more stream, on a connection and a thread of its own, sends so many messages per second
    /// beside the load, and must see what the load sees [default: none; 100 with --require-valid]
    #[arg(long, value_name = "RATE", requires = "rate")]
    pub probe_rate: Option<MessagesPerSecond>,

    /// Goals to be met, such as 'p99<5ms,errors=0,throughput>100k'; exit code 4 if one is not
    #[arg(long, value_name = "GOALS")]
    pub slo: Option<Slo>,

    /// Exit with code 3 if a gate fails: the run is then invalid as a measurement of the server. Measures what else
    /// that takes: a probe beside an open loop, and what loadgen carries against a server that does nothing (some
    /// seconds, once for each machine, build and load)
    #[arg(long)]
    pub require_valid: bool,

    /// What a null echo carries under this load, from whoever has calibrated it
    #[arg(long, value_name = "RATE", hide = true)]
    pub null_throughput: Option<MessagesPerSecond>,

    /// Process that started this and waits for its record: the run ends with it
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<u32>,

    /// Cores that whoever started this keeps awake
    #[arg(
        long,
        value_name = "CPU",
        value_delimiter = ',',
        hide = true,
        conflicts_with = "keep_awake"
    )]
    pub awake_cpus: Vec<usize>,

    #[doc(hidden)]
    #[arg(skip)]
    pub duration_was_typed: bool,
}

/// What a load is, wherever it goes.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// What is called: echo.v1.Echo/Bidi or Chat/chat
    #[arg(long, value_enum, default_value_t = ContractName::Echo)]
    pub contract: ContractName,

    /// HTTP/2 client that carries the streams
    #[arg(long, value_enum, default_value_t = ClientName::Inline)]
    pub client: ClientName,

    /// Concurrent bidirectional streams
    #[arg(long, value_name = "N", default_value = "100")]
    pub streams: NonZeroUsize,

    /// HTTP/2 connections that carry them [default: one per 100 streams]
    #[arg(long, value_name = "N")]
    pub connections: Option<NonZeroUsize>,

    /// Messages sent and not yet echoed, per stream [default: 1; unbounded with --rate]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<NonZeroUsize>,

    /// Open loop: offered load in messages per second over all streams, such as 50k
    #[arg(long, value_name = "RATE")]
    pub rate: Option<MessagesPerSecond>,

    /// Open loop: gaps between a stream's messages
    #[arg(long, value_enum)]
    pub arrivals: Option<Arrivals>,

    /// Open loop: what becomes of a message that is due while its stream is blocked
    #[arg(long, value_enum)]
    pub blocked: Option<Blocked>,

    /// Open loop: more messages due and not echoed than this, over all streams, end the run as unstable
    /// [default: 8M]
    #[arg(long, value_name = "N")]
    pub max_backlog: Option<NonZeroU64>,

    /// Payload of a message; its first 8 bytes carry a sequence number, the rest seeded filler
    #[arg(long, value_name = "BYTES", default_value = "8")]
    pub payload: ByteSize,

    /// Metadata to send with each stream; may be repeated
    #[arg(long = "header", value_name = "KEY=VALUE")]
    pub headers: Vec<Header>,
}

impl LoadArgs {
    /// Err: what no server can be loaded with.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        self.check_rate()?;
        self.check_size()
    }

    /// Err: what no server can be loaded with, at whatever rate: a search has one at each of its trials.
    pub(crate) fn check_size(&self) -> Result<(), UsageError> {
        self.payload_bytes()?;
        let streams = self.streams.get();
        match self.connections.map(NonZeroUsize::get) {
            Some(connections) if connections > streams => {
                let cure = format!("there are only {streams} streams to carry; pass at most that");
                Err(usage("--connections", connections, cure))
            }
            _ => Ok(()),
        }
    }

    fn payload_bytes(&self) -> Result<usize, UsageError> {
        let most = MESSAGE_BYTES_MAX - encoding_bytes_max(self.contract);
        let bytes = usize::try_from(self.payload.as_u64()).ok().filter(|bytes| *bytes <= most);
        bytes.ok_or_else(|| {
            let cure = format!(
                "a message holds at most {MESSAGE_BYTES_MAX} bytes, encoding included: pass at most {most}"
            );
            usage("--payload", self.payload, cure)
        })
    }

    /// Err: a flag that only an open loop has, in a closed one.
    fn check_rate(&self) -> Result<(), UsageError> {
        let of_rates = [
            ("--arrivals", self.arrivals.map(name_of)),
            ("--blocked", self.blocked.map(name_of)),
            ("--max-backlog", self.max_backlog.map(|most| most.to_string())),
        ];
        let typed = of_rates.into_iter().find_map(|(flag, value)| Some((flag, value?)));
        match (typed, self.rate) {
            (Some((flag, value)), None) => {
                Err(usage(flag, value, "is an open loop's; pass --rate too, or leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// The same without what only a rate has.
    pub(crate) fn closed_loop(&self) -> Self {
        LoadArgs { rate: None, arrivals: None, blocked: None, max_backlog: None, ..self.clone() }
    }

    /// The same at this rate.
    pub(crate) fn at(&self, rate: MessagesPerSecond) -> Self {
        LoadArgs { rate: Some(rate), ..self.clone() }
    }

    /// As they are typed.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        flag("--contract", name_of(self.contract));
        flag("--client", name_of(self.client));
        flag("--streams", self.streams.to_string());
        if let Some(connections) = self.connections {
            flag("--connections", connections.to_string());
        }
        if let Some(in_flight) = self.in_flight {
            flag("--in-flight", in_flight.to_string());
        }
        if let Some(rate) = self.rate {
            flag("--rate", rate.0.to_string());
        }
        if let Some(arrivals) = self.arrivals {
            flag("--arrivals", name_of(arrivals));
        }
        if let Some(blocked) = self.blocked {
            flag("--blocked", name_of(blocked));
        }
        if let Some(backlog_max) = self.max_backlog {
            flag("--max-backlog", backlog_max.to_string());
        }
        flag("--payload", format!("{}B", self.payload.as_u64()));
        for Header { key, value } in &self.headers {
            flag("--header", format!("{key}={value}"));
        }
        flags
    }
}

/// A value as it is typed.
pub(crate) fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |name| name.get_name().to_owned())
}

/// Metadata as typed: `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Lower-case name.
    pub key: String,
    /// ASCII value.
    pub value: String,
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("need key=value")?;
        let reserved =
            key.starts_with("grpc-") || ["te", "content-type", "user-agent"].contains(&key);
        if reserved {
            return Err(format!("{key}: gRPC sets this one itself; choose another key"));
        }
        if key.ends_with("-bin") || AsciiMetadataKey::from_str(key).is_err() {
            return Err(format!("{key:?}: need a lower-case metadata key of ASCII values"));
        }
        AsciiMetadataValue::from_str(value)
            .map_err(|_| format!("{value:?}: need visible ASCII"))?;
        Ok(Header { key: key.to_owned(), value: value.to_owned() })
    }
}

/// Which service is called.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ContractName {
    /// `echo.v1.Echo/Bidi`: bytes back unchanged.
    #[default]
    Echo,
    /// `Chat/chat`: text back as `name: message`.
    Chat,
}

/// Which client carries the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientName {
    /// Ours: streams live inside their connection's task.
    Inline,
    /// tonic's, on hyper and h2.
    Tonic,
}

impl ClientName {
    /// The only one there was when records did not say.
    fn first() -> Self {
        ClientName::Tonic
    }
}

/// Gaps between the messages of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// All alike, each stream with a random phase.
    Uniform,
    /// Exponential: arrivals do not know of each other.
    Poisson,
}

/// What becomes of a message that is due while its stream is blocked: no room in flight, or what was due
/// before it still waits for the transport.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// It waits, and the wait counts.
    #[default]
    Queue,
    /// It is left out and counted; percentiles take it for later than all that were echoed.
    Shed,
}

/// When messages leave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum Load {
    /// The next message waits for an echo.
    ClosedLoop {
        /// Messages in flight on each stream, at least 1.
        in_flight_max: usize,
    },
    /// The next message waits for the clock.
    OpenLoop {
        /// Offered load over all streams.
        rate_messages_per_s: MessagesPerSecond,
        /// Gaps between a stream's messages.
        arrivals: Arrivals,
        /// Messages in flight on each stream; null is unbounded.
        in_flight_max: Option<usize>,
        /// What becomes of a message whose stream is blocked; records without it queued.
        #[serde(default)]
        blocked: Blocked,
        /// Messages due and not echoed, over all streams, that end the run.
        #[serde(default = "backlog_max")]
        backlog_max: u64,
    },
}

/// Messages due and not echoed, unless `--max-backlog` says otherwise: 32 bytes each, and a server that
/// stalls for good must not fill the memory. 8 million are 8 s at a million per second.
const BACKLOG_MAX: u64 = 8_000_000;

/// What records without it ran with.
fn backlog_max() -> u64 {
    BACKLOG_MAX
}

/// One run's inputs, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scenario {
    /// Which service is called.
    pub contract: ContractName,
    /// Which client carries the streams; records without it are of tonic's.
    #[serde(default = "ClientName::first")]
    pub client: ClientName,
    /// Concurrent streams, over all connections.
    pub streams: usize,
    /// HTTP/2 connections; stream i is on connection i modulo this.
    pub connections: usize,
    /// Streams that are open besides, spread like the others: each echoes one message before the load.
    #[serde(default)]
    pub idle_streams: usize,
    /// Connections that are open besides and never carry a stream.
    #[serde(default)]
    pub idle_connections: usize,
    /// How long the server's memory is watched after everything has closed.
    #[serde(default)]
    pub watch_give_back_ns: Nanos,
    /// Threads; connection i belongs to shard i modulo this.
    pub shards: usize,
    /// Cores that shards are pinned to, in turn; empty is not pinned.
    pub cpus: Vec<usize>,
    /// Cores that a thread of the lowest priority kept from idling; empty: none.
    #[serde(default)]
    pub awake_cpus: Vec<usize>,
    /// When messages leave.
    pub load: Load,
    /// Payload of a message, without its protobuf encoding.
    pub payload_bytes: usize,
    /// Load before the measurement.
    pub warmup_ns: Nanos,
    /// Planned length of the measurement; null with `messages_max` alone.
    pub duration_ns: Option<Nanos>,
    /// Messages measured at most; null is no bound.
    pub messages_max: Option<u64>,
    /// Time for echoes after the measurement.
    pub drain_limit_ns: Nanos,
    /// Seed of phases, gaps and payloads.
    pub seed: u64,
    /// Metadata sent with each stream.
    pub headers: BTreeMap<String, String>,
    /// Messages per second of the probe stream beside the load; null if there is none.
    #[serde(default)]
    pub probe_rate_messages_per_s: Option<MessagesPerSecond>,
    /// What loadgen carries of this load on this machine against a server that does nothing: in closed loop its throughput, in
    /// open loop the highest rate at which messages leave in time; null if that was not calibrated.
    #[serde(default)]
    pub null_throughput_messages_per_s: Option<MessagesPerSecond>,
}

/// A flag whose value cannot be run; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {value}: {cure}")]
pub struct UsageError {
    /// The flag as typed.
    pub flag: &'static str,
    /// The value given.
    pub value: String,
    /// What is wrong and what to pass.
    pub cure: String,
}

fn usage(flag: &'static str, value: impl ToString, cure: impl Into<String>) -> UsageError {
    UsageError { flag, value: value.to_string(), cure: cure.into() }
}

/// What a scenario is resolved against.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Cores that this process may use, by their numbers.
    pub cpus: Vec<usize>,
    /// Cores that shards are pinned to unless `--cpus` says otherwise; none: they are not pinned.
    pub usual_cpus: Vec<usize>,
    /// Cores of a server that this loadgen has started.
    pub server_cpus: Vec<usize>,
    /// Streams that the server allows on one connection, if it says.
    pub streams_per_connection_max: Option<u32>,
    /// Where an unset seed comes from.
    pub fresh_seed: u64,
}

impl Scenario {
    /// Resolves what was typed. Err: what cannot be run, with the cure.
    pub fn resolve(args: &RunArgs, surroundings: &Surroundings) -> Result<Scenario, UsageError> {
        args.load.check()?;
        let duration_ns = duration(args)?;
        if let (Some(rate), None) = (args.probe_rate, duration_ns) {
            let cure = "--messages alone says no time for it; pass --duration too, or leave it out";
            return Err(usage("--probe-rate", rate.0, cure));
        }
        let streams = args.load.streams.get();
        let connections = connections(args, surroundings)?;
        let shards = args.shards.map_or((surroundings.cpus.len() / 2).max(1), NonZeroUsize::get);
        if let Some(cpu) = args.cpus.iter().find(|cpu| !surroundings.cpus.contains(cpu)) {
            return Err(usage(
                "--cpus",
                cpu,
                format!(
                    "this process may use the cores {:?}; pass some of them",
                    surroundings.cpus
                ),
            ));
        }
        let headers: BTreeMap<_, _> = args
            .load
            .headers
            .iter()
            .map(|header| (header.key.clone(), header.value.clone()))
            .collect();
        if headers.len() < args.load.headers.len() {
            let keys: Vec<_> = args.load.headers.iter().map(|header| header.key.as_str()).collect();
            return Err(usage(
                "--header",
                keys.join(", "),
                "a key stands there twice; pass each once",
            ));
        }
        let cpus = if args.cpus.is_empty() { &surroundings.usual_cpus } else { &args.cpus }.clone();
        Ok(Scenario {
            contract: args.load.contract,
            client: args.load.client,
            streams,
            connections,
            idle_streams: args.idle_streams,
            idle_connections: args.idle_connections,
            watch_give_back_ns: args.watch_give_back,
            shards: shards.min(connections),
            awake_cpus: awake_cpus(args, &cpus, &surroundings.server_cpus)?,
            cpus,
            load: load(args),
            payload_bytes: args.load.payload_bytes()?,
            warmup_ns: args.warmup,
            duration_ns,
            messages_max: messages(args)?,
            drain_limit_ns: args.drain_limit,
            seed: args.seed.unwrap_or(surroundings.fresh_seed),
            headers,
            probe_rate_messages_per_s: args.probe_rate.or(probe_rate(args, duration_ns)),
            null_throughput_messages_per_s: args.null_throughput,
        })
    }
}

fn connections(args: &RunArgs, surroundings: &Surroundings) -> Result<usize, UsageError> {
    let streams = args.load.streams.get();
    let all = streams + args.idle_streams;
    let limit = surroundings.streams_per_connection_max.map_or(usize::MAX, |limit| limit as usize);
    if limit == 0 {
        return Err(usage(
            "--streams",
            streams,
            "the server announces that it allows no streams (MAX_CONCURRENT_STREAMS 0)",
        ));
    }
    let idle = args.idle_streams;
    let on_each = |connections| streams.div_ceil(connections) + idle.div_ceil(connections);
    // Each carries a stream of the load at least.
    let needed = |most: usize| (1..=streams).find(|connections| on_each(*connections) <= most);
    let usual = needed(STREAMS_PER_CONNECTION.min(limit)).unwrap_or(streams);
    let connections = args.load.connections.map_or(usual, NonZeroUsize::get);
    if on_each(connections) > limit {
        let cure = match needed(limit) {
            Some(needed) => format!("{all} streams need at least --connections {needed}"),
            None => {
                format!(
                    "{idle} idle streams do not fit beside {streams}: pass fewer --idle-streams"
                )
            }
        };
        let cure = format!("the server allows {limit} streams per connection, and {cure}");
        return Err(usage("--connections", connections, cure));
    }
    Ok(connections)
}

/// Err: they are to be kept awake, and none is known.
fn awake_cpus(
    args: &RunArgs,
    cpus: &[usize],
    server_cpus: &[usize],
) -> Result<Vec<usize>, UsageError> {
    if !args.keep_awake {
        return Ok(args.awake_cpus.clone());
    }
    if cpus.is_empty() {
        let cure = "nothing is pinned to one; pass --cpus, or leave it out";
        return Err(usage("--keep-awake", "without a core", cure));
    }
    Ok([server_cpus, cpus].concat())
}

/// The probe of a run that has to be valid, where there can be one.
fn probe_rate(args: &RunArgs, duration: Option<Nanos>) -> Option<MessagesPerSecond> {
    let has_probe = args.require_valid && args.load.rate.is_some() && duration.is_some();
    has_probe.then_some(PROBE_RATE)
}

fn load(args: &RunArgs) -> Load {
    let in_flight_max = args.load.in_flight.map(NonZeroUsize::get);
    match args.load.rate {
        None => Load::ClosedLoop { in_flight_max: in_flight_max.unwrap_or(1) },
        Some(rate_messages_per_s) => Load::OpenLoop {
            rate_messages_per_s,
            arrivals: args.load.arrivals.unwrap_or(Arrivals::Uniform),
            in_flight_max,
            blocked: args.load.blocked.unwrap_or_default(),
            backlog_max: args.load.max_backlog.map_or(BACKLOG_MAX, NonZeroU64::get),
        },
    }
}

/// Bytes that protobuf and the contract put around a payload of this size, at most: tag and length
/// for echo; for chat twice (text and name), the name, and the reply's separator.
fn encoding_bytes_max(contract: ContractName) -> usize {
    match contract {
        ContractName::Echo => 5,
        ContractName::Chat => 5 + 2 + CHAT_NAME.len() + 2,
    }
}

/// Err: no time at all.
pub(crate) fn check_duration(flag: &'static str, duration: Nanos) -> Result<(), UsageError> {
    match duration {
        Nanos(0) => Err(usage(flag, "0s", "nothing would be measured; pass a time such as 10s")),
        _ => Ok(()),
    }
}

fn duration(args: &RunArgs) -> Result<Option<Nanos>, UsageError> {
    check_duration("--duration", args.duration)?;
    let unbounded = args.messages.is_some() && !args.duration_was_typed;
    Ok((!unbounded).then_some(args.duration))
}

fn messages(args: &RunArgs) -> Result<Option<u64>, UsageError> {
    match args.messages {
        Some(messages) if args.idle_streams + args.idle_connections > 0 => Err(usage(
            "--messages",
            messages,
            "what is idle has no end of its own to wait for; pass --duration instead",
        )),
        Some(0) => Err(usage("--messages", 0, "nothing would be measured; pass at least 1")),
        messages => Ok(messages),
    }
}

#[cfg(test)]
mod tests;

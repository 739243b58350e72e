//! What can be set: [`Args`] is what was typed, [`Config`] is what it means.
//!
//! Every flag of the server is declared here and nowhere else. `Config::try_from(args)` rejects
//! what is wrong, with the value and the cure; past it nothing is checked again.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{BoolishValueParser, PossibleValue};
use clap::{Parser, ValueEnum};

use crate::error::Error;

/// Smallest connection window that HTTP/2 allows: it starts there and only grows (RFC 9113, 6.9.2).
pub const CONNECTION_FLOW_WINDOW_BYTES_MIN: u32 = 65_535;

/// Largest flow-control window (RFC 9113, 6.9.1).
pub const FLOW_WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;

/// Port of the seed system; loopback, because a server without TLS is not put on the network unasked.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Largest message in either direction unless set: the seed's (and gRPC's) 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Largest header list unless set: the seed's 8 KiB, counted as RFC 9113, 6.5.2 does.
pub const HEADER_LIST_BYTES_MAX: u32 = 8 << 10;

/// Flow-control window of a stream unless set: hyper's default for servers.
pub const STREAM_FLOW_WINDOW_BYTES: u32 = 1 << 20;

/// Flow-control window of a connection unless set.
///
/// h2 answers a connection with GOAWAY when its unread DATA frames below 256 bytes use up a budget
/// of half this window (each takes 256 less its length): 16 MiB lets 33,000 unread tiny messages
/// through, where hyper's 1 MiB gives up at 2,115.
pub const CONNECTION_FLOW_WINDOW_BYTES: u32 = 16 << 20;

/// Connections at once unless set: each takes a file descriptor and some KiB.
pub const CONNECTIONS_MAX: usize = 65_536;

/// What a connection may have begun and not finished of messages, unless set, if six of the largest
/// messages are not more. Six, so that a few large uploads at once are nobody's attack.
pub const UNFINISHED_BYTES_MAX: usize = 6 * (MESSAGE_BYTES_MAX + 5);

/// What all connections keep together unless set: 64 of them with full flow-control windows.
pub const BUFFERED_BYTES_MAX: usize = 1 << 30;

/// What carries the streams, unless set.
pub const TRANSPORT: Transport = Transport::Inline(Placement::Inline);

/// Streams that a connection may have open at once, unless set.
pub const MAX_CONCURRENT_STREAMS: u32 = 4_096;

/// Silence after which a ping leaves, unless set: gRPC's default for servers (grpc/grpc, doc/keepalive.md). Without it a client that
/// vanished while it had a stream open would keep its connection for ever.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);

/// Time to answer a keepalive ping, unless set: gRPC's default in every implementation.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time from accept to a client's first SETTINGS, unless set: many round trips of any network.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time from the first frame of a header block to its last, unless set. They leave together, so this
/// is one retransmission after another.
pub const HEADER_BLOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which a connection without streams is closed, unless set. Clients open a new one when
/// they need it; a quarter of an hour outlives any pause between two calls of one task.
pub const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Time for a peer to read, or to open a window, before it is given up, unless set. A slow network
/// takes some of what waits for it within a minute.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a drain may take, unless set.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// gRPC bidirectional echo server: `Chat/chat` and `echo.v1.Echo/Bidi`.
#[derive(Clone, Debug, Parser)]
#[command(name = "bidi-echo", version, long_version = LONG_VERSION)]
pub struct Args {
    /// Address to listen on; port 0 takes a free one and logs it
    #[arg(long, env = "BIDI_ECHO_LISTEN", value_name = "ADDRESS", default_value_t = LISTEN)]
    pub listen: SocketAddr,

    /// Worker threads [default: one per core]
    #[arg(long, env = "BIDI_ECHO_THREADS", value_name = "N")]
    pub threads: Option<usize>,

    /// What carries the streams
    #[arg(long, env = "BIDI_ECHO_TRANSPORT", value_enum, default_value_t = TRANSPORT)]
    pub transport: Transport,

    /// Where the streams of the inline transport run [default: inline]
    #[arg(long, env = "BIDI_ECHO_PLACEMENT", value_enum)]
    pub placement: Option<Placement>,

    /// Connections at once; more wait in the system's backlog
    #[arg(long, env = "BIDI_ECHO_CONNECTIONS_MAX", value_name = "N",
          default_value_t = CONNECTIONS_MAX)]
    pub connections_max: usize,

    /// Streams that one connection may have open at once
    #[arg(long, env = "BIDI_ECHO_MAX_CONCURRENT_STREAMS", value_name = "N",
          default_value_t = MAX_CONCURRENT_STREAMS)]
    pub max_concurrent_streams: u32,

    /// Largest message that a client may send; a larger one ends its stream with RESOURCE_EXHAUSTED
    #[arg(long, env = "BIDI_ECHO_INBOUND_MESSAGE_BYTES_MAX", value_name = "SIZE",
          default_value_t = ByteSize(MESSAGE_BYTES_MAX as u64))]
    pub inbound_message_bytes_max: ByteSize,

    /// Largest reply; a larger one ends its stream with RESOURCE_EXHAUSTED
    #[arg(long, env = "BIDI_ECHO_OUTBOUND_MESSAGE_BYTES_MAX", value_name = "SIZE",
          default_value_t = ByteSize(MESSAGE_BYTES_MAX as u64))]
    pub outbound_message_bytes_max: ByteSize,

    /// Inline transport: what a connection's streams may have begun and not finished of messages; a
    /// stream that goes beyond ends with RESOURCE_EXHAUSTED [default: 24 MiB, or six of the largest
    /// messages if that is more]
    #[arg(long, env = "BIDI_ECHO_UNFINISHED_BYTES_MAX", value_name = "SIZE")]
    pub unfinished_bytes_max: Option<ByteSize>,

    /// Inline transport: what all connections keep together; beyond it, the one that grows is ended
    /// [default: 1 GiB]
    #[arg(long, env = "BIDI_ECHO_BUFFERED_BYTES_MAX", value_name = "SIZE")]
    pub buffered_bytes_max: Option<ByteSize>,

    /// Largest header list of a request, names + values + 32 each
    #[arg(long, env = "BIDI_ECHO_HEADER_LIST_BYTES_MAX", value_name = "SIZE",
          default_value_t = ByteSize(HEADER_LIST_BYTES_MAX.into()))]
    pub header_list_bytes_max: ByteSize,

    /// HTTP/2 flow-control window of a stream
    #[arg(long, env = "BIDI_ECHO_STREAM_FLOW_WINDOW_BYTES", value_name = "SIZE",
          default_value_t = ByteSize(STREAM_FLOW_WINDOW_BYTES.into()))]
    pub stream_flow_window_bytes: ByteSize,

    /// HTTP/2 flow-control window of a connection
    #[arg(long, env = "BIDI_ECHO_CONNECTION_FLOW_WINDOW_BYTES", value_name = "SIZE",
          default_value_t = ByteSize(CONNECTION_FLOW_WINDOW_BYTES.into()))]
    pub connection_flow_window_bytes: ByteSize,

    /// Ping a connection after so much silence, to notice peers that vanished, or never [default: 2h]
    #[arg(long, env = "BIDI_ECHO_KEEPALIVE_INTERVAL", value_name = "TIME")]
    pub keepalive_interval: Option<TimeLimit>,

    /// Close a connection whose keepalive ping is not answered within this time [default: 20s]
    #[arg(long, env = "BIDI_ECHO_KEEPALIVE_TIMEOUT", value_name = "TIME")]
    pub keepalive_timeout: Option<humantime::Duration>,

    /// Send GOAWAY to a connection of this age, so that clients spread anew [default: never]
    #[arg(long, env = "BIDI_ECHO_CONNECTION_AGE_MAX", value_name = "TIME")]
    pub connection_age_max: Option<humantime::Duration>,

    /// Cut a connection off this long after its GOAWAY for age [default: when its streams end]
    #[arg(long, env = "BIDI_ECHO_CONNECTION_AGE_GRACE", value_name = "TIME")]
    pub connection_age_grace: Option<humantime::Duration>,

    /// Inline: close a connection that has not sent its first SETTINGS this long after it was accepted
    /// [default: 10s]
    #[arg(long, env = "BIDI_ECHO_HANDSHAKE_TIMEOUT", value_name = "TIME")]
    pub handshake_timeout: Option<humantime::Duration>,

    /// Inline: close a connection whose header block is not complete within this time [default: 10s]
    #[arg(long, env = "BIDI_ECHO_HEADER_BLOCK_TIMEOUT", value_name = "TIME")]
    pub header_block_timeout: Option<humantime::Duration>,

    /// Inline: close a connection that has had no stream for this long, or never [default: 15m]
    #[arg(long, env = "BIDI_ECHO_CONNECTION_IDLE_TIMEOUT", value_name = "TIME")]
    pub connection_idle_timeout: Option<TimeLimit>,

    /// Inline: end a stream without data or headers either way for this long, with UNAVAILABLE
    /// [default: never]
    #[arg(long, env = "BIDI_ECHO_STREAM_IDLE_TIMEOUT", value_name = "TIME")]
    pub stream_idle_timeout: Option<TimeLimit>,

    /// Inline: end a stream whose window the client does not open, and close a connection that it
    /// does not read, after this time, or never [default: 1m]
    #[arg(long, env = "BIDI_ECHO_STALL_TIMEOUT", value_name = "TIME")]
    pub stall_timeout: Option<TimeLimit>,

    /// From SIGTERM or SIGINT to exit, at most: streams finish, the rest ends with UNAVAILABLE
    #[arg(long, env = "BIDI_ECHO_DRAIN_LIMIT", value_name = "TIME",
          default_value_t = DRAIN_LIMIT.into())]
    pub drain_limit: humantime::Duration,

    /// Offer server reflection (v1 and v1alpha)
    #[arg(long, env = "BIDI_ECHO_REFLECTION", value_parser = BoolishValueParser::new())]
    pub reflection: bool,

    /// Least severe level that is logged, to stderr
    #[arg(long, env = "BIDI_ECHO_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,

    /// Shape of a log line
    #[arg(long, env = "BIDI_ECHO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Serve Prometheus metrics at http://ADDRESS/metrics [default: off]
    #[arg(long, env = "BIDI_ECHO_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
}

const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BIDI_ECHO_REVISION"),
    ", profile ",
    env!("BIDI_ECHO_PROFILE"),
    ", opt-level ",
    env!("BIDI_ECHO_OPT_LEVEL"),
    ")"
);

/// What carries HTTP/2 between the socket and the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Ours: one task per connection.
    Inline(Placement),
    /// tonic's own, on hyper and h2.
    Tonic,
}

impl Transport {
    /// The name as typed.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Inline(_) => "inline",
            Transport::Tonic => "tonic",
        }
    }

    /// Where streams run. On tonic's transport hyper gives each a task of its own.
    pub fn placement(self) -> Placement {
        match self {
            Transport::Inline(placement) => placement,
            Transport::Tonic => Placement::Task,
        }
    }

    /// This transport, with `placement` if one was typed. Err: it has no choice to make.
    pub fn placed(self, placement: Option<Placement>) -> Result<Self, Error> {
        match (self, placement) {
            (Transport::Inline(_), Some(placement)) => Ok(Transport::Inline(placement)),
            (Transport::Tonic, Some(placement)) => Err(wrong(
                "--placement",
                placement.name(),
                "tonic runs each stream on a task of its own; pass --transport inline, or leave it out",
            )),
            (transport, None) => Ok(transport),
        }
    }
}

/// As typed; the placement has a flag of its own.
impl ValueEnum for Transport {
    fn value_variants<'a>() -> &'a [Self] {
        &[Transport::Inline(Placement::Inline), Transport::Tonic]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Transport::Inline(_) => "Ours: one task per connection",
            Transport::Tonic => "tonic's own, on hyper and h2",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// Where the streams of the inline transport run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Placement {
    /// In their connection's task
    Inline,
    /// Each on a task of its own, for handlers that compute long
    Task,
}

impl Placement {
    /// The name as typed.
    pub fn name(self) -> &'static str {
        match self {
            Placement::Inline => "inline",
            Placement::Task => "task",
        }
    }
}

/// A time limit as typed: a time such as `90s`, or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLimit {
    /// There is no limit.
    Never,
    /// So long.
    After(Duration),
}

impl FromStr for TimeLimit {
    type Err = humantime::DurationError;

    fn from_str(typed: &str) -> Result<Self, Self::Err> {
        match typed {
            "never" => Ok(TimeLimit::Never),
            time => humantime::parse_duration(time).map(TimeLimit::After),
        }
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeLimit::Never => out.write_str("never"),
            TimeLimit::After(time) => humantime::format_duration(*time).fmt(out),
        }
    }
}

/// Least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Fields as `name=value`, for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What a server does, resolved and checked; [`Config::default`] is what no flags mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What carries the streams.
    pub transport: Transport,
    /// Connections at once, at least 1.
    pub connections_max: usize,
    /// Streams per connection, at least 1.
    pub max_concurrent_streams: u32,
    /// Largest message in, in bytes, without the 5-byte prefix.
    pub inbound_message_bytes_max: usize,
    /// Largest message out, in bytes, without the 5-byte prefix.
    pub outbound_message_bytes_max: usize,
    /// Inline transport: unfinished messages of one connection, in bytes, at least one of the largest.
    pub unfinished_bytes_max: usize,
    /// Inline transport: what all connections keep, in bytes.
    pub buffered_bytes_max: usize,
    /// Largest header list, in bytes as RFC 9113, 6.5.2 counts.
    pub header_list_bytes_max: u32,
    /// Stream flow-control window, in bytes, 1 to [`FLOW_WINDOW_BYTES_MAX`].
    pub stream_flow_window_bytes: u32,
    /// Connection flow-control window, in bytes, [`CONNECTION_FLOW_WINDOW_BYTES_MIN`] to
    /// [`FLOW_WINDOW_BYTES_MAX`].
    pub connection_flow_window_bytes: u32,
    /// Ping interval and time to answer; `None` is never.
    pub keepalive: Option<Keepalive>,
    /// Connection age limit; `None` is never.
    pub connection_age: Option<ConnectionAge>,
    /// What the inline transport waits for, and how long.
    pub timers: Timers,
    /// From the shutdown signal to the return of `serve`, at most.
    pub drain_limit: Duration,
    /// Whether reflection is offered.
    pub reflection: bool,
    /// Where the metrics page listens, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
}

/// HTTP/2 keepalive pings; neither time is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which a ping leaves.
    pub interval: Duration,
    /// Time to answer one.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Keepalive { interval: KEEPALIVE_INTERVAL, timeout: KEEPALIVE_TIMEOUT }
    }
}

/// How old a connection may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionAge {
    /// Age at which GOAWAY leaves.
    pub max: Duration,
    /// Time from GOAWAY to cut-off; `None` waits for the streams to end.
    pub grace: Option<Duration>,
}

/// Times after which the inline transport gives a client up; `None` is never, and none is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// From accept to the first SETTINGS.
    pub handshake: Duration,
    /// From the first frame of a header block to its last.
    pub header_block: Duration,
    /// A connection without streams.
    pub connection_idle: Option<Duration>,
    /// A stream without any frame.
    pub stream_idle: Option<Duration>,
    /// A stream whose window stays shut, a connection that is not read.
    pub stall: Option<Duration>,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            handshake: HANDSHAKE_TIMEOUT,
            header_block: HEADER_BLOCK_TIMEOUT,
            connection_idle: Some(CONNECTION_IDLE_TIMEOUT),
            stream_idle: None,
            stall: Some(STALL_TIMEOUT),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            transport: TRANSPORT,
            connections_max: CONNECTIONS_MAX,
            max_concurrent_streams: MAX_CONCURRENT_STREAMS,
            inbound_message_bytes_max: MESSAGE_BYTES_MAX,
            outbound_message_bytes_max: MESSAGE_BYTES_MAX,
            unfinished_bytes_max: UNFINISHED_BYTES_MAX,
            buffered_bytes_max: BUFFERED_BYTES_MAX,
            header_list_bytes_max: HEADER_LIST_BYTES_MAX,
            stream_flow_window_bytes: STREAM_FLOW_WINDOW_BYTES,
            connection_flow_window_bytes: CONNECTION_FLOW_WINDOW_BYTES,
            keepalive: Some(Keepalive::default()),
            connection_age: None,
            timers: Timers::default(),
            drain_limit: DRAIN_LIMIT,
            reflection: false,
            metrics_listen: None,
        }
    }
}

impl TryFrom<&Args> for Config {
    type Error = Error;

    fn try_from(args: &Args) -> Result<Self, Error> {
        if let Some(threads) = args.threads.filter(|threads| !(1..=THREADS_MAX).contains(threads)) {
            let cure =
                format!("need 1 to {THREADS_MAX} worker threads; more than cores seldom help");
            return Err(wrong("--threads", threads, cure));
        }
        if args.metrics_listen.is_some_and(|metrics| metrics.port() != 0 && metrics == args.listen)
        {
            return Err(wrong(
                "--metrics-listen",
                args.listen,
                "is the gRPC address; pass another port",
            ));
        }
        let transport = args.transport.placed(args.placement)?;
        let config = Config {
            transport,
            connections_max: args.connections_max,
            max_concurrent_streams: args.max_concurrent_streams,
            inbound_message_bytes_max: message_limit(
                "--inbound-message-bytes-max",
                args.inbound_message_bytes_max,
            )?,
            outbound_message_bytes_max: message_limit(
                "--outbound-message-bytes-max",
                args.outbound_message_bytes_max,
            )?,
            unfinished_bytes_max: unfinished_bytes_max(args)?,
            buffered_bytes_max: buffered_bytes_max(args)?,
            header_list_bytes_max: size_within(
                "--header-list-bytes-max",
                args.header_list_bytes_max,
                HEADER_LIST_BYTES_LEAST..=u32::MAX,
            )?,
            stream_flow_window_bytes: size_within(
                "--stream-flow-window-bytes",
                args.stream_flow_window_bytes,
                1..=FLOW_WINDOW_BYTES_MAX,
            )?,
            connection_flow_window_bytes: size_within(
                "--connection-flow-window-bytes",
                args.connection_flow_window_bytes,
                CONNECTION_FLOW_WINDOW_BYTES_MIN..=FLOW_WINDOW_BYTES_MAX,
            )?,
            keepalive: keepalive(args)?,
            connection_age: connection_age(args)?,
            timers: timers(args)?,
            drain_limit: args.drain_limit.into(),
            reflection: args.reflection,
            metrics_listen: args.metrics_listen,
        };
        config.check().map(|()| config)
    }
}

impl Config {
    /// Err: [`Error::Config`] for what lies outside its range, under the name of its flag. [`serve`](crate::serve::serve) asks first.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let least = |flag, value: usize, least: usize, cure: &str| match value < least {
            true => Err(wrong(flag, value, cure)),
            false => Ok(()),
        };
        least(
            "--connections-max",
            self.connections_max,
            1,
            "nobody could ever connect; pass at least 1",
        )?;
        least(
            "--max-concurrent-streams",
            self.max_concurrent_streams as usize,
            1,
            "no stream could ever open; pass at least 1",
        )?;
        let window = |flag, bytes: u32, least: u32| {
            size_within(flag, ByteSize(bytes.into()), least..=FLOW_WINDOW_BYTES_MAX).map(drop)
        };
        window("--stream-flow-window-bytes", self.stream_flow_window_bytes, 1)?;
        window(
            "--connection-flow-window-bytes",
            self.connection_flow_window_bytes,
            CONNECTION_FLOW_WINDOW_BYTES_MIN,
        )?;
        let list_bytes = ByteSize(self.header_list_bytes_max.into());
        size_within("--header-list-bytes-max", list_bytes, HEADER_LIST_BYTES_LEAST..=u32::MAX)?;
        if let Transport::Inline(_) = self.transport {
            let message = self.inbound_message_bytes_max.saturating_add(5);
            let cure = format!("no largest message would fit; pass at least {message} bytes");
            least("--unfinished-bytes-max", self.unfinished_bytes_max, message, &cure)?;
        }
        let Timers { handshake, header_block, connection_idle, stream_idle, stall } = self.timers;
        let (ping, answer) = match self.keepalive {
            Some(Keepalive { interval, timeout }) => (Some(interval), Some(timeout)),
            None => (None, None),
        };
        for (flag, time) in [
            ("--handshake-timeout", Some(handshake)),
            ("--header-block-timeout", Some(header_block)),
            ("--connection-idle-timeout", connection_idle),
            ("--stream-idle-timeout", stream_idle),
            ("--stall-timeout", stall),
            ("--keepalive-interval", ping),
            ("--keepalive-timeout", answer),
            ("--connection-age-max", self.connection_age.map(|age| age.max)),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(wrong(flag, "0s", "nothing is that fast; pass a time"));
            }
        }
        Ok(())
    }
}

/// Beyond any machine's cores; a slip of the finger must not ask the system for a million threads.
const THREADS_MAX: usize = 1_024;

/// Below this no gRPC request fits: its seven usual fields alone count some 400 bytes.
const HEADER_LIST_BYTES_LEAST: u32 = 512;

fn wrong(flag: &'static str, value: impl ToString, cure: impl Into<String>) -> Error {
    Error::Config { flag, value: value.to_string(), cure: cure.into() }
}

fn size_within(
    flag: &'static str,
    size: ByteSize,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, Error> {
    u32::try_from(size.as_u64()).ok().filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        let (low, high) = (range.start(), range.end());
        wrong(flag, size, format!("pass a size from {low} to {high} bytes"))
    })
}

/// A message's length travels in 32 bits, so no limit beyond that can be kept.
fn message_limit(flag: &'static str, size: ByteSize) -> Result<usize, Error> {
    size_within(flag, size, 1..=u32::MAX).map(|bytes| bytes as usize)
}

fn unfinished_bytes_max(args: &Args) -> Result<usize, Error> {
    const FLAG: &str = "--unfinished-bytes-max";
    // A message with its prefix must fit, or it could never be finished.
    let message = args.inbound_message_bytes_max.as_u64().saturating_add(5);
    let Some(size) = args.unfinished_bytes_max else {
        return Ok(bytes(message.saturating_mul(6)).max(UNFINISHED_BYTES_MAX));
    };
    only_inline(FLAG, size, args)?;
    if size.as_u64() < message {
        let cure = format!("no largest message would fit; pass at least {message} bytes");
        return Err(wrong(FLAG, size, cure));
    }
    Ok(bytes(size.as_u64()))
}

/// Less, and a single connection in its first turn could be too many.
const BUFFERED_BYTES_LEAST: u64 = 1 << 20;

fn buffered_bytes_max(args: &Args) -> Result<usize, Error> {
    const FLAG: &str = "--buffered-bytes-max";
    let Some(size) = args.buffered_bytes_max else { return Ok(BUFFERED_BYTES_MAX) };
    only_inline(FLAG, size, args)?;
    if size.as_u64() < BUFFERED_BYTES_LEAST {
        let cure = "nobody could be served; pass at least 1 MiB";
        return Err(wrong(FLAG, size, cure));
    }
    Ok(bytes(size.as_u64()))
}

fn only_inline(flag: &'static str, size: ByteSize, args: &Args) -> Result<(), Error> {
    match args.transport {
        Transport::Inline(_) => Ok(()),
        Transport::Tonic => {
            let cure =
                "tonic's transport knows no such bound; pass --transport inline, or leave it out";
            Err(wrong(flag, size, cure))
        }
    }
}

/// On machines of 32 bits, all there is.
fn bytes(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn keepalive(args: &Args) -> Result<Option<Keepalive>, Error> {
    let default = Keepalive::default();
    let timeout = args.keepalive_timeout.map(Duration::from);
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        let cure = "no peer answers at once; pass a time such as 20s";
        return Err(wrong("--keepalive-timeout", "0s", cure));
    }
    let interval = match (args.keepalive_interval, timeout) {
        (Some(TimeLimit::Never), None) => return Ok(None),
        (Some(TimeLimit::Never), Some(timeout)) => {
            let cure = "there is no ping to answer; leave it out, or pass a --keepalive-interval";
            return Err(wrong("--keepalive-timeout", humantime::Duration::from(timeout), cure));
        }
        (Some(TimeLimit::After(Duration::ZERO)), _) => {
            let cure = "would ping without pause; pass a time, or never";
            return Err(wrong("--keepalive-interval", "0s", cure));
        }
        (Some(TimeLimit::After(interval)), _) => interval,
        (None, _) => default.interval,
    };
    Ok(Some(Keepalive { interval, timeout: timeout.unwrap_or(default.timeout) }))
}

fn connection_age(args: &Args) -> Result<Option<ConnectionAge>, Error> {
    match (args.connection_age_max, args.connection_age_grace) {
        (Some(max), _) if max.is_zero() => Err(wrong(
            "--connection-age-max",
            "0s",
            "would refuse every connection; leave it out for no limit",
        )),
        (Some(max), grace) => {
            Ok(Some(ConnectionAge { max: max.into(), grace: grace.map(Into::into) }))
        }
        (None, Some(grace)) => Err(wrong(
            "--connection-age-grace",
            grace,
            "has no age to follow; pass --connection-age-max too",
        )),
        (None, None) => Ok(None),
    }
}

fn timers(args: &Args) -> Result<Timers, Error> {
    let default = Timers::default();
    let read = |flag, typed: Option<TimeLimit>, default: Option<Duration>, cure: &str| match typed {
        None => Ok(default),
        Some(typed) if args.transport == Transport::Tonic => {
            let cure = "tonic has no such timer; pass --transport inline, or leave it out";
            Err(wrong(flag, typed, cure))
        }
        Some(TimeLimit::After(Duration::ZERO)) => Err(wrong(flag, "0s", cure)),
        Some(TimeLimit::After(time)) => Ok(Some(time)),
        Some(TimeLimit::Never) => Ok(None),
    };
    let always = |flag, typed: Option<humantime::Duration>, default: Duration| {
        let typed = typed.map(|time| TimeLimit::After(time.into()));
        let cure = "no client is that fast; pass a time such as 10s";
        read(flag, typed, Some(default), cure).map(|time| time.unwrap_or(default))
    };
    let (or_never, at_once) = (read, "would end what has just begun; pass a time, or never");
    Ok(Timers {
        handshake: always("--handshake-timeout", args.handshake_timeout, default.handshake)?,
        header_block: always(
            "--header-block-timeout",
            args.header_block_timeout,
            default.header_block,
        )?,
        connection_idle: or_never(
            "--connection-idle-timeout",
            args.connection_idle_timeout,
            default.connection_idle,
            at_once,
        )?,
        stream_idle: or_never(
            "--stream-idle-timeout",
            args.stream_idle_timeout,
            default.stream_idle,
            at_once,
        )?,
        stall: or_never("--stall-timeout", args.stall_timeout, default.stall, at_once)?,
    })
}

#[cfg(test)]
mod tests;

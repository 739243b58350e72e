//! One server's life: serve until told to stop, drain, and say what was carried.
//!
//! In: a bound listener, a [`Config`], and a future that resolves when the server is to stop. Out: a
//! [`Summary`], at most `drain_limit` after that. The drain, step by step:
//!
//! 1. health says NOT_SERVING and its watches end; the listener closes; GOAWAY leaves
//! 2. streams go on until their clients end them
//! 3. before the limit, streams take no more, send what they took, and end with UNAVAILABLE
//! 4. right before the limit, connections that are still there are cut off

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower_layer::Layer;
use tracing::info;

use crate::accept::Acceptor;
use crate::build_info;
use crate::config::{Config, Placement, Transport};
use crate::drain::Drain;
use crate::error::Error;
use crate::metrics::{self, Counted};
use crate::services::Services;
use crate::services::codec::YIELD_BYTES;
use crate::services::guard::{Guard, GuardLayer};
use crate::services::policy::{Policy, PolicyLayer};
use crate::stats::{OpenConnection, Snapshot, Stats};
use crate::transport;

/// Serves until `shutdown` resolves, then drains.
///
/// Takes at most `config.drain_limit` from there, plus what a busy machine needs to notice.
/// Needs a tokio runtime with timers and I/O. Err: [`Error::Config`] for a value out of its range, [`Error::Bind`] for the metrics
/// page, [`Error::Transport`] if the transport gives up.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    config.check()?;
    let stats = Arc::new(Stats::default());
    let drain = Drain::default();
    let inline = match config.transport {
        Transport::Inline(placement) => Some(inline_server(&config, placement, &stats)),
        Transport::Tonic => None,
    };
    let transport = inline.as_ref().map(transport::Server::counters);
    let _metrics = serve_metrics(&config, Counted { stats: stats.clone(), transport }).await?;
    let (serving, is_serving) = watch::channel(true);
    let carried = async {
        match inline {
            Some(server) => {
                let service = inline_service(&config, &stats, &drain, is_serving);
                server.accept(listener, service, &drain).await;
                Ok::<(), Error>(())
            }
            None => serve_tonic(listener, &config, &stats, &drain, is_serving).await,
        }
    };
    // A stream's task may outlive its connection by a moment; until then it is not fully counted.
    let mut over = pin!(async {
        carried.await?;
        drain.stop_reading.unwatched().await;
        Ok::<(), Error>(())
    });

    tokio::select! {
        ended = &mut over => {
            ended?;
            unreachable!("accepting never ends by itself");
        }
        () = shutdown => {}
    }
    let asked_to_stop = Instant::now();
    info!(streams = stats.snapshot().streams_open, limit = ?config.drain_limit, "draining");
    // Fails when nobody listens any more: then there is nobody to tell.
    let _ = serving.send(false);
    drop(serving);
    drain.leave.set();
    drain.run_down(over, config.drain_limit).await.unwrap_or(Ok(()))?;
    Ok(Summary {
        transport: config.transport,
        drained_in: asked_to_stop.elapsed(),
        stats: stats.snapshot(),
    })
}

/// Our own transport, with the same windows and limits as tonic's.
fn inline_server(config: &Config, placement: Placement, stats: &Arc<Stats>) -> transport::Server {
    let limits = transport_limits(config);
    let connection_bytes_max = limits.connection_bytes_max(piece_bytes_max(config));
    let buffered_bytes_max = config.buffered_bytes_max;
    info!(
        connection_bytes_max,
        buffered_bytes_max, "bounds of memory: a connection's, and all buffers'"
    );
    let placement = match placement {
        Placement::Inline => transport::Placement::Inline,
        Placement::Task => transport::Placement::Task,
    };
    let counted = stats.clone();
    let server = transport::Server::new(limits)
        .placement(placement)
        .connections_max(config.connections_max)
        .buffered_bytes_max(config.buffered_bytes_max);
    server.extensions(move |tcp| {
        let mut extensions = http::Extensions::new();
        extensions.insert(tcp.connect_info());
        // Counts the connection as open until it, and every request of it, is gone.
        extensions.insert(Arc::new(OpenConnection::new(counted.clone())));
        extensions
    })
}

fn inline_service(
    config: &Config,
    stats: &Arc<Stats>,
    drain: &Drain,
    is_serving: watch::Receiver<bool>,
) -> Policy<Guard<Services>> {
    let policy = policy(config, stats, drain);
    let guard = GuardLayer::new(config.inbound_message_bytes_max);
    policy.layer(guard.layer(Services::new(config, stats, is_serving)))
}

fn policy(config: &Config, stats: &Arc<Stats>, drain: &Drain) -> PolicyLayer {
    let product = match config.transport {
        Transport::Inline(Placement::Inline) => build_info::SERVER_HEADER_INLINE,
        Transport::Inline(Placement::Task) => build_info::SERVER_HEADER_TASK,
        Transport::Tonic => build_info::SERVER_HEADER_TONIC,
    };
    let asks_drain = config.transport == Transport::Tonic;
    PolicyLayer { stats: stats.clone(), drain: drain.clone(), product, asks_drain }
}

/// The largest piece that a response body of ours gives: one reply, behind others that were not enough
/// to be handed on.
fn piece_bytes_max(config: &Config) -> usize {
    config.outbound_message_bytes_max + 5 + YIELD_BYTES
}

fn transport_limits(config: &Config) -> transport::Limits {
    let default = transport::Limits::default();
    let stream_flow_window_bytes_max = config.stream_flow_window_bytes;
    let timers = config.timers;
    transport::Limits {
        max_concurrent_streams: config.max_concurrent_streams,
        header_list_bytes_max: config.header_list_bytes_max,
        stream_flow_window_bytes: default
            .stream_flow_window_bytes
            .min(stream_flow_window_bytes_max),
        stream_flow_window_bytes_max,
        connection_flow_window_bytes: config.connection_flow_window_bytes,
        held_bytes_max: config.unfinished_bytes_max,
        handshake_timeout: timers.handshake,
        header_block_timeout: timers.header_block,
        connection_idle_timeout: timers.connection_idle,
        stream_idle_timeout: timers.stream_idle,
        stall_timeout: timers.stall,
        keepalive: config.keepalive.map(|keepalive| transport::Keepalive {
            interval: keepalive.interval,
            timeout: keepalive.timeout,
        }),
        age: config.connection_age.map(|age| transport::Age { max: age.max, grace: age.grace }),
        ..default
    }
}

/// tonic's server with its public settings: multi-threaded when the runtime is, no scheduler trick.
async fn serve_tonic(
    listener: TcpListener,
    config: &Config,
    stats: &Arc<Stats>,
    drain: &Drain,
    is_serving: watch::Receiver<bool>,
) -> Result<(), Error> {
    let acceptor = Acceptor {
        drain: drain.clone(),
        stats: stats.clone(),
        age: config.connection_age,
        places: Acceptor::places(config.connections_max),
    };
    let mut server = Server::builder()
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_stream_window_size(config.stream_flow_window_bytes)
        .initial_connection_window_size(config.connection_flow_window_bytes)
        .http2_max_header_list_size(config.header_list_bytes_max);
    if let Some(keepalive) = config.keepalive {
        server = server
            .http2_keepalive_interval(Some(keepalive.interval))
            .http2_keepalive_timeout(Some(keepalive.timeout));
    }
    if let Some(age) = config.connection_age {
        // tonic's own grace would replace the GOAWAY instead of following it, so the cut-off is ours.
        server = server.max_connection_age(age.max);
    }
    server
        .layer(policy(config, stats, drain))
        .add_routes(Services::new(config, stats, is_serving).into_routes())
        .serve_with_incoming_shutdown(acceptor.accept(listener), async {
            drain.leave.watch().wait().await;
        })
        .await
        .map_err(Error::from)
}

/// The metrics page, as a task that ends when the guard is dropped.
async fn serve_metrics(config: &Config, counted: Counted) -> Result<Option<AbortOnDrop>, Error> {
    let Some(address) = config.metrics_listen else {
        return Ok(None);
    };
    let bind = |source| Error::Bind { address, flag: "--metrics-listen", source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    info!(metrics = %address, "serving metrics");
    Ok(Some(AbortOnDrop(tokio::spawn(metrics::serve(listener, counted)))))
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What one server carried in its life; `Display` is one line.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What carried the streams, and where they ran.
    pub transport: Transport,
    /// From the shutdown signal to the end.
    pub drained_in: Duration,
    /// The counters at the end.
    pub stats: Snapshot,
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { transport, drained_in, stats } = self;
        let streams: u64 = stats.streams_finished.iter().map(|(_, count)| count).sum();
        write!(
            out,
            "stopped: transport={} placement={} connections={} streams={streams} messages_in={} messages_out={} \
             drained_in_ms={}",
            transport.name(),
            transport.placement().name(),
            stats.connections_accepted,
            stats.messages_in,
            stats.messages_out,
            drained_in.as_millis(),
        )?;
        for (outcome, count) in &stats.streams_finished {
            write!(out, " {}={count}", outcome.name())?;
        }
        Ok(())
    }
}

/// Connections that the system completes before they are accepted; with more at once the others try
/// again a second later. tokio asks for 128, which a crowd of clients that starts together exceeds
/// while the server is busy for some milliseconds. The system's own limit (Linux: 4,096) may be lower.
const BACKLOG: u32 = 4_096;

/// A listener for many clients that come at once. Needs a tokio runtime with I/O.
pub fn bind_listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As std and tokio do: a server that starts again must not wait for the sockets of before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Descriptors for which the kernel's table is made large enough before there are threads: 128 KiB of
/// its memory.
const OPEN_FILES_RESERVED: u64 = 16_384;

/// Raises the soft limit of open files to the hard one and returns it: each connection takes one.
///
/// Called before threads are started, it also makes the process's table of descriptors as large as a
/// crowd of clients needs. Linux enlarges it when descriptor 64, 256, 512 and so on is taken, and lets a
/// process with threads wait for all cores to pass a quiet point meanwhile (`expand_fdtable`): 15 ms
/// each in which nobody is served (the row `idle` of the bench `hostile`).
pub fn raise_open_files_limit() -> std::io::Result<u64> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    let last = limit.min(OPEN_FILES_RESERVED).saturating_sub(1);
    let last = i32::try_from(last).expect("at most OPEN_FILES_RESERVED");
    // The table keeps its size when the descriptor is closed again, which is at once.
    rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last)?;
    Ok(limit)
}

/// Keeps transparent huge pages away from this process and those that it starts.
///
/// mimalloc asks for them. The first touch of one clears 2 MiB: up to 5 ms on a virtual machine whose
/// host has to find the memory then, in which a whole worker stands still (the rows `zero-window` and
/// `reads-nothing` of the bench `hostile`). Without them a server's resident memory was half, and its
/// CPU time for a message the same, at 8 bytes as at 1 MiB.
pub fn keep_to_small_pages() -> std::io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConnectionAge, Keepalive, Timers};

    #[test]
    fn the_documented_timers_are_those_of_the_transport() {
        let default = transport::Limits::default();
        let config = Config { keepalive: None, ..Config::default() };
        assert_eq!(transport_limits(&config), default, "but for pings, which are the server's");
    }

    #[test]
    fn every_server_header_names_its_transport_and_placement() {
        let check = |transport: Transport| {
            let config = Config { transport, ..Config::default() };
            let product = policy(&config, &Arc::default(), &Drain::default()).product;
            let (transport, placement) = (transport.name(), transport.placement().name());
            let carried = format!(" (transport {transport}; placement {placement})");
            assert_eq!(product.strip_suffix(&carried), Some(build_info::PRODUCT));
        };
        check(Transport::Inline(Placement::Inline));
        check(Transport::Inline(Placement::Task));
        check(Transport::Tonic);
    }

    #[test]
    fn every_timer_reaches_the_transport() {
        let seconds = Duration::from_secs;
        let timers = Timers {
            handshake: seconds(1),
            header_block: seconds(2),
            connection_idle: Some(seconds(3)),
            stream_idle: Some(seconds(4)),
            stall: None,
        };
        let keepalive = Keepalive { interval: seconds(5), timeout: seconds(6) };
        let age = ConnectionAge { max: seconds(7), grace: Some(seconds(8)) };
        let limits = transport_limits(&Config {
            timers,
            keepalive: Some(keepalive),
            connection_age: Some(age),
            ..Config::default()
        });
        assert_eq!(
            (limits.handshake_timeout, limits.header_block_timeout),
            (seconds(1), seconds(2))
        );
        assert_eq!(limits.connection_idle_timeout, Some(seconds(3)));
        assert_eq!(limits.stream_idle_timeout, Some(seconds(4)));
        assert_eq!(limits.stall_timeout, None);
        let keepalive = transport::Keepalive { interval: seconds(5), timeout: seconds(6) };
        assert_eq!(limits.keepalive, Some(keepalive));
        let age = transport::Age { max: seconds(7), grace: Some(seconds(8)) };
        assert_eq!(limits.age, Some(age));
    }

    #[test]
    fn the_table_of_descriptors_is_large_before_it_is_needed() {
        let limit = raise_open_files_limit().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<u64>().unwrap() >= limit.min(OPEN_FILES_RESERVED), "{size}");
    }

    #[test]
    fn a_process_that_keeps_to_small_pages_says_so() {
        keep_to_small_pages().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let huge = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).unwrap();
        assert_eq!(huge.trim(), "0");
    }

    #[tokio::test]
    async fn a_crowd_that_is_not_accepted_yet_is_connected() {
        let listener = bind_listener("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        // Beyond the backlog a client is not refused, but left to try again a second later.
        let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(30));
        let crowd: Result<Vec<_>, _> = (0..400).map(connect).collect();
        assert_eq!(crowd.unwrap().len(), 400);
    }
}

#[cfg(test)]
mod memory;

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
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tonic::transport::Server;
use tracing::info;

use crate::accept::Acceptor;
use crate::config::{Config, Transport};
use crate::drain::Drain;
use crate::error::Error;
use crate::metrics;
use crate::services::{self, policy::PolicyLayer};
use crate::stats::{Snapshot, Stats};

/// The end of the drain limit is kept for sending what was taken: a third of it, at most this.
///
/// What was taken leaves as fast as the client reads: a client that grants 5 MiB of window and has
/// half a saturated core to itself was seen to take some 100 ms. A tenth of a limit of 300 ms lost
/// echoes on two saturated cores; a third of it did so only beside other programs.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// The end of the flush time is kept for cutting off, which connections notice when they are polled:
/// a tenth of the limit, at most this.
const CUT_OFF_TIME_MAX: Duration = Duration::from_millis(50);

/// How long after the limit a connection that was cut off is still waited for: only a machine that
/// is too busy to poll it needs any of this.
const OVERTIME_MAX: Duration = Duration::from_millis(250);

/// Serves until `shutdown` resolves, then drains.
///
/// Takes at most `config.drain_limit` from there, plus what a busy machine needs to notice.
/// Needs a tokio runtime with timers and I/O. Err: [`Error::Bind`] for the metrics page,
/// [`Error::Transport`] if the transport gives up.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    let stats = Arc::new(Stats::default());
    let drain = Drain::default();
    let _metrics = serve_metrics(&config, stats.clone()).await?;
    let (serving, is_serving) = watch::channel(true);
    let (stop_accepting, told_to_stop) = oneshot::channel();
    let transport = match config.transport {
        Transport::Tonic => {
            serve_tonic(listener, &config, &stats, &drain, is_serving, told_to_stop)
        }
    };
    // A stream's task may outlive its connection by a moment; until then it is not fully counted.
    let mut over = pin!(async {
        transport.await?;
        drain.stop_reading.unwatched().await;
        Ok(())
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
    let _ = stop_accepting.send(());
    finish(over, &config, &drain).await?;
    Ok(Summary {
        transport: config.transport,
        drained_in: asked_to_stop.elapsed(),
        stats: stats.snapshot(),
    })
}

/// Waits until all is over by itself, then by what the latches of `drain` do to it.
async fn finish(
    mut over: Pin<&mut impl Future<Output = Result<(), Error>>>,
    config: &Config,
    drain: &Drain,
) -> Result<(), Error> {
    let limit = config.drain_limit;
    let flush_time = (limit / 3).min(FLUSH_TIME_MAX);
    let cut_off_time = (limit / 10).min(CUT_OFF_TIME_MAX);
    if let Ok(ended) = timeout(limit - flush_time, &mut over).await {
        return ended;
    }
    drain.stop_reading.set();
    if let Ok(ended) = timeout(flush_time - cut_off_time, &mut over).await {
        return ended;
    }
    drain.cut_off.set();
    timeout(cut_off_time + OVERTIME_MAX, over).await.unwrap_or(Ok(()))
}

/// tonic's server with its public settings: multi-threaded when the runtime is, no scheduler trick.
async fn serve_tonic(
    listener: TcpListener,
    config: &Config,
    stats: &Arc<Stats>,
    drain: &Drain,
    is_serving: watch::Receiver<bool>,
    told_to_stop: oneshot::Receiver<()>,
) -> Result<(), Error> {
    let acceptor =
        Acceptor { drain: drain.clone(), stats: stats.clone(), age: config.connection_age };
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
        .layer(PolicyLayer { stats: stats.clone(), drain: drain.clone() })
        .add_routes(services::routes(config, stats, is_serving))
        .serve_with_incoming_shutdown(acceptor.accept(listener), async {
            // An error means that `serve` was dropped, which ends this future too.
            let _ = told_to_stop.await;
        })
        .await
        .map_err(Error::from)
}

/// The metrics page, as a task that ends when the guard is dropped.
async fn serve_metrics(config: &Config, stats: Arc<Stats>) -> Result<Option<AbortOnDrop>, Error> {
    let Some(address) = config.metrics_listen else {
        return Ok(None);
    };
    let bind = |source| Error::Bind { address, flag: "--metrics-listen", source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    info!(metrics = %address, "serving metrics");
    Ok(Some(AbortOnDrop(tokio::spawn(metrics::serve(listener, stats)))))
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
    /// What carried the streams.
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
            "stopped: transport={} connections={} streams={streams} messages_in={} messages_out={} \
             drained_in_ms={}",
            transport.name(),
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

/// Raises the soft limit of open files to the hard one and returns it: each connection takes one.
pub fn raise_open_files_limit() -> std::io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

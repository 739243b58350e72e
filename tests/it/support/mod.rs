//! What the tests of the server share: a server in this process, the real binary, and clients that
//! see the bytes.
#![allow(dead_code, reason = "tests and benches use a part each")]
#![allow(unreachable_pub, reason = "a module of tests and benches, not a crate")]

pub mod binary;
pub mod exchange;
pub mod hpack;
pub mod http2;
pub mod peer;
pub mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bidi_echo::config::{Config, Placement, Transport};
use bidi_echo::serve::{Summary, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Longer than anything here takes on a busy machine; a test that reaches it hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What carries the streams of a server under test: ours with either placement, and tonic's.
pub const INLINE: Transport = Transport::Inline(Placement::Inline);
pub const TASK: Transport = Transport::Inline(Placement::Task);
pub const TONIC: Transport = Transport::Tonic;

/// What `future` gives, unless it hangs.
pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("should have happened long ago")
}

/// Polls `condition` until it holds: for states of the world that send no event.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What no flags mean, but for the transport.
pub fn on(transport: Transport) -> Config {
    Config { transport, ..Config::default() }
}

/// A server in this process.
pub struct Server {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Summary>,
}

impl Server {
    /// With all else as no flags mean it.
    pub async fn on(transport: Transport) -> Self {
        Self::start(on(transport)).await
    }

    pub async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, told_to_stop) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let stopped = async { told_to_stop.await.unwrap_or(()) };
            serve(listener, config, stopped).await.unwrap()
        });
        Server { address, stop, serving }
    }

    /// Starts the drain; the handle gives the summary at its end.
    pub fn drain(self) -> JoinHandle<Summary> {
        self.stop.send(()).unwrap();
        self.serving
    }

    /// Drains to the end.
    pub async fn stop(self) -> Summary {
        soon(self.drain()).await.unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Streams of `summary` that ended with `status`.
pub fn finished(summary: &Summary, status: &str) -> u64 {
    let outcomes = &summary.stats.streams_finished;
    outcomes.iter().filter(|(outcome, _)| outcome.name() == status).map(|(_, count)| count).sum()
}

//! Accepts connections, whatever the system says in between.
//!
//! In: a listener. Out: sockets with `TCP_NODELAY` set. An accept that fails for lack of descriptors
//! is waited out, not spun on, and an outage is logged once.

use std::io;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::warn;

/// Time between two tries while the process or the system is out of descriptors.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Connections accepted in a row before other tasks get their turn: in a storm of them the listener is
/// never without one, and tokio's own budget is 128.
const ACCEPTS_MAX: u32 = 16;

/// Failures to accept that are closer together belong to one outage.
const OUTAGE_GAP_MIN: Duration = Duration::from_secs(10);

/// A listener that never fails.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    outage: Outage,
    /// Connections since the others last had their turn.
    accepted: u32,
}

impl Listener {
    pub(crate) fn new(tcp: TcpListener) -> Self {
        Listener { tcp, outage: Outage::default(), accepted: 0 }
    }

    /// The next connection.
    pub(crate) async fn accept(&mut self) -> TcpStream {
        if self.accepted >= ACCEPTS_MAX {
            self.accepted = 0;
            tokio::task::yield_now().await;
        }
        loop {
            match self.tcp.accept().await {
                Ok((tcp, _)) => {
                    self.accepted += 1;
                    // Fails only for a socket that is dead already; reading it will say so.
                    let _ = tcp.set_nodelay(true);
                    return tcp;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if self.outage.begins(Instant::now()) {
                        warn!(%error, "cannot accept connections; trying again until it works");
                    }
                    sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    }
}

/// When accepting last failed: a crowd that takes every descriptor as it becomes free is one outage,
/// and is logged once, though connections are accepted in between.
#[derive(Debug, Default)]
struct Outage {
    last_failure: Option<Instant>,
}

impl Outage {
    /// Notes a failure at `now`; says whether it is the first in [`OUTAGE_GAP_MIN`].
    fn begins(&mut self, now: Instant) -> bool {
        let before = self.last_failure.replace(now);
        before.is_none_or(|before| now.duration_since(before) >= OUTAGE_GAP_MIN)
    }
}

/// The client gave up before it was accepted: nothing is wrong with the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test]
    async fn in_a_storm_of_connections_others_have_their_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let storm: Vec<_> =
            (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let others = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
            }
        });
        let mut listener = Listener::new(listener);
        for _ in &storm {
            listener.accept().await;
        }
        assert!(turns.load(SeqCst) >= 100 / ACCEPTS_MAX as usize, "{turns:?}");
        others.abort();
    }

    #[test]
    fn failures_that_follow_closely_are_one_outage() {
        let mut outage = Outage::default();
        let start = Instant::now();
        assert!(outage.begins(start));
        assert!(!outage.begins(start + OUTAGE_GAP_MIN / 2));
        assert!(!outage.begins(start + OUTAGE_GAP_MIN));
        assert!(outage.begins(start + OUTAGE_GAP_MIN * 2));
    }
}

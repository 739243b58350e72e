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

/// Failures to accept that are closer together belong to one outage.
const OUTAGE_GAP_MIN: Duration = Duration::from_secs(10);

/// A listener that never fails.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    outage: Outage,
}

impl Listener {
    pub(crate) fn new(tcp: TcpListener) -> Self {
        Listener { tcp, outage: Outage::default() }
    }

    /// The next connection.
    pub(crate) async fn accept(&mut self) -> TcpStream {
        loop {
            match self.tcp.accept().await {
                Ok((tcp, _)) => {
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

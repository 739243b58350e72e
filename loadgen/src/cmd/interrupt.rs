//! The end that somebody asks for, for verbs that have something to tell by then.

use std::future::{Future, pending};

use tokio::signal::unix::{SignalKind, signal};

/// Ctrl-C or a polite request to end, from now on; the children are killed as their guards are dropped.
pub(super) fn interrupted() -> impl Future<Output = ()> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    async {
        let [Ok(mut interrupt), Ok(mut terminate)] = signals else { return pending().await };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// What is done before anything is measured. Err: `stop` was ready first, and it is over.
pub(super) async fn prepared<T>(
    preparing: impl Future<Output = anyhow::Result<T>>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = preparing => done,
        () = stop => anyhow::bail!("interrupted before anything was measured"),
    }
}

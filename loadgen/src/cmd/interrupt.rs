//! The end that somebody asks for, for verbs that have something to tell by then.

use tokio::signal::unix::{SignalKind, signal};

/// Ctrl-C or a polite request to end; the children are killed as their guards are dropped.
pub(super) async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

//! A server's connection under test: ends with its input, within its bounds.

use std::sync::Once;

use http::Extensions;

use crate::check::Endpoint;
use crate::drive::{Pipe, drive, with_runtime};
use crate::script::{Cuts, Event};
use crate::services::Services;
use crate::transport::{Limits, Server};

/// Lets a server's connection live through `events` and checks what is left of it.
pub fn run(has_small_limits: bool, seed: u8, events: Vec<Event>) {
    static WARM: Once = Once::new();
    // What the thread keeps for all its connections is no connection's.
    WARM.call_once(|| live(Limits::default(), 0, Vec::new()));
    let limits = if has_small_limits { small() } else { Limits::default() };
    let bytes_max = limits.connection_bytes_max(PIECE_BYTES_MAX) as u64 + SURROUNDINGS_BYTES;
    let used = allocation_counter::measure(|| live(limits, seed, events));
    assert!(used.bytes_max <= bytes_max, "{} bytes at once, bound {bytes_max}", used.bytes_max);
}

/// Most that a body of the services gives at once: what one frame brought, or all that a window of
/// [`Limits::default`] lets in, for those that collect.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Handlers, the observer, and what is in the channel of a body that another task reads.
const SURROUNDINGS_BYTES: u64 = 256 << 10;

fn live(limits: Limits, seed: u8, events: Vec<Event>) {
    with_runtime(async {
        let pipe = Pipe::new(Endpoint::Server, &limits, Cuts::new(seed));
        let server = Server::new(limits);
        let connection = server.serve_connection(pipe.clone(), Services, Extensions::new());
        drive(connection, &pipe, events).await;
        let counted = server.counters().snapshot();
        assert_eq!(counted.streams_opened, counted.streams_closed, "streams that never ended");
        assert_eq!(counted.panics, 0, "no handler panics by itself");
    });
}

/// Limits that a small input reaches.
fn small() -> Limits {
    Limits {
        max_concurrent_streams: 4,
        header_list_bytes_max: 512,
        stream_flow_window_bytes: 1_024,
        stream_flow_window_bytes_max: 4_096,
        connection_flow_window_bytes: 8_192,
        output_bytes_max: 4_096,
        control_bytes_max: 512,
        stream_idle_timeout: Some(std::time::Duration::from_secs(30)),
        ..Limits::default()
    }
}

//! The inline transport: HTTP/2 for unmodified tonic services, one task per connection.
//!
//! A connection's task reads as much as there is, handles every complete frame, polls the streams
//! that got something (handler first, then response body), gathers all output, and writes it at
//! once. No lock is contended, no task is spawned per stream, and no reply leaves alone that could
//! have left with others.
//!
//! ```text
//! socket -> connection -> frame -> (hpack, fields) -> serving -> stream inbox -> your service
//! socket <- output <------------- wire (flow windows) <- serving <- your response body
//! ```
//!
//! In reading order: `connection` is the loop, `serving` the server's side of a stream,
//! `stream` what a body and its connection share, `wire` what all streams of a connection share;
//! `frame`, `hpack`, `fields`, `flow`, `limits` and `output` know neither socket nor clock.
//! It knows no echo, and of gRPC what tells its requests from others and the status of its own failures.

mod client;
mod connection;
mod counters;
mod fields;
mod flow;
mod frame;
mod guard;
mod hpack;
#[doc(hidden)]
pub mod inside;
mod limits;
mod memory;
mod output;
mod placement;
mod server;
mod serving;
mod stream;
#[cfg(test)]
mod torture;
mod wire;

pub use self::client::{
    Client, Exchange, Sending, client_limits, grpc_code_of_http, grpc_code_of_reset,
};
pub use self::counters::{Counters, CountersSnapshot};
pub(crate) use self::fields::is_grpc;
pub use self::frame::ErrorCode;
pub use self::limits::{Age, Flood, FloodKind, Floods, Keepalive, Limits};
pub use self::memory::Held;
pub use self::placement::Placement;
pub use self::server::Server;
pub use self::stream::{BodyError, RecvBody, StreamEnd};

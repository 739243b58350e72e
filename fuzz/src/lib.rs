//! What the fuzz targets share: the transport's sources, a connection's surroundings, and a peer's
//! view of what it writes.
//!
//! A target turns its input into [`script::Event`]s; [`drive`] lets a connection live through them on
//! paused time, and [`check::Observer`] holds what comes out against RFC 9113. All of it is decided
//! by the input alone: the same input does the same again.
#![forbid(unsafe_code)]

// The transport without the server around it; see Cargo.toml. Some of it is that server's alone.
#[path = "../../src/drain.rs"]
#[allow(dead_code, unreachable_pub)]
mod drain;
#[path = "../../src/listen.rs"]
#[allow(dead_code, unreachable_pub)]
mod listen;
#[path = "../../src/transport/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
pub mod transport;

pub mod check;
pub mod client;
pub mod drive;
pub mod script;
pub mod server;
pub mod services;

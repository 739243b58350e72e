//! The server from outside: over sockets, as the real binary, frame by frame, under attack; and these papers.
//!
//! One binary, because each would compile the server's services and tonic's client once more.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

mod binary;
mod drain;
mod hostile;
mod readme;
mod services;
mod statuses;
mod tonic_services;
mod transport;
mod wire;

//! The reference for gRPC bidirectional streaming: an echo server, as a library.
//!
//! [`serve::serve`] takes a listener, a [`config::Config`] and a shutdown future, and answers two
//! contracts until the future resolves: `Chat/chat` (Ballerina's example, wire for wire) and
//! `echo.v1.Echo/Bidi` (bytes back unchanged). Health v1 is always there, reflection on request.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use bidi_echo::{config::Config, serve::serve};
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let summary = serve(listener, Config::default(), async {
//!     tokio::signal::ctrl_c().await.ok();
//! })
//! .await?;
//! println!("{summary}");
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: what can be set, what can go wrong, the contracts, how a server lives and
//! ends, what it answers, and what it counts.
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod grpc;
pub mod proto;
pub mod serve;
pub mod transport;

mod accept;
mod drain;
mod listen;
pub mod logging;
mod metrics;
mod services;
pub mod stats;

pub mod build_info;

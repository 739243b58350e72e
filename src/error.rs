//! Everything that can stop the server, one variant per thing a caller can act on.

use std::io;
use std::net::SocketAddr;

/// Why the server did not start or did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or contradicts another; nothing was started.
    #[error("{flag} {value}: {cure}")]
    Config {
        /// The flag as typed, with its dashes.
        flag: &'static str,
        /// The value that was given.
        value: String,
        /// What is wrong with it and what to pass instead.
        cure: String,
    },
    /// The listening address could not be bound.
    #[error("cannot bind {address}: {source}; {}pass another {flag}", cure(source))]
    Bind {
        /// The address that was tried.
        address: SocketAddr,
        /// The flag that chooses it.
        flag: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The runtime or a signal handler could not be set up.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The transport gave up; connections that were open are gone.
    #[error("the tonic transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl Error {
    /// Exit code of a binary that ends with this error: 2 for bad usage, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config { .. } => 2,
            _ => 1,
        }
    }
}

/// What helps besides another address.
fn cure(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there or ",
        _ => "",
    }
}

//! Where log events go: to stderr, as text or JSON; stdout belongs to results.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::{LogFormat, LogLevel};

/// Sends events of this process to stderr from now on; a second call is ignored.
///
/// The crates below ours stay at `warn` unless `debug` or `trace` is asked for: h2 logs per frame.
pub fn init(level: LogLevel, format: LogFormat) {
    let filter = LevelFilter::from(level);
    let below = if filter > LevelFilter::INFO { filter } else { filter.min(LevelFilter::WARN) };
    let targets = Targets::new().with_default(below).with_target("bidi_echo", filter);
    let registry = tracing_subscriber::registry().with(targets);
    let events = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    // An error means that a subscriber is there already: the program that embeds us chose its own.
    let _ = match format {
        LogFormat::Text => registry.with(events.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(events.json().flatten_event(true)).try_init(),
    };
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

//! Load generator for gRPC bidirectional streams: per-message latency from the intended send time.
//!
//! ```text
//! main -> cmd -> { drive | harness | report } -> record -> scenario -> units
//! ```
//!
//! A command line becomes a [`scenario::Scenario`]; `drive` runs it on shards that share nothing
//! and gives [`record::Measured`]; `harness` looks after servers and processes; together they are a
//! [`record::RunRecord`], which `report` shows. Arrows go down only: `drive`, `harness` and `report`
//! do not know of each other.
#![forbid(unsafe_code)]

pub mod cmd;
pub mod drive;
pub mod harness;
pub mod record;
pub mod report;
pub mod scenario;
pub mod slo;
pub mod units;

//! The surroundings of a run: the server under test, what processes use, what machine this is.
//!
//! Starts and stops processes and reads `/proc`; never touches the measured core.

pub mod awake;
pub mod bystanders;
pub mod calm;
pub mod child;
pub mod disturbance;
pub mod null;
pub mod peers;
pub mod probe;
pub mod provenance;
pub mod server;
pub mod usage;

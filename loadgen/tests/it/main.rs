//! Whole-system tests: the real loadgen program against real servers, good ones and bad ones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod awake;
mod compression;
mod coordinated_omission;
mod counts;
mod misbehaving;
mod readme;
mod record;
mod report;
mod robustness;
mod suite;
mod support;
mod terminal;
mod usage;
mod validity;
mod verbs;

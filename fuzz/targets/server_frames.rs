//! Frames that are mostly valid into a server's connection, with time and room for its output.
//!
//! Input: a byte of choices (bit 1: small limits), the seed of the cuts, then the grammar's.
#![no_main]

use bidi_echo_fuzz::script::{Grammar, Input};
use bidi_echo_fuzz::server;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let choice = input.byte();
    let seed = input.byte();
    server::run(choice & 2 != 0, seed, Grammar::new(input, true).events());
});

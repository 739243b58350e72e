//! Any bytes into a server's connection.
//!
//! Input: a byte of choices (bit 0: the handshake is done already; bit 1: small limits), the seed of
//! the cuts, then what the client sends.
#![no_main]

use bidi_echo_fuzz::script::{self, Input};
use bidi_echo_fuzz::server;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let choice = input.byte();
    let seed = input.byte();
    let events = script::bytes(input, &script::client_opening(), choice & 1 != 0);
    server::run(choice & 2 != 0, seed, events);
});

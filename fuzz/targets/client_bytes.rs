//! Any bytes, or frames that are mostly valid, into a client's connection with streams open.
//!
//! Input: a byte of choices (bit 0: the handshake is done already; bit 1: small limits; bit 2: the
//! client's handle is kept; bit 3: the rest is the grammar's), the seed of the cuts, then what the
//! server sends.
#![no_main]

use bidi_echo_fuzz::client;
use bidi_echo_fuzz::script::{self, Grammar, Input};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let choice = input.byte();
    let seed = input.byte();
    let events = if choice & 8 != 0 {
        Grammar::new(input, false).events()
    } else {
        script::bytes(input, &script::server_opening(), choice & 1 != 0)
    };
    client::run(choice & 2 != 0, choice & 4 != 0, seed, events);
});

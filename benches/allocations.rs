//! How often a message makes the allocator work: allocations and bytes per message.
//!
//! Apart from the timed benches, because counting slows every allocation down; `allocation_counter`
//! puts its own allocator in place and counts the calling thread, which is all that runs here. A
//! reallocation counts as a new allocation of the whole size. Ping-pong counts client and server
//! together (see [`duplex`]). What must not allocate, and what must do so exactly once, is asserted.
//!
//! Takes `--test` for a short run, as criterion does; other flags are the timed benches' and ignored.

mod duplex;

use std::hint::black_box;

use allocation_counter::{AllocationInfo, measure};
use bidi_echo::proto::echo::EchoMessage;
use bytes::{Bytes, BytesMut};
use duplex::{Duplex, Transport};
use prost::Message;

const PAYLOADS: [usize; 4] = [0, 16, 1 << 10, 1 << 20];

/// `echo.v1.EchoMessage` with a payload of its own: what prost generates unless told otherwise.
#[derive(Clone, PartialEq, Message)]
struct CopiedMessage {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
}

fn main() {
    // Like criterion: `cargo bench` says `--bench`, and whoever does not (`cargo test`) wants a test.
    let flags: Vec<String> = std::env::args().collect();
    let is_test =
        flags.iter().any(|flag| flag == "--test") || !flags.iter().any(|flag| flag == "--bench");

    println!("{:<28} {:>9} {:>12} {:>14}", "per message", "payload", "allocations", "bytes");
    for bytes in PAYLOADS {
        codec(bytes);
    }
    let rounds = if is_test { 10 } else { 1_000 };
    for transport in Transport::ALL {
        for streams in [1, 100] {
            for bytes in [8, 1_000] {
                ping_pong(transport, streams, bytes, rounds);
            }
        }
    }
}

/// Decoding and encoding are the same every time, so their counts are asserted, not sampled.
fn codec(payload_bytes: usize) {
    let message = EchoMessage { payload: payload(payload_bytes) };
    let copied = CopiedMessage { payload: message.payload.to_vec() };
    // `Bytes` made from a `Vec` allocates its reference count when it is first shared: not here.
    let encoded = Bytes::from(message.encode_to_vec());
    let _shared = encoded.clone();
    let mut buffer = BytesMut::with_capacity(encoded.len());

    let whole = u64::from(payload_bytes > 0);
    let check = |row, expected: u64, job: &mut dyn FnMut()| {
        let counted = measure(&mut *job);
        assert_eq!(counted.count_total, expected, "{row}, {payload_bytes} bytes");
        assert_eq!(measure(job), counted, "{row} counts the same every time");
        print(row, payload_bytes, 1, counted);
    };
    check("decode Bytes", 0, &mut || {
        assert!(black_box(EchoMessage::decode(encoded.clone()).expect("well-formed")) == message);
    });
    check("decode Vec", whole, &mut || {
        assert!(black_box(CopiedMessage::decode(encoded.clone()).expect("well-formed")) == copied);
    });
    check("encode into a kept buffer", 0, &mut || {
        buffer.clear();
        message.encode(&mut buffer).expect("it has room");
        assert_eq!(buffer, encoded);
    });
    check("encode into a new buffer", whole, &mut || {
        assert_eq!(black_box(message.encode_to_vec()), encoded);
    });
}

/// Printed, not asserted: the count belongs to tonic, hyper and h2, and moves with their versions.
fn ping_pong(transport: Transport, streams: usize, payload_bytes: usize, rounds: u64) {
    let mut connection = Duplex::open(transport, streams, &payload(payload_bytes));
    // Buffers and tables grow to their size first.
    connection.ping_pong(rounds);
    let counted = measure(|| connection.ping_pong(rounds));
    print(
        &format!("{}, {streams} in flight", transport.name()),
        payload_bytes,
        rounds * streams as u64,
        counted,
    );
}

fn print(row: &str, payload_bytes: usize, messages: u64, counted: AllocationInfo) {
    let each = |total: u64| total as f64 / messages as f64;
    let (count, bytes) = (each(counted.count_total), each(counted.bytes_total));
    println!("{row:<28} {payload_bytes:>9} {count:>12.2} {bytes:>14.1}");
}

fn payload(bytes: usize) -> Bytes {
    vec![0xA5; bytes].into()
}

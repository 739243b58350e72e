//! What encoding and decoding cost, by payload size, and what `Bytes` saves over `Vec<u8>`.
//!
//! Four jobs: encode, decode, decode and encode again (an echo's work), and cutting a buffer of
//! gRPC frames into payloads. Each runs on the contract's message, whose payload is a slice of the
//! buffer that it came in, and on a twin that copies it. Each checks its result before it is timed.
//! Throughput is in encoded bytes; freeing what was decoded is part of the time.

use std::hint::black_box;
use std::time::Duration;

use bidi_echo::proto::echo::EchoMessage;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;

/// The server's own allocator, so that its share of the cost is the same.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAYLOADS: [usize; 6] = [0, 16, 128, 1 << 10, 16 << 10, 1 << 20];

/// `echo.v1.EchoMessage` with a payload of its own: what prost generates unless told otherwise.
#[derive(Clone, PartialEq, Message)]
struct CopiedMessage {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
}

/// A message type under test, by the name of its payload's type.
trait Contender: Message + Default + Clone + PartialEq {
    const NAME: &str;
    fn new(payload: &Bytes) -> Self;
    /// Makes a message's payload out of a frame's.
    fn take(frame: Bytes) -> impl AsRef<[u8]>;
}

impl Contender for EchoMessage {
    const NAME: &str = "Bytes";

    fn new(payload: &Bytes) -> Self {
        EchoMessage { payload: payload.clone() }
    }

    fn take(frame: Bytes) -> impl AsRef<[u8]> {
        frame
    }
}

impl Contender for CopiedMessage {
    const NAME: &str = "Vec";

    fn new(payload: &Bytes) -> Self {
        CopiedMessage { payload: payload.to_vec() }
    }

    fn take(frame: Bytes) -> impl AsRef<[u8]> {
        frame.to_vec()
    }
}

fn encode<M: Contender>(criterion: &mut Criterion) {
    for_each_payload(criterion, "encode", |message: M, encoded| {
        let mut buffer = BytesMut::with_capacity(encoded.len());
        move || {
            encode_into(&message, &mut buffer);
            assert_eq!(buffer.len(), encoded.len());
        }
    });
}

fn decode<M: Contender>(criterion: &mut Criterion) {
    for_each_payload(criterion, "decode", |message: M, encoded| {
        assert!(M::decode(encoded.clone()).expect("just encoded") == message);
        move || drop(black_box(M::decode(encoded.clone()).expect("checked above")))
    });
}

fn decode_encode<M: Contender>(criterion: &mut Criterion) {
    for_each_payload(criterion, "decode_encode", |_: M, encoded| {
        let mut buffer = BytesMut::with_capacity(encoded.len());
        encode_into(&M::decode(encoded.clone()).expect("just encoded"), &mut buffer);
        assert_eq!(buffer, encoded);
        move || {
            let message = M::decode(encoded.clone()).expect("checked above");
            encode_into(&message, &mut buffer);
        }
    });
}

/// Times what `job` makes of a message and its encoding, for each size of payload.
fn for_each_payload<M: Contender, Job: FnMut()>(
    criterion: &mut Criterion,
    name: &str,
    job: impl Fn(M, Bytes) -> Job,
) {
    let mut group = criterion.benchmark_group(name);
    for bytes in PAYLOADS {
        let message = M::new(&payload(bytes));
        let encoded = Bytes::from(message.encode_to_vec());
        assert_eq!(encoded, EchoMessage::new(&payload(bytes)).encode_to_vec(), "same on the wire");
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        let mut job = job(message, encoded);
        group.bench_function(BenchmarkId::new(M::NAME, bytes), |bencher| bencher.iter(&mut job));
    }
}

fn encode_into(message: &impl Message, buffer: &mut BytesMut) {
    buffer.clear();
    black_box(message).encode(buffer).expect("the buffer grows");
    black_box(buffer);
}

/// Cuts frames out of a receive buffer; the twin copies each, as a codec without `Bytes` must.
fn frame_scan<M: Contender>(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame_scan");
    for bytes in PAYLOADS {
        let payload = payload(bytes);
        let (buffer, messages) = framed(&payload);
        let payloads: Vec<_> = frames(buffer.clone()).map(M::take).collect();
        assert_eq!(payloads.len(), messages);
        assert!(payloads.iter().all(|scanned| scanned.as_ref() == payload));
        group.throughput(Throughput::Bytes(buffer.len() as u64));
        group.bench_function(BenchmarkId::new(M::NAME, bytes), |bencher| {
            bencher.iter(|| frames(buffer.clone()).map(M::take).for_each(|it| drop(black_box(it))));
        });
    }
}

/// One flag byte and four bytes of length, big-endian (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// A receive buffer with as many frames of `payload` as 64 KiB hold, at least one; and their number.
fn framed(payload: &Bytes) -> (Bytes, usize) {
    const BUFFER_BYTES: usize = 64 << 10;
    let messages = (BUFFER_BYTES / (PREFIX_BYTES + payload.len())).max(1);
    let mut buffer = BytesMut::new();
    for _ in 0..messages {
        buffer.put_u8(0);
        buffer.put_u32(u32::try_from(payload.len()).expect("below 4 GiB"));
        buffer.put_slice(payload);
    }
    (buffer.freeze(), messages)
}

/// The payloads of a buffer of whole frames, none of them compressed.
fn frames(mut buffer: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if buffer.is_empty() {
            return None;
        }
        assert_eq!(buffer.get_u8(), 0, "compressed");
        let length = buffer.get_u32() as usize;
        Some(buffer.split_to(length))
    })
}

fn payload(bytes: usize) -> Bytes {
    vec![0xA5; bytes].into()
}

/// Shorter than criterion's own times: 48 benches in 5 s each would take 6 minutes.
fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
}

criterion_group! {
    name = benches;
    config = short();
    targets = encode::<EchoMessage>, encode::<CopiedMessage>,
        decode::<EchoMessage>, decode::<CopiedMessage>,
        decode_encode::<EchoMessage>, decode_encode::<CopiedMessage>,
        frame_scan::<EchoMessage>, frame_scan::<CopiedMessage>
}
criterion_main!(benches);

//! What the inline transport's parsing costs: frame heads, and the header blocks of a gRPC call.
//!
//! The scan walks over 64 KiB of DATA frames, small and large, without looking at payloads;
//! throughput is in frames (elements). Header blocks are those of a usual unary or bidi call: the first on a
//! connection, which enters the tables, and one of those that follow, which refers to them. Each job
//! checks its result before it is timed; the parts are reached through `transport::inside`. h2 keeps its own to itself: beside
//! it stands a whole connection, in `stream.rs`.

use std::hint::black_box;
use std::time::Duration;

use bidi_echo::transport::inside::{self, HeaderDecoder, HeaderEncoder};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// The server's own allocator, so that its share of the cost is the same.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A pong of 8 bytes with gRPC's and protobuf's prefixes, an empty one, and the largest frame.
const PAYLOADS: [usize; 4] = [0, 15, 1_000, 16_384];

const BUFFER_BYTES: usize = 64 << 10;

fn frame_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http2_frame_scan");
    for bytes in PAYLOADS {
        let (buffer, expected) = framed(bytes);
        assert_eq!(scan(&buffer), (expected, expected * bytes));
        group.throughput(Throughput::Elements(expected as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter(|| black_box(scan(black_box(&buffer))));
        });
    }
}

/// As many DATA frames as the buffer holds, on 100 streams in turn; and their number.
fn framed(payload_bytes: usize) -> (Vec<u8>, usize) {
    const HEAD_BYTES: usize = 9;
    let frames = BUFFER_BYTES / (HEAD_BYTES + payload_bytes);
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    for frame in 0..frames {
        let stream = u32::try_from(frame % 100 * 2 + 1).expect("small");
        let length = u32::try_from(payload_bytes).expect("small").to_be_bytes();
        buffer.extend_from_slice(&length[1..]);
        buffer.extend_from_slice(&[0, 0]);
        buffer.extend_from_slice(&stream.to_be_bytes());
        buffer.resize(buffer.len() + payload_bytes, 0xA5);
    }
    (buffer, frames)
}

/// How many frames there are, and how long their payloads are together.
fn scan(buffer: &[u8]) -> (usize, usize) {
    inside::frames(buffer)
        .fold((0, 0), |(frames, bytes), (_, _, _, payload)| (frames + 1, bytes + payload.len()))
}

type Fields = &'static [(&'static str, &'static str)];

/// What grpc-go and tonic send, but for the tracing headers that some add.
const REQUEST: Fields = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/echo.v1.Echo/Bidi"),
    (":authority", "localhost:50051"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.76.0"),
    ("te", "trailers"),
    ("grpc-accept-encoding", "gzip"),
];

const RESPONSE: Fields = &[(":status", "200"), ("content-type", "application/grpc")];

const TRAILERS: Fields = &[("grpc-status", "0"), ("grpc-message", "")];

fn hpack(criterion: &mut Criterion) {
    let blocks = [("request", REQUEST), ("response", RESPONSE), ("trailers", TRAILERS)];
    for (name, fields) in blocks {
        let mut encoder = HeaderEncoder::default();
        let (first, next) = (encode(&mut encoder, fields), encode(&mut encoder, fields));
        let mut decoder = HeaderDecoder::default();
        for block in [&first, &next, &next] {
            assert!(decoded(&mut decoder, block).iter().map(pair).eq(fields.iter().copied()));
        }
        assert!(next.len() <= first.len());

        let mut group = criterion.benchmark_group(format!("hpack_{name}"));
        group.bench_function("encode_first", |bencher| {
            bencher.iter_batched_ref(
                HeaderEncoder::default,
                |encoder| encode(encoder, fields),
                BatchSize::SmallInput,
            );
        });
        let mut out = Vec::with_capacity(next.len());
        group.bench_function("encode_next", |bencher| {
            bencher.iter(|| {
                out.clear();
                encode_into(&mut encoder, fields, &mut out);
                black_box(&mut out);
            });
        });
        assert_eq!(encode(&mut encoder, fields), next, "each of those that follow is the same");
        group.bench_function("decode_first", |bencher| {
            bencher.iter_batched_ref(
                HeaderDecoder::default,
                |decoder| decode(decoder, &first),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("decode_next", |bencher| bencher.iter(|| decode(&mut decoder, &next)));
    }
}

fn encode(encoder: &mut HeaderEncoder, fields: Fields) -> Vec<u8> {
    let mut block = Vec::with_capacity(128);
    encode_into(encoder, fields, &mut block);
    block
}

fn encode_into(encoder: &mut HeaderEncoder, fields: Fields, block: &mut Vec<u8>) {
    let fields = black_box(fields).iter();
    encoder.encode(fields.map(|(name, value)| (name.as_bytes(), value.as_bytes(), false)), block);
}

/// The bytes that a block unpacks to, which the compiler cannot leave out.
fn decode(decoder: &mut HeaderDecoder, block: &[u8]) -> usize {
    let mut bytes = 0;
    decoder
        .decode(black_box(block), |name, value, _| {
            bytes += black_box(name).len() + black_box(value).len();
        })
        .expect("our own block");
    bytes
}

fn decoded(decoder: &mut HeaderDecoder, block: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("ASCII");
    let mut fields = Vec::new();
    decoder
        .decode(block, |name, value, _| fields.push((text(name), text(value))))
        .expect("our own block");
    fields
}

fn pair((name, value): &(String, String)) -> (&str, &str) {
    (name, value)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20);
    targets = frame_scan, hpack
}
criterion_main!(benches);

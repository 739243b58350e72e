//! What a message costs on one connection, without a network: the floor under any socket's figure.
//!
//! Ping-pong on one stream, and 100 streams with one message in flight on each, over the in-memory
//! connection of [`duplex`], carried by tonic's transport (h2) and by the inline one; then the codec
//! path of tonic alone, to tell its share from HTTP/2's.
//! One thread; client and server together; throughput is in messages (elements), so its inverse is
//! the cost of one. Every echo is checked, in the timed rounds too.

mod duplex;

use std::time::{Duration, Instant};

use bidi_echo::proto::echo::EchoMessage;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use duplex::{Duplex, Transport};
use futures_util::stream;
use tonic::Streaming;
use tonic::codec::{Codec, EncodeBody};
use tonic_prost::ProstCodec;

/// The server's own allocator, so that its share of the cost is the same.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The load generator's default, and a message of a usual size.
const PAYLOADS: [usize; 2] = [8, 1_000];

fn streams(criterion: &mut Criterion) {
    for (name, streams) in [("ping_pong/1_stream", 1), ("ping_pong/100_streams", 100)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(streams));
        let streams = usize::try_from(streams).expect("small");
        for transport in Transport::ALL {
            for bytes in PAYLOADS {
                let mut connection = Duplex::open(transport, streams, &payload(bytes));
                connection.ping_pong(1);
                group.bench_function(format!("{}/{bytes}_B", transport.name()), |bencher| {
                    bencher.iter_custom(|rounds| {
                        let start = Instant::now();
                        connection.ping_pong(rounds);
                        start.elapsed()
                    });
                });
            }
        }
    }
}

/// Messages through tonic's encoder and decoder, which share buffers between messages as they do
/// under HTTP/2; both directions of an echo pass through both, so an echo costs two of these.
fn codec(criterion: &mut Criterion) {
    const MESSAGES: usize = 1_000;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let mut group = criterion.benchmark_group("tonic_codec");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    for bytes in PAYLOADS {
        let messages = vec![EchoMessage { payload: payload(bytes) }; MESSAGES];
        assert_eq!(runtime.block_on(decoded(encoded(messages.clone()))), messages);
        group.bench_function(format!("{bytes}_B"), |bencher| {
            bencher.iter(|| runtime.block_on(count(encoded(messages.clone()))));
        });
    }
}

fn encoded(messages: Vec<EchoMessage>) -> Streaming<EchoMessage> {
    let mut codec = ProstCodec::<EchoMessage, EchoMessage>::default();
    let body = EncodeBody::new_client(
        codec.encoder(),
        stream::iter(messages.into_iter().map(Ok)),
        None,
        None,
    );
    Streaming::new_request(codec.decoder(), body, None, None)
}

async fn decoded(mut messages: Streaming<EchoMessage>) -> Vec<EchoMessage> {
    let mut taken = Vec::new();
    while let Some(message) = messages.message().await.expect("well-formed") {
        taken.push(message);
    }
    taken
}

async fn count(mut messages: Streaming<EchoMessage>) -> usize {
    let mut count = 0;
    while let Some(_message) = messages.message().await.expect("well-formed") {
        count += 1;
    }
    count
}

fn payload(bytes: usize) -> Bytes {
    vec![0xA5; bytes].into()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = streams, codec
}
criterion_main!(benches);

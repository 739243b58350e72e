//! A client that makes one connection keep all that it can at once, and how much that is: counted by
//! the allocator, not by our own books.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::services::guard::Guarded;
use crate::transport::RecvBody;
use crate::transport::inside::{HeaderEncoder, frame};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What the client says, to the server's end of the connection; and whether it listens.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<(Vec<u8>, usize, bool)>>);

impl Said {
    fn is_read(&self) -> bool {
        let (said, at, _) = &*self.0.lock().unwrap();
        *at == said.len()
    }
}

impl AsyncRead for Said {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (said, at, _) = &mut *self.0.lock().unwrap();
        let count = buf.remaining().min(said.len() - *at);
        if count == 0 {
            return Poll::Pending;
        }
        buf.put_slice(&said[*at..*at + count]);
        *at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.0.lock().unwrap().2 {
            true => Poll::Pending,
            false => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Keeps nothing itself: echoes whole messages, gives a large piece when it is polled, or never reads.
async fn answer(
    request: Request<Guarded<RecvBody>>,
    piece_bytes: usize,
) -> Result<Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError> {
    let body = match request.uri().path() {
        "/hold" => {
            let _unread = request;
            std::future::pending().await
        }
        "/large" => {
            let piece = async move { Ok(Frame::data(Bytes::from(vec![7; piece_bytes]))) };
            StreamBody::new(stream::once(piece)).boxed_unsync()
        }
        _ => request.into_body().boxed_unsync(),
    };
    Ok(Response::new(body))
}

/// The client, with a count of what its server's end owns.
struct Attacker<C> {
    connection: Pin<Box<C>>,
    said: Said,
    encoder: HeaderEncoder,
    next_stream: u32,
    owned: i64,
    peak: i64,
}

impl<C: Future<Output = io::Result<()>>> Attacker<C> {
    /// Says it, and lets the server do all that it can do then.
    fn say(&mut self, bytes: &[Vec<u8>]) {
        {
            let (said, at, _) = &mut *self.said.0.lock().unwrap();
            (*said, *at) = (bytes.concat(), 0);
        }
        let mut is_over = false;
        let counted = measure(|| {
            let mut cx = Context::from_waker(Waker::noop());
            let mut turns_left = 10_000;
            while turns_left > 0 && !is_over {
                is_over = self.connection.as_mut().poll(&mut cx).is_ready();
                turns_left -= 1;
                // Some turns more for what comes of the last that was read.
                if self.said.is_read() {
                    turns_left = turns_left.min(20);
                }
            }
        });
        assert!(!is_over, "the connection is carried");
        assert!(self.said.is_read(), "all of it was read");
        self.peak = self.peak.max(self.owned + i64::try_from(counted.bytes_max).unwrap());
        self.owned += counted.bytes_current;
    }

    fn open(&mut self, path: &str, more: &[(String, String)]) -> (u32, Vec<u8>) {
        let stream = self.next_stream;
        self.next_stream += 2;
        let head = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            ("content-type", "application/grpc"),
        ];
        let more = more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut block = Vec::new();
        self.encoder.encode(
            head.into_iter()
                .chain(more)
                .map(|(name, value)| (name.as_bytes(), value.as_bytes(), false)),
            &mut block,
        );
        (stream, frame(HEADERS, END_HEADERS, stream, &block))
    }

    /// Opens `count` streams and says this on each, in rounds, so that no read brings much for one of them.
    fn rounds(&mut self, path: &str, count: usize, rounds: &[&dyn Fn(u32) -> Vec<u8>]) {
        let (streams, heads): (Vec<u32>, Vec<Vec<u8>>) =
            (0..count).map(|_| self.open(path, &[])).unzip();
        self.say(&heads);
        for round in rounds {
            let said: Vec<_> = streams.iter().map(|stream| round(*stream)).collect();
            self.say(&said);
        }
    }
}

fn widen(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

fn data(stream: u32, bytes: usize) -> Vec<u8> {
    frame(DATA, 0, stream, &vec![0; bytes])
}

#[test]
fn a_client_that_fills_everything_at_once_makes_us_own_no_more_than_the_bound() {
    let config = Config { transport: Transport::Inline(Placement::Inline), ..Config::default() };
    let piece = piece_bytes_max(&config);
    let limits = transport_limits(&config);
    let bound = i64::try_from(limits.connection_bytes_max(piece)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let guard = GuardLayer::new(config.inbound_message_bytes_max);
    let service = guard.layer(tower::service_fn(move |request| answer(request, piece)));
    let said = Said::default();
    let server = transport::Server::new(limits.clone());
    let connection =
        Box::pin(server.serve_connection(said.clone(), service, http::Extensions::new()));
    let encoder = HeaderEncoder::default();
    let mut attacker = Attacker { connection, said, encoder, next_stream: 1, owned: 0, peak: 0 };

    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let initial_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let ack = frame(SETTINGS, ACK, 0, &[]);
    attacker.say(&[preface, initial_window, ack, widen(0, 1 << 30)]);

    // Parts of messages, in pieces whose buffers have just been doubled.
    let begin = |stream| frame(DATA, 0, stream, &[0, 0, 0x10, 0, 0]);
    let doubled = |stream| [data(stream, 2_048), data(stream, 1)].concat();
    let mut rounds: Vec<&dyn Fn(u32) -> Vec<u8>> = vec![&begin];
    rounds.extend([&doubled as &dyn Fn(u32) -> Vec<u8>; 28]);
    let unfinished = config.unfinished_bytes_max;
    attacker.rounds("/echo", unfinished / (28 * 2_049) + 5, &rounds);
    let after_parts = attacker.owned;
    assert!(after_parts > i64::try_from(unfinished).unwrap(), "{after_parts} bytes of parts");
    // A window full of what nobody takes.
    let full =
        |stream| [doubled(stream), doubled(stream), doubled(stream), doubled(stream)].concat();
    attacker.rounds("/hold", 1_990, &[&full]);
    assert!(attacker.owned > after_parts + (30 << 20), "{} bytes", attacker.owned);
    attacker.rounds("/hold", 1_000, &[]);

    // From here on nothing is read: replies up to just below their cap, then large ones.
    attacker.said.0.lock().unwrap().2 = true;
    let message = [&[0, 0, 0, 0x3c, 0][..], &[7; 0x3c00]].concat();
    for _ in 0..4 {
        let (stream, head) = attacker.open("/echo", &[]);
        let messages = vec![frame(DATA, 0, stream, &message); 4];
        attacker.say(&[vec![head, widen(stream, 1 << 20)], messages].concat());
    }
    for window in [0, 20_000] {
        let (stream, head) = attacker.open("/large", &[]);
        attacker.say(&[head, widen(stream, window + 1)]);
    }
    let server_keeps = server.counters().snapshot().buffered_bytes;
    // Nothing is polled now: heads of as many fields as the list takes, a few bytes each on the wire.
    let fields: Vec<_> = (0..232).map(|n| (format!("{:02}", n % 60), String::new())).collect();
    for _ in 0..20 {
        let heads: Vec<_> = (0..50).map(|_| attacker.open("/echo", &fields[..225]).1).collect();
        attacker.say(&heads);
    }
    let keeps = server.counters().snapshot().buffered_bytes;
    assert!(keeps > server_keeps + limits.heads_bytes_max * 9 / 10, "{keeps} after {server_keeps}");
    // A header block without an end, and a frame of it without its own.
    let mut block = vec![frame(HEADERS, 0, attacker.next_stream, &[])];
    let fragments = limits.header_block_bytes_max() / 16_384;
    block.resize(1 + fragments, frame(CONTINUATION, 0, attacker.next_stream, &[0; 16_384]));
    block.push(frame(CONTINUATION, 0, attacker.next_stream, &[0; 16_384])[..16_000].to_vec());
    attacker.say(&block);

    let Attacker { peak, mut owned, connection, .. } = attacker;
    assert!(peak <= bound, "{peak} bytes were owned, the bound is {bound}");
    assert!(peak > bound / 2, "{peak} bytes of {bound}: this fills nothing");
    assert_eq!(server.counters().snapshot().goaways.len(), 0);
    owned += measure(|| drop(connection)).bytes_current;
    // What the thread lends stays with it.
    assert!(owned < 2 << 20, "{owned} bytes are left");
    assert_eq!(server.counters().snapshot().buffered_bytes, 0);
}

#[test]
fn of_a_large_read_only_that_is_kept_which_somebody_waits_for() {
    let limits = transport_limits(&Config {
        transport: Transport::Inline(Placement::Inline),
        ..Config::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let guard = GuardLayer::new(1 << 20);
    let service = guard.layer(tower::service_fn(|request| answer(request, 0)));
    let said = Said::default();
    let server = transport::Server::new(limits);
    let connection =
        Box::pin(server.serve_connection(said.clone(), service, http::Extensions::new()));
    let encoder = HeaderEncoder::default();
    let mut client = Attacker { connection, said, encoder, next_stream: 1, owned: 0, peak: 0 };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    client.say(&[
        preface,
        frame(SETTINGS, 0, 0, &[]),
        frame(SETTINGS, ACK, 0, &[]),
        widen(0, 1 << 30),
    ]);
    let (echoed, head) = client.open("/echo", &[]);
    client.say(&[head, widen(echoed, 1 << 30)]);
    let message = frame(DATA, 0, echoed, &[&[0, 0, 0, 0x3b, 0xfb][..], &[7; 0x3bfb]].concat());
    // Once for what is there from then on.
    client.say(&vec![message.clone(); 4]);
    let (held, head) = client.open("/hold", &[]);
    client.say(&[head]);
    let before = client.owned;
    for _ in 0..10 {
        // 60 KiB that are answered; between them a byte, a part of a message, a head with its values and a
        // frame that is not complete.
        let value = ("x-kept".to_owned(), "kept".to_owned());
        let (_, head) = client.open("/hold", &[value]);
        let [mut said, more] = [vec![message.clone(); 2], vec![message.clone(); 2]];
        said.extend([data(held, 1), head]);
        said.extend(more);
        client.say(&said);
    }
    let kept = client.owned - before;
    assert!(kept < 10 * 4_096, "{kept} bytes are kept of 600 KiB");
}

//! One HTTP/2 peer by hand, over any byte stream: it says what it is told to and sees every frame.
//!
//! Answers nothing by itself, save that [`Peer::greet`] acknowledges the server's SETTINGS; so a
//! test decides about windows, ACKs and the end. Frames to send are built by the functions below.

use std::sync::Arc;

use bidi_echo::transport::{Counters, Limits, Placement, RecvBody, Server};
use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;
use tower_service::Service;

use super::hpack::{self, Decoder, Fields};
use super::soon;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITY: u8 = 0x20;

pub const HEADER_TABLE_SIZE: u16 = 1;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Data { stream: u32, payload: Bytes, end: bool },
    Headers { stream: u32, fields: Fields, end: bool },
    Reset { stream: u32, code: u32 },
    Settings(Vec<(u16, u32)>),
    SettingsAck,
    Ping([u8; 8]),
    Pong([u8; 8]),
    GoAway { last: u32, code: u32, reason: String },
    WindowUpdate { stream: u32, increment: u32 },
}

impl Frame {
    /// The stream that the frame belongs to, 0 for the connection.
    pub fn stream(&self) -> u32 {
        match self {
            Frame::Data { stream, .. }
            | Frame::Headers { stream, .. }
            | Frame::Reset { stream, .. }
            | Frame::WindowUpdate { stream, .. } => *stream,
            _ => 0,
        }
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let Frame::Headers { fields, .. } = self else { panic!("no headers: {self:?}") };
        fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether it is bookkeeping that most tests do not ask about.
    fn is_upkeep(&self) -> bool {
        matches!(self, Frame::Settings(_) | Frame::SettingsAck | Frame::WindowUpdate { .. })
    }
}

/// The client's end of a connection.
pub struct Peer<IO = DuplexStream> {
    io: IO,
    unread: BytesMut,
    pub decoder: Decoder,
}

/// A server's end of an in-memory connection.
pub struct Served {
    /// Resolves when the connection is over.
    pub task: JoinHandle<std::io::Result<()>>,
    pub counters: Arc<Counters>,
}

impl Served {
    /// Reasons of the GOAWAYs that were faults, and the panics.
    pub fn goaways(&self) -> Vec<&'static str> {
        self.counters.snapshot().goaways.into_keys().collect()
    }
}

/// Serves one connection over memory that holds `buffer` bytes each way; nothing has been said yet. All tests'
/// services are one type to the transport: compiling it once for each took more than half of these tests' build.
pub fn serve<S, B>(
    placement: Placement,
    limits: Limits,
    buffer: usize,
    service: S,
) -> (Peer, Served)
where
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError> + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(buffer);
    let server = Server::new(limits).placement(placement);
    let service = service.map_err(Into::<BoxError>::into);
    let service = service.map_response(|reply| reply.map(|body| body.map_err(drop).boxed_unsync()));
    let service = BoxCloneSyncService::new(service);
    let task = tokio::spawn(server.serve_connection(far, service, http::Extensions::new()));
    (Peer::new(near), Served { task, counters: server.counters() })
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Peer<IO> {
    pub fn new(io: IO) -> Self {
        Peer { io, unread: BytesMut::new(), decoder: Decoder::default() }
    }

    /// Preface and settings both ways, everything acknowledged.
    pub async fn greet(&mut self, entries: &[(u16, u32)]) {
        self.send(&[PREFACE, &settings(entries)].concat()).await;
        assert!(matches!(self.any_frame().await, Frame::Settings(_)), "SETTINGS come first");
        self.send(&settings_ack()).await;
        while self.any_frame().await != Frame::SettingsAck {}
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("the server reads");
    }

    /// Err: the server is gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        soon(self.io.write_all(bytes)).await
    }

    /// The next frame that is not bookkeeping.
    pub async fn frame(&mut self) -> Frame {
        loop {
            let frame = self.any_frame().await;
            if !frame.is_upkeep() {
                return frame;
            }
        }
    }

    /// The next frame.
    pub async fn any_frame(&mut self) -> Frame {
        self.try_frame().await.expect("a frame, not the end")
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn try_frame(&mut self) -> Option<Frame> {
        let (kind, flags, stream, mut payload) = self.raw_frame().await?;
        let end = flags & END_STREAM != 0;
        Some(match kind {
            0 => Frame::Data { stream, payload, end },
            1 => {
                let mut block = payload.to_vec();
                let mut is_whole = flags & END_HEADERS != 0;
                while !is_whole {
                    let (kind, flags, of, more) = self.raw_frame().await?;
                    assert_eq!((kind, of), (9, stream), "a header block is interrupted");
                    block.extend_from_slice(&more);
                    is_whole = flags & END_HEADERS != 0;
                }
                Frame::Headers { stream, fields: self.decoder.decode(&block), end }
            }
            3 => Frame::Reset { stream, code: payload.get_u32() },
            4 if flags & ACK != 0 => Frame::SettingsAck,
            4 => Frame::Settings(
                payload.chunks(6).map(|mut entry| (entry.get_u16(), entry.get_u32())).collect(),
            ),
            6 if flags & ACK != 0 => Frame::Pong(payload[..].try_into().unwrap()),
            6 => Frame::Ping(payload[..].try_into().unwrap()),
            7 => {
                let (last, code) = (payload.get_u32(), payload.get_u32());
                Frame::GoAway { last, code, reason: String::from_utf8(payload.to_vec()).unwrap() }
            }
            8 => Frame::WindowUpdate { stream, increment: payload.get_u32() },
            _ => panic!("a server has no use for frame type {kind}"),
        })
    }

    async fn raw_frame(&mut self) -> Option<(u8, u8, u32, Bytes)> {
        while self.unread.len() < 9 {
            self.read().await?;
        }
        let mut head = self.unread.split_to(9);
        let length = usize::try_from(head.get_uint(3)).unwrap();
        assert!(length <= 16_384, "a frame above SETTINGS_MAX_FRAME_SIZE");
        let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
        while self.unread.len() < length {
            self.read().await?;
        }
        Some((kind, flags, stream, self.unread.split_to(length).freeze()))
    }

    async fn read(&mut self) -> Option<()> {
        match soon(self.io.read_buf(&mut self.unread)).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// Reads to the end of the connection. Out: the code and reason of the last GOAWAY.
    pub async fn goaway(&mut self) -> (u32, String) {
        let mut said = None;
        while let Some(frame) = self.try_frame().await {
            if let Frame::GoAway { code, reason, .. } = frame {
                said = Some((code, reason));
            }
        }
        said.expect("a GOAWAY before the end")
    }

    /// Nothing but bookkeeping comes of what was sent before.
    pub async fn expect_silence(&mut self) {
        let frames = self.frames_until_pong().await;
        assert!(frames.iter().all(Frame::is_upkeep), "{frames:?}");
    }

    /// Everything that comes of what was sent before, as far as the server needs nothing more for it.
    pub async fn frames_until_pong(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        // The first answer leaves before what the streams say in the same turn, the second after it.
        for opaque in [*b"are you ", *b"all well"] {
            self.send(&ping(&opaque, 0)).await;
            loop {
                match self.any_frame().await {
                    Frame::Pong(back) if back == opaque => break,
                    frame => frames.push(frame),
                }
            }
        }
        frames
    }

    /// The whole answer on a stream: head, body, trailers; asserts that nothing else comes.
    pub async fn answer(&mut self, stream: u32) -> Answer {
        let head = self.frame().await;
        assert_eq!(head.stream(), stream, "{head:?}");
        let Frame::Headers { fields, end, .. } = head else { panic!("no head: {head:?}") };
        let mut answer = Answer { head: fields, ..Answer::default() };
        let mut ended = end;
        while !ended {
            let frame = self.frame().await;
            assert_eq!(frame.stream(), stream, "{frame:?}");
            match frame {
                Frame::Data { payload, end, .. } => {
                    answer.body.extend_from_slice(&payload);
                    ended = end;
                }
                Frame::Headers { fields, end, .. } => {
                    assert!(end, "trailers end the stream");
                    answer.trailers = fields;
                    ended = true;
                }
                other => panic!("{other:?}"),
            }
        }
        answer
    }

    /// Asks and gets the whole echo: the connection is well.
    pub async fn echo(&mut self, stream: u32) {
        self.send(&[post(stream, 0), data(stream, END_STREAM, b"ping")].concat()).await;
        assert_eq!(self.answer(stream).await.body, b"ping");
    }

    /// Closes our half of the byte stream.
    pub async fn shut_down(&mut self) {
        soon(self.io.shutdown()).await.unwrap();
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub head: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
}

impl Answer {
    pub fn status(&self) -> &str {
        value(&self.head, ":status").expect("every answer has a status")
    }

    /// The gRPC status, of the trailers or of a head that is all there is.
    pub fn grpc_status(&self) -> Option<&str> {
        value(&self.trailers, "grpc-status").or_else(|| value(&self.head, "grpc-status"))
    }
}

fn value<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A frame of any kind, with a length that tells the truth.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    append_frame(&mut frame, kind, flags, stream, payload);
    frame
}

/// The same, behind what is there already.
pub fn append_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

pub fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(0, flags, stream, payload)
}

pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(1, flags | END_HEADERS, stream, &hpack::encode(fields))
}

/// Pseudo-headers of a usual request.
pub const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":authority", "localhost")];

/// A request that says nothing special.
pub fn post(stream: u32, flags: u8) -> Vec<u8> {
    headers(stream, flags, &POST)
}

/// A request of gRPC, with `more` headers.
pub fn grpc(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    headers(stream, flags, &[&POST[..], &grpc, more].concat())
}

/// A call of gRPC's method at `path`.
pub fn call(stream: u32, path: &str) -> Vec<u8> {
    let head = [(":method", "POST"), (":scheme", "http"), (":path", path)];
    headers(stream, 0, &[&head[..], &[("content-type", "application/grpc")]].concat())
}

/// A request with `more` headers.
pub fn post_with(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, flags, &[&POST[..], more].concat())
}

pub fn rst_stream(stream: u32, code: u32) -> Vec<u8> {
    frame(3, 0, stream, &code.to_be_bytes())
}

pub fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let entry = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(4, 0, 0, &entries.iter().flat_map(entry).collect::<Vec<u8>>())
}

pub fn settings_ack() -> Vec<u8> {
    frame(4, ACK, 0, &[])
}

pub fn ping(opaque: &[u8; 8], flags: u8) -> Vec<u8> {
    frame(6, flags, 0, opaque)
}

pub fn goaway(code: u32) -> Vec<u8> {
    frame(7, 0, 0, &[&[0; 4][..], &code.to_be_bytes()].concat())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(8, 0, stream, &increment.to_be_bytes())
}

pub fn continuation(stream: u32, flags: u8, fragment: &[u8]) -> Vec<u8> {
    frame(9, flags, stream, fragment)
}

/// The client's stream of the `n`th wave of an attack; the first one is for its opening.
pub fn id(n: u32) -> u32 {
    2 * n + 3
}

/// A request with one header of `bytes`, in as few frames as it takes.
pub fn large_post(stream: u32, bytes: usize) -> Vec<u8> {
    let block = hpack::encode(&[&POST[..], &[("x", &"y".repeat(bytes))]].concat());
    request_of(stream, &block)
}

/// A request with this header block, in as few frames as it takes.
fn request_of(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut fragments = block.chunks(16_384).peekable();
    let mut frames = Vec::new();
    while let Some(fragment) = fragments.next() {
        let (kind, flags) = if frames.is_empty() { (1, END_STREAM) } else { (9, 0) };
        let last = if fragments.peek().is_none() { END_HEADERS } else { 0 };
        append_frame(&mut frames, kind, flags | last, stream, fragment);
    }
    frames
}

/// A request with so many fields more, of one byte each: `accept-encoding: gzip, deflate`.
pub fn indexed_fields(stream: u32, count: usize) -> Vec<u8> {
    let mut block = hpack::encode(&POST);
    block.resize(block.len() + count, 0x80 | 16);
    request_of(stream, &block)
}

/// The `n`th of requests whose small header block stands for a large list: the first one enters a
/// field of nearly all that the table holds, and all of them refer to it thousands of times.
pub fn header_bomb(n: u32) -> Vec<u8> {
    let mut block = hpack::encode(&POST);
    if n == 0 {
        block.extend_from_slice(&[0x40, 1, b'x']);
        hpack::integer(&mut block, 0, 7, 4_000);
        block.extend([b'y'; 4_000]);
    }
    block.extend([0x80 | 62; 12_000]);
    frame(1, END_HEADERS | END_STREAM, id(n), &block)
}

/// A request for the echo, if `method` and `content_type` are a gRPC client's.
pub fn asking(stream: u32, flags: u8, method: &str, content_type: &str) -> Vec<u8> {
    let head = [
        (":method", method),
        (":scheme", "http"),
        (":path", super::wire::ECHO),
        (":authority", "localhost"),
        ("content-type", content_type),
        ("te", "trailers"),
    ];
    headers(stream, flags, &head)
}

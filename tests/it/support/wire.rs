//! gRPC on the wire: a client that sends and sees payloads byte for byte, on h2, which carries tonic's
//! client too, or on the inline client.

use std::net::SocketAddr;

use bidi_echo::transport;
use bytes::{Buf, Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::exchange::{Incoming, Outgoing, Wired};
use super::soon;
use bidi_echo::proto::echo::EchoMessage;

pub const CHAT: &str = "/Chat/chat";
pub const ECHO: &str = "/echo.v1.Echo/Bidi";

/// What carries a client.
#[derive(Clone, Copy, Debug)]
pub enum Stack {
    H2,
    Inline,
}

/// One HTTP/2 connection.
pub struct Client {
    requests: Requests,
    driver: JoinHandle<Result<(), h2::Error>>,
}

enum Requests {
    H2(SendRequest<Bytes>),
    Inline(transport::Client<Wired>),
}

/// Flow-control windows that the tests here do not fill.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

impl Client {
    /// On h2, with windows that the tests here do not fill.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::with_windows(address, STREAM_WINDOW, CONNECTION_WINDOW).await
    }

    /// The same on either stack.
    pub async fn connect_on(stack: Stack, address: SocketAddr) -> Self {
        if matches!(stack, Stack::H2) {
            return Self::connect(address).await;
        }
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let limits = transport::client_limits(STREAM_WINDOW, CONNECTION_WINDOW);
        let (requests, connection) = transport::Client::new(tcp, limits);
        let driver =
            tokio::spawn(async { connection.await.map_err(|_| h2::Reason::CANCEL.into()) });
        Client { requests: Requests::Inline(requests), driver }
    }

    pub async fn with_windows(address: SocketAddr, stream: u32, connection: u32) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut builder = Builder::new();
        builder
            .initial_window_size(stream)
            .initial_connection_window_size(connection)
            .max_send_buffer_size(64 << 20);
        let (requests, connection) = soon(builder.handshake(tcp)).await.unwrap();
        Client { requests: Requests::H2(requests), driver: tokio::spawn(connection) }
    }

    /// Opens a stream with the headers of a usual gRPC request.
    pub async fn open(&self, path: &str) -> Call {
        self.request(grpc_request(path)).await
    }

    pub async fn request(&self, request: Request<()>) -> Call {
        self.try_request(request).await.unwrap()
    }

    /// Err: the connection is closed or takes no new streams (GOAWAY).
    pub async fn try_request(&self, request: Request<()>) -> Result<Call, h2::Error> {
        match &self.requests {
            Requests::H2(requests) => {
                let mut requests = soon(requests.clone().ready()).await?;
                let (response, sender) = requests.send_request(request, false)?;
                Ok(Call::new(Sender::H2(sender), Source::H2(Answer::Awaited(response))))
            }
            Requests::Inline(requests) => {
                let (wired, outgoing, incoming) = Wired::new();
                requests.open(request, wired).map_err(|_| h2::Reason::REFUSED_STREAM)?;
                Ok(Call::new(Sender::Inline(outgoing), Source::Inline(incoming)))
            }
        }
    }

    /// Streams that the server announced to take at once.
    pub fn max_concurrent_streams(&self) -> usize {
        let Requests::H2(requests) = &self.requests else {
            panic!("the inline client does not say")
        };
        requests.current_max_send_streams()
    }

    /// The echo of `payload` over a new stream.
    pub async fn echo(&self, payload: &[u8]) -> Bytes {
        let mut call = self.open(ECHO).await;
        call.send(frame(&echo_message(payload)));
        call.half_close();
        let reply = call.reply().await.expect("a reply");
        assert_eq!(call.end().await, Status::ok());
        EchoMessage::decode(reply).unwrap().payload
    }

    /// How the connection ended.
    pub async fn closed(self) -> Result<(), h2::Error> {
        drop(self.requests);
        soon(self.driver).await.unwrap()
    }

    /// Drops the socket without a word.
    pub fn abort(self) {
        self.driver.abort();
    }
}

/// One stream.
pub struct Call {
    sender: Sender,
    replies: Replies,
}

/// The client's half of a stream.
pub enum Sender {
    H2(SendStream<Bytes>),
    Inline(Outgoing),
}

/// The server's half of a stream.
pub struct Replies {
    source: Source,
    unread: BytesMut,
}

enum Source {
    H2(Answer),
    Inline(Incoming),
}

enum Answer {
    Awaited(ResponseFuture),
    Here(Response<RecvStream>),
}

impl Call {
    fn new(sender: Sender, source: Source) -> Self {
        Call { sender, replies: Replies { source, unread: BytesMut::new() } }
    }

    /// The two halves, for tasks of their own.
    pub fn split(self) -> (Sender, Replies) {
        (self.sender, self.replies)
    }

    pub fn send(&mut self, data: impl Into<Bytes>) {
        self.sender.send(data);
    }

    pub fn half_close(&mut self) {
        self.sender.half_close();
    }

    pub fn reset(mut self) {
        self.sender.h2().send_reset(h2::Reason::CANCEL);
    }

    pub async fn head(&mut self) -> (StatusCode, HeaderMap) {
        self.replies.head().await
    }

    pub async fn try_data(&mut self) -> Result<Option<Bytes>, h2::Error> {
        self.replies.try_data().await
    }

    pub async fn reply(&mut self) -> Option<Bytes> {
        self.replies.try_reply().await.unwrap()
    }

    /// The payload of the next reply of `echo.v1`.
    pub async fn echoed(&mut self) -> Bytes {
        EchoMessage::decode(self.reply().await.expect("a reply")).unwrap().payload
    }

    pub async fn try_end(&mut self) -> Result<Status, h2::Error> {
        self.replies.try_end().await
    }

    pub async fn end(&mut self) -> Status {
        self.try_end().await.unwrap()
    }
}

impl Sender {
    /// Queues one DATA frame; h2 splits it only if it is longer than a frame or window may be.
    pub fn send(&mut self, data: impl Into<Bytes>) {
        self.try_send(data).unwrap();
    }

    /// Err: the stream is over.
    pub fn try_send(&mut self, data: impl Into<Bytes>) -> Result<(), h2::Error> {
        match self {
            Sender::H2(sender) => sender.send_data(data.into(), false),
            Sender::Inline(outgoing) => outgoing.send(data.into()),
        }
    }

    /// What only h2 can do, or shows.
    fn h2(&mut self) -> &mut SendStream<Bytes> {
        let Sender::H2(sender) = self else { panic!("not with the inline client") };
        sender
    }

    /// Waits for room in the flow-control windows, then sends. Err: the stream is over.
    pub async fn send_when_possible(&mut self, mut data: Bytes) -> Result<(), h2::Error> {
        let sender = self.h2();
        while !data.is_empty() {
            sender.reserve_capacity(data.len());
            let room = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await;
            let room = room.ok_or(h2::Reason::STREAM_CLOSED)??;
            sender.send_data(data.split_to(room.min(data.len())), false)?;
        }
        Ok(())
    }

    pub fn half_close(&mut self) {
        self.try_half_close().unwrap();
    }

    /// Err: the stream is over.
    pub fn try_half_close(&mut self) -> Result<(), h2::Error> {
        match self {
            Sender::H2(sender) => sender.send_data(Bytes::new(), true),
            Sender::Inline(outgoing) => outgoing.half_close(),
        }
    }
}

impl Replies {
    /// The response's head, as soon as it is here.
    pub async fn head(&mut self) -> (StatusCode, HeaderMap) {
        self.try_head().await.unwrap()
    }

    async fn try_head(&mut self) -> Result<(StatusCode, HeaderMap), h2::Error> {
        match &mut self.source {
            Source::H2(answer) => {
                let response = answer.response().await?;
                Ok((response.status(), response.headers().clone()))
            }
            Source::Inline(incoming) => soon(incoming.head()).await,
        }
    }

    /// The next DATA frame of the response. Err: the stream was reset or the connection is gone.
    pub async fn try_data(&mut self) -> Result<Option<Bytes>, h2::Error> {
        match &mut self.source {
            Source::H2(answer) => {
                let body = answer.response().await?.body_mut();
                let Some(data) = soon(body.data()).await.transpose()? else {
                    return Ok(None);
                };
                body.flow_control().release_capacity(data.len())?;
                Ok(Some(data))
            }
            Source::Inline(incoming) => soon(incoming.data()).await,
        }
    }

    /// The next message, without its prefix; `None` when no more is coming. Err: as in `try_data`.
    pub async fn try_reply(&mut self) -> Result<Option<Bytes>, h2::Error> {
        loop {
            if let Some(length) = self.unread.get(1..PREFIX) {
                let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if self.unread.len() >= PREFIX + length {
                    assert_eq!(self.unread[0], 0, "compressed");
                    self.unread.advance(PREFIX);
                    return Ok(Some(self.unread.split_to(length).freeze()));
                }
            }
            match self.try_data().await? {
                Some(data) => self.unread.extend_from_slice(&data),
                None => {
                    assert!(self.unread.is_empty(), "the last message is incomplete");
                    return Ok(None);
                }
            }
        }
    }

    /// The status, which must come next: no more replies. Err: as in `try_data`.
    pub async fn try_end(&mut self) -> Result<Status, h2::Error> {
        if let Some(status) = Status::in_headers(&self.try_head().await?.1) {
            return Ok(status);
        }
        assert_eq!(self.try_reply().await?, None, "one reply too many");
        let trailers = match &mut self.source {
            Source::H2(answer) => soon(answer.response().await?.body_mut().trailers()).await?,
            Source::Inline(incoming) => incoming.trailers(),
        };
        Ok(Status::in_headers(&trailers.expect("trailers")).expect("a grpc-status"))
    }
}

impl Answer {
    async fn response(&mut self) -> Result<&mut Response<RecvStream>, h2::Error> {
        if let Answer::Awaited(response) = self {
            *self = Answer::Here(soon(response).await?);
        }
        match self {
            Answer::Here(response) => Ok(response),
            Answer::Awaited(_) => unreachable!("it came a moment ago"),
        }
    }
}

/// How a stream ended, by its trailers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: i32,
    pub message: String,
}

impl Status {
    pub fn ok() -> Self {
        Status { code: 0, message: String::new() }
    }

    fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let code = text("grpc-status")?.parse().unwrap();
        Some(Status { code, message: text("grpc-message").unwrap_or_default() })
    }
}

/// Compression flag and length.
pub const PREFIX: usize = 5;

/// A message with its prefix, uncompressed.
pub fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

pub fn echo_message(payload: &[u8]) -> Vec<u8> {
    EchoMessage { payload: Bytes::copy_from_slice(payload) }.encode_to_vec()
}

pub fn grpc_request(path: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// Bytes from their hexadecimal form.
pub fn hex(text: &str) -> Bytes {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

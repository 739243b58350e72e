//! One gRPC connection without a socket: client and server at the two ends of an in-memory pipe.
//!
//! In: a number of streams and a payload. Out: [`Duplex`], which sends a message on every stream and
//! waits for the echoes, as often as it is told. Both ends run on the calling thread, so what is
//! counted is the work of client and server together, without kernel, wake-up of another core or
//! lock that is fought for: the floor under any figure taken over a socket. Holds no clock.
//!
//! Either transport carries it, tonic's or the inline one, each with a client of its own kind and the
//! windows of our server; the handler returns the stream that it was given. The limits and counters of the library's own services are not in it: they are private,
//! and reached through a socket alone.

mod inline;

use bidi_echo::config::{CONNECTION_FLOW_WINDOW_BYTES, STREAM_FLOW_WINDOW_BYTES};
use bidi_echo::proto::echo::EchoMessage;
use bidi_echo::proto::echo::echo_client::EchoClient;
use bidi_echo::proto::echo::echo_server::{self, EchoServer};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use hyper_util::rt::TokioIo;
use tokio::io::{DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// What carries a connection, at both of its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Tonic,
    Inline,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Transport::Tonic, Transport::Inline];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Tonic => "tonic",
            Transport::Inline => "inline",
        }
    }
}

/// A connection with its streams open, and the runtime that drives both ends of it.
pub(crate) struct Duplex {
    runtime: Runtime,
    streams: Streams,
}

enum Streams {
    Tonic(Vec<EchoStream>),
    Inline(inline::Streams),
}

impl Duplex {
    /// Opens `streams` streams on one connection; each message will carry `payload`.
    pub(crate) fn open(transport: Transport, streams: usize, payload: &Bytes) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        let streams = runtime.block_on(async {
            if matches!(transport, Transport::Inline) {
                return Streams::Inline(inline::Streams::open(streams, payload));
            }
            let client = connect().await;
            let opening = (0..streams).map(|_| EchoStream::open(client.clone(), payload.clone()));
            Streams::Tonic(join_all(opening).await)
        });
        Duplex { runtime, streams }
    }

    /// Sends and receives `rounds` messages on each stream, one in flight on each, and checks that
    /// every echo equals what was sent, which costs little beside carrying it.
    pub(crate) fn ping_pong(&mut self, rounds: u64) {
        let Duplex { runtime, streams } = self;
        runtime.block_on(async {
            match streams {
                Streams::Inline(streams) => streams.ping_pong(rounds).await,
                // A single stream needs no scheduler between itself and the runtime.
                Streams::Tonic(streams) if streams.len() == 1 => streams[0].ping_pong(rounds).await,
                Streams::Tonic(streams) => {
                    join_all(streams.iter_mut().map(|stream| stream.ping_pong(rounds))).await;
                }
            }
        });
    }
}

/// Room in each direction of the pipe: a few of the largest writes that h2 makes at once.
const PIPE_BYTES: usize = 64 << 10;

async fn connect() -> EchoClient<Channel> {
    let (client_end, server_end) = duplex(PIPE_BYTES);
    tokio::spawn(serve(server_end));
    let mut client_end = Some(TokioIo::new(client_end));
    let connector = tower::service_fn(move |_| {
        let io = client_end.take().ok_or_else(|| std::io::Error::other("the pipe is taken"));
        async move { io }
    });
    // Never looked up: the connector has its pipe already.
    let endpoint = Endpoint::from_static("http://in-memory")
        .initial_stream_window_size(STREAM_FLOW_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_FLOW_WINDOW_BYTES);
    EchoClient::new(endpoint.connect_with_connector(connector).await.expect("the pipe connects"))
}

async fn serve(server_end: DuplexStream) {
    Server::builder()
        .initial_stream_window_size(STREAM_FLOW_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_FLOW_WINDOW_BYTES)
        .add_service(EchoServer::new(Echo))
        .serve_with_incoming(stream::iter([Ok::<_, std::io::Error>(server_end)]))
        .await
        .expect("the pipe serves");
}

/// Answers with the inbound stream itself.
struct Echo;

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    type BidiStream = Streaming<EchoMessage>;

    async fn bidi(
        &self,
        request: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<Self::BidiStream>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

struct EchoStream {
    payload: Bytes,
    outbound: mpsc::Sender<EchoMessage>,
    inbound: Streaming<EchoMessage>,
}

impl EchoStream {
    async fn open(mut client: EchoClient<Channel>, payload: Bytes) -> Self {
        // Room for the one message in flight; part of the cost, as in any client built on tonic.
        let (outbound, messages) = mpsc::channel(1);
        let response = client.bidi(ReceiverStream::new(messages)).await.expect("the stream opens");
        EchoStream { payload, outbound, inbound: response.into_inner() }
    }

    async fn ping_pong(&mut self, rounds: u64) {
        for _ in 0..rounds {
            let message = EchoMessage { payload: self.payload.clone() };
            self.outbound.send(message).await.expect("the stream is open");
            let echo = self.inbound.message().await.expect("no error").expect("an echo");
            assert_eq!(echo.payload, self.payload);
        }
    }
}

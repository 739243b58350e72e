//! What hostile clients do, and what becomes of them: every row of the table of attacks, and every
//! flood that has a limit; then what honest clients do that looks alike and is carried.
//!
//! Both placements are attacked: what a handler is to its connection differs between them.
//!
//! Most tests run on paused time: a clock that moves only when everybody waits, so that a timer of
//! seconds costs nothing and no bucket refills behind a test's back.

mod faults;
mod floods;
mod grpc_messages;
mod header_lists;
mod honest;
mod memory;
mod resets;
mod silence;
mod turns;
mod windows;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use allocation_counter::measure;
use bidi_echo::transport::{BodyError, Flood, FloodKind, Limits, Placement, RecvBody, Server};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use rstest::rstest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower::service_fn;
use tower::util::BoxCloneSyncService;

use crate::support::peer::*;
use crate::support::{hpack, soon};

type Reply = Response<UnsyncBoxBody<Bytes, BodyError>>;

/// More than the server says in any attack here, so that it can always say it.
const BUFFER: usize = 32 << 20;

/// Nobody answers it, and nobody reads it.
const STUCK: [(&str, &str); 1] = [("x-do", "stuck")];
/// Nobody answers it, and what it sends is thrown away.
const DEAF: [(&str, &str); 1] = [("x-do", "deaf")];
/// Answered at once, unread.
const EARLY: [(&str, &str); 1] = [("x-do", "early")];

/// Echoes, unless told otherwise.
fn service() -> BoxCloneSyncService<Request<RecvBody>, Reply, Infallible> {
    BoxCloneSyncService::new(service_fn(|request: Request<RecvBody>| async {
        let told = request.headers().get("x-do").cloned();
        let body = match told.as_ref().map(|told| told.as_bytes()) {
            Some(b"early") => Full::from("early").map_err(|never| match never {}).boxed_unsync(),
            Some(b"deaf") => {
                drop(request);
                std::future::pending().await
            }
            Some(_) => {
                let _unread = request;
                std::future::pending().await
            }
            None => request.into_body().boxed_unsync(),
        };
        Ok(Response::new(body))
    }))
}

/// A server in memory, and a healthy neighbour of whoever attacks it.
struct Host {
    server: Server,
    neighbour: Neighbour,
}

type Serving = JoinHandle<std::io::Result<()>>;

impl Host {
    async fn new(placement: Placement, limits: Limits) -> Self {
        Self::on(Server::new(limits).placement(placement)).await
    }

    async fn on(server: Server) -> Self {
        let (mut peer, _) = connect(&server, BUFFER);
        peer.greet(&[]).await;
        let neighbour = Neighbour::new(peer, &post(1, 0), |n| n.to_be_bytes().to_vec()).await;
        Host { server, neighbour }
    }

    /// A connection on which nothing was said.
    fn connect(&self, buffer: usize) -> (Peer, Serving) {
        connect(&self.server, buffer)
    }

    async fn greeted(&self) -> (Peer, Serving) {
        let (mut peer, serving) = self.connect(BUFFER);
        peer.greet(&[]).await;
        (peer, serving)
    }

    /// Connections that the server ended, by reason, each as often as it did.
    fn goaways(&self) -> Vec<(&'static str, u64)> {
        self.server.counters().snapshot().goaways.into_iter().collect()
    }

    /// Handlers that are still there, but for the neighbour's.
    fn streams_left(&self) -> u64 {
        let counted = self.server.counters().snapshot();
        counted.streams_opened - counted.streams_closed - 1
    }
}

fn connect(server: &Server, buffer: usize) -> (Peer, Serving) {
    let (near, far) = tokio::io::duplex(buffer);
    let serving = server.serve_connection(far, service(), http::Extensions::new());
    (Peer::new(near), tokio::spawn(serving))
}

/// One stream of another connection that sends and waits for the echo.
struct Neighbour<IO = tokio::io::DuplexStream> {
    peer: Peer<IO>,
    /// From the message's number: no two are alike, so that a wrong one is not taken for its echo.
    message: fn(u64) -> Vec<u8>,
    next: u64,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Neighbour<IO> {
    async fn new(mut peer: Peer<IO>, request: &[u8], message: fn(u64) -> Vec<u8>) -> Self {
        peer.send(request).await;
        let mut neighbour = Neighbour { peer, message, next: 0 };
        neighbour.is_well().await;
        neighbour
    }

    async fn is_well(&mut self) {
        let message = (self.message)(self.next);
        self.next += 1;
        self.peer.send(&data(1, 0, &message)).await;
        let mut echo = Vec::new();
        while echo.len() < message.len() {
            match self.peer.frame().await {
                Frame::Headers { end: false, .. } => {}
                Frame::Data { stream: 1, payload, end: false } => echo.extend_from_slice(&payload),
                other => panic!("the neighbour got {other:?}"),
            }
        }
        assert_eq!(echo, message, "the neighbour's echo");
    }
}

/// What a client does over and over, and how it begins.
struct Attack<W> {
    opening: Vec<u8>,
    wave: W,
    waves: u32,
}

/// The attack ends with that GOAWAY, leaves nothing behind, and the neighbour is well meanwhile.
async fn check<W: FnMut(u32) -> Vec<u8>>(
    placement: Placement,
    mut attack: Attack<W>,
    code: u32,
    reason: &str,
) {
    let mut host = Host::new(placement, Limits::default()).await;
    let (mut attacker, serving) = host.greeted().await;
    attacker.send(&attack.opening).await;
    for n in 0..attack.waves {
        if attacker.try_send(&(attack.wave)(n)).await.is_err() {
            break;
        }
        if n % 256 == 0 {
            host.neighbour.is_well().await;
        }
    }
    assert_eq!(attacker.goaway().await, (code, reason.to_owned()));
    soon(serving).await.unwrap().unwrap();
    host.neighbour.is_well().await;
    assert_eq!(host.goaways(), [(reason, 1)]);
    assert_eq!(host.streams_left(), 0, "{reason}");
}

/// The same bytes `waves` times.
fn again(bytes: Vec<u8>) -> impl FnMut(u32) -> Vec<u8> {
    move |_| bytes.clone()
}

/// Returns when everybody waits: only then paused time moves.
async fn everybody_waits() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

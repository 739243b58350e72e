//! The inline transport from outside, frame by frame: what RFC 9113 and gRPC over HTTP/2 ask of a
//! server where h2spec does not look, and what services may rely on.

mod faults;
mod flow_control;
mod headers_and_trailers;
mod limits;
mod services;
mod streams;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bidi_echo::transport::{
    Age, BodyError, Flood, FloodKind, Keepalive, Limits, Placement, RecvBody, StreamEnd,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame as BodyFrame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use rstest::rstest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::service_fn;
use tower_service::Service;

use crate::support::peer::*;
use crate::support::{hpack, soon};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Boxed = UnsyncBoxBody<Bytes, BoxError>;
type Reply = Result<Response<Boxed>, BoxError>;

const BUFFER: usize = 1 << 20;

/// Sends back what comes, trailers too.
fn echo()
-> impl Service<Request<RecvBody>, Response = Response<RecvBody>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ Unpin
+ 'static {
    service_fn(|request: Request<RecvBody>| async {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    })
}

fn full(body: impl Into<Bytes>) -> Reply {
    Ok(Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()))
}

/// What a handler sends, frame by frame; dropping it ends the body.
type Sender = mpsc::UnboundedSender<Result<BodyFrame<Bytes>, BoxError>>;

fn channel() -> (Sender, Boxed) {
    let (sender, frames) = mpsc::unbounded_channel();
    (sender, StreamBody::new(UnboundedReceiverStream::new(frames)).boxed_unsync())
}

fn trailers(status: &'static str) -> BodyFrame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    BodyFrame::trailers(trailers)
}

/// A connection to the echo, greeted, with default limits.
async fn greeted(placement: Placement) -> (Peer, Served) {
    let (mut peer, served) = serve(placement, Limits::default(), BUFFER, echo());
    peer.greet(&[]).await;
    (peer, served)
}

/// What an echo still has to say, to its end. On a task of its own it learns of that after its last piece.
async fn rest<IO: AsyncRead + AsyncWrite + Unpin>(peer: &mut Peer<IO>, echo: u32) -> Vec<u8> {
    let mut rest = Vec::new();
    loop {
        match peer.frame().await {
            Frame::Data { stream, payload, end } if stream == echo => {
                rest.extend_from_slice(&payload);
                if end {
                    return rest;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

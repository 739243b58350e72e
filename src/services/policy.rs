//! What holds for every service alike: one tower layer around all routes.
//!
//! In: any HTTP request. Out: what a gRPC client expects, where tonic alone does not give it. A
//! request that is not gRPC is refused with 415 or 405; a message over the limit is
//! RESOURCE_EXHAUSTED; a drain ends the stream with UNAVAILABLE; and every stream is counted by how
//! it ended. Works per body frame, never per message.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ALLOW, SERVER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::drain::{Drain, Watcher};
use crate::stats::{OpenStream, Outcome, Stats};
use crate::transport::{StreamEnd, is_grpc};

/// Wraps a service in the policy.
#[derive(Clone, Debug)]
pub(crate) struct PolicyLayer {
    pub(crate) stats: Arc<Stats>,
    pub(crate) drain: Drain,
    /// The `server` header of every response.
    pub(crate) product: &'static str,
    /// Whether streams learn of the drain here, not from the transport.
    pub(crate) asks_drain: bool,
}

impl<S> tower_layer::Layer<S> for PolicyLayer {
    type Service = Policy<S>;

    fn layer(&self, inner: S) -> Policy<S> {
        Policy { inner, layer: self.clone() }
    }
}

/// A service under the policy.
#[derive(Clone, Debug)]
pub(crate) struct Policy<S> {
    inner: S,
    layer: PolicyLayer,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Observed>, E>> + Send>>;

impl<S, B> tower_service::Service<Request<B>> for Policy<S>
where
    S: tower_service::Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Observed>;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let end = request.extensions().get::<StreamEnd>().cloned();
        let stream = OpenStream::new(self.layer.stats.clone(), end);
        let (product, asks_drain) = (self.layer.product, self.layer.asks_drain);
        if let Some(refusal) = refuse(request.method(), request.headers()) {
            let rest = Box::new(Rest { stream, stop_reading: None });
            return Box::pin(async move { Ok(observe(refusal, product, rest, false)) });
        }
        let stop_reading = Some(self.layer.drain.stop_reading.watch());
        let rest = Box::new(Rest { stream, stop_reading });
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(observe(answer.await?, product, rest, asks_drain)) })
    }
}

/// The HTTP answer to a request that is not gRPC (gRPC over HTTP/2, "Requests").
fn refuse(method: &Method, headers: &HeaderMap) -> Option<Response<Body>> {
    if method != Method::POST {
        let mut refusal = empty(StatusCode::METHOD_NOT_ALLOWED);
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(refusal);
    }
    if !is_grpc(headers) {
        return Some(empty(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    None
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn observe(
    response: Response<Body>,
    product: &'static str,
    mut rest: Box<Rest>,
    asks_drain: bool,
) -> Response<Observed> {
    let (mut head, body) = response.into_parts();
    head.headers.insert(SERVER, HeaderValue::from_static(product));
    // A status among the headers: the stream ended before it began ("Trailers-Only").
    if rest.stop_reading.is_none() {
        rest.stream.finish(Outcome::NotGrpc);
    } else if let Some(code) = settle(&mut head.headers, rest.stream.was_told_of_drain()) {
        rest.stream.finish(Outcome::Grpc(code));
    }
    Response::from_parts(head, Observed { body: Some(body), asks_drain, rest })
}

/// The final status in `headers`, if there is one, with tonic's code for an overlong message
/// corrected: gRPC's is RESOURCE_EXHAUSTED (grpc/grpc, doc/statuscodes.md). Nor is all well where a drain cut the request short:
/// many services take an error of their requests for the end.
fn settle(headers: &mut HeaderMap, is_cut_short: bool) -> Option<Code> {
    let code = Code::from_bytes(headers.get(Status::GRPC_STATUS)?.as_bytes());
    if code == Code::Ok && is_cut_short {
        say_shutting_down(headers);
        return Some(Code::Unavailable);
    }
    let message = headers.get(Status::GRPC_MESSAGE).map_or(&b""[..], HeaderValue::as_bytes);
    if code == Code::OutOfRange && is_about_message_length(message) {
        let code = Code::ResourceExhausted;
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(i32::from(code)));
        return Some(code);
    }
    Some(code)
}

/// How tonic 0.14 begins both of its messages on length, percent-encoded; a test would notice a change.
fn is_about_message_length(message: &[u8]) -> bool {
    [&b"Error,%20decoded%20message%20length"[..], b"Error,%20encoded%20message%20length"]
        .iter()
        .any(|beginning| message.starts_with(beginning))
}

/// What streams end with that a drain does not wait for.
pub(crate) fn shutting_down() -> Status {
    Status::unavailable("the server is shutting down; open the stream elsewhere")
}

/// A response body that counts how it ended and ends early when a drain says so.
///
/// What a turn does not look at lies elsewhere: with many streams open each line that it does look at is a miss.
#[derive(Debug)]
pub(crate) struct Observed {
    body: Option<Body>,
    /// Whether the drain has to be asked: where the transport ends request bodies for it, it need not be.
    asks_drain: bool,
    rest: Box<Rest>,
}

#[derive(Debug)]
struct Rest {
    stream: OpenStream,
    /// The drain waits for whoever watches.
    stop_reading: Option<Watcher>,
}

impl Observed {
    /// Ends the stream between two polls of the body, when nothing that was taken is held back.
    fn unavailable(&mut self) -> Frame<Bytes> {
        self.body = None;
        self.rest.stream.finish(Outcome::Grpc(Code::Unavailable));
        let mut trailers = HeaderMap::new();
        say_shutting_down(&mut trailers);
        Frame::trailers(trailers)
    }
}

fn say_shutting_down(headers: &mut HeaderMap) {
    shutting_down().add_header(headers).expect("a fixed ASCII message is a header value");
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if this.asks_drain
            && this.rest.stop_reading.as_mut().is_some_and(|drain| drain.is_set(cx))
            && !body.is_end_stream()
        {
            return Poll::Ready(Some(Ok(this.unavailable())));
        }
        let mut polled = Pin::new(body).poll_frame(cx);
        // Looked at where it lies: nearly all frames are data, and moving one costs more than this look.
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
            && let Some(code) = settle(trailers, this.rest.stream.was_told_of_drain())
        {
            this.rest.stream.finish(Outcome::Grpc(code));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_overlong_message_changes_its_status() {
        let check = |code: Code, message: &str, expected: Code| {
            let mut headers = HeaderMap::new();
            Status::new(code, message).add_header(&mut headers).unwrap();
            assert_eq!(settle(&mut headers, false), Some(expected));
            assert_eq!(Code::from_bytes(headers[Status::GRPC_STATUS].as_bytes()), expected);
        };
        let too_long =
            "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        check(Code::OutOfRange, too_long, Code::ResourceExhausted);
        check(Code::OutOfRange, "past the end of the file", Code::OutOfRange);
        check(Code::Internal, too_long, Code::Internal);
        assert_eq!(settle(&mut HeaderMap::new(), false), None);
    }

    #[test]
    fn a_request_that_a_drain_cut_short_does_not_end_with_ok() {
        let check = |code: Code, expected: Code| {
            let mut headers = HeaderMap::new();
            Status::new(code, "").add_header(&mut headers).unwrap();
            assert_eq!(settle(&mut headers, true), Some(expected));
            assert_eq!(Code::from_bytes(headers[Status::GRPC_STATUS].as_bytes()), expected);
        };
        check(Code::Ok, Code::Unavailable);
        check(Code::NotFound, Code::NotFound);
    }
}

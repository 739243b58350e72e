//! Keeps a message from the decoder until all of it is there.
//!
//! In: a request body. Out: the same bytes, but a message's 5-byte prefix (gRPC over HTTP/2,
//! "Length-Prefixed-Message") only together with the message: tonic's decoder reserves what a prefix
//! promises, so 5 bytes could cost 4 MiB. A prefix over the limit ends the body at once with
//! RESOURCE_EXHAUSTED, and so does a part that would bring what the connection's streams have begun
//! and not finished over its cap; a request that ends within a message, with INTERNAL. Nothing is copied but
//! prefixes that are cut in two, and small parts. Requests that are not gRPC pass as they are.
//!
//! Messages that came together are handed on a few at a time ([`PIECE_BYTES`]): tonic's decoder copies what
//! it is given into a buffer of the stream's own, and that stays as small as its messages.

use std::any::Any;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::policy::shutting_down;
use crate::transport::{BodyError, Held, RecvBody, is_grpc};

/// What tonic takes as the error of a body.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

const PREFIX_BYTES: usize = 5;

/// Of whole messages that came together so many bytes are handed on at once, or a message. With all at once, messages of
/// 1,000 bytes, four to a frame, cost a server 1.28 times the CPU time (results/2026-11-30-pieces); with 2,000 bytes 1.06 times.
const PIECE_BYTES: usize = 512;

/// Wraps a service in the guard.
#[derive(Clone, Copy, Debug)]
pub struct GuardLayer {
    message_bytes_max: usize,
}

impl GuardLayer {
    /// Messages may have so many bytes as they come, compressed or not, without their 5-byte prefix: one that
    /// announces more ends its request's body with RESOURCE_EXHAUSTED. Those before it in the same request are
    /// handed on.
    ///
    /// [`Limits::held_bytes_max`](crate::transport::Limits::held_bytes_max) should be larger by 5 bytes at least:
    /// what is begun and not finished on a connection has room there, and a message that finds none ends with
    /// RESOURCE_EXHAUSTED too.
    pub fn new(message_bytes_max: usize) -> Self {
        GuardLayer { message_bytes_max }
    }
}

impl<S> tower_layer::Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, message_bytes_max: self.message_bytes_max }
    }
}

/// A service under the guard.
#[derive(Clone, Copy, Debug)]
pub struct Guard<S> {
    inner: S,
    message_bytes_max: usize,
}

impl<S, B> tower_service::Service<Request<B>> for Guard<S>
where
    S: tower_service::Service<Request<Guarded<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let message_bytes_max = is_grpc(request.headers()).then_some(self.message_bytes_max);
        let held = request.extensions().get::<Held>().cloned();
        self.inner.call(request.map(|body| Guarded {
            body,
            message_bytes_max,
            held,
            waiting: None,
        }))
    }
}

/// A request body that gives whole messages, as the bytes they came in.
///
/// Its errors are those of the body below, or a `tonic::Status`: RESOURCE_EXHAUSTED for a message over the
/// limit, or one too many that has begun ([`Limits::held_bytes_max`](crate::transport::Limits)); INTERNAL for
/// one whose end is missing.
#[derive(Debug)]
pub struct Guarded<B> {
    body: B,
    /// `None`: there are no messages, the request is not gRPC.
    message_bytes_max: Option<usize>,
    /// Where the connection counts what waits, if it does.
    held: Option<Held>,
    /// What waits for the rest of its message, and what stands behind that; nearly always nothing.
    waiting: Option<Box<Messages>>,
}

impl<B> Body for Guarded<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(bytes_max) = this.message_bytes_max else {
            let frame = Pin::new(&mut this.body).poll_frame(cx);
            return frame.map_err(|error| told(error.into()));
        };
        loop {
            if let Some(next) = this.next_whole() {
                // Nobody knows when it will be asked again.
                this.own_parts();
                return Poll::Ready(Some(next.map_err(Into::into)));
            }
            let mut is_whole = None;
            let Poll::Ready(frame) = this.poll_below(cx, bytes_max, &mut is_whole) else {
                this.own_parts();
                return Poll::Pending;
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(told(error)))),
                None => {
                    let Some(messages) = &mut this.waiting else { return Poll::Ready(None) };
                    messages.end();
                    continue;
                }
            };
            // Nearly always: whole messages, and nothing before them.
            let are_whole = |data: &Bytes| whole_bytes(data, bytes_max, usize::MAX) == data.len();
            if this.waiting.is_none()
                && is_whole.unwrap_or_else(|| frame.data_ref().is_none_or(are_whole))
            {
                return Poll::Ready(Some(Ok(frame)));
            }
            let held = &this.held;
            let messages = this
                .waiting
                .get_or_insert_with(|| Box::new(Messages::new(bytes_max, held.clone())));
            match frame.into_data() {
                Ok(data) => messages.push(data),
                Err(frame) => {
                    messages.end();
                    messages.trailers = frame.into_trailers().ok();
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The error of a body, with the status that a handler on another thread answers it with if it sees it
/// before the drain itself.
fn told(error: BoxError) -> BoxError {
    match error.downcast_ref::<BodyError>() {
        Some(&BodyError::SHUTDOWN) => shutting_down().into(),
        _ => error,
    }
}

impl<B> Guarded<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// What comes next, in pieces where the transport keeps the others. `is_whole` is told if it is known that all of it are
    /// messages, or not.
    fn poll_below(
        &mut self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        is_whole: &mut Option<bool>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = &mut self.body;
        if self.waiting.is_none()
            && let Some(body) = (body as &mut dyn Any).downcast_mut::<RecvBody>()
        {
            let piece = |chunk: &[u8]| {
                let whole = whole_bytes(chunk, bytes_max, PIECE_BYTES);
                *is_whole = Some(whole > 0);
                // What is not whole is taken with all that came behind it.
                if whole > 0 { whole } else { chunk.len() }
            };
            return body.poll_part(cx, piece).map_err(Into::into);
        }
        Pin::new(body).poll_frame(cx).map_err(Into::into)
    }
}

impl<B> Guarded<B> {
    /// What waits for more must not keep the connection's read buffer, in which it may lie.
    fn own_parts(&mut self) {
        self.waiting.iter_mut().for_each(|messages| messages.own_parts());
    }

    /// What need not wait any longer.
    fn next_whole(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        let messages = self.waiting.as_mut()?;
        let next = messages.next();
        if messages.is_empty() {
            // An idle stream keeps nothing.
            self.waiting = None;
        }
        next
    }
}

/// Chunks in order; those of messages that are complete may go.
#[derive(Debug)]
struct Messages {
    bytes_max: usize,
    /// Complete messages.
    whole: VecDeque<Bytes>,
    /// The beginning of one that is not.
    held: VecDeque<Bytes>,
    /// So many of `held`, from the first, are nobody else's.
    owned: usize,
    /// A prefix that is not complete.
    prefix: BytesMut,
    /// What the message in `held` still lacks.
    missing: usize,
    /// Length of a message over the limit, behind `whole`; nothing after it is looked at.
    overlong: Option<usize>,
    /// There was no room for a part of a message, beyond so many bytes; nothing after it is looked at.
    overfull: Option<usize>,
    /// The request ended within a message, behind `whole`.
    is_cut_off: bool,
    trailers: Option<HeaderMap>,
    charge: Charge,
}

/// What one stream's messages count for their connection: parts that are held, until the message has
/// been handed on.
#[derive(Debug)]
struct Charge {
    held: Option<Held>,
    /// For all that is here.
    bytes: usize,
    /// For the message that is not complete.
    unfinished: usize,
}

impl Charge {
    /// Err: there is no room; beyond how many bytes.
    fn add(&mut self, bytes: usize) -> Result<(), usize> {
        let Some(held) = &self.held else { return Ok(()) };
        if !held.hold(bytes) {
            return Err(held.bytes_max());
        }
        self.bytes += bytes;
        self.unfinished += bytes;
        Ok(())
    }

    /// All complete messages have been handed on.
    fn settle(&mut self) {
        if self.bytes > self.unfinished
            && let Some(held) = &self.held
        {
            held.release(self.bytes - self.unfinished);
            self.bytes = self.unfinished;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.unfinished = 0;
        self.settle();
    }
}

impl Messages {
    fn new(bytes_max: usize, held: Option<Held>) -> Self {
        Messages {
            bytes_max,
            whole: VecDeque::new(),
            held: VecDeque::new(),
            owned: 0,
            prefix: BytesMut::new(),
            missing: 0,
            overlong: None,
            overfull: None,
            is_cut_off: false,
            trailers: None,
            charge: Charge { held, bytes: 0, unfinished: 0 },
        }
    }

    fn is_empty(&self) -> bool {
        self.whole.is_empty()
            && self.held.is_empty()
            && self.prefix.is_empty()
            && self.missing == 0
            && !self.is_refused()
            && self.trailers.is_none()
    }

    /// Whether the body ends here with a status, behind what is whole.
    fn is_refused(&self) -> bool {
        self.overlong.is_some() || self.overfull.is_some() || self.is_cut_off
    }

    fn next(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        if let Some(whole) = self.whole.pop_front() {
            if self.whole.is_empty() {
                self.charge.settle();
            }
            return Some(Ok(Frame::data(whole)));
        }
        if let Some(bytes) = self.overlong {
            let max = self.bytes_max;
            return Some(Err(Status::resource_exhausted(format!(
                "message of {bytes} bytes: this server takes at most {max}"
            ))));
        }
        if let Some(max) = self.overfull {
            return Some(Err(Status::resource_exhausted(format!(
                "the messages that this connection has begun and not finished are over {max} bytes: \
                 send fewer large ones at once on a connection, or raise the server's --unfinished-bytes-max \
                 (Limits::held_bytes_max)"
            ))));
        }
        if self.is_cut_off {
            return Some(Err(Status::internal("the request ended within a message")));
        }
        self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))
    }

    /// Takes a chunk in.
    fn push(&mut self, mut chunk: Bytes) {
        if self.is_refused() {
            return;
        }
        if self.missing > 0 {
            if chunk.len() < self.missing {
                self.missing -= chunk.len();
                return self.hold(chunk);
            }
            let end = chunk.split_to(self.missing);
            self.missing = 0;
            self.held.push_back(end);
            self.whole.append(&mut self.held);
            (self.held, self.owned) = (VecDeque::new(), 0);
            self.charge.unfinished = 0;
        }
        if !self.prefix.is_empty() {
            // Nearly never: a prefix that was cut in two. The prefix goes on in front of its message.
            let mut joined = std::mem::take(&mut self.prefix);
            joined.extend_from_slice(&chunk);
            chunk = joined.freeze();
        }
        let came = chunk.len();
        let whole = self.scan(&chunk);
        if whole > 0 {
            self.whole.push_back(chunk.split_to(whole));
        }
        if chunk.is_empty() || self.overlong.is_some() {
            return;
        }
        if self.missing == 0 {
            self.prefix = BytesMut::from(&chunk[..]);
        } else if 2 * chunk.len() < came {
            // It would keep all of what it came with.
            self.hold(Bytes::copy_from_slice(&chunk));
        } else {
            self.hold(chunk);
        }
    }

    /// How many bytes at the beginning of `chunk` are whole messages; notes what the next one lacks.
    fn scan(&mut self, chunk: &[u8]) -> usize {
        let mut at = 0;
        while let Some([_, length @ ..]) = chunk[at..].first_chunk::<PREFIX_BYTES>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > self.bytes_max {
                self.overlong = Some(length);
                break;
            }
            let message = PREFIX_BYTES + length;
            let there = chunk.len() - at;
            if there < message {
                self.missing = message - there;
                break;
            }
            at += message;
        }
        at
    }

    /// Keeps a part of a message; small ones are gathered, so that a byte costs a byte. What a large one came with
    /// is kept no longer than to the end of the poll: see [`Self::own_parts`].
    fn hold(&mut self, chunk: Bytes) {
        const GATHER_BYTES_MAX: usize = 4_096;
        if let Err(max) = self.charge.add(chunk.len()) {
            self.overfull = Some(max);
            (self.held, self.owned) = (VecDeque::new(), 0);
            self.charge.unfinished = 0;
            if self.whole.is_empty() {
                self.charge.settle();
            }
            return;
        }
        match self.held.pop_back() {
            Some(last) if last.len() < GATHER_BYTES_MAX && chunk.len() < GATHER_BYTES_MAX => {
                let mut joined =
                    last.try_into_mut().unwrap_or_else(|last| BytesMut::from(&last[..]));
                joined.extend_from_slice(&chunk);
                self.held.push_back(joined.freeze());
            }
            last => {
                self.held.extend(last);
                self.held.push_back(chunk);
            }
        }
    }

    /// Copies the parts that are slices of what others hold, too.
    fn own_parts(&mut self) {
        for part in self.held.iter_mut().skip(self.owned).filter(|part| !part.is_unique()) {
            *part = Bytes::copy_from_slice(part);
        }
        self.owned = self.held.len();
    }

    /// Nothing more comes.
    fn end(&mut self) {
        self.is_cut_off = self.missing > 0 || !self.prefix.is_empty();
        self.missing = 0;
        self.prefix = BytesMut::new();
        (self.held, self.owned) = (VecDeque::new(), 0);
        self.charge.unfinished = 0;
        if self.whole.is_empty() {
            self.charge.settle();
        }
    }
}

/// How many bytes at the beginning of `chunk` are whole messages, none over `bytes_max`; counted until there are `enough`.
fn whole_bytes(chunk: &[u8], bytes_max: usize, enough: usize) -> usize {
    let mut whole = 0;
    while let Some(([_, length @ ..], rest)) = chunk[whole..].split_first_chunk::<PREFIX_BYTES>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > bytes_max || length > rest.len() {
            break;
        }
        whole += PREFIX_BYTES + length;
        if whole >= enough {
            break;
        }
    }
    whole
}

#[cfg(test)]
mod tests;

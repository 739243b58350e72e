//! One bidirectional call on tonic's client: a sending half that the transport pulls from, a receiving half that
//! checks and records.
//!
//! In: the stream's [`Flight`], its [`Payloads`], a channel. Out: echoes in the [`Recorder`] and a
//! status in the flight. The wire carries nothing for loadgen's sake: instants wait in the flight,
//! because gRPC keeps the order within a stream.
//!
//! Per message: one allocation (the payload) and two clock reads;
//! because tonic wants the sending half to be `Send` and all of it runs on the shard's thread; the
//! pacer of an open loop adds one of each.

use std::cell::{RefCell, RefMut};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fragile::Fragile;
use futures_util::Stream;
use http::uri::PathAndQuery;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::clock::Clock;
use super::contract::Contract;
use super::flight::{Flight, Pull};
use super::payload::{Payloads, Verdict};
use super::recorder::Recorder;
use crate::scenario::MESSAGE_BYTES_MAX;
use crate::units::Nanos;

/// State that a stream's two halves and its shard share. tonic wants `Send`, but all of it stays on the
/// shard's thread: anywhere else it panics instead of being locked, since locks cost each echo six atomics.
#[derive(Debug)]
pub(crate) struct Shared<T: 'static>(Arc<Fragile<RefCell<T>>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Shared(Arc::new(Fragile::new(RefCell::new(value))))
    }

    /// Nobody may hold it while it is borrowed: two halves of a stream never run at once.
    pub(crate) fn borrow(&self) -> RefMut<'_, T> {
        self.0.get().borrow_mut()
    }
}

/// What either client needs for one stream.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) stream: usize,
    pub(crate) payloads: Payloads,
    pub(crate) flight: Shared<Flight>,
    pub(crate) recorder: Shared<Recorder>,
    pub(crate) clock: Clock,
    /// Counts the streams whose response headers came, or that failed before.
    pub(crate) opened: Arc<watch::Sender<usize>>,
}

/// What one stream on tonic's client needs to run.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) parts: Parts,
    pub(crate) channel: Channel,
    pub(crate) headers: MetadataMap,
}

/// Opens the stream and carries its messages until it ends.
pub(crate) async fn run<C: Contract>(call: Call) {
    let replies = open::<C>(&call).await;
    call.parts.opened.send_modify(|opened| *opened += 1);
    let ended = match replies {
        Ok(replies) => Receiving::<C> { parts: &call.parts, replies }.run().await,
        Err(status) => Err(status),
    };
    end(&call.parts, ended.err().unwrap_or_else(|| Status::ok("")));
}

async fn open<C: Contract>(call: &Call) -> Result<Streaming<C::Reply>, Status> {
    let Parts { payloads, flight, recorder, clock, .. } = &call.parts;
    let mut client = tonic::client::Grpc::new(call.channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let mut request = Request::new(Sending::<C> {
        flight: flight.clone(),
        payloads: payloads.clone(),
        clock: *clock,
        contract: PhantomData,
    });
    *request.metadata_mut() = call.headers.clone();
    let opening = clock.now();
    let path = PathAndQuery::from_static(C::PATH);
    let codec = ProstCodec::<C::Request, C::Reply>::default();
    let response = client.streaming(request, path, codec).await?;
    let mut recorder = recorder.borrow();
    recorder.seen.response_headers.record(clock.now().since(opening));
    let product = response.metadata().get("server").and_then(|value| value.to_str().ok());
    if let (None, Some(product)) = (&recorder.seen.product, product) {
        recorder.seen.product = Some(product.to_owned());
    }
    Ok(response.into_inner())
}

fn end(parts: &Parts, status: Status) {
    let now = parts.clock.now();
    ended(parts.stream, &status, now, &mut parts.flight.borrow(), &mut parts.recorder.borrow());
}

/// Notes how a stream ended, as either client learned of it.
pub(crate) fn ended(
    stream: usize,
    status: &Status,
    now: Nanos,
    flight: &mut Flight,
    recorder: &mut Recorder,
) {
    if let (Some(half_closed), Code::Ok) = (flight.half_closed, status.code()) {
        recorder.seen.half_close.record(now.since(half_closed));
    }
    if status.code() == Code::Ok && (flight.half_closed.is_none() || flight.expected().is_some()) {
        recorder.failed(|| {
            format!("stream {stream}: the server ended it with OK before it had echoed all")
        });
    }
    recorder.ended(stream, status);
    recorder.backlog = recorder.backlog.saturating_sub(flight.outstanding() as u64);
    flight.end(status.code());
}

/// The request stream: what tonic's encoder pulls messages from.
struct Sending<C> {
    flight: Shared<Flight>,
    payloads: Payloads,
    clock: Clock,
    contract: PhantomData<fn() -> C>,
}

impl<C: Contract> Stream for Sending<C> {
    type Item = C::Request;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<C::Request>> {
        let mut flight = self.flight.borrow();
        match flight.pull(|| self.clock.now()) {
            Pull::Message(sequence) => {
                drop(flight);
                Poll::Ready(Some(C::request(self.payloads.make(sequence))))
            }
            Pull::Wait => {
                flight.wait(cx.waker());
                Poll::Pending
            }
            Pull::End => Poll::Ready(None),
        }
    }
}

/// The reply stream.
struct Receiving<'a, C: Contract> {
    parts: &'a Parts,
    replies: Streaming<C::Reply>,
}

impl<C: Contract> Receiving<'_, C> {
    /// Takes echoes until the server ends the stream.
    async fn run(mut self) -> Result<(), Status> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            match Pin::new(&mut self.replies).poll_next(cx) {
                Poll::Ready(Some(Ok(reply))) => self.take(&reply, self.parts.clock.now()),
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Err(status)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn take(&self, reply: &C::Reply, received: Nanos) {
        let Parts { flight, recorder, payloads, stream, .. } = self.parts;
        let echo = Echo { stream: *stream, payload: C::payload(reply), received };
        echo.land(&mut flight.borrow(), &mut recorder.borrow(), payloads);
    }
}

/// One echo, as either client hands it on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo<'a> {
    pub(crate) stream: usize,
    /// `None`: it is not wrapped as it must be.
    pub(crate) payload: Option<&'a [u8]>,
    pub(crate) received: Nanos,
}

impl Echo<'_> {
    /// Checks and records the echo; in closed loop, makes the next message due.
    pub(crate) fn land(self, flight: &mut Flight, recorder: &mut Recorder, payloads: &Payloads) {
        let Echo { stream, payload, received } = self;
        let Some(expected) = flight.expected() else {
            return recorder.wrong(|wrong| &mut wrong.unasked, stream);
        };
        let verdict = payload.map_or(Verdict::Corrupt, |payload| payloads.check(expected, payload));
        let mut answered = 1;
        match verdict {
            Verdict::Good => {}
            Verdict::Corrupt => recorder.wrong(|wrong| &mut wrong.corrupt, stream),
            Verdict::OutOfOrder(sequence) => match flight.skip_to(sequence) {
                Some(skipped) => {
                    recorder.wrong(|wrong| &mut wrong.early, stream);
                    answered += skipped;
                }
                // It answers nothing that is in flight, so nothing lands.
                None => return recorder.wrong(|wrong| &mut wrong.duplicated, stream),
            },
        }
        recorder.backlog = recorder.backlog.saturating_sub(answered as u64);
        if let Some(landed) = flight.land() {
            flight.echoes += u64::from(recorder.echo(&landed, received));
        }
        if flight.closed_loop {
            (0..answered).for_each(|_| _ = flight.queue(received, received));
        }
    }
}

//! One bidirectional call on the inline client: messages are written into the output and checked
//! in the read buffer, in the connection's own task.
//!
//! In: the stream's [`Flight`], its [`Payloads`], callbacks of the connection. Out: the same as from
//! tonic's client (`stream`): echoes in the [`Recorder`], a status in the flight. Per message: no
//! allocation, no task, no lock, no wake. Clocks are read once a turn:
//! everything of a read was received, and everything of a write was pulled, at one instant.

use std::marker::PhantomData;
use std::task::Context;
use std::time::Instant;

use bidi_echo::transport::{BodyError, Exchange, Sending, grpc_code_of_http, grpc_code_of_reset};
use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};

use super::contract::Contract;
use super::flight::Pull;
use super::payload::Payloads;
use super::stream::{Echo, Parts, ended};
use crate::scenario::MESSAGE_BYTES_MAX;
use crate::units::Nanos;

/// Length of a message's prefix (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// Messages from here up leave as buffers of their own.
const CHUNK_BYTES_MIN: usize = 4_096;

/// One stream on the inline client.
#[derive(Debug)]
pub(crate) struct InlineCall<C> {
    parts: Parts,
    opening: Nanos,
    is_open: bool,
    http_status: StatusCode,
    /// A message that is not complete yet, with its prefix.
    partial: Vec<u8>,
    /// What was wrong with the replies' framing.
    broken: Option<&'static str>,
    contract: PhantomData<fn() -> C>,
}

impl<C: Contract> InlineCall<C> {
    pub(crate) fn new(parts: Parts) -> Self {
        InlineCall {
            opening: parts.clock.now(),
            parts,
            is_open: false,
            http_status: StatusCode::OK,
            partial: Vec::new(),
            broken: None,
            contract: PhantomData,
        }
    }

    fn note_open(&mut self) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.parts.opened.send_modify(|opened| *opened += 1);
        }
    }

    /// Takes the whole messages at the beginning of `bytes`. Out: how many bytes they are.
    fn take(&mut self, bytes: &[u8], received: Nanos) -> usize {
        let (mut flight, mut recorder) = (self.parts.flight.borrow(), self.parts.recorder.borrow());
        // The connection asks for more after every frame: a wake for each echo would only cost atomics.
        let waiting = flight.hush();
        let mut taken = 0;
        while self.broken.is_none()
            && let Some([compressed, length @ ..]) = bytes[taken..].first_chunk::<PREFIX_BYTES>()
        {
            let length = u32::from_be_bytes(*length) as usize;
            if *compressed != 0 {
                self.broken = Some("a compressed message, although no encoding was offered");
            } else if length > MESSAGE_BYTES_MAX {
                self.broken = Some("a message over 4 MiB");
            }
            let begin = taken + PREFIX_BYTES;
            let Some(reply) = bytes.get(begin..begin + length) else { break };
            let payload = C::payload_in(reply);
            let echo = Echo { stream: self.parts.stream, payload: payload.as_deref(), received };
            echo.land(&mut flight, &mut recorder, &self.parts.payloads);
            taken = begin + length;
        }
        flight.listen(waiting);
        taken
    }

    /// The status that the end of a stream means.
    fn status(&self, end: Result<&HeaderMap, &BodyError>) -> Status {
        if let Some(broken) = self.broken {
            return Status::internal(format!("the server sent {broken}"));
        }
        match end {
            Ok(trailers) => match Status::from_header_map(trailers) {
                Some(status) if status.code() == Code::Ok && !self.partial.is_empty() => {
                    Status::internal("the server ended the stream within a message")
                }
                Some(status) => status,
                None => Status::new(
                    Code::from_i32(grpc_code_of_http(self.http_status)),
                    format!("HTTP status {} and no grpc-status", self.http_status),
                ),
            },
            Err(error) => status_of(error),
        }
    }
}

/// The status of a stream that did not end in order.
fn status_of(error: &BodyError) -> Status {
    match error {
        BodyError::Reset(code) => {
            let status = Code::from_i32(grpc_code_of_reset(*code));
            Status::new(status, format!("the server reset the stream: {code}"))
        }
        BodyError::HeadTooLarge { .. } => Status::resource_exhausted(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

impl<C: Contract> Exchange for InlineCall<C> {
    fn head(&mut self, status: StatusCode, headers: &HeaderMap, now: Instant) {
        self.http_status = status;
        {
            let mut recorder = self.parts.recorder.borrow();
            recorder.seen.response_headers.record(self.parts.clock.at(now).since(self.opening));
            let product = headers.get("server").and_then(|value| value.to_str().ok());
            if let (None, Some(product)) = (&recorder.seen.product, product) {
                recorder.seen.product = Some(product.to_owned());
            }
        }
        self.note_open();
    }

    fn data(&mut self, payload: &[u8], now: Instant) {
        if self.broken.is_some() {
            // A server may go on for ever.
            return;
        }
        let received = self.parts.clock.at(now);
        if self.partial.is_empty() {
            let taken = self.take(payload, received);
            self.partial.extend_from_slice(&payload[taken..]);
            return;
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(payload);
        let taken = self.take(&partial, received);
        if taken < partial.len() {
            partial.drain(..taken);
            self.partial = partial;
        }
    }

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, now: Instant) {
        let status = self.status(end);
        let (mut flight, mut recorder) = (self.parts.flight.borrow(), self.parts.recorder.borrow());
        ended(self.parts.stream, &status, self.parts.clock.at(now), &mut flight, &mut recorder);
        drop((flight, recorder));
        self.note_open();
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        frame: &mut Vec<u8>,
        room: usize,
        now: Instant,
    ) -> Sending {
        let pulled = self.parts.clock.at(now);
        let full = frame.len() + room;
        let mut flight = self.parts.flight.borrow();
        while frame.len() < full {
            match flight.pull(|| pulled) {
                Pull::Message(sequence) => {
                    if self.parts.payloads.bytes() >= CHUNK_BYTES_MIN {
                        let mut chunk = Vec::with_capacity(self.parts.payloads.bytes() + 64);
                        append::<C>(&self.parts.payloads, sequence, &mut chunk);
                        return Sending::Chunk(chunk.into());
                    }
                    append::<C>(&self.parts.payloads, sequence, frame);
                }
                Pull::Wait => {
                    flight.wait(cx.waker());
                    return Sending::Wait;
                }
                Pull::End => return Sending::End,
            }
        }
        Sending::More
    }

    fn is_cancelled(&self) -> bool {
        self.broken.is_some()
    }
}

/// Appends a message with its prefix.
fn append<C: Contract>(payloads: &Payloads, sequence: u64, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    C::append(payloads, sequence, out);
    let length = u32::try_from(out.len() - at - PREFIX_BYTES).expect("payloads are at most 4 MiB");
    out[at + 1..at + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use bidi_echo::transport::ErrorCode;

    use super::*;

    #[test]
    fn what_ends_a_stream_early_has_grpcs_code() {
        let check = |error: BodyError, code| assert_eq!(status_of(&error).code(), code, "{error}");
        check(BodyError::Reset(ErrorCode::REFUSED_STREAM), Code::Unavailable);
        check(BodyError::Reset(ErrorCode::CANCEL), Code::Cancelled);
        check(BodyError::ConnectionLost, Code::Unavailable);
        let (code, debug_data) = (ErrorCode::ENHANCE_YOUR_CALM, "too_many_data_frames".into());
        let cut = BodyError::EndedByPeer { code, debug_data };
        check(cut.clone(), Code::Unavailable);
        let told = "the peer ended the connection: ENHANCE_YOUR_CALM, \"too_many_data_frames\"";
        assert_eq!(status_of(&cut).message(), told);
        let too_large = BodyError::HeadTooLarge { bytes: 9_000, bytes_max: 8_192 };
        check(too_large.clone(), Code::ResourceExhausted);
        let status = status_of(&too_large);
        assert!(status.message().contains("9000 bytes"), "{status}");
        assert!(status.message().contains("8192"), "{status}");
    }
}

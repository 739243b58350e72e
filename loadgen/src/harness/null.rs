//! A server that does nothing: the bytes of a request body are its response body. Chat's replies are other bytes
//! than its requests, so those it decodes and encodes, and does nothing else.
//!
//! What loadgen reaches against it is what loadgen itself can do on this machine. On the inline
//! transport, with no codec and no service above. In ping-pong, which is mostly waking up, other servers carry up to half
//! as much again (http2-frames at 1,000 bytes: 1.16, 1.40 and 1.51 times; results/2026-11-28-baseline-2): headroom fails
//! there, and what is shown is a bound.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::transport::{Limits, Server};
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, SERVER};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use prost::{DecodeError, Message};
use tokio::net::TcpListener;

use super::server::stdin_ends;

/// gRPC's prefix of a message: a flag and four bytes of length.
const PREFIX_BYTES: usize = 5;

/// The method whose replies are not its requests' bytes.
const CHAT: &str = "/Chat/chat";

/// The verb that makes this program such a server.
pub const VERB: &str = "null-echo";

#[derive(Clone, Copy, Debug)]
pub(super) struct NullEcho;

impl<B> tower_service::Service<Request<B>> for NullEcho
where
    B: Body<Data = Bytes> + Unpin,
{
    type Response = Response<Back<B>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Back<B>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let chat = (request.uri().path() == CHAT).then(BytesMut::new);
        let mut response = Response::new(Back { body: Some(request.into_body()), chat });
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(SERVER, HeaderValue::from_static("loadgen-null-echo"));
        ready(Ok(response))
    }
}

/// The body that came, and OK behind it.
#[derive(Debug)]
pub(super) struct Back<B> {
    body: Option<B>,
    /// What came of a chat's messages and is none whole yet.
    chat: Option<BytesMut>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Back<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Back { body: Some(body), chat } = &mut *self else { return Poll::Ready(None) };
        let status = loop {
            let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => frame.into_data(),
                None => break "0",
            };
            let Ok(data) = frame else { continue };
            let Some(held) = chat else { return Poll::Ready(Some(Ok(Frame::data(data)))) };
            held.extend_from_slice(&data);
            match replies(held) {
                Ok(replies) if replies.is_empty() => {}
                Ok(replies) => return Poll::Ready(Some(Ok(Frame::data(replies)))),
                Err(_) => break "3",
            }
        };
        self.body = None;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// The chat's replies to all whole messages that are `held`, which keeps the rest. Err: one is no `ChatMessage`.
fn replies(held: &mut BytesMut) -> Result<Bytes, DecodeError> {
    let mut replies = BytesMut::new();
    while let Some(length) = held.get(1..PREFIX_BYTES) {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if held.len() - PREFIX_BYTES < length {
            break;
        }
        let message = held.split_to(PREFIX_BYTES + length).split_off(PREFIX_BYTES);
        let ChatMessage { name, message } = ChatMessage::decode(message)?;
        let reply = format!("{name}: {message}");
        replies.put_u8(0);
        replies.put_u32(u32::try_from(reply.encoded_len()).unwrap_or(u32::MAX));
        reply.encode(&mut replies).expect("a BytesMut takes whatever is written");
    }
    Ok(replies.freeze())
}

/// Serves on a free loopback port, which it says on stdout, until stdin ends.
pub fn serve_until_stdin_ends() -> anyhow::Result<()> {
    let _ = bidi_echo::serve::keep_to_small_pages();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut stdout = io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        stdout.flush()?;
        Server::new(Limits::default()).serve(listener, NullEcho, stdin_ends()).await;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chats_messages_become_replies_wherever_they_are_cut() {
        let framed = |message: &[u8]| {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[0], &length[..], message].concat()
        };
        let said =
            |name: &str, message: &str| ChatMessage { name: name.into(), message: message.into() };
        let long = "x".repeat(300);
        let messages = [said("a", "b"), said("", ""), said("load", &long)];
        let sent: Vec<_> =
            messages.iter().flat_map(|message| framed(&message.encode_to_vec())).collect();
        let expected: Vec<_> = ["a: b", ": ", &format!("load: {long}")]
            .iter()
            .flat_map(|reply| framed(&(*reply).to_owned().encode_to_vec()))
            .collect();
        for cut in 0..=sent.len() {
            let mut held = BytesMut::from(&sent[..cut]);
            let mut got = replies(&mut held).unwrap().to_vec();
            held.extend_from_slice(&sent[cut..]);
            got.extend_from_slice(&replies(&mut held).unwrap());
            assert_eq!(got, expected, "cut at {cut}");
            assert!(held.is_empty());
        }
        assert!(replies(&mut BytesMut::from(&framed(b"\x0a\x05a")[..])).is_err());
    }
}

//! One stream of the inline client, taken out of its connection's task: what is sent and what comes
//! passes channels.

use std::task::{Context, Poll};
use std::time::Instant;

use bidi_echo::transport::{BodyError, Exchange, Sending};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The connection's end of the channels.
pub struct Wired {
    pieces: UnboundedReceiver<Piece>,
    events: UnboundedSender<Event>,
}

enum Piece {
    Data(Bytes),
    End,
}

enum Event {
    Head(StatusCode, HeaderMap),
    Data(Bytes),
    End(Result<HeaderMap, BodyError>),
}

/// The client's half of the stream.
pub struct Outgoing(UnboundedSender<Piece>);

/// The server's half of the stream.
pub struct Incoming {
    events: UnboundedReceiver<Event>,
    head: Option<(StatusCode, HeaderMap)>,
    trailers: Option<HeaderMap>,
}

impl Wired {
    pub fn new() -> (Self, Outgoing, Incoming) {
        let ((to_send, pieces), (events, seen)) = (unbounded_channel(), unbounded_channel());
        let incoming = Incoming { events: seen, head: None, trailers: None };
        (Wired { pieces, events }, Outgoing(to_send), incoming)
    }

    fn tell(&self, event: Event) {
        // Fails when the test has seen enough of the stream.
        let _ = self.events.send(event);
    }
}

impl Exchange for Wired {
    fn head(&mut self, status: StatusCode, headers: &HeaderMap, _: Instant) {
        self.tell(Event::Head(status, headers.clone()));
    }

    fn data(&mut self, payload: &[u8], _: Instant) {
        self.tell(Event::Data(Bytes::copy_from_slice(payload)));
    }

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, _: Instant) {
        self.tell(Event::End(end.cloned().map_err(Clone::clone)));
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        _: &mut Vec<u8>,
        _: usize,
        _: Instant,
    ) -> Sending {
        match self.pieces.poll_recv(cx) {
            Poll::Ready(Some(Piece::Data(data))) => Sending::Chunk(data),
            Poll::Ready(Some(Piece::End)) => Sending::End,
            // A test that drops its half leaves the stream open.
            Poll::Ready(None) | Poll::Pending => Sending::Wait,
        }
    }
}

impl Outgoing {
    /// Err: the stream is over.
    pub fn send(&self, data: Bytes) -> Result<(), h2::Error> {
        self.piece(Piece::Data(data))
    }

    /// Err: the stream is over.
    pub fn half_close(&self) -> Result<(), h2::Error> {
        self.piece(Piece::End)
    }

    fn piece(&self, piece: Piece) -> Result<(), h2::Error> {
        self.0.send(piece).map_err(|_| h2::Reason::STREAM_CLOSED.into())
    }
}

impl Incoming {
    /// The response's head. Err: the stream ended without one.
    pub async fn head(&mut self) -> Result<(StatusCode, HeaderMap), h2::Error> {
        if self.head.is_none() {
            match self.event().await {
                Event::Head(status, headers) => self.head = Some((status, headers)),
                Event::Data(_) => panic!("data before the head"),
                Event::End(end) => return Err(failed(end)),
            }
        }
        Ok(self.head.clone().expect("it came a moment ago"))
    }

    /// The next piece of the body; `None` at its end. Err: the stream ended otherwise.
    pub async fn data(&mut self) -> Result<Option<Bytes>, h2::Error> {
        self.head().await?;
        if self.trailers.is_some() {
            return Ok(None);
        }
        match self.event().await {
            Event::Data(data) => Ok(Some(data)),
            Event::Head(..) => panic!("two heads"),
            Event::End(Ok(trailers)) => {
                self.trailers = Some(trailers);
                Ok(None)
            }
            Event::End(end) => Err(failed(end)),
        }
    }

    /// What followed the body, once `data` has given `None`.
    pub fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    async fn event(&mut self) -> Event {
        self.events.recv().await.expect("the connection lives as long as its streams")
    }
}

fn failed(end: Result<HeaderMap, BodyError>) -> h2::Error {
    match end.expect_err("a head or a failure comes first") {
        BodyError::Reset(code) => h2::Reason::from(code.0).into(),
        error => panic!("the connection ended the stream: {error}"),
    }
}

//! The stream of replies of an echo: the inbound stream, mapped in place.
//!
//! In: a client's messages. Out: one reply per message, in order, in the same poll in which the
//! message was taken. So between two polls nothing is held here: a drain may end the stream there
//! and no message that was taken lacks its reply. No task, channel or box per message.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use tonic::{Status, Streaming};

use super::codec::Encode;
use crate::config::Config;
use crate::stats::{MessageTally, Stats};

/// Largest message in either direction, in bytes, without the 5-byte prefix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) inbound_bytes_max: usize,
    pub(crate) outbound_bytes_max: usize,
}

impl Limits {
    pub(crate) fn new(config: &Config) -> Self {
        Limits {
            inbound_bytes_max: config.inbound_message_bytes_max,
            outbound_bytes_max: config.outbound_message_bytes_max,
        }
    }

    /// The same for what health and reflection are asked. tonic-reflection's answers, and its statuses, repeat the question.
    pub(crate) fn question_bytes_max(self) -> usize {
        self.inbound_bytes_max.min(QUESTION_BYTES_MAX)
    }
}

/// Names of services, symbols and files are far shorter.
const QUESTION_BYTES_MAX: usize = 64 << 10;

/// What an echo answers.
pub(crate) trait Reply {
    type In: Encode;
    type Out: Encode;

    /// The answer to one message.
    fn to(message: Self::In) -> Self::Out;
}

/// One reply per inbound message, until the client half-closes or something is wrong.
///
/// Small, because each line of a stream's state that a turn looks at is a cache miss where many streams are open.
#[derive(Debug)]
pub(crate) struct Replies<R: Reply> {
    inbound: Option<Streaming<R::In>>,
    tally: MessageTally,
    outbound_bytes_max: usize,
}

impl<R: Reply> Replies<R> {
    pub(crate) fn new(inbound: Streaming<R::In>, stats: Arc<Stats>, limits: Limits) -> Self {
        Replies {
            inbound: Some(inbound),
            tally: MessageTally::new(stats),
            outbound_bytes_max: limits.outbound_bytes_max,
        }
    }

    fn answer(&mut self, message: R::In) -> Result<R::Out, Status> {
        self.tally.took(message.length());
        let reply = R::to(message);
        let bytes = reply.length();
        // tonic checks too, but answers OUT_OF_RANGE and drops the replies that wait beside it.
        if bytes > self.outbound_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "reply of {bytes} bytes: this server sends at most {} per message",
                self.outbound_bytes_max
            )));
        }
        self.tally.gave(bytes);
        Ok(reply)
    }
}

impl<R: Reply> Stream for Replies<R> {
    type Item = Result<R::Out, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(inbound) = &mut this.inbound else {
            return Poll::Ready(None);
        };
        let next = match Pin::new(inbound).poll_next(cx) {
            Poll::Pending => {
                this.tally.post();
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(message))) => Some(this.answer(message)),
            Poll::Ready(Some(Err(status))) => Some(Err(status)),
            Poll::Ready(None) => None,
        };
        if !matches!(next, Some(Ok(_))) {
            this.tally.post();
            this.inbound = None;
        }
        Poll::Ready(next)
    }
}

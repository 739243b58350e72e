//! What waits to be written: small frames in one growing buffer, large payloads as slices between.
//!
//! In: frames. Out: one vectored write. A connection that has nothing to write owns nothing: the
//! buffer is lent by the thread for a turn and given back when all of it has left.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Payloads from here up are written from where they are, smaller ones are copied. Not measured yet: a
/// rule of thumb says that copies below 2 to 4 KiB cost less than another slice and its count.
pub(crate) const SLICE_BYTES_MIN: usize = 4_096;

/// A lent buffer that grew larger than this is freed, not given back.
pub(crate) const LENT_BYTES_MAX: usize = 1 << 20;

/// Slices of one vectored write.
const SLICES_MAX: usize = 64;

thread_local! {
    static LENT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes in order: what has not left of `queue`, then `tail`.
#[derive(Debug, Default)]
pub(crate) struct Output {
    queue: VecDeque<Chunk>,
    queued_bytes: usize,
    /// Where frames are appended.
    pub(crate) tail: Vec<u8>,
    /// Bytes of `tail` that have left.
    written: usize,
}

#[derive(Debug)]
enum Chunk {
    Copied(Vec<u8>, usize),
    Slice(Bytes),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Copied(bytes, written) => &bytes[*written..],
            Chunk::Slice(bytes) => bytes,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Chunk::Copied(_, written) => *written += count,
            Chunk::Slice(bytes) => bytes.advance(count),
        }
    }
}

impl Output {
    /// Borrows the thread's buffer for a turn, if there is none yet.
    pub(crate) fn borrow(&mut self) {
        if self.tail.capacity() == 0 {
            self.tail = LENT.take();
        }
    }

    /// Gives the buffer back; what still waits is kept in one of its own size.
    pub(crate) fn give_back(&mut self) {
        let waiting = &self.tail[self.written..];
        if self.queue.is_empty() && waiting.is_empty() {
            self.queue = VecDeque::new();
        } else if self.tail.capacity() < 4 * waiting.len() {
            return;
        }
        let waiting = waiting.to_vec();
        let mut tail = std::mem::replace(&mut self.tail, waiting);
        self.written = 0;
        if tail.capacity() <= LENT_BYTES_MAX {
            tail.clear();
            LENT.set(tail);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.tail.len() == self.written
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.queued_bytes + self.tail.len() - self.written
    }

    /// Appends a payload: copied if small, as it is if large.
    pub(crate) fn payload(&mut self, payload: Bytes) {
        if payload.len() < SLICE_BYTES_MIN {
            self.tail.extend_from_slice(&payload);
            return;
        }
        if self.tail.len() > self.written {
            let waiting = &self.tail[self.written..];
            self.queued_bytes += waiting.len();
            // The buffer may be a large one, lent by the thread: not kept for the head of a frame.
            let chunk = if self.tail.capacity() > 2 * waiting.len() {
                let copied = Chunk::Copied(waiting.to_vec(), 0);
                self.tail.clear();
                self.written = 0;
                copied
            } else {
                Chunk::Copied(std::mem::take(&mut self.tail), std::mem::take(&mut self.written))
            };
            self.queue.push_back(chunk);
        }
        self.queued_bytes += payload.len();
        self.queue.push_back(Chunk::Slice(payload));
    }

    /// Writes until everything has left or the writer takes no more. Out: how much left.
    pub(crate) fn poll_write<W: AsyncWrite>(
        &mut self,
        mut writer: Pin<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let count = if self.queue.is_empty() {
            ready!(writer.as_mut().poll_write(cx, &self.tail[self.written..]))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let chunks = self.queue.iter().map(Chunk::bytes);
            let waiting = chunks.chain([&self.tail[self.written..]]);
            let used = slices.iter_mut().zip(waiting).map(|(slice, bytes)| {
                *slice = IoSlice::new(bytes);
            });
            let used = used.count();
            ready!(writer.as_mut().poll_write_vectored(cx, &slices[..used]))?
        };
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(count);
        Poll::Ready(Ok(count))
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(chunk) = self.queue.front_mut() {
            let length = chunk.bytes().len();
            let left = count.min(length);
            chunk.advance(left);
            self.queued_bytes -= left;
            count -= left;
            if left < length {
                return;
            }
            self.queue.pop_front();
        }
        self.written += count;
        if self.written == self.tail.len() {
            self.tail.clear();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes a few bytes of the first slice at a time.
    struct Stingy {
        taken: Vec<u8>,
        at_once: usize,
    }

    impl AsyncWrite for Stingy {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.at_once);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut room = self.at_once;
            for slice in slices {
                let count = slice.len().min(room);
                self.taken.extend_from_slice(&slice[..count]);
                room -= count;
            }
            Poll::Ready(Ok(self.at_once - room))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn bytes_leave_in_order_however_few_are_taken() {
        for at_once in [1, 7, 4_095, 4_096, 4_097, 100_000] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            let mut writer = Stingy { taken: Vec::new(), at_once };
            let mut cx = Context::from_waker(Waker::noop());
            for round in 0..50_u8 {
                output.borrow();
                let size = [1, 300, SLICE_BYTES_MIN - 1, SLICE_BYTES_MIN, 20_000];
                let payload = vec![round; size[usize::from(round) % size.len()]];
                output.tail.extend_from_slice(b"head");
                output.payload(Bytes::from(payload.clone()));
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&payload);
                assert_eq!(output.len() + writer.taken.len(), expected.len());
                if round % 3 == 0 {
                    let _ = output.poll_write(Pin::new(&mut writer), &mut cx).map(Result::unwrap);
                }
                output.give_back();
            }
            while !output.is_empty() {
                let _ = output.poll_write(Pin::new(&mut writer), &mut cx).map(Result::unwrap);
            }
            assert_eq!(output.len(), 0);
            assert!(writer.taken == expected, "{at_once} bytes at once");
            output.give_back();
            assert_eq!(output.tail.capacity(), 0, "an idle output owns nothing");
        }
    }
}

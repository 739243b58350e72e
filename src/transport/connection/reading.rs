//! The read buffer of a thread, and payloads that are used where they lie in it.
//!
//! In: a socket. Out: the bytes of one read, counted, so that a payload can wait for its handler in
//! place: a copy less for each message, where handlers take what came in the same lap, which is nearly always.
//! Whatever still lies there at the end of the lap is copied out, and the buffer is the thread's again.
//!
//! A service may keep what it was given, and with it the whole buffer. The first that does is the
//! last: from there on its server copies every payload ([`Counters::lends_reads`]).

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::super::stream::Key;
use super::{Connection, READ_BYTES, Role, Slot};

/// A thread's read buffer, and whose payloads lie in it.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    /// What came; at first what the last read left incomplete.
    pub(super) bytes: BytesMut,
    readers: Vec<Key>,
}

/// What streams may hold for a lap, and who does.
pub(super) struct Lender<'a> {
    pub(super) read: Option<&'a Bytes>,
    pub(super) readers: &'a mut Vec<Key>,
}

thread_local! {
    pub(super) static READ: Cell<Option<(BytesMut, Vec<Key>)>> = const { Cell::new(None) };
}

impl ReadBuffer {
    /// The thread's, or a new one if user code blocks on another connection while its own is lent.
    pub(super) fn take() -> Self {
        let (bytes, readers) =
            READ.take().unwrap_or_else(|| (BytesMut::with_capacity(READ_BYTES), Vec::new()));
        ReadBuffer { bytes, readers }
    }

    /// Reads at most `bytes_max`, as far as there is room. Out: how much came; 0 at the end.
    pub(super) fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        let room = READ_BYTES - self.bytes.len();
        let mut into = (&mut self.bytes).limit(room.min(bytes_max));
        let came = ready!(pin!(io.read_buf(&mut into)).poll(cx))?;
        Poll::Ready(Ok(came))
    }

    /// What was read, as bytes that others may hold.
    pub(super) fn share(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }

    /// For the frames of `read`, if it may be lent.
    pub(super) fn lender<'a>(&'a mut self, read: Option<&'a Bytes>) -> Lender<'a> {
        Lender { read, readers: &mut self.readers }
    }

    fn is_lent(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Whether nobody holds anything of it, so that it can be read into again.
    fn reclaim(&mut self) -> bool {
        self.bytes.clear();
        self.bytes.try_reclaim(READ_BYTES)
    }
}

/// Gives it back to the thread.
impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if self.reclaim() {
            self.readers.clear();
            let bytes = std::mem::take(&mut self.bytes);
            READ.set(Some((bytes, std::mem::take(&mut self.readers))));
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    /// `read` was handled: if payloads lie in it, its buffer is kept until the streams were polled; else the
    /// thread has it back.
    pub(super) fn handled(&mut self, read: Bytes, buffer: ReadBuffer) {
        // First: a buffer of which anybody holds anything is not the thread's again.
        drop(read);
        if buffer.is_lent() {
            self.reading = Some(buffer);
        }
    }

    /// Copies what streams have not taken, and gives the buffer back.
    pub(super) fn settle_reads(&mut self) {
        let Some(mut buffer) = self.reading.take() else { return };
        if buffer.reclaim() {
            return;
        }
        // Those that a fault has ended in the same lap may be told of it in the next turn only.
        let streams = self.lost.as_mut().map_or(&mut self.streams, |lost| &mut lost.streams);
        for key in buffer.readers.drain(..) {
            if let Some(Slot { core, app }) = streams.get_mut(key.slot as usize)
                && core.key == key
            {
                R::keep(app);
            }
        }
        if !buffer.reclaim() {
            self.counters.read_kept();
        }
    }
}

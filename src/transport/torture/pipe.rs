//! An in-memory connection that is as unkind as a byte stream may be.
//!
//! In: a seed. Out: two ends. Reads and writes take a byte or many, say Pending for no reason (and
//! wake at once, or after a while), hold what was written until it is flushed, and have little room.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::chance::Chance;

/// How unkind an end is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// Bytes on their way in one direction.
    pub(crate) room_bytes: usize,
    /// Most bytes of one read or write.
    pub(crate) at_once_bytes: usize,
    /// One operation in so many is Pending although it could go on; 0: none.
    pub(crate) pending_one_in: usize,
    /// What was written is held until it is flushed.
    pub(crate) holds: bool,
    /// One of so many of those is a pause of up to sixteen units; the others wake at once.
    pub(crate) pause_one_in: usize,
    pub(crate) unit: Duration,
}

impl Manners {
    /// Any manners that still let some kilobytes through in a few thousand operations.
    pub(crate) fn random(chance: &mut Chance, pause_one_in: usize, unit: Duration) -> Self {
        Manners {
            room_bytes: chance.pick(&[1, 10, 100, 5_000, 70_000, 1 << 20]),
            at_once_bytes: chance.pick(&[1, 9, 1_000, 20_000, 1 << 20, 1 << 20]),
            pending_one_in: chance.pick(&[0, 2, 3, 10, 50]),
            holds: chance.one_in(2),
            pause_one_in,
            unit,
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    held: VecDeque<u8>,
    on_the_way: VecDeque<u8>,
    closed: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    /// Moves what is held as far as there is room. Out: how much that was.
    fn advance(&mut self, room_bytes: usize) -> usize {
        let room = room_bytes.saturating_sub(self.on_the_way.len());
        let moved = room.min(self.held.len());
        if moved > 0 {
            self.on_the_way.extend(self.held.drain(..moved));
            if let Some(waker) = self.reader.take() {
                waker.wake();
            }
        }
        moved
    }
}

/// One end.
#[derive(Debug)]
pub(crate) struct End {
    inbound: Arc<Mutex<Lane>>,
    outbound: Arc<Mutex<Lane>>,
    manners: Manners,
    chance: Chance,
    pause: Option<Pin<Box<Sleep>>>,
    /// What happened here until now: bytes that moved, ends, Pendings for no reason. Whoever asks in vain makes nothing
    /// happen.
    pub(crate) events: Arc<AtomicU64>,
}

/// A pair of ends, both with these manners.
pub(crate) fn pipe(manners: Manners, chance: &mut Chance) -> (End, End) {
    let lanes = [Arc::<Mutex<Lane>>::default(), Arc::default()];
    let end = |inbound: usize, chance| End {
        inbound: lanes[inbound].clone(),
        outbound: lanes[1 - inbound].clone(),
        manners,
        chance,
        pause: None,
        events: Arc::default(),
    };
    (end(0, chance.fork()), end(1, chance.fork()))
}

impl End {
    fn happened(&self, events: usize) {
        self.events.fetch_add(events as u64, Relaxed);
    }

    /// Says Pending for no reason, now and then.
    fn dawdle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.happened(1);
        }
        let Manners { pending_one_in, pause_one_in, unit, .. } = self.manners;
        if pending_one_in == 0 || !self.chance.one_in(pending_one_in) {
            return Poll::Ready(());
        }
        self.happened(1);
        if !self.chance.one_in(pause_one_in) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let units = u32::try_from(self.chance.between(1, 16)).expect("small");
        let mut pause = Box::pin(sleep(unit * units));
        let waits = pause.as_mut().poll(cx);
        self.pause = Some(pause);
        waits
    }

    fn share(&mut self, bytes: usize) -> usize {
        let most = bytes.min(self.manners.at_once_bytes);
        if self.chance.one_in(3) { self.chance.between(1, most) } else { most }
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.dawdle(cx));
        let inbound = self.inbound.clone();
        let mut lane = inbound.lock().unwrap();
        let most = lane.on_the_way.len().min(buf.remaining());
        if most == 0 {
            if lane.closed && lane.held.is_empty() {
                self.happened(1);
                return Poll::Ready(Ok(()));
            }
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = self.share(most);
        let bytes: Vec<u8> = lane.on_the_way.drain(..count).collect();
        buf.put_slice(&bytes);
        self.happened(count);
        if let Some(waker) = lane.writer.take() {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.dawdle(cx));
        let outbound = self.outbound.clone();
        let mut lane = outbound.lock().unwrap();
        if lane.reader_gone {
            self.happened(1);
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        assert!(!lane.closed, "written after shutdown");
        let Manners { room_bytes, holds, .. } = self.manners;
        if lane.held.len() >= room_bytes {
            self.happened(lane.advance(room_bytes));
        }
        let room = room_bytes.saturating_sub(lane.held.len());
        if room == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if bytes == 0 {
            return Poll::Ready(Ok(0));
        }
        let count = self.share(bytes.min(room));
        self.happened(count);
        lane.held.extend(slices.iter().flat_map(|slice| slice.iter()).take(count));
        if !holds {
            lane.advance(room_bytes);
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.dawdle(cx));
        let mut lane = self.outbound.lock().unwrap();
        if lane.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.happened(lane.advance(self.manners.room_bytes));
        if lane.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        lane.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let mut lane = self.outbound.lock().unwrap();
        lane.closed = true;
        self.happened(1);
        if let Some(waker) = lane.reader.take() {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut inbound = self.inbound.lock().unwrap();
        inbound.reader_gone = true;
        if let Some(waker) = inbound.writer.take() {
            waker.wake();
        }
        drop(inbound);
        let mut outbound = self.outbound.lock().unwrap();
        // What was not flushed is lost, as in a kernel that sends RST.
        outbound.held.clear();
        outbound.closed = true;
        if let Some(waker) = outbound.reader.take() {
            waker.wake();
        }
    }
}

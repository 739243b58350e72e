//! A connection's surroundings: bytes, room for its output, time.
//!
//! In: a script, a connection over a [`Pipe`]. Out: nothing, or a panic that says what went wrong:
//! what [`Observer`] sees, a connection that spins, or one that outlives its peer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use crate::check::{Endpoint, Observer};
use crate::script::{Cuts, Event};
use crate::transport::Limits;

/// The endpoint's side of a byte stream in memory.
#[derive(Clone)]
pub struct Pipe(Rc<RefCell<Ends>>);

struct Ends {
    observer: Observer,
    cuts: Cuts,
    inbound: VecDeque<Vec<u8>>,
    /// Bytes of the first of `inbound` that were read.
    read: usize,
    is_ended: bool,
    is_shut: bool,
    /// Bytes that the peer still takes.
    room: usize,
    waiting: Option<Waker>,
    given_bytes: usize,
    wrote_bytes: usize,
}

impl Pipe {
    pub fn new(endpoint: Endpoint, limits: &Limits, cuts: Cuts) -> Self {
        Pipe(Rc::new(RefCell::new(Ends {
            observer: Observer::new(endpoint, limits),
            cuts,
            inbound: VecDeque::new(),
            read: 0,
            is_ended: false,
            is_shut: false,
            room: usize::MAX,
            waiting: None,
            given_bytes: 0,
            wrote_bytes: 0,
        })))
    }

    fn change(&self, change: impl FnOnce(&mut Ends)) {
        let mut ends = self.0.borrow_mut();
        change(&mut ends);
        if let Some(waiting) = ends.waiting.take() {
            waiting.wake();
        }
    }

    /// Polls that an honest connection needs at most for what happened so far.
    fn polls_max(&self) -> usize {
        let ends = self.0.borrow();
        1_000 + 4 * ends.given_bytes + ends.wrote_bytes
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ends = &mut *self.0.borrow_mut();
        let Some(first) = ends.inbound.front() else {
            if ends.is_ended {
                return Poll::Ready(Ok(()));
            }
            ends.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let unread = &first[ends.read..];
        let length = ends.cuts.next(unread.len()).min(buf.remaining());
        if length == 0 {
            // As if the kernel had been asked a moment too early.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        buf.put_slice(&unread[..length]);
        ends.observer.given(&unread[..length]);
        ends.given_bytes += length;
        ends.read += length;
        if ends.read == first.len() {
            ends.inbound.pop_front();
            ends.read = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let ends = &mut *self.0.borrow_mut();
        assert!(!ends.is_shut, "writes after its end");
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        assert!(all > 0, "writes nothing");
        if ends.room == 0 {
            ends.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = ends.cuts.next(all).max(1).min(ends.room);
        let mut left = length;
        for slice in slices {
            let part = &slice[..left.min(slice.len())];
            ends.observer.wrote(part);
            left -= part.len();
        }
        if ends.room < usize::MAX {
            ends.room -= length;
        }
        ends.wrote_bytes += length;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ends = &mut *self.0.borrow_mut();
        ends.is_shut = true;
        ends.observer.shut();
        Poll::Ready(Ok(()))
    }
}

/// Runs `with` on this thread's runtime, whose time is paused.
pub fn with_runtime<T>(with: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime starts");
    }
    RUNTIME.with(|runtime| runtime.block_on(with))
}

/// Lets a connection live through a script and checks that it ends with it.
pub async fn drive(
    connection: impl Future<Output = io::Result<()>>,
    pipe: &Pipe,
    script: Vec<Event>,
) {
    let mut connection = Box::pin(connection);
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    for event in script {
        match event {
            Event::Given(bytes) if bytes.is_empty() => {}
            Event::Given(bytes) => pipe.change(|ends| ends.inbound.push_back(bytes)),
            Event::Room(room) => pipe.change(|ends| ends.room = room),
            Event::Time(passes) => tokio::time::advance(passes).await,
        }
        if settle(connection.as_mut(), pipe, &woken).await {
            return;
        }
    }
    pipe.change(|ends| ends.is_ended = true);
    // Its output may have nowhere to go; then it is a timer that ends it.
    for _ in 0..100 {
        if settle(connection.as_mut(), pipe, &woken).await {
            return;
        }
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    panic!("the connection outlives its peer");
}

/// Polls until nobody wakes the connection any more. Out: whether it is over.
async fn settle(
    mut connection: Pin<&mut impl Future<Output = io::Result<()>>>,
    pipe: &Pipe,
    woken: &Arc<Woken>,
) -> bool {
    let waker = Waker::from(woken.clone());
    let mut polls = 0;
    loop {
        woken.0.store(false, SeqCst);
        if connection.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return true;
        }
        // Bodies that are read on tasks of their own; and a new budget for tokio's own futures.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        if !woken.0.load(SeqCst) {
            return false;
        }
        polls += 1;
        assert!(polls < pipe.polls_max(), "the connection spins");
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

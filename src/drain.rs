//! Three latches that end a server in order: leave, stop reading, cut off; and when each is due.
//!
//! A [`Latch`] is set once and wakes everybody who watches it. Watching costs the hot path one
//! load of a line that is never written: tokio's `Notify` and `watch` would take a lock that all
//! connections share at every poll.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::timeout;

/// What a drain tells streams and connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain {
    /// Connections tell their peers to go; streams go on.
    pub(crate) leave: Latch,
    /// Streams take no further message, send what they took, and end with UNAVAILABLE.
    pub(crate) stop_reading: Latch,
    /// Connections that are still there are closed, whatever they carry.
    pub(crate) cut_off: Latch,
}

/// The end of the drain limit is kept for sending what was taken: a third of it, at most this.
///
/// What was taken leaves as fast as the client reads: a client that grants 5 MiB of window and has
/// half a saturated core to itself was seen to take some 100 ms. A tenth of a limit of 300 ms lost
/// echoes on two saturated cores; a third of it did so only beside other programs.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// The end of the flush time is kept for cutting off, which connections notice when they are polled:
/// a tenth of the limit, at most this.
const CUT_OFF_TIME_MAX: Duration = Duration::from_millis(50);

/// How long after the limit a connection that was cut off is still waited for: only a machine that
/// is too busy to poll it needs any of this.
const OVERTIME_MAX: Duration = Duration::from_millis(250);

impl Drain {
    /// Waits until all is `over` by itself, at most `limit`, with the latches' help near the end.
    ///
    /// `None`: it was not over even then; nobody waits any longer.
    pub(crate) async fn run_down<T>(
        &self,
        mut over: Pin<&mut impl Future<Output = T>>,
        limit: Duration,
    ) -> Option<T> {
        let flush_time = (limit / 3).min(FLUSH_TIME_MAX);
        let cut_off_time = (limit / 10).min(CUT_OFF_TIME_MAX);
        if let Ok(ended) = timeout(limit - flush_time, &mut over).await {
            return Some(ended);
        }
        self.stop_reading.set();
        if let Ok(ended) = timeout(flush_time - cut_off_time, &mut over).await {
            return Some(ended);
        }
        self.cut_off.set();
        timeout(cut_off_time + OVERTIME_MAX, over).await.ok()
    }
}

/// A flag that is set once and wakes its watchers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_set: AtomicBool,
    watchers: Mutex<Slab<Arc<AtomicWaker>>>,
    unwatched: Notify,
}

impl Inner {
    /// Wakers are only cloned and dropped under this lock, so poison means nothing.
    fn watchers(&self) -> MutexGuard<'_, Slab<Arc<AtomicWaker>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch {
    /// Sets the latch; everybody who watches it is polled again.
    pub(crate) fn set(&self) {
        self.0.is_set.store(true, Ordering::SeqCst);
        let watchers: Vec<_> = self.0.watchers().iter().map(|(_, waker)| waker.clone()).collect();
        watchers.iter().for_each(|waker| waker.wake());
    }

    /// A watcher, for one task at a time.
    pub(crate) fn watch(&self) -> Watcher {
        let waker = Arc::new(AtomicWaker::new());
        let key = self.0.watchers().insert(waker.clone());
        Watcher { latch: self.0.clone(), key, waker, registered: None }
    }

    /// Resolves when nobody watches (any more): whoever did is gone.
    pub(crate) async fn unwatched(&self) {
        while !self.0.watchers().is_empty() {
            // Keeps a wake-up that comes before the wait.
            self.0.unwatched.notified().await;
        }
    }
}

/// One task's view of a [`Latch`].
#[derive(Debug)]
pub(crate) struct Watcher {
    latch: Arc<Inner>,
    key: usize,
    waker: Arc<AtomicWaker>,
    registered: Option<Waker>,
}

impl Watcher {
    /// Whether the latch is set; if not, the task of `cx` is woken when it is.
    pub(crate) fn is_set(&mut self, cx: &mut Context<'_>) -> bool {
        if self.latch.is_set.load(Ordering::Acquire) {
            return true;
        }
        if self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return false;
        }
        self.waker.register(cx.waker());
        self.registered = Some(cx.waker().clone());
        // Set between the first look and the registration: nobody would wake this task.
        self.latch.is_set.load(Ordering::SeqCst)
    }
}

impl Watcher {
    /// Resolves when the latch is set.
    pub(crate) async fn wait(&mut self) {
        poll_fn(|cx| if self.is_set(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watchers = self.latch.watchers();
        watchers.remove(self.key);
        if watchers.is_empty() {
            self.latch.unwatched.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until_set(mut watcher: Watcher) {
        watcher.wait().await;
    }

    #[tokio::test]
    async fn a_set_latch_wakes_everybody_and_forgets_who_left() {
        let latch = Latch::default();
        drop(latch.watch());
        let waiting: Vec<_> = (0..100).map(|_| tokio::spawn(until_set(latch.watch()))).collect();
        tokio::task::yield_now().await;
        latch.set();
        latch.unwatched().await;
        for task in waiting {
            task.await.unwrap();
        }
        assert!(latch.0.watchers().is_empty());
        until_set(latch.watch()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn setting_while_others_begin_to_watch_misses_nobody() {
        for _ in 0..1_000 {
            let latch = Latch::default();
            let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(until_set(latch.watch()))).collect();
            latch.set();
            for task in waiting {
                task.await.unwrap();
            }
        }
    }
}

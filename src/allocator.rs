//! The allocator of both binaries, and how memory that nobody needs any more goes back to the system.
//!
//! mimalloc (3.3.2, in libmimalloc-sys 0.1.49) marks pages that became free and gives them back a second
//! later, but only when it is about to take pages in or hand some out. After many streams have closed, a
//! server that is idle or lightly loaded never comes to that: it keeps everything. Besides, a page whose
//! blocks were freed by other threads stays with its own thread until that looks. So every worker of the
//! runtime is asked to look from time to time; the path of a message has no part in it.
//! `MIMALLOC_PURGE_DELAY=0` would do almost as well, for a system call with every large buffer that is freed.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::sleep;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// From one round to the next: any time well below the half minute after which people look would do, and
/// what a busy server frees and takes again within it costs nothing.
const EVERY: Duration = Duration::from_secs(5);

/// Workers that sleep have woken by then, if there is a core for them; whoever is too busy to come is
/// asked in the next round.
const PATIENCE: Duration = Duration::from_millis(5);

/// Counts the rounds.
static ROUND: AtomicUsize = AtomicUsize::new(0);

/// Workers that have looked in this round.
static LOOKED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The last round in which this thread looked.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// Runs for as long as the runtime does that it is spawned on.
pub(crate) async fn give_back_from_time_to_time() {
    let workers = Handle::current().metrics().num_workers();
    loop {
        sleep(EVERY).await;
        LOOKED.store(0, Relaxed);
        ROUND.fetch_add(1, Relaxed);
        for _ in 0..workers {
            tokio::spawn(until_all_have_looked(workers));
        }
    }
}

/// As many of these as there are workers: each keeps one awake until the last has come.
async fn until_all_have_looked(workers: usize) {
    let began = Instant::now();
    look_once_a_round();
    while LOOKED.load(Relaxed) < workers && began.elapsed() < PATIENCE {
        yield_now().await;
        look_once_a_round();
    }
}

fn look_once_a_round() {
    let round = ROUND.load(Relaxed);
    if LAST.replace(round) != round {
        give_back();
        LOOKED.fetch_add(1, Relaxed);
    }
}

/// Gives back what is free of this thread's heap and of the pages that no thread holds. Forced: without,
/// a heap keeps free pages of each size that filled it, a third of what 5,000 streams had taken.
fn give_back() {
    // SAFETY: mi_collect asks nothing of its caller; any thread may call it at any time (mimalloc.h).
    #[expect(unsafe_code, reason = "the only one in the project: no safe crate offers the call")]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

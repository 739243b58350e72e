//! Which core does what, and at which priority.
//!
//! The server has one core, attacker and neighbour share the other. On that one the neighbour comes
//! first: it runs for some µs each millisecond, and what it measures must not be the attacker's turn.

use std::num::NonZeroU64;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_current_timer_slack};
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    server: usize,
    clients: usize,
}

impl Cores {
    /// The first two that this process may use, or its only one for both.
    pub(crate) fn choose() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = cores.next().expect("this runs somewhere");
        Cores { server, clients: cores.next().unwrap_or(server) }
    }

    pub(crate) fn are_two(&self) -> bool {
        self.server != self.clients
    }

    /// Runs `start` on the server's core: what it starts stays there.
    pub(crate) fn on_the_servers<T>(&self, start: impl FnOnce() -> T) -> T {
        pin(self.server);
        let started = start();
        pin(self.clients);
        started
    }

    /// Makes this thread, and those that it starts, clients.
    pub(crate) fn be_a_client(&self) {
        pin(self.clients);
    }
}

fn pin(core: usize) {
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).unwrap();
}

/// This thread gives way to all others, at once: `SCHED_IDLE`, which needs no privilege. The lowest
/// niceness does not do: a thread that wakes beside it may wait for the end of its slice.
pub(crate) fn give_way() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle).unwrap();
}

/// This thread's waits end when they should, not up to 50 µs later.
pub(crate) fn be_on_time() {
    set_current_timer_slack(NonZeroU64::new(1)).unwrap();
}

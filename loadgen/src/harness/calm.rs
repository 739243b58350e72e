//! Waits for a moment in which nobody else takes the cores of a run.
//!
//! In: cores, and for how long to wait in all. Out: nothing; whether the wait was in vain is told by the gates of the run that
//! follows. Looks before a run, never during one, and knows nothing of what it measures: which runs count is not chosen by
//! their figures.
//!
//! What a look sees is what a thread that never sleeps would have missed: other programs and the kernel's own threads, and a
//! host that takes a virtual core away without counting it as stolen.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::child::on_cores;
use crate::drive::Clock;
use crate::record::RUN_DELAY_SHARE_MAX;
use crate::units::Nanos;

/// How long a look is: whoever takes a hundredth of a core in pieces of milliseconds does so several times in it.
const LOOK: Nanos = Nanos(1_000_000_000);

/// From one look that saw others to the next.
const PAUSE: Duration = Duration::from_secs(5);

/// Between two readings of the clock lies less, unless somebody else had the core; the kernel's interrupts are shorter.
const GAP_MIN: Nanos = Nanos(50_000);

/// What others may take of each core: what a shard may wait for its own.
pub const LOST_SHARE_MAX: f64 = RUN_DELAY_SHARE_MAX;

/// What is left of the time for which runs may be waited for; clones share it. By default none.
#[derive(Clone, Debug, Default)]
pub struct Calm(Rc<Cell<Nanos>>);

impl Calm {
    /// For so long in all.
    pub fn within(limit: Nanos) -> Self {
        Calm(Rc::new(Cell::new(limit)))
    }

    /// Returns once others take so little of these cores that a run there can be judged, or no time is left.
    pub async fn wait(&self, cpus: impl IntoIterator<Item = usize>) {
        let mut cpus: Vec<_> = cpus.into_iter().collect();
        cpus.sort_unstable();
        cpus.dedup();
        self.wait_by(async || lost_shares(&cpus).await).await;
    }

    /// `look`: each core, and the share of it that others took.
    async fn wait_by(&self, mut look: impl AsyncFnMut() -> Vec<(usize, f64)>) {
        let mut has_waited = false;
        while self.0.get() > Nanos(0) {
            let lost = look().await;
            let worst = lost.into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
            let Some((cpu, share)) = worst.filter(|(_, share)| *share > LOST_SHARE_MAX) else {
                break;
            };
            if !has_waited {
                let left = self.0.get();
                // stderr may be gone: nobody stops waiting for that.
                _ = writeln!(
                    io::stderr(),
                    "calm: others took {:.2} % of core {cpu}, at most {:.2} % is calm; waiting, {left} at most",
                    100.0 * share,
                    100.0 * LOST_SHARE_MAX
                );
                has_waited = true;
            }
            let pause = PAUSE.min(self.0.get().as_duration());
            tokio::time::sleep(pause).await;
            self.0.set(self.0.get().since(LOOK + Nanos::from(pause)));
            if self.0.get() == Nanos(0) {
                _ = writeln!(io::stderr(), "calm: no more waiting; the gates judge what follows");
            }
        }
    }
}

/// Of each core that can be looked at, all at once.
async fn lost_shares(cpus: &[usize]) -> Vec<(usize, f64)> {
    let looks: Vec<_> = cpus.iter().map(|cpu| (*cpu, look(*cpu))).collect();
    let mut shares = Vec::new();
    for (cpu, seen) in looks {
        // A core that no thread can be put on is for the run to complain about.
        shares.extend(seen.await.ok().map(|share| (cpu, share)));
    }
    shares
}

/// The share of this core that others take from now on for [`LOOK`]. Nothing comes if that cannot be seen.
fn look(cpu: usize) -> oneshot::Receiver<f64> {
    let (seen, share) = oneshot::channel();
    let look = move || {
        let clock = Clock::start();
        let readings = std::iter::repeat_with(|| clock.now());
        // Whoever waits may have been interrupted.
        _ = seen.send(lost_share(readings));
    };
    // If it cannot begin, `seen` is dropped.
    _ = on_cores(&[cpu], || thread::Builder::new().name(format!("look-{cpu}")).spawn(look));
    share
}

/// What lies in gaps, as a share of the first [`LOOK`] of these readings of a clock.
fn lost_share(readings: impl Iterator<Item = Nanos>) -> f64 {
    let (mut before, mut lost) = (Nanos(0), Nanos(0));
    for now in readings {
        let gap = now.since(before);
        if gap > GAP_MIN {
            lost = lost + gap;
        }
        before = now;
        if now >= LOOK {
            break;
        }
    }
    lost.0 as f64 / before.0.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rustix::thread::CpuSet;

    use super::*;

    const MINUTE: Nanos = Nanos(60_000_000_000);

    /// Waits while looks see these shares of two cores, and none after them. Out: how many were left over, and the time.
    async fn waited(calm: &Calm, shares: &[f64]) -> (usize, Duration) {
        let mut shares: VecDeque<f64> = shares.iter().copied().collect();
        let began = tokio::time::Instant::now();
        let look = async || {
            let share = shares.pop_front().expect("no look but these");
            vec![(0, 0.0), (1, share)]
        };
        calm.wait_by(look).await;
        (shares.len(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_calm_machine_is_looked_at_once_and_not_waited_for() {
        let calm = Calm::within(MINUTE);
        assert_eq!(waited(&calm, &[LOST_SHARE_MAX, 0.5]).await, (1, Duration::ZERO));
        assert_eq!(calm.0.get(), MINUTE, "a look that sees nobody costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_waits_until_the_others_are_gone() {
        let calm = Calm::within(MINUTE);
        let (left, time) = waited(&calm, &[0.0201, 0.3, 0.03, 0.02, 0.5]).await;
        assert_eq!((left, time), (1, 3 * PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_run_has_waited_another_cannot() {
        let calm = Calm::within(Nanos(13_000_000_000));
        let same = calm.clone();
        assert_eq!(waited(&calm, &[0.5, 0.0]).await, (0, PAUSE));
        // 7 s are left: one pause of 5 s after a look, and nothing is left of the second.
        let (left, time) = waited(&same, &[0.5, 0.5, 0.5]).await;
        assert_eq!((left, time), (1, PAUSE + Duration::from_secs(1)));
        assert_eq!(waited(&calm, &[0.5]).await, (1, Duration::ZERO), "nobody looks any more");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_who_was_not_asked_to() {
        assert_eq!(waited(&Calm::default(), &[0.5]).await, (1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn cores_that_cannot_be_looked_at_are_not_waited_for() {
        let began = tokio::time::Instant::now();
        Calm::within(MINUTE).wait_by(async || Vec::new()).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[test]
    fn what_lies_between_far_readings_is_lost() {
        let check = |readings: &[u64], expected: f64| {
            let share = lost_share(readings.iter().map(|us| Nanos(us * 1_000)));
            assert!((share - expected).abs() < 1e-9, "{readings:?}: {share}");
        };
        let second: Vec<u64> = (0..=20_000).map(|number| number * 50).collect();
        check(&second, 0.0);
        let without_20_ms: Vec<u64> = (0..=100_000)
            .map(|number| number * 10)
            .filter(|us| !(500_000..520_000).contains(us))
            .collect();
        check(&without_20_ms, 0.02001);
        // Away at the end, too; what is read after a look is no part of it.
        let mut away: Vec<u64> = (0..=40_000).map(|number| number * 10).collect();
        away.extend([1_600_000, 9_000_000]);
        check(&away, 0.75);
        check(&[], 0.0);
    }

    #[tokio::test]
    async fn a_core_that_is_there_is_seen_and_another_is_not() {
        let there = crate::harness::provenance::cpus()[0];
        let shares = lost_shares(&[there, CpuSet::MAX_CPU - 1]).await;
        let [(cpu, share)] = shares[..] else { panic!("{shares:?}") };
        assert!(cpu == there && (0.0..=1.0).contains(&share), "{shares:?}");
    }
}

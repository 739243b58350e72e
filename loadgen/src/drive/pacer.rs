//! Releases messages when they are due: one pacer per shard, for all its streams.
//!
//! In: each stream's [`Schedule`] and its flight. Out: messages queued at their time, or as soon
//! after it as the shard's thread could, and never moved by how long that took.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::clock::Clock;
use super::flight::{Flight, Queued};
use super::recorder::Recorder;
use super::schedule::Schedule;
use super::stream::Shared;
use super::timeline::Timeline;
use super::timer::Timer;
use crate::record::Unstable;
use crate::units::Nanos;

/// So long before a message is due the pacer sleeps no more: it looks at the clock, and lets the shard look at its
/// sockets, again and again. A thread that sleeps is woken 25 to 55 us late (p50; p99 60 to 100), whatever the
/// timer. Open loop, 8 x 125 streams, one core, L p50 with a spin of 0, 50 and 100 us: at 1,000 messages/s 42, 0.36 and
/// 0.25 us, at 20,000 24, 0.31 and 0.29; R p50 at 20,000 95, 47 and 38 us, because an echo finds the shard
/// awake too. At 600,000 no difference is left: what is late there is late by the turn before it.
pub(crate) const SPIN_MAX: Nanos = Nanos(100_000);

/// So long after a message left the pacer sleeps no more either, while echoes are due: a thread that sleeps until its echo
/// comes is woken late, and S would tell of that. S at 200 messages/s on one stream beside a packet capture of the same messages
/// (`.ci/witness`), difference of the medians, median of 3 runs each with 0, 100, 200 and 400 us: 55, 50, 30
/// and 32 us; at p99 with 200 and 400 us: 75 and 29 us.
pub(crate) const SPIN_AFTER_MAX: Nanos = Nanos(400_000);

/// Longest wait: Ctrl-C may have moved the window's end meanwhile.
const NAP_MAX: Nanos = Nanos(50_000_000);

/// Messages released before the shard's other tasks get a turn, when the pacer is behind.
const RELEASED_PER_TURN: usize = 256;

/// Why a pacer stopped before its schedules did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacerError {
    #[error(
        "unstable at this rate: {} messages are due and not echoed, {} into the load, and the backlog \
         has been growing since {}; pass a lower --rate, or a higher --max-backlog to wait longer",
        .0.backlog, .0.at_ns, .0.since_ns
    )]
    Unstable(Unstable),
    #[error("cannot set a timer: {0}")]
    Timer(#[from] io::Error),
}

/// One stream to be paced.
#[derive(Debug)]
pub(crate) struct Paced {
    pub(crate) schedule: Schedule,
    pub(crate) flight: Shared<Flight>,
    /// Lag of the message before.
    pub(crate) lag: Option<Nanos>,
}

/// How a pacer goes about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Messages due and not echoed that end it.
    pub(crate) backlog_max: u64,
    /// How long before a message it sleeps no more.
    pub(crate) spin_max: Nanos,
    /// How long after a message it does not sleep while echoes are due.
    pub(crate) spin_after_max: Nanos,
}

impl Manner {
    /// How the shards of a load do it, which end at a backlog of `backlog_max`.
    pub(crate) fn spinning(backlog_max: u64) -> Self {
        Manner { backlog_max, spin_max: SPIN_MAX, spin_after_max: SPIN_AFTER_MAX }
    }

    /// How the probe does it: it takes no time from others.
    pub(crate) fn sleeping(backlog_max: u64) -> Self {
        Manner { backlog_max, spin_max: Nanos(0), spin_after_max: Nanos(0) }
    }

    /// How long to sleep when the next message is due in `early`, the last one left `since` ago, and `backlog`
    /// messages are due and not echoed. None: not at all.
    fn sleep(&self, early: Nanos, since: Nanos, backlog: u64) -> Option<Nanos> {
        let awaits_echo = backlog > 0 && since < self.spin_after_max;
        (early > self.spin_max && !awaits_echo).then(|| (early - self.spin_max).min(NAP_MAX))
    }
}

/// Releases every message of `streams` at its intended time after the load's begin, until none is left
/// in the window. Err: more than `backlog_max` are due and not echoed.
pub(crate) async fn pace(
    mut streams: Vec<Paced>,
    recorder: &Shared<Recorder>,
    timeline: &Timeline,
    clock: Clock,
    manner: Manner,
) -> Result<(), PacerError> {
    let backlog_max = manner.backlog_max;
    let load_begin = timeline.load_begin();
    let mut timer = Timer::new()?;
    let mut next: BinaryHeap<_> = streams
        .iter_mut()
        .enumerate()
        .filter_map(|(index, stream)| Some(Reverse((load_begin + stream.schedule.next()?, index))))
        .collect();
    let mut released_in_turn = 0;
    // When the backlog was last far from its bound.
    let mut calm = load_begin;
    let mut released = load_begin;
    while let Some(Reverse((intended, index))) = next.peek().copied() {
        let now = clock.now();
        if intended >= timeline.window_end() {
            break;
        }
        if intended > now {
            let backlog = recorder.borrow().backlog;
            match manner.sleep(intended.since(now), now.since(released), backlog) {
                Some(time) => timer.wait(time).await?,
                None => tokio::task::yield_now().await,
            }
            released_in_turn = 0;
            continue;
        }
        next.pop();
        released = now;
        let stream = &mut streams[index];
        let (Queued { is_due, goes_on }, sheds, backlog) = {
            let (mut flight, mut recorder) = (stream.flight.borrow(), recorder.borrow());
            let (before, sheds) = (flight.outstanding(), flight.sheds(now));
            let queued = flight.queue(intended, now);
            recorder.backlog += (flight.outstanding() - before) as u64;
            (queued, sheds, recorder.backlog)
        };
        // Then nothing of the stream follows either.
        if !is_due {
            continue;
        }
        if backlog <= backlog_max / 10 {
            calm = now;
        } else if backlog > backlog_max {
            let since_ns = calm.since(load_begin);
            let unstable = Unstable { backlog, at_ns: now.since(load_begin), since_ns };
            return Err(PacerError::Unstable(unstable));
        }
        let lag = now.since(intended);
        let before = stream.lag.replace(lag);
        let gap_error = before.map(|before| Nanos(before.0.abs_diff(lag.0)));
        {
            let mut recorder = recorder.borrow();
            recorder.due(intended, now, gap_error);
            if sheds {
                recorder.shed(now);
            }
        }
        if let (true, Some(following)) = (goes_on, stream.schedule.next()) {
            next.push(Reverse((load_begin + following, index)));
        }
        released_in_turn += 1;
        if released_in_turn == RELEASED_PER_TURN {
            released_in_turn = 0;
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::flight::Pull;
    use super::*;
    use crate::scenario::{Arrivals, Blocked, Load};
    use crate::units::MessagesPerSecond;

    fn paced(streams: usize, rate: f64, window_end: Nanos) -> (Vec<Paced>, Arc<Timeline>) {
        let timeline = Arc::new(Timeline::unknown());
        timeline.set(Nanos(0), Nanos(0), window_end);
        let rate_messages_per_s = MessagesPerSecond(rate);
        let arrivals = Arrivals::Uniform;
        let load = Load::OpenLoop {
            rate_messages_per_s,
            arrivals,
            in_flight_max: None,
            blocked: Blocked::Queue,
            backlog_max: u64::MAX,
        };
        let stream = |stream| Paced {
            schedule: Schedule::new(arrivals, rate, 1, stream),
            flight: Shared::new(Flight::new(timeline.clone(), &load, u64::MAX)),
            lag: None,
        };
        ((0..streams).map(stream).collect(), timeline.clone())
    }

    fn recorder(timeline: &Arc<Timeline>) -> Shared<Recorder> {
        Shared::new(Recorder::new(timeline.clone(), true))
    }

    #[tokio::test]
    async fn every_message_is_released_at_its_time_or_after_it_and_never_before() {
        let window_end = Nanos(50_000_000);
        let (streams, timeline) = paced(3, 1_000.0, window_end);
        let flights: Vec<_> = streams.iter().map(|stream| stream.flight.clone()).collect();
        let recorder = recorder(&timeline);
        pace(streams, &recorder, &timeline, Clock::start(), Manner::spinning(u64::MAX))
            .await
            .unwrap();
        for flight in flights {
            let mut flight = flight.borrow();
            let mut released = 0;
            while let Pull::Message(_) = flight.pull(|| Nanos(0)) {
                let sent = flight.land().unwrap();
                assert!(sent.queued >= sent.intended, "{sent:?}");
                assert!(sent.intended < window_end);
                released += 1;
            }
            assert_eq!(released, 50);
        }
    }

    #[test]
    fn it_sleeps_far_from_the_next_message_and_when_no_echo_is_to_be_expected_soon() {
        let us = |us: u64| Nanos(us * 1_000);
        let load = Manner::spinning(u64::MAX);
        for (early_us, since_us, backlog, expected_us) in [
            (5_000, 10, 0, Some(4_900)),
            (100, 4_000, 0, None),
            // An echo is due, and due soon: it finds the shard awake.
            (5_000, 10, 1, None),
            (5_000, 399, 1, None),
            // A slow server's echo is slept for.
            (5_000, 400, 1, Some(4_900)),
            (100, 400, 1, None),
            (1_000_000, 400, 1, Some(50_000)),
        ] {
            let slept = load.sleep(us(early_us), us(since_us), backlog);
            assert_eq!(slept, expected_us.map(us), "{early_us} {since_us} {backlog}");
        }
        let probe = Manner::sleeping(u64::MAX);
        assert_eq!(probe.sleep(us(5), us(1), 1), Some(us(5)));
    }

    #[tokio::test]
    async fn gaps_beyond_the_window_are_not_waited_for() {
        let (streams, timeline) = paced(3, 0.001, Nanos(1_000_000));
        let recorder = recorder(&timeline);
        pace(streams, &recorder, &timeline, Clock::start(), Manner::spinning(u64::MAX))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn an_end_that_is_moved_is_noticed() {
        let (streams, timeline) = paced(3, 0.001, Nanos::NEVER);
        let recorder = recorder(&timeline);
        let pacing =
            pace(streams, &recorder, &timeline, Clock::start(), Manner::spinning(u64::MAX));
        let (paced, ()) = tokio::join!(pacing, async { timeline.end_by(Nanos(1)) });
        paced.unwrap();
    }

    #[tokio::test]
    async fn messages_that_pile_up_end_the_pacing() {
        let (streams, timeline) = paced(100, 1e9, Nanos::NEVER);
        let recorder = recorder(&timeline);
        let error = pace(streams, &recorder, &timeline, Clock::start(), Manner::spinning(100_000))
            .await
            .unwrap_err();
        let PacerError::Unstable(unstable) = error else { panic!("{error}") };
        assert_eq!(unstable.backlog, 100_001);
        assert!(unstable.since_ns < unstable.at_ns, "{unstable:?}");
    }

    #[tokio::test]
    async fn a_stream_without_a_part_of_the_messages_has_none_that_is_due() {
        let (mut streams, timeline) = paced(3, 1_000.0, Nanos(20_000_000));
        let load = Load::OpenLoop {
            rate_messages_per_s: MessagesPerSecond(1_000.0),
            arrivals: Arrivals::Uniform,
            in_flight_max: None,
            blocked: Blocked::Queue,
            backlog_max: u64::MAX,
        };
        for (stream, quota) in streams.iter_mut().zip([0, 1, 2]) {
            stream.flight = Shared::new(Flight::new(timeline.clone(), &load, quota));
        }
        let recorder = recorder(&timeline);
        let manner = Manner::spinning(u64::MAX);
        pace(streams, &recorder, &timeline, Clock::start(), manner).await.unwrap();
        let (seconds, _) = recorder.borrow().take_rest();
        assert_eq!(seconds.iter().map(|second| second.due).sum::<u64>(), 3);
    }
}

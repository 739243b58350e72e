//! Releases messages when they are due: one pacer per shard, for all its streams.
//!
//! In: each stream's [`Schedule`] and its flight. Out: messages queued at their time, or as soon
//! after it as the shard's thread could, and never moved by how long that took.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::clock::Clock;
use super::flight::Flight;
use super::schedule::Schedule;
use super::stream::Shared;
use super::timer::Timer;
use crate::units::Nanos;

/// Shortest wait: messages due within it leave together, a little late rather than each with two
/// system calls of its own. Their lag is recorded as such.
const GRAIN: Nanos = Nanos(20_000);

/// Messages released before the shard's other tasks get a turn, when the pacer is behind.
const RELEASED_PER_TURN: usize = 256;

/// Messages that may wait on the streams of one shard: 24 bytes each.
const BACKLOG_MAX: usize = 8_000_000;

/// Why a pacer stopped before its schedules did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacerError {
    #[error(
        "{backlog} messages wait on one stream alone: the server does not keep up; lower --rate or bound the load with --in-flight and a closed loop"
    )]
    Backlog { backlog: usize },
    #[error("cannot set a timer: {0}")]
    Timer(#[from] io::Error),
}

/// One stream to be paced.
#[derive(Debug)]
pub(crate) struct Paced {
    pub(crate) schedule: Schedule,
    pub(crate) flight: Shared<Flight>,
}

/// Releases every message of `streams` at `load_begin` plus its intended time, until none is left.
pub(crate) async fn pace(
    mut streams: Vec<Paced>,
    load_begin: Nanos,
    clock: Clock,
) -> Result<(), PacerError> {
    let mut timer = Timer::new()?;
    let backlog_max = BACKLOG_MAX / streams.len().max(1);
    let mut next: BinaryHeap<_> = streams
        .iter_mut()
        .enumerate()
        .filter_map(|(index, stream)| Some(Reverse((load_begin + stream.schedule.next()?, index))))
        .collect();
    let mut released = 0;
    while let Some(Reverse((intended, index))) = next.peek().copied() {
        let now = clock.now();
        if intended > now {
            timer.wait(intended.since(now).max(GRAIN)).await?;
            released = 0;
            continue;
        }
        next.pop();
        let stream = &mut streams[index];
        let (goes_on, backlog) = {
            let mut flight = stream.flight.lock();
            (flight.queue(intended, now), flight.backlog())
        };
        if backlog > backlog_max {
            return Err(PacerError::Backlog { backlog });
        }
        if let (true, Some(following)) = (goes_on, stream.schedule.next()) {
            next.push(Reverse((load_begin + following, index)));
        }
        released += 1;
        if released % RELEASED_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

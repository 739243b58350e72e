//! What a connection does with its streams between reading and writing: which are polled and in what order, how they
//! begin, and how they end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::task::Context;

use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::fields;
use super::super::frame::ErrorCode;
use super::super::guard::catch_unwind;
use super::super::stream::{BodyError, Key};
use super::super::wire::{OwnTurn, Wire};
use super::{Connection, Lost, Opening, Phase, Role, Slot, Turn, now};

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    /// Polls what is ready. Out: whether anything was.
    pub(super) fn poll_streams(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.bury() {
            // None is begun before those are gone whose places it takes.
            return true;
        }
        self.take_wakes();
        self.give_places();
        let streams = &self.streams;
        self.wire.purge(streams.len(), |key| {
            streams.get(key.slot as usize).is_some_and(|slot| slot.core.key == *key)
        });
        let mut polled = self.open_streams(cx);
        // Those that queue up again meanwhile wait for the next lap.
        let (mut ready, mut blocked) = (self.wire.runnable.len(), self.wire.blocked.len());
        let mut polls = 0;
        // Once for all of the lap, whichever queue its first stream comes from.
        let mut is_timed = false;
        self.wire.steps = 0;
        while self.wire.has_output_room()
            // Reading has stopped until all has left: nothing is added that could prevent it for ever.
            && !self.wire.control_is_full()
            && tokio::task::coop::has_budget_remaining()
        {
            // Who has waited for what all share goes first, and queues behind the others as soon as it has had its turn: those that
            // may always go on would leave it nothing, be it window or output.
            let (key, queue) = if blocked > 0 && self.wire.connection_room() > 0 {
                blocked -= 1;
                (self.wire.blocked.pop_front(), Queue::Blocked)
            } else if let Some(key) = self.wire.unpark() {
                (Some(key), Queue::Parked)
            } else if ready > 0 {
                ready -= 1;
                (self.wire.runnable.pop_front(), Queue::Runnable)
            } else {
                break;
            };
            let Some(key) = key else { continue };
            if !R::IS_SERVER && !std::mem::replace(&mut is_timed, true) {
                self.wire.polled_at = now();
            }
            polled |= self.poll_stream(key, queue);
            polls += 1;
            if self.wire.steps >= STEPS_PER_LOOK {
                (polls, self.wire.steps) = (POLLS_PER_LOOK, 0);
            }
            if self.has_had_its_time(&mut polls, POLLS_PER_LOOK) {
                // Those that are left have their next turn.
                polled = true;
                break;
            }
        }
        polled
    }

    fn take_wakes(&mut self) {
        let mut woken = std::mem::take(&mut self.woken);
        if self.wakes.take(&mut woken) {
            for key in woken.drain(..) {
                if let Some(Slot { core, .. }) = self.streams.get_mut(key.slot as usize)
                    && core.key == key
                {
                    self.wire.run(core);
                }
            }
        }
        self.woken = woken;
    }

    /// Lets as many streams go on that wait for a place, or to begin, as there are places.
    fn give_places(&mut self) {
        if !self.wire.placeless.is_empty() {
            let places = self.role.free_places().saturating_sub(self.wire.places_given);
            self.wire.places_given +=
                self.go_on(places, |wire| &mut wire.placeless, OwnTurn::HasPlace);
        }
        if !self.wire.unbegun.is_empty() {
            let places = self.role.free_handlers().saturating_sub(self.wire.beginnings_given);
            self.wire.beginnings_given +=
                self.go_on(places, |wire| &mut wire.unbegun, OwnTurn::MayBegin);
            if self.wire.unbegun.is_empty() {
                self.role.all_have_begun();
            }
        }
    }

    /// Runs `places` streams of a queue, and gives them what they wait for; those that are gone take none. Out: how many have it
    /// now.
    fn go_on(
        &mut self,
        places: usize,
        queue: fn(&mut Wire) -> &mut VecDeque<Key>,
        gives: OwnTurn,
    ) -> usize {
        let mut given = 0;
        while given < places
            && let Some(key) = queue(&mut self.wire).pop_front()
        {
            if let Some(Slot { core, .. }) = self.streams.get_mut(key.slot as usize)
                && core.key == key
                && !core.is_dead
            {
                core.turn = gives;
                self.wire.run(core);
                given += 1;
            }
        }
        given
    }

    /// Says whether there was a stream to poll. `queue`: which one it left; it may stand in others still.
    fn poll_stream(&mut self, key: Key, queue: Queue) -> bool {
        let Some(Slot { core, app }) = self.streams.get_mut(key.slot as usize) else {
            return false;
        };
        if core.key != key || core.is_dead {
            return false;
        }
        match queue {
            Queue::Runnable => core.is_queued = false,
            Queue::Blocked => core.is_blocked = false,
            Queue::Parked => core.is_parked = false,
        }
        core.later_since = None;
        core.is_set_aside = false;
        match self.role.poll(core, app, &mut self.wire) {
            Turn::Wait => {}
            Turn::Again => self.wire.run(core),
            Turn::Later => self.wire.defer(core),
            Turn::Over => {
                self.wire.floods.ended();
                self.finish(key.slot);
            }
        }
        true
    }

    /// A stream is over, and nothing of it is left in the protocol.
    pub(super) fn finish(&mut self, slot: u32) {
        let Slot { mut core, app } = self.streams.remove(slot as usize);
        self.wire.abandon(&mut core);
        self.forget(core.id, core.deadline.take());
        if core.remote_closed {
            self.remember_closed(core.id);
        }
        self.wire.buffered -= R::buffered(&app);
        self.clocks.last_busy = self.wire.now;
        self.counters.stream_closed();
        self.drop_guarded(app);
    }

    /// Drops the applications of streams that were reset. Out: whether all are gone; else the turn has had its time.
    fn bury(&mut self) -> bool {
        let mut buried = 0;
        while let Some(slot) = self.dead.pop() {
            let Slot { app, .. } = self.streams.remove(slot as usize);
            self.clocks.last_busy = self.wire.now;
            self.counters.stream_closed();
            self.drop_guarded(app);
            buried += 1;
            if self.has_had_its_time(&mut buried, ENDED_PER_LOOK) {
                return self.dead.is_empty();
            }
        }
        if self.streams.is_empty() && self.streams.capacity() > 0 {
            self.streams = Slab::new();
            self.index = HashMap::default();
            self.dead = Vec::new();
        }
        true
    }

    /// Whether the turn should go on later. Looks at the clock after so much `work`, and begins to count anew.
    pub(super) fn has_had_its_time(&self, work: &mut usize, per_look: usize) -> bool {
        #[cfg(test)]
        if self.is_hurried {
            return true;
        }
        if *work < per_look {
            return false;
        }
        *work = 0;
        now() >= self.turn_ends
    }

    /// User code may panic when it is dropped; that costs nobody else anything.
    pub(super) fn drop_guarded(&self, app: R::App) {
        if catch_unwind(AssertUnwindSafe(|| drop(app))).is_err() {
            self.counters.panicked();
        }
    }

    /// All streams: the connection is gone. What they are told is why the peer ended it, if it has said so.
    pub(super) fn lose_connection(&mut self) {
        let farewell = self.farewell.take();
        self.lose_streams(&farewell.map_or(BodyError::ConnectionLost, |farewell| *farewell));
    }

    /// All streams: the connection is gone, or as good as. Those that the turn has no time for are told in the next ones.
    pub(super) fn lose_streams(&mut self, error: &BodyError) {
        self.role.refuse_openings(error.clone());
        self.index = HashMap::default();
        self.deadlines = BTreeSet::new();
        self.dead = Vec::new();
        self.wire.buffered = 0;
        if !self.streams.is_empty() {
            debug_assert!(self.lost.is_none(), "no stream begins after that");
            let streams = std::mem::take(&mut self.streams);
            self.lost = Some(Box::new(Lost { streams, at: 0, error: error.clone() }));
        }
        self.tell_lost();
    }

    /// Tells streams that they are lost, and drops them. Out: whether all were told; else the turn has had its time.
    pub(super) fn tell_lost(&mut self) -> bool {
        let Some(mut lost) = self.lost.take() else { return true };
        let mut told = 0;
        while !lost.streams.is_empty() {
            let slot = lost.streams.try_remove(lost.at);
            lost.at += 1;
            let Some(Slot { mut core, mut app }) = slot else { continue };
            self.wire.abandon(&mut core);
            if !core.is_dead {
                self.role.broken(&mut app, lost.error.clone());
            }
            self.counters.stream_closed();
            self.drop_guarded(app);
            told += 1;
            if !lost.streams.is_empty() && self.has_had_its_time(&mut told, ENDED_PER_LOOK) {
                self.lost = Some(lost);
                return false;
            }
        }
        true
    }

    /// Opens what waits to be opened, as far as the peer's limit has room. Out: whether any was.
    fn open_streams(&mut self, cx: &mut Context<'_>) -> bool {
        if R::IS_SERVER || self.phase != Phase::Open || self.peer_left {
            return false;
        }
        let mut opened = false;
        loop {
            if self.next_own_stream > STREAM_ID_MAX {
                // A new connection has new ones (RFC 9113, 5.1.1).
                self.role.refuse_openings(BodyError::GoAway(ErrorCode::NO_ERROR));
                break;
            }
            let open = self.streams.len() as u64;
            let has_room = open < u64::from(self.wire.peer.max_concurrent_streams)
                && self.wire.has_output_room();
            let key = self.next_key();
            let Some(opening) = self.role.poll_open(key, &self.wakes, has_room, cx) else {
                break;
            };
            let Opening { request, mut app } = opening;
            opened = true;
            let bytes = fields::list_bytes(fields::pseudo_of_request(&request), request.headers());
            let bytes_max = self.wire.peer.header_list_bytes_max;
            if bytes > u64::from(bytes_max) {
                // The peer would break it off, or the connection, and say less about why.
                self.role.broken(&mut app, BodyError::HeadTooLarge { bytes, bytes_max });
                continue;
            }
            let id = self.next_own_stream;
            self.next_own_stream += 2;
            let mut core = self.core(id, key);
            self.wire.request(&mut core, &request, false);
            self.insert(core, app);
        }
        opened
    }
}

/// The last id that a client may give (RFC 9113, 5.1.1).
const STREAM_ID_MAX: u32 = (1 << 31) - 1;

/// Where a stream waits to be polled.
#[derive(Clone, Copy, Debug)]
enum Queue {
    /// It may go on.
    Runnable,
    /// For the connection's window.
    Blocked,
    /// For less to be pending.
    Parked,
}

/// Streams that are polled between two looks at the clock: it costs what a tenth of a poll does.
const POLLS_PER_LOOK: usize = 32;

/// Polls of user code between them; most streams need two or three.
const STEPS_PER_LOOK: usize = 256;

/// Streams that end together between two looks at the clock (results/2026-11-28-hostile, rows `vanishing`,
/// `cancelled-at-once` and `expiring-at-once`).
pub(super) const ENDED_PER_LOOK: usize = 64;

//! What must hold of a connection between any two of its turns; tests look after each.

use std::collections::HashMap;

use super::{Connection, Handshake, Phase, Role, Slot};
use crate::transport::flow::WINDOW_BYTES_DEFAULT;
use crate::transport::placement::POLLS_MAX;
use crate::transport::stream::Key;
use crate::transport::wire::{Core, OwnTurn};

/// A connection's books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) streams: usize,
    pub(crate) buffered: usize,
    /// What the peer may still send, by the connection's window.
    pub(crate) recv_open: i64,
    /// What we may still send, by the connection's window.
    pub(crate) send_room: i64,
    pub(crate) output_bytes: usize,
}

impl<IO, R: Role> Connection<IO, R> {
    /// Whether the last turn asked for another one. The runtime's way to give it is no wake in a test.
    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// The books, checked after a turn that woke itself, or did not. A turn that was the last is as good as one that did.
    pub(crate) fn audit(&self, is_woken: bool) -> Books {
        let wire = &self.wire;
        let live = || self.streams.iter().filter(|(_, slot)| !slot.core.is_dead);
        assert_eq!(self.index.len(), live().count(), "every live stream has an id");
        let buffered: usize = live().map(|(_, slot)| R::buffered(&slot.app)).sum();
        assert_eq!(wire.buffered, buffered, "bytes buffered are those of the inboxes");
        if !is_woken && !self.goes_on && !matches!(self.phase, Phase::Closing | Phase::Lingering) {
            let open = wire.recv.open() as usize;
            let size = wire.limits.connection_flow_window_bytes as usize;
            let owed = size.saturating_sub(open + buffered);
            assert!(
                owed == 0 || owed < open || wire.is_scarce,
                "nobody grants the connection's window: {open} of {size} are open, {owed} are owed"
            );
        }
        if self.role.is_on_tasks() && self.streams.is_empty() && self.lost.is_none() {
            assert_eq!(self.role.free_places(), POLLS_MAX, "a body is asked that is gone");
        }
        let lost = || self.lost.iter().flat_map(|lost| &lost.streams).map(|(_, slot)| slot);
        let kept = || live().map(|(_, slot)| slot).chain(lost().filter(|slot| !slot.core.is_dead));
        let pieces: usize = kept().map(|slot| slot.core.piece_bytes).sum();
        assert_eq!(wire.pending, pieces + wire.orphaned(), "bytes pending are those of the pieces");
        let heads: usize = kept().map(|slot| slot.core.head_bytes + slot.core.trailer_bytes).sum();
        assert_eq!(wire.heads, heads, "bytes of heads are those of the streams");
        let given = |turn| kept().filter(|slot| slot.core.turn == turn).count();
        assert_eq!(wire.places_given, given(OwnTurn::HasPlace), "places are those of streams");
        assert_eq!(wire.beginnings_given, given(OwnTurn::MayBegin), "nobody else may begin");
        let queued = counted(&wire.runnable);
        let blocked = counted(&wire.blocked);
        let parked = counted(&wire.parked);
        // What the turn left over has its next turn, or waits for the writer.
        let goes_on = is_woken || self.goes_on || !wire.out.is_empty();
        for (at, Slot { core, app }) in live() {
            let id = core.id;
            assert_eq!(self.index.get(&id).map(|slot| *slot as usize), Some(at), "stream {id}");
            let is_once = |queue: &HashMap<(u32, u32), usize>, is_in: bool| {
                let found = queue.get(&(core.key.slot, core.key.generation)).copied();
                found.unwrap_or(0) == usize::from(is_in)
            };
            assert!(
                is_once(&queued, core.is_queued),
                "stream {id} is to be polled once: {}",
                told(core)
            );
            assert!(
                is_once(&blocked, core.is_blocked),
                "stream {id} is blocked once: {}",
                told(core)
            );
            assert!(is_once(&parked, core.is_parked), "stream {id} is parked once: {}", told(core));
            assert!(
                goes_on || !core.is_set_aside || !wire.has_pending_room(core),
                "nobody unparks stream {id}: {}",
                told(core)
            );
            assert!(
                goes_on || core.turn != OwnTurn::ForPlace || self.role.free_places() == 0,
                "nobody gives stream {id} a place: {}",
                told(core)
            );
            assert!(
                goes_on || !core.is_queued,
                "nobody wakes the connection for stream {id}: {}",
                told(core)
            );
            // What broke was given up as a whole, and a body may still have taken of it.
            let unread = if self.stopped { 0 } else { R::unread_bytes(app) };
            assert_eq!(R::buffered(app), unread, "unread bytes of stream {id}: {}", told(core));
            if !self.stopped {
                let (open, owed) = (core.recv.balance(), i64::from(core.recv.owed()));
                let buffered = i64::try_from(R::buffered(app)).expect("small");
                // Until the peer acknowledges, its window is the default one, whatever we aim at.
                let not_yet = match self.handshake {
                    Handshake::Done => 0,
                    _ => {
                        i64::from(WINDOW_BYTES_DEFAULT)
                            - i64::from(wire.limits.stream_flow_window_bytes)
                    }
                };
                let target = i64::from(core.recv_target) + not_yet;
                assert_eq!(open + owed + buffered, target, "window of stream {id}: {}", told(core));
            }
            if !core.is_flushed() && !core.is_queued {
                assert!(
                    core.is_blocked && goes_on || wire.room(core) == 0,
                    "stream {id} has something to send, and room: {}",
                    told(core)
                );
                assert!(
                    core.stalled_since.is_some(),
                    "stream {id} waits for no window: {}",
                    told(core)
                );
                // While its own window is shut, that is what it waits for: whoever opens it runs it.
                let is_shut = core.send.room(wire.peer.initial_flow_window_bytes) <= 0;
                let waits = is_shut || wire.connection_room() > 0 || core.is_blocked;
                assert!(
                    waits,
                    "stream {id} waits for the connection's window unseen: {}",
                    told(core)
                );
            }
        }
        let bound = |queue: usize| queue <= 2 * self.streams.len() + 1_000;
        assert!(bound(wire.runnable.len()), "{} to be polled", wire.runnable.len());
        assert!(bound(wire.blocked.len()), "{} blocked", wire.blocked.len());
        assert!(bound(wire.parked.len()), "{} parked", wire.parked.len());
        let deadlines = live().filter(|(_, slot)| slot.core.deadline.is_some()).count();
        assert_eq!(self.deadlines.len(), deadlines, "deadlines are those of live streams");
        if matches!(self.handshake, Handshake::Done) {
            let size = self.wire.limits.connection_flow_window_bytes.max(65_535) as usize;
            let given = wire.recv.open() as usize + buffered;
            assert!(given <= size, "the connection's window: {given} of {size}");
        }
        Books {
            streams: self.streams.len(),
            buffered: wire.buffered,
            recv_open: wire.recv.balance(),
            send_room: wire.connection_room(),
            output_bytes: wire.out.len(),
        }
    }

    /// Streams that were not let go yet, dead ones and those that are lost among them.
    pub(crate) fn kept(&self) -> usize {
        self.streams.len() + self.lost.as_ref().map_or(0, |lost| lost.streams.len())
    }
}

/// A stream's state without its bytes.
fn told(core: &Core) -> String {
    let Core { is_queued, is_blocked, remote_closed, local_closed, recv_target, .. } = core;
    format!(
        "queued {is_queued}, blocked {is_blocked}, remote closed {remote_closed}, local closed \
         {local_closed}, {:?} of {recv_target}, {:?}, {} bytes and {:?} to send",
        core.recv,
        core.send,
        core.pending.len(),
        core.pending_end,
    )
}

fn counted<'a>(queue: impl IntoIterator<Item = &'a Key>) -> HashMap<(u32, u32), usize> {
    let mut counted = HashMap::new();
    for Key { slot, generation } in queue {
        *counted.entry((*slot, *generation)).or_default() += 1;
    }
    counted
}

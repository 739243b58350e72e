//! What a connection and all its streams share: output, windows, header tables, the peer's settings.
//!
//! In: what is to be sent. Out: frames in the [`Output`], as far as windows allow; the rest waits in
//! its stream's [`Core`]. Reads no clock and no socket.

mod sending;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use super::flow::{RecvWindow, SendWindow, WINDOW_BYTES_DEFAULT};
use super::frame::{self, FRAME_BYTES_MAX, Fault};
use super::hpack;
use super::limits::{FloodGuard, FloodKind, Limits};
use super::output::Output;
use super::stream::Key;

/// Our encoder's table: a few dozen fields that repeat; the peer may allow less.
const ENCODER_TABLE_BYTES: usize = 4_096;

/// Our decoder's table: HTTP/2's default, which needs no announcement.
const DECODER_TABLE_BYTES: usize = 4_096;

/// A peer whose streams have smaller windows than this does not want to be answered.
const WINDOW_BYTES_USEFUL: usize = 1_024;

/// Queues of more streams than that are freed when they are empty.
pub(crate) const QUEUE_KEPT: usize = 128;

/// Streams that we open at most before the peer's first SETTINGS came. They cost nobody a round trip,
/// and nearly every server takes them: RFC 9113, 6.5.2 recommends no limit below it. A server that has
/// just that limit refuses what is opened beyond.
const STREAMS_BEFORE_SETTINGS: u32 = 100;

/// What the peer told us about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerSettings {
    pub(crate) initial_flow_window_bytes: u32,
    pub(crate) max_concurrent_streams: u32,
    pub(crate) header_list_bytes_max: u32,
}

impl Default for PeerSettings {
    fn default() -> Self {
        PeerSettings {
            initial_flow_window_bytes: WINDOW_BYTES_DEFAULT,
            max_concurrent_streams: STREAMS_BEFORE_SETTINGS,
            header_list_bytes_max: u32::MAX,
        }
    }
}

/// The shared part of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) limits: Arc<Limits>,
    pub(crate) out: Output,
    pub(crate) peer: PeerSettings,
    pub(crate) encoder: hpack::Encoder,
    pub(crate) decoder: hpack::Decoder,
    pub(crate) floods: FloodGuard,
    /// When this turn began, or its last read returned; the only time that frames know.
    pub(crate) now: Instant,
    /// Polls of user code since the clock was last looked at.
    pub(crate) steps: usize,
    /// When streams were last polled; kept up to date for clients only.
    pub(crate) polled_at: Instant,
    send: SendWindow,
    pub(crate) recv: RecvWindow,
    /// Bytes in all inboxes.
    pub(crate) buffered: usize,
    /// Bytes of requests' heads that no handler was given yet, and of trailers.
    pub(crate) heads: usize,
    /// Memory is scarce: nothing more is granted.
    pub(crate) is_scarce: bool,
    /// Since when the connection's window was not granted for that reason.
    pub(crate) withheld_since: Option<Instant>,
    /// Since when that window is shut for that reason.
    pub(crate) starved_since: Option<Instant>,
    /// Bytes of the pieces of bodies that did not wholly fit into their windows, and of those that
    /// have left for the output meanwhile, where a last part keeps the whole piece alive.
    pub(crate) pending: usize,
    /// The latter: the newer ones ...
    orphaned: usize,
    /// ... and those that were there when `orphaned` began anew.
    orphaned_before: usize,
    /// Bytes of control replies that may still be in the output: the newer ones ...
    control_bytes: usize,
    /// ... and those that were there when `control_bytes` began anew,
    control_bytes_before: usize,
    /// which have all left when so many bytes have.
    bytes_before: usize,
    /// Streams to poll; some may be gone by the time of their turn.
    pub(crate) runnable: VecDeque<Key>,
    /// Streams that are to be asked again after a while, unless they are polled before.
    pub(crate) later: VecDeque<Key>,
    /// When the oldest of them was deferred, or last looked at.
    pub(crate) later_begun: Option<Instant>,
    /// Streams with something to send that wait for the connection's window.
    pub(crate) blocked: VecDeque<Key>,
    /// Streams whose bodies are not polled while too much is `pending`.
    pub(crate) parked: VecDeque<Key>,
    /// Streams whose bodies run on tasks, too many of which have been asked.
    pub(crate) placeless: VecDeque<Key>,
    /// Streams whose handler has not begun, because as many as may be are alive.
    pub(crate) unbegun: VecDeque<Key>,
    /// Streams that have been given a place, and have not had the turn in which to use it.
    pub(crate) places_given: usize,
    /// The same for those that may begin.
    pub(crate) beginnings_given: usize,
    /// What we had granted to streams that we ended and that went on: so much may still be on its way.
    gone_credit: u64,
    /// So many of those that are parked are looked at although it still is: the connection's window has opened.
    unpark_left: usize,
    /// Those of `pending` that were taken although there was no room.
    overshoot: usize,
    /// Bytes by which the windows of all streams have grown.
    widened: usize,
}

/// What became of what waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// All of it has left for the output.
    All,
    /// A window is shut.
    Shut,
    /// The output is full.
    Full,
}

/// One stream's part of the protocol.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) id: u32,
    pub(crate) key: Key,
    pub(crate) send: SendWindow,
    pub(crate) recv: RecvWindow,
    /// What `recv` aims at.
    pub(crate) recv_target: u32,
    /// It is in `runnable`.
    pub(crate) is_queued: bool,
    /// It is in `blocked`.
    pub(crate) is_blocked: bool,
    /// It is in `parked`.
    pub(crate) is_parked: bool,
    /// That is what it waits for: it was not polled since.
    pub(crate) is_set_aside: bool,
    /// It is in `later`.
    pub(crate) is_later: bool,
    pub(crate) turn: OwnTurn,
    /// It is polled because it was deferred.
    pub(crate) was_deferred: bool,
    /// Since when it is to be asked again; a poll settles that.
    pub(crate) later_since: Option<Instant>,
    /// The peer has ended its half.
    pub(crate) remote_closed: bool,
    /// We have ended ours.
    pub(crate) local_closed: bool,
    /// We have sent headers.
    pub(crate) headers_sent: bool,
    /// It was reset, by either side: its application is to be dropped.
    pub(crate) is_dead: bool,
    /// RST_STREAM has left.
    pub(crate) reset_sent: bool,
    /// What its head counts in [`Wire::heads`], until its handler is called.
    pub(crate) head_bytes: usize,
    /// What its trailers count there.
    pub(crate) trailer_bytes: usize,
    /// What content-length leaves to come.
    pub(crate) content_left: Option<u64>,
    /// What did not fit into the windows.
    pub(crate) pending: Bytes,
    /// What the piece that `pending` is the rest of counts in [`Wire::pending`].
    pub(crate) piece_bytes: usize,
    /// They are a part of the wire's overshoot.
    pub(crate) overshoots: bool,
    /// What follows `pending`.
    pub(crate) pending_end: Option<Ending>,
    /// It is polled when a window opens.
    pub(crate) is_waiting: bool,
    /// Its body is to be polled once although the window is shut; a client's exchange is, or was and has more.
    pub(crate) is_asked: bool,
    /// Since when it waits for a window, or was last asked whether it needs one.
    pub(crate) stalled_since: Option<Instant>,
    /// When a frame last came or left.
    pub(crate) last_frame: Instant,
    /// When something was last taken out of the inbox, or came into an empty one.
    pub(crate) unread_since: Instant,
    /// When the stream must be over.
    pub(crate) deadline: Option<Instant>,
}

/// Whether a stream with a task of its own waits for what there are few of: to begin, and later for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnTurn {
    NotAwaited,
    /// It is in `unbegun`.
    ToBegin,
    /// It is one of [`Wire::beginnings_given`].
    MayBegin,
    /// It is in `placeless`.
    ForPlace,
    /// It is one of [`Wire::places_given`].
    HasPlace,
}

/// How our half of a stream ends.
#[derive(Debug)]
pub(crate) enum Ending {
    Data,
    Trailers(Box<HeaderMap>),
}

impl Core {
    pub(crate) fn new(id: u32, key: Key, wire: &Wire, recv: u32) -> Self {
        Core {
            id,
            key,
            send: SendWindow::default(),
            recv: RecvWindow::new(recv),
            recv_target: recv,
            is_queued: false,
            is_blocked: false,
            is_parked: false,
            is_set_aside: false,
            is_later: false,
            turn: OwnTurn::NotAwaited,
            was_deferred: false,
            later_since: None,
            remote_closed: false,
            local_closed: false,
            headers_sent: false,
            is_dead: false,
            reset_sent: false,
            head_bytes: 0,
            trailer_bytes: 0,
            content_left: None,
            pending: Bytes::new(),
            piece_bytes: 0,
            overshoots: false,
            pending_end: None,
            is_waiting: false,
            is_asked: false,
            stalled_since: None,
            last_frame: wire.now,
            unread_since: wire.now,
            deadline: None,
        }
    }

    /// Whether what was to be sent has left for the output.
    pub(crate) fn is_flushed(&self) -> bool {
        self.pending.is_empty() && self.pending_end.is_none()
    }
}

impl Wire {
    pub(crate) fn new(limits: Arc<Limits>, now: Instant) -> Self {
        let mut decoder = hpack::Decoder::new(DECODER_TABLE_BYTES);
        decoder.limit_fields(limits.header_fields_max());
        Wire {
            limits,
            out: Output::default(),
            peer: PeerSettings::default(),
            encoder: hpack::Encoder::new(ENCODER_TABLE_BYTES),
            decoder,
            floods: FloodGuard::default(),
            now,
            steps: 0,
            polled_at: now,
            send: SendWindow::default(),
            recv: RecvWindow::new(WINDOW_BYTES_DEFAULT),
            buffered: 0,
            heads: 0,
            is_scarce: false,
            withheld_since: None,
            starved_since: None,
            pending: 0,
            orphaned: 0,
            orphaned_before: 0,
            control_bytes: 0,
            control_bytes_before: 0,
            bytes_before: 0,
            runnable: VecDeque::new(),
            later: VecDeque::new(),
            later_begun: None,
            blocked: VecDeque::new(),
            parked: VecDeque::new(),
            placeless: VecDeque::new(),
            unbegun: VecDeque::new(),
            places_given: 0,
            beginnings_given: 0,
            gone_credit: 0,
            unpark_left: 0,
            overshoot: 0,
            widened: 0,
        }
    }

    /// Puts the stream into the queue of those to poll, once.
    pub(crate) fn run(&mut self, core: &mut Core) {
        if !core.is_queued {
            core.is_queued = true;
            self.runnable.push_back(core.key);
        }
    }

    /// Puts the stream into the queue of those to ask again after a while.
    pub(crate) fn defer(&mut self, core: &mut Core) {
        self.defer_since(core, self.now);
    }

    pub(crate) fn defer_since(&mut self, core: &mut Core, since: Instant) {
        core.later_since = Some(since);
        self.later_begun.get_or_insert(self.now);
        if !core.is_later {
            core.is_later = true;
            self.later.push_back(core.key);
        }
    }

    /// Charges one useless thing of the peer.
    pub(crate) fn charge(&mut self, flood: FloodKind) -> Result<(), Fault> {
        self.floods.charge(&self.limits.floods, flood, self.now)
    }

    /// Appends a reply that the peer can provoke as often as it likes.
    pub(crate) fn control(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.out.tail.len();
        write(&mut self.out.tail);
        self.control_bytes += self.out.tail.len() - before;
    }

    /// Lets `write` append whatever the peer provoked, and counts it as such a reply.
    pub(crate) fn reply(&mut self, write: impl FnOnce(&mut Wire)) {
        let before = self.out.len();
        let counted = self.control_bytes;
        write(self);
        self.control_bytes = counted + self.out.len().saturating_sub(before);
    }

    /// Whether the peer provokes replies faster than it reads them.
    pub(crate) fn control_is_full(&self) -> bool {
        let waiting = self.control_bytes_before + self.control_bytes;
        waiting >= self.limits.control_bytes_max && !self.out.is_empty()
    }

    /// `bytes` have left. Replies that went with them no longer count, even if the output is never
    /// empty: two busy peers that both count too much would both stop reading.
    pub(crate) fn left(&mut self, bytes: usize) {
        self.bytes_before = self.bytes_before.saturating_sub(bytes);
        if self.bytes_before == 0 {
            self.control_bytes_before = std::mem::take(&mut self.control_bytes);
            self.settle(self.orphaned_before);
            self.orphaned_before = std::mem::take(&mut self.orphaned);
            self.bytes_before = self.out.len();
        }
    }

    /// Everything has left: an idle connection owns no queues.
    pub(crate) fn drained(&mut self) {
        (self.control_bytes, self.control_bytes_before, self.bytes_before) = (0, 0, 0);
        self.settle(self.orphaned + self.orphaned_before);
        (self.orphaned, self.orphaned_before) = (0, 0);
        for queue in self.queues() {
            if queue.is_empty() && queue.capacity() > QUEUE_KEPT {
                *queue = VecDeque::new();
            }
        }
    }

    /// What waits can never leave.
    pub(crate) fn discard(&mut self) {
        self.out.clear();
        self.drained();
    }

    /// `bytes` of pieces have left for good.
    fn settle(&mut self, bytes: usize) {
        let max = self.limits.pending_bytes_max;
        let was_over = self.pending - self.overshoot >= max;
        self.pending -= bytes;
        if was_over && self.pending - self.overshoot < max {
            self.unpark_left = self.parked.len();
        }
    }

    fn queues(&mut self) -> [&mut VecDeque<Key>; 6] {
        let Wire { runnable, blocked, later, parked, placeless, unbegun, .. } = self;
        [runnable, blocked, later, parked, placeless, unbegun]
    }

    /// Streams that are gone leave the queues before they outnumber those that are there.
    pub(crate) fn purge(&mut self, streams: usize, is_there: impl Fn(&Key) -> bool) {
        for queue in self.queues() {
            if queue.len() > 2 * streams + QUEUE_KEPT {
                queue.retain(&is_there);
            }
        }
    }

    /// Whether response bodies may be polled.
    pub(crate) fn has_output_room(&self) -> bool {
        self.out.len() < self.limits.output_bytes_max
    }

    /// Whether the stream's body may be polled, as far as what waits for windows is concerned.
    ///
    /// From half the cap on only where the window has room for a whole frame, or as much as the peer
    /// gives streams at all, so that what the body gives mostly leaves at once: stuck streams do not
    /// starve siblings that are read.
    pub(crate) fn has_pending_room(&self, core: &Core) -> bool {
        let max = self.limits.pending_bytes_max;
        let usual = self.peer.initial_flow_window_bytes as usize;
        let enough = usual.clamp(WINDOW_BYTES_USEFUL, FRAME_BYTES_MAX);
        let within = self.pending - self.overshoot < max;
        !self.pending_is_full() || (within && self.room(core) >= enough)
    }

    /// Most bytes that the header list of an answer may have, or its trailers, as RFC 9113, 6.5.2 counts them.
    pub(crate) fn answer_list_bytes_max(&self) -> u64 {
        u64::from(self.peer.header_list_bytes_max.min(self.limits.answer_list_bytes_max()))
    }

    /// Whether a head (or trailers) of so many bytes may be kept; one alone always may.
    pub(crate) fn has_head_room(&self, bytes: usize) -> bool {
        self.heads == 0 || self.heads.saturating_add(bytes) <= self.limits.heads_bytes_max
    }

    /// The handler has been given the stream's head.
    pub(crate) fn release_head(&mut self, core: &mut Core) {
        self.heads -= std::mem::take(&mut core.head_bytes);
    }

    /// The stream is over: what it waited with is given up.
    pub(crate) fn abandon(&mut self, core: &mut Core) {
        self.drop_pending(core);
        self.release_head(core);
        let _ = self.take_given(core);
        self.heads -= std::mem::take(&mut core.trailer_bytes);
        let begun = self.limits.stream_flow_window_bytes;
        self.widened -= (std::mem::replace(&mut core.recv_target, begun) - begun) as usize;
    }

    /// Whether streams that are set aside stay there. However small the cap, a piece fits if it is alone.
    pub(crate) fn pending_is_full(&self) -> bool {
        self.pending > 0 && self.pending >= self.limits.pending_bytes_max / 2
    }

    /// Sets the stream aside until less is pending. Its own window is not what it waits for.
    pub(crate) fn park(&mut self, core: &mut Core) {
        (core.is_waiting, core.stalled_since) = (false, None);
        core.is_set_aside = true;
        if !core.is_parked {
            core.is_parked = true;
            self.parked.push_back(core.key);
        }
    }

    /// Puts the stream into the queue of those that wait to begin, once.
    pub(crate) fn want_handler(&mut self, core: &mut Core) {
        if core.turn != OwnTurn::ToBegin {
            core.turn = OwnTurn::ToBegin;
            self.unbegun.push_back(core.key);
        }
    }

    /// Puts the stream into the queue of those that wait for a place, once.
    pub(crate) fn want_place(&mut self, core: &mut Core) {
        if core.turn != OwnTurn::ForPlace {
            core.turn = OwnTurn::ForPlace;
            self.placeless.push_back(core.key);
        }
    }

    /// Takes what the stream was given for this turn.
    pub(crate) fn take_given(&mut self, core: &mut Core) -> OwnTurn {
        let turn = core.turn;
        match turn {
            OwnTurn::MayBegin => self.beginnings_given -= 1,
            OwnTurn::HasPlace => self.places_given -= 1,
            _ => return turn,
        }
        core.turn = OwnTurn::NotAwaited;
        turn
    }

    /// Whether others were there before whoever wants a place now.
    pub(crate) fn others_want_places(&self) -> bool {
        self.places_given > 0 || !self.placeless.is_empty()
    }

    /// Whether others were there before whoever wants to begin now.
    pub(crate) fn others_want_to_begin(&self) -> bool {
        self.beginnings_given > 0 || !self.unbegun.is_empty()
    }

    /// Whether so many bytes of DATA for a stream that we ended may have been on their way: we had granted them.
    pub(crate) fn was_granted(&mut self, bytes: usize) -> bool {
        let left = self.gone_credit.checked_sub(bytes as u64);
        self.gone_credit = left.unwrap_or(self.gone_credit);
        left.is_some()
    }

    /// Whether the connection's window is used up by what nobody reads: there is not even a frame, or half of it.
    pub(crate) fn is_used_up(&self) -> bool {
        let half = self.limits.connection_flow_window_bytes as usize / 2;
        (self.recv.open() as usize) < FRAME_BYTES_MAX.min(half).max(1)
    }

    /// The next stream that was set aside, if there may be room again.
    pub(crate) fn unpark(&mut self) -> Option<Key> {
        if self.parked.is_empty() {
            self.unpark_left = 0;
            return None;
        }
        if !self.pending_is_full() {
            // What it gives may fill the place of those behind it, which have windows of their own.
            self.unpark_left = self.parked.len().saturating_sub(1);
            return self.parked.pop_front();
        }
        self.unpark_left = self.unpark_left.checked_sub(1)?;
        self.parked.pop_front()
    }

    /// `bytes` of the stream's DATA were taken: grants them again when it pays.
    ///
    /// A window doubles while its reader keeps up, which `keeps_up` says.
    pub(crate) fn consumed(&mut self, core: &mut Core, bytes: usize, keeps_up: bool) {
        let bytes = u32::try_from(bytes).expect("an inbox is smaller than a window");
        self.buffered -= bytes as usize;
        core.unread_since = self.now;
        self.released(core, bytes, keeps_up);
    }

    /// `bytes` of DATA need not be kept: padding, or what nobody wants.
    pub(crate) fn released(&mut self, core: &mut Core, bytes: u32, keeps_up: bool) {
        core.recv.release(bytes);
        // Smaller updates would cost more frames, larger ones would make the peer wait.
        if core.remote_closed || core.reset_sent || core.recv.owed() < core.recv.open() {
            return;
        }
        if keeps_up && core.recv_target < self.limits.stream_flow_window_bytes_max {
            self.widen(core);
        }
        if let Some(increment) = core.recv.update(1) {
            let id = core.id;
            self.control(|out| frame::window_update(out, id, increment));
        }
    }

    /// Doubles the stream's window, as far as streams that grew may share the connection's.
    fn widen(&mut self, core: &mut Core) {
        let limits = &self.limits;
        let shared = limits.connection_flow_window_bytes as usize / 2;
        let left = u32::try_from(shared.saturating_sub(self.widened)).unwrap_or(u32::MAX);
        let target = core.recv_target.saturating_mul(2).min(limits.stream_flow_window_bytes_max);
        let increment = (target - core.recv_target).min(left);
        core.recv.widen(increment);
        core.recv_target += increment;
        self.widened += increment as usize;
    }

    /// Grants the connection's window again, as far as inboxes are empty. Once a turn.
    pub(crate) fn grant_connection(&mut self) {
        let open = self.recv.open() as usize;
        let size = self.limits.connection_flow_window_bytes as usize;
        let owed = size.saturating_sub(open + self.buffered);
        let is_due = owed > 0 && owed >= open;
        if !is_due || !self.is_scarce {
            (self.starved_since, self.withheld_since) = (None, None);
        }
        if is_due {
            if self.is_scarce {
                self.withheld_since.get_or_insert(self.now);
                // Nothing that has begun can be finished.
                if self.is_used_up() {
                    self.starved_since.get_or_insert(self.now);
                }
                return;
            }
            let increment = u32::try_from(owed).expect("below the window's size");
            self.recv.release(increment);
            self.recv.update(1);
            frame::window_update(&mut self.out.tail, 0, increment);
        }
    }
}

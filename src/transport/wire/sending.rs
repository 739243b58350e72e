//! What leaves: DATA, as far as the windows and the output allow, header blocks, and RST_STREAM.
//!
//! In: what a stream is to send. Out: frames in the output, with their bytes off the windows; what does not fit waits in
//! its stream's [`Core`].

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};

use super::super::fields::{PseudoField, is_of_connection, pseudo_of_request, pseudo_of_response};
use super::super::flow::WINDOW_BYTES_DEFAULT;
use super::super::frame::{self, ErrorCode, FRAME_BYTES_MAX, Fault, HEAD_BYTES, Head, flag, kind};
use super::{Core, Ending, Flushed, Wire};

impl Wire {
    /// What the connection's window lets leave.
    pub(crate) fn connection_room(&self) -> i64 {
        self.send.room(WINDOW_BYTES_DEFAULT)
    }

    /// The peer widened the connection's window.
    pub(crate) fn granted(&mut self, increment: u32) -> Result<(), Fault> {
        let had_enough = self.connection_room() >= FRAME_BYTES_MAX as i64;
        self.send
            .grant(increment, WINDOW_BYTES_DEFAULT)
            .map_err(|_| Fault::flow("connection_window_overflow"))?;
        if !had_enough {
            self.unpark_left = self.parked.len();
        }
        Ok(())
    }

    /// What a stream may send now, at most a frame's worth.
    pub(crate) fn room(&self, core: &Core) -> usize {
        let stream = core.send.room(self.peer.initial_flow_window_bytes);
        let room = stream.min(self.connection_room()).max(0);
        usize::try_from(room).unwrap_or(usize::MAX).min(FRAME_BYTES_MAX)
    }

    /// Sends a payload, as the last one if `ends`; what does not fit into the windows waits.
    pub(crate) fn data(&mut self, core: &mut Core, payload: Bytes, ends: bool) {
        debug_assert!(core.is_flushed() && !core.local_closed);
        if !payload.is_empty() && payload.len() <= self.room(core) {
            self.data_head(core, payload.len(), ends);
            return self.out.payload(payload);
        }
        core.pending = payload;
        core.pending_end = ends.then_some(Ending::Data);
        self.flush(core);
    }

    /// Ends our half, after what waits.
    pub(crate) fn end(&mut self, core: &mut Core, ending: Ending) {
        debug_assert!(!core.local_closed);
        core.pending_end = Some(ending);
        self.flush(core);
    }

    /// Sends what waits, as far as the windows and the output allow: behind a piece of megabytes the
    /// siblings have their turns.
    pub(crate) fn flush(&mut self, core: &mut Core) -> Flushed {
        let piece = core.pending.len();
        while !core.pending.is_empty() {
            let room = self.room(core);
            let is_full = !self.has_output_room();
            if room == 0 || is_full {
                if core.piece_bytes == 0 {
                    core.piece_bytes = piece;
                    self.pending += piece;
                }
                if room == 0 {
                    self.block(core);
                    return Flushed::Shut;
                }
                return Flushed::Full;
            }
            let ends = matches!(core.pending_end, Some(Ending::Data));
            let length = core.pending.len().min(room);
            let is_last = length == core.pending.len();
            let payload = if is_last {
                std::mem::take(&mut core.pending)
            } else {
                core.pending.split_to(length)
            };
            let end = is_last && ends;
            self.data_head(core, length, end);
            self.out.payload(payload);
            if end {
                core.pending_end = None;
            }
        }
        self.orphan(core);
        match core.pending_end.take() {
            None => {}
            Some(Ending::Data) => self.data_head(core, 0, true),
            Some(Ending::Trailers(trailers)) => self.trailers(core, &trailers),
        }
        core.is_waiting = false;
        core.stalled_since = None;
        Flushed::All
    }

    /// The piece that waits was taken although there was no room, because it had been asked for: siblings
    /// that are read are not to wait for it.
    pub(crate) fn overshoot(&mut self, core: &mut Core) {
        if core.piece_bytes > 0 && !core.overshoots {
            core.overshoots = true;
            self.overshoot += core.piece_bytes;
        }
    }

    /// Nothing of the piece is pending any more, but its last parts may still be in the output.
    fn orphan(&mut self, core: &mut Core) {
        if std::mem::take(&mut core.overshoots) {
            self.overshoot -= core.piece_bytes;
        }
        if core.piece_bytes > 0 {
            self.orphaned += std::mem::take(&mut core.piece_bytes);
        }
    }

    #[cfg(test)]
    pub(crate) fn orphaned(&self) -> usize {
        self.orphaned + self.orphaned_before
    }

    /// Gives up what waits for a window.
    pub(crate) fn drop_pending(&mut self, core: &mut Core) {
        core.pending = Bytes::new();
        core.pending_end = None;
        self.orphan(core);
    }

    /// The head of a DATA frame whose payload follows; takes it off the windows.
    fn data_head(&mut self, core: &mut Core, length: usize, end: bool) {
        let flags = if end { flag::END_STREAM } else { 0 };
        let head = Head { length, kind: kind::DATA, flags, stream: core.id };
        self.out.tail.extend_from_slice(&head.bytes());
        self.sent_data(core, length, end);
    }

    fn sent_data(&mut self, core: &mut Core, length: usize, end: bool) {
        core.send.spend(length);
        self.send.spend(length);
        core.local_closed |= end;
        core.last_frame = self.now;
        core.is_waiting = false;
        core.stalled_since = None;
        self.floods.sent(length);
    }

    /// Sends what `write` appends to the output as one DATA frame; what is above the room waits.
    ///
    /// Without a copy when it fits: the head is filled in afterwards. `write` gets the room as a hint.
    pub(crate) fn data_in_place<T>(
        &mut self,
        core: &mut Core,
        write: impl FnOnce(&mut Vec<u8>, usize) -> T,
    ) -> T {
        debug_assert!(core.is_flushed() && !core.local_closed);
        let room = self.room(core);
        let at = self.out.tail.len();
        self.out.tail.extend_from_slice(&[0; HEAD_BYTES]);
        let written = write(&mut self.out.tail, room);
        let length = self.out.tail.len() - at - HEAD_BYTES;
        if length > room {
            core.pending = Bytes::copy_from_slice(&self.out.tail[at + HEAD_BYTES + room..]);
            self.out.tail.truncate(at + HEAD_BYTES + room);
        }
        let length = length.min(room);
        if length == 0 {
            self.out.tail.truncate(at);
        } else {
            let head = Head { length, kind: kind::DATA, flags: 0, stream: core.id };
            self.out.tail[at..at + HEAD_BYTES].copy_from_slice(&head.bytes());
            self.sent_data(core, length, false);
        }
        if !core.pending.is_empty() {
            self.flush(core);
        }
        written
    }

    /// Sends a payload after what waits.
    pub(crate) fn append(&mut self, core: &mut Core, payload: Bytes) {
        if payload.is_empty() {
            return;
        }
        if core.is_flushed() {
            return self.data(core, payload, false);
        }
        self.pending += payload.len();
        core.piece_bytes += payload.len();
        let waiting = std::mem::take(&mut core.pending);
        core.pending = [waiting, payload].concat().into();
    }

    /// Notes that the stream waits for a window, and for which.
    pub(crate) fn block(&mut self, core: &mut Core) {
        core.is_waiting = true;
        core.stalled_since.get_or_insert(self.now);
        if self.connection_room() <= 0 && !core.is_blocked {
            core.is_blocked = true;
            self.blocked.push_back(core.key);
        }
    }

    /// A response's head. One that the peer would not take is replaced by a failure.
    pub(crate) fn response(
        &mut self,
        core: &mut Core,
        status: StatusCode,
        headers: &HeaderMap,
        end: bool,
    ) {
        self.block_of(core, pseudo_of_response(&status).into_iter(), headers, end);
        core.headers_sent = true;
    }

    /// A request's head.
    pub(crate) fn request(&mut self, core: &mut Core, request: &Request<()>, end: bool) {
        self.block_of(core, pseudo_of_request(request), request.headers(), end);
        core.headers_sent = true;
    }

    fn trailers(&mut self, core: &mut Core, trailers: &HeaderMap) {
        self.block_of(core, std::iter::empty(), trailers, true);
    }

    fn block_of<'a>(
        &mut self,
        core: &mut Core,
        pseudo: impl Iterator<Item = PseudoField<'a>>,
        headers: &HeaderMap,
        end: bool,
    ) {
        let mut block = Vec::with_capacity(128);
        self.encoder.begin(&mut block);
        for (name, value) in pseudo {
            self.encoder.field(name, value, false, &mut block);
        }
        for (name, value) in headers {
            if !is_of_connection(name) {
                let (name, sensitive) = (name.as_str().as_bytes(), value.is_sensitive());
                self.encoder.field(name, value.as_bytes(), sensitive, &mut block);
            }
        }
        frame::headers(&mut self.out.tail, core.id, &block, end);
        core.local_closed |= end;
        core.last_frame = self.now;
    }

    /// Ends the stream for both sides with RST_STREAM, once.
    pub(crate) fn reset(&mut self, core: &mut Core, code: ErrorCode) {
        let id = core.id;
        if !std::mem::replace(&mut core.reset_sent, true) {
            if !core.remote_closed {
                self.gone_credit += u64::from(core.recv.open());
            }
            self.control(|out| frame::rst_stream(out, id, code));
        }
        core.local_closed = true;
        self.drop_pending(core);
    }
}

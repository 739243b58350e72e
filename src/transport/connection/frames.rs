//! What a connection does with what it reads: every complete frame, one after the other.
//!
//! In: bytes. Out: streams that are marked to be polled, replies in the output, or the fault that ends
//! the connection. Runs no user code but a client's exchanges, and does no work per frame that grows with
//! the streams, but for SETTINGS, which are rare.

use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::fields::{self, Fields};
use super::super::flow::WINDOW_BYTES_DEFAULT;
use super::super::frame::{
    self, ErrorCode, FRAME_BYTES_MAX, Fault, HEAD_BYTES, Head, PREFACE, Settings, flag, kind,
};
use super::super::hpack::HpackError;
use super::super::limits::FloodKind;
use super::super::stream::{BodyError, Key};
use super::super::wire::Core;
use super::reading::{Lender, ReadBuffer};
use super::{
    Block, Connection, Handshake, LINGER, LINGER_BYTES_AFTER_FAULT, PING_DRAIN, Phase,
    RECENTLY_CLOSED, Read, Role, Slot, now,
};

/// Frames of DATA that are handled between two looks at the clock. What a stream sent in many is answered in few, so
/// fewer would cost more than they save.
const WORK_PER_LOOK: usize = 4_096;

/// Any other frame counts as so many of DATA: a stream begins with it, or is refused (results/2026-11-28-hostile, rows
/// `refused-streams-short` and `expiring-at-once`).
const DEAR_FRAME: usize = 128;

/// How far frames were handled.
enum Until {
    /// All complete ones.
    Incomplete,
    TimeIsOver,
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Read {
        if self.wire.control_is_full() {
            // The write's progress wakes us; without it, this timer ends us.
            self.clocks.reading_paused.get_or_insert(self.wire.now);
            return Read::None;
        }
        if !self.left.is_empty() {
            if !R::IS_SERVER {
                self.wire.now = now();
            }
            let left = std::mem::take(&mut self.left);
            let handled = self.take_in(&left, &mut Lender { read: None, readers: &mut Vec::new() });
            self.left = left.slice(handled..);
            return Read::Some;
        }
        let mut buffer = ReadBuffer::take();
        buffer.bytes.extend_from_slice(&self.tail);
        let came = match buffer.poll_read(&mut self.io, cx, self.read_bytes) {
            Poll::Pending => return Read::None,
            Poll::Ready(Err(error)) => {
                self.lose_streams(&BodyError::ConnectionLost);
                return Read::End(Err(error));
            }
            Poll::Ready(Ok(came)) => came,
        };
        if came == 0 {
            return self.ended_by_peer();
        }
        if !R::IS_SERVER {
            // What the user measures begins and ends here, not when the turn began.
            self.wire.now = now();
        }
        self.clocks.last_read = self.wire.now;
        if self.phase == Phase::Closing {
            return Read::Some;
        }
        let bytes = buffer.share();
        let is_lent = R::IS_SERVER && self.counters.lends_reads();
        let mut lender = buffer.lender(is_lent.then_some(&bytes));
        let handled = self.take_in(&bytes, &mut lender);
        if handled < bytes.len() {
            // A copy of its own: the thread's buffer is not kept for one connection.
            self.left = Bytes::copy_from_slice(&bytes[handled..]);
        }
        self.handled(bytes, buffer);
        Read::Some
    }

    /// Handles the frames of what came, as far as the turn has time for them. Out: how many bytes are done with; the
    /// others wait for the next turn.
    fn take_in(&mut self, bytes: &[u8], lender: &mut Lender<'_>) -> usize {
        match self.frames(bytes, lender) {
            Ok((handled, Until::TimeIsOver)) => {
                self.tail = Vec::new();
                return handled;
            }
            Ok((handled, Until::Incomplete)) if handled < bytes.len() => {
                self.tail.clear();
                self.tail.extend_from_slice(&bytes[handled..]);
            }
            Ok(_) => self.tail = Vec::new(),
            Err(fault) => self.fault(fault),
        }
        bytes.len()
    }

    /// The peer closed: nothing more can come, not even windows, so what streams still wait for is lost.
    fn ended_by_peer(&mut self) -> Read {
        let was_orderly = self.streams.is_empty() && self.tail.is_empty();
        self.lose_streams(&BodyError::ConnectionLost);
        let ended = if was_orderly || R::IS_SERVER {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        };
        Read::End(ended)
    }

    /// Ends the connection: GOAWAY with the reason, then nothing but closing.
    pub(super) fn fault(&mut self, fault: Fault) {
        if self.phase == Phase::Closing {
            return;
        }
        self.counters.goaway(fault.reason);
        let last = self.last_accepted.unwrap_or(self.last_peer_stream);
        frame::goaway(&mut self.wire.out.tail, last, fault.code, fault.reason);
        self.linger_bytes = self.linger_bytes.min(LINGER_BYTES_AFTER_FAULT);
        self.close();
        self.lose_streams(&BodyError::Ended(fault.reason));
    }

    /// What is in the output still leaves; nothing else happens any more.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closing;
        self.clocks.close_by.get_or_insert(self.wire.now + LINGER);
        self.clocks.write_stalled = None;
        (self.tail, self.left) = (Vec::new(), Bytes::new());
        self.block = None;
    }

    /// Handles complete frames. Out: how many bytes they were, and what came next.
    fn frames(&mut self, bytes: &[u8], lender: &mut Lender<'_>) -> Result<(usize, Until), Fault> {
        let (mut handled, mut work) = (0, 0);
        if self.handshake == Handshake::Preface {
            let length = bytes.len().min(PREFACE.len());
            if bytes[..length] != PREFACE[..length] {
                return Err(Fault::protocol("no_http2_preface"));
            }
            if length < PREFACE.len() {
                return Ok((0, Until::Incomplete));
            }
            self.handshake = Handshake::Settings;
            handled = length;
        }
        while let Some(head) = Head::parse(&bytes[handled..]) {
            if head.length > FRAME_BYTES_MAX {
                return Err(Fault::size("frame_too_large"));
            }
            let begin = handled + HEAD_BYTES;
            let Some(payload) = bytes.get(begin..begin + head.length) else {
                break;
            };
            self.frame(head, payload, lender)?;
            handled = begin + head.length;
            work += if head.kind == kind::DATA { 1 } else { DEAR_FRAME };
            if self.has_had_its_time(&mut work, WORK_PER_LOOK) {
                return Ok((handled, Until::TimeIsOver));
            }
        }
        Ok((handled, Until::Incomplete))
    }

    fn frame(&mut self, head: Head, payload: &[u8], lender: &mut Lender<'_>) -> Result<(), Fault> {
        if self.handshake == Handshake::Settings
            && (head.kind != kind::SETTINGS || head.has(flag::ACK))
        {
            return Err(Fault::protocol("first_frame_is_not_settings"));
        }
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(Fault::protocol("header_block_interrupted"));
        }
        match head.kind {
            kind::DATA => self.data(head, payload, lender),
            kind::HEADERS => self.headers(head, payload),
            kind::PRIORITY => self.priority(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Err(Fault::protocol("push_promise")),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY => self.goaway(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            _ => self.wire.charge(FloodKind::Unknown),
        }
    }

    fn data(&mut self, head: Head, payload: &[u8], lender: &mut Lender<'_>) -> Result<(), Fault> {
        let content =
            if head.has(flag::PADDED) { frame::unpad(head, payload)?.content } else { payload };
        #[allow(clippy::cast_possible_truncation, reason = "at most FRAME_BYTES_MAX")]
        let (length, padding) = (head.length as u32, (head.length - content.len()) as u32);
        let end = head.has(flag::END_STREAM);
        self.wire.recv.receive(length).map_err(|_| Fault::flow("connection_window_exceeded"))?;
        if content.is_empty() && !end {
            self.wire.charge(FloodKind::EmptyData)?;
        }
        let Some(slot) = self.index.get(&head.stream) else {
            return self.frame_of_gone_stream(head);
        };
        let Slot { core, app } = &mut self.streams[*slot as usize];
        if core.remote_closed {
            return self.stream_error(head.stream, ErrorCode::STREAM_CLOSED, "data_after_end");
        }
        core.recv.receive(length).map_err(|_| Fault::flow("stream_window_exceeded"))?;
        if let Err(reason) = R::expects_data(app) {
            return self.stream_error(head.stream, ErrorCode::PROTOCOL_ERROR, reason);
        }
        if let Some(left) = core.content_left {
            let left = left.checked_sub(content.len() as u64);
            if left.is_none() || (end && left != Some(0)) {
                let code = ErrorCode::PROTOCOL_ERROR;
                return self.stream_error(head.stream, code, "content_length_mismatch");
            }
            core.content_left = left;
        }
        core.last_frame = self.wire.now;
        if padding > 0 {
            self.wire.released(core, padding, false);
        }
        if !content.is_empty() {
            self.wire.floods.received();
            if R::buffered(app) == 0 {
                core.unread_since = self.wire.now;
            }
            let kept = self.role.data(core, app, content, lender.read);
            if kept.is_in_place {
                lender.readers.push(core.key);
            }
            self.wire.buffered += kept.bytes;
            #[allow(clippy::cast_possible_truncation, reason = "at most FRAME_BYTES_MAX")]
            let done = (content.len() - kept.bytes) as u32;
            if done > 0 {
                self.wire.released(core, done, true);
            }
        }
        if end {
            core.remote_closed = true;
            self.role.end(core, app);
        }
        self.wire.run(core);
        Ok(())
    }

    /// A frame for a stream that is not in the table: late, wrong, or for one that never was.
    fn frame_of_gone_stream(&mut self, head: Head) -> Result<(), Fault> {
        if self.is_idle(head.stream) {
            return Err(Fault::protocol("frame_on_idle_stream"));
        }
        let is_late_at_most = matches!(head.kind, kind::WINDOW_UPDATE | kind::RST_STREAM);
        if !is_late_at_most && self.recently_closed.contains(&head.stream) {
            let reason = "frame_after_end_of_stream";
            return Err(Fault { code: ErrorCode::STREAM_CLOSED, reason });
        }
        self.wire.charge(FloodKind::GoneStream)
    }

    /// Whether nobody ever opened the stream; 0 counts as that.
    fn is_idle(&self, stream: u32) -> bool {
        let is_own = (stream % 2 == 1) != R::IS_SERVER;
        match stream {
            0 => true,
            _ if is_own => stream >= self.next_own_stream,
            _ => stream > self.last_peer_stream,
        }
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(Fault::protocol("headers_on_stream_0"));
        }
        let unpadded = frame::unpad(head, payload)?;
        let end_stream = head.has(flag::END_STREAM);
        let depends_on = unpadded.depends_on;
        if head.has(flag::END_HEADERS) {
            return self.header_block(head.stream, end_stream, depends_on, unpadded.content);
        }
        let fragments = unpadded.content.to_vec();
        let (stream, began) = (head.stream, self.wire.now);
        self.block = Some(Box::new(Block { stream, end_stream, depends_on, fragments, began }));
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let Some(block) = &mut self.block else {
            return Err(Fault::protocol("continuation_without_headers"));
        };
        if block.stream != head.stream {
            return Err(Fault::protocol("continuation_of_another_stream"));
        }
        // A fragment that is not the last one has no reason to be small.
        if payload.len() < FRAME_BYTES_MAX / 16 && !head.has(flag::END_HEADERS) {
            self.wire.charge(FloodKind::Continuation)?;
        }
        if block.fragments.len() + payload.len() > self.wire.limits.header_block_bytes_max() {
            return Err(Fault::calm("header_block_too_large"));
        }
        block.fragments.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        let block = self.block.take().expect("it was there above");
        self.header_block(block.stream, block.end_stream, block.depends_on, &block.fragments)
    }

    /// A complete header block. It is decoded whatever becomes of it: the table must stay in step.
    fn header_block(
        &mut self,
        stream: u32,
        end: bool,
        depends_on: Option<u32>,
        block: &[u8],
    ) -> Result<(), Fault> {
        let mut fields = Fields::default();
        let list_bytes_max = self.wire.limits.header_list_bytes_max as usize;
        self.wire.decoder.decode(block, |field| fields.add(&field, list_bytes_max)).map_err(
            |error| match error {
                HpackError::TooManyFields => Fault::calm(error.reason()),
                _ => Fault { code: ErrorCode::COMPRESSION_ERROR, reason: error.reason() },
            },
        )?;
        if fields.is_too_large {
            // It was unpacked already, whatever becomes of its stream.
            self.wire.charge(FloodKind::HeaderList)?;
        }
        if let Some(slot) = self.index.get(&stream) {
            return self.headers_of_stream(*slot, end, depends_on, fields);
        }
        if !R::IS_SERVER || !self.is_idle(stream) {
            let head = Head { length: block.len(), kind: kind::HEADERS, flags: 0, stream };
            self.frame_of_gone_stream(head)?;
            // Trailers may come late; a head means to open a stream (RFC 9113, 5.1.1).
            return match R::IS_SERVER && fields.is_head() {
                true => Err(Fault::protocol("stream_smaller_than_the_last")),
                false => Ok(()),
            };
        }
        if stream.is_multiple_of(2) {
            return Err(Fault::protocol("stream_of_the_wrong_parity"));
        }
        self.last_peer_stream = stream;
        self.accept(stream, end, depends_on, fields)
    }

    fn headers_of_stream(
        &mut self,
        slot: u32,
        end: bool,
        depends_on: Option<u32>,
        fields: Fields,
    ) -> Result<(), Fault> {
        let Slot { core, app } = &mut self.streams[slot as usize];
        let id = core.id;
        if core.remote_closed {
            return self.stream_error(id, ErrorCode::STREAM_CLOSED, "headers_after_end");
        }
        if depends_on == Some(id) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR, "stream_depends_on_itself");
        }
        if fields.is_too_large {
            return self.stream_error(id, ErrorCode::CANCEL, "header_list_too_large");
        }
        if end && core.content_left.is_some_and(|left| left > 0) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR, "content_length_mismatch");
        }
        let bytes = fields.bytes();
        if R::IS_SERVER {
            // No client needs large trailers, but they may have to wait for their reader.
            if !self.wire.has_head_room(bytes) {
                let code = ErrorCode::ENHANCE_YOUR_CALM;
                return self.stream_error(id, code, "trailers_too_large_to_wait");
            }
            self.wire.heads += bytes - core.trailer_bytes;
            core.trailer_bytes = bytes;
        }
        core.last_frame = self.wire.now;
        let handled = self.role.headers(core, app, fields, end);
        core.remote_closed |= end;
        self.wire.run(core);
        match handled {
            Ok(()) => Ok(()),
            Err(reason) => self.stream_error(id, ErrorCode::PROTOCOL_ERROR, reason),
        }
    }

    /// The peer opens a stream.
    fn accept(
        &mut self,
        id: u32,
        end: bool,
        depends_on: Option<u32>,
        fields: Fields,
    ) -> Result<(), Fault> {
        if self.last_accepted.is_some_and(|last| id > last) || self.phase == Phase::Closing {
            self.counters.stream_refused();
            return self.wire.charge(FloodKind::Refused);
        }
        if depends_on == Some(id) {
            return self.refuse(id, ErrorCode::PROTOCOL_ERROR, FloodKind::ProvokedReset);
        }
        // Those that the peer has cancelled are dropped before anything is polled.
        let open = self.streams.len() - self.dead.len();
        let is_full = open >= self.wire.limits.max_concurrent_streams as usize;
        let head_bytes = fields.bytes();
        let has_room = !self.wire.is_scarce && self.wire.has_head_room(head_bytes);
        if is_full || self.stopped || !has_room {
            return self.refuse(id, ErrorCode::REFUSED_STREAM, FloodKind::Refused);
        }
        let key = self.next_key();
        let mut core = self.core(id, key);
        if fields.is_too_large {
            self.role.too_large(&mut core, &fields, &mut self.wire);
            if !end {
                self.wire.reset(&mut core, ErrorCode::NO_ERROR);
            }
            return Ok(());
        }
        let request = fields.into_request().and_then(|request| {
            core.content_left = fields::content_length(request.headers())?;
            if end && core.content_left.is_some_and(|left| left > 0) {
                return Err("content_length_mismatch");
            }
            Ok(request)
        });
        let Ok(request) = request else {
            return self.refuse(id, ErrorCode::PROTOCOL_ERROR, FloodKind::ProvokedReset);
        };
        core.remote_closed = end;
        core.head_bytes = head_bytes;
        self.wire.heads += head_bytes;
        let mut app = self.role.accept(&mut core, &self.wakes, request);
        if end {
            // An end without data and trailers is never malformed.
            self.role.end(&mut core, &mut app);
        }
        self.insert(core, app);
        Ok(())
    }

    /// A stream that begins now. Until the peer has acknowledged our settings its window is the
    /// default, but it aims at ours from the first: [`Self::settings_acknowledged`] makes up for it.
    pub(super) fn core(&self, id: u32, key: Key) -> Core {
        let target = self.wire.limits.stream_flow_window_bytes;
        let recv = match self.handshake {
            Handshake::Done => target,
            _ => WINDOW_BYTES_DEFAULT,
        };
        Core { recv_target: target, ..Core::new(id, key, &self.wire, recv) }
    }

    pub(super) fn next_key(&self) -> Key {
        let slot =
            u32::try_from(self.streams.vacant_key()).expect("streams are counted in 32 bits");
        Key { slot, generation: self.next_generation }
    }

    pub(super) fn insert(&mut self, mut core: Core, app: R::App) {
        self.next_generation = self.next_generation.wrapping_add(1);
        self.index.insert(core.id, core.key.slot);
        if let Some(deadline) = core.deadline {
            self.deadlines.insert((deadline, core.id));
        }
        self.wire.run(&mut core);
        self.counters.stream_opened();
        self.streams.insert(Slot { core, app });
    }

    /// Ends a stream that was not begun.
    fn refuse(&mut self, id: u32, code: ErrorCode, flood: FloodKind) -> Result<(), Fault> {
        match flood {
            FloodKind::Refused => self.counters.stream_refused(),
            _ => self.counters.stream_broken(),
        }
        self.wire.charge(flood)?;
        self.wire.control(|out| frame::rst_stream(out, id, code));
        Ok(())
    }

    /// The peer broke one stream: it is reset, the others live on.
    fn stream_error(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Fault> {
        self.counters.stream_broken();
        self.wire.charge(FloodKind::ProvokedReset)?;
        if let Some(slot) = self.index.get(&id).copied() {
            let core = &mut self.streams[slot as usize].core;
            self.wire.reset(core, code);
            self.kill(slot, BodyError::Ended(reason));
        }
        Ok(())
    }

    /// Takes a stream out of the protocol; its application is dropped when no frame is being handled.
    fn kill(&mut self, slot: u32, error: BodyError) {
        let Slot { core, app } = &mut self.streams[slot as usize];
        core.is_dead = true;
        core.local_closed = true;
        self.wire.abandon(core);
        self.wire.buffered -= R::buffered(app);
        self.role.broken(app, error);
        let (id, deadline) = (core.id, core.deadline.take());
        let is_untouched = R::is_untouched(app);
        self.forget(id, deadline);
        if is_untouched {
            self.streams.remove(slot as usize);
            self.counters.stream_closed();
        } else {
            self.dead.push(slot);
        }
    }

    pub(super) fn forget(&mut self, id: u32, deadline: Option<Instant>) {
        self.index.remove(&id);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(Fault::protocol("priority_on_stream_0"));
        }
        self.wire.charge(FloodKind::Priority)?;
        let Ok(priority) = payload.try_into() else {
            return self.break_stream(head.stream, ErrorCode::FRAME_SIZE_ERROR, "priority_length");
        };
        if frame::dependency(priority) == head.stream {
            let code = ErrorCode::PROTOCOL_ERROR;
            return self.break_stream(head.stream, code, "stream_depends_on_itself");
        }
        Ok(())
    }

    /// A stream error of a stream that may not be there.
    fn break_stream(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Fault> {
        if self.index.contains_key(&id) {
            return self.stream_error(id, code, reason);
        }
        if self.is_idle(id) {
            // RST_STREAM must not name an idle stream (RFC 9113, 6.4).
            return Err(Fault { code, reason });
        }
        self.refuse(id, code, FloodKind::ProvokedReset)
    }

    fn rst_stream(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let code = payload.try_into().map_err(|_| Fault::size("rst_stream_length"))?;
        let code = ErrorCode(u32::from_be_bytes(code));
        let Some(slot) = self.index.get(&head.stream).copied() else {
            self.frame_of_gone_stream(head)?;
            self.remember_closed(head.stream);
            return Ok(());
        };
        let core = &mut self.streams[slot as usize].core;
        // A reset of what had ended both ways, or that we had ended, costs us nothing.
        if R::IS_SERVER && !core.local_closed {
            self.wire.charge(FloodKind::RapidReset)?;
        }
        self.counters.stream_reset();
        self.remember_closed(head.stream);
        self.kill(slot, BodyError::Reset(code));
        Ok(())
    }

    pub(super) fn remember_closed(&mut self, id: u32) {
        self.recently_closed[self.recently_closed_at] = id;
        self.recently_closed_at = (self.recently_closed_at + 1) % RECENTLY_CLOSED;
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("settings_on_a_stream"));
        }
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(Fault::size("settings_ack_length"));
            }
            return self.settings_acknowledged();
        }
        let is_first = self.handshake == Handshake::Settings;
        for _ in 0..=payload.len() / 36 {
            self.wire.charge(FloodKind::Settings)?;
        }
        let settings = Settings::parse(payload)?;
        if is_first {
            self.handshake = Handshake::Ack;
        }
        if let Some(least) = settings.header_table_bytes_min {
            self.wire.encoder.set_peer_table_bytes_max(least as usize);
        }
        if let Some(size) = settings.header_table_bytes {
            self.wire.encoder.set_peer_table_bytes_max(size as usize);
        }
        if settings.enable_push == Some(true) && !R::IS_SERVER {
            return Err(Fault::protocol("push_enabled_by_server"));
        }
        let peer = &mut self.wire.peer;
        if is_first {
            // Whoever does not name a limit has none.
            peer.max_concurrent_streams = u32::MAX;
        }
        if let Some(streams) = settings.max_concurrent_streams {
            peer.max_concurrent_streams = streams;
        }
        if let Some(bytes) = settings.header_list_bytes_max {
            peer.header_list_bytes_max = bytes;
        }
        if let Some(window) = settings.initial_flow_window_bytes {
            let before = std::mem::replace(&mut peer.initial_flow_window_bytes, window);
            if window > before {
                self.windows_grew(window)?;
            }
        }
        self.wire.control(frame::settings_ack);
        Ok(())
    }

    /// A larger initial window frees what waits for it. All streams are walked: SETTINGS are rare, and
    /// a flood of them is cut off early.
    fn windows_grew(&mut self, initial: u32) -> Result<(), Fault> {
        for (_, Slot { core, .. }) in &mut self.streams {
            if core.send.grant(0, initial).is_err() {
                return Err(Fault::flow("stream_window_overflow_by_settings"));
            }
            if core.is_waiting || core.is_set_aside {
                self.wire.run(core);
            }
        }
        Ok(())
    }

    /// From here on our settings bind the peer; streams that it opened before get the difference.
    fn settings_acknowledged(&mut self) -> Result<(), Fault> {
        if self.handshake != Handshake::Ack {
            return self.wire.charge(FloodKind::Settings);
        }
        self.handshake = Handshake::Done;
        let shift =
            i64::from(self.wire.limits.stream_flow_window_bytes) - i64::from(WINDOW_BYTES_DEFAULT);
        for (_, Slot { core, .. }) in &mut self.streams {
            core.recv.shift(shift);
            // What was too little to grant in the window of before may be all of this one.
            self.wire.released(core, 0, false);
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("ping_on_a_stream"));
        }
        let opaque: &[u8; 8] = payload.try_into().map_err(|_| Fault::size("ping_length"))?;
        if !head.has(flag::ACK) {
            self.wire.charge(FloodKind::Ping)?;
            self.wire.control(|out| frame::ping(out, opaque, true));
            return Ok(());
        }
        if *opaque == PING_DRAIN && self.phase == Phase::Leaving {
            self.name_last_stream();
        } else if self.clocks.ping_sent.take().is_none() {
            return self.wire.charge(FloodKind::Ping);
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("goaway_on_a_stream"));
        }
        let (last, rest) = payload.split_first_chunk().ok_or(Fault::size("goaway_length"))?;
        let (code, _) = rest.split_first_chunk().ok_or(Fault::size("goaway_length"))?;
        let (last, code) = (frame::u31(last), ErrorCode(u32::from_be_bytes(*code)));
        self.peer_left = true;
        if R::IS_SERVER {
            // It will open nothing more: what is open goes on, then the connection ends.
            if matches!(self.phase, Phase::Open | Phase::Leaving) {
                self.name_last_stream();
            }
            return Ok(());
        }
        self.role.refuse_openings(BodyError::GoAway(code));
        self.give_up_above(last);
        Ok(())
    }

    /// Ends our streams above `last`, which the peer will not begin.
    ///
    /// However many GOAWAYs come, they cost no more in all than the streams that we opened: each looks
    /// only at what the ones before left, and a `last` that has risen (which RFC 9113, 6.8 forbids) at
    /// none.
    fn give_up_above(&mut self, last: u32) {
        let end = self.given_up_from.min(self.next_own_stream);
        let begin = (last + 1) | 1;
        if begin >= end {
            return;
        }
        self.given_up_from = begin;
        let (ids, places) = ((end - begin) as usize / 2, self.index.capacity());
        #[cfg(test)]
        {
            self.given_up_looks += ids.min(places);
        }
        let above: Vec<u32> = if ids <= places {
            (begin..end).step_by(2).filter_map(|id| self.index.get(&id).copied()).collect()
        } else {
            self.index.iter().filter(|(id, _)| **id >= begin).map(|(_, slot)| *slot).collect()
        };
        for slot in above {
            self.kill(slot, BodyError::Refused);
        }
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let increment = payload.try_into().map_err(|_| Fault::size("window_update_length"))?;
        let increment = frame::u31(increment);
        self.wire.charge(FloodKind::WindowUpdate)?;
        if head.stream == 0 {
            if increment == 0 {
                return Err(Fault::protocol("window_update_of_0"));
            }
            return self.wire.granted(increment);
        }
        if increment == 0 && !self.is_idle(head.stream) {
            let code = ErrorCode::PROTOCOL_ERROR;
            return self.break_stream(head.stream, code, "window_update_of_0");
        }
        let Some(slot) = self.index.get(&head.stream) else {
            return self.frame_of_gone_stream(head);
        };
        let core = &mut self.streams[*slot as usize].core;
        let initial = self.wire.peer.initial_flow_window_bytes;
        if core.send.grant(increment, initial).is_err() {
            let code = ErrorCode::FLOW_CONTROL_ERROR;
            return self.stream_error(head.stream, code, "stream_window_overflow");
        }
        if core.is_waiting || core.is_set_aside {
            self.wire.run(core);
        }
        Ok(())
    }
}

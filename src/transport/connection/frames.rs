//! What a connection does with what it reads: every complete frame, one after the other; those of DATA here, the others in
//! `heads`, `endings` and `control`.
//!
//! In: bytes. Out: streams that are marked to be polled, replies in the output, or the fault that ends
//! the connection. Runs no user code but a client's exchanges, and does no work per frame that grows with
//! the streams, but for SETTINGS, which are rare.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::frame::{
    self, ErrorCode, FRAME_BYTES_MAX, Fault, HEAD_BYTES, Head, PREFACE, flag, kind,
};
use super::super::limits::FloodKind;
use super::super::stream::BodyError;
use super::reading::{Lender, ReadBuffer};
use super::{
    Connection, Handshake, LINGER, LINGER_BYTES_AFTER_FAULT, Phase, Read, Role, Slot, now,
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
                self.lose_connection();
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
        self.lose_connection();
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
        core.was_deferred = false;
        // Its window is of no use from here on, and no update may follow (RFC 9113, 5.1).
        core.remote_closed = end;
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
            self.role.end(core, app);
        }
        self.wire.run(core);
        Ok(())
    }

    /// A frame for a stream that is not in the table: late, wrong, or for one that never was.
    pub(super) fn frame_of_gone_stream(&mut self, head: Head) -> Result<(), Fault> {
        if self.is_idle(head.stream) {
            return Err(Fault::protocol("frame_on_idle_stream"));
        }
        let is_late_at_most = matches!(head.kind, kind::WINDOW_UPDATE | kind::RST_STREAM);
        if !is_late_at_most && self.recently_closed.contains(&head.stream) {
            let reason = "frame_after_end_of_stream";
            return Err(Fault { code: ErrorCode::STREAM_CLOSED, reason });
        }
        if head.kind == kind::DATA && head.length > 0 && self.wire.was_granted(head.length) {
            return Ok(());
        }
        self.wire.charge(FloodKind::GoneStream)
    }

    /// Whether nobody ever opened the stream; 0 counts as that.
    pub(super) fn is_idle(&self, stream: u32) -> bool {
        let is_own = (stream % 2 == 1) != R::IS_SERVER;
        match stream {
            0 => true,
            _ if is_own => stream >= self.next_own_stream,
            _ => stream > self.last_peer_stream,
        }
    }
}

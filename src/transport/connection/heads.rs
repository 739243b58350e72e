//! What a connection does with header blocks: a stream that begins, the head and the trailers of one that is there.
//!
//! In: HEADERS and CONTINUATION. Out: the block decoded, whatever becomes of its stream, and a stream in the table,
//! refused, or reset.

use tokio::io::{AsyncRead, AsyncWrite};

use super::super::fields::{self, Fields};
use super::super::flow::WINDOW_BYTES_DEFAULT;
use super::super::frame::{self, ErrorCode, FRAME_BYTES_MAX, Fault, Head, flag, kind};
use super::super::hpack::HpackError;
use super::super::limits::FloodKind;
use super::super::stream::Key;
use super::super::wire::Core;
use super::{Block, Connection, Handshake, Phase, Role, Slot, now};

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    pub(super) fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
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

    pub(super) fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
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
            self.counters.stream_refused();
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
        // The turn may have begun long before this was read, on a core that others had meanwhile: no deadline is early for that.
        core.deadline = core.deadline.map(|deadline| deadline + (now() - self.wire.now));
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
}

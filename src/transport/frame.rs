//! Frame heads and payloads, sans-IO (RFC 9113, sections 4 and 6).
//!
//! In: bytes. Out: heads, settings, and what is wrong with them; and the bytes of the frames that we
//! send. Knows no stream and no state: whether a frame may come now is the connection's to say.

use std::fmt;

/// What a client sends before its first frame (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame head (RFC 9113, 4.1).
pub(crate) const HEAD_BYTES: usize = 9;

/// Largest payload that every peer takes unasked (RFC 9113, 4.2); we neither ask for more nor send it.
pub(crate) const FRAME_BYTES_MAX: usize = 16_384;

/// Frame types (RFC 9113, section 6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags (RFC 9113, section 6).
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (RFC 9113, 6.5.2).
pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// An error code of RST_STREAM and GOAWAY (RFC 9113, section 7); unknown ones are kept as they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Nothing is wrong.
    pub const NO_ERROR: ErrorCode = ErrorCode(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: ErrorCode = ErrorCode(1);
    /// Our own fault.
    pub const INTERNAL_ERROR: ErrorCode = ErrorCode(2);
    /// The peer sent more than its window.
    pub const FLOW_CONTROL_ERROR: ErrorCode = ErrorCode(3);
    /// A frame for a half-closed or closed stream.
    pub const STREAM_CLOSED: ErrorCode = ErrorCode(5);
    /// A frame of a wrong length.
    pub const FRAME_SIZE_ERROR: ErrorCode = ErrorCode(6);
    /// The stream was not begun and may be tried again.
    pub const REFUSED_STREAM: ErrorCode = ErrorCode(7);
    /// The stream is not wanted any more.
    pub const CANCEL: ErrorCode = ErrorCode(8);
    /// The header table is out of step.
    pub const COMPRESSION_ERROR: ErrorCode = ErrorCode(9);
    /// The peer makes more work than it may.
    pub const ENHANCE_YOUR_CALM: ErrorCode = ErrorCode(11);

    /// The RFC's name, or `None` for a code that it does not have.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(self.0 as usize).copied()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => out.write_str(name),
            None => write!(out, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// What ends a connection: the code of its GOAWAY, and why, in a word that logs and metrics repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: ErrorCode,
    pub(crate) reason: &'static str,
}

impl Fault {
    pub(crate) const fn protocol(reason: &'static str) -> Self {
        Fault { code: ErrorCode::PROTOCOL_ERROR, reason }
    }

    pub(crate) const fn size(reason: &'static str) -> Self {
        Fault { code: ErrorCode::FRAME_SIZE_ERROR, reason }
    }

    pub(crate) const fn flow(reason: &'static str) -> Self {
        Fault { code: ErrorCode::FLOW_CONTROL_ERROR, reason }
    }

    pub(crate) const fn calm(reason: &'static str) -> Self {
        Fault { code: ErrorCode::ENHANCE_YOUR_CALM, reason }
    }
}

/// A frame's first nine bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// The stream, without the reserved bit.
    pub(crate) stream: u32,
}

impl Head {
    /// The head at the beginning of `bytes`, if it is all there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let [l2, l1, l0, kind, flags, s3, s2, s1, s0] = *bytes;
        let length = u32::from_be_bytes([0, l2, l1, l0]) as usize;
        let stream = u32::from_be_bytes([s3 & 0x7f, s2, s1, s0]);
        Some(Head { length, kind, flags, stream })
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The nine bytes. `length` must fit into 24 bits.
    pub(crate) fn bytes(self) -> [u8; HEAD_BYTES] {
        debug_assert!(self.length < 1 << 24);
        let [_, _, _, _, _, l2, l1, l0] = (self.length as u64).to_be_bytes();
        let [s3, s2, s1, s0] = self.stream.to_be_bytes();
        [l2, l1, l0, self.kind, self.flags, s3, s2, s1, s0]
    }
}

/// The content of a padded or prioritised payload, and the stream that its priority names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unpadded<'a> {
    pub(crate) content: &'a [u8],
    pub(crate) depends_on: Option<u32>,
}

/// Takes padding and priority off the payload of DATA or HEADERS (RFC 9113, 6.1 and 6.2).
pub(crate) fn unpad(head: Head, payload: &[u8]) -> Result<Unpadded<'_>, Fault> {
    let mut content = payload;
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (length, rest) =
            content.split_first().ok_or(Fault::size("frame_without_pad_length"))?;
        (padding, content) = (usize::from(*length), rest);
    }
    let mut depends_on = None;
    if head.kind == kind::HEADERS && head.has(flag::PRIORITY) {
        let (priority, rest) =
            content.split_first_chunk::<5>().ok_or(Fault::size("headers_without_priority"))?;
        (depends_on, content) = (Some(dependency(priority)), rest);
    }
    let end = content.len().checked_sub(padding).ok_or(Fault::protocol("padding_too_long"))?;
    Ok(Unpadded { content: &content[..end], depends_on })
}

/// The stream that a priority depends on (RFC 9113, 6.3).
pub(crate) fn dependency(priority: &[u8; 5]) -> u32 {
    u31(&[priority[0], priority[1], priority[2], priority[3]])
}

/// 31 bits, the reserved one taken off.
pub(crate) fn u31(bytes: &[u8; 4]) -> u32 {
    u32::from_be_bytes(*bytes) & 0x7fff_ffff
}

/// The entries of a SETTINGS payload, checked (RFC 9113, 6.5.2); unknown ones are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) header_table_bytes: Option<u32>,
    pub(crate) enable_push: Option<bool>,
    pub(crate) max_concurrent_streams: Option<u32>,
    pub(crate) initial_flow_window_bytes: Option<u32>,
    pub(crate) frame_bytes_max: Option<u32>,
    pub(crate) header_list_bytes_max: Option<u32>,
    /// The smallest table size on the way to the last one: the encoder has to pass it on.
    pub(crate) header_table_bytes_min: Option<u32>,
}

impl Settings {
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Fault> {
        let (entries, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Fault::size("settings_length"));
        }
        let mut settings = Settings::default();
        for [i1, i0, value @ ..] in entries {
            settings.set(u16::from_be_bytes([*i1, *i0]), u32::from_be_bytes(*value))?;
        }
        Ok(settings)
    }

    fn set(&mut self, id: u16, value: u32) -> Result<(), Fault> {
        match id {
            setting::HEADER_TABLE_SIZE => {
                self.header_table_bytes = Some(value);
                let least = self.header_table_bytes_min.map_or(value, |least| least.min(value));
                self.header_table_bytes_min = Some(least);
            }
            setting::ENABLE_PUSH => match value {
                0 | 1 => self.enable_push = Some(value == 1),
                _ => return Err(Fault::protocol("settings_enable_push")),
            },
            setting::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = Some(value),
            setting::INITIAL_WINDOW_SIZE => {
                if value > crate::transport::flow::WINDOW_BYTES_MAX {
                    return Err(Fault::flow("settings_initial_window_size"));
                }
                self.initial_flow_window_bytes = Some(value);
            }
            setting::MAX_FRAME_SIZE => {
                if !(16_384..=16_777_215).contains(&value) {
                    return Err(Fault::protocol("settings_max_frame_size"));
                }
                self.frame_bytes_max = Some(value);
            }
            setting::MAX_HEADER_LIST_SIZE => self.header_list_bytes_max = Some(value),
            _ => {}
        }
        Ok(())
    }
}

/// Appends a SETTINGS frame with `entries`.
pub(crate) fn settings(out: &mut Vec<u8>, entries: &[(u16, u32)]) {
    let length = entries.len() * 6;
    out.extend_from_slice(&Head { length, kind: kind::SETTINGS, flags: 0, stream: 0 }.bytes());
    for (id, value) in entries {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends the acknowledgement of the peer's settings.
pub(crate) fn settings_ack(out: &mut Vec<u8>) {
    let head = Head { length: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 };
    out.extend_from_slice(&head.bytes());
}

/// Appends a PING, or the answer to one.
pub(crate) fn ping(out: &mut Vec<u8>, opaque: &[u8; 8], ack: bool) {
    let flags = if ack { flag::ACK } else { 0 };
    out.extend_from_slice(&Head { length: 8, kind: kind::PING, flags, stream: 0 }.bytes());
    out.extend_from_slice(opaque);
}

/// Appends a WINDOW_UPDATE of `stream`, 0 for the connection.
pub(crate) fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    out.extend_from_slice(&Head { length: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream }.bytes());
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Appends a RST_STREAM.
pub(crate) fn rst_stream(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    out.extend_from_slice(&Head { length: 4, kind: kind::RST_STREAM, flags: 0, stream }.bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Appends a GOAWAY whose debug data is `reason`.
pub(crate) fn goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, reason: &str) {
    let length = 8 + reason.len();
    out.extend_from_slice(&Head { length, kind: kind::GOAWAY, flags: 0, stream: 0 }.bytes());
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends a header block as HEADERS and as many CONTINUATIONs as it needs.
pub(crate) fn headers(out: &mut Vec<u8>, stream: u32, block: &[u8], end_stream: bool) {
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    let mut rest = block;
    loop {
        let (fragment, after) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
        if after.is_empty() {
            flags |= flag::END_HEADERS;
        }
        out.extend_from_slice(&Head { length: fragment.len(), kind, flags, stream }.bytes());
        out.extend_from_slice(fragment);
        if after.is_empty() {
            return;
        }
        (rest, kind, flags) = (after, kind::CONTINUATION, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_its_bytes_and_loses_the_reserved_bit() {
        let head = Head { length: 0x01_02_03, kind: 7, flags: 0xa5, stream: 0x7fff_fffe };
        let mut bytes = head.bytes();
        assert_eq!(Head::parse(&bytes), Some(head));
        bytes[5] |= 0x80;
        assert_eq!(Head::parse(&bytes), Some(head));
        assert_eq!(Head::parse(&bytes[..8]), None);
    }

    #[test]
    fn padding_and_priority_come_off() {
        let check = |kind, flags, payload: &[u8], expected: Result<(&[u8], Option<u32>), &str>| {
            let head = Head { length: payload.len(), kind, flags, stream: 1 };
            let found = unpad(head, payload);
            let found = found
                .as_ref()
                .map(|unpadded| (unpadded.content, unpadded.depends_on))
                .map_err(|fault| fault.reason);
            assert_eq!(found, expected);
        };
        check(kind::DATA, 0, b"abc", Ok((b"abc", None)));
        check(kind::DATA, flag::PADDED, b"\x02abc\0\0", Ok((b"abc", None)));
        check(kind::DATA, flag::PADDED, b"\x03\0\0\0", Ok((b"", None)));
        check(kind::DATA, flag::PADDED, b"\x04\0\0\0", Err("padding_too_long"));
        check(kind::DATA, flag::PADDED, b"", Err("frame_without_pad_length"));
        check(kind::DATA, flag::PRIORITY, b"abc", Ok((b"abc", None)));
        let both = flag::PADDED | flag::PRIORITY;
        check(kind::HEADERS, both, b"\x01\x80\0\0\x05\xffabc\0", Ok((b"abc", Some(5))));
        check(kind::HEADERS, flag::PRIORITY, b"\0\0\0\0", Err("headers_without_priority"));
        check(kind::HEADERS, both, b"\x01\0\0\0\x05\xff", Err("padding_too_long"));
    }

    #[test]
    fn settings_are_checked_and_unknown_ones_ignored() {
        let mut frame = Vec::new();
        settings(&mut frame, &[(1, 0), (1, 100), (3, 7), (4, 65_536), (0x99, 5)]);
        let parsed = Settings::parse(&frame[HEAD_BYTES..]).unwrap();
        let expected = Settings {
            header_table_bytes: Some(100),
            header_table_bytes_min: Some(0),
            max_concurrent_streams: Some(7),
            initial_flow_window_bytes: Some(65_536),
            ..Settings::default()
        };
        assert_eq!(parsed, expected);
        let check = |entry, expected: &str| {
            let mut frame = Vec::new();
            settings(&mut frame, &[entry]);
            let fault = Settings::parse(&frame[HEAD_BYTES..]).unwrap_err();
            assert_eq!(fault.reason, expected);
        };
        check((setting::ENABLE_PUSH, 2), "settings_enable_push");
        check((setting::INITIAL_WINDOW_SIZE, 1 << 31), "settings_initial_window_size");
        check((setting::MAX_FRAME_SIZE, 16_383), "settings_max_frame_size");
        check((setting::MAX_FRAME_SIZE, 1 << 24), "settings_max_frame_size");
        assert_eq!(Settings::parse(&[0; 7]).unwrap_err().reason, "settings_length");
    }

    #[test]
    fn a_long_header_block_goes_on_in_continuations() {
        let block = vec![7; FRAME_BYTES_MAX * 2 + 1];
        let mut out = Vec::new();
        headers(&mut out, 3, &block, true);
        let mut frames = Vec::new();
        let mut rest = &out[..];
        while let Some(head) = Head::parse(rest) {
            rest = &rest[HEAD_BYTES + head.length..];
            frames.push((head.kind, head.flags, head.length));
        }
        let full = FRAME_BYTES_MAX;
        let expected = vec![
            (kind::HEADERS, flag::END_STREAM, full),
            (kind::CONTINUATION, 0, full),
            (kind::CONTINUATION, flag::END_HEADERS, 1),
        ];
        assert_eq!(frames, expected);
    }
}

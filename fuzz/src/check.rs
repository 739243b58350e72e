//! What an endpoint writes, held against RFC 9113 by a peer that sees every byte.
//!
//! In: the bytes that the endpoint was given and those that it wrote, in the order in which that
//! happened. Panics where what it wrote is malformed, comes in an order that the RFC forbids, exceeds
//! a window that the peer granted, or grants more than its own limits say. Bytes that were given
//! but not handled yet only make the checks weaker, never wrong.

use std::collections::HashMap;

use crate::transport::Limits;
use crate::transport::inside::{self, HeaderDecoder};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEAD_BYTES: usize = 9;
const FRAME_BYTES_MAX: usize = 16_384;
const WINDOW_BYTES_DEFAULT: i64 = 65_535;

/// Types of frames.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// Which endpoint is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Server,
    Client,
}

/// The view of one connection.
pub struct Observer {
    endpoint: Endpoint,
    given: Splitter,
    wrote: Splitter,
    decoder: HeaderDecoder,
    /// A header block that is not complete: its stream, END_STREAM, and the bytes.
    block: Option<(u32, bool, Vec<u8>)>,
    has_settings: bool,
    streams: HashMap<u32, Stream>,
    last_opened: u32,
    /// Largest initial window that the peer ever gave.
    initial_max: i64,
    granted: i64,
    sent: i64,
    advertised: i64,
    received: i64,
    /// What a stream begins with, at least: SETTINGS say less than the default, or more but later.
    stream_window_min: i64,
    /// Largest windows that the endpoint may give.
    stream_window_max: i64,
    connection_window_max: i64,
}

#[derive(Debug, Default)]
struct Stream {
    has_head: bool,
    has_ended: bool,
    was_reset: bool,
    granted: i64,
    sent: i64,
    advertised: i64,
    received: i64,
}

/// Cuts bytes into frames behind an optional preface.
struct Splitter {
    unread: Vec<u8>,
    has_preface: bool,
    is_lost: bool,
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl Splitter {
    fn new(has_preface: bool) -> Self {
        Splitter { unread: Vec::new(), has_preface, is_lost: false }
    }

    /// Calls `each` for every frame that `bytes` complete.
    fn split(&mut self, bytes: &[u8], mut each: impl FnMut(Frame<'_>)) {
        // In pieces, because what is kept here counts as the connection's memory.
        for piece in bytes.chunks(4_096) {
            self.split_piece(piece, &mut each);
        }
    }

    fn split_piece(&mut self, bytes: &[u8], each: &mut impl FnMut(Frame<'_>)) {
        if self.is_lost {
            return;
        }
        self.unread.extend_from_slice(bytes);
        if self.has_preface {
            let Some(begin) = self.unread.get(..PREFACE.len()) else { return };
            if begin != PREFACE {
                self.is_lost = true;
                return;
            }
            self.unread.drain(..PREFACE.len());
            self.has_preface = false;
        }
        let mut handled = 0;
        for (kind, flags, stream, payload) in inside::frames(&self.unread) {
            handled += HEAD_BYTES + payload.len();
            each(Frame { kind, flags, stream, payload });
        }
        self.unread.drain(..handled);
        // Nobody takes a frame as large as that, so the rest means nothing.
        self.is_lost |= self.unread.len() > HEAD_BYTES + FRAME_BYTES_MAX;
    }
}

impl Observer {
    pub fn new(endpoint: Endpoint, limits: &Limits) -> Self {
        let is_client = endpoint == Endpoint::Client;
        let largest = |bytes: u32| i64::from(bytes).max(WINDOW_BYTES_DEFAULT);
        Observer {
            endpoint,
            given: Splitter::new(!is_client),
            wrote: Splitter::new(is_client),
            decoder: HeaderDecoder::default(),
            block: None,
            has_settings: false,
            streams: HashMap::new(),
            last_opened: 0,
            initial_max: WINDOW_BYTES_DEFAULT,
            granted: WINDOW_BYTES_DEFAULT,
            sent: 0,
            advertised: WINDOW_BYTES_DEFAULT,
            received: 0,
            stream_window_min: i64::from(limits.stream_flow_window_bytes).min(WINDOW_BYTES_DEFAULT),
            stream_window_max: largest(
                limits.stream_flow_window_bytes_max.max(limits.stream_flow_window_bytes),
            ),
            connection_window_max: largest(limits.connection_flow_window_bytes),
        }
    }

    /// The endpoint was given `bytes`.
    pub fn given(&mut self, bytes: &[u8]) {
        let Observer { given, streams, initial_max, granted, received, .. } = self;
        given.split(bytes, |frame| {
            let length = frame.payload.len() as i64;
            match (frame.kind, frame.payload) {
                (kind::DATA, _) => {
                    *received += length;
                    streams.entry(frame.stream).or_default().received += length;
                }
                (kind::WINDOW_UPDATE, &[a, b, c, d]) => {
                    let increment = i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
                    match frame.stream {
                        0 => *granted += increment,
                        id => streams.entry(id).or_default().granted += increment,
                    }
                }
                (kind::SETTINGS, entries) => {
                    for entry in entries.chunks_exact(6) {
                        if let &[0, 4, a, b, c, d] = entry {
                            let window = u32::from_be_bytes([a, b, c, d]);
                            *initial_max = i64::from(window).max(*initial_max);
                        }
                    }
                }
                _ => {}
            }
        });
    }

    /// The endpoint wrote `bytes`.
    pub fn wrote(&mut self, bytes: &[u8]) {
        let mut wrote = std::mem::replace(&mut self.wrote, Splitter::new(false));
        wrote.split(bytes, |frame| self.frame(&frame));
        assert!(!wrote.is_lost, "neither preface nor frames");
        self.wrote = wrote;
    }

    /// The endpoint closed its side in order.
    pub fn shut(&self) {
        assert!(self.wrote.unread.is_empty(), "the output ends inside a frame");
        assert!(self.block.is_none(), "the output ends inside a header block");
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let Frame { kind, flags, stream, payload } = *frame;
        assert!(payload.len() <= FRAME_BYTES_MAX, "frame of {} bytes", payload.len());
        assert!(self.block.is_none() || kind == kind::CONTINUATION, "block interrupted by {kind}");
        if !self.has_settings {
            assert!(kind == kind::SETTINGS && flags == 0, "begins with {kind}, flags {flags:#x}");
        }
        let is_of_connection = matches!(kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if kind != kind::WINDOW_UPDATE {
            assert_eq!(is_of_connection, stream == 0, "frame of type {kind} on stream {stream}");
        }
        match kind {
            kind::DATA => self.data(frame),
            kind::HEADERS => {
                assert_eq!(flags & !(flag::END_STREAM | flag::END_HEADERS), 0, "unasked flags");
                self.block = Some((stream, flags & flag::END_STREAM != 0, payload.to_vec()));
                self.block_may_end(flags);
            }
            kind::CONTINUATION => {
                let (of, _, block) = self.block.as_mut().expect("a block to continue");
                assert_eq!(*of, stream, "continues another stream's block");
                block.extend_from_slice(payload);
                self.block_may_end(flags);
            }
            kind::RST_STREAM => {
                assert_eq!(payload.len(), 4, "RST_STREAM's length");
                self.streams.entry(stream).or_default().was_reset = true;
            }
            kind::SETTINGS => {
                assert!(payload.len().is_multiple_of(6), "SETTINGS' length");
                assert!(flags & flag::ACK == 0 || payload.is_empty(), "ACK with settings");
                self.has_settings = true;
            }
            kind::PING => assert_eq!(payload.len(), 8, "PING's length"),
            kind::GOAWAY => assert!(payload.len() >= 8, "GOAWAY's length"),
            kind::WINDOW_UPDATE => self.window_update(frame),
            _ => panic!("frame of type {kind}"),
        }
    }

    fn data(&mut self, frame: &Frame<'_>) {
        let length = frame.payload.len() as i64;
        let stream = self.streams.entry(frame.stream).or_default();
        assert!(stream.has_head, "DATA before HEADERS on {}", frame.stream);
        assert!(!stream.has_ended && !stream.was_reset, "DATA after the end of {}", frame.stream);
        stream.sent += length;
        self.sent += length;
        assert!(stream.sent <= self.initial_max + stream.granted, "stream window exceeded");
        assert!(self.sent <= self.granted, "connection window exceeded");
        stream.has_ended = frame.flags & flag::END_STREAM != 0;
    }

    fn block_may_end(&mut self, flags: u8) {
        if flags & flag::END_HEADERS == 0 {
            return;
        }
        let (id, end, block) = self.block.take().expect("it was put there");
        let mut names = Vec::new();
        let decoded = self.decoder.decode(&block, |name, _, _| names.push(name.to_vec()));
        assert_eq!(decoded, Ok(()), "our own header block");
        let stream = self.streams.entry(id).or_default();
        assert!(!stream.has_ended, "HEADERS after the end of {id}");
        let pseudo = names.iter().filter(|name| name.first() == Some(&b':')).count();
        if std::mem::replace(&mut stream.has_head, true) {
            assert!(!stream.was_reset, "trailers after the reset of {id}");
            assert!(end && pseudo == 0, "a second head on {id}");
        } else if self.endpoint == Endpoint::Server {
            assert!(names[0] == b":status" && pseudo == 1, "no response's head on {id}");
        } else {
            assert!(pseudo >= 3, "no request's head on {id}");
            assert!(id > self.last_opened && id % 2 == 1, "{id} after {}", self.last_opened);
            self.last_opened = id;
        }
        stream.has_ended = end;
    }

    fn window_update(&mut self, frame: &Frame<'_>) {
        let increment = u32::from_be_bytes(frame.payload.try_into().expect("its length"));
        assert!(increment > 0 && increment < 1 << 31, "increment {increment}");
        let increment = i64::from(increment);
        if frame.stream == 0 {
            self.advertised += increment;
            let open = self.advertised - self.received;
            assert!(open <= self.connection_window_max, "connection window of {open}");
        } else {
            let stream = self.streams.entry(frame.stream).or_default();
            stream.advertised += increment;
            let open = self.stream_window_min + stream.advertised - stream.received;
            assert!(open <= self.stream_window_max, "stream window of {open}");
        }
    }
}

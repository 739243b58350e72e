//! What an input means: bytes as they are, or a small grammar of frames that are mostly valid.
//!
//! In: a fuzzer's input. Out: [`Event`]s. Every input means something, and a byte more or less
//! changes little of it, so that the fuzzer can build on what it found.

use std::time::Duration;

use crate::check::{PREFACE, flag, kind};
use crate::services::PATHS;
use crate::transport::inside::HeaderEncoder;

/// What happens to a connection.
#[derive(Debug)]
pub enum Event {
    /// The peer sends these bytes.
    Given(Vec<u8>),
    /// From here on the peer takes so many bytes.
    Room(usize),
    Time(Duration),
}

/// An input, read from the front; zeros once it is used up.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.split_off(1).first().copied().unwrap_or(0)
    }

    /// A number, as one byte of the input chooses it: all small ones, and large ones near the edges.
    pub fn number(&mut self) -> u32 {
        const EDGES: [u32; 16] = [
            250,
            255,
            256,
            1_000,
            1_024,
            4_096,
            8_192,
            16_383,
            16_384,
            16_385,
            65_535,
            65_536,
            1 << 20,
            1 << 30,
            (1 << 31) - 1,
            u32::MAX,
        ];
        match self.byte() {
            small @ 0..0xf0 => small.into(),
            edge => EDGES[usize::from(edge - 0xf0)],
        }
    }

    /// The next bytes, `length` of them if there are so many.
    pub fn split_off(&mut self, length: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        first
    }
}

/// Where reads and writes are cut: pseudo-random from a seed, often not at all.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    state: u32,
    /// Of each 8 cuts, so many are real.
    often: u8,
}

impl Cuts {
    pub fn new(seed: u8) -> Self {
        Cuts { state: u32::from(seed) | 0x100, often: seed % 4 * 2 }
    }

    /// How much of `length` bytes goes at once; now and then nothing.
    pub fn next(&mut self, length: usize) -> usize {
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let random = (self.state >> 16) as usize;
        if random % 8 >= usize::from(self.often) {
            return length;
        }
        (random / 8 % 24).min(length)
    }
}

/// The input as it is, behind an opening that gets it past the handshake if `is_greeted`.
pub fn bytes(mut input: Input<'_>, opening: &[u8], is_greeted: bool) -> Vec<Event> {
    let mut all = if is_greeted { opening.to_vec() } else { Vec::new() };
    all.extend_from_slice(input.split_off(usize::MAX));
    vec![Event::Given(all)]
}

/// What a client says first: preface, SETTINGS, and the ACK of the server's.
pub fn client_opening() -> Vec<u8> {
    let mut opening = PREFACE.to_vec();
    opening.extend(server_opening());
    opening
}

/// What a server says first.
pub fn server_opening() -> Vec<u8> {
    let mut opening = Vec::new();
    frame(&mut opening, kind::SETTINGS, 0, 0, &[]);
    frame(&mut opening, kind::SETTINGS, flag::ACK, 0, &[]);
    opening
}

/// Appends a frame. A length that needs more than 24 bits is cut, as everything else is possible.
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The grammar: each turn reads what to do, and what it needs for that.
pub struct Grammar<'a> {
    input: Input<'a>,
    /// We are the client of the endpoint under test.
    is_client: bool,
    encoder: HeaderEncoder,
    /// The stream that we opened last.
    last: u32,
    given: Vec<u8>,
    events: Vec<Event>,
}

/// The most that an input's frames add up to: small inputs may mean large frames.
const GIVEN_BYTES_MAX: usize = 1 << 20;

impl<'a> Grammar<'a> {
    pub fn new(input: Input<'a>, is_client: bool) -> Self {
        Grammar {
            input,
            is_client,
            encoder: HeaderEncoder::default(),
            last: 0,
            given: Vec::new(),
            events: Vec::new(),
        }
    }

    pub fn events(mut self) -> Vec<Event> {
        if self.is_client {
            self.given.extend_from_slice(PREFACE);
        }
        frame(&mut self.given, kind::SETTINGS, 0, 0, &[]);
        let mut bytes = 0;
        while !self.input.is_empty() && bytes < GIVEN_BYTES_MAX {
            let before = self.given.len();
            self.turn();
            bytes += self.given.len().saturating_sub(before);
        }
        self.pause();
        self.events
    }

    fn turn(&mut self) {
        match self.input.byte() % 20 {
            0..=2 => self.head(),
            3..=5 => self.data(),
            6 => self.put(kind::RST_STREAM, |input| input.number().to_be_bytes().to_vec()),
            7 => self.settings(),
            8 => frame(&mut self.given, kind::SETTINGS, flag::ACK, 0, &[]),
            9 => {
                let is_drain = self.input.byte() % 2 == 0;
                let opaque = if is_drain { b"draining" } else { b"alive?!?" };
                frame(&mut self.given, kind::PING, self.input.byte() % 2, 0, opaque);
            }
            10 => self.put(kind::WINDOW_UPDATE, |input| input.number().to_be_bytes().to_vec()),
            11 => {
                let increment = self.input.number().to_be_bytes();
                frame(&mut self.given, kind::WINDOW_UPDATE, 0, 0, &increment);
            }
            12 => self.trailers(),
            13 => self.put(kind::PRIORITY, |input| {
                let mut priority = input.number().to_be_bytes().to_vec();
                priority.push(input.byte());
                priority
            }),
            14 => {
                let (last, code) = (self.input.number(), self.input.number());
                let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
                frame(&mut self.given, kind::GOAWAY, 0, 0, &payload);
            }
            15 => self.anything(),
            16 => {
                self.pause();
                let milliseconds = [1, 100, 1_100, 5_100, 10_100, 20_000, 61_000, 1_000_000];
                let choice = milliseconds[usize::from(self.input.byte()) % milliseconds.len()];
                self.events.push(Event::Time(Duration::from_millis(choice)));
            }
            17 => {
                self.pause();
                let room = match self.input.byte() {
                    255 => usize::MAX,
                    room => usize::from(room) * 64,
                };
                self.events.push(Event::Room(room));
            }
            18 => {
                let length = usize::from(self.input.byte() % 32);
                let bytes = self.input.split_off(length);
                self.given.extend_from_slice(bytes);
            }
            _ => self.pause(),
        }
    }

    /// What was said so far arrives now.
    fn pause(&mut self) {
        self.events.push(Event::Given(std::mem::take(&mut self.given)));
    }

    /// A stream that may be there: one of the last ones, mostly.
    fn stream(&mut self) -> u32 {
        match self.input.byte() {
            0xff => self.input.number(),
            back => self.last.saturating_sub(u32::from(back % 8) * 2).max(1),
        }
    }

    fn put(&mut self, kind: u8, payload: impl FnOnce(&mut Input<'a>) -> Vec<u8>) {
        let stream = self.stream();
        let payload = payload(&mut self.input);
        frame(&mut self.given, kind, 0, stream, &payload);
    }

    /// A request's or a response's head.
    fn head(&mut self) {
        let choice = self.input.byte();
        let path = PATHS[usize::from(choice) % PATHS.len()].as_bytes();
        let mut fields: Vec<(&[u8], &[u8])> = if self.is_client {
            self.last += 2 - self.last % 2;
            if self.last.is_multiple_of(2) {
                self.last -= 1;
            }
            vec![(b":method", b"POST"), (b":scheme", b"http"), (b":path", path)]
        } else {
            self.last = self.input.byte().into();
            let status: &[u8] = if choice & 8 == 0 { b"200" } else { b"103" };
            vec![(b":status", status)]
        };
        let more = self.input.byte();
        let long = [b'x'; 600];
        let optional: [(&[u8], &[u8]); 7] = [
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-timeout", b"1S"),
            (b"content-length", b"100"),
            (b"x-long", &long),
            (b"authorization", b"secret"),
            (b"connection", b"close"),
        ];
        // The last two only together with a third bit: they mostly end what could go on.
        for (bit, field) in optional.into_iter().enumerate() {
            if more >> bit & 1 == 1 && (bit != 6 || more & 0x80 != 0) {
                fields.push(field);
            }
        }
        self.block(self.last, choice, &fields);
    }

    fn trailers(&mut self) {
        let stream = self.stream();
        let choice = self.input.byte() | 0x80;
        self.block(stream, choice, &[(b"grpc-status", b"0"), (b"x-trailer", b"1")]);
    }

    /// A header block, ended, padded, prioritised and cut as `choice` says.
    fn block(&mut self, stream: u32, choice: u8, fields: &[(&[u8], &[u8])]) {
        let mut block = Vec::new();
        self.encoder.encode(fields.iter().map(|(name, value)| (*name, *value, false)), &mut block);
        let mut flags = if choice & 0x80 != 0 { flag::END_STREAM } else { 0 };
        let is_cut = choice & 0x40 != 0;
        let mut payload = Vec::new();
        if choice & 0x10 != 0 {
            flags |= flag::PADDED;
            payload.push(3);
        }
        if choice & 0x20 != 0 {
            flags |= flag::PRIORITY;
            payload.extend_from_slice(&self.input.number().to_be_bytes());
            payload.push(16);
        }
        let cut =
            if is_cut { usize::from(self.input.byte()).min(block.len()) } else { block.len() };
        payload.extend_from_slice(&block[..cut]);
        if choice & 0x10 != 0 {
            payload.extend_from_slice(&[0; 3]);
        }
        if !is_cut {
            return frame(
                &mut self.given,
                kind::HEADERS,
                flags | flag::END_HEADERS,
                stream,
                &payload,
            );
        }
        frame(&mut self.given, kind::HEADERS, flags, stream, &payload);
        if choice & 0x08 != 0 {
            self.pause();
        }
        frame(&mut self.given, kind::CONTINUATION, flag::END_HEADERS, stream, &block[cut..]);
    }

    fn data(&mut self) {
        let stream = self.stream();
        let choice = self.input.byte();
        let length = self.input.number().min(16_385) as usize;
        let mut flags = if choice & 1 != 0 { flag::END_STREAM } else { 0 };
        let mut payload = Vec::new();
        if choice & 2 != 0 {
            flags |= flag::PADDED;
            let padding = usize::from(choice >> 2).min(length.saturating_sub(1));
            payload.push(u8::try_from(padding).expect("six bits"));
        }
        payload.resize(length, choice);
        let repeats = if choice & 0x80 != 0 { self.input.byte() % 16 } else { 1 };
        for _ in 0..repeats {
            frame(&mut self.given, kind::DATA, flags, stream, &payload);
        }
    }

    fn settings(&mut self) {
        let entries = self.input.byte() % 8;
        let mut payload = Vec::new();
        for _ in 0..entries {
            payload.extend_from_slice(&u16::from(self.input.byte() % 9).to_be_bytes());
            payload.extend_from_slice(&self.input.number().to_be_bytes());
        }
        frame(&mut self.given, kind::SETTINGS, 0, 0, &payload);
    }

    /// A frame of any type, any flags, with a payload from the input.
    fn anything(&mut self) {
        let (kind, flags) = (self.input.byte() % 12, self.input.byte());
        let stream = self.stream();
        let length = usize::from(self.input.byte() % 64);
        let payload = self.input.split_off(length);
        frame(&mut self.given, kind, flags, stream, payload);
    }
}

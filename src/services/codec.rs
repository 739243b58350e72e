//! The codec of all our services: prost's messages, in buffers of the size that echoes have.
//!
//! On tonic's public API, for both transports alike; every message is decoded and encoded. What
//! differs from `tonic_prost::ProstCodec`:
//!
//! - a stream begins with small buffers instead of twice 8 KiB
//! - a small message is decoded from its bytes where they are, so that a `Bytes` field is a copy of its
//!   own instead of a counted slice of the stream's buffer
//! - an `EchoMessage` of one payload, as nearly every encoder writes it, is decoded in one step; whatever
//!   looks different is prost's
//! - an `EchoMessage` is encoded from its payload where it is: prost clones a `Bytes` to write it, which
//!   allocates a count for it, a quarter of an echo where many messages share a frame

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::proto::chat::ChatMessage;
use crate::proto::echo::EchoMessage;

/// What a stream's two buffers begin with: a few small messages. They grow to what messages need; tonic's
/// begin with 8 KiB each.
const BUFFER_BYTES: usize = 64;

/// tonic's own default: what is encoded before it is handed on.
pub(crate) const YIELD_BYTES: usize = 32 << 10;

/// Messages below this are copied out, larger ones are slices of the stream's buffer, which count on it. With
/// payloads of 1,000 bytes, a copy cost the server 16 ns more than the counts (user time, medians of 9
/// interleaved pairs, 2026-11-28).
const COPY_BYTES_MAX: usize = 512;

/// How a message is written: as prost does, or better.
pub(crate) trait Encode: Message + Sized {
    /// Bytes of the message as it is written.
    fn length(&self) -> usize {
        self.encoded_len()
    }

    /// Appends the message; the buffer has room for whatever is written.
    fn append(&self, into: &mut impl BufMut) {
        self.encode(into).expect("the buffer grows");
    }
}

/// How a message that lies in one piece is read: as prost does, or faster.
pub(crate) trait Decode: Message + Default {
    /// Takes a message whose large fields stay where they are. Err: prost's.
    fn take(from: &mut DecodeBuf<'_>) -> Result<Self, DecodeError> {
        Self::decode(from)
    }

    /// Err: prost's, whoever decodes.
    fn read(message: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(message)
    }
}

impl Encode for ChatMessage {}

impl Encode for String {}

impl Decode for ChatMessage {}

impl Decode for String {}

/// Tag of `EchoMessage.payload`: field 1, length-delimited.
const PAYLOAD: u8 = 0x0a;

impl Encode for EchoMessage {
    fn length(&self) -> usize {
        match self.payload.len() {
            0 => 0,
            length @ ..=0x7f => 2 + length,
            _ => self.encoded_len(),
        }
    }

    fn append(&self, into: &mut impl BufMut) {
        let length = self.payload.len();
        match u8::try_from(length) {
            Ok(0) => return,
            Ok(length @ ..=0x7f) => into.put_slice(&[PAYLOAD, length]),
            _ => {
                into.put_u8(PAYLOAD);
                prost::encoding::encode_varint(length as u64, into);
            }
        }
        into.put_slice(&self.payload);
    }
}

impl Decode for EchoMessage {
    // Inlined, it costs each small message of a frame 11 ns.
    #[inline(never)]
    fn take(from: &mut DecodeBuf<'_>) -> Result<Self, DecodeError> {
        let length = from.remaining();
        let head = match *from.chunk() {
            [PAYLOAD, low @ 0x80..=0xff, high @ 1..=0x7f, ..]
                if usize::from(low & 0x7f) + (usize::from(high) << 7) == length - 3 =>
            {
                3
            }
            _ => return Self::decode(from),
        };
        from.advance(head);
        Ok(EchoMessage { payload: from.copy_to_bytes(length - head) })
    }

    #[inline(always)]
    fn read(message: &[u8]) -> Result<Self, DecodeError> {
        // The length in its shortest form, of one byte or of two, and nothing behind the payload.
        let payload = match *message {
            [PAYLOAD, length @ ..=0x7f, ref payload @ ..]
                if usize::from(length) == payload.len() =>
            {
                payload
            }
            [PAYLOAD, low @ 0x80..=0xff, high @ 1..=0x7f, ref payload @ ..]
                if usize::from(low & 0x7f) + (usize::from(high) << 7) == payload.len() =>
            {
                payload
            }
            _ => return unusual(message),
        };
        Ok(EchoMessage { payload: Bytes::copy_from_slice(payload) })
    }
}

/// Out of line, so that what nearly every message is has few registers to save.
#[cold]
#[inline(never)]
fn unusual<M: Message + Default>(message: &[u8]) -> Result<M, DecodeError> {
    M::decode(message)
}

/// Encodes `Out`, decodes `In`.
#[derive(Debug)]
pub(crate) struct EchoCodec<Out, In>(PhantomData<fn(Out) -> In>);

impl<Out, In> Default for EchoCodec<Out, In> {
    fn default() -> Self {
        EchoCodec(PhantomData)
    }
}

impl<Out, In> Codec for EchoCodec<Out, In>
where
    Out: Encode + 'static,
    In: Decode + 'static,
{
    type Encode = Out;
    type Decode = In;
    type Encoder = EchoEncoder<Out>;
    type Decoder = EchoDecoder<In>;

    fn encoder(&mut self) -> Self::Encoder {
        EchoEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        EchoDecoder(PhantomData)
    }
}

/// Encodes `Out`.
#[derive(Debug)]
pub(crate) struct EchoEncoder<Out>(PhantomData<fn(Out)>);

impl<Out: Encode> Encoder for EchoEncoder<Out> {
    type Item = Out;
    type Error = Status;

    fn encode(&mut self, message: Out, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(message.length());
        message.append(into);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// As tonic's: the peer and we disagree on what the bytes mean.
#[cold]
fn told(error: DecodeError) -> Status {
    Status::internal(error.to_string())
}

/// Decodes `In`.
#[derive(Debug)]
pub(crate) struct EchoDecoder<In>(PhantomData<fn() -> In>);

impl<In: Decode> Decoder for EchoDecoder<In> {
    type Item = In;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        let length = from.remaining();
        let Some(message) = from.chunk().get(..length).filter(|_| length < COPY_BYTES_MAX) else {
            return In::take(from).map(Some).map_err(told);
        };
        // Two ends for one: a message that passes through a common variable is copied once more, and
        // read before it was written through, 8 ns of 63.
        match In::read(message) {
            Ok(message) => {
                from.advance(length);
                Ok(Some(message))
            }
            Err(error) => Err(told(error)),
        }
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tonic::Streaming;

    use super::*;

    #[test]
    fn an_echo_is_written_as_prost_writes_it_and_read_back() {
        for size in [0, 1, 8, 127, 128, 255, 256, 1_000, 16_383, 16_384, 20_000] {
            let message = EchoMessage { payload: Bytes::from(vec![7; size]) };
            let mut written = Vec::new();
            message.append(&mut written);
            assert_eq!(written, message.encode_to_vec(), "{size} bytes");
            assert_eq!(written.len(), message.length());
            assert_eq!(EchoMessage::read(&written), Ok(message), "{size} bytes");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_not_copied_is_read_as_prost_reads_it() {
        for size in [500, 508, 509, 510, 511, 512, 1_000, 16_383, 16_384, 20_000] {
            let plain = EchoMessage { payload: Bytes::from(vec![7; size]) }.encode_to_vec();
            let twice = [&plain[..], &[PAYLOAD, 3, 1, 2, 3]].concat();
            let unknown = [&plain[..], &[0x10, 1]].concat();
            let cut = plain[..size].to_vec();
            let longer = [&[PAYLOAD, 0x80, 0x80, 0], &plain[..]].concat();
            for message in [plain, twice, unknown, cut, longer] {
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                let body = Full::new(Bytes::from([&[0], &length[..], &message].concat()));
                let decoder = EchoCodec::<EchoMessage, EchoMessage>::default().decoder();
                let mut stream = Streaming::new_request(decoder, body, None, None);
                let got = stream.message().await.map_err(|status| status.message().to_owned());
                let expected = EchoMessage::decode(&message[..]).map_err(|error| error.to_string());
                assert_eq!(got, expected.map(Some), "{size} bytes, {} with all", message.len());
            }
        }
    }

    #[test]
    fn whatever_an_echo_looks_like_it_is_read_as_prost_reads_it() {
        // Every three bytes that steer the reading, before payloads of lengths around them.
        let steering = [0, 1, 2, 3, 8, PAYLOAD, 0x12, 0x7f, 0x80, 0x81, 0xff];
        for (first, second, third) in steering.iter().flat_map(|first| {
            let rest = steering.iter().flat_map(|second| steering.map(|third| (second, third)));
            rest.map(move |(second, third)| (*first, *second, third))
        }) {
            for length in (0..5).chain(126..131).chain(254..260) {
                let mut message = vec![first, second, third];
                message.resize(3 + length, 7);
                for message in [&message[..], &message[..2], &message[..1]] {
                    let expected = EchoMessage::decode(message);
                    assert_eq!(EchoMessage::read(message), expected, "{message:?}");
                }
            }
        }
    }
}

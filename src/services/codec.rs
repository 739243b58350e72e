//! The codec of all our services: prost's messages, in buffers of the size that echoes have.
//!
//! On tonic's public API, for both transports alike; every message is decoded and encoded. What
//! differs from `tonic_prost::ProstCodec`:
//!
//! - a stream begins with small buffers instead of twice 8 KiB
//! - a small message is decoded from its bytes where they are, so that a `Bytes` field is a copy of its
//!   own instead of a counted slice of the stream's buffer
//! - an `EchoMessage` is encoded from its payload where it is: prost clones a `Bytes` to write it, which
//!   allocates a count for it, a quarter of an echo where many messages share a frame

use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::proto::chat::ChatMessage;
use crate::proto::echo::EchoMessage;

/// What a stream's two buffers begin with. They grow to what messages need.
const BUFFER_BYTES: usize = 256;

/// tonic's own default: what is encoded before it is handed on.
const YIELD_BYTES: usize = 32 << 10;

/// Messages below this are copied out, larger ones sliced. Where the line best lies is not measured yet.
const COPY_BYTES_MAX: usize = 1_024;

/// How a message is written: as prost does, or better.
pub(crate) trait Encode: Message + Sized {
    /// Appends the message; the buffer has room for whatever is written.
    fn append(&self, into: &mut impl BufMut) {
        self.encode(into).expect("the buffer grows");
    }
}

impl Encode for ChatMessage {}

impl Encode for String {}

impl Encode for EchoMessage {
    fn append(&self, into: &mut impl BufMut) {
        /// Field 1, length-delimited.
        const PAYLOAD: u8 = 0x0a;
        if self.payload.is_empty() {
            return;
        }
        into.put_u8(PAYLOAD);
        prost::encoding::encode_varint(self.payload.len() as u64, into);
        into.put_slice(&self.payload);
    }
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
    In: Message + Default + 'static,
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
        into.reserve(message.encoded_len());
        message.append(into);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// Decodes `In`.
#[derive(Debug)]
pub(crate) struct EchoDecoder<In>(PhantomData<fn() -> In>);

impl<In: Message + Default> Decoder for EchoDecoder<In> {
    type Item = In;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        let length = from.remaining();
        let decoded = match from.chunk().get(..length) {
            Some(message) if length < COPY_BYTES_MAX => {
                let decoded = In::decode(message);
                from.advance(length);
                decoded
            }
            _ => In::decode(from),
        };
        // As tonic's: the peer and we disagree on what the bytes mean.
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn an_echo_is_written_as_prost_writes_it() {
        for size in [0, 1, 8, 127, 128, 20_000] {
            let message = EchoMessage { payload: Bytes::from(vec![7; size]) };
            let mut written = Vec::new();
            message.append(&mut written);
            assert_eq!(written, message.encode_to_vec(), "{size} bytes");
        }
    }
}

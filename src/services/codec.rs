//! The codec of all our services: prost's messages, in buffers of the size that echoes have.
//!
//! On tonic's public API, for both transports alike; every message is decoded and encoded. What
//! differs from `tonic_prost::ProstCodec`: a stream begins with small buffers instead of twice 8 KiB,
//! and a small message is decoded from its bytes where they are, so that a `Bytes` field is a copy of
//! its own instead of a counted slice of the stream's buffer: four atomic operations fewer.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What a stream's two buffers begin with. They grow to what messages need.
const BUFFER_BYTES: usize = 256;

/// tonic's own default: what is encoded before it is handed on.
const YIELD_BYTES: usize = 32 << 10;

/// Messages below this are copied out, larger ones sliced: the copy costs less than the counting.
const COPY_BYTES_MAX: usize = 1_024;

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
    Out: Message + 'static,
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

impl<Out: Message> Encoder for EchoEncoder<Out> {
    type Item = Out;
    type Error = Status;

    fn encode(&mut self, message: Out, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(into).expect("the buffer grows");
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

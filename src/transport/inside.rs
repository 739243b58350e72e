//! What benches and fuzz targets see of the parts that are private. No API: it may change any day.
//!
//! In and out: plain bytes, so that nothing of those parts has to become public itself.

use super::frame::{HEAD_BYTES, Head};
use super::hpack;

/// The frames at the beginning of `bytes` that are complete: type, flags, stream and payload.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (u8, u8, u32, &[u8])> {
    std::iter::from_fn(move || {
        let head = Head::parse(bytes)?;
        let payload = bytes.get(HEAD_BYTES..HEAD_BYTES + head.length)?;
        bytes = &bytes[HEAD_BYTES + head.length..];
        Some((head.kind, head.flags, head.stream, payload))
    })
}

/// A frame of any kind, with a length that tells the truth: at most 2^24 - 1 bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let head = Head { length: payload.len(), kind, flags, stream };
    [&head.bytes(), payload].concat()
}

/// The receiving half of a connection's header compression.
#[derive(Debug)]
pub struct HeaderDecoder(hpack::Decoder);

impl Default for HeaderDecoder {
    fn default() -> Self {
        HeaderDecoder(hpack::Decoder::new(hpack::TABLE_BYTES_DEFAULT))
    }
}

impl HeaderDecoder {
    /// Calls `field` with name, value and whether it must never be indexed, for each field of a block.
    ///
    /// Err: why the block is malformed; then nothing may be decoded any more.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8], bool),
    ) -> Result<(), &'static str> {
        self.0
            .decode(block, |found| field(found.name, found.value, found.never_indexed))
            .map_err(hpack::HpackError::reason)
    }
}

/// The sending half.
#[derive(Debug)]
pub struct HeaderEncoder(hpack::Encoder);

impl Default for HeaderEncoder {
    fn default() -> Self {
        HeaderEncoder(hpack::Encoder::new(hpack::TABLE_BYTES_DEFAULT))
    }
}

impl HeaderEncoder {
    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_peer_table_bytes_max(&mut self, max: usize) {
        self.0.set_peer_table_bytes_max(max);
    }

    /// Appends the block of `fields` (name, value, whether it is sensitive) to `out`.
    pub fn encode<'a>(
        &mut self,
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8], bool)>,
        out: &mut Vec<u8>,
    ) {
        self.0.begin(out);
        for (name, value, sensitive) in fields {
            self.0.field(name, value, sensitive, out);
        }
    }
}

//! What blocks are made of: integers and strings (RFC 7541 section 5), and how fields begin (section 6).

use std::ops::Range;

use super::HpackError;
use super::huffman::{huffman_bytes, huffman_decode, huffman_encode};

/// How a field or an update begins (section 6): a bit pattern over the prefix of an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Representation {
    pub(super) pattern: u8,
    pub(super) prefix_bits: u32,
}

pub(super) const INDEXED: Representation = Representation { pattern: 0x80, prefix_bits: 7 };
pub(super) const INSERTED: Representation = Representation { pattern: 0x40, prefix_bits: 6 };
pub(super) const SIZE_UPDATE: Representation = Representation { pattern: 0x20, prefix_bits: 5 };
pub(super) const NEVER_INDEXED: Representation = Representation { pattern: 0x10, prefix_bits: 4 };
pub(super) const PLAIN: Representation = Representation { pattern: 0x00, prefix_bits: 4 };
/// Strings begin the same way (section 5.2).
const HUFFMAN_STRING: Representation = Representation { pattern: 0x80, prefix_bits: 7 };
const RAW_STRING: Representation = Representation { pattern: 0x00, prefix_bits: 7 };

/// What is left of a block.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

/// A string of a block: a part of the block, or unpacked to the scratch buffer.
pub(super) enum Text<'a> {
    Slice(&'a [u8]),
    Scratch(Range<usize>),
}

impl<'a> Text<'a> {
    pub(super) fn bytes<'b>(self, scratch: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Slice(bytes) => bytes,
            Self::Scratch(range) => &scratch[range],
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    /// An integer (section 5.1) that begins in the low bits of `first`, which has been read.
    pub(super) fn integer(&mut self, first: u8, kind: Representation) -> Result<usize, HpackError> {
        let prefix_max = (1_u32 << kind.prefix_bits) - 1;
        let prefix = u32::from(first) & prefix_max;
        if prefix < prefix_max {
            return Ok(prefix as usize);
        }
        let mut value = u64::from(prefix_max);
        for byte in 0..CONTINUATION_BYTES_MAX {
            let next = self.next().ok_or(HpackError::Truncated)?;
            value += u64::from(next & 0x7f) << (7 * byte);
            if next & 0x80 == 0 {
                return match u32::try_from(value) {
                    Ok(value) if value <= INTEGER_MAX => Ok(value as usize),
                    _ => Err(HpackError::IntegerOverflow),
                };
            }
        }
        Err(HpackError::IntegerOverflow)
    }

    /// A string (section 5.2); Huffman-coded ones are appended to `scratch`.
    pub(super) fn string(&mut self, scratch: &mut Vec<u8>) -> Result<Text<'a>, HpackError> {
        let first = self.next().ok_or(HpackError::Truncated)?;
        let length = self.integer(first, RAW_STRING)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
        self.rest = rest;
        if first & HUFFMAN_STRING.pattern == 0 {
            return Ok(Text::Slice(bytes));
        }
        let start = scratch.len();
        huffman_decode(bytes, scratch)?;
        Ok(Text::Scratch(start..scratch.len()))
    }
}

/// Appends an integer behind its representation's pattern (section 5.1).
pub(super) fn put_integer(out: &mut Vec<u8>, kind: Representation, value: usize) {
    let prefix_max = (1 << kind.prefix_bits) - 1;
    if value < prefix_max {
        return out.push(kind.pattern | low_byte(value));
    }
    out.push(kind.pattern | low_byte(prefix_max));
    let mut rest = value - prefix_max;
    while rest >= 0x80 {
        out.push(low_byte(rest) | 0x80);
        rest >>= 7;
    }
    out.push(low_byte(rest));
}

fn low_byte(value: usize) -> u8 {
    value.to_le_bytes()[0]
}

/// Appends a string (section 5.2), Huffman-coded if that is shorter.
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let coded_bytes = huffman_bytes(text);
    if coded_bytes < text.len() {
        put_integer(out, HUFFMAN_STRING, coded_bytes);
        huffman_encode(text, out);
    } else {
        put_integer(out, RAW_STRING, text.len());
        out.extend_from_slice(text);
    }
}

/// The largest integer taken. Nothing in HPACK needs more; section 5.1 asks for a limit.
pub(super) const INTEGER_MAX: u32 = i32::MAX as u32;

/// Bytes of an integer behind its prefix: as many as [`INTEGER_MAX`] needs.
const CONTINUATION_BYTES_MAX: u32 = 5;

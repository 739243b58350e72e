//! The Huffman code of strings (RFC 7541 section 5.2, Appendix B).

use super::HpackError;

/// Length of the coded text.
pub(super) fn huffman_bytes(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|&byte| usize::from(CODE_BITS[usize::from(byte)])).sum();
    bits.div_ceil(8)
}

/// Appends the coded text.
pub(super) fn huffman_encode(text: &[u8], out: &mut Vec<u8>) {
    let mut pending = 0_u64;
    let mut held = 0;
    for &byte in text {
        let bits = u32::from(CODE_BITS[usize::from(byte)]);
        pending = pending << bits | u64::from(CODE.codes[usize::from(byte)]);
        held += bits;
        if held >= 32 {
            held -= 32;
            let [.., a, b, c, d] = (pending >> held).to_be_bytes();
            out.extend_from_slice(&[a, b, c, d]);
        }
    }
    // The padding is the begin of the end-of-string code: ones.
    let left_aligned = (pending << (63 - held) << 1) | (u64::MAX >> held);
    out.extend_from_slice(&left_aligned.to_be_bytes()[..held.div_ceil(8) as usize]);
}

/// Appends the text of a Huffman-coded string (section 5.2, Appendix B).
pub(super) fn huffman_decode(mut coded: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let start = out.len();
    // No code is shorter than 5 bits; a look-up writes two bytes even if it means one.
    out.resize(start + coded.len() * 8 / 5 + 2, 0);
    let text = &mut out[start..];
    let mut at = 0;
    // The next bits, left-aligned: `held` of them, and behind them zeros or bits that the next
    // refill brings again.
    let mut bits = 0_u64;
    let mut held = 0;
    loop {
        if let Some(word) = coded.first_chunk::<8>() {
            bits |= u64::from_be_bytes(*word) >> held;
            let bytes = (63 - held) / 8;
            coded = &coded[bytes as usize..];
            held += bytes * 8;
        } else {
            while held <= 56
                && let Some((&byte, rest)) = coded.split_first()
            {
                bits |= u64::from(byte) << (56 - held);
                held += 8;
                coded = rest;
            }
        }
        while held >= LOOKUP_BITS {
            let looked_up = LOOKUP[(bits >> (64 - LOOKUP_BITS)) as usize];
            if looked_up.symbols == 0 {
                break;
            }
            text[at..at + 2].copy_from_slice(&looked_up.text);
            at += usize::from(looked_up.symbols);
            bits <<= looked_up.bits;
            held -= u32::from(looked_up.bits);
        }
        // A long code, or too few bits for a look-up.
        if held < CODE_BITS_MAX && !coded.is_empty() {
            continue;
        }
        // Past the end stand ones, as in the padding.
        let (symbol, code_bits) = code_at(bits | u64::MAX.checked_shr(held).unwrap_or(0));
        if code_bits > held {
            break;
        }
        text[at] = u8::try_from(symbol).map_err(|_| HpackError::HuffmanEos)?;
        at += 1;
        bits <<= code_bits;
        held -= code_bits;
    }
    out.truncate(start + at);
    let padded = held < 8 && bits.leading_ones() >= held;
    if padded { Ok(()) } else { Err(HpackError::HuffmanPadding) }
}

/// The symbol whose code begins `bits`, and the code's length.
///
/// By the canonical order: the codes of a length are consecutive numbers, and shorter codes are
/// smaller than longer ones (all of them left-aligned).
fn code_at(bits: u64) -> (u16, u32) {
    let next = (bits >> (64 - CODE_BITS_MAX)) as u32;
    for (length, class) in (1..).zip(&CODE.classes) {
        if next < class.end {
            let rank = class.first_rank + ((next - class.first) >> (CODE_BITS_MAX - length));
            return (CODE.ranked[rank as usize], length);
        }
    }
    (END_OF_STRING, CODE_BITS_MAX)
}

/// The Huffman code in the forms that encoding and decoding need.
pub(super) struct HuffmanCode {
    /// By symbol, right-aligned.
    pub(super) codes: [u32; 257],
    /// By length, from 1 bit on.
    classes: [CodeClass; CODE_BITS_MAX as usize],
    /// Symbols by length of the code, then by value: the order of the codes.
    ranked: [u16; 257],
}

/// The codes of one length, left-aligned in [`CODE_BITS_MAX`] bits: `first..end`.
#[derive(Clone, Copy)]
struct CodeClass {
    first: u32,
    end: u32,
    first_rank: u32,
}

pub(super) static CODE: HuffmanCode = huffman_code();

/// Numbers the codes from their lengths: Appendix B is a canonical code.
const fn huffman_code() -> HuffmanCode {
    let none = CodeClass { first: 0, end: 0, first_rank: 0 };
    let mut code =
        HuffmanCode { codes: [0; 257], classes: [none; CODE_BITS_MAX as usize], ranked: [0; 257] };
    let mut next = 0;
    let mut rank: u32 = 0;
    let mut bits = 1;
    while bits <= CODE_BITS_MAX {
        let unused = CODE_BITS_MAX - bits;
        let (first, first_rank) = (next, rank);
        let mut symbol = 0;
        while symbol <= END_OF_STRING {
            if CODE_BITS[symbol as usize] as u32 == bits {
                code.codes[symbol as usize] = next >> unused;
                code.ranked[rank as usize] = symbol;
                next += 1 << unused;
                rank += 1;
            }
            symbol += 1;
        }
        code.classes[bits as usize - 1] = CodeClass { first, end: next, first_rank };
        bits += 1;
    }
    code
}

/// What the next [`LOOKUP_BITS`] bits of a Huffman-coded string begin with.
#[derive(Clone, Copy)]
struct LookUp {
    text: [u8; 2],
    /// Bytes of `text` that count; 0 if the first code is longer than the look-up.
    symbols: u8,
    /// Length of their codes.
    bits: u8,
}

static LOOKUP: [LookUp; 1 << LOOKUP_BITS] = {
    let code = huffman_code();
    let mut one = [LookUp { text: [0; 2], symbols: 0, bits: 0 }; 1 << LOOKUP_BITS];
    let mut symbol: u8 = 0;
    loop {
        let bits = CODE_BITS[symbol as usize];
        if bits as u32 <= LOOKUP_BITS {
            let unused = LOOKUP_BITS - bits as u32;
            let first = (code.codes[symbol as usize] << unused) as usize;
            let mut behind = 0;
            while behind < 1 << unused {
                one[first + behind] = LookUp { text: [symbol, 0], symbols: 1, bits };
                behind += 1;
            }
        }
        if symbol == u8::MAX {
            break;
        }
        symbol += 1;
    }
    let mut two = one;
    let mut next = 0;
    while next < two.len() {
        let first = one[next];
        let second = one[(next << first.bits) % one.len()];
        let bits = first.bits + second.bits;
        if first.symbols == 1 && second.symbols == 1 && bits as u32 <= LOOKUP_BITS {
            two[next] = LookUp { text: [first.text[0], second.text[0]], symbols: 2, bits };
        }
        next += 1;
    }
    two
};

/// Bits that one look-up decodes: two letters or digits in most cases, from a table of 8 KiB.
/// 12 bits read a gRPC path no faster, a long token by a seventh; 8 bits need a third longer for
/// the path. Re-measure with a larger cache.
const LOOKUP_BITS: u32 = 11;

/// The end-of-string symbol, behind the 256 bytes.
const END_OF_STRING: u16 = 256;

const CODE_BITS_MAX: u32 = 30;

/// Lengths of the Huffman codes (Appendix B), by symbol.
#[rustfmt::skip]
pub(super) static CODE_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

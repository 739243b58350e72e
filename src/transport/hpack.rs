//! Header blocks in and out: HPACK (RFC 7541) for one connection, sans-IO.
//!
//! In: whole header blocks (HEADERS and CONTINUATION payloads joined), or fields to send.
//! Out: the fields of a block, in order and as slices; or the bytes of a block.
//! [`Decoder`] and [`Encoder`] each own one dynamic table; nothing is allocated before the first
//! entry. Decoding is linear in the block: a reference to a table entry costs the same whatever
//! the entry's length, so it is the callback that counts what a block unpacks to.
//! Never: judges names or values (lower case, pseudo-header order, list size: the caller's), goes
//! on after an error (the table is then undefined: `COMPRESSION_ERROR`, RFC 9113 section 4.3), or
//! shows header text in `Debug`.

mod decoder;
mod encoder;
mod huffman;
mod primitives;
mod static_table;
mod table;

pub(crate) use self::decoder::Decoder;
pub(crate) use self::encoder::Encoder;

/// One field of a header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// As sent; not validated.
    pub(crate) name: &'a [u8],
    /// As sent; not validated.
    pub(crate) value: &'a [u8],
    /// The sender forbade every hop to index it (RFC 7541 section 6.2.3).
    pub(crate) never_indexed: bool,
}

/// Why a block cannot be decoded; each is a `COMPRESSION_ERROR` of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HpackError {
    /// The block ends inside an integer or a string.
    Truncated,
    /// An integer above 31 bits or longer than its five bytes (section 5.1).
    IntegerOverflow,
    /// Index 0, which names nothing (section 6.1).
    IndexZero,
    /// An index past the last entry of the dynamic table (section 2.3.3).
    IndexBeyondTable,
    /// The end-of-string symbol inside a string (section 5.2).
    HuffmanEos,
    /// A string's last bits are neither a symbol nor at most seven one bits (section 5.2).
    HuffmanPadding,
    /// A table size above the one we announced (section 6.3).
    SizeUpdateTooLarge,
    /// A table size update behind a field (section 4.2).
    SizeUpdateLate,
    /// More than two table size updates in a block (section 4.2 needs no third).
    SizeUpdateRepeated,
    /// We shrank the table and the next block does not begin with a size that fits (section 4.2).
    SizeUpdateMissing,
    /// More fields than [`Decoder::limit_fields`] allows; the block is not decoded to its end.
    TooManyFields,
}

impl HpackError {
    /// For logs and GOAWAY debug data.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "header block ends inside a field",
            Self::IntegerOverflow => "header block integer exceeds 31 bits",
            Self::IndexZero => "header block refers to index 0",
            Self::IndexBeyondTable => "header block refers past the end of the dynamic table",
            Self::HuffmanEos => "Huffman string contains the end-of-string symbol",
            Self::HuffmanPadding => "Huffman string is not padded with at most seven one bits",
            Self::SizeUpdateTooLarge => "dynamic table size update exceeds the announced maximum",
            Self::SizeUpdateLate => "dynamic table size update is not at the begin of the block",
            Self::SizeUpdateRepeated => "header block has more than two dynamic table size updates",
            Self::SizeUpdateMissing => "dynamic table size update is missing after it was lowered",
            Self::TooManyFields => "too_many_header_fields",
        }
    }
}

/// SETTINGS_HEADER_TABLE_SIZE unless set (RFC 9113 section 6.5.2).
pub(crate) const TABLE_BYTES_DEFAULT: usize = 4096;

#[cfg(test)]
mod tests;

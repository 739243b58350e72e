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

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

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
    /// An integer above [`INTEGER_MAX`] or longer than [`CONTINUATION_BYTES_MAX`].
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
        }
    }
}

/// The receiving half of a connection's HPACK state.
pub(crate) struct Decoder {
    table: Table,
    /// Huffman output of the field at hand, and names that an insertion may evict.
    scratch: Vec<u8>,
    /// What we announced: the largest size that an update may set.
    table_bytes_max: u32,
    /// Set once we shrank the table: the next block must begin with a size no larger than this.
    size_owed: Option<u32>,
}

impl Decoder {
    /// `table_bytes_max` is the size in force from the first block on: [`TABLE_BYTES_DEFAULT`] on
    /// a new connection, whatever our first SETTINGS say, until the peer has acknowledged them.
    pub(crate) fn new(table_bytes_max: usize) -> Self {
        let max = table_bytes(table_bytes_max);
        Self { table: Table::new(max), scratch: Vec::new(), table_bytes_max: max, size_owed: None }
    }

    /// The peer acknowledged our SETTINGS_HEADER_TABLE_SIZE.
    ///
    /// A size below the one in force evicts at once, and makes an update in the next block a duty
    /// (section 4.2; nghttp2 insists too, h2 0.4 does not). A larger one waits for the peer's
    /// update.
    #[cfg(test)]
    pub(crate) fn set_table_bytes_max(&mut self, max: usize) {
        let max = table_bytes(max);
        self.table_bytes_max = max;
        if max < self.table.size_max {
            self.table.set_size_max(max);
            self.size_owed = Some(max);
        }
    }

    /// Decodes one complete block and calls `field` for each of its fields, in order.
    ///
    /// A block whose fields nobody wants must be decoded all the same: it changes the table.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(Field<'_>),
    ) -> Result<(), HpackError> {
        let mut reader = Reader { rest: block };
        self.size_updates(&mut reader)?;
        while let Some(first) = reader.next() {
            if first & INDEXED.pattern != 0 {
                let (name, value) = self.table.field(reader.integer(first, INDEXED)?)?;
                field(Field { name, value, never_indexed: false });
            } else if first & INSERTED.pattern != 0 {
                self.inserted_literal(first, &mut reader, &mut field)?;
            } else if first & SIZE_UPDATE.pattern != 0 {
                return Err(HpackError::SizeUpdateLate);
            } else {
                self.plain_literal(first, &mut reader, &mut field)?;
            }
        }
        if self.scratch.capacity() > SCRATCH_BYTES_KEPT {
            self.scratch = Vec::new();
        }
        Ok(())
    }

    /// Bytes on the heap.
    #[cfg(test)]
    pub(crate) fn bytes_held(&self) -> usize {
        self.table.bytes_held() + self.scratch.capacity()
    }

    /// The updates that may open a block (section 4.2): the smallest size since the last block,
    /// if the size shrank and grew again, and the final one.
    fn size_updates(&mut self, reader: &mut Reader<'_>) -> Result<(), HpackError> {
        let mut updates = 0;
        while let Some(&first) = reader.rest.first()
            && first >> SIZE_UPDATE.prefix_bits == SIZE_UPDATE.pattern >> SIZE_UPDATE.prefix_bits
        {
            reader.next();
            let max = table_bytes(reader.integer(first, SIZE_UPDATE)?);
            updates += 1;
            if updates > SIZE_UPDATES_MAX {
                return Err(HpackError::SizeUpdateRepeated);
            }
            if max > self.table_bytes_max {
                return Err(HpackError::SizeUpdateTooLarge);
            }
            if self.size_owed.take().is_some_and(|owed| max > owed) {
                return Err(HpackError::SizeUpdateMissing);
            }
            self.table.set_size_max(max);
        }
        if self.size_owed.is_some() { Err(HpackError::SizeUpdateMissing) } else { Ok(()) }
    }

    /// A literal that enters the table (section 6.2.1), whose first byte has been read.
    fn inserted_literal(
        &mut self,
        first: u8,
        reader: &mut Reader<'_>,
        field: &mut impl FnMut(Field<'_>),
    ) -> Result<(), HpackError> {
        let Self { table, scratch, .. } = self;
        scratch.clear();
        let name = match reader.integer(first, INSERTED)? {
            0 => reader.string(scratch)?,
            index => {
                // A copy: the insertion may evict the entry that lends its name (section 4.4).
                scratch.extend_from_slice(table.field(index)?.0);
                Text::Scratch(0..scratch.len())
            }
        };
        let value = reader.string(scratch)?;
        let (name, value) = (name.bytes(scratch), value.bytes(scratch));
        field(Field { name, value, never_indexed: false });
        table.insert(name, value);
        Ok(())
    }

    /// A literal that leaves the table alone (sections 6.2.2, 6.2.3), whose first byte has been
    /// read.
    fn plain_literal(
        &mut self,
        first: u8,
        reader: &mut Reader<'_>,
        field: &mut impl FnMut(Field<'_>),
    ) -> Result<(), HpackError> {
        let Self { table, scratch, .. } = self;
        scratch.clear();
        let name = match reader.integer(first, PLAIN)? {
            0 => reader.string(scratch)?,
            index => Text::Slice(table.field(index)?.0),
        };
        let value = reader.string(scratch)?;
        let never_indexed = first & NEVER_INDEXED.pattern != 0;
        field(Field { name: name.bytes(scratch), value: value.bytes(scratch), never_indexed });
        Ok(())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("table", &self.table)
            .field("table_bytes_max", &self.table_bytes_max)
            .finish_non_exhaustive()
    }
}

/// The sending half of a connection's HPACK state.
pub(crate) struct Encoder {
    table: Table,
    /// Our own cap, whatever the peer would allow.
    table_bytes_max: u32,
    /// Sizes that the next block must announce: the smallest since the last block, and the final.
    sizes_owed: Option<(u32, u32)>,
}

impl Encoder {
    /// `table_bytes_max` is our own cap. The peer's is [`TABLE_BYTES_DEFAULT`] until it says more.
    pub(crate) fn new(table_bytes_max: usize) -> Self {
        let mut encoder = Self {
            table: Table::new(table_bytes(TABLE_BYTES_DEFAULT)),
            table_bytes_max: table_bytes(table_bytes_max),
            sizes_owed: None,
        };
        encoder.set_peer_table_bytes_max(TABLE_BYTES_DEFAULT);
        encoder
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE; to be called in the order of its SETTINGS frames,
    /// before the next block.
    pub(crate) fn set_peer_table_bytes_max(&mut self, max: usize) {
        let max = table_bytes(max).min(self.table_bytes_max);
        let (lowest, last) = self.sizes_owed.unwrap_or((self.table.size_max, self.table.size_max));
        if max != last {
            self.sizes_owed = Some((lowest.min(max), max));
        }
    }

    /// Begins a block: announces a changed table size (section 4.2). Every block needs this call,
    /// also one without fields.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        let Some((lowest, last)) = self.sizes_owed.take() else { return };
        if lowest < last && lowest < self.table.size_max {
            self.table.set_size_max(lowest);
            put_integer(out, SIZE_UPDATE, lowest as usize);
        }
        self.table.set_size_max(last);
        put_integer(out, SIZE_UPDATE, last as usize);
    }

    /// Appends a field to the block; `name` must be lower case.
    ///
    /// `sensitive` ones, and those that [`Self::indexing`] finds secret, are never indexed: not
    /// here and not on a later hop (section 7.1.3).
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool, out: &mut Vec<u8>) {
        let static_name = static_name(name);
        if let Some(index) = static_name.and_then(|index| static_field(index, name, value))
            && !sensitive
        {
            return put_integer(out, INDEXED, index);
        }
        let found = self.table.find(name, value, static_name.is_none());
        if let Some(Found::Field(index)) = found
            && !sensitive
        {
            return put_integer(out, INDEXED, index);
        }
        let name_index = static_name.or(found.map(Found::index));
        let kind = if sensitive { NEVER_INDEXED } else { self.indexing(name, value) };
        put_integer(out, kind, name_index.unwrap_or(0));
        if name_index.is_none() {
            put_string(out, name);
        }
        put_string(out, value);
        if kind == INSERTED {
            self.table.insert(name, value);
        }
    }

    /// Bytes on the heap.
    #[cfg(test)]
    pub(crate) fn bytes_held(&self) -> usize {
        self.table.bytes_held()
    }

    /// How a field that stands in neither table is sent.
    ///
    /// Kept out of the table are secrets, which a peer could otherwise guess from the sizes of
    /// blocks (section 7.1), and values that would evict others without ever being repeated.
    fn indexing(&self, name: &[u8], value: &[u8]) -> Representation {
        match name {
            b"authorization" | b"proxy-authorization" | b"set-cookie" => NEVER_INDEXED,
            b"cookie" if value.len() < COOKIE_BYTES_GUESSABLE => NEVER_INDEXED,
            // A gRPC path names a method and repeats; a query mostly does not.
            b":path" if value.contains(&b'?') => PLAIN,
            b"age" | b"content-length" | b"content-range" | b"date" | b"etag" | b"grpc-message"
            | b"grpc-timeout" | b"if-modified-since" | b"if-none-match" | b"last-modified"
            | b"location" | b"traceparent" | b"x-request-id" => PLAIN,
            // Binary metadata: trace contexts, error details.
            _ if name.ends_with(b"-bin") => PLAIN,
            _ if value.len() > VALUE_BYTES_INDEXED_MAX => PLAIN,
            _ if entry_size(name, value) > self.table.size_max as usize / 2 => PLAIN,
            _ => INSERTED,
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("table", &self.table)
            .field("table_bytes_max", &self.table_bytes_max)
            .field("sizes_owed", &self.sizes_owed)
            .finish()
    }
}

/// The dynamic table (section 2.3.2): names and values back to back, oldest first.
///
/// Evicted entries leave a gap at the front of `bytes`, which is closed when room is needed and it
/// is more than half as long as what lives: every entry is one slice, and each evicted byte pays
/// for at most two that move.
struct Table {
    bytes: Vec<u8>,
    entries: VecDeque<Entry>,
    /// Sum of the entries' [`entry_size`].
    size: u32,
    /// The size in force.
    size_max: u32,
}

/// Where an entry stands in [`Table::bytes`]: the name begins at `start`, the value follows.
#[derive(Clone, Copy)]
struct Entry {
    start: u32,
    name_bytes: u32,
    value_bytes: u32,
}

/// What [`Table::find`] found, by its index in a block.
#[derive(Clone, Copy)]
enum Found {
    Field(usize),
    Name(usize),
}

impl Found {
    fn index(self) -> usize {
        match self {
            Self::Field(index) | Self::Name(index) => index,
        }
    }
}

impl Table {
    fn new(size_max: u32) -> Self {
        Self { bytes: Vec::new(), entries: VecDeque::new(), size: 0, size_max }
    }

    /// The field at an index of the joint address space (section 2.3.3).
    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let below = index.checked_sub(1).ok_or(HpackError::IndexZero)?;
        match below.checked_sub(STATIC.len()) {
            None => Ok(STATIC[below]),
            Some(age) => {
                let newer_first = self.entries.len().checked_sub(age + 1);
                let at = newer_first.ok_or(HpackError::IndexBeyondTable)?;
                Ok(self.name_and_value(self.entries[at]))
            }
        }
    }

    /// The newest entry that equals the field, or else, if `or_name`, the newest of its name.
    ///
    /// A linear search by lengths: a handful of entries in practice, and an entry takes at least
    /// [`ENTRY_OVERHEAD`] of the table's size.
    fn find(&self, name: &[u8], value: &[u8], or_name: bool) -> Option<Found> {
        let mut found = None;
        for (age, &entry) in self.entries.iter().rev().enumerate() {
            let same_length = entry.value_bytes as usize == value.len();
            let of_interest = same_length || (or_name && found.is_none());
            if !of_interest || entry.name_bytes as usize != name.len() {
                continue;
            }
            let (entry_name, entry_value) = self.name_and_value(entry);
            if entry_name == name {
                let index = STATIC.len() + 1 + age;
                if entry_value == value {
                    return Some(Found::Field(index));
                }
                found = found.or(Some(Found::Name(index)));
            }
        }
        found
    }

    /// Enters a field and evicts the oldest until it fits; one that never fits only evicts
    /// (section 4.4).
    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = match u32::try_from(entry_size(name, value)) {
            Ok(size) if size <= self.size_max => size,
            _ => return self.evict_to(0),
        };
        self.evict_to(self.size_max - size);
        self.make_room(name.len() + value.len());
        self.entries.push_back(Entry {
            start: length(self.bytes.len()),
            name_bytes: length(name.len()),
            value_bytes: length(value.len()),
        });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += size;
    }

    fn set_size_max(&mut self, size_max: u32) {
        self.evict_to(size_max);
        if size_max < self.size_max {
            self.close_gap();
            self.bytes.shrink_to_fit();
            self.entries.shrink_to_fit();
        }
        self.size_max = size_max;
    }

    fn evict_to(&mut self, size: u32) {
        while self.size > size
            && let Some(entry) = self.entries.pop_front()
        {
            self.size -= entry.name_bytes + entry.value_bytes + ENTRY_OVERHEAD;
        }
    }

    /// Room for `more` bytes: closes a gap that pays for the move, else grows, to no more than
    /// one and a half times the table's size.
    fn make_room(&mut self, more: usize) {
        if self.bytes.len() + more <= self.bytes.capacity() {
            return;
        }
        if self.gap() > (self.bytes.len() - self.gap()) / 2 {
            self.close_gap();
        }
        let needed = self.bytes.len() + more;
        if needed > self.bytes.capacity() {
            let size_max = self.size_max as usize;
            let roomy = (self.bytes.capacity() * 2).clamp(64, size_max.max(64) / 2 * 3);
            self.bytes.reserve_exact(roomy.max(needed) - self.bytes.len());
        }
    }

    /// Dead bytes in front of the oldest entry.
    fn gap(&self) -> usize {
        self.entries.front().map_or(self.bytes.len(), |oldest| oldest.start as usize)
    }

    fn close_gap(&mut self) {
        let gap = self.gap();
        self.bytes.drain(..gap);
        for entry in &mut self.entries {
            entry.start -= length(gap);
        }
    }

    fn name_and_value(&self, entry: Entry) -> (&[u8], &[u8]) {
        let start = entry.start as usize;
        let name_bytes = entry.name_bytes as usize;
        self.bytes[start..start + name_bytes + entry.value_bytes as usize].split_at(name_bytes)
    }

    #[cfg(test)]
    fn bytes_held(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("entries", &self.entries.len())
            .field("size", &self.size)
            .field("size_max", &self.size_max)
            .finish_non_exhaustive()
    }
}

/// What a field counts against the table (section 4.1).
fn entry_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + ENTRY_OVERHEAD as usize
}

/// A table size as this file keeps it.
fn table_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(INTEGER_MAX).min(INTEGER_MAX)
}

/// A length inside [`Table::bytes`].
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a table has at most one and a half times 31 bits of bytes")
}

/// How a field or an update begins (section 6): a bit pattern over the prefix of an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Representation {
    pattern: u8,
    prefix_bits: u32,
}

const INDEXED: Representation = Representation { pattern: 0x80, prefix_bits: 7 };
const INSERTED: Representation = Representation { pattern: 0x40, prefix_bits: 6 };
const SIZE_UPDATE: Representation = Representation { pattern: 0x20, prefix_bits: 5 };
const NEVER_INDEXED: Representation = Representation { pattern: 0x10, prefix_bits: 4 };
const PLAIN: Representation = Representation { pattern: 0x00, prefix_bits: 4 };
/// Strings begin the same way (section 5.2).
const HUFFMAN_STRING: Representation = Representation { pattern: 0x80, prefix_bits: 7 };
const RAW_STRING: Representation = Representation { pattern: 0x00, prefix_bits: 7 };

/// What is left of a block.
struct Reader<'a> {
    rest: &'a [u8],
}

/// A string of a block: a part of the block, or unpacked to the scratch buffer.
enum Text<'a> {
    Slice(&'a [u8]),
    Scratch(Range<usize>),
}

impl<'a> Text<'a> {
    fn bytes<'b>(self, scratch: &'b [u8]) -> &'b [u8]
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
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    /// An integer (section 5.1) that begins in the low bits of `first`, which has been read.
    fn integer(&mut self, first: u8, kind: Representation) -> Result<usize, HpackError> {
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
    fn string(&mut self, scratch: &mut Vec<u8>) -> Result<Text<'a>, HpackError> {
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
fn put_integer(out: &mut Vec<u8>, kind: Representation, value: usize) {
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
fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let bits: usize = text.iter().map(|&byte| usize::from(CODE_BITS[usize::from(byte)])).sum();
    let coded_bytes = bits.div_ceil(8);
    if coded_bytes < text.len() {
        put_integer(out, HUFFMAN_STRING, coded_bytes);
        huffman_encode(text, out);
    } else {
        put_integer(out, RAW_STRING, text.len());
        out.extend_from_slice(text);
    }
}

fn huffman_encode(text: &[u8], out: &mut Vec<u8>) {
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
fn huffman_decode(mut coded: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
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

/// The entry that a name first has in the static table.
fn static_name(name: &[u8]) -> Option<usize> {
    let mut slot = static_slot(name);
    loop {
        match usize::from(STATIC_SLOTS[slot]) {
            0 => return None,
            index if STATIC[index - 1].0 == name => return Some(index),
            _ => slot = (slot + 1) % STATIC_SLOTS.len(),
        }
    }
}

/// The entry that is the whole field, among those of its name from `index` on.
fn static_field(index: usize, name: &[u8], value: &[u8]) -> Option<usize> {
    let same_name = STATIC[index - 1..].iter().take_while(|entry| entry.0 == name);
    same_name.zip(index..).find(|(entry, _)| entry.1 == value).map(|(_, index)| index)
}

/// Where the search of [`STATIC_SLOTS`] begins. The factors, found by trying, make two of the
/// names collide.
const fn static_slot(name: &[u8]) -> usize {
    match name {
        [first, .., last] => (name.len() * 5 + *first as usize * 30 + *last as usize * 11) % 128,
        _ => 0,
    }
}

/// A hash table of the static table's names, with linear probing: an index, or 0 for none.
static STATIC_SLOTS: [u8; 128] = {
    const fn same(left: &[u8], right: &[u8]) -> bool {
        match (left, right) {
            ([], []) => true,
            ([a, left @ ..], [b, right @ ..]) => *a == *b && same(left, right),
            _ => false,
        }
    }
    let mut slots = [0; 128];
    let mut index: u8 = 1;
    while index as usize <= STATIC.len() {
        let at = index as usize - 1;
        let name = STATIC[at].0;
        if at == 0 || !same(STATIC[at - 1].0, name) {
            let mut slot = static_slot(name);
            while slots[slot] != 0 {
                slot = (slot + 1) % slots.len();
            }
            slots[slot] = index;
        }
        index += 1;
    }
    slots
};

/// The Huffman code in the forms that encoding and decoding need.
struct HuffmanCode {
    /// By symbol, right-aligned.
    codes: [u32; 257],
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

static CODE: HuffmanCode = huffman_code();

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

/// SETTINGS_HEADER_TABLE_SIZE unless set (RFC 9113 section 6.5.2).
pub(crate) const TABLE_BYTES_DEFAULT: usize = 4096;

/// The largest integer taken. Nothing in HPACK needs more; section 5.1 asks for a limit.
const INTEGER_MAX: u32 = i32::MAX as u32;

/// Bytes of an integer behind its prefix: as many as [`INTEGER_MAX`] needs.
const CONTINUATION_BYTES_MAX: u32 = 5;

/// Updates at the begin of a block: the smallest size and the final one (section 4.2).
const SIZE_UPDATES_MAX: u32 = 2;

/// What an entry counts besides its name and value (section 4.1).
const ENTRY_OVERHEAD: u32 = 32;

/// A decoder's scratch buffer that grew larger is freed behind the block, so that an idle
/// connection does not pay for its largest field.
const SCRATCH_BYTES_KEPT: usize = 1024;

/// Shorter cookies can be guessed byte by byte (section 7.1.3; nghttp2's bound).
const COOKIE_BYTES_GUESSABLE: usize = 20;

/// A longer value would evict too much of a default table, and is seldom sent twice.
const VALUE_BYTES_INDEXED_MAX: usize = 512;

/// Bits that one look-up decodes: two letters or digits in most cases, from a table of 8 KiB.
/// 12 bits read a gRPC path no faster, a long token by a seventh; 8 bits need a third longer for
/// the path. Re-measure with a larger cache.
const LOOKUP_BITS: u32 = 11;

/// The static table (Appendix A), index 1 first.
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The end-of-string symbol, behind the 256 bytes.
const END_OF_STRING: u16 = 256;

const CODE_BITS_MAX: u32 = 30;

/// Lengths of the Huffman codes (Appendix B), by symbol.
#[rustfmt::skip]
static CODE_BITS: [u8; 257] = [
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

#[cfg(test)]
mod tests;

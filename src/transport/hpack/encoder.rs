//! Header blocks out.

use std::fmt;

use super::TABLE_BYTES_DEFAULT;
use super::primitives::{
    INDEXED, INSERTED, NEVER_INDEXED, PLAIN, Representation, SIZE_UPDATE, put_integer, put_string,
};
use super::static_table::{static_field, static_name};
use super::table::{Found, Table, entry_size, table_bytes};

/// The sending half of a connection's HPACK state.
pub(crate) struct Encoder {
    pub(super) table: Table,
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

/// Shorter cookies can be guessed byte by byte (section 7.1.3; nghttp2's bound).
const COOKIE_BYTES_GUESSABLE: usize = 20;

/// A longer value would evict too much of a default table, and is seldom sent twice.
const VALUE_BYTES_INDEXED_MAX: usize = 512;

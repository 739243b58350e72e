//! Header blocks in.

use std::fmt;

use super::primitives::{INDEXED, INSERTED, NEVER_INDEXED, PLAIN, Reader, SIZE_UPDATE, Text};
use super::table::{Table, table_bytes};
use super::{Field, HpackError};

/// The receiving half of a connection's HPACK state.
pub(crate) struct Decoder {
    pub(super) table: Table,
    /// Huffman output of the field at hand, and names that an insertion may evict.
    scratch: Vec<u8>,
    /// What we announced: the largest size that an update may set.
    table_bytes_max: u32,
    /// Set once we shrank the table: the next block must begin with a size no larger than this.
    size_owed: Option<u32>,
    /// Fields that a block may have.
    fields_max: usize,
}

impl Decoder {
    /// `table_bytes_max` is the size in force from the first block on: [`super::TABLE_BYTES_DEFAULT`] on
    /// a new connection, whatever our first SETTINGS say, until the peer has acknowledged them.
    pub(crate) fn new(table_bytes_max: usize) -> Self {
        let max = table_bytes(table_bytes_max);
        Self {
            table: Table::new(max),
            scratch: Vec::new(),
            table_bytes_max: max,
            size_owed: None,
            fields_max: usize::MAX,
        }
    }

    /// A block with more fields than this is not decoded to its end, and neither is any after it: one byte
    /// may stand for a field, and a megabyte of them would be decoded in one go.
    pub(crate) fn limit_fields(&mut self, max: usize) {
        self.fields_max = max;
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
        let mut fields = 0;
        while let Some(first) = reader.next() {
            fields += 1;
            if fields > self.fields_max {
                return Err(HpackError::TooManyFields);
            }
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

/// Updates at the begin of a block: the smallest size and the final one (section 4.2).
const SIZE_UPDATES_MAX: u32 = 2;

/// A decoder's scratch buffer that grew larger is freed behind the block, so that an idle
/// connection does not pay for its largest field.
pub(super) const SCRATCH_BYTES_KEPT: usize = 1024;

//! A connection's dynamic table (RFC 7541 section 2.3), one for each direction.

use std::collections::VecDeque;
use std::fmt;

use super::HpackError;
use super::primitives::INTEGER_MAX;
use super::static_table::STATIC;

/// The dynamic table (section 2.3.2): names and values back to back, oldest first.
///
/// Evicted entries leave a gap at the front of `bytes`, which is closed when room is needed and it
/// is more than half as long as what lives: every entry is one slice, and each evicted byte pays
/// for at most two that move.
pub(super) struct Table {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: VecDeque<Entry>,
    /// Sum of the entries' [`entry_size`].
    pub(super) size: u32,
    /// The size in force.
    pub(super) size_max: u32,
}

/// Where an entry stands in [`Table::bytes`]: the name begins at `start`, the value follows.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    start: u32,
    name_bytes: u32,
    value_bytes: u32,
}

/// What [`Table::find`] found, by its index in a block.
#[derive(Clone, Copy)]
pub(super) enum Found {
    Field(usize),
    Name(usize),
}

impl Found {
    pub(super) fn index(self) -> usize {
        match self {
            Self::Field(index) | Self::Name(index) => index,
        }
    }
}

impl Table {
    pub(super) fn new(size_max: u32) -> Self {
        Self { bytes: Vec::new(), entries: VecDeque::new(), size: 0, size_max }
    }

    /// The field at an index of the joint address space (section 2.3.3).
    pub(super) fn field(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
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
    pub(super) fn find(&self, name: &[u8], value: &[u8], or_name: bool) -> Option<Found> {
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
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
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

    pub(super) fn set_size_max(&mut self, size_max: u32) {
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

    pub(super) fn name_and_value(&self, entry: Entry) -> (&[u8], &[u8]) {
        let start = entry.start as usize;
        let name_bytes = entry.name_bytes as usize;
        self.bytes[start..start + name_bytes + entry.value_bytes as usize].split_at(name_bytes)
    }

    #[cfg(test)]
    pub(super) fn bytes_held(&self) -> usize {
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
pub(super) fn entry_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + ENTRY_OVERHEAD as usize
}

/// A table size as this file keeps it.
pub(super) fn table_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(INTEGER_MAX).min(INTEGER_MAX)
}

/// A length inside [`Table::bytes`].
pub(super) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a table has at most one and a half times 31 bits of bytes")
}

/// What an entry counts besides its name and value (section 4.1).
const ENTRY_OVERHEAD: u32 = 32;

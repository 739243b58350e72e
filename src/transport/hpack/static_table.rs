//! The static table (RFC 7541 Appendix A), and where a field stands in it.

/// The entry that a name first has in the static table.
pub(super) fn static_name(name: &[u8]) -> Option<usize> {
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
pub(super) fn static_field(index: usize, name: &[u8], value: &[u8]) -> Option<usize> {
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

/// The static table (Appendix A), index 1 first.
pub(super) const STATIC: [(&[u8], &[u8]); 61] = [
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

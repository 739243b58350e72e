//! HPACK by hand (RFC 7541), for a peer that sees every header block as the server wrote it.
//!
//! A second implementation on purpose: slow, plain, and without a line of the one under test.
//! Encodes literals only; decodes everything, and panics at whatever the RFC forbids.

use std::collections::VecDeque;

/// A header list: names and values, in order.
pub type Fields = Vec<(String, String)>;

/// A block of literals that enter no table.
pub fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, 0, 7, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A block of literals that all enter the table, and one that names them again, a byte for each.
pub fn encode_twice(fields: &[(&str, &str)]) -> [Vec<u8>; 2] {
    const FIRST_OF_THE_TABLE: u8 = 62;
    let mut entering = Vec::new();
    for field in fields {
        let mut literal = encode(&[*field]);
        literal[0] = 0x40;
        entering.append(&mut literal);
    }
    // The last that entered is the first.
    let again =
        (0..fields.len()).rev().map(|back| 0x80 | (FIRST_OF_THE_TABLE + back.to_le_bytes()[0]));
    [entering, again.collect()]
}

/// An integer behind a prefix of `bits` (section 5.1).
pub fn integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        return out.push(pattern | value.to_le_bytes()[0]);
    }
    out.push(pattern | most.to_le_bytes()[0]);
    let mut rest = value - most;
    while rest >= 128 {
        out.push((rest % 128).to_le_bytes()[0] | 128);
        rest /= 128;
    }
    out.push(rest.to_le_bytes()[0]);
}

/// The receiving half of a connection.
pub struct Decoder {
    /// Newest first.
    table: VecDeque<(String, String)>,
    table_bytes_max: usize,
    /// What our SETTINGS allow.
    pub allowed_bytes: usize,
    /// Table size updates of the block that came last (section 4.2).
    pub size_updates: Vec<usize>,
}

impl Default for Decoder {
    fn default() -> Self {
        let (table, size_updates) = Default::default();
        Decoder { table, table_bytes_max: 4_096, allowed_bytes: 4_096, size_updates }
    }
}

impl Decoder {
    pub fn decode(&mut self, block: &[u8]) -> Fields {
        let mut rest = block;
        let mut fields = Fields::new();
        self.size_updates.clear();
        while let Some(&first) = rest.first() {
            match first {
                0x80.. => {
                    let index = take_integer(&mut rest, 7);
                    fields.push(self.at(index));
                }
                0x40.. => {
                    let field = self.literal(&mut rest, 6);
                    self.table.push_front(field.clone());
                    self.evict();
                    fields.push(field);
                }
                0x20.. => {
                    assert!(fields.is_empty(), "a size update in mid-block");
                    self.table_bytes_max = take_integer(&mut rest, 5);
                    assert!(self.table_bytes_max <= self.allowed_bytes, "a table above our limit");
                    self.size_updates.push(self.table_bytes_max);
                    self.evict();
                }
                _ => fields.push(self.literal(&mut rest, 4)),
            }
        }
        assert!(self.table_bytes_max <= self.allowed_bytes, "our smaller table was not announced");
        fields
    }

    fn at(&self, index: usize) -> (String, String) {
        match index.checked_sub(STATIC.len() + 1) {
            Some(dynamic) => self.table[dynamic].clone(),
            None => {
                let (name, value) = STATIC[index - 1];
                (name.to_owned(), value.to_owned())
            }
        }
    }

    fn literal(&self, rest: &mut &[u8], bits: u32) -> (String, String) {
        let name = match take_integer(rest, bits) {
            0 => take_string(rest),
            index => self.at(index).0,
        };
        (name, take_string(rest))
    }

    fn evict(&mut self) {
        let size = |table: &VecDeque<(String, String)>| {
            table.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>()
        };
        while size(&self.table) > self.table_bytes_max {
            self.table.pop_back();
        }
    }
}

fn take(rest: &mut &[u8]) -> u8 {
    let (first, after) = rest.split_first().expect("the block ends too early");
    *rest = after;
    *first
}

fn take_integer(rest: &mut &[u8], bits: u32) -> usize {
    let most = (1 << bits) - 1;
    let mut value = usize::from(take(rest)) & most;
    if value < most {
        return value;
    }
    for shift in (0..).step_by(7) {
        let byte = take(rest);
        value += usize::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}

fn take_string(rest: &mut &[u8]) -> String {
    let is_huffman = rest.first().is_some_and(|first| *first >= 128);
    let length = take_integer(rest, 7);
    let (text, after) = rest.split_at(length);
    *rest = after;
    let text = if is_huffman { huffman(text) } else { text.to_vec() };
    String::from_utf8(text).unwrap()
}

/// Bit by bit: the codes of a length follow each other in the order of the symbols (Appendix B).
fn huffman(coded: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for byte in coded {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            if let Some(symbol) = symbol(code, length) {
                text.push(u8::try_from(symbol).expect("no end-of-string in a string"));
                (code, length) = (0, 0);
            }
        }
    }
    assert!(length < 8 && code == (1 << length) - 1, "padding is fewer than eight ones");
    text
}

fn symbol(code: u32, length: u8) -> Option<usize> {
    let mut next = 0_u32;
    for bits in 5..=length {
        let of_length = || CODE_BITS.iter().enumerate().filter(|(_, of)| **of == bits);
        if bits == length {
            return of_length().nth(code.checked_sub(next)? as usize).map(|(symbol, _)| symbol);
        }
        next = (next + u32::try_from(of_length().count()).unwrap()) << 1;
    }
    None
}

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

static STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

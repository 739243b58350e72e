//! HPACK against RFC 7541's examples, against h2 in both directions, and against hostile blocks.

use super::decoder::SCRATCH_BYTES_KEPT;
use super::huffman::{CODE, CODE_BITS, huffman_decode, huffman_encode};
use super::primitives::*;
use super::static_table::STATIC;
use super::table::*;
use super::*;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Name, value, never indexed.
type Owned = (Vec<u8>, Vec<u8>, bool);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Owned>, HpackError> {
    let mut fields = Vec::new();
    decoder.decode(block, |f| fields.push((f.name.into(), f.value.into(), f.never_indexed)))?;
    Ok(fields)
}

fn encode(encoder: &mut Encoder, fields: &[Owned]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value, sensitive) in fields {
        encoder.field(name, value, *sensitive, &mut block);
    }
    block
}

/// `"name: value"` lines as fields.
fn fields(lines: &[&str]) -> Vec<Owned> {
    let split = |line: &&str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.into(), value.into(), false)
    };
    lines.iter().map(split).collect()
}

/// The entries, newest first as RFC 7541 prints them.
fn entries(table: &Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let owned = |&entry: &Entry| {
        let (name, value) = table.name_and_value(entry);
        (name.into(), value.into())
    };
    table.entries.iter().rev().map(owned).collect()
}

/// What must hold of a table after every block.
fn assert_sound(table: &Table) {
    let sum: usize = entries(table).iter().map(|(name, value)| entry_size(name, value)).sum();
    assert_eq!(sum, table.size as usize);
    assert!(table.size <= table.size_max);
    assert!(table.bytes.capacity() <= (table.size_max.max(64) / 2 * 3) as usize);
}

/// A seeded generator (splitmix64), so that a failure repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[0]
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Mostly short, sometimes longer than a table; mostly text, sometimes any bytes.
    fn text(&mut self, visible: bool) -> Vec<u8> {
        let bytes_max = self.pick(&[4, 20, 20, 60, 600]);
        let bytes = self.below(bytes_max + 1);
        let visible = visible || self.below(4) > 0;
        let byte = |_| if visible { b'!' + self.byte() % 94 } else { self.byte() };
        (0..bytes).map(byte).collect()
    }

    /// A field that a real header map would take, with few enough names and values to repeat.
    fn header(&mut self) -> Owned {
        let name = self.pick(&[
            "x-a",
            "x-b",
            "x-longer-name",
            "accept",
            "accept-encoding",
            "authorization",
            "cookie",
            "content-type",
            "date",
            "etag",
            "grpc-status",
            "grpc-trace-bin",
            "server",
            "set-cookie",
        ]);
        let value = match self.below(3) {
            0 => b"gzip, deflate".to_vec(),
            1 => vec![b'0' + self.byte() % 4],
            _ => self.text(true),
        };
        (name.into(), value, self.below(8) == 0)
    }

    /// Any field at all.
    fn field(&mut self) -> Owned {
        match self.below(4) {
            0 => {
                let (name, value) = STATIC[self.below(STATIC.len())];
                (name.into(), value.into(), false)
            }
            1 => (self.text(false), self.text(false), self.below(8) == 0),
            _ => self.header(),
        }
    }

    fn block(&mut self) -> Vec<Owned> {
        (0..self.below(12)).map(|_| self.field()).collect()
    }
}

#[test]
fn integers_are_those_of_rfc_7541_c_1() {
    let check = |prefix_bits, value: usize, bytes: &[u8]| {
        let kind = Representation { pattern: 0, prefix_bits };
        let mut out = Vec::new();
        put_integer(&mut out, kind, value);
        assert_eq!(out, bytes);
        let mut reader = Reader { rest: &bytes[1..] };
        assert_eq!(reader.integer(bytes[0], kind), Ok(value));
        assert!(reader.rest.is_empty());
    };
    check(5, 10, &[0x0a]);
    check(5, 1337, &[0x1f, 0x9a, 0x0a]);
    check(8, 42, &[0x2a]);
    check(5, 30, &[0x1e]);
    check(5, 31, &[0x1f, 0x00]);
    check(7, INTEGER_MAX as usize, &[0x7f, 0x80, 0xff, 0xff, 0xff, 0x07]);
}

/// One step of Appendix C: a block, its fields, and the table behind it.
struct Step {
    block: &'static str,
    fields: &'static [&'static str],
    table: &'static [&'static str],
    table_size: u32,
}

/// Decodes the steps on one connection; then sends their fields through our encoder.
fn check_steps(table_bytes_max: usize, steps: &[Step]) {
    let mut theirs = Decoder::new(table_bytes_max);
    let mut ours = (Encoder::new(table_bytes_max), Decoder::new(TABLE_BYTES_DEFAULT));
    for Step { block, fields: lines, table, table_size } in steps {
        let expected = fields(lines);
        assert_eq!(decode(&mut theirs, &hex(block)), Ok(expected.clone()), "{block}");
        let expected_table: Vec<_> = fields(table).into_iter().map(|(n, v, _)| (n, v)).collect();
        assert_eq!(entries(&theirs.table), expected_table, "{block}");
        assert_eq!(theirs.table.size, *table_size, "{block}");
        assert_sound(&theirs.table);

        let block = encode(&mut ours.0, &expected);
        let names_and_values = |fields: Vec<Owned>| -> Vec<_> {
            fields.into_iter().map(|(name, value, _)| (name, value)).collect()
        };
        let decoded = decode(&mut ours.1, &block).map(names_and_values);
        assert_eq!(decoded, Ok(names_and_values(expected)));
        assert_eq!(entries(&ours.0.table), entries(&ours.1.table));
    }
}

#[test]
fn literals_are_those_of_rfc_7541_c_2() {
    check_steps(
        4096,
        &[Step {
            block: "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            fields: &["custom-key: custom-header"],
            table: &["custom-key: custom-header"],
            table_size: 55,
        }],
    );
    check_steps(
        4096,
        &[Step {
            block: "040c 2f73 616d 706c 652f 7061 7468",
            fields: &[":path: /sample/path"],
            table: &[],
            table_size: 0,
        }],
    );
    check_steps(
        4096,
        &[Step { block: "82", fields: &[":method: GET"], table: &[], table_size: 0 }],
    );

    let never = (b"password".to_vec(), b"secret".to_vec(), true);
    let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    let mut decoder = Decoder::new(4096);
    assert_eq!(decode(&mut decoder, &block), Ok(vec![never]));
    assert_eq!(decoder.bytes_held(), 0);
}

#[test]
fn requests_are_those_of_rfc_7541_c_3_and_c_4() {
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        check_steps(
            4096,
            &[
                Step {
                    block: blocks[0],
                    fields: &[
                        ":method: GET",
                        ":scheme: http",
                        ":path: /",
                        ":authority: www.example.com",
                    ],
                    table: &[":authority: www.example.com"],
                    table_size: 57,
                },
                Step {
                    block: blocks[1],
                    fields: &[
                        ":method: GET",
                        ":scheme: http",
                        ":path: /",
                        ":authority: www.example.com",
                        "cache-control: no-cache",
                    ],
                    table: &["cache-control: no-cache", ":authority: www.example.com"],
                    table_size: 110,
                },
                Step {
                    block: blocks[2],
                    fields: &[
                        ":method: GET",
                        ":scheme: https",
                        ":path: /index.html",
                        ":authority: www.example.com",
                        "custom-key: custom-value",
                    ],
                    table: &[
                        "custom-key: custom-value",
                        "cache-control: no-cache",
                        ":authority: www.example.com",
                    ],
                    table_size: 164,
                },
            ],
        );
    }
}

#[test]
fn responses_are_those_of_rfc_7541_c_5_and_c_6() {
    const AT_21: &str = "date: Mon, 21 Oct 2013 20:13:21 GMT";
    const AT_22: &str = "date: Mon, 21 Oct 2013 20:13:22 GMT";
    const LOCATION: &str = "location: https://www.example.com";
    const COOKIE: &str = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    for blocks in [
        [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
             2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
             6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
             54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
             5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
             3d31",
        ],
        [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
             77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
             9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ],
    ] {
        check_steps(
            256,
            &[
                Step {
                    block: blocks[0],
                    fields: &[":status: 302", "cache-control: private", AT_21, LOCATION],
                    table: &[LOCATION, AT_21, "cache-control: private", ":status: 302"],
                    table_size: 222,
                },
                Step {
                    block: blocks[1],
                    fields: &[":status: 307", "cache-control: private", AT_21, LOCATION],
                    table: &[":status: 307", LOCATION, AT_21, "cache-control: private"],
                    table_size: 222,
                },
                Step {
                    block: blocks[2],
                    fields: &[
                        ":status: 200",
                        "cache-control: private",
                        AT_22,
                        LOCATION,
                        "content-encoding: gzip",
                        COOKIE,
                    ],
                    table: &[COOKIE, "content-encoding: gzip", AT_22],
                    table_size: 215,
                },
            ],
        );
    }
}

#[test]
fn any_bytes_survive_the_huffman_code() {
    let mut dice = Dice(7);
    for bytes in 0..600 {
        let text: Vec<u8> = (0..bytes).map(|_| dice.byte()).collect();
        let letters: Vec<u8> = text.iter().map(|byte| b'a' + byte % 26).collect();
        for text in [text, letters] {
            let (mut coded, mut decoded) = (Vec::new(), b"before".to_vec());
            huffman_encode(&text, &mut coded);
            assert_eq!(huffman_decode(&coded, &mut decoded), Ok(()));
            assert_eq!(&decoded[6..], text);
        }
    }
}

/// Section 5.2 read bit by bit, with nothing but the codes.
fn huffman_decode_slowly(coded: &[u8]) -> Result<Vec<u8>, HpackError> {
    let mut text = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for at in 0..coded.len() * 8 {
        bits = bits << 1 | u32::from(coded[at / 8] >> (7 - at % 8) & 1);
        held += 1;
        let is_next = |&symbol: &usize| CODE_BITS[symbol] == held && CODE.codes[symbol] == bits;
        if let Some(symbol) = (0..=256).find(is_next) {
            text.push(u8::try_from(symbol).map_err(|_| HpackError::HuffmanEos)?);
            (bits, held) = (0, 0);
        }
    }
    let padded = held < 8 && bits == (1 << held) - 1;
    if padded { Ok(text) } else { Err(HpackError::HuffmanPadding) }
}

#[test]
fn huffman_strings_are_read_as_if_bit_by_bit() {
    let mut dice = Dice(9);
    let mut decoded = 0;
    for _ in 0..20_000 {
        let mut coded = Vec::new();
        huffman_encode(&dice.text(false), &mut coded);
        coded.truncate(40);
        for _ in 0..dice.below(3) {
            coded.insert(dice.below(coded.len() + 1), dice.pick(&[0xff, 0xfe, 0x00, 0x3f]));
        }
        let mut text = Vec::new();
        let quick = huffman_decode(&coded, &mut text).map(|()| text);
        assert_eq!(quick, huffman_decode_slowly(&coded), "{coded:x?}");
        decoded += usize::from(quick.is_ok());
    }
    assert!((2_000..18_000).contains(&decoded), "{decoded} of 20,000 decoded");
}

#[test]
fn a_repeated_grpc_block_takes_a_byte_per_field() {
    let check = |lines: &[&str], first_bytes_max| {
        let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
        let first = encode(&mut encoder, &fields(lines));
        assert!(first.len() <= first_bytes_max, "{} bytes", first.len());
        let second = encode(&mut encoder, &fields(lines));
        assert_eq!(second.len(), lines.len());
        for block in [first, second] {
            assert_eq!(decode(&mut decoder, &block), Ok(fields(lines)));
        }
    };
    check(&[":status: 200", "content-type: application/grpc", "server: bidi-echo"], 23);
    check(&["grpc-status: 0"], 12);
    check(
        &[
            ":method: POST",
            ":scheme: http",
            ":path: /echo.v1.Echo/Bidi",
            ":authority: 127.0.0.1:50051",
            "te: trailers",
            "content-type: application/grpc",
            "user-agent: tonic/0.14.9",
        ],
        74,
    );
}

#[test]
fn secrets_are_never_indexed_and_one_time_values_are_not() {
    let check = |name: &str, value: &str, sensitive, first_nibble: u8| {
        let mut encoder = Encoder::new(4096);
        let block = encode(&mut encoder, &[(name.into(), value.into(), sensitive)]);
        assert_eq!(block[0] >> 4, first_nibble, "{name}");
        let indexed = (4..8).contains(&first_nibble);
        assert_eq!(encoder.table.entries.len(), usize::from(indexed), "{name}");
    };
    let (never, plain, inserted) = (1, 0, 4);
    check("authorization", "Bearer x", false, never);
    check("proxy-authorization", "Basic x", false, never);
    check("set-cookie", "a=b", false, never);
    check("cookie", "a=b", false, never);
    check("x-token", "abc", true, never);
    check(":method", "GET", true, never);
    check("cookie", "a=0123456789012345678901234567890", false, 6);
    check("grpc-timeout", "1S", false, plain);
    check("grpc-message", "no", false, plain);
    check("grpc-trace-bin", "AAAA", false, plain);
    check("content-length", "5", false, plain);
    check("date", "Mon, 21 Oct 2013 20:13:21 GMT", false, plain);
    check(":path", "/a?b=c", false, plain);
    check("x-long", &"v".repeat(513), false, plain);
    check("x-short", &"v".repeat(512), false, inserted);
    check(":path", "/echo.v1.Echo/Bidi", false, inserted);
}

#[test]
fn a_field_once_indexed_is_still_kept_secret_when_marked() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    for sensitive in [false, true, false] {
        let field = [(b"x-token".to_vec(), b"abc".to_vec(), sensitive)];
        let block = encode(&mut encoder, &field);
        assert_eq!(decode(&mut decoder, &block), Ok(field.to_vec()));
    }
}

#[test]
fn what_is_encoded_is_decoded_through_any_change_of_table_size() {
    let mut dice = Dice(1);
    for _ in 0..200 {
        let cap = dice.pick(&[0, 100, 4096, 4096, 20_000]);
        let (mut encoder, mut decoder) = (Encoder::new(cap), Decoder::new(4096));
        for _ in 0..40 {
            for _ in 0..dice.pick(&[0, 0, 0, 1, 2, 3]) {
                let max = dice.pick(&[0, 31, 64, 200, 1000, 4096, 16_384, usize::MAX]);
                encoder.set_peer_table_bytes_max(max);
                decoder.set_table_bytes_max(max);
            }
            let sent = dice.block();
            let block = encode(&mut encoder, &sent);
            let received = decode(&mut decoder, &block).unwrap();
            assert_eq!(received.len(), sent.len());
            for (sent, received) in sent.iter().zip(&received) {
                assert_eq!((&sent.0, &sent.1), (&received.0, &received.1));
                assert!(received.2 || !sent.2, "a sensitive field was not sent as one");
            }
            assert_eq!(entries(&encoder.table), entries(&decoder.table));
            assert_sound(&encoder.table);
            assert_sound(&decoder.table);
        }
    }
}

#[test]
fn an_unused_connection_costs_almost_nothing() {
    let (decoder, encoder) = (Decoder::new(4096), Encoder::new(4096));
    assert!(size_of_val(&decoder) + size_of_val(&encoder) < 200);
    assert_eq!(decoder.bytes_held() + encoder.bytes_held(), 0);
}

#[test]
fn a_gone_field_leaves_no_memory_behind() {
    let mut decoder = Decoder::new(4096);
    let mut block = Vec::new();
    put_integer(&mut block, PLAIN, 0);
    put_string(&mut block, b"x-large");
    put_string(&mut block, &[b'e'; 50_000]);
    assert_eq!(decode(&mut decoder, &block).map(|fields| fields[0].1.len()), Ok(50_000));
    assert!(decoder.bytes_held() <= SCRATCH_BYTES_KEPT);

    let mut encoder = Encoder::new(4096);
    let mut dice = Dice(5);
    while decoder.table.size < 3000 {
        let block = encode(&mut encoder, &dice.block());
        decode(&mut decoder, &block).unwrap();
    }
    decoder.set_table_bytes_max(0);
    encoder.set_peer_table_bytes_max(0);
    encode(&mut encoder, &[]);
    assert!(decoder.bytes_held() <= SCRATCH_BYTES_KEPT);
    assert_eq!(encoder.bytes_held(), 0);
}

#[test]
fn a_full_table_holds_little_more_than_its_size() {
    let mut decoder = Decoder::new(4096);
    let mut dice = Dice(3);
    for turn in 0..20_000_u32 {
        let mut block = Vec::new();
        put_integer(&mut block, INSERTED, 0);
        put_string(&mut block, &turn.to_be_bytes()[..dice.below(5)]);
        put_string(&mut block, &vec![0xff; dice.pick(&[0, 1, 8, 40, 1000])]);
        decode(&mut decoder, &block).unwrap();
        assert_sound(&decoder.table);
        assert!(decoder.bytes_held() <= 4096 / 2 * 3 + 128 * size_of::<Entry>() + 1024);
    }
}

#[test]
fn an_entry_that_is_referred_to_is_not_copied() {
    let mut decoder = Decoder::new(4096);
    let mut block = hex("40 01 61");
    put_string(&mut block, &[0xff; 4096 - 32 - 1]);
    assert_eq!(decode(&mut decoder, &block).map(|fields| fields.len()), Ok(1));
    let held = decoder.bytes_held();
    let (mut at, mut bytes) = (Vec::new(), 0);
    let bomb = [0xbe; 10_000];
    let decoded = decoder.decode(&bomb, |field| {
        at.push(field.value.as_ptr());
        bytes += field.value.len();
    });
    assert_eq!((decoded, bytes), (Ok(()), 10_000 * (4096 - 33)));
    at.dedup();
    assert_eq!(at.len(), 1);
    assert_eq!(decoder.bytes_held(), held);
}

#[test]
fn an_entry_may_evict_the_one_that_lends_its_name() {
    let mut decoder = Decoder::new(64);
    assert_eq!(
        decode(
            &mut decoder,
            &hex("40 0161 0162 7e 1d 3031323334353637383930313233343536373839303132333435363738")
        ),
        Ok(fields(&["a: b", "a: 01234567890123456789012345678"])),
    );
    assert_eq!(entries(&decoder.table).len(), 1);
    // One byte more than the table: it empties the table and is no error.
    let too_large = "7e 20 3031323334353637383930313233343536373839303132333435363738393031";
    assert_eq!(decode(&mut decoder, &hex(too_large)).map(|fields| fields.len()), Ok(1));
    assert_eq!(entries(&decoder.table).len(), 0);
}

#[test]
fn hostile_blocks_are_refused_by_name() {
    let check = |block: &str, error| {
        let mut decoder = Decoder::new(4096);
        assert_eq!(decode(&mut decoder, &hex(block)), Err(error), "{block}");
    };
    // Integers.
    check("ff", HpackError::Truncated);
    check("ff 80 80", HpackError::Truncated);
    check("ff 80 80 80 80 08", HpackError::IntegerOverflow);
    check("ff ff ff ff ff 0f", HpackError::IntegerOverflow);
    check("ff 80 80 80 80 80 00", HpackError::IntegerOverflow);
    check("00 01 61 7f ff ff ff ff ff ff ff ff ff 7f", HpackError::IntegerOverflow);
    check("3f ff ff ff ff ff", HpackError::IntegerOverflow);
    // Indices.
    check("80", HpackError::IndexZero);
    check("be", HpackError::IndexBeyondTable);
    check("ff 80 ff ff ff 07", HpackError::IndexBeyondTable);
    check("7e 01 61", HpackError::IndexBeyondTable);
    check("0f ff 00 01 61", HpackError::IndexBeyondTable);
    check("40 01 61 01 62 bf", HpackError::IndexBeyondTable);
    // Strings.
    check("40", HpackError::Truncated);
    check("40 01", HpackError::Truncated);
    check("40 01 61", HpackError::Truncated);
    check("40 01 61 02 62", HpackError::Truncated);
    check("44 7f 80 ff ff ff 07", HpackError::Truncated);
    check("44 82 64", HpackError::Truncated);
    // Huffman: 0xff alone is eight ones of padding, 0x1c is `a` and three ones without padding.
    check("44 81 ff", HpackError::HuffmanPadding);
    check("44 82 1f ff", HpackError::HuffmanPadding);
    check("44 81 18", HpackError::HuffmanPadding);
    check("44 81 1e", HpackError::HuffmanPadding);
    check("44 83 ff ff ff", HpackError::HuffmanPadding);
    check("44 84 ff ff ff fc", HpackError::HuffmanEos);
    check("44 84 ff ff ff ff", HpackError::HuffmanEos);
    check("44 89 1f ff ff ff f8 c6 31 8c 63", HpackError::HuffmanEos);
    check("44 89 ff ff ff fc 63 18 c6 31 8c", HpackError::HuffmanEos);
    // Table sizes.
    check("3f e2 1f", HpackError::SizeUpdateTooLarge);
    check("3f e1 1f 3f e2 1f", HpackError::SizeUpdateTooLarge);
    check("82 20", HpackError::SizeUpdateLate);
    check("20 82 20", HpackError::SizeUpdateLate);
    check("20 20 20", HpackError::SizeUpdateRepeated);
}

#[test]
fn a_smaller_table_must_be_announced_in_the_next_block() {
    let check = |sizes: &[usize], block: &str, expected: Result<usize, HpackError>| {
        let mut decoder = Decoder::new(4096);
        for &size in sizes {
            decoder.set_table_bytes_max(size);
        }
        let decoded = decode(&mut decoder, &hex(block)).map(|fields| fields.len());
        assert_eq!(decoded, expected, "{sizes:?} {block}");
    };
    check(&[100], "82", Err(HpackError::SizeUpdateMissing));
    check(&[100], "", Err(HpackError::SizeUpdateMissing));
    check(&[100], "3f 46 82", Err(HpackError::SizeUpdateTooLarge));
    check(&[100], "3f 45 82", Ok(1));
    check(&[100], "20 82", Ok(1));
    // Shrunk and grown again: the smaller size comes first.
    check(&[100, 4096], "3f e1 1f 82", Err(HpackError::SizeUpdateMissing));
    check(&[100, 4096], "3f 45 3f e1 1f 82", Ok(1));
    check(&[100, 4096], "3f 45 82", Ok(1));
    // Only grown, or not below what the peer uses: no duty.
    check(&[8192], "82", Ok(1));
    check(&[8192, 4096], "82", Ok(1));
    check(&[8192], "3f e1 3f 82", Ok(1));
}

#[test]
fn changed_table_sizes_open_the_next_block() {
    let check = |cap, sizes: &[usize], expected: &str| {
        let mut encoder = Encoder::new(cap);
        for &size in sizes {
            encoder.set_peer_table_bytes_max(size);
        }
        assert_eq!(encode(&mut encoder, &[]), hex(expected), "{cap} {sizes:?}");
        assert!(encode(&mut encoder, &[]).is_empty(), "said once");
    };
    check(4096, &[], "");
    check(4096, &[4096], "");
    check(4096, &[65_536], "");
    check(4096, &[100], "3f 45");
    check(4096, &[100, 4096], "3f 45 3f e1 1f");
    check(4096, &[100, 0, 200], "20 3f a9 01");
    check(4096, &[0], "20");
    check(100, &[], "3f 45");
    check(100, &[200], "3f 45");
    check(8192, &[8192], "3f e1 3f");
}

#[test]
fn mutated_blocks_never_panic() {
    let mut dice = Dice(2);
    let (mut decoded, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
        for _ in 0..20 {
            let mut block = encode(&mut encoder, &dice.block());
            for _ in 0..dice.below(4) {
                let at = dice.below(block.len() + 1);
                match dice.below(4) {
                    0 => block.truncate(at),
                    1 => block.insert(at, dice.byte()),
                    2 if at < block.len() => block[at] = dice.byte(),
                    _ if at < block.len() => block[at] ^= 1 << dice.below(8),
                    _ => {}
                }
            }
            // A connection would end at the first error; to go on must be safe all the same.
            match decode(&mut decoder, &block) {
                Ok(_) => decoded += 1,
                Err(error) => refused += usize::from(!error.reason().is_empty()),
            }
            assert_sound(&decoder.table);
        }
    }
    assert_eq!(decoded + refused, 100_000);
    assert!(decoded > 10_000 && refused > 10_000, "{decoded} decoded, {refused} refused");
}

#[test]
fn debug_output_shows_no_header_text() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let block = encode(&mut encoder, &fields(&["x-name: text"]));
    decode(&mut decoder, &block).unwrap();
    assert_eq!(
        format!("{:?}", encoder.table),
        "Table { entries: 1, size: 42, size_max: 4096, .. }"
    );
    assert!(format!("{encoder:?} {decoder:?}").contains("entries: 1"));
}

const FRAME_HEADERS: u8 = 1;
const FRAME_SETTINGS: u8 = 4;
const FRAME_CONTINUATION: u8 = 9;
const FLAG_ACK: u8 = 1;
const FLAGS_END_STREAM_AND_HEADERS: u8 = 1 | 4;
const FLAG_END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = length(payload.len()).to_be_bytes();
    let head = [&length[..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

async fn read_frame(wire: &mut DuplexStream) -> (u8, u8, Vec<u8>) {
    let mut head = [0; 9];
    wire.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    wire.read_exact(&mut payload).await.unwrap();
    (head[3], head[4], payload)
}

/// The next header block; `h2` sends neither padding nor priority.
async fn read_block(wire: &mut DuplexStream) -> Vec<u8> {
    let mut block = Vec::new();
    loop {
        let (kind, flags, payload) = read_frame(wire).await;
        if kind == FRAME_HEADERS || kind == FRAME_CONTINUATION {
            block.extend_from_slice(&payload);
            if flags & FLAG_END_HEADERS != 0 {
                return block;
            }
        }
    }
}

/// SETTINGS with a HEADER_TABLE_SIZE.
fn settings(table_bytes_max: u32) -> Vec<u8> {
    let payload = [&[0, 1], &table_bytes_max.to_be_bytes()[..]].concat();
    frame(FRAME_SETTINGS, 0, 0, &payload)
}

/// The fields of `headers`, in an order of their own.
fn sorted(headers: &http::HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    let owned = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().into(), value.as_bytes().into())
    };
    let mut fields: Vec<_> = headers.iter().map(owned).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn h2_reads_what_we_encode() {
    let (mut wire, far) = tokio::io::duplex(1 << 22);
    wire.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    wire.write_all(&settings(4096)).await.unwrap();
    let mut server = h2::server::Builder::new().handshake::<_, &[u8]>(far).await.unwrap();
    let mut encoder = Encoder::new(4096);
    let mut dice = Dice(11);
    let mut open = Vec::new();
    for turn in 0..100 {
        let mut sent = fields(&[
            ":method: POST",
            ":scheme: http",
            ":path: /echo.v1.Echo/Bidi",
            ":authority: localhost:50051",
        ]);
        sent.extend((0..dice.below(8)).map(|_| dice.header()));
        // Our own wish suffices: a decoder takes any size up to its maximum.
        if turn % 10 == 9 {
            encoder.set_peer_table_bytes_max(dice.pick(&[0, 100, 4096]));
            encoder.set_peer_table_bytes_max(dice.pick(&[0, 500, 4096]));
        }
        let block = encode(&mut encoder, &sent);
        let headers = frame(FRAME_HEADERS, FLAGS_END_STREAM_AND_HEADERS, 2 * turn + 1, &block);
        wire.write_all(&headers).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(request.uri(), "http://localhost:50051/echo.v1.Echo/Bidi");
        assert_eq!(request.method(), http::Method::POST);
        let mut expected: Vec<_> = sent.drain(4..).map(|(name, value, _)| (name, value)).collect();
        expected.sort();
        assert_eq!(sorted(request.headers()), expected);
        open.push(respond);
    }
}

#[tokio::test]
async fn we_read_what_h2_encodes() {
    let (mut wire, far) = tokio::io::duplex(1 << 22);
    let (client, connection) = h2::client::handshake(far).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    wire.read_exact(&mut [0; 24]).await.unwrap();
    let mut decoder = Decoder::new(4096);
    let mut dice = Dice(12);
    let mut open = Vec::new();
    for table_bytes_max in [4096, 100, 4096, 0, 300, 16_384, 64] {
        wire.write_all(&settings(table_bytes_max)).await.unwrap();
        while !matches!(read_frame(&mut wire).await, (FRAME_SETTINGS, FLAG_ACK, _)) {}
        decoder.set_table_bytes_max(table_bytes_max as usize);
        for _ in 0..12 {
            let mut request = http::Request::post("http://localhost:50051/echo.v1.Echo/Bidi");
            for (name, value, sensitive) in (0..dice.below(8)).map(|_| dice.header()) {
                let mut value = http::HeaderValue::from_bytes(&value).unwrap();
                value.set_sensitive(sensitive);
                request = request.header(http::HeaderName::from_bytes(&name).unwrap(), value);
            }
            let request = request.body(()).unwrap();
            let expected = sorted(request.headers());
            open.push(client.send_request(request, true).unwrap());
            let received = decode(&mut decoder, &read_block(&mut wire).await).unwrap();
            let (pseudo, mut rest): (Vec<_>, Vec<_>) = received
                .into_iter()
                .map(|(name, value, _)| (name, value))
                .partition(|(name, _)| name.starts_with(b":"));
            assert!(pseudo.contains(&(b":path".into(), b"/echo.v1.Echo/Bidi".into())));
            assert!(pseudo.contains(&(b":authority".into(), b"localhost:50051".into())));
            assert_eq!(pseudo.len(), 4);
            rest.sort();
            assert_eq!(rest, expected);
            assert_sound(&decoder.table);
        }
    }
}

#[test]
fn a_block_with_more_fields_than_allowed_is_not_decoded_to_its_end() {
    let mut decoder = Decoder::new(4096);
    decoder.limit_fields(3);
    let mut seen = 0;
    // :method GET, again and again.
    assert_eq!(decoder.decode(&[0x82; 3], |_| seen += 1), Ok(()));
    assert_eq!(seen, 3);
    assert_eq!(decoder.decode(&[0x82; 1_000], |_| seen += 1), Err(HpackError::TooManyFields));
    assert_eq!(seen, 6);
}

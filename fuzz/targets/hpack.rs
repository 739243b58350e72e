//! Any bytes as header blocks; what they say, encoded and decoded again, stays the same.
//!
//! Input: blocks, each behind a byte with its length; 0xff instead changes the encoder's table size.
#![no_main]

use bidi_echo_fuzz::script::Input;
use bidi_echo_fuzz::transport::inside::{HeaderDecoder, HeaderEncoder};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut decoder = HeaderDecoder::default();
    let (mut encoder, mut mirror) = (HeaderEncoder::default(), HeaderDecoder::default());
    while !input.is_empty() {
        let length = match input.byte() {
            0xff => {
                encoder.set_peer_table_bytes_max(input.number() as usize);
                continue;
            }
            length => usize::from(length),
        };
        let mut fields = Vec::new();
        let decoded = decoder.decode(input.split_off(length), |name, value, never_indexed| {
            // A few bytes may refer to a large entry often.
            if fields.len() < 64 {
                fields.push((name.to_vec(), value.to_vec(), never_indexed));
            }
        });
        let mut block = Vec::new();
        let borrowed = fields.iter().map(|(name, value, never)| (&name[..], &value[..], *never));
        encoder.encode(borrowed, &mut block);
        let mut again = Vec::new();
        let mirrored = mirror.decode(&block, |name, value, never_indexed| {
            again.push((name.to_vec(), value.to_vec(), never_indexed));
        });
        assert_eq!(mirrored, Ok(()), "the block of {fields:?}");
        assert_eq!(fields.len(), again.len());
        for (sent, came) in fields.iter().zip(&again) {
            // The encoder makes secrets of more fields than it is told to, never of fewer.
            assert!(
                sent.0 == came.0 && sent.1 == came.1 && (came.2 || !sent.2),
                "{sent:?} {came:?}"
            );
        }
        if decoded.is_err() {
            return;
        }
    }
});

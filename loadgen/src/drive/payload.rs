//! Builds the bytes of a message and checks the bytes that come back.
//!
//! In: a stream's number, a seed and a sequence number. Out: a payload whose first eight bytes are
//! the sequence number, hidden behind the stream's own key, and whose rest is seeded filler; and a
//! [`Verdict`] on each echo. A server that swaps streams, repeats, skips or damages is noticed.

use std::sync::Arc;

use rand_core::Rng;

use super::schedule::random_of;

/// Bytes of a payload that carry the sequence number, as far as they fit.
const HEAD_BYTES: usize = 8;

/// Letters of a text payload: 64 of them, so that one stands for six bits.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Which bytes a payload may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Any byte; eight of them carry a sequence number of 64 bits.
    Bytes,
    /// ASCII letters, digits, `-` and `_`; eight of them carry 48 bits.
    Text,
}

/// Makes and checks the payloads of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Payloads {
    alphabet: Alphabet,
    key: u64,
    template: Arc<[u8]>,
}

/// What an echo turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The expected message, unchanged.
    Good,
    /// A whole message of this stream, but with this sequence number.
    OutOfOrder(u64),
    /// Not a payload of this stream: length or content differ.
    Corrupt,
}

/// The filler that all streams of a run share: one copy, however many streams there are.
pub(crate) fn filler(alphabet: Alphabet, bytes: usize, seed: u64) -> Arc<[u8]> {
    let mut random = random_of(seed, usize::MAX);
    let mut filler = vec![0; bytes];
    random.fill_bytes(&mut filler);
    if alphabet == Alphabet::Text {
        filler.iter_mut().for_each(|byte| *byte = LETTERS[usize::from(*byte % 64)]);
    }
    filler.into()
}

impl Payloads {
    pub(crate) fn new(alphabet: Alphabet, filler: Arc<[u8]>, seed: u64, stream: usize) -> Self {
        let key = random_of(seed.rotate_left(32), stream).next_u64();
        Payloads { alphabet, key, template: filler }
    }

    /// Bytes of every payload.
    pub(crate) fn bytes(&self) -> usize {
        self.template.len()
    }

    /// The payload of message number `sequence`.
    pub(crate) fn make(&self, sequence: u64) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.bytes());
        self.append(sequence, &mut payload);
        payload
    }

    /// Appends the payload of message number `sequence`.
    pub(crate) fn append(&self, sequence: u64, out: &mut Vec<u8>) {
        let head_bytes = self.bytes().min(HEAD_BYTES);
        out.extend_from_slice(&self.head(sequence)[..head_bytes]);
        out.extend_from_slice(&self.template[head_bytes..]);
    }

    /// What `echo` is, where message number `expected` is due.
    pub(crate) fn check(&self, expected: u64, echo: &[u8]) -> Verdict {
        if echo.len() != self.template.len() {
            return Verdict::Corrupt;
        }
        let (head, filler) = echo.split_at(echo.len().min(HEAD_BYTES));
        if *filler != self.template[head.len()..] {
            return Verdict::Corrupt;
        }
        if *head == self.head(expected)[..head.len()] {
            return Verdict::Good;
        }
        // A shorter head holds the low bits only: that it differs is all that can be said.
        <[u8; HEAD_BYTES]>::try_from(head)
            .ok()
            .and_then(|head| self.sequence(head))
            .map_or(Verdict::Corrupt, Verdict::OutOfOrder)
    }

    fn head(&self, sequence: u64) -> [u8; HEAD_BYTES] {
        let hidden = sequence ^ self.key;
        match self.alphabet {
            Alphabet::Bytes => hidden.to_le_bytes(),
            Alphabet::Text => std::array::from_fn(|at| letter(hidden >> (6 * at))),
        }
    }

    /// The number in a head; implausible ones (2^40 messages take years) belong to another stream.
    fn sequence(&self, head: [u8; HEAD_BYTES]) -> Option<u64> {
        const PLAUSIBLE: u64 = 1 << 40;
        let sequence = match self.alphabet {
            Alphabet::Bytes => u64::from_le_bytes(head) ^ self.key,
            Alphabet::Text => {
                let mut hidden = 0;
                for (at, letter) in head.iter().enumerate() {
                    let digit = LETTERS.iter().position(|known| known == letter)?;
                    hidden |= (digit as u64) << (6 * at);
                }
                (hidden ^ self.key) & ((1 << 48) - 1)
            }
        };
        (sequence < PLAUSIBLE).then_some(sequence)
    }
}

/// The letter of the lowest six bits.
fn letter(hidden: u64) -> u8 {
    LETTERS[usize::from(hidden.to_le_bytes()[0] & 0x3f)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(alphabet: Alphabet, bytes: usize, stream: usize) -> Payloads {
        Payloads::new(alphabet, filler(alphabet, bytes, 5), 5, stream)
    }

    #[test]
    fn an_unchanged_echo_is_good_at_every_size() {
        for alphabet in [Alphabet::Bytes, Alphabet::Text] {
            for bytes in [0, 1, 7, 8, 9, 1_000] {
                let payloads = payloads(alphabet, bytes, 3);
                for sequence in [0, 1, 255, 256, 1 << 33] {
                    let echo = payloads.make(sequence);
                    assert_eq!(echo.len(), bytes);
                    assert_eq!(payloads.check(sequence, &echo), Verdict::Good);
                }
            }
        }
    }

    #[test]
    fn a_repeated_or_early_echo_tells_its_number() {
        for alphabet in [Alphabet::Bytes, Alphabet::Text] {
            let payloads = payloads(alphabet, 20, 3);
            assert_eq!(payloads.check(5, &payloads.make(4)), Verdict::OutOfOrder(4));
            assert_eq!(payloads.check(5, &payloads.make(9)), Verdict::OutOfOrder(9));
        }
    }

    #[test]
    fn damage_another_length_and_another_stream_are_noticed() {
        for alphabet in [Alphabet::Bytes, Alphabet::Text] {
            let payloads = payloads(alphabet, 20, 3);
            let mut echo = payloads.make(5);
            echo[19] ^= 1;
            assert_eq!(payloads.check(5, &echo), Verdict::Corrupt);
            assert_eq!(payloads.check(5, &payloads.make(5)[..19]), Verdict::Corrupt);
            let other = self::payloads(alphabet, 20, 4);
            assert_ne!(payloads.check(5, &other.make(5)), Verdict::Good);
        }
        let short = payloads(Alphabet::Bytes, 4, 3);
        assert_eq!(short.check(5, &short.make(6)), Verdict::Corrupt);
    }

    #[test]
    fn text_is_ascii() {
        let payloads = payloads(Alphabet::Text, 500, 3);
        assert!(payloads.make(77).is_ascii());
    }
}

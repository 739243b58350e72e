//! The two services that can be called, as the measured core sees them: bytes out, bytes back.
//!
//! Each in two ways: as prost's messages, for tonic's client, and as encoded bytes, for the inline
//! one, which writes and checks them in place.

use std::borrow::Cow;

use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::proto::echo::EchoMessage;

use prost::Message;

use super::payload::{Alphabet, Payloads};
use crate::scenario::CHAT_NAME;

/// A bidirectional method that sends each payload back, somehow wrapped.
pub(crate) trait Contract: Send + Sync + 'static {
    type Request: prost::Message + Default + 'static;
    type Reply: prost::Message + Default + 'static;

    /// `:path` of the call.
    const PATH: &'static str;

    /// Which bytes a payload may hold.
    const ALPHABET: Alphabet;

    fn request(payload: Vec<u8>) -> Self::Request;

    /// The payload in a reply, or `None` if it is not wrapped as it must be.
    fn payload(reply: &Self::Reply) -> Option<&[u8]>;

    /// Appends the encoded request of message number `sequence`.
    fn append(payloads: &Payloads, sequence: u64, out: &mut Vec<u8>) {
        let request = Self::request(payloads.make(sequence));
        request.encode(out).expect("a Vec takes whatever is written");
    }

    /// The payload in an encoded reply, or `None` if it is not wrapped as it must be.
    fn payload_in(reply: &[u8]) -> Option<Cow<'_, [u8]>> {
        let reply = Self::Reply::decode(reply).ok()?;
        Self::payload(&reply).map(|payload| Cow::Owned(payload.to_vec()))
    }
}

/// Tag of field 1, length-delimited: where both contracts keep their payload.
const FIELD_1: u8 = 0x0a;

/// `echo.v1.Echo/Bidi`.
pub(crate) struct Echo;

impl Contract for Echo {
    type Request = EchoMessage;
    type Reply = EchoMessage;

    const PATH: &'static str = "/echo.v1.Echo/Bidi";
    const ALPHABET: Alphabet = Alphabet::Bytes;

    fn request(payload: Vec<u8>) -> EchoMessage {
        EchoMessage { payload: payload.into() }
    }

    fn payload(reply: &EchoMessage) -> Option<&[u8]> {
        Some(&reply.payload)
    }

    fn append(payloads: &Payloads, sequence: u64, out: &mut Vec<u8>) {
        if payloads.bytes() > 0 {
            out.push(FIELD_1);
            prost::encoding::encode_varint(payloads.bytes() as u64, out);
            payloads.append(sequence, out);
        }
    }

    fn payload_in(reply: &[u8]) -> Option<Cow<'_, [u8]>> {
        match reply {
            [] => Some(Cow::Borrowed(&[])),
            // Nearly every reply: field 1, a length below 128, and nothing else.
            [FIELD_1, length, payload @ ..]
                if *length < 0x80 && payload.len() == usize::from(*length) =>
            {
                Some(Cow::Borrowed(payload))
            }
            [FIELD_1, field @ ..] => {
                let mut payload = field;
                let length = prost::encoding::decode_varint(&mut payload).ok()?;
                if payload.len() as u64 == length {
                    return Some(Cow::Borrowed(payload));
                }
                decoded(reply)
            }
            _ => decoded(reply),
        }
    }
}

/// Whatever else protobuf allows: unknown fields, fields given twice.
fn decoded(reply: &[u8]) -> Option<Cow<'_, [u8]>> {
    EchoMessage::decode(reply).ok().map(|reply| Cow::Owned(reply.payload.to_vec()))
}

/// `Chat/chat`.
pub(crate) struct Chat;

impl Contract for Chat {
    type Request = ChatMessage;
    type Reply = String;

    const PATH: &'static str = "/Chat/chat";
    const ALPHABET: Alphabet = Alphabet::Text;

    fn request(payload: Vec<u8>) -> ChatMessage {
        let message = String::from_utf8(payload).expect("text payloads are ASCII");
        ChatMessage { name: CHAT_NAME.to_owned(), message }
    }

    fn payload(reply: &String) -> Option<&[u8]> {
        reply.strip_prefix(CHAT_NAME)?.strip_prefix(": ").map(str::as_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::payload::filler;

    #[test]
    fn bytes_written_in_place_are_what_prost_writes() {
        for size in [0, 1, 8, 100, 127, 128, 20_000] {
            let payloads = Payloads::new(Alphabet::Text, filler(Alphabet::Text, size, 1), 1, 2);
            let (mut echo, mut chat) = (Vec::new(), Vec::new());
            Echo::append(&payloads, 7, &mut echo);
            Chat::append(&payloads, 7, &mut chat);
            assert_eq!(echo, Echo::request(payloads.make(7)).encode_to_vec());
            assert_eq!(chat, Chat::request(payloads.make(7)).encode_to_vec());
            assert_eq!(Echo::payload_in(&echo).unwrap(), payloads.make(7));
        }
    }

    #[test]
    fn unusual_encodings_are_understood_and_broken_ones_are_not() {
        let check = |reply: &[u8], expected: Option<&[u8]>| {
            assert_eq!(Echo::payload_in(reply).as_deref(), expected, "{reply:x?}");
        };
        check(b"", Some(b""));
        check(b"\x0a\x02hi", Some(b"hi"));
        check(b"\x0a\x82\x00hi", Some(b"hi"));
        check(b"\x0a\x01a\x0a\x01b", Some(b"b"));
        check(b"\x10\x05\x0a\x01b", Some(b"b"));
        check(b"\x0a\x03hi", None);
        check(b"\x0a", None);
        let chat = "load: hi".to_owned().encode_to_vec();
        assert_eq!(Chat::payload_in(&chat).as_deref(), Some(&b"hi"[..]));
        assert_eq!(Chat::payload_in(&"who: hi".to_owned().encode_to_vec()), None);
    }
}

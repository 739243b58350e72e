//! The two services that can be called, as the measured core sees them: bytes out, bytes back.

use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::proto::echo::EchoMessage;

use super::payload::Alphabet;
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
}

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

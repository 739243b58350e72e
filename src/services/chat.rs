//! `Chat/chat`, the seed contract: each message back as `name: message`.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::replies::{Limits, Replies, Reply};
use crate::proto::chat::{ChatMessage, chat_server};
use crate::stats::Stats;

/// Ballerina's example of bidirectional streaming.
#[derive(Debug)]
pub(crate) struct Chat {
    stats: Arc<Stats>,
    limits: Limits,
}

impl Chat {
    pub(crate) fn new(stats: Arc<Stats>, limits: Limits) -> Self {
        Chat { stats, limits }
    }
}

#[tonic::async_trait]
impl chat_server::Chat for Chat {
    type chatStream = Replies<Spoken>;

    async fn chat(
        &self,
        request: Request<Streaming<ChatMessage>>,
    ) -> Result<Response<Self::chatStream>, Status> {
        let inbound = request.into_inner();
        let replies = Replies::new(inbound, self.stats.clone(), self.limits);
        Ok(Response::new(replies))
    }
}

/// What the seed answers: nothing is trimmed, and empty fields give `": "`.
#[derive(Debug)]
pub(crate) struct Spoken;

impl Reply for Spoken {
    type In = ChatMessage;
    type Out = String;

    fn to(said: ChatMessage) -> String {
        let ChatMessage { name, message } = said;
        let mut text = name;
        text.reserve_exact(SEPARATOR.len() + message.len());
        text.push_str(SEPARATOR);
        text.push_str(&message);
        text
    }
}

const SEPARATOR: &str = ": ";

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// The golden frames of the seed contract, without their 5-byte prefixes.
    #[test]
    fn replies_equal_the_seed_byte_for_byte() {
        let check = |request: &str, reply: &str| {
            let said = ChatMessage::decode(bytes(request).as_slice()).unwrap();
            assert_eq!(Spoken::to(said).encode_to_vec(), bytes(reply));
        };
        check("0a0353616d12024869", "0a0753616d3a204869");
        check("0a03416e6e1203486579", "0a08416e6e3a20486579");
        check("0a044a6f686e120548656c6c6f", "0a0b4a6f686e3a2048656c6c6f");
        check("", "0a023a20");
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }
}

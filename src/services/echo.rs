//! `echo.v1.Echo/Bidi`: each message back, unchanged and in order.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::replies::{Limits, Replies, Reply};
use crate::proto::echo::{EchoMessage, echo_server};
use crate::stats::Stats;

/// The benchmark contract.
#[derive(Debug)]
pub(crate) struct Echo {
    stats: Arc<Stats>,
    limits: Limits,
}

impl Echo {
    pub(crate) fn new(stats: Arc<Stats>, limits: Limits) -> Self {
        Echo { stats, limits }
    }
}

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    type BidiStream = Replies<Unchanged>;

    async fn bidi(
        &self,
        request: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<Self::BidiStream>, Status> {
        let inbound = request.into_inner();
        let replies = Replies::new(inbound, self.stats.clone(), self.limits);
        Ok(Response::new(replies))
    }
}

/// The message itself.
#[derive(Debug)]
pub(crate) struct Unchanged;

impl Reply for Unchanged {
    type In = EchoMessage;
    type Out = EchoMessage;

    fn to(message: EchoMessage) -> EchoMessage {
        message
    }
}

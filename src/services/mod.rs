//! What the server answers: the two echoes, health, and reflection on request.
//!
//! In: limits and the shared state of one server. Out: [`Services`], which any transport can carry.
//! The rules that hold for every service alike (what is not gRPC, which status, how a drain ends
//! a stream) are one layer, [`policy`].

mod chat;
pub(crate) mod codec;
mod echo;
pub(crate) mod guard;
mod health;
pub(crate) mod policy;
mod replies;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower_service::Service;

use crate::config::Config;
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::chat::chat_server::ChatServer;
use crate::proto::echo::echo_server::EchoServer;
use crate::stats::Stats;

/// All services of one server, as tonic's build generated them.
///
/// The two echoes are found by their path, the others by tonic's router: that wraps every body into
/// boxes of its own, which each frame has to pass in both directions.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    echo: EchoServer<echo::Echo>,
    chat: ChatServer<chat::Chat>,
    others: Routes,
}

impl Services {
    /// Health says NOT_SERVING, and its watches end, once `serving` is false and its sender gone.
    pub(crate) fn new(config: &Config, stats: &Arc<Stats>, serving: watch::Receiver<bool>) -> Self {
        let limits = replies::Limits::new(config);
        let echo = EchoServer::new(echo::Echo::new(stats.clone(), limits))
            .max_decoding_message_size(limits.inbound_bytes_max)
            .max_encoding_message_size(limits.outbound_bytes_max);
        let chat = ChatServer::new(chat::Chat::new(stats.clone(), limits))
            .max_decoding_message_size(limits.inbound_bytes_max)
            .max_encoding_message_size(limits.outbound_bytes_max);
        let health = HealthServer::new(health::Health::new(serving, SERVICES))
            .max_decoding_message_size(limits.question_bytes_max())
            .max_encoding_message_size(limits.outbound_bytes_max);
        let others = Routes::new(health);
        let others = if config.reflection { with_reflection(others, limits) } else { others };
        Services { echo, chat, others }
    }

    /// The same behind tonic's router, as tonic's own server wants them.
    pub(crate) fn into_routes(self) -> Routes {
        let Services { echo, chat, others } = self;
        others.add_service(echo).add_service(chat)
    }
}

impl<B> Service<Request<B>> for Services
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
{
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        if service == EchoServer::<echo::Echo>::NAME {
            self.echo.call(request)
        } else if service == ChatServer::<chat::Chat>::NAME {
            self.chat.call(request)
        } else {
            Box::pin(self.others.call(request))
        }
    }
}

/// What health answers for, besides `""`, the whole server.
const SERVICES: [&str; 2] = [EchoServer::<echo::Echo>::NAME, ChatServer::<chat::Chat>::NAME];

fn with_reflection(routes: Routes, limits: replies::Limits) -> Routes {
    let all_services = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            )
            .include_reflection_service(false)
    };
    let valid = "the descriptor sets were compiled with this binary";
    let v1 = all_services().build_v1().expect(valid);
    let v1alpha = all_services().build_v1alpha().expect(valid);
    let (question_bytes_max, outbound_bytes_max) =
        (limits.question_bytes_max(), limits.outbound_bytes_max);
    routes
        .add_service(
            v1.max_decoding_message_size(question_bytes_max)
                .max_encoding_message_size(outbound_bytes_max),
        )
        .add_service(
            v1alpha
                .max_decoding_message_size(question_bytes_max)
                .max_encoding_message_size(outbound_bytes_max),
        )
}

//! What the server answers: the two echoes, health, and reflection on request.
//!
//! In: limits and the shared state of one server. Out: [`routes`], which any transport can carry.
//! The rules that hold for every service alike (what is not gRPC, which status, how a drain ends
//! a stream) are one layer, [`policy`].

mod chat;
mod echo;
pub(crate) mod guard;
mod health;
pub(crate) mod policy;
mod replies;

use std::sync::Arc;

use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::config::Config;
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::chat::chat_server::ChatServer;
use crate::proto::echo::echo_server::EchoServer;
use crate::stats::Stats;

/// All services of one server; health says NOT_SERVING, and its watches end, once `serving` is false
/// and its sender gone.
pub(crate) fn routes(
    config: &Config,
    stats: &Arc<Stats>,
    serving: watch::Receiver<bool>,
) -> Routes {
    let limits = replies::Limits::new(config);
    let echo = EchoServer::new(echo::Echo::new(stats.clone(), limits))
        .max_decoding_message_size(limits.inbound_bytes_max)
        .max_encoding_message_size(limits.outbound_bytes_max);
    let chat = ChatServer::new(chat::Chat::new(stats.clone(), limits))
        .max_decoding_message_size(limits.inbound_bytes_max)
        .max_encoding_message_size(limits.outbound_bytes_max);
    let health = HealthServer::new(health::Health::new(serving, SERVICES))
        .max_decoding_message_size(limits.inbound_bytes_max);
    let routes = Routes::new(echo).add_service(chat).add_service(health);
    if config.reflection { with_reflection(routes, limits) } else { routes }
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
    routes
        .add_service(v1.max_decoding_message_size(limits.inbound_bytes_max))
        .add_service(v1alpha.max_decoding_message_size(limits.inbound_bytes_max))
}

//! What gRPC needs above [`transport`](crate::transport), for services of one's own.
//!
//! ```
//! # use bidi_echo::proto::chat::chat_server::{Chat, ChatServer};
//! # fn guarded(your_service: impl Chat) -> impl Sized {
//! use bidi_echo::grpc::GuardLayer;
//! use tower_layer::Layer;
//!
//! // No message over 64 KiB, and nothing reserved for one before it is there.
//! GuardLayer::new(64 << 10).layer(tonic::service::Routes::new(ChatServer::new(your_service)))
//! # }
//! ```

pub use crate::services::guard::{Guard, GuardLayer, Guarded};

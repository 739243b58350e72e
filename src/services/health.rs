//! `grpc.health.v1.Health`: SERVING until the drain begins, then NOT_SERVING.
//!
//! Ours, because tonic-health's server refuses a watch of an unknown service with NOT_FOUND, where
//! the protocol wants SERVICE_UNKNOWN (grpc/grpc, doc/health-checking.md), and cannot end the watches
//! that hold a drain up without forgetting the service. Messages and routing are tonic-health's.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

/// So much of an unknown service's name is told.
const NAME_CHARS_MAX: usize = 100;

/// Health of the whole server (`""`) and of each named service: they start and drain together.
#[derive(Debug)]
pub(crate) struct Health {
    serving: watch::Receiver<bool>,
    services: [&'static str; 2],
}

impl Health {
    pub(crate) fn new(serving: watch::Receiver<bool>, services: [&'static str; 2]) -> Self {
        Health { serving, services }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !self.knows(service) {
            // Not the whole name: escaped, it would be an answer of nine times what it took to ask.
            let name: String = service.chars().take(NAME_CHARS_MAX).collect();
            let more = if name.len() < service.len() { " ..." } else { "" };
            return Err(Status::not_found(format!("no service {name:?}{more} here")));
        }
        Ok(Response::new(answer(status(*self.serving.borrow()))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Says the status now and at each change; ends when the drain began.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let changes = WatchStream::new(self.serving.clone());
        if self.knows(&request.get_ref().service) {
            return Ok(Response::new(Box::pin(changes.map(|serving| Ok(answer(status(serving)))))));
        }
        let unknown = stream::once(async { Ok(answer(ServingStatus::ServiceUnknown)) });
        let until_the_drain = changes.filter_map(|_| async { None });
        Ok(Response::new(Box::pin(unknown.chain(until_the_drain))))
    }
}

fn status(serving: bool) -> ServingStatus {
    if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_health::pb::health_server::Health as _;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    async fn watched(health: &Health, service: &str) -> Vec<ServingStatus> {
        let stream = health.watch(request(service)).await.unwrap().into_inner();
        stream.map(|answer| answer.unwrap().status()).collect().await
    }

    #[tokio::test]
    async fn a_watch_says_not_serving_when_the_drain_begins_and_ends() {
        let (serving, receiver) = watch::channel(true);
        let health = Health::new(receiver, ["a", "b"]);
        let mut watch = health.watch(request("b")).await.unwrap().into_inner();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        serving.send(false).unwrap();
        drop(serving);
        let second = watch.next().await.unwrap().unwrap();
        assert_eq!(second.status(), ServingStatus::NotServing);
        assert!(watch.next().await.is_none());
        let check = health.check(request("")).await.unwrap().into_inner();
        assert_eq!(check.status(), ServingStatus::NotServing);
    }

    #[tokio::test]
    async fn an_unknown_service_is_not_found_by_a_check_and_unknown_to_a_watch() {
        let (serving, receiver) = watch::channel(true);
        let health = Health::new(receiver, ["a", "b"]);
        let refused = health.check(request("c")).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
        assert_eq!(refused.message(), "no service \"c\" here");
        let refused = health.check(request(&"\u{1}".repeat(4 << 20))).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
        assert!(refused.message().len() < 1_000, "{}", refused.message().len());
        drop(serving);
        assert_eq!(watched(&health, "c").await, [ServingStatus::ServiceUnknown]);
    }
}

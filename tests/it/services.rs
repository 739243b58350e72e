//! Health and reflection, as standard tools ask for them.

use std::time::Duration;

use crate::support::{INLINE, Server, TASK, TONIC, finished, soon};
use bidi_echo::config::Config;
use bidi_echo::config::Transport;
use rstest::rstest;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.url()).unwrap();
    soon(endpoint.connect()).await.unwrap()
}

async fn health(server: &Server) -> HealthClient<Channel> {
    HealthClient::new(channel(server).await)
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn watched(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let answer = soon(watch.message()).await.unwrap()?;
    Some(answer.status())
}

#[rstest]
#[tokio::test]
async fn the_server_and_both_services_are_serving(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::on(transport).await;
    let mut health = health(&server).await;
    for service in ["", "echo.v1.Echo", "Chat"] {
        let answer = health.check(about(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    // Longer than a client takes a header to be: hyper's says 16 KiB.
    let refused = health.check(about(&"x".repeat(20_000))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let refused = health.check(about("no.such.Service")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[rstest]
#[tokio::test]
async fn a_watch_says_serving_then_not_serving_and_ends_with_the_drain(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::on(transport).await;
    let mut health = health(&server).await;
    let mut watch = health.watch(about("Chat")).await.unwrap().into_inner();
    assert_eq!(watched(&mut watch).await, Some(ServingStatus::Serving));
    let drained = server.drain();
    assert_eq!(watched(&mut watch).await, Some(ServingStatus::NotServing));
    assert_eq!(watched(&mut watch).await, None);
    drop(health);
    let summary = soon(drained).await.unwrap();
    assert!(summary.drained_in < Config::default().drain_limit / 2, "the watch held it up");
}

#[rstest]
#[tokio::test]
async fn a_watch_of_an_unknown_service_says_so_and_stays_open_until_the_drain(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::on(transport).await;
    let mut health = health(&server).await;
    let mut watch = health.watch(about("no.such.Service")).await.unwrap().into_inner();
    assert_eq!(watched(&mut watch).await, Some(ServingStatus::ServiceUnknown));
    // A round trip on the same connection: an end of the watch would have come before it.
    health.check(about("")).await.unwrap();
    let silence = timeout(Duration::ZERO, watch.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    let drained = server.drain();
    assert_eq!(watched(&mut watch).await, None);
    drop(health);
    soon(drained).await.unwrap();
}

/// The same questions to both versions of the protocol, which differ only in their package.
macro_rules! reflection {
    ($version:ident) => {
        mod $version {
            use super::*;
            use prost::Message;
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            async fn ask(
                server: &Server,
                question: MessageRequest,
            ) -> Result<MessageResponse, Code> {
                let mut reflection = ServerReflectionClient::new(channel(server).await);
                let question = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let answers = reflection.server_reflection_info(tokio_stream::once(question)).await;
                let mut answers = answers.map_err(|status| status.code())?.into_inner();
                let answer = soon(answers.message()).await.map_err(|status| status.code())?;
                Ok(answer.unwrap().message_response.unwrap())
            }

            async fn file(server: &Server, question: MessageRequest) -> (String, Vec<String>) {
                let answer = ask(server, question).await.unwrap();
                let MessageResponse::FileDescriptorResponse(files) = answer else {
                    panic!("no file: {answer:?}");
                };
                let file = files.file_descriptor_proto[0].as_slice();
                let file = FileDescriptor::decode(file).unwrap();
                (file.name, file.dependencies)
            }

            #[rstest]
            #[tokio::test]
            async fn is_off_unless_asked_for(#[values(INLINE, TASK, TONIC)] transport: Transport) {
                let server = Server::on(transport).await;
                let question = MessageRequest::ListServices(String::new());
                assert_eq!(ask(&server, question).await.unwrap_err(), Code::Unimplemented);
            }

            /// tonic-reflection takes an error of its requests for their end.
            #[rstest]
            #[tokio::test]
            async fn is_unavailable_where_a_drain_cuts_it_short(
                #[values(INLINE, TASK, TONIC)] transport: Transport,
            ) {
                let drain_limit = Duration::from_millis(300);
                let server =
                    Server::start(Config { drain_limit, ..with_reflection(transport) }).await;
                let mut reflection = ServerReflectionClient::new(channel(&server).await);
                let question = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(MessageRequest::ListServices(String::new())),
                };
                let questions = tokio_stream::once(question).chain(tokio_stream::pending());
                let answers = soon(reflection.server_reflection_info(questions)).await;
                let mut answers = answers.unwrap().into_inner();
                soon(answers.message()).await.unwrap().unwrap();
                let drained = server.drain();
                let status = soon(answers.message()).await.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                drop((answers, reflection));
                assert_eq!(finished(&soon(drained).await.unwrap(), "UNAVAILABLE"), 1);
            }

            #[rstest]
            #[tokio::test]
            async fn an_answer_is_as_long_as_others_may_be(
                #[values(INLINE, TASK, TONIC)] transport: Transport,
            ) {
                let outbound_message_bytes_max = 2_000;
                let config = Config { outbound_message_bytes_max, ..with_reflection(transport) };
                let server = Server::start(config).await;
                let mut reflection = ServerReflectionClient::new(channel(&server).await);
                // An answer repeats what it was asked.
                let mut check = async |bytes: usize, expected: Option<Code>| {
                    let question = ServerReflectionRequest {
                        host: "x".repeat(bytes),
                        message_request: Some(MessageRequest::ListServices(String::new())),
                    };
                    let questions = tokio_stream::once(question);
                    let answers = soon(reflection.server_reflection_info(questions)).await;
                    let answer = match answers {
                        Ok(answers) => soon(answers.into_inner().message()).await.map(drop),
                        Err(status) => Err(status),
                    };
                    assert_eq!(answer.err().map(|status| status.code()), expected, "{bytes}");
                };
                check(100, None).await;
                check(1_000, Some(Code::ResourceExhausted)).await;
            }

            #[rstest]
            #[tokio::test]
            async fn lists_all_services(#[values(INLINE, TASK, TONIC)] transport: Transport) {
                let server = Server::start(with_reflection(transport)).await;
                let question = MessageRequest::ListServices(String::new());
                let answer = ask(&server, question).await.unwrap();
                let MessageResponse::ListServicesResponse(services) = answer else {
                    panic!("no list: {answer:?}");
                };
                let mut names: Vec<_> = services.service.into_iter().map(|it| it.name).collect();
                names.sort();
                assert_eq!(names, SERVICES);
            }

            #[rstest]
            #[tokio::test]
            async fn gives_the_file_of_a_symbol_and_what_it_imports(
                #[values(INLINE, TASK, TONIC)] transport: Transport,
            ) {
                let server = Server::start(with_reflection(transport)).await;
                let symbol = MessageRequest::FileContainingSymbol("Chat".to_owned());
                let (name, imports) = file(&server, symbol).await;
                assert_eq!(name, "grpc_bidirectional_streaming.proto");
                assert_eq!(imports, ["google/protobuf/wrappers.proto"]);
                for import in imports {
                    let question = MessageRequest::FileByFilename(import.clone());
                    assert_eq!(file(&server, question).await.0, import);
                }
            }
        }
    };
}

reflection!(v1);
reflection!(v1alpha);

const SERVICES: [&str; 5] = [
    "Chat",
    "echo.v1.Echo",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

fn with_reflection(transport: Transport) -> Config {
    Config { transport, reflection: true, ..Config::default() }
}

/// The two fields of `google.protobuf.FileDescriptorProto` that are looked at.
#[derive(prost::Message)]
struct FileDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    dependencies: Vec<String>,
}

//! A tonic service of one's own, with tonic's router and interceptors, on the inline transport with
//! either placement, and on tonic's own: nobody can tell the difference.

use std::net::SocketAddr;
use std::pin::Pin;

use bidi_echo::grpc::GuardLayer;
use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::proto::chat::chat_client::ChatClient;
use bidi_echo::proto::chat::chat_server::{Chat, ChatServer};
use bidi_echo::transport::{Limits, Placement, Server};
use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use rstest::rstest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tower::service_fn;
use tower_layer::Layer;

use crate::support::soon;

/// What carries the service.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    Ours(Placement),
    /// Ours, with the guard before the service.
    Guarded,
    Tonic,
}

const INLINE: Carrier = Carrier::Ours(Placement::Inline);
const TASK: Carrier = Carrier::Ours(Placement::Task);

/// Says who said it, and from where.
struct Reports;

#[tonic::async_trait]
impl Chat for Reports {
    type chatStream = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

    async fn chat(
        &self,
        request: Request<Streaming<ChatMessage>>,
    ) -> Result<Response<Self::chatStream>, Status> {
        let from = request.remote_addr().ok_or_else(|| Status::internal("no address"))?;
        let Guest(guest) = request.extensions().get::<Guest>().cloned().expect("let in");
        let said = request.into_inner();
        let reports = said.map(move |said| Ok(format!("{guest} at {from}: {}", said?.message)));
        Ok(Response::new(Box::pin(reports)))
    }
}

/// Whom the interceptor let in.
#[derive(Clone)]
struct Guest(String);

const KEY: &str = "x-key";

/// Without the prefix.
const MESSAGE_BYTES_MAX: usize = 1_000;

#[allow(clippy::result_large_err, reason = "what tonic wants")]
fn doorman(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.remote_addr().ok_or_else(|| Status::internal("nobody is at the door"))?;
    let Some(key) = request.metadata().get(KEY) else {
        let mut refused = Status::unauthenticated("no key, no chat");
        refused.metadata_mut().insert("x-ask", "the janitor".parse().unwrap());
        return Err(refused);
    };
    let guest = Guest(key.to_str().unwrap().to_owned());
    request.extensions_mut().insert(guest);
    Ok(request)
}

/// What `Request::remote_addr` looks for.
fn who_is_there(tcp: &TcpStream) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    extensions.insert(tcp.connect_info());
    extensions
}

/// A server of [`Reports`] behind the doorman, a client of it, and the client's address.
struct House {
    client: ChatClient<Channel>,
    client_address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl House {
    async fn on(carrier: Carrier) -> Self {
        let service = Routes::new(ChatServer::with_interceptor(Reports, doorman));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or(()) };
        let serving = tokio::spawn(async move {
            match carrier {
                Carrier::Ours(placement) => {
                    let server = Server::new(Limits::default()).placement(placement);
                    server.extensions(who_is_there).serve(listener, service, stopped).await;
                }
                Carrier::Guarded => {
                    let service = GuardLayer::new(MESSAGE_BYTES_MAX).layer(service);
                    Server::new(Limits::default())
                        .extensions(who_is_there)
                        .serve(listener, service, stopped)
                        .await;
                }
                Carrier::Tonic => {
                    let server = tonic::transport::Server::builder().add_routes(service);
                    let incoming = TcpIncoming::from(listener);
                    server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
                }
            }
        });
        let tcp = TcpStream::connect(address).await.unwrap();
        let client_address = tcp.local_addr().unwrap();
        let mut tcp = Some(TokioIo::new(tcp));
        let once = service_fn(move |_| {
            let tcp = tcp.take();
            async { tcp.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = soon(endpoint.connect_with_connector(once)).await.unwrap();
        House { client: ChatClient::new(channel), client_address, stop, serving }
    }

    /// What is answered to these messages, sent with that key.
    async fn ask(
        &mut self,
        key: Option<&'static str>,
        said: &[&str],
    ) -> Result<Vec<String>, Status> {
        let message =
            |said: &&str| ChatMessage { name: String::new(), message: (*said).to_owned() };
        let said: Vec<_> = said.iter().map(message).collect();
        let mut request = Request::new(stream::iter(said));
        if let Some(key) = key {
            request.metadata_mut().insert(KEY, key.parse().unwrap());
        }
        let mut replies = soon(self.client.chat(request)).await?.into_inner();
        let mut got = Vec::new();
        while let Some(reply) = soon(replies.message()).await? {
            got.push(reply);
        }
        Ok(got)
    }

    async fn close(self) {
        drop(self.client);
        self.stop.send(()).unwrap();
        soon(self.serving).await.unwrap();
    }
}

#[rstest]
#[tokio::test]
async fn whom_the_interceptor_lets_in_the_handler_knows_with_its_address(
    #[values(INLINE, TASK, Carrier::Guarded, Carrier::Tonic)] carrier: Carrier,
) {
    let mut house = House::on(carrier).await;
    let from = house.client_address;
    for guest in ["Sam", "Ann"] {
        let got = house.ask(Some(guest), &["Hi", "Bye"]).await.unwrap();
        assert_eq!(got, [format!("{guest} at {from}: Hi"), format!("{guest} at {from}: Bye")]);
    }
    house.close().await;
}

#[rstest]
#[tokio::test]
async fn what_an_interceptor_refuses_is_told_with_its_metadata_and_costs_one_call(
    #[values(INLINE, TASK, Carrier::Guarded, Carrier::Tonic)] carrier: Carrier,
) {
    let mut house = House::on(carrier).await;
    let refused = house.ask(None, &["Hi"]).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "no key, no chat"));
    assert_eq!(refused.metadata().get("x-ask").unwrap(), "the janitor");
    assert_eq!(house.ask(Some("Sam"), &["Hi"]).await.unwrap().len(), 1);
    house.close().await;
}

#[tokio::test]
async fn the_guard_ends_a_stream_with_a_message_that_is_too_large_behind_those_that_are_not() {
    let mut house = House::on(Carrier::Guarded).await;
    // The field's tag and its length take three bytes.
    let fits = "a".repeat(MESSAGE_BYTES_MAX - 3);
    let too_large = "a".repeat(MESSAGE_BYTES_MAX - 2);
    assert_eq!(house.ask(Some("Sam"), &[&fits]).await.unwrap().len(), 1);
    let refused = house.ask(Some("Sam"), &[&fits, &too_large]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("1001"), "{refused}");
    house.close().await;
}

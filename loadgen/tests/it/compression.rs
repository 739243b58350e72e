//! A tonic service that compresses, on the inline transport.
//!
//! Here and not among the server's tests: whatever those ask of tonic, the root's benches and examples are
//! built with too, and they are measured.

use std::pin::Pin;

use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::proto::chat::chat_client::ChatClient;
use bidi_echo::proto::chat::chat_server::{Chat, ChatServer};
use bidi_echo::transport::{Limits, Placement, Server};
use futures_util::{Stream, StreamExt, stream};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// Repeats what is said.
struct Parrot;

#[tonic::async_trait]
impl Chat for Parrot {
    type chatStream = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

    async fn chat(
        &self,
        request: Request<Streaming<ChatMessage>>,
    ) -> Result<Response<Self::chatStream>, Status> {
        let said = request.into_inner();
        Ok(Response::new(Box::pin(said.map(|said| Ok(said?.message)))))
    }
}

/// Until either side has had enough. Out: how many bytes that were.
async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> usize {
    let (mut bytes, mut passed) = ([0; 16_384], 0);
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        passed += count;
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    passed
}

#[rstest]
#[tokio::test]
async fn messages_travel_compressed_both_ways(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    const MESSAGES: usize = 10;
    const BYTES: usize = 100_000;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = ChatServer::new(Parrot).accept_compressed(Gzip).send_compressed(Gzip);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let server = Server::new(Limits::default()).placement(placement);
        server.serve(listener, Routes::new(service), async { stopped.await.unwrap_or(()) }).await;
    });

    // Between the two, and counts.
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", between.local_addr().unwrap());
    let counting = tokio::spawn(async move {
        let (near, _) = between.accept().await.unwrap();
        let far = TcpStream::connect(address).await.unwrap();
        let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
        tokio::join!(pass_on(from_near, to_far), pass_on(from_far, to_near))
    });

    let client = ChatClient::connect(url).await.unwrap();
    let mut client = client.accept_compressed(Gzip).send_compressed(Gzip);
    let said = ChatMessage { name: String::new(), message: "x".repeat(BYTES) };
    let all = stream::iter(vec![said.clone(); MESSAGES]);
    let mut replies = client.chat(all).await.unwrap().into_inner();
    let mut got = 0;
    while let Some(reply) = replies.message().await.unwrap() {
        assert!(reply == said.message, "reply {got} is another");
        got += 1;
    }
    assert_eq!(got, MESSAGES);
    drop((client, replies));
    stop.send(()).unwrap();
    serving.await.unwrap();
    let (up, down) = counting.await.unwrap();
    let most = MESSAGES * BYTES / 10;
    assert!(up < most && down < most, "{up} bytes up, {down} down");
}

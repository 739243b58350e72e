//! A tonic service of one's own on the inline transport: what `tonic::transport::Server` did is done
//! by `bidi_echo::transport::Server`, the service stays as it is.
//!
//! `cargo run --example inline` serves `Chat/chat` on a free port and talks to itself; with an address
//! it serves there until Ctrl-C.

use std::env;
use std::net::SocketAddr;
use std::pin::Pin;

use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::proto::chat::chat_client::ChatClient;
use bidi_echo::proto::chat::chat_server::{Chat, ChatServer};
use bidi_echo::transport::{Limits, Server};
use futures_util::{Stream, StreamExt};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// Answers each message in capitals.
#[derive(Debug)]
struct Shout;

#[tonic::async_trait]
impl Chat for Shout {
    type chatStream = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

    async fn chat(
        &self,
        request: Request<Streaming<ChatMessage>>,
    ) -> Result<Response<Self::chatStream>, Status> {
        let from = request.remote_addr().ok_or_else(|| Status::internal("no address"))?;
        let said = request.into_inner();
        let shouted = said.map(move |said| Ok(format!("{from}: {}", said?.message.to_uppercase())));
        Ok(Response::new(Box::pin(shouted)))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    let serving = listener.local_addr()?;
    println!("serving Chat/chat on {serving}");

    let service = Routes::new(ChatServer::new(Shout));
    let server = Server::new(Limits::default()).extensions(|tcp| {
        // What `Request::remote_addr` looks for.
        let mut extensions = http::Extensions::new();
        extensions.insert(tcp.connect_info());
        extensions
    });
    if address.is_some() {
        let stop = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
        server.serve(listener, service, stop).await;
        return Ok(());
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serve = tokio::spawn(async move {
        server.serve(listener, service, async { _ = stopped.await }).await;
    });
    talk(serving).await?;
    // Fails only if the server is gone, which the next line tells.
    _ = stop.send(());
    serve.await?;
    Ok(())
}

async fn talk(address: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = ChatClient::connect(format!("http://{address}")).await?;
    let said = ["hello", "is anybody there?"]
        .map(|message| ChatMessage { name: String::new(), message: message.to_owned() });
    let mut shouted = client.chat(futures_util::stream::iter(said)).await?.into_inner();
    while let Some(reply) = shouted.message().await? {
        println!("{reply}");
    }
    Ok(())
}

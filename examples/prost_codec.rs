//! `echo.v1.Echo/Bidi` with tonic's own codec on the inline transport: what the codec of our services is
//! compared with (peer `inline-prost` of loadgen's suites).
//!
//! Takes nothing; listens on a free loopback port, says its address as the first line of stdout, and
//! serves until its stdin ends.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use bidi_echo::proto::echo::EchoMessage;
use bidi_echo::transport::{Limits, Server};
use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Every message back, unchanged and in order.
struct Unchanged;

impl StreamingService<EchoMessage> for Unchanged {
    type Response = EchoMessage;
    type ResponseStream = Streaming<EchoMessage>;
    type Future = Ready<Result<Response<Streaming<EchoMessage>>, Status>>;

    fn call(&mut self, request: Request<Streaming<EchoMessage>>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

/// What tonic's build would have generated for a server of this one method.
#[derive(Clone)]
struct Echo;

impl<B> Service<http::Request<B>> for Echo
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != "/echo.v1.Echo/Bidi" {
                return Ok(Status::unimplemented("only /echo.v1.Echo/Bidi is here").into_http());
            }
            let codec = ProstCodec::<EchoMessage, EchoMessage>::default();
            let mut response = Grpc::new(codec).streaming(Unchanged, request).await;
            let product = HeaderValue::from_static("bidi-echo-prost-codec");
            response.headers_mut().insert(http::header::SERVER, product);
            Ok(response)
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel();
    thread::spawn(move || {
        // Whatever ends stdin, a reader that fails included, ends the server.
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        _ = stop.send(());
    });
    Server::new(Limits::default()).serve(listener, Echo, async { _ = stopped.await }).await;
    Ok(())
}

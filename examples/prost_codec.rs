//! `echo.v1.Echo/Bidi` with tonic's own codec on the inline transport: what the codec of our services is
//! compared with (peer `inline-prost` of loadgen's suites).
//!
//! Listens on a free loopback port, says its address as the first line of stdout, and serves until its
//! stdin ends. Takes `--work N`: that many multiplications for each message, one after the other, so that
//! a slowdown of known size can be looked for (`loadgen compare`); and `--routes`: the service stands behind
//! tonic's router, as most services do (peer `inline-routes`).

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use bidi_echo::proto::echo::EchoMessage;
use bidi_echo::transport::{Limits, Server};
use bytes::Bytes;
use futures_util::Stream;
use http::HeaderValue;
use http_body::Body;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Every message back, unchanged and in order, after some work.
struct Unchanged {
    work: u32,
}

impl StreamingService<EchoMessage> for Unchanged {
    type Response = EchoMessage;
    type ResponseStream = Worked;
    type Future = Ready<Result<Response<Worked>, Status>>;

    fn call(&mut self, request: Request<Streaming<EchoMessage>>) -> Self::Future {
        ready(Ok(Response::new(Worked { messages: request.into_inner(), work: self.work })))
    }
}

/// Messages that cost something.
struct Worked {
    messages: Streaming<EchoMessage>,
    work: u32,
}

impl Stream for Worked {
    type Item = Result<EchoMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.messages).poll_next(cx);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            let mut product = 3_u64;
            for _ in 0..self.work {
                product = black_box(product.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
        }
        polled
    }
}

/// What tonic's build would have generated for a server of this one method.
#[derive(Clone)]
struct Echo {
    work: u32,
}

impl NamedService for Echo {
    const NAME: &'static str = "echo.v1.Echo";
}

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
        let work = self.work;
        Box::pin(async move {
            if request.uri().path() != "/echo.v1.Echo/Bidi" {
                return Ok(Status::unimplemented("only /echo.v1.Echo/Bidi is here").into_http());
            }
            let codec = ProstCodec::<EchoMessage, EchoMessage>::default();
            let mut response = Grpc::new(codec).streaming(Unchanged { work }, request).await;
            let product = HeaderValue::from_static("bidi-echo-prost-codec");
            response.headers_mut().insert(http::header::SERVER, product);
            Ok(response)
        })
    }
}

/// What it is asked to do.
#[derive(Default)]
struct Asked {
    work: u32,
    routes: bool,
}

fn asked(mut arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--routes" => asked.routes = true,
            "--work" => {
                let count = arguments.next().unwrap_or_default();
                asked.work =
                    count.parse().map_err(|_| format!("--work {count:?}: need a number"))?;
            }
            other => return Err(format!("{other:?}: takes nothing but --work N and --routes")),
        }
    }
    Ok(asked)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Asked { work, routes } = asked(std::env::args().skip(1))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel();
    thread::spawn(move || {
        // Whatever ends stdin, a reader that fails included, ends the server.
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        _ = stop.send(());
    });
    let stop = async { _ = stopped.await };
    let server = Server::new(Limits::default());
    match routes {
        true => server.serve(listener, Routes::new(Echo { work }), stop).await,
        false => server.serve(listener, Echo { work }, stop).await,
    }
    Ok(())
}

//! The service that h2spec examines: plain HTTP/2 on the inline transport, 200 and a few bytes for
//! whatever is asked.
//!
//! `cargo run --example h2spec [ADDRESS]`, by default a free port of 127.0.0.1; prints the address that
//! it listens on, then serves until it is killed. `h2spec -S -h HOST -p PORT` does the rest.

use std::env;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll};

use bidi_echo::transport::{BodyError, Limits, RecvBody, Server};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;
use tower_service::Service;

const ADDRESS: &str = "127.0.0.1:0";

/// Long enough for the cases that let it out byte by byte, short enough for one frame.
const BODY: &[u8] = b"the body of every answer";

/// Signalled in SETTINGS; h2spec opens one more and expects to be refused.
const MAX_CONCURRENT_STREAMS: u32 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let address = env::args().nth(1).unwrap_or_else(|| ADDRESS.to_owned());
    let listening = TcpListener::bind(&address).await;
    match listening.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            println!("{address}");
            let limits =
                Limits { max_concurrent_streams: MAX_CONCURRENT_STREAMS, ..Limits::default() };
            Server::new(limits).serve(listener, Answers, std::future::pending()).await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("h2spec: cannot bind {address}: {error}; pass another address");
            ExitCode::FAILURE
        }
    }
}

/// Reads the request to its end before it answers: what h2spec sends next would otherwise race with
/// an answer that ends the stream early, after which much of it may be ignored (RFC 9113, 5.1).
#[derive(Clone)]
struct Answers;

impl Service<Request<RecvBody>> for Answers {
    type Response = Response<Full<Bytes>>;
    type Error = BodyError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BodyError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RecvBody>) -> Self::Future {
        Box::pin(async {
            request.into_body().collect().await?;
            Ok(Response::new(Full::new(Bytes::from_static(BODY))))
        })
    }
}

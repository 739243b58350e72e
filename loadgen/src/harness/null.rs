//! A server that does nothing: the bytes of a request body are its response body.
//!
//! What loadgen reaches against it is what loadgen itself can do on this machine. On the inline
//! transport, with no codec and no service above: nothing that serves HTTP/2 here costs less.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bidi_echo::transport::{Limits, Server};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, SERVER};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tokio::net::TcpListener;

use super::server::stdin_ends;

/// The verb that makes this program such a server.
pub const VERB: &str = "null-echo";

#[derive(Clone, Copy, Debug)]
struct NullEcho;

impl<B> tower_service::Service<Request<B>> for NullEcho
where
    B: Body<Data = Bytes> + Unpin,
{
    type Response = Response<Back<B>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Back<B>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut response = Response::new(Back(Some(request.into_body())));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(SERVER, HeaderValue::from_static("loadgen-null-echo"));
        ready(Ok(response))
    }
}

/// The body that came, and OK behind it.
#[derive(Debug)]
struct Back<B>(Option<B>);

impl<B: Body<Data = Bytes> + Unpin> Body for Back<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            _ => {}
        }
        self.0 = None;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// Serves on a free loopback port, which it says on stdout, until stdin ends.
pub fn serve_until_stdin_ends() -> anyhow::Result<()> {
    let _ = bidi_echo::serve::keep_to_small_pages();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut stdout = io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        stdout.flush()?;
        Server::new(Limits::default()).serve(listener, NullEcho, stdin_ends()).await;
        Ok(())
    })
}

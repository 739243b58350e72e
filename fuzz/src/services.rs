//! A service that answers in as many ways as handlers do; the request's path chooses.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tokio::sync::mpsc;

use crate::transport::RecvBody;

type BoxError = Box<dyn StdError + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Reply>, BoxError>> + Send>>;

/// The paths that choose; any other is [`ECHO`].
pub const PATHS: [&str; 8] =
    [ECHO, "/trailers", "/remote", "/collect", "/many", "/drop", "/fail", "/broken"];

/// Sends back what comes as it comes.
pub const ECHO: &str = "/echo";

/// Bytes of the answer of `/many`: more than fits into a stream's first window.
const MANY_BYTES: usize = 300_000;

/// All of the ways.
#[derive(Clone, Copy, Debug, Default)]
pub struct Services;

/// How a body comes about.
#[derive(Debug)]
pub enum Reply {
    /// The request's body, and then trailers if told so.
    Echo(RecvBody, Option<HeaderMap>),
    /// What another task sends.
    Channel(mpsc::Receiver<Bytes>),
    /// So many bytes.
    Many(usize),
    /// All at once.
    Whole(Bytes),
    /// An error.
    Broken,
}

impl tower_service::Service<Request<RecvBody>> for Services {
    type Response = Response<Reply>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RecvBody>) -> Answer {
        let path = request.uri().path().to_owned();
        let body = request.into_body();
        Box::pin(async move {
            Ok(Response::new(match path.as_str() {
                "/trailers" => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    Reply::Echo(body, Some(trailers))
                }
                "/remote" => Reply::Channel(relay(body)),
                "/collect" => Reply::Whole(collect(body).await?),
                "/many" => Reply::Many(MANY_BYTES),
                "/drop" => Reply::Whole(Bytes::from_static(b"early")),
                "/fail" => return Err("fails".into()),
                "/broken" => Reply::Broken,
                _ => Reply::Echo(body, None),
            }))
        })
    }
}

/// Reads the body on a task of its own, which outlives the stream if that is reset.
fn relay(mut body: RecvBody) -> mpsc::Receiver<Bytes> {
    let (sender, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = next(&mut body).await {
            if let Ok(chunk) = frame.into_data()
                && sender.send(chunk).await.is_err()
            {
                break;
            }
        }
    });
    chunks
}

/// Reads the body to its end, in a combinator that wakes with a waker of its own.
async fn collect(mut body: RecvBody) -> Result<Bytes, BoxError> {
    let reading = async move {
        let mut whole = Vec::new();
        while let Some(frame) = next(&mut body).await {
            whole.extend(frame?.into_data().unwrap_or_default());
        }
        Ok(Bytes::from(whole))
    };
    let mut one = FuturesUnordered::from_iter([reading]);
    one.next().await.expect("there is one")
}

async fn next(body: &mut RecvBody) -> Option<Result<Frame<Bytes>, <RecvBody as Body>::Error>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        static ZEROS: [u8; 20_000] = [0; 20_000];
        Poll::Ready(match &mut *self {
            Reply::Echo(body, trailers) => match ready!(Pin::new(body).poll_frame(cx)) {
                Some(frame) => Some(frame.map_err(Into::into)),
                None => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
            },
            Reply::Channel(chunks) => {
                ready!(chunks.poll_recv(cx)).map(|chunk| Ok(Frame::data(chunk)))
            }
            Reply::Many(left) => {
                let length = ZEROS.len().min(*left);
                *left -= length;
                (length > 0).then(|| Ok(Frame::data(Bytes::from_static(&ZEROS[..length]))))
            }
            Reply::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)))
            }
            Reply::Broken => Some(Err("broken".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Echo(body, None) => body.is_end_stream(),
            Reply::Whole(bytes) => bytes.is_empty(),
            _ => false,
        }
    }
}

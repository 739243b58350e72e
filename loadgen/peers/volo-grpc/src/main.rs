//! The echo on volo-grpc, with what its experts set for many small messages on one core.
//!
//! Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
//! ends. volo-grpc stands on hyper and h2, as tonic does, with a codec of its own; so the rest is set as for
//! tonic: wide windows, mimalloc, fat LTO, and a runtime of one thread whose queue is first in, first out.

use std::error::Error;
use std::io::{self, Read};

use tokio::net::TcpListener;
use volo::net::incoming::DefaultIncoming;
use volo_grpc::metadata::MetadataValue;
use volo_grpc::server::{Server, ServiceBuilder};
use volo_grpc::{BoxStream, RecvStream, Request, Response, Status};

use crate::generated::volo_gen::echo::v1::{Echo, EchoMessage, EchoServer};

mod generated {
    include!(concat!(env!("OUT_DIR"), "/volo_gen.rs"));
}

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

// As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
const CONNECTION_FLOW_WINDOW_BYTES: u32 = 16 << 20;
const STREAM_FLOW_WINDOW_BYTES: u32 = 1 << 20;
const STREAMS_MAX: u32 = 4096;

struct Unchanged;

impl Echo for Unchanged {
    async fn bidi(
        &self,
        request: Request<RecvStream<EchoMessage>>,
    ) -> Result<Response<BoxStream<'static, Result<EchoMessage, Status>>>, Status> {
        let replies: BoxStream<'static, _> = Box::pin(request.into_inner());
        let mut response = Response::new(replies);
        let product = MetadataValue::from_static("volo-grpc/0.12");
        response.metadata_mut().insert("server", product);
        Ok(response)
    }
}

async fn serve() -> Result<(), Box<dyn Error + Send + Sync>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(|| {
        while io::stdin().read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
    Server::new()
        .http2_init_connection_window_size(CONNECTION_FLOW_WINDOW_BYTES)
        .http2_init_stream_window_size(STREAM_FLOW_WINDOW_BYTES)
        .http2_max_concurrent_streams(STREAMS_MAX)
        .add_service(ServiceBuilder::new(EchoServer::new(Unchanged)).build())
        .run(DefaultIncoming::from(listener))
        .await
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve())
}

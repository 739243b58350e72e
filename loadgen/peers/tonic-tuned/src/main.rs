//! The echo on tonic, with what its experts set for many small messages on one core.
//!
//! Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
//! ends. Beside wide windows: mimalloc, fat LTO, payloads that are slices of the receive buffer; no router, whose
//! boxes each frame would pass; and a runtime of one thread, whose queue is first in, first out: all streams
//! that a read woke run before their connection writes, where the default runtime writes after the first.

use std::error::Error;
use std::io::{self, Read};

use tonic::metadata::MetadataValue;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::EchoMessage;
use crate::proto::echo_server::{Echo, EchoServer};

mod proto {
    tonic::include_proto!("echo.v1");
}

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

// As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
const CONNECTION_FLOW_WINDOW_BYTES: u32 = 16 << 20;
const STREAM_FLOW_WINDOW_BYTES: u32 = 1 << 20;
const STREAMS_MAX: u32 = 4096;

struct Unchanged;

#[tonic::async_trait]
impl Echo for Unchanged {
    type BidiStream = Streaming<EchoMessage>;

    async fn bidi(
        &self,
        request: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<Self::BidiStream>, Status> {
        let mut response = Response::new(request.into_inner());
        let product = MetadataValue::from_static("tonic/0.14 (tuned)");
        response.metadata_mut().insert("server", product);
        Ok(response)
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    println!("{}", incoming.local_addr()?);
    std::thread::spawn(|| {
        while io::stdin().read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
    Server::builder()
        .initial_connection_window_size(CONNECTION_FLOW_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_FLOW_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .serve_with_incoming(EchoServer::new(Unchanged), incoming)
        .await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve())
}

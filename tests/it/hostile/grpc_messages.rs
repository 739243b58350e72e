//! The whole server: what stands in the messages.
use super::*;
use crate::support::wire::{echo_message, frame as message};
use crate::support::{INLINE, TASK};
use bidi_echo::config::{Config, Transport};

struct Grpc {
    server: crate::support::Server,
    neighbour: Neighbour<TcpStream>,
}

impl Grpc {
    async fn new(transport: Transport) -> Self {
        let server = crate::support::Server::on(transport).await;
        let peer = connect(&server).await;
        let numbered = |n: u64| message(&echo_message(&n.to_be_bytes())).to_vec();
        let neighbour = Neighbour::new(peer, &request(1), numbered).await;
        Grpc { server, neighbour }
    }
}

async fn connect(server: &crate::support::Server) -> Peer<TcpStream> {
    let mut peer = Peer::new(TcpStream::connect(server.address).await.unwrap());
    peer.greet(&[]).await;
    peer
}

/// Returns when the server's handlers had what the client sent: all share the test's thread, so that
/// each round lets everybody have a turn.
async fn all_was_taken(peer: &mut Peer<TcpStream>) {
    peer.frames_until_pong().await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

fn request(stream: u32) -> Vec<u8> {
    asking(stream, 0, "POST", "application/grpc")
}

#[rstest]
#[tokio::test]
async fn these_end_one_stream_and_the_connection_lives(
    #[values(INLINE, TASK)] transport: Transport,
) {
    let mut host = Grpc::new(transport).await;
    let mut peer = connect(&host.server).await;
    let mut id = 1;
    let mut check = async |sent: &[u8], status: &str| {
        // Not ended: the answer does not wait for more.
        peer.send(&[request(id), data(id, 0, sent)].concat()).await;
        let answer = peer.answer(id).await;
        assert_eq!((answer.status(), answer.grpc_status()), ("200", Some(status)));
        assert_eq!(peer.frame().await, Frame::Reset { stream: id, code: NO_ERROR });
        host.neighbour.is_well().await;
        id += 2;
    };
    check(&[0, 0xff, 0xff, 0xff, 0xff], "8").await;
    check(&[0, 0, 0x40, 0, 1], "8").await;
    check(&[&[0, 0, 0x50, 0, 0][..], &[7; 10_000]].concat(), "8").await;
    check(&[1, 0, 0, 0, 1, 7], "13").await;
    check(&[9, 0, 0, 0, 1, 7], "13").await;
    check(&message(&[0xff; 9]), "13").await;
}

#[rstest]
#[tokio::test]
async fn unfinished_messages_are_bounded_and_cost_the_stream_that_goes_beyond(
    #[values(INLINE, TASK)] transport: Transport,
) {
    let config = Config { unfinished_bytes_max: 5 << 20, ..crate::support::on(transport) };
    let server = crate::support::Server::start(config).await;
    let mut peer = connect(&server).await;
    peer.send(&window_update(0, 1 << 20)).await;
    let whole = message(&echo_message(&[7; 60_000]));
    let (begin, end) = whole.split_at(whole.len() - 10);
    let begins = |n| {
        let parts = begin.chunks(16_384).flat_map(move |part| data(id(n), 0, part));
        [request(id(n)), parts.collect()].concat()
    };
    let fit = u32::try_from((5 << 20) / begin.len()).unwrap();
    for n in 0..fit {
        peer.send(&begins(n)).await;
    }
    // On tasks of their own they take it in any order.
    all_was_taken(&mut peer).await;
    peer.send(&begins(fit)).await;
    // Response heads come before it.
    let beyond = loop {
        let frame = peer.frame().await;
        if frame.header("grpc-status").is_some() {
            break frame;
        }
    };
    assert_eq!((beyond.stream(), beyond.header("grpc-status")), (id(fit), Some("8")));
    let told = beyond.header("grpc-message").unwrap();
    assert!(told.contains("--unfinished-bytes-max"), "{told}");
    assert_eq!(peer.frame().await, Frame::Reset { stream: id(fit), code: NO_ERROR });
    // Those that were there first go on, and make room.
    for n in [0, fit - 1] {
        peer.send(&[data(id(n), 0, end), window_update(id(n), 1 << 20)].concat()).await;
        let mut left = whole.len();
        while left > 0 {
            match peer.frame().await {
                Frame::Data { stream, payload, .. } if stream == id(n) => left -= payload.len(),
                other => panic!("{other:?}"),
            }
        }
    }
    peer.send(&begins(fit + 1)).await;
    let head = peer.frame().await;
    assert_eq!((head.stream(), head.header("grpc-status")), (id(fit + 1), None));
}

#[rstest]
#[tokio::test]
async fn these_are_not_grpc_and_are_told_so(#[values(INLINE, TASK)] transport: Transport) {
    let mut host = Grpc::new(transport).await;
    let mut peer = connect(&host.server).await;
    let mut id = 1;
    let mut check = async |method: &str, content_type: &str, status: &str| {
        peer.send(&asking(id, END_STREAM, method, content_type)).await;
        assert_eq!(peer.answer(id).await.status(), status);
        host.neighbour.is_well().await;
        id += 2;
    };
    check("POST", "application/json", "415").await;
    check("POST", "application/grpcx", "415").await;
    check("GET", "application/grpc", "405").await;
    check("DELETE", "text/plain", "405").await;
}

/// Counted by the allocator: client, server and streams share the test's thread.
#[rstest]
fn a_prefix_reserves_nothing_beyond_what_came(#[values(INLINE, TASK)] transport: Transport) {
    const STREAMS: u32 = 200;
    const BYTES_MAX: u64 = 2_048;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let (mut host, mut peer) = runtime.block_on(async {
        let host = Grpc::new(transport).await;
        let mut peer = connect(&host.server).await;
        peer.send(&(0..STREAMS).flat_map(|n| request(id(n))).collect::<Vec<u8>>()).await;
        for _ in 0..STREAMS {
            assert!(matches!(peer.frame().await, Frame::Headers { end: false, .. }));
        }
        (host, peer)
    });
    let begun = (0..STREAMS).flat_map(|n| data(id(n), 0, &[0, 0, 0x40, 0, 0, 7]));
    let begun: Vec<u8> = begun.collect();
    let counted = measure(|| {
        runtime.block_on(async {
            peer.send(&begun).await;
            all_was_taken(&mut peer).await;
        });
    });
    runtime.block_on(host.neighbour.is_well());
    // They promised 800 MiB.
    let grown = counted.bytes_max / u64::from(STREAMS);
    assert!(grown < BYTES_MAX, "{grown} bytes a stream");
}

#[rstest]
#[tokio::test]
async fn a_message_in_frames_of_a_byte_is_carried(#[values(INLINE, TASK)] transport: Transport) {
    const BYTES: usize = 50_000;
    let mut host = Grpc::new(transport).await;
    let mut peer = connect(&host.server).await;
    let sent = message(&echo_message(&[7; BYTES]));
    peer.send(&request(1)).await;
    for part in sent.chunks(1_000) {
        let frames: Vec<u8> = part.iter().flat_map(|byte| data(1, 0, &[*byte])).collect();
        peer.send(&frames).await;
        host.neighbour.is_well().await;
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        match peer.frame().await {
            Frame::Headers { .. } => {}
            Frame::Data { payload, .. } => got.extend_from_slice(&payload),
            other => panic!("{other:?}"),
        }
    }
    assert!(got == sent);
}

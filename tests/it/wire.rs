//! The contracts on the wire: the seed's golden frames, byte for byte, and what travels when.

use crate::support::wire::{
    CHAT, Call, Client, ECHO, PREFIX, Stack, Status, echo_message, frame, grpc_request, hex,
};
use crate::support::{INLINE, Server, TASK, TONIC, on, soon};
use bidi_echo::config::{Config, Transport};
use bidi_echo::proto::echo::EchoMessage;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use prost::Message;
use rstest::rstest;

/// Request and reply frames of the seed's example.
const GOLDEN: [(&str, &str); 3] = [
    ("00000000090a0353616d12024869", "00000000090a0753616d3a204869"),
    ("000000000a0a03416e6e1203486579", "000000000a0a08416e6e3a20486579"),
    ("000000000d0a044a6f686e120548656c6c6f", "000000000d0a0b4a6f686e3a2048656c6c6f"),
];

async fn start(transport: Transport, stack: Stack) -> (Server, Client) {
    let server = Server::on(transport).await;
    let client = Client::connect_on(stack, server.address).await;
    (server, client)
}

async fn reply_frame(call: &mut Call) -> Bytes {
    frame(&call.reply().await.expect("a reply"))
}

#[rstest]
#[tokio::test]
async fn each_golden_frame_is_answered_at_once_before_anything_follows(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(CHAT).await;
    for (request, reply) in GOLDEN {
        call.send(hex(request));
        assert_eq!(reply_frame(&mut call).await, hex(reply));
    }
    call.half_close();
    assert_eq!(call.end().await, Status::ok());
}

#[rstest]
#[tokio::test]
async fn all_golden_frames_may_be_sent_before_the_first_is_read(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(CHAT).await;
    for (request, _) in GOLDEN {
        call.send(hex(request));
    }
    call.half_close();
    for (_, reply) in GOLDEN {
        assert_eq!(reply_frame(&mut call).await, hex(reply));
    }
    assert_eq!(call.end().await, Status::ok());
}

#[rstest]
#[tokio::test]
async fn a_reader_may_wait_before_the_first_message_is_sent(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let (mut sender, mut replies) = client.open(CHAT).await.split();
    let reader = tokio::spawn(async move {
        let mut read = Vec::new();
        while let Some(reply) = replies.try_reply().await.unwrap() {
            read.push(frame(&reply));
        }
        (read, replies.try_end().await.unwrap())
    });
    // The reader is waiting now: only it can run while this task yields.
    tokio::task::yield_now().await;
    for (request, _) in GOLDEN {
        sender.send(hex(request));
    }
    sender.half_close();
    let expected = GOLDEN.map(|(_, reply)| hex(reply)).to_vec();
    assert_eq!(reader.await.unwrap(), (expected, Status::ok()));
}

#[rstest]
#[tokio::test]
async fn two_messages_ahead_of_the_reader_are_answered_in_order(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(ECHO).await;
    for number in 0..100u32 {
        call.send(frame(&echo_message(&number.to_be_bytes())));
        if let Some(earlier) = number.checked_sub(2) {
            assert_eq!(call.echoed().await, earlier.to_be_bytes()[..]);
        }
    }
    call.half_close();
    for number in 98..100u32 {
        assert_eq!(call.echoed().await, number.to_be_bytes()[..]);
    }
    assert_eq!(call.end().await, Status::ok());
}

#[rstest]
#[tokio::test]
async fn empty_fields_are_answered_with_a_colon_and_a_space(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(CHAT).await;
    call.send(hex("0000000000"));
    assert_eq!(reply_frame(&mut call).await, hex("00000000040a023a20"));
}

#[rstest]
#[tokio::test]
async fn headers_come_before_the_first_message_is_sent(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    for path in [CHAT, ECHO] {
        let (status, headers) = client.open(path).await.head().await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["content-type"], "application/grpc");
        assert!(!headers.contains_key("grpc-status"));
    }
}

#[rstest]
#[tokio::test]
async fn an_empty_stream_ends_with_ok_at_once(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    for path in [CHAT, ECHO] {
        let mut call = client.open(path).await;
        call.half_close();
        assert_eq!(call.end().await, Status::ok());
    }
}

#[rstest]
#[tokio::test]
async fn every_message_has_one_reply_and_nothing_follows_but_the_status(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (server, client) = start(transport, stack).await;
    let mut call = client.open(ECHO).await;
    for number in 0..1_000u32 {
        call.send(frame(&echo_message(&number.to_be_bytes())));
    }
    call.half_close();
    for number in 0..1_000u32 {
        assert_eq!(call.echoed().await, number.to_be_bytes()[..]);
    }
    assert_eq!(call.end().await, Status::ok());
    drop((call, client));
    let counted = server.stop().await.stats;
    assert_eq!((counted.messages_in, counted.messages_out), (1_000, 1_000));
}

#[rstest]
#[tokio::test]
async fn request_metadata_does_not_come_back(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut request = grpc_request(ECHO);
    request.headers_mut().insert("x-secret", "s3cret".parse().unwrap());
    request.headers_mut().insert("x-secret-bin", "AAEC".parse().unwrap());
    let mut call = client.request(request).await;
    call.half_close();
    let (_, headers) = call.head().await;
    assert!(headers.keys().all(|name| !name.as_str().starts_with("x-")), "{headers:?}");
    assert_eq!(call.end().await, Status::ok());
}

#[rstest]
#[tokio::test]
async fn payloads_of_every_size_come_back_unchanged(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    // The last one fills the 4 MiB limit: tag, 4 bytes of length, payload.
    for size in [0, 1, 127, 128, 16 << 10, 1 << 20, (4 << 20) - 5] {
        let payload: Vec<u8> = (0..=250).cycle().take(size).collect();
        assert!(client.echo(&payload).await == payload, "{size} bytes");
    }
}

#[rstest]
#[tokio::test]
async fn a_message_may_be_split_over_many_data_frames(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(ECHO).await;
    let payload = b"one byte per DATA frame";
    for byte in frame(&echo_message(payload)) {
        call.send(vec![byte]);
    }
    assert_eq!(call.echoed().await, payload[..]);
}

#[rstest]
#[tokio::test]
async fn a_data_frame_may_carry_many_messages_and_part_of_another(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(ECHO).await;
    let mut frames = BytesMut::new();
    for number in 0..100u32 {
        frames.extend_from_slice(&frame(&echo_message(&number.to_be_bytes())));
    }
    let rest = frames.split_off(frames.len() - PREFIX);
    call.send(frames);
    for number in 0..99u32 {
        assert_eq!(call.echoed().await, number.to_be_bytes()[..]);
    }
    call.send(rest);
    assert_eq!(call.echoed().await, 99u32.to_be_bytes()[..]);
}

#[rstest]
#[tokio::test]
async fn unknown_fields_are_skipped(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(ECHO).await;
    // Field 2, a varint, and then the payload.
    call.send(frame(&[0x10, 0x2a, 0x0a, 0x01, 0x07]));
    let reply = call.reply().await.unwrap();
    assert_eq!(EchoMessage::decode(reply).unwrap().payload, [7][..]);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_tiny_messages_may_wait_to_be_read_on_one_stream(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut call = client.open(ECHO).await;
    for number in 0..5_000u64 {
        call.send(frame(&echo_message(&number.to_be_bytes())));
    }
    call.half_close();
    for number in 0..5_000u64 {
        assert_eq!(call.echoed().await, number.to_be_bytes()[..]);
    }
    assert_eq!(call.end().await, Status::ok());
    assert_eq!(client.echo(b"no GOAWAY").await, b"no GOAWAY"[..]);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_streams_may_wait_to_be_read_on_one_connection(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let (_server, client) = start(transport, stack).await;
    let mut calls = Vec::new();
    for number in 0..3_000u64 {
        let mut call = client.open(ECHO).await;
        call.send(frame(&echo_message(&number.to_be_bytes())));
        calls.push(call);
    }
    for (number, call) in (0u64..).zip(&mut calls) {
        assert_eq!(call.echoed().await, number.to_be_bytes()[..]);
    }
    for call in &mut calls {
        call.half_close();
    }
    for call in &mut calls {
        assert_eq!(call.end().await, Status::ok());
    }
    assert_eq!(client.echo(b"no GOAWAY").await, b"no GOAWAY"[..]);
}

#[rstest]
#[tokio::test]
async fn connections_above_the_cap_wait_until_one_has_gone(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(Config { connections_max: 2, ..on(transport) }).await;
    let (first, second) =
        (Client::connect(server.address).await, Client::connect(server.address).await);
    assert_eq!(first.echo(b"first").await, b"first"[..]);
    assert_eq!(second.echo(b"second").await, b"second"[..]);
    // The kernel takes it, the server does not: neither is it served, nor is anybody else slower.
    let address = server.address;
    let mut third = tokio::spawn(async move {
        let third = Client::connect(address).await;
        assert_eq!(third.echo(b"third").await, b"third"[..]);
        third
    });
    for _ in 0..100 {
        assert_eq!(first.echo(b"on").await, b"on"[..]);
        assert!(!third.is_finished(), "there are only two places");
    }
    second.closed().await.unwrap();
    let third = soon(&mut third).await.unwrap();
    drop((first, third));
    server.stop().await;
}

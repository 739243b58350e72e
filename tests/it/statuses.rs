//! Bad input: which status it gets, and that the connection and its other streams live on.

use crate::support::wire::{CHAT, Client, ECHO, Stack, Status, echo_message, frame, grpc_request};
use crate::support::{INLINE, Server, TASK, TONIC, finished, on};
use bidi_echo::config::Config;
use bidi_echo::config::Transport;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use rstest::rstest;

const HEALTH: &str = "/grpc.health.v1.Health/Check";

const OK: i32 = 0;
const DEADLINE_EXCEEDED: i32 = 4;
const RESOURCE_EXHAUSTED: i32 = 8;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;

/// Runs `bad` between two echoes of a stream that was opened before it, on the same connection;
/// afterwards a new stream must work there too.
async fn check<T>(stack: Stack, config: Config, bad: impl AsyncFnOnce(&Client) -> T) -> T {
    let server = Server::start(config).await;
    let client = Client::connect_on(stack, server.address).await;
    let mut witness = client.open(ECHO).await;
    witness.send(frame(&echo_message(b"before")));
    assert_eq!(witness.echoed().await, b"before"[..]);

    let outcome = bad(&client).await;

    witness.send(frame(&echo_message(b"after")));
    assert_eq!(witness.echoed().await, b"after"[..]);
    witness.half_close();
    assert_eq!(witness.end().await, Status::ok());
    assert_eq!(client.echo(b"anew").await, b"anew"[..]);
    outcome
}

async fn status_of(stack: Stack, config: Config, path: &str, data: Vec<u8>) -> Status {
    check(stack, config, async |client| {
        let mut call = client.open(path).await;
        call.send(data);
        call.half_close();
        call.end().await
    })
    .await
}

/// Inbound and outbound limit of 100 bytes.
fn small(transport: Transport) -> Config {
    Config {
        transport,
        inbound_message_bytes_max: 100,
        outbound_message_bytes_max: 100,
        ..Config::default()
    }
}

#[rstest]
#[tokio::test]
async fn an_unknown_service_or_method_is_unimplemented(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    for path in ["/no.such.Service/Method", "/echo.v1.Echo/NoSuchMethod", "/Chat/Chat", "/"] {
        let status = status_of(stack, on(transport), path, frame(b"").to_vec()).await;
        assert_eq!(status.code, UNIMPLEMENTED, "{path}");
    }
}

#[rstest]
#[tokio::test]
async fn a_message_over_the_inbound_limit_is_resource_exhausted(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    for path in [ECHO, CHAT, HEALTH] {
        // 2 bytes of tag and length make 101.
        let status =
            status_of(stack, small(transport), path, frame(&echo_message(&[b'x'; 99])).to_vec())
                .await;
        assert_eq!(status.code, RESOURCE_EXHAUSTED, "{path}: {}", status.message);
        assert!(status.message.contains("100"), "does not name the limit: {}", status.message);
    }
}

#[rstest]
#[tokio::test]
async fn a_message_that_only_announces_too_many_bytes_is_refused_without_waiting_for_them(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let status = check(stack, on(transport), async |client| {
        let mut call = client.open(ECHO).await;
        call.send(&b"\0\xff\xff\xff\xff"[..]);
        call.end().await
    });
    assert_eq!(status.await.code, RESOURCE_EXHAUSTED);
}

#[rstest]
#[tokio::test]
async fn a_reply_over_the_outbound_limit_is_resource_exhausted_after_the_earlier_replies(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let config = Config { transport, outbound_message_bytes_max: 100, ..Config::default() };
    let status = check(stack, config, async |client| {
        let mut call = client.open(ECHO).await;
        // One DATA frame, so that all three are answered in one go.
        let messages = [&b"first"[..], b"second", &[7; 99]].map(echo_message);
        call.send(messages.map(|message| frame(&message)).concat());
        assert_eq!(call.echoed().await, b"first"[..]);
        assert_eq!(call.echoed().await, b"second"[..]);
        call.end().await
    })
    .await;
    assert_eq!(status.code, RESOURCE_EXHAUSTED);
    assert!(status.message.contains("100"), "does not name the limit: {}", status.message);
}

#[rstest]
#[tokio::test]
async fn what_fits_the_limits_exactly_is_echoed(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    check(stack, small(transport), async |client| client.echo(&[7; 98]).await).await;
}

#[rstest]
#[tokio::test]
async fn broken_protobuf_is_internal(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    for path in [ECHO, CHAT, HEALTH] {
        // A length of 127 bytes, of which none follows.
        let status = status_of(stack, on(transport), path, frame(&[0x0a, 0x7f]).to_vec()).await;
        assert_eq!(status.code, INTERNAL, "{path}: {}", status.message);
    }
}

#[rstest]
#[tokio::test]
async fn invalid_utf8_in_a_text_field_is_internal(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let status =
        status_of(stack, on(transport), CHAT, frame(&[0x0a, 2, 0xc3, 0x28]).to_vec()).await;
    assert_eq!(status.code, INTERNAL, "{}", status.message);
}

#[rstest]
#[tokio::test]
async fn a_compressed_message_without_an_encoding_is_internal(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    for flag in [1, 2, 255] {
        let status = status_of(stack, on(transport), ECHO, vec![flag, 0, 0, 0, 0]).await;
        assert_eq!(status.code, INTERNAL, "flag {flag}: {}", status.message);
    }
}

#[rstest]
#[tokio::test]
async fn an_unknown_encoding_is_unimplemented(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let status = check(stack, on(transport), async |client| {
        let mut request = grpc_request(ECHO);
        request.headers_mut().insert("grpc-encoding", "zebra".parse().unwrap());
        let mut call = client.request(request).await;
        call.half_close();
        call.end().await
    });
    assert_eq!(status.await.code, UNIMPLEMENTED);
}

#[rstest]
#[tokio::test]
async fn half_a_message_at_the_half_close_is_internal_after_the_earlier_replies(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    let whole = frame(&echo_message(b"whole"));
    // Half a prefix, a prefix alone, and one with half its message. tonic 0.14 takes a prefix alone for a regular
    // end, unless the guard is before it.
    let cuts = if transport == TONIC { &[2, 8][..] } else { &[2, 5, 8] };
    for &cut in cuts {
        let status = check(stack, on(transport), async |client| {
            let mut call = client.open(ECHO).await;
            call.send([&whole[..], &whole[..cut]].concat());
            call.half_close();
            assert_eq!(call.echoed().await, b"whole"[..]);
            call.end().await
        });
        assert_eq!(status.await.code, INTERNAL, "{cut} bytes");
    }
}

async fn http_status(
    transport: Transport,
    request: impl FnOnce(&mut http::Request<()>),
) -> (StatusCode, HeaderMap) {
    check(Stack::H2, on(transport), async |client| {
        let mut bad = grpc_request(ECHO);
        request(&mut bad);
        client.request(bad).await.head().await
    })
    .await
}

/// tonic keeps a deadline until the head of the answer, which an echo sends at once.
#[rstest]
#[tokio::test]
async fn a_stream_whose_time_is_over_is_ended_but_not_by_tonic(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::start(on(transport)).await;
    let client = Client::connect(server.address).await;
    let mut request = grpc_request(ECHO);
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("1m"));
    let mut call = client.request(request).await;
    match transport {
        Transport::Inline(_) => assert_eq!(call.end().await.code, DEADLINE_EXCEEDED),
        Transport::Tonic => {
            call.send(frame(&echo_message(b"in time or not")));
            assert_eq!(call.echoed().await, b"in time or not"[..]);
        }
    }
    drop((call, client));
    let summary = server.stop().await;
    let expected = u64::from(transport != TONIC);
    assert_eq!(finished(&summary, "DEADLINE_EXCEEDED"), expected, "counted as what it was");
}

#[rstest]
#[tokio::test]
async fn a_content_type_that_is_not_grpc_is_refused_with_415(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    for content_type in [None, Some("application/json"), Some("application/grpc-web"), Some("")] {
        let (status, _) = http_status(transport, |request| {
            request.headers_mut().remove("content-type");
            if let Some(value) = content_type {
                request.headers_mut().insert("content-type", value.parse().unwrap());
            }
        })
        .await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type:?}");
    }
}

#[rstest]
#[tokio::test]
async fn a_method_other_than_post_is_refused_with_405(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let (status, headers) =
        http_status(transport, |request| *request.method_mut() = Method::GET).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(headers["allow"], "POST");
}

#[rstest]
#[tokio::test]
async fn grpc_content_types_are_accepted(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
        let status = check(stack, on(transport), async |client| {
            let mut request = grpc_request(ECHO);
            request.headers_mut().insert("content-type", content_type.parse().unwrap());
            let mut call = client.request(request).await;
            call.half_close();
            call.end().await
        });
        assert_eq!(status.await.code, OK, "{content_type}");
    }
}

/// A header value that alone is over the default limit of a header list.
const LONG: [u8; 8 << 10] = [b'x'; 8 << 10];

/// A client of gRPC gets a status of gRPC; tonic's transport refuses before it knows who asks.
#[rstest]
#[tokio::test]
async fn a_header_list_over_the_limit_is_resource_exhausted_or_from_tonic_431(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let (status, headers) = http_status(transport, |request| {
        request.headers_mut().insert("x-long", HeaderValue::from_bytes(&LONG).unwrap());
    })
    .await;
    let grpc_status = headers.get("grpc-status").map(HeaderValue::as_bytes);
    match transport {
        Transport::Inline(_) => {
            assert_eq!((status, grpc_status), (StatusCode::OK, Some(&b"8"[..])))
        }
        Transport::Tonic => {
            assert_eq!((status, grpc_status), (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, None))
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_header_list_over_the_limit_of_a_request_that_is_not_grpc_is_refused_with_431(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let (status, _) = http_status(transport, |request| {
        request.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        request.headers_mut().insert("x-long", HeaderValue::from_bytes(&LONG).unwrap());
    })
    .await;
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[rstest]
#[tokio::test]
async fn a_stream_that_the_client_resets_is_cancelled_and_alone(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server = Server::on(transport).await;
    let client = Client::connect(server.address).await;
    let mut call = client.open(ECHO).await;
    call.send(frame(&echo_message(b"said")));
    assert_eq!(call.echoed().await, b"said"[..]);
    call.reset();
    assert_eq!(client.echo(b"anew").await, b"anew"[..]);
    drop(client);
    let summary = server.stop().await;
    assert_eq!((finished(&summary, "CANCELLED"), finished(&summary, "OK")), (1, 1));
}

/// h2 can take frames for streams that it ended early for an attack, and end the connection after
/// 1,024 of them; tonic leaves that limit off.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn many_streams_that_send_on_after_their_error_do_not_end_the_connection(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
    #[values(Stack::H2, Stack::Inline)] stack: Stack,
) {
    check(stack, on(transport), async |client| {
        let mut calls = Vec::new();
        for _ in 0..200 {
            let (mut sender, replies) = client.open(ECHO).await.split();
            sender.send(&b"\x02\0\0\0\0"[..]);
            // Until the client itself has seen the end, which may come at any time.
            let _ = (0..20).try_for_each(|_| sender.try_send(&b"more"[..]));
            calls.push((sender, replies));
        }
        for (_, replies) in &mut calls {
            assert_eq!(replies.try_end().await.unwrap().code, INTERNAL);
        }
    })
    .await;
}

#[rstest]
#[tokio::test]
async fn the_limit_of_concurrent_streams_is_announced(
    #[values(INLINE, TASK, TONIC)] transport: Transport,
) {
    let server =
        Server::start(Config { transport, max_concurrent_streams: 7, ..Config::default() }).await;
    let client = Client::connect(server.address).await;
    client.echo(b"by now the settings are here").await;
    assert_eq!(client.max_concurrent_streams(), 7);
}

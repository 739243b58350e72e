//! Bodies that give messages cut anywhere, and what the guard makes of them.

use std::sync::Arc;

use super::*;
use crate::transport::inside::{HeaderEncoder, frame};

fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

#[test]
fn whole_messages_are_counted_until_there_are_enough_or_one_is_not() {
    let check = |parts: &[&[u8]], enough: usize, expected: usize| {
        assert_eq!(whole_bytes(&parts.concat(), 300, enough), expected, "{enough}");
    };
    let [small, large, overlong] = [8, 300, 301].map(|size| message(&vec![7; size]));
    check(&[], 1, 0);
    check(&[&small, &small, &small], usize::MAX, 39);
    check(&[&small, &small, &small], 1, 13);
    check(&[&small, &small, &small], 13, 13);
    check(&[&small, &small, &small], 14, 26);
    check(&[&large, &small], 200, 305);
    check(&[&small, &large[..304]], usize::MAX, 13);
    check(&[&small, &[0, 0, 0]], 20, 13);
    check(&[&large[..304]], 1, 0);
    check(&[&small, &overlong, &small], usize::MAX, 13);
    check(&[&message(b""), &message(b"")], 6, 10);
}

/// A body that gives these chunks, and then ends, or waits for more.
struct Chunks {
    left: VecDeque<Bytes>,
    ends: bool,
    /// It ends with trailers.
    trailers: bool,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.left.pop_front() {
            None if !self.ends => Poll::Pending,
            None if std::mem::take(&mut self.trailers) => {
                Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))))
            }
            chunk => Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }
}

#[test]
fn a_stream_that_a_drain_ends_is_unavailable_whoever_sees_it_first() {
    let status = |error: BodyError| tonic::Status::from_error(told(error.into())).code();
    assert_eq!(status(BodyError::SHUTDOWN), tonic::Code::Unavailable);
    assert_eq!(status(BodyError::Ended("deadline")), tonic::Code::Unknown);
}

#[test]
fn a_guarded_body_gives_what_came_however_it_was_cut() {
    let stream = [message(b"hello"), message(&[7; 300]), message(b""), message(b"x")].concat();
    for piece in 1..=stream.len() {
        let left = stream.chunks(piece).map(Bytes::copy_from_slice).collect();
        let body = Chunks { left, ends: true, trailers: false };
        let mut guarded = Guarded { body, message_bytes_max: Some(300), held: None, waiting: None };
        let mut got = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(frame)) = Pin::new(&mut guarded).poll_frame(&mut cx) {
            let frame = frame.unwrap().into_data().unwrap();
            got.extend_from_slice(&frame);
        }
        assert_eq!(got, stream, "in pieces of {piece}");
    }
}

#[test]
fn a_part_that_waits_does_not_keep_the_read_buffer() {
    let read = Bytes::from([message(b"whole"), message(&[7; 3_000])].concat());
    // From within the message before, from its own prefix on, and what follows.
    for cuts in [vec![0, 1_500], vec![10, 1_500], vec![0, 700, 1_500]] {
        let ends = cuts[1..].iter().copied();
        let left = cuts.iter().zip(ends).map(|(from, to)| read.slice(*from..to)).collect();
        let body = Chunks { left, ends: false, trailers: false };
        let mut guarded =
            Guarded { body, message_bytes_max: Some(3_000), held: None, waiting: None };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(frame) = Pin::new(&mut guarded).poll_frame(&mut cx) {
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), message(b"whole"));
        }
        assert!(guarded.waiting.is_some());
        assert!(read.is_unique(), "{cuts:?}");
    }
}

#[test]
fn a_message_whose_parts_came_together_passes_where_it_lies_and_the_next_ones_part_is_copied() {
    // Parts so large that they are not gathered.
    let read = Bytes::from([message(&[7; 30_000]), message(&[8; 30_000])].concat());
    let left = [(0, 10_000), (10_000, 20_000), (20_000, 40_000)];
    let left = left.into_iter().map(|(from, to)| read.slice(from..to)).collect();
    let body = Chunks { left, ends: false, trailers: false };
    let mut guarded = Guarded { body, message_bytes_max: Some(30_000), held: None, waiting: None };
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut at = read.as_ptr();
    let mut got = Vec::new();
    while let Poll::Ready(frame) = Pin::new(&mut guarded).poll_frame(&mut cx) {
        let frame = frame.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame.as_ptr(), at, "not copied");
        at = at.wrapping_add(frame.len());
        got.push(frame);
    }
    assert_eq!(got.concat(), message(&[7; 30_000]));
    drop(got);
    let waits = &guarded.waiting.as_ref().unwrap().held[0];
    assert_eq!(waits.len(), 40_000 - 30_005);
    assert!(read.is_unique(), "what waits is nobody else's");
    // What is its own already is not copied again.
    let before = waits.as_ptr();
    assert!(Pin::new(&mut guarded).poll_frame(&mut cx).is_pending());
    assert_eq!(guarded.waiting.as_ref().unwrap().held[0].as_ptr(), before);
}

fn drain(messages: &mut Messages) -> Vec<u8> {
    let mut drained = Vec::new();
    while !messages.whole.is_empty() {
        drained.extend(messages.next().unwrap().unwrap().into_data().unwrap());
    }
    drained
}

#[test]
fn whole_messages_pass_as_they_are() {
    let mut messages = Messages::new(100, None);
    let chunk = Bytes::from([message(b"a"), message(b""), message(&[7; 100])].concat());
    messages.push(chunk.clone());
    let passed = messages.whole.pop_front().unwrap();
    assert_eq!(passed.as_ptr(), chunk.as_ptr(), "not copied");
    assert_eq!(passed, chunk);
    assert!(messages.is_empty());
}

#[test]
fn cut_anywhere_the_same_messages_come_out_and_none_before_its_end() {
    let parts = [message(b"hello"), message(b""), message(&[7; 3_000]), message(b"x")];
    let ends: Vec<usize> = parts
        .iter()
        .scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        })
        .collect();
    let stream = parts.concat();
    for piece in [1, 2, 3, 4, 5, 6, 7, 100, 1_500, 5_000] {
        let mut messages = Messages::new(3_000, None);
        let (mut sent, mut got) = (0, Vec::new());
        for chunk in stream.chunks(piece) {
            messages.push(Bytes::copy_from_slice(chunk));
            sent += chunk.len();
            got.extend(drain(&mut messages));
            let complete = ends.iter().filter(|end| **end <= sent).max().copied();
            assert_eq!(got.len(), complete.unwrap_or(0), "after {sent} bytes in {piece}s");
        }
        assert_eq!(got, stream);
        assert!(messages.is_empty());
    }
}

#[test]
fn a_prefix_over_the_limit_is_told_after_the_messages_before_it() {
    let mut messages = Messages::new(8, None);
    messages.push([message(b"12345678"), vec![0, 0xff, 0xff, 0xff, 0xff]].concat().into());
    assert_eq!(messages.overlong, Some(u32::MAX as usize));
    assert_eq!(drain(&mut messages), message(b"12345678"));
    let mut messages = Messages::new(8, None);
    messages.push(Bytes::from_static(&[0, 0, 0]));
    messages.push(Bytes::from_static(&[0, 9]));
    assert_eq!(messages.overlong, Some(9));
}

#[test]
fn parts_of_messages_are_counted_until_they_are_handed_on_or_given_up() {
    let held = Held::new(100);
    let mut messages = Messages::new(1_000, Some(held.clone()));
    let bytes = message(&[7; 95]);
    messages.push(bytes[..40].to_vec().into());
    messages.push(bytes[40..50].to_vec().into());
    assert_eq!(held.bytes(), 50);
    // Whole messages need no room, nor does the end of this one.
    messages.push([&bytes[50..], &message(&[1; 500])].concat().into());
    assert_eq!((drain(&mut messages).len(), held.bytes()), (605, 0));
    messages.push(bytes[..60].to_vec().into());
    let mut other = Messages::new(1_000, Some(held.clone()));
    other.push(bytes[..40].to_vec().into());
    assert_eq!((held.bytes(), other.overfull), (100, None));
    messages.push(bytes[60..61].to_vec().into());
    assert_eq!(
        (messages.overfull, messages.whole.pop_front(), held.bytes()),
        (Some(100), None, 40)
    );
    drop(other);
    assert_eq!(held.bytes(), 0);
}

#[test]
fn a_small_part_does_not_keep_what_it_came_with() {
    let held = Held::new(1 << 20);
    let mut messages = Messages::new(1 << 20, Some(held.clone()));
    let chunk = Bytes::from([message(&[7; 10_000]), message(&[7; 10_000])[..20].to_vec()].concat());
    messages.push(chunk.clone());
    let kept = messages.held[0].as_ptr();
    assert!(!chunk.as_ptr_range().contains(&kept), "a copy of its own");
    assert_eq!(held.bytes(), 20);
    // A large part is not copied before it must be.
    let mut messages = Messages::new(1 << 20, Some(held.clone()));
    let chunk = Bytes::from([message(&[7; 100]), message(&[7; 10_000])[..9_000].to_vec()].concat());
    messages.push(chunk.clone());
    assert!(chunk.as_ptr_range().contains(&messages.held[0].as_ptr()));
    assert_eq!(held.bytes(), 20 + 9_000);
}

/// All that a guarded body of these chunks gives, and how it ends: with trailers, a status, or nothing.
fn all_of(chunks: &[&[u8]], trailers: bool, held: Option<Held>) -> (Vec<u8>, Option<Status>, bool) {
    let left = chunks.iter().copied().map(Bytes::copy_from_slice).collect();
    let body = Chunks { left, ends: true, trailers };
    let mut guarded = Guarded { body, message_bytes_max: Some(60_000), held, waiting: None };
    let (mut got, mut ended_with_trailers) = (Vec::new(), false);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Some(frame)) = Pin::new(&mut guarded).poll_frame(&mut cx) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                return (got, Some(Status::from_error(error)), ended_with_trailers);
            }
        };
        match frame.into_data() {
            Ok(data) => got.extend_from_slice(&data),
            Err(_) => ended_with_trailers = true,
        }
    }
    (got, None, ended_with_trailers)
}

#[test]
fn a_request_that_ends_within_a_message_is_an_error_behind_the_whole_ones() {
    for ends_with_trailers in [false, true] {
        for rest in [&[0][..], &[0, 0, 0, 200, 0][..], &[0, 0, 0, 0, 9, 1, 2]] {
            let held = Held::new(1 << 20);
            let chunks = [&message(b"hello")[..], rest];
            for chunks in [&chunks[..], &[&chunks.concat()[..]]] {
                let (got, status, trailers) =
                    all_of(chunks, ends_with_trailers, Some(held.clone()));
                assert_eq!(got, message(b"hello"));
                assert_eq!(status.unwrap().code(), tonic::Code::Internal);
                assert!(!trailers, "an error is the end");
                assert_eq!(held.bytes(), 0);
            }
        }
        let (got, status, trailers) = all_of(&[&message(b"hello")], ends_with_trailers, None);
        assert!(got == message(b"hello") && status.is_none());
        assert_eq!(trailers, ends_with_trailers);
    }
}

#[test]
fn one_message_of_the_largest_size_has_room_where_the_cap_is_just_that() {
    let held = Held::new(60_005);
    let largest = message(&[7; 60_000]);
    // The first frame brings a whole message, and about as much of the largest one.
    let stream = [message(&[1; 8_000]), largest.clone()].concat();
    let chunks: Vec<_> = stream.chunks(16_384).collect();
    let (got, status, _) = all_of(&chunks, false, Some(held.clone()));
    assert_eq!(status.map(|status| status.to_string()), None);
    assert_eq!(got, stream);
    assert_eq!(held.bytes(), 0);
}

#[tokio::test]
async fn of_messages_that_came_together_a_few_are_taken_at_a_time_and_no_others_kept() {
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower_layer::Layer;

    let large: Vec<_> = (0..4).map(|n| message(&[n; 1_000])).collect();
    let small: Vec<_> = (0..100).map(|n| message(&[n; 8])).collect();
    let sent = [&large[..], &small[..]].concat().concat();
    let (told, mut pieces) = tokio::sync::mpsc::unbounded_channel();
    let go_on = Arc::new(tokio::sync::Notify::new());
    let may_go_on = go_on.clone();
    // Takes five pieces, then waits, then takes all others.
    let slow = tower::service_fn(move |asked: Request<Guarded<RecvBody>>| {
        let (told, may_go_on) = (told.clone(), may_go_on.clone());
        async move {
            let mut body = asked.into_body();
            let mut taken = 0;
            while let Some(frame) = body.frame().await {
                told.send(frame?.into_data().unwrap().to_vec()).unwrap();
                taken += 1;
                if taken == 5 {
                    may_go_on.notified().await;
                }
            }
            Ok::<_, BoxError>(http::Response::new(http_body_util::Empty::<Bytes>::new()))
        }
    });
    let server = crate::transport::Server::new(crate::transport::Limits::default());
    let (mut client, io) = tokio::io::duplex(1 << 16);
    let service = GuardLayer::new(1_000).layer(slow);
    let serving = tokio::spawn(server.serve_connection(io, service, http::Extensions::new()));

    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a/b"),
        ("content-type", "application/grpc"),
    ];
    let mut block = Vec::new();
    HeaderEncoder::default()
        .encode(head.map(|(name, value)| (name.as_bytes(), value.as_bytes(), false)), &mut block);
    let [data, headers, settings, ping] = [0, 1, 4, 6];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let said = [
        preface,
        frame(settings, 0, 0, &[]),
        frame(headers, 4, 1, &block),
        frame(data, 1, 1, &sent),
    ];
    client.write_all(&said.concat()).await.unwrap();
    let (mut got, mut lengths) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let piece = pieces.recv().await.unwrap();
        lengths.push(piece.len());
        got.extend(piece);
    }
    // 40 messages of 13 bytes are the first that are enough.
    assert_eq!(lengths, [1_005, 1_005, 1_005, 1_005, 520]);
    // The answer to a ping leaves behind the lap in which the others were left.
    client.write_all(&frame(ping, 0, 0, &[7; 8])).await.unwrap();
    let mut heard = Vec::new();
    while !heard.windows(8).any(|bytes| bytes == [7; 8]) {
        client.read_buf(&mut heard).await.unwrap();
    }
    assert!(pieces.try_recv().is_err(), "nothing is taken before it is asked for");
    go_on.notify_one();
    // A copy by now: it goes as a whole.
    got.extend(pieces.recv().await.unwrap());
    assert_eq!(got, sent);
    assert_eq!(server.counters().snapshot().reads_kept, 0);
    serving.abort();
}

#[tokio::test]
async fn what_is_not_grpc_passes_as_it_is() {
    use tower_layer::Layer;
    use tower_service::Service;
    type Asked = Request<Guarded<http_body_util::Full<Bytes>>>;
    let plain = tower::service_fn(|asked: Asked| async {
        http_body_util::BodyExt::collect(asked.into_body()).await.map(|body| body.to_bytes())
    });
    let mut guarded = GuardLayer::new(8).layer(plain);
    let asked = |kind| {
        let asked = Request::post("/").header("content-type", kind);
        asked.body(http_body_util::Full::from("hello world")).unwrap()
    };
    assert_eq!(guarded.call(asked("text/plain")).await.unwrap(), "hello world");
    // The same read as a message of 1.8 GB.
    guarded.call(asked("application/grpc")).await.unwrap_err();
}

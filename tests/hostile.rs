//! What hostile clients do, and what becomes of them: every row of the table of attacks, and every
//! flood that has a limit; then what honest clients do that looks alike and is carried.
//!
//! Both placements are attacked: what a handler is to its connection differs between them.
//!
//! Most tests run on paused time: a clock that moves only when everybody waits, so that a timer of
//! seconds costs nothing and no bucket refills behind a test's back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use allocation_counter::measure;
use bidi_echo::transport::{BodyError, Limits, Placement, RecvBody, Server};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use rstest::rstest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower::service_fn;
use tower::util::BoxCloneSyncService;

use support::peer::*;
use support::{hpack, soon};

type Reply = Response<UnsyncBoxBody<Bytes, BodyError>>;

/// More than the server says in any attack here, so that it can always say it.
const BUFFER: usize = 32 << 20;

/// Nobody answers it, and nobody reads it.
const STUCK: [(&str, &str); 1] = [("x-do", "stuck")];
/// Nobody answers it, and what it sends is thrown away.
const DEAF: [(&str, &str); 1] = [("x-do", "deaf")];
/// Answered at once, unread.
const EARLY: [(&str, &str); 1] = [("x-do", "early")];

/// Echoes, unless told otherwise.
fn service() -> BoxCloneSyncService<Request<RecvBody>, Reply, Infallible> {
    BoxCloneSyncService::new(service_fn(|request: Request<RecvBody>| async {
        let told = request.headers().get("x-do").cloned();
        let body = match told.as_ref().map(|told| told.as_bytes()) {
            Some(b"early") => Full::from("early").map_err(|never| match never {}).boxed_unsync(),
            Some(b"deaf") => {
                drop(request);
                std::future::pending().await
            }
            Some(_) => {
                let _unread = request;
                std::future::pending().await
            }
            None => request.into_body().boxed_unsync(),
        };
        Ok(Response::new(body))
    }))
}

/// A server in memory, and a healthy neighbour of whoever attacks it.
struct Host {
    server: Server,
    neighbour: Neighbour,
}

type Serving = JoinHandle<std::io::Result<()>>;

impl Host {
    async fn new(placement: Placement, limits: Limits) -> Self {
        Self::on(Server::new(limits).placement(placement)).await
    }

    async fn on(server: Server) -> Self {
        let (mut peer, _) = connect(&server, BUFFER);
        peer.greet(&[]).await;
        let neighbour = Neighbour::new(peer, &post(1, 0), b"ping").await;
        Host { server, neighbour }
    }

    /// A connection on which nothing was said.
    fn connect(&self, buffer: usize) -> (Peer, Serving) {
        connect(&self.server, buffer)
    }

    async fn greeted(&self) -> (Peer, Serving) {
        let (mut peer, serving) = self.connect(BUFFER);
        peer.greet(&[]).await;
        (peer, serving)
    }

    /// Connections that the server ended, by reason, each as often as it did.
    fn goaways(&self) -> Vec<(&'static str, u64)> {
        self.server.counters().snapshot().goaways.into_iter().collect()
    }

    /// Handlers that are still there, but for the neighbour's.
    fn streams_left(&self) -> u64 {
        let counted = self.server.counters().snapshot();
        counted.streams_opened - counted.streams_closed - 1
    }
}

fn connect(server: &Server, buffer: usize) -> (Peer, Serving) {
    let (near, far) = tokio::io::duplex(buffer);
    let serving = server.serve_connection(far, service(), http::Extensions::new());
    (Peer::new(near), tokio::spawn(serving))
}

/// One stream of another connection that sends and waits for the echo.
struct Neighbour<IO = tokio::io::DuplexStream> {
    peer: Peer<IO>,
    message: Vec<u8>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Neighbour<IO> {
    async fn new(mut peer: Peer<IO>, request: &[u8], message: &[u8]) -> Self {
        peer.send(request).await;
        let mut neighbour = Neighbour { peer, message: message.to_vec() };
        neighbour.is_well().await;
        neighbour
    }

    async fn is_well(&mut self) {
        self.peer.send(&data(1, 0, &self.message)).await;
        let mut left = self.message.len();
        while left > 0 {
            match self.peer.frame().await {
                Frame::Headers { .. } => {}
                Frame::Data { payload, .. } => left -= payload.len(),
                other => panic!("the neighbour got {other:?}"),
            }
        }
    }
}

/// What a client does over and over, and how it begins.
struct Attack<W> {
    opening: Vec<u8>,
    wave: W,
    waves: u32,
}

/// The attack ends with that GOAWAY, leaves nothing behind, and the neighbour is well meanwhile.
async fn check<W: FnMut(u32) -> Vec<u8>>(
    placement: Placement,
    mut attack: Attack<W>,
    code: u32,
    reason: &str,
) {
    let mut host = Host::new(placement, Limits::default()).await;
    let (mut attacker, serving) = host.greeted().await;
    attacker.send(&attack.opening).await;
    for n in 0..attack.waves {
        if attacker.try_send(&(attack.wave)(n)).await.is_err() {
            break;
        }
        if n % 256 == 0 {
            host.neighbour.is_well().await;
        }
    }
    assert_eq!(attacker.goaway().await, (code, reason.to_owned()));
    soon(serving).await.unwrap().unwrap();
    host.neighbour.is_well().await;
    assert_eq!(host.goaways(), [(reason, 1)]);
    assert_eq!(host.streams_left(), 0, "{reason}");
}

/// The same bytes `waves` times.
fn again(bytes: Vec<u8>) -> impl FnMut(u32) -> Vec<u8> {
    move |_| bytes.clone()
}

/// Returns when everybody waits: only then paused time moves.
async fn everybody_waits() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

mod resets {
    //! Streams that are begun to be broken off.
    use super::*;

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_rapid_reset_ends_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let wave = |n| [post(id(n), 0), rst_stream(id(n), CANCEL)].concat();
        let attack = Attack { opening: vec![], wave, waves: 5_000 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_resets").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_byte_of_data_excuses_no_reset(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let wave = |n| [post(id(n), 0), data(id(n), 0, b"x"), rst_stream(id(n), CANCEL)].concat();
        let attack = Attack { opening: vec![], wave, waves: 5_000 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_resets").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn resets_after_the_response_headers_end_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, Limits::default()).await;
        let (mut attacker, serving) = host.greeted().await;
        let mut answered = 0;
        let said = loop {
            attacker.send(&post(id(answered), 0)).await;
            match attacker.frame().await {
                Frame::Headers { .. } => answered += 1,
                Frame::GoAway { code, reason, .. } => break (code, reason),
                other => panic!("{other:?}"),
            }
            attacker.send(&rst_stream(id(answered - 1), CANCEL)).await;
        };
        assert_eq!(said, (ENHANCE_YOUR_CALM, "too_many_resets".into()));
        assert!((4_096..5_000).contains(&answered), "{answered}");
        soon(serving).await.unwrap().unwrap();
        host.neighbour.is_well().await;
        assert_eq!(host.streams_left(), 0);
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn resets_that_the_server_is_provoked_to_send_end_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let check = async |provoke: &dyn Fn(u32) -> Vec<u8>, flags: u8, reason: &str| {
            let wave = |n| [post_with(id(n), flags, &STUCK), provoke(id(n))].concat();
            let attack = Attack { opening: vec![], wave, waves: 1_000 };
            check(placement, attack, ENHANCE_YOUR_CALM, reason).await;
        };
        let errors = "too_many_stream_errors";
        check(&|id| window_update(id, 0), 0, errors).await;
        check(&|id| window_update(id, (1 << 31) - 1), 0, errors).await;
        check(&|id| data(id, 0, b"x"), END_STREAM, errors).await;
        check(&|id| headers(id, END_STREAM, &[("x", "y")]), END_STREAM, errors).await;
        // Counted as what it is before it is looked at.
        check(&|id| frame(2, 0, id, &[0; 4]), 0, "too_many_priorities").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn malformed_requests_end_the_connection_after_a_while(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let wave = |n| post_with(id(n), END_STREAM, &[("connection", "close")]);
        let attack = Attack { opening: vec![], wave, waves: 1_000 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_stream_errors").await;
    }
}

mod floods {
    //! Frames that bring nothing.
    use super::*;

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn frames_that_bring_nothing_end_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let check = async |frame: Vec<u8>, waves: u32, reason: &str| {
            let attack = Attack { opening: post_with(1, 0, &STUCK), wave: again(frame), waves };
            check(placement, attack, ENHANCE_YOUR_CALM, reason).await;
        };
        check(ping(b"12345678", 0), 1_000, "too_many_pings").await;
        check(ping(b"12345678", ACK), 1_000, "too_many_pings").await;
        check(settings(&[]), 1_000, "too_many_settings").await;
        check(settings(&[(INITIAL_WINDOW_SIZE, 1_000)]), 1_000, "too_many_settings").await;
        check(settings(&[(0x4242, 0); 2_700]), 10, "too_many_settings").await;
        check(settings_ack(), 1_000, "too_many_settings").await;
        check(data(1, 0, &[]), 1_000, "too_many_empty_data_frames").await;
        check(data(1, PADDED, &[9; 10]), 1_000, "too_many_empty_data_frames").await;
        check(window_update(0, 1), 11_000, "too_many_window_updates").await;
        check(window_update(1, 1), 11_000, "too_many_window_updates").await;
        check(frame(2, 0, 1, &[0, 0, 0, 3, 15]), 1_000, "too_many_priorities").await;
        check(frame(2, 0, 99, &[0, 0, 0, 3, 15]), 1_000, "too_many_priorities").await;
        check(frame(0xfa, 0, 0, b"grease"), 1_000, "too_many_unknown_frames").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn frames_for_streams_that_are_gone_end_the_connection_after_many(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let opening = [post_with(1, 0, &STUCK), rst_stream(1, CANCEL)].concat();
        let wave = again(rst_stream(1, CANCEL).repeat(100));
        let attack = Attack { opening, wave, waves: 1_100 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_frames_for_gone_streams").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn whoever_provokes_replies_and_reads_none_is_gone_at_once_too(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, Limits::default()).await;
        let check = async |host: &Host, frame: Vec<u8>, reason: &str| {
            let (mut attacker, serving) = host.connect(1_000);
            attacker.greet(&[]).await;
            for _ in 0..1_000 {
                if attacker.try_send(&frame).await.is_err() {
                    break;
                }
            }
            soon(serving).await.unwrap().unwrap();
            assert!(host.goaways().contains(&(reason, 1)), "{:?}", host.goaways());
        };
        check(&host, ping(b"12345678", 0), "too_many_pings").await;
        check(&host, settings(&[]), "too_many_settings").await;
        host.neighbour.is_well().await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn streams_above_the_limit_are_refused_and_a_flood_of_them_ends_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, Limits::default()).await;
        let (mut hoarder, _serving) = host.greeted().await;
        let open: Vec<u8> = (0..6_000).flat_map(|n| post_with(id(n), 0, &STUCK)).collect();
        hoarder.send(&open).await;
        let refused = hoarder.frames_until_pong().await;
        let mut refused =
            refused.into_iter().filter(|frame| !matches!(frame, Frame::WindowUpdate { .. }));
        for n in 4_096..6_000 {
            let reset = Frame::Reset { stream: id(n), code: REFUSED_STREAM };
            assert_eq!(refused.next(), Some(reset));
        }
        assert_eq!(refused.next(), None);
        assert_eq!(host.streams_left(), 4_096);
        host.neighbour.is_well().await;

        let wave = |n| post_with(id(n), 0, &STUCK);
        let attack = Attack { opening: vec![], wave, waves: 21_000 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_refused_streams").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn requests_after_the_goaway_are_not_served_and_a_flood_of_them_ends_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let opening = [post_with(1, 0, &STUCK), goaway(NO_ERROR)].concat();
        let wave = |n| post(id(n), END_STREAM);
        let attack = Attack { opening, wave, waves: 17_000 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_refused_streams").await;
    }
}

mod header_lists {
    //! Header blocks that are long, endless or larger than they look.
    use super::*;

    /// HEADERS without an end, and `count` fragments after it.
    fn endless(fragment: Vec<u8>, count: u32) -> Attack<impl FnMut(u32) -> Vec<u8>> {
        let opening = frame(1, 0, 1, &hpack::encode(&POST));
        Attack { opening, wave: again(continuation(1, 0, &fragment)), waves: count }
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_header_block_without_end_ends_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let calm = ENHANCE_YOUR_CALM;
        check(placement, endless(vec![], 1_000), calm, "too_many_continuations").await;
        check(placement, endless(vec![0; 10], 1_000), calm, "too_many_continuations").await;
        check(placement, endless(vec![0; 16_384], 1_000), calm, "header_block_too_large").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn large_headers_are_refused_and_the_connection_lives(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, Limits::default()).await;
        let (mut peer, _serving) = host.greeted().await;
        let sizes = [10_000, 64 << 10, 256 << 10, 1 << 20];
        for (n, bytes) in (0..).zip(sizes) {
            peer.send(&large_post(id(2 * n), bytes)).await;
            assert_eq!(peer.answer(id(2 * n)).await.status(), "431", "{bytes} bytes");
            peer.echo(id(2 * n + 1)).await;
        }
        host.neighbour.is_well().await;
        assert_eq!(host.goaways(), []);
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn the_last_fragment_of_a_block_may_be_small(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let limits = Limits { header_list_bytes_max: 32 << 10, ..Limits::default() };
        let mut host = Host::new(placement, limits).await;
        let (mut peer, _serving) = host.greeted().await;
        for n in 0..100 {
            peer.send(&large_post(id(n), 16_400)).await;
            assert_eq!(peer.answer(id(n)).await.status(), "200");
        }
        host.neighbour.is_well().await;
        assert_eq!(host.goaways(), []);
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn large_headers_again_and_again_end_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let wave = |n| large_post(id(n), 20_000);
        let attack = Attack { opening: vec![], wave, waves: 200 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_large_header_lists").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_small_block_that_stands_for_a_large_list_is_refused_and_then_ends_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, Limits::default()).await;
        let (mut peer, _serving) = host.greeted().await;
        peer.send(&header_bomb(0)).await;
        assert_eq!(peer.answer(id(0)).await.status(), "431");
        host.neighbour.is_well().await;
        let attack = Attack { opening: vec![], wave: header_bomb, waves: 200 };
        check(placement, attack, ENHANCE_YOUR_CALM, "too_many_large_header_lists").await;
    }
}

mod windows {
    //! Flow control that is broken, or used against us.
    use super::*;

    const STALL: Duration = Duration::from_secs(8);

    fn stalling() -> Limits {
        Limits { stall_timeout: Some(STALL), ..Limits::default() }
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_sender_that_ignores_its_windows_ends_its_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let full = |stream| data(stream, 0, &[7; 16_384]);
        let attack =
            Attack { opening: post_with(1, 0, &STUCK), wave: again(full(1)), waves: 1_000 };
        check(placement, attack, FLOW_CONTROL_ERROR, "stream_window_exceeded").await;
        // No stream takes more than its own, all together more than the connection's.
        let wave = |n| [post_with(id(n), 0, &STUCK), full(id(n)).repeat(4)].concat();
        let attack = Attack { opening: vec![], wave, waves: 1_000 };
        check(placement, attack, FLOW_CONTROL_ERROR, "connection_window_exceeded").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn windows_that_overflow_end_the_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let check = async |frames: Vec<u8>, reason: &str| {
            let attack = Attack { opening: post(1, 0), wave: again(frames), waves: 3 };
            check(placement, attack, FLOW_CONTROL_ERROR, reason).await;
        };
        check(window_update(0, (1 << 31) - 1), "connection_window_overflow").await;
        check(window_update(0, 1 << 30), "connection_window_overflow").await;
        let wide = settings(&[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
        check([window_update(1, 1), wide].concat(), "stream_window_overflow_by_settings").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_opens_its_window_is_bounded_and_ended_by_the_stall_timer(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, stalling()).await;
        let (mut attacker, _serving) = host.connect(BUFFER);
        attacker.greet(&[(INITIAL_WINDOW_SIZE, 0)]).await;
        attacker.send(&grpc(1, 0, &[])).await;
        attacker.send(&data(1, 0, &[7; 16_384]).repeat(4)).await;
        let frames = attacker.frames_until_pong().await;
        let granted = frames.iter().map(|frame| match frame {
            Frame::WindowUpdate { stream: 1, increment } => *increment,
            _ => 0,
        });
        // A task may be a piece of the answer ahead of its connection.
        let ahead = if placement == Placement::Task { 2 * 16_384 } else { 0 };
        assert!(granted.sum::<u32>() <= ahead, "it may send no more: {frames:?}");
        host.neighbour.is_well().await;
        // The next that comes is the end.
        let end = attacker.frame().await;
        assert_eq!(end.header("grpc-status"), Some("8"), "{end:?}");
        attacker.send(&grpc(3, END_STREAM, &[])).await;
        assert!(matches!(attacker.frame().await, Frame::Reset { stream: 1, code: NO_ERROR }));
        assert!(matches!(attacker.frame().await, Frame::Headers { stream: 3, .. }));
        host.neighbour.is_well().await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_bounded_and_cut_off_by_the_stall_timer(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, stalling()).await;
        let (mut attacker, serving) = host.connect(10_000);
        attacker.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
        attacker.send(&window_update(0, 1 << 30)).await;
        let mut sent = 0;
        'attack: for n in 0.. {
            for frame in [post(id(n), 0), data(id(n), 0, &[7; 16_000]).repeat(4)] {
                if attacker.try_send(&frame).await.is_err() {
                    break 'attack;
                }
                sent += frame.len();
            }
            if n < 100 {
                host.neighbour.is_well().await;
            }
            if n > 255 {
                // All that it may send before something is granted, which it does not read.
                everybody_waits().await;
                assert!(soon(serving).await.unwrap().is_ok());
                break;
            }
        }
        assert!(sent < 17 << 20, "{sent} bytes were taken");
        assert_eq!(host.goaways(), [("peer_does_not_read", 1)]);
        host.neighbour.is_well().await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn window_updates_that_nobody_reads_are_bounded_as_all_replies_are(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let limits = Limits {
            stream_flow_window_bytes: 1_024,
            stream_flow_window_bytes_max: 1_024,
            control_bytes_max: 1_024,
            ..stalling()
        };
        let mut host = Host::new(placement, limits).await;
        let (mut attacker, serving) = host.connect(4_096);
        attacker.greet(&[]).await;
        attacker.send(&post_with(1, 0, &DEAF)).await;
        everybody_waits().await;
        // Each is thrown away and granted again with 13 bytes.
        let (frame, mut sent) = (data(1, 0, &[7; 512]), 0);
        while sent < 8 << 20 && attacker.try_send(&frame).await.is_ok() {
            sent += frame.len();
        }
        assert!(
            sent < 512 << 10,
            "{sent} bytes were read while no reply could leave: {:?}",
            host.goaways()
        );
        soon(serving).await.unwrap().unwrap();
        assert_eq!(host.goaways(), [("peer_does_not_read", 1)]);
        host.neighbour.is_well().await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_carried(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, stalling()).await;
        let (mut slow, _serving) = host.connect(4_096);
        slow.greet(&[(INITIAL_WINDOW_SIZE, 1 << 20)]).await;
        slow.send(&[window_update(0, 1 << 20), post(1, 0)].concat()).await;
        slow.send(&data(1, 0, &[7; 15_000]).repeat(4)).await;
        let mut left = 60_000;
        while left > 0 {
            if let Frame::Data { payload, .. } = slow.frame().await {
                left -= payload.len();
            }
            host.neighbour.is_well().await;
            tokio::time::advance(STALL / 2).await;
        }
        slow.echo(3).await;
        assert_eq!(host.goaways(), []);
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_window_is_used_up_to_the_byte_is_not_stalled_if_it_has_nothing_to_send(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, stalling()).await;
        let (mut peer, _serving) = host.connect(BUFFER);
        peer.greet(&[(INITIAL_WINDOW_SIZE, 4)]).await;
        peer.send(&[post(1, 0), data(1, 0, b"ping")].concat()).await;
        while !matches!(peer.frame().await, Frame::Data { .. }) {}
        let mut quiet = async |peer: &mut Peer| {
            for _ in 0..8 {
                tokio::time::advance(STALL / 2).await;
                peer.expect_silence().await;
            }
            host.neighbour.is_well().await;
        };
        quiet(&mut peer).await;
        // Nor is it once the window is open again.
        peer.send(&window_update(1, 4)).await;
        quiet(&mut peer).await;
        peer.send(&data(1, 0, b"pong")).await;
        let pong = Frame::Data { stream: 1, payload: "pong".into(), end: false };
        assert_eq!(peer.frame().await, pong);
        // But now there is something.
        peer.send(&data(1, 0, b"late")).await;
        let end = peer.frame().await;
        assert_eq!(end, Frame::Reset { stream: 1, code: INTERNAL_ERROR });
    }
}

mod memory {
    //! What all connections keep together.
    use super::*;

    /// 64 KiB, all that a stream takes unread.
    fn fill(streams: impl Iterator<Item = u32>) -> Vec<u8> {
        streams.flat_map(|n| data(id(n), 0, &[7; 16_384]).repeat(4)).collect()
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_hog_is_held_back_then_ended_and_its_neighbours_go_on(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let limits = Limits { connection_flow_window_bytes: 5 << 20, ..Limits::default() };
        let mut host =
            Host::on(Server::new(limits).placement(placement).buffered_bytes_max(4 << 20)).await;
        let (mut hog, serving) = host.connect(BUFFER);
        hog.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
        hog.send(&[window_update(0, 1 << 30), post(1, 0)].concat()).await;
        let stuck: Vec<u8> = (1..=120).flat_map(|n| post_with(id(n), 0, &STUCK)).collect();
        hog.send(&stuck).await;
        // More than half of what all may keep, and than its part of that half.
        hog.send(&fill(1..=40)).await;
        hog.frames_until_pong().await;
        let kept = host.server.counters().snapshot().buffered_bytes;
        assert_eq!(kept, 40 << 16);
        hog.send(&post(999, 0)).await;
        assert_eq!(hog.frame().await, Frame::Reset { stream: 999, code: REFUSED_STREAM });
        // Others still come, open streams and are answered.
        let (mut newcomer, _serving) = host.greeted().await;
        newcomer.echo(1).await;
        host.neighbour.is_well().await;
        // What is done with is not granted again, neither at once nor later ...
        for _ in 0..100 {
            hog.send(&data(1, 0, &[7; 16_000])).await;
            let mut left = 16_000;
            while left > 0 {
                match hog.any_frame().await {
                    Frame::Data { stream: 1, payload, .. } => left -= payload.len(),
                    Frame::Headers { stream: 1, .. } | Frame::WindowUpdate { stream: 1, .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        let frames = hog.frames_until_pong().await;
        let granted = |frame: &Frame| matches!(frame, Frame::WindowUpdate { stream: 0, .. });
        assert!(!frames.iter().any(granted), "{frames:?}");
        // ... until there is memory again.
        hog.send(&(1..=30).flat_map(|n| rst_stream(id(n), CANCEL)).collect::<Vec<u8>>()).await;
        while !granted(&hog.any_frame().await) {}
        assert_eq!(host.goaways(), []);
        // Grows beyond the cap, within its windows.
        for n in 41..=120 {
            if hog.try_send(&fill(n..=n)).await.is_err() {
                break;
            }
            everybody_waits().await;
        }
        assert_eq!(hog.goaway().await, (ENHANCE_YOUR_CALM, "memory_exhausted".to_owned()));
        drop(hog);
        soon(serving).await.unwrap().unwrap();
        assert_eq!(host.goaways(), [("memory_exhausted", 1)]);
        assert_eq!(host.server.counters().snapshot().buffered_bytes, 0);
        host.neighbour.is_well().await;
        newcomer.echo(3).await;
    }
}

mod faults {
    //! What a frame must not be.
    use super::*;

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn these_end_the_connection_and_the_neighbour_lives(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let check = async |frame: Vec<u8>, code, reason: &str| {
            let attack = Attack { opening: post(1, 0), wave: again(frame), waves: 1 };
            check(placement, attack, code, reason).await;
        };
        check(data(9, 0, b"x"), PROTOCOL_ERROR, "frame_on_idle_stream").await;
        check(frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL_ERROR, "push_promise").await;
        check(data(1, PADDED, &[5, 0]), PROTOCOL_ERROR, "padding_too_long").await;
        check(data(1, 0, &[0; 16_385]), FRAME_SIZE_ERROR, "frame_too_large").await;
        check(post(2, 0), PROTOCOL_ERROR, "stream_of_the_wrong_parity").await;
        let beyond = "header block refers past the end of the dynamic table";
        check(frame(1, END_HEADERS, 3, &[0xff, 0]), COMPRESSION_ERROR, beyond).await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn what_waits_to_be_written_is_tried_when_the_client_closes_its_half(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let host = Host::new(placement, Limits::default()).await;
        let (mut peer, serving) = host.connect(100);
        peer.greet(&[]).await;
        peer.send(&ping(b"12345678", 0).repeat(10)).await;
        everybody_waits().await;
        // The pipe holds 100 of 170 bytes; the server does not run before it sees both.
        for _ in 0..5 {
            assert!(matches!(peer.frame().await, Frame::Pong(_)));
        }
        peer.shut_down().await;
        for _ in 0..5 {
            assert!(matches!(peer.frame().await, Frame::Pong(_)));
        }
        assert_eq!(peer.try_frame().await, None);
        soon(serving).await.unwrap().unwrap();
    }
}

mod silence {
    //! Clients that say too little.
    use super::*;

    /// `count` connections on which this was said end with that GOAWAY.
    async fn check(is_greeted: bool, said: &[u8], count: u64, code: u32, reason: &str) {
        let idle = Some(Duration::from_secs(12));
        let limits = Limits { connection_idle_timeout: idle, ..Limits::default() };
        // Nothing of theirs runs anywhere.
        let mut host = Host::new(Placement::Inline, limits).await;
        let mut silent = Vec::new();
        for _ in 0..count {
            let (mut peer, serving) = host.connect(BUFFER);
            if is_greeted {
                peer.greet(&[]).await;
            }
            peer.send(said).await;
            silent.push((peer, serving));
        }
        host.neighbour.is_well().await;
        for (mut peer, serving) in silent {
            assert_eq!(peer.goaway().await, (code, reason.to_owned()));
            soon(serving).await.unwrap().unwrap();
        }
        assert_eq!(host.goaways(), [(reason, count)]);
        host.neighbour.is_well().await;
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_are_closed_by_their_timers() {
        let calm = ENHANCE_YOUR_CALM;
        check(false, b"", 500, calm, "handshake_timeout").await;
        check(false, &PREFACE[..10], 500, calm, "handshake_timeout").await;
        check(false, PREFACE, 500, calm, "handshake_timeout").await;
        let half = frame(1, 0, 1, &hpack::encode(&POST));
        check(true, &half, 500, calm, "header_block_timeout").await;
        check(true, &half[..20], 500, NO_ERROR, "idle_connection").await;
        check(true, b"", 500, NO_ERROR, "idle_connection").await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn whoever_says_goaway_and_goes_on_is_served_to_the_end_of_its_streams(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let mut host = Host::new(placement, Limits::default()).await;
        let (mut peer, serving) = host.greeted().await;
        peer.send(&[post(1, 0), goaway(NO_ERROR), post(3, END_STREAM)].concat()).await;
        peer.send(&[data(3, 0, b"x"), data(1, END_STREAM, b"last")].concat()).await;
        assert!(matches!(peer.frame().await, Frame::GoAway { last: 1, code: NO_ERROR, .. }));
        assert_eq!(peer.answer(1).await.body, b"last");
        assert_eq!(peer.try_frame().await, None);
        drop(peer);
        soon(serving).await.unwrap().unwrap();
        host.neighbour.is_well().await;
        assert_eq!(host.goaways(), []);
    }
}

mod grpc_messages {
    //! The whole server: what stands in the messages.
    use super::*;
    use bidi_echo::config::{Config, Transport};
    use support::wire::{echo_message, frame as message};
    use support::{INLINE, TASK};

    struct Grpc {
        server: support::Server,
        neighbour: Neighbour<TcpStream>,
    }

    impl Grpc {
        async fn new(transport: Transport) -> Self {
            let server = support::Server::on(transport).await;
            let peer = connect(&server).await;
            let ping = message(&echo_message(b"ping"));
            let neighbour = Neighbour::new(peer, &request(1), &ping).await;
            Grpc { server, neighbour }
        }
    }

    async fn connect(server: &support::Server) -> Peer<TcpStream> {
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
        let config = Config { unfinished_bytes_max: 5 << 20, ..support::on(transport) };
        let server = support::Server::start(config).await;
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
    async fn a_message_in_frames_of_a_byte_is_carried(
        #[values(INLINE, TASK)] transport: Transport,
    ) {
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
}

mod honest {
    //! What must not be taken for an attack.
    use super::*;

    /// Nothing was held against anybody.
    async fn carried(mut host: Host) {
        host.neighbour.is_well().await;
        assert_eq!(host.goaways(), []);
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_million_pipelined_messages_may_be_read_late(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        const MESSAGES: usize = 1_000_000;
        let limits = Limits {
            stream_flow_window_bytes: 16 << 20,
            stream_flow_window_bytes_max: 16 << 20,
            ..Limits::default()
        };
        let mut host = Host::new(placement, limits).await;
        let (mut peer, _serving) = host.connect(1 << 20);
        peer.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
        peer.send(&[window_update(0, 1 << 30), post(1, 0)].concat()).await;
        let thousand = data(1, 0, b"12345678").repeat(1_000);
        for _ in 0..MESSAGES / 1_000 {
            peer.send(&thousand).await;
        }
        everybody_waits().await;
        host.neighbour.is_well().await;
        let mut got = 0;
        while got < 8 * MESSAGES {
            match peer.frame().await {
                Frame::Headers { .. } => {}
                Frame::Data { payload, .. } => got += payload.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, 8 * MESSAGES);
        carried(host).await;
    }

    /// As gRPC C++ 1.51 does: each message that is read opens the windows again, however many came in one
    /// frame.
    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn each_of_many_messages_in_a_frame_may_be_granted_by_itself(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        const BATCH: usize = 1_000;
        let limits = Limits {
            stream_flow_window_bytes: 1 << 20,
            stream_flow_window_bytes_max: 1 << 20,
            ..Limits::default()
        };
        let host = Host::new(placement, limits).await;
        let (mut peer, _serving) = host.connect(1 << 20);
        peer.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
        peer.send(&[window_update(0, 1 << 30), post(1, 0)].concat()).await;
        let granted = [window_update(0, 8), window_update(1, 8)].concat();
        // Read at once, and read late.
        for batches in [[1; 50].as_slice(), &[50]].concat() {
            let mut got = 0;
            for _ in 0..batches {
                peer.send(&data(1, 0, &b"12345678".repeat(BATCH))).await;
            }
            while got < 8 * BATCH * batches {
                match peer.frame().await {
                    Frame::Headers { .. } | Frame::WindowUpdate { .. } => {}
                    Frame::Data { payload, .. } => got += payload.len(),
                    other => panic!("{other:?}"),
                }
            }
            peer.send(&granted.repeat(BATCH * batches)).await;
        }
        carried(host).await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn three_thousand_streams_may_open_before_the_settings_were_seen(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let host = Host::new(placement, Limits::default()).await;
        let (mut peer, _serving) = host.connect(BUFFER);
        let opened = (0..3_000).flat_map(|n| [post(id(n), 0), data(id(n), END_STREAM, b"ping")]);
        let said: Vec<u8> =
            [PREFACE.to_vec(), settings(&[])].into_iter().chain(opened).flatten().collect();
        peer.send(&said).await;
        let mut ended = 0;
        while ended < 3_000 {
            match peer.frame().await {
                Frame::Headers { .. } => {}
                Frame::Data { end, .. } => ended += u32::from(end),
                other => panic!("{other:?}"),
            }
        }
        carried(host).await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn honest_cancels_may_come_all_at_once_and_on_and_on(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let host = Host::new(placement, Limits::default()).await;
        let (mut peer, _serving) = host.greeted().await;
        let mut next = 0;
        let mut cancel = async |count: u32| {
            let streams = || (next..next + count).map(id);
            peer.send(&streams().flat_map(|id| post(id, 0)).collect::<Vec<u8>>()).await;
            for _ in 0..count {
                assert!(matches!(peer.frame().await, Frame::Headers { .. }));
            }
            let resets = streams().flat_map(|id| rst_stream(id, CANCEL));
            peer.send(&resets.collect::<Vec<u8>>()).await;
            next += count;
            peer.echo(id(next)).await;
            next += 1;
        };
        cancel(3_000).await;
        for _ in 0..120 {
            cancel(100).await;
            tokio::time::advance(Duration::from_secs(1) / 3).await;
        }
        carried(host).await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn a_ping_with_each_data_frame_is_a_probe_and_no_flood(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let host = Host::new(placement, Limits::default()).await;
        let (mut peer, _serving) = host.greeted().await;
        peer.send(&post(1, 0)).await;
        for _ in 0..5_000 {
            peer.send(&[data(1, 0, b"1"), ping(b"12345678", 0)].concat()).await;
            let mut answered = 0;
            while answered < 2 {
                let frame = peer.frame().await;
                answered += u32::from(matches!(frame, Frame::Data { .. } | Frame::Pong(_)));
            }
        }
        carried(host).await;
    }

    #[rstest]
    #[tokio::test(start_paused = true)]
    async fn frames_on_their_way_to_a_stream_that_the_server_ended_are_forgiven(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let host = Host::new(placement, Limits::default()).await;
        let (mut peer, _serving) = host.greeted().await;
        for n in 0..3 {
            let stream = id(2 * n);
            peer.send(&post_with(stream, 0, &EARLY)).await;
            assert_eq!(peer.answer(stream).await.body, b"early");
            assert_eq!(peer.frame().await, Frame::Reset { stream, code: NO_ERROR });
            // A window full of small frames, and what often comes with them.
            peer.send(&data(stream, 0, b"1234").repeat(16_384)).await;
            peer.send(&window_update(stream, 1_000)).await;
            peer.send(&rst_stream(stream, CANCEL)).await;
            peer.echo(id(2 * n + 1)).await;
        }
        carried(host).await;
    }
}

mod turns {
    //! Connections that always have something to do.
    use super::*;

    /// A body without end, of which some is always there.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"more")))))
        }
    }

    /// Says what was laid in, and takes whatever comes.
    struct Greedy(&'static [u8]);

    impl AsyncRead for Greedy {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Pending;
            }
            buf.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Greedy {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A runtime that asks the system for events only when no task is ready: usually it does so after
    /// some dozens of polls, and a test could not tell whom a neighbour owes its turn to.
    #[test]
    fn a_connection_that_is_never_idle_lets_the_runtime_look_at_sockets() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(u32::MAX).build().unwrap();
        runtime.block_on(async {
            let server = Server::new(Limits::default());
            let windows = settings(&[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
            let wide = window_update(0, (1 << 31) - 1 - 65_535);
            let said = [PREFACE, &windows, &wide, &post(1, END_STREAM)].concat().leak();
            let endless = service_fn(|_: Request<RecvBody>| async {
                Ok::<_, Infallible>(Response::new(Endless))
            });
            let busy = server.serve_connection(Greedy(said), endless, http::Extensions::new());
            tokio::spawn(busy);

            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let near = TcpStream::connect(address).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            tokio::spawn(server.serve_connection(far, service(), http::Extensions::new()));
            let mut peer = Peer::new(near);
            peer.greet(&[]).await;
            peer.echo(1).await;
        });
    }
}

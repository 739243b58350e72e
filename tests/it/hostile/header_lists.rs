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

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_megabyte_of_one_byte_fields_ends_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let wave = |n| indexed_fields(id(n), 1 << 20);
    let attack = Attack { opening: vec![], wave, waves: 10 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_header_fields").await;
    // As many as are decoded at most are a list that is too large, and no more.
    let mut host = Host::new(placement, Limits::default()).await;
    let (mut peer, _serving) = host.greeted().await;
    peer.send(&indexed_fields(id(0), (32 << 10) - POST.len())).await;
    assert_eq!(peer.answer(id(0)).await.status(), "431");
    host.neighbour.is_well().await;
}

//! Flags become a [`Config`], or an error that names value and cure.

use super::*;

fn config(flags: &[&str]) -> Result<Config, Error> {
    let args = Args::try_parse_from(std::iter::once(&"bidi-echo").chain(flags)).expect("parses");
    Config::try_from(&args)
}

#[test]
fn no_flags_mean_the_documented_defaults() {
    let config = config(&[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.inbound_message_bytes_max, 4 * 1024 * 1024);
    assert_eq!(config.outbound_message_bytes_max, 4 * 1024 * 1024);
    assert_eq!(config.header_list_bytes_max, 8 * 1024);
    assert_eq!(config.max_concurrent_streams, 4_096);
    let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
    let keepalive = Keepalive { interval: hours(2), timeout: Duration::from_secs(20) };
    assert_eq!(config.keepalive, Some(keepalive));
    assert_eq!(config.connection_age, None);
    assert!(!config.reflection);
}

#[test]
fn a_value_out_of_range_is_named_with_its_cure() {
    let check = |flags: &[&str], expected: &str| {
        let message = config(flags).expect_err("must be rejected").to_string();
        assert_eq!(message, expected);
    };
    for threads in ["0", "1025"] {
        let cure = "need 1 to 1024 worker threads; more than cores seldom help";
        check(&["--threads", threads], &format!("--threads {threads}: {cure}"));
    }
    check(
        &["--max-concurrent-streams", "0"],
        "--max-concurrent-streams 0: no stream could ever open; pass at least 1",
    );
    check(
        &["--connections-max", "0"],
        "--connections-max 0: nobody could ever connect; pass at least 1",
    );
    let inline = ["--transport", "inline"];
    check(
        &[&inline[..], &["--unfinished-bytes-max", "1MiB"]].concat(),
        "--unfinished-bytes-max 1.0 MiB: no largest message would fit; pass at least 4194309 bytes",
    );
    check(
        &[&inline[..], &["--buffered-bytes-max", "1KiB"]].concat(),
        "--buffered-bytes-max 1.0 KiB: nobody could be served; pass at least 1 MiB",
    );
    check(
        &["--transport", "tonic", "--buffered-bytes-max", "1GiB"],
        "--buffered-bytes-max 1.0 GiB: tonic's transport knows no such bound; pass --transport \
         inline, or leave it out",
    );
    check(
        &["--connection-flow-window-bytes", "1KiB"],
        "--connection-flow-window-bytes 1.0 KiB: pass a size from 65535 to 2147483647 bytes",
    );
    check(
        &["--stream-flow-window-bytes", "3GiB"],
        "--stream-flow-window-bytes 3.0 GiB: pass a size from 1 to 2147483647 bytes",
    );
    check(
        &["--header-list-bytes-max", "1"],
        "--header-list-bytes-max 1 B: pass a size from 512 to 4294967295 bytes",
    );
    check(
        &["--keepalive-interval", "0s"],
        "--keepalive-interval 0s: would ping without pause; pass a time, or never",
    );
    check(
        &["--keepalive-timeout", "0s"],
        "--keepalive-timeout 0s: no peer answers at once; pass a time such as 20s",
    );
    check(
        &["--keepalive-interval", "never", "--keepalive-timeout", "5s"],
        "--keepalive-timeout 5s: there is no ping to answer; leave it out, or pass a --keepalive-interval",
    );
    check(
        &["--connection-age-grace", "5s"],
        "--connection-age-grace 5s: has no age to follow; pass --connection-age-max too",
    );
    for flag in ["--handshake-timeout", "--header-block-timeout"] {
        let cure = "no client is that fast; pass a time such as 10s";
        check(&["--transport", "inline", flag, "0s"], &format!("{flag} 0s: {cure}"));
    }
    for flag in ["--connection-idle-timeout", "--stream-idle-timeout", "--stall-timeout"] {
        let cure = "would end what has just begun; pass a time, or never";
        check(&["--transport", "inline", flag, "0s"], &format!("{flag} 0s: {cure}"));
    }
    check(
        &["--listen", "127.0.0.1:9000", "--metrics-listen", "127.0.0.1:9000"],
        "--metrics-listen 127.0.0.1:9000: is the gRPC address; pass another port",
    );
}

/// Whoever embeds the server has no flags that would be looked at.
#[tokio::test]
async fn a_config_of_ones_own_is_looked_at_before_anything_starts() {
    let check = async |config: Config, expected: &str| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let served = crate::serve::serve(listener, config, std::future::pending()).await;
        assert_eq!(served.unwrap_err().to_string(), expected);
    };
    let default = Config::default;
    check(
        Config { connections_max: 0, ..default() },
        "--connections-max 0: nobody could ever connect; pass at least 1",
    )
    .await;
    check(
        Config { unfinished_bytes_max: 100, inbound_message_bytes_max: 96, ..default() },
        "--unfinished-bytes-max 100: no largest message would fit; pass at least 101 bytes",
    )
    .await;
    let timers = Timers { stall: Some(Duration::ZERO), ..Timers::default() };
    check(Config { timers, ..default() }, "--stall-timeout 0s: nothing is that fast; pass a time")
        .await;
}

#[test]
fn larger_messages_widen_what_may_be_unfinished() {
    let check = |flags: &[&str], expected| {
        let flags = [&["--transport", "inline"], flags].concat();
        assert_eq!(config(&flags).unwrap().unfinished_bytes_max, expected);
    };
    check(&[], UNFINISHED_BYTES_MAX);
    check(&["--inbound-message-bytes-max", "1KiB"], UNFINISHED_BYTES_MAX);
    check(&["--inbound-message-bytes-max", "8MiB"], 6 * ((8 << 20) + 5));
    check(&["--unfinished-bytes-max", "5MiB"], 5 << 20);
}

#[test]
fn times_and_sizes_are_typed_as_people_write_them() {
    let config = config(&[
        "--drain-limit",
        "1500ms",
        "--inbound-message-bytes-max",
        "64KiB",
        "--connection-age-max",
        "1h",
        "--connection-age-grace",
        "30s",
        "--keepalive-interval",
        "1m",
    ])
    .unwrap();
    assert_eq!(config.drain_limit, Duration::from_millis(1_500));
    assert_eq!(config.inbound_message_bytes_max, 65_536);
    let age =
        ConnectionAge { max: Duration::from_secs(3_600), grace: Some(Duration::from_secs(30)) };
    assert_eq!(config.connection_age, Some(age));
    let keepalive =
        Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
    assert_eq!(config.keepalive, Some(keepalive));
    assert_eq!(self::config(&["--keepalive-interval", "never"]).unwrap().keepalive, None);
    let keepalive = Keepalive { timeout: Duration::from_secs(5), ..Keepalive::default() };
    assert_eq!(
        self::config(&["--keepalive-timeout", "5s"]).unwrap().keepalive,
        Some(keepalive),
        "of the pings that there are anyway"
    );
}

#[test]
fn a_flag_that_would_do_nothing_on_tonics_transport_is_refused() {
    let tonic = ["--transport", "tonic"];
    for flag in [
        "--handshake-timeout",
        "--header-block-timeout",
        "--connection-idle-timeout",
        "--stream-idle-timeout",
        "--stall-timeout",
    ] {
        let message = config(&[&tonic[..], &[flag, "5s"]].concat()).unwrap_err().to_string();
        let cure = "tonic has no such timer; pass --transport inline, or leave it out";
        assert_eq!(message, format!("{flag} 5s: {cure}"));
    }
    for placement in ["inline", "task"] {
        let flags = [&tonic[..], &["--placement", placement]].concat();
        let cure =
            "tonic runs each stream on a task of its own; pass --transport inline, or leave it out";
        let message = config(&flags).unwrap_err().to_string();
        assert_eq!(message, format!("--placement {placement}: {cure}"));
    }
}

#[test]
fn the_inline_transport_takes_its_placement_and_its_timers() {
    let inline = ["--transport", "inline"];
    let read = |flags: &[&str]| config(&[&inline[..], flags].concat()).unwrap();
    assert_eq!(read(&[]).transport, Transport::Inline(Placement::Inline));
    let placed = read(&["--placement", "task"]).transport;
    assert_eq!(placed, Transport::Inline(Placement::Task));
    assert_eq!(read(&[]).timers, Timers::default());
    let seconds = Duration::from_secs;
    let expected = Timers {
        handshake: seconds(1),
        header_block: seconds(2),
        connection_idle: Some(seconds(180)),
        stream_idle: Some(seconds(4)),
        stall: None,
    };
    let timers = read(&[
        "--handshake-timeout",
        "1s",
        "--header-block-timeout",
        "2s",
        "--connection-idle-timeout",
        "3m",
        "--stream-idle-timeout",
        "4s",
        "--stall-timeout",
        "never",
    ]);
    assert_eq!(timers.timers, expected);
}

#[test]
fn every_flag_has_its_environment_variable() {
    use clap::CommandFactory;
    for arg in Args::command().get_arguments().filter(|arg| arg.get_long() != Some("help")) {
        let Some(long) = arg.get_long() else { continue };
        let expected = format!("BIDI_ECHO_{}", long.replace('-', "_").to_uppercase());
        let env = arg.get_env().map(|name| name.to_string_lossy().into_owned());
        assert_eq!(env, Some(expected), "--{long}");
    }
}

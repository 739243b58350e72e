//! What is typed becomes a scenario, or an error that names flag, value and cure.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    run: RunArgs,
}

fn typed(flags: &[&str]) -> RunArgs {
    Typed::try_parse_from(std::iter::once(&"loadgen").chain(flags)).expect("parses").run
}

fn resolve(flags: &[&str], limit: Option<u32>) -> Result<Scenario, UsageError> {
    let mut run = typed(flags);
    run.duration_was_typed = flags.contains(&"--duration");
    let cpus = vec![0, 1, 2, 5];
    let surroundings = Surroundings {
        cpus,
        usual_cpus: vec![5],
        server_cpus: vec![0],
        streams_per_connection_max: limit,
        fresh_seed: 7,
    };
    Scenario::resolve(&run, &surroundings)
}

#[test]
fn no_flags_mean_a_closed_loop_of_one_message_per_stream() {
    let scenario = resolve(&[], None).unwrap();
    assert_eq!(scenario.load, Load::ClosedLoop { in_flight_max: 1 });
    assert_eq!((scenario.streams, scenario.connections, scenario.shards), (100, 1, 1));
    assert_eq!(scenario.seed, 7);
    assert_eq!(scenario.duration_ns, Some(Nanos(10 * Nanos::SECOND.0)));
}

#[test]
fn shards_are_where_they_were_told_to_be_or_where_they_usually_are() {
    assert_eq!(resolve(&[], None).unwrap().cpus, [5]);
    assert_eq!(resolve(&["--cpus", "2,1"], None).unwrap().cpus, [2, 1]);
}

#[test]
fn cores_that_are_kept_awake_are_those_that_somebody_is_pinned_to() {
    let awake = |flags: &[&str]| resolve(flags, None).map(|scenario| scenario.awake_cpus);
    assert!(awake(&[]).unwrap().is_empty());
    assert_eq!(awake(&["--keep-awake"]).unwrap(), [0, 5]);
    assert_eq!(awake(&["--keep-awake", "--cpus", "2,1"]).unwrap(), [0, 2, 1]);
    assert_eq!(awake(&["--awake-cpus", "0,1"]).unwrap(), [0, 1]);
    let nobody = RunArgs { keep_awake: true, ..typed(&[]) };
    assert_eq!(awake_cpus(&nobody, &[], &[]).unwrap_err().flag, "--keep-awake");
}

#[test]
fn a_run_that_has_to_be_valid_has_a_probe_where_there_can_be_one() {
    let probe = |flags: &[&str]| {
        let required = [flags, &["--require-valid"]].concat();
        resolve(&required, None).unwrap().probe_rate_messages_per_s
    };
    let open: &[&str] = &["--rate", "1k"];
    assert_eq!(probe(open), Some(PROBE_RATE));
    assert_eq!(probe(&[open, &["--probe-rate", "7"]].concat()), Some(MessagesPerSecond(7.0)));
    assert_eq!(probe(&[]), None, "what a closed loop sees depends on the connection");
    assert_eq!(probe(&[open, &["--messages", "5"]].concat()), None, "it has no end of its own");
    assert_eq!(resolve(open, None).unwrap().probe_rate_messages_per_s, None);
}

#[test]
fn a_load_is_typed_again_as_it_was_typed() {
    let all = "--contract chat --client tonic --streams 7 --connections 3 --in-flight 2 --rate 1500 \
               --arrivals poisson --blocked shed --max-backlog 9 --payload 1000B --header a=b=c";
    let all: Vec<_> = all.split_whitespace().collect();
    let load = |flags: &[&str]| {
        Typed::try_parse_from(std::iter::once(&"loadgen").chain(flags)).unwrap().run.load
    };
    assert_eq!(load(&all).flags(), all);
    let usual = load(&[]).flags();
    let again: Vec<_> = usual.iter().map(String::as_str).collect();
    assert_eq!(load(&again).flags(), usual);
}

#[test]
fn streams_spread_over_connections_as_the_server_allows() {
    let connections = |flags: &[&str], limit| resolve(flags, limit).unwrap().connections;
    assert_eq!(connections(&["--streams", "1000"], Some(4_096)), 10);
    assert_eq!(connections(&["--streams", "1001"], None), 11);
    assert_eq!(connections(&["--streams", "1000"], Some(10)), 100);
    assert_eq!(connections(&["--streams", "3000", "--connections", "1"], Some(4_096)), 1);
    assert_eq!(connections(&["--streams", "100", "--idle-streams", "900"], None), 10);
    assert_eq!(connections(&["--streams", "1", "--idle-streams", "900"], None), 1);
    // 101 and 99 on two would be 51 and 50 on one of them.
    assert_eq!(connections(&["--streams", "101", "--idle-streams", "99"], Some(100)), 3);
}

#[test]
fn a_value_that_cannot_be_run_is_named_with_its_cure() {
    let check = |flags: &[&str], limit, expected: &str| {
        assert_eq!(resolve(flags, limit).unwrap_err().to_string(), expected);
    };
    check(
        &["--streams", "1000", "--connections", "1"],
        Some(100),
        "--connections 1: the server allows 100 streams per connection, and 1000 streams need at least --connections 10",
    );
    check(
        &["--streams", "2", "--connections", "3"],
        None,
        "--connections 3: there are only 2 streams to carry; pass at most that",
    );
    check(
        &["--streams", "100", "--connections", "10", "--idle-streams", "901"],
        Some(100),
        "--connections 10: the server allows 100 streams per connection, and 1001 streams need at least --connections 11",
    );
    check(
        &["--streams", "10", "--idle-streams", "5000"],
        Some(100),
        "--connections 10: the server allows 100 streams per connection, and 5000 idle streams do not fit beside 10: pass fewer --idle-streams",
    );
    check(
        &["--idle-connections", "1", "--messages", "5"],
        None,
        "--messages 5: what is idle has no end of its own to wait for; pass --duration instead",
    );
    check(
        &["--cpus", "0,4"],
        None,
        "--cpus 4: this process may use the cores [0, 1, 2, 5]; pass some of them",
    );
    check(
        &["--payload", "4MiB"],
        None,
        "--payload 4.0 MiB: a message holds at most 4194304 bytes, encoding included: pass at most 4194299",
    );
    for (flag, value) in [("--arrivals", "poisson"), ("--blocked", "shed"), ("--max-backlog", "9")]
    {
        let expected =
            format!("{flag} {value}: is an open loop's; pass --rate too, or leave it out");
        check(&[flag, value], None, &expected);
    }
    check(
        &["--duration", "0s"],
        None,
        "--duration 0s: nothing would be measured; pass a time such as 10s",
    );
    check(&["--messages", "0"], None, "--messages 0: nothing would be measured; pass at least 1");
}

#[test]
fn messages_without_a_duration_take_as_long_as_they_take() {
    assert_eq!(resolve(&["--messages", "5"], None).unwrap().duration_ns, None);
    let both = resolve(&["--messages", "5", "--duration", "1s"], None).unwrap();
    assert_eq!(both.duration_ns, Some(Nanos::SECOND));
}

#[test]
fn headers_that_grpc_sets_itself_are_refused() {
    assert_eq!("x-id=a=b".parse(), Ok(Header { key: "x-id".into(), value: "a=b".into() }));
    for wrong in ["x-id", "grpc-timeout=1S", "te=x", "X Y=1", "data-bin=aGk"] {
        assert!(wrong.parse::<Header>().is_err(), "{wrong}");
    }
}

#[test]
fn a_scenario_survives_json() {
    let scenario =
        resolve(&["--rate", "50k", "--arrivals", "poisson", "--header", "a=b"], None).unwrap();
    let json = serde_json::to_string(&scenario).unwrap();
    assert_eq!(serde_json::from_str::<Scenario>(&json).unwrap(), scenario);
}

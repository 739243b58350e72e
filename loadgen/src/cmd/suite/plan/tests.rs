//! What a suite file may say, what it may not, and in which order its runs go.

use super::*;

const SUITE: &str = r#"
[suite]
repetitions = 2
warmup = "500ms"
duration = "3s"
server_cpus = [0]
loadgen_cpus = [1]
baseline = "tonic"
subject = "slow-starter"
client = "inline"
peers = "../peers/peers.toml"

[[scenario]]
name = "one"
connections = 1
streams = 100
in_flight = 1
payload = "8B"
figure = "messages"

[[scenario]]
name = "large"
connections = 2
streams = 8
idle_streams = 90
idle_connections = 7
watch_give_back = "2s"
warmup = "1s"
seed = 7
duration = "6s"
in_flight = 4
payload = "64KiB"
figure = "bytes"

[[server]]
name = "tonic"
transport = "tonic"

[[server]]
name = "slow-starter"
peer = "grpc-java"
preheat = "6s"
warmup = "8s"
duration_min = "4s"
"#;

fn parse(text: &str) -> Result<Plan, UsageError> {
    Plan::parse(text, Path::new("suites"), &[0, 1, 2])
}

#[test]
fn cores_are_kept_awake_for_the_scenarios_that_say_so() {
    let awake = SUITE.replacen("[[scenario]]", "[[scenario]]\nkeep_awake = true", 1);
    let plan = parse(&awake).unwrap();
    assert_eq!(plan.awake_cpus(&plan.scenarios[0]), [0, 1]);
    assert!(plan.awake_cpus(&plan.scenarios[1]).is_empty());
}

#[test]
fn others_are_waited_for_only_where_a_suite_says_so() {
    assert_eq!(parse(SUITE).unwrap().calm_limit, Nanos(0));
    let calm = SUITE.replacen("[suite]", "[suite]\ncalm_limit = \"2m\"", 1);
    assert_eq!(parse(&calm).unwrap().calm_limit, Nanos(120 * Nanos::SECOND.0));
}

#[test]
fn a_suite_is_read_with_its_times_sizes_and_paths() {
    let plan = parse(SUITE).unwrap();
    assert_eq!((plan.repetitions, plan.duration), (2, Nanos(3 * Nanos::SECOND.0)));
    assert_eq!(plan.client, Some(ClientName::Inline));
    assert_eq!(plan.peers.as_deref(), Some(Path::new("suites/../peers/peers.toml")));
    assert_eq!(plan.scenarios[1].payload, ByteSize(65_536));
    assert_eq!(plan.scenarios[1].figure, Figure::Bytes);
    let durations = plan.scenarios.iter().map(|it| plan.duration(it));
    assert_eq!(durations.collect::<Vec<_>>(), [3, 6].map(|it| Nanos(it * Nanos::SECOND.0)));
    let idle = |it: &SuiteScenario| (it.idle_streams, it.idle_connections, it.watch_give_back);
    assert_eq!(idle(&plan.scenarios[0]), (0, 0, Nanos(0)));
    assert_eq!(idle(&plan.scenarios[1]), (90, 7, Nanos(2 * Nanos::SECOND.0)));
    let [ours, peer] = &plan.servers[..] else { panic!("{:?}", plan.servers) };
    assert_eq!(ours.kind, ServerKind::Ours(Transport::Tonic));
    assert_eq!(ours.warmup, Nanos(Nanos::SECOND.0 / 2));
    assert_eq!(peer.kind, ServerKind::Peer("grpc-java".to_owned()));
    assert_eq!(peer.warmup, Nanos(8 * Nanos::SECOND.0));
    assert_eq!((ours.preheat, peer.preheat), (Nanos(0), Nanos(6 * Nanos::SECOND.0)));
    assert_eq!((plan.scenarios[0].seed, plan.scenarios[1].seed), (None, Some(7)));
    let runs = || {
        let runs = (0..2).flat_map(|scenario| (0..2).map(move |server| (scenario, server)));
        runs.map(|(scenario, server)| Run { repetition: 0, scenario, server })
    };
    let halves = |times: [u64; 4]| times.map(|it| Nanos(it * Nanos::SECOND.0 / 2)).to_vec();
    let durations = runs().map(|run| plan.duration_of(run));
    assert_eq!(durations.collect::<Vec<_>>(), halves([6, 8, 12, 12]));
    // A scenario's warm-up goes before the server's, which goes before the suite's.
    let warmups = runs().map(|run| plan.warmup_of(run));
    assert_eq!(warmups.collect::<Vec<_>>(), halves([1, 16, 2, 2]));
}

#[test]
fn what_cannot_be_run_is_named_with_its_cure() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(SUITE.contains(from), "{from}");
        let error = parse(&SUITE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    };
    check("repetitions = 2", "repetitions = 0", "repetitions 0: nothing would be measured");
    check("duration = \"3s\"", "duration = \"0s\"", "duration 0s: nothing would be measured");
    check("duration = \"3s\"", "duration = \"soon\"", "\"soon\"");
    check("duration = \"3s\"", "duration = 3", "invalid type: integer `3`");
    check("duration = \"3s\"", "", "missing field `duration`");
    check("duration = \"3s\"", "lenght = \"3s\"", "unknown field `lenght`");
    check("server_cpus = [0]", "server_cpus = []", "server_cpus []: need a core");
    check("server_cpus = [0]", "server_cpus = [7]", "server_cpus 7: this process may use");
    check("loadgen_cpus = [1]", "loadgen_cpus = [2, 0]", "loadgen_cpus 0: is the server's too");
    check("baseline = \"tonic\"", "baseline = \"stock\"", "baseline stock: no [[server]]");
    check(
        "peers = \"../peers/peers.toml\"",
        "",
        "peer slow-starter: a peer stands in a peers.toml",
    );
    check("name = \"large\"", "name = \"one\"", "scenario one: stands there twice");
    check("name = \"large\"", "name = \"a/b\"", "scenario \"a/b\": a name is part of");
    check("connections = 1", "connections = 101", "connections 101 (scenario one): there are only");
    check("in_flight = 1", "in_flight = 0", "in_flight 0 (scenario one): need at least 1");
    check(
        "payload = \"8B\"",
        "payload = \"9MiB\"",
        "payload 9.0 MiB (scenario one): a message holds",
    );
    check("streams = 100", "streams = -1", "invalid value: integer `-1`");
    check("payload = \"8B\"", "payload = \"much\"", "\"much\"");
    check("figure = \"bytes\"", "figure = \"beauty\"", "unknown variant `beauty`");
    check("transport = \"tonic\"", "transport = \"tcp\"", "transport tcp: write one of");
    let placed =
        |transport, placement| format!("transport = \"{transport}\"\nplacement = \"{placement}\"");
    let ours = "transport = \"tonic\"";
    check(ours, &placed("inline", "core"), "placement core: write one of inline, task");
    check(ours, &placed("tonic", "task"), "placement task: is the inline transport's");
    check("peer = ", "placement = \"task\"\npeer = ", "server slow-starter: need either");
    check("client = \"inline\"", "client = \"curl\"", "unknown variant `curl`");
    check("transport = \"tonic\"", "", "server tonic: need either");
    check("peer = ", "transport = \"tonic\"\npeer = ", "server slow-starter: need either");
    check("[[server]]", "[[servers]]", "unknown field `servers`");
    let first = "in_flight = 1";
    let with = |line: &str| format!("{first}\n{line}");
    check(first, &with("arrivals = \"poisson\""), "arrivals poisson (scenario one): is an open");
    check(first, &with("blocked = \"shed\""), "blocked shed (scenario one): is an open loop's");
    check(first, &with("max_backlog = 5"), "max_backlog 5 (scenario one): is an open loop's");
    check(first, &with("max_backlog = 0"), "invalid value: integer `0`");
    check(first, &with("messages = 0"), "invalid value: integer `0`");
    let cure = "messages 9 (scenario one): what is idle has no end";
    check(first, &with("messages = 9\nidle_streams = 1"), cure);
    check(first, &with("drain_limit = \"5\""), "\"5\": ");
    check(first, &with("contract = \"talk\""), "unknown variant `talk`");
    check(first, &with("headers = { te = \"x\" }"), "te: gRPC sets this one itself");
}

#[test]
fn a_scenario_may_have_every_input_of_a_load() {
    let open = "payload = \"8B\"\nrate = \"5k\"\narrivals = \"poisson\"\nblocked = \"shed\"\nmax_backlog = 9\n\
                contract = \"chat\"\nclient = \"tonic\"\nduration = \"6s\"\nmessages = 25000\ndrain_limit = \"3s\"\nheaders = { x-id = \"7\", a = \"b=c\" }";
    let plan = parse(&SUITE.replacen("payload = \"8B\"", open, 1)).unwrap();
    let scenario = &plan.scenarios[0];
    assert_eq!(scenario.blocked, Some(Blocked::Shed));
    assert_eq!(scenario.max_backlog, NonZeroU64::new(9));
    assert_eq!(scenario.messages, NonZeroU64::new(25_000));
    assert_eq!(scenario.drain_limit, Some(Nanos(3_000_000_000)));
    assert_eq!((scenario.contract, scenario.client), (ContractName::Chat, Some(ClientName::Tonic)));
    let header = |key: &str, value: &str| Header { key: key.into(), value: value.into() };
    assert_eq!(scenario.headers, [header("a", "b=c"), header("x-id", "7")]);
    let others = &plan.scenarios[1];
    assert_eq!((others.contract, others.client), (ContractName::Echo, None));
}

#[test]
fn a_server_of_ours_may_be_placed() {
    let placed = "transport = \"inline\"\nplacement = \"task\"";
    let plan = parse(&SUITE.replace("transport = \"tonic\"", placed)).unwrap();
    let expected = ServerKind::Ours(Transport::Inline(Placement::Task));
    assert_eq!(plan.servers[0].kind, expected);
}

#[test]
fn a_scenario_may_vary_an_input_and_have_a_rate() {
    let varied = SUITE.replace(
        "in_flight = 1",
        "duration = \"5s\"\nrate = [\"1k\", \"20k\"]\narrivals = \"poisson\"",
    );
    let plan = parse(&varied).unwrap();
    let read: Vec<_> =
        plan.scenarios.iter().map(|it| (it.name.as_str(), it.rate.clone())).collect();
    let fixed = |rate| Some(Rate::Fixed(MessagesPerSecond(rate)));
    assert_eq!(read, [("one-rate-1k", fixed(1e3)), ("one-rate-20k", fixed(2e4)), ("large", None)]);
    assert_eq!(plan.scenarios[0].in_flight, None);
    let check = |to: &str, expected: &str| {
        let error = parse(&SUITE.replacen("in_flight = 1", to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    };
    check("", "in_flight (none) (scenario one): a closed loop needs it");
    check("in_flight = []", "in_flight = []: nothing would be run");
    check("in_flight = [1, 1]", "scenario one-in_flight-1: stands there twice");
}

#[test]
fn a_rate_may_be_a_share_of_a_knee() {
    let knee = |rate: &str| {
        let open = format!("duration = \"5s\"\nrate = \"{rate}\"");
        let text = SUITE.replace("in_flight = 1", &open);
        let text = text.replacen("baseline", "slo = \"p99<10ms\"\nbaseline", 1);
        parse(&text).map(|plan| plan.scenarios[0].rate.clone()).map_err(|error| error.to_string())
    };
    let share =
        |share, of: Option<&str>| Ok(Some(Rate::OfKnee { share, of: of.map(str::to_owned) }));
    assert_eq!(knee("50 %"), share(0.5, None));
    assert_eq!(knee("90% of tonic"), share(0.9, Some("tonic")));
    assert!(knee("90% of stock").unwrap_err().contains("no [[server]] is named stock"));
    assert!(knee("0 %").unwrap_err().contains("need a rate such as 50k, or a share"));
    assert!(knee("5 % off tonic").unwrap_err().contains("need a rate such as 50k, or a share"));
    assert_eq!(knee("12.5 % of tonic").unwrap().unwrap().to_string(), "12.5 % of tonic's knee");
    assert_eq!(knee("7 %").unwrap().unwrap().to_string(), "7 % of its own knee");
    let idle = SUITE.replace("in_flight = 4", "rate = \"50 %\"");
    let idle = idle.replacen("baseline", "slo = \"p99<10ms\"\nbaseline", 1);
    let refused = parse(&idle).unwrap_err().to_string();
    assert!(refused.contains("searched without idle streams and connections"), "{refused}");
    let without = SUITE.replace("in_flight = 1", "rate = \"50 %\"");
    assert!(parse(&without).unwrap_err().to_string().contains("a knee keeps goals; write slo"));
}

#[test]
fn an_open_loop_that_is_too_short_to_be_shown_to_be_valid_is_refused() {
    let open = |duration: &str, rate: &str, more: &str| {
        let open = format!("duration = \"{duration}\"\nrate = \"{rate}\"\n{more}");
        let text = SUITE.replace("in_flight = 1", &open);
        let text = text.replacen("baseline", "slo = \"p99<10ms\"\nbaseline", 1);
        parse(&text).map(drop).map_err(|error| error.to_string())
    };
    for rate in ["1k", "50 %"] {
        assert_eq!(open("5s", rate, ""), Ok(()));
        let refused = open("4900ms", rate, "").unwrap_err();
        let expected = "duration 4.90 s (scenario one): is too short for an open loop";
        assert!(refused.starts_with(expected), "{refused}");
    }
    // The suite's own.
    let usual = SUITE.replace("in_flight = 1", "rate = \"1k\"");
    let refused = parse(&usual).unwrap_err().to_string();
    assert!(refused.starts_with("duration 3 s (scenario one)"), "{refused}");
    assert_eq!(open("9s", "1k", "messages = 5000"), Ok(()));
    let refused = open("9s", "1k", "messages = 4999").unwrap_err();
    let expected = "messages 4999 (scenario one): at 1000 messages/s they are over before 5 s";
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn runs_are_interleaved_with_the_repetition_outermost() {
    let runs = parse(SUITE).unwrap().runs();
    let order: Vec<_> = runs.iter().map(|run| (run.repetition, run.scenario, run.server)).collect();
    let expected =
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 1), (1, 0, 0), (1, 1, 1), (1, 1, 0)];
    assert_eq!(order, expected);
}

#[test]
fn filters_keep_what_they_name_and_refuse_what_is_not_there() {
    let only = |scenarios: &[&str], servers: &[&str]| {
        let owned =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut plan = parse(SUITE).unwrap();
        plan.keep(&owned(scenarios), &owned(servers))
            .map(|()| (plan.scenarios.len(), plan.servers.len()))
            .map_err(|error| error.to_string())
    };
    assert_eq!(only(&[], &[]), Ok((2, 2)));
    assert_eq!(only(&["large"], &[]), Ok((1, 2)));
    assert_eq!(only(&[], &["slow-starter"]), Ok((2, 1)));
    let refused = "--only-scenario small: the suite has one, large";
    assert_eq!(only(&["small"], &[]), Err(refused.to_owned()));
}

#[test]
fn a_server_whose_knee_others_are_offered_a_share_of_is_not_left_out() {
    let open = "duration = \"5s\"\nrate = \"50 % of tonic\"";
    let text = SUITE.replace("in_flight = 1", open);
    let text = text.replacen("baseline", "slo = \"p99<10ms\"\nbaseline", 1);
    let only = |scenarios: &[&str], servers: &[&str]| {
        let [scenarios, servers] = [scenarios, servers]
            .map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        parse(&text).unwrap().keep(&scenarios, &servers).map_err(|error| error.to_string())
    };
    let refused = only(&[], &["slow-starter"]).unwrap_err();
    let begins = "--only-server slow-starter: leaves out tonic, and one offers a share of its knee";
    assert!(refused.starts_with(begins), "{refused}");
    for servers in [&[][..], &["tonic"], &["slow-starter", "tonic"]] {
        assert_eq!(only(&[], servers), Ok(()));
    }
    assert_eq!(only(&["large"], &["slow-starter"]), Ok(()));
}

/// The suites that the project ships; their cores may not exist where this test runs.
#[test]
fn the_suites_of_the_project_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites");
    let mut suites = 0;
    for file in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let plan = Plan::parse(&text, &folder, &(0..64).collect::<Vec<_>>());
        let plan = plan.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let peers = crate::harness::peers::Peers::read(&plan.peers.unwrap()).unwrap();
        for server in plan.servers {
            if let ServerKind::Peer(name) = server.kind {
                peers.find(&name).unwrap();
            }
        }
        suites += 1;
    }
    assert!(suites > 0);
}

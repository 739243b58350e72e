//! One thread, one runtime, its connections and streams; shares nothing with other shards but the
//! timeline.
//!
//! In: a [`Plan`] and commands. Out: [`Event`]s. A shard connects, opens its streams, and says so;
//! on `Begin` it loads until the window ends, drains, and gives its figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use bidi_echo::transport::{BodyError, Client, Exchange, client_limits};
use http::Request;
use http::uri::PathAndQuery;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};

use super::clock::Clock;
use super::contract::Contract;
use super::flight::{Flight, Lost};
use super::inline::InlineCall;
use super::pacer::{Manner, Paced, PacerError, pace};
use super::payload::{Payloads, filler};
use super::recorder::{Interval, Recorder, Seen};
use super::stream::{self, Call, Parts, Shared};
use super::timeline::Timeline;
use super::{DriveError, FLOW_WINDOW_BYTES};
use crate::scenario::{ClientName, Load, Scenario};
use crate::units::Nanos;

/// Connections that a shard opens at the same time: below any usual backlog of a listener.
const CONNECTING_MAX: usize = 64;

/// A server that accepts no connection within this time is not there.
const CONNECT_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Streams without response headers are waited for as long as others get theirs within this time.
///
/// Some servers send headers only with the first message (grpc/grpc-rust#515), so the load has to
/// begin without them.
const HEADERS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Idle streams that are opened on each connection before their echoes are awaited: what every server takes
/// at once.
const IDLE_STREAMS_AT_ONCE: usize = 100;

/// From one look for echoes of idle streams to the next: they come before anything is measured.
const IDLE_LOOK: std::time::Duration = std::time::Duration::from_millis(1);

/// The idle streams that are opened at once have to echo within this time.
const IDLE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What one shard has to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Of the thread.
    pub(crate) name: String,
    /// Whether it is the probe beside the load, which may be on the core of a shard: it takes no time from that
    /// by spinning, because its S alone is looked at.
    pub(crate) is_probe: bool,
    pub(crate) shard: usize,
    pub(crate) scenario: Arc<Scenario>,
    pub(crate) target: http::Uri,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) clock: Clock,
}

/// What the coordinator tells all shards, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Command {
    /// Open the connections and the streams of the load, and wait.
    Open,
    /// Open the idle streams, and wait.
    OpenIdleStreams,
    /// Open the idle connections, and wait.
    OpenIdleConnections,
    /// The timeline is set: begin.
    Begin,
    /// The timeline's end was moved to now.
    End,
    /// What has not come is not waited for.
    GiveUp,
}

/// What a shard tells the coordinator.
#[derive(Debug)]
pub(crate) enum Event {
    /// All connections stand and all streams were opened; so many have response headers.
    Opened { streams: usize, with_headers: usize },
    /// What was asked for last is open.
    OpenedIdle,
    /// Seconds that are over.
    Intervals(Vec<Interval>),
    /// The backlog is over its bound: no shard needs to go on.
    Unstable,
    /// Nothing is left to do.
    Done(Box<Figures>),
    /// The shard cannot go on.
    Failed(DriveError),
}

/// What a shard measured, besides its intervals.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) seen: Seen,
    pub(crate) lost: Lost,
    /// Messages of the measurement that left only after the window.
    pub(crate) sent_late: u64,
    pub(crate) streams_unfinished: u64,
    /// Echoes of the measurement by stream number.
    pub(crate) echoes: BTreeMap<usize, u64>,
    /// By stream number, the messages of the measurement that became due, where the pacer could not
    /// release all that its schedules hold; else empty.
    pub(crate) unfinished_schedules: BTreeMap<usize, u64>,
    /// When the last stream ended, if all did before the window was over.
    pub(crate) ended_early_at: Option<Nanos>,
}

/// Starts a shard's thread. Err: the system gives no thread.
pub(crate) fn spawn<C: Contract>(
    plan: Plan,
    commands: watch::Receiver<Command>,
    events: mpsc::UnboundedSender<Event>,
) -> std::io::Result<()> {
    thread::Builder::new().name(plan.name.clone()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (events_of_run, mut end) = (events.clone(), commands.clone());
        let ended = pin_to_core(&plan).and_then(|()| {
            let runtime = runtime.as_ref().map_err(|error| DriveError::Runtime(copy(error)))?;
            runtime.block_on(Shard::<C>::new(plan, events_of_run).run(commands))
        });
        // Nobody listens any more only if the coordinator gave up.
        let _ = events.send(match ended {
            Ok(figures) => Event::Done(Box::new(figures)),
            Err(error) => Event::Failed(error),
        });
        // All have ended when nobody can say anything any more, whatever they are kept for.
        drop(events);
        // Whoever watches threads finds this one until the coordinator has all that it needs.
        if let Ok(runtime) = runtime {
            runtime.block_on(async { while end.changed().await.is_ok() {} });
        }
    })?;
    Ok(())
}

fn copy(error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), error.to_string())
}

fn pin_to_core(plan: &Plan) -> Result<(), DriveError> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let cpus = &plan.scenario.cpus;
    if cpus.is_empty() {
        return Ok(());
    }
    let cpu = cpus[plan.shard % cpus.len()];
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(|source| DriveError::Pin { cpu, error: source.into() })
}

struct Shard<C> {
    plan: Plan,
    events: mpsc::UnboundedSender<Event>,
    recorder: Shared<Recorder>,
    flights: BTreeMap<usize, Shared<Flight>>,
    /// Those of idle streams.
    idle: Vec<Shared<Flight>>,
    calls: JoinSet<()>,
    pacer: JoinSet<Result<(), PacerError>>,
    paced_to_the_end: bool,
    filler: Option<Arc<[u8]>>,
    contract: std::marker::PhantomData<C>,
}

impl<C: Contract> Shard<C> {
    fn new(plan: Plan, events: mpsc::UnboundedSender<Event>) -> Self {
        let open_loop = matches!(plan.scenario.load, Load::OpenLoop { .. });
        let recorder = Shared::new(Recorder::new(plan.timeline.clone(), open_loop));
        let contract = std::marker::PhantomData;
        Shard {
            plan,
            events,
            recorder,
            flights: BTreeMap::new(),
            idle: Vec::new(),
            calls: JoinSet::new(),
            pacer: JoinSet::new(),
            paced_to_the_end: !open_loop,
            filler: None,
            contract,
        }
    }

    async fn run(mut self, mut commands: watch::Receiver<Command>) -> Result<Figures, DriveError> {
        let ended_early_at = match self.plan.scenario.client {
            ClientName::Inline => self.carry::<Client<InlineCall<C>>>(&mut commands).await?,
            ClientName::Tonic => self.carry::<Channel>(&mut commands).await?,
        };
        let waited = self.drain(&mut commands).await;
        Ok(self.figures(ended_early_at, waited))
    }

    /// Opens everything on connections of this kind, as commands ask for it, and loads. Out: when the
    /// window ended, if that was earlier than planned.
    async fn carry<K: Carrier<C>>(
        &mut self,
        commands: &mut watch::Receiver<Command>,
    ) -> Result<Option<Nanos>, DriveError> {
        let Scenario { connections, idle_connections, .. } = *self.plan.scenario;
        let opened = Arc::new(watch::Sender::new(0));
        let carriers = self.connect::<K>(connections).await?;
        self.open_streams(&carriers, &opened);
        self.headers(&opened).await?;
        await_command(commands, Command::OpenIdleStreams).await?;
        self.open_idle_streams(&carriers, &opened).await?;
        let _ = self.events.send(Event::OpenedIdle);
        await_command(commands, Command::OpenIdleConnections).await?;
        let idle = self.connect::<K>(idle_connections).await?;
        let _ = self.events.send(Event::OpenedIdle);
        await_command(commands, Command::Begin).await?;
        // From here on a connection ends with its last stream; the idle ones are held until the drain.
        drop(carriers);
        let ended = self.load(commands).await;
        drop(idle);
        ended
    }

    /// Opens this shard's part of so many connections, some at a time.
    async fn connect<K: Carrier<C>>(
        &mut self,
        connections: usize,
    ) -> Result<BTreeMap<usize, K>, DriveError> {
        let shards = self.plan.scenario.shards;
        let mut waiting = (self.plan.shard..connections).step_by(shards);
        let mut connecting = JoinSet::new();
        let mut connected = BTreeMap::new();
        loop {
            while connecting.len() < CONNECTING_MAX {
                let Some(connection) = waiting.next() else {
                    break;
                };
                let (connecting_to, clock) =
                    (K::connect(self.plan.target.clone()), self.plan.clock);
                connecting.spawn(async move {
                    let began = clock.now();
                    (connection, connecting_to.await, clock.now().since(began))
                });
            }
            let Some(joined) = connecting.join_next().await else {
                return Ok(connected);
            };
            let (connection, opened, took) = joined.expect("connecting does not panic");
            let opened =
                opened.map_err(|source| DriveError::Connect { connection, connections, source })?;
            self.recorder.borrow().seen.connect.record(took);
            connected.insert(connection, K::new(opened, &mut self.calls));
        }
    }

    /// What the client of a stream needs.
    fn parts(
        &mut self,
        stream: usize,
        flight: Shared<Flight>,
        opened: &Arc<watch::Sender<usize>>,
    ) -> Parts {
        let Scenario { payload_bytes, seed, .. } = *self.plan.scenario;
        let filler = self.filler.get_or_insert_with(|| filler(C::ALPHABET, payload_bytes, seed));
        Parts {
            stream,
            payloads: Payloads::new(C::ALPHABET, filler.clone(), seed, stream),
            flight,
            recorder: self.recorder.clone(),
            clock: self.plan.clock,
            opened: opened.clone(),
        }
    }

    /// Opens the streams of the load on this shard's connections.
    fn open_streams<K: Carrier<C>>(
        &mut self,
        carriers: &BTreeMap<usize, K>,
        opened: &Arc<watch::Sender<usize>>,
    ) {
        let scenario = self.plan.scenario.clone();
        for (connection, carrier) in carriers {
            for stream in (*connection..scenario.streams).step_by(scenario.connections) {
                let quota = scenario.quota(stream);
                let flight = Flight::new(self.plan.timeline.clone(), &scenario.load, quota);
                let flight = Shared::new(flight);
                self.flights.insert(stream, flight.clone());
                let parts = self.parts(stream, flight, opened);
                carrier.open(&self.plan, parts, &mut self.calls);
            }
        }
    }

    /// Opens the idle streams, some of each connection at a time, and waits for their echoes.
    async fn open_idle_streams<K: Carrier<C>>(
        &mut self,
        carriers: &BTreeMap<usize, K>,
        opened: &Arc<watch::Sender<usize>>,
    ) -> Result<(), DriveError> {
        let Scenario { streams, connections, idle_streams, .. } = *self.plan.scenario;
        for first in (0..idle_streams).step_by(connections * IDLE_STREAMS_AT_ONCE) {
            let end = idle_streams.min(first + connections * IDLE_STREAMS_AT_ONCE);
            let before = self.idle.len();
            for (connection, carrier) in carriers {
                for idle in (first + connection..end).step_by(connections) {
                    let now = self.plan.clock.now();
                    let flight = Shared::new(Flight::idle(self.plan.timeline.clone(), now));
                    self.idle.push(flight.clone());
                    let parts = self.parts(streams + idle, flight, opened);
                    carrier.open(&self.plan, parts, &mut self.calls);
                }
            }
            self.idle_echoes(before).await?;
        }
        Ok(())
    }

    /// Waits for the echo of each idle stream from the one in place `first` on.
    async fn idle_echoes(&self, first: usize) -> Result<(), DriveError> {
        let mut waiting: Vec<_> = self.idle[first..].iter().collect();
        let mut ended = false;
        let all = async {
            while !waiting.is_empty() {
                waiting.retain(|flight| {
                    let flight = flight.borrow();
                    ended |= flight.status.is_some();
                    flight.outstanding() > 0
                });
                sleep(IDLE_LOOK).await;
            }
        };
        let in_time = timeout(IDLE_PATIENCE, all).await.is_ok();
        if in_time && !ended {
            return Ok(());
        }
        let failure = self.recorder.borrow().seen.first_failure.take();
        let silent = || format!("no echo within {IDLE_PATIENCE:?}");
        Err(DriveError::NoIdleStream { failure: failure.unwrap_or_else(silent) })
    }

    /// Waits for the response headers of this shard's streams, as far as they come.
    async fn headers(&mut self, opened: &watch::Sender<usize>) -> Result<(), DriveError> {
        let mut progress = opened.subscribe();
        let streams = self.flights.len();
        while *progress.borrow_and_update() < streams {
            if timeout(HEADERS_PATIENCE, progress.changed()).await.is_err() {
                break;
            }
        }
        if self.flights.values().all(|flight| flight.borrow().status.is_some()) {
            let failure = self.recorder.borrow().seen.first_failure.take();
            return Err(DriveError::NoStream { failure: failure.unwrap_or_default() });
        }
        let with_headers = *progress.borrow();
        let _ = self.events.send(Event::Opened { streams, with_headers });
        Ok(())
    }

    /// Loads until the window ends. Out: when it ended, if that was earlier than planned.
    async fn load(
        &mut self,
        commands: &mut watch::Receiver<Command>,
    ) -> Result<Option<Nanos>, DriveError> {
        let Plan { clock, timeline, .. } = self.plan.clone();
        sleep_until(clock.instant(timeline.load_begin())).await;
        self.begin();
        let mut ticks = self.ticks();
        let window_end = sleep_until(clock.instant(timeline.window_end()));
        tokio::pin!(window_end);
        loop {
            tokio::select! {
                () = &mut window_end => return Ok(None),
                changed = commands.wait_for(|command| *command >= Command::End) => {
                    return changed.map(|_| None).map_err(|_| DriveError::Abandoned);
                }
                Some(paced) = self.pacer.join_next() => {
                    if !self.paced(paced.expect("the pacer does not panic")) {
                        return Ok(Some(clock.now()));
                    }
                }
                ended = self.calls.join_next() => match ended {
                    Some(ended) => ended.expect("a stream's task does not panic"),
                    // Streams notice the window's end by themselves, and may do so before the timer.
                    None => {
                        let now = clock.now();
                        return Ok((now < timeline.window_end()).then_some(now));
                    }
                },
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// Makes the first messages due; in open loop, starts the pacer.
    fn begin(&mut self) {
        let Plan { clock, timeline, scenario, is_probe, .. } = &self.plan;
        match scenario.load {
            Load::ClosedLoop { in_flight_max } => {
                for flight in self.flights.values() {
                    let mut flight = flight.borrow();
                    let now = clock.now();
                    for _ in 0..in_flight_max {
                        if !flight.queue(now, now).goes_on {
                            break;
                        }
                    }
                }
            }
            Load::OpenLoop { backlog_max, .. } => {
                let backlog_max = backlog_max.div_ceil(scenario.shards as u64);
                let paced = self.flights.iter().map(|(stream, flight)| Paced {
                    schedule: scenario.schedule(*stream).expect("an open loop has schedules"),
                    flight: flight.clone(),
                    lag: None,
                });
                let (paced, timeline, clock) = (paced.collect(), timeline.clone(), *clock);
                let manner =
                    if *is_probe { Manner::sleeping } else { Manner::spinning }(backlog_max);
                let recorder = self.recorder.clone();
                self.pacer
                    .spawn(async move { pace(paced, &recorder, &timeline, clock, manner).await });
            }
        }
    }

    /// Notes how the pacer ended; says whether it released all.
    fn paced(&mut self, ended: Result<(), PacerError>) -> bool {
        self.paced_to_the_end = ended.is_ok();
        if let Err(error) = ended {
            let mut recorder = self.recorder.borrow();
            if let PacerError::Unstable(unstable) = error {
                recorder.seen.unstable.get_or_insert(unstable);
                let _ = self.events.send(Event::Unstable);
            }
            recorder.failed(|| error.to_string());
        }
        self.paced_to_the_end
    }

    /// Sends what is still due, half-closes, and waits for the echoes and statuses to come. Out: for how long.
    async fn drain(&mut self, commands: &mut watch::Receiver<Command>) -> Nanos {
        let clock = self.plan.clock;
        let began = clock.now();
        let deadline = clock.instant(began + self.plan.scenario.drain_limit_ns);
        let mut ticks = self.ticks();
        let over = sleep_until(deadline);
        tokio::pin!(over);
        let mut finished = false;
        loop {
            // A pacer that is behind goes on: what was due in the window is sent late, not forgotten.
            if self.pacer.is_empty() && !finished {
                self.flights.values().chain(&self.idle).for_each(|flight| flight.borrow().finish());
                finished = true;
            }
            tokio::select! {
                ended = self.calls.join_next() => match ended {
                    Some(ended) => ended.expect("a stream's task does not panic"),
                    None => break,
                },
                Some(paced) = self.pacer.join_next() => {
                    self.paced(paced.expect("the pacer does not panic"));
                }
                () = &mut over => break,
                _ = commands.wait_for(|command| *command == Command::GiveUp) => break,
                _ = ticks.tick() => self.tick(),
            }
        }
        let waited = clock.now().since(began);
        self.pacer.shutdown().await;
        self.calls.shutdown().await;
        waited
    }

    /// Ticks at the seconds of the window.
    fn ticks(&self) -> tokio::time::Interval {
        let clock = self.plan.clock;
        let begin = self.plan.timeline.window_begin();
        let seconds = clock.now().since(begin).0 / Nanos::SECOND.0 + 1;
        let first = clock.instant(begin + Nanos(seconds * Nanos::SECOND.0));
        let mut ticks = interval_at(first, Nanos::SECOND.as_duration());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }

    fn tick(&mut self) {
        let mut recorder = self.recorder.borrow();
        recorder.roll(self.plan.clock.now());
        let _ = self.events.send(Event::Intervals(recorder.take_finished()));
    }

    /// `waited`: for what had not come when the window ended.
    fn figures(&mut self, ended_early_at: Option<Nanos>, waited: Nanos) -> Figures {
        let mut figures = Figures {
            seen: Seen::default(),
            lost: Lost::default(),
            sent_late: 0,
            streams_unfinished: 0,
            echoes: BTreeMap::new(),
            unfinished_schedules: BTreeMap::new(),
            ended_early_at,
        };
        for (stream, flight) in &self.flights {
            let flight = flight.borrow();
            let lost = flight.lost();
            figures.lost.unsent += lost.unsent;
            figures.lost.unanswered += lost.unanswered;
            figures.lost.shed += lost.shed;
            figures.sent_late += flight.sent_late;
            figures.streams_unfinished += u64::from(flight.status.is_none());
            figures.echoes.insert(*stream, flight.echoes);
            if !self.paced_to_the_end {
                figures.unfinished_schedules.insert(*stream, flight.counted);
            }
        }
        let idle = self.idle.iter().filter(|flight| flight.borrow().status.is_none()).count();
        figures.streams_unfinished += idle as u64;
        let unfinished = figures.streams_unfinished;
        if unfinished > 0 {
            self.recorder.borrow().failed(|| {
                format!("{unfinished} streams had not ended {waited} after the measurement: the server does not answer")
            });
        }
        let (intervals, seen) = self.recorder.borrow().take_rest();
        let _ = self.events.send(Event::Intervals(intervals));
        figures.seen = seen;
        figures
    }
}

fn metadata(scenario: &Scenario) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (key, value) in &scenario.headers {
        let key: AsciiMetadataKey = key.parse().expect("checked when typed");
        let value: AsciiMetadataValue = value.parse().expect("checked when typed");
        metadata.insert(key, value);
    }
    metadata
}

/// The head of every call on the inline client.
fn request<C: Contract>(target: &http::Uri, scenario: &Scenario) -> Request<()> {
    let mut parts = target.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(C::PATH));
    let uri = http::Uri::from_parts(parts).expect("a target has scheme and authority");
    let user_agent = concat!("bidi-echo-loadgen/", env!("CARGO_PKG_VERSION"));
    let mut request = Request::post(uri)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("user-agent", user_agent);
    for (key, value) in &scenario.headers {
        request = request.header(key, value);
    }
    request.body(()).expect("checked when typed")
}

/// Waits until `wanted` or a later command comes.
async fn await_command(
    commands: &mut watch::Receiver<Command>,
    wanted: Command,
) -> Result<(), DriveError> {
    let come = commands.wait_for(|command| *command >= wanted).await;
    come.map(drop).map_err(|_| DriveError::Abandoned)
}

type Connected<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A connection of one of the clients. It ends when it is dropped and its last stream is over.
trait Carrier<C: Contract>: Sized {
    /// What connecting gives.
    type Socket: Send + 'static;

    /// Opens a connection. Err: there is no server, or none that answers in time.
    fn connect(target: http::Uri)
    -> impl Future<Output = Connected<Self::Socket>> + Send + 'static;

    /// Carries streams on it; tasks that this takes are among `calls`.
    fn new(socket: Self::Socket, calls: &mut JoinSet<()>) -> Self;

    /// Opens a stream.
    fn open(&self, plan: &Plan, parts: Parts, calls: &mut JoinSet<()>);
}

/// On the inline client one task carries all streams of a connection.
impl<C: Contract> Carrier<C> for Client<InlineCall<C>> {
    type Socket = TcpStream;

    async fn connect(target: http::Uri) -> Connected<TcpStream> {
        let host = target.host().unwrap_or_default();
        // An IPv6 address stands in brackets in a URI, and without them everywhere else.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = (host, target.port_u16().unwrap_or(80));
        let tcp = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await??;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    fn new(tcp: TcpStream, calls: &mut JoinSet<()>) -> Self {
        let limits = client_limits(FLOW_WINDOW_BYTES.stream, FLOW_WINDOW_BYTES.connection);
        let (client, carried) = Client::new(tcp, limits);
        // How it ended, its streams were told.
        calls.spawn(async move { _ = carried.await });
        client
    }

    fn open(&self, plan: &Plan, parts: Parts, _: &mut JoinSet<()>) {
        let request = request::<C>(&plan.target, &plan.scenario);
        if let Err(mut refused) = Client::open(self, request, InlineCall::new(parts)) {
            let now = plan.clock.instant(plan.clock.now()).into_std();
            refused.end(Err(&BodyError::ConnectionLost), now);
        }
    }
}

/// On tonic's client each stream has a task.
impl<C: Contract> Carrier<C> for Channel {
    type Socket = Channel;

    async fn connect(target: http::Uri) -> Connected<Channel> {
        let endpoint = Endpoint::from(target)
            .tcp_nodelay(true)
            .initial_stream_window_size(FLOW_WINDOW_BYTES.stream)
            .initial_connection_window_size(FLOW_WINDOW_BYTES.connection)
            .connect_timeout(CONNECT_LIMIT);
        Ok(endpoint.connect().await?)
    }

    fn new(channel: Channel, _: &mut JoinSet<()>) -> Self {
        channel
    }

    fn open(&self, plan: &Plan, parts: Parts, calls: &mut JoinSet<()>) {
        let (channel, headers) = (self.clone(), metadata(&plan.scenario));
        calls.spawn(stream::run::<C>(Call { parts, channel, headers }));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::drive::contract::Echo;
    use crate::report::example;

    #[tokio::test]
    async fn a_shard_that_is_kept_for_its_figures_says_nothing_more() {
        let (_commands, receiver) = watch::channel(Command::Open);
        let (sender, mut events) = mpsc::unbounded_channel();
        let plan = Plan {
            name: "shard-0".to_owned(),
            is_probe: false,
            shard: 0,
            scenario: Arc::new(example::closed_loop().scenario),
            // Nobody can listen there.
            target: "http://127.0.0.1:0".parse().unwrap(),
            timeline: Arc::new(Timeline::unknown()),
            clock: Clock::start(),
        };
        spawn::<Echo>(plan, receiver, sender).unwrap();
        assert!(matches!(events.recv().await, Some(Event::Failed(DriveError::Connect { .. }))));
        let ended = timeout(Duration::from_secs(60), events.recv()).await;
        assert!(ended.expect("nobody can say anything any more").is_none());
    }
}

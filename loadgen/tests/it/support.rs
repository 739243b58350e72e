//! Starts servers and loadgen for the tests; everything that was started ends with its guard.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bidi_echo::config::{Config, Placement, Transport};
use bidi_echo::proto::echo::EchoMessage;
use bidi_echo::proto::echo::echo_server::{Echo, EchoServer};
use bidi_echo::serve::{Summary, serve};
use clap::ValueEnum;
use futures_util::Stream;
use loadgen::scenario::ClientName;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

/// Longer than any test's program runs, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The load of every search: what a null echo carries of one takes seconds to find, and is remembered. What only an
/// open loop has is a search's too.
pub(crate) const SEARCHED: [&str; 6] =
    ["--streams", "4", "--arrivals", "poisson", "--blocked", "shed"];

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// Held by a test that takes a core from all others, and by those that would notice.
pub(crate) fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Time that the threads of a process were ready and without a core (`schedstat`).
pub(crate) fn run_delay(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let delay = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        stat.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(delay).sum())
}

/// Threads of this process that keep a core busy until this is dropped.
pub(crate) struct Busy(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Busy {
    pub(crate) fn on(cpu: usize, threads: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let spin = || {
            let over = over.clone();
            std::thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu);
                sched_setaffinity(None, &only).unwrap();
                while !over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..threads).map(|_| spin()).collect();
        Busy(over, threads)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Two cores of this machine, or `None`: then a suite that pins cannot run here.
pub(crate) fn two_cpus() -> Option<[usize; 2]> {
    let cpus = ::loadgen::harness::provenance::cpus();
    Some([*cpus.first()?, *cpus.last()?]).filter(|[first, last]| first != last)
}

/// Runs loadgen with these arguments to its end.
pub(crate) fn loadgen(args: &[&str]) -> Output {
    Running::start(args).finish()
}

/// Runs loadgen and parses the record on its stdout; also its exit code.
pub(crate) fn record(args: &[&str]) -> (i32, Value) {
    parsed(&loadgen(&[args, &["--json", "-"]].concat()))
}

/// Whether a machine that other tests use, or that is kept from its cores, left nothing to be judged: it says so then.
pub(crate) fn is_kept_from_judging(output: &Output) -> bool {
    if output.status.code() != Some(3) {
        return false;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let words =
        ["runs were invalid: given up", "invalid, not counted", "loadgen carried no rate in"];
    assert!(words.iter().any(|word| said.contains(word)), "{said}");
    true
}

/// A flag's value as it is typed.
pub(crate) fn typed(value: impl ValueEnum) -> String {
    value.to_possible_value().unwrap().get_name().to_owned()
}

/// What carries the streams of a server under test: ours with either placement, and tonic's.
pub(crate) const INLINE: Transport = Transport::Inline(Placement::Inline);
pub(crate) const TASK: Transport = Transport::Inline(Placement::Task);
pub(crate) const TONIC: Transport = Transport::Tonic;

/// What carries HTTP/2 on either side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) server: Transport,
    pub(crate) client: ClientName,
}

impl Pair {
    /// Runs loadgen with `args` against the echo server, and ends that.
    ///
    /// Out: loadgen's exit code and record, and what the server counted.
    pub(crate) fn run(self, args: &[&str]) -> (i32, Value, Summary) {
        let server = echo_server(Config { transport: self.server, ..Config::default() });
        let target = ["--target", &server.target, "--client", &typed(self.client)];
        let (exit, record) = record(&[&target, args].concat());
        (exit, record, server.stop())
    }
}

/// The record that a run with `--json -` printed.
pub(crate) fn parsed(output: &Output) -> (i32, Value) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let record = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no record ({error}); stderr:\n{stderr}"));
    (output.status.code().expect("no signal"), record)
}

/// A loadgen that runs.
pub(crate) struct Running {
    child: Option<Child>,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        let child = Command::new(LOADGEN)
            .args(args)
            // What it remembers of this machine is not for whoever owns it.
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running { child: Some(child) }
    }

    /// Reads stderr until a line begins with `beginning`.
    pub(crate) fn wait_for(&mut self, beginning: &str) {
        assert!(self.says(beginning), "loadgen never said {beginning:?}");
    }

    /// The same; false if it ends first.
    pub(crate) fn says(&mut self, beginning: &str) -> bool {
        let stderr = self.child.as_mut().unwrap().stderr.as_mut().unwrap();
        // Byte by byte: what follows the line is for whoever reads next.
        let mut line = Vec::new();
        let mut byte = [0];
        while stderr.read(&mut byte).unwrap() > 0 {
            match byte[0] {
                b'\n' if line.starts_with(beginning.as_bytes()) => return true,
                b'\n' => line.clear(),
                other => line.push(other),
            }
        }
        false
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for the end; a program that hangs fails the test instead of the test run.
    pub(crate) fn finish(mut self) -> Output {
        let child = self.child.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let (done, finished) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if finished.recv_timeout(PATIENCE).is_err() {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let output = child.wait_with_output().unwrap();
        let _ = done.send(());
        watchdog.join().unwrap();
        assert!(output.status.code().is_some(), "loadgen hung: {output:?}");
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// loadgen's own server in a process of its own, which can be frozen and killed.
pub(crate) struct ServerProcess {
    child: Child,
    _stdin: ChildStdin,
    pub(crate) target: String,
}

impl ServerProcess {
    pub(crate) fn start(transport: Transport) -> Self {
        let mut child = Command::new(LOADGEN)
            .args(["embedded-server", "--transport", transport.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        ServerProcess { child, _stdin: stdin, target: format!("http://{}", address.trim()) }
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on a thread of this process; [`InProcess::stop`] gives what it returned.
pub(crate) struct InProcess<T> {
    pub(crate) target: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> InProcess<T> {
    fn start<F>(run: impl FnOnce(TcpListener, oneshot::Receiver<()>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = T>,
    {
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel::<SocketAddr>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                run(listener, stopped).await
            })
        });
        let target = format!("http://{}", address.recv().unwrap());
        InProcess { target, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn stop(mut self) -> T {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl<T> Drop for InProcess<T> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The project's own server, with its counters at the end.
pub(crate) fn echo_server(config: Config) -> InProcess<Summary> {
    InProcess::start(|listener, stopped| async {
        let stopped = async {
            let _ = stopped.await;
        };
        serve(listener, config, stopped).await.unwrap()
    })
}

pub(crate) type Replies = Pin<Box<dyn Stream<Item = Result<EchoMessage, Status>> + Send>>;

/// How a server answers a stream: late, wrongly, or not at all.
pub(crate) type Behaviour = fn(Streaming<EchoMessage>) -> BoxFuture<Result<Replies, Status>>;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Behaving(Behaviour);

#[tonic::async_trait]
impl Echo for Behaving {
    type BidiStream = Replies;

    async fn bidi(
        &self,
        request: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<Replies>, Status> {
        (self.0)(request.into_inner()).await.map(Response::new)
    }
}

/// A server of `echo.v1` that behaves as told.
pub(crate) fn behaving(behaviour: Behaviour) -> InProcess<()> {
    InProcess::start(move |listener, stopped| async move {
        let served = tonic::transport::Server::builder()
            .add_service(EchoServer::new(Behaving(behaviour)))
            .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener));
        tokio::select! {
            served = served => served.unwrap(),
            _ = stopped => {}
        }
    })
}

/// A gRPC server that offers nothing.
pub(crate) fn without_services() -> InProcess<()> {
    InProcess::start(|listener, stopped| async move {
        let served = tonic::transport::Server::builder()
            .add_routes(tonic::service::Routes::default())
            .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener));
        tokio::select! {
            served = served => served.unwrap(),
            _ = stopped => {}
        }
    })
}

/// A listener that sends `answer` to whatever it gets, and then nothing more.
pub(crate) fn answering(answer: &'static [u8]) -> InProcess<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    InProcess::start(move |listener, stopped| async move {
        let answering = async {
            let mut open = Vec::new();
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let _ = tcp.read(&mut [0; 1024]).await;
                tcp.write_all(answer).await.unwrap();
                open.push(tcp);
            }
        };
        tokio::select! {
            () = answering => {}
            _ = stopped => {}
        }
    })
}

/// A whole number in the record, by its path.
pub(crate) fn number(record: &Value, pointer: &str) -> u64 {
    record.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer}"))
}

/// Waits for the moment at which something happened `after` ago.
pub(crate) fn sleep_until(since: Instant, after: Duration) {
    std::thread::sleep((since + after).saturating_duration_since(Instant::now()));
}

//! The real binary, as a process that does not outlive its test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bidi_echo::config::Transport;
use rustix::process::{Pid, Signal, kill_process};

use super::DEADLINE;

pub const PATH: &str = env!("CARGO_BIN_EXE_bidi-echo");

/// A running server.
pub struct Binary {
    pub address: SocketAddr,
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Binary {
    /// Starts it on a free port of loopback; `flags` come after those that choose the transport.
    pub fn start(transport: Transport, flags: &[&str]) -> Self {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0"]).args(chosen(transport)).args(flags);
        Self::from_command(command)
    }

    /// The same, but nobody reads its log beyond the line that says where it listens.
    pub fn start_unheard(transport: Transport, flags: &[&str]) -> Self {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0"]).args(chosen(transport)).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let log = Arc::new(Log::default());
        let mut binary = Binary { address: ([127, 0, 0, 1], 0).into(), child, log };
        for line in lines {
            binary.log.lines.lock().unwrap().push(line);
            if binary.log().iter().any(|line| line.contains("listen=")) {
                break;
            }
        }
        binary.address = binary.address_after("listen");
        binary
    }

    /// Runs `command`, which must start the server, until it says where it listens.
    pub fn from_command(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Log::default());
        let logged = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                logged.lines.lock().unwrap().push(line);
                logged.grown.notify_all();
            }
        });
        let mut binary = Binary { address: ([127, 0, 0, 1], 0).into(), child, log };
        binary.address = binary.address_after("listen");
        binary
    }

    /// The address that the log gives as `name=ADDRESS`, or in JSON as `"name":"ADDRESS"`.
    pub fn address_after(&self, name: &str) -> SocketAddr {
        let (text, json) = (format!("{name}="), format!("\"{name}\":\""));
        let line = self.line(|line| line.contains(&text) || line.contains(&json));
        let after = line.split_once(&text).or_else(|| line.split_once(&json)).unwrap().1;
        after.split([' ', '"']).next().unwrap().parse().unwrap()
    }

    /// The first line of the log for which `wanted` holds, once it is there.
    pub fn line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let missing = |lines: &mut Vec<String>| !lines.iter().any(|line| wanted(line));
        let lines = self.log.lines.lock().unwrap();
        let (lines, _) = self.log.grown.wait_timeout_while(lines, DEADLINE, missing).unwrap();
        let found = lines.iter().find(|line| wanted(line));
        found.unwrap_or_else(|| panic!("no such line in the log: {lines:#?}")).clone()
    }

    /// All that was logged until now.
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().clone()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// CPU time that the process used until now, in clock ticks (100 a second).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        ticks(11) + ticks(12)
    }

    /// Resident memory of the process now.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most that it ever was.
    pub fn resident_bytes_max(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        1024 * line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    }

    /// Waits for the process to end by itself.
    pub async fn exit(mut self) -> Exit {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < DEADLINE, "does not exit; log: {:#?}", self.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let at = Instant::now();
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        Exit { status, at, stdout }
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the process ended.
pub struct Exit {
    pub status: ExitStatus,
    pub at: Instant,
    pub stdout: String,
}

impl Exit {
    /// The summary's `name=value` pairs; stdout must be this one line.
    pub fn summary(&self) -> HashMap<String, u64> {
        let lines: Vec<&str> = self.stdout.lines().collect();
        let [line] = lines[..] else { panic!("not one line: {:?}", self.stdout) };
        let numbers = line.split_whitespace().filter_map(|word| word.split_once('='));
        numbers.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }
}

/// The flags that choose `transport`.
pub fn chosen(transport: Transport) -> Vec<&'static str> {
    let placement = transport.placement().name();
    match transport {
        Transport::Inline(_) => vec!["--transport", "inline", "--placement", placement],
        Transport::Tonic => vec!["--transport", "tonic"],
    }
}

/// The binary, with an environment that sets no flag.
pub fn command() -> Command {
    let mut command = Command::new(PATH);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BIDI_ECHO_")) {
        command.env_remove(name);
    }
    command
}

//! A process that loadgen starts: on given cores from its first instruction, within a limit of time,
//! and never left behind.
//!
//! In: a command. Out: its exit code, or its last words. It leads a group of its own, so that Ctrl-C
//! reaches loadgen alone, and so that a build's helpers end with it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::timeout;

/// What is read of a log for its last words.
const LAST_BYTES: i64 = 4 << 10;

/// A running process; dropped, it is killed together with its group.
#[derive(Debug)]
pub struct Child {
    process: tokio::process::Child,
    log: File,
}

impl Child {
    /// Starts `command` without input; what it says goes to its log.
    pub fn start(command: Command, cpus: &[usize]) -> io::Result<Self> {
        let log = tempfile::tempfile()?;
        let stdout = log.try_clone()?;
        Self::spawn(command, Stdio::null(), stdout.into(), log, cpus)
    }

    /// Starts `command` with pipes to its stdin and from its stdout; stderr goes to its log.
    pub fn start_piped(
        command: Command,
        cpus: &[usize],
    ) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let log = tempfile::tempfile()?;
        let mut child = Self::spawn(command, Stdio::piped(), Stdio::piped(), log, cpus)?;
        let stdin = child.process.stdin.take().expect("piped");
        let stdout = child.process.stdout.take().expect("piped");
        Ok((child, stdin, stdout))
    }

    fn spawn(
        mut command: Command,
        stdin: Stdio,
        stdout: Stdio,
        log: File,
        cpus: &[usize],
    ) -> io::Result<Self> {
        command.stdin(stdin).stdout(stdout).stderr(log.try_clone()?).process_group(0);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let process = on_cores(cpus, || command.spawn())??;
        Ok(Child { process, log })
    }

    /// Its process id, unless it was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Whether it is not there any more.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for its end. Err: `TimedOut` after `limit`; then the process is killed.
    pub async fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        if let Ok(ended) = timeout(limit, self.process.wait()).await {
            return ended;
        }
        self.kill();
        self.process.wait().await?;
        let reason = format!("did not end within {limit:?} and was killed");
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    }

    /// Why it failed, by the end of its log: the first line there that begins with an error, else
    /// the last line.
    pub fn last_words(&mut self) -> String {
        let mut tail = Vec::new();
        let _ =
            self.log.seek(SeekFrom::End(-LAST_BYTES)).or_else(|_| self.log.rewind().map(|()| 0));
        let _ = self.log.read_to_end(&mut tail);
        let tail = String::from_utf8_lossy(&tail).to_string();
        let lines = || tail.lines().map(str::trim).filter(|line| !line.is_empty());
        let is_error =
            |line: &&str| line.trim_start_matches('[').to_lowercase().starts_with("error");
        let words = lines().find(is_error).or_else(|| lines().next_back());
        words.unwrap_or("it said nothing").to_owned()
    }

    fn kill(&mut self) {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets this process be killed when `parent`, whose main thread started it, is gone, however that came about (prctl(2),
/// PR_SET_PDEATHSIG): nobody is left to stop it, or to tell what became of its server. Err: it is gone already.
pub fn end_with(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match getppid().map(|pid| pid.as_raw_nonzero().get()) {
        Some(pid) if u32::try_from(pid) == Ok(parent) => Ok(()),
        _ => Err(io::Error::other(format!("the process {parent} that started this is gone"))),
    }
}

/// Does `start` with this thread on `cpus`: a process inherits the cores of the thread that starts
/// it, so it never runs elsewhere, and its runtime counts the right number of cores.
pub(super) fn on_cores<T>(cpus: &[usize], start: impl FnOnce() -> T) -> io::Result<T> {
    if cpus.is_empty() {
        return Ok(start());
    }
    let usual = sched_getaffinity(None)?;
    let mut only = CpuSet::new();
    cpus.iter().for_each(|cpu| only.set(*cpu));
    sched_setaffinity(None, &only)?;
    let started = start();
    sched_setaffinity(None, &usual)?;
    Ok(started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::provenance;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_process_begins_on_its_cores_and_this_one_keeps_its_own() {
        let usual = provenance::cpus();
        let last = *usual.last().unwrap();
        let script = format!("grep -q 'Cpus_allowed_list:.{last}$' /proc/self/status");
        let mut child = Child::start(shell(&script), &[last]).unwrap();
        assert!(child.wait(Duration::from_secs(10)).await.unwrap().success());
        assert_eq!(provenance::cpus(), usual);
    }

    #[tokio::test]
    async fn a_process_that_takes_too_long_is_killed_with_its_helpers() {
        let mut child = Child::start(shell("sleep 600 & echo $!; wait"), &[]).unwrap();
        let error = child.wait(Duration::from_millis(200)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let helper = child.last_words();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{helper}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let begin = std::time::Instant::now();
        while !gone() {
            assert!(begin.elapsed() < Duration::from_secs(10), "{helper} still runs");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_last_words_are_the_error_or_else_the_last_line() {
        for (script, code, words) in [
            ("echo first; echo 'no, last' >&2; echo; exit 3", 3, "no, last"),
            ("echo first; echo 'error: no' >&2; echo 'see --help'; exit 2", 2, "error: no"),
            ("exit 0", 0, "it said nothing"),
        ] {
            let mut child = Child::start(shell(script), &[]).unwrap();
            assert_eq!(child.wait(Duration::from_secs(10)).await.unwrap().code(), Some(code));
            assert_eq!(child.last_words(), words);
        }
    }
}

//! Keeps cores from falling asleep: a thread on each that is always ready and gives way to all others.
//!
//! A core with nothing to do halts, and whoever is to run there next waits for it: some microseconds for a deep
//! sleep of the hardware, milliseconds on a virtual machine whose host has given the core away meanwhile. That
//! is in every L, W and S of a load that leaves cores idle, and says nothing of server or generator. The thread's policy is
//! `SCHED_IDLE` (sched(7)), which needs no privilege: whoever wakes takes its core at once.
//!
//! In a process of its own, so that its CPU time is nobody else's, and in the session of those that it makes room
//! for: where the kernel shares a core out by sessions first (`sched_autogroup_enabled`), another session's servers would have to
//! share it.

use std::io::{self, Write};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdin;
use tokio::time::timeout;

use super::child::Child;
use super::server::stdin_ends;

/// The verb that makes this program do it.
pub const VERB: &str = "keep-awake";

/// Time to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it says when its threads are there.
const READY: &str = "awake";

/// Cores that are kept awake until this is dropped.
#[derive(Debug, Default)]
pub struct Awake {
    cpus: Vec<usize>,
    /// None, if there is no core to be kept awake.
    process: Option<(Child, ChildStdin)>,
}

/// Why cores cannot be kept awake.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the cores {cpus:?} awake: {reason}; leave --keep-awake (keep_awake) out")]
pub struct AwakeError {
    cpus: Vec<usize>,
    reason: String,
}

impl Awake {
    /// Keeps these cores awake, each once. None: nothing is done.
    pub async fn on(cpus: &[usize]) -> Result<Self, AwakeError> {
        let cpus = in_order(cpus);
        if cpus.is_empty() {
            return Ok(Awake::default());
        }
        let process = start(&cpus).await;
        let process = process
            .map_err(|reason| AwakeError { cpus: cpus.clone(), reason: reason.to_string() })?;
        Ok(Awake { cpus, process: Some(process) })
    }

    /// Keeps these awake from now on, and no others; anew, if what did it has ended.
    pub async fn change_to(&mut self, cpus: &[usize]) -> Result<(), AwakeError> {
        let has_ended = self.process.as_mut().is_some_and(|(child, _)| child.has_ended());
        if has_ended || self.cpus != in_order(cpus) {
            *self = Awake::default();
            *self = Awake::on(cpus).await?;
        }
        Ok(())
    }

    /// Which they are, in order.
    pub fn cpus(&self) -> &[usize] {
        &self.cpus
    }
}

/// Each once.
fn in_order(cpus: &[usize]) -> Vec<usize> {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

async fn start(cpus: &[usize]) -> io::Result<(Child, ChildStdin)> {
    let mut command = Command::new(std::env::current_exe()?);
    let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
    command.args([VERB, &cpus.join(",")]);
    let (mut child, stdin, stdout) = Child::start_piped(command, &[])?;
    let mut line = String::new();
    let mut said = BufReader::new(stdout);
    match timeout(PATIENCE, said.read_line(&mut line)).await {
        Ok(Ok(_)) if line.trim() == READY => Ok((child, stdin)),
        _ => Err(io::Error::other(child.last_words())),
    }
}

/// The role: keeps these cores awake until stdin ends.
pub fn keep_awake_until_stdin_ends(cpus: &[usize]) -> anyhow::Result<()> {
    let (ready, all_ready) = mpsc::channel();
    for cpu in cpus.iter().copied() {
        let ready = ready.clone();
        thread::Builder::new().name(format!("awake-{cpu}")).spawn(move || {
            let given_way = give_way(cpu);
            let failed = given_way.is_err();
            _ = ready.send(given_way);
            if failed {
                return;
            }
            // It never yields: the kernel takes the core away from it whenever somebody wakes. In closed loops of 1,000 streams, whose
            // cores are full, a shard waited for its core for 0.17 to 0.41 % of the window with it, 0.28 to 0.76 % without; with a yield
            // each microsecond for over 2 %, so that every such run was invalid. Medians of what they carried are 8 and 14 % lower
            // with it, and the runs overlap (results/2026-11-29-awake). The processor's hint leaves a sibling thread most of what they share.
            loop {
                std::hint::spin_loop();
            }
        })?;
    }
    for _ in cpus {
        all_ready.recv()??;
    }
    let mut stdout = io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(stdin_ends());
    Ok(())
}

/// Makes this thread one of this core that all others go before.
fn give_way(cpu: usize) -> anyhow::Result<()> {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
        .map_err(|error| anyhow::anyhow!("no SCHED_IDLE for a thread: {error}"))?;
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_ended_is_not_taken_for_what_keeps_cores_awake() {
        let ended = Child::start_piped(Command::new("true"), &[]).unwrap();
        let (mut child, stdin, _) = ended;
        child.wait(PATIENCE).await.unwrap();
        let mut awake = Awake { cpus: vec![0], process: Some((child, stdin)) };
        // This program is the tests', which know no such verb: that it is asked is seen by its failure.
        assert_eq!(awake.change_to(&[0]).await.unwrap_err().cpus, [0]);
    }
}

//! Who else ran on this machine while the load did: the processes, the kernel's own threads among them, that
//! took the most CPU time.
//!
//! A shard thread that waited for its core says for how long, not for whom. Nowhere else but on Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use procfs::process::{Process, all_processes};

use super::awake;
use super::usage::Watched;
use crate::record::Bystander;

/// So many are named at most.
const NAMED_MAX: usize = 3;

/// Whoever took less of one core is not: half of what a shard may wait for its core.
const CORE_SHARE_MIN: f64 = 0.01;

/// Nor whoever took fewer of the kernel's ticks: the first of them may have been nearly over when the count began.
const TICKS_MIN: u64 = 2;

/// The kernel gives ids again; with the time of their begin they are unique (proc_pid_stat(5)).
type Id = (i32, u64);

/// Every process at one moment.
#[derive(Debug, Default)]
struct Seen(BTreeMap<Id, Used>);

/// What one has used since it began.
#[derive(Debug)]
struct Used {
    name: String,
    ticks: u64,
}

/// Watches all processes of this machine but this one.
#[derive(Debug)]
pub struct Bystanders {
    begin: Seen,
    began: Instant,
}

impl Bystanders {
    /// Counts from now. Reads a file of each process: not while anything is measured.
    pub fn begin() -> Self {
        Bystanders { began: Instant::now(), begin: Seen::now() }
    }

    /// Who took the most since then, most first, but the server and what keeps cores awake; none that took less than
    /// a hundredth of one core.
    pub fn busiest(&self, server: Option<&Watched>) -> Vec<Bystander> {
        let servers: BTreeSet<i32> = server.into_iter().flat_map(ids).collect();
        let others = self
            .ranked()
            .into_iter()
            .filter(|((pid, _), _)| !servers.contains(pid) && !gives_way(*pid));
        others.map(|(_, bystander)| bystander).take(NAMED_MAX).collect()
    }

    fn ranked(&self) -> Vec<(Id, Bystander)> {
        ranked(&self.begin, Seen::now(), procfs::ticks_per_second(), self.began.elapsed())
    }
}

impl Seen {
    fn now() -> Self {
        let this = std::process::id();
        let others = all_processes().into_iter().flatten().filter_map(|process| {
            let process = process.ok().filter(|it| u32::try_from(it.pid) != Ok(this))?;
            let stat = process.stat().ok()?;
            // Anybody may name a thread as they like.
            let name = stat.comm.replace(char::is_control, " ");
            let used = Used { name, ticks: stat.utime + stat.stime };
            Some(((stat.pid, stat.starttime), used))
        });
        Seen(others.collect())
    }
}

/// Those that took a hundredth of a core at least, most first. Who was not there at the begin began since.
fn ranked(begin: &Seen, end: Seen, ticks_per_s: u64, passed: Duration) -> Vec<(Id, Bystander)> {
    let passed_ticks = passed.as_secs_f64() * ticks_per_s as f64;
    let shares = end.0.into_iter().filter_map(|(id, used)| {
        let before = begin.0.get(&id).map_or(0, |before| before.ticks);
        let ticks = used.ticks.saturating_sub(before);
        let core_share = ticks as f64 / passed_ticks;
        let counts = ticks >= TICKS_MIN && core_share >= CORE_SHARE_MIN;
        counts.then_some((id, Bystander { name: used.name, core_share }))
    });
    let mut busy: Vec<_> = shares.collect();
    busy.sort_by(|(_, a), (_, b)| b.core_share.total_cmp(&a.core_share));
    busy
}

fn ids(server: &Watched) -> impl Iterator<Item = i32> {
    let children = server.children().into_iter().filter_map(|pid| i32::try_from(pid).ok());
    children.chain([server.pid()])
}

fn gives_way(pid: i32) -> bool {
    let line = Process::new(pid).and_then(|process| process.cmdline());
    line.is_ok_and(|words| keeps_awake(&words))
}

/// Whether this is what keeps cores awake, whose threads take what nobody else wants.
fn keeps_awake(command_line: &[String]) -> bool {
    command_line.get(1).is_some_and(|verb| verb == awake::VERB)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn seen(processes: &[(Id, &str, u64)]) -> Seen {
        let used = |(id, name, ticks): &(Id, &str, u64)| {
            (*id, Used { name: (*name).to_owned(), ticks: *ticks })
        };
        Seen(processes.iter().map(used).collect())
    }

    #[test]
    fn they_are_named_by_what_they_took_since_the_begin() {
        let begin = seen(&[((1, 0), "init", 900), ((7, 3), "kdamond.0", 50), ((8, 4), "ended", 9)]);
        let end = seen(&[
            ((1, 0), "init", 901),
            ((7, 3), "kdamond.0", 74),
            // The id of one that has ended, for another.
            ((8, 9), "rustc", 400),
            ((9, 9), "idle", 0),
        ]);
        let found = ranked(&begin, end, 100, Duration::from_secs(10));
        let named: Vec<_> = found.iter().map(|(_, it)| (it.name.as_str(), it.core_share)).collect();
        assert_eq!(named, [("rustc", 0.4), ("kdamond.0", 0.024)]);
        // In a short run a single tick would be a share.
        let end = seen(&[((1, 0), "init", 901), ((7, 3), "kdamond.0", 52)]);
        let found = ranked(&begin, end, 100, Duration::from_secs(1));
        let named: Vec<_> = found.iter().map(|(_, it)| it.name.as_str()).collect();
        assert_eq!(named, ["kdamond.0"]);
    }

    #[test]
    fn one_that_is_busy_is_seen() {
        let bystanders = Bystanders::begin();
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let server = Watched::of(child.id()).unwrap();
        let pid = server.pid();
        let begin = Instant::now();
        let found = loop {
            let found = bystanders.ranked().into_iter().find(|((id, _), _)| *id == pid);
            if let Some((_, bystander)) = found {
                break bystander;
            }
            assert!(begin.elapsed().as_secs() < 60, "not seen");
        };
        assert_eq!(found.name, "sh");
        assert!(ids(&server).eq([pid]), "the server, and no children");
        assert!(!gives_way(pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_keeps_cores_awake_is_told_by_its_verb() {
        let line = |words: &[&str]| {
            keeps_awake(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert!(line(&["loadgen", "keep-awake", "0,1"]));
        assert!(!line(&["loadgen", "embedded-server"]));
        assert!(!line(&["keep-awake"]));
        assert!(!line(&[]), "one of the kernel's threads");
    }
}

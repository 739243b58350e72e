//! What the kernel says of the generator's threads and of the machine around them, over the window;
//! nowhere else but on Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use procfs::process::Process;

use super::provenance;
use crate::record::{Disturbance, ThreadUsage};
use crate::units::Nanos;

/// Shard threads by their name, and the machine's counters, at one moment.
#[derive(Clone, Debug, Default)]
struct Counters {
    /// By thread id: the kernel's names are not unique.
    shards: BTreeMap<i32, ThreadUsage>,
    /// Of the watched cores.
    times: Option<Times>,
    /// Of those that are to be kept awake.
    awake: Option<Times>,
    throttled: Option<Nanos>,
    tcp_retransmits: Option<u64>,
}

/// What some cores did with their time, added up; in the kernel's ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    stolen: u64,
    idle: u64,
    passed: u64,
}

impl Times {
    fn since(self, begin: Times) -> Times {
        Times {
            stolen: self.stolen.saturating_sub(begin.stolen),
            idle: self.idle.saturating_sub(begin.idle),
            passed: self.passed.saturating_sub(begin.passed).max(1),
        }
    }
}

/// Whose times count.
#[derive(Clone, Debug, Default)]
struct Cores {
    /// Their stolen time.
    used: BTreeSet<usize>,
    /// Their idle time.
    awake: BTreeSet<usize>,
}

/// Watches this process's shard threads and its machine.
#[derive(Debug)]
pub struct Disturbances {
    cores: Cores,
    begin: Counters,
    end: Counters,
}

impl Disturbances {
    /// Of the cores that this process may use, and of its server's; `awake`: those that somebody keeps awake.
    pub fn of(server_cores: impl IntoIterator<Item = usize>, awake: &[usize]) -> Self {
        let used = provenance::cpus().into_iter().chain(server_cores).collect();
        let cores = Cores { used, awake: awake.iter().copied().collect() };
        Disturbances { cores, begin: Counters::default(), end: Counters::default() }
    }

    /// Counts from now; the shard threads are there.
    pub fn begin(&mut self) {
        self.begin = Counters::now(&self.cores);
    }

    /// Counts until now; the shard threads are still there.
    pub fn end(&mut self) {
        self.end = Counters::now(&self.cores);
    }

    /// The same counted until now, while it goes on.
    #[must_use]
    pub fn so_far(&self) -> Disturbances {
        let (cores, begin) = (self.cores.clone(), self.begin.clone());
        Disturbances { end: Counters::now(&cores), cores, begin }
    }

    /// Each shard's thread, over the time between.
    pub fn shard_threads(&self) -> Vec<ThreadUsage> {
        let both = self.end.shards.iter().filter_map(|(id, end)| {
            let begin = self.begin.shards.get(id)?;
            Some(ThreadUsage {
                cpu_ns: end.cpu_ns.since(begin.cpu_ns),
                run_delay_ns: end.run_delay_ns.since(begin.run_delay_ns),
            })
        });
        both.collect()
    }

    /// The machine, over the time between; `None` if it counts no stolen time.
    pub fn of_machine(&self) -> Option<Disturbance> {
        let (begin, end) = (&self.begin, &self.end);
        let times = end.times?.since(begin.times?);
        let awake = begin.awake.zip(end.awake).map(|(begin, end)| end.since(begin));
        let retransmits = begin.tcp_retransmits.zip(end.tcp_retransmits);
        let throttled = begin.throttled.zip(end.throttled);
        Some(Disturbance {
            steal_share: times.stolen as f64 / times.passed as f64,
            throttled_ns: throttled.map(|(begin, end)| end.since(begin)),
            tcp_retransmits: retransmits.map(|(begin, end)| end.saturating_sub(begin)),
            awake_idle_share: awake.map(|times| times.idle as f64 / times.passed as f64),
        })
    }
}

impl Counters {
    fn now(cores: &Cores) -> Self {
        Counters {
            shards: shards().unwrap_or_default(),
            times: times(&cores.used),
            awake: times(&cores.awake).filter(|_| !cores.awake.is_empty()),
            throttled: throttled(),
            tcp_retransmits: procfs::net::snmp().ok().map(|snmp| snmp.tcp_retrans_segs),
        }
    }
}

/// What `/proc/self/task/*/schedstat` says of the threads whose names begin as a shard's.
fn shards() -> Option<BTreeMap<i32, ThreadUsage>> {
    let tasks = Process::myself().ok()?.tasks().ok()?;
    let shard = |task: procfs::process::Task| {
        let is_shard = task.stat().ok()?.comm.starts_with("shard-");
        let said = task.schedstat().ok().filter(|_| is_shard)?;
        let usage = ThreadUsage {
            cpu_ns: Nanos(said.sum_exec_runtime),
            run_delay_ns: Nanos(said.run_delay),
        };
        Some((task.tid, usage))
    };
    Some(tasks.filter_map(Result::ok).filter_map(shard).collect())
}

/// `None` if this machine counts no stolen time, or one of the cores is not there.
fn times(cores: &BTreeSet<usize>) -> Option<Times> {
    times_in(&std::fs::read_to_string("/proc/stat").ok()?, cores)
}

/// The lines `cpuN` of `/proc/stat`: of cores that are online, by their own numbers (proc_stat(5)).
fn times_in(stat: &str, cores: &BTreeSet<usize>) -> Option<Times> {
    let lines = stat.lines().filter_map(|line| {
        let (number, ticks) = line.strip_prefix("cpu")?.split_once(' ')?;
        let number: usize = number.parse().ok()?;
        let ticks: Vec<u64> = ticks.split_whitespace().map_while(|it| it.parse().ok()).collect();
        cores.contains(&number).then_some(ticks)
    });
    let (mut sum, mut seen) = (Times::default(), 0);
    for ticks in lines {
        // The time of guests is in user and nice already.
        let [user, nice, system, idle, iowait, irq, softirq, stolen] = *ticks.first_chunk()?;
        let idle = idle + iowait;
        sum.stolen += stolen;
        sum.idle += idle;
        sum.passed += user + nice + system + irq + softirq + idle + stolen;
        seen += 1;
    }
    (seen == cores.len()).then_some(sum)
}

/// Where control groups, version 2, are.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Time that the quotas of this process's control group, version 2, and of those above it stopped them (Linux,
/// Documentation/admin-guide/cgroup-v2.rst, `throttled_usec` in `cpu.stat`).
fn throttled() -> Option<Nanos> {
    let groups = Process::myself().ok()?.cgroups().ok()?;
    let group = groups.into_iter().find(|group| group.hierarchy == 0)?;
    let folder = Path::new(CONTROL_GROUPS).join(group.pathname.trim_start_matches('/'));
    let chain = folder.ancestors().take_while(|folder| folder.starts_with(CONTROL_GROUPS));
    let stats = chain.filter_map(|folder| std::fs::read_to_string(folder.join("cpu.stat")).ok());
    throttled_in_all(stats)
}

/// Of a group and those above it, by their `cpu.stat`: a group that a quota stops does not count it for those below. `None`
/// if none has counted; a group without a quota's controller, as the root, does not.
fn throttled_in_all(stats: impl IntoIterator<Item: AsRef<str>>) -> Option<Nanos> {
    let counted = stats.into_iter().filter_map(|stat| throttled_in(stat.as_ref()));
    counted.reduce(|sum, time| sum + time)
}

fn throttled_in(stat: &str) -> Option<Nanos> {
    let us = stat.lines().find_map(|line| line.strip_prefix("throttled_usec "))?;
    us.trim().parse::<u64>().ok().map(|us| Nanos(us * 1_000))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_shard_that_works_is_seen_by_its_name() {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let shard = std::thread::Builder::new().name("shard-7".to_owned());
        let shard = shard.spawn(move || {
            ready.send(()).unwrap();
            while !stopped.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        is_ready.recv().unwrap();
        let mut seen = Disturbances::of([], &[]);
        seen.begin();
        let begin = std::time::Instant::now();
        loop {
            seen.end();
            let threads = seen.shard_threads();
            if threads.iter().any(|thread| thread.cpu_ns > Nanos(10_000_000)) {
                break;
            }
            assert!(begin.elapsed().as_secs() < 60, "no time on a core: {threads:?}");
        }
        let machine = seen.of_machine().unwrap();
        assert!((0.0..=1.0).contains(&machine.steal_share), "{machine:?}");
        assert!(machine.tcp_retransmits.is_some(), "{machine:?}");
        assert_eq!(machine.awake_idle_share, None, "nobody keeps a core awake");
        stop.store(true, Relaxed);
        shard.unwrap().join().unwrap();
    }

    #[test]
    fn cores_are_read_by_their_own_numbers_where_others_are_offline() {
        let stat = "cpu  30 0 0 300 0 0 0 30 0 0\ncpu0 10 0 0 100 0 0 0 10 0 0\n\
                    cpu2 1 2 3 40 50 6 7 8 9 0\ncpu4 10 0 0 100 0 0 0 10 0 0\nintr 9 9 9 9 9 9 9 9\n";
        let of = |cores: &[usize]| {
            let times = times_in(stat, &cores.iter().copied().collect())?;
            Some([times.stolen, times.idle, times.passed])
        };
        assert_eq!(of(&[2]), Some([8, 90, 117]));
        assert_eq!(of(&[0, 2]), Some([18, 190, 237]));
        assert_eq!(of(&[1]), None, "it is offline");
        assert_eq!(of(&[0, 1]), None);
        let old = "cpu0 10 0 0 100 0 0 0\n";
        assert!(times_in(old, &BTreeSet::from([0])).is_none(), "a kernel that counts no steal");
    }

    #[test]
    fn the_time_that_a_quota_took_is_read_from_the_groups_counters() {
        let stat = "usage_usec 9\nnr_throttled 2\nthrottled_usec 1500\n";
        assert_eq!(throttled_in(stat), Some(Nanos(1_500_000)));
        assert_eq!(throttled_in("usage_usec 9\n"), None);
    }

    #[test]
    fn a_quota_of_a_group_above_counts_too() {
        let (own, pod) = ("nr_throttled 0\nthrottled_usec 0\n", "throttled_usec 1500\n");
        let (slice, root) = ("usage_usec 7\nthrottled_usec 30\n", "usage_usec 9\n");
        assert_eq!(throttled_in_all([own, pod, slice, root]), Some(Nanos(1_530_000)));
        assert_eq!(throttled_in_all([own]), Some(Nanos(0)));
        assert_eq!(throttled_in_all([root]), None);
        assert_eq!(throttled_in_all([""; 0]), None);
    }
}

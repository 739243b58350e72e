//! CPU time and memory of a process, from its CPU clock and `/proc`; nowhere else but on Linux.

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use procfs::process::Process;

use super::provenance;
use crate::record::Usage;
use crate::units::Nanos;

/// A process whose use is watched.
#[derive(Debug)]
pub struct Watched {
    process: Process,
    /// Of all its threads, ended ones too: exact to nanoseconds, where `/proc` counts in hundredths of a second
    /// (clock_getcpuclockid(3), proc_pid_stat(5)).
    cpu: ClockId,
    begin: Option<Reading>,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
struct Reading {
    cpu: Nanos,
    user_ticks: u64,
    system_ticks: u64,
    rss_bytes_max: u64,
}

impl Watched {
    /// The process with this id, or `None` if it cannot be read.
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let process = Process::new(pid).ok()?;
        let cpu = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
        let watched = Watched { process, cpu, begin: None };
        watched.so_far()?;
        Some(watched)
    }

    /// CPU time counts from now.
    pub fn begin(&mut self) {
        self.begin = self.so_far();
    }

    /// What was used since [`Watched::begin`]; `None` if the process is gone or was never begun.
    pub fn end(&self) -> Option<Usage> {
        let (begin, end) = (self.begin?, self.so_far()?);
        let user_ticks = end.user_ticks.saturating_sub(begin.user_ticks);
        let system_ticks = end.system_ticks.saturating_sub(begin.system_ticks);
        let cpu = end.cpu.since(begin.cpu);
        let cpu_system_ns = share(cpu, system_ticks, user_ticks + system_ticks);
        Some(Usage {
            cpu_user_ns: cpu - cpu_system_ns,
            cpu_system_ns,
            rss_bytes_max: end.rss_bytes_max,
        })
    }

    /// The cores that it may use, by their numbers; none if the process is gone.
    pub fn cpus(&self) -> Vec<usize> {
        let pid = rustix::process::Pid::from_raw(self.process.pid);
        pid.map_or(Vec::new(), |pid| provenance::cpus_of(Some(pid)))
    }

    /// The processes that it started and that live, by their ids; none where the kernel does not tell.
    pub fn children(&self) -> Vec<u32> {
        let tasks = self.process.tasks().into_iter().flatten().filter_map(Result::ok);
        tasks.filter_map(|task| task.children().ok()).flatten().collect()
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Resident memory now, in bytes; `None` if the process is gone.
    pub fn resident_bytes(&self) -> Option<u64> {
        Some(self.process.status().ok()?.vmrss? * 1024)
    }

    fn so_far(&self) -> Option<Reading> {
        let stat = self.process.stat().ok()?;
        let status = self.process.status().ok()?;
        let cpu = std::time::Duration::from(self.cpu.now().ok()?);
        Some(Reading {
            cpu: Nanos(u64::try_from(cpu.as_nanos()).ok()?),
            user_ticks: stat.utime,
            system_ticks: stat.stime,
            rss_bytes_max: status.vmhwm? * 1024,
        })
    }
}

/// `part` of `whole` parts of this time; none of it if there are no parts.
fn share(time: Nanos, part: u64, whole: u64) -> Nanos {
    let share = u128::from(time.0) * u128::from(part) / u128::from(whole.max(1));
    Nanos(u64::try_from(share).expect("not more than the whole"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_work_shows_as_cpu_time_of_this_process() {
        let mut this = Watched::of(std::process::id()).unwrap();
        this.begin();
        let begin = std::time::Instant::now();
        let mut spun = 0_u64;
        while this.end().unwrap().cpu() < Nanos(50_000_000) {
            assert!(begin.elapsed().as_secs() < 60, "no CPU time after {spun} turns");
            spun = std::hint::black_box(spun + 1);
        }
        let max = this.end().unwrap().rss_bytes_max;
        assert!(max > 100_000);
        assert!((100_000..=max).contains(&this.resident_bytes().unwrap()));
    }

    #[test]
    fn time_that_no_tick_has_seen_yet_counts() {
        let mut this = Watched::of(std::process::id()).unwrap();
        this.begin();
        let begin = this.begin.unwrap();
        // A reading costs some microseconds, a tick is ten milliseconds.
        let end = this.so_far().unwrap();
        assert!(end.cpu > begin.cpu, "{begin:?}, {end:?}");
    }

    #[test]
    fn kernel_and_user_time_are_all_of_it_however_few_ticks_there_are() {
        for (time, part, whole, expected) in [
            (1_000, 1, 4, 250),
            (1_000, 0, 4, 0),
            (1_000, 4, 4, 1_000),
            (1_000, 0, 0, 0),
            (u64::MAX, 3, 3, u64::MAX),
        ] {
            assert_eq!(share(Nanos(time), part, whole), Nanos(expected), "{time} {part} {whole}");
        }
    }

    #[test]
    fn a_process_is_told_from_one_that_starts_others() {
        let this = Watched::of(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(this.children().contains(&child.id()), "{:?}", this.children());
        assert!(Watched::of(child.id()).unwrap().children().is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_not_there_is_none() {
        assert!(Watched::of(u32::MAX).is_none());
    }
}

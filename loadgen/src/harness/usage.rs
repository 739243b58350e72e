//! CPU time and memory of a process, from `/proc`; nowhere else but on Linux.

use procfs::process::Process;

use super::provenance;
use crate::record::Usage;
use crate::units::Nanos;

/// A process whose use is watched.
#[derive(Debug)]
pub struct Watched {
    process: Process,
    begin: Option<Usage>,
}

impl Watched {
    /// The process with this id, or `None` if it cannot be read.
    pub fn of(pid: u32) -> Option<Self> {
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let watched = Watched { process, begin: None };
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
        Some(Usage {
            cpu_user_ns: end.cpu_user_ns.since(begin.cpu_user_ns),
            cpu_system_ns: end.cpu_system_ns.since(begin.cpu_system_ns),
            rss_bytes_max: end.rss_bytes_max,
        })
    }

    /// The cores that it may use, by their numbers; none if the process is gone.
    pub fn cpus(&self) -> Vec<usize> {
        let pid = rustix::process::Pid::from_raw(self.process.pid);
        pid.map_or(Vec::new(), |pid| provenance::cpus_of(Some(pid)))
    }

    /// Resident memory now, in bytes; `None` if the process is gone.
    pub fn resident_bytes(&self) -> Option<u64> {
        Some(self.process.status().ok()?.vmrss? * 1024)
    }

    fn so_far(&self) -> Option<Usage> {
        let stat = self.process.stat().ok()?;
        let status = self.process.status().ok()?;
        let tick = Nanos::SECOND.0 / procfs::ticks_per_second();
        Some(Usage {
            cpu_user_ns: Nanos(stat.utime * tick),
            cpu_system_ns: Nanos(stat.stime * tick),
            rss_bytes_max: status.vmhwm? * 1024,
        })
    }
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
    fn a_process_that_is_not_there_is_none() {
        assert!(Watched::of(u32::MAX).is_none());
    }
}

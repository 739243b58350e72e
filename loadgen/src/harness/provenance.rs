//! Which build runs on which machine; never its name, its users or its paths.

use std::time::SystemTime;

use bidi_echo::build_info;
use rustix::process::Pid;
use rustix::thread::CpuSet;

use crate::record::{Build, Host};

/// This build of loadgen (and of the embedded server, which is the same program).
pub fn build() -> Build {
    Build {
        version: build_info::VERSION.to_owned(),
        revision: build_info::REVISION.to_owned(),
        profile: Some(build_info::PROFILE.to_owned()),
        opt_level: build_info::OPT_LEVEL.to_owned(),
        debug_assertions: build_info::DEBUG_ASSERTIONS,
        rustc: build_info::RUSTC.to_owned(),
    }
}

/// This machine.
pub fn host() -> Host {
    Host {
        cpu_model: cpu_model(),
        cores: cpus().len(),
        kernel: kernel(),
        tcp_congestion_control: tcp_congestion_control(),
    }
}

/// UTC now, as RFC 3339 with seconds.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// UTC now, as RFC 3339 with milliseconds.
pub fn now_in_millis() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Cores that this process may use, by their numbers; none if the system does not say.
pub fn cpus() -> Vec<usize> {
    cpus_of(None)
}

/// Cores that a process may use, this one by default; none if that cannot be read.
pub fn cpus_of(process: Option<Pid>) -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(process);
    allowed.map_or(Vec::new(), |set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

fn cpu_model() -> String {
    use procfs::Current;
    let model =
        procfs::CpuInfo::current().ok().and_then(|info| info.model_name(0).map(str::to_owned));
    model.unwrap_or_else(|| "unknown".to_owned())
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}

/// Of this process's network namespace.
fn tcp_congestion_control() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").ok()?;
    Some(name.trim().to_owned())
}

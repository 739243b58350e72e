//! A timer that is exact to some microseconds, for the pacer.
//!
//! tokio's timers are good to a millisecond, which would be the send lag of every message. A timerfd
//! wakes the shard's event loop instead.

use std::io;

use crate::units::Nanos;

/// Waits for lengths of time.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: std::os::fd::OwnedFd,
    /// The same timerfd, as the only type of tokio that waits for any descriptor without `unsafe`:
    /// it polls and reads, and a timerfd can be polled and read like a pipe (timerfd_create(2)).
    expirations: tokio::net::unix::pipe::Receiver,
}

impl Timer {
    /// Must be called inside the runtime that waits.
    pub(crate) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        use tokio::net::unix::pipe::Receiver;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let expirations = Receiver::from_owned_fd_unchecked(fd.try_clone()?)?;
        Ok(Timer { fd, expirations })
    }

    /// Waits for `time`, at least 1 ns.
    pub(crate) async fn wait(&mut self, time: Nanos) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        use tokio::io::AsyncReadExt;
        let time = time.as_duration().max(std::time::Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(time).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
        // More room than the 8 bytes of a count: tokio takes a short read for "nothing is left",
        // and saves the read that would find that out.
        let count_bytes = self.expirations.read(&mut [0; 16]).await?;
        debug_assert_eq!(count_bytes, 8);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_takes_its_time_again_and_again() {
        let mut timer = Timer::new().unwrap();
        for _ in 0..50 {
            let begin = std::time::Instant::now();
            timer.wait(Nanos(300_000)).await.unwrap();
            assert!(begin.elapsed() >= std::time::Duration::from_micros(300));
        }
    }
}

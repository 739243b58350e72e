//! The healthy neighbour: one connection, one stream, a message due each millisecond.
//!
//! In: an address, and when to stop. Out: for each message how long its answer took *from the instant
//! at which it was due*, so that what a stalled server makes wait is counted, and how late it left
//! through the neighbour's own fault. Shares its core with the attacker, who has the lowest priority.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::attacker::greeting;
use crate::support::peer::{asking, data};
use crate::support::wire::{echo_message, frame as message};

/// Time between two messages.
const PERIOD: Duration = Duration::from_millis(1);

/// For the answers that are missing when the attack is over.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages before the first that is due: tables and buffers grow to their size.
const WARM_UP: usize = 200;

/// What it saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answers: Vec<Answer>,
    /// What went wrong: nothing must.
    pub(crate) errors: Vec<String>,
}

/// One message that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) due: Instant,
    /// From there to when it left: the neighbour's own fault.
    pub(crate) lag_ns: u64,
    /// From there to its answer; contains the lag.
    pub(crate) wait_ns: u64,
}

pub(crate) struct Neighbour {
    tcp: TcpStream,
    message: Vec<u8>,
    unread: Vec<u8>,
    /// Bytes of the next echo that are here already.
    here: usize,
}

impl Neighbour {
    /// Connects, and is well.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let message = message(&echo_message(b"8 bytes.")).to_vec();
        let mut neighbour = Neighbour { tcp, message, unread: Vec::new(), here: 0 };
        let request = asking(1, 0, "POST", "application/grpc");
        neighbour.tcp.write_all(&[greeting(&[]), request].concat()).unwrap();
        let ping = data(1, 0, &neighbour.message);
        for _ in 0..WARM_UP {
            neighbour.tcp.write_all(&ping).unwrap();
            while neighbour.read().unwrap() == 0 {}
        }
        neighbour.tcp.set_nonblocking(true).unwrap();
        neighbour
    }

    /// Sends what is due until told to stop, then waits for the answers that are missing.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Seen {
        let ping = data(1, 0, &self.message);
        let mut seen = Seen::default();
        let (mut unsent, mut in_flight) = (Vec::new(), VecDeque::new());
        let mut due = Instant::now() + PERIOD;
        let mut stopped: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if stopped.is_none() && stop.load(Ordering::Relaxed) {
                stopped = Some(now);
            }
            match stopped {
                None => {
                    while due <= now {
                        unsent.extend_from_slice(&ping);
                        in_flight.push_back((due, nanoseconds(now - due)));
                        due += PERIOD;
                    }
                }
                Some(_) if in_flight.is_empty() => return seen,
                Some(since) if since.elapsed() > PATIENCE => {
                    seen.errors.push(format!("{} messages unanswered", in_flight.len()));
                    return seen;
                }
                Some(_) => {}
            }
            if let Err(error) = self.write(&mut unsent).and_then(|()| {
                for _ in 0..self.read()? {
                    let (due, lag_ns) =
                        in_flight.pop_front().ok_or("an echo that nobody asked for")?;
                    let wait_ns = nanoseconds(due.elapsed());
                    seen.answers.push(Answer { due, lag_ns, wait_ns });
                }
                Ok(())
            }) {
                seen.errors.push(format!("{error}, {} messages unanswered", in_flight.len()));
                return seen;
            }
            self.wait(due, !unsent.is_empty());
        }
    }

    fn write(&mut self, unsent: &mut Vec<u8>) -> Result<(), String> {
        if unsent.is_empty() {
            return Ok(());
        }
        match self.tcp.write(unsent) {
            Ok(wrote) => {
                unsent.drain(..wrote);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Out: how many echoes came. Err: whatever else ends the stream.
    fn read(&mut self) -> Result<usize, String> {
        let mut buffer = [0; 4_096];
        let count = match self.tcp.read(&mut buffer) {
            Ok(0) => return Err("the server closed the connection".to_owned()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.to_string()),
        };
        self.unread.extend_from_slice(&buffer[..count]);
        let (mut at, mut echoes) = (0, 0);
        while let Some(head) = self.unread.get(at..at + 9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = self.unread.get(at + 9..at + 9 + length) else { break };
            match kind {
                0 if flags == 0 => {
                    for byte in payload {
                        if self.message[self.here] != *byte {
                            return Err("a wrong echo".to_owned());
                        }
                        self.here = (self.here + 1) % self.message.len();
                        echoes += usize::from(self.here == 0);
                    }
                }
                // The answer's headers; trailers would end the stream.
                1 if flags & 1 == 0 => {}
                // SETTINGS, PING, WINDOW_UPDATE.
                4 | 6 | 8 => {}
                _ => return Err(format!("a frame of type {kind} with flags {flags}")),
            }
            at += 9 + length;
        }
        self.unread.drain(..at);
        Ok(echoes)
    }

    fn wait(&self, until: Instant, is_blocked: bool) {
        let flags = if is_blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let patience = until.saturating_duration_since(Instant::now()).min(PERIOD);
        let timeout = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        // An interrupted wait is a short one.
        let _ = poll(&mut [PollFd::new(&self.tcp, flags)], Some(&timeout));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("shorter than 500 years")
}

//! When each message of a stream should leave: the intended send times.
//!
//! In: a rate, the kind of arrivals and a seed. Out: nanoseconds since the schedule began, never
//! decreasing. Knows no clock and no socket, so a test can ask for the millionth send at once, and
//! a stall of the generator cannot move a later send.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::scenario::{Arrivals, Blocked, Load, Scenario};
use crate::units::Nanos;

/// The intended send times of one stream, without end.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    gap_mean_ns: f64,
    gaps: Gaps,
}

#[derive(Clone, Debug)]
enum Gaps {
    Uniform { phase_ns: f64, sent: u64 },
    Poisson { random: Pcg64Mcg, at_ns: f64 },
}

impl Schedule {
    /// The schedule of stream number `stream`, which sends `rate` messages per second by itself.
    ///
    /// Independent Poisson streams of rate r/n add up to a Poisson process of rate r, and uniform
    /// streams with random phases do not fire together, so each stream can have its own.
    pub(crate) fn new(arrivals: Arrivals, rate: f64, seed: u64, stream: usize) -> Self {
        let mut random = random_of(seed, stream);
        let gap_mean_ns = 1e9 / rate;
        let gaps = match arrivals {
            Arrivals::Uniform => {
                Gaps::Uniform { phase_ns: fraction(&mut random) * gap_mean_ns, sent: 0 }
            }
            Arrivals::Poisson => Gaps::Poisson { random, at_ns: 0.0 },
        };
        Schedule { gap_mean_ns, gaps }
    }
}

impl Scenario {
    /// The schedule of stream number `stream`; a closed loop has none.
    pub(crate) fn schedule(&self, stream: usize) -> Option<Schedule> {
        let Load::OpenLoop { rate_messages_per_s, arrivals, .. } = self.load else { return None };
        let rate = rate_messages_per_s.0 / self.streams as f64;
        Some(Schedule::new(arrivals, rate, self.seed, stream))
    }

    /// The probe beside this scenario, as a scenario of its own, if one was asked for and the window has an
    /// end that does not hang on the load.
    pub(crate) fn probe(&self) -> Option<Scenario> {
        let rate_messages_per_s =
            self.probe_rate_messages_per_s.filter(|_| self.duration_ns.is_some())?;
        Some(Scenario {
            streams: 1,
            connections: 1,
            idle_streams: 0,
            idle_connections: 0,
            shards: 1,
            // Wherever there is room.
            cpus: Vec::new(),
            awake_cpus: Vec::new(),
            load: Load::OpenLoop {
                rate_messages_per_s,
                // It meets whatever there is to be met: Poisson arrivals see time averages (Wolff, 1982).
                arrivals: Arrivals::Poisson,
                in_flight_max: None,
                blocked: Blocked::Queue,
                backlog_max: u64::MAX,
            },
            messages_max: None,
            // Its arrivals are to know nothing of the load's: under the same seed they would be those of stream 0.
            seed: mixed(self.seed),
            ..self.clone()
        })
    }

    /// Messages of the measurement that stream number `stream` may send: its part of `--messages`.
    pub(crate) fn quota(&self, stream: usize) -> u64 {
        let Some(messages) = self.messages_max else { return u64::MAX };
        let streams = self.streams as u64;
        messages / streams + u64::from((stream as u64) < messages % streams)
    }
}

impl Iterator for Schedule {
    type Item = Nanos;

    fn next(&mut self) -> Option<Nanos> {
        let at_ns = match &mut self.gaps {
            // Multiplied, not added up: the millionth send is as exact as the first.
            Gaps::Uniform { phase_ns, sent } => {
                let at_ns = *phase_ns + *sent as f64 * self.gap_mean_ns;
                *sent += 1;
                at_ns
            }
            Gaps::Poisson { random, at_ns } => {
                *at_ns -= (1.0 - fraction(random)).ln() * self.gap_mean_ns;
                *at_ns
            }
        };
        Some(nanos(at_ns))
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float's cast to u64 saturates, and schedules begin at zero"
)]
fn nanos(at_ns: f64) -> Nanos {
    Nanos((at_ns as u64).min(Nanos::NEVER.0))
}

/// A generator of its own for each seed and stream; PCG's output is fixed by its paper, so a recorded seed
/// gives the same run with any later version.
///
/// No two of them begin in the same state: a multiplicative generator has odd states only, and sets the lowest bit of
/// what it is given, so that bit holds nothing here. The rest of the low half is the stream's number, and the high half, by a
/// way that can be gone back, the seed; mixed, because states that differ in few bits agree in their first outputs.
pub(crate) fn random_of(seed: u64, stream: usize) -> Pcg64Mcg {
    let low = (stream as u64) << 1 | 1;
    let high = mixed(mixed(seed) ^ mixed(low));
    let mut state = [0; 16];
    state[..8].copy_from_slice(&low.to_le_bytes());
    state[8..].copy_from_slice(&high.to_le_bytes());
    Pcg64Mcg::from_seed(state)
}

/// Another number for each: a step of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
/// 2014), which no two numbers share.
fn mixed(number: u64) -> u64 {
    let sum = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let product = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let product = (product ^ (product >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    product ^ (product >> 31)
}

/// Uniform in [0, 1), with all 53 bits that a float holds.
fn fraction(random: &mut Pcg64Mcg) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(arrivals: Arrivals, seed: u64, stream: usize) -> Schedule {
        Schedule::new(arrivals, 1_000.0, seed, stream)
    }

    #[test]
    fn uniform_sends_keep_their_gap_and_never_drift() {
        let all: Vec<_> = times(Arrivals::Uniform, 1, 0).take(1_000_001).collect();
        assert!(all.windows(2).all(|pair| (999_999..=1_000_001).contains(&(pair[1] - pair[0]).0)));
        let drift = (all[1_000_000] - all[0]).0.abs_diff(1_000_000 * 1_000_000);
        assert!(drift <= 1, "{drift} ns");
    }

    #[test]
    fn uniform_streams_start_at_phases_of_their_own_within_one_gap() {
        let mut phases: Vec<_> =
            (0..1_000).map(|stream| times(Arrivals::Uniform, 1, stream).next().unwrap()).collect();
        phases.sort();
        assert!(phases[999] < Nanos(1_000_000));
        let mean = phases.iter().map(|phase| phase.0).sum::<u64>() / 1_000;
        assert!((450_000..550_000).contains(&mean), "mean phase {mean} ns");
        phases.dedup();
        assert!(phases.len() > 990);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let all: Vec<_> = times(Arrivals::Poisson, 3, 0).take(200_000).collect();
        let gaps: Vec<_> = all.windows(2).map(|pair| (pair[1] - pair[0]).0 as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1e6 - 1.0).abs() < 0.01, "mean {mean} ns");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "deviation {}", variance.sqrt());
        let beyond = gaps.iter().filter(|gap| **gap > 3e6).count() as f64 / gaps.len() as f64;
        assert!(
            (beyond - (-3.0f64).exp()).abs() < 0.003,
            "{beyond} of the gaps beyond three means"
        );
    }

    #[test]
    fn a_seed_repeats_its_schedule_and_another_does_not() {
        let first =
            |seed, stream| -> Vec<_> { times(Arrivals::Poisson, seed, stream).take(5).collect() };
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(1, 2), first(1, 3));
    }

    #[test]
    fn every_bit_of_a_seed_and_of_a_streams_number_counts() {
        let first = |seed: u64, stream: u64| {
            let stream = usize::try_from(stream).unwrap();
            times(Arrivals::Poisson, seed, stream).next().unwrap()
        };
        assert_ne!(first(2, 0), first(3, 0));
        for even in (0..200).step_by(2) {
            for other in 0..100 {
                assert_ne!(first(even, other), first(even + 1, other), "{even} {other}");
                assert_ne!(first(other, even), first(other, even + 1), "{other} {even}");
            }
        }
        for bit in 0..64 {
            assert_ne!(first(1 << bit, 0), first(0, 0), "bit {bit}");
        }
    }

    #[test]
    fn the_probe_does_not_know_when_the_load_sends() {
        let mut scenario = crate::report::example::open_loop(400.0, 1).scenario;
        // As much as each of the four streams.
        scenario.probe_rate_messages_per_s = Some(crate::units::MessagesPerSecond(100.0));
        let Load::OpenLoop { arrivals, .. } = &mut scenario.load else { unreachable!() };
        *arrivals = Arrivals::Poisson;
        let first = |scenario: &Scenario, stream| {
            let times = scenario.schedule(stream).unwrap().take(1_000);
            times.collect::<std::collections::BTreeSet<_>>()
        };
        let of_probe = first(&scenario.probe().unwrap(), 0);
        for stream in 0..scenario.streams {
            let common = first(&scenario, stream).intersection(&of_probe).count();
            assert_eq!(common, 0, "stream {stream}");
        }
    }
}

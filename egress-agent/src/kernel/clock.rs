//! The wall clock, and when somebody sets it.
//!
//! The programs judge deadlines by the kernel's tick counter plus an offset. The offset is measured here in parts: the wall
//! clock as ticks, the rate of the ticks, and the moment when both must be compared anew.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
        timerfd_create, timerfd_settime,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// Nanoseconds in a second.
const NANOS: u128 = 1_000_000_000;

/// The tick rates a kernel can be built with (`CONFIG_HZ`).
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// A time that is never reached, about the year 2242. The kernel counts nanoseconds in 63 bits, which end in 2262.
const NEVER: i64 = 1 << 33;

/// Returns the wall clock as whole seconds since the epoch and nanoseconds of the second that has begun.
#[must_use]
pub fn wall_seconds_and_fraction() -> (u64, u32) {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).expect("the kernel lets nobody set the clock before 1970");
    let nanos = u32::try_from(now.tv_nsec).expect("the kernel keeps tv_nsec below 1e9");
    (seconds, nanos)
}

/// Returns a wall clock time as ticks since the epoch, rounded down.
#[must_use]
pub fn ticks_from((seconds, nanos): (u64, u32), hz: u32) -> u64 {
    let ticks = (u128::from(seconds) * NANOS + u128::from(nanos)) * u128::from(hz) / NANOS;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Returns the tick rate of the kernel that counted `ticks` in `nanos` nanoseconds.
///
/// `None` if the measured rate is more than 4 % off every rate a kernel can be built with.
#[must_use]
pub fn nearest_hz(ticks: u64, nanos: u64) -> Option<u32> {
    if nanos == 0 {
        return None;
    }
    RATES.into_iter().find(|&hz| {
        let expected = u128::from(hz) * u128::from(nanos);
        // In units of a tick per 1e9 seconds, so that nothing is rounded.
        expected.abs_diff(u128::from(ticks) * NANOS) * 25 <= expected
    })
}

/// Tells when the wall clock was set, as opposed to running on or being slewed.
///
/// Waking from suspend counts too. Steps that the kernel makes on its own account for leap seconds do as well.
#[derive(Debug)]
pub struct ClockWatch {
    timer: AsyncFd<OwnedFd>,
}

impl ClockWatch {
    /// Starts to watch. It must be called within a tokio runtime.
    ///
    /// Every change after this returns is told: read the clock afterwards, not before.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the timer.
    pub fn new() -> io::Result<Self> {
        Self::until(NEVER)
    }

    /// Starts to watch with a timer that also ends at a time, in seconds since the epoch.
    fn until(seconds: i64) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        // The timer stays armed when the clock is set: there is no gap in which a second change would be missed.
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)?;
        // SAFETY: `OwnedFd` owns its descriptor and closes it only when dropped; only shared references to it are given out.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self { timer })
    }

    /// Waits until the wall clock was set.
    ///
    /// Several changes in a row may be told as one. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// If the timer cannot be read.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.timer.readable().await?;
            let mut expirations = [0; 8];
            match guard.try_io(|timer| Ok(rustix::io::read(timer, &mut expirations)?)) {
                // The timer has ended: the clock has come to a time that it could only be set to.
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => {
                    return Ok(());
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn the_wall_clock_is_the_one_everybody_reads() {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        let before = now();
        let (seconds, nanos) = wall_seconds_and_fraction();
        let read = Duration::new(seconds, nanos);
        assert!(before <= read && read <= now(), "{read:?} was read after {before:?}");
    }

    #[test]
    fn ticks_are_rounded_down() {
        let cases = [
            ((0, 0), 100, 0),
            ((0, 9_999_999), 100, 0),
            ((0, 10_000_000), 100, 1),
            ((1, 999_999_999), 250, 499),
            ((0, 3_333_333), 300, 0),
            ((0, 3_333_334), 300, 1),
            ((1_893_456_000, 500_000_000), 1000, 1_893_456_000_500),
            ((u64::MAX, 0), 1000, u64::MAX),
        ];
        for (time, hz, ticks) in cases {
            assert_eq!(ticks_from(time, hz), ticks, "{time:?} at {hz}");
        }
    }

    #[test]
    fn a_measured_rate_is_rounded_to_one_that_exists() {
        const SECOND: u64 = 1_000_000_000;
        let cases = [
            (100, SECOND, Some(100)),
            (25, SECOND / 10, Some(250)),
            (104, SECOND, Some(100)),
            (105, SECOND, None),
            (96, SECOND, Some(100)),
            (95, SECOND, None),
            (241, SECOND, Some(250)),
            (260, SECOND, Some(250)),
            (275, SECOND, None),
            (299, SECOND, Some(300)),
            (1000 * 3600, 3600 * SECOND, Some(1000)),
            (1040, SECOND, Some(1000)),
            (1041, SECOND, None),
            (512, SECOND, None),
            (0, SECOND, None),
            (100, 0, None),
            (u64::MAX, u64::MAX, None),
        ];
        for (ticks, nanos, hz) in cases {
            assert_eq!(nearest_hz(ticks, nanos), hz, "{ticks} ticks in {nanos} ns");
        }
    }

    #[tokio::test]
    async fn a_clock_that_runs_on_is_not_a_change() {
        let watch = ClockWatch::new().expect("a timer can be had");
        let waited = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(waited.is_err(), "nobody set the clock: {waited:?}");
    }

    #[tokio::test]
    async fn a_timer_that_ends_is_a_change() {
        let watch = ClockWatch::until(1).expect("a timer can be had");
        timeout(Duration::from_secs(5), watch.changed())
            .await
            .expect("1970 has passed")
            .expect("it can be read");
        let waited = timeout(Duration::from_millis(20), watch.changed()).await;
        assert!(waited.is_err(), "it ends once: {waited:?}");
    }
}

//! Telling when the wall clock is set. The test sets it by a microsecond and back.

use std::time::Duration;

use egress_agent::kernel::clock::ClockWatch;
use tokio::time::timeout;

/// Sets the wall clock forward or back, as `date -s` does but relative.
fn step(microseconds: i64) {
    // SAFETY: zeroes are valid for every field of `timex`.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_SETOFFSET;
    // The kernel wants the sign in the seconds alone.
    request.time.tv_sec = microseconds.div_euclid(1_000_000);
    request.time.tv_usec = microseconds.rem_euclid(1_000_000);
    // SAFETY: `request` is a valid `timex` that outlives the call.
    let state = unsafe { libc::adjtimex(&mut request) };
    assert!(state >= 0, "this test needs to set the clock: {}", std::io::Error::last_os_error());
}

#[test]
fn setting_the_clock_is_told_each_time() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    runtime.block_on(async {
        let watch = ClockWatch::new().expect("a timer can be had");
        for microseconds in [1, -1, 1, -1] {
            let quiet = timeout(Duration::from_millis(20), watch.changed()).await;
            assert!(quiet.is_err(), "nobody set the clock: {quiet:?}");
            step(microseconds);
            timeout(Duration::from_secs(5), watch.changed())
                .await
                .expect("it is told")
                .expect("it can be read");
        }
    });
}

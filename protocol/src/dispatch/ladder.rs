//! The retry ladder: when the next notification goes out for pushes that already had some. Numbers only.

use std::time::Duration;

use crate::id::TerminalId;
use crate::service_list::row::Urgency;

/// Waits after the first, second, ... notification; then doubling up to [`TOP`]. The first is for a datagram that
/// was lost, the last ones for a terminal that is switched off.
const STEPS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
];
/// The longest wait.
const TOP: Duration = Duration::from_secs(3600);
/// The longest wait, its spread included.
pub const LONGEST: Duration = Duration::from_secs(TOP.as_secs() * 6 / 5);
/// An address that has had what it gets has room again within this.
pub const BUDGET_PERIOD: Duration = Duration::from_secs(60);
/// A terminal that acknowledged a notification gets this long to connect and attach.
pub(super) const CONNECTING: Duration = Duration::from_secs(5);
/// After so many notifications without an attach a terminal counts as unreachable. It is still tried.
pub const UNREACHABLE_AFTER: u32 = 4;

/// How long a push of this urgency waits for another notification to go out before it gets its own.
pub(super) fn first(urgency: Urgency) -> Duration {
    match urgency {
        Urgency::VeryLow => Duration::from_secs(15 * 60),
        Urgency::Low => Duration::from_secs(60),
        Urgency::Normal | Urgency::High => Duration::ZERO,
    }
}

/// The wait after the `step`-th try, within a fifth of its step: spread by the terminal's id, so that
/// terminals which became unreachable together are not tried together.
pub(super) fn after(step: u32, terminal: &TerminalId) -> Duration {
    let index = step.saturating_sub(1) as usize;
    let wait = match STEPS.get(index) {
        Some(wait) => *wait,
        None => {
            let doublings = (index - STEPS.len() + 1).min(16) as u32;
            (STEPS[STEPS.len() - 1] * 2u32.pow(doublings)).min(TOP)
        }
    };
    spread(wait, step, terminal)
}

/// The wait after a notification that its address had no budget for. It counts as a step, or one whose address is never
/// answered would be tried so often for as long as a push waits; but a reachable terminal whose first notification was lost is
/// tried again as soon as there can be room.
pub(super) fn after_spent(step: u32, terminal: &TerminalId) -> Duration {
    after(step, terminal).max(spread(BUDGET_PERIOD, step, terminal))
}

fn spread(wait: Duration, step: u32, terminal: &TerminalId) -> Duration {
    let spread = u32::from(terminal.0[15].wrapping_add((step as u8).wrapping_mul(97)));
    wait + wait / 5 * spread / 255
}

/// The wait after a notification that could not be tried: one to two seconds, spread by the terminal's id.
pub(super) fn not_tried(terminal: &TerminalId) -> Duration {
    Duration::from_millis(1000 + u64::from(terminal.0[14]) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_rise_to_the_top_and_stay_within_a_fifth() {
        let terminal = TerminalId([255; 16]);
        for step in 1..40 {
            let wait = after(step, &terminal);
            assert!(wait >= STEPS[(step as usize - 1).min(4)] && wait <= LONGEST, "{step}: {wait:?}");
        }
        assert!(after(1, &TerminalId([0; 16])) < Duration::from_millis(240));
        assert!(after(39, &terminal) >= TOP);
    }
}

//! Disconnecting: closing the connection so that nothing of it stays, and what comes after a session's end.

use std::time::Duration;

use reveille_protocol::session::terminal::Closed;
use reveille_protocol::wire::session::{Bye, ByeReason};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// TLS's own goodbye gets this long; the node has what matters already.
const CLOSE: Duration = Duration::from_millis(500);
/// Wait before a terminal that was refused tries again: something must change first.
const REFUSED: Duration = Duration::from_secs(600);

/// Longest wait that a node may ask for: its pushes, and those of every other node, wait as long.
const LONGEST: Duration = Duration::from_secs(600);

/// Closes the connection.
pub(crate) async fn close(mut writer: impl AsyncWrite + Unpin) {
    // A peer that has gone does not hear it, which is as good.
    let _ = tokio::time::timeout(CLOSE, writer.shutdown()).await;
}

/// What a terminal does after a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Listen until notified.
    Listen,
    /// Connect again, not before this.
    Again(Duration),
    /// The same, and the application must know why.
    Refused(Duration, String),
}

/// What comes after a session that ended so; `showed`: the terminal has an enrolment token, and showed it.
pub fn next(closed: &Closed, showed: bool) -> Next {
    let Bye { reason, retry_after } = match closed {
        Closed::Done => return Next::Listen,
        Closed::Lost(_) => return Next::Again(Duration::ZERO),
        Closed::Bye(bye) => bye,
    };
    let after = Duration::from_millis(*retry_after).min(LONGEST);
    match reason {
        ByeReason::Done => Next::Listen,
        // Connecting again would only throw the other one out in turn.
        ByeReason::Superseded => Next::Listen,
        ByeReason::StaleAttempt(_) | ByeReason::GoElsewhere | ByeReason::Unavailable => Next::Again(after),
        ByeReason::TooSlow | ByeReason::Protocol => Next::Again(after),
        ByeReason::NotEnrolled => Next::Refused(
            REFUSED,
            match showed {
                false => {
                    "the cluster does not know this terminal; give it an enrolment token of its tenant, or register its key"
                }
                true => {
                    "the cluster does not know this terminal, and does not take its enrolment token: that has ended, is cut, or \
                     is signed by another key than its tenant's"
                }
            }
            .to_owned(),
        ),
        ByeReason::AckAhead => Next::Refused(
            REFUSED,
            "this terminal confirmed more than the cluster ever sent; the cluster was restored from an older state"
                .to_owned(),
        ),
    }
}

/// For the application: why a session ended.
pub fn describe(closed: &Closed) -> String {
    match closed {
        Closed::Done => "done".to_owned(),
        Closed::Lost(why) => (*why).to_owned(),
        Closed::Bye(bye) => match bye.reason {
            ByeReason::Done => "done",
            ByeReason::Superseded => "another session of this terminal took over",
            ByeReason::StaleAttempt(_) => "a later attempt was granted",
            ByeReason::NotEnrolled => "not enrolled",
            ByeReason::Protocol => "the node saw a protocol error",
            ByeReason::TooSlow => "the terminal did not confirm in time",
            ByeReason::GoElsewhere => "the node is leaving",
            ByeReason::Unavailable => "the service list could not be reached",
            ByeReason::AckAhead => "confirmed more than was sent",
        }
        .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_refused_is_told_from_none() {
        let bye = Closed::Bye(Bye { reason: ByeReason::NotEnrolled, retry_after: 0 });
        let said = [false, true].map(|showed| match next(&bye, showed) {
            Next::Refused(_, what) => what,
            other => format!("{other:?}"),
        });
        assert!(said[0].contains("give it an enrolment token"), "{said:?}");
        assert!(said[1].contains("does not take its enrolment token"), "{said:?}");
    }

    #[test]
    fn no_node_can_send_a_terminal_away_for_good() {
        for reason in
            [ByeReason::GoElsewhere, ByeReason::TooSlow, ByeReason::StaleAttempt(Default::default())]
        {
            let bye = |retry_after| next(&Closed::Bye(Bye { reason, retry_after }), false);
            assert_eq!(bye(1500), Next::Again(Duration::from_millis(1500)));
            assert_eq!(bye(u64::MAX), Next::Again(LONGEST));
        }
    }
}

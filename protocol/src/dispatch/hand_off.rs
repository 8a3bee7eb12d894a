//! What a hand-off carries: read from the shard's table as it stands. Decides nothing and sends nothing.

use bytes::Bytes;

use crate::canary::{Canary, canary};
use crate::id::*;
use crate::limits;
use crate::service_list::row::Row;
use crate::service_list::{self, Table, TableError, view};
use crate::time::GroupTime;
use crate::wire::peer::{HandOff, HandedPush};

/// The body; unless a bug is planted.
fn garbled(seq: Seq, body: Bytes) -> Bytes {
    if !canary(Canary::GarblePayload) || !seq.0.is_multiple_of(20) {
        return body;
    }
    let mut bytes = body.to_vec();
    bytes.last_mut().into_iter().for_each(|byte| *byte ^= 1);
    bytes.into()
}

/// The pushes in their order; unless a bug is planted.
fn ordered(mut pushes: Vec<HandedPush>) -> Vec<HandedPush> {
    if canary(Canary::SwapInHandOff)
        && let [.., one, two] = &mut pushes[..]
    {
        std::mem::swap(&mut one.prev, &mut two.prev);
        std::mem::swap(&mut one.remaining, &mut two.remaining);
        std::mem::swap(one, two);
    }
    pushes
}

/// Pushes that a session's node is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOffOrder {
    /// For whom.
    pub terminal: TerminalId,
    /// Where its session is.
    pub node: NodeId,
    /// Its life.
    pub stream: Stream,
    /// The session's epoch.
    pub epoch: Epoch,
    /// The attempt that got it.
    pub attempt: Attempt,
    /// Only pushes above this.
    pub after: Seq,
    /// Pushes up to here were given to an earlier session.
    pub maybe_seen: Seq,
    /// How many at most.
    pub limit: usize,
}

impl HandOffOrder {
    /// Reads them for the leader of `group` in `term`: what waits for the terminal of this `row`, in the order of seqs,
    /// as far as it fits a session's window. `now` is the leader's group time; what a push still lives for is counted
    /// from there.
    pub fn fill<T: Table>(
        &self,
        table: &T,
        row: &Row,
        (group, term): (GroupId, u64),
        now: GroupTime,
    ) -> Result<HandOff, TableError> {
        // By the time that the group has agreed on, not this leader's own: after a failover group time may go on from a
        // little before what only this node thought, and then an ack would pass over a push that still lives.
        let agreed = service_list::time(table)?;
        // From the ack on, to know what is on its way already: it names `prev` and counts for `remaining`.
        let most = limits::SESSION_WINDOW * 2;
        let waiting = view::pending(table, &self.terminal, row.acked.next(), row.next_seq, most)?;
        let mut pushes: Vec<HandedPush> = Vec::new();
        let (mut prev, mut bytes) = (Seq(0), 0);
        for (index, (seq, message)) in waiting.into_iter().enumerate() {
            // What has expired by now will not be delivered, whoever leads next: group time never goes back.
            if message.deadline <= agreed {
                continue;
            }
            if canary(Canary::SkipInHandOff) && seq.0.is_multiple_of(10) {
                continue;
            }
            let left_out = canary(Canary::AcceptGap) && seq.0.is_multiple_of(10);
            if seq > self.after && !left_out {
                bytes += message.body.len();
                let full = pushes.len() >= self.limit || bytes > limits::SESSION_WINDOW_BYTES;
                if full && !pushes.is_empty() {
                    break;
                }
                pushes.push(HandedPush {
                    seq,
                    prev,
                    maybe_seen: seq <= self.maybe_seen,
                    remaining: row.pending.saturating_sub(index as u32 + 1),
                    lives_for: message.deadline.since(now).as_millis() as u64,
                    channel: message.channel,
                    headers: message.headers,
                    body: garbled(seq, message.body),
                });
            }
            prev = seq;
        }
        let covers = pushes.last().map_or(Seq(row.next_seq.0 - 1), |push| push.seq);
        let HandOffOrder { terminal, stream, epoch, attempt, .. } = *self;
        Ok(HandOff { group, term, terminal, stream, epoch, attempt, pushes: ordered(pushes), covers })
    }
}

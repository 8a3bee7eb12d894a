//! From any node to the shard's leader and back, as `cluster/src/member/route.rs` does it: leader hints, unknown
//! outcomes tried again under the same command id, copies that are lost, late, or overtaken by the next one.

use reveille_protocol::service_list::{Command, Refusal, Reply};
use reveille_protocol::time::GroupTime;

use crate::world::{Happening, World};

/// One try at one node.
const TRY: u64 = 700;
/// How long after being sent a command may still be applied.
const NOT_AFTER: u64 = 60_000;

/// What one copy came to.
#[derive(Debug, Clone)]
pub enum Outcome {
    Applied(Reply),
    /// Certainly not applied.
    NotLeader,
    /// It may have been applied, or may yet be.
    Unknown,
}

/// Who waits for a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Attach(u64),
    Enrol(u64),
    Ack(u64),
    Detach(u64),
    Reached(u64),
    Publish(u64),
    /// Nobody needs to know.
    Nobody,
}

/// A command on its way through tries.
pub struct Proposal {
    pub home: u64,
    pub origin: Origin,
    command: Command,
    until: u64,
    copies: u32,
    unknown: bool,
    pause: u64,
}

impl World {
    /// Proposes a command from a node; its origin hears what it came to, or `None` if that is unknown.
    pub fn propose(&mut self, home: u64, origin: Origin, mut command: Command, patience: u64) {
        if let Command::Enqueue(enqueue) = &mut command {
            enqueue.not_after = GroupTime(self.group_time().0 + NOT_AFTER);
        }
        let number = self.number();
        let until = self.now + patience;
        let proposal = Proposal { home, origin, command, until, copies: 0, unknown: false, pause: 5 };
        self.proposals.insert(number, proposal);
        self.try_at_leader(number);
    }

    pub fn try_at_leader(&mut self, number: u64) {
        let to = self.believed_leader();
        let Some(proposal) = self.proposals.get_mut(&number) else { return };
        proposal.copies += 1;
        let (home, copy, command) = (proposal.home, proposal.copies, Box::new(proposal.command.clone()));
        let patience = TRY.min(proposal.until.saturating_sub(self.now));
        let Some(to) = to else { return self.answer(number, copy, Outcome::NotLeader) };
        self.after(patience, Happening::Impatient { proposal: number, copy });
        let happening = Happening::Copy { proposal: number, copy, from: home, to, command };
        if home == to {
            self.after(0, happening);
        } else if self.bad_luck(40) {
            // Stuck in a connection that stalls: the next copy may overtake it.
            let late = self.dice.between(300, 5000);
            self.after(late, happening);
        } else {
            self.send(home, to, happening);
        }
    }

    /// Sends over the link between two nodes, in order; unlucky messages break with it.
    pub fn send(&mut self, from: u64, to: u64, happening: Happening) {
        let mut delay = self.dice.between(0, 3);
        if self.bad_luck(self.storm.loss) {
            return;
        }
        if self.bad_luck(30) {
            delay += self.dice.below(400);
        }
        let earliest = self.links.get(&(from, to)).copied().unwrap_or(0);
        let time = (self.now + delay).max(earliest);
        self.links.insert((from, to), time);
        self.at(time, happening);
    }

    pub fn answer(&mut self, number: u64, copy: u32, outcome: Outcome) {
        let now = self.now;
        let Some(proposal) = self.proposals.get_mut(&number).filter(|known| known.copies == copy) else {
            return;
        };
        match outcome {
            Outcome::Applied(Reply::Refused(Refusal::TooLate { now: seen })) if !proposal.unknown => {
                if let Command::Enqueue(enqueue) = &mut proposal.command {
                    enqueue.not_after = GroupTime(seen.0 + NOT_AFTER);
                }
            }
            Outcome::Applied(reply) => return self.proposal_over(number, Some(reply)),
            Outcome::NotLeader => {}
            Outcome::Unknown => {
                proposal.unknown = true;
                if let Command::Enqueue(enqueue) = &mut proposal.command {
                    enqueue.retry = true;
                }
            }
        }
        // Whatever still comes for this copy is not waited for.
        proposal.copies += 1;
        let pause = proposal.pause;
        proposal.pause = (pause * 2).min(80);
        if now + pause >= proposal.until {
            return self.proposal_over(number, None);
        }
        self.after(pause, Happening::TryAgain(number));
    }

    fn proposal_over(&mut self, number: u64, reply: Option<Reply>) {
        let Some(proposal) = self.proposals.remove(&number) else { return };
        match proposal.origin {
            Origin::Publish(publication) => self.published(publication, reply),
            Origin::Nobody => {}
            Origin::Attach(connection)
            | Origin::Enrol(connection)
            | Origin::Ack(connection)
            | Origin::Detach(connection)
            | Origin::Reached(connection) => self.session_answered(connection, proposal.origin, reply),
        }
    }

    /// A node died: nothing of what it proposed is waited for any more.
    pub fn forget_proposals(&mut self, home: u64) {
        let gone: Vec<u64> =
            self.proposals.iter().filter(|(_, known)| known.home == home).map(|(n, _)| *n).collect();
        for number in gone {
            if let Some(Proposal { origin: Origin::Publish(publication), .. }) =
                self.proposals.remove(&number)
            {
                self.published(publication, None);
            }
        }
    }

    /// A session's actor ended: its proposals go on, unheard.
    pub fn forget_session(&mut self, connection: u64) {
        self.proposals.retain(|_, known| match known.origin {
            Origin::Attach(of)
            | Origin::Enrol(of)
            | Origin::Ack(of)
            | Origin::Detach(of)
            | Origin::Reached(of) => of != connection,
            Origin::Publish(_) | Origin::Nobody => true,
        });
    }
}

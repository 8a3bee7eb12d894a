//! What a fence means for attaches and for the status of terminals, where one node knows of it and another does not yet. Who
//! is fenced is the directory's.

use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::Current;
use reveille_protocol::service_list::{Command, Detach, Refusal, Reply};

use super::{Member, Unavailable};
use crate::env::Env;
use crate::propose::Outcome;
use crate::query::{Answer, Query};

impl<E: Env> Member<E> {
    /// Proposes a command as the group's leader, if this node is that. A session whose node's incarnation is over is attached
    /// by nobody who knows so: no push would be handed off to it, and its terminal would wait in it. What is fenced once is so
    /// for ever, so that this is the answer whoever leads.
    pub(super) fn propose_here(
        &self,
        group: GroupId,
        command: Command,
    ) -> Option<impl Future<Output = Outcome> + Send + use<E>> {
        let known = self.groups.get(&group)?;
        let over = matches!(&command, Command::Attach(attach)
            if self.directory().fenced(attach.node, attach.incarnation));
        let proposal = (!over).then(|| known.proposer.propose(command));
        Some(async move {
            match proposal {
                Some(proposal) => proposal.await,
                None => Outcome::Applied(Reply::Refused(Refusal::Fenced)),
            }
        })
    }

    /// A leader that knows more of the directory than this node may say that this node's own incarnation is over.
    pub(super) fn learn_fence(self: &Arc<Self>, command: &Command, reply: &Reply) {
        if let (Command::Attach(attach), Reply::Refused(Refusal::Fenced)) = (command, reply)
            && attach.node == self.config.node
        {
            self.begin_anew(attach.incarnation, "this node was marked down, as another one says");
        }
    }

    /// Asks a group's leader. A terminal's status is what its row says, and nothing else: if this node knows that the session
    /// there is fenced, it has the row say so before it tells. A node that has not heard of the fence would else say
    /// afterwards that the terminal is online.
    pub async fn query(
        self: &Arc<Self>,
        group: GroupId,
        query: Query,
        deadline: Duration,
    ) -> Result<Answer, Unavailable> {
        let until = E::Cfg::now() + deadline;
        loop {
            let left = until - E::Cfg::now().min(until);
            let answer = self.ask(group, query.clone(), left).await?;
            let (Query::Terminal { terminal, .. }, Answer::Terminal(Some(row))) = (&query, &answer) else {
                return Ok(answer);
            };
            let fenced = |session: Current| self.directory().fenced(session.node, session.incarnation);
            if !row.current.is_some_and(fenced) {
                return Ok(answer);
            }
            let detach = Detach { terminal: *terminal, stream: row.stream, epoch: row.epoch, ack: None };
            let left = until - E::Cfg::now().min(until);
            // Refused: a later session has begun, or the terminal is gone. The next look tells either.
            self.propose(group, Command::Detach(detach), left).await?;
            if E::Cfg::now() >= until {
                return Err(Unavailable::Unknown);
            }
        }
    }
}

//! What whoever stands outside asks of a running node, as a request that its process works on: whoever asked may give up,
//! the node goes on with it; and nobody hears what a node says that is gone.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::Unavailable;
use reveille_cluster::member::Member;
use reveille_cluster::query::{Answer, Query};
use reveille_protocol::id::*;
use reveille_protocol::service_list::{Command, Reply};
use tokio::sync::oneshot;

use crate::world::{Sim, World};

/// What comes of a request, if the node lives to say so.
pub type Heard<T> = oneshot::Receiver<T>;

impl World {
    /// Asks a node to do something for a terminal. `None`: nobody is there to take it.
    pub fn ask_to(
        self: &Arc<World>,
        node: NodeId,
        terminal: TerminalId,
        command: Command,
        deadline: Duration,
    ) -> Option<Heard<Result<Reply, Unavailable>>> {
        self.request(node, move |member| async move {
            member.propose(member.group_of(&terminal), command, deadline).await
        })
    }

    /// Asks a node about a terminal.
    pub fn ask_about(
        self: &Arc<World>,
        node: NodeId,
        terminal: TerminalId,
        query: Query,
        deadline: Duration,
    ) -> Option<Heard<Result<Answer, Unavailable>>> {
        self.request(node, move |member| async move {
            member.query(member.group_of(&terminal), query, deadline).await
        })
    }

    /// Has a node lead nothing any more.
    pub fn have_leaders_moved(self: &Arc<World>, node: NodeId) -> Option<Heard<usize>> {
        self.request(node, move |member| async move { member.move_leaders(node).await })
    }

    /// Has a node cut its logs.
    pub fn have_logs_cut(self: &Arc<World>, node: NodeId) -> Option<Heard<Result<(), String>>> {
        self.request(node, |member| async move { member.snapshot().await })
    }

    fn request<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        self: &Arc<World>,
        node: NodeId,
        work: impl FnOnce(Arc<Member<Sim>>) -> F,
    ) -> Option<Heard<T>> {
        let (member, process) = self.node(node).member().zip(self.process(node))?;
        let (world, life, work) = (self.clone(), self.life(node), work(member));
        let (tell, heard) = oneshot::channel();
        let _detached = SimRuntime::spawn(process.run(async move {
            let outcome = work.await;
            if world.is_life(node, life) {
                // Whoever asked may have given up.
                let _ = tell.send(outcome);
            }
        }));
        Some(heard)
    }
}

//! Small scenarios in the simulated world, each with one question about nodes or terminals. What is drawn by seed, and all
//! that can go wrong at once, is in `simulation.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::sync::Arc;
use std::time::Duration;

use reveille_cluster::query::{Answer, Query};
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Reachability, Urgency};
use reveille_protocol::service_list::{Attach, Command, Refusal, Register, Reply};
use reveille_protocol::wire::session::Class;
use reveille_simulation::run;
use reveille_simulation::terminal::{Doing, Nature};
use reveille_simulation::world::{World, lock, now, pause};

/// Three nodes that lead, and are ready for anchors.
async fn begin(world: &Arc<World>) {
    world.found(3);
    for id in (1..=3).map(NodeId) {
        world.start(id).await;
    }
    world.settle().await;
    pause(5000).await;
}

/// A node was marked down by a leader that it does not reach, and does not know of it; its sessions' terminals are offline for
/// others. It says so, too, and takes none in any more.
async fn fenced_unawares(world: Arc<World>) {
    begin(&world).await;
    let member = |id| world.node(NodeId(id)).member().expect("it runs");
    let leader = |group| member(3).leader(group);
    assert_eq!((leader(GroupId::META), leader(GroupId(2))), (Some(NodeId(1)), Some(NodeId(3))));
    let keys = (0..=255).map(|byte| KeyFingerprint([byte; 32]));
    let mut keys = keys.filter(|key| member(2).group_of(&key.terminal()) == GroupId(2));
    let session_key = keys.next().expect("a terminal of this shard");
    let (tenant, terminal, group) = (TenantId(1), session_key.terminal(), GroupId(2));
    let patience = Duration::from_secs(5);
    let register = Command::Register(Register { tenant, session_key, stream: Stream(9) });
    member(2).propose(group, register, patience).await.expect("registered");
    let (node, incarnation) = (NodeId(2), member(2).incarnation());
    let attach = |attempt| {
        Command::Attach(Box::new(Attach {
            terminal,
            attempt: Attempt(attempt),
            node,
            incarnation,
            stream: Stream(9),
            last: Seq(0),
            reachability: Reachability::None,
            secret: 1,
            linger: Linger::Forever,
            min_urgency: Urgency::VeryLow,
        }))
    };
    let online = member(2).propose(group, attach(1), patience).await;
    assert!(matches!(online, Ok(Reply::Attached(_))), "{online:?}");
    world.cut(NodeId(1), node);
    world.cut(node, NodeId(1));
    while !member(3).directory().fenced(node, incarnation) {
        pause(10).await;
    }
    assert!(!member(2).directory().fenced(node, incarnation), "it has not heard of it");
    for asked in [3, 2] {
        match member(asked).query(group, Query::Terminal { tenant, terminal }, patience).await {
            Ok(Answer::Terminal(Some(row))) => assert_eq!((row.current, row.epoch), (None, Epoch(1))),
            other => panic!("{other:?}"),
        }
    }
    let refused = member(2).propose(group, attach(2), patience).await;
    assert_eq!(refused, Ok(Reply::Refused(Refusal::Fenced)));
    assert!(!member(2).directory().fenced(node, incarnation), "it has been told by the shard's leader alone");
    assert_eq!(member(2).incarnation(), Incarnation(0), "it serves no sessions any more");
    world.mend();
    world.settle().await;
    assert!(member(2).incarnation() > incarnation);
    world.close().await;
}

#[test]
fn a_node_that_was_marked_down_and_does_not_know_keeps_nobody_online() {
    (1..=3).for_each(|seed| run::one(seed, fenced_unawares));
}

/// No UDP passes to the terminal, so that no session finds a way to it: it comes by itself.
async fn unreached(world: Arc<World>) {
    begin(&world).await;
    world.draw_networks(1);
    // The networks: its home, three NATs, and this one.
    let network = lock(&world.networks).nats().end;
    let key = KeyFingerprint([7; 32]);
    let linger = Linger::AtOnce;
    world.enlist(Nature { key, linger, listens: true, thinks: 1, speaks: 2, network, stays: false });
    world.start_terminal(0);
    let is = || {
        let known = &lock(&world.devices)[0];
        (known.doing, known.reach.class())
    };
    for (least, most) in [(27_000, 36_000), (54_000, 69_000)] {
        while is() != (Doing::Listening, Class::None) {
            assert!(now() < 300_000_000, "it is {:?}", is());
            pause(10).await;
        }
        let (listens, push) = (now(), world.publish(0, None).expect("nodes run"));
        while lock(&world.history).received_at(push).is_none() {
            assert!(now() - listens < most * 1000, "it did not come: {:?}", is());
            pause(10).await;
        }
        assert!(now() - listens >= least * 1000, "it was not left in peace");
        pause(100).await;
    }
    world.close().await;
}

#[test]
fn a_terminal_that_nothing_reaches_comes_by_itself_half_a_minute_later_then_a_minute() {
    (1..=3).for_each(|seed| run::one(seed, unreached));
}

//! What publishers wanted and heard, what applications were given, and the rules for both. Shares no rule with the
//! machines that it judges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_cluster::Unavailable;
use reveille_cluster::query::{Answer, Query};
use reveille_cluster::tables::Tables;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Ended, load};
use reveille_protocol::service_list::view::{self, MessageState};
use reveille_protocol::service_list::{self as list, Command, Refusal, Reply};
use reveille_protocol::session::terminal::Memory;
use reveille_protocol::stage::End;
use reveille_protocol::wire::session::Push;

use crate::commands;
use crate::node::GROUPS;
use crate::world::{World, instant, lock, true_wall};

/// Group time may be off the true one by the way of a clock's word, and what a leader stood still for at its election.
const CLOCK: u64 = 1500;

/// What a publisher heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    Stored(MessageId),
    /// It is certainly not there.
    Never(String),
}

#[derive(Debug, Clone)]
pub struct Publication {
    pub device: usize,
    ttl: Option<u64>,
    /// Milliseconds of the run.
    at: u64,
    pub heard: Heard,
    /// When it was first seen to have expired.
    expired: Option<u64>,
}

impl Publication {
    /// When it was published.
    pub fn at(&self) -> u64 {
        self.at
    }
}

#[derive(Debug)]
struct Receipt {
    device: usize,
    life: u32,
    stream: Stream,
    seq: Seq,
    at: u64,
}

#[derive(Debug, Default)]
pub struct History {
    publications: BTreeMap<u64, Publication>,
    /// By number: each time that the push was given to an application.
    receipts: BTreeMap<u64, Vec<Receipt>>,
    /// The last one given, by terminal: in which life and stream.
    last: BTreeMap<usize, (u32, Stream, Seq)>,
    confirmed: BTreeMap<(usize, Stream), Seq>,
    saved: BTreeMap<usize, Memory>,
    /// What its first holder got each seq for.
    named: BTreeMap<(usize, Stream, Seq), u64>,
}

fn number_of(body: &[u8]) -> u64 {
    let text = std::str::from_utf8(body).expect("a text");
    text.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

impl History {
    pub fn saved(&mut self, device: usize, memory: Memory) {
        self.saved.insert(device, memory);
    }

    pub fn confirmed(&mut self, device: usize, stream: Stream, seq: Seq) {
        let confirmed = self.confirmed.entry((device, stream)).or_default();
        *confirmed = (*confirmed).max(seq);
    }

    /// In one life of its process the seqs rise, so none comes twice. In a later life one comes again only if the disk
    /// does not say that it was confirmed, and then it is marked. A number has one seq, a seq one number.
    pub fn received(&mut self, device: usize, life: u32, stream: Stream, push: &Push) {
        let (seq, number) = (push.seq, number_of(&push.body));
        let last = self.last.insert(device, (life, stream, seq));
        if let Some((_, _, before)) = last.filter(|(l, s, _)| (*l, *s) == (life, stream)) {
            assert!(before < seq, "t{device} is given seq {seq} after {before}");
        }
        let memory = self.saved.get(&device).copied().unwrap_or_default();
        assert!(
            memory.stream != stream || memory.last < seq,
            "t{device} is given {seq}, which it has confirmed"
        );
        let named = *self.named.entry((device, stream, seq)).or_insert(number);
        assert_eq!(named, number, "t{device} is given seq {seq} with another body");
        let receipts = self.receipts.entry(number).or_default();
        if let Some(before) = receipts.last() {
            let same = (before.device, before.stream, before.seq) == (device, stream, seq);
            assert!(same && before.life < life, "push {number} comes again as {seq}: {before:?}");
            assert!(push.maybe_seen, "t{device} is given {seq} again without a mark");
        }
        receipts.push(Receipt { device, life, stream, seq, at: instant().0 });
    }

    pub fn publication(&self, number: u64) -> &Publication {
        &self.publications[&number]
    }

    pub fn received_at(&self, number: u64) -> Option<u64> {
        self.receipts.get(&number).and_then(|receipts| receipts.first()).map(|receipt| receipt.at)
    }
}

impl World {
    /// Publishes through any node; its number.
    pub fn publish(self: &Arc<World>, device: usize, ttl: Option<u64>) -> Option<u64> {
        let member = self.any_member()?;
        let number = self.number();
        let terminal = self.terminals()[device];
        let publication = Publication { device, ttl, at: instant().0, heard: Heard::Nothing, expired: None };
        lock(&self.history).publications.insert(number, publication);
        let body = format!("push {number} {}", "x".repeat(self.below(300) as usize));
        let mut push = commands::push(number, terminal, Bytes::from(body));
        if let Command::Enqueue(enqueue) = &mut push {
            enqueue.ttl = ttl;
        }
        let (world, node, life) = (self.clone(), member.node(), self.life(member.node()));
        let _detached = SimRuntime::spawn(async move {
            let group = member.group_of(&terminal);
            let outcome = member.propose(group, push, Duration::from_secs(3)).await;
            let heard = match outcome {
                // Nobody hears what a node says that is gone.
                _ if !world.is_life(node, life) => return,
                Ok(Reply::Enqueued { message, duplicate, .. }) => {
                    world.say(format!("push {number} is stored: t{device} {}", message.seq));
                    if duplicate {
                        world.saw("retries that had been stored");
                    }
                    Heard::Stored(message)
                }
                Ok(Reply::Refused(refusal @ Refusal::UnknownTerminal)) => Heard::Never(refusal.to_string()),
                Ok(Reply::Refused(Refusal::TooLate { .. } | Refusal::Unknown))
                | Err(Unavailable::Unknown) => {
                    return;
                }
                Err(error) => Heard::Never(error.to_string()),
                Ok(other) => panic!("push {number} was answered {other:?}"),
            };
            if let Some(publication) = lock(&world.history).publications.get_mut(&number) {
                publication.heard = heard;
            }
        });
        Some(number)
    }

    /// No clock's jump may be seen in any group's time, and nothing expires before its time.
    pub fn check_time(&self) {
        let nodes = self.all_nodes();
        for node in nodes.iter().filter(|node| node.member().is_some()) {
            for group in (0..=GROUPS).map(GroupId) {
                let time = list::time(&node.tables(group).read()).expect("memory cannot fail");
                assert!(time.0 <= true_wall() + CLOCK, "n{} group {group} is ahead of time: {time}", node.id);
            }
        }
        let mut history = lock(&self.history);
        for (number, publication) in &mut history.publications {
            let (Some(ttl), Heard::Stored(id), None) =
                (publication.ttl, &publication.heard, publication.expired)
            else {
                continue;
            };
            let states = nodes.iter().filter(|node| node.member().is_some()).flat_map(|node| {
                let of = move |group| view::message(&node.tables(GroupId(group)).read(), TenantId(1), id);
                (1..=GROUPS).filter_map(move |group| of(group).expect("memory cannot fail"))
            });
            let expired = states.into_iter().find_map(|state| match state {
                MessageState::Ended(ended) if ended.end == End::Expired => Some(ended),
                _ => None,
            });
            if let Some(Ended { accepted, .. }) = expired {
                let lived = instant().0 - publication.at;
                // A leader that knows too few clocks, or two that differ, lets time stand where the group saw it last.
                let stood = (true_wall() - lived).saturating_sub(accepted.0);
                assert!(lived + stood + CLOCK >= ttl, "push {number} lived {lived} ms of {ttl}");
                if stood > CLOCK {
                    self.saw("accepted while time stood still");
                }
                publication.expired = Some(instant().0);
            }
        }
    }

    /// How long an expired push lived, as it was seen.
    pub fn lived(&self, number: u64) -> Option<u64> {
        let history = lock(&self.history);
        let publication = &history.publications[&number];
        publication.expired.map(|at| at - publication.at)
    }

    /// After everything has come to rest: what is in the tables, what was heard, and what was given must agree.
    pub async fn judge(self: &Arc<World>) {
        let publications = lock(&self.history).publications.clone();
        let mut ends: BTreeMap<u64, End> = BTreeMap::new();
        for (number, ended) in self.ended() {
            assert!(ends.insert(number, ended.end).is_none(), "push {number} is stored twice");
        }
        for (number, push) in &publications {
            let receipt = lock(&self.history)
                .receipts
                .get(number)
                .map(|receipts| (receipts[0].device, receipts[0].stream, receipts[0].seq));
            let end = ends.get(number).copied();
            if let Some((device, _, seq)) = receipt {
                assert_eq!(device, push.device, "push {number} went astray");
                let same = |id: &MessageId| id.seq == seq;
                assert!(
                    !matches!(&push.heard, Heard::Stored(id) if !same(id)),
                    "push {number} came as {seq}"
                );
            }
            match (&push.heard, end) {
                (Heard::Never(why), end) => {
                    assert!(end.is_none() && receipt.is_none(), "push {number} is there, in spite of: {why}");
                }
                (Heard::Stored(id), None) => panic!("push {number} was acknowledged and is lost: {id}"),
                (_, Some(End::Acked)) => {
                    let confirmed = receipt.and_then(|(device, stream, seq)| {
                        lock(&self.history)
                            .confirmed
                            .get(&(device, stream))
                            .filter(|upto| **upto >= seq)
                            .copied()
                    });
                    assert!(confirmed.is_some(), "push {number} ended acked, never confirmed: {receipt:?}");
                }
                (_, Some(End::Expired)) => {
                    assert!(push.ttl.is_some(), "push {number} expired, which had a day to live");
                    self.saw("expired");
                }
                (_, Some(end)) => panic!("push {number} ended {end:?}, which nobody asked for"),
                (Heard::Nothing, None) => {
                    assert!(receipt.is_none(), "push {number} was received and is not there");
                }
            }
            if let Heard::Stored(id) = &push.heard {
                self.ask_status(*number, *id, end).await;
            }
        }
    }

    /// A publisher's status query says the same.
    async fn ask_status(&self, number: u64, id: MessageId, end: Option<End>) {
        let member = self.any_member().expect("nodes run");
        let query = Query::Message { tenant: TenantId(1), message: id, wait: 0 };
        let group = member.group_of(&id.terminal);
        let answer = member.query(group, query, Duration::from_secs(3)).await;
        let Ok(Answer::Message(Some(view))) = &answer else { panic!("push {number}: {answer:?}") };
        assert_eq!(view.end.map(|(end, _)| end), end, "push {number}: the status differs");
    }

    /// Every ended push in the tables of its group's replicas, by number.
    fn ended(&self) -> Vec<(u64, Ended)> {
        let directory = self.any_member().expect("nodes run").directory();
        let mut found = Vec::new();
        let mut keys = BTreeSet::new();
        for group in (1..=GROUPS).map(GroupId) {
            let replica = self.node(directory.replicas_of(group)[0]);
            let table = replica.tables(group).contents();
            for (key, value) in table.0.iter().filter(|(key, _)| key[0] == 0x17) {
                let ended: Ended = load(value).expect("an ended push");
                let number = u64::from_be_bytes(ended.command.0[..8].try_into().expect("eight bytes"));
                assert!(keys.insert(key.clone()), "two groups have the same push");
                found.push((number, ended));
            }
        }
        found
    }
}

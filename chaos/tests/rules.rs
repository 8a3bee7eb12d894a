//! Each rule of each checker on the smallest history that shows it, told by hand: what breaks it is found in these words,
//! and what is allowed is not.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::collections::BTreeMap;

use reveille_chaos::check::{Verdict, judge_events};
use reveille_chaos::history::{Result as Got, *};

/// A history that is told: each step a millisecond after the one before.
#[derive(Clone)]
struct Story {
    events: Vec<Event>,
    at: u64,
}

fn story() -> Story {
    told(Expect::default())
}

fn told(expect: Expect) -> Story {
    let begin = Begin { version: VERSION, expect, ..Begin::default() };
    Story { events: Vec::new(), at: 0 }.tell(What::Begin(begin))
}

impl Story {
    fn tell(mut self, what: What) -> Story {
        self.at += 1000;
        self.events.push(Event { n: self.events.len() as u64, at: self.at, what });
        self
    }

    fn see(self, seen: Observation) -> Story {
        self.tell(What::Observe(seen))
    }

    fn wait(mut self, ms: u64) -> Story {
        self.at += ms * 1000;
        self
    }

    fn invoke(self, op: u64, call: Call) -> Story {
        let (by, deadline_ms) = ("p".to_owned(), Some(1000));
        self.tell(What::Invoke(Invoke { op, by, node: None, deadline_ms, call }))
    }

    fn asks(self, op: u64, payload: &str, ttl_ms: Option<u64>) -> Story {
        self.invoke(op, Call::Publish { terminal: "t".to_owned(), payload: payload.to_owned(), ttl_ms })
    }

    fn stored(self, op: u64, seq: u64) -> Story {
        self.stored_as(op, &format!("t-1f-{seq}"), seq, None)
    }

    fn stored_as(self, op: u64, message: &str, seq: u64, position: Option<(u64, u64)>) -> Story {
        let message = message.to_owned();
        self.tell(What::Ok { op, got: Got::Published { message, seq, position } })
    }

    /// Asked and stored: the operation has the seq's number.
    fn publish(self, payload: &str, seq: u64) -> Story {
        self.asks(seq, payload, None).stored(seq, seq)
    }

    fn status(self, online: bool, epoch: u64, acked: u64) -> Story {
        self.status_of("t", online, epoch, acked)
    }

    fn status_of(self, terminal: &str, online: bool, epoch: u64, acked: u64) -> Story {
        let op = 1000 + self.events.len() as u64;
        let got = Got::Status { online, node: online.then_some(1), epoch, acked, next_seq: acked + 1 };
        self.invoke(op, Call::Status { terminal: terminal.to_owned() }).tell(What::Ok { op, got })
    }

    fn look(self, payload: &str, state: &str) -> Story {
        let op = 1000 + self.events.len() as u64;
        let (call, state) = (Call::Look { payload: payload.to_owned() }, state.to_owned());
        self.invoke(op, call).tell(What::Ok { op, got: Got::Looked { state } })
    }

    fn cancel(self, payload: &str) -> Story {
        let op = 1000 + self.events.len() as u64;
        self.invoke(op, Call::Cancel { payload: payload.to_owned() })
            .tell(What::Unknown { op, why: "no answer".to_owned() })
    }

    fn start(self) -> Story {
        self.see(Observation::Started { terminal: "t".to_owned(), copy: 0 })
    }

    fn connect(self, node: u64, epoch: u64) -> Story {
        self.connect_copy(0, node, epoch)
    }

    fn connect_copy(self, copy: u64, node: u64, epoch: u64) -> Story {
        self.see(Observation::Connected { terminal: "t".to_owned(), copy, node, epoch })
    }

    fn disconnect(self) -> Story {
        self.see(Observation::Disconnected { terminal: "t".to_owned(), copy: 0 })
    }

    fn reset(self) -> Story {
        self.see(Observation::Reset { terminal: "t".to_owned(), copy: 0, next: 1 })
    }

    fn confirm(self, seq: u64) -> Story {
        self.see(Observation::Confirmed { terminal: "t".to_owned(), copy: 0, seq })
    }

    fn saved(self, seq: u64) -> Story {
        self.see(Observation::Saved { terminal: "t".to_owned(), copy: 0, seq })
    }

    fn give(self, payload: &str, seq: u64) -> Story {
        self.given(0, payload, seq, None, false, None)
    }

    fn again(self, payload: &str, seq: u64) -> Story {
        self.given(0, payload, seq, None, true, None)
    }

    fn given(
        self,
        copy: u64,
        payload: &str,
        seq: u64,
        prev: Option<u64>,
        maybe_seen: bool,
        session: Option<(u64, u64)>,
    ) -> Story {
        let (terminal, payload) = ("t".to_owned(), payload.to_owned());
        let (node, epoch) = session.map_or((1, None), |(node, epoch)| (node, Some(epoch)));
        self.see(Observation::Delivered { terminal, copy, payload, seq, prev, maybe_seen, node, epoch })
    }

    fn ready(self, node: u64, ready: bool) -> Story {
        self.see(Observation::Ready { node, ready })
    }

    fn fault(self, step: FaultStep) -> Story {
        let (kind, target) = ("kill".to_owned(), "node 2".to_owned());
        self.tell(What::Fault(Fault { id: 1, step, kind, target, detail: String::new() }))
    }

    fn end(&self) -> Vec<Event> {
        self.clone().tell(What::End(End {})).events
    }

    fn outcome(&self, id: &str) -> (Verdict, String) {
        let judgement = judge_events(&self.end(), &[]);
        let judged = judgement.judged.into_iter().find(|judged| judged.checker.id == id).unwrap();
        let said: Vec<String> = judged.outcome.findings.into_iter().map(|finding| finding.what).collect();
        (judged.outcome.verdict, if said.is_empty() { judged.outcome.summary } else { said.join("; ") })
    }

    #[track_caller]
    fn fails(&self, id: &str, words: &str) {
        let (verdict, said) = self.outcome(id);
        assert!(verdict == Verdict::Fail && said.contains(words), "{verdict}: {said}");
    }

    #[track_caller]
    fn passes(&self, id: &str) {
        let (verdict, said) = self.outcome(id);
        assert_eq!(verdict, Verdict::Pass, "{said}");
    }

    #[track_caller]
    fn cannot_tell(&self, id: &str, words: &str) {
        let (verdict, said) = self.outcome(id);
        assert!(verdict == Verdict::Unknown && said.contains(words), "{verdict}: {said}");
    }
}

#[test]
fn c1_tells_where_a_loss_lies_and_what_is_none() {
    let three = story().publish("a", 1).publish("b", 2).publish("c", 3);
    three
        .clone()
        .give("b", 2)
        .give("c", 3)
        .fails("C1", "a was acknowledged at 0.003 s as seq 1 and never came to t; lost prefix");
    three.clone().give("a", 1).give("c", 3).fails("C1", "lost middle");
    three.clone().give("a", 1).give("d", 2).give("c", 3).fails("C1", "under its seq came d instead, at ");
    three.clone().give("a", 1).give("b", 2).fails("C1", "lost postfix");
    three.fails("C1", "nothing at all came");
    three.look("b", "pending").fails("C1", "and the cluster says that it is pending");
    let mortal = || story().asks(1, "a", Some(60_000)).stored(1, 1);
    mortal().wait(60_000).passes("C1");
    mortal().wait(30_000).fails("C1", "never came");
    mortal().wait(30_000).look("a", "expired").wait(30_000).fails("C1", "says that it is expired");
    story().publish("a", 1).cancel("a").passes("C1");
    story().publish("a", 1).look("a", "cancelled").fails("C1", "is cancelled");
    story().asks(1, "a", None).cannot_tell("C1", "nothing was acknowledged");
    let drained = |phase| story().see(Observation::Phase { phase }).publish("a", 1);
    drained(Phase::Drain).fails("C1", "never came");
    drained(Phase::Heal).cannot_tell("C1", "did not come to its drain");
}

#[test]
fn c2_holds_a_refusal_against_what_comes_all_the_same() {
    let refused = story().asks(1, "a", None).tell(What::Fail { op: 1, why: "404".to_owned() });
    refused.give("a", 1).fails("C2", "was told that it certainly is not stored");
    let unknown = story().asks(1, "a", None).tell(What::Unknown { op: 1, why: "no answer".to_owned() });
    unknown.give("a", 1).passes("C2");
    story().give("a", 1).asks(1, "a", None).fails("C2", "nobody had published");
}

#[test]
fn c3_allows_again_what_was_not_saved_and_is_marked() {
    let given = || story().publish("a", 1).start().give("a", 1);
    given().start().again("a", 1).passes("C3");
    given().confirm(1).start().again("a", 1).passes("C3");
    given().confirm(1).saved(1).start().again("a", 1).fails("C3", "after the disk said that 1 was confirmed");
    given().start().give("a", 1).fails("C3", "without its mark");
    given().again("a", 1).fails("C3", "twice to one process");
    given().give("a", 2).fails("C3", "as seq 1 and as seq 2");
    given().reset().again("a", 1).passes("C3");
    given().reset().give("a", 1).fails("C3", "as seq 1 and as seq 1");
    let many = (1..=65).fold(story().start(), |story, seq| story.give(&format!("p{seq}"), seq));
    let again = (1..=64).fold(many.clone().start(), |story, seq| story.again(&format!("p{seq}"), seq));
    again.passes("C3");
    again.again("p65", 65).fails("C3", "repeat 65 after one restart; a window has 64");
}

#[test]
fn c4_follows_the_chain_through_restarts_and_resets() {
    let given = |prev| story().given(0, "a", 1, Some(0), false, None).given(0, "b", 3, prev, false, None);
    given(Some(1)).passes("C4");
    given(Some(2)).fails("C4", "was given seq 3 as the one after 2, and has 1");
    given(None).give("c", 2).fails("C4", "was given seq 2 after seq 3");
    // What a killed process confirmed may not be on its disk; after that it goes on from there.
    given(None).confirm(3).start().again("b", 3).passes("C4");
    given(None).start().again("b", 3).again("a", 1).fails("C4", "was given seq 1 after seq 3");
    given(None).reset().give("x", 1).passes("C4");
    // What a second device had when it came is not known.
    let twin = |prev| story().given(1, "a", 5, Some(4), false, None).given(1, "b", 7, prev, false, None);
    twin(Some(5)).passes("C4");
    twin(Some(6)).fails("C4", "was given seq 7 as the one after 6, and has 5");
}

#[test]
fn c5_knows_one_place_for_each_push() {
    let two = |second: u64, position| {
        let first = story().asks(1, "a", None).stored_as(1, "t-1f-4", 4, Some((1, 70)));
        first.asks(2, "b", None).stored_as(2, &format!("t-1f-{second}"), second, position)
    };
    two(5, Some((1, 70))).passes("C5");
    two(5, Some((1, 69))).fails("C5", "seqs 4 and 5 of t are log entries 70 and 69");
    two(5, Some((2, 71))).fails("C5", "of groups 1 and 2");
    two(3, None).fails("C5", "b got seq 3 although a had been acknowledged as seq 4 before it was asked for");
    two(4, None).fails("C5", "a and b were both acknowledged as t-1f-4");
    story()
        .asks(1, "a", None)
        .stored_as(1, "t-1f-7", 8, None)
        .fails("C5", "t-1f-7 was acknowledged as seq 8");
    story().publish("a", 1).give("a", 2).fails("C5", "acknowledged as seq 1 and given as seq 2");
    story()
        .publish("a", 1)
        .asks(9, "b", None)
        .give("b", 1)
        .fails("C5", "seq 1 of t is a, and was given as b");
    // Asked for at the same time, either order is right.
    story().asks(1, "a", None).asks(2, "b", None).stored(2, 1).stored(1, 2).passes("C5");
    // In another stream they count anew.
    two(5, None).asks(3, "c", None).stored_as(3, "t-2f-1", 1, None).passes("C5");
}

#[test]
fn c6_lets_sessions_end_by_themselves_and_not_come_back() {
    let online = || story().start().connect(1, 1).status(true, 1, 0);
    online().status(false, 1, 0).passes("C6");
    online().status(false, 1, 0).status(true, 1, 0).fails("C6", "no order explains what was seen");
    online().connect(2, 2).status(true, 1, 0).fails("C6", "answered online at node 1, epoch 1");
    online().connect(2, 2).status(true, 2, 0).fails("C6", "answered online at node 1, epoch 2");
    // A session whose terminal never heard of it.
    online().status(false, 2, 0).connect(1, 3).status(true, 3, 0).passes("C6");
    online().status(false, 2, 0).status(false, 1, 0).fails("C6", "epoch 1");
    story().publish("a", 1).cannot_tell("C6", "nobody asked");
}

#[test]
fn c7_gives_each_epoch_to_one_session() {
    let session =
        |at: (u64, u64)| story().publish("a", 1).connect(1, 5).given(0, "a", 1, None, false, Some(at));
    session((1, 5)).passes("C7");
    session((2, 5)).fails("C7", "by another node than the one of epoch 5 (node 1)");
    session((1, 4)).fails("C7", "came in the session of epoch 4 (node 1), while its process had epoch 5");
    session((1, 5)).connect(2, 5).fails("C7", "epoch 5 was granted twice, by node 1 and by node 2");
    session((1, 5)).connect(2, 4).fails("C7", "a session of epoch 4 (node 2) opened after one of epoch 5");
    session((1, 5))
        .disconnect()
        .given(0, "b", 2, None, false, Some((1, 5)))
        .fails("C7", "after the end of epoch 5");
    // In another process what was on its way may still come; what was published later may not.
    let twins = || story().connect_copy(1, 1, 5).publish("a", 1).connect_copy(2, 2, 6).publish("b", 2);
    twins().given(1, "a", 1, None, false, Some((1, 5))).passes("C7");
    twins()
        .given(1, "b", 2, None, false, Some((1, 5)))
        .fails("C7", "published after epoch 6 (node 2) opened");
}

#[test]
fn c8_remembers_what_the_cluster_said() {
    let acked = || story().publish("a", 1).start().connect(1, 1).give("a", 1).confirm(1).status(true, 1, 1);
    acked().passes("C8");
    acked()
        .status(true, 1, 0)
        .fails("C8", "confirmed up to 1 according to the cluster, and later only up to 0");
    acked().status(true, 1, 2).fails("C8", "and its application had confirmed 1");
    acked().status_of("other", true, 1, 1).fails("C8", "other: confirmed up to 1 according to the cluster");
    acked().again("a", 1).passes("C8");
    acked().disconnect().connect(1, 2).again("a", 1).fails("C8", "came again in a session that opened after");
    acked().look("a", "acked").look("a", "acked").passes("C8");
    acked().look("a", "acked").look("a", "expired").fails("C8", "a was acked, and later expired");
}

#[test]
fn c9_measures_from_whoever_waits() {
    let expect =
        Expect { publish_gap_ms: Some(500), deliver_ms: Some(400), ready_ms: Some(300), ..Expect::default() };
    let begin = || told(expect.clone()).publish("a", 1).give("a", 1);
    begin().passes("C9");
    begin().asks(2, "b", None).wait(600).stored(2, 2).fails("C9", "publish gap: t waited 601 ms");
    // Who has failed is still waiting.
    let failed = begin().asks(2, "b", None).tell(What::Fail { op: 2, why: "503".to_owned() });
    failed.wait(600).publish("c", 3).give("c", 3).fails("C9", "publish gap: t waited 603 ms");
    begin().publish("b", 2).wait(500).give("b", 2).fails("C9", "delivery: b waited 501 ms");
    let fault = || begin().ready(2, true).fault(FaultStep::Began).ready(2, false).fault(FaultStep::Ended);
    fault().wait(200).ready(2, true).passes("C9");
    fault().wait(400).ready(2, true).fails("C9", "ready again: kill of node 2 waited 401 ms");
    fault().wait(400).fails("C9", "ready again");
    // Of who belongs no more nothing is awaited.
    let left = || fault().see(Observation::Left { node: 2 });
    left().wait(400).publish("b", 2).give("b", 2).passes("C9");
    let settled = |settled| left().see(Observation::Settled { settled, why: "node 3 is down".to_owned() });
    settled(true).passes("C9");
    settled(false).fails("C9", "the cluster is not settled: node 3 is down");
    story().publish("a", 1).cannot_tell("C9", "no budget was set");
}

#[test]
fn c10_compares_replicas_where_they_are_equally_far() {
    let state = |story: Story, node, index, hash: &str| {
        story.see(Observation::State { node, group: 1, index, hash: hash.to_owned() })
    };
    let two = |index, hash: &str| state(state(story(), 1, 7, "aa"), 2, index, hash);
    two(7, "aa").passes("C10");
    two(7, "bb").fails("C10", "group 1 at log index 7: node 1 has state aa and node 2 has bb");
    two(6, "bb").fails("C10", "at the end node 2 has applied 6 and node 1 has applied 7");
    state(two(6, "bb").see(Observation::Left { node: 2 }), 3, 7, "aa").passes("C10");
    // What has gone from a node is behind for good; what came back to it is not.
    let gone = || two(6, "bb").see(Observation::Moved { node: 2, group: 1 });
    state(gone(), 3, 7, "aa").passes("C10");
    state(state(gone(), 3, 7, "aa"), 2, 6, "bb").fails("C10", "at the end node 2 has applied 6");
    state(story(), 1, 7, "aa").cannot_tell("C10", "no two replicas");
}

#[test]
fn c11_wants_a_reason_and_an_address_and_promptness() {
    let sent = |online, pending, proven| {
        let terminal = "t".to_owned();
        story().see(Observation::Notifying { terminal, node: 1, online, pending, proven })
    };
    sent(false, 1, true).passes("C11");
    sent(true, 1, true).fails("C11", "although it is online");
    sent(false, 0, true).fails("C11", "with nothing pending");
    sent(false, 1, false).fails("C11", "to an address that was not proven");
    let notified = |story: Story| story.see(Observation::Notified { terminal: "t".to_owned(), copy: 0 });
    let offline = || told(Expect { notify_ms: Some(100), ..Expect::default() }).start();
    notified(offline().publish("a", 1)).wait(200).passes("C11");
    notified(offline().publish("a", 1).wait(150))
        .fails("C11", "the first sign came after 151 ms, of 100 ms allowed");
    offline().publish("a", 1).wait(200).fails("C11", "nothing came at all");
    offline()
        .connect(1, 1)
        .publish("a", 1)
        .wait(200)
        .cannot_tell("C11", "no push came to an offline terminal");
    offline().fault(FaultStep::Ended).publish("a", 1).wait(200).cannot_tell("C11", "in quiet times");
}

#[test]
fn c12_wants_an_answer_of_whatever_kind() {
    let asked = || story().asks(1, "a", None);
    asked().wait(1900).tell(What::Unknown { op: 1, why: "no answer".to_owned() }).passes("C12");
    asked().wait(2100).stored(1, 1).fails("C12", "was answered after 2101 ms, with a deadline of 1000 ms");
    asked().wait(2100).fails("C12", "has no answer after");
    asked().cannot_tell("C12", "1 still open at the end");
}

#[test]
fn c13_c14_c16_know_what_they_did_not_see() {
    let limits = Expect { rss_bytes: Some(10), fds: Some(10), disk_bytes: Some(10), ..Expect::default() };
    let took = |rss_bytes, fds, disk_bytes| {
        told(limits.clone()).see(Observation::Resources { node: 3, rss_bytes, fds, disk_bytes })
    };
    took(10, 10, Some(10)).passes("C13");
    took(11, 10, Some(10)).fails("C13", "node 3 took 11 bytes of memory, of 10 allowed");
    took(10, 11, Some(10)).fails("C13", "11 open files");
    took(10, 10, Some(11)).fails("C13", "11 bytes on disk");
    took(10, 10, None).cannot_tell("C13", "nobody looked at bytes on disk");
    let cover = BTreeMap::from([("fault.kill".to_owned(), 2)]);
    let covered = told(Expect { cover, ..Expect::default() });
    covered.clone().fault(FaultStep::Ended).cannot_tell("C14", "fault.kill 1 times of 2");
    covered.fault(FaultStep::Ended).fault(FaultStep::Ended).passes("C14");
    let found = |problem| {
        let line = "x".to_owned();
        story()
            .see(Observation::LogFound { node: 2, problem, line })
            .see(Observation::LogRead { node: 2, lines: 1 })
    };
    found(Problem::Panic).fails("C16", "the log of node 2 tells of a panic: x");
    found(Problem::Secret).fails("C16", "shows a secret");
    story().cannot_tell("C16", "no log was read");
}

#[test]
fn what_a_harness_may_not_write_is_its_trouble() {
    let trouble = |story: Story| {
        let judgement = judge_events(&story.end(), &[]);
        (judgement.verdict, judgement.trouble.first().map(|finding| finding.what.clone()).unwrap_or_default())
    };
    let says = |story: Story, words: &str| {
        let (verdict, said) = trouble(story);
        assert!(verdict == Verdict::Harness && said.contains(words), "{verdict}: {said}");
    };
    says(story().asks(1, "a", None).asks(2, "a", None), "\"a\" is used a second time");
    says(story().asks(1, "a", None).asks(1, "b", None), "begins while one of that number is open");
    says(story().stored(1, 1), "is answered, and is not open");
    let asked = story().invoke(1, Call::Status { terminal: "t".to_owned() });
    says(asked.stored(1, 1), "what was not asked for");
    says(story().fault(FaultStep::Began).fault(FaultStep::Began), "begins twice");
}

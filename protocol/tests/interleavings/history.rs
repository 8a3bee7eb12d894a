//! What happened, as seen from outside, and the checker. It reads the tables' bytes by itself and shares no rule with
//! the machines that it judges.

use std::collections::{BTreeMap, BTreeSet};

use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Ended, Message, Row};
use reveille_protocol::service_list::row::{Urgency, load};
use reveille_protocol::service_list::{Attached, Command, Effect, MemoryTable, Refusal, Reply};
use reveille_protocol::session::terminal::Memory;
use reveille_protocol::stage::End;
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::entry::Entry;
use reveille_protocol::wire::session::Push;

/// Without faults a push is received within this: a notification, a connection, an attach.
const PROMPT: u64 = 1000;
/// How long a leader waits for a session before it notifies the terminal as well.
const SILENCE: u64 = 3000;

/// What a publisher wants, and what it heard.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    pub device: usize,
    pub ttl: Option<u64>,
    pub urgency: Urgency,
    pub topic: Option<String>,
    pub keyed: bool,
    pub tries: u32,
    pub accepted: Option<MessageId>,
    pub refused: Option<Refusal>,
    pub cancelled: bool,
    pub when: When,
}

/// When a push was published, and so within which time it must come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum When {
    /// While faults went on: some time.
    #[default]
    Storm,
    /// When all were over.
    Calm,
    /// As bindings were forgotten: within a period more.
    Forgotten,
    /// As an anchor was killed: once the terminal has noticed.
    Killed,
}

/// How much longer a push takes, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub forgotten: u64,
    pub killed: u64,
    pub killed_in_session: u64,
}

/// A push that the service list took in.
#[derive(Debug, Clone)]
struct Stored {
    number: u64,
    at: u64,
    deadline: GroupTime,
    end: Option<(End, GroupTime)>,
}

/// A push given to the application.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Receipt {
    life: u32,
    at: u64,
    number: u64,
}

#[derive(Debug, Default)]
pub struct History {
    pub publications: BTreeMap<u64, Publication>,
    pub unregistered: BTreeSet<usize>,
    /// Terminals that notifications do not reach, or not for every push.
    pub hard_of_hearing: BTreeSet<usize>,
    /// Terminals that had a session with the anchor that was killed in the end.
    pub in_session: BTreeSet<usize>,
    /// Pushes that were stored while the leader waited for a session that is no more.
    pub waits_for_silence: BTreeSet<MessageId>,
    stored: BTreeMap<MessageId, Stored>,
    numbers: BTreeMap<u64, MessageId>,
    /// By terminal, stream and seq: each time it was given.
    receipts: BTreeMap<(usize, Stream, Seq), Vec<Receipt>>,
    /// The last one given, by terminal: in which life and stream.
    last: BTreeMap<usize, (u32, Stream, Seq)>,
    /// What the application confirmed, by terminal and stream.
    confirmed: BTreeMap<(usize, Stream), Seq>,
    /// What the disk says was confirmed.
    saved: BTreeMap<usize, Memory>,
    /// The latest attempt granted and its epoch, by terminal and stream.
    attached: BTreeMap<(TerminalId, Stream), (Attempt, Epoch)>,
    entries: u64,
}

impl History {
    pub fn applied(
        &mut self,
        now: u64,
        table: &MemoryTable,
        entry: &Entry,
        replies: &[Reply],
        effects: &[Effect],
    ) {
        for effect in effects {
            if let Effect::Ended { message, end } = effect {
                let stored = self.stored.get_mut(message).expect("what ends was stored");
                assert!(stored.end.is_none(), "{message} ends twice: {:?}, then {end:?}", stored.end);
                stored.end = Some((*end, entry.time));
            }
            if let Effect::Stored { message, .. } = effect {
                // Its reply says the rest; it comes before any end of it, which only a later command brings.
                self.note_stored(now, *message, entry, replies);
            }
        }
        for (command, reply) in entry.commands.iter().zip(replies) {
            if let (Command::Attach(attach), Reply::Attached(attached)) = (command, reply) {
                self.note_attached(attach.terminal, attach.attempt, attached);
            }
        }
        self.entries += 1;
        if self.entries.is_multiple_of(10) {
            check_tables(table);
        }
    }

    fn note_stored(&mut self, now: u64, message: MessageId, entry: &Entry, replies: &[Reply]) {
        let of_it = |reply: &Reply| match reply {
            Reply::Enqueued { message: id, deadline, duplicate: false, .. } if *id == message => {
                Some(*deadline)
            }
            _ => None,
        };
        let found = entry.commands.iter().zip(replies).find_map(|(command, reply)| match command {
            Command::Enqueue(enqueue) => of_it(reply).map(|deadline| (enqueue, deadline)),
            _ => None,
        });
        let (enqueue, deadline) = found.expect("what is stored was answered so");
        let number = number_of(&enqueue.body);
        assert!(enqueue.not_after >= entry.time, "push {number} was stored too late");
        let before = self.numbers.insert(number, message);
        // A retry looks for its first copy in the terminal's life: with the life, that memory ends.
        let anew = |before: MessageId| before.check != message.check;
        assert!(before.is_none_or(anew), "push {number} is stored a second time, as {message}");
        assert!(self.stored.insert(message, Stored { number, at: now, deadline, end: None }).is_none());
    }

    /// Attempts and epochs rise together.
    fn note_attached(&mut self, terminal: TerminalId, attempt: Attempt, attached: &Attached) {
        let latest = self.attached.entry((terminal, attached.stream)).or_default();
        let same = attempt == latest.0 && attached.epoch == latest.1;
        let risen = attempt > latest.0 && attached.epoch > latest.1;
        assert!(same || risen, "attempt {attempt} is granted epoch {} after {latest:?}", attached.epoch);
        *latest = (attempt, attached.epoch);
    }

    pub fn saved(&mut self, device: usize, memory: Memory) {
        self.saved.insert(device, memory);
    }

    pub fn confirmed(&mut self, device: usize, stream: Stream, seq: Seq) {
        let confirmed = self.confirmed.entry((device, stream)).or_default();
        *confirmed = (*confirmed).max(seq);
    }

    /// The rule for what an application may be given: in one life of its process the seqs of a stream rise, so none
    /// comes twice. In a later life one comes again only if the disk does not say that it was confirmed, and
    /// then it is marked.
    pub fn received(&mut self, now: u64, device: usize, life: u32, stream: Stream, push: &Push) {
        let seq = push.seq;
        let last = self.last.insert(device, (life, stream, seq));
        if let Some((_, _, before)) = last.filter(|(l, s, _)| (*l, *s) == (life, stream)) {
            assert!(before < seq, "t{device} is given push {seq} after {before}");
        }
        let memory = self.saved.get(&device).copied().unwrap_or_default();
        assert!(
            memory.stream != stream || memory.last < seq,
            "t{device} is given {seq}, which it has confirmed and saved"
        );
        let receipts = self.receipts.entry((device, stream, seq)).or_default();
        if let Some(before) = receipts.last() {
            assert!(push.maybe_seen, "t{device} is given {seq} again after {before:?} without a mark");
        }
        receipts.push(Receipt { life, at: now, number: number_of(&push.body) });
    }

    /// After everything has come to rest.
    pub fn check(&self, table: &MemoryTable, terminals: &[TerminalId], bounds: &Bounds) {
        check_tables(table);
        let streams = self.streams();
        for (id, stored) in &self.stored {
            let device = terminals.iter().position(|terminal| *terminal == id.terminal).expect("a terminal");
            let key = streams.get(&(device, id.check)).map(|stream| (device, *stream, id.seq));
            let receipts = key.and_then(|key| self.receipts.get(&key));
            for receipt in receipts.into_iter().flatten() {
                assert_eq!(receipt.number, stored.number, "{id} was given with another body");
            }
            let publication = &self.publications[&stored.number];
            let bound = match publication.when {
                When::Storm => None,
                When::Calm => Some(PROMPT),
                When::Forgotten => Some(PROMPT + bounds.forgotten),
                When::Killed if self.in_session.contains(&device) => Some(PROMPT + bounds.killed_in_session),
                When::Killed => Some(PROMPT + bounds.killed),
            };
            if let Some(bound) = bound.filter(|_| !self.hard_of_hearing.contains(&device)) {
                let received = receipts.and_then(|receipts| receipts.first()).map(|receipt| receipt.at);
                let silence = if self.waits_for_silence.contains(id) { SILENCE } else { 0 };
                let late = received.is_none_or(|at| at > stored.at + silence + bound);
                assert!(!late, "push {} was stored at {}, received {received:?}", stored.number, stored.at);
            }
            let Some((end, at)) = stored.end else {
                panic!("push {} is left pending: {id}", stored.number);
            };
            match end {
                End::Acked => {
                    assert!(receipts.is_some(), "push {} ended acked, never received: {id}", stored.number);
                    let confirmed = key.and_then(|(device, stream, _)| self.confirmed.get(&(device, stream)));
                    assert!(confirmed.is_some_and(|up_to| *up_to >= id.seq), "{id} acked, never confirmed");
                }
                End::Expired => assert!(stored.deadline <= at, "{id} expired before its time"),
                End::Cancelled => assert!(publication.cancelled, "{id} was cancelled by nobody"),
                End::Replaced => assert!(publication.topic.is_some(), "{id} has no topic to be replaced in"),
                End::Gone => assert!(self.unregistered.contains(&device), "{id} is gone with no terminal"),
                End::Refused => panic!("{id} was refused, which nothing does yet"),
            }
        }
        self.check_publishers();
    }

    fn check_publishers(&self) {
        for (number, publication) in &self.publications {
            let stored = self.numbers.get(number);
            if let Some(accepted) = &publication.accepted {
                let there = self.stored.get(accepted).is_some_and(|stored| stored.number == *number);
                assert!(there, "push {number} was accepted and is not there");
            }
            // Not so binding: what speaks of time or of not knowing, what a second try under the same key heard of
            // a first one that nobody knew of, and what a retry heard after its terminal was unregistered.
            let binding = match &publication.refused {
                None | Some(Refusal::TooLate { .. } | Refusal::Unknown) => false,
                Some(_) if publication.tries > 1 || publication.accepted.is_some() => false,
                Some(Refusal::UnknownTerminal) => !self.unregistered.contains(&publication.device),
                Some(_) => true,
            };
            assert!(!binding || stored.is_none(), "push {number} was refused and is there: {publication:?}");
        }
    }

    fn streams(&self) -> BTreeMap<(usize, u32), Stream> {
        self.receipts.keys().map(|(device, stream, _)| ((*device, stream.check()), *stream)).collect()
    }

    /// Pushes that were stored, and received: for the test that the runs mean something.
    pub fn counts(&self) -> (usize, usize) {
        (self.stored.len(), self.receipts.len())
    }
}

fn number_of(body: &[u8]) -> u64 {
    std::str::from_utf8(body).expect("a number").parse().expect("a number")
}

/// The tables among themselves: counters equal what they count, every deadline has its matter and every matter its
/// deadline. The keys are read here by hand.
pub fn check_tables(table: &MemoryTable) {
    let of = |tag: u8| {
        table.0.iter().filter(move |(key, _)| key[0] == tag).map(|(key, value)| (&key[1..], &value[..]))
    };
    let mut waiting: BTreeMap<&[u8], (u32, u32, u64)> = BTreeMap::new();
    let mut due: BTreeSet<Vec<u8>> = BTreeSet::new();
    for (key, value) in of(0x13) {
        let message: Message = load(value).expect("a message");
        let (pending, bytes, highest) = waiting.entry(&key[..16]).or_default();
        *pending += 1;
        *bytes += message.body.len() as u32;
        *highest = u64::from_be_bytes(key[16..].try_into().expect("a seq"));
        due.insert([&message.deadline.0.to_be_bytes()[..], &[0], key].concat());
        if let Some(topic) = &message.topic {
            let name = [&key[..16], &message.channel.0.to_be_bytes(), topic.as_bytes()].concat();
            assert!(of(0x14).any(|(key, _)| key == name), "a pending push's topic is not in the index");
        }
    }
    for (key, value) in of(0x12) {
        let row: Row = load(value).expect("a row");
        let (pending, bytes, highest) = waiting.remove(key).unwrap_or_default();
        assert_eq!((row.pending, row.pending_bytes), (pending, bytes), "a row's counters");
        assert!(row.next_seq.0 > highest && row.acked < row.next_seq, "a row's seqs");
        let registration = |(of, _): (&[u8], &[u8])| of[8] == 3 && of[9..] == *key;
        assert!(of(0x15).any(registration), "a row has no deadline for its registration");
    }
    assert!(waiting.is_empty(), "pushes wait for terminals that are not registered");
    let topics = of(0x14).count();
    let with_topic = of(0x13).filter(|(_, value)| load::<Message>(value).expect("a message").topic.is_some());
    assert_eq!(topics, with_topic.count(), "the index of topics has entries of pushes that do not wait");
    let ended: BTreeSet<&[u8]> = of(0x17).map(|(key, _)| key).collect();
    let keys: BTreeSet<&[u8]> = of(0x16).map(|(key, _)| key).collect();
    // The one without an id says until when there are others.
    let settled: BTreeSet<&[u8]> = of(0x1a).map(|(key, _)| key).filter(|key| !key.is_empty()).collect();
    for (_, value) in of(0x17) {
        let _: Ended = load(value).expect("an ended push");
    }
    let mut forgotten: BTreeSet<&[u8]> = of(0x1b).map(|(key, _)| key).collect();
    let (mut ends, mut idempotent, mut retried) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (key, _) in of(0x15) {
        match key[8] {
            0 => assert!(due.remove(key), "a deadline of a push that does not wait"),
            1 => assert!(ended.contains(&key[9..]) && ends.insert(&key[9..]), "a deadline of no end"),
            2 => assert!(keys.contains(&key[9..]) && idempotent.insert(&key[9..]), "a deadline of no key"),
            // One of a terminal that was unregistered goes when it comes up.
            3 => {}
            4 => assert!(settled.contains(&key[9..]) && retried.insert(&key[9..]), "a deadline of no retry"),
            5 => assert!(forgotten.remove(&key[9..]), "a deadline of a life that nobody remembers"),
            kind => panic!("a deadline of kind {kind}"),
        }
    }
    assert!(due.is_empty(), "a pending push has no deadline");
    assert!(forgotten.is_empty(), "an ended life has no deadline");
    assert_eq!((ends.len(), idempotent.len()), (ended.len(), keys.len()), "matters without a deadline");
    assert_eq!(retried.len(), settled.len(), "retried commands without a deadline");
}

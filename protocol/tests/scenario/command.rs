//! The commands of a scenario, one function each.

use bytes::Bytes;
use reveille_protocol::dispatch;
use reveille_protocol::id::*;
use reveille_protocol::service_list::row::{Linger, Reachability, Settings, Urgency};
use reveille_protocol::service_list::{self as list, Command, Reply, view};
use reveille_protocol::session::terminal;
use reveille_protocol::time::GroupTime;
use reveille_protocol::wire::peer::Why;
use reveille_protocol::wire::session::Cause;

use crate::show;
use crate::world::{Network, World};

pub fn run(world: &mut World, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["register", name] => register(world, name, 77),
        ["register", name, stream] => register(world, name, stream.parse().unwrap()),
        ["publish", name, body, ..] => publish(world, name, body, &words[3..]),
        ["cancel", name, seq] => cancel(world, name, seq),
        ["unregister", name] => {
            let terminal = world.device(name).id;
            let reply =
                world.propose(Command::Unregister(list::Unregister { terminal, tenant: TenantId(1) }));
            say(world, &reply);
        }
        ["linger", name, linger] => {
            world.device(name).linger = match linger {
                "at-once" => Linger::AtOnce,
                "forever" => Linger::Forever,
                seconds => Linger::Seconds(seconds.trim_end_matches('s').parse().unwrap()),
            };
        }
        ["min-urgency", name, urgency] => world.device(name).min_urgency = parse_urgency(urgency),
        ["network", name, network] => {
            world.device(name).network = Some(match network {
                "open" => Network::Open,
                "nat" => Network::Nat,
                "blocked" => Network::Blocked,
                other => panic!("no network {other}"),
            });
        }
        ["checks-in", name] => world.device(name).cause = Cause::CheckIn,
        ["reachability", name] => {
            let terminal = world.device(name).id;
            let row = view::terminal(&world.table, &terminal).unwrap().expect("a row");
            let text = match row.reachability {
                Reachability::Direct { address, .. } => format!("direct at {address}"),
                Reachability::Pinned { anchor, .. } => format!("pinned to n{anchor}"),
                other => format!("{other:?}"),
            };
            world.say(text);
        }
        ["deaf", name] => world.device(name).listens = false,
        ["connect", name, node] => {
            world.connect(name, number(node));
        }
        // Everything that is on its way arrives, and what that causes, until nothing is.
        ["run"] => {
            for _ in 0..1000 {
                let Some(message) = world.queue.pop_front() else { return };
                world.deliver(message);
            }
            panic!("it does not come to rest");
        }
        ["step"] => {
            if let Some(message) = world.queue.pop_front() {
                let text = show::message(world, &message);
                world.say(text);
                world.deliver(message);
            }
        }
        ["queue"] => {
            for message in world.queue.clone() {
                let text = show::message(world, &message);
                world.say(text);
            }
        }
        ["drop"] => {
            if let Some(message) = world.queue.pop_front() {
                let text = show::message(world, &message);
                world.say(format!("lost: {text}"));
            }
        }
        ["repeat"] => {
            let first = world.queue.front().cloned().expect("something on its way");
            world.queue.push_back(first);
        }
        ["later"] => world.queue.rotate_left(1),
        ["confirm", name, seq] => {
            let event = terminal::Event::Confirmed(Seq(seq.parse().unwrap()));
            for connection in open(world, name) {
                world.client(connection, event.clone());
            }
        }
        ["notified", name] => {
            for connection in open(world, name) {
                world.client(connection, terminal::Event::Notified);
            }
        }
        ["answered", name] => {
            let terminal = world.device(name).id;
            world.dispatch(dispatch::Event::Notified { terminal, failed: None });
        }
        ["unanswered", name] => {
            let terminal = world.device(name).id;
            world.dispatch(dispatch::Event::Notified { terminal, failed: Some(Why::NoAnswer) });
        }
        ["spent", name] => {
            let terminal = world.device(name).id;
            world.dispatch(dispatch::Event::Notified { terminal, failed: Some(Why::Budget) });
        }
        ["advance", time] => world.advance(parse_time(time)),
        ["expire"] => {
            let reply = world.propose(Command::Expire);
            say(world, &reply);
        }
        // The terminal's process is killed: its disk stays, its connections close, what was sent to it is lost.
        ["kill", name] if name.starts_with('t') => {
            for connection in open(world, name) {
                world.connections.get_mut(&connection).unwrap().client = None;
                world.server(connection, reveille_protocol::session::server::Event::PeerClosed);
            }
            let device = world.device(name);
            device.given = device.disk.last;
        }
        // The node is killed: its sessions are gone, and nobody tells the leader.
        ["kill", node] => {
            let node = number(node);
            let held: Vec<u64> =
                world.connections.iter().filter(|(_, ends)| ends.node == node).map(|(id, _)| *id).collect();
            for connection in held {
                world.connections.get_mut(&connection).unwrap().server = None;
                world.client(connection, terminal::Event::PeerClosed);
            }
        }
        // It started again, or was marked down: sessions of its earlier incarnation are fenced.
        ["fence", node] => {
            *world.incarnations.get_mut(&number(node)).unwrap() += 1;
            for terminal in world.dispatch.waiting().collect::<Vec<_>>() {
                world.look_at(terminal, None);
            }
        }
        ["new-leader"] => {
            world.term += 1;
            let term = world.term;
            world.dispatch(dispatch::Event::Lead { term });
            for terminal in view::waiting(&world.table, None, 1000).unwrap() {
                let pushes = view::pending(&world.table, &terminal, Seq(0), Seq(u64::MAX), 1000).unwrap();
                let urgency = pushes.iter().map(|(_, message)| message.urgency).max();
                let facts = world.facts(&terminal);
                world.dispatch(dispatch::Event::Found { terminal, facts, urgency });
            }
        }
        // What sessions propose comes to nothing, until the leader is back.
        ["leader", "away"] => world.leader_away = true,
        ["leader", "back"] => world.leader_away = false,
        ["settings", ..] => settings(world, &words[1..]),
        ["row", name] => {
            let terminal = world.device(name).id;
            let text = match view::terminal(&world.table, &terminal).unwrap() {
                None => "no row".to_owned(),
                Some(row) => format!(
                    "{} epoch {} attempt {} next {} acked {} pending {} ({} bytes)",
                    row.current
                        .map_or("offline".to_owned(), |current| format!("online at n{}", current.node)),
                    row.epoch,
                    row.attempt,
                    row.next_seq,
                    row.acked,
                    row.pending,
                    row.pending_bytes
                ),
            };
            world.say(text);
        }
        ["message", name, seq] => {
            let id = message_id(world, name, seq);
            let found = view::message(&world.table, TenantId(1), &id).unwrap();
            let text = match found {
                None => "unknown".to_owned(),
                Some(view::MessageState::Pending(_)) => "pending".to_owned(),
                Some(view::MessageState::Ended(ended)) => {
                    let seen = if ended.seen.is_some() { ", seen" } else { "" };
                    format!("{}{seen}", ended.end.stage().name())
                }
            };
            world.say(text);
        }
        _ => panic!("no such command: {line}"),
    }
}

fn register(world: &mut World, name: &str, stream: u64) {
    let session_key = world.device(name).key;
    let register = list::Register { tenant: TenantId(1), session_key, stream: Stream(stream) };
    let reply = world.propose(Command::Register(register));
    say(world, &reply);
}

fn publish(world: &mut World, name: &str, body: &str, options: &[&str]) {
    let terminal = world.device(name).id;
    let mut enqueue = list::Enqueue {
        id: CommandId([0; 16]),
        not_after: GroupTime(world.group_time().0 + 60_000),
        retry: false,
        terminal,
        tenant: TenantId(1),
        ttl: None,
        urgency: Urgency::Normal,
        channel: Channel(0),
        topic: None,
        idempotency: None,
        headers: Vec::new(),
        body: Bytes::from(body.to_owned()),
    };
    // Each publish is a command of its own, unless the scenario names one.
    enqueue.id.0[..8].copy_from_slice(&(world.table.0.len() as u64 + world.now.0 * 1000).to_be_bytes());
    for option in options {
        match option.split_once('=') {
            Some(("ttl", time)) => enqueue.ttl = Some(parse_time(time)),
            Some(("topic", topic)) => enqueue.topic = Some(topic.to_owned()),
            Some(("urgency", urgency)) => enqueue.urgency = parse_urgency(urgency),
            Some(("id", id)) => enqueue.id = CommandId([id.parse().unwrap(); 16]),
            Some(("tenant", tenant)) => enqueue.tenant = TenantId(tenant.parse().unwrap()),
            Some(("not-after", time)) => enqueue.not_after = GroupTime(1_000_000 + parse_time(time)),
            Some(("key", key)) => {
                let mut body_hash = [0; 16];
                body_hash[..body.len().min(16)].copy_from_slice(&body.as_bytes()[..body.len().min(16)]);
                let key = list::key::idempotency_hash(TenantId(1), &terminal, key);
                enqueue.idempotency = Some(list::Idempotency { key, body_hash });
            }
            None if *option == "retry" => enqueue.retry = true,
            _ => panic!("no such option: {option}"),
        }
    }
    let reply = world.propose(Command::Enqueue(Box::new(enqueue)));
    say(world, &reply);
}

fn cancel(world: &mut World, name: &str, seq: &str) {
    let message = message_id(world, name, seq);
    let reply = world.propose(Command::Cancel(list::Cancel { message, tenant: TenantId(1) }));
    say(world, &reply);
}

fn message_id(world: &mut World, name: &str, seq: &str) -> MessageId {
    let terminal = world.device(name).id;
    MessageId { terminal, check: Stream(77).check(), seq: Seq(seq.parse().unwrap()) }
}

fn settings(world: &mut World, options: &[&str]) {
    let mut settings = Settings::default();
    for option in options {
        match option.split_once('=').unwrap() {
            ("max-pending", value) => settings.max_pending = value.parse().unwrap(),
            ("max-payload", value) => settings.max_payload = value.parse().unwrap(),
            ("registration", value) => settings.registration_lifetime = parse_time(value),
            (other, _) => panic!("no such setting: {other}"),
        }
    }
    world.propose(Command::Settings(settings));
}

fn say(world: &mut World, reply: &Reply) {
    let text = match reply {
        Reply::Done => "done".to_owned(),
        Reply::Registered { existed, .. } => if *existed { "known" } else { "registered" }.to_owned(),
        Reply::Enqueued { message, deadline, accepted, duplicate } => {
            let again = if *duplicate { ", as before" } else { "" };
            format!(
                "stored as push {}, lives {} ms{again}",
                message.seq,
                deadline.since(*accepted).as_millis()
            )
        }
        Reply::Ended(end) => end.stage().name().to_owned(),
        Reply::Expired { count } => format!("{count} matters taken up"),
        Reply::Refused(refusal) => format!("refused: {refusal}"),
        Reply::Attached(_) | Reply::Directory(_) | Reply::Restored => format!("{reply:?}"),
    };
    world.say(text);
}

/// The connections of a terminal whose own end is open.
fn open(world: &World, name: &str) -> Vec<u64> {
    let mine = world.connections.iter().filter(|(_, ends)| ends.terminal == name && ends.client.is_some());
    mine.map(|(id, _)| *id).collect()
}

fn number(node: &str) -> u64 {
    node.trim_start_matches('n').parse().expect("nodes are named n1, n2, n3")
}

fn parse_urgency(text: &str) -> Urgency {
    match text {
        "very-low" => Urgency::VeryLow,
        "low" => Urgency::Low,
        "normal" => Urgency::Normal,
        "high" => Urgency::High,
        other => panic!("no such urgency: {other}"),
    }
}

fn parse_time(text: &str) -> u64 {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().unwrap();
    number
        * match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            other => panic!("no such unit of time: {other:?}"),
        }
}

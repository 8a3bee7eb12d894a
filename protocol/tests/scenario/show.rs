//! How things are named in a trace: t1 rather than an id of 32 digits.

use reveille_protocol::session::terminal::Closed;
use reveille_protocol::wire::peer::{Reported, SessionMessage};
use reveille_protocol::wire::session::{NodeFrame, TerminalFrame, Tried, Try};

use crate::world::{Message, World};

/// Puts terminals' names in the place of their ids.
pub fn names(world: &World, line: String) -> String {
    world.devices.iter().fold(line, |line, (name, device)| line.replace(&device.id.to_string(), name))
}

pub fn closed(closed: &Closed) -> String {
    match closed {
        Closed::Done => "done".to_owned(),
        Closed::Bye(bye) => format!("{:?}", bye.reason),
        Closed::Lost(why) => (*why).to_owned(),
    }
}

pub fn message(world: &World, message: &Message) -> String {
    let of = |connection: &u64| {
        let ends = &world.connections[connection];
        (ends.terminal.clone(), ends.node)
    };
    let text = match message {
        Message::FromTerminal { connection, frame } => {
            let (terminal, node) = of(connection);
            let what = match frame {
                TerminalFrame::Hello(hello) => format!("Hello attempt {} last {}", hello.attempt, hello.last),
                TerminalFrame::Ack(ack) => format!("Ack {}", ack.seq),
                TerminalFrame::Resend(resend) => format!("Resend from {}", resend.from),
                TerminalFrame::Goodbye(ack) => format!("Goodbye {}", ack.seq),
                TerminalFrame::Ping(_) => "Ping".to_owned(),
                TerminalFrame::Pong(_) => "Pong".to_owned(),
                TerminalFrame::Offer(offer) => format!("Offer {:?} {:?}", offer.class, offer.cause),
                TerminalFrame::Try(Try { class }) => format!("Try {class:?}"),
            };
            format!("{terminal} → n{node}: {what}")
        }
        Message::FromNode { connection, frame } => {
            let (terminal, node) = of(connection);
            let what = match frame {
                NodeFrame::Welcome(welcome) => {
                    format!("Welcome epoch {} acked {}", welcome.epoch, welcome.acked)
                }
                NodeFrame::Push(push) => format!("Push {} prev {}", push.seq, push.prev),
                NodeFrame::Gap(gap) => format!("Gap {} to {}", gap.from, gap.to),
                NodeFrame::Bye(bye) => format!("Bye {:?}", bye.reason),
                NodeFrame::Ping(_) => "Ping".to_owned(),
                NodeFrame::Pong(_) => "Pong".to_owned(),
                NodeFrame::Anchor(anchor) => format!("Anchor, seen {}", anchor.seen),
                NodeFrame::Tried(Tried { class, reached }) => format!("Tried {class:?}: {reached}"),
            };
            format!("n{node} → {terminal}: {what}")
        }
        Message::HandOff { node, message } => match message {
            SessionMessage::HandOff(hand_off) => {
                let seqs: Vec<_> = hand_off.pushes.iter().map(|push| push.seq.to_string()).collect();
                format!(
                    "leader → n{node}: hand-off to {} epoch {}: {}",
                    hand_off.terminal,
                    hand_off.epoch,
                    seqs.join(" ")
                )
            }
            SessionMessage::Supersede { terminal, epoch } => {
                format!("leader → n{node}: {terminal} epoch {epoch} is superseded")
            }
            SessionMessage::Report(_) => "a report".to_owned(),
            SessionMessage::Notify(order) => format!("leader → n{node}: notify {}", order.terminal),
        },
        Message::Report { node, report } => {
            let what = match report.what {
                Reported::NoSuchSession { .. } => "no such session".to_owned(),
                Reported::Delivered { upto } => format!("delivered up to {upto}"),
                Reported::Resend { from } => format!("resend from {from}"),
                Reported::Notified(notified) => format!("{notified:?}"),
            };
            format!("n{node} → leader: {} epoch {}: {what}", report.terminal, report.epoch)
        }
    };
    names(world, text)
}

//! Message receiving: one session from Hello to its end. Carries out what the rules of a session decide.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::session::linger::Learned;
use reveille_protocol::session::terminal::{self as rules, Closed, Command};
use reveille_protocol::time::Instant;
use reveille_protocol::wire::notification::Notification;
use reveille_protocol::wire::session::{Frame, NodeFrame, TerminalFrame, Welcome};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant as Clock;
use tokio_rustls::client::TlsStream;

use crate::event::{Confirmed, Event, Received};
use crate::ground::TcpStream;
use crate::listen::{Binding, Gate, Told};
use crate::reach::Reach;
use crate::store::Store;

/// Bytes taken from the connection at once.
const READ: usize = 16 * 1024;
/// Events that wait in a session before it stops to read: a window of pushes, and what may stand between them.
const MAX_WAITING: usize = limits::SESSION_WINDOW + 16;
/// How long a connection that takes no more bytes is still read: what is there is there already.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a session uses of the terminal around it.
pub(crate) struct Surroundings<'a> {
    pub(crate) terminal: TerminalId,
    pub(crate) origin: Clock,
    pub(crate) store: &'a mut Store,
    pub(crate) gate: &'a Gate,
    pub(crate) events: &'a mpsc::Sender<Event>,
    pub(crate) notifications: &'a mut mpsc::Receiver<Notification>,
    pub(crate) binding: &'a mut Binding,
    pub(crate) reach: &'a mut Reach,
    /// Learns from the pushes that come, if it is to be learned how long to stay.
    pub(crate) learned: Option<&'a mut Learned>,
    /// For each push: how the application confirms it.
    pub(crate) confirmed: &'a watch::Sender<Confirmed>,
    pub(crate) confirmations: &'a mut watch::Receiver<Confirmed>,
    pub(crate) leaving: &'a watch::Receiver<bool>,
    /// Said when the network may be another.
    pub(crate) moved: &'a watch::Receiver<()>,
}

/// How a session ended.
pub(crate) struct Outcome {
    pub(crate) closed: Closed,
    pub(crate) welcome: Option<Welcome>,
    /// Highest seq given to the application.
    pub(crate) given: Seq,
    /// A push came.
    pub(crate) pushed: bool,
    /// A notification came in the session.
    pub(crate) notified: bool,
    /// Nodes that the last notification in this session named.
    pub(crate) hints: Vec<String>,
}

struct Session<'a, 's> {
    around: &'a mut Surroundings<'s>,
    machine: rules::Terminal,
    address: SocketAddr,
    outgoing: Vec<u8>,
    /// Events that the application has not taken yet; at most a window of pushes.
    waiting: VecDeque<Event>,
    welcome: Option<Welcome>,
    /// The Goodbye is on its way; its answer is still waited for.
    leaving: bool,
    closed: Option<Closed>,
    pushed: bool,
    notified: bool,
    hints: Vec<String>,
}

/// Runs a session on a connection until it ends. An error is of the terminal's own disk.
pub(crate) async fn receive(
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    config: rules::Config,
    around: &mut Surroundings<'_>,
) -> Result<Outcome, crate::store::StoreError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let now = now(around.origin);
    let mut leaving = around.leaving.clone();
    // A copy: that it moved is still to be said in a Hello.
    let mut moved = around.moved.clone();
    let mut leave_said = false;
    let mut session = Session {
        machine: rules::Terminal::new(config, now),
        around,
        address,
        outgoing: Vec::new(),
        waiting: VecDeque::new(),
        welcome: None,
        leaving: false,
        closed: None,
        pushed: false,
        notified: false,
        hints: Vec::new(),
    };
    let mut incoming = BytesMut::with_capacity(READ);
    session.handle(rules::Event::Connected)?;
    loop {
        if !session.outgoing.is_empty() {
            let write = async {
                writer.write_all(&session.outgoing).await?;
                writer.flush().await
            };
            let written = tokio::time::timeout(limits::WRITE_DEADLINE, write).await;
            session.outgoing.clear();
            if !matches!(written, Ok(Ok(()))) && session.closed.is_none() {
                // A node that closed the connection has said why, and how long to stay away.
                let last = tokio::time::timeout(LAST_WORDS, session.read_on(&mut reader, &mut incoming));
                last.await.unwrap_or(Ok(()))?;
                session.handle(rules::Event::PeerClosed)?;
            }
        }
        if session.closed.is_some() && session.waiting.is_empty() {
            break;
        }
        let deadline = session.machine.poll_timeout();
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.since(self::now(session.around.origin))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // One that sends more than its window finds the connection full; nothing else is bounded by it.
            read = reader.read_buf(&mut incoming), if session.closed.is_none() && session.has_room() => {
                session.read(read, &mut incoming)?;
            }
            room = session.around.events.reserve(), if !session.waiting.is_empty() => {
                match (room, session.waiting.pop_front()) {
                    (Ok(room), Some(event)) => room.send(event),
                    // The application has gone: what it did not take stays unconfirmed.
                    _ => {
                        session.waiting.clear();
                        session.confirmed()?;
                        session.leave()?;
                    }
                }
            }
            Ok(()) = session.around.confirmations.changed() => session.confirmed()?,
            Some(told) = session.around.binding.told.recv() => {
                session.around.reach.told(told);
                if let Told::Mapped(_) = told {
                    session.handle(rules::Event::Bound)?;
                }
            }
            // One that comes after the goodbye is of a push that this session will not bring: it stays for the next.
            Some(notification) = session.around.notifications.recv(), if session.lasts() => {
                session.notified(notification)?;
            }
            Ok(()) = moved.changed() => session.handle(rules::Event::Moved)?,
            // An error: the handle is gone, and the task with it soon.
            Ok(()) = leaving.changed(), if !leave_said => {
                leave_said = true;
                session.waiting.clear();
                // What the application confirmed before it left is part of the goodbye.
                session.confirmed()?;
                session.leave()?;
            }
            () = timer => session.handle(rules::Event::Timeout)?,
        }
    }
    crate::disconnect::close(writer).await;
    let given = session.machine.given();
    let closed = session.closed.take().unwrap_or(Closed::Done);
    let Session { welcome, pushed, notified, hints, .. } = session;
    Ok(Outcome { closed, welcome, given, pushed, notified, hints })
}

pub(crate) fn now(origin: Clock) -> Instant {
    Instant(origin.elapsed().as_millis() as u64)
}

impl Session<'_, '_> {
    /// Reads until the node has said its last word or the connection's end is found.
    async fn read_on(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        incoming: &mut BytesMut,
    ) -> Result<(), crate::store::StoreError> {
        while self.closed.is_none() && self.has_room() {
            let read = reader.read_buf(incoming).await;
            self.read(read, incoming)?;
        }
        Ok(())
    }

    /// Whether the application is no further behind than a node may be ahead of its acks.
    fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    fn read(
        &mut self,
        read: io::Result<usize>,
        incoming: &mut BytesMut,
    ) -> Result<(), crate::store::StoreError> {
        if !matches!(read, Ok(1..)) {
            return self.handle(rules::Event::PeerClosed);
        }
        loop {
            match NodeFrame::take(incoming) {
                Ok(Some(frame)) => self.handle(rules::Event::Frame(frame))?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "the node sent no frame");
                    return self.handle(rules::Event::Malformed);
                }
            }
        }
    }

    /// From here on only what is confirmed of this stream counts.
    fn begin_stream(&self, stream: Stream, acked: Seq) {
        self.around.confirmed.send_if_modified(|confirmed| {
            if confirmed.stream != stream {
                *confirmed = Confirmed { stream, seq: acked };
            }
            // The application has said nothing.
            false
        });
    }

    /// Takes in how far the application has confirmed.
    fn confirmed(&mut self) -> Result<(), crate::store::StoreError> {
        let confirmed = *self.around.confirmations.borrow_and_update();
        match confirmed.beyond(&self.machine.memory()) {
            Some(seq) => self.handle(rules::Event::Confirmed(seq)),
            None => Ok(()),
        }
    }

    /// Whether it is not about to end.
    fn lasts(&self) -> bool {
        !self.leaving && self.closed.is_none()
    }

    /// The application wants the session to end. One that ends already still waits for the node's answer.
    fn leave(&mut self) -> Result<(), crate::store::StoreError> {
        if self.leaving { Ok(()) } else { self.handle(rules::Event::Leave) }
    }

    fn notified(&mut self, notification: Notification) -> Result<(), crate::store::StoreError> {
        let Notification { id, epoch, pending, hints, .. } = notification;
        // With nothing behind it it only tries the way.
        if pending > 0 && epoch >= self.machine.memory().epoch {
            self.hints = hints;
            self.notified = true;
            if self.has_room() {
                self.waiting.push_back(Event::Notified { id, pending });
            }
            self.handle(rules::Event::Notified)?;
        }
        Ok(())
    }

    fn handle(&mut self, event: rules::Event) -> Result<(), crate::store::StoreError> {
        if let rules::Event::Frame(NodeFrame::Push(_)) = event {
            self.pushed = true;
            if let Some(learned) = &mut self.around.learned {
                learned.pushed(now(self.around.origin));
            }
        }
        let before = self.machine.memory();
        for command in self.machine.handle(now(self.around.origin), event) {
            match command {
                Command::Send(frame) => {
                    self.leaving |= matches!(frame, TerminalFrame::Goodbye(_));
                    frame.encode(&mut self.outgoing);
                }
                // Only what the application confirmed must survive the loss of power: the rest is found out again.
                Command::Save(memory) => self.around.store.save(memory, memory.last != before.last)?,
                Command::Welcomed(welcome) => {
                    self.around.gate.set_secret(welcome.notify_secret);
                    self.begin_stream(welcome.stream, welcome.acked);
                    self.waiting.push_back(Event::Connected {
                        node: welcome.node,
                        address: self.address,
                        epoch: welcome.epoch,
                        pending: welcome.pending,
                    });
                    self.welcome = Some(welcome);
                }
                Command::Reset { next } => self.waiting.push_back(Event::Reset { next }),
                Command::Deliver(push) => {
                    let stream = self.machine.memory().stream;
                    self.waiting.push_back(Event::Received(Received {
                        message: MessageId {
                            terminal: self.around.terminal,
                            check: stream.check(),
                            seq: push.seq,
                        },
                        seq: push.seq,
                        prev: push.prev,
                        channel: push.channel,
                        headers: push.headers,
                        body: push.body,
                        maybe_seen: push.maybe_seen,
                        lives_for: push.lives_for,
                        stream,
                        node: self.welcome.as_ref().map(|welcome| welcome.node).unwrap_or_default(),
                        confirmed: self.around.confirmed.clone(),
                    }));
                }
                Command::Bind(anchor) => {
                    let at = SocketAddr::new(self.address.ip(), anchor.port);
                    self.around.reach.bind(at, anchor.seen);
                    self.around.binding.bind(anchor, at);
                }
                Command::Unbind => {
                    self.around.reach.unbind();
                    self.around.binding.unbind();
                }
                Command::Reached(class, seen) => {
                    self.around.reach.found(class, seen);
                    self.waiting.push_back(Event::Reachable { class });
                }
                Command::Close(closed) => self.closed = Some(closed),
            }
        }
        Ok(())
    }
}

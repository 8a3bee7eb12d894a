//! Accepting terminals: TCP and TLS within bounds, then an actor for the session and two tasks for its bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use bytes::BytesMut;
use reveille_protocol::limits;
use reveille_protocol::wire::session::{Frame, TerminalFrame};
use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::actor::{Closed, Context, Incoming, SessionActor, Stalled};
use super::admission::{Admission, Place, Refused};
use crate::bare_key::fingerprint;
use crate::ground::{self, TcpListener, TcpStream};
use crate::guard::Guard;
use crate::telemetry::Count;

/// TLS must be done within this; then Hello has its own deadline.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Sessions at once. Each is a few kilobytes here and a descriptor.
const SESSIONS: usize = 200_000;
/// A connection whose session is over stays this long for the terminal to close it: a Bye and its answer over a bad line.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes that are taken and thrown away in that time: what a terminal may have had on its way when the session ended,
/// acks and a few frames. One that says more is not waiting for our last word.
const LAST_BYTES: usize = 256 * 1024;
/// Bytes taken from a connection at once: terminals say little.
const READ: usize = 4 * 1024;
/// Bytes written at once: one TLS record. Progress is seen in these, each of which has [`limits::WRITE_DEADLINE`].
const WRITE: usize = 16 * 1024;
/// Chunks that wait to be written: more than a full window's frames.
pub(super) const WRITES: usize = 128;

/// What the threads that accept terminals share.
#[derive(Clone)]
pub struct Door {
    acceptor: TlsAcceptor,
    context: Arc<Context>,
    admission: Admission,
    sessions: Arc<Semaphore>,
    leaving: CancellationToken,
    guard: Guard,
}

impl Door {
    /// It is open until `leaving`.
    pub fn new(
        acceptor: TlsAcceptor,
        context: Arc<Context>,
        admission: Admission,
        leaving: CancellationToken,
        guard: Guard,
    ) -> Door {
        Door { acceptor, context, admission, sessions: Arc::new(Semaphore::new(SESSIONS)), leaving, guard }
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        SESSIONS - self.sessions.available_permits()
    }

    /// Accepts on the calling thread, an arbiter's, which does everything for the connections that it takes: a herd of
    /// handshakes must not stand in front of the cluster's own work, and what a session reads stays on its actor's thread.
    pub async fn accept(self, listener: TcpListener) {
        self.guard.watch("accepting terminals", self.take(listener)).await;
    }

    async fn take(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.leaving.cancelled() => return,
            };
            match accepted {
                Ok((stream, from)) => self.admit(stream, from),
                Err(error) => {
                    // Out of descriptors, most likely; sessions that end free some.
                    tracing::error!(%error, "terminals cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, from: SocketAddr) {
        let place = self.admission.enter(Instant::now(), from.ip());
        let place = place.and_then(|place| {
            let session = self.sessions.clone().try_acquire_owned().map_err(|_| Refused::Crowded)?;
            Ok((place, session))
        });
        match place {
            Ok((place, session)) => {
                let door = self.clone();
                actix::spawn(async move {
                    door.one(stream, from, place).await;
                    drop(session);
                });
            }
            Err(refused) => turn_away(&stream, refused),
        }
    }

    async fn one(self, stream: TcpStream, from: SocketAddr, mut place: Place) {
        if let Err(refused) = place.turn().await {
            return turn_away(&stream, refused);
        }
        // Its first words are there all the same, and would be answered.
        if ground::has_gone(&stream) {
            return Count::SessionsRefused.one("gone");
        }
        match tokio::time::timeout(HANDSHAKE, greet(stream, self.acceptor)).await {
            Ok(Some(stream)) => serve(stream, from, self.context, place).await,
            Ok(None) => Count::SessionsRefused.one("tls"),
            Err(_) => Count::SessionsRefused.one("slow"),
        }
    }
}

/// Ends a connection that nothing was done for.
fn turn_away(stream: &TcpStream, refused: Refused) {
    Count::SessionsRefused.one(refused.label());
    ground::reset(stream);
}

async fn greet(stream: TcpStream, acceptor: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    stream.set_nodelay(true).ok()?;
    let stream = acceptor.accept(stream).await.ok()?;
    let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    Count::SessionHandshakes.one(if resumed { "resumed" } else { "full" });
    Some(stream)
}

async fn serve(stream: TlsStream<TcpStream>, from: SocketAddr, context: Arc<Context>, place: Place) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(session_key) = certificate.and_then(fingerprint) else {
        Count::SessionsRefused.one("no_key");
        return;
    };
    let (mut reader, writer) = tokio::io::split(stream);
    let (outgoing, waiting) = mpsc::channel(WRITES);
    let session = SessionActor::new(context, session_key, from.ip(), outgoing, Some(place)).start();
    let mut writing = tokio::spawn(write(writer, waiting));
    let written = tokio::select! {
        () = read(&mut reader, &session) => None,
        written = &mut writing => Some(written),
    };
    // The writer ends when the actor has dropped its end of the queue, or by its own deadline.
    let written = match written {
        Some(written) => written,
        None => writing.await,
    };
    // The actor may have ended by itself: then nobody is left to be told.
    match written {
        Ok(Written::All(writer)) => {
            let (stream, _) = reader.unsplit(writer).into_inner();
            part(stream, LAST_WORDS, LAST_BYTES).await;
        }
        Ok(Written::Stalled) => drop(session.send(Stalled).await),
        // Nothing needs to be read any more for the actor to learn of it: a read may wait for a long time.
        Ok(Written::Broken) | Err(_) => drop(session.send(Closed).await),
    }
}

/// The session is over and its last word is sent. A connection that is closed with bytes unread ends in a reset, which
/// may overtake that word: so what the terminal still says is thrown away, as it comes from the wire, until the terminal
/// closes. It need not: after `longest`, or `most` bytes, the connection is closed all the same.
async fn part(mut stream: impl AsyncRead + Unpin, longest: Duration, most: usize) {
    let mut thrown_away = [0; READ];
    let mut left = most;
    let until_closed = async {
        while left > 0 {
            match stream.read(&mut thrown_away).await {
                Ok(read @ 1..) => left = left.saturating_sub(read),
                Ok(0) | Err(_) => return,
            }
        }
    };
    // Whether the terminal closed makes no difference to what follows.
    let _ = tokio::time::timeout(longest, until_closed).await;
}

/// Gives the terminal's frames to the actor, until the terminal closes, says no frame, or the session is over.
async fn read(reader: &mut ReadHalf<TlsStream<TcpStream>>, session: &Addr<SessionActor>) {
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        let read = reader.read_buf(&mut buffer).await;
        let mut frames = Vec::new();
        let mut malformed = false;
        while !malformed {
            match TerminalFrame::take(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a terminal sent no frame");
                    Count::MalformedFrames.one("session");
                    malformed = true;
                }
            }
        }
        let gone = !matches!(read, Ok(1..));
        if (!frames.is_empty() || malformed) && session.send(Incoming { frames, malformed }).await.is_err() {
            return;
        }
        if malformed || gone {
            if gone {
                // The actor may have ended by itself.
                let _ = session.send(Closed).await;
            }
            return;
        }
    }
}

/// Writes all of it, however slowly, as long as each [`WRITE`] bytes have left within `patience`.
async fn write_out(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    patience: Duration,
) -> Result<io::Result<()>, Elapsed> {
    for record in bytes.chunks(WRITE) {
        // Flushed each time: TLS takes several records into its own buffer, which would leave under one deadline.
        let leaves = async {
            writer.write_all(record).await?;
            writer.flush().await
        };
        if let Err(error) = tokio::time::timeout(patience, leaves).await? {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// How writing ended.
enum Written<W> {
    /// All of it has left, and the terminal was told that nothing follows.
    All(W),
    /// The connection is gone.
    Broken,
    /// The terminal takes no bytes.
    Stalled,
}

/// Writes what the actor sends, until it has nothing more to say.
async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut waiting: mpsc::Receiver<Vec<u8>>) -> Written<W> {
    while let Some(mut bytes) = waiting.recv().await {
        while let Ok(more) = waiting.try_recv() {
            bytes.extend_from_slice(&more);
        }
        match write_out(&mut writer, &bytes, limits::WRITE_DEADLINE).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Written::Broken,
            Err(_) => return Written::Stalled,
        }
    }
    match tokio::time::timeout(limits::WRITE_DEADLINE, writer.shutdown()).await {
        Ok(Ok(())) => Written::All(writer),
        Ok(Err(_)) | Err(_) => Written::Broken,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{BufWriter, duplex};

    const PATIENCE: Duration = Duration::from_millis(400);

    /// As much behind as TLS lets a connection be.
    fn connection() -> (BufWriter<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (near, far) = duplex(1024);
        (BufWriter::with_capacity(4 * WRITE, near), far)
    }

    #[tokio::test]
    async fn a_slow_terminal_is_written_to_as_long_as_it_takes_a_record_in_time() {
        let (mut near, mut far) = connection();
        let reading = tokio::spawn(async move {
            let mut record = vec![0; WRITE];
            for _ in 0..5 {
                tokio::time::sleep(PATIENCE / 2).await;
                far.read_exact(&mut record).await.unwrap();
            }
            far
        });
        let bytes = vec![7; 5 * WRITE];
        assert!(matches!(write_out(&mut near, &bytes, PATIENCE).await, Ok(Ok(()))), "slow, not stalled");
        let _far = reading.await.unwrap();
        let began = Instant::now();
        assert!(write_out(&mut near, &bytes, PATIENCE).await.is_err(), "nobody reads");
        assert!(began.elapsed() < 3 * PATIENCE);
    }

    #[tokio::test]
    async fn parting_has_an_end_in_time_and_in_bytes() {
        let began = Instant::now();
        let (near, _silent) = duplex(1024);
        part(near, PATIENCE, LAST_BYTES).await;
        assert!(began.elapsed() >= PATIENCE);

        let began = Instant::now();
        let (near, mut far) = duplex(1024);
        let talking = async { while far.write_all(&[7; 1024]).await.is_ok() {} };
        let both = futures::future::join(part(near, 100 * PATIENCE, LAST_BYTES), talking);
        tokio::time::timeout(10 * PATIENCE, both).await.unwrap();
        assert!(began.elapsed() < 10 * PATIENCE);
    }

    #[tokio::test]
    async fn how_writing_ended_is_told() {
        let (actor, waiting) = mpsc::channel(WRITES);
        actor.try_send(b"last word".to_vec()).unwrap();
        drop(actor);
        let (near, mut far) = duplex(1024);
        assert!(matches!(write(near, waiting).await, Written::All(_)));
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last word");

        let (actor, waiting) = mpsc::channel(WRITES);
        actor.try_send(b"to nobody".to_vec()).unwrap();
        let (near, far) = duplex(1024);
        drop(far);
        // The actor is still there, and must hear of it.
        assert!(matches!(write(near, waiting).await, Written::Broken));
    }
}

//! Accepting terminals: TCP and TLS within bounds, then an actor for the session and two tasks for its bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, ArbiterHandle};
use bytes::BytesMut;
use reveille_protocol::limits;
use reveille_protocol::wire::session::{Frame, TerminalFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::error::Elapsed;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::actor::{Closed, Context, Incoming, SessionActor, Stalled};
use crate::bare_key::fingerprint;
use crate::telemetry::Count;

/// TCP and TLS must be done within this; then Hello has its own deadline.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once: bounds what unknown terminals cost, in memory and on the processor.
const HANDSHAKES: usize = 512;
/// Sessions at once. Each is a few kilobytes here and a descriptor.
const SESSIONS: usize = 200_000;
/// A connection whose session is over stays this long for the terminal to close it.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes taken from a connection at once: terminals say little.
const READ: usize = 4 * 1024;
/// Bytes written at once; progress is seen in these.
const WRITE: usize = 16 * 1024;
/// Chunks that wait to be written: more than a full window's frames.
pub(super) const WRITES: usize = 128;

/// Accepts until the listener's task is stopped.
pub async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    context: Arc<Context>,
    arbiters: Vec<ArbiterHandle>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let sessions = Arc::new(Semaphore::new(SESSIONS));
    for number in 0usize.. {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely; sessions that end free some.
                tracing::error!(%error, "terminals cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (Ok(handshake), Ok(session)) =
            (handshakes.clone().try_acquire_owned(), sessions.clone().try_acquire_owned())
        else {
            Count::SessionsRefused.one("crowded");
            continue;
        };
        let (acceptor, context) = (acceptor.clone(), context.clone());
        let arbiter = arbiters[number % arbiters.len()].clone();
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(HANDSHAKE, greet(stream, acceptor)).await;
            drop(handshake);
            match greeted {
                Ok(Some(stream)) => serve(stream, from, context, arbiter).await,
                Ok(None) => Count::SessionsRefused.one("tls"),
                Err(_) => Count::SessionsRefused.one("slow"),
            }
            drop(session);
        });
    }
}

async fn greet(stream: TcpStream, acceptor: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    stream.set_nodelay(true).ok()?;
    acceptor.accept(stream).await.ok()
}

async fn serve(
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    context: Arc<Context>,
    arbiter: ArbiterHandle,
) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(session_key) = certificate.and_then(fingerprint) else {
        Count::SessionsRefused.one("no_key");
        return;
    };
    let (reader, writer) = tokio::io::split(stream);
    let (outgoing, waiting) = mpsc::channel(WRITES);
    let session = SessionActor::start_in_arbiter(&arbiter, move |_| {
        SessionActor::new(context, session_key, from.ip(), outgoing)
    });
    let mut writing = tokio::spawn(write(writer, waiting, session.clone()));
    let mut reading = pin!(read(reader, &session));
    tokio::select! {
        // The writer ends when the actor has dropped its end of the queue, or by its own deadline.
        () = &mut reading => { let _ = writing.await; }
        // The session is over. What the terminal still says is read for a moment, so that the connection ends with our
        // last word and not with a reset; then it ends whether or not the terminal closes it.
        _ = &mut writing => { let _ = tokio::time::timeout(LAST_WORDS, reading).await; }
    }
}

async fn read(mut reader: ReadHalf<TlsStream<TcpStream>>, session: &Addr<SessionActor>) {
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

/// Writes all of it, however slowly, as long as it makes progress.
async fn write_out(
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
    mut bytes: &[u8],
) -> Result<io::Result<()>, Elapsed> {
    while !bytes.is_empty() {
        match tokio::time::timeout(limits::WRITE_DEADLINE, writer.write(&bytes[..bytes.len().min(WRITE)]))
            .await?
        {
            Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => bytes = &bytes[written..],
            Err(error) => return Ok(Err(error)),
        }
    }
    tokio::time::timeout(limits::WRITE_DEADLINE, writer.flush()).await
}

async fn write(
    mut writer: WriteHalf<TlsStream<TcpStream>>,
    mut waiting: mpsc::Receiver<Vec<u8>>,
    session: Addr<SessionActor>,
) {
    while let Some(mut bytes) = waiting.recv().await {
        while let Ok(more) = waiting.try_recv() {
            bytes.extend_from_slice(&more);
        }
        match write_out(&mut writer, &bytes).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => {
                // The actor may have ended by itself.
                let _ = session.send(Stalled).await;
                return;
            }
        }
    }
    // The terminal may be gone already.
    let _ = tokio::time::timeout(limits::WRITE_DEADLINE, writer.shutdown()).await;
}

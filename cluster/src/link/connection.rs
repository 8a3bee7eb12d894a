//! One connection: its queue, its coalescing writer, its reader. Ends as a whole when either half does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use reveille_protocol::id::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::limits::{QUEUE_BYTES, QUEUE_FRAMES, READ_BYTES, WRITE_BYTES, WRITE_STALL, max_frame};
use super::metrics::{Refusal, Written};
use super::{Inbound, Lane, SendError};

/// Bytes before a frame: its length, u32 little endian.
const LENGTH: usize = 4;

/// The sending half of a connection, shared by all who send.
#[derive(Debug)]
pub(super) struct Outgoing {
    lane: Lane,
    /// Of the link, and so of what may be sent over it.
    pub(super) version: u8,
    queue: Mutex<Vec<Bytes>>,
    bytes: AtomicUsize,
    work: Notify,
    /// Told when the connection must end.
    pub(super) end: Notify,
    /// It must end at once: what waits to be sent is thrown away.
    pub(super) abandoned: AtomicBool,
}

impl Outgoing {
    pub(super) fn new(lane: Lane, version: u8) -> Outgoing {
        Outgoing {
            lane,
            version,
            queue: Mutex::default(),
            bytes: AtomicUsize::new(0),
            work: Notify::new(),
            end: Notify::new(),
            abandoned: AtomicBool::new(false),
        }
    }

    /// Ends the connection without waiting for the peer to take, or acknowledge, anything.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        self.end.notify_one();
    }

    pub(super) fn send(&self, frame: Bytes) -> Result<(), SendError> {
        if frame.len() > max_frame(self.lane) {
            return Err(SendError::TooLong);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.bytes.load(Ordering::Relaxed);
        if queue.len() >= QUEUE_FRAMES || waiting + frame.len() > QUEUE_BYTES {
            return Err(SendError::Full);
        }
        self.bytes.store(waiting + frame.len() + LENGTH, Ordering::Relaxed);
        queue.push(frame);
        let first = queue.len() == 1;
        drop(queue);
        if first {
            self.work.notify_one();
        }
        Ok(())
    }

    fn take(&self, frames: &mut Vec<Bytes>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, frames);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

/// Why a connection ended, when it was not the peer's going.
type Ended = Result<(), Refusal>;

/// Runs a connection until it ends.
pub(super) async fn run<S>(
    stream: S,
    peer: NodeId,
    outgoing: Arc<Outgoing>,
    inbound: Arc<dyn Inbound>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let lane = outgoing.lane;
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        ended = read(reader, peer, lane, &*inbound) => ended,
        ended = write(writer, &outgoing) => ended,
        () = outgoing.end.notified() => Ok(()),
    }
}

async fn read<R: AsyncRead + Unpin>(mut reader: R, peer: NodeId, lane: Lane, inbound: &dyn Inbound) -> Ended {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        while let Some((length, _)) = buffer.split_first_chunk::<LENGTH>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > max_frame(lane) {
                return Err(Refusal::TooLong);
            }
            if buffer.len() < LENGTH + length {
                buffer.reserve(LENGTH + length - buffer.len());
                break;
            }
            buffer.advance(LENGTH);
            inbound.frame(peer, lane, buffer.split_to(length).freeze());
        }
        if buffer.capacity() - buffer.len() < READ_BYTES / 8 {
            buffer.reserve(READ_BYTES);
        }
        match reader.read_buf(&mut buffer).await {
            // The peer has gone, or the network broke: nothing to tell but that it is over.
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(mut writer: W, outgoing: &Outgoing) -> Ended {
    let mut frames = Vec::new();
    let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
    let written = Written::new();
    loop {
        outgoing.work.notified().await;
        outgoing.take(&mut frames);
        let mut frames = frames.drain(..).peekable();
        while frames.peek().is_some() {
            let mut count = 0;
            while let Some(frame) = frames
                .next_if(|frame| buffer.is_empty() || buffer.len() + LENGTH + frame.len() <= WRITE_BYTES)
            {
                buffer.extend_from_slice(&(frame.len() as u32).to_le_bytes());
                buffer.extend_from_slice(&frame);
                count += 1;
            }
            written.count(count, buffer.len());
            if !flush(&mut writer, &mut buffer).await? {
                return Ok(());
            }
        }
    }
}

/// Writes the buffer; `false` if the connection is gone.
async fn flush<W: AsyncWrite + Unpin>(writer: &mut W, buffer: &mut BytesMut) -> Result<bool, Refusal> {
    while buffer.has_remaining() {
        match stalls(writer.write_buf(buffer)).await? {
            Ok(0) | Err(_) => return Ok(false),
            Ok(_) => {}
        }
    }
    buffer.clear();
    Ok(stalls(writer.flush()).await?.is_ok())
}

async fn stalls<T>(write: impl Future<Output = T>) -> Result<T, Refusal> {
    const STALL: Duration = WRITE_STALL;
    tokio::time::timeout(STALL, write).await.map_err(|_| Refusal::Stalled)
}

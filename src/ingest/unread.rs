//! What has been read of a connection and is not a whole line yet.
//!
//! Promise: beyond [`IDLE_BYTES`] a connection every byte of it is counted among the memory of its socket (see
//! [`Shares`](super::share::Shares)); a line that does not come to its end gives it back, after [`LINE_SECONDS`] at the latest, and after
//! one second if others wait for memory. A connection on which nothing comes keeps no buffer to speak of.

use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::share::{Shares, line_kib};
use super::{LOOK, PATIENCE};
use crate::limits::LINE_SECONDS;

/// A connection's buffer that is not counted. What is read at once is as much at first.
const IDLE_BYTES: usize = 4 * 1024;
/// The buffer of a connection on which more comes at once; a line that is longer needs memory of another kind.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// How long a line waits for memory before it is answered `overloaded`.
const MEMORY_PATIENCE: Duration = Duration::from_secs(5);

/// What came of waiting for more.
pub(super) enum More {
    Bytes,
    /// The client sends nothing more.
    End,
    /// There is no memory for the line that has begun.
    Short,
    /// The line that has begun does not end.
    Late,
}

pub(super) struct Unread<'a> {
    shares: &'a Shares,
    line_limit: usize,
    buffer: Vec<u8>,
    /// Where the next line begins, and up to where there is no newline.
    start: usize,
    seen: usize,
    /// The last read filled the buffer.
    filled: bool,
    /// Memory for a buffer of [`CHUNK_BYTES`], and for a larger one.
    chunk: Option<OwnedSemaphorePermit>,
    line: Option<OwnedSemaphorePermit>,
    /// How long the rest of the line that has begun was waited for. The time in which nothing was read is not the client's.
    waited: Duration,
}

impl<'a> Unread<'a> {
    pub(super) fn new(shares: &'a Shares, line_limit: usize) -> Unread<'a> {
        let buffer = Vec::with_capacity(IDLE_BYTES);
        Unread { shares, line_limit, buffer, start: 0, seen: 0, filled: false, chunk: None, line: None, waited: Duration::ZERO }
    }

    /// Waits for more bytes and reads them. If it is dropped before, nothing is lost.
    pub(super) async fn more(&mut self, read: &mut OwnedReadHalf) -> More {
        if self.waited >= LINE {
            return More::Late;
        }
        if self.buffer.len() == self.buffer.capacity() && !self.grow().await {
            return More::Short;
        }
        loop {
            let asked = (!self.buffer.is_empty()).then(Instant::now);
            let waiting = Waiting {
                shares: self.shares,
                asked,
                waited: self.waited,
                chunk: self.chunk.is_some(),
                line: self.line.is_some(),
            };
            let ended = tokio::select! {
                biased;
                read = read.read_buf(&mut self.buffer) => if read.is_ok_and(|read| read > 0) { More::Bytes } else { More::End },
                ended = waiting.end() => match ended {
                    Some(ended) => ended,
                    None => {
                        self.shrink(IDLE_BYTES);
                        continue;
                    }
                },
            };
            if let Some(asked) = asked {
                self.waited += asked.elapsed();
            }
            self.filled = self.buffer.len() == self.buffer.capacity();
            return ended;
        }
    }

    /// Where the next whole line is among [`Unread::bytes`], without its newline.
    pub(super) fn next_line(&mut self) -> Option<Range<usize>> {
        match self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.start..self.seen + at;
                self.start = line.end + 1;
                self.seen = self.start;
                Some(line)
            }
            None => {
                self.seen = self.buffer.len();
                None
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Bytes of the line that has begun.
    pub(super) fn begun(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Forgets the lines that were taken, and gives back memory that the rest does not need.
    pub(super) fn forget_taken(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.seen -= self.start;
            self.start = 0;
            self.waited = Duration::ZERO;
        }
        let rest = self.buffer.len();
        if self.line.is_some() && rest < CHUNK_BYTES {
            self.shrink(CHUNK_BYTES);
        }
        let wanted = self.shares.chunks.waited_for();
        if self.chunk.is_some() && rest < IDLE_BYTES && wanted {
            self.shrink(IDLE_BYTES);
        }
        if self.chunk.is_none() && self.filled && !wanted {
            // More is there. Without this it is read in small pieces.
            self.chunk = self.shares.chunks.try_take(CHUNK_KIB);
            if self.chunk.is_some() {
                self.buffer.reserve_exact(CHUNK_BYTES - rest);
            }
        }
    }

    /// Drops the line that has begun, and the memory for it.
    pub(super) fn drop_begun(&mut self) {
        self.buffer.clear();
        (self.start, self.seen, self.waited) = (0, 0, Duration::ZERO);
        self.shrink(IDLE_BYTES);
    }

    /// Makes room for more of the line that has begun; false if there is no memory.
    async fn grow(&mut self) -> bool {
        let held = if self.buffer.capacity() < CHUNK_BYTES { &mut self.chunk } else { &mut self.line };
        if held.is_none() {
            let (share, kib) = match self.buffer.capacity() {
                ..CHUNK_BYTES => (&self.shares.chunks, CHUNK_KIB),
                _ => (&self.shares.lines, line_kib(self.line_limit)),
            };
            match timeout(MEMORY_PATIENCE, share.take(kib)).await {
                Ok(taken) => *held = Some(taken),
                Err(_) => return false,
            }
        }
        // A line that is too long is dropped before this is filled.
        let most = self.line_limit + CHUNK_BYTES;
        let capacity = (self.buffer.capacity() * 2).clamp(CHUNK_BYTES, most.max(CHUNK_BYTES));
        self.buffer.reserve_exact(capacity - self.buffer.len());
        true
    }

    /// A buffer of so many bytes, more than are in it, and no memory for a larger one.
    fn shrink(&mut self, capacity: usize) {
        if self.buffer.capacity() > capacity {
            let mut buffer = Vec::with_capacity(capacity);
            buffer.extend_from_slice(&self.buffer);
            self.buffer = buffer;
        }
        self.line = None;
        if capacity < CHUNK_BYTES {
            self.chunk = None;
        }
    }
}

const LINE: Duration = Duration::from_secs(LINE_SECONDS);
const CHUNK_KIB: usize = (CHUNK_BYTES - IDLE_BYTES) / 1024;

struct Waiting<'a> {
    shares: &'a Shares,
    /// None: nothing of a line is there.
    asked: Option<Instant>,
    waited: Duration,
    chunk: bool,
    line: bool,
}

impl Waiting<'_> {
    /// Why nothing is waited for any more; None: nothing comes, so a smaller buffer will do.
    async fn end(self) -> Option<More> {
        let Some(asked) = self.asked else {
            if !self.chunk {
                std::future::pending::<()>().await;
            }
            sleep(LOOK).await;
            return None;
        };
        loop {
            sleep(LOOK).await;
            let waited = self.waited + asked.elapsed();
            if waited >= LINE {
                return Some(More::Late);
            }
            let wanted = self.chunk && self.shares.chunks.waited_for() || self.line && self.shares.lines.waited_for();
            if waited >= PATIENCE && wanted {
                return Some(More::Short);
            }
        }
    }
}

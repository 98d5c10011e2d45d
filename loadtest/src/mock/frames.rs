//! A stream between TLS and the `h2` crate that knows where frames begin, so that the mock can say what `h2` cannot: a
//! MAX_CONCURRENT_STREAMS that changes while the connection is open, and a GOAWAY with any last stream (RFC 9113 sections 6.5, 6.8).
//!
//! Frames of our own go out between two frames of `h2`; the peer's acknowledgement of a SETTINGS that `h2` knows nothing of is
//! taken out of what it reads.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::{ACK, GOAWAY, HEADER, MAX_CONCURRENT_STREAMS, SETTINGS};

const PREFACE: usize = 24;
/// Bytes that may wait for the socket before `h2` has to wait too.
const OUT_MAX: usize = 64 * 1024;

/// The handle by which frames are put in. What is put in leaves when the connection is polled next.
#[derive(Clone)]
pub(super) struct Frames {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    inject: Vec<u8>,
    /// The limits of the SETTINGS in `inject`.
    inject_limits: Vec<u32>,
    /// SETTINGS that the peer has not acknowledged: ours with their limit, those of `h2` without.
    unacknowledged: VecDeque<(bool, Option<u32>)>,
    acknowledged_streams: u32,
}

impl Frames {
    /// Tells the peer this MAX_CONCURRENT_STREAMS.
    pub fn max_streams(&self, streams: u32) {
        let mut shared = self.shared.lock().expect("no holder panics");
        let setting = setting(streams);
        shared.inject.extend_from_slice(&header(setting.len(), SETTINGS));
        shared.inject.extend_from_slice(&setting);
        shared.inject_limits.push(streams);
    }

    /// The limit that the peer has acknowledged; it may be held to it.
    pub fn acknowledged_streams(&self) -> u32 {
        self.shared.lock().expect("no holder panics").acknowledged_streams
    }

    /// Says goodbye: streams above `last` are not processed.
    pub fn goaway(&self, last: u32, code: u32) {
        let mut shared = self.shared.lock().expect("no holder panics");
        shared.inject.extend_from_slice(&header(8, GOAWAY));
        shared.inject.extend_from_slice(&last.to_be_bytes());
        shared.inject.extend_from_slice(&code.to_be_bytes());
    }
}

fn header(length: usize, kind: u8) -> [u8; HEADER] {
    let length = (length as u32).to_be_bytes();
    [length[1], length[2], length[3], kind, 0, 0, 0, 0, 0]
}

fn setting(streams: u32) -> [u8; 6] {
    let [a, b] = MAX_CONCURRENT_STREAMS.to_be_bytes();
    let [c, d, e, f] = streams.to_be_bytes();
    [a, b, c, d, e, f]
}

/// Where in a frame one direction is.
#[derive(Default)]
struct Place {
    header: [u8; HEADER],
    have: usize,
    /// Bytes of payload still to come.
    left: usize,
}

impl Place {
    fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Takes payload or header bytes; the header when it has become whole.
    fn header(&mut self, bytes: &mut &[u8]) -> Option<[u8; HEADER]> {
        let take = bytes.len().min(HEADER - self.have);
        self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
        self.have += take;
        *bytes = &bytes[take..];
        if self.have < HEADER {
            return None;
        }
        self.have = 0;
        self.left = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]) as usize;
        Some(self.header)
    }

    fn payload<'a>(&mut self, bytes: &mut &'a [u8]) -> &'a [u8] {
        let take = bytes.len().min(self.left);
        let (payload, rest) = bytes.split_at(take);
        self.left -= take;
        *bytes = rest;
        payload
    }
}

pub(super) struct FrameIo<S> {
    io: S,
    shared: Arc<Mutex<Shared>>,
    /// Given with the first SETTINGS, until that has left.
    first: Option<u32>,
    out: BytesMut,
    out_place: Place,
    read: BytesMut,
    read_place: Place,
    preface: usize,
    chunk: Box<[u8]>,
}

impl<S> FrameIo<S> {
    /// `streams` goes into the server's first SETTINGS.
    pub fn new(io: S, streams: u32) -> (FrameIo<S>, Frames) {
        let shared = Arc::new(Mutex::new(Shared {
            inject: Vec::new(),
            inject_limits: Vec::new(),
            unacknowledged: VecDeque::new(),
            // Until then the peer may open as many as it likes (RFC 9113 section 5.1.2).
            acknowledged_streams: u32::MAX,
        }));
        let io = FrameIo {
            io,
            shared: shared.clone(),
            first: Some(streams),
            out: BytesMut::new(),
            out_place: Place::default(),
            read: BytesMut::new(),
            read_place: Place::default(),
            preface: PREFACE,
            chunk: vec![0; 16 * 1024].into(),
        };
        (io, Frames { shared })
    }

    /// Sorts bytes of `h2` into `out`.
    fn sort_out(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.out_place.left > 0 {
                let payload = self.out_place.payload(&mut bytes);
                self.out.extend_from_slice(payload);
            } else if let Some(mut header) = self.out_place.header(&mut bytes) {
                if header[3] == SETTINGS && header[4] & ACK == 0 {
                    let first = self.first.take();
                    self.shared.lock().expect("no holder panics").unacknowledged.push_back((false, first));
                    if let Some(streams) = first {
                        // The limit goes first in its payload; a frame's length has 24 bits.
                        let length = (self.out_place.left as u32 + 6).to_be_bytes();
                        header[..3].copy_from_slice(&length[1..]);
                        self.out.extend_from_slice(&header);
                        self.out.extend_from_slice(&setting(streams));
                        continue;
                    }
                }
                self.out.extend_from_slice(&header);
            }
        }
        self.put_in();
    }

    /// Our own frames, where one of `h2` has ended; never before its first, which must be SETTINGS (RFC 9113 section 3.4).
    fn put_in(&mut self) {
        if self.out_place.at_boundary() && self.first.is_none() {
            let mut shared = self.shared.lock().expect("no holder panics");
            self.out.extend_from_slice(&shared.inject);
            shared.inject.clear();
            // Acknowledgements come in the order of the frames, so that is noted only now.
            let limits = std::mem::take(&mut shared.inject_limits);
            shared.unacknowledged.extend(limits.into_iter().map(|streams| (true, Some(streams))));
        }
    }

    /// Sorts bytes of the peer into `read`.
    fn sort_in(&mut self, length: usize) {
        let chunk = std::mem::take(&mut self.chunk);
        let mut bytes = &chunk[..length];
        let preface = bytes.len().min(self.preface);
        self.read.extend_from_slice(&bytes[..preface]);
        self.preface -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.read_place.left > 0 {
                let payload = self.read_place.payload(&mut bytes);
                self.read.extend_from_slice(payload);
            } else if let Some(header) = self.read_place.header(&mut bytes) {
                if header[3] == SETTINGS && header[4] & ACK != 0 {
                    let mut shared = self.shared.lock().expect("no holder panics");
                    if let Some((own, streams)) = shared.unacknowledged.pop_front() {
                        if let Some(streams) = streams {
                            shared.acknowledged_streams = streams;
                        }
                        if own {
                            continue;
                        }
                    }
                }
                self.read.extend_from_slice(&header);
            }
        }
        self.chunk = chunk;
    }
}

impl<S: AsyncWrite + Unpin> FrameIo<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut chunk))?;
            let length = chunk.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            this.sort_in(length);
        }
        let take = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..take]);
        this.read.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.out.len() > OUT_MAX {
            ready!(this.poll_out(cx))?;
        }
        this.sort_out(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.put_in();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    const SETTINGS_ACK: [u8; 9] = [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    /// Byte by byte is the hardest way: every header is split.
    #[test]
    fn frames_are_put_in_and_acknowledgements_taken_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut peer, io) = tokio::io::duplex(1_000);
            let (mut io, frames) = FrameIo::new(io, 7);
            frames.max_streams(1);
            for byte in EMPTY_SETTINGS.iter().chain(&PING) {
                io.write_all(&[*byte]).await.unwrap();
            }
            frames.goaway(5, 0);
            io.flush().await.unwrap();
            let wanted = [
                &[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7][..],
                &[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1],
                &PING,
                &[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0],
            ]
            .concat();
            let mut got = vec![0; wanted.len()];
            peer.read_exact(&mut got).await.unwrap();
            assert_eq!(got, wanted);

            assert_eq!(frames.acknowledged_streams(), u32::MAX);
            let preface = [b'x'; PREFACE];
            for byte in preface.iter().chain(&SETTINGS_ACK).chain(&PING).chain(&SETTINGS_ACK).chain(&PING) {
                peer.write_all(&[*byte]).await.unwrap();
            }
            drop(peer);
            let mut read = Vec::new();
            io.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, [&preface[..], &SETTINGS_ACK, &PING, &PING].concat());
            assert_eq!(frames.acknowledged_streams(), 1);
        });
    }
}

//! HTTP/2 for next to nothing: every request is taken, and nothing is looked at.
//!
//! For measurements in which the mock must not be the bottleneck. It promises only the form: frames are followed as RFC 9113 wants
//! it, each request gets one constant 201 with the headers of a push service, and what came is counted. It reads no header, finds
//! no subscription, decrypts nothing and verifies nothing: whether a message was right is shown by the runs with the mock that
//! checks. Header blocks are passed over unread, so the peer's HPACK state does not matter, and its table stays as large as a real
//! service would let it be: the peer's work is what it is in the world.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::state::State;
use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADER, HEADERS, MAX_CONCURRENT_STREAMS, PING, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a peer may send without being told more (RFC 9113 section 4.2).
const FRAME_MAX: usize = 16_384;
/// No body fills it, so no stream ever needs an update.
const STREAM_WINDOW: u32 = (1 << 31) - 1;
/// What a connection has before the first update (RFC 9113 section 6.9.2).
const CONNECTION_WINDOW_FIRST: u32 = 65_535;
/// Of a connection; given back whenever half of it is used.
const CONNECTION_WINDOW: u32 = 1 << 30;

const INITIAL_WINDOW_SIZE: u16 = 4;

const PROTOCOL_ERROR: u32 = 1;
const FRAME_SIZE_ERROR: u32 = 6;

/// Serves a connection until the peer ends it or breaks the framing.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(state: Arc<State>, origin: usize, mut io: S) -> io::Result<()> {
    let mut limit = state.origins[origin].max_streams.subscribe();
    let mut sink = Sink::new(*limit.borrow_and_update(), SystemTime::now());
    // A frame that is not whole yet leaves room for three more.
    let mut input = vec![0; 4 * FRAME_MAX];
    let mut have = 0;
    loop {
        if !sink.output.is_empty() {
            io.write_all(&sink.output).await?;
            io.flush().await?;
            sink.output.clear();
        }
        if sink.over {
            return io.shutdown().await;
        }
        let read = tokio::select! {
            read = io.read(&mut input[have..]) => read?,
            changed = limit.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                settings(&mut sink.output, &[(MAX_CONCURRENT_STREAMS, *limit.borrow_and_update())]);
                continue;
            }
        };
        if read == 0 {
            return Ok(());
        }
        have += read;
        let taken = sink.take(&input[..have]);
        input.copy_within(taken..have, 0);
        have -= taken;
        let (requests, bytes) = sink.counted();
        if requests > 0 {
            state.sank(origin, requests, bytes);
        }
    }
}

/// One connection's frames: what comes in, and what is to go out.
struct Sink {
    /// Whether the peer has greeted.
    greeted: bool,
    /// A header block that goes on: its stream, and whether the stream ends with it.
    block: Option<(u32, bool)>,
    last_stream: u32,
    /// Bytes of bodies since the connection's window was given back.
    used: u32,
    /// What every request is answered, without its stream.
    answer: Vec<u8>,
    output: Vec<u8>,
    /// A GOAWAY is in the output, and nothing comes after it.
    over: bool,
    requests: u64,
    bytes: u64,
}

impl Sink {
    fn new(max_streams: u32, now: SystemTime) -> Sink {
        let mut output = Vec::with_capacity(2 * FRAME_MAX);
        settings(&mut output, &[(MAX_CONCURRENT_STREAMS, max_streams), (INITIAL_WINDOW_SIZE, STREAM_WINDOW)]);
        window_update(&mut output, CONNECTION_WINDOW - CONNECTION_WINDOW_FIRST);
        let mut answer = Vec::new();
        frame(&mut answer, HEADERS, END_HEADERS | END_STREAM, 0, |block| created(block, now));
        Sink { greeted: false, block: None, last_stream: 0, used: 0, answer, output, over: false, requests: 0, bytes: 0 }
    }

    /// Takes all whole frames: how many bytes they are. The answers are in `output`.
    fn take(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        if !self.greeted {
            if input.len() < PREFACE.len() {
                return 0;
            }
            if !input.starts_with(PREFACE) {
                self.goodbye(PROTOCOL_ERROR);
                return input.len();
            }
            self.greeted = true;
            taken = PREFACE.len();
        }
        while let Some(header) = input[taken..].first_chunk::<HEADER>()
            && !self.over
        {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            if length > FRAME_MAX {
                self.goodbye(FRAME_SIZE_ERROR);
                return input.len();
            }
            let Some(payload) = input[taken + HEADER..].get(..length) else { break };
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & (u32::MAX >> 1);
            self.frame(header[3], header[4], stream, payload);
            taken += HEADER + length;
        }
        taken
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        // Nothing may come between the pieces of a header block (RFC 9113 section 4.3).
        if self.block.is_some_and(|(begun, _)| kind != CONTINUATION || begun != stream) {
            return self.goodbye(PROTOCOL_ERROR);
        }
        match kind {
            DATA if stream > 0 && stream <= self.last_stream => {
                self.bytes += payload.len() as u64;
                self.used += payload.len() as u32;
                if self.used >= CONNECTION_WINDOW / 2 {
                    window_update(&mut self.output, self.used);
                    self.used = 0;
                }
                if flags & END_STREAM != 0 {
                    self.answer(stream);
                }
            }
            // Of a stream that is known they are trailers, and end it.
            HEADERS if stream % 2 == 1 => {
                self.last_stream = self.last_stream.max(stream);
                self.headers(stream, flags, flags & END_STREAM != 0);
            }
            CONTINUATION => match self.block.take() {
                Some((_, ends)) => self.headers(stream, flags, ends),
                None => self.goodbye(PROTOCOL_ERROR),
            },
            SETTINGS if flags & ACK == 0 => frame(&mut self.output, SETTINGS, ACK, 0, |_| {}),
            PING if payload.len() != 8 => self.goodbye(FRAME_SIZE_ERROR),
            PING if flags & ACK == 0 => frame(&mut self.output, PING, ACK, 0, |echo| echo.extend_from_slice(payload)),
            DATA | HEADERS | PUSH_PROMISE => self.goodbye(PROTOCOL_ERROR),
            // The peer's windows are for bodies, and no answer has one; a stream that it gives up is not answered, as its end does
            // not come; after its GOAWAY it closes. Priorities, acknowledgements and what nobody knows are passed over.
            RST_STREAM | WINDOW_UPDATE | GOAWAY | SETTINGS | PING => {}
            _ => {}
        }
    }

    fn headers(&mut self, stream: u32, flags: u8, ends: bool) {
        if flags & END_HEADERS == 0 {
            self.block = Some((stream, ends));
        } else if ends {
            self.answer(stream);
        }
    }

    fn answer(&mut self, stream: u32) {
        self.requests += 1;
        let begin = self.output.len();
        self.output.extend_from_slice(&self.answer);
        self.output[begin + 5..begin + HEADER].copy_from_slice(&stream.to_be_bytes());
    }

    fn goodbye(&mut self, code: u32) {
        let last = self.last_stream;
        frame(&mut self.output, GOAWAY, 0, 0, |payload| {
            payload.extend_from_slice(&last.to_be_bytes());
            payload.extend_from_slice(&code.to_be_bytes());
        });
        self.over = true;
    }

    /// Requests and bytes of bodies since it was last asked.
    fn counted(&mut self) -> (u64, u64) {
        if self.requests == 0 {
            return (0, 0);
        }
        (std::mem::take(&mut self.requests), std::mem::take(&mut self.bytes))
    }
}

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: impl FnOnce(&mut Vec<u8>)) {
    let begin = into.len();
    into.extend_from_slice(&[0, 0, 0, kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    payload(into);
    let length = ((into.len() - begin - HEADER) as u32).to_be_bytes();
    into[begin..begin + 3].copy_from_slice(&length[1..]);
}

fn settings(into: &mut Vec<u8>, settings: &[(u16, u32)]) {
    frame(into, SETTINGS, 0, 0, |payload| {
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
    });
}

fn window_update(into: &mut Vec<u8>, more: u32) {
    frame(into, WINDOW_UPDATE, 0, 0, |payload| payload.extend_from_slice(&more.to_be_bytes()));
}

/// The header block of an answer, from the static table and literals that enter no table (RFC 7541 section 6.2.2), so that every
/// stream can have the same bytes.
fn created(block: &mut Vec<u8>, now: SystemTime) {
    let date = httpdate::fmt_http_date(now);
    for (index, value) in [
        // The names' places in the static table (RFC 7541 appendix A).
        (8, "201"),                   // :status
        (33, date.as_str()),          // date
        (46, "/m/0:sink%2500000001"), // location
        (28, "0"),                    // content-length
    ] {
        // A place in the table is a number of four bits; from 15 on the rest follows in a byte of its own.
        match u8::try_from(index).expect("the static table has 61 places") {
            index @ 0..15 => block.push(index),
            index => block.extend_from_slice(&[15, index - 15]),
        }
        block.push(u8::try_from(value.len()).expect("short values"));
        block.extend_from_slice(value.as_bytes());
    }
    // `ttl` is in no table.
    block.extend_from_slice(b"\x00\x03ttl\x0586400");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frames of some output: kind, flags, stream, payload.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let stream = u32::from_be_bytes(header[5..].try_into().unwrap());
            frames.push((header[3], header[4], stream, rest[..length].to_vec()));
            bytes = &rest[length..];
        }
        assert!(bytes.is_empty());
        frames
    }

    /// A peer that greets, begins two streams, pings between their bodies, and ends a third with its headers, in two pieces.
    fn conversation() -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        settings(&mut bytes, &[]);
        for stream in [1, 3] {
            frame(&mut bytes, HEADERS, END_HEADERS, stream, |block| block.push(0x83));
        }
        frame(&mut bytes, DATA, 0, 3, |body| body.extend_from_slice(&[7; 100]));
        frame(&mut bytes, PING, 0, 0, |payload| payload.extend_from_slice(b"12345678"));
        frame(&mut bytes, DATA, END_STREAM, 3, |body| body.extend_from_slice(&[7; 50]));
        frame(&mut bytes, 0xfa, 0, 0, |unknown| unknown.push(1));
        frame(&mut bytes, DATA, END_STREAM, 1, |body| body.push(7));
        frame(&mut bytes, HEADERS, END_STREAM, 5, |block| block.push(0x83));
        frame(&mut bytes, CONTINUATION, END_HEADERS, 5, |block| block.push(0x87));
        bytes
    }

    #[test]
    fn every_request_is_answered_when_it_has_ended_however_it_is_cut() {
        let bytes = conversation();
        for piece in [1, 7, bytes.len()] {
            let mut sink = Sink::new(128, SystemTime::UNIX_EPOCH);
            sink.output.clear();
            let mut waiting = Vec::new();
            for piece in bytes.chunks(piece) {
                waiting.extend_from_slice(piece);
                let taken = sink.take(&waiting);
                waiting.drain(..taken);
            }
            assert!(waiting.is_empty() && !sink.over);
            let said = frames(&sink.output);
            let told: Vec<_> = said.iter().map(|(kind, flags, stream, _)| (*kind, *flags, *stream)).collect();
            let answer = END_HEADERS | END_STREAM;
            assert_eq!(
                told,
                [(SETTINGS, ACK, 0), (PING, ACK, 0), (HEADERS, answer, 3), (HEADERS, answer, 1), (HEADERS, answer, 5)]
            );
            assert_eq!(said[1].3, b"12345678");
            assert_eq!(sink.counted(), (3, 151));
            assert_eq!(sink.counted(), (0, 0));
        }
    }

    #[test]
    fn what_breaks_the_framing_ends_the_connection() {
        let broken = |change: fn(&mut Vec<u8>)| {
            let mut bytes = PREFACE.to_vec();
            change(&mut bytes);
            let mut sink = Sink::new(128, SystemTime::UNIX_EPOCH);
            sink.output.clear();
            sink.take(&bytes);
            let (kind, _, _, payload) = frames(&sink.output).pop().expect("it said something");
            assert!(sink.over && kind == GOAWAY, "{kind}");
            u32::from_be_bytes(payload[4..].try_into().unwrap())
        };
        assert_eq!(broken(|bytes| bytes[0] = b'G'), PROTOCOL_ERROR);
        assert_eq!(broken(|bytes| frame(bytes, DATA, END_STREAM, 1, |body| body.push(1))), PROTOCOL_ERROR);
        assert_eq!(broken(|bytes| frame(bytes, CONTINUATION, END_HEADERS, 1, |_| {})), PROTOCOL_ERROR);
        assert_eq!(broken(|bytes| frame(bytes, HEADERS, END_HEADERS, 2, |_| {})), PROTOCOL_ERROR);
        assert_eq!(broken(|bytes| frame(bytes, PING, 0, 0, |_| {})), FRAME_SIZE_ERROR);
        assert_eq!(broken(|bytes| bytes.extend_from_slice(&[0, 0x40, 1, DATA, 0, 0, 0, 0, 1])), FRAME_SIZE_ERROR);
        let interrupted = |bytes: &mut Vec<u8>| {
            frame(bytes, HEADERS, 0, 1, |_| {});
            frame(bytes, PING, 0, 0, |payload| payload.extend_from_slice(&[0; 8]));
        };
        assert_eq!(broken(interrupted), PROTOCOL_ERROR);
    }

    #[test]
    fn the_window_is_given_back() {
        let mut sink = Sink::new(128, SystemTime::UNIX_EPOCH);
        let mut first = PREFACE.to_vec();
        frame(&mut first, HEADERS, END_HEADERS, 1, |_| {});
        assert_eq!(sink.take(&first), first.len());
        sink.output.clear();
        let mut body = Vec::new();
        frame(&mut body, DATA, 0, 1, |body| body.resize(HEADER + FRAME_MAX, 0));
        let mut sent = 0;
        while sink.output.is_empty() {
            assert_eq!(sink.take(&body), body.len());
            sent += FRAME_MAX as u32;
            assert!(sent < CONNECTION_WINDOW, "the peer may send no more");
        }
        assert_eq!(frames(&sink.output), [(WINDOW_UPDATE, 0, 0, sent.to_be_bytes().to_vec())]);
    }
}

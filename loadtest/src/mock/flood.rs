//! Frames that answer nothing, as fast as the peer takes them: what a hostile push service does with one connection.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};

const UNKNOWN: u8 = 0xfa;

/// `:status 103`, which enters no table (RFC 7541 section 6.2.2).
const EARLY_HINTS: &[u8] = b"\x08\x03103";
/// `:status 201`.
const CREATED: &[u8] = b"\x08\x03201";
/// `age` without a value, from the static table: one byte on the wire.
const AGE: u8 = 0x95;
const PREFACE: usize = 24;
/// Bytes that are written at a time.
const BATCH: usize = 64 * 1024;

/// What a connection is flooded with from its first request on, until it ends. No request is answered, but for the kinds that say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flood {
    /// WINDOW_UPDATE of the connection.
    WindowUpdate,
    /// WINDOW_UPDATE of the request's stream.
    WindowUpdateOfStream,
    /// 103 without a field; over HTTP/1.1 too.
    Informational,
    /// 103 with 400 fields of one byte each.
    InformationalFields,
    /// RST_STREAM of the first stream, which is answered.
    ResetOfClosed,
    Priority,
    /// A type of frame that nobody knows.
    Unknown,
    /// SETTINGS that change the window of every stream up and down.
    Settings,
    Ping,
    /// Answers to PINGs that nobody sent.
    Pong,
    /// GOAWAY after GOAWAY, each of which lets every stream finish.
    GoAway,
    /// DATA of the first stream after the peer has reset it, because its body is long.
    DataOfReset,
    /// One frame of an unknown type whose bytes come in a TLS record each.
    TinyRecords,
    /// DATA without a byte.
    EmptyData,
    /// WINDOW_UPDATE of 0, which is an error (RFC 9113 section 6.9).
    WindowUpdateOfNothing,
    /// A header block without end.
    Continuation,
    /// PUSH_PROMISE to a peer that takes none.
    PushPromise,
    /// Trailers after trailers.
    Trailers,
}

impl Flood {
    /// All of them.
    pub const ALL: [Flood; 18] = [
        Flood::WindowUpdate,
        Flood::WindowUpdateOfStream,
        Flood::Informational,
        Flood::InformationalFields,
        Flood::ResetOfClosed,
        Flood::Priority,
        Flood::Unknown,
        Flood::Settings,
        Flood::Ping,
        Flood::Pong,
        Flood::GoAway,
        Flood::DataOfReset,
        Flood::TinyRecords,
        Flood::EmptyData,
        Flood::WindowUpdateOfNothing,
        Flood::Continuation,
        Flood::PushPromise,
        Flood::Trailers,
    ];

    /// What comes once, before the flood.
    fn begin(self, into: &mut Vec<u8>, stream: u32) {
        match self {
            Flood::ResetOfClosed => frame(into, HEADERS, END_HEADERS | END_STREAM, stream, CREATED),
            Flood::DataOfReset => {
                frame(into, HEADERS, END_HEADERS, stream, CREATED);
                frame(into, DATA, 0, stream, &[b'x'; 5_000]);
            }
            Flood::EmptyData => frame(into, HEADERS, END_HEADERS, stream, CREATED),
            Flood::Continuation => frame(into, HEADERS, 0, stream, EARLY_HINTS),
            Flood::Trailers => frame(into, HEADERS, END_HEADERS, stream, CREATED),
            Flood::TinyRecords => {
                // The header of the longest frame that the peer takes; its payload follows byte by byte.
                into.extend_from_slice(&[0, 0x40, 0, UNKNOWN, 0, 0, 0, 0, 0]);
            }
            _ => {}
        }
    }

    /// One piece of the flood.
    fn piece(self, into: &mut Vec<u8>, stream: u32) {
        match self {
            Flood::WindowUpdate => frame(into, WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
            Flood::WindowUpdateOfStream => frame(into, WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes()),
            Flood::Informational => frame(into, HEADERS, END_HEADERS, stream, EARLY_HINTS),
            Flood::InformationalFields => {
                let block = [EARLY_HINTS, &[AGE; 400]].concat();
                frame(into, HEADERS, END_HEADERS, stream, &block);
            }
            Flood::ResetOfClosed => frame(into, RST_STREAM, 0, stream, &[0; 4]),
            Flood::Priority => frame(into, PRIORITY, 0, stream, &[0; 5]),
            Flood::Unknown | Flood::TinyRecords => frame(into, UNKNOWN, 0, 0, &[]),
            Flood::Settings => {
                frame(into, SETTINGS, 0, 0, &[0, 4, 0, 0, 0x7f, 0xff]);
                frame(into, SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
            }
            Flood::Ping => frame(into, PING, 0, 0, &[7; 8]),
            Flood::Pong => frame(into, PING, ACK, 0, &[7; 8]),
            Flood::GoAway => frame(into, GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            Flood::DataOfReset => frame(into, DATA, 0, stream, b"x"),
            Flood::EmptyData => frame(into, DATA, 0, stream, &[]),
            Flood::WindowUpdateOfNothing => frame(into, WINDOW_UPDATE, 0, 0, &[0; 4]),
            Flood::Continuation => frame(into, CONTINUATION, 0, stream, &[AGE; 10]),
            Flood::PushPromise => frame(into, PUSH_PROMISE, END_HEADERS, stream, &[0, 0, 0, 2, 0x82, 0x87]),
            Flood::Trailers => frame(into, HEADERS, END_HEADERS | END_STREAM, stream, &[AGE]),
        }
    }
}

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    into.extend_from_slice(&u32::try_from(payload.len()).expect("short frames").to_be_bytes()[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// Greets, waits for a request, and floods until the peer ends the connection.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut io: S, http2: bool, flood: Flood) -> io::Result<()> {
    let (begin, piece) = if http2 {
        let mut greeting = Vec::new();
        frame(&mut greeting, SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        frame(&mut greeting, SETTINGS, ACK, 0, &[]);
        io.write_all(&greeting).await?;
        io.flush().await?;
        io.read_exact(&mut [0; PREFACE]).await?;
        let stream = request(&mut io).await?;
        let (mut begin, mut piece) = (Vec::new(), Vec::new());
        flood.begin(&mut begin, stream);
        flood.piece(&mut piece, stream);
        (begin, piece)
    } else {
        // The head is enough: whoever floods does not care for the body.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await?);
        }
        (Vec::new(), b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec())
    };
    let (mut incoming, mut outgoing) = tokio::io::split(io);
    let drain = async { tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await.map(|_| ()) };
    let pour = async {
        outgoing.write_all(&begin).await?;
        outgoing.flush().await?;
        let batch = piece.repeat(BATCH / piece.len());
        loop {
            if flood == Flood::TinyRecords {
                for _ in 0..1_000 {
                    outgoing.write_all(&[0]).await?;
                }
                outgoing.flush().await?;
            } else {
                outgoing.write_all(&batch).await?;
            }
        }
    };
    tokio::select! {
        ended = drain => ended,
        ended = pour => ended,
    }
}

/// The stream of the first request that has come whole.
async fn request<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<u32> {
    loop {
        let mut header = [0; 9];
        io.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        io.read_exact(&mut vec![0; length]).await?;
        if header[3] <= HEADERS && header[4] & END_STREAM != 0 {
            return Ok(u32::from_be_bytes([header[5], header[6], header[7], header[8]]));
        }
    }
}
